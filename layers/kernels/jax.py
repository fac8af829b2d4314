"""The time loop on JAX: `jax.lax.scan`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

Tensors = tuple[jax.Array, ...]

# `keras.ops.tanh` on JAX computes float64 in float32.
tanh = jax.numpy.tanh


def scan(
    step: Callable[[Any, Any], tuple[Any, Any]],
    carry: Tensors,
    sequences: Sequence[jax.Array],
    output_widths: Sequence[int],
    reverse: bool = False,
) -> tuple[Tensors, Tensors]:
    """Runs `step` along the first axis and stacks what it puts out.

    The arguments and results are those of `layers.kernels.tensorflow.scan`; `output_widths` is not needed here, because
    JAX finds the shapes by tracing `step`.
    """
    del output_widths
    return jax.lax.scan(step, tuple(carry), tuple(sequences), reverse=reverse)
