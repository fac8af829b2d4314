"""Tagging: a part of speech for every word, or the names in a sentence. Many-to-many of the same length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loom import App, Data, Field, Metrics, Ragged, Spec, Split, TrainingConfig, UserError, main
from loom.config import Schedule
from loom.data import tagged
from loom.data.sentences import SENTENCE, tagged_sentences
from loom.data.sources import Examples, split_examples
from loom.data.tagged import TAGS, Reading
from loom.lazy import keras, layers, tf

if TYPE_CHECKING:
    import pandas as pd
    from keras_tuner import HyperParameters

    from loom import Answer
    from loom.run import Run
    from loom.trained import Trained

WORDS, LETTERS, SHAPES = "words", "letters", "shapes"
"""Inputs of the core model."""
BEST = "best"
"""Its output that answers look at: the best tag of each word. The loss looks at `tags`, probabilities or potentials."""
UNKNOWN_WORD = 1
AFFIX_ROWS = 2**14
"""Rows that prefixes and suffixes share."""
DRAWN = 12
"""Sentences in the report's figure."""


@dataclass(frozen=True)
class Config(TrainingConfig):
    """Settings of the tagging application."""

    task: Literal["upos", "xpos", "ner"] = "upos"
    """What to read of CoNLL-U and of the built-in data: universal or the treebank's own parts of speech, or names."""
    word_column: int = 0
    """Number of the column with the words, from 1 (0: CoNLL-U's own, or the first)."""
    tag_column: int = 0
    """Number of the column with the tags, from 1 (0: in CoNLL-U that of --task, NER= of MISC for ner; or the last)."""
    max_words: int = 512
    """Sentences with more words are quarantined."""
    vocabulary_size: int = 30_000
    """Number of words that are known; the rest are one unknown word."""
    min_count: int = 2
    """Rarer words of the training sentences are unknown too: letters and neighbours have to tell their tags."""
    word_units: int = 64
    """Width of a word's vector."""
    letters: Literal["none", "cnn", "lstm"] = "cnn"
    """What reads the letters of each word: nothing, a convolution, or an LSTM in both directions."""
    letter_units: int = 48
    """Width of the vector of a word's letters."""
    max_letters: int = 20
    """Letters of a word that are read; of longer words the first and the last ones."""
    affixes: int = 4
    """Letters of the longest prefix and suffix that have vectors of their own (0: none)."""
    affix_units: int = 16
    """Width of a prefix's or suffix's vector."""
    encoder: Literal["elman", "lstm", "gru", "transformer"] = "lstm"
    """What reads the sentence: a recurrent layer, or attention."""
    bidirectional: bool = True
    """Recurrent layers read the sentence in both directions."""
    units: int = 96
    """Width of the encoder's state (in each direction)."""
    depth: int = 1
    """Recurrent layers, or transformer blocks, on top of each other."""
    heads: int = 4
    """Heads of a transformer block's attention."""
    feed_forward_units: int = 256
    """Width of a transformer block's hidden layer."""
    output: Literal["softmax", "crf"] = "softmax"
    """Choose the tag of each word by itself, or those of the whole sentence together."""
    dropout: float = 0.5
    """Share that is dropped in training of the word vectors and of what each layer puts out."""
    word_dropout: float = 0.2
    """Share of the words, and of the prefixes and suffixes, that are made unknown in training."""
    batch_size: int = 32
    buckets: int = 2
    epochs: int = 12
    learning_rate: float = 0.004
    jit: Literal["auto", "on", "off"] = "off"
    schedule: Schedule = "onecycle"

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        self.require("regularization", self.regularization == "none", "is not used here; --dropout is")
        self.require("data", not self.data.startswith("tfds:"), "name a file with a word and its tag on each line")
        for name in ("word_column", "tag_column", "affixes"):
            self.require(name, getattr(self, name) >= 0, "must not be negative")
        widths = ("word_units", "letter_units", "affix_units", "units", "feed_forward_units")
        for name in (*widths, "min_count", "max_words", "depth", "heads"):
            self.require(name, getattr(self, name) >= 1, "must be at least 1")
        self.require("vocabulary_size", self.vocabulary_size >= 3, "must be at least 3")
        self.require("letter_units", self.letter_units % 2 == 0, "must be even")
        self.require("max_letters", self.max_letters >= 2, "must be at least 2")
        for name in ("dropout", "word_dropout"):
            self.require(name, 0 <= getattr(self, name) < 1, "must be at least 0 and below 1")
        if self.encoder == "transformer":
            self.require("bidirectional", self.bidirectional, "needs a recurrent --encoder")


