"""Layers for texts: clean-up, shortening, dropped words, bags of words and word pairs, pooling over time, segments."""

from __future__ import annotations

from typing import Any, Literal

import keras
from keras import ops

Tensor = Any
_FIRST_FACTOR, _SECOND_FACTOR = 40503, 30011  # odd and without common factors, so that both words spread over all rows
_LARGEST_INT32 = 2**31 - 1


@keras.saving.register_keras_serializable(package="kerasloom")
def standardize_text(text: Tensor) -> Tensor:
    """Lower-case text with `!` and `?` as words of their own and all other punctuation except `'` as spaces.

    Works for every script that separates words by spaces. For `keras.layers.TextVectorization(standardize=...)`;
    TensorFlow backend only, as every operation on strings.

    Args:
        text: String tensor of any shape.

    Returns:
        String tensor of the same shape.
    """
    import tensorflow as tf

    text = tf.strings.lower(text, encoding="utf-8")
    text = tf.strings.regex_replace(text, "<br ?/?>", " ")
    text = tf.strings.regex_replace(text, "([!?])", r" \1 ")
    return tf.strings.regex_replace(text, r"[^\p{L}\p{M}\p{N}'!? ]+", " ")


@keras.saving.register_keras_serializable(package="kerasloom")
class Shorten(keras.layers.Layer):
    """Cuts padded sequences to a largest length.

    Args:
        length: Largest number of steps that is kept.
        keep: Which steps of a longer sequence: its `head`, its `tail`, or half from both `ends`.

    Call arguments:
        sequence: Integers `(batch, time)`, padded with zeros at the end.

    Output shape: `(batch, max(1, min(time, length)))`.

    Example:
        >>> Shorten(4, keep="ends")(keras.ops.array([[1, 2, 3, 4, 5, 6], [7, 8, 9, 0, 0, 0]])).numpy().tolist()
        [[1, 2, 5, 6], [7, 8, 9, 0]]
    """

    def __init__(self, length: int, keep: Literal["head", "tail", "ends"] = "head", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if length < 1:
            raise ValueError(f"length must be at least 1, not {length}")
        if keep not in ("head", "tail", "ends"):
            raise ValueError(f"keep must be 'head', 'tail' or 'ends', not {keep!r}")
        self.length = length
        self.keep = keep

    def call(self, sequence: Tensor) -> Tensor:
        """Gather the steps that are kept; a sequence without steps gets one of padding."""
        sequence = ops.pad(sequence, [[0, 0], [0, 1]])[:, : ops.maximum(ops.shape(sequence)[1], 1)]
        steps = ops.arange(ops.minimum(ops.shape(sequence)[1], self.length))
        if self.keep == "head":
            return ops.take(sequence, steps, axis=1)
        lengths = ops.sum(ops.cast(sequence != 0, "int32"), axis=1, keepdims=True)
        skipped = ops.maximum(lengths - self.length, 0)
        from_head = 0 if self.keep == "tail" else self.length - self.length // 2
        positions = steps[None, :] + ops.where(steps[None, :] >= from_head, skipped, 0)
        return ops.take_along_axis(sequence, positions, axis=1)

    def compute_output_spec(self, sequence: keras.KerasTensor) -> keras.KerasTensor:
        """Shape `(batch, min(time, length))`; unknown where time is."""
        batch, time = sequence.shape
        return keras.KerasTensor((batch, time and min(time, self.length)), sequence.dtype)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "length": self.length, "keep": self.keep}


@keras.saving.register_keras_serializable(package="kerasloom")
class WordDropout(keras.layers.Layer):
    """Drops whole words in training: each one is padding, or another word, with probability `rate`.

    A text with words left out mostly means the same, so each epoch sees other versions of it. What is left is not
    scaled: what follows has to divide by the number of words, as `BagOfWordPairs` does (Iyyer et al. 2015, Deep
    unordered composition rivals syntactic methods for text classification; Wager et al. 2013, Dropout training as
    adaptive regularization).

    Args:
        rate: Share of words that is dropped.
        replacement: Id that they get: 0, padding, or that of the unknown word, where words must stay in their places.
        seed: Integer for the same words again, None for others each time.

    Call arguments:
        words: Integers `(batch, time)`, zeros where there is no word.

    Output shape: that of `words`.
    """

    def __init__(self, rate: float, replacement: int = 0, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be at least 0 and below 1, not {rate}")
        self.rate = rate
        self.replacement = replacement
        self.seed = seed
        if rate:
            self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, words: Tensor, training: bool = False) -> Tensor:
        """Put the replacement for some words."""
        if not training or not self.rate:
            return words
        kept = keras.random.uniform(ops.shape(words), dtype="float32", seed=self.seed_generator) >= self.rate
        return ops.where(kept | (words == 0), words, ops.full_like(words, self.replacement))

    def compute_output_spec(self, words: keras.KerasTensor, training: bool = False) -> keras.KerasTensor:
        """As many words as before."""
        return keras.KerasTensor(words.shape, words.dtype)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "rate": self.rate, "replacement": self.replacement, "seed": self.seed}


