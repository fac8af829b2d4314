import doctest

import keras
import numpy as np
import pytest

from layers import PerceptronLoss, losses


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


def test_examples_in_docstrings_run() -> None:
    assert doctest.testmod(losses).failed == 0
