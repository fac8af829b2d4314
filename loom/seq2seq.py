"""Networks that write tokens after reading something: settings, examples, and the network itself.

What is read is a text, or whatever an application's own encoder makes a sequence of vectors of. What a trained network
writes is decoded in `loom.translator`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from loom.data.pairs import SOURCE, TARGET, PairsConfig
from loom.data.pipeline import Column, Data, Ragged, Split, take_rows
from loom.data.spec import Field, Spec
from loom.data.tables import Bad
from loom.data.tokens import PADDING, START, UNKNOWN, Tokenizer, Unit
from loom.errors import UserError
from loom.lazy import keras, layers
from loom.writer import SamplingConfig

if TYPE_CHECKING:
    import pandas as pd

    from loom.data.sources import Examples

PREVIOUS = "previous"
"""Input of the network: the target's token before each of its tokens."""
ROOM = 8
"""Tokens by which an answer may be longer than the longest one that was trained on."""
LOW = -1e9
Tensor = Any
MakeLayer = Callable[[str, Callable[[], Any]], Any]
"""Gives the layer of a name; a new network makes it, a trained one has it."""


@dataclass(frozen=True)
class DecoderConfig(PairsConfig, SamplingConfig):
    """Settings of networks that read something and write a text."""

    model: Literal["transformer", "lstm", "gru"] = "transformer"
    """Layers of encoder and decoder: transformer blocks, or recurrent layers."""
    attention: Literal["additive", "multiplicative", "none"] = "multiplicative"
    """How a recurrent decoder reads the source: with attention, or (`none`) one context vector for all of it."""
    units: int = 128
    """Width of a token's vector and of all layers."""
    depth: int = 2
    """Layers of the encoder, and of the decoder."""
    heads: int = 4
    """Heads of a transformer's attention."""
    feed_forward_units: int = 256
    """Width of a transformer block's hidden layer."""
    dropout: float = 0.1
    """Share of the values that is dropped in training: of tokens' vectors, and of what layers put out."""
    label_smoothing: float = 0.1
    """Share of each target's probability that all tokens have alike."""
    scheduled_sampling: float = 0.0
    """Share of the tokens that the decoder reads of its own answers at the end of training, from 0 along a line."""
    tokens: Unit = "subwords"
    """What texts are made of."""
    vocabulary_size: int = 4000
    """Number of tokens, at most."""
    tie_output: bool = True
    """The tokens' vectors are the output's weights too."""
    lower: bool = False
    """Bring all texts into lower case."""
    max_length: int = 64
    """Training pairs with a text of more tokens are left out; longer sources are cut, and answers end there."""
    decoding: Literal["beam", "greedy", "sampling"] = "beam"
    """How an answer is found: the best of a beam search, the likeliest token each time, or tokens by chance."""
    beam_width: int = 4
    """Answers that a beam search follows at once."""
    length_penalty: float = 0.6
    """Exponent of a beam search's length normalization: 0 prefers short answers, 1 the mean over tokens."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        for name in ("units", "depth", "heads", "feed_forward_units", "beam_width"):
            self.require(name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("dropout", "label_smoothing"):
            self.require(name, 0 <= getattr(self, name) < 1, "must be at least 0 and below 1")
        self.require("scheduled_sampling", 0 <= self.scheduled_sampling <= 1, "must lie between 0 and 1")
        self.require("vocabulary_size", 10 <= self.vocabulary_size <= 100_000, "must lie between 10 and 100,000")
        self.require("max_length", self.max_length >= 2, "must be at least 2")
        self.require("length_penalty", self.length_penalty >= 0, "must not be negative")
        if self.model == "transformer":
            self.require("attention", self.attention == type(self).attention, "chooses that of --model lstm and gru")
            self.require("units", self.units % self.heads == 0, f"must be a multiple of --heads {self.heads}")


@dataclass(frozen=True)
class Seq2SeqConfig(DecoderConfig):
    """Settings of networks that read a text and write another."""

    bidirectional: bool = True
    """Whether a recurrent encoder reads the source from both ends, each direction with half of the units."""
    shared_vocabulary: bool = True
    """One vocabulary, and one vector for each of its tokens, for both sides."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        self.require("regularization", self.regularization == "none", "is not used here; --dropout is")
        if self.model == "transformer":
            self.require(
                "bidirectional", self.bidirectional, "is for --model lstm and gru: a transformer has no direction"
            )
        elif self.bidirectional:
            self.require("units", self.units % 2 == 0, "must be even, or the encoder --no-bidirectional")


