"""The worked examples of the lecture notes, through Keras and the project's own layers.

Those that stand elsewhere: the perceptron trick (`tests/layers/test_losses.py`), 31 parameters of an Elman network and
an LSTM that keeps its cell (`tests/layers/test_recurrent_options.py`), 400 rows in batches of 150
(`tests/loom/data/test_pipeline.py`), the encoding of positions 0 and 1 (`tests/layers/test_positions.py`), the network
on 1,000 images of MNIST (`tests/apps/test_mnist_1000.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import keras
import numpy as np
import pytest
import tensorflow as tf

from layers import LSTM, Elman, sinusoids

TOES, WINS, FANS = 8.5, 0.65, 1.2
"""The first game of the notes' team: toes, share of games won, million fans."""
STREETLIGHTS = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 1], [1, 1, 1]], np.float32)
WALK = np.array([[1], [1], [0], [0]], np.float32)
LETTERS = "ahpy"


def network(*kernels: np.ndarray, activations: Sequence[str | None] = (), bias: bool = False) -> keras.Sequential:
    """Dense layers with these kernels, and with biases of zero or none."""
    model = keras.Sequential([keras.Input((len(kernels[0]),))])
    for kernel, activation in zip(kernels, activations or [None] * len(kernels), strict=True):
        model.add(keras.layers.Dense(np.shape(kernel)[1], activation, use_bias=bias))
        model.layers[-1].kernel.assign(kernel)
    return model


def gradients(model: keras.Model, loss: keras.losses.Loss, inputs: np.ndarray, target: float) -> list[np.ndarray]:
    """Derivatives of the loss of one example by each of the weights."""
    with tf.GradientTape() as tape:
        value = loss(np.array([[target]]), model(inputs))
    return [gradient.numpy() for gradient in tape.gradient(value, model.trainable_variables)]


def test_one_step_of_a_weighted_sum() -> None:
    """The notes' step is rate · (prediction - target) · input; the slope of Keras' squared error is twice that."""
    model = network(np.array([[0.1], [0.2], [-0.1]]))
    model.compile(keras.optimizers.SGD(0.01 / 2), "mse")
    game = np.array([[TOES, WINS, FANS]])
    prediction = float(model.predict_on_batch(game)[0, 0])
    assert [prediction, prediction - 1] == pytest.approx([0.86, -0.14])
    model.train_on_batch(game, np.array([[1.0]]))
    np.testing.assert_allclose(model.get_weights()[0][:, 0], [0.1119, 0.20091, -0.09832], rtol=1e-6)


def test_one_step_of_three_weighted_sums() -> None:
    """Hurt, win and sad from one game: each output has a delta of its own. Keras' error is the mean over the three."""
    kernel = np.array([[0.1, 0.1, 0.0], [0.1, 0.2, 1.3], [-0.3, 0.0, 0.1]])
    model = network(kernel)
    model.compile(keras.optimizers.SGD(0.01 * 3 / 2), "mse")
    game, truth = np.array([[TOES, WINS, FANS]]), np.array([[0.1, 1.0, 0.1]])
    np.testing.assert_allclose(model.predict_on_batch(game), [[0.555, 0.98, 0.965]], rtol=1e-6)
    model.train_on_batch(game, truth)
    moved = model.get_weights()[0] - kernel
    np.testing.assert_allclose(moved, -0.01 * game.T * [[0.455, -0.02, 0.865]], rtol=1e-4)


def test_a_4_3_2_1_network_has_26_parameters() -> None:
    widths = (4, 3, 2, 1)
    model = network(*map(np.ones, pairwise(widths)), bias=True)
    assert model.count_params() == 4 * 3 + 3 + 3 * 2 + 2 + 2 * 1 + 1 == 26


def test_the_forget_gate_of_an_lstm_with_4_inputs_and_3_units_has_a_matrix_of_3_by_7() -> None:
    """W_f stands beside [h, x]; in the layer it is cut into the two kernels, where the forget gate comes second."""
    layer, generator = LSTM(3, return_state=True, forget_bias=None, dtype="float64"), np.random.default_rng(0)
    layer.build((None, None, 4))
    kernel, recurrent_kernel, bias = (generator.normal(size=weight.shape) for weight in layer.weights)
    kernel[:, :3], recurrent_kernel[:, :3], bias[:3] = 0, 0, -100  # the input gate is closed
    layer.set_weights([kernel, recurrent_kernel, bias])
    forget = slice(3, 6)
    matrix = np.concatenate([recurrent_kernel[:, forget], kernel[:, forget]]).T
    assert matrix.shape == (3, 7)
    hidden, cell, step = (generator.normal(size=size) for size in (3, 3, 4))
    gate = 1 / (1 + np.exp(-(matrix @ np.concatenate([hidden, step]) + bias[forget])))
    _, _, new_cell = layer(step[None, None], initial_state=[hidden[None], cell[None]])
    np.testing.assert_allclose(new_cell[0], gate * cell, rtol=1e-9)


