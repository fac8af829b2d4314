"""Scaled dot-product attention: at once for short sequences, in blocks for long ones.

    o_i = sum over j of p_ij v_j,   p_i = softmax over j of (q_i . k_j),   over the keys j that query i may read

A query that may read nothing gets zeros. Softmax and sums are computed in at least float32. Source: Vaswani et al.,
2017, "Attention is all you need"; queries that share keys and values: Ainslie et al., 2023, "GQA: training generalized
multi-query transformer models from multi-head checkpoints".
"""

from typing import Any

from keras import ops

from layers.blockwise import NOTHING, Blockwise, Constraints, at_least, both
from layers.derivatives import Tensor, Tensors, with_gradient
from layers.kernels import fused_attention, padded_length, prefers_blocks, softmax, uniform
from layers.masking import precise_dtype


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    constraints: Constraints,
    training: bool,
    max_length: int | None = None,
) -> Tensor:
    """Returns what the queries read, `(batch, heads, query time, value depth)`.

    Args:
        query: `(batch, heads, query time, depth)`, already scaled.
        key: `(batch, key heads, key time, depth)`. Neighbouring heads of queries share one of the keys.
        value: `(batch, key heads, key time, value depth)`.
        constraints: Which queries read which keys, and what is dropped.
        training: Whether gradients will be asked for.
        max_length: Most steps that queries and keys have, if that is known.
    """
    tensors = (query, key, value)
    # TensorFlow takes no gradient of branches that read a mask from outside the graph.
    constraints = constraints._replace(valid=_inside(constraints.valid), allowed=_inside(constraints.allowed))

    def at_once() -> Tensor:
        return _at_once(tensors, constraints, training)

    if constraints.valid is None and constraints.allowed is None and not constraints.dropout:
        fused = fused_attention(query, key, value, constraints.causal)
        if fused is not None:
            return fused
    never = query.shape[0] == 0 or (max_length and not prefers_blocks(max_length, max_length, training))
    blocks = not never and prefers_blocks(ops.shape(query)[2], ops.shape(key)[2], training)
    if blocks is False:
        return at_once()
    missing = [_missing(each, training) for each in (query, key)]
    # Masks of the blocks belong out here: the gradient of a branch finds nothing that is made inside it.
    bounds = _lengthened(constraints, key, *missing)

    def in_blocks() -> Tensor:
        attention = Blockwise(query.shape[1], key.shape[1], bounds, training)
        lengthened = tuple(map(_padded, tensors, (*missing, missing[1])))
        output = with_gradient(_plain(bounds), attention.forward, attention.backward)(lengthened)[0]
        return output if missing[0] is None else output[:, :, : ops.shape(query)[2]]

    return in_blocks() if blocks is True else ops.cond(blocks, in_blocks, at_once)


def _missing(sequence: Tensor, training: bool) -> Tensor | None:
    """Returns how many steps a sequence needs to have a length that few programs are made for, or None for none."""
    steps = ops.shape(sequence)[2]
    length = padded_length(steps, training)
    return None if length is None else length - steps


def _padded(tensor: Tensor, missing: Tensor | None) -> Tensor:
    """Returns queries, keys or values with more steps."""
    return tensor if missing is None else ops.pad(tensor, ((0, 0), (0, 0), (0, missing), (0, 0)))


def _lengthened(
    constraints: Constraints, key: Tensor, missing_queries: Tensor | None, missing_keys: Tensor | None
) -> Constraints:
    """Returns constraints for more steps of queries and keys, where the keys that are added are not read."""
    valid, allowed = (None if mask is None else at_least(1, mask) for mask in (constraints.valid, constraints.allowed))
    if missing_keys is not None:
        valid = ops.ones((1, ops.shape(key)[2]), "bool") if valid is None else valid
        valid = ops.pad(valid, ((0, 0), (0, missing_keys)))
    if allowed is not None:
        for axis, missing in ((2, missing_queries), (3, missing_keys)):
            if missing is not None and allowed.shape[axis] != 1:
                allowed = ops.pad(allowed, [(0, missing if each == axis else 0) for each in range(4)])
    return constraints._replace(valid=valid, allowed=allowed)


def _inside(mask: Tensor | None) -> Tensor | None:
    """Returns a mask as a tensor of the graph that is being made."""
    return None if mask is None else ops.stop_gradient(mask)


def attend_with_weights(query: Tensor, key: Tensor, value: Tensor, constraints: Constraints) -> tuple[Tensor, Tensor]:
    """Returns what the queries read, and the weights p, `(batch, heads, query time, key time)`.

    The arguments are those of `attend`; the gradient is the backend's.
    """
    queries, keys, values = _rows(query, key), _rows(key, key), _rows(value, value)
    weights = _weights(ops.matmul(queries, _swapped(keys)), query, key, constraints)
    kept = without_dropped(weights, constraints)
    return _from_rows(ops.matmul(kept, values), query), _from_rows(weights, query)


