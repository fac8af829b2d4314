"""Positions: golden values, rotation by complex numbers, and lengths that there are no positions for."""

import doctest

import keras
import numpy as np
import pytest
from sequence_contract import outputs_and_gradients

from layers import LearnedPositions, RotaryPositions, SinusoidalPositions, positions, sinusoids

B, T, D = 3, 7, 6  # batch, time, features
KINDS = {
    "sinusoidal": lambda **options: SinusoidalPositions(**options),
    "sinusoidal_short": lambda **options: SinusoidalPositions(longest=50, **options),
    "learned": lambda **options: LearnedPositions(12, initializer="normal", **options),
    "rotary": lambda **options: RotaryPositions(**options),
    "rotary_short": lambda **options: RotaryPositions(longest=50, **options),
}
GOLDEN = [[0, 1, 0, 1, 0, 1], [0.8415, 0.5403, 0.0464, 0.9989, 0.0022, 1.0000]]
"""The encoding of positions 0 and 1 with 6 features, by a pocket calculator: sin 1, cos 1, sin 10000^(-1/3), ..."""

all_kinds = pytest.mark.parametrize("kind", KINDS)
in_half = pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float32", "float64"])


def built(kind, **options):
    layer = KINDS[kind](**options)
    layer.build((None, None, D))
    return layer


