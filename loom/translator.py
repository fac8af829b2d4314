"""What a trained network writes about texts or images: its answers with scores, and what it read for each word."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from loom.data.pipeline import Batches, Buckets, Column, Ragged
from loom.data.tokens import END, START, Tokenizer
from loom.lazy import layers, tf
from loom.seq2seq import DecoderConfig, MakeNetwork, previous_tokens, text_network

if TYPE_CHECKING:
    from loom.trained import Trained

BATCH = 64
"""Answers that are written at a time."""
COUNTERS = 4096
"""How many counts of what has been asked are kept; texts may share one, so that a server's memory stays what it is."""
Tensor = Any


class Written(NamedTuple):
    """An answer."""

    text: str
    score: float
    """Log-probability of its tokens, of beam search normalised by length."""


class Translator:
    """Writes answers with a trained network: batches of them, step by step, as one compiled function.

    Args:
        trained: A model that `loom.seq2seq.connect` built, with its settings and vocabularies.
        make: Makes its network.
    """

    def __init__(self, trained: Trained, make: MakeNetwork = text_network) -> None:
        self._trained = trained
        self._config = cast("DecoderConfig", trained.config)
        self._read, target = trained.spec.inputs[0], trained.spec.targets[0]
        self._most_tokens = int(target.statistics["most_tokens"])
        self._target = Tokenizer(**target.tokenizer)
        self._network = make(self._config, trained.spec, lambda name, make: trained.core.get_layer(name))
        self._asked: Counter[int] = Counter()
        tensor = trained.core.input[self._read.name]
        source, numbers = tf.TensorSpec(tensor.shape, tensor.dtype), tf.TensorSpec((self._most_tokens, None))
        self._beam = tf.function(self._decode_beam, input_signature=[source], autograph=False)
        self._greedy = tf.function(self._decode_greedy, input_signature=[source], autograph=False)
        self._sample = tf.function(self._decode_sample, input_signature=[source, numbers], autograph=False)

    @classmethod
    def of(cls, trained: Trained, make: MakeNetwork = text_network) -> Translator:
        """The translator of a trained model, always the same one."""
        return trained.kept("translator", lambda: cls(trained, make))

    def write(self, sources: Sequence[Any], decoding: str = "") -> list[Written]:
        """An answer to each text or image, found as the settings say or as `decoding` does.

        With sampling the numbers that decide follow from the seed, what is read, and a count of what was read before:
        the same text gets another answer the next time, and the same answers in the same order in every process.

        Args:
            sources: Raw examples.
            decoding: `beam`, `greedy` or `sampling`.
        """
        if not len(sources):
            return []
        name, how = self._read.name, decoding or self._config.decoding
        columns = {name: self._encoded(sources)}
        numbers = self._uniforms(columns[name]) if how == "sampling" else None
        batches = Batches(columns, {}, BATCH, Buckets.fit(columns, {}, self._config.buckets))
        answers: dict[int, Written] = {}
        for (rows, _), (inputs, _) in zip(batches.plan(), batches, strict=True):
            source = tf.constant(inputs[name])
            if numbers is None:
                found = (self._beam if how == "beam" else self._greedy)(source)
            else:
                found = self._sample(source, tf.constant(numbers[:, rows]))
            written = zip(self._target.decode(found.tokens.numpy()), found.scores.numpy().tolist(), strict=True)
            answers |= {int(row): Written(*answer) for row, answer in zip(rows, written, strict=True)}
        return [answers[row] for row in range(len(sources))]

    def attention(self, source: Any, target: str) -> tuple[np.ndarray, list[str]]:
        """How much of each step of the source is read for each token of a target, and those tokens as text.

        Returns:
            Weights (target tokens, source steps) and the target's tokens.

        Raises:
            UserError: The network has no attention.
        """
        encoded, target_tokens = self._encoded([source]), self._target.encode([target])
        previous = tf.constant(previous_tokens(target_tokens).values[None])
        read = encoded.values[None] if isinstance(encoded, Ragged) else encoded
        scores = self._network.decoder.attention_scores(self._network.encode(tf.constant(read)), previous)
        return scores.numpy()[0].astype(np.float32), self._target.pieces(target_tokens.values.tolist())

    def source_tokens(self, source: str) -> list[str]:
        """A text as the tokens that are read."""
        tokens = self._encoded([source])
        assert isinstance(tokens, Ragged)
        return Tokenizer(**self._read.tokenizer).pieces(tokens.values.tolist())

    def _encoded(self, sources: Sequence[Any]) -> Column:
        """What the network reads of each text or image."""
        import pandas as pd

        name = self._read.name
        return self._trained.encode(pd.DataFrame({name: pd.Series(list(sources), dtype=object)}))[name]

    def _uniforms(self, column: Column) -> np.ndarray:
        columns = []
        for row in range(len(column)):
            read = column.take(np.array([row])).values if isinstance(column, Ragged) else column[row]
            key = zlib.crc32(np.ascontiguousarray(read).tobytes())
            slot = key % COUNTERS
            rng = np.random.default_rng((self._config.seed, key, self._asked[slot]))
            columns.append(rng.uniform(size=self._most_tokens).astype(np.float32))
            self._asked[slot] += 1
        return np.stack(columns, axis=1)

    def _begin(self, source: Tensor) -> tuple[Any, Any]:
        return self._network.decoder.begin(self._network.encode(source), self._most_tokens)

    def _decode_beam(self, source: Tensor) -> Any:
        config = self._config
        state, memory = self._begin(source)
        memory = layers.repeated(memory, config.beam_width)
        return layers.beam_search(
            lambda tokens, state: self._network.decoder.step(tokens, state, memory),
            self._starts(source),
            state,
            self._most_tokens,
            END,
            beam_width=config.beam_width,
            length_penalty=config.length_penalty,
        )

    def _decode_greedy(self, source: Tensor) -> Any:
        state, memory = self._begin(source)
        return layers.greedy(
            lambda tokens, state: self._network.decoder.step(tokens, state, memory),
            self._starts(source),
            state,
            self._most_tokens,
            END,
        )

    def _decode_sample(self, source: Tensor, uniforms: Tensor) -> Any:
        config = self._config
        state, memory = self._begin(source)
        return layers.sample(
            lambda tokens, state: self._network.decoder.step(tokens, state, memory),
            self._starts(source),
            state,
            uniforms,
            END,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
        )

    def _starts(self, source: Tensor) -> Tensor:
        return tf.fill([tf.shape(source)[0]], START)
