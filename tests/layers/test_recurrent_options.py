"""What single options of the recurrent layers do, beyond the contract of all of them."""

import keras
import numpy as np
import pytest
import sequence_contract as contract
from sequence_contract import B, D, T, U

from layers import GRU, LSTM, Bidirectional, EchoState, Elman, Stacked
from layers.cells import RecurrentCell, SparseReservoir
from layers.recurrent import Recurrent

KINDS = {
    "elman": lambda units=U, **options: Elman(units, **options),
    "lstm": lambda units=U, **options: LSTM(units, **options),
    "gru": lambda units=U, **options: GRU(units, **options),
    "echo_state": lambda units=U, **options: EchoState(units, **options | {"seed": 3}),
}
all_kinds = pytest.mark.parametrize("kind", KINDS)


def normal(rng, *shape):
    return rng.normal(size=shape).astype("float32")


# Cells of one's own.


class MultiplicativeCell(RecurrentCell):
    """A gate, and input and hidden state in a product (Wu et al., 2016, "On multiplicative integration")."""

    gate_count = 2
    summed = (U,)

    def build(self, inputs_shape, states_shape=None):
        super().build(inputs_shape)
        self.scale = self.add_weight(shape=(self.units,), name="scale", initializer="ones")

    def vectors(self):
        return (*super().vectors(), self.scale)

    def step(self, now):
        gate_sum, hidden_product = keras.ops.split(now.sums, 2, axis=-1)
        gate = keras.ops.sigmoid(gate_sum)
        candidate = self.activation(now.vectors[0] * now.projected * hidden_product)
        return (gate * now.states[0] + (1 - gate) * candidate,)


class SeparateCell(MultiplicativeCell):
    """The same, with input and product apart until the step."""

    summed = (0,)

    def step(self, now):
        gate_input, candidate_input = keras.ops.split(now.projected, 2, axis=-1)
        gate_product, hidden_product = keras.ops.split(now.sums, 2, axis=-1)
        sums = keras.ops.concatenate([gate_input + gate_product, hidden_product], axis=-1)
        return super().step(now._replace(sums=sums, projected=candidate_input))


class Multiplicative(Recurrent):
    cell_class = MultiplicativeCell


class Separate(Recurrent):
    cell_class = SeparateCell


@pytest.mark.parametrize("mask", [None, contract.gap_mask()], ids=["whole", "gaps"])
def test_own_cells_are_derived_by_themselves(rng, mask):
    arrays = [rng.normal(size=(B, T, D)), rng.normal(size=(B, U))]
    weights = None

    def results(kind, training):
        nonlocal weights
        layer = kind(U, return_sequences=True, return_state=True, dtype="float64")
        layer.build((None, None, D))
        weights = layer.get_weights() if weights is None else weights
        layer.set_weights(weights)
        outputs, gradients = contract.outputs_and_gradients(
            layer, lambda sequence, state: contract.call(layer, sequence, [state], mask, training), arrays
        )
        return outputs + gradients

    by_backend = results(Multiplicative, training=False)
    for kind in (Multiplicative, Separate):
        for actual, wanted in zip(results(kind, training=True), by_backend, strict=True):
            np.testing.assert_allclose(actual, wanted, atol=1e-12)


# States from batch to batch.


STATEFUL = {
    **KINDS,
    "stack": lambda **options: Stacked([LSTM(U, **options | {"return_sequences": True}), GRU(2, **options)]),
}


@pytest.mark.parametrize("kind", STATEFUL)
@pytest.mark.parametrize("training", [False, True], ids=["prediction", "training"])
def test_stateful_layer_goes_on_where_the_last_batch_ended(rng, kind, training):
    layer = STATEFUL[kind](stateful=True, return_sequences=True)
    sequence = normal(rng, B, T, D)
    whole = np.asarray(layer(sequence, training=training))
    assert (np.asarray(layer(sequence, training=training)) != whole).any()
    layer.reset_state()
    halves = [layer(sequence[:, part], training=training) for part in (slice(None, 2), slice(2, None))]
    np.testing.assert_allclose(np.concatenate(halves, axis=1), whole, atol=1e-6)


