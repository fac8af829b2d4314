"""What the recurrent layers compute: against their equations, against Keras, under masks, from state to state."""

import keras
import numpy as np
import pytest

from layers import GRU, LSTM, Bidirectional, Elman, Stacked

B, T, D, U = 4, 6, 5, 3  # batch, time, features, units

KINDS = {
    "elman": (lambda **options: Elman(U, **options), lambda **options: keras.layers.SimpleRNN(U, **options)),
    "elman_relu": (
        lambda **options: Elman(U, activation="relu", **options),
        lambda **options: keras.layers.SimpleRNN(U, activation="relu", **options),
    ),
    "lstm": (lambda **options: LSTM(U, **options), lambda **options: keras.layers.LSTM(U, **options)),
    "gru": (lambda **options: GRU(U, **options), lambda **options: keras.layers.GRU(U, **options)),
    "gru_reset_before": (
        lambda **options: GRU(U, reset_after=False, **options),
        lambda **options: keras.layers.GRU(U, reset_after=False, **options),
    ),
    "lstm_no_bias": (
        lambda **options: LSTM(U, use_bias=False, **options),
        lambda **options: keras.layers.LSTM(U, use_bias=False, **options),
    ),
    "gru_no_bias": (
        lambda **options: GRU(U, use_bias=False, **options),
        lambda **options: keras.layers.GRU(U, use_bias=False, **options),
    ),
}
STATE_COUNTS = {name: 2 if name.startswith("lstm") else 1 for name in KINDS}

both_paths = pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
all_kinds = pytest.mark.parametrize("kind", KINDS)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def random_mask(rng):
    """Gaps anywhere, and at least one valid step in every row."""
    mask = rng.random((B, T)) < 0.6
    mask[np.arange(B), rng.integers(T, size=B)] = True
    return mask


def padding_mask(lengths=(6, 3, 1, 4)):
    return np.arange(T) < np.array(lengths)[:, None]


def elman_step(weights, x, state):
    (hidden,) = state
    return (np.tanh(np.concatenate([hidden, x], -1) @ weights["h"] + weights["b_h"]),)


def lstm_step(weights, x, state):
    hidden, cell = state
    joined = np.concatenate([hidden, x], -1)
    forget = sigmoid(joined @ weights["f"] + weights["b_f"])
    take_in = sigmoid(joined @ weights["i"] + weights["b_i"])
    candidate = np.tanh(joined @ weights["c"] + weights["b_c"])
    cell = forget * cell + take_in * candidate
    return sigmoid(joined @ weights["o"] + weights["b_o"]) * np.tanh(cell), cell


def gru_step(weights, x, state):
    (hidden,) = state
    joined = np.concatenate([hidden, x], -1)
    reset = sigmoid(joined @ weights["r"] + weights["b_r"])
    update = sigmoid(joined @ weights["z"] + weights["b_z"])
    candidate = np.tanh(np.concatenate([reset * hidden, x], -1) @ weights["c"] + weights["b_c"])
    return ((1 - update) * hidden + update * candidate,)


def oracle_weights(rng, gates):
    matrices = {gate: rng.normal(scale=0.6, size=(U + D, U)) for gate in gates}
    return matrices | {f"b_{gate}": rng.normal(size=U) for gate in gates}


def packed(weights, order):
    """Kernel, recurrent kernel and bias, gates side by side. A sign before a gate negates it."""
    signed = [(-1 if gate.startswith("-") else 1, gate.lstrip("-")) for gate in order]
    joined = np.concatenate([sign * weights[gate] for sign, gate in signed], -1)
    return [joined[U:], joined[:U], np.concatenate([sign * weights[f"b_{gate}"] for sign, gate in signed])]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
