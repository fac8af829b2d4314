import doctest
from collections.abc import Iterator
from itertools import permutations
from typing import Any

import keras
import numpy as np
import pytest
from differences import numeric_gradients
from sequence_contract import outputs_and_gradients

from layers import PerceptronLoss, SmoothedCrossentropy, TripletLoss, losses

DISTANCES = {
    "euclidean": lambda a, b: np.sqrt(np.sum((a - b) ** 2)),
    "squared": lambda a, b: np.sum((a - b) ** 2),
    "cosine": lambda a, b: 1 - a @ b / np.sqrt((a @ a) * (b @ b)),
}
MININGS = ("semi-hard", "hard", "all")

all_minings = pytest.mark.parametrize("mining", MININGS)
all_distances = pytest.mark.parametrize("distance", DISTANCES)


def line_through(weights: list[float], rate: float) -> keras.Model:
    """f(x) = w · x as a model, with its loss and the perceptron's rate."""
    point = keras.Input((len(weights),))
    model = keras.Model(point, keras.layers.Dense(1, use_bias=False)(point))
    model.set_weights([np.array(weights, np.float32)[:, None]])
    model.compile(keras.optimizers.SGD(float(rate)), PerceptronLoss())
    return model


def test_one_step_on_a_misclassified_point_is_the_perceptron_trick() -> None:
    """The classic example: the line 2x + 3y + 5 and the point (4, 5) of the other class, with rate 1."""
    model = line_through([2, 3, 5], rate=1)
    model.train_on_batch(np.array([[4.0, 5.0, 1.0]]), np.array([[0.0]]))
    np.testing.assert_array_equal(model.get_weights()[0][:, 0], [-2, -2, 4])


def test_a_misclassified_positive_point_is_added() -> None:
    model = line_through([-2, -3, 5], rate=0.5)
    model.train_on_batch(np.array([[4.0, 5.0, 1.0]]), np.array([[1.0]]))
    np.testing.assert_array_equal(model.get_weights()[0][:, 0], [0, -0.5, 5.5])


def test_a_point_on_the_right_side_changes_nothing() -> None:
    model = line_through([2, 3, 5], rate=1)
    model.train_on_batch(np.array([[4.0, 5.0, 1.0]]), np.array([[1.0]]))
    np.testing.assert_array_equal(model.get_weights()[0][:, 0], [2, 3, 5])


def test_a_point_on_the_line_counts_as_misclassified() -> None:
    model = line_through([0, 0, 0], rate=1)
    model.train_on_batch(np.array([[4.0, 5.0, 1.0]]), np.array([[0.0]]))
    np.testing.assert_array_equal(model.get_weights()[0][:, 0], [-4, -5, -1])


def test_a_batch_pays_the_mean_of_max_0_and_minus_y_times_f() -> None:
    outputs, classes = np.array([[3.0], [-2.0], [0.5], [-1.5]]), np.array([[0], [1], [1], [0]])
    assert float(PerceptronLoss()(classes, outputs)) == pytest.approx((3 + 2 + 0 + 0) / 4)


def test_minus_one_and_zero_name_the_same_class() -> None:
    outputs = np.array([[3.0], [-2.0]])
    assert float(PerceptronLoss()([[-1], [1]], outputs)) == float(PerceptronLoss()([[0], [1]], outputs))


def test_gradient_descent_separates_what_a_line_separates() -> None:
    rng = np.random.default_rng(0)
    points = np.hstack([rng.uniform(-1, 1, (40, 2)), np.ones((40, 1))]).astype(np.float32)
    points = points[np.abs(points @ [1, -2, 0.3]) > 0.1]
    classes = (points @ [1, -2, 0.3] > 0).astype(int)[:, None]
    model = line_through([0, 0, 0], rate=1)
    for _ in range(30):
        for point, true in zip(points, classes, strict=True):
            model.train_on_batch(point[None], true[None])
    assert ((points @ model.get_weights()[0] > 0) == classes).all()


def test_the_loss_survives_saving() -> None:
    loss = PerceptronLoss(reduction="sum", name="mine")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert isinstance(copy, PerceptronLoss)
    assert copy.get_config() == loss.get_config()


# Triplets.


