"""The conditional random field against the enumeration of all paths, and in models that need it."""

import doctest
from itertools import pairwise, product

import keras
import numpy as np
import pytest
from differences import numeric_gradients
from sequence_contract import outputs_and_gradients

from layers import CRF, CRFLoss, Viterbi, crf, viterbi
from layers.crf import log_partition

B, T, K = 4, 5, 3  # batch, time, tags
MASKS = {
    "whole": None,
    "padded": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], bool),
    "gaps": np.array([[0, 1, 1, 0, 1], [1, 0, 0, 1, 1], [0, 0, 1, 0, 0], [1, 1, 0, 1, 0]], bool),
}
all_masks = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
with_mask = pytest.mark.parametrize("mask", [MASKS["padded"], MASKS["gaps"]], ids=["padded", "gaps"])
in_both_graphs = pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "program"])


def built(rng, tags=K, **options):
    layer = CRF(**options)
    layer.build((None, None, tags))
    layer.set_weights([rng.normal(size=tuple(weight.shape)) for weight in layer.weights])
    return layer


def call(layer, scores, mask=None):
    return layer(scores, mask=None if mask is None else keras.ops.convert_to_tensor(mask))


def loss_of(layer, tags, mask):
    return lambda scores: [CRFLoss(reduction=None, dtype="float64").call(tags, call(layer, scores, mask))]


def scores_of_paths(scores, weights, valid):
    """The score of every path through the valid steps of one sequence, from the equation."""
    transitions, start, end = weights
    x = scores[valid]
    if not len(x):
        return {(): 0.0}
    return {
        path: start[path[0]]
        + sum(x[time, tag] for time, tag in enumerate(path))
        + sum(transitions[pair] for pair in pairwise(path))
        + end[path[-1]]
        for path in product(range(scores.shape[-1]), repeat=len(x))
    }


def negative_log_likelihood(scores, transitions, start, end, tags, mask):
    """Of each sequence, by enumeration; a negative tag fits every path."""
    losses = []
    for x, known, valid in zip(scores, tags, np.ones((B, T), bool) if mask is None else mask, strict=True):
        paths = scores_of_paths(x, (transitions, start, end), valid)
        fits = [
            np.exp(score)
            for path, score in paths.items()
            if all(told in (tag, -1) for tag, told in zip(path, known[valid], strict=True))
        ]
        losses.append(np.log(sum(map(np.exp, paths.values()))) - np.log(sum(fits)))
    return np.array(losses)


def random_problem(rng, unknown=0.2):
    tags = np.where(rng.random((B, T)) < unknown, -1, rng.integers(0, K, (B, T)))
    return rng.normal(size=(B, T, K)), tags


@all_masks
def test_the_loss_is_that_of_all_paths(rng, mask):
    layer, (scores, tags) = built(rng, dtype="float64"), random_problem(rng)
    wanted = negative_log_likelihood(scores, *layer.get_weights(), tags, mask)
    (losses,) = loss_of(layer, tags, mask)(keras.ops.convert_to_tensor(scores))
    np.testing.assert_allclose(losses, wanted, atol=1e-12)


@all_masks
def test_gradients_equal_finite_differences(rng, mask):
    layer, (scores, tags) = built(rng, dtype="float64"), random_problem(rng)
    factors = np.random.default_rng(11).normal(size=B)  # those of `linear_loss`
    wanted = numeric_gradients(
        lambda scores, *weights: negative_log_likelihood(scores, *weights, tags, mask) @ factors,
        [scores, *layer.get_weights()],
    )
    _, gradients = outputs_and_gradients(layer, loss_of(layer, tags, mask), [scores])
    for gradient, expected in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(gradient, expected, atol=1e-8)