def test_stateful_model_goes_on_in_compiled_prediction_and_training(rng):
    layer = LSTM(U, stateful=True, return_sequences=True)
    model = keras.Sequential([keras.Input(batch_shape=(B, 2, D)), layer])
    sequence = normal(rng, B, 4, D)
    expected = LSTM(U, return_sequences=True)
    expected.build((None, None, D))
    expected.set_weights([each for each in layer.get_weights() if each.shape != (B, U)])
    halves = [model.predict(sequence[:, part], batch_size=B, verbose=0) for part in (slice(None, 2), slice(2, None))]
    np.testing.assert_allclose(np.concatenate(halves, axis=1), expected(sequence), atol=1e-6)

    model.compile("sgd", "mse")
    layer.reset_state()
    model.fit(sequence[:, :2], np.zeros((B, 2, U)), batch_size=B, shuffle=False, verbose=0)
    np.testing.assert_allclose(layer.kept_states[0], expected(sequence[:, :2])[:, -1], atol=1e-6)


def test_learned_initial_state_is_where_sequences_start_and_is_trained(rng):
    layer = LSTM(U, learned_initial_state=True)
    model = keras.Sequential([keras.Input((None, D)), layer])
    model.compile("sgd", "mse")
    assert not any(np.any(state) for state in layer.learned_states)
    model.fit(normal(rng, B, T, D), np.ones((B, U)), verbose=0)
    assert all(np.all(state) for state in layer.learned_states)

    sequence, start = normal(rng, B, T, D), [np.tile(state, (B, 1)) for state in layer.learned_states]
    np.testing.assert_array_equal(layer(sequence), layer(sequence, initial_state=start))
    assert (np.asarray(layer(sequence)) != np.asarray(layer(sequence, initial_state=[0 * x for x in start]))).any()


# Noise.


def test_recurrent_dropout_mask_is_one_per_example_and_unit_and_constant_over_time():
    units, rate = 50, 0.25
    layer = Elman(units, activation="relu", recurrent_dropout=rate, return_sequences=True, seed=1)
    layer.build((None, None, D))
    # With these weights a step only multiplies the state by its dropout mask.
    layer.set_weights([np.zeros((D, units)), np.eye(units), np.zeros(units)])
    zeros, ones = np.zeros((B, T, D), "float32"), np.ones((B, units), "float32")

    outputs = np.asarray(layer(zeros, initial_state=ones, training=True))
    again = np.asarray(layer(zeros, initial_state=ones, training=True))
    kept = outputs[:, 0] > 0

    scale = (1 / (1 - rate)) ** np.arange(1, T + 1)
    np.testing.assert_allclose(outputs, kept[:, None] * scale[None, :, None], rtol=1e-5)
    assert 0.6 < kept.mean() < 0.9
    assert (kept[0] != kept[1]).any(), "every example has a mask of its own"
    assert (outputs != again).any(), "every call draws anew"
    np.testing.assert_array_equal(layer(zeros, initial_state=ones), np.ones((B, T, units)))


def test_dropout_drops_the_same_input_features_at_all_steps():
    features, rate = 50, 0.25
    layer = Elman(features, activation="relu", dropout=rate, return_sequences=True, seed=1)
    layer.build((None, None, features))
    # With these weights the output is the input.
    layer.set_weights([np.eye(features), np.zeros((features, features)), np.zeros(features)])
    ones = np.ones((B, T, features), "float32")
    outputs, again = (np.asarray(layer(ones, training=True)) for _ in range(2))
    np.testing.assert_allclose(outputs, (outputs[:, :1] > 0) / (1 - rate) * ones, rtol=1e-6)
    assert 0.6 < (outputs > 0).mean() < 0.9
    assert (outputs[0] != outputs[1]).any(), "every example has a mask of its own"
    assert (outputs != again).any(), "every call draws anew"
    np.testing.assert_array_equal(layer(ones), ones)


