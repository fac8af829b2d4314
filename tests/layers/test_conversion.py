"""Conversions: the same values in Keras and PyTorch, weights that come back as they were, and clear refusals."""

import doctest
import importlib.util
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import torch_goldens

from layers import GRU, LSTM, Bidirectional, Elman, Stacked, conversion
from layers.conversion import from_keras, from_torch_weights, to_keras, to_torch_weights

B, T, D, U = torch_goldens.BATCH, torch_goldens.TIME, torch_goldens.FEATURES, torch_goldens.UNITS
OPTIONS = {"return_sequences": True, "return_state": True}
GOLDENS = torch_goldens.read(torch_goldens.GOLDENS)

TORCH_KINDS = {
    "rnn_tanh": lambda **options: Elman(U, **OPTIONS | options),
    "rnn_relu": lambda **options: Elman(U, activation="relu", **OPTIONS | options),
    "lstm": lambda **options: LSTM(U, **OPTIONS | options),
    "gru": lambda **options: GRU(U, **OPTIONS | options),
    "lstm_no_bias": lambda **options: LSTM(U, use_bias=False, **OPTIONS | options),
    "gru_no_bias": lambda **options: GRU(U, use_bias=False, **OPTIONS | options),
}
KERAS_KINDS = {
    "elman": lambda **options: keras.layers.SimpleRNN(U, **options),
    "elman_relu": lambda **options: keras.layers.SimpleRNN(U, activation="relu", **options),
    "lstm": lambda **options: keras.layers.LSTM(U, **options),
    "lstm_no_bias": lambda **options: keras.layers.LSTM(U, use_bias=False, **options),
    "gru": lambda **options: keras.layers.GRU(U, **options),
    "gru_reset_before": lambda **options: keras.layers.GRU(U, reset_after=False, **options),
    "gru_no_bias": lambda **options: keras.layers.GRU(U, use_bias=False, **options),
    "bidirectional": lambda **options: keras.layers.Bidirectional(keras.layers.LSTM(U, **options), merge_mode="ave"),
    "bidirectional_pair": lambda **options: keras.layers.Bidirectional(keras.layers.GRU(U, **options), merge_mode=None),
}
all_cases = pytest.mark.parametrize("case", torch_goldens.CASES)


with_torch = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs PyTorch")


def layer_of(case, **options):
    kind, _, arrangement = case.partition("/")
    layers, bidirectional = torch_goldens.ARRANGEMENTS[arrangement]
    parts = [TORCH_KINDS[kind](**options) for _ in range(layers)]
    parts = [Bidirectional(part) for part in parts] if bidirectional else parts
    return Stacked(parts) if layers > 1 else parts[0]


def random_layer(case):
    """A layer of a case, with the same weights every time."""
    layer, rng = layer_of(case), np.random.default_rng(torch_goldens.CASES.index(case))
    layer.build((None, None, D))
    for variable in layer.trainable_weights:
        variable.assign(rng.normal(scale=0.5, size=tuple(variable.shape)))
    return layer


def in_our_order(arrays, prefix=""):
    """PyTorch has an array of all h and one of all c; here h and c of one layer and direction follow each other."""
    states = [arrays[f"{prefix}{name}"] for name in ("h", "c") if f"{prefix}{name}" in arrays]
    return [state[index] for index in range(len(states[0])) for state in states]


def has_one_bias(case):
    return not case.startswith("gru")


def with_one_bias(weights):
    """The same function in PyTorch, with all of the bias on the input's side."""
    merged = dict(weights)
    for name in weights:
        if name.startswith("bias_ih"):
            other = name.replace("_ih", "_hh")
            merged[name], merged[other] = weights[name] + weights[other], np.zeros_like(weights[other])
    return merged


def predict(case, layer):
    inputs = GOLDENS[case]["input"]
    mask = np.arange(T) < inputs["lengths"][:, None]
    return layer(inputs["sequence"], initial_state=in_our_order(inputs, "initial_"), mask=mask)


def run_case(case, layer, run_with_gradients):
    """Outputs, gradients by inputs, gradients by weights."""
    inputs = GOLDENS[case]["input"]
    states = in_our_order(inputs, "initial_")
    upstream = [inputs["upstream_output"], *in_our_order(inputs, "upstream_")]
    mask = np.arange(T) < inputs["lengths"][:, None]
    outputs, gradients = run_with_gradients(layer, [inputs["sequence"], *states], upstream, mask, training=True)
    return outputs, gradients[: 1 + len(states)], gradients[1 + len(states) :]


