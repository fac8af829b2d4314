"""What a trained sequence-to-sequence network writes: texts in, texts out; with scores, and what it read for each."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from loom.data.pairs import SOURCE
from loom.data.pipeline import Batches, Buckets, Ragged
from loom.data.tokens import END, START
from loom.lazy import layers, tf
from loom.seq2seq import Seq2SeqConfig, make_network, previous_tokens, tokenizers

if TYPE_CHECKING:
    from loom.trained import Trained

BATCH = 64
"""Texts that are written at a time."""
Tensor = Any


class Written(NamedTuple):
    """An answer."""

    text: str
    score: float
    """Log-probability of its tokens, of beam search normalised by length."""


class Translator:
    """Writes answers with a trained network: batches of texts, step by step, as one compiled function.

    Args:
        trained: A model that `loom.seq2seq.build` built, with its settings and vocabularies.
    """

    def __init__(self, trained: Trained) -> None:
        self._trained = trained
        self._config = cast("Seq2SeqConfig", trained.config)
        self._most_tokens = int(trained.spec.input(SOURCE).statistics["most_tokens"])
        self._source, self._target = tokenizers(trained.spec)
        self._network = make_network(self._config, trained.spec, lambda name, make: trained.core.get_layer(name))
        self._asked: Counter[str] = Counter()
        tokens, numbers = tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((self._most_tokens, None), tf.float32)
        self._beam = tf.function(self._decode_beam, input_signature=[tokens], autograph=False)
        self._greedy = tf.function(self._decode_greedy, input_signature=[tokens], autograph=False)
        self._sample = tf.function(self._decode_sample, input_signature=[tokens, numbers], autograph=False)

    @classmethod
    def of(cls, trained: Trained) -> Translator:
        """The translator of a trained model, always the same one."""
        return trained.kept("translator", lambda: cls(trained))

    def write(self, texts: Sequence[str], decoding: str = "") -> list[Written]:
        """An answer to each text, found as the settings say or as `decoding` does (`beam`, `greedy` or `sampling`).

        With sampling the numbers that decide follow from the seed, the text, and how often it has come: the same text
        gets another answer the next time, and the same answers in the same order in every process.
        """
        if not len(texts):
            return []
        how = decoding or self._config.decoding
        source = self._tokens(texts)
        numbers = self._uniforms(texts) if how == "sampling" else None
        batches = Batches({SOURCE: source}, {}, BATCH, Buckets.fit({SOURCE: source}, {}, self._config.buckets))
        answers: dict[int, Written] = {}
        for (rows, _), (inputs, _) in zip(batches.plan(), batches, strict=True):
            tokens = tf.constant(inputs[SOURCE])
            if numbers is None:
                found = (self._beam if how == "beam" else self._greedy)(tokens)
            else:
                found = self._sample(tokens, tf.constant(numbers[:, rows]))
            written = zip(self._target.decode(found.tokens.numpy()), found.scores.numpy().tolist(), strict=True)
            answers |= {int(row): Written(*answer) for row, answer in zip(rows, written, strict=True)}
        return [answers[row] for row in range(len(texts))]

    def attention(self, source: str, target: str) -> tuple[np.ndarray, list[str], list[str]]:
        """How much of each token of the source is read for each token of a target, and those tokens as text.

        Returns:
            Weights (target tokens, source tokens) and both sides' tokens.

        Raises:
            UserError: The network has no attention.
        """
        rows = np.array([0])
        inputs, outputs = self._tokens([source]), self._target.encode([target])
        padded = [each.padded(rows, len(each.values)) for each in (inputs, previous_tokens(outputs))]
        scores = self._network.attention_scores(*map(tf.constant, padded))
        return (
            scores.numpy()[0].astype(np.float32),
            self._source.pieces(inputs.values.tolist()),
            self._target.pieces(outputs.values.tolist()),
        )

    def _tokens(self, texts: Sequence[str]) -> Ragged:
        """What the network reads of each text."""
        import pandas as pd

        tokens = self._trained.encode(pd.DataFrame({SOURCE: list(texts)}))[SOURCE]
        assert isinstance(tokens, Ragged)
        return tokens

    def _uniforms(self, texts: Sequence[str]) -> np.ndarray:
        columns = []
        for text in texts:
            seed = (self._config.seed, zlib.crc32(text.encode()), self._asked[text])
            columns.append(np.random.default_rng(seed).uniform(size=self._most_tokens).astype(np.float32))
            self._asked[text] += 1
        return np.stack(columns, axis=1)

    def _decode_beam(self, source: Tensor) -> Any:
        config = self._config
        state, memory = self._network.begin(source, self._most_tokens)
        memory = layers.repeated(memory, config.beam_width)
        return layers.beam_search(
            lambda tokens, state: self._network.step(tokens, state, memory),
            self._starts(source),
            state,
            self._most_tokens,
            END,
            beam_width=config.beam_width,
            length_penalty=config.length_penalty,
        )

    def _decode_greedy(self, source: Tensor) -> Any:
        state, memory = self._network.begin(source, self._most_tokens)
        return layers.greedy(
            lambda tokens, state: self._network.step(tokens, state, memory),
            self._starts(source),
            state,
            self._most_tokens,
            END,
        )

    def _decode_sample(self, source: Tensor, uniforms: Tensor) -> Any:
        config = self._config
        state, memory = self._network.begin(source, self._most_tokens)
        return layers.sample(
            lambda tokens, state: self._network.step(tokens, state, memory),
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