def load(config: Config) -> Data:
    """Sentences and their tags, and the vocabulary of the training sentences."""
    reading = Reading(config.task, config.word_column, config.tag_column, config.max_words)
    examples, notes = (_sample(config), []) if config.data == "sample" else tagged.read_tagged(config, reading)
    parts = split_examples(examples, config, lambda part: None)
    sentences = parts["train"][SENTENCE].tolist()
    vocabulary = tagged.vocabulary(sentences, config.vocabulary_size, config.min_count)
    tags = {name: [row.split("\t") for row in part[TAGS]] for name, part in parts.items()}
    trained = {tag for row in tags["train"] for tag in row}
    if len(trained) < 2:
        raise UserError(f"--data {config.data}: all words have the tag {min(trained)!r}; --tag-column picks the column")
    others = {tag for rows in tags.values() for row in rows for tag in row} - trained
    notes += [f"no training sentence has the tags {', '.join(sorted(others))}"] if others else []
    classes = (*sorted(trained), *sorted(others))
    spec = Spec((Field(SENTENCE, "text", vocabulary),), (Field(TAGS, "classes", classes),))
    train, validation, test = (Split(part, {}, {TAGS: _indices(tags[name], classes)}) for name, part in parts.items())
    return Data(train, validation, test, spec, examples.source, examples.bad, tuple(notes))


def _sample(config: Config) -> Examples:
    frame = tagged_sentences()
    return Examples(frame[[SENTENCE, config.task]].set_axis([SENTENCE, TAGS], axis=1), None, "built-in sample")


def _indices(tags: Sequence[Sequence[str]], classes: Sequence[str]) -> Ragged:
    numbers = {tag: index for index, tag in enumerate(classes)}
    splits = np.concatenate([[0], np.cumsum([len(row) for row in tags])])
    return Ragged(np.array([numbers[tag] for row in tags for tag in row], np.int32), splits)


def preprocess(config: Config, spec: Spec) -> keras.Model:
    """A sentence to what is known of its words: their ids, letters and shapes."""
    text = keras.Input((1,), dtype="string", name=SENTENCE)
    words = layers.SplitWords()(text)
    normal = layers.NormalizeWords()(words)
    padding, unknown, *known = spec.input(SENTENCE).vocabulary
    lookup = keras.layers.StringLookup(vocabulary=known, mask_token=padding, oov_token=unknown)
    letters = layers.LetterIds(config.max_letters)(normal)
    ids = keras.ops.cast(lookup(normal), "int32")
    return keras.Model({SENTENCE: text}, {WORDS: ids, LETTERS: letters, SHAPES: layers.WordShapes()(words)})


def build(config: Config, spec: Spec) -> keras.Model:
    """What is known of the words to a probability of each tag for each word, or to the best sequence of tags."""
    words = keras.Input((None,), dtype="int32", name=WORDS)
    letters = keras.Input((None, config.max_letters), dtype="int32", name=LETTERS)
    shapes = keras.Input((None,), dtype="int32", name=SHAPES)
    known = layers.WordDropout(config.word_dropout, UNKNOWN_WORD)(words)
    vectors = [
        keras.layers.Embedding(len(spec.input(SENTENCE).vocabulary), config.word_units)(known),
        keras.layers.Embedding(layers.words.WORD_SHAPES, layers.words.WORD_SHAPES)(shapes),
        *_affixes(letters, config),
        *_letters(letters, config),
    ]
    vectors = keras.layers.Dropout(config.dropout)(keras.layers.Concatenate()(vectors))
    encode = _transformer if config.encoder == "transformer" else _recurrent
    states = encode(vectors, keras.ops.not_equal(words, 0), config)
    tags = len(spec.target(TAGS).vocabulary)
    scores = keras.layers.Dense(tags, dtype="float32", name="output")(states)
    if config.output == "crf":
        scored = layers.CRF()(scores)
        best = layers.Viterbi()(scored)
    else:
        scored = keras.layers.Activation("softmax", dtype="float32")(scores)
        best = keras.ops.argmax(scored, axis=-1)
    return keras.Model({WORDS: words, LETTERS: letters, SHAPES: shapes}, {TAGS: scored, BEST: best})