def mined(classes: np.ndarray, embeddings: np.ndarray, mining: str, distance: str) -> Iterator[tuple[int, float]]:
    """Each anchor of a mined triplet, with how much further the positive is than the negative; "all" mines all."""
    d = [[DISTANCES[distance](a, b) for b in embeddings] for a in embeddings]
    examples = range(len(classes))
    for anchor in examples:
        positives = [other for other in examples if other != anchor and classes[other] == classes[anchor]]
        negatives = [other for other in examples if classes[other] != classes[anchor]]
        if not (positives and negatives):
            continue
        if mining == "hard":
            yield anchor, max(d[anchor][p] for p in positives) - min(d[anchor][n] for n in negatives)
            continue
        for positive in positives:
            to_positive, to_negatives = d[anchor][positive], [d[anchor][n] for n in negatives]
            if mining == "all":
                yield from ((anchor, to_positive - each) for each in to_negatives)
            else:
                yield anchor, to_positive - min([n for n in to_negatives if n > to_positive] or [max(to_negatives)])


def triplet_loss(classes: np.ndarray, embeddings: np.ndarray, mining: str, distance: str, margin: float) -> float:
    """The mean over mined triplets; for "all", over those that cost something."""
    costs = [max(0.0, excess + margin) for _, excess in mined(classes, embeddings, mining, distance)]
    costs = [cost for cost in costs if cost > 0] if mining == "all" else costs
    return float(np.mean(costs)) if costs else 0.0


def loss_and_gradient(loss: TripletLoss, classes: Any, embeddings: np.ndarray) -> tuple[float, np.ndarray]:
    """The loss and its gradient by the embeddings, with the factor of `linear_loss` taken out."""
    (value,), (gradient,) = outputs_and_gradients(
        keras.layers.Identity(), lambda x: [loss(np.asarray(classes), x)], [embeddings]
    )
    return float(value), gradient / np.random.default_rng(11).normal()


@all_minings
@all_distances
@pytest.mark.parametrize("margin", [0.3, 3.0])
def test_the_triplet_loss_is_that_of_a_loop_over_triplets(
    rng: np.random.Generator, mining: str, distance: str, margin: float
) -> None:
    """One example is the only one of its class."""
    classes, embeddings = np.array([0, 1, 0, 2, 1, 0, 1, 3]), rng.normal(size=(8, 3))
    loss = TripletLoss(margin, mining, distance, dtype="float64")
    value, gradient = loss_and_gradient(loss, classes, embeddings)
    assert value == pytest.approx(triplet_loss(classes, embeddings, mining, distance, margin), abs=1e-12)
    (wanted,) = numeric_gradients(
        lambda each: triplet_loss(classes, each, mining, distance, margin), [embeddings], nudge=1e-6
    )
    np.testing.assert_allclose(gradient, wanted, atol=1e-7)


def test_semi_hard_takes_the_nearest_negative_beyond_the_positive() -> None:
    """From 0 to the positive at 2: the negative at 1 is nearer, those at 2.5 and 4 are further."""
    classes, embeddings = [0, 0, 1, 2, 3], np.array([[0.0], [2.0], [1.0], [2.5], [4.0]])
    of_anchors = TripletLoss(1.0, reduction=None).call(np.array(classes), embeddings)
    # The anchor at 2 has the negatives at distances 0.5, 1 and 2, none of them further: the furthest is taken.
    np.testing.assert_allclose(of_anchors, np.array([2 - 2.5 + 1, 2 - 2 + 1, 0, 0, 0]) * 5 / 2)


@all_minings
@all_distances
@pytest.mark.parametrize("classes", [[0, 0, 0], [0, 1, 2], [0]], ids=["one_class", "all_different", "one_example"])
def test_a_batch_without_a_triplet_costs_nothing(
    rng: np.random.Generator, mining: str, distance: str, classes: list[int]
) -> None:
    value, gradient = loss_and_gradient(
        TripletLoss(mining=mining, distance=distance), classes, rng.normal(size=(len(classes), 4)).astype("float32")
    )
    assert value == 0
    assert not gradient.any()


