"""Figures of word vectors: a map on which alike words lie together, and what pairs of words have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from loom.fonts import NO_FONT, font_for, width_of
from loom.report import PLAIN, new_figure
from loom.vectors import WordVectors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FONT = "DejaVu Sans"
SIZE = 7.5
"""Points; of the words."""
MARGIN = 34
"""Points around the words."""
GAP = 3
"""Points between a dot and its word."""
SHARP = 12
"""Neighbours of each word that a map is to keep, about."""
PANELS = 3
"""In a row of the figure of pairs."""


def word_map(known: WordVectors, title: str, table: str) -> Figure:
    """Words in the plane, by t-SNE of the cosines between their vectors.

    (Van der Maaten and Hinton 2008, Visualizing data using t-SNE.) Distances between far groups mean nothing.

    Args:
        known: The words to draw, three or more; where many lie together some are dots only.
        title: Of the figure.
        table: Name of the table that holds the words too, for characters that no font has.
    """
    from sklearn.manifold import TSNE

    perplexity = min(SHARP, (len(known.words) - 1) / 3)
    planar = TSNE(perplexity=perplexity, init="pca", metric="cosine", random_state=0).fit_transform(known.units)
    figure, (axis,) = new_figure(1, 10.5, 8.5)
    labels, font = _drawable(known.words)
    places = _scaled(axis, planar, 10.5, 8.0)
    axis.plot(*places.T, ".", color="#4477aa", markersize=3)
    _write(axis, places, labels, font or FONT)
    axis.set_title(title)
    if font is None:
        figure.supxlabel(NO_FONT.format(table=table), fontsize=8)
    return figure


def pair_maps(known: WordVectors, pairs: Mapping[str, Sequence[tuple[str, str]]], table: str) -> Figure:
    """For each name pairs of words in the plane of their first two principal components, with lines between them.

    Where what differs between the words is the same for all pairs, the lines are parallel.

    Args:
        known: Vectors of all these words, of length 1.
        pairs: By the name of what they have in common.
        table: Name of the table that holds the words too.
    """
    from matplotlib.figure import Figure
    from sklearn.decomposition import PCA

    rows = -(-len(pairs) // PANELS)
    columns = min(len(pairs), PANELS)
    figure = Figure(figsize=(5.2 * columns, 4.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (name, chosen) in zip(axes, pairs.items(), strict=False):
        words = [word for pair in chosen for word in pair]
        vectors = known.units[[known.places[word] for word in words]]
        labels, font = _drawable(words)
        places = _scaled(axis, PCA(2, random_state=0).fit_transform(vectors), 5.0, 4.2)
        for start, end in zip(places[::2], places[1::2], strict=True):
            axis.annotate(
                "", end, start, arrowprops={"arrowstyle": "->", "color": "#bbbbbb", "shrinkA": 2, "shrinkB": 2}
            )
        for side, color in ((0, "#4477aa"), (1, "#cc6633")):
            axis.plot(*places[side::2].T, ".", color=color, markersize=4)
        partners = places.reshape(-1, 2, 2)[:, ::-1].reshape(-1, 2)
        _write(axis, places, labels, font or FONT, leftwards=partners[:, 0] > places[:, 0])
        axis.set_title(name, fontsize=10, **PLAIN)
        if font is None:
            figure.supxlabel(NO_FONT.format(table=table), fontsize=8)
    return figure


def _drawable(words: Sequence[str]) -> tuple[Sequence[str], str | None]:
    """The words and a font for them; numbers where no font has their characters."""
    font = font_for(words, FONT)
    return (words if font else [str(number) for number in range(1, len(words) + 1)]), font


def _scaled(axis: Axes, planar: np.ndarray, width: float, height: float) -> np.ndarray:
    """Points of a plane to places in points (1/72 inch) of an axis of that size in inches, without ticks."""
    size = np.array([width, height]) * 72
    low, high = planar.min(axis=0), planar.max(axis=0)
    axis.set_axis_off()
    axis.set(xlim=(0, size[0]), ylim=(0, size[1]))
    scaled: np.ndarray = MARGIN + (planar - low) / np.maximum(high - low, 1e-9) * (size - 2 * MARGIN)
    return scaled


def _write(
    axis: Axes, places: np.ndarray, labels: Sequence[str], font: str, leftwards: np.ndarray | None = None
) -> None:
    """Each label beside its place, where it covers no other label or dot; those that find no room are left out.

    Args:
        axis: Where to write.
        places: In points, (labels, 2).
        labels: What to write.
        font: Name of the font.
        leftwards: Which labels rather stand to the left of their place than to its right.
    """
    leftwards = np.zeros(len(labels), bool) if leftwards is None else leftwards
    taken = [(x - 1, y - 1, x + 1, y + 1) for x, y in places.tolist()]
    style: dict[str, Any] = {"fontsize": SIZE, "family": font, "va": "center", "in_layout": False, **PLAIN}
    for (x, y), label, to_left in zip(places.tolist(), labels, leftwards.tolist(), strict=True):
        width = width_of(label, font, SIZE)
        sides = (x - GAP - width, x + GAP) if to_left else (x + GAP, x - GAP - width)
        lefts = (*sides, x - width / 2, x - width / 2)
        for left, middle in zip(lefts, (y, y, y + SIZE, y - SIZE), strict=True):
            box = (left, middle - SIZE / 2, left + width, middle + SIZE / 2)
            if not any(_overlap(box, other) for other in taken):
                taken.append(box)
                axis.text(left, middle, label, **style)
                break


def _overlap(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
