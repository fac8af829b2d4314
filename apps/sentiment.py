"""Sentiment: what does a text think of it? Many-to-one: a class (negative, positive, ...) or a rating from a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loom import App, Data, Field, Metrics, Ragged, Spec, Split, TrainingConfig, UserError, main
from loom.config import flag
from loom.data import samples
from loom.data.sources import read_examples, require_values, split_examples
from loom.data.text import build_vocabulary
from loom.lazy import keras, layers, tf

if TYPE_CHECKING:
    import pandas as pd
    from keras_tuner import HyperParameters

    from loom.app import Answer
    from loom.run import Run
    from loom.trained import Trained

TEXT, SENTIMENT = "text", "sentiment"
UNKNOWN_WORD = 1
EXPLAINED, EXPLAINED_WORDS = 6, 80
"""Predictions that are explained, and how many of their first words."""


@dataclass(frozen=True)
class Config(TrainingConfig):
    """Settings of `loom train sentiment`."""

    text_column: str = "text"
    """Column with the texts."""
    label_column: str = ""
    """Column with the classes or ratings (default: `label`, or `rating` with --target rating)."""
    target: Literal["class", "rating"] = "class"
    """Predict one of several classes, or a number."""
    vocabulary_size: int = 30_000
    """Number of words that are known; the rest are one unknown word."""
    max_words: int = 1024
    """Longer texts are shortened to this many words."""
    keep: Literal["head", "tail", "ends"] = "ends"
    """Which words of a longer text are kept."""
    encoder: Literal["bag", "elman", "lstm", "gru", "transformer"] = "bag"
    """What turns the words into one vector: a bag of words and word pairs, a recurrent layer, or attention."""
    pair_buckets: int = 2**20
    """Rows for the hashed word pairs (0: single words only)."""
    embedding_units: int = 64
    """Width of a word's vector before a recurrent layer or attention."""
    pair_units: int = 0
    """Width of the vector of a word and the one before it, beside the word's own (0: none)."""
    units: int = 2
    """Width of the encoder's vector."""
    bidirectional: bool = False
    """Read the text in both directions."""
    depth: int = 1
    """Recurrent layers, or transformer blocks, on top of each other."""
    heads: int = 4
    """Heads of a transformer block's attention."""
    feed_forward_units: int = 64
    """Width of a transformer block's hidden layer."""
    segment: int = 0
    """The layers read this many words at a time, and all such segments at once (0: the whole text)."""
    pooling: Literal["last", "mean", "max", "root"] = "max"
    """How the vectors of all words become one vector; `root` is their sum over the root of their number."""
    mask_padding: bool = True
    """Skip padding; without, the layers read it like words."""
    dropout: float = 0.0
    """Share that is dropped in training: of a bag's words, of another encoder's inputs and outputs."""
    recurrent_dropout: float = 0.0
    """Share of the recurrent state that is dropped in training, the same units at every step."""
    batch_size: int = 128
    epochs: int = 30
    jit: Literal["auto", "on", "off"] = "off"
    patience: int = 2
    learning_rate: float = 0.005

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        self.require("regularization", self.regularization == "none", "is not used here; --dropout is")
        for name in ("units", "embedding_units", "depth", "max_words", "heads", "feed_forward_units"):
            self.require(name, getattr(self, name) >= 1, "must be at least 1")
        self.require("pair_units", self.pair_units >= 0, "must not be negative")
        self.require("pair_units", not self.pair_units or self.pair_buckets > 0, "needs --pair-buckets above 0")
        self.require("segment", self.segment >= 0, "must not be negative")
        self.require("segment", not self.segment or self.pooling != "last", "needs --pooling mean, max or root")
        self.require("vocabulary_size", 3 <= self.vocabulary_size <= 50_000, "must lie between 3 and 50,000")
        self.require("pair_buckets", 0 <= self.pair_buckets <= 2**24, "must lie between 0 and 16,777,216")
        for name in ("dropout", "recurrent_dropout"):
            self.require(name, 0 <= getattr(self, name) < 1, "must be at least 0 and below 1")
        if self.encoder in ("bag", "transformer"):
            for name in ("bidirectional", "recurrent_dropout"):
                self.require(name, not getattr(self, name), "needs a recurrent --encoder")
        if self.encoder == "bag":
            for name in ("segment", "pair_units"):
                self.require(name, not getattr(self, name), "needs a recurrent --encoder or transformer")
        if self.encoder == "transformer":
            self.require("pooling", self.pooling != "last", "needs a recurrent --encoder: use mean, max or root")

    @property
    def label(self) -> str:
        """Column with the answers."""
        return self.label_column or ("rating" if self.target == "rating" else "label")


