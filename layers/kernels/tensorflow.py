"""What the layers need of TensorFlow: time loops, programs and how work is shared out among them, derivatives.

XLA turns a time loop into a few fused kernels per step, several times faster on a CPU than the same loop run operation
by operation. So inside a plain graph the loops of a training step are XLA programs of their own, whether or not the
model is compiled. They are compiled once per shape. One XLA program on a CPU runs its loop on one core; for this reason
the batch is cut into one part per core, and their loops, independent of each other, run at the same time.
"""

import os
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

Tensors = tuple[tf.Tensor, ...]

LONG = 2**15
"""Fewest steps times units worth several loops: below, starting a program costs more than its memory is worth."""

SHORT = 64
"""Fewest steps, of queries and keys, whose attention is worth programs in blocks of their own."""

LONG_ROW = 1024
"""Fewest steps, of queries and keys, whose attention is computed in blocks for the sake of memory."""

cos, sin, tanh = tf.cos, tf.sin, tf.tanh

# That of `keras.ops` warns of a single key.
softmax = tf.nn.softmax


def scan(
    step: Callable[[Any, Any], tuple[Any, Any]],
    carry: Tensors,
    sequences: Sequence[tf.Tensor],
    output_widths: Sequence[int],
    reverse: bool = False,
    history: bool = False,
    steps: tf.Tensor | None = None,
) -> tuple[Tensors, Tensors, Tensors]:
    """Runs `step` along the first axis and stacks what it puts out.

    Args:
        step: `(carry, slices) -> (carry, outputs)`, where `slices` holds one time step of every sequence and every
            output is `(batch, width)` in the dtype of the carry.
        carry: Tensors handed from step to step; shapes and dtypes stay the same.
        sequences: Time-major tensors, `(time, batch, ...)`; entries beyond the length of the first are not read. The
            number of steps may be unknown until run time.
        output_widths: The width of each output.
        reverse: Whether to start at the last step. Outputs stay at the position of their inputs.
        history: Whether to return the carry before the first step and after every step.
        steps: The number of steps to run, if not all; what would come later is zero.

    Returns:
        The last carry, the outputs as `(time, batch, width)`, and the history of each carry as
        `(time + 1, batch, width)`, or nothing.
    """
    static_steps, static_batch = sequences[0].shape[0], sequences[0].shape[1]
    size = tf.shape(sequences[0])[0] if static_steps is None else static_steps
    steps = size if steps is None else steps
    if static_batch is None:
        # The last parts of a small batch are empty.
        steps = tf.where(tf.equal(tf.shape(sequences[0])[1], 0), 0, steps)
    readers = [_array(tf.shape(each)[0], each.dtype, each.shape[1:]).unstack(each) for each in sequences]
    writers = [_array(size, carry[0].dtype, (static_batch, width)) for width in output_widths]
    histories = [_array(size + 1, each.dtype, each.shape).write(0, each) for each in carry] if history else []

    def body(index: tf.Tensor, carry: Tensors, writers: Any, histories: Any) -> tuple[Any, ...]:
        position = steps - 1 - index if reverse else index
        new_carry, outputs = step(carry, tuple(reader.read(position) for reader in readers))
        for new, old in zip(new_carry, carry, strict=True):
            # A batch size known on one side only would change the loop's signature.
            new.set_shape(old.shape)
        writers = [writer.write(position, out) for writer, out in zip(writers, outputs, strict=True)]
        histories = [each.write(position + 1, new) for each, new in zip(histories, new_carry, strict=False)]
        return index + 1, new_carry, writers, histories

    # XLA can differentiate the loop only if the number of iterations is bounded from outside.
    _, carry, writers, histories = tf.while_loop(
        lambda index, *_: index < steps, body, (tf.constant(0), carry, writers, histories), maximum_iterations=size
    )
    stacked = tuple(writer.stack() for writer in writers)
    for output, width in zip(stacked, output_widths, strict=True):
        output.set_shape((static_steps, static_batch, width))
    return carry, stacked, tuple(each.stack() for each in histories)


def compiled(function: Callable[..., Any], training: bool) -> Callable[..., Any]:
    """Returns the function as an XLA program, where it would otherwise run operation by operation in a graph.

    Converters to other formats need a graph of plain operations. So without `training` a program is made only within
    `fit`, `evaluate` and `predict` of a model, where the graph is certain to be run and not to be exported.
    """
    return tf.function(function, jit_compile=True, autograph=False) if _is_compiled(training) else function


