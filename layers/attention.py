"""Attention: every step of one sequence, the query, reads a weighted mean of the steps of another, or of its own.

The layers take the call arguments of `keras.layers.MultiHeadAttention`, masks included. A step that is masked, or that
no mask leaves anything to read, puts out zeros, and what masked steps hold, NaN included, reaches neither values nor
gradients.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import keras
from keras import ops

from layers.blockwise import Constraints, both
from layers.derivatives import Tensor
from layers.dot_product import attend, attend_with_weights, masked_softmax, merged, without_dropped
from layers.kernels import required, tanh
from layers.masking import valid_only
from layers.positions import RotaryPositions

Shape = tuple[int | None, ...]


class Attention(keras.layers.Layer):
    """Base of the attention layers: masks, dropout of the weights, shapes. Subclasses add the scores.

    Args:
        kernel_initializer: Initializer of the kernels.
        kernel_regularizer: Regularizer of the kernels.
        dropout: Share of the attention weights that is dropped in training.
        seed: Seed of what is dropped.
        max_length: Most steps that queries and keys have, where that is known. It changes no value: graphs for
            sequences of unknown length are smaller, and made sooner, without the way that very long ones take.
        **kwargs: `name`, `dtype` and `trainable`, as for every Keras layer.

    Call arguments:
        query: `(batch, query time, query features)`.
        value: `(batch, key time, value features)`.
        key: `(batch, key time, key features)`; the value by default.
        query_mask: `(batch, query time)` booleans, true where a step is valid; the others put out zero.
        value_mask: `(batch, key time)` booleans, true for the steps that may be read.
        key_mask: The same, in addition.
        attention_mask: Booleans, true where a query step may read a key step: `(batch, query time, key time)`, with or
            without an axis for the heads in second place. An axis of 1 stands for all, and that of the batch may be
            missing. The key steps that it leaves out must hold numbers.
        return_attention_scores: Whether to return the weights, before dropout, after the output.
        training: Whether dropout is on.
        use_causal_mask: Whether a query step reads only key steps up to its own.
    """

    def __init__(
        self,
        *,
        kernel_initializer: Any = "glorot_uniform",
        kernel_regularizer: Any = None,
        dropout: float = 0.0,
        seed: int | None = None,
        max_length: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout!r}.")
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.dropout = dropout
        self.seed = seed
        self.max_length = max_length
        self.supports_masking = True
        if dropout:
            self.seed_generator = keras.random.SeedGenerator(seed)

    def call(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor | None = None,
        query_mask: Tensor | None = None,
        value_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_attention_scores: bool = False,
        training: bool | None = False,
        use_causal_mask: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Reads the values. For the arguments see the class."""
        itself = query is value and query_mask is value_mask and key_mask is None
        query_mask, value_mask, key_mask, attention_mask = (
            None if mask is None else ops.cast(mask, "bool")
            for mask in (query_mask, value_mask, key_mask, attention_mask)
        )
        # Zero times NaN is NaN: padding has to be replaced before the products, not after them.
        valid = both(value_mask, key_mask)
        clean_value = valid_only(value, valid)
        key = clean_value if key is None or key is value else valid_only(key, valid)
        query, value = clean_value if itself else valid_only(query, query_mask), clean_value
        if attention_mask is not None:
            attention_mask = self._with_all_axes(attention_mask, ops.shape(query)[1], ops.shape(value)[1])
        constraints = self._constraints(valid, attention_mask, use_causal_mask, training)
        output, scores = self._read(query, key, value, constraints, bool(training), return_attention_scores)
        output = valid_only(output, both(query_mask, _readable(constraints, query, key)))
        return (output, scores) if return_attention_scores else output

    def compute_mask(self, query: Any, query_mask: Tensor | None = None) -> Any:
        """Returns the mask of the query."""
        return query_mask

    def compute_output_shape(self, query_shape: Shape, value_shape: Shape, key_shape: Shape | None = None) -> Shape:
        """Returns the shape of the output."""
        return (*query_shape[:2], value_shape[-1])

    def compute_output_spec(
        self, query: Any, value: Any, key: Any = None, *masks: Any, return_attention_scores: bool = False, **others: Any
    ) -> Any:
        """Returns shape and dtype of the output and, if they are returned, of the weights."""
        shape = self.compute_output_shape(query.shape, value.shape, (value if key is None else key).shape)
        output = keras.KerasTensor(shape, dtype=self.compute_dtype)
        if not return_attention_scores:
            return output
        scores_shape = (query.shape[0], *self._heads_shape(), query.shape[1], value.shape[1])
        return output, keras.KerasTensor(scores_shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "dropout": self.dropout,
            "seed": self.seed,
            "max_length": self.max_length,
        }

    def _heads_shape(self) -> tuple[int, ...]:
        return ()

    def _read(
        self, query: Tensor, key: Tensor, value: Tensor, constraints: Constraints, training: bool, scores: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the output and, if asked for, the weights."""
        raise NotImplementedError

    def _with_all_axes(self, mask: Tensor, *steps: Any) -> Tensor:
        """Returns an attention mask with axes for examples, heads, and the steps of queries and keys."""
        axes = tuple(mask.shape)
        if len(axes) in (2, 3):
            axes = (*axes[:-2], 1, *axes[-2:]) if len(axes) == 3 else (1, 1, *axes)
        lengths = zip(axes[-2:], steps, strict=True)
        fits = all(not isinstance(wanted, int) or length in (None, 1, wanted) for length, wanted in lengths)
        if len(axes) != 4 or axes[1] not in (1, *self._heads_shape()) or not fits:
            raise ValueError(
                f"attention_mask of {self.name} must have shape (batch, query time, key time), with or without heads "
                f"in second place, each of them or 1, got {tuple(mask.shape)}."
            )
        mask = ops.reshape(mask, (-1, axes[1], *ops.shape(mask)[-2:]))
        if None not in axes[2:]:
            return mask
        known = (1 if length == 1 else wanted for length, wanted in zip(axes[2:], steps, strict=True))
        return ops.broadcast_to(mask, (*ops.shape(mask)[:2], *known))

    def _constraints(
        self, valid: Tensor | None, attention_mask: Tensor | None, causal: bool, training: bool | None
    ) -> Constraints:
        constraints = Constraints(valid, attention_mask, causal)
        if not (training and self.dropout):
            return constraints
        return constraints._replace(dropout=self.dropout, seed=self.seed_generator.next())


@keras.saving.register_keras_serializable(package="kerasloom")
class MultiplicativeAttention(Attention):
    """Attention by the product of query and key, as in encoder-decoder networks.

        score(q_i, k_j) = q_i . k_j  ("dot")  or  q_i^T W k_j  ("general"),  c_i = sum over j of softmax_j(score) v_j

    Source: Luong, Pham and Manning, 2015, "Effective approaches to attention-based neural machine translation". Weight
    of `"general"`: the kernel W, `(query features, key features)`.

    Args:
        score: `"dot"` or `"general"`.
        scaled: Whether to divide the scores by the root of the number of key features.
        **kwargs: The arguments of `Attention`: `kernel_initializer`, `dropout`, `name`, ...

    Call arguments:
        Those of `Attention`.

    Output shape:
        `(batch, query time, value features)`; with `return_attention_scores` a tuple of that and the weights,
        `(batch, query time, key time)`.

    Raises:
        ValueError: If an argument is out of range, or without a kernel query and key differ in their features.

    Example:
        >>> tuple(MultiplicativeAttention()(keras.ops.ones((2, 3, 4)), keras.ops.ones((2, 5, 6))).shape)
        (2, 3, 6)
    """

    def __init__(self, score: Literal["dot", "general"] = "general", *, scaled: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        if score not in ("dot", "general"):
            raise ValueError(f"score must be 'dot' or 'general', got {score!r}.")
        self.score = score
        self.scaled = scaled

    def build(self, query_shape: Shape, value_shape: Shape, key_shape: Shape | None = None) -> None:
        """Creates the kernel, if there is one."""
        key_shape = value_shape if key_shape is None else key_shape
        _check_shapes(self.name, query=query_shape, value=value_shape, key=key_shape)
        if self.score == "general":
            self.kernel = self.add_weight(
                shape=(query_shape[-1], key_shape[-1]),
                name="kernel",
                initializer=self.kernel_initializer,
                regularizer=self.kernel_regularizer,
            )
        elif query_shape[-1] != key_shape[-1]:
            raise ValueError(
                f"{self.name} has score='dot': query and key must have as many features, got {query_shape[-1]} and "
                f"{key_shape[-1]}; score='general' has no such limit."
            )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "score": self.score, "scaled": self.scaled}

    def _read(
        self, query: Tensor, key: Tensor, value: Tensor, constraints: Constraints, training: bool, scores: bool
    ) -> tuple[Tensor, Tensor | None]:
        if self.score == "general":
            query = _projected(query, ops.cast(self.kernel, self.compute_dtype))
        if self.scaled:
            query = query * key.shape[-1] ** -0.5
        query, key, value = (ops.expand_dims(each, 1) for each in (query, key, value))
        if not scores:
            return ops.squeeze(attend(query, key, value, constraints, training, self.max_length), 1), None
        output, weights = attend_with_weights(query, key, value, constraints)
        return ops.squeeze(output, 1), ops.squeeze(weights, 1)


@keras.saving.register_keras_serializable(package="kerasloom")
class AdditiveAttention(Attention):
    """Attention by a small network over query and key, as in encoder-decoder networks.

        score(q_i, k_j) = a . tanh(q_i W_q + k_j W_k + b),  c_i = sum over j of softmax_j(score) v_j

    Source: Bahdanau, Cho and Bengio, 2015, "Neural machine translation by jointly learning to align and translate".
    Weights: query kernel `(query features, units)`, key kernel `(key features, units)`, bias `(units,)`, score vector a
    `(units,)`. Memory grows with `query time * key time * units` outside of XLA programs.

    Args:
        units: Width of the hidden layer, at least 1.
        use_bias: Whether there is b.
        **kwargs: The arguments of `Attention`: `kernel_initializer`, also of the score vector, `dropout`, `name`, ...

    Call arguments:
        Those of `Attention`.

    Output shape:
        `(batch, query time, value features)`; with `return_attention_scores` a tuple of that and the weights,
        `(batch, query time, key time)`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> tuple(AdditiveAttention(8)(keras.ops.ones((2, 3, 4)), keras.ops.ones((2, 5, 6))).shape)
        (2, 3, 6)
    """

    def __init__(self, units: int, *, use_bias: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        check_positive(units=units)
        self.units = units
        self.use_bias = use_bias

    def build(self, query_shape: Shape, value_shape: Shape, key_shape: Shape | None = None) -> None:
        """Creates the weights."""
        key_shape = value_shape if key_shape is None else key_shape
        _check_shapes(self.name, query=query_shape, value=value_shape, key=key_shape)
        self.query_kernel, self.key_kernel = (
            self.add_weight(
                shape=(features, self.units),
                name=name,
                initializer=varied(self.kernel_initializer, index),
                regularizer=self.kernel_regularizer,
            )
            for index, (name, features) in enumerate((("query_kernel", query_shape[-1]), ("key_kernel", key_shape[-1])))
        )
        if self.use_bias:
            self.bias = self.add_weight(shape=(self.units,), name="bias", initializer="zeros")
        self.score_vector = self.add_weight(
            shape=(self.units, 1), name="score_vector", initializer=varied(self.kernel_initializer, 2)
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "units": self.units, "use_bias": self.use_bias}

    def _read(
        self, query: Tensor, key: Tensor, value: Tensor, constraints: Constraints, training: bool, scores: bool
    ) -> tuple[Tensor, Tensor | None]:
        query_kernel, key_kernel = (ops.cast(each, self.compute_dtype) for each in (self.query_kernel, self.key_kernel))
        bias = ops.cast(self.bias, self.compute_dtype) if self.use_bias else None
        queries, keys = _projected(query, query_kernel, bias), _projected(key, key_kernel)
        hidden = tanh(ops.expand_dims(queries, 2) + ops.expand_dims(keys, 1))
        weights = masked_softmax(
            ops.sum(hidden * ops.cast(self.score_vector, hidden.dtype)[:, 0], -1),
            _without_heads(constraints, query, key),
        )
        return ops.matmul(without_dropped(weights, constraints), value), weights if scores else None


class KeysAndValues(NamedTuple):
    """What can be read of a sequence, by head.

    Attributes:
        keys: `(batch, key heads, time, key_dim)`.
        values: `(batch, key heads, time, value_dim)`.
        valid: `(batch, time)` booleans, true for the steps that may be read.
        length: How many steps there are, an integer; the rest is room for later ones.
    """

    keys: Tensor
    values: Tensor
    valid: Tensor
    length: Tensor


@keras.saving.register_keras_serializable(package="kerasloom")
class MultiHeadAttention(Attention):
    """Attention in several heads, each with projections of its own, side by side.

        head_h = softmax((x_q W_q^h + b_q^h) (x_k W_k^g + b_k^g)^T / sqrt(key_dim)) (x_v W_v^g + b_v^g)
        output = concatenated heads W_o + b_o

    Source: Vaswani et al., 2017, "Attention is all you need". With fewer key heads than heads, neighbouring heads h
    share the key and value head g (Ainslie et al., 2023, "GQA"). With `rotary`, queries and keys are rotated by their
    positions, see `RotaryPositions`. Weights: query kernel `(query features, num_heads * key_dim)`, key kernel `(key
    features, key heads * key_dim)`, value kernel `(value features, key heads * value_dim)`, output kernel `(num_heads *
    value_dim, output_dim)`, and a bias for each.

    Long sequences are computed in blocks, with memory that grows linearly with the length (`layers.blockwise`), unless
    `return_attention_scores` asks for all weights. An `attention_mask` is as large as the weights of one head.

    Args:
        num_heads: Number of heads, at least 1.
        key_dim: Width of a head's queries and keys.
        value_dim: Width of a head's values; `key_dim` by default.
        num_key_value_heads: Number of key and value heads, a divisor of `num_heads`, which is the default.
        rotary: Whether to rotate queries and keys by their positions; `key_dim` must be even.
        use_bias: Whether there are biases.
        output_dim: Number of output features; those of the query by default.
        bias_initializer: Initializer of the biases.
        bias_regularizer: Regularizer of the biases.
        kernel_constraint: Constraint on the kernels.
        bias_constraint: Constraint on the biases.
        **kwargs: The arguments of `Attention`: `kernel_initializer`, `dropout`, `name`, ...

    Call arguments:
        Those of `Attention`.

    Output shape:
        `(batch, query time, output_dim)`; with `return_attention_scores` a tuple of that and the weights, `(batch,
        num_heads, query time, key time)`.

    Raises:
        ValueError: If an argument is out of range or a shape does not fit.

    Example:
        >>> layer = MultiHeadAttention(num_heads=4, key_dim=8, num_key_value_heads=2, rotary=True)
        >>> sequence = keras.random.normal((2, 7, 32))
        >>> whole = layer(sequence, sequence, use_causal_mask=True)
        >>> cache = layer.empty_cache(batch_size=2, max_length=7)
        >>> for time in range(7):
        ...     output, cache = layer.step(sequence[:, time], cache)
        >>> bool(keras.ops.max(keras.ops.abs(output - whole[:, -1])) < 1e-5)
        True
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        *,
        value_dim: int | None = None,
        num_key_value_heads: int | None = None,
        rotary: bool = False,
        use_bias: bool = True,
        output_dim: int | None = None,
        bias_initializer: Any = "zeros",
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        value_dim = key_dim if value_dim is None else value_dim
        check_positive(num_heads=num_heads, key_dim=key_dim, value_dim=value_dim)
        check_positive(output_dim=1 if output_dim is None else output_dim)
        if rotary and key_dim % 2:
            raise ValueError(f"key_dim must be even with rotary=True, got {key_dim}.")
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.value_dim = value_dim
        self.num_key_value_heads = key_value_heads(num_heads, num_key_value_heads)
        self.rotary = rotary
        self.use_bias = use_bias
        self.output_dim = output_dim
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        if rotary:
            self.rotary_positions = RotaryPositions(dtype=self.dtype_policy)

    def build(self, query_shape: Shape, value_shape: Shape, key_shape: Shape | None = None) -> None:
        """Creates the weights."""
        key_shape = value_shape if key_shape is None else key_shape
        _check_shapes(self.name, query=query_shape, value=value_shape, key=key_shape)
        widths = {
            "query": (query_shape[-1], self.num_heads * self.key_dim),
            "key": (key_shape[-1], self.num_key_value_heads * self.key_dim),
            "value": (value_shape[-1], self.num_key_value_heads * self.value_dim),
            "output": (self.num_heads * self.value_dim, self.output_dim or query_shape[-1]),
        }
        for index, (name, shape) in enumerate(widths.items()):
            kernel = self.add_weight(
                shape=shape,
                name=f"{name}_kernel",
                initializer=varied(self.kernel_initializer, index),
                regularizer=self.kernel_regularizer,
                constraint=self.kernel_constraint,
            )
            bias = (
                self.add_weight(
                    shape=shape[1:],
                    name=f"{name}_bias",
                    initializer=varied(self.bias_initializer, index),
                    regularizer=self.bias_regularizer,
                    constraint=self.bias_constraint,
                )
                if self.use_bias
                else None
            )
            setattr(self, f"{name}_kernel", kernel)
            setattr(self, f"{name}_bias", bias)

    def compute_output_shape(self, query_shape: Shape, value_shape: Shape, key_shape: Shape | None = None) -> Shape:
        """Returns the shape of the output."""
        return (*query_shape[:-1], self.output_dim or query_shape[-1])

    def keys_and_values(self, value: Tensor, key: Tensor | None = None, mask: Tensor | None = None) -> KeysAndValues:
        """Returns what can be read of a whole sequence, to be read several times by `read`.

        Args:
            value: `(batch, key time, value features)`.
            key: `(batch, key time, key features)`; the value by default.
            mask: `(batch, key time)` booleans, true for the steps that may be read.
        """
        if not self.built:
            raise ValueError(f"{self.name} has no weights yet: call or build it before it reads anything.")
        value = ops.cast(value, self.compute_dtype)
        key = value if key is None else ops.cast(key, self.compute_dtype)
        valid = ops.ones(ops.shape(value)[:2], "bool") if mask is None else ops.cast(mask, "bool")
        keys, values = self._keys_and_values(valid_only(key, valid), valid_only(value, valid))
        return KeysAndValues(keys, values, valid, ops.convert_to_tensor(ops.shape(value)[1], "int32"))

    def read(self, query: Tensor, memory: KeysAndValues, start: Any = 0) -> Tensor:
        """Returns what the steps of a query read, as at prediction: `(batch, query time, output_dim)`.

        Args:
            query: `(batch, query time, query features)`.
            memory: What `keys_and_values` returned.
            start: Number of the query's first step, for `rotary`.
        """
        queries = self._queries(ops.cast(query, self.compute_dtype), start)
        constraints = Constraints(memory.valid)
        output = self._output(attend(queries, memory.keys, memory.values, constraints, False, self.max_length))
        return valid_only(output, _readable(constraints, query, memory.valid))

    def empty_cache(self, batch_size: Any, max_length: int) -> KeysAndValues:
        """Returns room for the keys and values of sequences of up to `max_length` steps."""
        shape = (batch_size, self.num_key_value_heads, max_length)
        return KeysAndValues(
            ops.zeros((*shape, self.key_dim), self.compute_dtype),
            ops.zeros((*shape, self.value_dim), self.compute_dtype),
            ops.zeros((batch_size, max_length), "bool"),
            ops.convert_to_tensor(0, "int32"),
        )

    def extend(
        self, sequence: Tensor, cache: KeysAndValues, mask: Tensor | None = None
    ) -> tuple[Tensor, KeysAndValues]:
        """Reads the next steps of a sequence, each of which reads those up to itself, as at prediction.

        Args:
            sequence: `(batch, new steps, features)`.
            cache: What the call before returned, at the beginning `empty_cache`.
            mask: `(batch, new steps)` booleans, true where a step is valid.

        Returns:
            The output, `(batch, new steps, output_dim)`, and the cache for the next call.
        """
        sequence = ops.cast(sequence, self.compute_dtype)
        if not self.built:
            self.build(tuple(sequence.shape), tuple(sequence.shape))
        steps, room, start = ops.shape(sequence)[1], cache.keys.shape[2], cache.length
        valid = ops.ones(ops.shape(sequence)[:2], "bool") if mask is None else ops.cast(mask, "bool")
        sequence = valid_only(sequence, valid)
        new_keys, new_values = self._keys_and_values(sequence, sequence, start)
        message = f"{self.name}: the cache has room for {room} steps, and more were read"
        new_keys = required(start + steps <= room, message, new_keys)
        place = ops.stack([0, 0, start, 0])  # as one tensor, of one type
        cache = KeysAndValues(
            ops.slice_update(cache.keys, place, new_keys),
            ops.slice_update(cache.values, place, new_values),
            ops.slice_update(cache.valid, place[1:3], valid),
            start + steps,
        )
        rows, columns = start + ops.arange(steps, dtype="int32"), ops.arange(room, dtype="int32")
        constraints = Constraints(cache.valid, (rows[:, None] >= columns)[None, None])
        queries = self._queries(sequence, start)
        output = self._output(attend(queries, cache.keys, cache.values, constraints, False, self.max_length))
        return valid_only(output, valid), cache

    def step(self, inputs: Tensor, cache: KeysAndValues) -> tuple[Tensor, KeysAndValues]:
        """Reads the next step, `(batch, features)`, see `extend`; the output is `(batch, output_dim)`."""
        output, cache = self.extend(ops.expand_dims(inputs, 1), cache)
        return output[:, 0], cache

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        plain = ("num_heads", "key_dim", "value_dim", "num_key_value_heads", "rotary", "use_bias", "output_dim")
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in plain},
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
        }

    def _heads_shape(self) -> tuple[int, ...]:
        return (self.num_heads,)

    def _read(
        self, query: Tensor, key: Tensor, value: Tensor, constraints: Constraints, training: bool, scores: bool
    ) -> tuple[Tensor, Tensor | None]:
        heads = (self._queries(query), *self._keys_and_values(key, value))
        if scores:
            output, weights = attend_with_weights(*heads, constraints)
            return self._output(output), weights
        return self._output(attend(*heads, constraints, training, self.max_length)), None

    def _queries(self, query: Tensor, start: Any = 0) -> Tensor:
        queries = self._heads(query, "query", self.num_heads)
        queries = self.rotary_positions(queries, start=start) if self.rotary else queries
        return ops.transpose(queries * self.key_dim**-0.5, (0, 2, 1, 3))

    def _keys_and_values(self, key: Tensor, value: Tensor, start: Any = 0) -> tuple[Tensor, Tensor]:
        keys = self._heads(key, "key", self.num_key_value_heads)
        keys = self.rotary_positions(keys, start=start) if self.rotary else keys
        values = self._heads(value, "value", self.num_key_value_heads)
        return ops.transpose(keys, (0, 2, 1, 3)), ops.transpose(values, (0, 2, 1, 3))

    def _heads(self, tensor: Tensor, name: str, heads: int) -> Tensor:
        """Returns the projection of a sequence, `(batch, time, heads, depth)`."""
        projected = self._project(tensor, name)
        return ops.reshape(projected, (-1, ops.shape(tensor)[1], heads, projected.shape[-1] // heads))

    def _output(self, context: Tensor) -> Tensor:
        """Returns the output for what the heads have read, `(batch, heads, time, value_dim)`."""
        steps = ops.shape(context)[2]
        side_by_side = ops.reshape(ops.transpose(context, (0, 2, 1, 3)), (-1, steps, self.num_heads * self.value_dim))
        return self._project(side_by_side, "output")

    def _project(self, tensor: Tensor, name: str) -> Tensor:
        kernel = ops.cast(getattr(self, f"{name}_kernel"), self.compute_dtype)
        bias = ops.cast(getattr(self, f"{name}_bias"), self.compute_dtype) if self.use_bias else None
        return _projected(tensor, kernel, bias)


def _readable(constraints: Constraints, query: Tensor, key: Tensor) -> Tensor | None:
    """Returns which queries may read anything, `(batch or 1, query time or 1)`, or None for all."""
    valid, query_steps, key_steps = constraints.valid, ops.shape(query)[1], ops.shape(key)[1]
    if constraints.allowed is not None:
        return ops.any(merged(constraints, query_steps, key_steps), axis=(1, 3))
    if valid is None:
        return None
    if not constraints.causal:
        return ops.any(valid, axis=1, keepdims=True)
    so_far = ops.cumsum(ops.cast(valid, "int32"), axis=1) > 0
    return ops.take(so_far, ops.minimum(ops.arange(query_steps, dtype="int32"), key_steps - 1), axis=1)


def _without_heads(constraints: Constraints, query: Tensor, key: Tensor) -> Tensor | None:
    allowed = merged(constraints, ops.shape(query)[1], ops.shape(key)[1])
    return None if allowed is None else ops.squeeze(allowed, 1)


def _projected(sequence: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns a sequence times a matrix, plus a bias, as one product of all its steps."""
    steps, features = ops.shape(sequence)[1], kernel.shape[0]
    rows = ops.matmul(ops.reshape(sequence, (-1, features)), kernel)
    # Added to the rows: of two axes XLA takes the bias' gradient, a sum, faster than of three.
    rows = rows if bias is None else rows + bias
    return ops.reshape(rows, (-1, steps, kernel.shape[1]))


def _check_shapes(name: str, **shapes: Shape) -> None:
    for argument, shape in shapes.items():
        if len(shape) != 3 or shape[-1] is None:
            raise ValueError(f"{argument} of {name} must have shape (batch, time, features), got {tuple(shape)}.")


def check_positive(**values: Any) -> None:
    """Refuses, by name, what is not a positive integer."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}.")


def key_value_heads(num_heads: int, num_key_value_heads: int | None) -> int:
    """Returns the number of key and value heads, by default that of the query heads, which it must divide."""
    if num_key_value_heads is None:
        return num_heads
    check_positive(num_key_value_heads=num_key_value_heads)
    if num_heads % num_key_value_heads:
        raise ValueError(f"num_key_value_heads must divide num_heads, got {num_key_value_heads} for {num_heads} heads.")
    return num_key_value_heads


def varied(initializer: Any, index: int) -> Any:
    """Returns an initializer that draws other numbers: the same one would make weights of the same shape equal."""
    if not isinstance(initializer, keras.initializers.Initializer):
        return initializer
    config = initializer.get_config()
    seed = config.get("seed")
    if seed is not None and not isinstance(seed, int):
        return initializer  # draws from a generator: other numbers every time, which a copy would draw again
    return type(initializer).from_config(config | ({} if seed is None else {"seed": seed + index}))
