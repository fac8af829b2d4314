"""Layers of random latent vectors, against NumPy and against their own distributions."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from layers import GaussianDivergence, GaussianSample, SeededNormal

needs_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="stateless random numbers")
RNG = np.random.default_rng(0)
MEAN = RNG.normal(size=(5, 3)).astype("float32")
LOG_VARIANCE = RNG.normal(size=(5, 3)).astype("float32")


def closed_form(mean: np.ndarray, log_variance: np.ndarray) -> np.ndarray:
    variance = np.exp(log_variance.astype(float))
    return -0.5 * (1 + np.log(variance) - mean.astype(float) ** 2 - variance).sum(axis=1, keepdims=True)


def test_the_divergence_is_the_closed_form() -> None:
    found = np.array(GaussianDivergence()(MEAN, LOG_VARIANCE))
    assert found.shape == (5, 1)
    np.testing.assert_allclose(found, closed_form(MEAN, LOG_VARIANCE), rtol=1e-5)


def test_the_divergence_is_the_expected_log_ratio_of_the_densities() -> None:
    deviation = np.exp(0.5 * LOG_VARIANCE[:, None].astype(float))
    noise = RNG.normal(size=(5, 200_000, 3))
    latent = MEAN[:, None] + deviation * noise
    ratio = -0.5 * noise**2 - np.log(deviation) + 0.5 * latent**2  # log q(z) - log p(z), without the constant of both
    np.testing.assert_allclose(
        np.array(GaussianDivergence()(MEAN, LOG_VARIANCE))[:, 0], ratio.sum(axis=2).mean(axis=1), rtol=0.02
    )


def test_the_standard_distribution_costs_nothing_and_small_differences_are_not_lost() -> None:
    divergence = GaussianDivergence()
    assert float(divergence(np.zeros((1, 4)), np.zeros((1, 4)))[0, 0]) == 0.0
    tiny = np.full((1, 1), 1e-3, "float32")
    assert float(divergence(0 * tiny, tiny)[0, 0]) == pytest.approx(2.5e-7, rel=0.01)


def test_the_divergence_of_half_precision_is_computed_in_single() -> None:
    found = GaussianDivergence(dtype="mixed_float16")(MEAN, LOG_VARIANCE)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    symbolic = GaussianDivergence(dtype="mixed_float16")(keras.Input((3,)), keras.Input((3,)))
    assert (symbolic.shape, symbolic.dtype) == ((None, 1), "float32")


def test_samples_have_the_mean_and_the_variance_that_they_are_given() -> None:
    sample = GaussianSample(seed=1)
    drawn = np.array(sample(np.repeat(MEAN[:1], 50_000, 0), np.repeat(LOG_VARIANCE[:1], 50_000, 0), training=True))
    np.testing.assert_allclose(drawn.mean(axis=0), MEAN[0], atol=0.03)
    np.testing.assert_allclose(drawn.var(axis=0), np.exp(LOG_VARIANCE[0]), rtol=0.03)


def test_samples_are_drawn_in_training_only_and_never_twice() -> None:
    sample = GaussianSample(seed=1)
    np.testing.assert_array_equal(np.array(sample(MEAN, LOG_VARIANCE)), MEAN)
    first, second = (np.array(sample(MEAN, LOG_VARIANCE, training=True)) for _ in range(2))
    assert not np.array_equal(first, second)
    again = GaussianSample.from_config(sample.get_config())
    np.testing.assert_array_equal(np.array(again(MEAN, LOG_VARIANCE, training=True)), first)


@needs_tensorflow
def test_gradients_reach_mean_and_variance_through_a_sample() -> None:
    import tensorflow as tf

    mean, log_variance = tf.Variable(MEAN), tf.Variable(LOG_VARIANCE)
    with tf.GradientTape() as tape:
        drawn = GaussianSample(seed=2)(mean, log_variance, training=True)
        total = tf.reduce_sum(drawn)
    of_mean, of_log_variance = tape.gradient(total, [mean, log_variance])
    np.testing.assert_allclose(of_mean, 1.0)
    np.testing.assert_allclose(of_log_variance, 0.5 * (drawn.numpy() - MEAN), rtol=1e-4, atol=1e-6)


@needs_tensorflow
def test_a_number_has_its_own_noise_whatever_else_is_in_the_batch() -> None:
    layer = SeededNormal(64)
    whole = layer(np.array([[3.0], [4.0], [0.5], [-0.0], [3.0]])).numpy()
    np.testing.assert_array_equal(whole[0], whole[4])
    np.testing.assert_array_equal(whole[1], layer(np.array([[4.0]])).numpy()[0])
    np.testing.assert_array_equal(whole[3], layer(np.array([[0.0]])).numpy()[0])
    assert len(np.unique(whole[:4], axis=0)) == 4


@needs_tensorflow
def test_noise_is_standard_normal_within_and_across_neighbouring_numbers() -> None:
    import tensorflow as tf

    noise = tf.function(SeededNormal(200))(np.arange(300.0)[:, None]).numpy()
    assert abs(noise.mean()) < 0.01
    assert noise.var() == pytest.approx(1, abs=0.02)
    correlations = np.corrcoef(noise) - np.eye(300)
    assert np.abs(correlations).max() < 0.4  # of 45,000 pairs of independent rows


@needs_tensorflow
def test_units_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="units must be at least 1"):
        SeededNormal(0)
