"""Cells: what one time step of a recurrent network computes, and its weights.

A cell by itself reads one time step, in a custom loop or in `keras.layers.RNN`. The layers of `layers.recurrent` run
the same cells over whole sequences much faster.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from layers.derivatives import Tensor, Tensors, as_tuple
from layers.kernels import tanh
from layers.normalization import standardized
from layers.recurrence import Batch, Step, Weights, advance, entering

Shape = tuple[int | None, ...]
Activation = Callable[[Tensor], Tensor]


class RecurrentCell(keras.layers.Layer):
    """Base of the cells: weights, configuration, and single steps. Subclasses add the equations of a step.

    Args:
        units: Width U of every state, at least 1.
        activation: Activation of the candidate, by Keras' names.
        use_bias: Whether to add a bias.
        kernel_initializer: Initializer of the input weights.
        recurrent_initializer: Initializer of the weights on the previous hidden state.
        bias_initializer: Initializer of the bias.
        kernel_regularizer: Regularizer of the input weights.
        recurrent_regularizer: Regularizer of the weights on the previous hidden state.
        bias_regularizer: Regularizer of the bias.
        kernel_constraint: Constraint on the input weights.
        recurrent_constraint: Constraint on the weights on the previous hidden state.
        bias_constraint: Constraint on the bias.
        layer_norm: Whether to normalize the products with input and hidden state over their units (Ba, Kiros and
            Hinton, 2016, "Layer normalization"), in cells that do so. Every normalized product has a gain; the bias is
            the shift.
        zoneout: Share of the units of a state that keep their old value in a training step; at prediction every unit
            keeps that share of it (Krueger et al., 2017, "Zoneout"). One number, or one per state.
        **kwargs: `name`, `dtype` and `trainable`, as for every Keras layer.
    """

    gate_count: int
    state_count = 1
    trains_weights = True
    has_layer_norm = False

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        layer_norm: bool = False,
        zoneout: float | Sequence[float] = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if isinstance(units, bool) or not isinstance(units, int) or units < 1:
            raise ValueError(f"units must be a positive integer, got {units!r}.")
        if layer_norm and not self.has_layer_norm:
            raise ValueError(f"layer_norm: {type(self).__name__} has none.")
        self.units = units
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.recurrent_initializer = keras.initializers.get(recurrent_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.recurrent_regularizer = keras.regularizers.get(recurrent_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.recurrent_constraint = keras.constraints.get(recurrent_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.layer_norm = layer_norm
        self.zoneout = _zoneout_rates(zoneout, self.state_count)
        self.seed = seed
        if any(self.zoneout):
            # With the seed of the layer's dropout, the same numbers would be drawn.
            self.seed_generator = keras.random.SeedGenerator(_offset(seed, 1000))

    @property
    def summed(self) -> tuple[int, ...]:
        """For every recurrent matrix, how many columns of the projected input go into a sum with its product only."""
        return (0 if self.layer_norm else self.gate_count * self.units,)

    @property
    def cudnn_mode(self) -> str | None:
        """cuDNN's name of a network that computes the same, or None."""
        return None

    @property
    def state_size(self) -> list[int]:
        """Width of every state."""
        return [self.units] * self.state_count

    @property
    def output_size(self) -> int:
        """Width of the output."""
        return self.units

    def build(self, inputs_shape: Shape, states_shape: Any = None) -> None:
        """Creates the weights for inputs of shape `(..., features)`."""
        gate_units, trained = self.gate_count * self.units, self.trains_weights
        self.kernel = self.add_weight(
            shape=(inputs_shape[-1], gate_units),
            name="kernel",
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
            trainable=trained,
        )
        self.recurrent_kernel = self.add_weight(
            shape=(self.units, gate_units),
            name="recurrent_kernel",
            initializer=self.recurrent_initializer,
            regularizer=self.recurrent_regularizer,
            constraint=self.recurrent_constraint,
            trainable=trained,
        )
        if self.use_bias:
            self.bias = self.add_weight(
                shape=self._bias_shape(),
                name="bias",
                initializer=self._initial_bias,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
                trainable=trained,
            )
        if self.layer_norm:
            self.kernel_gain = self.add_weight(shape=(gate_units,), name="kernel_gain", initializer="ones")
            self.recurrent_gain = self.add_weight(shape=(gate_units,), name="recurrent_gain", initializer="ones")

    def call(self, inputs: Tensor, states: Any, training: bool | None = False) -> tuple[Tensor, list[Tensor]]:
        """Runs one step.

        Args:
            inputs: `(batch, features)`.
            states: The states before the step, each `(batch, units)`, the hidden state first.
            training: Whether zoneout draws units at random.

        Returns:
            The hidden state, `(batch, units)`, and the states after the step.
        """
        states = tuple(ops.cast(state, self.compute_dtype) for state in as_tuple(states))
        inputs, weights = ops.cast(inputs, self.compute_dtype), self.tensors()
        zoned_out = self.draw_zoneout(ops.shape(states[0])) if training else ()

        product, projected = entering(self, self.project(inputs, weights.projection), weights)
        new_states = advance(self, Batch(inputs, states), states, projected, product, weights.vectors, zoned_out)
        return new_states[0], list(new_states)

    def get_initial_state(self, batch_size: Any = None) -> list[Tensor]:
        """Returns states of zeros."""
        return [ops.zeros((batch_size, self.units), dtype=self.compute_dtype) for _ in range(self.state_count)]

    def project(self, inputs: Tensor, projection: Tensors) -> Tensor:
        """Returns the input times the input kernel, normalized if told so, plus the bias; for any leading axes."""
        kernel, *others = projection
        projected = ops.matmul(inputs, kernel)
        if self.layer_norm:
            projected = standardized(projected) * others.pop(0)
        return projected + others[0] if self.use_bias else projected

    def tensors(self) -> Weights:
        """Returns the weights for the recurrence."""
        projection = [self.kernel, *([self.kernel_gain] if self.layer_norm else [])]
        tensors = [*map(self._value, projection), *([self._input_bias()] if self.use_bias else [])]
        matrices, vectors = (tuple(map(self._value, each)) for each in (self.matrices(), self.vectors()))
        return Weights(tuple(tensors), matrices, vectors)

    def step(self, now: Step) -> Tensors:
        """Returns the new states, see `layers.recurrence.Step`."""
        raise NotImplementedError

    def draw_zoneout(self, shape: Any) -> Tensors:
        """Returns for every state that has zoneout booleans of a shape, true where the old value is kept."""
        return tuple(
            ops.less(keras.random.uniform(shape, seed=self.seed_generator), rate) for rate in self.zoneout if rate
        )

    def matrices(self) -> tuple[Any, ...]:
        """Returns the weights by which a step multiplies, the one of the recurrent input first."""
        return (self.recurrent_kernel,)

    def vectors(self) -> tuple[Any, ...]:
        """Returns the other weights that a step reads."""
        return (self.recurrent_gain,) if self.layer_norm else ()

    def _value(self, variable: Any) -> Tensor:
        # A custom gradient on TensorFlow takes no variables, and a conversion alone may hand the variable back.
        return ops.cast(ops.copy(variable), self.compute_dtype)

    def compute_output_shape(self, inputs_shape: Shape, states_shape: Any = None) -> tuple[Shape, list[Shape]]:
        """Returns the shapes of the output and of the states."""
        state_shape = (inputs_shape[0], self.units)
        return state_shape, [state_shape] * self.state_count

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        serializers = {
            "initializer": keras.initializers.serialize,
            "regularizer": keras.regularizers.serialize,
            "constraint": keras.constraints.serialize,
        }
        functions = {
            f"{weight}_{kind}": serialize(getattr(self, f"{weight}_{kind}"))
            for kind, serialize in serializers.items()
            for weight in ("kernel", "recurrent", "bias")
        }
        return {
            **super().get_config(),
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            **functions,
            "layer_norm": self.layer_norm,
            "zoneout": list(self.zoneout),
            "seed": self.seed,
        }

    def _normalized_sums(self, now: Step) -> Tensor:
        """Returns the sums of input and recurrent product, the latter normalized if told so."""
        return now.projected + standardized(now.sums) * now.vectors[0] if self.layer_norm else now.sums

    def _is_plain(self) -> bool:
        return self.use_bias and not self.layer_norm and not any(self.zoneout)

    def _bias_shape(self) -> tuple[int, ...]:
        return (self.gate_count * self.units,)

    def _initial_bias(self, shape: tuple[int, ...], dtype: Any = None) -> Tensor:
        return self.bias_initializer(shape, dtype=dtype)

    def _input_bias(self) -> Tensor:
        return self._value(self.bias)


