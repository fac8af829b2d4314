"""The recurrent layers against NumPy: equations, hand-derived backpropagation through time, finite differences."""

from functools import cache
from itertools import combinations

import keras
import numpy as np
import pytest
from recurrent_oracles import Conditions, EchoStateOracle, ElmanOracle, GRUOracle, LSTMOracle

from layers import GRU, LSTM, EchoState, Elman

B, T, D, U = 3, 5, 6, 4  # batch, time, features, units

ORACLES = {Elman: ElmanOracle, LSTM: LSTMOracle, GRU: GRUOracle, EchoState: EchoStateOracle}
KINDS = {
    "elman": (Elman, {}),
    "elman_relu": (Elman, {"activation": "relu"}),
    "elman_layer_norm": (Elman, {"layer_norm": True}),
    "lstm": (LSTM, {}),
    "lstm_peepholes": (LSTM, {"peepholes": True}),
    "lstm_layer_norm": (LSTM, {"layer_norm": True, "peepholes": True}),
    "gru_of_the_notes": (GRU, {"reset_after": False, "update_gate": "take"}),
    "gru_before_keep": (GRU, {"reset_after": False, "update_gate": "keep"}),
    "gru_after_take": (GRU, {"reset_after": True, "update_gate": "take"}),
    "gru_after_keep": (GRU, {"reset_after": True, "update_gate": "keep"}),
    "gru_before_layer_norm": (GRU, {"reset_after": False, "layer_norm": True}),
    "gru_after_layer_norm": (GRU, {"reset_after": True, "layer_norm": True}),
    "echo_state": (EchoState, {"leak": 0.3}),
}
# Random choices are fixed in these: the factors of dropout and the units that zoneout keeps.
RANDOM_OPTIONS = {
    "recurrent_dropout": {"recurrent_dropout": 0.5},
    "all": {"recurrent_dropout": 0.3, "dropout": 0.3, "zoneout": 0.3, "learned_initial_state": True},
}
OTHER_OPTIONS = {
    "elman_softsign": (Elman, {"activation": "softsign"}),
    "elman_no_bias": (Elman, {"use_bias": False}),
    "lstm_no_bias": (LSTM, {"use_bias": False}),
    "lstm_softsign": (LSTM, {"activation": "softsign"}),
    "lstm_layer_norm_no_bias": (LSTM, {"layer_norm": True, "use_bias": False}),
    "gru_before_no_bias": (GRU, {"reset_after": False, "use_bias": False}),
    "gru_after_no_bias": (GRU, {"reset_after": True, "use_bias": False}),
    "gru_after_softsign": (GRU, {"reset_after": True, "activation": "softsign"}),
    "gru_before_layer_norm_take": (GRU, {"reset_after": False, "layer_norm": True, "update_gate": "take"}),
    "echo_state_without_leak": (EchoState, {}),
}
WITHOUT_ORACLE = {
    "elman_gelu": (Elman, {"activation": "gelu"}),
    "lstm_gates_softsign": (LSTM, {"recurrent_activation": "softsign", "activation": "elu", "peepholes": True}),
    "gru_gates_softsign": (GRU, {"recurrent_activation": "softsign", "activation": "gelu"}),
    "gru_before_gates_softsign": (GRU, {"recurrent_activation": "softsign", "reset_after": False}),
}
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
# Divided by a small deviation, rounding errors grow: the oracle's own, in float32, reach 4e-6.
LAYER_NORM_TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
GRADIENT_TOLERANCE = 1e-10

all_kinds = pytest.mark.parametrize("kind", KINDS)
both_paths = pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
# Every two of direction, mask and initial state meet in each combination.
CONDITIONS = {
    "forward-whole-zero_state": {},
    "forward-masked-given_state": {"masked": True, "given": True},
    "backward-whole-given_state": {"go_backwards": True, "given": True},
    "backward-masked-zero_state": {"go_backwards": True, "masked": True},
}
all_conditions = pytest.mark.parametrize("conditions", CONDITIONS)


