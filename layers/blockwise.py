"""Scaled dot-product attention in blocks, for long sequences.

The scores of all queries and keys, `time * time` numbers per head, are never held at once. A block of queries meets one
block of keys after the other and keeps a running maximum m, a running sum l of exp(s - m) and the running product with
the values, which are rescaled when a larger score turns up (Milakov and Gimelshein, 2018, "Online normalizer
calculation for softmax"; Rabe and Staats, 2021, "Self-attention does not need O(n²) memory"). What is saved for the
gradient is the output o and log(sum of exp(s)) of every query, L = m + log l. The way back computes the scores of a
block again (Dao et al., 2022, "FlashAttention"):

    p_ij = exp(s_ij - L_i),   dv_j = sum over i of p_ij do_i,   ds_ij = p_ij (do_i . v_j - do_i . o_i)
    dq_i = sum over j of ds_ij k_j,   dk_j = sum over i of ds_ij q_i

Blocks that a causal mask leaves out are not computed. Heads are worked on one at a time; on TensorFlow and a CPU they
are shared out among the cores, in XLA programs as those of the recurrent layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from keras import ops

from layers.derivatives import Tensor, Tensors
from layers.kernels import compiled, parts, uniform
from layers.masking import precise_dtype

BLOCK = 256
"""Queries and keys in a block; 256 KB of scores stay in a core's cache."""

LARGEST_BLOCK = 512
"""Sequences up to this length, where it is known, are one block."""

NOTHING = 1e30
"""L of a query that may read nothing: p is 0. Below its negative lies no score."""


class Constraints(NamedTuple):
    """Which queries read which keys, and what is dropped.

    Attributes:
        valid: `(batch or 1, key time)` booleans, true for the keys that may be read, or None for all. Blocks need masks
            of one example at least, also where there are none.
        allowed: `(batch or 1, heads or 1, query time or 1, key time or 1)` booleans, or None. An axis of unknown length
            is as long as the times are.
        causal: Whether a query reads no key after its own step.
        dropout: Share of the weights that is dropped.
        seed: Two integers to draw dropped weights from, the same for values and gradients, or None.
    """

    valid: Tensor | None = None
    allowed: Tensor | None = None
    causal: bool = False
    dropout: float = 0.0
    seed: Tensor | None = None