@all_masks
def test_viterbi_finds_the_best_of_all_paths(rng, mask):
    layer, scores = built(rng, dtype="float64"), rng.normal(size=(B, T, K))
    tags = np.array(viterbi(call(layer, scores, mask)))
    for row, x, valid in zip(tags, scores, np.ones((B, T), bool) if mask is None else mask, strict=True):
        paths = scores_of_paths(x, layer.get_weights(), valid)
        assert tuple(row[valid]) == max(paths, key=paths.get)


@pytest.mark.parametrize("what", ["tag", "transition"])
def test_what_is_forbidden_is_not_taken_for_padding(rng, what):
    """Far below all others, the last tag or the way to it must cost the same however far it is below."""
    scores, tags, losses = rng.normal(size=(B, T, K)), rng.integers(0, K - 1, (B, T)), []
    layer = built(rng, dtype="float64")
    for value in (-1e4, -1e9, -3e9):
        forbidden = scores.copy()
        transitions, *ends = (np.array(weight) for weight in layer.get_weights())
        if what == "tag":
            forbidden[..., -1] = value
        else:
            transitions[0, -1] = value
        layer.set_weights([transitions, *ends])
        losses.append(np.array(loss_of(layer, tags, None)(forbidden)[0]))
    assert losses[0].min() > 0
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, atol=1e-5)


def test_a_tag_that_there_is_not_is_refused(rng):
    layer, scores, tags = built(rng), rng.normal(size=(B, T, K)).astype("float32"), np.zeros((B, T), int)
    mask = MASKS["padded"]
    tags[~mask] = 99  # is of no account
    assert np.isfinite(CRFLoss().call(tags, call(layer, scores, mask))).all()
    tags[0, 1] = K
    with pytest.raises(ValueError, match="there are 3 tags"):
        CRFLoss().call(tags, call(layer, scores, mask))


def test_padding_repeats_the_tag_before_it(rng):
    layer, scores, mask = built(rng), rng.normal(size=(B, T, K)), MASKS["padded"]
    tags = np.array(viterbi(call(layer, scores, mask)))
    for row, length in zip(tags, mask.sum(axis=1), strict=True):
        assert (row[length:] == (row[length - 1] if length else 0)).all()


@with_mask
def test_what_masked_steps_hold_changes_nothing(rng, mask):
    layer, (scores, tags) = built(rng, dtype="float64"), random_problem(rng)
    results = []
    for padding, tag in ((0.0, 0), (1e30, -1), (np.nan, K)):
        padded = np.where(mask[..., None], scores, padding)
        outputs, gradients = outputs_and_gradients(layer, loss_of(layer, np.where(mask, tags, tag), mask), [padded])
        assert not gradients[0][~mask].any()
        results.append([*outputs, *gradients])
    for other in results[1:]:
        for actual, wanted in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(actual, wanted)


def test_sequences_without_a_known_tag_cost_nothing_and_have_no_gradient(rng):
    layer, scores = built(rng, dtype="float64"), rng.normal(size=(B, T, K))
    (losses,), gradients = outputs_and_gradients(layer, loss_of(layer, np.full((B, T), -1), None), [scores])
    np.testing.assert_array_equal(losses, np.zeros(B))
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2])
def test_short_sequences_are_sequences(rng, steps):
    layer, scores = built(rng, dtype="float64"), rng.normal(size=(B, steps, K))
    tags = rng.integers(0, K, (B, steps))
    potentials = call(layer, scores)
    for index, x in enumerate(scores):
        paths = scores_of_paths(x, layer.get_weights(), np.ones(steps, bool))
        assert float(log_partition(potentials)[index]) == pytest.approx(np.log(sum(map(np.exp, paths.values()))))
        assert tuple(np.array(viterbi(potentials))[index]) == max(paths, key=paths.get)
    _, gradients = outputs_and_gradients(layer, loss_of(layer, tags, None), [scores])
    assert all(np.isfinite(each).all() for each in gradients)