@cache
def built_layer(layer_class, dtype, **options):
    """Building costs more than running; every test sets all weights."""
    layer = layer_class(U, dtype=dtype, **options)
    layer.build((None, None, D))
    return layer


class Problem:
    """A layer and its oracle with the same random weights, inputs for them, and the oracle's answers."""

    def __init__(self, rng, kind, dtype="float64", shape=(B, T), masked=False, given=False, **options):
        layer_class, kind_options = kind
        self.options = {"return_state": True, "return_sequences": True, **kind_options, **options}
        self.layer = built_layer(layer_class, dtype, **self.options)
        self.dtype, self.given = dtype, given
        oracle_options = ORACLES[layer_class].__dataclass_fields__
        supported = self.options.get("activation") not in ("gelu", "elu")
        known = {name: value for name, value in self.options.items() if name in oracle_options}
        self.oracle = ORACLES[layer_class](**known if supported else {**known, "activation": "tanh"})
        self.weights = self.rounded(self.oracle.random_weights(rng, D, U))
        first_states = {
            f"initial_state_{index}": self.rounded(rng.normal(size=U)) for index in range(self.layer.state_count)
        }
        self.packed = {**self.oracle.packed(self.weights), **first_states}
        self.layer.set_weights([self.packed[weight.name] for weight in self.layer.weights])
        self.states = [self.rounded(rng.normal(size=(shape[0], U))) for _ in range(self.layer.state_count)]
        self.set_inputs(rng, shape, masked)

    def set_inputs(self, rng, shape, masked):
        self.shape = shape
        self.sequence = self.rounded(rng.normal(size=(*shape, D)))
        self.mask = None
        if masked:
            # Gaps anywhere, and one row without a valid step.
            self.mask = rng.random(shape) < 0.7
            self.mask[1] = False
        self.upstream = [rng.normal(size=(*shape, U)), *(rng.normal(size=(shape[0], U)) for _ in self.states)]
        if not self.options["return_sequences"]:
            self.upstream[0] = rng.normal(size=(shape[0], U))
        self.fixed = {"kept": (0.0, 0.0), "factors": 1.0, "input_factors": 1.0}

    def fix_randomness(self, rng, monkeypatch):
        """Draws the factors of dropout and the units that zoneout keeps once, for layer and oracle."""
        (batch, steps), layer = self.shape, self.layer
        of_rank = {3: ("input_factors", (batch, 1, D)), 2: ("factors", (batch, U))}
        for name, shape in of_rank.values():
            self.fixed[name] = rng.choice([0.0, 1.25, 2.0], size=shape)
        self.fixed["kept"] = tuple(rng.random((batch, steps, U)) < 0.4 for _ in self.states)

        def factors(shape, rate):
            if not rate:
                return None
            name, expected = of_rank[len(shape)]
            assert tuple(shape) == expected
            return keras.ops.convert_to_tensor(self.fixed[name].astype(self.dtype))

        def zoned_out(shape):
            assert tuple(shape) == (batch, steps, U)
            return tuple(
                keras.ops.convert_to_tensor(kept)
                for kept, rate in zip(self.fixed["kept"], layer.cell.zoneout, strict=True)
                if rate
            )

        monkeypatch.setattr(layer, "_factors", factors)
        monkeypatch.setattr(layer.cell, "draw_zoneout", zoned_out)
        if not layer.dropout:
            self.fixed["input_factors"] = 1.0
        if not layer.recurrent_dropout:
            self.fixed["factors"] = 1.0
        self.fixed["kept"] = tuple(
            kept if rate else 0.0 for kept, rate in zip(self.fixed["kept"], layer.cell.zoneout, strict=True)
        )

    def rounded(self, arrays):
        """Rounding to the layer's dtype is no error of the layer."""
        if isinstance(arrays, dict):
            return {name: self.rounded(array) for name, array in arrays.items()}
        return arrays.astype(self.dtype).astype("float64")

    @property
    def inputs(self):
        """The sequence and, if given, the initial states."""
        return [self.sequence.astype(self.dtype), *(each.astype(self.dtype) for each in self.states * self.given)]

    def call(self, training, layer=None):
        sequence, *states = map(keras.ops.convert_to_tensor, self.inputs)
        mask = None if self.mask is None else keras.ops.convert_to_tensor(self.mask)
        results = (layer or self.layer)(sequence, initial_state=states or None, mask=mask, training=training)
        return [keras.ops.convert_to_numpy(each) for each in results]

    def expected(self):
        """Returns the oracle's outputs and final states, then its gradients by inputs and trainable weights."""
        learned = self.layer.learned_initial_state and not self.given
        states = self.states
        if learned:
            first = [self.packed[f"initial_state_{index}"] for index in range(len(states))]
            states = [np.broadcast_to(each, state.shape) for each, state in zip(first, states, strict=True)]
        elif not self.given:
            states = [np.zeros_like(state) for state in states]
        conditions = Conditions(mask=self.mask, go_backwards=self.layer.go_backwards, **self.fixed)
        outputs, final_states, backward = self.oracle.run(self.weights, self.sequence, tuple(states), conditions)
        d_output, *d_states = self.upstream
        if self.layer.return_sequences:
            gradients = backward(d_output, d_states)
        else:
            outputs = final_states[0]
            gradients = backward(np.zeros((*self.shape, U)), [d_states[0] + d_output, *d_states[1:]])
        by_name = self.oracle.packed(gradients.weights)
        by_name |= {f"initial_state_{index}": each.sum(0) for index, each in enumerate(gradients.states)}
        of_inputs = [gradients.sequence, *(gradients.states if self.given else [])]
        of_weights = [by_name[weight.name] for weight in self.layer.trainable_weights]
        return [outputs, *final_states], of_inputs + of_weights


