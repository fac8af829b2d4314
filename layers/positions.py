"""Layers that tell attention where in a sequence a step stands: sinusoidal, learned and rotary positions.

All take the same call arguments: the sequence, the position of its first step (above 0 where a sequence comes in
pieces) and its mask. A step that the mask leaves out counts as a position, puts out zero, and whatever its input holds,
NaN included, reaches neither values nor gradients.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from layers.kernels import cos, required, sin
from layers.masking import precise_dtype, valid_only

Tensor = Any
Shape = tuple[int | None, ...]


def sinusoids(positions: Tensor, features: int, longest: float = 10_000.0, dtype: str = "float32") -> Tensor:
    """Returns the sinusoidal encoding of positions.

        PE(p, 2i) = sin(p / longest^(2i / d)),  PE(p, 2i + 1) = cos(p / longest^(2i / d))

    Source: Vaswani et al., 2017, "Attention is all you need", section 3.5.

    Args:
        positions: Numbers of any shape, from 0 on.
        features: d, at least 1. With an odd d the last feature is a sine without its cosine.
        longest: The wavelengths run from 2π to 2π times this.
        dtype: What to compute in; half precision would not tell late positions apart.

    Returns:
        `(*positions.shape, features)`.

    Example:
        >>> encoding = sinusoids(keras.ops.arange(2), 6)
        >>> [round(float(each), 4) for each in encoding[1]]
        [0.8415, 0.5403, 0.0464, 0.9989, 0.0022, 1.0]
    """
    angles = _angles(positions, features, longest, dtype)
    pairs = ops.stack([sin(angles), cos(angles)], axis=-1)
    return ops.reshape(pairs, (*ops.shape(positions), 2 * angles.shape[-1]))[..., :features]


class _Positions(keras.layers.Layer):
    """What the layers share: masks and configuration. Subclasses say what a sequence becomes."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(
        self,
        sequence: Tensor,
        start: Tensor | int = 0,
        mask: Tensor | None = None,
        sequence_mask: Tensor | None = None,  # what Keras calls the mask where `start` is a tensor
    ) -> Tensor:
        """Puts the positions in, except where the mask leaves steps out."""
        mask = sequence_mask if mask is None else mask
        return valid_only(self._positioned(sequence, start), mask)

    def compute_mask(self, sequence: Any, mask: Any = None) -> Any:
        """Returns the mask of the sequence."""
        return mask

    def compute_output_shape(self, sequence_shape: Shape, start_shape: Any = None) -> Shape:
        """Returns the shape of the sequence."""
        return sequence_shape

    def _positioned(self, sequence: Tensor, start: Tensor | int) -> Tensor:
        raise NotImplementedError


class _Wave(_Positions):
    """What the layers share whose positions are angles."""

    def __init__(self, longest: float = 10_000.0, **kwargs: Any):
        super().__init__(**kwargs)
        if not longest > 1:
            raise ValueError(f"longest must be above 1, got {longest!r}.")
        self.longest = longest

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "longest": self.longest}


@keras.saving.register_keras_serializable(package="kerasloom")
class SinusoidalPositions(_Wave):
    """Adds to every step a fixed encoding of its position, see `sinusoids`.

    Any length and any number of features will do; nothing is learned. The encoding is computed in at least float32.

    Args:
        longest: The wavelengths run from 2π to 2π times this.
        **kwargs: `name`, `dtype` and `trainable`, as for every Keras layer.

    Call arguments:
        sequence: `(batch, time, features)`.
        start: Position of the first step, an integer or a scalar tensor.
        mask: `(batch, time)` booleans, true where a step is valid.

    Output shape:
        That of `sequence`; the mask is passed on.

    Raises:
        ValueError: If `longest` is not above 1.

    Example:
        >>> tuple(SinusoidalPositions()(keras.ops.zeros((2, 7, 5)), start=3).shape)
        (2, 7, 5)
    """

    def _positioned(self, sequence: Tensor, start: Tensor | int) -> Tensor:
        positions, features = _positions(sequence, start), sequence.shape[-1]
        encoding = sinusoids(positions, features, self.longest, precise_dtype(sequence))
        return sequence + ops.cast(encoding, sequence.dtype)


