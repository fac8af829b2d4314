"""Embeddings: which words are used alike? Word vectors from raw text, by skip-gram with negative sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loom import App, Data, Field, Metrics, Spec, Split, TrainingConfig, UserError, main
from loom.config import Optimizer, Schedule
from loom.data.analogies import Question, read_questions, tale_questions, tales
from loom.data.pipeline import Ragged
from loom.data.tagged import composed
from loom.data.texts import in_order, read_text
from loom.data.words import (
    ThinnedBatches,
    Within,
    cut,
    keep_probabilities,
    lines_of,
    read_corpus,
    thinned,
    words_of,
)
from loom.lazy import keras, layers
from loom.vectors import WordVectors, accuracy_by_section, askable, read_vectors, share_right, write_vectors

if TYPE_CHECKING:
    import pandas as pd
    from keras_tuner import HyperParameters

    from loom.app import Answer
    from loom.data.pipeline import Batches
    from loom.run import Run
    from loom.trained import Trained

TEXT, WORDS, VECTORS, SUM = "text", "words", "vectors", "sum"
ROW = 64
"""Words of an example at most: of longer texts, words on either side of a cut are no neighbours."""
MINUS = ("-", "\u2212", "\u2013")
ANSWERED = 10
"""Words that an answer names."""
NOTHING = 1e-6
"""Sums are no longer than this where everything is subtracted again, or nothing is known."""
COUNTED = 2_000_000
"""Words that the baselines count neighbours of, about: in as many epochs."""
DRAWN, DRAWN_PAIRS = 160, 12
"""Words of the map, and pairs of words of each section."""


@dataclass(frozen=True)
class Config(TrainingConfig):
    """Settings of `loom train embeddings`."""

    units: int = 100
    """Width of a word's vector."""
    window: int = 5
    """Farthest that two neighbours may be apart; for each word, how far it looks is drawn from 1 to this."""
    negatives: int = 5
    """Words of the noise that each neighbour is told from."""
    noise: int = 64
    """Words that are drawn for a batch as its noise; the loss is their mean, times --negatives."""
    subsample: float = 1e-3
    """Of words with a larger share of the text than this, many occurrences are left out (0: none)."""
    min_count: int = 5
    """Words that occur less often in the training text are left out."""
    vocabulary_size: int = 50_000
    """Number of words, at most: the most frequent ones."""
    within: Within = "line"
    """Neighbours are of one line (a sentence, a session), of a paragraph, or of the whole text."""
    analogies: str = ""
    """File with questions of your own: lines `man woman king queen`, sections `: NAME` (built-in text: built in)."""
    vectors: str = ""
    """File with vectors to start from, in the text format of word2vec or GloVe."""
    epochs: int = 15
    batch_size: int = 128
    buckets: int = 1
    optimizer: Optimizer = "adam"
    learning_rate: float = 0.01
    schedule: Schedule = "linear"
    test_fraction: float = 0.05
    validation_fraction: float = 0.05

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        self.require("regularization", self.regularization == "none", "is not used here")
        self.require("devices", self.devices == 1, "must be 1: all devices would draw the same noise")
        self.require("max_train", not self.max_train, "is not used here; --train-fraction is")
        for name in ("units", "negatives", "noise", "min_count"):
            self.require(name, getattr(self, name) >= 1, "must be at least 1")
        self.require("window", 1 <= self.window < ROW, f"must lie between 1 and {ROW - 1}")
        self.require("subsample", 0 <= self.subsample <= 1, "must lie between 0 and 1")
        self.require("vocabulary_size", self.vocabulary_size >= 2, "must be at least 2")


