"""The normalization layers against their definitions in NumPy, finite differences, and Keras."""

import doctest

import keras
import numpy as np
import pytest
from differences import numeric_gradients
from sequence_contract import outputs_and_gradients

from layers import BatchNorm, LayerNorm, RMSNorm, normalization
from layers.normalization import standardized

B, T, D = 4, 5, 6  # batch, time, features
KINDS = {
    "layer": lambda **options: LayerNorm(**options),
    "layer_no_weights": lambda **options: LayerNorm(scale=False, center=False, **options),
    "layer_epsilon": lambda **options: LayerNorm(epsilon=0.3, **options),
    "rms": lambda **options: RMSNorm(**options),
    "rms_no_scale": lambda **options: RMSNorm(scale=False, epsilon=0.2, **options),
    "batch": lambda **options: BatchNorm(momentum=0.7, **options),
    "batch_no_scale": lambda **options: BatchNorm(scale=False, epsilon=0.1, **options),
    "batch_no_center": lambda **options: BatchNorm(center=False, **options),
}
BATCH_KINDS = [kind for kind in KINDS if kind.startswith("batch")]
KERAS_KINDS = {
    "layer": lambda **options: keras.layers.LayerNormalization(**options),
    "rms": lambda **options: keras.layers.RMSNormalization(epsilon=1e-6, **options),
    "batch": lambda **options: keras.layers.BatchNormalization(momentum=0.7, **options),
}

all_kinds = pytest.mark.parametrize("kind", KINDS)
both_paths = pytest.mark.parametrize("training", [False, True], ids=["prediction", "training"])
masked_or_not = pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])


def built(kind, rng, shape=(B, T, D), **options):
    """A layer with weights that differ everywhere; the moving variance is positive."""
    layer = KINDS[kind](**options)
    layer.build(shape)
    layer.set_weights([rng.uniform(0.3, 2, tuple(weight.shape)) for weight in layer.weights])
    return layer


def call(layer, inputs, mask=None, training=False):
    options = {"training": training} if isinstance(layer, BatchNorm) else {}
    return layer(inputs, mask=None if mask is None else keras.ops.convert_to_tensor(mask), **options)


def random_mask(rng):
    """Gaps anywhere, and one row without a valid step."""
    mask = rng.random((B, T)) < 0.6
    mask[1] = False
    return mask


def normalized_by_definition(layer, inputs, mask=None, training=False):
    """Loops over what is normalized together: the features of a step, or a feature over all valid steps."""
    weights = {weight.name: np.array(weight) for weight in layer.weights}
    valid = np.ones(inputs.shape[:-1], bool) if mask is None else mask
    result = np.zeros(inputs.shape)
    for step in zip(*np.nonzero(valid), strict=True):
        x = inputs[step]
        if isinstance(layer, BatchNorm):
            seen = inputs[valid]
            mean = np.mean(seen, axis=0) if training else weights["moving_mean"]
            variance = np.mean((seen - mean) ** 2, axis=0) if training else weights["moving_variance"]
        elif isinstance(layer, LayerNorm):
            mean, variance = x.sum() / D, ((x - x.sum() / D) ** 2).sum() / D
        else:
            mean, variance = 0, (x * x).sum() / D
        result[step] = (x - mean) / np.sqrt(variance + layer.epsilon) * weights.get("gamma", 1) + weights.get("beta", 0)
    return result


@all_kinds
@both_paths
@masked_or_not
def test_values_follow_the_definition(rng, kind, training, masked):
    layer, inputs = built(kind, rng, dtype="float64"), rng.normal(2, 3, (B, T, D))
    mask = random_mask(rng) if masked else None
    wanted = normalized_by_definition(layer, inputs, mask, training)
    np.testing.assert_allclose(call(layer, inputs, mask, training), wanted, atol=1e-12)


@all_kinds
@both_paths
@masked_or_not
def test_gradients_equal_finite_differences(rng, kind, training, masked):
    layer, inputs = built(kind, rng, dtype="float64"), rng.normal(1, 2, (B, T, D))
    mask = random_mask(rng) if masked else None
    weights = [np.array(weight) for weight in layer.trainable_weights]
    factors = np.random.default_rng(11).normal(size=(B, T, D))  # those of `linear_loss`

    def loss(inputs, *weights):
        for variable, value in zip(layer.trainable_weights, weights, strict=True):
            variable.assign(value)
        return np.sum(normalized_by_definition(layer, inputs, mask, training) * factors)

    wanted = numeric_gradients(loss, [inputs, *weights])
    layer.set_weights([*weights, *map(np.array, layer.non_trainable_weights)])
    _, gradients = outputs_and_gradients(layer, lambda x: [call(layer, x, mask, training)], [inputs])
    for gradient, expected in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(gradient, expected, atol=1e-7)