def masked_softmax(scores: Tensor, allowed: Tensor | None) -> Tensor:
    """Returns weights that sum to 1 over the last axis where the mask allows; zeros where it allows nothing."""
    precise = ops.cast(scores, precise_dtype(scores))
    if allowed is None:
        return ops.cast(softmax(precise), scores.dtype)
    weights = softmax(ops.where(allowed, precise, ops.cast(-NOTHING, precise.dtype)))
    return ops.cast(ops.where(allowed, weights, ops.zeros_like(weights)), scores.dtype)


def without_dropped(weights: Tensor, constraints: Constraints) -> Tensor:
    """Returns weights, of any shape, without those that are dropped, the others scaled up."""
    if not constraints.dropout:
        return weights
    return _dropped(weights, _kept(weights, constraints), constraints.dropout)


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
    rate = constraints.dropout

    # Every product has its factors in the order of their axes, which XLA computes fastest on a CPU.
    def forward(tensors: Tensors) -> tuple[Tensors, Any]:
        query, key, value = tensors
        scores = ops.matmul(_rows(query, key), _columns(key, key))
        weights = _weights(scores, query, key, constraints)
        kept = _kept(weights, constraints) if rate else ()
        output = ops.matmul(_dropped(weights, kept, rate), _rows(value, value))
        return (_from_rows(output, query),), (weights, kept)

    def backward(tensors: Tensors, saved: Any, upstream: Tensors) -> Tensors:
        (query, key, value), (weights, kept), (output_gradient,) = tensors, saved, upstream
        by_kept = ops.matmul(_rows(output_gradient, value), _columns(value, value))
        by_weights = ops.cast(_dropped(by_kept, kept, rate), precise_dtype(weights))
        precise = ops.cast(weights, by_weights.dtype)
        by_scores = precise * (by_weights - ops.sum(precise * by_weights, -1, keepdims=True))
        by_scores = ops.cast(by_scores, query.dtype)
        by_query = ops.matmul(by_scores, _rows(key, key))
        by_key = ops.matmul(_columns(query, key), by_scores)
        by_value = ops.matmul(_columns(output_gradient, value), _dropped(weights, kept, rate))
        return _from_rows(by_query, query), _from_columns(by_key, key), _from_columns(by_value, value)

    return with_gradient(_plain(constraints), forward, backward)(tensors)[0]


def _plain(constraints: Constraints) -> Any:
    return lambda tensors: attend_with_weights(tensors[0], tensors[1], tensors[2], constraints)[:1]


def _weights(scores: Tensor, query: Tensor, key: Tensor, constraints: Constraints) -> Tensor:
    """Returns the weights for scores, both as `_rows`."""
    allowed = merged(constraints, ops.shape(query)[2], ops.shape(key)[2])
    if allowed is None:
        return masked_softmax(scores, None)
    return _rows(masked_softmax(_from_rows(scores, query), allowed), key)


def _kept(weights: Tensor, constraints: Constraints) -> Tensor:
    return uniform(constraints.seed, 0, ops.shape(weights)) >= constraints.dropout


def _dropped(weights: Tensor, kept: Any, rate: float) -> Tensor:
    return ops.where(kept, weights / (1 - rate), ops.zeros_like(weights)) if rate else weights


def _rows(tensor: Tensor, key: Tensor) -> Tensor:
    """Returns a tensor of heads as a batch of matrices of one row per step, heads that share a key below each other."""
    heads, steps, width = tensor.shape[1], ops.shape(tensor)[2], ops.shape(tensor)[3]
    return ops.reshape(tensor, (-1, steps * (heads // key.shape[1]), width))


def _from_rows(rows: Tensor, query: Tensor) -> Tensor:
    """Returns a batch of matrices as a tensor of heads, as many as the query has."""
    return ops.reshape(rows, (-1, query.shape[1], ops.shape(query)[2], ops.shape(rows)[2]))


def _columns(tensor: Tensor, key: Tensor) -> Tensor:
    """Returns a tensor of heads as a batch of matrices of one column per step."""
    key_heads, steps, width = key.shape[1], ops.shape(tensor)[2], tensor.shape[3]
    shared = tensor.shape[1] // key_heads
    if shared == 1:
        return ops.reshape(ops.swapaxes(tensor, 2, 3), (-1, width, steps))
    by_key = ops.reshape(tensor, (-1, key_heads, shared, steps, width))
    return ops.reshape(ops.transpose(by_key, (0, 1, 4, 2, 3)), (-1, width, shared * steps))


def _from_columns(columns: Tensor, key: Tensor) -> Tensor:
    return ops.swapaxes(ops.reshape(columns, (-1, key.shape[1], key.shape[3], ops.shape(key)[2])), 2, 3)


def _swapped(matrices: Tensor) -> Tensor:
    return ops.swapaxes(matrices, 1, 2)