class GatedCell(RecurrentCell):
    """What LSTM and GRU cells share.

    Args:
        units: Width U of every state, at least 1.
        recurrent_activation: Activation of the gates, by Keras' names.
        longest_lag: If given, the biases start such that the units forget over 1 to about this many steps, evenly
            spread (Tallec and Ollivier, 2018, "Can recurrent neural networks warp time?", "chrono initialization").
            Drawn anew in every layer; at least 3.
        **kwargs: The other arguments of `RecurrentCell`.
    """

    def __init__(
        self, units: int, recurrent_activation: Any = "sigmoid", longest_lag: int | None = None, **kwargs: Any
    ):
        super().__init__(units, **kwargs)
        self.recurrent_activation = keras.activations.get(recurrent_activation)
        if longest_lag is not None and longest_lag < 3:
            raise ValueError(f"longest_lag must be at least 3 steps, got {longest_lag!r}.")
        if longest_lag is not None and not self.use_bias:
            raise ValueError("longest_lag starts biases, and there are none with use_bias=False.")
        self.longest_lag = longest_lag

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "recurrent_activation": keras.activations.serialize(self.recurrent_activation),
            "longest_lag": self.longest_lag,
        }

    def _is_plain(self) -> bool:
        gates = (self.activation, self.recurrent_activation)
        return super()._is_plain() and gates == (keras.activations.tanh, keras.activations.sigmoid)

    def _keeping_bias(self, longest_lag: int, dtype: Any) -> Tensor:
        """Returns biases with which a unit forgets a part 1 / lag of its state in every step, lag uniform."""
        lags = keras.random.uniform((self.units,), 1.0, longest_lag - 1.0, dtype=dtype, seed=self.seed)
        return ops.log(lags)


