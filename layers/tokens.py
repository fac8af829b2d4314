"""Layers of networks that write tokens: their vectors and logits, and what a decoder reads."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

Tensor = Any
Shape = tuple[int | None, ...]


@keras.saving.register_keras_serializable(package="kerasloom")
class TokenEmbedding(keras.layers.ReversibleEmbedding):
    """Vectors of tokens and, the other way round, logits of all tokens for a vector.

        x = sqrt(U) E[token],   reversed:  logits = h E^T  or, with weights of their own,  h W

    Source: Press and Wolf, 2017, "Using the output embedding to improve language models"; the factor is that of Vaswani
    et al., 2017, "Attention is all you need", section 3.4. With E drawn from a normal distribution of variance 1 / U,
    the default, vectors and logits both begin with a variance near 1. Token 0 is padding, which is masked. In reverse
    the mask is passed on.

    Args:
        input_dim: Number of tokens.
        output_dim: Width U of a vector.
        tie_weights: Whether the logits use the vectors' weights.
        **kwargs: Other arguments of `keras.layers.ReversibleEmbedding`.

    Call arguments:
        inputs: Tokens, integers of any shape, or with `reverse` vectors `(..., U)`.
        reverse: Whether to return logits.

    Output shape:
        One axis of U numbers more than the tokens; with `reverse` `(..., input_dim)`.

    Example:
        >>> embedding = TokenEmbedding(10, 4)
        >>> vectors = embedding(keras.ops.array([[3, 1, 0]]))
        >>> tuple(vectors.shape), tuple(embedding(vectors, reverse=True).shape)
        ((1, 3, 4), (1, 3, 10))
    """

    def __init__(self, input_dim: int, output_dim: int, tie_weights: bool = True, **kwargs: Any):
        options = {
            "embeddings_initializer": keras.initializers.RandomNormal(stddev=output_dim**-0.5),
            "mask_zero": True,
        }
        super().__init__(input_dim, output_dim, tie_weights, **options | kwargs)
        self.supports_masking = True

    def call(self, inputs: Tensor, reverse: bool = False) -> Tensor:
        """Looks vectors up, or compares vectors with those of all tokens."""
        found = super().call(inputs, reverse=reverse)
        return found if reverse else found * self.output_dim**0.5

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Returns which tokens are no padding, or the mask of the vectors that logits are for."""
        are_tokens = "int" in keras.backend.standardize_dtype(inputs.dtype)
        return ops.not_equal(inputs, 0) if are_tokens else mask


@keras.saving.register_keras_serializable(package="kerasloom")
class RepeatedContext(keras.layers.Layer):
    """Gives every step of a sequence the same vector to read: an encoder's context vector, without attention.

    Source: Cho et al., 2014, "Learning phrase representations using RNN encoder-decoder for statistical machine
    translation". It takes the place of an attention layer.

    Call arguments:
        query: `(batch, query time, query features)`; only its steps and its mask count.
        vector: `(batch, features)`.

    Output shape:
        `(batch, query time, features)`, with the mask of the query.

    Example:
        >>> tuple(RepeatedContext()(keras.ops.ones((2, 3, 4)), keras.ops.ones((2, 5))).shape)
        (2, 3, 5)
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, query: Tensor, vector: Tensor, query_mask: Tensor | None = None) -> Tensor:
        """Repeats the vector."""
        return ops.repeat(ops.expand_dims(vector, 1), ops.shape(query)[1], axis=1)

    def compute_mask(self, query: Any, query_mask: Tensor | None = None) -> Any:
        """Returns the mask of the query."""
        return query_mask

    def compute_output_shape(self, query_shape: Shape, vector_shape: Shape) -> Shape:
        """Returns the shape of the output."""
        return (*query_shape[:2], vector_shape[-1])


@keras.saving.register_keras_serializable(package="kerasloom")
class ScheduledSampling(keras.layers.Layer):
    """In training, replaces some of the tokens that a decoder reads by what the model itself said there.

    Source: Bengio et al., 2015, "Scheduled sampling for sequence prediction with recurrent neural networks", in two
    passes over the whole sequence (Mihaylova and Martins, 2019, "Scheduled sampling for transformers"): the first pass
    reads the true tokens, and this layer puts its likeliest answers in place of some of them for the second. No
    gradient goes through the first pass. The share of tokens that are replaced rises from nothing to `rate` along a
    line.

    Args:
        rate: Largest share of tokens that are replaced, at least 0 and at most 1.
        steps: Training steps after which it is reached, at least 1.
        seed: Seed of which tokens are replaced.
        **kwargs: `name`, `dtype` and `trainable`, as for every Keras layer.

    Call arguments:
        tokens: `(batch, time)`: the true token before each step, zero where there is none.
        logits: `(batch, time, vocabulary)`: what the first pass says of each step's token.
        training: Whether to replace any.

    Output shape:
        That of `tokens`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tokens = ScheduledSampling(0.5, steps=100)(keras.ops.array([[2, 7, 0]]), keras.ops.ones((1, 3, 9)))
        >>> keras.ops.convert_to_numpy(tokens).tolist()  # not in training
        [[2, 7, 0]]
    """

    def __init__(self, rate: float, steps: int = 1, seed: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        if not 0 <= rate <= 1 or steps < 1:
            raise ValueError(f"rate must be between 0 and 1 and steps at least 1, got {rate} and {steps}.")
        self.rate = rate
        self.steps = steps
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, tokens_shape: Shape, logits_shape: Shape) -> None:
        """Creates the count of steps."""
        self.taken = self.add_weight(
            shape=(),
            initializer="zeros",
            dtype="float32",
            trainable=False,
            name="taken",
            aggregation="only_first_replica",
        )

    def call(self, tokens: Tensor, logits: Tensor, training: bool | None = False) -> Tensor:
        """Replaces tokens."""
        if not training:
            return tokens
        rate = self.rate * ops.minimum(self.taken / self.steps, 1.0)
        self.taken.assign_add(1.0)
        # Token 0 is padding: it is never an answer.
        said = ops.cast(ops.argmax(ops.stop_gradient(logits)[..., 1:], axis=-1) + 1, tokens.dtype)
        said = ops.concatenate([tokens[:, :1], said[:, :-1]], axis=1)
        chosen = keras.random.uniform(ops.shape(tokens), seed=self.seed_generator) < rate
        return ops.where(ops.logical_and(chosen, tokens != 0), said, tokens)

    def compute_output_shape(self, tokens_shape: Shape, logits_shape: Shape) -> Shape:
        """Returns the shape of the tokens."""
        return tokens_shape

    def compute_output_spec(self, tokens: Any, logits: Any, training: Any = None) -> Any:
        """Returns shape and type of the tokens."""
        return keras.KerasTensor(tokens.shape, dtype=tokens.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "rate": self.rate, "steps": self.steps, "seed": self.seed}