def load(config: Config) -> Data:
    """Rows of words, divided in the order of the text; the vocabulary, with counts, is that of the training part."""
    found = read_text(config, tales)
    parts = {name: lines_of(part, config.within) for name, part in in_order(found.text, config).items()}
    counts, rows = read_corpus(parts, config.min_count, config.vocabulary_size)
    rows = {name: cut(each, ROW, 2) for name, each in rows.items()}
    for name, each in rows.items():
        if not len(each):
            problem = f"its {name} part has no two words that occur {config.min_count} times in the training part"
            raise UserError(f"--data {config.data}: {problem}; give more text or a smaller --min-count")
    words = tuple(counts)
    # What the loss of these parts is to be compared with is thinned too, but only once.
    keep = keep_probabilities(frequencies(counts), config.subsample)
    inputs = {name: each if name == "train" else thinned(each, keep, config.seed) for name, each in rows.items()}
    splits = {name: Split(_raw(rows[name], words), {WORDS: inputs[name]}, {}) for name in rows}
    spec = Spec((Field(TEXT, "text", words, statistics=dict(counts)),), ())
    notes = (
        f"{len(rows['train'].values):,} words to train on, {len(words):,} different ones",
        *_more_notes(config, words),
    )
    return Data(**splits, spec=spec, source=found.source, bad=found.bad, notes=(*found.notes, *notes))


def frequencies(counts: Mapping[str, float]) -> np.ndarray:
    """How often each number occurs, (numbers,): 0 is no word."""
    return np.array([0, *counts.values()])


def _raw(rows: Ragged, words: Sequence[str]) -> pd.DataFrame:
    """The words of each row; with tabs between them they are not taken apart any further."""
    import pandas as pd

    names = np.array(["", *words], object)
    return pd.DataFrame({TEXT: ["\t".join(row) for row in np.split(names[rows.values], rows.splits[1:-1])]})


def _numbered(raw: pd.DataFrame, words: Sequence[str]) -> Ragged:
    """The numbers of each row's words, which `_raw` has written."""
    numbers = {word: number for number, word in enumerate(words, start=1)}
    rows = [text.split("\t") for text in raw[TEXT]]
    values = np.array([numbers[word] for row in rows for word in row], np.int32)
    return Ragged(values, np.cumsum([0, *map(len, rows)]))


def _more_notes(config: Config, words: Sequence[str]) -> list[str]:
    """What came of files with questions and vectors."""
    notes = []
    if questions(config):
        asked = len(askable(questions(config), words))
        notes.append(f"{asked:,} of {len(questions(config)):,} questions ask for known words only; others are left out")
    if config.vectors:
        start = read_vectors(Path(config.vectors), words, config.max_bad)
        width = start.vectors.shape[1]
        config.require("units", width == config.units, f"the vectors in {config.vectors} have {width} values")
        notes.append(f"{len(start.words):,} of {len(words):,} words start with vectors of {config.vectors}")
    return notes


def questions(config: Any) -> list[Question]:
    """What is asked: the person's own file, or that of the built-in text."""
    if config.analogies:
        return read_questions(Path(config.analogies), config.max_bad)
    return tale_questions() if config.data == "sample" else []


def preprocess(config: Config, spec: Spec) -> keras.Model:
    """Raw text to the numbers of its words, less than zero after a minus sign; unknown words are 0."""
    text = keras.Input((1,), dtype="string", name=TEXT)
    words = layers.SplitWords()(text)
    lookup = keras.layers.StringLookup(vocabulary=list(spec.input(TEXT).vocabulary), mask_token="")
    numbers = keras.ops.maximum(keras.ops.cast(lookup(layers.NormalizeWords(digits=False)(words)), "int32") - 1, 0)
    signs = keras.layers.StringLookup(vocabulary=list(MINUS))(words) > 0
    after_minus = keras.ops.pad(keras.ops.cast(signs, "int32")[:, :-1], [[0, 0], [1, 0]])
    return keras.Model({TEXT: text}, {WORDS: numbers * (1 - 2 * after_minus)})