class Blockwise:
    """Attention in blocks, of several heads; neighbouring heads of queries may share a head of keys and values.

    Args:
        heads: Query heads per example.
        key_heads: Key and value heads per example; divides `heads`.
        constraints: Which queries read which keys.
        training: Whether the values are computed for a gradient.
    """

    def __init__(self, heads: int, key_heads: int, constraints: Constraints, training: bool):
        self.heads, self.shared, self.key_heads = heads, heads // key_heads, key_heads
        self.constraints = constraints
        self.training = training
        self._forward = compiled(self._forward_part, training)
        self._backward = compiled(self._backward_part, training)

    def forward(self, tensors: Tensors) -> tuple[Tensors, Tensors]:
        """Returns the output, and what the gradient needs to know.

        Args:
            tensors: Query `(batch, heads, query time, depth)`, already scaled, key `(batch, key heads, key time,
                depth)` and value `(batch, key heads, key time, value depth)`.
        """
        shape = (*ops.shape(tensors[0])[:3], tensors[2].shape[-1])
        flat = tuple(map(_flattened, tensors))
        parts = self._parts(tensors[1])
        results = [self._forward(self._first(part), *self._cut(flat, part), self.constraints) for part in parts]
        output, log_sums = _joined(results, parts, flat[:1] * 2, (self.shared, self.shared))
        return (ops.reshape(output, shape),), (output, log_sums)

    def backward(self, tensors: Tensors, saved: Tensors, upstream: Tensors) -> Tensors:
        """Returns the gradients by query, key and value."""
        flat, by_query = tuple(map(_flattened, tensors)), (*saved, _flattened(upstream[0]))
        parts = self._parts(tensors[1])
        results = [
            self._backward(
                self._first(part),
                *self._cut(flat, part),
                *(part.of(each, self.shared) for each in by_query),
                self.constraints,
            )
            for part in parts
        ]
        gradients = _joined(results, parts, flat, (self.shared, 1, 1))
        return tuple(ops.reshape(each, ops.shape(tensor)) for each, tensor in zip(gradients, tensors, strict=True))

    def _parts(self, key: Tensor) -> list[_Part]:
        """Returns the parts that the key heads of a batch are worked on in; all are of one size, for one program.

        The last ones overlap with those before them, and do again what those have done, where the size does not divide
        the number of heads.
        """
        count = ops.shape(key)[0] * self.key_heads
        sizes = parts(count, self.training)
        if len(sizes) == 1 and isinstance(count, int):
            return [_Part()]
        most, least = (max, min) if isinstance(count, int) else (ops.maximum, ops.minimum)
        # Without examples there still is one head, of zeros: no program is made for less.
        count, size = most(count, 1), most(sizes[0], 1)
        starts = [least(number * size, count - size) for number in range(len(sizes))]
        return [_Part(start, size, number * size - start) for number, start in enumerate(starts)]

    def _first(self, part: _Part) -> Tensor:
        """Returns the number of a part's first head, as a tensor: every number would make a program of its own."""
        return ops.convert_to_tensor(part.first * self.shared, "int32")

    def _cut(self, tensors: Tensors, part: _Part) -> Tensors:
        query, *others = tensors
        return (part.of(query, self.shared), *(part.of(each) for each in others))

    def _forward_part(
        self, first: Tensor, query: Tensor, key: Tensor, value: Tensor, constraints: Constraints
    ) -> Tensors:
        """Returns output and L for some heads, of which `first` is the number of the first in the batch."""
        sizes = _Sizes(query, key)
        query, key, value = sizes.padded_queries(query), sizes.padded_keys(key), sizes.padded_keys(value)
        precise, width = precise_dtype(query), value.shape[-1]
        weights = _Weights(self, sizes, first, constraints)

        def of_head(head: Tensor, results: Tensors) -> Tensors:
            def of_queries(rows: Tensor, results: Tensors) -> Tensors:
                block = _block(query, head, rows, sizes.query_block)

                def of_keys(columns: Tensor, carry: Tensors) -> Tensors:
                    maximum, total, output = carry
                    keys, values = (
                        _block(each, head // self.shared, columns, sizes.key_block) for each in (key, value)
                    )
                    scores, allowed = weights.scores(block, keys, head, rows, columns)
                    new_maximum = ops.maximum(maximum, ops.max(_masked(scores, allowed, -NOTHING), -1, keepdims=True))
                    exponentials = _masked(ops.exp(scores - new_maximum), allowed, 0.0)
                    rescaled = ops.exp(maximum - new_maximum)
                    total = total * rescaled + ops.sum(exponentials, -1, keepdims=True)
                    kept = weights.dropped(exponentials, head, rows, columns)
                    product = ops.matmul(ops.cast(kept, values.dtype), values)
                    return new_maximum, total, output * rescaled + ops.cast(product, precise)

                size = sizes.query_block
                start = (
                    ops.full((size, 1), -NOTHING, precise),
                    ops.zeros((size, 1), precise),
                    ops.zeros((size, width), precise),
                )
                maximum, total, output = _loop(0, sizes.key_blocks_of(rows, constraints.causal), of_keys, start)
                nothing = ops.equal(total, 0)
                total = ops.where(nothing, ops.ones_like(total), total)
                log_sum = ops.where(nothing, ops.full_like(total, NOTHING), maximum + ops.log(total))
                return (
                    _written(results[0], ops.cast(output / total, value.dtype), head, rows),
                    _written(results[1], log_sum, head, rows),
                )

            return _loop(0, sizes.query_blocks, of_queries, results)

        empty = (ops.zeros_like(query[..., :1]) + ops.zeros((width,), value.dtype), _zeros(query[..., :1], precise))
        output, log_sums = _loop(0, ops.shape(query)[0], of_head, empty)
        return sizes.without_padding(output), sizes.without_padding(log_sums)

    def _backward_part(
        self,
        first: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        log_sums: Tensor,
        upstream: Tensor,
        constraints: Constraints,
    ) -> Tensors:
        """Returns the gradients by query, key and value for some heads."""
        sizes, precise = _Sizes(query, key), precise_dtype(query)
        shares = ops.sum(ops.cast(output, precise) * ops.cast(upstream, precise), -1, keepdims=True)
        query, upstream, log_sums, shares = map(sizes.padded_queries, (query, upstream, log_sums, shares))
        key, value = map(sizes.padded_keys, (key, value))
        weights = _Weights(self, sizes, first, constraints)

        def of_head(head: Tensor, gradients: Tensors) -> Tensors:
            key_head = head // self.shared

            def of_keys(columns: Tensor, gradients: Tensors) -> Tensors:
                keys, values = (_block(each, key_head, columns, sizes.key_block) for each in (key, value))

                def of_queries(rows: Tensor, carry: Tensors) -> Tensors:
                    by_query, by_keys, by_values = carry
                    queries, output_gradients, log_sum, share = (
                        _block(each, head, rows, sizes.query_block) for each in (query, upstream, log_sums, shares)
                    )
                    scores, allowed = weights.scores(queries, keys, head, rows, columns)
                    probabilities = _masked(ops.exp(scores - log_sum), allowed, 0.0)
                    kept = ops.cast(weights.dropped(probabilities, head, rows, columns), values.dtype)
                    by_values = by_values + _transposed_product(kept, output_gradients, precise)
                    by_kept = ops.cast(ops.matmul(output_gradients, ops.transpose(values)), precise)
                    by_probabilities = weights.dropped(by_kept, head, rows, columns)
                    by_scores = ops.cast(probabilities * (by_probabilities - share), keys.dtype)
                    by_keys = by_keys + _transposed_product(by_scores, queries, precise)
                    by_rows = _block(by_query, head, rows, sizes.query_block)
                    by_rows = by_rows + ops.cast(ops.matmul(by_scores, keys), precise)
                    return _written(by_query, by_rows, head, rows), by_keys, by_values

                by_query, *by_keys_and_values = gradients
                starts = [_block(each, key_head, columns, sizes.key_block) for each in by_keys_and_values]
                first_rows = sizes.first_query_block_of(columns, constraints.causal)
                by_query, *sums = _loop(first_rows, sizes.query_blocks, of_queries, (by_query, *starts))
                written = (
                    _written(each, total, key_head, columns)
                    for each, total in zip(by_keys_and_values, sums, strict=True)
                )
                return (by_query, *written)

            return _loop(0, sizes.key_blocks, of_keys, gradients)

        empty = tuple(_zeros(each, precise) for each in (query, key, value))
        by_query, by_key, by_value = _loop(0, ops.shape(query)[0], of_head, empty)
        gradients = (
            sizes.without_padding(by_query),
            sizes.without_padding(by_key, keys=True),
            sizes.without_padding(by_value, keys=True),
        )
        return tuple(ops.cast(each, query.dtype) for each in gradients)


class _Part(NamedTuple):
    """Neighbouring key heads that one program works on.

    Attributes:
        first: Number of the first of them.
        size: How many there are, or None for all.
        again: How many of them the part before works on too.
    """

    first: Any = 0
    size: Any = None
    again: Any = 0

    def of(self, tensor: Tensor, times: int = 1) -> Tensor:
        """Returns the rows of this part, `times` for every key head."""
        if self.size is None:
            return tensor
        return at_least(times, tensor)[self.first * times : (self.first + self.size) * times]


class _Sizes:
    """How the steps of queries and keys are cut into blocks."""

    def __init__(self, query: Tensor, key: Tensor):
        self.query_steps, self.key_steps = ops.shape(query)[1], ops.shape(key)[1]
        self.query_block, self.query_blocks = _blocks(self.query_steps)
        self.key_block, self.key_blocks = _blocks(self.key_steps)

    def padded_queries(self, tensor: Tensor) -> Tensor:
        return _padded(tensor, self.query_block * self.query_blocks - self.query_steps)

    def padded_keys(self, tensor: Tensor) -> Tensor:
        return _padded(tensor, self.key_block * self.key_blocks - self.key_steps)

    @property
    def keys_are_padded(self) -> bool:
        return not isinstance(self.key_steps, int) or self.key_steps % self.key_block != 0

    def without_padding(self, tensor: Tensor, keys: bool = False) -> Tensor:
        return tensor[:, : self.key_steps if keys else self.query_steps]

    def key_blocks_of(self, rows: Tensor, causal: bool) -> Any:
        """Returns how many blocks of keys a block of queries reads."""
        if not causal or _is_one(self.key_blocks):
            return self.key_blocks
        last_row = (rows + 1) * self.query_block - 1
        return ops.minimum(last_row // self.key_block + 1, self.key_blocks)

    def first_query_block_of(self, columns: Tensor, causal: bool) -> Any:
        """Returns the first block of queries that reads a block of keys."""
        if not causal or _is_one(self.query_blocks):
            return 0
        return ops.minimum(columns * self.key_block // self.query_block, self.query_blocks)


class _Weights:
    """Scores of a block of queries and keys, which of them count, and which weights are dropped."""

    def __init__(self, attention: Blockwise, sizes: _Sizes, first: Tensor, constraints: Constraints):
        self.heads, self.sizes, self.first, self.constraints = attention.heads, sizes, first, constraints
        valid, allowed = constraints.valid, constraints.allowed
        self.valid = None if valid is None else sizes.padded_keys(valid)
        self.allowed = None if allowed is None else _padded_mask(allowed, sizes)

    def scores(
        self, queries: Tensor, keys: Tensor, head: Tensor, rows: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the scores, `(queries, keys)`, and booleans, true for those that count, or None for all."""
        sizes, example = self.sizes, (head + self.first) // self.heads
        scores = ops.matmul(queries, ops.transpose(keys))
        masks = []
        if self.valid is not None:
            of_example = ops.minimum(example, ops.shape(self.valid)[0] - 1)  # the mask of one stands for all
            masks.append(_slice(self.valid, (of_example, columns * sizes.key_block), (1, sizes.key_block)))
        elif sizes.keys_are_padded:
            masks.append(_places(columns, sizes.key_block)[None] < sizes.key_steps)
        if self.allowed is not None:
            shape = (1, 1, sizes.query_block, sizes.key_block)
            place = (example, (head + self.first) % self.heads, rows * sizes.query_block, columns * sizes.key_block)
            # An axis of one stands for all. The number of examples may be known only when the program runs.
            one = [_is_one(length) for length in ops.shape(self.allowed)]
            start = [0 if alone else start for alone, start in zip(one, place, strict=True)]
            start[0] = ops.minimum(start[0], ops.shape(self.allowed)[0] - 1)
            size = [1 if alone else length for alone, length in zip(one, shape, strict=True)]
            masks.append(_slice(self.allowed, start, size)[0, 0])
        if self.constraints.causal:
            masks.append(_places(rows, sizes.query_block)[:, None] >= _places(columns, sizes.key_block)[None])
        return ops.cast(scores, precise_dtype(scores)), both(*masks)

    def dropped(self, weights: Tensor, head: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Returns the weights without those that are dropped, the others scaled up."""
        rate, sizes = self.constraints.dropout, self.sizes
        if not rate:
            return weights
        block = ((head + self.first) * sizes.query_blocks + rows) * sizes.key_blocks + columns
        kept = uniform(self.constraints.seed, block, (sizes.query_block, sizes.key_block)) >= rate
        return ops.where(kept, weights / (1 - rate), ops.zeros_like(weights))


def both(*masks: Tensor | None) -> Tensor | None:
    """Returns where all of the masks hold, or None where there are none."""
    merged = None
    for mask in masks:
        if mask is not None:
            merged = mask if merged is None else merged & mask
    return merged


def _blocks(steps: Any) -> tuple[int, Any]:
    """Returns the size of a block and how many there are."""
    if isinstance(steps, int) and steps <= LARGEST_BLOCK:
        return max(steps, 1), 1
    return BLOCK, -(-steps // BLOCK)


def _is_one(count: Any) -> bool:
    return isinstance(count, int) and count == 1


def _loop(start: Any, stop: Any, body: Callable[[Any, Tensors], Tensors], carry: Tensors) -> Tensors:
    if _is_one(stop) and isinstance(start, int) and start == 0:
        return body(ops.convert_to_tensor(0, "int32"), carry)
    start = ops.convert_to_tensor(start, "int32")
    results = ops.while_loop(
        lambda index, *_: index < stop, lambda index, *carry: (index + 1, *body(index, carry)), (start, *carry)
    )
    return tuple(results[1:])


def at_least(count: int, tensor: Tensor) -> Tensor:
    """Returns a tensor with so many rows, of zeros, where it may have none."""
    rows = ops.shape(tensor)[0]
    if isinstance(rows, int) and rows >= count:
        return tensor
    return ops.pad(tensor, ((0, ops.maximum(count - rows, 0)), *((0, 0),) * (len(tensor.shape) - 1)))


def _flattened(tensor: Tensor) -> Tensor:
    return ops.reshape(tensor, (-1, *ops.shape(tensor)[2:]))


def _joined(
    results: Sequence[Tensors], parts: Sequence[_Part], like: Sequence[Tensor], times: Sequence[int]
) -> Tensors:
    """Returns the results of all parts, as many heads of each as there are of `like`, `times` for every key head."""
    if len(parts) == 1 and parts[0].size is None:
        return tuple(results[0])
    joined = (
        ops.concatenate([each[part.again * count :] for each, part in zip(of_parts, parts, strict=True)])
        for of_parts, count in zip(zip(*results, strict=True), times, strict=True)
    )
    return tuple(each[: ops.shape(whole)[0]] for each, whole in zip(joined, like, strict=True))


def _block(tensor: Tensor, head: Tensor, number: Tensor, size: int) -> Tensor:
    return _slice(tensor, (head, number * size, 0), (1, size, tensor.shape[-1]))[0]


def _written(tensor: Tensor, block: Tensor, head: Tensor, number: Tensor) -> Tensor:
    start = (head, number * block.shape[0], 0)
    return ops.slice_update(tensor, [ops.cast(each, "int32") for each in start], block[None])


def _slice(tensor: Tensor, start: Sequence[Any], shape: Sequence[int]) -> Tensor:
    return ops.slice(tensor, [ops.cast(each, "int32") for each in start], shape)


def _padded(tensor: Tensor, missing: Any) -> Tensor:
    if isinstance(missing, int) and not missing:
        return tensor
    return ops.pad(tensor, ((0, 0), (0, missing), *((0, 0),) * (len(tensor.shape) - 2)))


def _padded_mask(allowed: Tensor, sizes: _Sizes) -> Tensor:
    missing = (
        sizes.query_block * sizes.query_blocks - sizes.query_steps,
        sizes.key_block * sizes.key_blocks - sizes.key_steps,
    )
    added = [0 if _is_one(length) else each for length, each in zip(ops.shape(allowed)[2:], missing, strict=True)]
    if all(isinstance(each, int) and not each for each in added):
        return allowed
    return ops.pad(allowed, ((0, 0), (0, 0), *((0, each) for each in added)))


def _places(number: Tensor, size: int) -> Tensor:
    return number * size + ops.arange(size, dtype="int32")


def _masked(tensor: Tensor, allowed: Tensor | None, otherwise: float) -> Tensor:
    return tensor if allowed is None else ops.where(allowed, tensor, ops.cast(otherwise, tensor.dtype))


def _transposed_product(left: Tensor, right: Tensor, dtype: str) -> Tensor:
    return ops.cast(ops.matmul(ops.transpose(left), right), dtype)


def _zeros(tensor: Tensor, dtype: str) -> Tensor:
    return ops.zeros_like(tensor, dtype=dtype)