def assert_all_close(actual, expected, tolerance):
    for ours, wanted in zip(actual, expected, strict=True):
        assert ours.shape == wanted.shape
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=tolerance)


def assert_equals_oracle(run_with_gradients, problem, training):
    outputs, gradients = run_with_gradients(problem.layer, problem.inputs, problem.upstream, problem.mask, training)
    expected_outputs, expected_gradients = problem.expected()
    assert_all_close(outputs, expected_outputs, TOLERANCE["float64"])
    assert_all_close(gradients, expected_gradients, GRADIENT_TOLERANCE)


@all_kinds
def test_oracles_gradients_equal_its_finite_differences(rng, kind):
    oracle = Problem(rng, KINDS[kind]).oracle
    weights = oracle.random_weights(rng, D, U)
    sequence = rng.normal(size=(B, T, D))
    states = [rng.normal(size=(B, U)) for _ in range(oracle.state_count)]
    conditions = Conditions(
        mask=rng.random((B, T)) < 0.7,
        factors=rng.random((B, U)),
        input_factors=rng.random((B, 1, D)),
        kept=(rng.random((B, T, U)) < 0.3, 0.2),
        go_backwards=True,
    )
    upstream = [rng.normal(size=(B, T, U)), *(rng.normal(size=(B, U)) for _ in states)]

    def run(point):
        moved_sequence, *others = point
        moved_weights = dict(zip(weights, others[len(states) :], strict=True))
        return oracle.run(moved_weights, moved_sequence, tuple(others[: len(states)]), conditions)

    def loss(point):
        outputs, final_states, _ = run(point)
        return sum(np.sum(each * up) for each, up in zip([outputs, *final_states], upstream, strict=True))

    point = [sequence, *states, *weights.values()]
    gradients = run(point)[2](upstream[0], upstream[1:])
    gradients = [gradients.sequence, *gradients.states, *gradients.weights.values()]
    for index, gradient in enumerate(gradients):
        directions = [np.zeros_like(each) for each in point]
        directions[index] = rng.normal(size=gradient.shape)
        slope = slope_along(loss, point, directions)
        np.testing.assert_allclose(np.sum(gradient * directions[index]), slope, atol=1e-7, rtol=1e-6)