@all_kinds
@pytest.mark.parametrize("option", ["dropout", "recurrent_dropout"])
def test_dropout_is_off_at_prediction(rng, kind, option):
    noisy, plain = KINDS[kind](**{option: 0.5, "seed": 3}), KINDS[kind]()
    for layer in (noisy, plain):
        layer.build((None, None, D))
    noisy.set_weights(plain.get_weights())
    sequence = normal(rng, B, T, D)
    np.testing.assert_array_equal(noisy(sequence), plain(sequence))
    assert (np.asarray(noisy(sequence, training=True)) != np.asarray(plain(sequence))).any()


def step_with_zoneout(rng, kind, rates, training):
    """States before and after one step, and after the same step without zoneout."""
    zoned, plain = (KINDS[kind](50, zoneout=each, return_state=True, seed=3) for each in (rates, 0.0))
    for layer in (zoned, plain):
        layer.build((None, None, D))
    zoned.set_weights(plain.get_weights())
    old, step = [normal(rng, B, 50) for _ in range(plain.state_count)], normal(rng, B, 1, D)
    after, without = (list(layer(step, initial_state=old, training=training))[1:] for layer in (zoned, plain))
    return old, [np.asarray(each) for each in after], [np.asarray(each) for each in without], zoned, step


@all_kinds
def test_zoneout_keeps_exact_old_values_in_training(rng, kind):
    old, after, without, layer, step = step_with_zoneout(rng, kind, 0.25, training=True)
    for state, new, changed in zip(old, after, without, strict=True):
        kept = new == state
        assert 0.1 < kept.mean() < 0.4
        np.testing.assert_allclose(new[~kept], changed[~kept], atol=1e-6)
    assert (after[0] != np.asarray(layer(step, initial_state=old, training=True)[1])).any(), "every call draws anew"


@all_kinds
def test_zoneout_computes_the_expectation_at_prediction(rng, kind):
    old, after, without, *_ = step_with_zoneout(rng, kind, 0.25, training=False)
    for state, new, changed in zip(old, after, without, strict=True):
        np.testing.assert_allclose(new, 0.25 * state + 0.75 * changed, atol=1e-6)


def test_zoneout_may_differ_from_state_to_state(rng):
    old, after, without, *_ = step_with_zoneout(rng, "lstm", (0.0, 0.25), training=True)
    # The hidden state shows the cell state as it would have been without zoneout.
    np.testing.assert_allclose(after[0], without[0], atol=1e-6)
    assert 0.1 < (after[1] == old[1]).mean() < 0.4


def test_zoneout_differs_between_steps_and_follows_what_is_drawn(rng, monkeypatch):
    layer, kept = GRU(U, zoneout=0.5, return_sequences=True), rng.random((B, T, U)) < 0.5
    monkeypatch.setattr(layer.cell, "draw_zoneout", lambda shape: (keras.ops.convert_to_tensor(kept),))
    outputs = np.asarray(layer(normal(rng, B, T, D), training=True))
    before = np.concatenate([np.zeros((B, 1, U)), outputs[:, :-1]], axis=1)
    np.testing.assert_array_equal(outputs == before, kept)


def test_directions_do_not_share_dropout_masks():
    layer = Bidirectional(LSTM(U, recurrent_dropout=0.5, seed=3))
    assert layer.forward_layer.seed != layer.backward_layer.seed
    assert Bidirectional.from_config(layer.get_config()).backward_layer.seed == layer.backward_layer.seed


def test_dropout_and_zoneout_of_one_seed_draw_different_numbers():
    layer = GRU(400, recurrent_dropout=0.5, zoneout=0.5, seed=3)
    kept, zoned_out = layer._factors((1, 400), 0.5), layer.cell.draw_zoneout((1, 400))[0]
    assert abs(np.corrcoef(np.ravel(kept) > 0, np.ravel(zoned_out))[0, 1]) < 0.2