def by_definition(layer, sequence, start=0):
    """Loops over steps; a pair of features rotates as one complex number."""
    result = np.zeros(sequence.shape)
    for time in range(sequence.shape[1]):
        position, x = start + time, sequence[:, time]
        if isinstance(layer, LearnedPositions):
            result[:, time] = x + np.array(layer.vectors)[position]
            continue
        angles = [position / layer.longest ** (2 * pair / D) for pair in range(D // 2)]
        if isinstance(layer, SinusoidalPositions):
            result[:, time] = x + [function(angle) for angle in angles for function in (np.sin, np.cos)]
        else:
            rotated = (x[..., : D // 2] + 1j * x[..., D // 2 :]) * np.exp(1j * np.array(angles))
            result[:, time] = np.concatenate([rotated.real, rotated.imag], axis=-1)
    return result


def random_mask(rng):
    """Gaps anywhere, and one row without a valid step."""
    mask = rng.random((B, T)) < 0.6
    mask[1] = False
    return mask


def test_sinusoids_are_the_golden_ones():
    np.testing.assert_allclose(sinusoids(np.arange(2), 6), GOLDEN, atol=1e-4)
    np.testing.assert_allclose(SinusoidalPositions()(np.zeros((1, 2, 6)))[0], GOLDEN, atol=1e-4)


def test_sinusoids_of_an_odd_number_of_features_end_with_a_sine():
    encoding = np.array(sinusoids(np.arange(9), 5, dtype="float64"))
    assert encoding.shape == (9, 5)
    np.testing.assert_allclose(encoding[:, 4], np.sin(np.arange(9) / 10_000 ** (4 / 5)), atol=1e-15)


def test_sinusoids_take_positions_of_any_shape():
    places = np.array([[3, 0], [2, 11]])
    table = np.array(sinusoids(np.arange(12), D, dtype="float64"))
    np.testing.assert_array_equal(sinusoids(places, D, dtype="float64"), table[places])


@all_kinds
@pytest.mark.parametrize("start", [0, 3])
def test_values_follow_the_definition(rng, kind, start):
    layer, sequence = built(kind, dtype="float64"), rng.normal(size=(B, T, D))
    wanted = by_definition(layer, sequence, start)
    np.testing.assert_allclose(layer(sequence, start=start), wanted, atol=1e-13)
    np.testing.assert_allclose(layer(sequence, start=keras.ops.convert_to_tensor(start)), wanted, atol=1e-13)


@all_kinds
def test_pieces_with_their_start_equal_the_whole(rng, kind):
    layer, sequence = built(kind, dtype="float64"), rng.normal(size=(B, T, D))
    pieces = [layer(sequence[:, place : place + 1], start=place) for place in range(T)]
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), layer(sequence))


def test_rotated_products_depend_on_the_distance_alone(rng):
    layer, query, key = RotaryPositions(dtype="float64"), rng.normal(size=8), rng.normal(size=8)

    def product(query_place, key_place):
        rotated = [layer(each.reshape(1, 1, 8), start=at) for each, at in ((query, query_place), (key, key_place))]
        return float(keras.ops.sum(rotated[0] * rotated[1]))

    assert product(5, 2) == pytest.approx(product(103, 100), abs=1e-11)
    assert product(0, 4) == pytest.approx(product(9, 13), abs=1e-11)
    assert abs(product(5, 2) - product(2, 5)) > 1e-3


def test_rotary_positions_rotate_every_head_alike(rng):
    layer, heads = RotaryPositions(dtype="float64"), rng.normal(size=(B, T, 2, D))
    for head in range(2):
        np.testing.assert_array_equal(layer(heads)[:, :, head], layer(heads[:, :, head]))


@all_kinds
def test_gradients(rng, kind):
    """Sums pass a gradient on as it is; a rotation turns it back."""
    layer, sequence = built(kind, dtype="float64"), rng.normal(size=(B, T, D))
    upstream = np.random.default_rng(11).normal(size=(B, T, D))  # that of `outputs_and_gradients`
    _, (gradient, *of_weights) = outputs_and_gradients(layer, lambda x: [layer(x)], [sequence])
    np.testing.assert_allclose(by_definition(layer, gradient) if "rotary" in kind else gradient, upstream, atol=1e-12)
    for each in of_weights:
        np.testing.assert_allclose(each[:T], upstream.sum(axis=0), atol=1e-12)
        assert not each[T:].any()


@all_kinds
@pytest.mark.parametrize("start", [0, np.int32(3)], ids=["number", "tensor"])
def test_what_masked_steps_hold_changes_nothing(rng, kind, start):
    layer, sequence, mask = built(kind, dtype="float64"), rng.normal(size=(B, T, D)), random_mask(rng)
    start = start if start == 0 else keras.ops.convert_to_tensor(start)
    results = []
    for padding in (0.0, 1e30, np.nan):
        padded = np.where(mask[..., None], sequence, padding)
        function = lambda x: [layer(x, start=start, mask=keras.ops.convert_to_tensor(mask))]  # noqa: E731
        outputs, gradients = outputs_and_gradients(layer, function, [padded])
        assert not outputs[0][~mask].any()
        assert not gradients[0][~mask].any()
        results.append([*outputs, *gradients])
    np.testing.assert_allclose(results[0][0][mask], by_definition(layer, sequence, int(start))[mask], atol=1e-13)
    for other in results[1:]:
        for actual, wanted in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(actual, wanted)


@all_kinds
@in_half
def test_late_positions_are_told_apart_in_half_precision(rng, kind, dtype):
    layer, sequence = built(kind, dtype=dtype), np.zeros((1, 5, D)) + 0.5
    start = 0 if kind == "learned" else 3000
    outputs = layer(sequence, start=start)
    name = keras.backend.standardize_dtype(outputs.dtype)
    assert name == dtype.removeprefix("mixed_")
    # At position 3000, float32 knows an angle to about 1e-4.
    tolerance = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 3e-4, "float64": 1e-12}[name]
    np.testing.assert_allclose(np.array(outputs, float), by_definition(layer, sequence, start), atol=tolerance)


@all_kinds
def test_functional_models_pass_masks_on_and_take_start_as_an_input(rng, kind, tmp_path):
    sequence, start = keras.Input((None, D)), keras.Input(batch_shape=(), dtype="int32")
    masked = keras.layers.Masking()(sequence)
    first, second = built(kind), built(kind)
    model = keras.Model([sequence, start], second(first(masked), start=start))
    mask = random_mask(rng)
    inputs = np.where(mask[..., None], rng.normal(size=(B, T, D)), 0).astype("float32")
    outputs = model([inputs, np.int32(2)])
    np.testing.assert_allclose(
        np.array(outputs)[mask], by_definition(second, by_definition(first, inputs), 2)[mask], atol=1e-5
    )
    assert not np.array(outputs)[~mask].any()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again([inputs, np.int32(2)]), outputs)


