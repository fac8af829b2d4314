"""Networks from one sequence of tokens to another: settings, examples, and the network itself.

What it writes with a trained network is decoded in `loom.translator`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from loom.data.pairs import SOURCE, TARGET, PairsConfig
from loom.data.pipeline import Data, Ragged, Split
from loom.data.spec import Field, Spec
from loom.data.tables import Bad
from loom.data.tokens import PADDING, START, UNKNOWN, Tokenizer, Unit
from loom.errors import UserError
from loom.lazy import keras, layers

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
class Seq2SeqConfig(PairsConfig):
    """Settings of networks that read one sequence and write another."""

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
    bidirectional: bool = True
    """Whether a recurrent encoder reads the source from both ends, each direction with half of the units."""
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
    shared_vocabulary: bool = True
    """One vocabulary, and one vector for each of its tokens, for both sides."""
    tie_output: bool = True
    """The tokens' vectors are the output's weights too."""
    lower: bool = False
    """Bring all texts into lower case."""
    max_length: int = 64
    """Training pairs with more tokens on a side are left out; longer sources are cut, and answers end there."""
    decoding: Literal["beam", "greedy", "sampling"] = "beam"
    """How an answer is found: the best of a beam search, the likeliest token each time, or tokens by chance."""
    beam_width: int = 4
    """Answers that a beam search follows at once."""
    length_penalty: float = 0.6
    """Exponent of a beam search's length normalization: 0 prefers short answers, 1 the mean over tokens."""
    temperature: float = 1.0
    """Of sampling: below 1, likely tokens get likelier."""
    top_k: int = 0
    """Of sampling: only so many of the likeliest tokens are drawn from (0: all)."""
    top_p: float = 1.0
    """Of sampling: only the likeliest tokens that have so much probability together are drawn from."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        self.require("regularization", self.regularization == "none", "is not used here; --dropout is")
        for name in ("units", "depth", "heads", "feed_forward_units", "beam_width"):
            self.require(name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("dropout", "label_smoothing"):
            self.require(name, 0 <= getattr(self, name) < 1, "must be at least 0 and below 1")
        self.require("scheduled_sampling", 0 <= self.scheduled_sampling <= 1, "must lie between 0 and 1")
        self.require("vocabulary_size", 10 <= self.vocabulary_size <= 100_000, "must lie between 10 and 100,000")
        self.require("max_length", self.max_length >= 2, "must be at least 2")
        self.require("length_penalty", self.length_penalty >= 0, "must not be negative")
        self.require("temperature", self.temperature > 0, "must be greater than 0")
        self.require("top_k", self.top_k >= 0, "must not be negative")
        self.require("top_p", 0 < self.top_p <= 1, "must be above 0 and at most 1")
        if self.model == "transformer":
            self.require("attention", self.attention == "multiplicative", "chooses that of --model lstm and gru")
            self.require("units", self.units % self.heads == 0, f"must be a multiple of --heads {self.heads}")
        elif self.bidirectional:
            self.require("units", self.units % 2 == 0, "must be even, or the encoder --no-bidirectional")


def make_data(
    parts: dict[str, pd.DataFrame], examples: Examples, config: Seq2SeqConfig, notes: Sequence[str] = ()
) -> Data:
    """Pairs of texts as tokens, with vocabularies of the training part."""
    train = parts["train"]
    source, target = _fit_tokenizers(train, config)
    bad, notes = [], list(notes)
    encoded = {
        part: (source.encode(list(frame[SOURCE])), target.encode(list(frame[TARGET]))) for part, frame in parts.items()
    }
    longest = np.maximum(*(tokens.lengths for tokens in encoded["train"]))
    kept = np.flatnonzero(longest <= config.max_length)
    if not len(kept):
        raise UserError(f"--max-length {config.max_length}: every training pair has more tokens")
    if len(kept) < len(train):
        why = f"has more than {config.max_length} tokens (--max-length): not trained on"
        bad = [Bad(_shortened(train[SOURCE][row]), why) for row in np.flatnonzero(longest > config.max_length)]
        notes.append(f"{len(bad)} of {len(train)} training pairs are left out: more than {config.max_length} tokens")
        parts = {**parts, "train": train.iloc[kept].reset_index(drop=True)}
        encoded["train"] = (encoded["train"][0].take(kept), encoded["train"][1].take(kept))
    most = int(encoded["train"][1].lengths.max())
    statistics = {"examples": float(len(kept)), "most_tokens": float(min(config.max_length, most + ROOM))}
    spec = Spec(
        (Field(SOURCE, "text", tokenizer=source.settings(max_length=config.max_length), statistics=statistics),),
        (Field(TARGET, "text", tokenizer=target.settings()),),
    )
    splits = {part: _split(parts[part], *encoded[part], config.max_length) for part in parts}
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


def _split(frame: pd.DataFrame, source: Ragged, target: Ragged, max_length: int) -> Split:
    source, target = _cut(source, max_length), _cut(target, max_length)
    return Split(frame, {SOURCE: source, PREVIOUS: previous_tokens(target)}, {TARGET: target})


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
    made: dict[str, Any] = {}

    def layer(name: str, make: Callable[[], Any]) -> Any:
        if name not in made:
            made[name] = make()
        return made[name]

    network = make_network(config, spec, layer)
    source = keras.Input((None,), dtype="int32", name=SOURCE)
    previous = keras.Input((None,), dtype="int32", name=PREVIOUS)
    encoded = network.encode(source)
    logits = network.decode(previous, encoded)
    if config.scheduled_sampling:
        steps = config.epochs * -(-int(spec.input(SOURCE).statistics["examples"]) // config.batch_size)
        sampling = layers.ScheduledSampling(config.scheduled_sampling, steps, config.seed, name="scheduled_sampling")
        logits = network.decode(sampling(previous, logits), encoded)
    return keras.Model({SOURCE: source, PREVIOUS: previous}, {TARGET: logits})


def loss(config: Seq2SeqConfig, spec: Spec) -> dict[str, Any]:
    """Cross-entropy of each token."""
    return {TARGET: layers.SmoothedCrossentropy(config.label_smoothing)}


def metrics(config: Seq2SeqConfig, spec: Spec) -> dict[str, Any]:
    """Share of the tokens that are said right, after those before them."""
    return {TARGET: [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]}


def make_network(config: Seq2SeqConfig, spec: Spec, layer: MakeLayer) -> Transformer | Recurrent:
    """The network that the settings name, over new layers or those of a trained model."""
    sizes = [len(tokenizer) for tokenizer in tokenizers(spec)]
    return (Transformer if config.model == "transformer" else Recurrent)(config, sizes, layer)


class Network:
    """What both kinds share: the tokens' vectors, and the output."""

    def __init__(self, config: Seq2SeqConfig, sizes: Sequence[int], layer: MakeLayer) -> None:
        self.config = config
        self.layer = layer

        def embedding(name: str, size: int, tie: bool) -> Any:
            return layer(name, lambda: layers.TokenEmbedding(size, config.units, tie, name=name))

        self.target_embedding = embedding("target_embedding", sizes[1], config.tie_output)
        shared = config.shared_vocabulary
        self.source_embedding = self.target_embedding if shared else embedding("source_embedding", sizes[0], True)
        unsaid = np.zeros(sizes[1], np.float32)
        unsaid[[PADDING, UNKNOWN, START]] = LOW
        self._unsaid = unsaid

    def dropout(self, tensor: Tensor, name: str) -> Tensor:
        """Some values dropped in training."""
        seed = self.config.seed + sum(map(ord, name))
        return self.layer(name, lambda: keras.layers.Dropout(self.config.dropout, seed=seed, name=name))(tensor)

    def logits(self, hidden: Tensor) -> Tensor:
        """What is said of the next token."""
        return self.target_embedding(hidden, reverse=True)

    def said(self, hidden: Tensor) -> Tensor:
        """Logits for decoding: nothing but what may stand in a text, and its end."""
        return keras.ops.cast(self.logits(hidden), "float32") + self._unsaid