def test_the_streetlights_are_learned_in_60_rounds() -> None:
    """3-4-1 with ReLU, one example at a time; the rate of 0.2 is for the slope of half the squared error."""
    generator = np.random.RandomState(1)
    kernels = [2 * generator.random_sample(shape) - 1 for shape in ((3, 4), (4, 1))]
    model = network(*kernels, activations=["relu", None])
    model.compile(keras.optimizers.SGD(0.2 / 2), "mse")
    errors = []
    for _ in range(60):
        for row in range(len(WALK)):
            model.train_on_batch(STREETLIGHTS[[row]], WALK[[row]])
        errors.append(np.sum((model.predict_on_batch(STREETLIGHTS) - WALK) ** 2))
    assert errors[9] > 0.1
    assert errors[59] < 1e-4


def test_no_weighted_sum_knows_the_streetlights() -> None:
    """No line separates them, so the layer in between is needed."""
    points = np.hstack([STREETLIGHTS, np.ones((4, 1))])
    best = points @ np.linalg.lstsq(points, WALK, rcond=None)[0]
    np.testing.assert_allclose(best, 0.5, atol=1e-6)


def test_convolution_finds_the_edge_between_black_and_white() -> None:
    image = np.repeat([0.0, 255.0], 3)[:, None] * np.ones((1, 6))
    layer = keras.layers.Conv2D(1, 3, use_bias=False)
    layer.build((None, 6, 6, 1))
    layer.kernel.assign(np.repeat([[-1.0], [0.0], [1.0]], 3, axis=1)[:, :, None, None])
    edges = layer(image[None, :, :, None]).numpy()[0, :, :, 0]
    np.testing.assert_array_equal(edges, np.array([0, 765, 765, 0])[:, None] * np.ones((1, 4)))
    assert np.clip(edges, 0, 255).max() == 255  # what the notes show


@pytest.mark.parametrize("size", [4, 6, 7, 28])
def test_sizes_of_feature_maps_follow_the_formula(size: int) -> None:
    for kernel, padding, stride in ((3, 0, 1), (3, 1, 1), (3, 0, 2), (2, 1, 3), (4, 2, 3)):
        image = keras.Input((size, size, 1))
        padded = keras.layers.ZeroPadding2D(padding)(image)
        maps = keras.layers.Conv2D(1, kernel, stride)(padded)
        assert maps.shape[1] == (size + 2 * padding - kernel) // stride + 1
        same = keras.layers.Conv2D(1, kernel, stride, padding="same")(image)
        assert same.shape[1] == math.ceil(size / stride)


def test_max_pooling_keeps_the_largest_of_each_2_by_2() -> None:
    """The stride is 2, not 0 as in the notes."""
    maps = np.array([[3, 1, 1, 3], [2, 5, 0, 2], [7, 1, 4, 0], [2, 3, 1, 2]], np.float32)[None, :, :, None]
    pooled = keras.layers.MaxPooling2D(2)(maps).numpy()[0, :, :, 0]
    np.testing.assert_array_equal(pooled, [[5, 3], [7, 4]])
    means = keras.layers.AveragePooling2D(2)(maps).numpy()[0, :, :, 0]
    np.testing.assert_array_equal(means, [[2.75, 1.5], [3.25, 1.75]])


def test_the_notes_table_of_positions_is_not_their_formula() -> None:
    """Their second position is (0.84, 0.54, 0.0001, 1, 0.0001, 1)."""
    second = np.array(sinusoids(np.arange(2), 6)[1])
    np.testing.assert_allclose(second, [0.8415, 0.5403, 0.0464, 0.9989, 0.0022, 1.0], atol=5e-5)
    assert abs(second[2] - 0.0001) > 0.04


