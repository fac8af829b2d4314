"""The recurrent networks of the notes in NumPy, and their backpropagation through time, derived by hand.

Written from the equations alone: one input matrix W, one recurrent matrix R and one bias b per gate, by name, where the
notes write W_f[h, x] for h R_f + x W_f. Each step returns the new states and a function that takes the gradients of the
new states to those of the input, the old states and the weights.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

Array = np.ndarray
Arrays = tuple[Array, ...]
Weights = dict[str, Array]
StepBack = Callable[..., tuple[Array, list[Array], Weights]]

EPSILON = 1e-5
"""Added to the variance in layer normalization."""


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "softsign": lambda x: x / (1 + np.abs(x)),
}
# Derivatives by the argument, as functions of the value.
DERIVATIVES: dict[str, Callable[[Array], Array]] = {
    "tanh": lambda y: 1 - y * y,
    "relu": lambda y: 1.0 * (y > 0),
    "softsign": lambda y: (1 - np.abs(y)) ** 2,
}


class Gradients(NamedTuple):
    """Gradients by the sequence, the initial states and the weights."""

    sequence: Array
    states: list[Array]
    weights: Weights


@dataclass(frozen=True)
class Conditions:
    """What a sequence is read under.

    Attributes:
        mask: `(batch, time)`, true where a step is valid, or None.
        factors: Recurrent dropout, `(batch, units)`.
        input_factors: Dropout on the input, `(batch, 1, features)`.
        kept: Zoneout: per state the share of the old value, `(batch, time, units)` or a number.
        go_backwards: Whether to read from the end.
    """

    mask: Array | None = None
    factors: Any = 1.0
    input_factors: Any = 1.0
    kept: tuple[Any, ...] = (0.0, 0.0)
    go_backwards: bool = False


@dataclass(frozen=True)
class Oracle:
    """Base of the oracles. Options have the names that the layers give them."""

    activation: str = "tanh"
    use_bias: bool = True
    layer_norm: bool = False
    gates: ClassVar[str]
    state_count: ClassVar[int] = 1

    def random_weights(self, rng: np.random.Generator, features: int, units: int, scale: float = 0.5) -> Weights:
        """Returns weights of which no two are alike."""
        weights = {}
        for gate in self.gates:
            weights[f"W_{gate}"] = rng.normal(scale=scale, size=(features, units))
            weights[f"R_{gate}"] = rng.normal(scale=scale, size=(units, units))
        for name in self.vector_names():
            weights[name] = rng.normal(loc=name.startswith("gain"), scale=scale, size=units)
        return weights

    def vector_names(self) -> list[str]:
        biases = [f"b_{gate}" for gate in self.gates if self.use_bias]
        gains = [f"gain_{letter}_{gate}" for letter in "WR" for gate in self.gates if self.layer_norm]
        return biases + gains

    def step(self, weights: Weights, x: Array, states: Arrays, factors: Any) -> tuple[Arrays, StepBack]:
        raise NotImplementedError

    def packed(self, weights: Weights) -> Weights:
        """Returns weights, or gradients by them, in the layout of the layers, by the names of their variables."""

        def beside(names: Iterable[str]) -> Array:
            return np.concatenate([weights[name] for name in names], axis=-1)

        def each(prefix: str) -> Array:
            return beside(f"{prefix}_{gate}" for gate in self.gates)

        parts = {"kernel": each("W"), "recurrent_kernel": each("R")}
        if self.use_bias:
            parts["bias"] = each("b")
        if self.layer_norm:
            parts |= {"kernel_gain": each("gain_W"), "recurrent_gain": each("gain_R")}
        return parts

    def run(
        self, weights: Weights, sequence: Array, states: Arrays, conditions: Conditions
    ) -> tuple[Array, Arrays, Callable[[Array, list[Array]], Gradients]]:
        """Reads `(batch, time, features)`; returns hidden states in the order of reading, final states, and BPTT."""
        batch, steps, _ = sequence.shape
        order = range(steps)[::-1] if conditions.go_backwards else range(steps)
        mask = np.ones((batch, steps), bool) if conditions.mask is None else conditions.mask
        outputs, tape = np.zeros((batch, steps, states[0].shape[-1])), []
        for position, time in enumerate(order):
            valid = mask[:, time, None]
            x = np.where(valid, (sequence * conditions.input_factors)[:, time], 0)
            new_states, back = self.step(weights, x, states, conditions.factors)
            # A masked step keeps everything.
            kept = [np.where(valid, share if np.isscalar(share) else share[:, time], 1.0) for share in conditions.kept]
            states = tuple(k * old + (1 - k) * new for k, old, new in zip(kept, states, new_states, strict=False))
            outputs[:, position] = np.where(valid, states[0], 0)
            tape.append((position, time, valid, kept, back))

        def backward(d_outputs: Array, d_states: list[Array]) -> Gradients:
            d_sequence, d_weights = np.zeros_like(sequence), {name: np.zeros_like(w) for name, w in weights.items()}
            for position, time, valid, kept, back in reversed(tape):
                d_states = [d_states[0] + np.where(valid, d_outputs[:, position], 0), *d_states[1:]]
                d_new = [(1 - k) * d for k, d in zip(kept, d_states, strict=False)]
                dx, d_old, d_step = back(*d_new)
                d_states = [k * d + old for k, d, old in zip(kept, d_states, d_old, strict=False)]
                d_sequence[:, time] = np.where(valid, dx, 0)
                for name, gradient in d_step.items():
                    d_weights[name] += gradient
            return Gradients(d_sequence * conditions.input_factors, d_states, d_weights)

        return outputs, states, backward


@dataclass(frozen=True)
class ElmanOracle(Oracle):
    """h_t = f(x_t W + h_{t-1} R + b)."""

    gates: ClassVar[str] = "h"

    def step(self, weights: Weights, x: Array, states: Arrays, factors: Any) -> tuple[Arrays, StepBack]:
        (h,) = states
        from_input, input_back = products(weights, "W", "h", x)
        from_hidden, hidden_back = products(weights, "R", "h", h * factors)
        new = ACTIVATIONS[self.activation](from_input["h"] + from_hidden["h"] + weights.get("b_h", 0))

        def back(d_new: Array) -> tuple[Array, list[Array], Weights]:
            d_sum = {"h": d_new * DERIVATIVES[self.activation](new)}
            dx, d_input_weights = input_back(d_sum)
            dh, d_hidden_weights = hidden_back(d_sum)
            return dx, [dh * factors], d_input_weights | d_hidden_weights | bias_gradients(weights, "b", d_sum)

        return (new,), back


@dataclass(frozen=True)
class EchoStateOracle(ElmanOracle):
    """h_t = (1 - a) h_{t-1} + a tanh(x_t W + h_{t-1} R + b)."""

    leak: float = 1.0

    def step(self, weights: Weights, x: Array, states: Arrays, factors: Any) -> tuple[Arrays, StepBack]:
        (candidate,), elman_back = super().step(weights, x, states, factors)

        def back(d_new: Array) -> tuple[Array, list[Array], Weights]:
            dx, (dh,), d_weights = elman_back(self.leak * d_new)
            return dx, [dh + (1 - self.leak) * d_new], d_weights

        return ((1 - self.leak) * states[0] + self.leak * candidate,), back


@dataclass(frozen=True)
class LSTMOracle(Oracle):
    """f, i, o = sigmoid(...); c_t = f * c_{t-1} + i * tanh(...); h_t = o * tanh(c_t).

    With peepholes the forget and input gates see c_{t-1}, and the output gate c_t.
    """

    peepholes: bool = False
    gates: ClassVar[str] = "ifco"
    state_count: ClassVar[int] = 2

    def vector_names(self) -> list[str]:
        peepholes = [f"p_{gate}" for gate in "ifo" if self.peepholes]
        return super().vector_names() + peepholes + ["gain_state", "shift_state"] * self.layer_norm

    def packed(self, weights: Weights) -> Weights:
        parts = super().packed(weights)
        if self.peepholes:
            parts["peephole"] = np.concatenate([weights[f"p_{gate}"] for gate in "ifo"])
        if self.layer_norm:
            parts |= {"state_gain": weights["gain_state"], "state_shift": weights["shift_state"]}
        return parts

    def step(self, weights: Weights, x: Array, states: Arrays, factors: Any) -> tuple[Arrays, StepBack]:
        h, c = states
        function, derivative = ACTIVATIONS[self.activation], DERIVATIVES[self.activation]
        from_input, input_back = products(weights, "W", self.gates, x)
        from_hidden, hidden_back = products(weights, "R", self.gates, h * factors)
        total = {gate: from_input[gate] + from_hidden[gate] + weights.get(f"b_{gate}", 0) for gate in self.gates}
        p_i, p_f, p_o = (weights.get(f"p_{gate}", 0.0) for gate in "ifo")
        i, f = sigmoid(total["i"] + p_i * c), sigmoid(total["f"] + p_f * c)
        candidate = function(total["c"])
        c_new = f * c + i * candidate
        o = sigmoid(total["o"] + p_o * c_new)
        shown, normal, normal_back = c_new, c_new, lambda d: d
        if self.layer_norm:
            normal, normal_back = normalized(c_new, axes=-1)
            shown = normal * weights["gain_state"] + weights["shift_state"]
        visible = function(shown)

        def back(dh: Array, dc: Array) -> tuple[Array, list[Array], Weights]:
            d_sum = {"o": dh * visible * o * (1 - o)}
            d_shown = dh * o * derivative(visible)
            dc = dc + normal_back(d_shown * weights.get("gain_state", 1.0)) + p_o * d_sum["o"]
            d_sum["i"] = dc * candidate * i * (1 - i)
            d_sum["f"] = dc * c * f * (1 - f)
            d_sum["c"] = dc * i * derivative(candidate)
            d_old_c = dc * f + p_i * d_sum["i"] + p_f * d_sum["f"]
            dx, d_input_weights = input_back(d_sum)
            d_old_h, d_hidden_weights = hidden_back(d_sum)
            others = bias_gradients(weights, "b", d_sum)
            if self.peepholes:
                seen = {"i": c, "f": c, "o": c_new}
                others |= {f"p_{gate}": (d_sum[gate] * seen[gate]).sum(0) for gate in "ifo"}
            if self.layer_norm:
                others |= {"gain_state": (d_shown * normal).sum(0), "shift_state": d_shown.sum(0)}
            return dx, [d_old_h * factors, d_old_c], d_input_weights | d_hidden_weights | others

        return (o * visible, c_new), back


@dataclass(frozen=True)
class GRUOracle(Oracle):
    """r, z = sigmoid(...); candidate from r * h_{t-1}; h_t = (1 - z) * h_{t-1} + z * candidate with "take".

    With `reset_after`, r multiplies h_{t-1} R_c + recurrent_b_c instead, and r and z have a second bias as well. With
    "keep", z and 1 - z trade places.
    """

    reset_after: bool = True
    update_gate: str = "keep"
    gates: ClassVar[str] = "zrc"

    def vector_names(self) -> list[str]:
        second = [f"recurrent_b_{gate}" for gate in self.gates if self.use_bias and self.reset_after]
        return super().vector_names() + second

    def packed(self, weights: Weights) -> Weights:
        parts = super().packed(weights)
        if self.use_bias and self.reset_after:
            second = np.concatenate([weights[f"recurrent_b_{gate}"] for gate in self.gates])
            parts["bias"] = np.stack([parts["bias"], second])
        return parts

    def step(self, weights: Weights, x: Array, states: Arrays, factors: Any) -> tuple[Arrays, StepBack]:
        (h,) = states
        thinned = h * factors
        from_input, input_back = products(weights, "W", self.gates, x)
        from_hidden, gates_back = products(weights, "R", "zr", thinned)
        second = {gate: weights.get(f"recurrent_b_{gate}", 0) for gate in self.gates}
        z, r = (
            sigmoid(from_input[gate] + weights.get(f"b_{gate}", 0) + from_hidden[gate] + second[gate]) for gate in "zr"
        )
        inner, candidate_back = products(weights, "R", "c", thinned if self.reset_after else r * thinned)
        reset_sum = inner["c"] + second["c"]
        candidate = ACTIVATIONS[self.activation](
            from_input["c"] + weights.get("b_c", 0) + (r * reset_sum if self.reset_after else reset_sum)
        )
        share = z if self.update_gate == "take" else 1 - z

        def back(d_new: Array) -> tuple[Array, list[Array], Weights]:
            d_share = d_new * (candidate - h)
            dz = d_share if self.update_gate == "take" else -d_share
            d_candidate_sum = d_new * share * DERIVATIVES[self.activation](candidate)
            if self.reset_after:
                d_inner = d_candidate_sum * r
                dr = d_candidate_sum * reset_sum
                d_thinned, d_candidate_weights = candidate_back({"c": d_inner})
            else:
                d_inner = d_candidate_sum
                d_reset_hidden, d_candidate_weights = candidate_back({"c": d_inner})
                dr = d_reset_hidden * thinned
                d_thinned = d_reset_hidden * r
            d_gates = {"z": dz * z * (1 - z), "r": dr * r * (1 - r)}
            d_gate_hidden, d_gate_weights = gates_back(d_gates)
            d_sum = d_gates | {"c": d_candidate_sum}
            dx, d_input_weights = input_back(d_sum)
            biases = bias_gradients(weights, "b", d_sum)
            biases |= bias_gradients(weights, "recurrent_b", d_gates | {"c": d_inner})
            dh = d_new * (1 - share) + (d_thinned + d_gate_hidden) * factors
            return dx, [dh], d_input_weights | d_gate_weights | d_candidate_weights | biases

        return ((1 - share) * h + share * candidate,), back


def products(
    weights: Weights, letter: str, gates: str, factor: Array
) -> tuple[Weights, Callable[[Weights], tuple[Array, Weights]]]:
    """Returns `factor` times the matrix of each gate; normalized over these gates together, where they have gains."""
    matrices = {gate: weights[f"{letter}_{gate}"] for gate in gates}
    values = np.stack([factor @ matrices[gate] for gate in gates])
    has_gain = f"gain_{letter}_{gates[0]}" in weights
    gain = np.stack([weights[f"gain_{letter}_{gate}"] for gate in gates])[:, None] if has_gain else 1.0
    normal, normal_back = normalized(values, axes=(0, 2)) if has_gain else (values, lambda d: d)

    def back(upstream: Weights) -> tuple[Array, Weights]:
        d_scaled = np.stack([upstream[gate] for gate in gates])
        d_gain = (d_scaled * normal).sum(1)
        d_values = dict(zip(gates, normal_back(d_scaled * gain), strict=True))
        d_weights = {f"{letter}_{gate}": factor.T @ d_values[gate] for gate in gates}
        if has_gain:
            d_weights |= {f"gain_{letter}_{gate}": each for gate, each in zip(gates, d_gain, strict=True)}
        return sum(d_values[gate] @ matrices[gate].T for gate in gates), d_weights

    return dict(zip(gates, normal * gain, strict=True)), back


def normalized(values: Array, axes: Any) -> tuple[Array, Callable[[Array], Array]]:
    """Returns values with mean 0 and variance 1 over some axes."""
    deviation = np.sqrt(values.var(axes, keepdims=True) + EPSILON)
    normal = (values - values.mean(axes, keepdims=True)) / deviation

    def back(upstream: Array) -> Array:
        along = (upstream * normal).mean(axes, keepdims=True)
        return (upstream - upstream.mean(axes, keepdims=True) - normal * along) / deviation

    return normal, back


def bias_gradients(weights: Weights, prefix: str, d_sum: Weights) -> Weights:
    return {f"{prefix}_{gate}": d.sum(0) for gate, d in d_sum.items() if f"{prefix}_{gate}" in weights}
