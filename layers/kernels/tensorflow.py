"""The time loop on TensorFlow: one `tf.while_loop` over `tf.TensorArray`s, for plain graphs, eager code and XLA."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

Tensors = tuple[tf.Tensor, ...]

tanh = tf.tanh


def scan(
    step: Callable[[Any, Any], tuple[Any, Any]],
    carry: Tensors,
    sequences: Sequence[tf.Tensor],
    output_widths: Sequence[int],
    reverse: bool = False,
) -> tuple[Tensors, Tensors]:
    """Runs `step` along the first axis and stacks what it puts out.

    Args:
        step: `(carry, slices) -> (carry, outputs)`, where `slices` holds one time step of every sequence and every
            output is `(batch, width)` in the dtype of the carry.
        carry: Tensors handed from step to step; shapes and dtypes stay the same.
        sequences: Time-major tensors, `(time, batch, ...)`. The number of steps may be unknown until run time.
        output_widths: The width of each output.
        reverse: Whether to start at the last step. Outputs stay at the position of their inputs.

    Returns:
        The last carry, and the outputs as `(time, batch, width)`.
    """
    static_steps, static_batch = sequences[0].shape[0], sequences[0].shape[1]
    steps = tf.shape(sequences[0])[0] if static_steps is None else static_steps
    readers = [_array(steps, sequence.dtype, sequence.shape[1:]).unstack(sequence) for sequence in sequences]
    writers = [_array(steps, carry[0].dtype, (static_batch, width)) for width in output_widths]

    def body(index: tf.Tensor, carry: Tensors, writers: list[tf.TensorArray]) -> tuple[Any, ...]:
        position = steps - 1 - index if reverse else index
        new_carry, outputs = step(carry, tuple(reader.read(position) for reader in readers))
        for new, old in zip(new_carry, carry, strict=True):
            # A batch size known on one side only would change the loop's signature.
            new.set_shape(old.shape)
        return index + 1, new_carry, [writer.write(position, out) for writer, out in zip(writers, outputs, strict=True)]

    # XLA can differentiate the loop only if the number of iterations is bounded from outside.
    _, carry, writers = tf.while_loop(
        lambda index, *_: index < steps, body, (tf.constant(0), carry, writers), maximum_iterations=steps
    )
    stacked = tuple(writer.stack() for writer in writers)
    for output, width in zip(stacked, output_widths, strict=True):
        output.set_shape((static_steps, static_batch, width))
    return carry, stacked


def _array(steps: Any, dtype: tf.DType, element_shape: Any) -> tf.TensorArray:
    return tf.TensorArray(dtype, size=steps, element_shape=element_shape)
