"""Normalization of activations: each layer written from its definition, with masks and in any precision.

The layers compute on rows, `(steps of all examples, features)`: XLA sums over one axis faster than over several.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from layers.masking import precise_dtype, valid_only

Tensor = Any
Shape = tuple[int | None, ...]


class _Normalization(keras.layers.Layer):
    """What the layers share: masks, precision, weights and configuration. Subclasses normalize rows."""

    def __init__(self, epsilon: float, scale: bool, center: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        if not epsilon > 0:
            raise ValueError(f"epsilon must be above 0, got {epsilon!r}.")
        self.epsilon = epsilon
        self.scale = scale
        self.center = center
        self.supports_masking = True

    def build(self, inputs_shape: Shape) -> None:
        """Creates the weights for inputs of shape `(..., features)`."""
        if inputs_shape[-1] is None:
            raise ValueError(f"inputs of {self.name} must have a known number of features, got {tuple(inputs_shape)}.")
        if self.scale:
            self.gamma = self._vector("gamma", inputs_shape, "ones")
        if self.center:
            self.beta = self._vector("beta", inputs_shape, "zeros")

    def compute_output_shape(self, inputs_shape: Shape) -> Shape:
        """Returns the shape of the inputs."""
        return inputs_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "epsilon": self.epsilon, "scale": self.scale}

    def _vector(self, name: str, inputs_shape: Shape, initializer: str, trainable: bool = True) -> Any:
        # Rounded to half precision, the weights of mixed precision would lose what float32 keeps.
        return self.add_weight(
            shape=inputs_shape[-1:], initializer=initializer, name=name, trainable=trainable, autocast=False
        )

    def _rows(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        rows = ops.reshape(valid_only(inputs, mask), (-1, inputs.shape[-1]))
        return ops.cast(rows, precise_dtype(inputs))

    def _output(self, rows: Tensor, inputs: Tensor, mask: Tensor | None) -> Tensor:
        if self.center:
            rows = rows + ops.cast(self.beta, rows.dtype)
        outputs = ops.reshape(ops.cast(rows, self.compute_dtype), ops.shape(inputs))
        return valid_only(outputs, mask)

    def _gain(self, like: Tensor) -> Tensor | float:
        return ops.cast(self.gamma, like.dtype) if self.scale else 1.0


@keras.saving.register_keras_serializable(package="kerasloom")
class LayerNorm(_Normalization):
    """Normalizes the features of every example, or of every step, by themselves.

        y = (x - mean(x)) / sqrt(var(x) + epsilon) * gamma + beta, over the last axis

    Training and prediction compute the same, whatever else is in the batch. Source: Ba, Kiros and Hinton, 2016, "Layer
    normalization". Weights: gamma and beta, `(features,)` each. Computed in at least float32. A step that the mask
    leaves out puts out zero, and whatever its input holds, NaN included, reaches neither values nor gradients.

    Args:
        epsilon: Added to the variance.
        scale: Whether there is gamma.
        center: Whether there is beta.
        **kwargs: `name`, `dtype` and `trainable`, as for every Keras layer.

    Call arguments:
        inputs: `(..., features)`.
        mask: `(batch, time)` booleans, true where a step is valid.

    Output shape:
        That of `inputs`; the mask is passed on.

    Raises:
        ValueError: If epsilon is not above 0 or the number of features is unknown.

    Example:
        >>> [round(float(each), 2) for each in LayerNorm()(keras.ops.array([[1.0, 2.0, 3.0]]))[0]]
        [-1.22, 0.0, 1.22]
    """

    def __init__(self, epsilon: float = 1e-3, scale: bool = True, center: bool = True, **kwargs: Any):
        super().__init__(epsilon, scale, center, **kwargs)

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalizes."""
        rows = standardized(self._rows(inputs, mask), self.epsilon)
        return self._output(rows * self._gain(rows), inputs, mask)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "center": self.center}