@keras.saving.register_keras_serializable(package="kerasloom")
class ElmanCell(RecurrentCell):
    """One step of an Elman network: the hidden state is fed back through one matrix.

        h_t = f(x_t W + h_{t-1} R + b)                        plain
        h_t = f(LN(x_t W) * g_x + LN(h_{t-1} R) * g_h + b)    layer_norm

    Source: Elman, 1990, "Finding structure in time". Weights: kernel W `(features, units)`, recurrent kernel R
    `(units, units)`, bias b `(units,)`, as in `keras.layers.SimpleRNN`; then the gains. One state, h.

    Args:
        units: Width of the hidden state, at least 1.
        activation: f, by Keras' names. `"relu"` with `recurrent_initializer="identity"` is the IRNN of Le, Jaitly and
            Hinton, 2015, "A simple way to initialize recurrent networks of rectified linear units".
        **kwargs: The other arguments of `RecurrentCell`.

    Call arguments:
        inputs: `(batch, features)`.
        states: `[h]`, `(batch, units)`.

    Output shape:
        The hidden state, `(batch, units)`, and the list of states.

    Example:
        >>> cell = ElmanCell(3)
        >>> output, states = cell(keras.ops.ones((2, 5)), cell.get_initial_state(2))
        >>> tuple(output.shape)
        (2, 3)
    """

    gate_count = 1
    has_layer_norm = True

    @property
    def cudnn_mode(self) -> str | None:
        """cuDNN's name of a network that computes the same, or None."""
        modes = {keras.activations.tanh: "rnn_tanh", keras.activations.relu: "rnn_relu"}
        return modes.get(self.activation) if self._is_plain() else None

    def step(self, now: Step) -> Tensors:
        """Returns the new hidden state."""
        return (_activated(self.activation, self._normalized_sums(now)),)