@pytest.mark.parametrize(
    ("layer_class", "options", "step", "order", "states"),
    [
        (Elman, {}, elman_step, ["h"], 1),
        (LSTM, {}, lstm_step, ["i", "f", "c", "o"], 2),
        # The oracle's update gate is the share of the candidate, the layer's that of the old state.
        (GRU, {"reset_after": False}, gru_step, ["-z", "r", "c"], 1),
    ],
    ids=["elman", "lstm", "gru"],
)
@both_paths
def test_layer_computes_its_equations(rng, layer_class, options, step, order, states, dtype, tolerance, training):
    weights = oracle_weights(rng, [gate.lstrip("-") for gate in order])
    sequence = rng.normal(size=(B, T, D))
    state = tuple(np.zeros((B, U)) for _ in range(states))
    expected = []
    for time in range(T):
        state = step(weights, sequence[:, time], state)
        expected.append(state[0])

    layer = layer_class(U, return_sequences=True, return_state=True, dtype=dtype, **options)
    layer.build((None, None, D))
    layer.set_weights(packed(weights, order))
    output, *final_states = layer(sequence.astype(dtype), training=training)

    np.testing.assert_allclose(output, np.stack(expected, axis=1), atol=tolerance)
    for actual, wanted in zip(final_states, state, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=tolerance)


def test_lstm_with_open_forget_gate_and_closed_input_gate_keeps_its_cell(rng):
    layer = LSTM(U, return_state=True, dtype="float64")
    layer.build((None, None, D))
    always, never = np.full(U, 100.0), np.full(U, -100.0)
    layer.set_weights([np.zeros((D, 4 * U)), np.zeros((U, 4 * U)), np.concatenate([never, always, always, always])])
    cell = rng.normal(size=(B, U))
    _, _, final_cell = layer(rng.normal(size=(B, T, D)), initial_state=[np.zeros((B, U)), cell])
    np.testing.assert_allclose(final_cell, cell, atol=1e-12)


@all_kinds
@both_paths
@pytest.mark.parametrize("go_backwards", [False, True], ids=["forward", "backward"])
def test_values_and_gradients_equal_keras_under_random_masks(
    rng, randomize, run_with_gradients, kind, training, go_backwards
):
    options = {"return_sequences": True, "return_state": True, "go_backwards": go_backwards}
    ours, theirs = KINDS[kind][0](**options), KINDS[kind][1](**options)
    randomize((B, T, D), ours, theirs)
    mask = random_mask(rng)
    output_mask = mask[:, ::-1] if go_backwards else mask
    states = [rng.normal(size=(B, U)).astype("float32") for _ in range(STATE_COUNTS[kind])]
    inputs = [rng.normal(size=(B, T, D)).astype("float32"), *states]
    upstream = [rng.normal(size=(B, T, U)) * output_mask[..., None], *(rng.normal(size=(B, U)) for _ in states)]

    our_outputs, our_gradients = run_with_gradients(ours, inputs, upstream, mask, training)
    their_outputs, their_gradients = run_with_gradients(theirs, inputs, upstream, mask)

    np.testing.assert_allclose(our_outputs[0][output_mask], their_outputs[0][output_mask], atol=1e-5)
    for actual, wanted in zip(our_outputs[1:] + our_gradients, their_outputs[1:] + their_gradients, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-5, rtol=1e-5)


@all_kinds
@both_paths
@pytest.mark.parametrize("padding", [1e6, np.nan], ids=["large", "nan"])
def test_padding_reaches_neither_valid_steps_nor_gradients(rng, randomize, run_with_gradients, kind, training, padding):
    layer = KINDS[kind][0](return_sequences=True, return_state=True, dtype="float64")
    randomize((B, T, D), layer)
    mask = padding_mask()
    sequence = rng.normal(size=(B, T, D))
    upstream = [rng.normal(size=(B, T, U)), *(rng.normal(size=(B, U)) for _ in range(STATE_COUNTS[kind]))]
    clean = run_with_gradients(layer, [np.where(mask[..., None], sequence, 0)], upstream, mask, training)
    padded = run_with_gradients(layer, [np.where(mask[..., None], sequence, padding)], upstream, mask, training)

    for actual, wanted in zip(padded[0] + padded[1], clean[0] + clean[1], strict=True):
        np.testing.assert_array_equal(actual, wanted)
    assert not padded[0][0][~mask].any(), "masked steps put out zero"
    assert not padded[1][0][~mask].any(), "masked steps get no gradient"


@all_kinds
@both_paths
def test_padding_never_changes_what_a_shorter_sequence_gives(rng, randomize, kind, training):
    layer = KINDS[kind][0](return_sequences=True, dtype="float64")
    randomize((B, T, D), layer)
    sequence = rng.normal(size=(B, T, D))
    whole = np.asarray(layer(sequence, mask=padding_mask([4] * B), training=training))
    short = np.asarray(layer(sequence[:, :4], training=training))
    np.testing.assert_allclose(whole[:, :4], short, atol=1e-12)