def load(config: Config) -> Data:
    """Texts and their classes or ratings, and the vocabulary of the training texts."""
    required = [config.text_column, config.label]
    examples = read_examples(config, samples.reviews, required, required, missing=frozenset({""}))
    examples = require_values(examples, config, required)
    examples = examples.take(examples.whole[required].set_axis([TEXT, SENTIMENT], axis=1))
    if config.target == "rating":
        _check_ratings(examples.whole, config)
    stratify = (lambda part: part[SENTIMENT].to_numpy()) if config.target == "class" else (lambda part: None)
    parts = split_examples(examples, config, stratify)
    target = _target(parts["train"], config)
    vocabulary = build_vocabulary(parts["train"][TEXT].tolist(), config.vocabulary_size)
    spec = Spec((Field(TEXT, "text", vocabulary),), (target,))
    train, validation, test = (
        Split(part, {}, {SENTIMENT: _numbers(part[SENTIMENT], target)}) for part in parts.values()
    )
    return Data(train, validation, test, spec, examples.source, examples.bad)


def _check_ratings(frame: pd.DataFrame, config: Config) -> None:
    import pandas as pd

    wrong = ~np.isfinite(pd.to_numeric(frame[SENTIMENT], errors="coerce").to_numpy(float))
    if wrong.any():
        example = frame[SENTIMENT][wrong].iloc[0]
        raise UserError(f"--target rating: column {config.label!r} holds {example!r}, which is no number")


def _target(frame: pd.DataFrame, config: Config) -> Field:
    """What is to be predicted, from the training part."""
    if config.target == "rating":
        ratings = frame[SENTIMENT].to_numpy(float)
        statistics = {"mean": float(ratings.mean()), "scale": float(ratings.std()) or 1.0}
        return Field(SENTIMENT, "number", statistics=statistics)
    classes = tuple(sorted(map(str, frame[SENTIMENT].unique())))
    if len(classes) < 2:
        raise UserError(f"{flag('label_column')} {config.label}: all examples are of one class, {classes[0]!r}")
    return Field(SENTIMENT, "binary" if len(classes) == 2 else "classes", classes)


def _numbers(values: pd.Series, target: Field) -> np.ndarray:
    if target.kind == "number":
        return values.to_numpy(np.float32)[:, None]
    indices = {name: index for index, name in enumerate(target.vocabulary)}
    unknown = set(values.astype(str)) - set(indices)
    if unknown:
        raise UserError(f"the test part holds the class {min(unknown)!r}, which the training part does not")
    return values.astype(str).map(indices).to_numpy(np.int32)[:, None]


def preprocess(config: Config, spec: Spec) -> keras.Model:
    """Raw text to word ids, zeros at the end."""
    text = keras.Input((1,), dtype="string", name=TEXT)
    words = keras.layers.TextVectorization(
        standardize=layers.standardize_text, vocabulary=list(spec.input(TEXT).vocabulary[2:])
    )(text)
    words = keras.ops.cast(layers.Shorten(config.max_words, config.keep)(words), "int32")
    return keras.Model({TEXT: text}, {"words": words})


def build(config: Config, spec: Spec) -> keras.Model:
    """Word ids to the probability of a class, or a rating."""
    words = keras.Input((None,), dtype="int32", name="words")
    encode = {"bag": _bag, "transformer": _transformer}.get(config.encoder, _recurrent)
    vector = encode(words, config, len(spec.input(TEXT).vocabulary))
    if config.encoder != "bag":
        vector = keras.layers.Dropout(config.dropout)(vector)
    target = spec.target(SENTIMENT)
    if target.kind == "number":
        scaled = keras.layers.Dense(1, dtype="float32", name="output")(vector)
        output = keras.layers.Rescaling(target.statistics["scale"], target.statistics["mean"], dtype="float32")(scaled)
    elif target.kind == "binary":
        output = keras.layers.Dense(1, "sigmoid", dtype="float32", name="output")(vector)
    else:
        output = keras.layers.Dense(len(target.vocabulary), "softmax", dtype="float32", name="output")(vector)
    return keras.Model({"words": words}, {SENTIMENT: output})


def _bag(words: keras.KerasTensor, config: Config, vocabulary_size: int) -> keras.KerasTensor:
    small = keras.initializers.RandomUniform(-0.01, 0.01, seed=config.seed)
    words = layers.WordDropout(config.dropout)(words)
    return layers.BagOfWordPairs(vocabulary_size, config.units, config.pair_buckets, small)(words)


