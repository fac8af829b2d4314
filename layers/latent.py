"""Layers for latent vectors that are random: drawn from a number, drawn from a distribution, and what that costs."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from layers.masking import precise_dtype

Tensor = Any


@keras.saving.register_keras_serializable(package="kerasloom")
class GaussianSample(keras.layers.Layer):
    """Draws from a normal distribution in such a way that gradients reach its mean and its variance.

    z = μ + exp(½ log σ²) ⊗ ε,   ε ~ N(0, I)

    in training; z = μ otherwise (Kingma and Welling 2014, Auto-encoding variational Bayes, section 2.4).

    Args:
        seed: Seed of ε; None takes one from Keras' global state.

    Call arguments:
        mean: μ `(batch, units)`.
        log_variance: log σ² `(batch, units)`.
        training: Whether to draw.

    Output shape: `(batch, units)`.

    Example:
        >>> sample = GaussianSample(seed=0)
        >>> sample(keras.ops.array([[1.0, 2.0]]), keras.ops.array([[0.0, 0.0]])).numpy().tolist()
        [[1.0, 2.0]]
    """

    def __init__(self, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, mean: Tensor, log_variance: Tensor, training: bool = False) -> Tensor:
        """Draw z, or take its mean."""
        if not training:
            return mean
        noise = keras.random.normal(ops.shape(mean), dtype=mean.dtype, seed=self.seed_generator)
        return mean + ops.exp(0.5 * log_variance) * noise

    def compute_output_shape(self, mean_shape: Any, log_variance_shape: Any) -> Any:
        """The shape of the mean."""
        return mean_shape

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "seed": self.seed}


@keras.saving.register_keras_serializable(package="kerasloom")
class GaussianDivergence(keras.layers.Layer):
    """Kullback-Leibler divergence of normal distributions from the standard one.

    KL(N(μ, σ²) ‖ N(0, I)) = ½ Σ (μ² + σ² - 1 - log σ²)

    over the units (Kingma and Welling 2014, Auto-encoding variational Bayes, appendix B). Never negative, and zero for
    μ = 0, σ² = 1 only. As an output of a model whose target is zero, the mean absolute error of which is then the mean
    divergence, it becomes a part of the loss. Computed in at least float32.

    Call arguments:
        mean: μ `(batch, units)`.
        log_variance: log σ² `(batch, units)`.

    Output shape: `(batch, 1)`, in nats.

    Example:
        >>> GaussianDivergence()(keras.ops.array([[1.0, 2.0]]), keras.ops.array([[0.0, 0.0]])).numpy().tolist()
        [[2.5]]
    """

    def call(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Sum over the units."""
        dtype = precise_dtype(mean)
        mean, log_variance = ops.cast(mean, dtype), ops.cast(log_variance, dtype)
        # σ² - 1 - log σ² loses its digits where σ² is near 1; exp(x) - 1 does not.
        terms = ops.square(mean) + ops.expm1(log_variance) - log_variance
        return 0.5 * ops.sum(terms, axis=-1, keepdims=True)

    def compute_output_spec(self, mean: Any, log_variance: Any) -> keras.KerasTensor:
        """Shape `(batch, 1)`."""
        return keras.KerasTensor((*mean.shape[:-1], 1), precise_dtype(mean))


@keras.saving.register_keras_serializable(package="kerasloom")
class SeededNormal(keras.layers.Layer):
    """Standard normal vectors that depend on nothing but a number: the same ones in every process and batch.

    TensorFlow backend only; Philox (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3).

    Args:
        units: Width of the vectors.

    Call arguments:
        seeds: Any float32 numbers `(batch, 1)`.

    Output shape: `(batch, units)`.

    Example:
        >>> vectors = SeededNormal(3)(keras.ops.array([[7.0], [8.0], [7.0]])).numpy()
        >>> bool((vectors[0] == vectors[2]).all()), bool((vectors[0] == vectors[1]).any())
        (True, False)
    """

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if units < 1:
            raise ValueError(f"units must be at least 1, not {units}")
        self.units = units

    def call(self, seeds: Tensor) -> Tensor:
        """One vector for each number."""
        import tensorflow as tf

        def draw(bits: Tensor) -> Tensor:
            return tf.random.stateless_normal((self.units,), tf.stack([bits, 0]), alg="philox")

        # 0.0 and -0.0 are one number.
        bits = tf.bitcast(tf.cast(seeds, tf.float32)[:, 0] + 0.0, tf.int32)
        return tf.cast(tf.map_fn(draw, bits, fn_output_signature=tf.float32), self.compute_dtype)

    def compute_output_spec(self, seeds: Any) -> keras.KerasTensor:
        """Shape `(batch, units)`."""
        return keras.KerasTensor((seeds.shape[0], self.units), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "units": self.units}