def test_the_gradient_of_the_log_partition_is_the_probability_of_each_pair_of_tags(rng):
    layer, scores = built(rng, dtype="float64"), rng.normal(size=(B, T, K))
    potentials = keras.ops.convert_to_numpy(call(layer, scores))
    upstream = np.random.default_rng(11).normal(size=B)  # that of `outputs_and_gradients`
    _, (gradient,) = outputs_and_gradients(keras.layers.Identity(), lambda x: [log_partition(x)], [potentials])
    probabilities = gradient / upstream[:, None, None, None]
    np.testing.assert_allclose(probabilities.sum(axis=(2, 3)), 1, atol=1e-12)
    for index, x in enumerate(scores):
        paths = scores_of_paths(x, layer.get_weights(), np.ones(T, bool))
        total = sum(map(np.exp, paths.values()))
        pair = sum(np.exp(score) for path, score in paths.items() if path[2:4] == (0, 2)) / total
        assert probabilities[index, 3, 0, 2] == pytest.approx(pair, abs=1e-12)


@pytest.mark.tensorflow_only
@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["graph", "program"])
def test_second_derivatives_equal_differences_of_first_ones(rng, jit_compile):
    import tensorflow as tf

    potentials, direction = rng.normal(size=(2, B, T, K, K))

    @tf.function(jit_compile=jit_compile)
    def derivatives(potentials):
        with tf.GradientTape() as outer:
            outer.watch(potentials)
            with tf.GradientTape() as inner:
                inner.watch(potentials)
                result = tf.reduce_sum(log_partition(potentials))
            first = inner.gradient(result, potentials)
            along = tf.reduce_sum(first * direction)
        return first, outer.gradient(along, potentials)

    above, below = (derivatives(tf.constant(potentials + sign * 1e-5 * direction))[0] for sign in (1, -1))
    np.testing.assert_allclose(derivatives(tf.constant(potentials))[1], (above - below) / 2e-5, atol=1e-8)


def test_scores_far_apart_overflow_nowhere(rng):
    layer, (scores, tags) = built(rng), random_problem(rng)
    (losses,), gradients = outputs_and_gradients(
        layer, lambda x: [CRFLoss(reduction=None).call(tags, call(layer, x))], [1e4 * scores.astype("float32")]
    )
    assert np.isfinite(losses).all()
    assert (losses >= 0).all()
    assert all(np.isfinite(each).all() for each in gradients)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_rounds_scores_only(rng, policy):
    layer, (scores, tags) = built(rng, dtype=policy), random_problem(rng)
    half = keras.ops.cast(scores, layer.compute_dtype)
    potentials = layer(half)
    assert keras.backend.standardize_dtype(potentials.dtype) == "float32"
    assert layer(keras.KerasTensor((None, T, K), layer.compute_dtype)).dtype == "float32"
    rounded = np.array(keras.ops.cast(half, "float64"))
    wanted = negative_log_likelihood(rounded, *layer.get_weights(), tags, None)
    np.testing.assert_allclose(CRFLoss(reduction=None).call(tags, potentials), wanted, atol=1e-5)


@pytest.mark.tensorflow_only
@in_both_graphs
@with_mask
def test_graphs_of_unknown_batch_and_time_give_the_same(rng, mask, jit_compile):
    import tensorflow as tf

    layer, (scores, tags) = built(rng, dtype="float64"), random_problem(rng)
    shapes = [tf.TensorSpec((None, None, K), "float64"), tf.TensorSpec((None, None), "int32")]

    @tf.function(input_signature=[*shapes, tf.TensorSpec((None, None), "bool")], jit_compile=jit_compile)
    def step(scores, tags, mask):
        with tf.GradientTape() as tape:
            tape.watch(scores)
            potentials = layer(scores, mask=mask)
            loss = CRFLoss(dtype="float64")(tags, potentials)
        return loss, viterbi(potentials), tape.gradient(loss, [scores, *layer.trainable_weights])

    loss, path, gradients = step(scores, tags.astype("int32"), mask)
    factor = 1 / B

    def by_enumeration(scores, *weights):
        return negative_log_likelihood(scores, *weights, tags, mask).sum() * factor

    assert float(loss) == pytest.approx(by_enumeration(scores, *layer.get_weights()))
    np.testing.assert_array_equal(path, viterbi(call(layer, scores, mask)))
    for gradient, wanted in zip(
        gradients, numeric_gradients(by_enumeration, [scores, *layer.get_weights()]), strict=True
    ):
        np.testing.assert_allclose(gradient, wanted, atol=1e-8)