def assert_all_close(actual, wanted):
    for each, other in zip(actual, wanted, strict=True):
        np.testing.assert_allclose(each, other, atol=1e-5, rtol=1e-5)


def assert_same_weights(actual, wanted):
    assert list(actual) == list(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(actual[name], values, err_msg=name)


@all_cases
def test_values_and_gradients_equal_torch_under_padding(run_with_gradients, case):
    golden = GOLDENS[case]
    layer = layer_of(case)
    from_torch_weights(golden["weight"], layer)
    outputs, input_gradients, weight_gradients = run_case(case, layer, run_with_gradients)
    assert_all_close(outputs, [golden["output"]["output"], *in_our_order(golden["output"])])
    assert_all_close(input_gradients, [golden["gradient"]["sequence"], *in_our_order(golden["gradient"], "initial_")])

    # Gates only change places and signs, so gradients are converted as weights are.
    for variable, gradient in zip(layer.trainable_weights, weight_gradients, strict=True):
        variable.assign(gradient)
    gradients = to_torch_weights(layer)
    for name in golden["weight"]:
        same = name.replace("_hh", "_ih") if name.startswith("bias") and has_one_bias(case) else name
        np.testing.assert_allclose(gradients[same], golden["gradient"][name], atol=1e-5, rtol=1e-5, err_msg=name)
    assert gradients.keys() == golden["weight"].keys()


@all_cases
def test_weights_from_torch_predict_the_same_and_come_back_as_they_were(case):
    layer = layer_of(case)
    weights = GOLDENS[case]["weight"]
    from_torch_weights(weights, layer)
    assert_all_close(predict(case, layer), [GOLDENS[case]["output"]["output"], *in_our_order(GOLDENS[case]["output"])])
    back = to_torch_weights(layer)
    assert_same_weights(back, with_one_bias(weights) if has_one_bias(case) else weights)
    assert all(values.flags.writeable and values.flags.c_contiguous for values in back.values())

    before = layer.get_weights()
    for variable in layer.trainable_weights:
        variable.assign(np.zeros(tuple(variable.shape)))
    from_torch_weights(back, layer)
    for actual, wanted in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("case", ["gru/single", "gru/bidirectional_stack", "gru_no_bias/bidirectional"])
def test_update_gate_that_takes_is_negated_for_torch(case):
    layer = layer_of(case, update_gate="take")
    from_torch_weights(GOLDENS[case]["weight"], layer)
    assert_all_close(predict(case, layer), [GOLDENS[case]["output"]["output"], *in_our_order(GOLDENS[case]["output"])])
    assert_same_weights(to_torch_weights(layer), GOLDENS[case]["weight"])


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """What the PyTorch of this machine computes, in a process of its own: all cases, and with weights from here."""
    folder = tmp_path_factory.mktemp("torch")
    weights = {}
    for case in torch_goldens.CASES:
        converted = to_torch_weights(random_layer(case))
        weights |= {f"{case}/weight/{name}": values for name, values in converted.items()}
    np.savez(folder / "weights.npz", **weights)
    arguments = [folder / f"{name}.npz" for name in ("fresh", "weights", "converted")]
    subprocess.run([sys.executable, torch_goldens.__file__, *arguments], check=True, timeout=120)
    return {name: torch_goldens.read(folder / f"{name}.npz") for name in ("fresh", "converted")}


@with_torch
def test_stored_values_are_those_of_torch(live):
    assert live["fresh"].keys() == GOLDENS.keys()
    for case, groups in GOLDENS.items():
        for group, arrays in groups.items():
            assert live["fresh"][case][group].keys() == arrays.keys()
            for name, values in arrays.items():
                fresh = live["fresh"][case][group][name]
                np.testing.assert_allclose(fresh, values, atol=1e-6, rtol=1e-6, err_msg=f"{case} {group} {name}")


@with_torch
@all_cases
def test_torch_computes_the_same_with_converted_weights(live, case):
    wanted = live["converted"][case]["output"]
    assert_all_close(predict(case, random_layer(case)), [wanted["output"], *in_our_order(wanted)])


def test_tensors_with_gradients_and_of_half_precision_are_accepted():
    class Tensor:
        """What a tensor of PyTorch offers; NumPy cannot read it before it is detached, and has no bfloat16."""

        def __init__(self, values, steps=()):
            self.values, self.steps = values, steps

        def detach(self):
            return Tensor(self.values, (*self.steps, "detach"))

        def cpu(self):
            return Tensor(self.values, (*self.steps, "cpu"))

        def double(self):
            return Tensor(self.values, (*self.steps, "double"))

        def __array__(self, dtype=None, copy=None):
            assert self.steps == ("detach", "cpu", "double")
            return np.asarray(self.values, dtype=dtype)

    weights = GOLDENS["gru/single"]["weight"]
    layer = layer_of("gru/single")
    from_torch_weights({name: Tensor(values) for name, values in weights.items()}, layer)
    assert_same_weights(to_torch_weights(layer), weights)


def changed(**changes):
    """The weights of an LSTM; a change of None takes a name away."""
    weights = GOLDENS["lstm/single"]["weight"] | changes
    return {name: values for name, values in weights.items() if values is not None}


@pytest.mark.parametrize("built", [False, True], ids=["unbuilt", "built"])
@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed(bias_hh_l0=None), "missing are ['bias_hh_l0']"),
        (changed(weight_hr_l0=np.zeros((2, U))), "no place for ['weight_hr_l0']"),
        ({f"lstm.{name}": values for name, values in changed().items()}, "'lstm.weight_ih_l0'"),
        (changed(weight_hh_l0=np.zeros((4 * U, 2))), "weight_hh_l0 must have shape (12, 3) for {}, got (12, 2)"),
        (changed(bias_hh_l0=np.zeros(3 * U)), "bias_hh_l0 must have shape (12,) for {}, got (9,)"),
        (changed(weight_ih_l0=np.zeros(7)), "weight_ih_l0 must have shape (12, {features}) for {}, got (7,)"),
        (changed(weight_ih_l0="words"), "weight_ih_l0 must be an array of numbers, got 'words'"),
    ],
    ids=["missing", "extra", "prefixed", "kernel", "bias", "dimensions", "text"],
)
def test_weights_that_do_not_fit_change_nothing(randomize, state, message, built):
    layer = LSTM(U)
    before = randomize((B, T, D), layer) if built else []
    with pytest.raises(ValueError, match=re.escape(message.format(layer.name, features=5 if built else "features"))):
        from_torch_weights(state, layer)
    assert layer.built == built
    for actual, wanted in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(actual, wanted.astype("float32"))