def build(config: Config, spec: Spec) -> keras.Model:
    """Words to the sum of their vectors, each of length 1; and what the vectors learn from."""
    from loom.skipgram import SkipGram

    counts = spec.input(TEXT).statistics
    small = keras.initializers.RandomUniform(-0.5 / config.units, 0.5 / config.units, seed=config.seed)
    table = keras.layers.Embedding(len(counts) + 1, config.units, small, name=VECTORS, dtype="float32")
    contexts = keras.layers.Embedding(len(counts) + 1, config.units, "zeros", name="contexts", dtype="float32")
    words = keras.Input((None,), dtype="int32", name=WORDS)
    vectors = keras.layers.UnitNormalization(dtype="float32")(table(keras.ops.abs(words)))
    signs = keras.ops.expand_dims(keras.ops.cast(keras.ops.sign(words), "float32"), -1)
    reader = keras.Model({WORDS: words}, {SUM: keras.ops.sum(vectors * signs, axis=1)})
    if config.vectors:
        _start(table, read_vectors(Path(config.vectors), list(counts), config.max_bad), list(counts))
    return SkipGram(
        reader, table, contexts, frequencies(counts), config.window, config.negatives, config.noise, config.seed
    )


def _start(table: keras.layers.Embedding, known: WordVectors, words: Sequence[str]) -> None:
    """Begin with known vectors, in lengths of 1."""
    values = np.array(table.embeddings)
    for row, word in enumerate(words, start=1):
        if word in known.places:
            values[row] = known.units[known.places[word]]
    table.embeddings.assign(values)


def train_batches(run: Run) -> Batches:
    """Rows from which frequent words are left out, others in each epoch."""
    config, rows = run.config, run.data.train.inputs[WORDS]
    assert isinstance(config, Config)
    assert isinstance(rows, Ragged)
    keep = keep_probabilities(frequencies(run.data.spec.input(TEXT).statistics), config.subsample)
    return ThinnedBatches(WORDS, rows, keep, config.batch_size, config.buckets, config.seed)


def space(hp: HyperParameters) -> dict[str, Any]:
    """What a search varies unless told otherwise: nothing that changes what a pair costs."""
    return {
        "units": hp.Int("units", 16, 256, sampling="log"),
        "optimizer": hp.Choice("optimizer", ["adam", "adagrad"]),
        "learning_rate": hp.Float("learning_rate", 1e-3, 1e-1, sampling="log"),
        "batch_size": hp.Choice("batch_size", [32, 128, 512]),
    }


def word_vectors(trained: Trained) -> WordVectors:
    """The vectors that were learned."""
    table = trained.core.get_layer(VECTORS).embeddings
    return WordVectors(trained.spec.input(TEXT).vocabulary, np.array(table)[1:])


def test(run: Run, measured: Metrics) -> Metrics:
    """Share of right answers to the questions, with and without the first two words."""
    return analogies(word_vectors(run.trained), questions(run.config))


def analogies(known: WordVectors, asked: Sequence[Question]) -> Metrics:
    """Share of right answers to the questions whose words are known: to all three words, and to the third alone."""
    asked = askable(asked, known.words)
    if not asked:
        return {}
    answers = {"analogies": known.answers(asked), "analogies_nearest": known.answers(asked, offset=False)}
    return {name: share_right(asked, found) for name, found in answers.items()}