# In models.


def alternating(rng, count, steps=12):
    """Tags alternate. Now and then a step shows its tag, most show nothing."""
    is_shown = rng.random((count, steps)) < 0.1
    is_shown[:, 0] = True
    tags = (rng.integers(0, 2, (count, 1)) + np.arange(steps)) % 2
    mask = np.arange(steps) < rng.integers(6, steps + 1, (count, 1))
    inputs = np.eye(3)[np.where(is_shown, tags + 1, 0)]
    return np.where(mask[..., None], inputs, 0).astype("float32"), tags, mask


def accuracy_of_single_steps(inputs, tags):
    """Of the best there is that reads a step by itself, as a softmax of every step does."""
    shown = inputs.argmax(axis=-1)
    return sum(np.bincount(tags[shown == each]).max() for each in np.unique(shown)) / tags.size


@pytest.mark.parametrize(
    "jit_compile",
    [
        pytest.param(False, id="graph", marks=pytest.mark.tensorflow_only),
        pytest.param(True, id="program", marks=pytest.mark.slow),
    ],
)
def test_a_crf_learns_transitions_that_single_steps_do_not_show(rng, tmp_path, jit_compile):
    (inputs, tags, _), (test_inputs, test_tags, mask) = alternating(rng, 128), alternating(rng, 64)
    assert accuracy_of_single_steps(test_inputs[mask], test_tags[mask]) < 0.75
    sequence = keras.Input((None, 3))
    scores = keras.layers.Dense(2)(keras.layers.Masking()(sequence))
    model = keras.Model(sequence, CRF()(scores))
    model.compile("adam", CRFLoss(), jit_compile=jit_compile)
    model.optimizer.learning_rate = 0.1
    model.fit(inputs, tags, epochs=15, batch_size=32, verbose=0)
    potentials = model.predict(test_inputs, verbose=0)
    assert (np.array(viterbi(potentials)) == test_tags)[mask].mean() > 0.98
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(test_inputs, verbose=0), potentials)
    assert isinstance(again.loss, CRFLoss)


def test_configurations_come_back():
    layer = CRF("glorot_normal", keras.regularizers.L2(0.1), name="mine", dtype="mixed_float16")
    assert CRF.from_config(layer.get_config()).get_config() == layer.get_config()
    loss = CRFLoss(reduction="sum", name="mine")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert isinstance(copy, CRFLoss)
    assert copy.get_config() == loss.get_config()


def test_transitions_are_regularized():
    layer = CRF("ones", keras.regularizers.L2(0.5))
    layer.build((None, None, K))
    assert float(sum(layer.losses)) == pytest.approx(0.5 * K * K)


def test_the_layer_decodes_inside_a_model(rng):
    scores = keras.Input((None, K))
    model = keras.Model(scores, Viterbi()(CRF()(scores)))
    again = keras.Model.from_config(model.get_config())
    values = rng.normal(size=(B, T, K)).astype("float32")
    expected = keras.ops.convert_to_numpy(viterbi(CRF()(values)))
    assert keras.ops.convert_to_numpy(again(values)).tolist() == expected.tolist()


def test_a_single_tag_is_refused():
    with pytest.raises(ValueError, match="at least two tags"):
        CRF().build((None, None, 1))


def test_examples_in_docstrings_run():
    results = doctest.testmod(crf)
    assert results.failed == 0
    assert results.attempted >= 4