def test_features_must_be_those_of_the_built_layer_and_the_same_in_both_directions():
    layer = LSTM(U)
    layer.build((None, None, 7))
    with pytest.raises(ValueError, match=re.escape("weight_ih_l0 must have shape (12, 7)")):
        from_torch_weights(changed(), layer)
    weights = GOLDENS["gru/bidirectional"]["weight"] | {"weight_ih_l0_reverse": np.zeros((9, 4))}
    with pytest.raises(ValueError, match=re.escape("weight_ih_l0_reverse must have shape (9, 5)")):
        from_torch_weights(weights, layer_of("gru/bidirectional"))


STACKABLE = {"return_sequences": True}


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: GRU(U, reset_after=False), "reset_after=False of {}"),
        (lambda: LSTM(U, go_backwards=True), "go_backwards=True of {}"),
        (lambda: Bidirectional(GRU(U), merge_mode="sum"), "merge_mode='sum' of {}"),
        (lambda: Stacked([LSTM(U, **STACKABLE), LSTM(4)]), "{}: all of its layers must have the same units"),
        (lambda: Stacked([LSTM(U, **STACKABLE), LSTM(U, use_bias=False)]), "the same use_bias"),
        (lambda: Stacked([LSTM(U, **STACKABLE), GRU(U)]), "{}: all of its layers must be of one kind"),
        (lambda: Stacked([Elman(U, **STACKABLE), Elman(U, activation="relu")]), "the same activation"),
        (lambda: Stacked([Bidirectional(GRU(U, **STACKABLE)), GRU(U)]), "either all of its layers are Bidirectional"),
        (lambda: keras.layers.Dense(3), "has no counterpart in PyTorch"),
        (lambda: LSTM(U, layer_norm=True), "layer_norm=True of {}"),
        (lambda: LSTM(U, peepholes=True), "peepholes=True of {}"),
        (lambda: GRU(U, zoneout=0.1), "zoneout=[0.1] of {}"),
        (lambda: LSTM(U, activation="relu"), "activation="),
        (lambda: GRU(U, recurrent_activation="hard_sigmoid"), "recurrent_activation="),
        (lambda: GRU(U, learned_initial_state=True), "learned_initial_state=True"),
    ],
)
def test_what_torch_cannot_express_is_refused(layer, message):
    layer = layer()
    layer.build((None, None, D))
    before = layer.get_weights()
    for convert in (lambda: to_torch_weights(layer), lambda: from_torch_weights({}, layer)):
        with pytest.raises(ValueError, match=re.escape(message.format(layer.name))):
            convert()
    for actual, wanted in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_layer_without_weights_has_none_to_convert():
    with pytest.raises(ValueError, match="build it before"):
        to_torch_weights(Bidirectional(LSTM(U)))


