"""Detector: fires at the last letter of a word in an endless stream of letters. Many-to-many, letter by letter."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loom import App, Data, Field, Metrics, Ragged, Spec, Split, TrainingConfig, UserError, main
from loom.config import Schedule
from loom.data import streams
from loom.data.sources import Examples, split_examples
from loom.data.streams import Stream
from loom.data.texts import read_text
from loom.lazy import keras, layers
from loom.reader import Reader

if TYPE_CHECKING:
    import pandas as pd
    from keras_tuner import HyperParameters

    from loom import Answer
    from loom.run import Run
    from loom.trained import Trained

TEXT, MARKS = "text", "marks"
"""Columns of the raw examples: letters, and which of them were planted."""
LETTERS, PROBABILITY = "letters", "probability"
"""Input and output of the core model, one value for each letter."""
RECURRENT, JUDGE = "recurrent", "judge"
"""Its layers with weights."""
ALIKE = 0.7
"""Share of the random letters in one half of the training stream that are drawn from the word's own."""
SHOWN = 24
"""Characters of the stream that an answer shows, up to the one that was fired at."""
LISTED = 20
"""Errors in the report."""


@dataclass(frozen=True)
class Config(TrainingConfig):
    """Settings of the detector application."""

    word: str = "happy"
    """Word to look for; capitals count as small letters."""
    alphabet: str = ""
    """Letters that the built-in streams are made of (default: those of the word's script)."""
    letters: int = 60_000
    """Random letters to learn from (with text of your own: all of it)."""
    planted: float = 40.0
    """Times that the word is put between each 1,000 letters to learn from."""
    near_misses: float = 80.0
    """Strings that are almost the word, between each 1,000 letters to learn from."""
    window: int = 100
    """Letters that are learned from in one go; a trained detector reads without end."""
    test_letters: int = 100_000
    """Random letters of the test stream (with text of your own: its last --test-fraction)."""
    test_planted: float = 5.0
    """Times that the word is put between each 1,000 letters of the test stream."""
    test_near_misses: float = 20.0
    """Strings that are almost the word, between each 1,000 letters of the test stream."""
    cell: Literal["elman", "gru", "lstm"] = "gru"
    """What reads the letters."""
    units: int = 24
    """Width of its state."""
    threshold: float = 0.9
    """The detector fires where the probability is above this."""
    most_delay: int = 3
    """Letters after a word within which a firing still counts for it, in precision and recall."""
    batch_size: int = 32
    buckets: int = 1
    epochs: int = 30
    learning_rate: float = 0.02
    schedule: Schedule = "onecycle"
    clip_norm: float = 1.0
    jit: Literal["auto", "on", "off"] = "off"

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        self.require("regularization", self.regularization == "none", "is not used here")
        word = streams.letters_of(self.word)
        unprintable = any(letter.isspace() or unicodedata.category(letter) in ("Cc", "Cs") for letter in word)
        self.require("word", len(word) >= 2 and not unprintable, "must be one word of at least two letters")
        self.require("alphabet", len(set(self.alphabet)) != 1, "must be of several letters")
        for name in ("letters", "test_letters", "units"):
            self.require(name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("planted", "near_misses", "test_planted", "test_near_misses", "most_delay"):
            self.require(name, getattr(self, name) >= 0, "must not be negative")
        self.require("window", self.window >= 4 * len(word), "must be at least four times as long as the word")
        self.require("threshold", 0 < self.threshold < 1, "must lie between 0 and 1")
        own = self.data != "sample" or self.test_fraction == TrainingConfig.test_fraction
        self.require("test_fraction", own, "is for text of your own; --test-letters says how long the test stream is")


def load(config: Config) -> Data:
    """Two streams of letters with the word and near misses in them, cut into windows; the second is for the test."""
    import pandas as pd

    word, rng = streams.letters_of(config.word), random.Random(config.seed_of_splits)
    alphabet = streams.letters_of(config.alphabet) or streams.script_of(word)

    def sample() -> str:
        half = config.letters // 2
        alike = streams.random_letters(rng, half, alphabet, word, ALIKE)
        return alike + streams.random_letters(rng, config.letters - half + config.test_letters, alphabet, word)

    found = read_text(config, sample)
    letters = streams.letters_of(found.text)
    cut = config.letters if config.data == "sample" else round(len(letters) * (1 - config.test_fraction))
    train, test = letters[:cut], letters[cut:]
    planted = {
        "train": _plant(rng, train, word, (config.planted, config.near_misses), alphabet),
        "test": _plant(rng, test, word, (config.test_planted, config.test_near_misses), alphabet),
    }
    _check(config, word, planted)
    frames = [pd.DataFrame(_windows(stream, config.window), dtype=object) for stream in planted.values()]
    parts = split_examples(Examples(frames[0], frames[1], found.source), config, lambda part: None)
    spec = Spec((Field(TEXT, "text", ("", "[UNK]", *sorted(set(word)))),), (Field(PROBABILITY, "number"),))
    splits = {name: Split(part, {}, {PROBABILITY: _targets(word, part[TEXT])}) for name, part in parts.items()}
    return Data(**splits, spec=spec, source=found.source, bad=found.bad, notes=found.notes)


def _plant(rng: random.Random, letters: str, word: str, rates: tuple[float, float], alphabet: str) -> Stream:
    words, near_misses = (round(rate * len(letters) / 1000) for rate in rates)
    return streams.plant(rng, letters, word, words, near_misses, alphabet)


def _check(config: Config, word: str, planted: dict[str, Stream]) -> None:
    """Refuse streams in which there is nothing to learn or to find."""
    for flag, (part, stream) in zip(("--planted", "--test-planted"), planted.items(), strict=True):
        if word not in stream.text:
            problem = f"the {part} stream of {len(stream.text):,} letters does not hold it"
            raise UserError(f"--word {config.word}: {problem}; give more letters, or a larger {flag}")


def _windows(stream: Stream, length: int) -> dict[str, list[str]]:
    starts = range(0, len(stream.text), length)
    return {
        name: [row[start : start + length] for start in starts] for name, row in zip((TEXT, MARKS), stream, strict=True)
    }


def _targets(word: str, texts: Sequence[str]) -> Ragged:
    """1 where the word ends: what began in the window before nobody can know."""
    splits = np.cumsum([0, *map(len, texts)])
    ends = [start + streams.last_letters(word, text) for start, text in zip(splits, texts, strict=False)]
    return Ragged(np.isin(np.arange(splits[-1]), np.concatenate(ends))[:, None].astype(np.int32), splits)


def preprocess(config: Config, spec: Spec) -> keras.Model:
    """Text to the numbers of its letters: those of the word, and one for all others."""
    text = keras.Input((1,), dtype="string", name=TEXT)
    return keras.Model({TEXT: text}, {LETTERS: layers.KnownLetters(spec.input(TEXT).vocabulary[2:])(text)})


def build(config: Config, spec: Spec) -> keras.Model:
    """One-hot letters to the probability that the word ends with each."""
    letters = keras.Input((None,), dtype="int32", name=LETTERS)
    vectors = keras.layers.Masking()(_one_hot(letters, spec))
    kind = {"elman": layers.Elman, "gru": layers.GRU, "lstm": layers.LSTM}[config.cell]
    states = kind(config.units, return_sequences=True, name=RECURRENT)(vectors)
    probability = keras.layers.Dense(1, "sigmoid", dtype="float32", name=JUDGE)(states)
    return keras.Model({LETTERS: letters}, {PROBABILITY: probability})


def _one_hot(letters: Any, spec: Spec) -> Any:
    """Vectors with a one in the letter's place; padding has none."""
    return keras.ops.one_hot(letters, len(spec.input(TEXT).vocabulary))[..., 1:]


def reader(trained: Trained) -> Reader:
    """What reads streams with a trained model, always the same one."""

    def make() -> Reader:
        recurrent, judge = trained.core.get_layer(RECURRENT), trained.core.get_layer(JUDGE)

        def step(letter: Any, states: Any) -> tuple[Any, Any]:
            hidden, states = recurrent.step(_one_hot(letter[None], trained.spec), states)
            return judge(hidden)[0], states

        zeros = keras.ops.zeros((1, recurrent.units), recurrent.compute_dtype)
        return Reader(step, (zeros,) * recurrent.state_count)

    return trained.kept("reader", make)


def read(trained: Trained, letters: str, state: Any = None) -> tuple[np.ndarray, Any]:
    """Probability that the word ends with each letter, and the state to read on with."""
    numbers = streams.numbered(letters, trained.spec.input(TEXT).vocabulary[2:])
    outputs, state = reader(trained).read(numbers, reader(trained).first_state if state is None else state)
    return outputs[:, 0], state


def space(hp: HyperParameters) -> dict[str, Any]:
    """What a search varies unless told otherwise."""
    return {
        "cell": hp.Choice("cell", ["elman", "gru", "lstm"]),
        "units": hp.Int("units", 8, 64, sampling="log"),
        "learning_rate": hp.Float("learning_rate", 2e-3, 4e-2, sampling="log"),
    }


def metrics(config: Config, spec: Spec) -> dict[str, Any]:
    """Precision and recall of single letters in windows."""
    kinds = (keras.metrics.Precision, keras.metrics.Recall)
    return {PROBABILITY: [kind(config.threshold, name=kind.__name__.lower()) for kind in kinds]}


def test(run: Run, measured: Metrics) -> Metrics:
    """Precision, recall and delay in the whole test stream, read as one."""
    return _detections(run)[0].metrics()


def _detections(run: Run) -> tuple[streams.Detections, np.ndarray]:
    """What the firings in the test stream come to, and the probability at each letter."""
    config: Any = run.config
    word, letters = streams.letters_of(config.word), "".join(run.data.test.raw[TEXT])
    probabilities = read(run.trained, letters)[0]
    firings = np.flatnonzero(probabilities > config.threshold)
    return streams.compare(streams.last_letters(word, letters), firings, config.most_delay), probabilities


def baselines(config: Config, data: Data) -> dict[str, Metrics]:
    """Never firing, firing at each last letter of the word, and logistic regression on as many letters as it has."""
    word, test = streams.letters_of(config.word), "".join(data.test.raw[TEXT])
    known = data.spec.input(TEXT).vocabulary[2:]
    probabilities = {
        "never": np.zeros(len(test)),
        "last_letter": np.array([letter == word[-1] for letter in test], float),
        "window": streams.window_regression(data.train.raw[TEXT], test, word, known),
    }
    ends = streams.last_letters(word, test)
    return {
        name: streams.compare(ends, np.flatnonzero(each > config.threshold), config.most_delay).metrics()
        for name, each in probabilities.items()
    }


def predict(trained: Trained, frame: pd.DataFrame) -> Sequence[Answer]:
    """Where the detector fires in each text, and how sure it is: characters counted from 1."""
    return [_answer(trained, text) for text in frame[TEXT].fillna("").astype(str)]


def _answer(trained: Trained, text: str) -> Answer:
    config: Any = trained.config
    probabilities = read(trained, streams.letters_of(text))[0]
    fired = np.flatnonzero(probabilities > config.threshold)
    return {
        "fires": (streams.places_of_letters(text)[fired] + 1).tolist(),
        "probabilities": probabilities[fired].tolist(),
        "highest": float(probabilities.max(initial=0.0)),
    }


def watch(trained: Trained) -> Callable[[str], Sequence[Answer]]:
    """Reads a stream piece by piece and answers for each letter that it fires at, as soon as that is there."""
    config: Any = trained.config
    state, before, count = None, "", 0

    def take(piece: str) -> Sequence[Answer]:
        nonlocal state, before, count
        probabilities, state = read(trained, streams.letters_of(piece), state)
        fired = np.flatnonzero(probabilities > config.threshold)
        places = streams.places_of_letters(piece)[fired] if len(fired) else fired
        recent = before + piece
        answers = []
        for place, probability in zip(places.tolist(), probabilities[fired].tolist(), strict=True):
            shown = _until(recent, len(before) + place)
            answers.append({"letter": count + place + 1, "probability": probability, "text": shown})
        before, count = recent[-SHOWN:], count + len(piece)
        return answers

    return take


def _until(text: str, place: int) -> str:
    """The last characters up to a place, on one line."""
    return "".join(letter if letter.isprintable() else " " for letter in text[max(0, place + 1 - SHOWN) : place + 1])


def report(run: Run) -> None:
    """The probability along a stretch of the test stream, when the words were noticed, and what went wrong."""
    from loom.figures_streams import STRETCH, draw_delays, draw_stretch, fullest

    config: Any = run.config
    stream = Stream(*("".join(run.data.test.raw[name]) for name in (TEXT, MARKS)))
    found, probabilities = _detections(run)
    first = fullest(stream.marks)
    stretch = slice(first, first + STRETCH)
    shown, values = Stream(stream.text[stretch], stream.marks[stretch]), probabilities[stretch]
    run.figure("stretch", draw_stretch(shown, first, values, config.threshold))
    run.table("stretch", {"letter": first + 1, **shown._asdict(), "probabilities": values.tolist()})
    run.figure("delays", draw_delays(found, config.most_delay))
    run.table("errors", _errors(stream.text, probabilities, found))


def _errors(text: str, probabilities: np.ndarray, found: streams.Detections) -> list[dict[str, Any]]:
    kinds = {"missed": found.missed, "false alarm": found.false_alarms}
    return [
        {"error": kind, "letter": place + 1, "probability": float(probabilities[place]), "text": _until(text, place)}
        for kind, places in kinds.items()
        for place in places[:LISTED].tolist()
    ]


APP = App(
    "detector",
    Config,
    load,
    preprocess,
    build,
    space,
    baselines,
    report,
    predict,
    loss={PROBABILITY: "binary_crossentropy"},
    metrics=metrics,
    objective="val_loss",
    test=test,
    watch=watch,
)

if __name__ == "__main__":
    main(APP)
