"""Layers for time series: normalization of each window by itself and back, patches of steps, shifts of quantiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from layers.masking import precise_dtype

Tensor = Any
Shape = tuple[int | None, ...]


@keras.saving.register_keras_serializable(package="kerasloom")
class ReversibleInstanceNorm(keras.layers.Layer):
    """Takes level and spread of every series out of a window, and puts them back into what is forecast from it.

        forwards:  y = (x - m) / s * gamma + beta,  m = mean of x over time,  s = sqrt(var of x over time + epsilon)
        back:      x = (y - beta) / gamma * s + m

    so a network sees windows that look alike however the series has drifted since it was trained. Source: Kim et al.,
    2022, "Reversible instance normalization for accurate time-series forecasting against distribution shift". Weights:
    gamma and beta, `(series,)` each. Computed in at least float32.

    Args:
        epsilon: Added to the variance.
        affine: Whether there are gamma and beta.
        **kwargs: `name`, `dtype` and `trainable`, as for every Keras layer.

    Call arguments:
        inputs: Forwards a window, `(batch, time, series)`; back a forecast, `(batch, steps, series)`, or
            `(batch, steps, series, quantiles)`.
        statistics: What the layer returned for the window, to go back; None to go forwards.

    Output:
        Forwards the window and its statistics, m and s, each `(batch, 1, series)` in at least float32; back the
        forecast, in the same precision.

    Raises:
        ValueError: If epsilon is not above 0 or the number of series is unknown.

    Example:
        >>> layer = ReversibleInstanceNorm()
        >>> window, statistics = layer(keras.ops.array([[[1.0], [3.0]]]))
        >>> [round(float(value), 2) for value in window[0, :, 0]]
        [-1.0, 1.0]
        >>> [round(float(value), 2) for value in layer(window, statistics)[0, :, 0]]
        [1.0, 3.0]
    """

    def __init__(self, epsilon: float = 1e-5, affine: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        if not epsilon > 0:
            raise ValueError(f"epsilon must be above 0, got {epsilon!r}.")
        self.epsilon = epsilon
        self.affine = affine

    def build(self, inputs_shape: Shape, statistics_shape: Any = None) -> None:
        """Creates the weights for windows of shape `(batch, time, series)`."""
        if inputs_shape[2] is None:
            raise ValueError(f"inputs of {self.name} must have a known number of series, got {tuple(inputs_shape)}.")
        if self.affine:
            shape = (inputs_shape[2],)
            self.gamma = self.add_weight(shape=shape, initializer="ones", name="gamma", autocast=False)
            self.beta = self.add_weight(shape=shape, initializer="zeros", name="beta", autocast=False)

    def call(self, inputs: Tensor, statistics: Sequence[Tensor] | None = None) -> Any:
        """Normalizes a window, or takes a forecast back."""
        precise = ops.cast(inputs, precise_dtype(inputs))
        if statistics is not None:
            return self._back(precise, statistics)
        mean = ops.mean(precise, axis=1, keepdims=True)
        centred = precise - mean
        spread = ops.sqrt(ops.mean(centred * centred, axis=1, keepdims=True) + self.epsilon)
        normalized = centred / spread
        if self.affine:
            normalized = normalized * self.gamma + self.beta
        return ops.cast(normalized, self.compute_dtype), (mean, spread)

    def compute_output_spec(self, inputs: Any, statistics: Any = None) -> Any:
        """Returns shapes and dtypes of what `call` returns."""
        shape, dtype = (inputs.shape[0], 1, inputs.shape[2]), precise_dtype(inputs)
        if statistics is not None:
            return keras.KerasTensor(inputs.shape, dtype=dtype)
        output = keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)
        return output, (keras.KerasTensor(shape, dtype=dtype), keras.KerasTensor(shape, dtype=dtype))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "epsilon": self.epsilon, "affine": self.affine}

    def _back(self, forecast: Tensor, statistics: Sequence[Tensor]) -> Tensor:
        def fitting(tensor: Tensor) -> Tensor:
            tensor = ops.cast(tensor, forecast.dtype)
            return ops.expand_dims(tensor, -1) if len(forecast.shape) == 4 else tensor

        if self.affine:
            forecast = (forecast - fitting(self.beta)) / fitting(self.gamma)
        mean, spread = statistics
        return forecast * fitting(spread) + fitting(mean)


@keras.saving.register_keras_serializable(package="kerasloom")
class Patches(keras.layers.Layer):
    """Cuts sequences into patches of several steps, which a network reads as one.

    A patch begins every `stride` steps; the end of the sequence is padded with its last step until the last patch is
    whole, so no step is left out. Source: Nie et al., 2023, "A time series is worth 64 words: long-term forecasting
    with transformers".

    Args:
        length: Steps of a patch, at least 1.
        stride: Steps from the beginning of a patch to that of the next, at least 1 and at most `length`.
        **kwargs: `name`, `dtype` and `trainable`, as for every Keras layer.

    Call arguments:
        sequence: `(batch, time, features)`; the number of steps has to be known.

    Output shape:
        `(batch, patches, length * features)`, step after step.

    Raises:
        ValueError: If an argument is out of range or the number of steps is unknown.

    Example:
        >>> Patches(3, 2)(keras.ops.reshape(keras.ops.arange(6.0), (1, 6, 1)))[0].numpy().tolist()
        [[0.0, 1.0, 2.0], [2.0, 3.0, 4.0], [4.0, 5.0, 5.0]]
    """

    def __init__(self, length: int, stride: int, **kwargs: Any):
        super().__init__(**kwargs)
        if not 1 <= stride <= length:
            raise ValueError(f"stride must be at least 1 and at most length, got {stride!r} and {length!r}.")
        self.length = length
        self.stride = stride

    def call(self, sequence: Tensor) -> Tensor:
        """Cuts."""
        count = self._count(sequence.shape)
        padding = (count - 1) * self.stride + self.length - sequence.shape[1]
        if padding:
            sequence = ops.concatenate([sequence, ops.repeat(sequence[:, -1:], padding, axis=1)], axis=1)
        # Slices of every stride-th step: gathering would add up its gradient row by row.
        steps = [sequence[:, step : step + (count - 1) * self.stride + 1 : self.stride] for step in range(self.length)]
        return ops.concatenate(steps, axis=-1)

    def compute_output_shape(self, sequence_shape: Shape) -> Shape:
        """Returns the shape of the patches."""
        return (sequence_shape[0], self._count(sequence_shape), self.length * (sequence_shape[2] or 0))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "length": self.length, "stride": self.stride}

    def _count(self, shape: Shape) -> int:
        if shape[1] is None:
            raise ValueError(f"sequence of {self.name} must have a known number of steps, got {tuple(shape)}.")
        return 1 + max(0, -(-(shape[1] - self.length) // self.stride))


@keras.saving.register_keras_serializable(package="kerasloom")
class QuantileShift(keras.layers.Layer):
    """Puts quantiles in order, and moves them by amounts that a calibration found.

        q' = sort(sort(q) + s * shift), over the last axis; in training q' = q: each output learns its own quantile

    s is the spread of the window that a forecast was made from, or 1. The shifts are weights that no gradient trains:
    zero at first, then those of conformalized quantile regression, each tail on its own (Romano, Patterson and Candès,
    2019, "Conformalized quantile regression", theorem 2). Quantiles that are sorted do not cross, and are never further
    from the true ones (Chernozhukov, Fernández-Val and Galichon, 2010, "Quantile and probability curves without
    crossing"). Weights: shift `(steps, series, quantiles)`.

    Call arguments:
        forecast: `(batch, steps, series, quantiles)`.
        spread: `(batch, 1, series)`; 1 by default.
        training: Whether to leave the quantiles as they are.

    Output shape:
        That of the forecast.

    Example:
        >>> QuantileShift()(keras.ops.array([[[[2.0, 1.0]]]]))[0, 0, 0].numpy().tolist()
        [1.0, 2.0]
    """

    def build(self, forecast_shape: Shape, spread_shape: Any = None) -> None:
        """Creates the shifts."""
        self.shift = self.add_weight(
            shape=forecast_shape[1:], initializer="zeros", name="shift", trainable=False, autocast=False
        )

    def call(self, forecast: Tensor, spread: Tensor | None = None, training: bool | None = False) -> Tensor:
        """Sorts and shifts."""
        if training:
            return forecast
        shift = ops.cast(self.shift, forecast.dtype)
        if spread is not None:
            shift = shift * ops.cast(ops.expand_dims(spread, -1), forecast.dtype)
        return ops.sort(ops.sort(forecast, axis=-1) + shift, axis=-1)

    def compute_output_shape(self, forecast_shape: Shape, spread_shape: Any = None) -> Shape:
        """Returns the shape of the forecast."""
        return forecast_shape