@pytest.mark.parametrize(
    ("kind", "return_sequences"), [*((kind, True) for kind in KERAS_KINDS), ("gru", False), ("bidirectional", False)]
)
def test_conversions_from_and_to_keras_compute_the_same(rng, randomize, kind, return_sequences):
    theirs = KERAS_KINDS[kind](return_sequences=return_sequences, return_state=True)
    randomize((B, T, D), theirs)
    ours = from_keras(theirs)
    ours.trainable = False  # what is frozen is converted as well
    back = to_keras(ours)
    sequence = rng.normal(size=(B, T, D)).astype("float32")
    mask = np.arange(T) < np.array([6, 3, 1, 4])[:, None]
    # With a mask, because Keras' GRU without bias and mask fails on JAX where float64 is allowed.
    for actual, wanted in zip(ours(sequence), theirs(sequence, mask=np.ones((B, T), bool)), strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-6)
    # Ours put out zero at masked steps, and so does a layer of Keras that comes from one of them.
    for actual, wanted in zip(back(sequence, mask=mask), ours(sequence, mask=mask), strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", KERAS_KINDS)
@pytest.mark.parametrize("built", [False, True], ids=["unbuilt", "built"])
def test_layer_to_keras_and_back_is_the_same(randomize, kind, built):
    layer = from_keras(KERAS_KINDS[kind](return_sequences=True, name="words"))
    if built:
        randomize((B, T, D), layer)
    back = from_keras(to_keras(layer))
    assert type(back) is type(layer)
    assert back.built == built
    assert back.get_config() == layer.get_config()
    for actual, wanted in zip(back.get_weights(), layer.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, wanted)


OPTIONS_KEPT = {
    "activation": "relu",
    "name": "words",
    "trainable": False,
    "dtype": "mixed_bfloat16",
    "activity_regularizer": keras.regularizers.L2(0.1),
    "use_bias": False,
    "kernel_initializer": "ones",
    "recurrent_initializer": keras.initializers.Orthogonal(0.5, seed=3),
    "bias_initializer": "ones",
    "kernel_regularizer": keras.regularizers.L1(0.2),
    "recurrent_regularizer": keras.regularizers.L2(0.3),
    "bias_regularizer": keras.regularizers.L2(0.4),
    "recurrent_dropout": 0.3,
    "seed": 11,
    "return_sequences": True,
    "return_state": True,
    "go_backwards": True,
    "kernel_constraint": keras.constraints.MaxNorm(2.0),
    "recurrent_constraint": keras.constraints.UnitNorm(),
    "bias_constraint": keras.constraints.NonNeg(),
    "dropout": 0.2,
    "stateful": True,
}


@pytest.mark.parametrize("kind", [keras.layers.SimpleRNN, keras.layers.LSTM, keras.layers.GRU])
def test_options_are_kept(kind):
    ours_class = {keras.layers.SimpleRNN: Elman, keras.layers.LSTM: LSTM, keras.layers.GRU: GRU}[kind]
    gates = {} if kind is keras.layers.SimpleRNN else {"recurrent_activation": "hard_sigmoid"}
    options = OPTIONS_KEPT | gates
    theirs = kind(U, **options)
    theirs.activity_regularizer = options["activity_regularizer"]  # SimpleRNN forgets the argument
    ours = from_keras(theirs)
    assert type(ours) is ours_class
    wanted = ours_class(U, **options).get_config()
    assert ours.get_config() == wanted
    back = to_keras(ours)
    assert back.get_config() == theirs.get_config() | {"zero_output_for_mask": True}
    assert back.cell.seed == 11
    assert from_keras(back).get_config() == wanted


@pytest.mark.parametrize("unit_forget_bias", [True, False])
def test_forget_bias_is_kept(unit_forget_bias):
    ours = from_keras(keras.layers.LSTM(U, unit_forget_bias=unit_forget_bias))
    back = to_keras(ours)
    assert back.unit_forget_bias == unit_forget_bias
    ours.build((None, None, D))
    np.testing.assert_array_equal(ours.get_weights()[2][U : 2 * U], unit_forget_bias)


def test_stateful_layer_keeps_its_batch_size_but_not_its_state(rng, randomize):
    theirs = keras.layers.GRU(U, stateful=True)
    randomize((B, T, D), theirs)
    sequence = rng.normal(size=(B, T, D)).astype("float32")
    wanted = [np.asarray(theirs(sequence)) for _ in range(2)]
    ours = from_keras(theirs)
    back = to_keras(ours)
    for layer in (ours, back):
        for each in wanted:
            np.testing.assert_allclose(layer(sequence), each, atol=1e-6)


@pytest.mark.parametrize("reset_after", [True, False])
def test_update_gate_that_takes_is_negated_for_keras(rng, randomize, reset_after):
    layer = GRU(U, update_gate="take", reset_after=reset_after)
    randomize((B, T, D), layer)
    sequence = rng.normal(size=(B, T, D)).astype("float32")
    theirs = to_keras(layer)
    np.testing.assert_allclose(theirs(sequence), layer(sequence), atol=1e-6)
    np.testing.assert_allclose(from_keras(theirs)(sequence), layer(sequence), atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: Stacked([GRU(U)]), "one by one"),
        (lambda: keras.layers.GRU(U), "has no counterpart in Keras"),
        (lambda: LSTM(U, layer_norm=True), "layer_norm=True of {}"),
        (lambda: LSTM(U, peepholes=True), "peepholes=True of {}"),
        (lambda: LSTM(U, zoneout=0.1), "zoneout=[0.1, 0.1] of {}"),
        (lambda: LSTM(U, forget_bias=2.0), "build the layer first"),
        (lambda: GRU(U, longest_lag=9), "longest_lag=9 of {}"),
        (lambda: GRU(U, learned_initial_state=True), "learned_initial_state=True"),
        (lambda: GRU(U, update_gate="take", recurrent_activation="tanh"), "update_gate='take' of {}"),
        (lambda: GRU(U, update_gate="take", bias_constraint="non_neg"), "bias_constraint of {}"),
    ],
)
def test_what_keras_cannot_express_is_refused(layer, message):
    layer = layer()
    with pytest.raises(ValueError, match=re.escape(message.format(layer.name))):
        to_keras(layer)


