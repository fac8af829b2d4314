"""Chatbot: an answer to a question or remark. Many-to-many, learned from pairs; `loom chat RUN_ID` talks to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loom import App, Data, Metrics, TrainingConfig, main
from loom.config import Optimizer, Schedule
from loom.data import questions
from loom.data.pairs import SOURCE, TARGET, read_pairs
from loom.seq2seq import Seq2SeqConfig, build, loss, make_data, metrics, preprocess, tokenizers
from loom.translator import Translator

if TYPE_CHECKING:
    import pandas as pd
    from keras_tuner import HyperParameters

    from loom.app import Answer
    from loom.run import Run
    from loom.trained import Trained

AT_ONCE = 100
"""Questions that the baseline compares with all known ones at a time."""
SHOWN = 3
"""Attention maps in a figure."""


@dataclass(frozen=True)
class Config(Seq2SeqConfig):
    """Settings of `loom train chatbot`."""

    epochs: int = 45
    batch_size: int = 32
    buckets: int = 8
    optimizer: Optimizer = "muon"
    learning_rate: float = 0.006
    schedule: Schedule = "onecycle"
    clip_norm: float = 1.0
    jit: Literal["auto", "on", "off"] = "off"
    vocabulary_size: int = 2000
    dropout: float = 0.03
    label_smoothing: float = 0.0
    max_length: int = 128

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        whole = self.test_fraction == TrainingConfig.test_fraction
        self.require("test_fraction", whole, "is not used here: the test asks every question")


def load(config: Config) -> Data:
    """All pairs to train on: nobody but the recorded ones knows a question's answers.

    Validation is a share of the same pairs; the test part has every question once, with one of its answers.
    """
    examples, notes = read_pairs(config, questions.questions)
    pairs = examples.whole
    share = max(1, round(config.validation_fraction * len(pairs)))
    config.require("max_train", config.max_train < len(pairs), f"there are {len(pairs)} examples to train on")
    parts = {
        "train": pairs.head(config.max_train or max(1, round(config.train_fraction * len(pairs)))),
        "validation": pairs.sample(share, random_state=config.seed_of_splits).reset_index(drop=True),
        "test": pairs.drop_duplicates(SOURCE).reset_index(drop=True),
    }
    notes.append("trained on all pairs: validation and test ask the same questions again, what it has learned by heart")
    return make_data(parts, examples, config, notes)


def space(hp: HyperParameters) -> dict[str, Any]:
    """What a search varies unless told otherwise."""
    return {
        "model": hp.Choice("model", ["transformer", "lstm", "gru"]),
        "units": hp.Choice("units", [64, 128, 256]),
        "depth": hp.Int("depth", 1, 2),
        "dropout": hp.Float("dropout", 0.0, 0.3, step=0.1),
        "vocabulary_size": hp.Choice("vocabulary_size", [1000, 2000, 4000]),
        "learning_rate": hp.Float("learning_rate", 1e-3, 1e-2, sampling="log"),
    }


def recorded(data: Data, answers: Sequence[str]) -> float:
    """Share of the test part's questions that get one of the answers recorded for them, letter by letter."""
    plain = tokenizers(data.spec)[1].normalized
    known: dict[str, set[str]] = {}
    for question, answer in zip(data.train.raw[SOURCE], data.train.raw[TARGET], strict=True):
        known.setdefault(question, set()).add(plain(answer))
    asked = data.test.raw[SOURCE]
    return float(np.mean([plain(answer) in known.get(text, ()) for text, answer in zip(asked, answers, strict=True)]))


def without_a_word(text: str) -> str:
    """The question without its middle word: as people write who are in a hurry."""
    words = text.split()
    middle = len(words) // 2
    return " ".join(words[:middle] + words[middle + 1 :]) if len(words) > 2 else text


def baselines(config: Config, data: Data) -> dict[str, Metrics]:
    """The first answer of the most similar question, by TF-IDF, and one answer to everything."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics.pairwise import linear_kernel

    pairs, asked = data.train.raw, list(data.test.raw[SOURCE])
    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\w+|[^\w\s]", sublinear_tf=True)
    known = vectorizer.fit_transform(pairs[SOURCE])
    hurried = [without_a_word(text) for text in asked]
    usual = pairs[TARGET].mode()[0]

    def nearest(texts: Sequence[str]) -> list[str]:
        vectors = vectorizer.transform(texts)
        parts = (vectors[start : start + AT_ONCE] for start in range(0, len(texts), AT_ONCE))
        rows = np.concatenate([linear_kernel(part, known).argmax(axis=1) for part in parts])
        return list(pairs[TARGET].iloc[rows])

    same = recorded(data, [usual] * len(asked))
    return {
        "one_answer": {"recorded": same, "recorded_hurried": same},
        "nearest": {"recorded": recorded(data, nearest(asked)), "recorded_hurried": recorded(data, nearest(hurried))},
    }


def test(run: Run, measured: Metrics) -> Metrics:
    """Share of the distinct questions answered as recorded: as they are, and (`hurried`) with a word missing."""
    translator, asked = Translator.of(run.trained), list(run.data.test.raw[SOURCE])
    hurried = [without_a_word(text) for text in asked]
    written = {
        "beam": translator.write(asked, "beam"),
        "greedy": translator.write(asked, "greedy"),
        "answer_to_hurried": translator.write(hurried, "beam"),
    }
    answers = {name: [answer.text for answer in found] for name, found in written.items()}
    columns = {"question": asked, **answers, "hurried": hurried}
    run.table("answers", [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    return {
        "recorded": recorded(run.data, answers["beam"]),
        "recorded_greedy": recorded(run.data, answers["greedy"]),
        "recorded_hurried": recorded(run.data, answers["answer_to_hurried"]),
    }


def report(run: Run) -> None:
    """What the decoder reads of the question for each token of its answer."""
    from loom.figures_attention import draw_attention

    draw_attention(run, SHOWN)


def predict(trained: Trained, frame: pd.DataFrame) -> Sequence[Answer]:
    """An answer to each question, and its score."""
    written = Translator.of(trained).write(list(frame[SOURCE].fillna("").astype(str)))
    return [{"answer": answer.text, "score": answer.score} for answer in written]


APP = App(
    "chatbot",
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
    no_export="its answers are decoded token by token, which the other formats do not hold; use loom predict or chat",
)

if __name__ == "__main__":
    main(APP)