def _affixes(letters: keras.KerasTensor, config: Config) -> list[keras.KerasTensor]:
    """Vectors of each word's prefixes and suffixes, one beside the other."""
    if not config.affixes:
        return []
    rows = layers.AffixRows(config.affixes, AFFIX_ROWS)(letters)
    kept = layers.WordDropout(config.word_dropout)(rows)
    vectors = keras.layers.Embedding(AFFIX_ROWS + 1, config.affix_units)(kept)
    return [keras.layers.Reshape((-1, rows.shape[-1] * config.affix_units))(vectors)]


def _letters(letters: keras.KerasTensor, config: Config) -> list[keras.KerasTensor]:
    """The largest value of each feature that is found in a word's letters."""
    if config.letters == "none":
        return []
    width = config.letter_units
    if config.letters == "cnn":
        vectors = keras.layers.Embedding(layers.words.LETTER_IDS, width // 2)(letters)
        vectors = keras.layers.Conv2D(width, (1, 3), padding="same", activation="relu")(vectors)
    else:
        flat = keras.layers.Reshape((-1,))(letters)
        vectors = keras.layers.Embedding(layers.words.LETTER_IDS, width // 2, mask_zero=True)(flat)
        both = layers.Bidirectional(layers.LSTM(width // 2, return_sequences=True))
        vectors = layers.Segmented(both, config.max_letters)(vectors)
    return [layers.MaxOverLetters()(vectors, letters)]


def _recurrent(vectors: keras.KerasTensor, valid: keras.KerasTensor, config: Config) -> keras.KerasTensor:
    kind = {"elman": layers.Elman, "lstm": layers.LSTM, "gru": layers.GRU}[config.encoder]
    for _ in range(config.depth):
        layer = kind(config.units, return_sequences=True)
        vectors = (layers.Bidirectional(layer) if config.bidirectional else layer)(vectors, mask=valid)
        vectors = keras.layers.Dropout(config.dropout)(vectors)
    return vectors


def _transformer(vectors: keras.KerasTensor, valid: keras.KerasTensor, config: Config) -> keras.KerasTensor:
    vectors = keras.layers.Dense(config.units)(vectors)
    for _ in range(config.depth):
        block = layers.TransformerEncoderBlock(
            config.heads,
            config.feed_forward_units,
            key_dim=2 * math.ceil(config.units / config.heads / 2),  # rotated in pairs
            rotary=True,
            activation="gelu",
            dropout=config.dropout,
        )
        vectors = block(vectors, mask=valid)
    return layers.LayerNorm()(vectors)


def space(hp: HyperParameters) -> dict[str, Any]:
    """What a search varies unless told otherwise."""
    return {
        "encoder": hp.Choice("encoder", ["lstm", "gru", "transformer"]),
        "letters": hp.Choice("letters", ["cnn", "lstm"]),
        "output": hp.Choice("output", ["softmax", "crf"]),
        "units": hp.Int("units", 32, 192, sampling="log"),
        "dropout": hp.Float("dropout", 0.2, 0.6, step=0.1),
        "learning_rate": hp.Float("learning_rate", 1e-3, 1e-2, sampling="log"),
    }


def loss(config: Config, spec: Spec) -> dict[str, Any]:
    """Cross-entropy of each word's tag, or of the tags of whole sentences."""
    return {TAGS: layers.CRFLoss() if config.output == "crf" else "sparse_categorical_crossentropy"}


def objective(config: Config, spec: Spec) -> str:
    """Entity F1 where tags say where entities begin and end, else the share of right tags."""
    return "val_f1" if tagged.is_bio(spec.target(TAGS).vocabulary) else "val_accuracy"


def evaluate(config: Config, data: Data) -> Callable[[Split, dict[str, np.ndarray]], Metrics]:
    """Scores over all words of a part: means over batches would count words in short sentences more."""
    classes = data.spec.target(TAGS).vocabulary

    def scores(split: Split, outputs: dict[str, np.ndarray]) -> Metrics:
        words = split.inputs[WORDS]
        assert isinstance(words, Ragged)
        known = np.split(words.values != UNKNOWN_WORD, words.splits[1:-1])
        truth = tagged.names(split.targets[TAGS], classes)
        return tagged.scores(truth, _predicted(split, outputs, classes), known, tagged.is_bio(classes))

    return scores


def _predicted(split: Split, outputs: dict[str, np.ndarray], classes: Sequence[str]) -> list[list[str]]:
    return [[classes[tag] for tag in row[:length]] for row, length in zip(outputs[BEST], split.lengths, strict=True)]


def baselines(config: Config, data: Data) -> dict[str, Metrics]:
    """Knowing nothing, each word's most frequent tag, and logistic regression on words, their ends and neighbours."""
    import pandas as pd

    fitted = pd.concat([data.train.raw, data.validation.raw])
    words, test_words = ([tagged.words_of(row) for row in part[SENTENCE]] for part in (fitted, data.test.raw))
    tags, truth = ([row.split("\t") for row in part[TAGS]] for part in (fitted, data.test.raw))
    vocabulary, is_bio = set(data.spec.input(SENTENCE).vocabulary), tagged.is_bio(data.spec.target(TAGS).vocabulary)
    known = [np.array([tagged.normalized(word) in vocabulary for word in row]) for row in test_words]
    methods = {
        "majority": tagged.most_frequent_tag,
        "word": tagged.most_frequent_tag_of_each_word,
        "logistic": tagged.logistic_regression,
    }
    return {
        name: tagged.scores(truth, method(words, tags, test_words), known, is_bio) for name, method in methods.items()
    }


def predict(trained: Trained, frame: pd.DataFrame) -> Sequence[Answer]:
    """Each word with its tag, and where the tags are of names, those."""
    classes = trained.spec.target(TAGS).vocabulary
    texts = frame[[SENTENCE]].fillna("").astype(str).map(tagged.composed)
    words, best = split_words(texts[SENTENCE].tolist()), trained.outputs(texts)[BEST]
    answers = []
    for row, numbers in zip(words, best, strict=True):
        tags = [classes[number] for number in numbers[: len(row)]]
        answer: Answer = {"tags": [list(pair) for pair in zip(row, tags, strict=True)]}
        if tagged.is_bio(classes):
            found = tagged.entities(tags)
            answer["entities"] = [[" ".join(row[entity.start : entity.end]), entity.kind] for entity in found]
        answers.append(answer)
    return answers


def split_words(texts: Sequence[str]) -> list[list[str]]:
    """The words that `preprocess` takes texts apart into."""
    rows = layers.SplitWords()(tf.constant(texts)[:, None]).numpy()
    return [[word.decode() for word in row if word] for row in rows]


def report(run: Run) -> None:
    """Tagged sentences with the errors in them, and which tags are taken for which."""
    from loom import report as draw
    from loom.figures_text import Tagged, draw_tagged

    test, classes = run.data.test, run.data.spec.target(TAGS).vocabulary
    truth, predicted = tagged.names(test.targets[TAGS], classes), _predicted(test, run.test_outputs(), classes)
    numbers = {tag: index for index, tag in enumerate(classes)}
    flat = np.array([numbers[tag] for row in predicted for tag in row])
    run.figure("confusion_matrix", draw.confusion_matrix(test.targets[TAGS].values, flat, classes))
    words = [tagged.words_of(sentence) for sentence in test.raw[SENTENCE]]
    rows = [list(map(Tagged, *row)) for row in zip(words, predicted, truth, strict=True)]
    wrong = [sum(word.predicted != word.true for word in row) for row in rows]
    shown = [rows[place] for place in np.argsort([-min(count, 1) for count in wrong], kind="stable")[:DRAWN]]
    title = "Sentences of the test part with errors first: words by their tags, errors underlined"
    run.figure("sentences", draw_tagged(shown, classes, title, "sentences"))
    run.table("sentences", [[word._asdict() for word in row] for row in shown])


APP = App(
    "tagging",
    Config,
    load,
    preprocess,
    build,
    space,
    baselines,
    report,
    predict,
    loss=loss,
    objective=objective,
    direction="max",
    evaluate=evaluate,
    outputs=(BEST,),
)

if __name__ == "__main__":
    main(APP)