@all_minings
@all_distances
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("embedding", [[0.0, 0.0], [30.0, 0.1]], ids=["zero", "elsewhere"])
def test_equal_embeddings_cost_the_margin_and_have_no_gradient(
    mining: str, distance: str, dtype: str, embedding: list[float]
) -> None:
    classes, embeddings = [0, 0, 1, 1], np.array([embedding] * 4, dtype)
    value, gradient = loss_and_gradient(TripletLoss(0.5, mining, distance), classes, embeddings)
    assert value == pytest.approx(0.5, rel=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


@all_minings
def test_close_embeddings_far_from_zero_are_told_apart_in_float32(rng: np.random.Generator, mining: str) -> None:
    classes, embeddings = np.arange(8) % 3, (100 + 0.01 * rng.normal(size=(8, 4))).astype("float32")
    value, gradient = loss_and_gradient(TripletLoss(0.01, mining), classes, embeddings)
    precise, wanted = loss_and_gradient(TripletLoss(0.01, mining, dtype="float64"), classes, embeddings.astype(float))
    assert value == pytest.approx(precise, rel=1e-3)
    np.testing.assert_allclose(gradient, wanted, atol=1e-2)


@all_minings
@all_distances
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_embeddings_are_compared_in_float32(
    rng: np.random.Generator, mining: str, distance: str, dtype: str
) -> None:
    embeddings = keras.ops.cast(rng.normal(size=(8, 200)), dtype)
    classes, precise = np.arange(8) % 3, np.array(keras.ops.cast(embeddings, "float64"))
    wanted = triplet_loss(classes, precise, mining, distance, 0.5)
    assert float(TripletLoss(0.5, mining, distance)(classes, embeddings)) == pytest.approx(wanted, rel=1e-4)


def test_classes_may_stand_in_a_column_and_the_order_of_examples_makes_no_difference(rng: np.random.Generator) -> None:
    loss, classes, embeddings = TripletLoss(1.0), np.array([5, 7, 5, 7]), rng.normal(size=(4, 3))
    value = float(loss(classes, embeddings))
    assert float(loss(classes[:, None], embeddings)) == value
    for order in permutations(range(4)):
        assert float(loss(classes[list(order)], embeddings[list(order)])) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(
    "mining", [pytest.param(name, marks=() if name == "semi-hard" else pytest.mark.slow) for name in MININGS]
)
def test_fitting_pulls_classes_together_and_apart(rng: np.random.Generator, mining: str) -> None:
    classes = rng.integers(0, 3, 96)
    points = np.hstack([np.eye(3)[classes] + rng.normal(0, 0.3, (96, 3)), rng.normal(0, 2, (96, 3))])
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.Adam(0.05), TripletLoss(1.0, mining))
    before = nearest_is_of_the_same_class(model.predict(points, verbose=0), classes)
    model.fit(points, classes, batch_size=40, epochs=30, verbose=0)  # the last batch is smaller
    assert nearest_is_of_the_same_class(model.predict(points, verbose=0), classes) > max(0.8, before + 0.2)


def nearest_is_of_the_same_class(embeddings: np.ndarray, classes: np.ndarray) -> float:
    distances = np.linalg.norm(embeddings[:, None] - embeddings, axis=-1) + np.diag(np.full(len(classes), np.inf))
    return float((classes[distances.argmin(axis=1)] == classes).mean())


def test_the_triplet_loss_survives_saving() -> None:
    loss = TripletLoss(0.7, "hard", "cosine", reduction="sum", name="mine")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert isinstance(copy, TripletLoss)
    assert copy.get_config() == loss.get_config()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"margin": 0}, "margin must be above 0, got 0"),
        ({"mining": "easy"}, r"mining must be one of \('semi-hard', 'hard', 'all'\), got 'easy'"),
        ({"distance": "l1"}, r"distance must be one of \('euclidean', 'squared', 'cosine'\), got 'l1'"),
    ],
)
def test_impossible_arguments_of_the_triplet_loss_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TripletLoss(**arguments)


def test_examples_in_docstrings_run() -> None:
    assert doctest.testmod(losses).failed == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_crossentropy_is_that_of_one_hot_labels(smoothing: float) -> None:
    rng = np.random.default_rng(0)
    classes, logits = rng.integers(0, 7, (3, 5)), 3 * rng.normal(size=(3, 5, 7)).astype("float32")
    theirs = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing, reduction=None)
    ours = SmoothedCrossentropy(smoothing, reduction=None)
    expected = theirs(np.eye(7, dtype="float32")[classes], logits)
    np.testing.assert_allclose(ours(classes, logits), expected, rtol=1e-5)
    copy = SmoothedCrossentropy.from_config(ours.get_config())
    np.testing.assert_array_equal(copy(classes, logits), ours(classes, logits))


def test_smoothed_crossentropy_passes_over_what_is_masked() -> None:
    logits = keras.ops.convert_to_tensor(np.array([[[1.0, 0.0], [9.0, -9.0]]], "float32"))
    logits._keras_mask = keras.ops.convert_to_tensor([[True, False]])
    expected = SmoothedCrossentropy(0.1)(np.array([[1]]), logits[:, :1])
    assert float(SmoothedCrossentropy(0.1)(np.array([[1, 0]]), logits)) == pytest.approx(float(expected), rel=1e-5)


def test_smoothing_of_all_probability_is_refused() -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        SmoothedCrossentropy(1.0)