# Weights.


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (lambda: Elman(3), [(4, 3), (3, 3), (3,)]),
        (lambda: Elman(3, use_bias=False, layer_norm=True), [(4, 3), (3, 3), (3,), (3,)]),
        (lambda: LSTM(3), [(4, 12), (3, 12), (12,)]),
        (lambda: LSTM(3, peepholes=True), [(4, 12), (3, 12), (12,), (9,)]),
        (lambda: LSTM(3, layer_norm=True), [(4, 12), (3, 12), (12,), (12,), (12,), (3,), (3,)]),
        (lambda: LSTM(3, learned_initial_state=True), [(3,), (3,), (4, 12), (3, 12), (12,)]),
        (lambda: GRU(3), [(4, 9), (3, 9), (2, 9)]),
        (lambda: GRU(3, reset_after=False), [(4, 9), (3, 9), (9,)]),
        (lambda: GRU(3, layer_norm=True), [(4, 9), (3, 9), (2, 9), (9,), (9,)]),
        (lambda: EchoState(3), [(4, 3), (3, 3), (3,)]),
    ],
)
def test_weights_have_the_documented_shapes(make, shapes):
    layer = make()
    layer.build((None, None, D))
    assert [tuple(weight.shape) for weight in layer.weights] == shapes


def test_elman_network_with_five_inputs_three_units_and_one_output_has_31_parameters():
    model = keras.Sequential([keras.Input((None, 5)), Elman(3), keras.layers.Dense(1)])
    assert model.count_params() == 31


@pytest.mark.parametrize(("forget_bias", "start"), [(1.0, 1), (-2.0, -2), (None, 0)])
def test_forget_gate_bias_starts_as_told(forget_bias, start):
    layer = LSTM(U, forget_bias=forget_bias)
    layer.build((None, None, D))
    np.testing.assert_array_equal(layer.cell.bias, [*[0] * U, *[start] * U, *[0] * 2 * U])


def test_lstm_with_open_forget_gate_and_closed_input_gate_keeps_its_cell(rng):
    layer = LSTM(U, return_state=True, dtype="float64")
    layer.build((None, None, D))
    always, never = np.full(U, 100.0), np.full(U, -100.0)
    layer.set_weights([np.zeros((D, 4 * U)), np.zeros((U, 4 * U)), np.concatenate([never, always, always, always])])
    cell = rng.normal(size=(B, U))
    _, _, final_cell = layer(rng.normal(size=(B, T, D)), initial_state=[np.zeros((B, U)), cell])
    np.testing.assert_allclose(final_cell, cell, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "place", "sign"),
    [
        (lambda **options: LSTM(200, **options), (slice(200, 400),), 1),
        (lambda **options: GRU(200, **options), (0, slice(200)), 1),
        (lambda **options: GRU(200, reset_after=False, **options), (slice(200),), 1),
        (lambda **options: GRU(200, update_gate="take", **options), (0, slice(200)), -1),
    ],
    ids=["lstm", "gru", "gru_reset_before", "gru_take"],
)
def test_longest_lag_spreads_the_lags_of_the_units(make, place, sign):
    layer = make(longest_lag=50, seed=1)
    layer.build((None, None, D))
    bias = np.array(layer.cell.bias)
    lags = np.exp(sign * bias[place])
    assert lags.min() >= 1
    assert lags.max() <= 50
    assert 20 < lags.mean() < 30
    rest = bias.copy()
    rest[place] = 0
    if isinstance(layer, LSTM):
        np.testing.assert_array_equal(rest[:200], -bias[200:400])
        rest[:200] = 0
    assert not rest.any()


def test_update_gate_conventions_are_the_same_function_with_negated_weights(rng):
    keep, take = GRU(U), GRU(U, update_gate="take")
    keep.build((None, None, D))
    take.build((None, None, D))
    negated = [np.concatenate([-each[..., :U], each[..., U:]], axis=-1) for each in keep.get_weights()]
    take.set_weights(negated)
    sequence = normal(rng, B, T, D)
    np.testing.assert_allclose(take(sequence), keep(sequence), atol=1e-6)


REGULARIZED = {f"{weight}_regularizer": keras.regularizers.L2(0.1) for weight in ("kernel", "recurrent", "bias")}