def test_backpropagation_through_time_adds_up_the_steps() -> None:
    """ŷ = sigmoid(o_3 w_o) over three steps: the derivative by a shared weight is a sum over where it was used."""
    recurrent, output = (
        Elman(2, use_bias=False, return_sequences=True, dtype="float64"),
        keras.layers.Dense(1, "sigmoid", use_bias=False, dtype="float64"),
    )
    words = np.eye(3)[None]  # cat, mat, rat
    sequence = keras.Input((3, 3), dtype="float64")
    states = recurrent(sequence)
    model = keras.Model(sequence, output(states[:, -1]))
    of_states = keras.Model(sequence, states)
    target = 1.0
    of_input, of_state, of_output = gradients(model, keras.losses.BinaryCrossentropy(), words, target)
    (o_1, o_2, o_3), w_h, w_o = np.array(of_states(words))[0], np.array(recurrent.cell.recurrent_kernel), output.kernel
    delta = float(model(words)[0, 0]) - target
    np.testing.assert_allclose(of_output[:, 0], delta * o_3, rtol=1e-6)

    back_3 = delta * np.array(w_o)[:, 0] * (1 - o_3**2)  # by the sum inside tanh of each step
    back_2 = (w_h @ back_3) * (1 - o_2**2)
    back_1 = (w_h @ back_2) * (1 - o_1**2)
    np.testing.assert_allclose(of_state, np.outer(o_2, back_3) + np.outer(o_1, back_2), rtol=1e-6)
    by_step = [np.outer(word, back) for word, back in zip(words[0], (back_1, back_2, back_3), strict=True)]
    np.testing.assert_allclose(of_input, sum(by_step), rtol=1e-6)


def test_the_nine_derivatives_of_a_linear_network() -> None:
    """2-2-1, all weights 1, all biases 0, the squared error of one example."""
    model = network(np.ones((2, 2)), np.ones((2, 1)), bias=True)
    first, second, target = 2.0, 3.0, 4.0
    hidden = first + second
    slope = -2 * (target - 2 * hidden)
    found = gradients(model, keras.losses.MeanSquaredError(), np.array([[first, second]]), target)
    expected = [[[slope * first] * 2, [slope * second] * 2], [slope] * 2, [[slope * hidden]] * 2, [slope]]
    assert sum(map(np.size, found)) == 9
    for derivative, value in zip(found, expected, strict=True):
        np.testing.assert_allclose(derivative, value, rtol=1e-6)


@pytest.mark.parametrize("gradient", [0.003, 0.3, 300.0])
def test_adams_first_step_is_the_learning_rate_whatever_the_gradient(gradient: float) -> None:
    """At t = 1 the corrected means are g and g²: the step is rate · g / |g|."""
    weight, adam = keras.Variable(1.0), keras.optimizers.Adam(0.1)
    adam.apply([keras.ops.convert_to_tensor(gradient)], [weight])
    assert float(weight) == pytest.approx(0.9, abs=2e-4)  # 1 - 0.999 in float32


def test_adam_counts_updates_and_its_betas_are_no_weights() -> None:
    """Three updates of one epoch correct by β³. The first moment is the notes' weighted mean of the gradients."""
    weight, adam = keras.Variable(1.0), keras.optimizers.Adam(0.1)
    observed = [1.0, -2.0, 4.0]
    for gradient in observed:
        adam.apply([keras.ops.convert_to_tensor(gradient)], [weight])
    rate, beta, beta_2, epsilon, expected = 0.1, 0.9, 0.999, 1e-7, 1.0
    for t in (1, 2, 3):
        shares = np.array([beta ** (t - 1 - i) for i in range(t)])
        shares_2 = np.array([beta_2 ** (t - 1 - i) for i in range(t)])
        mean = (1 - beta) * shares @ observed[:t] / (1 - beta**t)
        mean_square = (1 - beta_2) * shares_2 @ np.square(observed[:t]) / (1 - beta_2**t)
        expected -= rate * mean / (np.sqrt(mean_square) + epsilon)
    assert float(weight) == pytest.approx(expected, rel=1e-5)
    assert int(adam.iterations) == 3
    moments = {variable.path.rpartition("/")[2]: float(variable) for variable in adam.variables}
    assert [value for name, value in moments.items() if name.endswith("momentum")] == pytest.approx([0.301])
    assert not any("beta" in name for name in moments)


def test_the_sigmoid_of_8_is_below_1() -> None:
    """Weights (2, 3) and input (1, 2) make 8. The notes have 1.0003, which no sigmoid can be."""
    model = network(np.array([[2.0], [3.0]]), activations=["sigmoid"])
    assert float(model(np.array([[1.0, 2.0]]))[0, 0]) == pytest.approx(0.9997, abs=5e-5)


