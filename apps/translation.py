"""Translation: a sentence in another language. Many-to-many: a sequence of any length from one of any length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from loom import App, Data, Metrics, main
from loom.config import Schedule
from loom.data import hindi
from loom.data.pairs import SOURCE, TARGET, read_pairs, split_pairs
from loom.data.tokens import join_words
from loom.dictionary import Dictionary
from loom.scores import bleu_and_chrf
from loom.seq2seq import Seq2SeqConfig, build, loss, make_data, metrics, preprocess
from loom.translator import Translator

if TYPE_CHECKING:
    import pandas as pd
    from keras_tuner import HyperParameters

    from loom.app import Answer
    from loom.run import Run
    from loom.trained import Trained

SHOWN = 3
"""Attention maps in a figure."""


@dataclass(frozen=True)
class Config(Seq2SeqConfig):
    """Settings of `loom train translation`."""

    epochs: int = 20
    batch_size: int = 64
    buckets: int = 16
    learning_rate: float = 0.002
    schedule: Schedule = "onecycle"
    clip_norm: float = 1.0
    jit: Literal["auto", "on", "off"] = "off"


def load(config: Config) -> Data:
    """Pairs of sentences as tokens."""
    examples, notes = read_pairs(config, hindi.sentences)
    return make_data(split_pairs(examples, config), examples, config, notes)


def space(hp: HyperParameters) -> dict[str, Any]:
    """What a search varies unless told otherwise."""
    return {
        "units": hp.Choice("units", [64, 128, 192]),
        "depth": hp.Int("depth", 1, 3),
        "dropout": hp.Float("dropout", 0.0, 0.4, step=0.1),
        "label_smoothing": hp.Choice("label_smoothing", [0.0, 0.1]),
        "vocabulary_size": hp.Choice("vocabulary_size", [1000, 4000, 8000]),
        "learning_rate": hp.Float("learning_rate", 5e-4, 4e-3, sampling="log"),
    }


def scores(translations: Sequence[str], references: Sequence[str], lower: bool) -> Metrics:
    """BLEU and chrF of a whole part."""
    return bleu_and_chrf(translations, [[reference] for reference in references], lower)


def baselines(config: Config, data: Data) -> dict[str, Metrics]:
    """The source as it is, and its words one by one from a dictionary learned from the training pairs."""
    dictionary = Dictionary(list(data.train.raw[SOURCE]), list(data.train.raw[TARGET]))
    sources, references = list(data.test.raw[SOURCE]), list(data.test.raw[TARGET])
    word_by_word = [join_words(" ".join(dictionary.translate(text))) for text in sources]
    return {
        "copy": scores(sources, references, config.lower),
        "dictionary": scores(word_by_word, references, config.lower),
    }


def test(run: Run, measured: Metrics) -> Metrics:
    """BLEU and chrF of the test part's translations, by beam search and by greedy decoding."""
    translator, frame = Translator.of(run.trained), run.data.test.raw
    sources, references = list(frame[SOURCE]), list(frame[TARGET])
    written = {how: [answer.text for answer in translator.write(sources, how)] for how in ("beam", "greedy")}
    run.table(
        "translations",
        [
            {"source": source, "reference": reference, "beam": beam, "greedy": greedy}
            for source, reference, beam, greedy in zip(
                sources, references, written["beam"], written["greedy"], strict=True
            )
        ],
    )
    greedy = scores(written["greedy"], references, run.config.lower)  # type: ignore[attr-defined]
    beam = scores(written["beam"], references, run.config.lower)  # type: ignore[attr-defined]
    return {**beam, **{f"greedy_{name}": value for name, value in greedy.items()}}


def report(run: Run) -> None:
    """What the decoder reads of the source for each token that it writes."""
    from loom.figures_attention import draw_attention

    draw_attention(run, SHOWN)


def predict(trained: Trained, frame: pd.DataFrame) -> Sequence[Answer]:
    """A translation of each sentence, and its score."""
    written = Translator.of(trained).write(list(frame[SOURCE].fillna("").astype(str)))
    return [{"translation": answer.text, "score": answer.score} for answer in written]


APP = App(
    "translation",
    Config,
    load,
    preprocess,
    build,
    space,
    baselines,
    report,
    predict,
    loss=loss,
    metrics=metrics,
    objective="val_loss",
    test=test,
    no_export="its answers are decoded token by token, which the other formats do not hold; use loom predict or serve",
)

if __name__ == "__main__":
    main(APP)