@pytest.mark.parametrize("kind", KERAS_KINDS)
@both_paths
@pytest.mark.parametrize("shape", [(7, D), (B, T, D), (B, T, 3, D)], ids=["rank2", "rank3", "rank4"])
def test_values_and_gradients_are_those_of_keras(rng, kind, training, shape):
    ours, theirs = built(kind, rng, shape), KERAS_KINDS[kind]()
    theirs.build(shape)
    by_name = {weight.name.replace("scale", "gamma"): weight for weight in theirs.weights}
    for weight in ours.weights:
        by_name[weight.name].assign(np.array(weight))
    inputs = rng.normal(1, 2, shape).astype("float32")
    options = {"training": training} if kind == "batch" else {}
    our_results, our_gradients = outputs_and_gradients(ours, lambda x: [ours(x, **options)], [inputs])
    their_results, their_gradients = outputs_and_gradients(theirs, lambda x: [theirs(x, **options)], [inputs])
    for actual, wanted in zip(our_results + our_gradients, their_results + their_gradients, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=2e-5, rtol=1e-5)


@masked_or_not
def test_moving_statistics_are_those_of_keras_and_of_their_definition(rng, masked):
    ours, theirs = BatchNorm(momentum=0.7), keras.layers.BatchNormalization(momentum=0.7)
    exact = BatchNorm(momentum=0.7, dtype="float64")
    mean, variance = np.zeros(D), np.ones(D)
    mask = random_mask(rng) if masked else None
    tensor_mask = None if mask is None else keras.ops.convert_to_tensor(mask)
    seen = np.ones((B, T), bool) if mask is None else mask
    for _ in range(4):
        inputs = rng.normal(1, 2, (B, T, D))
        for layer in (ours, theirs, exact):
            layer(inputs.astype(layer.dtype), mask=tensor_mask, training=True)
        mean = 0.7 * mean + 0.3 * inputs[seen].mean(0)
        variance = 0.7 * variance + 0.3 * inputs[seen].var(0)
    for statistic, wanted in (("moving_mean", mean), ("moving_variance", variance)):
        np.testing.assert_allclose(getattr(exact, statistic), wanted, rtol=0, atol=1e-13)
        np.testing.assert_allclose(getattr(ours, statistic), getattr(theirs, statistic), rtol=0, atol=1e-5)


@all_kinds
@both_paths
def test_what_masked_steps_hold_changes_nothing(rng, kind, training):
    layer, inputs, mask = built(kind, rng, dtype="float64"), rng.normal(size=(B, T, D)), random_mask(rng)
    results = []
    for padding in (0.0, 1e30, np.nan):
        padded = np.where(mask[..., None], inputs, padding)
        outputs, gradients = outputs_and_gradients(layer, lambda x: [call(layer, x, mask, training)], [padded])
        assert not outputs[0][~mask].any()
        assert not gradients[0][~mask].any()
        results.append([*outputs, *gradients])
    for other in results[1:]:
        for actual, wanted in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(actual, wanted)


def test_padding_does_not_enter_moving_statistics(rng):
    layer, mask, inputs = BatchNorm(momentum=0.0), random_mask(rng), rng.normal(size=(B, T, D))
    call(layer, np.where(mask[..., None], inputs, np.nan), mask, training=True)
    np.testing.assert_allclose(layer.moving_mean, inputs[mask].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, inputs[mask].var(axis=0), atol=1e-6)


def test_a_batch_without_valid_steps_leaves_the_moving_statistics_as_they_are(rng):
    layer = built("batch", rng)
    before = layer.get_weights()
    outputs = call(layer, np.full((B, T, D), np.nan), np.zeros((B, T), bool), training=True)
    assert not np.array(outputs).any()
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("kind", BATCH_KINDS)
def test_batch_norm_that_is_not_trainable_normalizes_as_at_prediction(rng, kind):
    layer, inputs = built(kind, rng), rng.normal(size=(B, T, D))
    layer.trainable = False
    before = layer.get_weights()
    np.testing.assert_array_equal(call(layer, inputs, training=True), call(layer, inputs))
    np.testing.assert_array_equal(layer.get_weights(), before)