def test_a_dropout_of_a_fifth_scales_by_four_fifths() -> None:
    """Prediction times 1 - 0.2 = 0.8, not 0.75 as in the notes, or, as Keras does it, training over 0.8."""
    layer, values = keras.layers.Dropout(0.2, seed=0), np.ones((100, 1000), np.float32)
    trained = layer(values, training=True).numpy()
    assert set(np.unique(trained)) == {0, np.float32(1 / 0.8)}
    assert (trained == 0).mean() == pytest.approx(0.2, abs=0.01)
    assert trained.mean() == pytest.approx(1, abs=0.01)
    np.testing.assert_array_equal(layer(values, training=False), values)


def test_an_elman_network_that_knows_happy_fires_at_its_last_letter_only() -> None:
    """Unit k is on where letter k comes and unit k - 1 was on; letters are one-hot, a, h, p, y and one for others."""
    word, stream = "happy", "ahapyhahappyhappyphappyy happ y"
    layer = Elman(len(word), activation="relu", return_sequences=True)
    layer.build((None, None, len(LETTERS) + 1))
    kernel = np.zeros((len(LETTERS) + 1, len(word)))
    kernel[[LETTERS.index(letter) for letter in word], range(len(word))] = 1
    bias = np.array([0.0, -1, -1, -1, -1])
    layer.set_weights([kernel, np.eye(len(word), k=1), bias])
    judge = network(np.array([[0.0]] * 4 + [[12.0]]), activations=["sigmoid"], bias=True)
    judge.layers[0].bias.assign([-6.0])
    hot = np.eye(len(LETTERS) + 1)[[LETTERS.find(letter) for letter in stream]]  # -1: the place of others
    probabilities = judge(layer(hot[None])[0]).numpy()[:, 0]
    ends = [place for place in range(len(stream)) if stream[: place + 1].endswith(word)]
    assert len(ends) == 3
    assert np.flatnonzero(probabilities > 0.9).tolist() == ends


@pytest.mark.parametrize(
    ("loss", "truth", "output", "value"),
    [
        (keras.losses.MeanSquaredError(), [[1.0, 2.0]], [[3.0, 5.0]], (2**2 + 3**2) / 2),
        (keras.losses.MeanAbsoluteError(), [[1.0, 2.0]], [[3.0, 5.0]], (2 + 3) / 2),
        (keras.losses.Huber(1.0), [[0.0, 0.0]], [[0.5, 3.0]], (0.5**2 / 2 + (3 - 0.5)) / 2),
        (keras.losses.BinaryCrossentropy(), [[1.0]], [[0.67]], -math.log(0.67)),
        (keras.losses.CategoricalCrossentropy(), [[0.0, 1.0, 0.0]], [[0.2, 0.7, 0.1]], -math.log(0.7)),
        (keras.losses.SparseCategoricalCrossentropy(), [1], [[0.2, 0.7, 0.1]], -math.log(0.7)),
        (keras.losses.Hinge(), [[-1.0]], [[0.4]], 1.4),
        (keras.losses.BinaryFocalCrossentropy(gamma=2), [[1.0]], [[0.9]], -(0.1**2) * math.log(0.9)),
        (keras.losses.KLDivergence(), [[0.5, 0.5]], [[0.9, 0.1]], 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(5)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_losses_are_their_formulas(loss: keras.losses.Loss, truth: list, output: list, value: float) -> None:
    """Cross-entropy is the negative log-likelihood of the true class."""
    assert float(loss(np.array(truth), np.array(output))) == pytest.approx(value, rel=1e-4)


def test_activations_are_their_formulas() -> None:
    x = np.array([-2.0, -0.5, 0.0, 1.5])
    exponential = np.where(x > 0, x, np.exp(x) - 1)
    expected = {
        "relu": np.maximum(x, 0),
        "elu": exponential,
        "selu": 1.0507 * np.where(x > 0, x, 1.6733 * exponential),
        "tanh": np.tanh(x),
        "sigmoid": 1 / (1 + np.exp(-x)),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(keras.activations.get(name)(x), values, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(keras.layers.LeakyReLU(0.01)(x), np.where(x > 0, x, 0.01 * x), rtol=1e-6)
    probabilities = np.array(keras.activations.softmax(keras.ops.convert_to_tensor(x[None])))[0]
    np.testing.assert_allclose(probabilities, np.exp(x) / np.exp(x).sum(), rtol=1e-6)