@pytest.mark.parametrize(
    "wrap",
    [lambda layer: layer, Bidirectional, lambda layer: Stacked([layer])],
    ids=["layer", "bidirectional", "stack"],
)
def test_regularizers_add_losses(rng, wrap):
    layer = wrap(GRU(U, **REGULARIZED, activity_regularizer=keras.regularizers.L1(1.0)))
    plain = wrap(GRU(U))
    for each in (layer, plain):
        each.build((None, None, D))
    plain.set_weights(layer.get_weights())
    sequence = normal(rng, B, T, D)
    output = np.asarray(layer(sequence))
    expected = 0.1 * sum(np.sum(weight**2) for weight in layer.get_weights()) + np.abs(output).sum() / B
    np.testing.assert_allclose(sum(float(loss) for loss in layer.losses), expected, rtol=1e-4)
    np.testing.assert_array_equal(plain(sequence), output)


def test_constraints_hold_after_training(rng):
    layer = LSTM(
        U,
        kernel_constraint=keras.constraints.MaxNorm(0.5),
        recurrent_constraint=keras.constraints.MaxNorm(0.4),
        bias_constraint=keras.constraints.NonNeg(),
    )
    model = keras.Sequential([keras.Input((None, D)), layer])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.fit(normal(rng, B, T, D), -np.ones((B, U)), verbose=0)
    kernel, recurrent_kernel, bias = layer.get_weights()
    assert np.linalg.norm(kernel, axis=0).max() <= 0.5 + 1e-6
    assert np.linalg.norm(recurrent_kernel, axis=0).max() <= 0.4 + 1e-6
    assert bias.min() >= 0


# Echo state networks.


def reservoir(**options):
    layer = EchoState(100, **options)
    layer.build((None, None, D))
    return layer


@pytest.mark.parametrize("radius", [0.5, 0.95, 1.3])
def test_reservoir_has_the_spectral_radius_it_was_told(radius):
    matrix = np.array(reservoir(spectral_radius=radius, seed=1, dtype="float64").cell.recurrent_kernel)
    assert abs(np.abs(np.linalg.eigvals(matrix)).max() - radius) < 1e-6


@pytest.mark.parametrize("connectivity", [0.05, 0.1, 1.0])
def test_reservoir_has_the_connectivity_it_was_told(connectivity):
    matrix = np.array(reservoir(connectivity=connectivity).cell.recurrent_kernel)
    assert np.count_nonzero(matrix) == round(connectivity * matrix.size)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_smallest_reservoirs_have_their_spectral_radius_too(size):
    for seed in range(10):
        matrix = np.array(SparseReservoir(0.9, 0.1, seed)((size, size), dtype="float64"))
        assert abs(np.abs(np.linalg.eigvals(matrix)).max() - 0.9) < 1e-6


def test_weights_of_an_echo_state_network_stay_in_their_bounds():
    cell = reservoir(input_scale=0.2, bias_scale=0.1).cell
    assert 0.15 < np.abs(cell.kernel).max() <= 0.2
    assert 0.05 < np.abs(cell.bias).max() <= 0.1


def test_same_seed_gives_the_same_reservoir_and_another_seed_another():
    first, same, other = (reservoir(seed=seed, bias_scale=1.0).get_weights() for seed in (1, 1, 2))
    for ours, theirs, different in zip(first, same, other, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert (ours != different).any()
    without = reservoir().get_weights(), reservoir().get_weights()
    assert (without[0][1] != without[1][1]).any()


def test_nothing_in_an_echo_state_network_is_trained(rng):
    layer = EchoState(20)
    model = keras.Sequential([keras.Input((None, D)), layer, keras.layers.Dense(1)])
    before = layer.get_weights() if layer.built else None
    assert len(model.trainable_weights) == 2
    # To freeze a model and to thaw it again is how it is trained in stages.
    model.trainable = False
    model.trainable = True
    assert layer.trainable_weights == []
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.fit(normal(rng, B, T, D), np.ones((B, 1)), verbose=0)
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_echo_state_network_forgets_where_it_started(rng):
    layer = reservoir(spectral_radius=0.8, leak=0.9, seed=1)
    sequence = normal(rng, 1, 60, D)
    ends = [np.asarray(layer(sequence, initial_state=[normal(rng, 1, 100)])) for _ in range(2)]
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-4)
