"""Text generation: what comes next? A network that has learned to predict a text writes more of it."""

from __future__ import annotations

import itertools
import math
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loom import App, Data, Field, Metrics, Spec, Split, UserError, main
from loom.config import Optimizer, Schedule
from loom.data.scripts import scripts
from loom.data.texts import in_order, read_text
from loom.data.tokens import END, Tokenizer, Unit, what_follows
from loom.lazy import keras, layers
from loom.ngrams import NGrams
from loom.writer import SamplingConfig, Writer

if TYPE_CHECKING:
    import pandas as pd
    from keras_tuner import HyperParameters

    from loom.app import Answer
    from loom.run import Run
    from loom.trained import Trained

TEXT = "text"
LOW = -1e9
LONGEST_NGRAM = {"characters": 7, "subwords": 4, "words": 4}
SURPRISING = 600
"""Tokens of the test text whose probabilities are drawn."""
PROMPT_TOKENS = 16
"""Of test examples: what the samples of the report go on from."""
SAMPLES = 6
ROWS = 128
"""Examples whose logits are held at once."""
SHORTEST = 20
"""Characters of a text for each token of a window, at least."""


@dataclass(frozen=True)
class Config(SamplingConfig):
    """Settings of `loom train textgen`."""

    tokens: Unit = "characters"
    """What a text is made of."""
    vocabulary_size: int = 4000
    """Number of tokens, at most."""
    model: Literal["lstm", "gru", "transformer"] = "lstm"
    """Recurrent layers, or a decoder of transformer blocks."""
    units: int = 256
    """Width of all layers."""
    embedding_units: int = 64
    """Width of a token's vector (transformer: --units)."""
    depth: int = 1
    """Layers or blocks."""
    heads: int = 4
    """Heads of a transformer's attention."""
    feed_forward_units: int = 1024
    """Width of a transformer block's hidden layer."""
    dropout: float = 0.1
    """Share of the values that is dropped in training, of tokens' vectors and of what layers put out."""
    length: int = 128
    """Tokens of an example; a transformer reads so many at once."""
    new_tokens: int = 300
    """Number of tokens that an answer goes on for."""
    temperature: float = 0.8
    epochs: int = 8
    optimizer: Optimizer = "muon"
    learning_rate: float = 0.01
    schedule: Schedule = "cosine"
    clip_norm: float = 1.0
    jit: Literal["auto", "on", "off"] = "off"
    test_fraction: float = 0.1
    validation_fraction: float = 0.05

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        self.require("regularization", self.regularization == "none", "is not used here; --dropout is")
        for name in ("units", "embedding_units", "depth", "heads", "feed_forward_units", "new_tokens"):
            self.require(name, getattr(self, name) >= 1, "must be at least 1")
        self.require("dropout", 0 <= self.dropout < 1, "must be at least 0 and below 1")
        self.require("vocabulary_size", 10 <= self.vocabulary_size <= 100_000, "must lie between 10 and 100,000")
        self.require("length", self.length >= 32 and self.length % 2 == 0, "must be an even number of at least 32")
        self.require("max_train", not self.max_train, "is not used here; --train-fraction is")
        if self.model == "transformer":
            width = 2 * self.heads
            self.require("units", self.units % width == 0, f"must be a multiple of {width}, twice --heads")


def load(config: Config) -> Data:
    """The text as windows of tokens: the last of it for the test, what comes before for validation."""
    found = read_text(config, scripts)
    if len(found.text) < SHORTEST * config.length:
        raise UserError(
            f"--data {config.data}: has {len(found.text)} characters only; give more text, or less --length"
        )
    parts = in_order(found.text, config)
    tokenizer = Tokenizer.fit(_pieces(parts["train"]), config.vocabulary_size, config.tokens, lines=True)
    tokens = {name: tokenizer.encode_whole(_pieces(part)) for name, part in parts.items()}
    splits = {name: _windows(each, tokenizer, config.length, name) for name, each in tokens.items()}
    statistics = {f"{name}_characters_per_token": len(part) / len(tokens[name]) for name, part in parts.items()}
    spec = Spec((Field(TEXT, "text", tokenizer=tokenizer.settings(), statistics=statistics),), (Field(TEXT, "text"),))
    return Data(**splits, spec=spec, source=found.source, bad=found.bad, notes=found.notes)