def _recurrent(words: keras.KerasTensor, config: Config, vocabulary_size: int) -> keras.KerasTensor:
    kind = {"elman": layers.Elman, "lstm": layers.LSTM, "gru": layers.GRU}[config.encoder]
    vectors = _word_vectors(words, config, vocabulary_size)
    for number in range(config.depth):
        sequences = number < config.depth - 1 or config.pooling != "last"
        layer = kind(config.units, return_sequences=sequences, recurrent_dropout=config.recurrent_dropout)
        layer = layers.Bidirectional(layer) if config.bidirectional else layer
        vectors = (layers.Segmented(layer, config.segment) if config.segment else layer)(vectors)
    return vectors if config.pooling == "last" else layers.MaskedPooling1D(config.pooling)(vectors)


def _transformer(words: keras.KerasTensor, config: Config, vocabulary_size: int) -> keras.KerasTensor:
    vectors = keras.layers.Dense(config.units)(_word_vectors(words, config, vocabulary_size))
    for _ in range(config.depth):
        block = layers.TransformerEncoderBlock(
            config.heads,
            config.feed_forward_units,
            key_dim=2 * math.ceil(config.units / config.heads / 2),  # rotated in pairs
            rotary=True,
            activation="gelu",
            norm_epsilon=0.1,  # the short vectors of rare words stay short
            dropout=config.dropout,
        )
        vectors = (layers.Segmented(block, config.segment) if config.segment else block)(vectors)
    assert config.pooling != "last"
    # No norm after the last block: how long a word's vector is says how much it counts.
    return layers.MaskedPooling1D(config.pooling)(vectors)


def _word_vectors(words: keras.KerasTensor, config: Config, vocabulary_size: int) -> keras.KerasTensor:
    """A vector for each word, and beside it one for the word and the one before."""
    vectors = keras.layers.Embedding(vocabulary_size, config.embedding_units, mask_zero=config.mask_padding)(words)
    if config.pair_units:
        rows = layers.PairRows(config.pair_buckets)(words)
        # With a mask of its own: `Concatenate` takes a step for real that is real in one of its inputs.
        pairs = keras.layers.Embedding(config.pair_buckets + 1, config.pair_units, mask_zero=config.mask_padding)(rows)
        vectors = keras.layers.Concatenate()([vectors, pairs])
    return keras.layers.Dropout(config.dropout)(vectors)


def space(hp: HyperParameters) -> dict[str, Any]:
    """What a search varies unless told otherwise."""
    return {
        "encoder": hp.Choice("encoder", ["bag", "lstm", "gru", "transformer"]),
        "units": hp.Int("units", 2, 64, sampling="log"),
        "pair_buckets": hp.Choice("pair_buckets", [2**14, 2**17]),  # times units, and three times that in a checkpoint
        "dropout": hp.Float("dropout", 0.0, 0.5, step=0.1),
        "learning_rate": hp.Float("learning_rate", 1e-3, 2e-2, sampling="log"),
    }


def loss(config: Config, spec: Spec) -> dict[str, str]:
    """The loss that fits the target."""
    losses = {"binary": "binary_crossentropy", "classes": "sparse_categorical_crossentropy", "number": "mse"}
    return {SENTIMENT: losses[spec.target(SENTIMENT).kind]}


def metrics(config: Config, spec: Spec) -> dict[str, list[str]]:
    """What is reported beside the loss."""
    return {SENTIMENT: ["mae" if config.target == "rating" else "accuracy"]}


def baselines(config: Config, data: Data) -> dict[str, Metrics]:
    """Knowing nothing, and TF-IDF of words and word pairs with a linear model."""
    from sklearn.dummy import DummyClassifier, DummyRegressor
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge

    texts = [*data.train.raw[TEXT], *data.validation.raw[TEXT]]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    features, test_features = vectorizer.fit_transform(texts), vectorizer.transform(data.test.raw[TEXT])
    targets = np.concatenate([data.train.targets[SENTIMENT], data.validation.targets[SENTIMENT]])[:, 0]
    truth = data.test.targets[SENTIMENT][:, 0]
    if config.target == "rating":
        models = {"mean": DummyRegressor(), "tfidf": Ridge()}
        return {
            name: {"mae": float(np.abs(model.fit(features, targets).predict(test_features) - truth).mean())}
            for name, model in models.items()
        }
    models = {"majority": DummyClassifier(), "tfidf": LogisticRegression(C=10, max_iter=1000)}
    return {
        name: {"accuracy": float((model.fit(features, targets).predict(test_features) == truth).mean())}
        for name, model in models.items()
    }


