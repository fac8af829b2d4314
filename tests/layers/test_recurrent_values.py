"""What the recurrent layers compute: against Keras, and when put together."""

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


def random_mask(rng):
    """Gaps anywhere, and at least one valid step in every row."""
    mask = rng.random((B, T)) < 0.6
    mask[np.arange(B), rng.integers(T, size=B)] = True
    return mask


def padding_mask(lengths=(6, 3, 1, 4)):
    return np.arange(T) < np.array(lengths)[:, None]


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