@keras.saving.register_keras_serializable(package="kerasloom")
class RMSNorm(_Normalization):
    """Divides the features of every example, or of every step, by their root mean square.

        y = x / sqrt(mean(x^2) + epsilon) * gamma, over the last axis

    Source: Zhang and Sennrich, 2019, "Root mean square layer normalization". Weights: gamma `(features,)`. Computed in
    at least float32. Masks work as in `LayerNorm`.

    Args:
        epsilon: Added to the mean square.
        scale: Whether there is gamma.
        **kwargs: `name`, `dtype` and `trainable`, as for every Keras layer.

    Call arguments:
        inputs: `(..., features)`.
        mask: `(batch, time)` booleans, true where a step is valid.

    Output shape:
        That of `inputs`; the mask is passed on.

    Raises:
        ValueError: If epsilon is not above 0 or the number of features is unknown.

    Example:
        >>> [round(float(each), 2) for each in RMSNorm()(keras.ops.array([[3.0, 4.0]]))[0]]
        [0.85, 1.13]
    """

    def __init__(self, epsilon: float = 1e-6, scale: bool = True, **kwargs: Any):
        super().__init__(epsilon, scale, **kwargs)

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalizes."""
        rows = self._rows(inputs, mask)
        rows = rows * ops.rsqrt(_mean(rows * rows) + self.epsilon)
        return self._output(rows * self._gain(rows), inputs, mask)


@keras.saving.register_keras_serializable(package="kerasloom")
class BatchNorm(_Normalization):
    """Normalizes every feature over the batch, and at prediction by what training has seen of it.

        training:    y = (x - mean) / sqrt(var + epsilon) * gamma + beta, over all axes but the last
                     moving = momentum * moving + (1 - momentum) * (mean, var)
        prediction:  y = (x - moving mean) / sqrt(moving var + epsilon) * gamma + beta

    What an example becomes depends on the others in its batch, and training and prediction differ; so sequences are
    better normalized by `LayerNorm`. The same as `keras.layers.BatchNormalization`, except for masks: only valid steps
    count and the others put out zero, whatever their input holds, and a batch without a valid step leaves the moving
    statistics as they are. Source: Ioffe and Szegedy, 2015, "Batch normalization: accelerating deep network training by
    reducing internal covariate shift". Weights: gamma, beta, moving mean and moving variance, `(features,)` each.
    Computed in at least float32; with a distribution strategy, every replica takes the statistics of its own part.

    Args:
        momentum: Share of the old moving statistics that is kept in a training step.
        epsilon: Added to the variance.
        scale: Whether there is gamma.
        center: Whether there is beta.
        **kwargs: `name`, `dtype` and `trainable`, as for every Keras layer. Not trainable, it normalizes as at
            prediction.

    Call arguments:
        inputs: `(..., features)`.
        mask: `(batch, time)` booleans, true where a step is valid.
        training: Whether to normalize over the batch.

    Output shape:
        That of `inputs`; the mask is passed on.

    Raises:
        ValueError: If an argument is out of range or the number of features is unknown.

    Example:
        >>> [round(float(each), 2) for each in BatchNorm()(keras.ops.array([[1.0], [3.0]]), training=True)[:, 0]]
        [-1.0, 1.0]
    """

    def __init__(
        self, momentum: float = 0.99, epsilon: float = 1e-3, scale: bool = True, center: bool = True, **kwargs: Any
    ):
        super().__init__(epsilon, scale, center, **kwargs)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {momentum!r}.")
        self.momentum = momentum

    def build(self, inputs_shape: Shape) -> None:
        """Creates the weights for inputs of shape `(..., features)`."""
        super().build(inputs_shape)
        self.moving_mean = self._vector("moving_mean", inputs_shape, "zeros", trainable=False)
        self.moving_variance = self._vector("moving_variance", inputs_shape, "ones", trainable=False)

    def call(self, inputs: Tensor, mask: Tensor | None = None, training: bool | None = False) -> Tensor:
        """Normalizes."""
        rows = self._rows(inputs, mask)
        if training and self.trainable:
            centred, variance = self._over_batch(rows, inputs, mask)
        else:
            centred = rows - ops.cast(self.moving_mean, rows.dtype)
            variance = ops.cast(self.moving_variance, rows.dtype)
        factor = ops.rsqrt(variance + self.epsilon) * self._gain(rows)
        return self._output(centred * factor, inputs, mask)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "center": self.center, "momentum": self.momentum}

    def _over_batch(self, rows: Tensor, inputs: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns rows minus their mean, and their variance; records both statistics."""
        counted = None if mask is None else self._rows(ops.ones_like(inputs[..., :1]), mask)
        count = ops.cast(ops.shape(rows)[0], rows.dtype) if counted is None else ops.sum(counted)
        divisor = ops.maximum(count, 1)
        mean = ops.sum(rows, axis=0) / divisor
        centred = rows - mean
        squares = centred * centred if counted is None else centred * centred * counted
        variance = ops.sum(squares, axis=0) / divisor
        share = ops.cast(count > 0, rows.dtype) * (1 - self.momentum)
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            old = ops.cast(moving, value.dtype)
            moving.assign(ops.cast(old + share * (value - old), moving.dtype))
        return centred, variance


def standardized(tensor: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Returns a tensor with mean 0 and variance 1 (a little less, for epsilon) along the last axis.

    Computed in at least float32, returned in the dtype of the tensor.

    Example:
        >>> [round(float(each), 2) for each in standardized(keras.ops.array([3.0, 5.0]))]
        [-1.0, 1.0]
    """
    precise = ops.cast(tensor, precise_dtype(tensor))
    centred = precise - _mean(precise)
    return ops.cast(centred * ops.rsqrt(_mean(centred * centred) + epsilon), tensor.dtype)


def _mean(tensor: Tensor) -> Tensor:
    # Not `ops.mean`: on JAX, Keras takes the mean of float64 in float32.
    return ops.sum(tensor, axis=-1, keepdims=True) / tensor.shape[-1]