@all_kinds
def test_a_mask_of_steps_holds_for_all_that_a_step_has(rng, kind):
    layer = built(kind, rng, (B, T, 3, D), dtype="float64")
    inputs, mask = rng.normal(size=(B, T, 3, D)), random_mask(rng)
    heads_apart = np.broadcast_to(mask[..., None], (B, T, 3))
    np.testing.assert_array_equal(call(layer, inputs, mask, True), call(layer, inputs, heads_apart, True))


@all_kinds
def test_masks_pass_on(rng, kind):
    sequence, mask = rng.normal(size=(2, T, D)), np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], bool)
    sequence = keras.layers.Masking()(np.where(mask[..., None], sequence, 0))
    outputs = KINDS[kind]()(sequence)
    np.testing.assert_array_equal(keras.src.backend.get_keras_mask(outputs), mask)
    assert not np.array(outputs)[~mask].any()


@all_kinds
@both_paths
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_half_precision_goes_in_and_out_and_is_not_used_within(rng, kind, training, policy):
    """The sum of squares of these inputs is beyond float16."""
    half, inputs = built(kind, rng, dtype=policy), rng.normal(0, 300, (B, T, D)).astype("float16")
    precise = built(kind, rng, dtype="float64")
    precise.set_weights(half.get_weights())
    outputs = call(half, inputs, training=training)
    assert keras.backend.standardize_dtype(outputs.dtype) == policy.removeprefix("mixed_")
    wanted = normalized_by_definition(precise, np.array(keras.ops.cast(inputs, outputs.dtype), float), None, training)
    resolution = 2.0**-8 if "bfloat16" in policy else 2.0**-10
    np.testing.assert_allclose(np.array(outputs, float), wanted, rtol=3 * resolution, atol=resolution)


@pytest.mark.parametrize("kind", KERAS_KINDS)
@both_paths
@pytest.mark.tensorflow_only
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "program"])
def test_graphs_of_unknown_batch_and_time_give_the_same(rng, kind, training, jit_compile):
    import tensorflow as tf

    layer, inputs, mask = built(kind, rng), rng.normal(size=(B, T, D)).astype("float32"), random_mask(rng)
    shapes = [tf.TensorSpec((None, None, D)), tf.TensorSpec((None, None), "bool")]
    in_graph = tf.function(lambda x, mask: call(layer, x, mask, training), shapes, jit_compile=jit_compile)
    wanted = call(layer, inputs, mask, training)
    np.testing.assert_allclose(in_graph(inputs, mask), wanted, atol=1e-5)


@pytest.mark.slow
def test_models_train_save_and_load(rng, tmp_path):
    inputs = keras.Input((None, D))
    outputs = keras.layers.Masking()(inputs)
    for kind in KINDS:
        outputs = KINDS[kind]()(keras.layers.Dense(D)(outputs))
    model = keras.Model(inputs, outputs)
    model.compile("adam", "mse")
    before = model.get_weights()
    sequence = rng.normal(size=(8, T, D)).astype("float32")
    model.fit(sequence, rng.normal(size=(8, T, D)), verbose=0, epochs=2)
    assert all((old != new).any() for old, new in zip(before, model.get_weights(), strict=True))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(sequence, verbose=0), model.predict(sequence, verbose=0))


@all_kinds
def test_configurations_come_back(kind):
    layer = KINDS[kind](name="mine", dtype="mixed_float16")
    assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LayerNorm(epsilon=0), "epsilon must be above 0"),
        (lambda: RMSNorm(epsilon=-1.0), "epsilon must be above 0"),
        (lambda: BatchNorm(momentum=1.0), "momentum must be at least 0 and below 1"),
        (lambda: LayerNorm().build((None, 3, None)), "known number of features"),
    ],
)
def test_impossible_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_standardized_keeps_the_dtype_and_is_exact(rng, dtype):
    tensor = rng.normal(40, 3, (5, 64)).astype(dtype)
    precise = tensor.astype("float64")
    wanted = (precise - precise.mean(-1, keepdims=True)) / np.sqrt(precise.var(-1, keepdims=True) + 1e-5)
    result = standardized(keras.ops.convert_to_tensor(tensor))
    assert keras.backend.standardize_dtype(result.dtype) == dtype
    np.testing.assert_allclose(result, wanted, atol={"float16": 2e-3, "float32": 1e-5, "float64": 1e-13}[dtype])


def test_examples_in_docstrings_run():
    results = doctest.testmod(normalization)
    assert results.failed == 0
    assert results.attempted >= 4