def make_data(
    parts: dict[str, pd.DataFrame], examples: Examples, config: Seq2SeqConfig, notes: Sequence[str] = ()
) -> Data:
    """Pairs of texts as tokens, with vocabularies of the training part."""
    source, target = _fit_tokenizers(parts["train"], config)
    encoded = {part: source.encode(list(frame[SOURCE])) for part, frame in parts.items()}
    read = Field(SOURCE, "text", tokenizer=source.settings(max_length=config.max_length))
    return with_targets(
        parts, read, encoded, Field(TARGET, "text", tokenizer=target.settings()), examples, config, notes
    )


def with_targets(
    parts: dict[str, pd.DataFrame],
    source: Field,
    encoded: Mapping[str, Column],
    target: Field,
    examples: Examples,
    config: DecoderConfig,
    notes: Sequence[str] = (),
) -> Data:
    """What is read, and the tokens to write after it.

    Args:
        parts: Raw examples of each part.
        source: The column that is read.
        encoded: What the network takes of it, for each part.
        target: The column of texts to write, with its tokenizer.
        examples: Where all of that is from, and what of it is bad.
        config: Says how many tokens are too many.
        notes: What was decided before.
    """
    tokenizer, train, bad, notes = Tokenizer(**target.tokenizer), parts["train"], [], list(notes)
    pairs = {part: (encoded[part], tokenizer.encode(list(frame[target.name]))) for part, frame in parts.items()}
    longest = np.max([column.lengths for column in pairs["train"] if isinstance(column, Ragged)], axis=0)
    kept = np.flatnonzero(longest <= config.max_length)
    if not len(kept):
        raise UserError(f"--max-length {config.max_length}: every training pair has more tokens")
    if len(kept) < len(train):
        why = f"has more than {config.max_length} tokens (--max-length): not trained on"
        shown = train[source.name if source.kind == "text" else target.name]
        bad = [Bad(_shortened(shown[row]), why) for row in np.flatnonzero(longest > config.max_length)]
        notes.append(f"{len(bad)} of {len(train)} training pairs are left out: more than {config.max_length} tokens")
        parts = {**parts, "train": train.iloc[kept].reset_index(drop=True)}
        pairs["train"] = (take_rows(pairs["train"][0], kept), pairs["train"][1].take(kept))
    most = int(pairs["train"][1].lengths.max())
    statistics = {"examples": float(len(kept)), "most_tokens": float(min(config.max_length, most + ROOM))}
    spec = Spec((source,), (replace(target, statistics=statistics),))
    splits = {part: _split(parts[part], spec, *pair, config.max_length) for part, pair in pairs.items()}
    return Data(**splits, spec=spec, source=examples.source, bad=(*examples.bad, *bad), notes=tuple(notes))


def _fit_tokenizers(train: pd.DataFrame, config: Seq2SeqConfig) -> tuple[Tokenizer, Tokenizer]:
    texts = [list(train[SOURCE]), list(train[TARGET])]
    if config.shared_vocabulary:
        both = Tokenizer.fit([*texts[0], *texts[1]], config.vocabulary_size, config.tokens, config.lower)
        return both, both
    first, second = (Tokenizer.fit(each, config.vocabulary_size, config.tokens, config.lower) for each in texts)
    return first, second


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _split(frame: pd.DataFrame, spec: Spec, source: Column, target: Ragged, max_length: int) -> Split:
    source = _cut(source, max_length) if isinstance(source, Ragged) else source
    target = _cut(target, max_length)
    inputs: dict[str, Column] = {spec.inputs[0].name: source, PREVIOUS: previous_tokens(target)}
    return Split(frame, inputs, {spec.targets[0].name: target})


