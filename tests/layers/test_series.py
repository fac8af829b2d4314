"""Layers for time series, against their equations; the loss of forecasts."""

import doctest

import keras
import numpy as np
import pytest
from keras import ops

from layers import ForecastLoss, Patches, QuantileShift, ReversibleInstanceNorm, losses, series


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


@pytest.fixture
def norm(rng):
    layer = ReversibleInstanceNorm(epsilon=1e-3)
    layer.build((None, 9, 3))
    layer.set_weights([rng.uniform(0.5, 2, 3), rng.normal(size=3)])
    return layer


def test_windows_are_normalized_by_themselves_and_forecasts_taken_back(norm, rng):
    window = (5 + 3 * rng.normal(size=(4, 9, 3))).astype("float32")
    normalized, statistics = norm(window)
    gamma, beta = map(numpy, (norm.gamma, norm.beta))
    mean, spread = window.mean(axis=1, keepdims=True), np.sqrt(window.var(axis=1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(numpy(normalized), (window - mean) / spread * gamma + beta, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(numpy(norm(normalized, statistics)), window, rtol=1e-4, atol=1e-4)
    forecast = rng.normal(size=(4, 2, 3)).astype("float32")
    expected = (forecast - beta) / gamma * spread + mean
    np.testing.assert_allclose(numpy(norm(forecast, statistics)), expected, rtol=1e-4, atol=1e-4)
    several = np.stack([forecast, forecast + 1], axis=-1)
    np.testing.assert_allclose(numpy(norm(several, statistics))[..., 0], expected, rtol=1e-4, atol=1e-4)


def test_level_and_spread_of_a_window_do_not_matter_in_between(rng):
    norm, window = ReversibleInstanceNorm(affine=False), rng.normal(size=(2, 50, 1)).astype("float32")
    np.testing.assert_allclose(numpy(norm(window)[0]), numpy(norm(100 + 20 * window)[0]), atol=1e-3)
    assert np.isfinite(numpy(norm(ops.ones((1, 5, 1)))[0])).all()


def test_layers_are_saved_in_a_model(norm, tmp_path, rng):
    window = keras.Input((9, 3))
    normalized, statistics = norm(window)
    patches = keras.layers.Flatten()(Patches(4, 2)(normalized))
    forecast = norm(keras.layers.Reshape((2, 3, 2))(keras.layers.Dense(12)(patches)), statistics)
    shift = QuantileShift(name="shift")
    model = keras.Model(window, shift(forecast, statistics[1]))
    shift.shift.assign(rng.normal(size=(2, 3, 2)))
    model.save(tmp_path / "model.keras")
    again, windows = keras.saving.load_model(tmp_path / "model.keras"), rng.normal(size=(3, 9, 3)).astype("float32")
    np.testing.assert_allclose(numpy(again(windows)), numpy(model(windows)), rtol=1e-6)
    assert {weight.name for weight in model.trainable_weights} == {"gamma", "beta", "kernel", "bias"}


def test_patches_leave_no_step_out(rng):
    for length, stride, steps in ((4, 2, 10), (4, 3, 11), (5, 5, 7), (1, 1, 3), (8, 4, 5)):
        sequence = rng.normal(size=(2, steps, 3)).astype("float32")
        patches = numpy(Patches(length, stride)(sequence)).reshape(2, -1, length, 3)
        for number in range(patches.shape[1]):
            places = np.minimum(np.arange(number * stride, number * stride + length), steps - 1)
            np.testing.assert_array_equal(patches[:, number], sequence[:, places])
        assert (patches.shape[1] - 2) * stride + length < steps <= (patches.shape[1] - 1) * stride + length


def test_quantiles_are_shifted_by_the_spread_and_sorted(rng):
    layer, forecast = QuantileShift(), rng.normal(size=(4, 2, 3, 3)).astype("float32")
    layer.build(forecast.shape)
    shift, spread = rng.normal(size=(2, 3, 3)), rng.uniform(1, 2, size=(4, 1, 3)).astype("float32")
    layer.shift.assign(shift)
    expected = np.sort(np.sort(forecast, axis=-1) + shift * spread[..., None], axis=-1)
    np.testing.assert_allclose(numpy(layer(forecast, spread)), expected, rtol=1e-5, atol=1e-6)
    expected = np.sort(np.sort(forecast, axis=-1) + shift, axis=-1)
    np.testing.assert_allclose(numpy(layer(forecast)), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(numpy(layer(forecast, spread, training=True)), forecast)
    assert not layer.trainable_weights


@pytest.mark.parametrize("kind", ["mse", "mae", "huber"])
def test_the_loss_is_that_of_keras_over_what_is_known(kind, rng):
    truth, forecast = (2 * rng.normal(size=(3, 4, 2)).astype("float32") for _ in range(2))
    loss = ForecastLoss(kind)
    assert float(loss(truth, forecast)) == pytest.approx(float(ops.mean(keras.losses.get(kind)(truth, forecast))))
    holes = truth.copy()
    holes[0, 1:] = np.nan
    assert float(loss(holes[:1], forecast[:1])) == pytest.approx(float(loss(truth[:1, :1], forecast[:1, :1])))
    assert float(loss(np.full((1, 4, 2), np.nan), forecast[:1])) == 0


def test_the_pinball_loss_is_least_at_the_quantile(rng):
    truth = rng.exponential(size=(2000, 1)).astype("float32")
    loss = ForecastLoss(quantiles=(0.2, 0.9))

    def cost(low, high):
        return float(loss(truth, np.full((2000, 1, 2), (low, high), "float32")))

    low, high = np.quantile(truth, (0.2, 0.9))
    assert cost(low, high) < min(
        cost(low - 0.1, high), cost(low + 0.1, high), cost(low, high - 0.2), cost(low, high + 0.2)
    )
    error = truth - 1
    expected = np.mean([np.maximum(level * error, (level - 1) * error) for level in (0.2, 0.9)])
    assert cost(1, 1) == pytest.approx(expected, rel=1e-5)
    again = ForecastLoss.from_config(loss.get_config())
    assert float(again(truth, np.ones((2000, 1, 2), "float32"))) == pytest.approx(expected, rel=1e-5)


def test_impossible_arguments_are_refused():
    for make in (
        lambda: ReversibleInstanceNorm(epsilon=0),
        lambda: ReversibleInstanceNorm().build((None, 3, None)),
        lambda: Patches(3, 4),
        lambda: Patches(0, 0),
        lambda: Patches(2, 1)(keras.Input((None, 1))),
        lambda: ForecastLoss("rmse"),
        lambda: ForecastLoss(quantiles=(1.0,)),
    ):
        with pytest.raises(ValueError, match="must"):
            make()


def test_examples_in_docstrings():
    for module in (series, losses):
        assert doctest.testmod(module, extraglobs={"keras": keras}).failed == 0