@all_kinds
@both_paths
@all_conditions
def test_outputs_and_final_states_equal_the_oracle_in_float32(rng, kind, training, conditions):
    problem = Problem(rng, KINDS[kind], "float32", **CONDITIONS[conditions])
    tolerance = LAYER_NORM_TOLERANCE if problem.oracle.layer_norm else TOLERANCE
    assert_all_close(problem.call(training), problem.expected()[0], tolerance["float32"])


@all_kinds
@both_paths
@all_conditions
def test_outputs_and_gradients_equal_the_oracle(rng, run_with_gradients, kind, training, conditions):
    assert_equals_oracle(run_with_gradients, Problem(rng, KINDS[kind], **CONDITIONS[conditions]), training)


@all_kinds
@both_paths
def test_last_outputs_and_their_gradients_equal_the_oracle(rng, run_with_gradients, kind, training):
    options = {"return_sequences": False, "go_backwards": training, "masked": True, "given": True}
    assert_equals_oracle(run_with_gradients, Problem(rng, KINDS[kind], **options), training)


@pytest.mark.parametrize("kind", OTHER_OPTIONS)
@both_paths
def test_outputs_and_gradients_with_other_options_equal_the_oracle(rng, run_with_gradients, kind, training):
    assert_equals_oracle(run_with_gradients, Problem(rng, OTHER_OPTIONS[kind], masked=True, given=True), training)


@all_kinds
@pytest.mark.parametrize("option", RANDOM_OPTIONS)
def test_gradients_under_fixed_dropout_and_zoneout_equal_the_oracle(rng, monkeypatch, run_with_gradients, kind, option):
    options = {**RANDOM_OPTIONS[option], "go_backwards": option == "all"}
    problem = Problem(rng, KINDS[kind], masked=True, given=option != "all", **options)
    problem.fix_randomness(rng, monkeypatch)
    assert_equals_oracle(run_with_gradients, problem, training=True)


@pytest.mark.parametrize("kind", ["elman", "lstm_peepholes", "gru_of_the_notes", "echo_state"])
def test_zoneout_at_prediction_equals_the_oracle(rng, run_with_gradients, kind):
    problem = Problem(rng, KINDS[kind], masked=True, given=True, zoneout=0.3)
    problem.fixed["kept"] = (0.3, 0.3)
    assert_equals_oracle(run_with_gradients, problem, training=False)


def slope_along(loss, point, directions, step=1e-6):
    ahead, behind = (
        loss([each + sign * step * direction for each, direction in zip(point, directions, strict=True)])
        for sign in (1, -1)
    )
    return (ahead - behind) / (2 * step)


FINITE_DIFFERENCE_CASES = {
    **{f"{name}-{option}": (kind, RANDOM_OPTIONS[option]) for name, kind in KINDS.items() for option in ("all",)},
    **{name: (kind, {}) for name, kind in {**OTHER_OPTIONS, **WITHOUT_ORACLE}.items()},
    "lstm-zoneout_of_the_cell_state": (KINDS["lstm"], {"zoneout": (0.0, 0.4)}),
    "lstm-zoneout_of_the_hidden_state": (KINDS["lstm"], {"zoneout": (0.4, 0.0)}),
}