def projects_in_loop() -> bool:
    """Returns whether to multiply a step's input by the input kernel in that step, not all of them before the loop.

    One product for all steps is the faster one, but its result is large and new memory. In an XLA program on a CPU,
    writing and reading that costs more than the better product gains, except for single examples of many features.
    """
    return not tf.executing_eagerly() and _is_in_program() and not _has_gpu()


def parts(count: Any, training: bool, smallest: int = 1) -> list[Any]:
    """Returns the sizes of the parts of independent work that run at the same time, one per core; some may be zero.

    Args:
        count: How many pieces of work there are, for example examples or heads.
        training: Whether this is a training step.
        smallest: Fewest pieces worth a part of their own.
    """
    if not _is_compiled(training) or _has_gpu():
        return [count]
    cores = tf.config.threading.get_inter_op_parallelism_threads() or _cores()
    if isinstance(count, int):
        count, cores = max(1, count), min(cores, max(1, count // smallest))
        size = -(-count // cores)
        return [min(size, count - start) for start in range(0, count, size)]
    size = tf.maximum(smallest, -(-count // cores))
    return [tf.clip_by_value(count - part * size, 0, size) for part in range(cores)]


def prefers_blocks(query_steps: Any, key_steps: Any, training: bool) -> Any:
    """Returns whether attention is computed in blocks: a bool, or a boolean tensor where a length is unknown.

    Programs of their own, one per core, keep the scores of a head in the core's cache, which pays early. Within one
    program, and on a GPU, it is for the memory. A graph that may be exported has blocks only where they must be.
    """
    known = isinstance(query_steps, int) and isinstance(key_steps, int)
    if _is_compiled(training) and not _has_gpu():
        smallest = SHORT
    elif known or tf.executing_eagerly() or _is_in_program() or training:
        smallest = LONG_ROW
    else:
        return False
    if not known:
        query_steps, key_steps = (tf.cast(steps, "int64") for steps in (query_steps, key_steps))
    return query_steps * key_steps >= smallest**2


def fused_attention(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, causal: bool) -> tf.Tensor | None:
    """Returns attention by the backend's own kernel, or None where there is none: TensorFlow has none.

    Args:
        query: `(batch, heads, query time, depth)`, already scaled.
        key: `(batch, key heads, key time, depth)`.
        value: `(batch, key heads, key time, value depth)`.
        causal: Whether a query reads no key after its own step.
    """
    del query, key, value, causal
    return None


def uniform(seed: tf.Tensor, number: Any, shape: Sequence[Any]) -> tf.Tensor:
    """Returns random numbers in [0, 1), the same ones for the same seed and number.

    Args:
        seed: Two integers, as a `keras.random.SeedGenerator` draws them.
        number: An integer.
        shape: The shape.
    """
    seed = tf.cast(seed, "int64")
    return tf.random.stateless_uniform(shape, [seed[0], seed[1] + tf.cast(number, "int64") * 2**32], alg="philox")


def padded_length(steps: Any, training: bool) -> Any:
    """Returns a length to pad sequences to, so that few shapes are compiled, or None where that makes no difference.

    The lengths are eight to the octave, and the multiples of eight up to 64.
    """
    if isinstance(steps, int) or not _is_compiled(training):
        return None
    octave = tf.cast(
        tf.math.ceil(tf.math.log(tf.cast(steps, "float64")) / tf.math.log(tf.constant(2.0, "float64"))), "int32"
    )
    grain = tf.maximum(8, tf.bitwise.left_shift(1, tf.maximum(octave, 3) - 3))
    return -(-steps // grain) * grain


def time_chunks(steps: Any, units: int, training: bool) -> list[Any]:
    """Returns the lengths of the chunks of time whose loops follow each other.

    The way back needs as much memory as the way there has left behind; with chunks, only as much as one of them has,
    and what a chunk has left behind is free when it is done. All have one length, and so are runs of one program.
    """
    if not isinstance(steps, int) or steps * units < LONG or not _is_compiled(training) or _has_gpu():
        return [steps]
    count = next((count for count in (8, 5, 3, 2) if steps % count == 0), 1)
    return [steps // count] * count


def pulled_back(
    function: Callable[..., tuple[Tensors, Tensors]], arguments: Sequence[Tensors], upstream: Tensors
) -> tuple[Sequence[Tensors], Tensors]:
    """Returns the gradients of a function by its arguments, and the second of its two results.

    Args:
        function: Takes tuples of tensors; returns the results to differentiate, and others.
        arguments: The tuples of tensors.
        upstream: The gradients of the results.
    """
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        results, others = function(*arguments)
    gradients = tape.gradient(results, arguments, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return gradients, others


def required(condition: tf.Tensor, message: str, tensor: tf.Tensor) -> tf.Tensor:
    """Returns a tensor, provided that a condition holds.

    Args:
        condition: A boolean scalar.
        message: What is wrong if it is false.
        tensor: What to return.

    Returns:
        The tensor; in an XLA program, which cannot stop, full of NaN if the condition is false.

    Raises:
        ValueError: If the condition is false, outside graphs.
        tf.errors.InvalidArgumentError: If the condition is false when a graph runs.
    """
    if tf.executing_eagerly():
        if not condition:
            raise ValueError(message)
        return tensor
    if _is_in_program():
        return tf.where(condition, tensor, tf.constant(float("nan"), tensor.dtype))
    with tf.control_dependencies([tf.debugging.Assert(condition, [message])]):
        return tf.identity(tensor)


def has_cudnn(mode: str, dtype: str, training: bool) -> bool:
    """Returns whether cuDNN runs a network here: on an NVIDIA GPU, outside XLA programs and graphs to be exported."""
    del mode
    if not cudnn_excludes_jit() or dtype not in ("float16", "float32", "float64"):
        return False
    if tf.executing_eagerly():
        return True
    return not _is_in_program() and (training or _is_in_loop_of_keras())


def cudnn_excludes_jit() -> bool:
    """Returns whether there is cuDNN, as there is no way to it from XLA programs."""
    return bool(tf.sysconfig.get_build_info()["is_cuda_build"]) and _has_gpu()


def cudnn(
    mode: str, sequence: tf.Tensor, states: Tensors, parameters: tf.Tensor, lengths: tf.Tensor
) -> tuple[tf.Tensor, Tensors]:
    """Runs one of cuDNN's networks.

    Args:
        mode: `"lstm"`, `"gru"`, `"rnn_tanh"` or `"rnn_relu"`.
        sequence: `(batch, time, features)`.
        states: The states before the first step, `(batch, units)` each, the hidden state first.
        parameters: The weights in cuDNN's order, in one row.
        lengths: `(batch,)`, the number of steps to run; at least one.

    Returns:
        The hidden states of all steps, `(batch, time, units)`, zero beyond the length, and the last states.
    """
    layers_of_states = [tf.expand_dims(state, 1) for state in states]
    output, hidden_state, cell_state, _, _ = tf.raw_ops.CudnnRNNV3(
        input=sequence,
        input_h=layers_of_states[0],
        input_c=layers_of_states[-1] if mode == "lstm" else 0,
        params=parameters,
        sequence_lengths=lengths,
        rnn_mode=mode,
        is_training=True,  # otherwise there is no gradient
        time_major=False,
    )
    return output, tuple(tf.squeeze(state, 1) for state in (hidden_state, cell_state)[: len(states)])


def _is_compiled(training: bool) -> bool:
    # Within a program others would be compiled in vain, and strategies copy graphs to places.
    if tf.executing_eagerly() or tf.distribute.has_strategy():
        return False
    return not _is_in_program() and (training or _is_in_loop_of_keras())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _has_gpu() -> bool:
    return bool(tf.config.get_visible_devices("GPU"))


def _is_in_program() -> bool:
    return bool(control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


def _is_in_loop_of_keras() -> bool:
    frame: FrameType | None = sys._getframe()
    while frame:
        module = frame.f_globals.get("__name__", "")
        if module == "keras.src.backend.tensorflow.trainer":
            return True
        if module.startswith("keras.src.callbacks"):  # what a callback traces may be exported
            return False
        frame = frame.f_back
    return False


def _array(steps: Any, dtype: tf.DType, element_shape: Any) -> tf.TensorArray:
    return tf.TensorArray(dtype, size=steps, element_shape=element_shape)
