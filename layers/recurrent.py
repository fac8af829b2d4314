"""Recurrent layers: Elman, LSTM, GRU and echo state networks over whole sequences.

All of them read `(batch, time, features)`, understand masks, and keep their weights in the shapes and gate order of the
Keras layers of the same kind, so `get_weights` and `set_weights` exchange weights with those. The input products of all
time steps are one matrix product before the time loop, and in training the gradients are computed in closed form (see
`layers.recurrence`).
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from layers import cudnn
from layers.cells import EchoStateCell, ElmanCell, GRUCell, LSTMCell, RecurrentCell
from layers.derivatives import Tensor, Tensors, as_tuple
from layers.kernels import cudnn_excludes_jit, has_cudnn, padded_length, parts, time_chunks
from layers.recurrence import Batch, Recurrence

Shape = tuple[int | None, ...]

SMALLEST_PART = 16
"""Fewest examples worth a loop of their own: below, reading the weights in every step costs more than a core gains."""


class Recurrent(keras.layers.Layer):
    """Base of the recurrent layers: runs a cell over sequences, with masks, states and dropout.

    A masked step hands the state on unchanged and puts out zero, and whatever its input holds, NaN included, reaches
    neither values nor gradients. Without `return_sequences` the output is the hidden state after the last valid step
    (the initial state, where no step is valid). A layer over another cell is a subclass with its `cell_class`.

    Args:
        units: Width of the hidden state, at least 1.
        return_sequences: Whether to return the hidden state of every step instead of the last one.
        return_state: Whether to return the final states after the output.
        go_backwards: Whether to read the sequence from its end. The returned sequence is in reading order: last step
            first.
        stateful: Whether a batch starts from the final states of the batch before; `reset_state()` starts anew. The
            batch size must be known when the layer is built.
        dropout: Fraction of the input features dropped in training, the same ones at all steps.
        recurrent_dropout: Fraction of the previous hidden state dropped in training before its matrix product. One
            mask per example and unit, the same at all steps (Gal and Ghahramani, 2016, "A theoretically grounded
            application of dropout in recurrent neural networks"); what is kept is scaled by
            `1 / (1 - recurrent_dropout)`.
        learned_initial_state: Whether the states before the first step are weights, zero at first.
        use_cudnn: Whether to use cuDNN where there is an NVIDIA GPU and cuDNN knows the configuration: a bias, the
            usual activations, dropout on the input only, `reset_after`; no layer norm, peepholes or zoneout. On
            TensorFlow such a layer takes no part in `jit_compile`. cuDNN has no second derivatives.
        seed: Seed of the dropout masks and of whatever the cell draws.
        **kwargs: The arguments of the cell, and `name`, `dtype`, `trainable` and `activity_regularizer` as for every
            Keras layer.
    """

    cell_class: type[RecurrentCell]

    def __init__(
        self,
        units: int,
        *,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        learned_initial_state: bool = False,
        use_cudnn: bool = True,
        seed: int | None = None,
        **kwargs: Any,
    ):
        own = {"name", "trainable", "dtype", "activity_regularizer", "input_shape"}
        super().__init__(**{name: value for name, value in kwargs.items() if name in own})
        cell_options = {name: value for name, value in kwargs.items() if name not in own}
        for name, rate in (("dropout", dropout), ("recurrent_dropout", recurrent_dropout)):
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {rate!r}.")
        if stateful and learned_initial_state:
            raise ValueError("stateful and learned_initial_state exclude each other.")
        self.cell = self.cell_class(units, seed=seed, dtype=self.dtype_policy, name="cell", **cell_options)
        self.return_sequences = return_sequences
        self.return_state = return_state
        self.go_backwards = go_backwards
        self.stateful = stateful
        self.dropout = dropout
        self.recurrent_dropout = recurrent_dropout
        self.learned_initial_state = learned_initial_state
        self.use_cudnn = use_cudnn
        self.seed = seed
        self.supports_masking = True
        self.supports_jit = not (self._cudnn_mode and cudnn_excludes_jit())
        if dropout or recurrent_dropout:
            self.seed_generator = keras.random.SeedGenerator(seed)

    @property
    def units(self) -> int:
        """Width of the hidden state."""
        return self.cell.units

    @property
    def state_count(self) -> int:
        """Number of states."""
        return self.cell.state_count

    def build(self, sequence_shape: Shape, initial_state_shape: Any = None) -> None:
        """Creates the weights for sequences of shape `(batch, time, features)`."""
        _check_sequence_shape(self.name, sequence_shape)
        self.input_spec = keras.layers.InputSpec(ndim=3, axes={-1: sequence_shape[-1]})
        if not self.cell.built:
            self.cell.build((sequence_shape[0], sequence_shape[-1]))
        if self.learned_initial_state:
            self.learned_states = [
                self.add_weight(shape=(self.units,), name=f"initial_state_{index}", initializer="zeros")
                for index in range(self.state_count)
            ]
        if self.stateful:
            if sequence_shape[0] is None:
                raise ValueError(f"stateful: {self.name} needs the batch size, as in keras.Input(batch_shape=...).")
            shape = (sequence_shape[0], self.units)
            self.kept_states = [
                self.add_weight(shape=shape, name=f"state_{index}", initializer="zeros", trainable=False)
                for index in range(self.state_count)
            ]

    def call(
        self,
        sequence: Tensor,
        initial_state: Tensor | Sequence[Tensor] | None = None,
        mask: Tensor | None = None,
        training: bool | None = False,
        sequence_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Runs the layer over the sequence.

        Args:
            sequence: `(batch, time, features)`.
            initial_state: The states before the first step, each `(batch, units)`. By default zeros, the learned ones,
                or with `stateful` those of the last batch.
            mask: `(batch, time)` booleans, true where a step is valid.
            training: Whether to drop out and to use the closed-form gradients.
            sequence_mask: The same as `mask`: under this name Keras hands over the mask of `sequence` when there is a
                second input.

        Returns:
            The hidden state, `(batch, units)`, or with `return_sequences` all of them, `(batch, time, units)`; with
            `return_state` a tuple of that and the final states.
        """
        mask = sequence_mask if mask is None else mask
        sequence = ops.cast(sequence, self.compute_dtype)
        steps, batch = ops.shape(sequence)[1], self._batch(sequence, initial_state, mask, training)

        def looped() -> Tensors:
            return self._looped(batch, steps, bool(training))

        if (
            self._cudnn_mode
            and batch.recurrent_factors is None
            and has_cudnn(self._cudnn_mode, self.compute_dtype, bool(training))
        ):
            options = (self.go_backwards, self.return_sequences)
            output, *final_states = cudnn.run(self.cell, self._cudnn_mode, batch, *options, otherwise=looped)
        else:
            output, *final_states = looped()
        if self.stateful:
            for kept, state in zip(self.kept_states, final_states, strict=True):
                kept.assign(ops.cast(state, kept.dtype))
        return (output, *final_states) if self.return_state else output

    def step(
        self, inputs: Tensor, states: Tensor | Sequence[Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Reads one time step, as at prediction: for streams, and for generating.

        Args:
            inputs: `(batch, features)`.
            states: What the step before returned; None at the beginning.

        Returns:
            The hidden state, `(batch, units)`, and the states to pass to the next step.

        Raises:
            ValueError: If the layer reads backwards, and would have to wait for the end.
        """
        if self.go_backwards:
            raise ValueError(f"go_backwards: {self.name} starts at the end of a sequence and cannot be stepped.")
        inputs = ops.convert_to_tensor(inputs, dtype=self.compute_dtype)
        if not self.built:
            self.build((inputs.shape[0], None, inputs.shape[-1]))
        output, states = self.cell(inputs, self._initial_states(states, ops.shape(inputs)[0]))
        return output, tuple(states)

    def reset_state(self) -> None:
        """Sets the states that a `stateful` layer carries from batch to batch to zero."""
        for state in self.kept_states if self.stateful and self.built else []:
            state.assign(ops.zeros(state.shape, state.dtype))

    def compute_mask(self, sequence: Any, mask: Tensor | None = None) -> Any:
        """Returns the mask of the output sequence, in the order of the output; states and last outputs have none."""
        output_mask = mask if self.return_sequences else None
        if output_mask is not None and self.go_backwards:
            output_mask = ops.flip(output_mask, axis=1)
        return (output_mask, *[None] * self.state_count) if self.return_state else output_mask

    def compute_output_shape(self, sequence_shape: Shape, initial_state_shape: Any = None) -> Any:
        """Returns the shape of the output, or with `return_state` those of the output and of every state."""
        _check_sequence_shape(self.name, sequence_shape)
        state_shape = (sequence_shape[0], self.units)
        output_shape = (*sequence_shape[:2], self.units) if self.return_sequences else state_shape
        return (output_shape, *[state_shape] * self.state_count) if self.return_state else output_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        of_layer = {"name", "trainable", "dtype"}
        return {
            **{name: value for name, value in self.cell.get_config().items() if name not in of_layer},
            **super().get_config(),
            "return_sequences": self.return_sequences,
            "return_state": self.return_state,
            "go_backwards": self.go_backwards,
            "stateful": self.stateful,
            "dropout": self.dropout,
            "recurrent_dropout": self.recurrent_dropout,
            "learned_initial_state": self.learned_initial_state,
            "use_cudnn": self.use_cudnn,
            "seed": self.seed,
        }

    @property
    def _cudnn_mode(self) -> str | None:
        return self.cell.cudnn_mode if self.use_cudnn else None

    def _looped(self, batch: Batch, steps: Any, training: bool) -> Tensors:
        length = padded_length(steps, training)
        recurrence = Recurrence(
            self.cell,
            self.go_backwards,
            self.return_sequences,
            parts(ops.shape(batch.sequence)[0], training, SMALLEST_PART),
            time_chunks(steps, self.units, training),
            steps=None if length is None else steps,
        )
        run = recurrence.closed_form if training else recurrence.differentiable
        output, *final_states = run(self._padded(batch, length), self.cell.tensors())
        if length is not None and self.return_sequences:
            output = output[:, :steps]
        return (output, *final_states)

    def _batch(self, sequence: Tensor, initial_state: Any, mask: Tensor | None, training: bool | None) -> Batch:
        batch_size, steps = ops.shape(sequence)[0], ops.shape(sequence)[1]
        states = self._initial_states(initial_state, batch_size)
        mask = None if mask is None else ops.cast(mask, "bool")
        self._check_sizes(sequence, mask)
        if not training:
            return Batch(sequence, states, mask)
        return Batch(
            sequence,
            states,
            mask,
            self._factors((batch_size, 1, sequence.shape[-1]), self.dropout),
            self._factors((batch_size, self.units), self.recurrent_dropout),
            self.cell.draw_zoneout((batch_size, steps, self.units)),
        )

    def _check_sizes(self, sequence: Tensor, mask: Tensor | None) -> None:
        sizes = tuple(sequence.shape[:2])
        if mask is not None and not _may_be_equal(tuple(mask.shape), sizes):
            raise ValueError(f"mask of {self.name} must have shape (batch, time), {sizes}, got {tuple(mask.shape)}.")
        if self.stateful and not _may_be_equal(sizes[:1], self.kept_states[0].shape[:1]):
            raise ValueError(
                f"{self.name} is stateful and was built for {self.kept_states[0].shape[0]} examples, got {sizes[0]}."
            )

    def _padded(self, batch: Batch, length: Any) -> Batch:
        """Returns the batch with sequences padded, after the last step read, to a length."""
        if length is None:
            return batch
        missing = length - ops.shape(batch.sequence)[1]
        widths = (missing, 0) if self.go_backwards else (0, missing)

        def pad(tensor: Tensor) -> Tensor:
            return ops.pad(tensor, ((0, 0), widths, *((0, 0),) * (len(tensor.shape) - 2)))

        return batch._replace(
            sequence=pad(batch.sequence),
            mask=None if batch.mask is None else pad(batch.mask),
            zoned_out=tuple(map(pad, batch.zoned_out)),
        )

    def _initial_states(self, initial_state: Any, batch_size: Any) -> Tensors:
        if initial_state is None:
            return self._first_states(batch_size)
        states = as_tuple(initial_state)
        if len(states) != self.state_count:
            raise ValueError(f"initial_state of {self.name} must hold {self.state_count} tensors, got {len(states)}.")
        for state in states:
            if len(state.shape) != 2 or state.shape[-1] != self.units:
                raise ValueError(
                    f"initial_state of {self.name} must have shape (batch, {self.units}), got {tuple(state.shape)}."
                )
        return tuple(ops.cast(state, self.compute_dtype) for state in states)

    def _first_states(self, batch_size: Any) -> Tensors:
        if self.stateful:
            return tuple(ops.cast(ops.copy(state), self.compute_dtype) for state in self.kept_states)
        zeros = ops.zeros((batch_size, self.units), dtype=self.compute_dtype)
        if self.learned_initial_state:
            return tuple(zeros + ops.cast(ops.copy(state), self.compute_dtype) for state in self.learned_states)
        return (zeros,) * self.state_count

    def _factors(self, shape: tuple[Any, ...], rate: float) -> Tensor | None:
        if not rate:
            return None
        return keras.random.dropout(ops.ones(shape, dtype=self.compute_dtype), rate, seed=self.seed_generator)


@keras.saving.register_keras_serializable(package="kerasloom")
class Elman(Recurrent):
    """Elman network over sequences: the hidden state is fed back through one matrix. Equations: `ElmanCell`.

    Args:
        units: Width of the hidden state, at least 1.
        **kwargs: The arguments of `ElmanCell` and of `Recurrent`.

    Call arguments:
        sequence: `(batch, time, features)`.
        initial_state: `(batch, units)`; zeros by default.
        mask: `(batch, time)` booleans, true where a step is valid.
        training: Whether dropout and zoneout are on.

    Output shape:
        `(batch, units)`, or `(batch, time, units)` with `return_sequences`; with `return_state` a tuple of that and h.

    Raises:
        ValueError: If an argument is out of range or a shape does not fit.

    Example:
        >>> layer = Elman(3, return_sequences=True)
        >>> tuple(layer(keras.ops.ones((2, 7, 5))).shape)
        (2, 7, 3)
    """

    cell_class = ElmanCell


@keras.saving.register_keras_serializable(package="kerasloom")
class LSTM(Recurrent):
    """Long short-term memory over sequences: gates guard a cell state. Equations: `LSTMCell`.

    Args:
        units: Width of the hidden state and of the cell state, at least 1.
        **kwargs: The arguments of `LSTMCell` and of `Recurrent`.

    Call arguments:
        sequence: `(batch, time, features)`.
        initial_state: `[h, c]`, each `(batch, units)`; zeros by default.
        mask: `(batch, time)` booleans, true where a step is valid.
        training: Whether dropout and zoneout are on.

    Output shape:
        `(batch, units)`, or `(batch, time, units)` with `return_sequences`; with `return_state` a tuple of
        that, h and c.

    Raises:
        ValueError: If an argument is out of range or a shape does not fit.

    Example:
        >>> output, hidden_state, cell_state = LSTM(3, return_state=True)(keras.ops.ones((2, 7, 5)))
        >>> tuple(output.shape), tuple(cell_state.shape)
        ((2, 3), (2, 3))
    """

    cell_class = LSTMCell


@keras.saving.register_keras_serializable(package="kerasloom")
class GRU(Recurrent):
    """Gated recurrent units over sequences. Equations: `GRUCell`.

    Args:
        units: Width of the hidden state, at least 1.
        **kwargs: The arguments of `GRUCell` and of `Recurrent`.

    Call arguments:
        sequence: `(batch, time, features)`.
        initial_state: `(batch, units)`; zeros by default.
        mask: `(batch, time)` booleans, true where a step is valid.
        training: Whether dropout and zoneout are on.

    Output shape:
        `(batch, units)`, or `(batch, time, units)` with `return_sequences`; with `return_state` a tuple of that and h.

    Raises:
        ValueError: If an argument is out of range or a shape does not fit.

    Example:
        >>> layer = GRU(3, reset_after=False)
        >>> tuple(layer(keras.ops.ones((2, 7, 5))).shape)
        (2, 3)
    """

    cell_class = GRUCell


@keras.saving.register_keras_serializable(package="kerasloom")
class EchoState(Recurrent):
    """Echo state network over sequences: a fixed reservoir, for a linear readout. Equations: `EchoStateCell`.

    Args:
        units: Width of the reservoir, at least 1.
        **kwargs: The arguments of `EchoStateCell` and of `Recurrent`.

    Call arguments:
        sequence: `(batch, time, features)`.
        initial_state: `(batch, units)`; zeros by default.
        mask: `(batch, time)` booleans, true where a step is valid.
        training: Whether dropout and zoneout are on.

    Output shape:
        `(batch, units)`, or `(batch, time, units)` with `return_sequences`; with `return_state` a tuple of that and h.

    Raises:
        ValueError: If an argument is out of range or a shape does not fit.

    Example:
        >>> layer = EchoState(50, spectral_radius=0.9, leak=0.3, return_sequences=True, seed=1)
        >>> tuple(layer(keras.ops.ones((2, 7, 5))).shape), len(layer.trainable_weights)
        ((2, 7, 50), 0)
    """

    cell_class = EchoStateCell


def _check_sequence_shape(name: str, sequence_shape: Shape) -> None:
    if len(sequence_shape) != 3 or sequence_shape[-1] is None:
        raise ValueError(f"sequence of {name} must have shape (batch, time, features), got {tuple(sequence_shape)}.")


def _may_be_equal(shape: Shape, other: Shape) -> bool:
    return len(shape) == len(other) and all(
        None in pair or len(set(pair)) == 1 for pair in zip(shape, other, strict=True)
    )
