"""Scaled dot-product attention: at once for short sequences, in blocks for long ones.

    o_i = sum over j of p_ij v_j,   p_i = softmax over j of (q_i . k_j),   over the keys j that query i may read

A query that may read nothing gets zeros. Softmax and sums are computed in at least float32. Source: Vaswani et al.,
2017, "Attention is all you need"; queries that share keys and values: Ainslie et al., 2023, "GQA: training generalized
multi-query transformer models from multi-head checkpoints".
"""

from typing import Any

from keras import ops

from layers.blockwise import Blockwise, Constraints, both
from layers.derivatives import Tensor, Tensors, with_gradient
from layers.kernels import prefers_blocks, softmax, uniform
from layers.masking import precise_dtype


def attend(query: Tensor, key: Tensor, value: Tensor, constraints: Constraints, training: bool) -> Tensor:
    """Returns what the queries read, `(batch, heads, query time, value depth)`.

    Args:
        query: `(batch, heads, query time, depth)`, already scaled.
        key: `(batch, key heads, key time, depth)`. Neighbouring heads of queries share one of the keys.
        value: `(batch, key heads, key time, value depth)`.
        constraints: Which queries read which keys, and what is dropped.
        training: Whether gradients will be asked for.
    """
    tensors = (query, key, value)

    def at_once() -> Tensor:
        return _at_once(tensors, constraints, training)

    def in_blocks() -> Tensor:
        attention = Blockwise(query.shape[1], key.shape[1], constraints, training)
        return with_gradient(_plain(constraints), attention.forward, attention.backward)(tensors)[0]

    blocks = prefers_blocks(ops.shape(query)[2], ops.shape(key)[2], training)
    if isinstance(blocks, bool):
        return in_blocks() if blocks else at_once()
    return ops.cond(blocks, in_blocks, at_once)


def attend_with_weights(query: Tensor, key: Tensor, value: Tensor, constraints: Constraints) -> tuple[Tensor, Tensor]:
    """Returns what the queries read, and the weights p, `(batch, heads, query time, key time)`.

    The arguments are those of `attend`; the gradient is the backend's.
    """
    kept = weights = _weights(query, key, constraints)
    if constraints.dropout:
        kept = _dropped(weights, _kept(weights, constraints), constraints.dropout)
    return _read(kept, value), weights


def masked_softmax(scores: Tensor, allowed: Tensor | None) -> Tensor:
    """Returns weights that sum to 1 over the last axis where the mask allows; zeros where it allows nothing."""
    precise = ops.cast(scores, precise_dtype(scores))
    if allowed is not None:
        precise = ops.where(allowed, precise, ops.cast(-1e30, precise.dtype))
    weights = softmax(precise)
    if allowed is not None:
        weights = ops.where(allowed, weights, ops.zeros_like(weights))
    return ops.cast(weights, scores.dtype)


def merged(constraints: Constraints, query_steps: Any, key_steps: Any) -> Tensor | None:
    """Returns which queries read which keys, `(batch or 1, heads or 1, query time, key time)`, or None for all."""
    valid, causal = constraints.valid, None
    if constraints.causal:
        rows, columns = (ops.arange(steps, dtype="int32") for steps in (query_steps, key_steps))
        causal = (rows[:, None] >= columns)[None, None]
    return both(None if valid is None else valid[:, None, None, :], constraints.allowed, causal)


def _at_once(tensors: Tensors, constraints: Constraints, training: bool) -> Tensor:
    if not training:
        return _plain(constraints)(tensors)[0]

    def forward(tensors: Tensors) -> tuple[Tensors, Any]:
        query, key, value = tensors
        weights = _weights(query, key, constraints)
        kept = _kept(weights, constraints) if constraints.dropout else ()
        output = _read(_dropped(weights, kept, constraints.dropout), value)
        return (output,), (output, weights, kept)

    def backward(tensors: Tensors, saved: Any, upstream: Tensors) -> Tensors:
        (query, key, value), (output, weights, kept), (output_gradient,) = tensors, saved, upstream
        precise, rate = precise_dtype(weights), constraints.dropout
        share = ops.sum(ops.cast(output, precise) * ops.cast(output_gradient, precise), -1, keepdims=True)
        queries, keys, values, gradients = (
            _folded(each, of) for each, of in ((query, key), (key, key), (value, value), (output_gradient, value))
        )
        by_kept = _unfolded(ops.matmul(gradients, _swapped(values)), query)
        by_weights = ops.cast(_dropped(by_kept, kept, rate), precise)
        by_scores = ops.cast(ops.cast(weights, precise) * (by_weights - share), query.dtype)
        by_scores = _folded(by_scores, key)
        by_value = ops.matmul(_swapped(_folded(_dropped(weights, kept, rate), value)), gradients)
        by_key = ops.matmul(_swapped(by_scores), queries)
        return _unfolded(ops.matmul(by_scores, keys), query), _unfolded(by_key, key), _unfolded(by_value, value)

    return with_gradient(_plain(constraints), forward, backward)(tensors)[0]


def _plain(constraints: Constraints) -> Any:
    return lambda tensors: attend_with_weights(tensors[0], tensors[1], tensors[2], constraints)[:1]


def _weights(query: Tensor, key: Tensor, constraints: Constraints) -> Tensor:
    scores = _unfolded(ops.matmul(_folded(query, key), _swapped(_folded(key, key))), query)
    return masked_softmax(scores, merged(constraints, ops.shape(query)[2], ops.shape(key)[2]))


def _read(weights: Tensor, value: Tensor) -> Tensor:
    return _unfolded(ops.matmul(_folded(weights, value), _folded(value, value)), weights)


def _kept(weights: Tensor, constraints: Constraints) -> Tensor:
    return uniform(constraints.seed, 0, ops.shape(weights)) >= constraints.dropout


def _dropped(weights: Tensor, kept: Any, rate: float) -> Tensor:
    return ops.where(kept, weights / (1 - rate), ops.zeros_like(weights)) if rate else weights


def _folded(tensor: Tensor, key: Tensor) -> Tensor:
    """Returns a tensor of heads as one batch of matrices, query heads that share a key below each other."""
    heads, steps, width = tensor.shape[1], ops.shape(tensor)[2], ops.shape(tensor)[3]
    # Not four-dimensional: XLA's products of those are slower on a CPU.
    return ops.reshape(tensor, (-1, steps * (heads // key.shape[1]), width))


def _unfolded(tensor: Tensor, query: Tensor) -> Tensor:
    """Returns a batch of matrices as a tensor of heads, as many as the query has."""
    return ops.reshape(tensor, (-1, query.shape[1], ops.shape(query)[2], ops.shape(tensor)[2]))


def _swapped(tensor: Tensor) -> Tensor:
    return ops.swapaxes(tensor, 1, 2)
