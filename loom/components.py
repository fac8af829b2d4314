"""Objects as connected regions that differ from the background: what finds them without learning."""

from __future__ import annotations

import numpy as np


def connected_boxes(image: np.ndarray, smallest: float) -> np.ndarray:
    """Boxes (count, 4) around connected pixels that differ from the image's median, by Otsu's threshold.

    Args:
        image: (height, width, channels), uint8.
        smallest: Boxes with a smaller area, in pixels, are noise and left out.
    """
    from scipy import ndimage

    grey = image.astype(np.float32).mean(axis=-1)
    distance = np.abs(grey - np.median(grey))
    labels, _ = ndimage.label(distance > otsu(distance), structure=np.ones((3, 3)))
    found = [(columns.start, rows.start, columns.stop, rows.stop) for rows, columns in ndimage.find_objects(labels)]
    boxes = np.array(found, float).reshape(-1, 4)
    return boxes[np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) >= smallest]


def otsu(values: np.ndarray) -> float:
    """The threshold that leaves the least variance within the two groups it makes (Otsu 1979)."""
    counts, edges = np.histogram(values, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    best = np.flatnonzero(np.nan_to_num(between) >= (1 - 1e-9) * np.nan_to_num(between).max())
    return float(edges[1:][best].mean())  # the middle of the gap between the groups


def crop(image: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    """Grey pixels of a box, (side * side,), from 0 to 1, scaled so that the brightest is 1."""
    left, top, right, bottom = (round(float(edge)) for edge in box)
    part = image[top : max(bottom, top + 1), left : max(right, left + 1)].astype(np.float32).mean(axis=-1)
    rows, columns = (
        np.minimum((np.arange(side) + 0.5) * length / side, length - 1).astype(int) for length in part.shape
    )
    small = part[rows[:, None], columns]
    return (small / max(float(small.max()), 1.0)).ravel()
