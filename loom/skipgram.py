"""Skip-gram with negative sampling, as one Keras model whose batches are rows of words."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from loom.data.words import noise_probabilities
from loom.lazy import tf

TEST_NOISE = 1000
"""Words that the pairs of validation and test are told from, always the same ones."""


class SkipGram(keras.Model):
    """Learns vectors of words by telling the words around each one from words drawn at random.

    With v the vectors of `words` and u those of `contexts`, a pair of a word w and a word c near it costs

        -log sigmoid(v_w · u_c) - k · E_{n ~ P} log sigmoid(-v_w · u_n)

    (Mikolov et al. 2013, Distributed representations of words and phrases and their compositionality, equation 4). How
    far "near" reaches is drawn for each word anew, from 1 to `window`. The expectation is the mean over some words that
    are drawn from the noise distribution P for the whole batch: one matrix product then compares all words of the
    batch with them, where k words for each pair would have to be gathered, and their gradients scattered, one by one.

    Validation and test weigh pairs by how often training would take them, and take the same noise for all batches.

    As a model it is the functional model that it is made from, which is what is called, and what is saved.

    Args:
        reader: Model of one input, integers `(batch, time)`, zeros where there is no word.
        words: The layer in it that holds v.
        contexts: An embedding for u, of the same size.
        frequencies: How often each word is there, (input_dim,); noise has P ∝ frequency ** 0.75.
        window: Farthest that two words of a pair may be apart.
        negatives: k.
        noise: Number of words that are drawn for a batch.
        seed: Of all that is drawn.
    """

    def __init__(
        self,
        reader: keras.Model,
        words: keras.layers.Embedding,
        contexts: keras.layers.Embedding,
        frequencies: np.ndarray,
        window: int,
        negatives: int,
        noise: int,
        seed: int = 0,
    ) -> None:
        super().__init__(reader.input, reader.output, name="skip_gram")
        (self._input_name,) = reader.input
        self.words = words
        self.contexts = contexts
        self.contexts.build()  # no call of the model does it
        self.window = window
        self.negatives = negatives
        self.noise = noise
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        # The mean of a batch counts pairs, which not all entries of these losses are.
        self.entropy = keras.losses.BinaryCrossentropy(from_logits=True, reduction="none")
        self.seen = keras.metrics.Mean("loss")
        probabilities = noise_probabilities(frequencies)
        self._cumulative = np.cumsum(probabilities).astype(np.float32)
        self._last = int(np.flatnonzero(probabilities)[-1])

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The loss of a pair."""
        return [self.seen]

    def train_step(self, data: Any) -> dict[str, Any]:
        """One update of both tables."""
        words = data[0][self._input_name]
        shape = ops.shape(words)
        reach = keras.random.randint((*shape, 1), 1, self.window + 1, seed=self.seed_generator)
        drawn = keras.random.uniform((self.noise,), seed=self.seed_generator)
        near = ops.cast(_distances(shape[1]) <= reach, "float32")
        with tf.GradientTape() as tape:
            loss, pairs = self._loss(words, near, drawn)
            scaled = self.optimizer.scale_loss(loss)
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(scaled, weights), weights)
        return self._so_far(loss, pairs)

    def test_step(self, data: Any) -> dict[str, Any]:
        """The loss of a pair, with nothing left to chance."""
        words = data[0][self._input_name]
        distances = ops.cast(_distances(ops.shape(words)[1]), "float32")
        near = ops.maximum(0.0, 1 - (distances - 1) / self.window)
        drawn = keras.random.uniform((TEST_NOISE,), seed=self.seed)
        return self._so_far(*self._loss(words, ops.expand_dims(near, 0), drawn))

    def _loss(self, words: Any, near: Any, drawn: Any) -> tuple[Any, Any]:
        """Mean loss of the pairs, and their number.

        Args:
            words: Integers (batch, time).
            near: How much each place counts as a neighbour of each other one, (batch or 1, time, time).
            drawn: Numbers from 0 to 1 that decide the noise, (noise,).
        """
        are_words = ops.cast(words != 0, "float32")
        others = 1 - ops.eye(ops.shape(words)[1])
        pairs = near * others * are_words[:, :, None] * are_words[:, None, :]
        vectors, contexts = self.words(words), self.contexts(words)
        scores = ops.matmul(vectors, ops.transpose(contexts, (0, 2, 1)))
        noise = ops.searchsorted(self._cumulative, drawn, side="right")
        noise_scores = ops.matmul(vectors, ops.transpose(self.contexts(ops.minimum(noise, self._last))))
        scores = ops.expand_dims(scores, -1)
        of_pairs = ops.sum(pairs * self.entropy(ops.ones_like(scores), scores))
        of_noise = ops.sum(ops.sum(pairs, axis=2) * self.entropy(ops.zeros_like(noise_scores), noise_scores))
        count = ops.sum(pairs)
        return (of_pairs + self.negatives * of_noise) / ops.maximum(count, 1), count

    def _so_far(self, loss: Any, pairs: Any) -> dict[str, Any]:
        self.seen.update_state(loss, sample_weight=pairs)
        return {"loss": self.seen.result()}


def _distances(steps: Any) -> Any:
    """How far apart places are, (time, time)."""
    places = ops.arange(steps)
    return ops.abs(places[:, None] - places[None, :])