def _cut(tokens: Ragged, most: int) -> Ragged:
    if tokens.lengths.max(initial=0) <= most:
        return tokens
    return Ragged.from_padded(tokens.padded(np.arange(len(tokens)), most))


def previous_tokens(target: Ragged) -> Ragged:
    """The token before each token: the start, then all but the last."""
    values = np.empty_like(target.values)
    values[1:] = target.values[:-1]
    values[target.splits[:-1]] = START
    return Ragged(values, target.splits)


def tokenizers(spec: Spec) -> tuple[Tokenizer, Tokenizer]:
    """Those of source and target."""
    return Tokenizer(**spec.input(SOURCE).tokenizer), Tokenizer(**spec.target(TARGET).tokenizer)


def preprocess(config: Seq2SeqConfig, spec: Spec) -> keras.Model:
    """The source's tokens, as they are."""
    source = keras.Input((None,), dtype="int32", name=SOURCE)
    return keras.Model({SOURCE: source}, {SOURCE: keras.layers.Identity()(source)})


def build(config: Seq2SeqConfig, spec: Spec) -> keras.Model:
    """Tokens of the source, and of the target up to each step, to the logits of the target's next token."""
    return connect(config, spec, keras.Input((None,), dtype="int32", name=SOURCE), text_network)


def loss(config: DecoderConfig, spec: Spec) -> dict[str, Any]:
    """Cross-entropy of each token."""
    return {spec.targets[0].name: layers.SmoothedCrossentropy(config.label_smoothing)}


def metrics(config: DecoderConfig, spec: Spec) -> dict[str, Any]:
    """Share of the tokens that are said right, after those before them."""
    return {spec.targets[0].name: [layers.StepAccuracy()]}


class Encoded(NamedTuple):
    """What has been read, and a decoder reads of it."""

    sequence: Tensor
    """Vectors of the source's steps in their context, (batch, source time, features)."""
    context: Tensor = None
    """One vector for all of it, (batch, features), which recurrent decoders begin with."""
    mask: Tensor = None
    """Which steps there are, (batch, source time); None for all."""


class Network(NamedTuple):
    """An encoder and the decoder that reads what it has read."""

    encode: Callable[[Tensor], Encoded]
    decoder: Decoder


MakeNetwork = Callable[[Any, Spec, MakeLayer], Network]
"""Gives the network that settings and data ask for, over new layers or those of a trained model."""