def _pieces(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def _windows(tokens: np.ndarray, tokenizer: Tokenizer, length: int, part: str) -> Split:
    """Examples of `length` tokens in a row, and after each of these the next; what fills no window is left out."""
    import pandas as pd

    count = (len(tokens) - 1) // length
    if not count:
        raise UserError(f"--length {length}: the {part} part of the text has {len(tokens)} tokens only; give more text")
    inputs = tokens[: count * length].reshape(count, length)
    targets = tokens[1 : count * length + 1].reshape(count, length)
    raw = pd.DataFrame({TEXT: tokenizer.decode(inputs)})
    return Split(raw, {TEXT: inputs}, {TEXT: targets})


def preprocess(config: Config, spec: Spec) -> keras.Model:
    """The tokens, as they are."""
    tokens = keras.Input((None,), dtype="int32", name=TEXT)
    return keras.Model({TEXT: tokens}, {TEXT: keras.layers.Identity()(tokens)})


def build(config: Config, spec: Spec) -> keras.Model:
    """Tokens to the logits of the token after each."""
    made: dict[str, Any] = {}

    def layer(name: str, make: Any) -> Any:
        if name not in made:
            made[name] = make()
        return made[name]

    tokens = keras.Input((None,), dtype="int32", name=TEXT)
    return keras.Model({TEXT: tokens}, {TEXT: Network(config, spec, layer).read(tokens)})


class Network:
    """Layers that read a text: at once to learn, and token after token to write."""

    def __init__(self, config: Config, spec: Spec, layer: Any) -> None:
        self._config = config
        self._size = len(Tokenizer(**spec.input(TEXT).tokenizer))
        self._layer = layer
        self._transforms = config.model == "transformer"
        width = config.units if self._transforms else config.embedding_units
        self._embedding = layer("embedding", lambda: keras.layers.Embedding(self._size, width, name="embedding"))
        self._layers = [self._make(f"layer_{number}") for number in range(1, config.depth + 1)]
        self._output = layer("output", lambda: keras.layers.Dense(self._size, dtype="float32", name="output"))

    def _make(self, name: str) -> Any:
        config = self._config
        if not self._transforms:
            kind = {"lstm": layers.LSTM, "gru": layers.GRU}[config.model]
            return self._layer(name, lambda: kind(config.units, return_sequences=True, name=name))
        return self._layer(
            name,
            lambda: layers.TransformerDecoderBlock(
                config.heads,
                config.feed_forward_units,
                cross_attention=False,
                rotary=True,
                activation="gelu",
                dropout=config.dropout,
                seed=config.seed,
                name=name,
            ),
        )

    def _dropped(self, vectors: Any, name: str) -> Any:
        return self._layer(name, lambda: keras.layers.Dropout(self._config.dropout, name=name))(vectors)

    def _normed(self, vectors: Any) -> Any:
        return self._layer("norm", lambda: layers.LayerNorm(name="norm"))(vectors) if self._transforms else vectors

    def read(self, tokens: Any) -> Any:
        """Logits of what follows each token, (batch, time, tokens)."""
        vectors = self._dropped(self._embedding(tokens), "dropout_0")
        for number, layer in enumerate(self._layers, start=1):
            vectors = layer(vectors)
            if not self._transforms:  # blocks drop values themselves
                vectors = self._dropped(vectors, f"dropout_{number}")
        return self._output(self._normed(vectors))

    def begin(self, batch: int, room: int) -> Any:
        """The state before the first token."""
        if self._transforms:
            return tuple(block.empty_cache(batch, room) for block in self._layers)
        return tuple(
            tuple(keras.ops.zeros((batch, self._config.units), layer.compute_dtype) for _ in range(layer.state_count))
            for layer in self._layers
        )

    def step(self, tokens: Any, state: Any) -> tuple[Any, Any]:
        """Logits of what follows the last tokens, (batch, tokens), and the next state."""
        vectors, states = self._embedding(tokens), []
        for layer, old in zip(self._layers, state, strict=True):
            vectors, new = layer.step(vectors, old)
            states.append(new)
        logits = self._output(self._normed(vectors))
        never = np.arange(self._size) < END + 1  # padding and other tokens that stand for no text
        return keras.ops.where(never, LOW, logits), tuple(states)


def space(hp: HyperParameters) -> dict[str, Any]:
    """What a search varies unless told otherwise."""
    return {
        "model": hp.Choice("model", ["lstm", "gru", "transformer"]),
        "units": hp.Choice("units", [64, 128, 256]),
        "depth": hp.Int("depth", 1, 2),
        "dropout": hp.Float("dropout", 0.0, 0.4, step=0.1),
        "learning_rate": hp.Float("learning_rate", 1e-3, 3e-2, sampling="log"),
    }


def loss(config: Config, spec: Spec) -> dict[str, Any]:
    """Cross-entropy of each token, in nats."""
    return {TEXT: keras.losses.SparseCategoricalCrossentropy(from_logits=True)}


def measures(nats: float, characters_per_token: float) -> Metrics:
    """What a loss in nats per token comes to."""
    return {"perplexity": math.exp(nats), "bits_per_character": nats / math.log(2) / characters_per_token}


def test(run: Run, measured: Metrics) -> Metrics:
    """Perplexity of a token, and bits per character, which do not depend on what the tokens are."""
    found = measures(measured["loss"], run.data.spec.input(TEXT).statistics["test_characters_per_token"])
    return {**found, "loss_in_context": loss_in_context(run.trained, run.data.test)}


def loss_in_context(trained: Trained, split: Split) -> float:
    """Loss of each token that has at least half a window before it: examples begin where nothing is known yet."""
    inputs, targets = np.asarray(split.inputs[TEXT]), np.asarray(split.targets[TEXT])
    half = inputs.shape[1] // 2
    tokens = np.append(inputs.ravel(), targets[-1, -1])
    windows = np.lib.stride_tricks.sliding_window_view(tokens, inputs.shape[1] + 1)[::half]
    rates = [
        log_probabilities(trained, windows[start : start + ROWS, :-1], windows[start : start + ROWS, 1:])[:, half:]
        for start in range(0, len(windows), ROWS)
    ]
    return -float(np.concatenate(rates).mean())


def log_probabilities(trained: Trained, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Of each target after the tokens before it, (examples, time)."""
    logits = trained.outputs_of({TEXT: inputs})[TEXT]
    return np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - np.logaddexp.reduce(logits, axis=-1)


def baselines(config: Config, data: Data) -> dict[str, Metrics]:
    """How often each token is there, and the n-grams of that length which predicts the validation part best."""
    size = len(Tokenizer(**data.spec.input(TEXT).tokenizer))
    train, validation, held_out = (np.ravel(split.targets[TEXT]) for split in data.splits.values())
    found = {}
    for name, longest in (("unigram", 1), ("ngram", LONGEST_NGRAM[config.tokens])):
        model = NGrams.best(train, validation, size, range(1, longest + 1))
        nats = -float(model.log_probabilities(held_out).mean())
        ratio = data.spec.input(TEXT).statistics["test_characters_per_token"]
        found[name] = {"loss": nats, **measures(nats, ratio)}
    return found


def writer(trained: Trained) -> Writer:
    """What writes with a trained model, always the same one."""
    config: Any = trained.config

    def make() -> Writer:
        network = Network(config, trained.spec, lambda name, make: trained.core.get_layer(name))
        room = config.length if config.model == "transformer" else 0
        return Writer(network, room, config.temperature, config.top_k, config.top_p)

    return trained.kept("writer", make)


def stream(trained: Trained, frame: pd.DataFrame) -> Iterator[Sequence[Answer]]:
    """What follows each text, as it grows.

    The numbers that decide follow from the seed and the text: the same text has the same continuation everywhere.
    """
    texts = list(frame[TEXT].fillna("").astype(str))
    config: Any = trained.config
    tokenizer = Tokenizer(**trained.spec.input(TEXT).tokenizer)
    prompts = [tokenizer.encode_whole([text])[-2 * config.length :] for text in texts]
    line_end = tokenizer.encode_whole(["\n"])
    prompts = [prompt if len(prompt) else line_end for prompt in prompts]
    seeds = [(config.seed, zlib.crc32(text.encode())) for text in texts]
    uniforms = np.stack([np.random.default_rng(seed).uniform(size=config.new_tokens) for seed in seeds], axis=1)
    before, known = tokenizer.decode(prompts), prompts

    def answers(found: Sequence[str]) -> list[Answer]:
        return [{"continuation": what_follows(*pair)} for pair in zip(before, found, strict=True)]

    for pieces in writer(trained).stream(prompts, config.new_tokens, uniforms):
        known = [np.append(old, new) for old, new in zip(known, pieces, strict=True)]
        yield answers([tokenizer.settled(tokens) for tokens in known])
    # The last token may be the first byte of a character.
    yield answers([text.rstrip("\N{REPLACEMENT CHARACTER}") for text in tokenizer.decode(known)])


def predict(trained: Trained, frame: pd.DataFrame) -> Sequence[Answer]:
    """What follows each text."""
    *_, answers = stream(trained, frame)
    return answers


def report(run: Run) -> None:
    """What the model writes, and what surprises it."""
    from loom.figures_text import colored_words

    spec = run.data.spec.input(TEXT)
    tokenizer = Tokenizer(**spec.tokenizer)
    inputs = np.asarray(run.data.test.inputs[TEXT])
    rows = np.linspace(0, len(inputs) - 1, SAMPLES).astype(int)
    prompts = tokenizer.decode(inputs[rows, :PROMPT_TOKENS])
    import pandas as pd

    answers = run.trained.predict(pd.DataFrame({TEXT: prompts}))
    run.table(
        "samples",
        [{"prompt": prompt, **answer} for prompt, answer in zip(prompts, answers, strict=True)],
    )
    count = -(-SURPRISING // inputs.shape[1])
    targets = run.data.test.targets[TEXT][:count]
    rates = log_probabilities(run.trained, inputs[:count], targets)
    pieces, sums = _with_marks(tokenizer.pieces(targets.ravel()[:SURPRISING]), rates.ravel()[:SURPRISING])
    run.figure("surprise", colored_words([("test text", pieces, sums)], "How unlikely each token was", "surprise"))
    run.table("surprise", [{"token": piece, "nats": -rate} for piece, rate in zip(pieces, sums, strict=True)])


def _with_marks(pieces: Sequence[str], rates: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Tokens to be seen, and log-probabilities; vowel signs and accents stand with their letters."""
    starts = [place for place, piece in enumerate(pieces) if not place or unicodedata.category(piece[0])[0] != "M"]
    whole = ["".join(pieces[start:end]) for start, end in itertools.pairwise([*starts, len(pieces)])]
    return [piece.replace("\n", "↵") for piece in whole], np.add.reduceat(rates, starts)


APP = App(
    "textgen",
    Config,
    load,
    preprocess,
    build,
    space,
    baselines,
    report,
    predict,
    loss=loss,
    metrics={TEXT: ["accuracy"]},
    objective="val_loss",
    test=test,
    stream=stream,
    no_export="its text is written token by token, which the other formats do not hold; use loom predict or serve",
)

if __name__ == "__main__":
    main(APP)