@keras.saving.register_keras_serializable(package="kerasloom")
class LSTMCell(GatedCell):
    """One step of a long short-term memory: gates decide what a cell state keeps, takes in and shows.

        i_t = sigmoid(x_t W_i + h_{t-1} R_i + p_i * c_{t-1} + b_i)    input gate
        f_t = sigmoid(x_t W_f + h_{t-1} R_f + p_f * c_{t-1} + b_f)    forget gate
        g_t = tanh(x_t W_c + h_{t-1} R_c + b_c)                       candidate
        c_t = f_t * c_{t-1} + i_t * g_t
        o_t = sigmoid(x_t W_o + h_{t-1} R_o + p_o * c_t + b_o)        output gate
        h_t = o_t * tanh(c_t)

    The terms in p are there with `peepholes`. With `layer_norm`, LN(x_t W) * g_x and LN(h_{t-1} R) * g_h, each
    normalized over all gates together, stand for the products, and LN(c_t) * g_c + b_c for c_t in the last line.

    Source: Hochreiter and Schmidhuber, 1997, "Long short-term memory"; forget gate: Gers, Schmidhuber and Cummins,
    2000, "Learning to forget"; peepholes: Gers and Schmidhuber, 2000, "Recurrent nets that time and count". Weights,
    packed side by side in the order i, f, c, o as in `keras.layers.LSTM`: kernel `(features, 4 * units)`, recurrent
    kernel `(units, 4 * units)`, bias `(4 * units,)`; then the gains, and the peepholes p `(3 * units,)` in the order i,
    f, o. Two states, h and c.

    Args:
        units: Width of the hidden state and of the cell state, at least 1.
        activation: Activation of the candidate and of the shown cell state, tanh above.
        recurrent_activation: Activation of the gates, sigmoid above.
        forget_bias: Where the forget gate's bias starts: at one, it keeps the cell state at first. None leaves it to
            `bias_initializer`.
        peepholes: Whether the gates see the cell state.
        longest_lag: Starts the forget gate's bias at log(lag) for lags up to this, the input gate's at minus that.
        **kwargs: The other arguments of `GatedCell` and `RecurrentCell`.

    Call arguments:
        inputs: `(batch, features)`.
        states: `[h, c]`, each `(batch, units)`.

    Output shape:
        The hidden state, `(batch, units)`, and the list of states.

    Example:
        >>> cell = LSTMCell(3, peepholes=True)
        >>> output, (hidden_state, cell_state) = cell(keras.ops.ones((2, 5)), cell.get_initial_state(2))
        >>> tuple(cell_state.shape)
        (2, 3)
    """

    gate_count = 4
    state_count = 2
    has_layer_norm = True

    def __init__(self, units: int, forget_bias: float | None = 1.0, peepholes: bool = False, **kwargs: Any):
        super().__init__(units, **kwargs)
        self.forget_bias = forget_bias
        self.peepholes = peepholes

    @property
    def cudnn_mode(self) -> str | None:
        """cuDNN's name of a network that computes the same, or None."""
        return "lstm" if self._is_plain() and not self.peepholes else None

    def build(self, inputs_shape: Shape, states_shape: Any = None) -> None:
        """Creates the weights for inputs of shape `(..., features)`."""
        super().build(inputs_shape)
        if self.layer_norm:
            self.state_gain = self.add_weight(shape=(self.units,), name="state_gain", initializer="ones")
            self.state_shift = self.add_weight(shape=(self.units,), name="state_shift", initializer="zeros")
        if self.peepholes:
            self.peephole = self.add_weight(
                shape=(3 * self.units,), name="peephole", initializer=keras.initializers.RandomNormal(stddev=0.1)
            )

    def vectors(self) -> tuple[Any, ...]:
        """Returns the other weights that a step reads."""
        state_norm = (self.state_gain, self.state_shift) if self.layer_norm else ()
        return (*super().vectors(), *state_norm, *((self.peephole,) if self.peepholes else ()))

    def step(self, now: Step) -> Tensors:
        """Returns the new hidden state and the new cell state."""
        cell_state, vectors = now.states[1], now.vectors
        input_sum, forget_sum, candidate_sum, output_sum = ops.split(self._normalized_sums(now), 4, axis=-1)
        if self.peepholes:
            input_peephole, forget_peephole, output_peephole = ops.split(vectors[-1], 3, axis=-1)
            input_sum = input_sum + input_peephole * cell_state
            forget_sum = forget_sum + forget_peephole * cell_state
        input_gate, forget_gate = map(self.recurrent_activation, (input_sum, forget_sum))
        new_cell_state = forget_gate * cell_state + input_gate * _activated(self.activation, candidate_sum)
        if self.peepholes:
            output_sum = output_sum + output_peephole * new_cell_state
        shown = standardized(new_cell_state) * vectors[1] + vectors[2] if self.layer_norm else new_cell_state
        return self.recurrent_activation(output_sum) * _activated(self.activation, shown), new_cell_state

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "forget_bias": self.forget_bias, "peepholes": self.peepholes}

    def _initial_bias(self, shape: tuple[int, ...], dtype: Any = None) -> Tensor:
        if self.longest_lag is None and self.forget_bias is None:
            return super()._initial_bias(shape, dtype)
        input_bias = self.bias_initializer((self.units,), dtype=dtype)
        other_bias = self.bias_initializer((2 * self.units,), dtype=dtype)
        if self.longest_lag is None:
            forget_bias = ops.full((self.units,), self.forget_bias, dtype=dtype)
        else:
            forget_bias = self._keeping_bias(self.longest_lag, dtype)
            input_bias = -forget_bias
        return ops.concatenate([input_bias, forget_bias, other_bias])