@keras.saving.register_keras_serializable(package="kerasloom")
class BagOfWordPairs(keras.layers.Layer):
    """The set of a text's words and pairs of neighbouring words as one vector.

    y = Σ_{w ∈ words} E[w] / √|words| + Σ_{p ∈ pairs} P[p] / √|pairs|,   pair (v, w) in row (40503·v + 30011·w) mod M

    Words and pairs are sets: each counts once, however often it occurs. Pairs share the rows of P by hashing, so that
    they need no vocabulary (Weinberger et al. 2009, Feature hashing for large scale multitask learning; Joulin et al.
    2017, Bag of tricks for efficient text classification).

    Args:
        vocabulary_size: Number of word ids; 0 is padding.
        units: Width of the vector.
        pair_buckets: Rows M of the pairs' table; 0 leaves pairs out.
        embeddings_initializer: Initializer of both tables.
        embeddings_regularizer: Regularizer of both tables.

    Call arguments:
        words: Integers `(batch, time)`, zeros where there is no word.

    Output shape: `(batch, units)`; zeros for a text without words.

    Raises:
        ValueError: A size that is not positive, or a vocabulary whose hashes would overflow.
    """

    def __init__(
        self,
        vocabulary_size: int,
        units: int,
        pair_buckets: int = 2**20,
        embeddings_initializer: Any = "uniform",
        embeddings_regularizer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if vocabulary_size < 1 or units < 1 or pair_buckets < 0:
            raise ValueError("vocabulary_size and units must be at least 1, pair_buckets at least 0")
        if pair_buckets and (min(vocabulary_size, pair_buckets) - 1) * (_FIRST_FACTOR % pair_buckets) > _LARGEST_INT32:
            raise ValueError(f"vocabulary_size {vocabulary_size} is too large for hashed pairs: at most 53,000 words")
        self.vocabulary_size = vocabulary_size
        self.units = units
        self.pair_buckets = pair_buckets
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        self.embeddings_regularizer = keras.regularizers.get(embeddings_regularizer)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the tables."""
        options = {"initializer": self.embeddings_initializer, "regularizer": self.embeddings_regularizer}
        self.words = self.add_weight(shape=(self.vocabulary_size, self.units), name="words", **options)
        if self.pair_buckets:
            self.pairs = self.add_weight(shape=(self.pair_buckets, self.units), name="pairs", **options)

    def call(self, words: Tensor) -> Tensor:
        """Look up, add up, scale."""
        # One step of padding, so that one word has a pair too: ONNX and LiteRT cannot add up nothing.
        words = ops.pad(ops.cast(words, "int32"), [[0, 0], [0, 1]])
        vector = _sum_of_set(self.words, words, words != 0)
        if self.pair_buckets:
            vector += _sum_of_set(self.pairs, self.pair_rows(words), (words[:, :-1] != 0) & (words[:, 1:] != 0))
        return vector

    def pair_rows(self, words: Tensor) -> Tensor:
        """Row of every pair of neighbours: `(batch, time)` to `(batch, time - 1)`."""
        return _pair_rows(words, self.pair_buckets)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, int]:
        """One vector for each text."""
        return (input_shape[0], self.units)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "units": self.units,
            "pair_buckets": self.pair_buckets,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
            "embeddings_regularizer": keras.regularizers.serialize(self.embeddings_regularizer),
        }


def _pair_rows(words: Tensor, size: int) -> Tensor:
    first = ops.mod(ops.mod(words[:, :-1], size) * (_FIRST_FACTOR % size), size)
    second = ops.mod(ops.mod(words[:, 1:], size) * (_SECOND_FACTOR % size), size)
    return ops.mod(first + second, size)


def _sum_of_set(table: Tensor, rows: Tensor, valid: Tensor) -> Tensor:
    """Sum of the table's rows among the valid `rows` (batch, time), each once, over the root of their number."""
    ordered = ops.sort(ops.where(valid, rows, -1), axis=1)
    first = ops.concatenate([ordered[:, :1] >= 0, ordered[:, 1:] != ordered[:, :-1]], axis=1)
    vectors = ops.take(table, ops.maximum(ordered, 0), axis=0)
    counted = ops.cast(first & (ordered >= 0), vectors.dtype)
    return ops.einsum("bt,btu->bu", counted, vectors) / ops.sqrt(ops.maximum(ops.sum(counted, 1, keepdims=True), 1))


@keras.saving.register_keras_serializable(package="kerasloom")
class PairRows(keras.layers.Layer):
    """For each word the row of its pair with the word before it, hashed as in `BagOfWordPairs`, from 1 on.

    Args:
        buckets: Number of rows.

    Call arguments:
        words: Integers `(batch, time)`, zeros where there is no word: those stay 0, so that an embedding can mask them.

    Output shape: `(batch, time)`.
    """

    def __init__(self, buckets: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if buckets < 1:
            raise ValueError(f"buckets must be at least 1, not {buckets}")
        self.buckets = buckets

    def call(self, words: Tensor) -> Tensor:
        """Hash."""
        words = ops.cast(words, "int32")
        return ops.where(words != 0, 1 + _pair_rows(ops.pad(words, [[0, 0], [1, 0]]), self.buckets), 0)

    def compute_output_spec(self, words: keras.KerasTensor) -> keras.KerasTensor:
        """As many rows as words."""
        return keras.KerasTensor(words.shape, "int32")

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "buckets": self.buckets}


@keras.saving.register_keras_serializable(package="kerasloom")
class MaskedPooling1D(keras.layers.Layer):
    """Largest value, mean, or scaled sum of each feature over the steps that are not masked.

    `keras.layers.GlobalMaxPooling1D` takes padded steps for real ones, so that a negative feature never wins;
    `keras.layers.GlobalAveragePooling1D` gives NaN where every step is masked.

    Args:
        mode: `max`, `mean`, or `root`: the sum over the root of the number of steps, as in `BagOfWordPairs`.

    Call arguments:
        sequence: `(batch, time, features)`.
        mask: Booleans `(batch, time)`, True for real steps; all steps by default.

    Output shape: `(batch, features)`; zeros where every step is masked.

    Example:
        >>> sequence = keras.ops.array([[[-1.0], [-3.0], [0.0]]])
        >>> MaskedPooling1D("max")(sequence, mask=keras.ops.array([[True, True, False]])).numpy().tolist()
        [[-1.0]]
    """

    def __init__(self, mode: Literal["max", "mean", "root"], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if mode not in ("max", "mean", "root"):
            raise ValueError(f"mode must be 'max', 'mean' or 'root', not {mode!r}")
        self.mode = mode
        self.supports_masking = True

    def call(self, sequence: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool over time."""
        valid = ops.expand_dims(ops.ones(ops.shape(sequence)[:2], "bool") if mask is None else mask, -1)
        if self.mode != "max":
            total = ops.sum(ops.where(valid, sequence, ops.zeros_like(sequence)), axis=1)
            count = ops.maximum(ops.sum(ops.cast(valid, sequence.dtype), axis=1), 1)
            return total / (ops.sqrt(count) if self.mode == "root" else count)
        lowest = ops.full_like(sequence, -3e4)  # within float16
        pooled = ops.max(ops.where(valid, sequence, lowest), axis=1)
        return ops.where(ops.any(valid, axis=1), pooled, ops.zeros_like(pooled))

    def compute_mask(self, sequence: Tensor, mask: Tensor | None = None) -> None:
        """No time, no mask."""
        return

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """One value for each feature."""
        return (input_shape[0], input_shape[2])

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "mode": self.mode}


@keras.saving.register_keras_serializable(package="kerasloom")
class Segmented(keras.layers.Layer):
    """A layer over sequences that reads each stretch of `length` steps on its own, all of them at once.

    A recurrent layer then takes `length` steps one after the other instead of `time`, and forgets at every boundary
    (Johnson and Zhang, 2016, "Supervised and semi-supervised text categorization using LSTM for region embeddings").

    Args:
        layer: A layer from `(batch, time, features)` to as many steps.
        length: Steps of a segment; the last one of a sequence may be shorter.

    Call arguments:
        sequence: `(batch, time, features)`.
        mask: Booleans `(batch, time)`, True for real steps; all steps by default.

    Output shape: that of `layer`.
    """

    def __init__(self, layer: keras.layers.Layer, length: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if length < 1:
            raise ValueError(f"length must be at least 1, not {length}")
        self.layer = layer
        self.length = length
        self.supports_masking = True

    def build(self, sequence_shape: tuple[int | None, ...]) -> None:
        """Make the layer's weights."""
        if not self.layer.built:
            self.layer.build((None, self.length, sequence_shape[-1]))

    def call(self, sequence: Tensor, mask: Tensor | None = None, training: bool | None = None) -> Tensor:
        """Cut, run, join."""
        batch, steps = ops.shape(sequence)[0], ops.shape(sequence)[1]
        mask = ops.ones((batch, steps), "bool") if mask is None else mask
        count = (steps + self.length - 1) // self.length
        missing = [[0, 0], [0, count * self.length - steps]]
        segments = ops.reshape(ops.pad(sequence, [*missing, [0, 0]]), (-1, self.length, sequence.shape[-1]))
        valid = ops.reshape(ops.pad(mask, missing), (-1, self.length))
        output = self.layer(segments, mask=valid, training=training)
        return ops.reshape(output, (batch, count * self.length, output.shape[-1]))[:, :steps]

    def compute_output_shape(self, sequence_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """As many steps as before."""
        width = self.layer.compute_output_shape((None, self.length, sequence_shape[-1]))[-1]
        return (*sequence_shape[:2], width)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer, "length": self.length}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Segmented:
        """The layer that `get_config` describes."""
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})