def test_how_weights_start_is_no_obstacle_once_they_exist(rng):
    layer = LSTM(U, forget_bias=2.0, longest_lag=9)
    sequence = rng.normal(size=(B, T, D)).astype("float32")
    np.testing.assert_allclose(layer(sequence), to_keras(layer)(sequence), atol=1e-6)


class OtherLSTM(keras.layers.LSTM):
    """A layer that may compute anything."""


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: keras.layers.Dense(3), "no keras.layers.SimpleRNN"),
        (lambda: OtherLSTM(3), "no keras.layers.SimpleRNN"),
        (
            lambda: keras.layers.Bidirectional(
                keras.layers.LSTM(U, go_backwards=True), backward_layer=keras.layers.LSTM(U)
            ),
            "forward layer of {} has go_backwards",
        ),
        (
            lambda: keras.layers.Bidirectional(
                keras.layers.LSTM(U), backward_layer=keras.layers.LSTM(4, go_backwards=True)
            ),
            "directions of {} differ in units (3 and 4)",
        ),
        (
            lambda: keras.layers.Bidirectional(
                keras.layers.LSTM(U), backward_layer=keras.layers.GRU(U, go_backwards=True)
            ),
            "directions of {} are layers of two kinds",
        ),
    ],
)
def test_what_has_no_counterpart_here_is_refused(layer, message):
    layer = layer()
    with pytest.raises(ValueError, match=re.escape(message.format(layer.name))):
        from_keras(layer)


def test_docstring_examples_run():
    results = doctest.testmod(conversion)
    assert results.attempted >= 4
    assert results.failed == 0