@all_kinds
@both_paths
@pytest.mark.parametrize("go_backwards", [False, True], ids=["forward", "backward"])
def test_last_output_is_that_of_the_last_valid_step(rng, randomize, kind, training, go_backwards):
    last, every = (KINDS[kind][0](return_sequences=each, go_backwards=go_backwards) for each in (False, True))
    randomize((B, T, D), last, every)
    sequence = rng.normal(size=(B, T, D)).astype("float32")
    mask = random_mask(rng)
    outputs = np.asarray(every(sequence, mask=mask, training=training))
    output_mask = mask[:, ::-1] if go_backwards else mask
    last_valid = [np.flatnonzero(row)[-1] for row in output_mask]
    np.testing.assert_allclose(
        last(sequence, mask=mask, training=training), outputs[np.arange(B), last_valid], atol=1e-6
    )


@all_kinds
def test_row_without_valid_steps_keeps_its_initial_state(rng, randomize, kind):
    layer = KINDS[kind][0]()
    randomize((B, T, D), layer)
    states = [rng.normal(size=(B, U)).astype("float32") for _ in range(STATE_COUNTS[kind])]
    output = layer(np.zeros((B, T, D), "float32"), initial_state=states, mask=np.zeros((B, T), bool))
    np.testing.assert_array_equal(output, states[0])


@all_kinds
@both_paths
def test_two_halves_joined_by_the_state_equal_the_whole(rng, randomize, kind, training):
    layer = KINDS[kind][0](return_sequences=True, return_state=True, dtype="float64")
    randomize((B, T, D), layer)
    sequence, mask = rng.normal(size=(B, T, D)), random_mask(rng)
    whole, *whole_states = layer(sequence, mask=mask, training=training)
    first, *states = layer(sequence[:, :2], mask=mask[:, :2], training=training)
    second, *final_states = layer(sequence[:, 2:], initial_state=states, mask=mask[:, 2:], training=training)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, atol=1e-12)
    for actual, wanted in zip(final_states, whole_states, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-12)


@all_kinds
def test_step_by_step_equals_the_whole_sequence(rng, randomize, kind):
    layer = KINDS[kind][0](return_sequences=True, return_state=True, dtype="float64")
    randomize((B, T, D), layer)
    sequence = rng.normal(size=(B, T, D))
    states, outputs = None, []
    for time in range(T):
        output, *states = layer(sequence[:, time : time + 1], initial_state=states)
        outputs.append(output)
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), layer(sequence)[0], atol=1e-12)


@pytest.mark.parametrize("merge_mode", ["concat", "sum", "mul", "ave", None])
@pytest.mark.parametrize("return_sequences", [True, False], ids=["sequence", "last"])
@both_paths
def test_bidirectional_equals_keras(rng, randomize, run_with_gradients, merge_mode, return_sequences, training):
    options = {"return_sequences": return_sequences, "return_state": True}
    ours = Bidirectional(LSTM(U, **options), merge_mode=merge_mode)
    theirs = keras.layers.Bidirectional(keras.layers.LSTM(U, **options), merge_mode=merge_mode)
    randomize((B, T, D), ours, theirs)
    # Keras' last output of the backward direction is that of the first step, so that step has to be valid to compare.
    mask = padding_mask() if return_sequences else None
    states = [rng.normal(size=(B, U)).astype("float32") for _ in range(4)]
    inputs = [rng.normal(size=(B, T, D)).astype("float32"), *states]
    shapes = [tuple(output.shape) for output in ours(inputs[0], initial_state=states)]
    upstream = [rng.normal(size=shape) for shape in shapes]
    if return_sequences:
        upstream = [each * mask[..., None] if each.ndim == 3 else each for each in upstream]

    our_outputs, our_gradients = run_with_gradients(ours, inputs, upstream, mask, training)
    their_outputs, their_gradients = run_with_gradients(theirs, inputs, upstream, mask)

    for actual, wanted in zip(our_outputs + our_gradients, their_outputs + their_gradients, strict=True):
        if mask is not None and actual.shape[:2] == (B, T) and actual.ndim == 3:
            actual, wanted = actual[mask], wanted[mask]
        np.testing.assert_allclose(actual, wanted, atol=1e-5, rtol=1e-5)