@keras.saving.register_keras_serializable(package="kerasloom")
class GRUCell(GatedCell):
    """One step of a gated recurrent unit: one gate mixes the old state with a candidate, another hides part of the old.

        z_t = sigmoid(x_t W_z + h_{t-1} R_z + b_z)                 update gate
        r_t = sigmoid(x_t W_r + h_{t-1} R_r + b_r)                 reset gate
        g_t = tanh(x_t W_h + (r_t * h_{t-1}) R_h + b_h)            candidate, reset_after=False
        g_t = tanh(x_t W_h + b_h + r_t * (h_{t-1} R_h + b'_h))     candidate, reset_after=True
        h_t = z_t * h_{t-1} + (1 - z_t) * g_t                      update_gate="keep"
        h_t = (1 - z_t) * h_{t-1} + z_t * g_t                      update_gate="take"

    The two conventions are the same function with W_z, R_z and b_z negated, because sigmoid(-a) = 1 - sigmoid(a). With
    `layer_norm`, LN(x_t W) * g_x, normalized over all gates, stands for the input products, and the recurrent products,
    times a gain, are normalized over the two gates together and over the candidate.

    Source: Cho et al., 2014, "Learning phrase representations using RNN encoder-decoder for statistical machine
    translation". Weights, packed side by side in the order z, r, h as in `keras.layers.GRU`: kernel
    `(features, 3 * units)`, recurrent kernel `(units, 3 * units)`, bias `(3 * units,)` or, with `reset_after`,
    `(2, 3 * units)`: one row for the input and one for the hidden state; then the gains. One state, h.

    Args:
        units: Width of the hidden state, at least 1.
        activation: Activation of the candidate, tanh above.
        recurrent_activation: Activation of the gates, sigmoid above.
        reset_after: Whether the reset gate acts after the matrix product, which needs one product per step instead of
            two, or before it, as in the paper.
        update_gate: Whether z is the share of the old state, as in Keras ("keep"), or of the candidate ("take").
        longest_lag: Starts the update gate's bias at log(lag) for lags up to this, negated with "take".
        **kwargs: The other arguments of `GatedCell` and `RecurrentCell`.

    Call arguments:
        inputs: `(batch, features)`.
        states: `[h]`, `(batch, units)`.

    Output shape:
        The hidden state, `(batch, units)`, and the list of states.

    Example:
        >>> cell = GRUCell(3, reset_after=False, update_gate="take")
        >>> output, states = cell(keras.ops.ones((2, 5)), cell.get_initial_state(2))
        >>> tuple(output.shape)
        (2, 3)
    """

    gate_count = 3
    has_layer_norm = True

    def __init__(
        self, units: int, reset_after: bool = True, update_gate: Literal["keep", "take"] = "keep", **kwargs: Any
    ):
        super().__init__(units, **kwargs)
        if update_gate not in ("keep", "take"):
            raise ValueError(f"update_gate must be 'keep' or 'take', got {update_gate!r}.")
        self.reset_after = reset_after
        self.update_gate = update_gate

    @property
    def cudnn_mode(self) -> str | None:
        """cuDNN's name of a network that computes the same, or None."""
        return "gru" if self._is_plain() and self.reset_after and self.update_gate == "keep" else None

    @property
    def summed(self) -> tuple[int, ...]:
        """For every recurrent matrix, how many columns of the projected input go into a sum with its product only."""
        widths = (2 * self.units,) if self.reset_after else (2 * self.units, self.units)
        return (0,) * len(widths) if self.layer_norm else widths

    def matrices(self) -> tuple[Any, ...]:
        """Returns the weights by which a step multiplies, the one of the recurrent input first."""
        return super().matrices() if self.reset_after else self._cut(self.recurrent_kernel)

    def vectors(self) -> tuple[Any, ...]:
        """Returns the other weights that a step reads."""
        recurrent_bias = (self.bias[1],) if self.reset_after and self.use_bias else ()
        return (*super().vectors(), *recurrent_bias)

    def step(self, now: Step) -> Tensors:
        """Returns the new hidden state."""
        (hidden_state,) = now.states
        projected, vectors = now.projected, now.vectors
        gate_sum, candidate_product = self._cut(now.sums)  # of the latter there is none with the reset before it
        if self.layer_norm:
            gate_input, projected = self._cut(projected)
            gate_gain, candidate_gain = self._cut(vectors[0])
            gate_sum = gate_input + standardized(gate_sum) * gate_gain
        if self.reset_after and self.use_bias:
            gate_bias, candidate_bias = self._cut(vectors[-1])
            gate_sum = gate_sum + gate_bias
        update_gate, reset_gate = ops.split(self.recurrent_activation(gate_sum), 2, axis=-1)
        if self.reset_after:
            if self.layer_norm:
                candidate_product = standardized(candidate_product) * candidate_gain
            if self.use_bias:
                candidate_product = candidate_product + candidate_bias
            candidate_sum = projected + reset_gate * candidate_product
        else:
            candidate_sum = now.product(1, reset_gate * now.recurrent_input)
            if self.layer_norm:
                candidate_sum = projected + standardized(candidate_sum) * candidate_gain
        candidate = _activated(self.activation, candidate_sum)
        if self.update_gate == "keep":
            return (candidate + update_gate * (hidden_state - candidate),)
        return (hidden_state + update_gate * (candidate - hidden_state),)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "reset_after": self.reset_after, "update_gate": self.update_gate}

    def _cut(self, gates: Tensor) -> tuple[Tensor, Tensor]:
        return gates[..., : 2 * self.units], gates[..., 2 * self.units :]

    def _bias_shape(self) -> tuple[int, ...]:
        return (2, 3 * self.units) if self.reset_after else (3 * self.units,)

    def _initial_bias(self, shape: tuple[int, ...], dtype: Any = None) -> Tensor:
        bias = super()._initial_bias(shape, dtype)
        if self.longest_lag is None:
            return bias
        update_bias = self._keeping_bias(self.longest_lag, dtype) * (1 if self.update_gate == "keep" else -1)
        rows = ops.reshape(bias, (-1, 3 * self.units))
        first = ops.concatenate([update_bias, rows[0, self.units :]])
        return ops.reshape(ops.concatenate([first, *rows[1:]]), shape)

    def _input_bias(self) -> Tensor:
        bias = super()._input_bias()
        return bias[0] if self.reset_after else bias


