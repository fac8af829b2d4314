"""Transformer blocks: attention and a feed-forward network for every step, each with a residual connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import keras
from keras import ops

from layers.attention import KeysAndValues, MultiHeadAttention, check_positive, key_value_heads, varied
from layers.derivatives import Tensor
from layers.masking import valid_only
from layers.normalization import LayerNorm, RMSNorm

Shape = tuple[int | None, ...]


class TransformerBlock(keras.layers.Layer):
    """Base of the transformer blocks.

        norm first:  y = x + dropout(f(norm(x))),  norm last:  y = norm(x + dropout(f(x)))

    for the parts f of the block in turn, the last of which is the feed-forward network

        f(x) = activation(x W_1 + b_1) W_2 + b_2,  gated:  (activation(x W_1 + b_1) * (x W_3 + b_3)) W_2 + b_2

    Sources: Vaswani et al., 2017, "Attention is all you need" (norm last); Xiong et al., 2020, "On layer normalization
    in the transformer architecture" (norm first); Shazeer, 2020, "GLU variants improve transformer" (gated). A step
    that the mask leaves out puts out zero, and what it holds, NaN included, reaches neither values nor gradients.

    Args:
        num_heads: Number of heads of the attention, at least 1.
        feed_forward_units: Width of the feed-forward network's hidden layer.
        key_dim: Width of a head; the features divided by the heads by default.
        num_key_value_heads: Number of key and value heads, a divisor of `num_heads`, which is the default.
        rotary: Whether queries and keys of a sequence with itself are rotated by their positions.
        activation: Activation of the hidden layer, by Keras' names.
        gated: Whether the hidden layer is multiplied by a second projection, as in GEGLU and SwiGLU.
        norm: `"layer"` for `LayerNorm`, `"rms"` for `RMSNorm`.
        norm_first: Whether to normalize what enters a part instead of what leaves it. Deep stacks train without warm-up
            then, and want one more norm after the last block.
        norm_epsilon: Added to the variance in the norms.
        dropout: Share of the features that is dropped in training of what each part puts out.
        attention_dropout: Share of the attention weights that is dropped in training.
        use_bias: Whether the projections have biases.
        kernel_initializer: Initializer of the kernels.
        seed: Seed of whatever is dropped.
        max_length: Most steps that sequences have, where that is known, see `Attention`.
        **kwargs: `name`, `dtype` and `trainable`, as for every Keras layer.
    """

    def __init__(
        self,
        num_heads: int,
        feed_forward_units: int,
        *,
        key_dim: int | None = None,
        num_key_value_heads: int | None = None,
        rotary: bool = False,
        activation: Any = "relu",
        gated: bool = False,
        norm: Literal["layer", "rms"] = "layer",
        norm_first: bool = True,
        norm_epsilon: float = 1e-5,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        seed: int | None = None,
        max_length: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_positive(num_heads=num_heads, feed_forward_units=feed_forward_units)
        check_positive(key_dim=1 if key_dim is None else key_dim)
        key_value_heads(num_heads, num_key_value_heads)
        if norm not in ("layer", "rms"):
            raise ValueError(f"norm must be 'layer' or 'rms', got {norm!r}.")
        for name, rate in (("dropout", dropout), ("attention_dropout", attention_dropout)):
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {rate!r}.")
        self.num_heads = num_heads
        self.feed_forward_units = feed_forward_units
        self.key_dim = key_dim
        self.num_key_value_heads = num_key_value_heads
        self.rotary = rotary
        self.activation = keras.activations.get(activation)
        self.gated = gated
        self.norm = norm
        self.norm_first = norm_first
        self.norm_epsilon = norm_epsilon
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.seed = seed
        self.max_length = max_length
        self.supports_masking = True

    def build(self, sequence_shape: Shape, *others: Any) -> None:
        """Creates the parts for sequences of shape `(batch, time, features)`."""
        if len(sequence_shape) != 3 or sequence_shape[-1] is None:
            raise ValueError(
                f"sequence of {self.name} must have shape (batch, time, features), got {tuple(sequence_shape)}."
            )
        features = sequence_shape[-1]
        if self.key_dim is None and features % self.num_heads:
            raise ValueError(f"num_heads of {self.name} must divide the {features} features, or key_dim must be given.")
        self.self_attention = self._attention("self_attention", sequence_shape, 0, rotary=self.rotary)
        self.self_attention.build(sequence_shape, sequence_shape)
        self.self_attention_norm = self._norm("self_attention_norm", sequence_shape)
        hidden_shape = (*sequence_shape[:-1], self.feed_forward_units)
        self.hidden = self._dense(self.feed_forward_units, "hidden", 2, sequence_shape, self.activation)
        if self.gated:
            self.gate = self._dense(self.feed_forward_units, "gate", 3, sequence_shape)
        self.projection = self._dense(features, "projection", 4, hidden_shape)
        self.feed_forward_norm = self._norm("feed_forward_norm", sequence_shape)
        self.residual_dropout = keras.layers.Dropout(
            self.dropout, seed=self._seed(5), name="residual_dropout", dtype=self.dtype_policy
        )

    def compute_output_shape(self, sequence_shape: Shape, *others: Any, **more: Any) -> Shape:
        """Returns the shape of the sequence."""
        return sequence_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        plain = (
            *("num_heads", "feed_forward_units", "key_dim", "num_key_value_heads", "rotary", "gated", "norm"),
            *("norm_first", "norm_epsilon", "dropout", "attention_dropout", "use_bias", "seed"),
            "max_length",
        )
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in plain},
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }

    def _part(
        self, sequence: Tensor, norm: keras.layers.Layer, part: Callable[[Tensor], Tensor], training: bool | None
    ) -> Tensor:
        """Returns the sequence after a part with its norm, dropout and residual connection."""
        if self.norm_first:
            return sequence + self.residual_dropout(part(norm(sequence)), training=training)
        return norm(sequence + self.residual_dropout(part(sequence), training=training))

    def _feed_forward(self, sequence: Tensor) -> Tensor:
        hidden = self.hidden(sequence)
        return self.projection(hidden * self.gate(sequence) if self.gated else hidden)

    def _attention(self, name: str, shape: Shape, number: int, rotary: bool = False) -> MultiHeadAttention:
        return MultiHeadAttention(
            self.num_heads,
            self.key_dim or (shape[-1] or 0) // self.num_heads,
            num_key_value_heads=self.num_key_value_heads,
            rotary=rotary,
            use_bias=self.use_bias,
            dropout=self.attention_dropout,
            kernel_initializer=varied(self.kernel_initializer, 10 * number),
            seed=self._seed(number),
            max_length=self.max_length,
            name=name,
            dtype=self.dtype_policy,
        )

    def _dense(self, units: int, name: str, number: int, shape: Shape, activation: Any = None) -> keras.layers.Dense:
        layer = keras.layers.Dense(
            units,
            activation,
            use_bias=self.use_bias,
            kernel_initializer=varied(self.kernel_initializer, 10 * number),  # attention has four kernels
            name=name,
            dtype=self.dtype_policy,
        )
        layer.build(shape)
        return layer

    def _norm(self, name: str, shape: Shape) -> keras.layers.Layer:
        layer = {"layer": LayerNorm, "rms": RMSNorm}[self.norm](self.norm_epsilon, name=name, dtype=self.dtype_policy)
        layer.build(shape)
        return layer

    def _seed(self, number: int) -> int | None:
        # One seed for all of them would drop the same places everywhere.
        return None if self.seed is None else self.seed + 1000 * number


@keras.saving.register_keras_serializable(package="kerasloom")
class TransformerEncoderBlock(TransformerBlock):
    """Every step reads the whole sequence, then a feed-forward network works on each. Equations: `TransformerBlock`.

    Args:
        num_heads: Number of heads of the attention, at least 1.
        feed_forward_units: Width of the feed-forward network's hidden layer.
        **kwargs: The other arguments of `TransformerBlock`.

    Call arguments:
        sequence: `(batch, time, features)`.
        mask: `(batch, time)` booleans, true where a step is valid.
        training: Whether dropout is on.

    Output shape:
        That of `sequence`; the mask is passed on.

    Raises:
        ValueError: If an argument is out of range or a shape does not fit.

    Example:
        >>> tuple(TransformerEncoderBlock(2, 16, activation="gelu")(keras.ops.ones((2, 7, 8))).shape)
        (2, 7, 8)
    """

    def call(self, sequence: Tensor, mask: Tensor | None = None, training: bool | None = False) -> Tensor:
        """Runs the block."""
        mask = None if mask is None else ops.cast(mask, "bool")

        def attend(sequence: Tensor) -> Tensor:
            return self.self_attention(sequence, sequence, value_mask=mask, training=training)

        sequence = valid_only(sequence, mask)
        sequence = self._part(sequence, self.self_attention_norm, attend, training)
        sequence = self._part(sequence, self.feed_forward_norm, self._feed_forward, training)
        return valid_only(sequence, mask)


class DecoderCache(NamedTuple):
    """What a decoder block has read so far.

    Attributes:
        own: Keys and values of its own sequence.
        memory: Keys and values of the other sequence; without one nothing, as an empty tuple.
    """

    own: KeysAndValues
    memory: KeysAndValues | tuple[()]


@keras.saving.register_keras_serializable(package="kerasloom")
class TransformerDecoderBlock(TransformerBlock):
    """Every step reads the steps up to itself, then another sequence, then a feed-forward network works on each.

    Equations: `TransformerBlock`. Without cross-attention it is the block of a language model. Generating goes step by
    step, with the keys and values of the steps before in a cache: `empty_cache`, `extend`, `step`.

    Args:
        num_heads: Number of heads of the attentions, at least 1.
        feed_forward_units: Width of the feed-forward network's hidden layer.
        cross_attention: Whether another sequence, the memory, is read.
        **kwargs: The other arguments of `TransformerBlock`.

    Call arguments:
        sequence: `(batch, time, features)`.
        memory: `(batch, memory time, memory features)`, usually what an encoder puts out.
        mask: `(batch, time)` booleans, true where a step is valid.
        memory_mask: `(batch, memory time)` booleans, true for the steps of the memory that may be read.
        training: Whether dropout is on.
        sequence_mask: The same as `mask`: under this name Keras hands over the mask of `sequence` when there is a
            second input.

    Output shape:
        That of `sequence`; the mask is passed on.

    Raises:
        ValueError: If an argument is out of range, a shape does not fit, or the memory is missing or not wanted.

    Example:
        >>> block = TransformerDecoderBlock(2, 16)
        >>> sequence, memory = keras.random.normal((2, 3, 8)), keras.random.normal((2, 5, 8))
        >>> whole = block(sequence, memory)
        >>> cache = block.empty_cache(batch_size=2, max_length=3, memory=memory)
        >>> for time in range(3):
        ...     output, cache = block.step(sequence[:, time], cache)
        >>> bool(keras.ops.max(keras.ops.abs(output - whole[:, -1])) < 1e-5)
        True
    """

    def __init__(self, num_heads: int, feed_forward_units: int, *, cross_attention: bool = True, **kwargs: Any):
        super().__init__(num_heads, feed_forward_units, **kwargs)
        self.cross_attention = cross_attention

    def build(self, sequence_shape: Shape, memory_shape: Shape | None = None) -> None:
        """Creates the parts."""
        super().build(sequence_shape)
        if self.cross_attention:
            if memory_shape is None:
                raise ValueError(f"memory of {self.name} is missing; without one it needs cross_attention=False.")
            self.memory_attention = self._attention("memory_attention", sequence_shape, 1)
            self.memory_attention.build(sequence_shape, memory_shape)
            self.memory_attention_norm = self._norm("memory_attention_norm", sequence_shape)

    def call(
        self,
        sequence: Tensor,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        training: bool | None = False,
        sequence_mask: Tensor | None = None,
    ) -> Tensor:
        """Runs the block. For the arguments see the class."""
        self._check_memory(memory)
        mask = sequence_mask if mask is None else mask
        mask = None if mask is None else ops.cast(mask, "bool")

        def attend(sequence: Tensor) -> Tensor:
            return self.self_attention(sequence, sequence, value_mask=mask, use_causal_mask=True, training=training)

        def read(sequence: Tensor) -> Tensor:
            return self.memory_attention(sequence, memory, value_mask=memory_mask, training=training)

        return self._run(sequence, mask, attend, read, training)

    def memory_scores(
        self, sequence: Tensor, memory: Tensor, mask: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Runs the block as at prediction; returns its output, and what each step reads of the memory.

        The second are the weights of the attention to the memory, `(batch, num_heads, time, memory time)`.
        """
        scores = None

        def attend(sequence: Tensor) -> Tensor:
            return self.self_attention(sequence, sequence, value_mask=mask, use_causal_mask=True)

        def read(sequence: Tensor) -> Tensor:
            nonlocal scores
            output, scores = self.memory_attention(
                sequence, memory, value_mask=memory_mask, return_attention_scores=True
            )
            return output

        self._check_memory(memory)
        return self._run(sequence, mask, attend, read, training=False), scores

    def empty_cache(
        self, batch_size: Any, max_length: int, memory: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> DecoderCache:
        """Returns room for what sequences of up to `max_length` steps read, and what the memory has to read.

        Args:
            batch_size: Number of examples.
            max_length: Number of steps.
            memory: `(batch, memory time, memory features)`, if there is cross-attention.
            memory_mask: `(batch, memory time)` booleans, true for the steps that may be read.
        """
        if not self.built:
            raise ValueError(f"{self.name} has no weights yet: call or build it before it reads anything.")
        self._check_memory(memory)
        own = self.self_attention.empty_cache(batch_size, max_length)
        if memory is None:
            return DecoderCache(own, ())
        return DecoderCache(own, self.memory_attention.keys_and_values(memory, mask=memory_mask))

    def extend(self, sequence: Tensor, cache: DecoderCache, mask: Tensor | None = None) -> tuple[Tensor, DecoderCache]:
        """Reads the next steps of a sequence, as at prediction.

        Args:
            sequence: `(batch, new steps, features)`.
            cache: What the call before returned, at the beginning `empty_cache`.
            mask: `(batch, new steps)` booleans, true where a step is valid.

        Returns:
            The output, of the shape of the sequence, and the cache for the next call.
        """
        mask = None if mask is None else ops.cast(mask, "bool")
        own = cache.own

        def attend(sequence: Tensor) -> Tensor:
            nonlocal own
            output, own = self.self_attention.extend(sequence, own, mask)
            return output

        def read(sequence: Tensor) -> Tensor:
            assert isinstance(cache.memory, KeysAndValues)
            return self.memory_attention.read(sequence, cache.memory)

        self._check_memory(cache.memory or None)
        output = self._run(ops.cast(sequence, self.compute_dtype), mask, attend, read, training=False)
        return output, DecoderCache(own, cache.memory)

    def step(self, inputs: Tensor, cache: DecoderCache) -> tuple[Tensor, DecoderCache]:
        """Reads the next step, `(batch, features)`, see `extend`; the output has the same shape."""
        output, cache = self.extend(ops.expand_dims(inputs, 1), cache)
        return output[:, 0], cache

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "cross_attention": self.cross_attention}

    def _run(
        self,
        sequence: Tensor,
        mask: Tensor | None,
        attend: Callable[[Tensor], Tensor],
        read: Callable[[Tensor], Tensor],
        training: bool | None,
    ) -> Tensor:
        sequence = valid_only(sequence, mask)
        sequence = self._part(sequence, self.self_attention_norm, attend, training)
        if self.cross_attention:
            sequence = self._part(sequence, self.memory_attention_norm, read, training)
        sequence = self._part(sequence, self.feed_forward_norm, self._feed_forward, training)
        return valid_only(sequence, mask)

    def _check_memory(self, memory: Any) -> None:
        if (memory is not None) != self.cross_attention:
            wanted = "is missing" if self.cross_attention else "is not read with cross_attention=False"
            raise ValueError(f"memory of {self.name} {wanted}.")
