"""Looking for the most similar examples: nearest neighbours of vectors, and how many searches succeed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from loom.app import Metrics
from loom.figures_images import show_image
from loom.report import PLAIN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WRONG = "#cc0000"
CHUNK = 1024
"""Queries at a time, each with its distances to everything."""


def nearest(queries: np.ndarray, gallery: np.ndarray, count: int, same: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The nearest vectors of a gallery, by Euclidean distance.

    Args:
        queries: (queries, features).
        gallery: (vectors, features).
        count: How many to look for; fewer are returned where there are fewer.
        same: Whether queries and gallery are the same vectors, and none is its own neighbour.

    Returns:
        Rows of the gallery and the distances to them, both (queries, count), the nearest first.
    """
    queries, gallery = np.asarray(queries, np.float64), np.asarray(gallery, np.float64)
    squares = np.square(gallery).sum(axis=1)
    count = min(count, len(gallery) - same)
    rows = np.empty((len(queries), count), int)
    distances = np.empty((len(queries), count))
    for start in range(0, len(queries), CHUNK):
        part = queries[start : start + CHUNK]
        squared = np.square(part).sum(axis=1)[:, None] + squares - 2 * part @ gallery.T
        if same:
            squared[np.arange(len(part)), start + np.arange(len(part))] = np.inf
        found = np.argpartition(squared, count - 1, axis=1)[:, :count]
        order = np.argsort(np.take_along_axis(squared, found, axis=1), axis=1, kind="stable")
        found = np.take_along_axis(found, order, axis=1)
        rows[start : start + CHUNK] = found
        distances[start : start + CHUNK] = np.sqrt(np.maximum(np.take_along_axis(squared, found, axis=1), 0))
    return rows, distances


def recall_at(
    vectors: np.ndarray, classes: np.ndarray, counts: Sequence[int], asked: np.ndarray | None = None
) -> Metrics:
    """Share of the examples among whose k nearest others at least one is of their class, `recall_at_k` for each k.

    Examples whose class no other one has are not asked for: nothing could be found. If none is left it is 0.

    Args:
        vectors: (examples, features).
        classes: (examples,).
        counts: The k.
        asked: Which examples are asked for, (examples,) booleans; all by default. The others can be found.
    """
    _, kinds, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    queries = np.flatnonzero((sizes[kinds] > 1) & (True if asked is None else asked))
    if not len(queries):
        return {f"recall_at_{count}": 0.0 for count in counts}
    rows, _ = nearest(vectors, vectors, max(counts), same=True)
    hits = classes[rows[queries]] == classes[queries, None]
    return {f"recall_at_{count}": float(hits[:, :count].any(axis=1).mean()) for count in counts}


def chance(classes: np.ndarray, counts: Sequence[int], asked: np.ndarray | None = None) -> Metrics:
    """Expected `recall_at` of an order that knows nothing.

    An example with m others of its class among n others misses them in k draws with probability C(n - m, k) / C(n, k).
    """
    _, kinds, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    others, total = sizes[kinds] - 1, len(classes) - 1
    chosen = others[(others > 0) & (True if asked is None else asked)].tolist()

    def misses(draws: int) -> float:
        return float(np.mean([math.comb(total - count, draws) / math.comb(total, draws) for count in chosen] or [1.0]))

    return {f"recall_at_{count}": 1 - misses(min(count, total)) for count in counts}


def retrievals(
    images: np.ndarray, classes: np.ndarray, names: Sequence[str], found: Mapping[int, np.ndarray]
) -> Figure:
    """Some images, and beside each those that were found for it; those of another class are framed.

    Args:
        images: (images, height, width, 1 or 3), uint8.
        classes: Index of each one's class.
        names: Of the classes.
        found: For the number of each query the numbers of what was found, equally many for all.
    """
    from matplotlib.figure import Figure

    rows, columns = len(found), len(next(iter(found.values())))
    aspect = images.shape[1] / images.shape[2]
    figure = Figure(figsize=(1.05 * (columns + 1.3), rows * (1.05 * aspect + 0.25) + 0.5), layout="constrained")
    figure.suptitle("Queries (left) and the test images nearest to them; red: of another class", fontsize=11)
    axes = figure.subplots(rows, columns + 2, squeeze=False, width_ratios=[1, 0.3, *[1] * columns])
    for line, (query, others) in zip(axes, found.items(), strict=True):
        line[1].set_axis_off()
        for axis, image in zip((line[0], *line[2:]), (query, *others), strict=True):
            is_right = classes[image] == classes[query]
            show_image(axis, images[image])
            axis.set_xticks([])
            axis.set_yticks([])
            color = "black" if is_right else WRONG
            axis.set_title(names[classes[image]], fontsize=8, pad=2, color=color, **PLAIN)
            axis.spines[:].set(visible=not is_right, color=WRONG, linewidth=2.5)
    return figure