@keras.saving.register_keras_serializable(package="kerasloom")
class LearnedPositions(_Positions):
    """Adds to every step a learned vector of its position.

    Source: Gehring et al., 2017, "Convolutional sequence to sequence learning". Weights: `(max_length, features)`.

    Args:
        max_length: Number of positions.
        initializer: Initializer of the vectors.
        regularizer: Regularizer of the vectors.
        **kwargs: `name`, `dtype` and `trainable`, as for every Keras layer.

    Call arguments:
        sequence: `(batch, time, features)`, where `start + time` may be up to `max_length`.
        start: Position of the first step, an integer or a scalar tensor.
        mask: `(batch, time)` booleans, true where a step is valid.

    Output shape:
        That of `sequence`; the mask is passed on.

    Raises:
        ValueError: If `max_length` is below 1, or if steps stand where there are no positions. Where only a running
            graph can tell, TensorFlow stops it with an `InvalidArgumentError`; an XLA program, which cannot stop, puts
            out NaN.

    Example:
        >>> tuple(LearnedPositions(10)(keras.ops.zeros((2, 7, 5)), start=3).shape)
        (2, 7, 5)
    """

    def __init__(self, max_length: int, initializer: Any = "uniform", regularizer: Any = None, **kwargs: Any):
        super().__init__(**kwargs)
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length!r}.")
        self.max_length = max_length
        self.initializer = keras.initializers.get(initializer)
        self.regularizer = keras.regularizers.get(regularizer)

    def build(self, sequence_shape: Shape, start_shape: Any = None) -> None:
        """Creates the vectors."""
        steps = sequence_shape[1]
        if steps is not None and steps > self.max_length:
            raise ValueError(self._refusal(steps, 0))
        self.vectors = self.add_weight(
            shape=(self.max_length, sequence_shape[-1]),
            name="vectors",
            initializer=self.initializer,
            regularizer=self.regularizer,
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "max_length": self.max_length,
            "initializer": keras.initializers.serialize(self.initializer),
            "regularizer": keras.regularizers.serialize(self.regularizer),
        }

    def _positioned(self, sequence: Tensor, start: Tensor | int) -> Tensor:
        steps = ops.shape(sequence)[1]
        if isinstance(steps, int) and isinstance(start, int):
            if not 0 <= start <= self.max_length - steps:
                raise ValueError(self._refusal(steps, start))
            vectors = self.vectors[start : start + steps]
        else:
            positions = _positions(sequence, start)
            known = (positions >= 0) & (positions < self.max_length)
            vectors = ops.take(self.vectors, ops.clip(positions, 0, self.max_length - 1), axis=0)
            message = f"{self.name} has the positions 0 to {self.max_length - 1}; the sequence goes beyond."
            vectors = required(ops.all(known), message, vectors)
        return sequence + ops.cast(vectors, sequence.dtype)

    def _refusal(self, steps: int, start: int) -> str:
        places = f"{self.name} has the positions 0 to {self.max_length - 1}"
        return f"{places}, so {steps} steps cannot start at {start}; give it a larger max_length."


@keras.saving.register_keras_serializable(package="kerasloom")
class RotaryPositions(_Wave):
    """Rotates pairs of features by an angle that grows with the position, for queries and keys of attention.

        (x_i, x_{i + d/2}) -> (x_i cos a - x_{i + d/2} sin a,  x_i sin a + x_{i + d/2} cos a),  a = p / longest^(2i / d)

    The product of a rotated query and a rotated key depends on the distance of their positions p alone. Source: Su et
    al., 2021, "RoFormer: enhanced transformer with rotary position embedding", whose pairs are neighbours; these, as in
    most models since, are half the features apart. The angles are computed in at least float32.

    Args:
        longest: The angles turn once in 2π to about 2π times this many steps.
        **kwargs: `name`, `dtype` and `trainable`, as for every Keras layer.

    Call arguments:
        sequence: `(batch, time, ..., features)`, for example with heads between; the features even in number.
        start: Position of the first step, an integer or a scalar tensor.
        mask: `(batch, time)` booleans, true where a step is valid.

    Output shape:
        That of `sequence`; the mask is passed on.

    Raises:
        ValueError: If `longest` is not above 1 or the number of features is odd.

    Example:
        >>> tuple(RotaryPositions()(keras.ops.ones((2, 7, 4, 6)), start=3).shape)
        (2, 7, 4, 6)
    """

    def build(self, sequence_shape: Shape, start_shape: Any = None) -> None:
        """Checks the number of features."""
        if sequence_shape[-1] is None or sequence_shape[-1] % 2:
            raise ValueError(f"sequence of {self.name} must have an even number of features, got {sequence_shape[-1]}.")

    def _positioned(self, sequence: Tensor, start: Tensor | int) -> Tensor:
        half = sequence.shape[-1] // 2
        angles = _angles(_positions(sequence, start), 2 * half, self.longest, precise_dtype(sequence))
        angles = ops.reshape(angles, (-1, *(1,) * (len(sequence.shape) - 3), half))
        cosines, sines = ops.cast(cos(angles), sequence.dtype), ops.cast(sin(angles), sequence.dtype)
        first, second = sequence[..., :half], sequence[..., half:]
        return ops.concatenate([first * cosines - second * sines, first * sines + second * cosines], axis=-1)


def _positions(sequence: Tensor, start: Tensor | int) -> Tensor:
    return ops.arange(ops.shape(sequence)[1], dtype="int32") + ops.cast(start, "int32")


def _angles(positions: Tensor, features: int, longest: float, dtype: str) -> Tensor:
    frequencies = (longest ** (-np.arange(0, features, 2) / features)).astype(dtype)
    return ops.expand_dims(ops.cast(positions, dtype), -1) * frequencies
