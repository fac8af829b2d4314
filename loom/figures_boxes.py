"""Figures of images with boxes, and of how many of them are right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from loom.average_precision import Objects, judge, precision_recall
from loom.figures_images import show_image
from loom.report import PLAIN, new_figure, plain_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRUE, FOUND = "#33bb55", "#ff5533"


def boxes_in_images(
    images: Sequence[np.ndarray],
    truth: Sequence[Objects],
    found: Sequence[Objects],
    names: Sequence[str],
    columns: int = 4,
) -> Figure:
    """Images with the true boxes (dashed) and those that were found, with class and score.

    Args:
        images: (height, width, 1 or 3) each, uint8.
        truth: True objects of each, in its pixels.
        found: Found objects of each.
        names: Of the classes.
        columns: Images in a row.
    """
    from matplotlib.figure import Figure

    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.7 * rows + 0.4), layout="constrained")
    figure.suptitle("Found objects with class and score (red) and the true boxes (green, dashed)", fontsize=11)
    for index, axis in enumerate(figure.subplots(rows, columns, squeeze=False).ravel()):
        axis.set_axis_off()
        if index < len(images):
            show_image(axis, images[index])
            for box in truth[index].boxes:
                _draw(axis, box, TRUE, "--")
            for box, kind, score in zip(*found[index], strict=True):
                _draw(axis, box, FOUND, "-")
                text = f"{names[kind]} {score:.2f}"
                axis.text(box[0] - 0.5, box[1] - 1, text, fontsize=7, color=FOUND, va="bottom", weight="bold", **PLAIN)
    return figure


def _draw(axis: Axes, box: np.ndarray, color: str, style: str) -> None:
    from matplotlib.patches import Rectangle

    left, top, right, bottom = box
    corner = (left - 0.5, top - 0.5)  # a pixel's centre has whole coordinates
    axis.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, color=color, linestyle=style))


def precision_recall_curves(truth: Sequence[Objects], found: Sequence[Objects], names: Sequence[str]) -> Figure:
    """Precision against recall of each class, where half of an overlap is enough, as the least score falls."""
    figure, (axis,) = new_figure(1, 5.5, 4.4)
    for kind, name in enumerate(names):
        right, total = judge(truth, found, kind)
        if total:
            precision, recall = precision_recall(right[0], total)
            axis.plot(recall, precision, label=name, linewidth=1.2)
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01))
    axis.set_title("Boxes that overlap a true one by half, class by class", fontsize=11)
    if len(names) <= 20:
        plain_legend(axis, fontsize=8, ncols=2)
    return figure