@keras.saving.register_keras_serializable(package="kerasloom")
class EchoStateCell(RecurrentCell):
    """One step of an echo state network: a fixed, random, sparse reservoir that is driven by the input.

        h_t = (1 - a) * h_{t-1} + a * tanh(x_t W + h_{t-1} R + b)

    W is uniform in plus or minus `input_scale`, b in plus or minus `bias_scale`; R has `connectivity` of its entries,
    normal, scaled to a spectral radius of `spectral_radius`. With a radius below one the influence of the initial state
    usually dies out (the echo state property). None of them is trained; a linear model on the states is.

    Source: Jaeger, 2001, "The echo state approach to analysing and training recurrent neural networks"; leak: Jaeger et
    al., 2007, "Optimization and applications of echo state networks with leaky-integrator neurons". One state, h.

    Args:
        units: Size of the reservoir, at least 1.
        spectral_radius: Largest absolute eigenvalue of R, above 0.
        leak: a, the share of the state that is replaced in a step, above 0 and at most 1.
        connectivity: Share of the entries of R that are not zero, above 0 and at most 1.
        input_scale: Bound of the input weights.
        bias_scale: Bound of the bias.
        seed: Seed of the reservoir. None draws one.
        **kwargs: `activation`, `zoneout`, and `name`, `dtype` and `trainable` as for every Keras layer.

    Call arguments:
        inputs: `(batch, features)`.
        states: `[h]`, `(batch, units)`.

    Output shape:
        The hidden state, `(batch, units)`, and the list of states.

    Example:
        >>> cell = EchoStateCell(50, spectral_radius=0.9, seed=1)
        >>> output, states = cell(keras.ops.ones((2, 5)), cell.get_initial_state(2))
        >>> tuple(output.shape), len(cell.trainable_weights)
        ((2, 50), 0)
    """

    gate_count = 1
    trains_weights = False

    def __init__(
        self,
        units: int,
        spectral_radius: float = 0.9,
        leak: float = 1.0,
        connectivity: float = 0.1,
        input_scale: float = 1.0,
        bias_scale: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ):
        unknown = sorted(set(kwargs) - {"activation", "zoneout", "name", "dtype", "trainable"})
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: an echo state network has no such argument.")
        for name, value in (("leak", leak), ("connectivity", connectivity)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {value!r}.")
        if not spectral_radius > 0:
            raise ValueError(f"spectral_radius must be above 0, got {spectral_radius!r}.")
        bounds = {"kernel_initializer": input_scale, "bias_initializer": bias_scale}
        reservoir = {
            name: keras.initializers.RandomUniform(-bound, bound, _offset(seed, offset))
            for offset, (name, bound) in enumerate(bounds.items(), start=1)
        }
        reservoir["recurrent_initializer"] = SparseReservoir(spectral_radius, connectivity, seed)
        super().__init__(units, **{**kwargs, **reservoir}, seed=seed)
        self.spectral_radius = spectral_radius
        self.leak = leak
        self.connectivity = connectivity
        self.input_scale = input_scale
        self.bias_scale = bias_scale

    def step(self, now: Step) -> Tensors:
        """Returns the new hidden state."""
        candidate = _activated(self.activation, now.sums)
        return (now.states[0] + self.leak * (candidate - now.states[0]),)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        config = super().get_config()
        inherited = {"name", "dtype", "trainable", "units", "activation", "zoneout", "seed"}
        return {
            **{name: value for name, value in config.items() if name in inherited},
            "spectral_radius": self.spectral_radius,
            "leak": self.leak,
            "connectivity": self.connectivity,
            "input_scale": self.input_scale,
            "bias_scale": self.bias_scale,
        }


@keras.saving.register_keras_serializable(package="kerasloom")
class SparseReservoir(keras.initializers.Initializer):
    """Random square matrix with a given spectral radius, most of whose entries are zero.

    Args:
        spectral_radius: Largest absolute eigenvalue of the matrix.
        connectivity: Share of the entries that are not zero; every row has at least one.
        seed: Seed of the entries. None draws one.

    Raises:
        ValueError: If the matrix is not square.

    Example:
        >>> matrix = SparseReservoir(0.9, 0.1, seed=1)((50, 50))
        >>> round(float(abs(np.linalg.eigvals(matrix)).max()), 5)
        0.9
    """

    def __init__(self, spectral_radius: float, connectivity: float, seed: int | None = None):
        self.spectral_radius = spectral_radius
        self.connectivity = connectivity
        self.seed = random.randrange(2**31) if seed is None else seed

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Tensor:
        """Returns the matrix."""
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"shape of a reservoir must be square, got {tuple(shape)}.")
        generator, size = np.random.default_rng(self.seed), shape[0]
        count = max(1, round(self.connectivity * size))
        matrix = np.zeros((size, size))
        for row in matrix:
            row[generator.choice(size, count, replace=False)] = generator.normal(size=count)
        radius = np.abs(np.linalg.eigvals(matrix)).max()
        return ops.convert_to_tensor(matrix * (self.spectral_radius / radius), dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"spectral_radius": self.spectral_radius, "connectivity": self.connectivity, "seed": self.seed}


def _activated(activation: Activation, tensor: Tensor) -> Tensor:
    return tanh(tensor) if activation is keras.activations.tanh else activation(tensor)


def _zoneout_rates(zoneout: float | Sequence[float], state_count: int) -> tuple[float, ...]:
    rates = (zoneout,) * state_count if isinstance(zoneout, (int, float)) else tuple(zoneout)
    if len(rates) != state_count or not all(0 <= rate < 1 for rate in rates):
        raise ValueError(
            f"zoneout must be one number of at least 0 and below 1, or {state_count} of them, got {zoneout!r}."
        )
    return rates


def _offset(seed: int | None, offset: int) -> int | None:
    return None if seed is None else seed + offset
