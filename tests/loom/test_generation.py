"""Distances between sets of images: against closed forms, and whether they fail what is blurred or always the same."""

from __future__ import annotations

import numpy as np
import pytest

from loom.generation import FEATURES, FeatureSpace, frechet_distance, halvings, precision_and_recall

RNG = np.random.default_rng(0)


def exactly(mean: np.ndarray, covariance: np.ndarray, count: int = 500) -> np.ndarray:
    """Vectors with exactly this mean and covariance."""
    drawn = RNG.normal(size=(count, len(mean)))
    drawn -= drawn.mean(axis=0)
    white = drawn @ np.linalg.inv(np.linalg.cholesky(np.cov(drawn, rowvar=False))).T
    return mean + white @ np.linalg.cholesky(covariance).T


def test_the_distance_of_independent_features_is_that_of_means_and_deviations() -> None:
    means = RNG.normal(size=(2, 4))
    deviations = RNG.uniform(0.5, 2, size=(2, 4))
    sets = [exactly(mean, np.diag(deviation**2)) for mean, deviation in zip(means, deviations, strict=True)]
    expected = np.square(means[0] - means[1]).sum() + np.square(deviations[0] - deviations[1]).sum()
    assert frechet_distance(*sets) == pytest.approx(expected, rel=1e-9)


def test_the_distance_of_features_that_depend_on_each_other_is_the_closed_form_of_two() -> None:
    """tr (Σ₁ Σ₂)^½ of 2 x 2 matrices is the root of tr Σ₁ Σ₂ + 2 (det Σ₁ Σ₂)^½."""
    first, second = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([[1.0, -0.5], [-0.5, 3.0]])
    product = first @ second
    trace = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    found = frechet_distance(exactly(np.zeros(2), first), exactly(np.array([3.0, 4.0]), second))
    assert found == pytest.approx(25 + np.trace(first) + np.trace(second) - 2 * trace, rel=1e-9)


def test_a_set_is_at_no_distance_from_itself_even_where_it_is_flat() -> None:
    vectors = RNG.normal(size=(50, 3)) @ np.array([[1.0, 2, 3], [0, 0, 0], [0, 0, 1]])
    assert frechet_distance(vectors, vectors) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(vectors, np.zeros((50, 3))) == pytest.approx(
        np.square(vectors.mean(axis=0)).sum() + vectors.var(axis=0, ddof=1).sum()
    )


def test_precision_and_recall_of_sets_that_overlap_by_half() -> None:
    """Two clouds far apart: the real ones are in both, the generated ones in one of them and in a third."""
    real = np.concatenate([RNG.normal(size=(300, 2)), RNG.normal(size=(300, 2)) + 100])
    generated = np.concatenate([RNG.normal(size=(300, 2)), RNG.normal(size=(300, 2)) - 100])
    precision, recall = precision_and_recall(real, generated)
    assert precision == pytest.approx(0.5, abs=0.05)
    assert recall == pytest.approx(0.5, abs=0.05)
    assert precision_and_recall(real, np.repeat(real[:1], 600, axis=0)) == (1.0, 1 / 600)


def test_a_side_is_halved_until_it_is_small() -> None:
    assert list(halvings(28, 16)) == [16, 32]
    assert list(halvings(65, 4)) == [4, 8, 16, 32]
    assert list(halvings(7, 4)) == []


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, FeatureSpace]:
    """Images to learn features from, held-out ones, and the features."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    images = np.round(data.images[order, :, :, None] * (255 / 16)).astype(np.uint8)
    return images[:1400], images[1400:], FeatureSpace(images[:1400], data.target[order][:1400])


@pytest.mark.slow
def test_features_are_the_same_in_whichever_state_the_process_is(digits) -> None:
    import keras

    train, test, space = digits
    found = []
    for seed in (5, 6):
        keras.utils.set_random_seed(seed)
        keras.layers.Dense(3).build((None, 2))
        found.append(FeatureSpace(train[:200], space._classes[:200]).features(test[:50]))
    np.testing.assert_array_equal(*found)
    assert space.features(train).shape == (1400, FEATURES)
    assert space.features(train).var(axis=0).sum() == pytest.approx(1, abs=1e-6)


def test_a_generator_that_blurs_or_repeats_itself_scores_worse_than_one_that_does_not(digits) -> None:
    from scipy.ndimage import gaussian_filter

    train, test, space = digits
    count = len(test)
    made = train[:count] / np.float32(255)  # what a perfect generator would make
    real = space.score(test, made)
    blurred = space.score(test, gaussian_filter(made, (0, 0.7, 0.7, 0)))
    repeated = space.score(test, np.repeat(made[:1], count, axis=0))
    ten_images = space.score(test, np.tile(made[:10], (count // 10 + 1, 1, 1, 1))[:count])
    average = space.score(test, np.repeat(made.mean(axis=0, keepdims=True), count, axis=0))
    assert real["frechet"] < 0.05
    assert min(real["precision"], real["recall"]) > 0.7
    for bad in (blurred, repeated, ten_images, average):
        assert bad["frechet"] > 5 * real["frechet"]
        assert bad["recall"] < 0.2


def test_one_class_leaves_random_features_that_tell_noise_from_images(digits) -> None:
    train, test, _ = digits
    space = FeatureSpace(train, np.zeros(len(train), int))
    noise = np.random.default_rng(0).random(test.shape, np.float32)
    assert space.score(test, noise)["frechet"] > 10 * space.score(test, train[: len(test)])["frechet"]