@pytest.mark.parametrize("case", FINITE_DIFFERENCE_CASES)
def test_gradients_equal_finite_differences(rng, monkeypatch, run_with_gradients, case):
    kind, options = FINITE_DIFFERENCE_CASES[case]
    problem = Problem(rng, kind, shape=(2, 4), masked=True, given=not options.get("learned_initial_state"), **options)
    problem.mask[1] = [True, False, True, True]
    problem.fix_randomness(rng, monkeypatch)
    layer, weights = problem.layer, problem.layer.get_weights()
    names = [weight.name for weight in layer.weights]
    trainable = [names.index(weight.name) for weight in layer.trainable_weights]
    _, gradients = run_with_gradients(layer, problem.inputs, problem.upstream, problem.mask, True)

    count = len(problem.inputs)

    def loss(point):
        arrays = [*weights]
        for index, array in zip(trainable, point[count:], strict=True):
            arrays[index] = array
        layer.set_weights(arrays)
        problem.sequence, problem.states = point[0], point[1:count] or problem.states
        results = problem.call(training=True)
        return sum(np.sum(each * up) for each, up in zip(results, problem.upstream, strict=True))

    point = [*problem.inputs, *(weights[index] for index in trainable)]
    # An error in any one gradient shows along a random direction in which everything moves at once.
    directions = [rng.normal(size=each.shape) for each in point]
    predicted = sum(np.sum(gradient * move) for gradient, move in zip(gradients, directions, strict=True))
    np.testing.assert_allclose(predicted, slope_along(loss, point, directions), atol=1e-7, rtol=1e-6)


GATES = {"lstm": "ifco", "gru_of_the_notes": "zrc", "gru_after_keep": "zrc"}
SWAPS = [(kind, *pair) for kind, gates in GATES.items() for pair in combinations(gates, 2)]


@pytest.mark.parametrize(("kind", "first", "second"), SWAPS)
@both_paths
def test_swapping_two_gates_is_noticed(rng, kind, first, second, training):
    problem = Problem(rng, KINDS[kind], dtype="float32", masked=True)
    (expected, *_), _ = problem.expected()
    gates = problem.oracle.gates
    swapped_gates = [{first: second, second: first}.get(gate, gate) for gate in gates]
    order = [gates.index(gate) for gate in swapped_gates]

    def swapped(name):
        array = problem.packed[name]
        return np.concatenate([np.split(array, len(gates), axis=-1)[index] for index in order], axis=-1)

    def error_after_swapping(*names):
        changed = {**problem.packed, **{name: swapped(name) for name in names}}
        problem.layer.set_weights([changed[weight.name] for weight in problem.layer.weights])
        return np.abs(problem.call(training)[0] - expected).max()

    assert error_after_swapping() <= TOLERANCE["float32"]
    # All weights of the gates, and in one of them alone.
    packed = ("kernel", "recurrent_kernel", "bias")
    for names in (packed, *([] if training else [(name,) for name in packed])):
        assert error_after_swapping(*names) > 1000 * TOLERANCE["float32"], names


@pytest.mark.parametrize("pair", list(combinations(range(3), 2)))
def test_swapping_two_peepholes_is_noticed(rng, pair):
    problem = Problem(rng, KINDS["lstm_peepholes"])
    (expected, *_), _ = problem.expected()
    parts = np.split(problem.packed["peephole"], 3)
    parts[pair[0]], parts[pair[1]] = parts[pair[1]], parts[pair[0]]
    changed = {**problem.packed, "peephole": np.concatenate(parts)}
    problem.layer.set_weights([changed[weight.name] for weight in problem.layer.weights])
    assert np.abs(problem.call(training=False)[0] - expected).max() > 1e-3


GRAPH_CASES = {
    "lstm-masked-backward": (
        KINDS["lstm_peepholes"],
        {"masked": True, "go_backwards": True, "recurrent_dropout": 0.3, "zoneout": 0.3},
    ),
    "gru_of_the_notes-last": (KINDS["gru_of_the_notes"], {"return_sequences": False, "dropout": 0.3}),
}