@all_kinds
@pytest.mark.tensorflow_only
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "program"])
def test_graphs_of_unknown_batch_and_time_give_the_same(rng, kind, jit_compile):
    import tensorflow as tf

    layer, sequence = built(kind), rng.normal(size=(B, T, D)).astype("float32")
    shapes = [tf.TensorSpec((None, None, D)), tf.TensorSpec((), "int32")]
    in_graph = tf.function(lambda x, start: layer(x, start=start), shapes, jit_compile=jit_compile)
    np.testing.assert_allclose(in_graph(sequence, 3), layer(sequence, start=3), atol=1e-5)


# Positions that there are none of.


def test_a_sequence_longer_than_the_learned_positions_is_refused():
    layer = LearnedPositions(5, name="places")
    assert layer(np.ones((2, 5, 3))).shape == (2, 5, 3)
    with pytest.raises(ValueError, match="places has the positions 0 to 4, so 6 steps cannot start at 0"):
        layer(np.ones((2, 6, 3)))
    with pytest.raises(ValueError, match="so 3 steps cannot start at 3"):
        layer(np.ones((2, 3, 3)), start=3)
    with pytest.raises(ValueError, match="cannot start at -1"):
        layer(np.ones((2, 3, 3)), start=-1)


@pytest.mark.parametrize("start", [-1, 3])
def test_a_tensor_that_starts_beyond_the_learned_positions_is_refused(start):
    layer = LearnedPositions(5, name="places")
    with pytest.raises(ValueError, match="places has the positions 0 to 4; the sequence goes beyond"):
        layer(np.ones((2, 3, 3)), start=keras.ops.convert_to_tensor(start))


@pytest.mark.tensorflow_only
def test_a_running_graph_stops_where_the_sequence_is_too_long():
    import tensorflow as tf

    layer = LearnedPositions(5, name="places")
    in_graph = tf.function(layer, [tf.TensorSpec((None, None, 3))])
    in_graph(np.ones((2, 5, 3)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="goes beyond"):
        in_graph(np.ones((2, 6, 3)))


def test_a_program_puts_out_nan_where_the_sequence_is_too_long():
    layer, sequence = LearnedPositions(5), keras.ops.ones((2, 3, 3))
    layer.build((None, None, 3))
    if keras.backend.backend() == "jax":
        import jax

        compiled = jax.jit(lambda start: layer(sequence, start=start))
    else:
        import tensorflow as tf

        compiled = tf.function(lambda start: layer(sequence, start=start), jit_compile=True)
    assert np.isfinite(compiled(keras.ops.convert_to_tensor(2))).all()
    assert np.isnan(compiled(keras.ops.convert_to_tensor(3))).all()


@all_kinds
def test_configurations_come_back(kind):
    layer = KINDS[kind](name="mine", dtype="mixed_float16")
    assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()


def test_learned_positions_are_regularized():
    layer = LearnedPositions(3, initializer="ones", regularizer=keras.regularizers.L2(0.5))
    layer.build((None, None, 4))
    assert float(sum(layer.losses)) == pytest.approx(0.5 * 3 * 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SinusoidalPositions(longest=1), "longest must be above 1"),
        (lambda: RotaryPositions(longest=0), "longest must be above 1"),
        (lambda: LearnedPositions(0), "max_length must be at least 1"),
        (lambda: LearnedPositions(5)(keras.Input((9, 3))), "9 steps cannot start at 0; give it a larger max_length"),
        (lambda: RotaryPositions().build((None, 4, 5)), "even number of features, got 5"),
    ],
)
def test_impossible_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_examples_in_docstrings_run():
    results = doctest.testmod(positions)
    assert results.failed == 0
    assert results.attempted >= 4
