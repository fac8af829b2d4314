"""Recurrent layers: Elman, LSTM and GRU networks, bidirectional and stacked.

All of them read `(batch, time, features)`, understand masks, and keep their weights in the shapes and gate order of the
Keras layers of the same kind, so `get_weights` and `set_weights` exchange weights with those. The input products of all
time steps are one matrix product before the time loop, and in training the gradients are computed in closed form (see
`layers.recurrence`).
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from layers.kernels import tanh
from layers.recurrence import Recurrence, Tensor, Tensors, closed_form_recurrence, differentiable_recurrence

Shape = tuple[int | None, ...]


class Recurrent(keras.layers.Layer):
    """Base of the recurrent layers: weights, masks, states and dropout. Subclasses add one step and its derivative.

    A masked step hands the state on unchanged and puts out zero, and whatever its input holds, NaN included, reaches
    neither values nor gradients. Without `return_sequences` the output is the hidden state after the last valid step
    (the initial state, where no step is valid).

    Args:
        units: Width of the hidden state, at least 1.
        use_bias: Whether to add a bias.
        kernel_initializer: Initializer of the input weights.
        recurrent_initializer: Initializer of the weights on the previous hidden state.
        bias_initializer: Initializer of the bias.
        kernel_regularizer: Regularizer of the input weights.
        recurrent_regularizer: Regularizer of the weights on the previous hidden state.
        bias_regularizer: Regularizer of the bias.
        recurrent_dropout: Fraction of the previous hidden state dropped in training before its matrix product. One
            mask per example and unit, the same at all steps (Gal and Ghahramani, 2016, "A theoretically grounded
            application of dropout in recurrent neural networks"); what is kept is scaled by
            `1 / (1 - recurrent_dropout)`.
        return_sequences: Whether to return the hidden state of every step instead of the last one.
        return_state: Whether to return the final states after the output.
        go_backwards: Whether to read the sequence from its end. The returned sequence is in reading order: last step
            first.
        seed: Seed of the dropout masks.
        **kwargs: `name`, `dtype` and `trainable`, as for every Keras layer.
    """

    gate_count: int
    state_count: int
    saved_count: int

    def __init__(
        self,
        units: int,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        recurrent_dropout: float = 0.0,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if isinstance(units, bool) or not isinstance(units, int) or units < 1:
            raise ValueError(f"units must be a positive integer, got {units!r}.")
        if not 0 <= recurrent_dropout < 1:
            raise ValueError(f"recurrent_dropout must be at least 0 and below 1, got {recurrent_dropout!r}.")
        self.units = units
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.recurrent_initializer = keras.initializers.get(recurrent_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.recurrent_regularizer = keras.regularizers.get(recurrent_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.recurrent_dropout = recurrent_dropout
        self.return_sequences = return_sequences
        self.return_state = return_state
        self.go_backwards = go_backwards
        self.seed = seed
        self.supports_masking = True
        if recurrent_dropout:
            self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, sequence_shape: Shape, initial_state_shape: Any = None) -> None:
        """Creates the weights for sequences of shape `(batch, time, features)`."""
        _check_sequence_shape(self.name, sequence_shape)
        gate_units = self.gate_count * self.units
        self.input_spec = keras.layers.InputSpec(ndim=3, axes={-1: sequence_shape[-1]})
        self.kernel = self.add_weight(
            shape=(sequence_shape[-1], gate_units),
            name="kernel",
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
        )
        self.recurrent_kernel = self.add_weight(
            shape=(self.units, gate_units),
            name="recurrent_kernel",
            initializer=self.recurrent_initializer,
            regularizer=self.recurrent_regularizer,
        )
        if self.use_bias:
            self.bias = self.add_weight(
                shape=self._bias_shape(),
                name="bias",
                initializer=self._initial_bias,
                regularizer=self.bias_regularizer,
            )

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
            initial_state: The states before the first step, each `(batch, units)`; zeros by default.
            mask: `(batch, time)` booleans, true where a step is valid.
            training: Whether to drop out and to use the closed-form gradients.
            sequence_mask: The same as `mask`: under this name Keras hands over the mask of `sequence` when there is a
                second input.

        Returns:
            The hidden state, `(batch, units)`, or with `return_sequences` all of them, `(batch, time, units)`; with
            `return_state` a tuple of that and the final states.
        """
        mask = sequence_mask if mask is None else mask
        sequence = ops.transpose(ops.cast(sequence, self.compute_dtype), (1, 0, 2))
        if mask is not None:
            mask = ops.expand_dims(ops.transpose(ops.cast(mask, "bool")), -1)
            # Zero times NaN is NaN: padding has to be replaced before the product, not after it.
            sequence = ops.where(mask, sequence, ops.zeros_like(sequence))
        if self.go_backwards:
            # Not left to the loop: converters to ONNX take every loop for one that counts upwards.
            sequence, mask = ops.flip(sequence, axis=0), None if mask is None else ops.flip(mask, axis=0)
        start = Recurrence(
            projected=self._project(sequence),
            weights=self._recurrent_weights(),
            initial_states=self._initial_states(initial_state, ops.shape(sequence)[1]),
            mask=mask,
            dropout_mask=self._dropout_mask(ops.shape(sequence)[1]) if training else None,
        )
        recurrence = closed_form_recurrence if training else differentiable_recurrence
        outputs, final_states = recurrence(self, start, self.return_sequences)
        output = ops.transpose(outputs, (1, 0, 2)) if self.return_sequences else final_states[0]
        return (output, *final_states) if self.return_state else output

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
        return {
            **super().get_config(),
            "units": self.units,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "recurrent_initializer": keras.initializers.serialize(self.recurrent_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "recurrent_regularizer": keras.regularizers.serialize(self.recurrent_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "recurrent_dropout": self.recurrent_dropout,
            "return_sequences": self.return_sequences,
            "return_state": self.return_state,
            "go_backwards": self.go_backwards,
            "seed": self.seed,
        }

    def step(
        self, states: Tensors, projected: Tensor, weights: Tensors, dropout_mask: Tensor | None
    ) -> tuple[Tensors, Tensors]:
        """One time step, see `layers.recurrence.Cell`."""
        raise NotImplementedError

    def step_gradient(
        self, state_gradients: Tensors, saved: Tensors, transposed_kernel: Tensor, dropout_mask: Tensor | None
    ) -> tuple[Tensor, Tensors]:
        """The derivative of `step`, see `layers.recurrence.Cell`."""
        raise NotImplementedError

    def weight_gradients(self, projected_gradient: Tensor, saved: Tensors, dropout_mask: Tensor | None) -> Tensors:
        """The gradient of the recurrent kernel, see `layers.recurrence.Cell`. The hidden state is saved first."""
        return (_summed_product(_dropped(saved[0], dropout_mask), projected_gradient),)

    def _bias_shape(self) -> tuple[int, ...]:
        return (self.gate_count * self.units,)

    def _initial_bias(self, shape: tuple[int, ...], dtype: Any = None) -> Tensor:
        return self.bias_initializer(shape, dtype=dtype)

    def _recurrent_weights(self) -> Tensors:
        return (self._value(self.recurrent_kernel),)

    def _input_bias(self) -> Tensor:
        return self._value(self.bias)

    def _value(self, variable: Any) -> Tensor:
        # A custom gradient on TensorFlow takes no variables, and a conversion alone may hand the variable back.
        return ops.cast(ops.copy(variable), self.compute_dtype)

    def _project(self, sequence: Tensor) -> Tensor:
        projected = ops.matmul(sequence, self._value(self.kernel))
        return ops.add(projected, self._input_bias()) if self.use_bias else projected

    def _initial_states(self, initial_state: Any, batch_size: Any) -> Tensors:
        if initial_state is None:
            return (ops.zeros((batch_size, self.units), dtype=self.compute_dtype),) * self.state_count
        states = tuple(initial_state) if isinstance(initial_state, (list, tuple)) else (initial_state,)
        if len(states) != self.state_count:
            raise ValueError(f"initial_state of {self.name} must hold {self.state_count} tensors, got {len(states)}.")
        for state in states:
            if len(state.shape) != 2 or state.shape[-1] != self.units:
                raise ValueError(
                    f"initial_state of {self.name} must have shape (batch, {self.units}), got {tuple(state.shape)}."
                )
        return tuple(ops.cast(state, self.compute_dtype) for state in states)

    def _dropout_mask(self, batch_size: Any) -> Tensor | None:
        if not self.recurrent_dropout:
            return None
        ones = ops.ones((batch_size, self.units), dtype=self.compute_dtype)
        return keras.random.dropout(ones, self.recurrent_dropout, seed=self.seed_generator)


@keras.saving.register_keras_serializable(package="kerasloom")
class Elman(Recurrent):
    """Elman network: the hidden state is fed back through one matrix.

        h_t = f(x_t W + h_{t-1} R + b)

    Source: Elman, 1990, "Finding structure in time". Weights: kernel W `(features, units)`, recurrent kernel R
    `(units, units)`, bias b `(units,)`, as in `keras.layers.SimpleRNN`. One state, h.

    Args:
        units: Width of the hidden state, at least 1.
        activation: f, `"tanh"` or `"relu"`.
        **kwargs: The other arguments of `Recurrent`.

    Call arguments:
        sequence: `(batch, time, features)`.
        initial_state: `(batch, units)`; zeros by default.
        mask: `(batch, time)` booleans, true where a step is valid.
        training: Whether recurrent dropout is on.

    Output shape:
        `(batch, units)`, or `(batch, time, units)` with `return_sequences`; with `return_state` a tuple of that and h.

    Raises:
        ValueError: If an argument is out of range or a shape does not fit.

    Example:
        >>> layer = Elman(3, return_sequences=True)
        >>> tuple(layer(keras.ops.ones((2, 7, 5))).shape)
        (2, 7, 3)
    """

    gate_count = 1
    state_count = 1
    saved_count = 2

    def __init__(self, units: int, activation: str = "tanh", **kwargs: Any):
        super().__init__(units, **kwargs)
        if activation not in ("tanh", "relu"):
            raise ValueError(f"activation must be 'tanh' or 'relu', got {activation!r}.")
        self.activation = activation

    def step(
        self, states: Tensors, projected: Tensor, weights: Tensors, dropout_mask: Tensor | None
    ) -> tuple[Tensors, Tensors]:
        """One time step."""
        (hidden_state,) = states
        weighted_sum = projected + ops.matmul(_dropped(hidden_state, dropout_mask), weights[0])
        new_hidden_state = tanh(weighted_sum) if self.activation == "tanh" else ops.relu(weighted_sum)
        return (new_hidden_state,), (hidden_state, new_hidden_state)

    def step_gradient(
        self, state_gradients: Tensors, saved: Tensors, transposed_kernel: Tensor, dropout_mask: Tensor | None
    ) -> tuple[Tensor, Tensors]:
        """The derivative of `step`."""
        (hidden_gradient,), (_, new_hidden_state) = state_gradients, saved
        if self.activation == "tanh":
            sum_gradient = hidden_gradient * (1 - new_hidden_state * new_hidden_state)
        else:
            sum_gradient = ops.where(new_hidden_state > 0, hidden_gradient, ops.zeros_like(hidden_gradient))
        return sum_gradient, (_dropped(ops.matmul(sum_gradient, transposed_kernel), dropout_mask),)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "activation": self.activation}


@keras.saving.register_keras_serializable(package="kerasloom")
class LSTM(Recurrent):
    """Long short-term memory: gates decide what a cell state keeps, takes in and shows.

        i_t = sigmoid(x_t W_i + h_{t-1} R_i + b_i)        input gate
        f_t = sigmoid(x_t W_f + h_{t-1} R_f + b_f)        forget gate
        g_t = tanh(x_t W_c + h_{t-1} R_c + b_c)           candidate
        o_t = sigmoid(x_t W_o + h_{t-1} R_o + b_o)        output gate
        c_t = f_t * c_{t-1} + i_t * g_t
        h_t = o_t * tanh(c_t)

    Source: Hochreiter and Schmidhuber, 1997, "Long short-term memory"; forget gate: Gers, Schmidhuber and Cummins,
    2000, "Learning to forget". Weights, packed side by side in the order i, f, c, o as in `keras.layers.LSTM`: kernel
    `(features, 4 * units)`, recurrent kernel `(units, 4 * units)`, bias `(4 * units,)`. Two states, h and c.

    Args:
        units: Width of the hidden state and of the cell state, at least 1.
        unit_forget_bias: Whether the forget gate's bias starts at one, which keeps the cell state at first.
        **kwargs: The other arguments of `Recurrent`.

    Call arguments:
        sequence: `(batch, time, features)`.
        initial_state: `[h, c]`, each `(batch, units)`; zeros by default.
        mask: `(batch, time)` booleans, true where a step is valid.
        training: Whether recurrent dropout is on.

    Output shape:
        `(batch, units)`, or `(batch, time, units)` with `return_sequences`; with `return_state` a tuple of that, h and
        c.

    Raises:
        ValueError: If an argument is out of range or a shape does not fit.

    Example:
        >>> output, hidden_state, cell_state = LSTM(3, return_state=True)(keras.ops.ones((2, 7, 5)))
        >>> tuple(output.shape), tuple(cell_state.shape)
        ((2, 3), (2, 3))
    """

    gate_count = 4
    state_count = 2
    saved_count = 7

    def __init__(self, units: int, unit_forget_bias: bool = True, **kwargs: Any):
        super().__init__(units, **kwargs)
        self.unit_forget_bias = unit_forget_bias

    def step(
        self, states: Tensors, projected: Tensor, weights: Tensors, dropout_mask: Tensor | None
    ) -> tuple[Tensors, Tensors]:
        """One time step."""
        hidden_state, cell_state = states
        weighted_sums = projected + ops.matmul(_dropped(hidden_state, dropout_mask), weights[0])
        input_sum, forget_sum, candidate_sum, output_sum = ops.split(weighted_sums, 4, axis=-1)
        input_gate, forget_gate, output_gate = map(ops.sigmoid, (input_sum, forget_sum, output_sum))
        candidate = tanh(candidate_sum)
        new_cell_state = forget_gate * cell_state + input_gate * candidate
        cell_output = tanh(new_cell_state)
        saved = (hidden_state, cell_state, input_gate, forget_gate, candidate, output_gate, cell_output)
        return (output_gate * cell_output, new_cell_state), saved

    def step_gradient(
        self, state_gradients: Tensors, saved: Tensors, transposed_kernel: Tensor, dropout_mask: Tensor | None
    ) -> tuple[Tensor, Tensors]:
        """The derivative of `step`."""
        hidden_gradient, cell_gradient = state_gradients
        _, cell_state, input_gate, forget_gate, candidate, output_gate, cell_output = saved
        cell_gradient = cell_gradient + hidden_gradient * output_gate * (1 - cell_output * cell_output)
        sum_gradients = ops.concatenate(
            [
                cell_gradient * candidate * input_gate * (1 - input_gate),
                cell_gradient * cell_state * forget_gate * (1 - forget_gate),
                cell_gradient * input_gate * (1 - candidate * candidate),
                hidden_gradient * cell_output * output_gate * (1 - output_gate),
            ],
            axis=-1,
        )
        previous_hidden_gradient = _dropped(ops.matmul(sum_gradients, transposed_kernel), dropout_mask)
        return sum_gradients, (previous_hidden_gradient, cell_gradient * forget_gate)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "unit_forget_bias": self.unit_forget_bias}

    def _initial_bias(self, shape: tuple[int, ...], dtype: Any = None) -> Tensor:
        if not self.unit_forget_bias:
            return super()._initial_bias(shape, dtype)
        input_bias = self.bias_initializer((self.units,), dtype=dtype)
        other_bias = self.bias_initializer((2 * self.units,), dtype=dtype)
        return ops.concatenate([input_bias, ops.ones((self.units,), dtype=dtype), other_bias])


@keras.saving.register_keras_serializable(package="kerasloom")
class GRU(Recurrent):
    """Gated recurrent unit: one gate mixes the old state with a candidate, another hides part of the old state from it.

        z_t = sigmoid(x_t W_z + h_{t-1} R_z + b_z)                 update gate
        r_t = sigmoid(x_t W_r + h_{t-1} R_r + b_r)                 reset gate
        g_t = tanh(x_t W_h + (r_t * h_{t-1}) R_h + b_h)            candidate, reset_after=False
        g_t = tanh(x_t W_h + b_h + r_t * (h_{t-1} R_h + b'_h))     candidate, reset_after=True
        h_t = z_t * h_{t-1} + (1 - z_t) * g_t

    Here, as in Keras, z is the share of the old state. The other convention in use,
    h_t = (1 - z_t) * h_{t-1} + z_t * g_t, is the same function with W_z, R_z and b_z negated, because
    sigmoid(-a) = 1 - sigmoid(a).

    Source: Cho et al., 2014, "Learning phrase representations using RNN encoder-decoder for statistical machine
    translation". Weights, packed side by side in the order z, r, h as in `keras.layers.GRU`: kernel
    `(features, 3 * units)`, recurrent kernel `(units, 3 * units)`, bias `(3 * units,)` or, with `reset_after`,
    `(2, 3 * units)`: one row for the input and one for the hidden state. One state, h.

    Args:
        units: Width of the hidden state, at least 1.
        reset_after: Whether the reset gate acts after the matrix product, which needs one product per step instead of
            two, or before it, as in the paper.
        **kwargs: The other arguments of `Recurrent`.

    Call arguments:
        sequence: `(batch, time, features)`.
        initial_state: `(batch, units)`; zeros by default.
        mask: `(batch, time)` booleans, true where a step is valid.
        training: Whether recurrent dropout is on.

    Output shape:
        `(batch, units)`, or `(batch, time, units)` with `return_sequences`; with `return_state` a tuple of that and h.

    Raises:
        ValueError: If an argument is out of range or a shape does not fit.

    Example:
        >>> layer = GRU(3, reset_after=False)
        >>> tuple(layer(keras.ops.ones((2, 7, 5))).shape)
        (2, 3)
    """

    gate_count = 3
    state_count = 1

    def __init__(self, units: int, reset_after: bool = True, **kwargs: Any):
        super().__init__(units, **kwargs)
        self.reset_after = reset_after
        self.saved_count = 5 if reset_after else 4

    def step(
        self, states: Tensors, projected: Tensor, weights: Tensors, dropout_mask: Tensor | None
    ) -> tuple[Tensors, Tensors]:
        """One time step."""
        (hidden_state,) = states
        recurrent_input = _dropped(hidden_state, dropout_mask)
        gate_input, candidate_input = _split_candidate(projected, self.units)
        if self.reset_after:
            gate_product, candidate_product = _split_candidate(
                self._recurrent_sum(recurrent_input, weights), self.units
            )
        else:
            gate_kernel, candidate_kernel = _split_candidate(weights[0], self.units)
            gate_product = ops.matmul(recurrent_input, gate_kernel)
        update_gate, reset_gate = ops.split(ops.sigmoid(gate_input + gate_product), 2, axis=-1)
        if self.reset_after:
            candidate = tanh(candidate_input + reset_gate * candidate_product)
        else:
            candidate = tanh(candidate_input + ops.matmul(reset_gate * recurrent_input, candidate_kernel))
        new_hidden_state = candidate + update_gate * (hidden_state - candidate)
        saved = (hidden_state, update_gate, reset_gate, candidate)
        return (new_hidden_state,), (*saved, candidate_product) if self.reset_after else saved

    def step_gradient(
        self, state_gradients: Tensors, saved: Tensors, transposed_kernel: Tensor, dropout_mask: Tensor | None
    ) -> tuple[Tensor, Tensors]:
        """The derivative of `step`."""
        (hidden_gradient,) = state_gradients
        hidden_state, update_gate, reset_gate, candidate = saved[:4]
        update_sum_gradient = hidden_gradient * (hidden_state - candidate) * update_gate * (1 - update_gate)
        candidate_sum_gradient = hidden_gradient * (1 - update_gate) * (1 - candidate * candidate)
        if self.reset_after:
            reset_gradient = candidate_sum_gradient * saved[4]
        else:
            gate_kernel, candidate_kernel = transposed_kernel[: 2 * self.units], transposed_kernel[2 * self.units :]
            reset_input_gradient = ops.matmul(candidate_sum_gradient, candidate_kernel)
            reset_gradient = reset_input_gradient * _dropped(hidden_state, dropout_mask)
        reset_sum_gradient = reset_gradient * reset_gate * (1 - reset_gate)
        gate_gradients = [update_sum_gradient, reset_sum_gradient]
        sum_gradients = ops.concatenate([*gate_gradients, candidate_sum_gradient], axis=-1)
        if self.reset_after:
            recurrent_gradients = ops.concatenate([*gate_gradients, candidate_sum_gradient * reset_gate], axis=-1)
            recurrent_input_gradient = ops.matmul(recurrent_gradients, transposed_kernel)
        else:
            recurrent_input_gradient = ops.matmul(ops.concatenate(gate_gradients, axis=-1), gate_kernel)
            recurrent_input_gradient = recurrent_input_gradient + reset_input_gradient * reset_gate
        return sum_gradients, (_dropped(recurrent_input_gradient, dropout_mask) + hidden_gradient * update_gate,)

    def weight_gradients(self, projected_gradient: Tensor, saved: Tensors, dropout_mask: Tensor | None) -> Tensors:
        """The gradients of the recurrent kernel and, with `reset_after`, of the recurrent bias."""
        recurrent_input, reset_gate = _dropped(saved[0], dropout_mask), saved[2]
        gate_gradients, candidate_gradient = _split_candidate(projected_gradient, self.units)
        if not self.reset_after:
            gate_kernel_gradient = _summed_product(recurrent_input, gate_gradients)
            candidate_kernel_gradient = _summed_product(reset_gate * recurrent_input, candidate_gradient)
            return (ops.concatenate([gate_kernel_gradient, candidate_kernel_gradient], axis=-1),)
        recurrent_gradients = ops.concatenate([gate_gradients, candidate_gradient * reset_gate], axis=-1)
        kernel_gradient = _summed_product(recurrent_input, recurrent_gradients)
        return (kernel_gradient, ops.sum(recurrent_gradients, axis=(0, 1))) if self.use_bias else (kernel_gradient,)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "reset_after": self.reset_after}

    def _bias_shape(self) -> tuple[int, ...]:
        return (2, 3 * self.units) if self.reset_after else (3 * self.units,)

    def _input_bias(self) -> Tensor:
        bias = self._value(self.bias)
        return bias[0] if self.reset_after else bias

    def _recurrent_weights(self) -> Tensors:
        weights = super()._recurrent_weights()
        if self.reset_after and self.use_bias:
            weights += (self._value(self.bias)[1],)
        return weights

    def _recurrent_sum(self, recurrent_input: Tensor, weights: Tensors) -> Tensor:
        product = ops.matmul(recurrent_input, weights[0])
        return product + weights[1] if self.use_bias else product


