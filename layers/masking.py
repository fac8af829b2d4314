"""What all layers of sequences do alike: steps that a mask leaves out, and precision for sums over many numbers."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

Tensor = Any


def valid_only(sequence: Tensor, mask: Tensor | None) -> Tensor:
    """Returns a sequence with zeros, and gradients of zero, at the steps that a mask leaves out.

    Args:
        sequence: `(batch, time, ...)`.
        mask: `(batch, time)` booleans, true where a step is valid, with as many more axes as it tells apart, or None.

    Example:
        >>> sequence = keras.ops.array([[1.0, float("nan")]])
        >>> keras.ops.convert_to_numpy(valid_only(sequence, [[True, False]])).tolist()
        [[1.0, 0.0]]
    """
    if mask is None:
        return sequence
    mask = ops.convert_to_tensor(mask, "bool")
    missing = len(sequence.shape) - len(mask.shape)
    mask = ops.expand_dims(mask, tuple(range(-missing, 0))) if missing else mask
    # A product would not do: zero times NaN is NaN.
    return ops.where(mask, sequence, ops.zeros_like(sequence))


def precise_dtype(tensor: Tensor) -> str:
    """Returns the dtype to compute statistics, angles and probabilities in: half precision is too coarse for them."""
    return "float64" if keras.backend.standardize_dtype(tensor.dtype) == "float64" else "float32"
