"""Recurrent layers made of others: both directions of a sequence, and layers on top of each other."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from layers.derivatives import Tensor, Tensors, as_tuple
from layers.recurrent import Recurrent, Shape


@keras.saving.register_keras_serializable(package="kerasloom")
class Bidirectional(keras.layers.Layer):
    """Reads a sequence from both ends with two copies of a recurrent layer, and merges what they say of each step.

    Source: Schuster and Paliwal, 1997, "Bidirectional recurrent neural networks". The copies have weights of their own:
    `forward_layer` reads from the start and `backward_layer` from the end; the backward sequence is turned round, so
    that both outputs of a step stand at that step. Without `return_sequences` the two last outputs are merged. Masks
    work as in the wrapped layer.

    Args:
        layer: An `Elman`, `LSTM`, `GRU` or `EchoState` without `go_backwards`; the copies have its configuration.
        merge_mode: `"concat"`, `"sum"`, `"mul"` or `"ave"` (the mean), or None to return both outputs.
        **kwargs: `name`, `dtype` (by default that of `layer`) and `trainable`.

    Call arguments:
        sequence: `(batch, time, features)`.
        initial_state: The states of the forward layer followed by those of the backward layer; zeros by default.
        mask: `(batch, time)` booleans, true where a step is valid.
        training: Whether dropout and zoneout are on.

    Output shape:
        That of `layer`, with `"concat"` twice as wide; with merge mode None a tuple of two. With `return_state` a tuple
        of that, the forward layer's states and the backward layer's states.

    Raises:
        ValueError: If an argument is out of range or a shape does not fit.

    Example:
        >>> layer = Bidirectional(GRU(3, return_sequences=True))
        >>> tuple(layer(keras.ops.ones((2, 7, 5))).shape)
        (2, 7, 6)
    """

    def __init__(self, layer: Recurrent, merge_mode: str | None = "concat", **kwargs: Any):
        if not isinstance(layer, Recurrent) or layer.go_backwards:
            raise ValueError(f"layer must be an Elman, LSTM, GRU or EchoState without go_backwards, got {layer!r}.")
        if merge_mode not in ("concat", "sum", "mul", "ave", None):
            raise ValueError(f"merge_mode must be 'concat', 'sum', 'mul', 'ave' or None, got {merge_mode!r}.")
        super().__init__(**{"dtype": layer.dtype_policy, **kwargs})
        # With one seed, both directions would drop the same units.
        backward_seed = None if layer.seed is None else layer.seed + 1
        self.forward_layer = _copy(layer, name="forward")
        self.backward_layer = _copy(layer, name="backward", go_backwards=True, seed=backward_seed)
        self.merge_mode = merge_mode
        self.supports_masking = True

    @property
    def return_sequences(self) -> bool:
        """Whether the output has one entry per step."""
        return self.forward_layer.return_sequences

    @property
    def return_state(self) -> bool:
        """Whether the final states are returned after the output."""
        return self.forward_layer.return_state

    @property
    def state_count(self) -> int:
        """Number of states of both directions together."""
        return 2 * self.forward_layer.state_count

    def build(self, sequence_shape: Shape, initial_state_shape: Any = None) -> None:
        """Creates the weights of both directions."""
        for layer in (self.forward_layer, self.backward_layer):
            if not layer.built:
                layer.build(sequence_shape)

    def call(
        self,
        sequence: Tensor,
        initial_state: Sequence[Tensor] | None = None,
        mask: Tensor | None = None,
        training: bool | None = False,
        sequence_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Runs both directions and merges their outputs. For the arguments see the class and `Recurrent.call`."""
        mask = sequence_mask if mask is None else mask
        forward_state, backward_state = self._split_state(initial_state)
        forward = as_tuple(self.forward_layer(sequence, forward_state, mask=mask, training=training))
        backward = as_tuple(self.backward_layer(sequence, backward_state, mask=mask, training=training))
        backward_output = ops.flip(backward[0], axis=1) if self.return_sequences else backward[0]
        merged = self._merge(forward[0], backward_output)
        results = (*merged, *forward[1:], *backward[1:])
        return results if len(results) > 1 else results[0]

    def step(self, inputs: Tensor, states: Sequence[Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Refuses: the backward direction starts at the end of a sequence."""
        raise ValueError(f"{self.name} reads from both ends and cannot be stepped; use one direction for streams.")

    def reset_state(self) -> None:
        """Sets the states that `stateful` layers carry from batch to batch to zero."""
        for layer in (self.forward_layer, self.backward_layer):
            layer.reset_state()

    def compute_mask(self, sequence: Any, mask: Tensor | None = None) -> Any:
        """Returns the mask of the output sequence; states and last outputs have none."""
        output_masks = [mask if self.return_sequences else None] * (2 if self.merge_mode is None else 1)
        masks = (*output_masks, *[None] * (self.state_count if self.return_state else 0))
        return masks if len(masks) > 1 else masks[0]

    def compute_output_shape(self, sequence_shape: Shape, initial_state_shape: Any = None) -> Any:
        """Returns the shape of every output, as a tuple where there are several."""
        layer_shapes = self.forward_layer.compute_output_shape(sequence_shape)
        output_shape, *state_shapes = layer_shapes if self.return_state else [layer_shapes]
        if self.merge_mode == "concat":
            output_shape = (*output_shape[:-1], 2 * output_shape[-1])
        shapes = (*[output_shape] * (2 if self.merge_mode is None else 1), *state_shapes * 2)
        return shapes if len(shapes) > 1 else shapes[0]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        layer = keras.saving.serialize_keras_object(self.forward_layer)
        return {**super().get_config(), "layer": layer, "merge_mode": self.merge_mode}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Bidirectional":
        """Returns the layer that `get_config` describes."""
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})

    def _split_state(self, initial_state: Sequence[Tensor] | None) -> tuple[Any, Any]:
        if initial_state is None:
            return None, None
        if not isinstance(initial_state, (list, tuple)) or len(initial_state) != self.state_count:
            raise ValueError(f"initial_state of {self.name} must be a list of {self.state_count} tensors.")
        half = self.state_count // 2
        return list(initial_state[:half]), list(initial_state[half:])

    def _merge(self, forward: Tensor, backward: Tensor) -> Tensors:
        if self.merge_mode is None:
            return forward, backward
        if self.merge_mode == "concat":
            return (ops.concatenate([forward, backward], axis=-1),)
        if self.merge_mode == "mul":
            return (forward * backward,)
        return ((forward + backward) / (2 if self.merge_mode == "ave" else 1),)


@keras.saving.register_keras_serializable(package="kerasloom")
class Stacked(keras.layers.Layer):
    """Recurrent layers on top of each other, each reading the output sequence of the one below.

    Source: Graves, Mohamed and Hinton, 2013, "Speech recognition with deep recurrent neural networks". Masks go through
    the whole stack.

    Args:
        layers: `Elman`, `LSTM`, `GRU`, `EchoState` or `Bidirectional` layers from the bottom to the top. All but the
            last need `return_sequences=True`; all or none have `return_state=True`; no `Bidirectional` may have merge
            mode None.
        **kwargs: `name`, `dtype` (by default that of the last layer) and `trainable`.

    Call arguments:
        sequence: `(batch, time, features)`.
        initial_state: The states of all layers, from the bottom to the top, in one list; zeros by default.
        mask: `(batch, time)` booleans, true where a step is valid.
        training: Whether dropout and zoneout are on.

    Output shape:
        That of the last layer. With `return_state` a tuple of its output and the final states of all layers, from the
        bottom to the top, ready to be an `initial_state`.

    Raises:
        ValueError: If an argument is out of range or a shape does not fit.

    Example:
        >>> layer = Stacked([LSTM(4, return_sequences=True), LSTM(3)])
        >>> tuple(layer(keras.ops.ones((2, 7, 5))).shape)
        (2, 3)
    """

    def __init__(self, layers: Sequence[Recurrent | Bidirectional], **kwargs: Any):
        _check_stack(layers)
        super().__init__(**{"dtype": layers[-1].dtype_policy, **kwargs})
        self.layers = list(layers)
        self.supports_masking = True

    @property
    def return_sequences(self) -> bool:
        """Whether the output has one entry per step."""
        return self.layers[-1].return_sequences

    @property
    def return_state(self) -> bool:
        """Whether the final states are returned after the output."""
        return self.layers[-1].return_state

    @property
    def state_count(self) -> int:
        """Number of states of all layers together."""
        return sum(layer.state_count for layer in self.layers)

    def build(self, sequence_shape: Shape, initial_state_shape: Any = None) -> None:
        """Creates the weights of all layers."""
        for layer in self.layers:
            # Loading a model builds the layers before the stack.
            if not layer.built:
                layer.build(sequence_shape)
            sequence_shape = self._first(layer.compute_output_shape(sequence_shape))

    def call(
        self,
        sequence: Tensor,
        initial_state: Sequence[Tensor] | None = None,
        mask: Tensor | None = None,
        training: bool | None = False,
        sequence_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Runs the layers in turn. For the arguments see the class and `Recurrent.call`."""
        mask = sequence_mask if mask is None else mask
        final_states: Tensors = ()
        for layer, state in zip(self.layers, self._split_state(initial_state), strict=True):
            results = as_tuple(layer(sequence, state, mask=mask, training=training))
            mask = self._first(layer.compute_mask(sequence, mask))
            sequence, final_states = results[0], final_states + results[1:]
        return (sequence, *final_states) if self.return_state else sequence

    def step(self, inputs: Tensor, states: Sequence[Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Reads one time step with all layers, as at prediction. For arguments and results see `Recurrent.step`."""
        new_states: Tensors = ()
        for layer, layer_states in zip(self.layers, self._split_state(states), strict=True):
            inputs, stepped = layer.step(inputs, layer_states)
            new_states += stepped
        return inputs, new_states

    def reset_state(self) -> None:
        """Sets the states that `stateful` layers carry from batch to batch to zero."""
        for layer in self.layers:
            layer.reset_state()

    def compute_mask(self, sequence: Any, mask: Tensor | None = None) -> Any:
        """Returns the mask of the output sequence; states and last outputs have none."""
        for layer in self.layers:
            mask = self._first(layer.compute_mask(sequence, mask))
        return (mask, *[None] * self.state_count) if self.return_state else mask

    def compute_output_shape(self, sequence_shape: Shape, initial_state_shape: Any = None) -> Any:
        """Returns the shape of the output, or with `return_state` those of the output and of every state."""
        state_shapes: list[Shape] = []
        for layer in self.layers:
            shapes = layer.compute_output_shape(sequence_shape)
            sequence_shape = self._first(shapes)
            state_shapes += shapes[1:] if self.return_state else []
        return (sequence_shape, *state_shapes) if self.return_state else sequence_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "layers": [keras.saving.serialize_keras_object(layer) for layer in self.layers]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Stacked":
        """Returns the layer that `get_config` describes."""
        return cls(**{**config, "layers": [keras.saving.deserialize_keras_object(layer) for layer in config["layers"]]})

    def _first(self, results: Any) -> Any:
        return results[0] if self.return_state else results

    def _split_state(self, initial_state: Sequence[Tensor] | None) -> list[Any]:
        if initial_state is None:
            return [None] * len(self.layers)
        states = list(as_tuple(initial_state))
        if len(states) != self.state_count:
            raise ValueError(f"initial_state of {self.name} must hold {self.state_count} tensors, got {len(states)}.")
        return [[states.pop(0) for _ in range(layer.state_count)] for layer in self.layers]


def _check_stack(layers: Sequence[Any]) -> None:
    if not layers or not all(isinstance(layer, (Recurrent, Bidirectional)) for layer in layers):
        raise ValueError(
            f"layers must be one or more Elman, LSTM, GRU, EchoState or Bidirectional layers, got {layers!r}."
        )
    if not all(layer.return_sequences for layer in layers[:-1]):
        raise ValueError("layers must all have return_sequences=True, except the last one.")
    if len({layer.return_state for layer in layers}) > 1:
        raise ValueError("layers must all have return_state=True, or none of them.")
    if any(isinstance(layer, Bidirectional) and layer.merge_mode is None for layer in layers):
        raise ValueError("layers must not hold a Bidirectional with merge_mode=None.")


def _copy(layer: Recurrent, **changes: Any) -> Recurrent:
    return type(layer).from_config({**layer.get_config(), **changes})
