"""Every layer that reads sequences, with every option, as one table of cases; and what the contract tests do with one.

A new layer joins by adding cases to `CASES`; nothing here knows how the layers of a case are related. The functions
take a case, run on either backend, and need no pytest, so that fresh processes can use them.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

import layers
from layers import (
    GRU,
    LSTM,
    AdditiveAttention,
    BatchNorm,
    Bidirectional,
    EchoState,
    EchoStateCell,
    Elman,
    ElmanCell,
    GRUCell,
    LayerNorm,
    LearnedPositions,
    LSTMCell,
    MultiHeadAttention,
    MultiplicativeAttention,
    RMSNorm,
    RotaryPositions,
    SinusoidalPositions,
    Stacked,
    TransformerDecoderBlock,
    TransformerEncoderBlock,
)

B, T, D, U = 3, 4, 4, 3  # batch, time, features, units
Arrays = list[np.ndarray]


@dataclass(frozen=True)
class SequenceCase:
    """A layer in one configuration, and which parts of the contract it can be held to.

    Attributes:
        make: Makes the layer, unbuilt; takes `dtype` and the names in `choices`.
        stands_for: The public classes that the case tests.
        state_widths: Widths of the states that it takes as `initial_state` and returns with `return_state`; empty for a
            layer without states.
        reads: Where it starts. `"forward"` and `"backward"`: two halves, joined by the states, equal the whole;
            `"both"`: every output may depend on every step.
        choices: Which of `return_sequences` and `return_state` the layer has.
        by_place: Whether a step depends on its place in the sequence, so that gaps cannot be closed.
        draws: Whether training draws at random.
        fixed_batch: Whether the batch size must be known.
        own_graph: Whether the case is compiled in the (slow) tests of graphs in training; one per way of computing.
        in_keras_loop: Whether it is a cell in `keras.layers.RNN`: whatever is a matter of the loop is not tested then.
    """

    make: Callable[..., keras.Layer]
    stands_for: tuple[type, ...]
    state_widths: tuple[int, ...] = ()
    reads: Literal["forward", "backward", "both"] = "both"
    choices: tuple[str, ...] = ("return_sequences", "return_state")
    by_place: bool = False
    draws: bool = False
    fixed_batch: bool = False
    own_graph: bool = False
    in_keras_loop: bool = False

    @property
    def steppable(self) -> bool:
        """Whether it reads streams, with `layer.step(inputs, states)`."""
        return self.reads == "forward" and bool(self.state_widths) and not self.in_keras_loop

    def layer(self, **options: Any) -> keras.Layer:
        """Returns a new layer, unbuilt; by default one that returns everything it has."""
        wanted = {"return_sequences": True, "return_state": True, **options}
        return self.make(**{name: value for name, value in wanted.items() if name in ("dtype", *self.choices)})

    def built(self, name: str, scale: float = 0.6, **options: Any) -> keras.Layer:
        """Returns a layer with random weights that are the same in every process."""
        layer, rng = self.layer(**options), generator(name)
        layer.build((B if self.fixed_batch else None, None, D))
        values = [rng.normal(scale=scale, size=tuple(weight.shape)) for weight in layer.weights]
        # A variance is positive.
        pairs = zip(layer.weights, values, strict=True)
        layer.set_weights([1 + np.abs(value) if "variance" in weight.name else value for weight, value in pairs])
        if hasattr(layer, "reset_state"):
            layer.reset_state()
        return layer


def generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


_DECLARED: dict[str, Any] = {
    "kernel_initializer": "he_normal",
    "recurrent_initializer": "glorot_normal",
    "bias_initializer": "ones",
    "kernel_regularizer": keras.regularizers.L2(0.01),
    "recurrent_regularizer": keras.regularizers.L2(0.02),
    "bias_regularizer": keras.regularizers.L2(0.03),
    "kernel_constraint": keras.constraints.MaxNorm(0.5),
    "recurrent_constraint": keras.constraints.MaxNorm(0.4),
    "bias_constraint": keras.constraints.NonNeg(),
}
_COMMON: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_bias": {"use_bias": False},
    "layer_norm": {"layer_norm": True},
    "layer_norm_no_bias": {"layer_norm": True, "use_bias": False},
    "declared": _DECLARED,
    "zoneout": {"zoneout": 0.3, "seed": 5},
}
CELL_OPTIONS: dict[type, dict[str, dict[str, Any]]] = {
    ElmanCell: _COMMON | {"relu_identity": {"activation": "relu", "recurrent_initializer": "identity"}},
    LSTMCell: _COMMON
    | {
        "activations": {"activation": "softsign", "recurrent_activation": "hard_sigmoid"},
        "peepholes": {"peepholes": True},
        "peepholes_layer_norm": {"peepholes": True, "layer_norm": True},
        "no_forget_bias": {"forget_bias": None},
        "longest_lag": {"longest_lag": 20, "seed": 4},
        "zoneout_per_state": {"zoneout": (0.0, 0.4), "seed": 5},
    },
    GRUCell: _COMMON
    | {
        "activations": {"activation": "relu", "recurrent_activation": "hard_sigmoid"},
        "reset_before": {"reset_after": False},
        "reset_before_no_bias": {"reset_after": False, "use_bias": False},
        "reset_before_layer_norm": {"reset_after": False, "layer_norm": True},
        "take": {"update_gate": "take", "longest_lag": 20},
        "take_reset_before": {"update_gate": "take", "reset_after": False, "longest_lag": 20},
        "longest_lag": {"longest_lag": 20, "seed": 4},
    },
    EchoStateCell: {
        "plain": {},
        "leak": {"leak": 0.3, "bias_scale": 0.5, "input_scale": 0.5, "spectral_radius": 0.5, "connectivity": 0.7},
        "relu": {"activation": "relu", "seed": 5},
        "zoneout": {"zoneout": 0.3, "seed": 5},
    },
}
LAYER_OPTIONS: dict[str, dict[str, Any]] = {
    "dropout": {"dropout": 0.3, "seed": 5},
    "recurrent_dropout": {"recurrent_dropout": 0.3, "seed": 5},
    "learned_initial_state": {"learned_initial_state": True},
    "go_backwards": {"go_backwards": True},
    "without_cudnn": {"use_cudnn": False},
    "stateful": {"stateful": True, "activity_regularizer": keras.regularizers.L2(0.01)},
}
_OWN_GRAPH = {
    *("Elman/plain", "LSTM/peepholes_layer_norm", "LSTM/go_backwards"),
    *("GRU/reset_before", "GRU/layer_norm", "EchoState/leak"),
}
CELL_OF: dict[type, type] = {Elman: ElmanCell, LSTM: LSTMCell, GRU: GRUCell, EchoState: EchoStateCell}
NOISE = ("dropout", "recurrent_dropout", "zoneout")


def _single_layer_cases(layer_class: type) -> dict[str, SequenceCase]:
    cell_class = CELL_OF[layer_class]
    return {
        f"{layer_class.__name__}/{variant}": SequenceCase(
            make=lambda options=options, **choices: layer_class(U, **options, **choices),
            stands_for=(layer_class,),
            state_widths=(U,) * cell_class.state_count,
            reads="backward" if options.get("go_backwards") else "forward",
            draws=any(option in options for option in NOISE),
            fixed_batch="stateful" in options,
            own_graph=f"{layer_class.__name__}/{variant}" in _OWN_GRAPH,
        )
        for variant, options in (CELL_OPTIONS[cell_class] | LAYER_OPTIONS).items()
    }


def _cell_cases(cell_class: type) -> dict[str, SequenceCase]:
    def make(options: dict[str, Any], dtype: Any = None, **choices: Any) -> keras.Layer:
        cell = cell_class(U, dtype=dtype, **options)
        return keras.layers.RNN(cell, dtype=dtype, zero_output_for_mask=True, **choices)

    return {
        f"{cell_class.__name__}/{variant}": SequenceCase(
            make=lambda options=options, **choices: make(options, **choices),
            stands_for=(cell_class,),
            state_widths=(U,) * cell_class.state_count,
            reads="forward",
            draws="zoneout" in options,
            in_keras_loop=True,
        )
        for variant, options in CELL_OPTIONS[cell_class].items()
    }


def _both_ends(state_count: int, make: Callable[..., keras.Layer], **facts: Any) -> SequenceCase:
    return SequenceCase(make, stands_for=(Bidirectional,), state_widths=(U,) * state_count, **facts)


def _stack(state_widths: tuple[int, ...], parts: Sequence[Callable[..., keras.Layer]], **facts: Any) -> SequenceCase:
    def make(dtype: Any = None, return_sequences: bool = False, return_state: bool = False) -> keras.Layer:
        lower = {"dtype": dtype, "return_state": return_state, "return_sequences": True}
        below = [part(**lower) for part in parts[:-1]]
        return Stacked([*below, parts[-1](**lower | {"return_sequences": return_sequences})])

    return SequenceCase(make, stands_for=(Stacked,), state_widths=state_widths, **facts)


@keras.saving.register_keras_serializable(package="sequence_contract")
class OverItself(keras.layers.Layer):
    """A layer that reads two sequences, given the same one twice, and called like the others."""

    def __init__(self, layer: keras.layers.Layer, use_causal_mask: bool | None = None, **kwargs: Any):
        super().__init__(**{"dtype": layer.dtype_policy, **kwargs})
        self.layer = layer
        self.call_options = {} if use_causal_mask is None else {"use_causal_mask": use_causal_mask}
        self.supports_masking = True

    def build(self, sequence_shape: Any) -> None:
        # Loading a model builds the layer within before this one.
        if not self.layer.built:
            self.layer.build(sequence_shape, sequence_shape)

    def call(self, sequence: Any, mask: Any = None, training: bool = False) -> Any:
        is_block = isinstance(self.layer, TransformerDecoderBlock)
        names = ("mask", "memory_mask") if is_block else ("query_mask", "value_mask")
        return self.layer(sequence, sequence, **dict.fromkeys(names, mask), training=training, **self.call_options)

    def compute_output_shape(self, sequence_shape: Any) -> Any:
        return self.layer.compute_output_shape(sequence_shape, sequence_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer), **self.call_options}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> OverItself:
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})


_DECLARED_ATTENTION = {name: value for name, value in _DECLARED.items() if "recurrent" not in name}
_OVER_ITSELF: dict[str, tuple[Callable[..., keras.layers.Layer], dict[str, Any]]] = {
    "MultiplicativeAttention/general": (lambda **o: MultiplicativeAttention(**o), {}),
    "MultiplicativeAttention/dot": (lambda **o: MultiplicativeAttention("dot", scaled=True, max_length=300, **o), {}),
    "MultiplicativeAttention/causal_dropout": (
        lambda **o: MultiplicativeAttention(dropout=0.3, seed=5, kernel_initializer="he_normal", **o),
        {"use_causal_mask": True},
    ),
    "MultiplicativeAttention/declared": (
        lambda **o: MultiplicativeAttention(kernel_regularizer=keras.regularizers.L2(0.1), **o),
        {},
    ),
    "AdditiveAttention/plain": (lambda **o: AdditiveAttention(U, **o), {}),
    "AdditiveAttention/no_bias": (
        lambda **o: AdditiveAttention(U, use_bias=False, max_length=300, **o),
        {"use_causal_mask": True},
    ),
    "AdditiveAttention/declared": (
        lambda **o: AdditiveAttention(
            U, kernel_initializer="he_normal", kernel_regularizer=keras.regularizers.L2(0.1), **o
        ),
        {},
    ),
    "AdditiveAttention/dropout": (lambda **o: AdditiveAttention(U, dropout=0.3, seed=5, **o), {}),
    "MultiHeadAttention/plain": (lambda **o: MultiHeadAttention(2, 3, **o), {}),
    "MultiHeadAttention/causal": (
        lambda **o: MultiHeadAttention(4, 2, num_key_value_heads=1, value_dim=3, output_dim=5, **o),
        {"use_causal_mask": True},
    ),
    "MultiHeadAttention/rotary": (
        lambda **o: MultiHeadAttention(2, 4, rotary=True, use_bias=False, max_length=300, **o),
        {},
    ),
    "MultiHeadAttention/dropout": (lambda **o: MultiHeadAttention(2, 3, dropout=0.3, seed=5, **o), {}),
    "MultiHeadAttention/declared": (lambda **o: MultiHeadAttention(2, 3, **_DECLARED_ATTENTION, **o), {}),
    "TransformerDecoderBlock/memory": (lambda **o: TransformerDecoderBlock(2, 5, **o), {}),
    "TransformerDecoderBlock/memory_rotary": (lambda **o: TransformerDecoderBlock(2, 5, rotary=True, **o), {}),
}
_TRANSFORMER_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "norm_last": {"norm_first": False, "norm_epsilon": 1e-3, "activation": "gelu"},
    "gated": {"gated": True, "activation": "silu", "norm": "rms", "use_bias": False, "num_key_value_heads": 1},
    "rotary": {"rotary": True, "key_dim": 4, "kernel_initializer": "he_normal", "max_length": 300},
    "dropout": {"dropout": 0.3, "seed": 5},
    "attention_dropout": {"attention_dropout": 0.3, "seed": 5},
}
_ALONE: dict[type, dict[str, Any]] = {TransformerEncoderBlock: {}, TransformerDecoderBlock: {"cross_attention": False}}
_STEP_BY_STEP: dict[str, Callable[..., keras.layers.Layer]] = {
    "LayerNorm/plain": LayerNorm,
    "LayerNorm/bare": lambda **o: LayerNorm(epsilon=0.1, scale=False, center=False, **o),
    "RMSNorm/plain": RMSNorm,
    "RMSNorm/bare": lambda **o: RMSNorm(epsilon=0.1, scale=False, **o),
    "BatchNorm/plain": BatchNorm,
    "BatchNorm/bare": lambda **o: BatchNorm(momentum=0.5, epsilon=0.1, scale=False, center=False, **o),
    "SinusoidalPositions/plain": SinusoidalPositions,
    "SinusoidalPositions/longest": lambda **o: SinusoidalPositions(longest=100.0, **o),
    "LearnedPositions/plain": lambda **o: LearnedPositions(300, **o),
    "LearnedPositions/declared": lambda **o: LearnedPositions(
        301, initializer="he_normal", regularizer=keras.regularizers.L2(0.1), **o
    ),
    "RotaryPositions/plain": RotaryPositions,
    "RotaryPositions/longest": lambda **o: RotaryPositions(longest=100.0, **o),
}
_OWN_GRAPH |= {
    *("MultiHeadAttention/causal", "AdditiveAttention/plain", "MultiplicativeAttention/dot"),
    *("TransformerEncoderBlock/norm_last", "TransformerDecoderBlock/memory"),
    *("LayerNorm/plain", "BatchNorm/plain", "LearnedPositions/plain", "RotaryPositions/plain"),
}


def _without_states(name: str, make: Callable[..., keras.layers.Layer], draws: bool = False) -> SequenceCase:
    return SequenceCase(
        make,
        stands_for=(getattr(layers, name.partition("/")[0]),),
        choices=(),
        by_place="Positions" in name or "rotary" in name,
        draws=draws or "dropout" in name,
        own_graph=name in _OWN_GRAPH,
    )


CASES: dict[str, SequenceCase] = {
    **{name: case for layer_class in CELL_OF for name, case in _single_layer_cases(layer_class).items()},
    **{name: case for cell_class in CELL_OPTIONS for name, case in _cell_cases(cell_class).items()},
    **{
        name: _without_states(name, lambda make=make, how=how, **options: OverItself(make(**options), **how))
        for name, (make, how) in _OVER_ITSELF.items()
    },
    **{
        f"{kind.__name__}/{variant}": _without_states(
            f"{kind.__name__}/{variant}",
            lambda kind=kind, own=own, **options: kind(2, 5, **_ALONE[kind], **own, **options),
        )
        for kind in (TransformerEncoderBlock, TransformerDecoderBlock)
        for variant, own in _TRANSFORMER_OPTIONS.items()
    },
    **{name: _without_states(name, make) for name, make in _STEP_BY_STEP.items()},
    "Bidirectional/concat": _both_ends(4, lambda **choices: Bidirectional(LSTM(U, **choices))),
    "Bidirectional/sum": _both_ends(2, lambda **choices: Bidirectional(GRU(U, **choices), "sum")),
    "Bidirectional/mul": _both_ends(2, lambda **choices: Bidirectional(Elman(U, **choices), "mul")),
    "Bidirectional/ave": _both_ends(2, lambda **choices: Bidirectional(GRU(U, layer_norm=True, **choices), "ave")),
    "Bidirectional/none": _both_ends(4, lambda **choices: Bidirectional(LSTM(U, peepholes=True, **choices), None)),
    "Bidirectional/echo_state": _both_ends(2, lambda **choices: Bidirectional(EchoState(U, seed=3, **choices))),
    "Bidirectional/all_noise": _both_ends(
        4,
        lambda **choices: Bidirectional(LSTM(U, dropout=0.3, recurrent_dropout=0.3, zoneout=0.3, seed=5, **choices)),
        draws=True,
    ),
    "Bidirectional/learned_initial_state": _both_ends(
        2, lambda **choices: Bidirectional(GRU(U, learned_initial_state=True, **choices))
    ),
    "Bidirectional/stateful": _both_ends(
        2, lambda **choices: Bidirectional(GRU(U, stateful=True, **choices)), fixed_batch=True
    ),
    "Stacked/one": _stack((U,), [lambda **choices: GRU(U, **choices)], reads="forward"),
    "Stacked/forward": _stack(
        (6, U, U, 5, 2),
        [
            lambda **choices: Elman(6, layer_norm=True, **choices),
            lambda **choices: LSTM(U, peepholes=True, learned_initial_state=True, **choices),
            lambda **choices: EchoState(5, leak=0.5, connectivity=0.6, **choices),
            lambda **choices: GRU(2, reset_after=False, zoneout=0.0, **choices),
        ],
        reads="forward",
    ),
    "Stacked/backward": _stack(
        (U, U, U, U, U),
        [
            lambda **choices: Bidirectional(LSTM(U, **choices), merge_mode="sum"),
            lambda **choices: GRU(U, go_backwards=True, **choices),
        ],
        own_graph=True,
    ),
    "Stacked/noise": _stack(
        (6, U, U),
        [
            lambda **choices: Elman(6, dropout=0.3, zoneout=0.3, seed=1, **choices),
            lambda **choices: LSTM(U, recurrent_dropout=0.3, seed=2, **choices),
        ],
        reads="forward",
        draws=True,
    ),
    "Stacked/stateful": _stack(
        (6, U),
        [lambda **choices: Elman(6, stateful=True, **choices), lambda **choices: GRU(U, stateful=True, **choices)],
        reads="forward",
        fixed_batch=True,
    ),
}


# What is done with a case.


def flat(results: Any) -> list[Any]:
    return list(results) if isinstance(results, (list, tuple)) else [results]


def inputs_of(name: str, batch: int = B, time: int = T, dtype: str = "float64") -> Arrays:
    """A sequence and the initial states for a case."""
    rng = generator(name + " inputs")
    sequence = rng.normal(size=(batch, time, D))
    return [each.astype(dtype) for each in (sequence, *(rng.normal(size=(batch, w)) for w in CASES[name].state_widths))]


def gap_mask() -> np.ndarray:
    """Steps left out at the start, in the middle and at the end; as many in every row."""
    return np.array([[True, True, False, False], [False, True, False, True], [True, False, True, False]])


def call(layer: keras.Layer, sequence: Any, states: Iterable[Any] = (), mask: Any = None, training: bool = False):
    """Calls a layer; the states are passed only where there are some."""
    states = list(states)
    given = {"initial_state": states} if states else {}
    given |= {} if mask is None else {"mask": keras.ops.convert_to_tensor(mask)}
    if "training" in layer._call_signature.parameters:
        given["training"] = training
    return flat(layer(sequence, **given))


def steps(layer: keras.Layer, sequence: Any, states: Any = None) -> list[Any]:
    """Reads a sequence step by step; returns the outputs as a sequence and the last states."""
    outputs = []
    for time in range(sequence.shape[1]):
        output, states = layer.step(sequence[:, time], states)
        outputs.append(output)
    return [keras.ops.stack(outputs, axis=1), *flat(states)]


def halves(case: SequenceCase, layer: keras.Layer, sequence: Any, states: Any, mask: Any, training: bool) -> list[Any]:
    """Reads a sequence in two calls, the second of which starts from the states of the first."""
    parts = [slice(None, 2), slice(2, None)]
    outputs = []
    for part in parts if case.reads == "forward" else reversed(parts):
        output, *states = call(layer, sequence[:, part], states, mask[:, part], training)
        outputs.append(output)
    return [keras.ops.concatenate(outputs, axis=1), *states]


def outputs_and_gradients(
    layer: keras.Layer, function: Callable[..., list[Any]], arrays: Arrays
) -> tuple[Arrays, Arrays]:
    """Runs a function of arrays that uses a layer.

    Returns its results, and the gradients of a random linear function of them, the same in every call and process, by
    the arrays and by the layer's trainable weights. Leaves no trace: states and generators of random numbers are as
    they were before.
    """
    before = [np.array(variable) for variable in layer.non_trainable_variables]
    tensors = [keras.ops.convert_to_tensor(array) for array in arrays]
    run = _run_jax if keras.backend.backend() == "jax" else _run_tensorflow
    results, gradients = run(layer, function, tensors)
    for variable, value in zip(layer.non_trainable_variables, before, strict=True):
        variable.assign(value)
    return [keras.ops.convert_to_numpy(each) for each in results], list(map(keras.ops.convert_to_numpy, gradients))


def linear_loss(results: list[Any]) -> Any:
    rng = np.random.default_rng(11)
    factors = [rng.normal(size=tuple(each.shape)) for each in results]
    return sum(keras.ops.sum(each * keras.ops.cast(by, each.dtype)) for each, by in zip(results, factors, strict=True))


def _run_tensorflow(layer: keras.Layer, function: Callable[..., list[Any]], tensors: list[Any]) -> Any:
    import tensorflow as tf

    weights = [variable.value for variable in layer.trainable_weights]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        results = function(*tensors)
        loss = linear_loss(results)
    return results, tape.gradient(loss, [*tensors, *weights], unconnected_gradients=tf.UnconnectedGradients.ZERO)


def _run_jax(layer: keras.Layer, function: Callable[..., list[Any]], tensors: list[Any]) -> Any:
    import jax

    variables = layer.trainable_variables

    def loss(tensors: list[Any], weights: list[Any]) -> tuple[Any, list[Any]]:
        with keras.StatelessScope(state_mapping=list(zip(variables, weights, strict=True))):
            results = function(*tensors)
        return linear_loss(results), results

    weights = [variable.value for variable in variables]
    # Compiled as a whole: compiling every operation by itself takes several times as long.
    (_, results), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(tensors, weights)
    return results, [*gradients[0], *gradients[1]]


def joint_model(names: Iterable[str], batch: int | None = None, **options: Any) -> keras.Model:
    """A functional model of a sequence and its mask, with an output per output of every case, named after it."""
    sequence, mask = keras.Input(batch_shape=(batch, None, D)), keras.Input(batch_shape=(batch, None), dtype="bool")
    outputs = {}
    for name in names:
        layer = CASES[name].layer(**options)
        outputs |= {f"{name}:{index}": each for index, each in enumerate(flat(layer(sequence, mask=mask)))}
    model, rng = keras.Model([sequence, mask], outputs), generator("joint model")
    model.set_weights([rng.normal(scale=0.6, size=tuple(each.shape)) for each in model.weights])
    return model


def masked(name: str, training: bool, padding: float = 0.0, dtype: str = "float64") -> tuple[Arrays, Arrays]:
    """Outputs and gradients of a case over a batch with gaps that hold a value."""
    layer, (sequence, *states) = CASES[name].built(name, dtype=dtype), inputs_of(name, dtype=dtype)
    sequence = np.where(gap_mask()[..., None], sequence, np.array(padding, dtype))
    return outputs_and_gradients(
        layer, lambda sequence, *states: call(layer, sequence, states, gap_mask(), training), [sequence, *states]
    )


def compute_all(names: Iterable[str], folder: Path) -> None:
    """Writes what cases give in float32, at prediction and, unless it is random, in training: `folder/name.npz`."""
    for name in names:
        results = {}
        for training in (False,) if CASES[name].draws else (False, True):
            for kind, arrays in zip(("output", "gradient"), masked(name, training, dtype="float32"), strict=True):
                results |= {f"{training}_{kind}_{index}": array for index, array in enumerate(arrays)}
        np.savez(folder / f"{name.replace('/', '-')}.npz", **results)


def load_all(folder: Path) -> None:
    """Loads the joint model in `folder/model.keras` and writes what it gives for `folder/inputs.npz`."""
    model = keras.models.load_model(folder / "model.keras")
    with np.load(folder / "inputs.npz") as inputs:
        outputs = model([inputs["sequence"], inputs["mask"]])
    np.savez(folder / "loaded.npz", *[np.array(outputs[key]) for key in sorted(outputs)])


if __name__ == "__main__":
    task, where, *cases = sys.argv[1:]
    if task == "compute":
        compute_all(cases, Path(where))
    else:
        load_all(Path(where))
