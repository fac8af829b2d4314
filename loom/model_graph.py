"""A functional model as a figure: a box for every layer, an arrow for every tensor between two of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from loom.report import new_figure

if TYPE_CHECKING:
    import keras
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SWEEPS = 8
"""Passes down and up the rows in which boxes move towards what they are connected with."""
BOX_WIDTH, BOX_HEIGHT, ROW_HEIGHT, BEND_WIDTH = 2.0, 0.56, 0.95, 0.5
"""Inches, the gap between boxes of a row included in the width."""
COLORS = {"input": "#cce3f2", "layer": "#f2f2f2", "shared": "#ffe6b3", "output": "#d5ecd4"}


class Bend(NamedTuple):
    """Where an arrow that is longer than one row passes through a row."""

    start: Any
    end: Any
    row: int


Place = Any
"""A layer or a `Bend`."""


def model_graph(model: keras.Model) -> Figure:
    """Draw the layers of a functional model in rows, from its inputs on top to its outputs.

    A layer that is called several times (shared weights) is one box, in a colour of its own, with all its arrows. A
    model inside the model is one box.
    """
    calls, rows_of, arrows = _read(model)
    rows = _rows_with_bends(rows_of, arrows)
    across = _positions(rows, _neighbours(arrows, rows_of))
    left, right = min(across.values()) - BOX_WIDTH / 2, max(across.values()) + BOX_WIDTH / 2
    figure, (axis,) = new_figure(1, right - left, ROW_HEIGHT * len(rows))
    axis.set_axis_off()
    axis.set(xlim=(left, right), ylim=(ROW_HEIGHT * (len(rows) - 0.5), -0.5 * ROW_HEIGHT))
    for start, end in arrows:
        _draw_arrow(axis, _route(start, end, rows_of), across, rows_of)
    outputs = set(model.output_names)
    for layer, row in rows_of.items():
        kind = "shared" if calls[layer] > 1 else "layer"
        kind = "input" if type(layer).__name__ == "InputLayer" else "output" if layer.name in outputs else kind
        _draw_box(axis, layer, across[layer], ROW_HEIGHT * row, kind, calls[layer])
    return figure


def _read(model: keras.Model) -> tuple[dict[Any, int], dict[Any, int], list[tuple[Any, Any]]]:
    """How often each layer is called, its row, and the arrows between layers."""
    depth_of: dict[Any, int] = {}
    calls: dict[Any, int] = {}
    arrows: dict[tuple[Any, Any], None] = {}
    for depth, nodes in sorted(model._nodes_by_depth.items()):
        for node in nodes:
            layer = node.operation
            depth_of[layer] = depth
            calls[layer] = calls.get(layer, 0) + 1
            arrows |= dict.fromkeys((parent.operation, layer) for parent in node.parent_nodes)
    depths = sorted(set(depth_of.values()), reverse=True)
    return calls, {layer: depths.index(depth) for layer, depth in depth_of.items()}, list(arrows)


def _route(start: Any, end: Any, rows_of: Mapping[Any, int]) -> list[Place]:
    """Both layers, and the bends between them."""
    return [start, *(Bend(start, end, row) for row in range(rows_of[start] + 1, rows_of[end])), end]


def _rows_with_bends(rows_of: Mapping[Any, int], arrows: list[tuple[Any, Any]]) -> list[list[Place]]:
    rows: list[list[Place]] = [[] for _ in range(max(rows_of.values()) + 1)]
    for layer, row in reversed(list(rows_of.items())):  # as they were read: from the outputs to the inputs
        rows[row].append(layer)
    for start, end in arrows:
        for bend in _route(start, end, rows_of)[1:-1]:
            rows[bend.row].append(bend)
    return rows


def _neighbours(arrows: list[tuple[Any, Any]], rows_of: Mapping[Any, int]) -> dict[Place, list[Place]]:
    found: dict[Place, list[Place]] = {}
    for start, end in arrows:
        route = _route(start, end, rows_of)
        for upper, lower in pairwise(route):
            found.setdefault(upper, []).append(lower)
            found.setdefault(lower, []).append(upper)
    return found


def _positions(rows: list[list[Place]], neighbours: Mapping[Place, list[Place]]) -> dict[Place, float]:
    """Inches from the middle, after every row was ordered by the mean of its neighbours, again and again.

    The barycentre method for layered graphs (Sugiyama, Tagawa and Toda 1981, Methods for visual understanding of
    hierarchical system structures).
    """
    across: dict[Place, float] = {}
    for row in rows:
        _spread(row, across, lambda place: 0.0)

    def wish(place: Place) -> float:
        return float(np.mean([across[other] for other in neighbours.get(place, [place])]))

    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 else rows[::-1]:
            row.sort(key=wish)
            _spread(row, across, wish)
    return across


def _spread(row: list[Place], across: dict[Place, float], wish: Callable[[Place], float]) -> None:
    """Place a row's boxes side by side in their order, about the mean of where they wish to be."""
    widths = np.array([BEND_WIDTH if isinstance(place, Bend) else BOX_WIDTH for place in row])
    places = np.cumsum(widths) - widths / 2
    places += np.mean([wish(place) for place in row]) - places.mean()
    across |= dict(zip(row, places.tolist(), strict=True))


def _draw_arrow(axis: Axes, route: list[Place], across: Mapping[Place, float], rows_of: Mapping[Any, int]) -> None:
    points = [
        (across[place], ROW_HEIGHT * (place.row if isinstance(place, Bend) else rows_of[place])) for place in route
    ]
    points[0] = (points[0][0], points[0][1] + BOX_HEIGHT / 2)
    points[-1] = (points[-1][0], points[-1][1] - BOX_HEIGHT / 2)
    axis.plot(*zip(*points[:-1], strict=True), color="grey", linewidth=0.9)
    style = {"arrowstyle": "->", "color": "grey", "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", points[-1], points[-2], arrowprops=style)


def _draw_box(axis: Axes, layer: Any, x: float, y: float, kind: str, calls: int) -> None:
    from matplotlib.patches import FancyBboxPatch

    width = BOX_WIDTH - 0.25
    corner = (x - width / 2, y - BOX_HEIGHT / 2)
    style = "round,pad=0,rounding_size=0.08"
    axis.add_patch(FancyBboxPatch(corner, width, BOX_HEIGHT, style, facecolor=COLORS[kind], edgecolor="grey"))
    shape = " x ".join("?" if size is None else str(size) for size in _shape(layer)) or "1"
    used = f", called {calls} times" if calls > 1 else ""
    axis.text(x, y - 0.11, layer.name, ha="center", va="center", fontsize=8, weight="bold")
    axis.text(x, y + 0.13, f"{type(layer).__name__} {shape}{used}", ha="center", va="center", fontsize=7)


def _shape(layer: Any) -> tuple[int | None, ...]:
    """Shape of the layer's (first) output, without the batch."""
    output = layer._inbound_nodes[0].output_tensors[0]
    return tuple(output.shape[1:])