def predict(trained: Trained, frame: pd.DataFrame) -> Sequence[Answer]:
    """A label with its probability, or a rating, for each text."""
    target = trained.spec.target(SENTIMENT)
    outputs = trained.outputs(frame)[SENTIMENT]
    if target.kind == "number":
        return [{"rating": float(value)} for value in outputs[:, 0]]
    probabilities = np.hstack([1 - outputs, outputs]) if target.kind == "binary" else outputs
    best = probabilities.argmax(axis=1)
    return [
        {"label": target.vocabulary[index], "probability": float(row[index])}
        for index, row in zip(best, probabilities, strict=True)
    ]


def report(run: Run) -> None:
    """Where the model errs, and which words decide."""
    from loom import report as draw
    from loom.figures_text import colored_words

    target = run.data.spec.target(SENTIMENT)
    truth, outputs = run.data.test.targets[SENTIMENT][:, 0], run.test_outputs()[SENTIMENT]
    if target.kind == "number":
        run.figure("predictions", draw.predicted_against_true(truth, outputs[:, 0], "rating"))
    else:
        predicted = (outputs[:, 0] > 0.5).astype(int) if target.kind == "binary" else outputs.argmax(axis=1)
        run.figure("confusion_matrix", draw.confusion_matrix(truth, predicted, target.vocabulary))
    rows = explain(run.trained, _short_texts(run.data.test))
    title = "What each word adds to the prediction (blue) or takes from it (red)"
    run.figure("words", colored_words(rows, title, "words"))
    run.table("words", [{"text": text, "words": words, "adds": adds.tolist()} for text, words, adds in rows])


def _short_texts(split: Split) -> list[str]:
    short = np.flatnonzero(split.lengths <= EXPLAINED_WORDS)
    rows = short if len(short) >= EXPLAINED else np.arange(len(split))
    return split.raw[TEXT].iloc[rows[:EXPLAINED]].tolist()


def explain(trained: Trained, texts: Sequence[str]) -> list[tuple[str, list[str], np.ndarray]]:
    """What each word contributes: how far the prediction falls when the word is replaced by the unknown word.

    Returns:
        For each text its answer, its words, and their contributions to the label's probability or the rating.
    """
    import pandas as pd

    frame = pd.DataFrame({TEXT: texts})
    answers, words = trained.predict(frame), trained.encode(frame)["words"]
    assert isinstance(words, Ragged)
    variants = [_without_each_word(words.take(np.array([row]))) for row in range(len(texts))]
    outputs = trained.outputs_of({"words": Ragged.concatenate(variants)})[SENTIMENT]
    ends = np.cumsum([len(variant) for variant in variants])
    rows = []
    for text, answer, changed in zip(texts, answers, np.split(outputs, ends[:-1]), strict=True):
        column = _answered_column(trained.spec.target(SENTIMENT), answer)
        contributions = np.sign(column + 0.5) * (changed[-1, max(column, 0)] - changed[:-1, max(column, 0)])
        heading = "  ".join(f"{value:.3g}" if isinstance(value, float) else value for value in answer.values())
        rows.append((heading, _kept_words(text, trained.config)[: len(contributions)], contributions))
    return rows


def _without_each_word(words: Ragged) -> Ragged:
    """One text with each of its first words unknown in turn, and the text as it is."""
    length = int(words.lengths[0])
    count = min(length, EXPLAINED_WORDS)
    rows = np.repeat(words.padded(np.array([0]), length), count + 1, axis=0)
    rows[np.arange(count), np.arange(count)] = UNKNOWN_WORD
    return Ragged(rows.ravel(), np.arange(count + 2) * length)


def _kept_words(text: str, config: Any) -> list[str]:
    """The words of a text that `preprocess` keeps."""
    words = tf.strings.split(layers.standardize_text(tf.constant([text]))).values.numpy()
    kept = layers.Shorten(config.max_words, config.keep)(np.arange(1, len(words) + 1)[None])
    return [words[place - 1].decode() for place in np.asarray(kept)[0] if place]


def _answered_column(target: Field, answer: Answer) -> int:
    """Output column that the answer is about; -1 for the first of two classes: one minus the output."""
    if target.kind == "number":
        return 0
    index = target.vocabulary.index(answer["label"])
    return index - 1 if target.kind == "binary" else index


APP = App(
    "sentiment",
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
)

if __name__ == "__main__":
    main(APP)