def test_bidirectional_reads_padded_sequences_from_their_last_valid_step(rng, randomize):
    layer = Bidirectional(GRU(U, return_sequences=True), merge_mode=None)
    randomize((B, T, D), layer)
    sequence = rng.normal(size=(B, T, D)).astype("float32")
    lengths = (6, 3, 1, 4)
    _, backward = layer(sequence, mask=padding_mask(lengths))
    for row, length in enumerate(lengths):
        alone = np.asarray(layer.backward_layer(sequence[row : row + 1, :length]))[0, ::-1]
        np.testing.assert_allclose(np.asarray(backward)[row, :length], alone, atol=1e-6)


@both_paths
def test_stack_equals_its_layers_in_turn(rng, randomize, training):
    bottom = Bidirectional(LSTM(U, return_sequences=True, return_state=True))
    middle = GRU(U, return_sequences=True, return_state=True, go_backwards=True)
    top = Elman(U, return_state=True)
    stack = Stacked([bottom, middle, top])
    randomize((B, T, D), stack)
    sequence, mask = rng.normal(size=(B, T, D)).astype("float32"), padding_mask()
    states = [rng.normal(size=(B, U)).astype("float32") for _ in range(6)]

    hidden, *bottom_states = bottom(sequence, initial_state=states[:4], mask=mask, training=training)
    hidden, middle_state = middle(hidden, initial_state=states[4], mask=mask, training=training)
    expected = [*top(hidden, initial_state=states[5], mask=mask[:, ::-1], training=training)]
    expected = [expected[0], *bottom_states, middle_state, expected[1]]

    actual = stack(sequence, initial_state=states, mask=mask, training=training)
    for ours, wanted in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-6)


def test_keras_masks_arrive_with_and_without_an_initial_state(rng):
    tokens = keras.Input((None,), dtype="int32")
    state = keras.Input((U,))
    embedded = keras.layers.Embedding(10, D, mask_zero=True)(tokens)
    layer = GRU(U)
    model = keras.Model([tokens, state], [layer(embedded), layer(embedded, initial_state=state)])
    short = np.array([[3, 4, 5]], "int32")
    padded = np.array([[3, 4, 5, 0, 0]], "int32")
    hidden_state = rng.normal(size=(1, U)).astype("float32")
    for actual, wanted in zip(model([padded, hidden_state]), model([short, hidden_state]), strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (GRU(U, return_sequences=True), "same"),
        (GRU(U, return_sequences=True, go_backwards=True), "flipped"),
        (GRU(U), None),
        (Bidirectional(GRU(U, return_sequences=True)), "same"),
        (Stacked([GRU(U, return_sequences=True, go_backwards=True), GRU(U, return_sequences=True)]), "flipped"),
    ],
)
def test_output_mask_fits_the_output(layer, expected):
    mask = padding_mask()
    output_mask = layer.compute_mask(None, keras.ops.convert_to_tensor(mask))
    wanted = {"same": mask, "flipped": mask[:, ::-1], None: None}[expected]
    if wanted is None:
        assert output_mask is None
    else:
        np.testing.assert_array_equal(output_mask, wanted)


def test_recurrent_dropout_mask_is_one_per_example_and_unit_and_constant_over_time():
    units, rate = 50, 0.25
    layer = Elman(units, activation="relu", recurrent_dropout=rate, return_sequences=True, seed=1)
    layer.build((None, None, D))
    # With these weights a step only multiplies the state by its dropout mask.
    layer.set_weights([np.zeros((D, units)), np.eye(units), np.zeros(units), *layer.get_weights()[3:]])
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


@all_kinds
def test_recurrent_dropout_is_off_at_prediction(rng, randomize, kind):
    dropping, plain = KINDS[kind][0](recurrent_dropout=0.5, seed=3), KINDS[kind][0]()
    weights = randomize((B, T, D), plain)
    dropping.build((B, T, D))
    for variable, weight in zip(dropping.trainable_weights, weights, strict=True):
        variable.assign(weight)
    sequence = rng.normal(size=(B, T, D)).astype("float32")
    np.testing.assert_array_equal(dropping(sequence), plain(sequence))
    assert (np.asarray(dropping(sequence, training=True)) != np.asarray(plain(sequence))).any()