def baselines(config: Config, data: Data) -> dict[str, Metrics]:
    """How likely each neighbour is at all; the most frequent word; and neighbours that are counted, by PPMI and SVD."""
    from loom.cooccurrence import count_neighbours, svd_vectors, unigram_loss

    counts = data.spec.input(TEXT).statistics
    occurrences, words = frequencies(counts), tuple(counts)
    rows, held_out = (_numbered(split.raw, words) for split in (data.train, data.test))
    keep = keep_probabilities(occurrences, config.subsample)
    epochs = range(min(config.epochs, 1 + COUNTED // len(rows.values)))
    seen = sum(
        count_neighbours(thinned(rows, keep, config.seed, epoch), config.window, len(occurrences)) for epoch in epochs
    )
    asked_for = count_neighbours(thinned(held_out, keep, config.seed), config.window, len(occurrences))
    found = {"unigram": {"loss": unigram_loss(seen, asked_for, occurrences, config.negatives)}}
    asked = askable(questions(config), words)
    if asked:
        usual = [next(word for word in words if word not in question.words[:3]) for question in asked]
        found["most_frequent"] = {"analogies": share_right(asked, usual)}
        found["svd"] = analogies(WordVectors(words, svd_vectors(seen, config.units)[1:]), asked)
    return found


def predict(trained: Trained, frame: pd.DataFrame) -> Sequence[Answer]:
    """The words nearest to the sum of a text's words, with cosines; those after a minus sign are subtracted."""
    import pandas as pd

    texts = [composed(str(text)) for text in frame[TEXT].fillna("")]
    known = trained.kept("vectors", lambda: word_vectors(trained))
    encoded = trained.encode(pd.DataFrame({TEXT: texts}))
    rows, sums = encoded[WORDS], trained.outputs_of(encoded)[SUM]
    assert isinstance(rows, Ragged)
    asked = [np.abs(row[row != 0]) - 1 for row in np.split(rows.values, rows.splits[1:-1])]
    answers: list[Answer] = []
    for total, near, words in zip(sums, known.nearest(sums, asked, ANSWERED), words_of(texts), strict=True):
        unknown = [word for word in dict.fromkeys(words) if word not in known.places]
        answers.append({"nearest": dict(near) if np.abs(total).max() > NOTHING else {}, "unknown": unknown})
    return answers


def report(run: Run) -> None:
    """A map of words, the neighbours of some, what was answered to questions, and the vectors for other programs."""
    from loom.figures_words import pair_maps, word_map

    known = word_vectors(run.trained)
    write_vectors(run.folder / "vectors.txt", known)
    rows = _drawn_words(run)
    if len(rows) > 2:
        shown = WordVectors([known.words[row] for row in rows], known.vectors[rows])
        run.figure("words", word_map(shown, "Frequent words; alike ones lie together", "neighbours"))
    neighbours = known.nearest(known.units[rows], [[row] for row in rows], ANSWERED)
    run.table("neighbours", {known.words[row]: dict(near) for row, near in zip(rows, neighbours, strict=True)})
    run.table("speed", {"words_per_second": _words_per_second(run)})
    asked = askable(questions(run.config), known.words)
    if asked:
        run.table("analogies", _answered(asked, known.answers(asked)))
        pairs: dict[str, dict[tuple[str, str], None]] = {}
        for question in asked:
            pairs.setdefault(question.section, {})[question.words[:2]] = None
        drawn = {name: list(each)[:DRAWN_PAIRS] for name, each in pairs.items()}
        run.figure("pairs", pair_maps(known, drawn, "pairs"))
        run.table("pairs", drawn)


def _drawn_words(run: Run) -> list[int]:
    """The most frequent words but those of which much is left out."""
    config: Any = run.config
    keep = keep_probabilities(frequencies(run.data.spec.input(TEXT).statistics), config.subsample)[1:]
    return np.flatnonzero(keep >= min(0.5, float(np.median(keep))))[:DRAWN].tolist()


def _words_per_second(run: Run) -> float:
    """Words of the training text that an epoch's training reads in a second; those that are left out count."""
    rows = run.data.train.inputs[WORDS]
    assert isinstance(rows, Ragged)
    rates = [epoch["examples_per_second"] for epoch in run.history[1:] or run.history]
    return float(np.median(rates or [0.0]) * len(rows.values) / len(rows))


def _answered(asked: Sequence[Question], answers: Sequence[str]) -> dict[str, Any]:
    """Share of right answers by section, and the wrong ones."""
    wrong = [
        {"question": " ".join(question.words[:3]), "right": question.words[3], "answer": answer}
        for question, answer in zip(asked, answers, strict=True)
        if answer != question.words[3]
    ]
    return {"sections": accuracy_by_section(asked, answers), "questions": len(asked), "wrong": wrong}


APP = App(
    "embeddings",
    Config,
    load,
    preprocess,
    build,
    space,
    baselines,
    report,
    predict,
    loss=None,
    objective="val_loss",
    train_batches=train_batches,
    test=test,
    no_export="its answers are looked up among all words; report/vectors.txt holds their vectors for other programs",
)

if __name__ == "__main__":
    main(APP)
