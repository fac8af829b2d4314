"""How good are generated images? Distances between sets of images in the features of a small classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from loom.app import Metrics
from loom.lazy import keras
from loom.runtime import full_precision

QUALITY = ("frechet", "precision", "recall")
"""What a `FeatureSpace` measures."""
FEATURES = 32
"""Width of the feature vectors: small, so that a few hundred images tell their covariance."""
TRAINED_ON, PASSES, BATCH = 10_000, 6, 64
"""Training images that a classifier of features sees at most, how often, and how many at a time."""
COMPARED = 2000
"""Images of each set that are compared at most."""
SMALLEST_MAP = 7
"""Side of the feature maps that are not halved any more."""
NEIGHBOURS = 3
"""Size of the neighbourhoods that precision and recall look at."""


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared Fréchet distance between the normal distributions with the means and covariances of two sets of vectors.

    d² = |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½)

    (Dowson and Landau 1982, The Fréchet distance between multivariate normal distributions; used on features of images
    by Heusel et al. 2017, GANs trained by a two time-scale update rule converge to a local Nash equilibrium). Small
    sets make it too large, and sets of one size by the same amount: compare only distances between such.

    Args:
        first: Vectors `(examples, features)`, at least two.
        second: Vectors with as many features.
    """
    means = first.mean(axis=0, dtype=float), second.mean(axis=0, dtype=float)
    covariances = [np.atleast_2d(np.cov(vectors, rowvar=False, dtype=float)) for vectors in (first, second)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    # Σ₁ Σ₂ has the eigenvalues of the symmetric Σ₁^½ Σ₂ Σ₁^½.
    products = np.linalg.eigvalsh(root @ covariances[1] @ root)
    traces = sum(float(np.trace(covariance)) for covariance in covariances)
    between = float(np.square(means[0] - means[1]).sum())
    return max(between + traces - 2 * float(np.sqrt(np.maximum(products, 0)).sum()), 0.0)


def precision_and_recall(real: np.ndarray, generated: np.ndarray, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """How much of what is generated looks real, and how much of what is real is ever generated.

    A set covers a vector that is at least as near to one of the set's members as that member's k-th nearest neighbour
    within the set. Precision is the share of generated vectors that the real ones cover, recall the share of real ones
    that the generated ones cover (Kynkäänniemi et al. 2019, Improved precision and recall metric for assessing
    generative models). A generator that always makes the same image has recall near 0.

    Args:
        real: Vectors `(examples, features)`.
        generated: As many generated ones.
        neighbours: k.
    """
    between = _distances(real, generated)
    radius_of_real, radius_of_generated = (
        np.sort(_distances(vectors, vectors), axis=1)[:, min(neighbours, len(vectors) - 1)]
        for vectors in (real, generated)
    )
    precision = (between <= radius_of_real[:, None]).any(axis=0).mean()
    recall = (between <= radius_of_generated[None, :]).any(axis=1).mean()
    return float(precision), float(recall)


def _distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Euclidean distances of all pairs."""
    squares = np.square(first).sum(axis=1)[:, None] + np.square(second).sum(axis=1)[None, :]
    return np.sqrt(np.maximum(squares - 2 * first @ second.T, 0))


class FeatureSpace:
    """Features of images that a small convolutional network has learned by telling the real ones' classes apart.

    The same images give the same features in every process of a machine, whatever a run's seed, so that the scores of
    different runs on one data set, and of baselines, can be compared. Features are scaled to a total variance of 1 over
    the real images: a generator of nothing but the image with the mean features is at a Fréchet distance of 1.

    Args:
        images: Real images `(examples, height, width, channels)`, 0 to 1, or uint8 from 0 to 255.
        classes: Their classes, integers from 0. Of one class, the network keeps its random weights.
    """

    def __init__(self, images: np.ndarray, classes: np.ndarray) -> None:
        self._images, self._classes = images, classes.reshape(-1)

    def score(self, real: np.ndarray, generated: np.ndarray) -> Metrics:
        """What `QUALITY` names, from as many generated images as real ones."""
        rows = np.linspace(0, len(real) - 1, min(len(real), COMPARED)).astype(int)
        first, second = self.features(real[rows]), self.features(generated[rows])
        values = (frechet_distance(first, second), *precision_and_recall(first, second))
        return dict(zip(QUALITY, values, strict=True))

    def features(self, images: np.ndarray) -> np.ndarray:
        """Feature vectors `(examples, features)` of images."""
        network, scale = self._trained
        return _run(network, images) / scale

    @cached_property
    def _trained(self) -> tuple[keras.Model, float]:
        """The network, trained when it is first needed, and the root of its features' total variance."""
        order = np.random.default_rng(0)
        chosen = order.permutation(len(self._images))[:TRAINED_ON]
        images, classes = as_fractions(self._images[chosen]), self._classes[chosen]
        with full_precision():
            network, classifier = _networks(images.shape[1:], int(classes.max()) + 2)  # one that no image has
        classifier.compile(keras.optimizers.Adam(0.002), "sparse_categorical_crossentropy", jit_compile=False)
        for _ in range(PASSES if classes.any() else 0):
            rows = order.permutation(len(images))
            classifier.fit(images[rows], classes[rows], batch_size=BATCH, shuffle=False, verbose=0)
        return network, float(np.sqrt(_run(network, images).var(axis=0).sum()))


def _networks(shape: Sequence[int], classes: int) -> tuple[keras.Model, keras.Model]:
    """A network from images to features, and the same one with class probabilities on top."""
    seeds = iter(range(100))  # explicit: what else this process has drawn makes no difference

    def start() -> keras.initializers.Initializer:
        return keras.initializers.HeNormal(seed=next(seeds))

    images = keras.Input(shape)
    maps = keras.layers.Conv2D(16, 3, padding="same", activation="relu", kernel_initializer=start())(images)
    for filters in halvings(max(shape[:2]), 32):
        maps = keras.layers.Conv2D(filters, 3, 2, padding="same", activation="relu", kernel_initializer=start())(maps)
    features = keras.layers.Dense(FEATURES, kernel_initializer=start())(keras.layers.Flatten()(maps))
    hidden = keras.layers.Activation("relu")(features)
    probabilities = keras.layers.Dense(classes, "softmax", kernel_initializer=start())(hidden)
    return keras.Model(images, features), keras.Model(images, probabilities)


def halvings(side: int, filters: int) -> Iterator[int]:
    """Filters of the layers that each halve an image's side, twice as many in each, until it is at most 7."""
    while side > SMALLEST_MAP:
        yield filters
        side, filters = -(-side // 2), 2 * filters


def doublings(shape: Sequence[int], filters: int) -> tuple[tuple[int, int, int], list[int]]:
    """The small map that a decoder starts from, and the filters of the layers that each double its sides.

    Doubled, it is at least as large as `shape`; the last doubling leaves `filters`.
    """
    height, width = shape[:2]
    found = [*halvings(max(height, width), filters)]
    factor = 2 ** len(found)
    return (-(-height // factor), -(-width // factor), filters * factor), found[::-1]


def _run(network: keras.Model, images: np.ndarray) -> np.ndarray:
    """Outputs of a network, computed in batches."""
    return np.asarray(network.predict(as_fractions(images), batch_size=256, verbose=0), float)


def as_fractions(images: np.ndarray) -> np.ndarray:
    """Pixels from 0 to 1."""
    return images.astype(np.float32) / 255 if images.dtype == np.uint8 else images


def as_pixels(images: np.ndarray) -> np.ndarray:
    """Values from 0 to 1 as uint8 pixels; what lies beyond is cut off."""
    return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)