@pytest.mark.tensorflow_only
@pytest.mark.parametrize("case", GRAPH_CASES)
def test_graph_with_unknown_batch_and_length_equals_the_oracle_in_parts_and_padded(rng, monkeypatch, case):
    import tensorflow as tf

    kind, options = GRAPH_CASES[case]
    problem = Problem(rng, kind, shape=(40, 7), given=True, **options)
    layer = problem.layer
    weights = [weight.value for weight in layer.trainable_weights]
    masked, last = options.get("masked", False), not options.get("return_sequences", True)
    drawn = {}

    def factors(shape, rate):
        return drawn["input_factors" if len(shape) == 3 else "factors"] if rate else None

    def zoned_out(shape):
        return tuple(drawn[f"kept_{index}"] for index, rate in enumerate(layer.cell.zoneout) if rate)

    monkeypatch.setattr(layer, "_factors", factors)
    monkeypatch.setattr(layer.cell, "draw_zoneout", zoned_out)

    def spec(*shape, dtype="float64"):
        return tf.TensorSpec(shape, dtype)

    state_specs = [spec(None, U) for _ in problem.states]
    signature = [
        [spec(None, None, D), *state_specs],
        spec(None, None, dtype="bool"),
        [spec(None, U) if last else spec(None, None, U), *state_specs],
        {
            "input_factors": spec(None, 1, D),
            "factors": spec(None, U),
            **{f"kept_{index}": spec(None, None, U, dtype="bool") for index in range(len(problem.states))},
        },
    ]

    @tf.function(input_signature=signature)
    def run(inputs, mask, upstream, random):
        drawn.update(random)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs[0], initial_state=list(inputs[1:]), mask=mask if masked else None, training=True)
            loss = tf.add_n([tf.reduce_sum(each * up) for each, up in zip(outputs, upstream, strict=True)])
        return outputs, tape.gradient(loss, [*inputs, *weights])

    # Both lengths are padded to eight, so that the second compiles nothing new.
    for steps in (7, 3):
        problem.set_inputs(rng, (40, steps), masked)
        random = {"input_factors": rng.choice([0.0, 1.5], size=(40, 1, D)), "factors": rng.choice([0.0, 1.5], (40, U))}
        random |= {f"kept_{index}": rng.random((40, steps, U)) < 0.3 for index in range(len(problem.states))}
        problem.fixed = {
            "input_factors": random["input_factors"] if layer.dropout else 1.0,
            "factors": random["factors"] if layer.recurrent_dropout else 1.0,
            "kept": tuple(random[f"kept_{index}"] if rate else 0.0 for index, rate in enumerate(layer.cell.zoneout)),
        }
        mask = problem.mask if masked else np.ones(problem.shape, bool)
        outputs, gradients = run(problem.inputs, mask, problem.upstream, random)
        expected_outputs, expected_gradients = problem.expected()
        assert_all_close(outputs, expected_outputs, TOLERANCE["float64"])
        assert_all_close(gradients, expected_gradients, GRADIENT_TOLERANCE)


@pytest.mark.tensorflow_only
def test_graph_with_known_shapes_equals_the_oracle_in_parts(rng):
    import tensorflow as tf

    problem = Problem(rng, KINDS["elman"], shape=(40, 7), masked=True, given=True)
    weights = [weight.value for weight in problem.layer.trainable_weights]

    @tf.function
    def run(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = problem.layer(
                inputs[0], initial_state=list(inputs[1:]), mask=tf.constant(problem.mask), training=True
            )
            pairs = zip(outputs, problem.upstream, strict=True)
            loss = tf.add_n([tf.reduce_sum(each * up) for each, up in pairs])
        return outputs, tape.gradient(loss, [*inputs, *weights])

    outputs, gradients = run([tf.constant(each) for each in problem.inputs])
    expected_outputs, expected_gradients = problem.expected()
    assert_all_close(outputs, expected_outputs, TOLERANCE["float64"])
    assert_all_close(gradients, expected_gradients, GRADIENT_TOLERANCE)
