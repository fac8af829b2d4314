"""What the layers need of JAX. See `layers.kernels.tensorflow` for arguments and results."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import rnn

Tensors = tuple[jax.Array, ...]

LONG_ROW = 1024
"""Fewest steps, of queries and keys, whose attention is computed in blocks."""

# Those in `keras.ops` compute float64 in float32 on JAX.
cos, sin, tanh = jax.numpy.cos, jax.numpy.sin, jax.numpy.tanh

softmax = jax.nn.softmax


def scan(
    step: Callable[[Any, Any], tuple[Any, Any]],
    carry: Tensors,
    sequences: Sequence[jax.Array],
    output_widths: Sequence[int],
    reverse: bool = False,
    history: bool = False,
    steps: None = None,
) -> tuple[Tensors, Tensors, Tensors]:
    """Runs `step` along the first axis and stacks what it puts out.

    `output_widths` is not needed, because JAX finds the shapes by tracing `step`, nor is `steps`.
    """
    del output_widths, steps

    def recorded_step(carry: Tensors, slices: Tensors) -> tuple[Tensors, Any]:
        new_carry, outputs = step(carry, slices)
        return new_carry, (outputs, new_carry if history else ())

    start, length = tuple(carry), sequences[0].shape[0]
    sequences = tuple(each[:length] for each in sequences)
    carry, (outputs, carries) = jax.lax.scan(recorded_step, start, sequences, reverse=reverse)
    histories = (jax.numpy.concatenate([first[None], rest]) for first, rest in zip(start, carries, strict=False))
    return carry, outputs, tuple(histories)


def compiled(function: Callable[..., Any], training: bool) -> Callable[..., Any]:
    """Returns the function: on JAX all loops are compiled."""
    del training
    return function


def projects_in_loop() -> bool:
    """Returns false: one product before the loop suits accelerators best."""
    return False


def parts(count: int, training: bool, smallest: int = 1) -> list[int]:
    """Returns everything as one part."""
    del training, smallest
    return [count]


def prefers_blocks(query_steps: int, key_steps: int, training: bool) -> bool:
    """Returns whether attention is computed in blocks, for the sake of memory."""
    del training
    return query_steps * key_steps >= LONG_ROW**2


def fused_attention(query: jax.Array, key: jax.Array, value: jax.Array, causal: bool) -> jax.Array | None:
    """Returns attention by cuDNN's kernel: on a GPU, in half precision, for the widths that it knows."""
    depth, same = query.shape[-1], query.shape[-1] == value.shape[-1]
    if (
        jax.default_backend() != "gpu"
        or query.dtype not in ("float16", "bfloat16")
        or depth % 8
        or depth > 128
        or not same
    ):
        return None
    arrays = (jax.numpy.swapaxes(each, 1, 2) for each in (query, key, value))
    attended = jax.nn.dot_product_attention(*arrays, scale=1.0, is_causal=causal, implementation="cudnn")
    return jax.numpy.swapaxes(attended, 1, 2)


def uniform(seed: jax.Array, number: Any, shape: Sequence[int]) -> jax.Array:
    """Returns random numbers in [0, 1), the same ones for the same seed and number."""
    return jax.random.uniform(jax.random.fold_in(seed.astype("uint32"), number), shape)


def padded_length(steps: int, training: bool) -> None:
    """Returns nothing: on JAX all shapes are known."""


def time_chunks(steps: int, units: int, training: bool) -> list[int]:
    """Returns the whole time."""
    del units, training
    return [steps]


def pulled_back(
    function: Callable[..., tuple[Tensors, Tensors]], arguments: Sequence[Tensors], upstream: Tensors
) -> tuple[Sequence[Tensors], Tensors]:
    """Returns the gradients of a function by its arguments, and the second of its two results."""
    _, pull_back, others = jax.vjp(function, *arguments, has_aux=True)
    return pull_back(tuple(upstream)), others


def required(condition: jax.Array, message: str, tensor: jax.Array) -> jax.Array:
    """Returns a tensor, or NaN where a program finds a condition to be false; raises where it is known before."""
    if isinstance(condition, jax.core.Tracer):
        return jax.numpy.where(condition, tensor, jax.numpy.nan)
    if not condition:
        raise ValueError(message)
    return tensor


def has_cudnn(mode: str, dtype: str, training: bool) -> bool:
    """Returns whether cuDNN runs a network here: on JAX, an LSTM in float32."""
    del training
    return mode == "lstm" and dtype == "float32" and jax.default_backend() == "gpu"


def cudnn_excludes_jit() -> bool:
    """Returns false: JAX calls cuDNN from its programs."""
    return False


def cudnn(
    mode: str, sequence: jax.Array, states: Tensors, parameters: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, Tensors]:
    """Runs cuDNN's LSTM."""
    del mode
    sizes = {"input_size": sequence.shape[-1], "hidden_size": states[0].shape[-1], "num_layers": 1}
    first_states = [state[None] for state in states]
    output, *last_states = rnn.lstm(sequence, *first_states, parameters, lengths, *sizes.values(), 0.0, False)
    return output, tuple(state[0] for state in last_states)