@keras.saving.register_keras_serializable(package="kerasloom")
class Bidirectional(keras.layers.Layer):
    """Reads a sequence from both ends with two copies of a recurrent layer, and merges what they say of each step.

    Source: Schuster and Paliwal, 1997, "Bidirectional recurrent neural networks". The copies have weights of their own:
    `forward_layer` reads from the start and `backward_layer` from the end; the backward sequence is turned round, so
    that both outputs of a step stand at that step. Without `return_sequences` the two last outputs are merged. Masks
    work as in the wrapped layer.

    Args:
        layer: An `Elman`, `LSTM` or `GRU` without `go_backwards`; the copies have its configuration.
        merge_mode: `"concat"`, `"sum"`, `"mul"` or `"ave"` (the mean), or None to return both outputs.
        **kwargs: `name`, `dtype` (by default that of `layer`) and `trainable`.

    Call arguments:
        sequence: `(batch, time, features)`.
        initial_state: The states of the forward layer followed by those of the backward layer; zeros by default.
        mask: `(batch, time)` booleans, true where a step is valid.
        training: Whether recurrent dropout is on.

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
            raise ValueError(f"layer must be an Elman, LSTM or GRU without go_backwards, got {layer!r}.")
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
        forward = _as_tuple(self.forward_layer(sequence, forward_state, mask=mask, training=training))
        backward = _as_tuple(self.backward_layer(sequence, backward_state, mask=mask, training=training))
        backward_output = ops.flip(backward[0], axis=1) if self.return_sequences else backward[0]
        merged = self._merge(forward[0], backward_output)
        results = (*merged, *forward[1:], *backward[1:])
        return results if len(results) > 1 else results[0]

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
        layers: `Elman`, `LSTM`, `GRU` or `Bidirectional` layers from the bottom to the top. All but the last need
            `return_sequences=True`; all or none have `return_state=True`; no `Bidirectional` may have merge mode None.
        **kwargs: `name`, `dtype` (by default that of the last layer) and `trainable`.

    Call arguments:
        sequence: `(batch, time, features)`.
        initial_state: The states of all layers, from the bottom to the top, in one list; zeros by default.
        mask: `(batch, time)` booleans, true where a step is valid.
        training: Whether recurrent dropout is on.

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
            results = _as_tuple(layer(sequence, state, mask=mask, training=training))
            mask = self._first(layer.compute_mask(sequence, mask))
            sequence, final_states = results[0], final_states + results[1:]
        return (sequence, *final_states) if self.return_state else sequence

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
        states = list(initial_state) if isinstance(initial_state, (list, tuple)) else [initial_state]
        if len(states) != self.state_count:
            raise ValueError(f"initial_state of {self.name} must hold {self.state_count} tensors, got {len(states)}.")
        return [[states.pop(0) for _ in range(layer.state_count)] for layer in self.layers]


def _check_sequence_shape(name: str, sequence_shape: Shape) -> None:
    if len(sequence_shape) != 3 or sequence_shape[-1] is None:
        raise ValueError(f"sequence of {name} must have shape (batch, time, features), got {tuple(sequence_shape)}.")


def _check_stack(layers: Sequence[Any]) -> None:
    if not layers or not all(isinstance(layer, (Recurrent, Bidirectional)) for layer in layers):
        raise ValueError(f"layers must be one or more Elman, LSTM, GRU or Bidirectional layers, got {layers!r}.")
    if not all(layer.return_sequences for layer in layers[:-1]):
        raise ValueError("layers must all have return_sequences=True, except the last one.")
    if len({layer.return_state for layer in layers}) > 1:
        raise ValueError("layers must all have return_state=True, or none of them.")
    if any(isinstance(layer, Bidirectional) and layer.merge_mode is None for layer in layers):
        raise ValueError("layers must not hold a Bidirectional with merge_mode=None.")


def _copy(layer: Recurrent, **changes: Any) -> Recurrent:
    return type(layer).from_config({**layer.get_config(), **changes})


def _as_tuple(results: Any) -> Tensors:
    return tuple(results) if isinstance(results, (tuple, list)) else (results,)


def _dropped(hidden_state: Tensor, dropout_mask: Tensor | None) -> Tensor:
    return hidden_state if dropout_mask is None else hidden_state * dropout_mask


def _split_candidate(gates: Tensor, units: int) -> tuple[Tensor, Tensor]:
    return gates[..., : 2 * units], gates[..., 2 * units :]


def _summed_product(left: Tensor, right: Tensor) -> Tensor:
    """Returns the product of two time-major sequences, summed over time and batch: `(left width, right width)`."""
    left_rows = ops.reshape(left, (-1, left.shape[-1]))
    right_rows = ops.reshape(right, (-1, right.shape[-1]))
    return ops.matmul(ops.transpose(left_rows), right_rows)