class TransformerMemory(NamedTuple):
    """Keys and values of the source, for each block of the decoder."""

    blocks: tuple[Any, ...]


class Transformer(Network):
    """Encoder and decoder of transformer blocks (Vaswani et al., 2017, "Attention is all you need"), norm first."""

    def __init__(self, config: Seq2SeqConfig, sizes: Sequence[int], layer: MakeLayer) -> None:
        super().__init__(config, sizes, layer)
        names = range(1, config.depth + 1)
        self.positions = layer("positions", lambda: layers.SinusoidalPositions(name="positions"))
        encoder, decoder = layers.TransformerEncoderBlock, layers.TransformerDecoderBlock
        self.encoder = [self._block(encoder, f"encoder_{number}") for number in names]
        self.decoder = [self._block(decoder, f"decoder_{number}") for number in names]
        self.source_norm = layer("source_norm", lambda: layers.LayerNorm(name="source_norm"))
        self.target_norm = layer("target_norm", lambda: layers.LayerNorm(name="target_norm"))

    def _block(self, kind: Any, name: str) -> Any:
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

    def encode(self, source: Tensor) -> Tensor:
        """Vectors of the source's tokens in their context, (batch, source time, units)."""
        vectors = self.dropout(self.positions(self.source_embedding(source)), "source_dropout")
        for block in self.encoder:
            vectors = block(vectors)
        return self.source_norm(vectors)

    def decode(self, previous: Tensor, encoded: Tensor) -> Tensor:
        """Logits of each next token, (batch, time, tokens)."""
        vectors = self.dropout(self.positions(self.target_embedding(previous)), "target_dropout")
        for block in self.decoder:
            vectors = block(vectors, encoded)
        return self.logits(self.target_norm(vectors))

    def begin(self, source: Tensor, most_tokens: int) -> tuple[Any, Any]:
        """State before the first token, and what all steps read."""
        encoded, batch = self.encode(source), keras.ops.shape(source)[0]
        caches = [block.empty_cache(batch, most_tokens, encoded, source != PADDING) for block in self.decoder]
        return tuple(cache.own for cache in caches), TransformerMemory(tuple(cache.memory for cache in caches))

    def step(self, tokens: Tensor, state: Any, memory: TransformerMemory) -> tuple[Tensor, Any]:
        """Logits of the token after the last ones, (batch, tokens), and the next state."""
        vectors = self.target_embedding(keras.ops.expand_dims(tokens, 1))
        vectors = self.positions(vectors, start=state[0].length)
        caches = []
        for block, own, read in zip(self.decoder, state, memory.blocks, strict=True):
            vectors, cache = block.extend(vectors, layers.transformer.DecoderCache(own, read))
            caches.append(cache.own)
        return self.said(self.target_norm(vectors)[:, 0]), tuple(caches)

    def attention_scores(self, source: Tensor, previous: Tensor) -> Tensor:
        """What each step reads of the source in the last block, the mean over its heads, (batch, time, source time)."""
        encoded, mask = self.encode(source), source != PADDING
        vectors = self.positions(self.target_embedding(previous))
        for block in self.decoder:
            vectors, scores = block.memory_scores(vectors, encoded, previous != PADDING, mask)
        return keras.ops.mean(scores, axis=1)