def connect(config: DecoderConfig, spec: Spec, source: keras.KerasTensor, make: MakeNetwork) -> keras.Model:
    """The model of a network that is trained: what is read, and the target up to each step, to the next token's logits.

    Args:
        config: The settings.
        spec: Of the data.
        source: The input that is read.
        make: Makes the network.
    """
    made: dict[str, Any] = {}

    def layer(name: str, make: Callable[[], Any]) -> Any:
        if name not in made:
            made[name] = make()
        return made[name]

    network = make(config, spec, layer)
    previous = keras.Input((None,), dtype="int32", name=PREVIOUS)
    encoded, decode = network.encode(source), network.decoder.decode
    logits = decode(previous, encoded)
    if config.scheduled_sampling:
        steps = config.epochs * -(-int(spec.targets[0].statistics["examples"]) // config.batch_size)
        sampling = layers.ScheduledSampling(config.scheduled_sampling, steps, config.seed, name="scheduled_sampling")
        logits = decode(sampling(previous, logits), encoded)
    return keras.Model({source.name: source, PREVIOUS: previous}, {spec.targets[0].name: logits})


def text_network(config: Seq2SeqConfig, spec: Spec, layer: MakeLayer) -> Network:
    """The network from text to text that the settings name."""
    source, target = (len(tokenizer) for tokenizer in tokenizers(spec))
    if config.model == "transformer":
        return Network(TransformerEncoder(config, source, layer).encode, TransformerDecoder(config, target, layer))
    return Network(RecurrentEncoder(config, source, layer).encode, RecurrentDecoder(config, target, layer))


def make_decoder(config: DecoderConfig, spec: Spec, layer: MakeLayer) -> Decoder:
    """The decoder that the settings name."""
    size = len(Tokenizer(**spec.targets[0].tokenizer))
    return (TransformerDecoder if config.model == "transformer" else RecurrentDecoder)(config, size, layer)


class Part:
    """What encoders and decoders share: settings, layers by name, vectors of tokens, dropout."""

    def __init__(self, config: DecoderConfig, layer: MakeLayer) -> None:
        self.config = config
        self.layer = layer

    def embedding(self, name: str, size: int, tie: bool = True) -> Any:
        """Vectors of tokens."""
        return self.layer(name, lambda: layers.TokenEmbedding(size, self.config.units, tie, name=name))

    def dropout(self, tensor: Tensor, name: str) -> Tensor:
        """Some values dropped in training."""
        seed = self.config.seed + sum(map(ord, name))
        return self.layer(name, lambda: keras.layers.Dropout(self.config.dropout, seed=seed, name=name))(tensor)

    def block(self, kind: Any, name: str) -> Any:
        """A block of a transformer, norm first."""
        config = self.config
        return self.layer(
            name,
            lambda: kind(
                config.heads,
                config.feed_forward_units,
                dropout=config.dropout,
                seed=config.seed + sum(map(ord, name)),
                max_length=config.max_length,
                name=name,
            ),
        )


def text_embedding(part: Part, config: Seq2SeqConfig, size: int) -> Any:
    """Vectors of the source's tokens: those of the target's, if both share a vocabulary."""
    if config.shared_vocabulary:
        return part.embedding("target_embedding", size, config.tie_output)
    return part.embedding("source_embedding", size)


class TransformerEncoder(Part):
    """Reads a text with transformer blocks (Vaswani et al., 2017, "Attention is all you need"), norm first."""

    def __init__(self, config: Seq2SeqConfig, size: int, layer: MakeLayer) -> None:
        super().__init__(config, layer)
        self.embedded = text_embedding(self, config, size)
        self.positions = layer("positions", lambda: layers.SinusoidalPositions(name="positions"))
        names = [f"encoder_{number}" for number in range(1, config.depth + 1)]
        self.blocks = [self.block(layers.TransformerEncoderBlock, name) for name in names]
        self.norm = layer("source_norm", lambda: layers.LayerNorm(name="source_norm"))

    def encode(self, source: Tensor) -> Encoded:
        """Reads tokens, (batch, source time)."""
        vectors = self.dropout(self.positions(self.embedded(source)), "source_dropout")
        for block in self.blocks:
            vectors = block(vectors)
        return Encoded(self.norm(vectors), mask=source != PADDING)


class RecurrentEncoder(Part):
    """Reads a text with recurrent layers, in one direction or in both."""

    def __init__(self, config: Seq2SeqConfig, size: int, layer: MakeLayer) -> None:
        super().__init__(config, layer)
        self.bidirectional = config.bidirectional
        self.embedded = text_embedding(self, config, size)
        self.recurrent = [self._layer(f"encoder_{number}") for number in range(1, config.depth + 1)]

    def _layer(self, name: str) -> Any:
        kind, units = {"lstm": layers.LSTM, "gru": layers.GRU}[self.config.model], self.config.units
        options = {"return_sequences": True, "return_state": True}
        if not self.bidirectional:
            return self.layer(name, lambda: kind(units, name=name, **options))
        return self.layer(name, lambda: layers.Bidirectional(kind(units // 2, **options), name=name))

    def encode(self, source: Tensor) -> Encoded:
        """Reads tokens, (batch, source time)."""
        vectors = self.embedded(source)
        for number, layer in enumerate(self.recurrent, start=1):
            vectors, *finals = layer(self.dropout(vectors, f"encoder_dropout_{number}"))
        hidden = finals[:: len(finals) // (2 if self.bidirectional else 1)]
        context = hidden[0]
        if self.bidirectional:
            context = self.layer("context", lambda: keras.layers.Concatenate(name="context"))(hidden)
        return Encoded(vectors, context, source != PADDING)


class Decoder(Part):
    """Writes tokens after what has been read: all steps at once in training, one at a time in decoding."""

    def __init__(self, config: DecoderConfig, size: int, layer: MakeLayer) -> None:
        super().__init__(config, layer)
        self.embedded = self.embedding("target_embedding", size, config.tie_output)
        unsaid = np.zeros(size, np.float32)
        unsaid[[PADDING, UNKNOWN, START]] = LOW
        self._unsaid = unsaid

    def decode(self, previous: Tensor, encoded: Encoded) -> Tensor:
        """Logits of each next token, (batch, time, tokens)."""
        raise NotImplementedError

    def begin(self, encoded: Encoded, most_tokens: int) -> tuple[Any, Any]:
        """State before the first token, and what all steps read."""
        raise NotImplementedError

    def step(self, tokens: Tensor, state: Any, memory: Any) -> tuple[Tensor, Any]:
        """Logits of the token after the last ones, (batch, tokens), and the next state."""
        raise NotImplementedError

    def attention_scores(self, encoded: Encoded, previous: Tensor) -> Tensor:
        """What each step reads of the source, (batch, time, source time)."""
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """What is said of the next token."""
        return self.embedded(hidden, reverse=True)

    def said(self, hidden: Tensor) -> Tensor:
        """Logits for decoding: nothing but what may stand in a text, and its end."""
        return keras.ops.cast(self.logits(hidden), "float32") + self._unsaid


class TransformerMemory(NamedTuple):
    """Keys and values of the source, for each block of the decoder."""

    blocks: tuple[Any, ...]


class TransformerDecoder(Decoder):
    """Transformer blocks with attention to the source, norm first."""

    def __init__(self, config: DecoderConfig, size: int, layer: MakeLayer) -> None:
        super().__init__(config, size, layer)
        self.positions = layer("positions", lambda: layers.SinusoidalPositions(name="positions"))
        names = [f"decoder_{number}" for number in range(1, config.depth + 1)]
        self.blocks = [self.block(layers.TransformerDecoderBlock, name) for name in names]
        self.norm = layer("target_norm", lambda: layers.LayerNorm(name="target_norm"))

    def decode(self, previous: Tensor, encoded: Encoded) -> Tensor:
        """Logits of each next token, (batch, time, tokens)."""
        vectors = self.dropout(self.positions(self.embedded(previous)), "target_dropout")
        for block in self.blocks:
            vectors = block(vectors, encoded.sequence)
        return self.logits(self.norm(vectors))

    def begin(self, encoded: Encoded, most_tokens: int) -> tuple[Any, Any]:
        """State before the first token, and what all steps read."""
        batch = keras.ops.shape(encoded.sequence)[0]
        caches = [block.empty_cache(batch, most_tokens, encoded.sequence, encoded.mask) for block in self.blocks]
        return tuple(cache.own for cache in caches), TransformerMemory(tuple(cache.memory for cache in caches))

    def step(self, tokens: Tensor, state: Any, memory: TransformerMemory) -> tuple[Tensor, Any]:
        """Logits of the token after the last ones, (batch, tokens), and the next state."""
        vectors = self.embedded(keras.ops.expand_dims(tokens, 1))
        vectors = self.positions(vectors, start=state[0].length)
        caches = []
        for block, own, read in zip(self.blocks, state, memory.blocks, strict=True):
            vectors, cache = block.extend(vectors, layers.transformer.DecoderCache(own, read))
            caches.append(cache.own)
        return self.said(self.norm(vectors)[:, 0]), tuple(caches)

    def attention_scores(self, encoded: Encoded, previous: Tensor) -> Tensor:
        """What each step reads of the source in the last block, the mean over its heads, (batch, time, source time)."""
        vectors = self.positions(self.embedded(previous))
        for block in self.blocks:
            vectors, scores = block.memory_scores(vectors, encoded.sequence, previous != PADDING, encoded.mask)
        return keras.ops.mean(scores, axis=1)


class RecurrentMemory(NamedTuple):
    """What all steps of a recurrent decoder read."""

    encoded: Tensor
    mask: Tensor


class RecurrentDecoder(Decoder):
    """Recurrent layers with attention to the source, or without.

    The decoder's first layer reads the tokens; with its state as query, attention reads the source (Luong, Pham and
    Manning, 2015, "Effective approaches to attention-based neural machine translation"); further layers and the output
    read both. No layer waits for the output of the step before, so all steps of a layer are computed at once in
    training. Without attention a context vector (Cho et al., 2014) takes its place.
    """

    def __init__(self, config: DecoderConfig, size: int, layer: MakeLayer) -> None:
        super().__init__(config, size, layer)
        self.recurrent = [self._layer(f"decoder_{number}") for number in range(1, config.depth + 1)]
        attentions = {
            "additive": lambda: layers.AdditiveAttention(config.units, name="attention"),
            "multiplicative": lambda: layers.MultiplicativeAttention(
                "general", max_length=config.max_length, name="attention"
            ),
            "none": lambda: layers.RepeatedContext(name="attention"),
        }
        self.attention = layer("attention", attentions[config.attention])
        self.hidden = layer("hidden", lambda: keras.layers.Dense(config.units, "tanh", name="hidden"))

    def _layer(self, name: str) -> Any:
        kind = {"lstm": layers.LSTM, "gru": layers.GRU}[self.config.model]
        return self.layer(name, lambda: kind(self.config.units, return_sequences=True, name=name))

    def first_states(self, encoded: Encoded) -> tuple[tuple[Tensor, ...], ...]:
        """For each layer its states before the first token, (batch, units) each."""
        return tuple(
            tuple(self._first_state(encoded.context, f"state_{number}_{state}") for state in range(1, count + 1))
            for number, count in enumerate((layer.state_count for layer in self.recurrent), start=1)
        )

    def _first_state(self, context: Tensor, name: str) -> Tensor:
        return self.layer(name, lambda: keras.layers.Dense(self.config.units, "tanh", name=name))(context)

    def decode(self, previous: Tensor, encoded: Encoded) -> Tensor:
        """Logits of each next token, (batch, time, tokens)."""
        states = self.first_states(encoded)
        vectors, context = self.embedded(previous), None
        read = encoded.context if self.config.attention == "none" else encoded.sequence
        for number, (layer, state) in enumerate(zip(self.recurrent, states, strict=True), start=1):
            vectors = self.dropout(vectors, f"decoder_dropout_{number}")
            output = layer(vectors, list(state))
            context = self.attention(output, read) if context is None else context
            join = self.layer(f"join_{number}", partial(keras.layers.Concatenate, name=f"join_{number}"))
            vectors = join([output, context])
        return self.logits(self.dropout(self.hidden(vectors), "output_dropout"))

    def begin(self, encoded: Encoded, most_tokens: int) -> tuple[Any, Any]:
        """State before the first token, and what all steps read."""
        read, mask = encoded.context if self.config.attention == "none" else encoded.sequence, encoded.mask
        if mask is None:
            mask = keras.ops.ones(keras.ops.shape(encoded.sequence)[:2], "bool")
        return self.first_states(encoded), RecurrentMemory(read, mask)

    def step(self, tokens: Tensor, state: Any, memory: RecurrentMemory) -> tuple[Tensor, Any]:
        """Logits of the token after the last ones, (batch, tokens), and the next state."""
        vectors, context, states = self.embedded(keras.ops.expand_dims(tokens, 1))[:, 0], None, []
        for layer, old in zip(self.recurrent, state, strict=True):
            output, new = layer.step(vectors, old)
            context = self._context(output, memory) if context is None else context
            vectors = keras.ops.concatenate([output, context], axis=-1)
            states.append(new)
        return self.said(self.hidden(vectors)), tuple(states)

    def _context(self, output: Tensor, memory: RecurrentMemory) -> Tensor:
        if self.config.attention == "none":
            return memory.encoded
        return self.attention(keras.ops.expand_dims(output, 1), memory.encoded, value_mask=memory.mask)[:, 0]

    def attention_scores(self, encoded: Encoded, previous: Tensor) -> Tensor:
        """What each step reads of the source, (batch, time, source time).

        Raises:
            UserError: There is no attention.
        """
        if self.config.attention == "none":
            raise UserError("--attention none: nothing says which parts of the source are read")
        queries = self.recurrent[0](self.embedded(previous), list(self.first_states(encoded)[0]))
        _, scores = self.attention(queries, encoded.sequence, value_mask=encoded.mask, return_attention_scores=True)
        return scores
