"""Mean average precision of found objects, as COCO defines it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""Intersections over union from which on a found box counts as an object's."""
RECALLS = np.linspace(0, 1, 101)
"""Where the precision is looked up."""


class Objects(NamedTuple):
    """Objects of one image, the true ones or those that were found."""

    boxes: np.ndarray
    """(count, 4): left, top, right, bottom."""
    classes: np.ndarray
    """(count,): indices."""
    scores: np.ndarray
    """(count,): how sure it is; ones for true objects."""


def intersection_over_union(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """For boxes (N, 4) and (M, 4) the shares (N, M) of what each two cover together that both cover."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    overlap = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1) for boxes in (first, second)]
    return overlap / np.maximum(areas[0][:, None] + areas[1][None, :] - overlap, 1e-12)


def match(overlaps: np.ndarray, threshold: float) -> np.ndarray:
    """Which found boxes are right, (found,), for their overlaps (found, true) with the true ones.

    From the first found box to the last, each takes the true box that it overlaps most, at least by the threshold,
    among those that none before it has taken: an object that is found twice is right once.
    """
    free = np.ones(overlaps.shape[1], bool)
    right = np.zeros(len(overlaps), bool)
    for found, row in enumerate(overlaps):
        candidates = np.where(free, row, -1.0)
        best = int(candidates.argmax()) if len(candidates) else -1
        if best >= 0 and candidates[best] >= threshold:
            right[found], free[best] = True, False
    return right


def precision_recall(right: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall after each found box, those with the highest scores first, of `total` objects."""
    hits = np.cumsum(right)
    return hits / np.arange(1, len(right) + 1), hits / total


def average_precision(right: np.ndarray, total: int) -> float:
    """Mean over 101 recalls of the best precision at that recall or a higher one; 0 where it is never reached."""
    precision, recall = precision_recall(right, total)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALLS - 1e-12, side="left")
    return float(np.append(best, 0.0)[places].mean())


def judge(truth: Sequence[Objects], found: Sequence[Objects], kind: int) -> tuple[np.ndarray, int]:
    """Which of a class's found boxes are right at each threshold, (thresholds, found) by falling scores.

    Args:
        truth: True objects of each image.
        found: Found objects of each image.
        kind: Index of the class.

    Returns:
        What is right, and the number of true objects of the class.
    """
    right: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    for true, seen in zip(truth, found, strict=True):
        wanted = true.boxes[true.classes == kind]
        chosen = np.flatnonzero(seen.classes == kind)
        chosen = chosen[np.argsort(-seen.scores[chosen], kind="stable")]
        overlaps = intersection_over_union(seen.boxes[chosen], wanted)
        right.append(np.array([match(overlaps, threshold) for threshold in THRESHOLDS]))
        scores.append(seen.scores[chosen])
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return np.concatenate(right, axis=1)[:, order], int(sum((true.classes == kind).sum() for true in truth))


def average_precisions(truth: Sequence[Objects], found: Sequence[Objects], classes: int) -> np.ndarray:
    """Average precision of each class at each threshold, (classes, thresholds); NaN for classes without an object."""
    values = np.full((classes, len(THRESHOLDS)), np.nan)
    for kind in range(classes):
        right, total = judge(truth, found, kind)
        if total:
            values[kind] = [average_precision(row, total) for row in right]
    return values


def mean_average_precision(truth: Sequence[Objects], found: Sequence[Objects], classes: int) -> dict[str, float]:
    """COCO's two numbers, means over the classes that occur: `map_50` counts boxes that overlap an object by half.

    `map` is the mean over ten thresholds from 0.5 to 0.95, so that boxes have to fit closely. Both are 0 where there is
    no object at all.
    """
    values = average_precisions(truth, found, classes)
    known = values[~np.isnan(values[:, 0])]
    if not len(known):
        return {"map": 0.0, "map_50": 0.0}
    return {"map": float(known.mean()), "map_50": float(known[:, 0].mean())}