class Encoded(NamedTuple):
    """What a recurrent encoder has read."""

    sequence: Tensor
    """Vectors of the source's tokens in their context, (batch, source time, units)."""
    context: Tensor
    """One vector for all of it, (batch, units)."""
    states: tuple[tuple[Tensor, ...], ...]
    """For each layer of the decoder its states before the first token, (batch, units) each."""


class RecurrentMemory(NamedTuple):
    """What all steps of a recurrent decoder read."""

    encoded: Tensor
    mask: Tensor


class Recurrent(Network):
    """Encoder and decoder of recurrent layers, with attention between them or without.

    The decoder's first layer reads the tokens; with its state as query, attention reads the source (Luong, Pham and
    Manning, 2015, "Effective approaches to attention-based neural machine translation"); further layers and the output
    read both. No layer waits for the output of the step before, so all steps of a layer are computed at once in
    training. Without attention a context vector (Cho et al., 2014) takes its place.
    """

    def __init__(self, config: Seq2SeqConfig, sizes: Sequence[int], layer: MakeLayer) -> None:
        super().__init__(config, sizes, layer)
        self.encoder = [self._encoder_layer(f"encoder_{number}") for number in range(1, config.depth + 1)]
        self.decoder = [self._recurrent(config.units, f"decoder_{number}") for number in range(1, config.depth + 1)]
        attentions = {
            "additive": lambda: layers.AdditiveAttention(config.units, name="attention"),
            "multiplicative": lambda: layers.MultiplicativeAttention(
                "general", max_length=config.max_length, name="attention"
            ),
            "none": lambda: layers.RepeatedContext(name="attention"),
        }
        self.attention = layer("attention", attentions[config.attention])
        self.hidden = layer("hidden", lambda: keras.layers.Dense(config.units, "tanh", name="hidden"))

    def _recurrent(self, units: int, name: str, **options: Any) -> Any:
        kind = {"lstm": layers.LSTM, "gru": layers.GRU}[self.config.model]
        return self.layer(name, lambda: kind(units, return_sequences=True, name=name, **options))

    def _encoder_layer(self, name: str) -> Any:
        config = self.config
        kind = {"lstm": layers.LSTM, "gru": layers.GRU}[config.model]
        options = {"return_sequences": True, "return_state": True}
        if not config.bidirectional:
            return self.layer(name, lambda: kind(config.units, name=name, **options))
        return self.layer(name, lambda: layers.Bidirectional(kind(config.units // 2, **options), name=name))

    def encode(self, source: Tensor) -> Encoded:
        """Reads the source."""
        vectors = self.source_embedding(source)
        for number, encoder in enumerate(self.encoder, start=1):
            vectors, *finals = encoder(self.dropout(vectors, f"encoder_dropout_{number}"))
        per_direction = len(finals) // (2 if self.config.bidirectional else 1)
        hidden = finals[::per_direction]
        context = hidden[0]
        if self.config.bidirectional:
            context = self.layer("context", lambda: keras.layers.Concatenate(name="context"))(hidden)
        states = tuple(
            tuple(self._first_state(context, f"state_{layer}_{state}") for state in range(1, per_direction + 1))
            for layer in range(1, self.config.depth + 1)
        )
        return Encoded(vectors, context, states)

    def _first_state(self, context: Tensor, name: str) -> Tensor:
        return self.layer(name, lambda: keras.layers.Dense(self.config.units, "tanh", name=name))(context)

    def decode(self, previous: Tensor, encoded: Encoded) -> Tensor:
        """Logits of each next token, (batch, time, tokens)."""
        vectors, context = self.target_embedding(previous), None
        read = encoded.context if self.config.attention == "none" else encoded.sequence
        for number, decoder in enumerate(self.decoder, start=1):
            vectors = self.dropout(vectors, f"decoder_dropout_{number}")
            output = decoder(vectors, list(encoded.states[number - 1]))
            context = self.attention(output, read) if context is None else context
            join = self.layer(f"join_{number}", partial(keras.layers.Concatenate, name=f"join_{number}"))
            vectors = join([output, context])
        return self.logits(self.dropout(self.hidden(vectors), "output_dropout"))

    def begin(self, source: Tensor, most_tokens: int) -> tuple[Any, Any]:
        """State before the first token, and what all steps read."""
        encoded = self.encode(source)
        read = encoded.context if self.config.attention == "none" else encoded.sequence
        return encoded.states, RecurrentMemory(read, source != PADDING)

    def step(self, tokens: Tensor, state: Any, memory: RecurrentMemory) -> tuple[Tensor, Any]:
        """Logits of the token after the last ones, (batch, tokens), and the next state."""
        vectors, context, states = self.target_embedding(keras.ops.expand_dims(tokens, 1))[:, 0], None, []
        for decoder, old in zip(self.decoder, state, strict=True):
            output, new = decoder.step(vectors, old)
            context = self._context(output, memory) if context is None else context
            vectors = keras.ops.concatenate([output, context], axis=-1)
            states.append(new)
        return self.said(self.hidden(vectors)), tuple(states)

    def _context(self, output: Tensor, memory: RecurrentMemory) -> Tensor:
        if self.config.attention == "none":
            return memory.encoded
        return self.attention(keras.ops.expand_dims(output, 1), memory.encoded, value_mask=memory.mask)[:, 0]

    def attention_scores(self, source: Tensor, previous: Tensor) -> Tensor:
        """What each step reads of the source, (batch, time, source time).

        Raises:
            UserError: There is no attention.
        """
        if self.config.attention == "none":
            raise UserError("--attention none: nothing says which words of the source are read")
        encoded = self.encode(source)
        queries = self.decoder[0](self.target_embedding(previous), list(encoded.states[0]))
        _, scores = self.attention(
            queries, encoded.sequence, value_mask=source != PADDING, return_attention_scores=True
        )
        return scores
