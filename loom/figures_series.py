"""Figures of forecasts: beside what came, and their errors by how far they look ahead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from loom.data.pipeline import Split
from loom.data.series import FORECAST, SeriesConfig, columns_of, in_units
from loom.data.spec import Spec
from loom.forecasts import Scores, histories_of
from loom.report import PLAIN, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_TARGETS, SHOWN_WINDOWS = 4, 3
SHOWN_PAST = 2
"""Horizons of the past before a forecast that is shown."""
COLORS = {"past": "0.6", "truth": "black", "forecast": "C0"}


def draw_forecasts(split: Split, spec: Spec, config: SeriesConfig, scores: Scores, levels: Sequence[float]) -> Figure:
    """Some forecasts of the test part beside what came: a row for each target, in its own units.

    Args:
        split: The test part.
        spec: Of the data.
        config: Of the run.
        scores: Forecasts and truth of the part, in standard scores.
        levels: Of the quantiles, if there are some; the outermost are a band.
    """
    from matplotlib.figure import Figure

    targets, windows = min(len(spec.targets), SHOWN_TARGETS), np.unique(_spread(len(split)))
    past = histories_of(split.targets[FORECAST], config)
    steps = np.arange(1, config.horizon + 1)
    before = np.arange(max(1 - SHOWN_PAST * config.horizon, 1 - config.look_back), 1)
    figure = Figure(figsize=(4.6 * len(windows), 2.4 * targets + 0.8), layout="constrained")
    axes = figure.subplots(targets, len(windows), squeeze=False)
    for column, window in enumerate(windows):
        known, truth = (in_units(each[window], spec) for each in (past, scores.truth))
        forecast = in_units(scores.forecast[window], spec)
        for row in range(targets):
            axis = axes[row, column]
            axis.spines[["top", "right"]].set_visible(False)
            axis.plot(before, known[before - 1, row], color=COLORS["past"], label="before")
            if levels:
                assert scores.quantiles is not None
                ends = (in_units(scores.quantiles[window][..., place], spec)[:, row] for place in (0, -1))
                label = f"{levels[0]:g} to {levels[-1]:g}"
                axis.fill_between(steps, *ends, color=COLORS["forecast"], alpha=0.25, linewidth=0, label=label)
            axis.plot(steps, truth[:, row], color=COLORS["truth"], linewidth=1, label="what came")
            axis.plot(steps, forecast[:, row], color=COLORS["forecast"], label="forecast")
            if not column:
                axis.set_ylabel(spec.targets[row].name, **PLAIN)
        axes[0, column].set_title(_origin(split, spec, int(window)), fontsize=9, **PLAIN)
        axes[-1, column].set_xlabel("steps ahead")
    lines, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


def _spread(count: int) -> np.ndarray:
    """Some windows from beginning to end."""
    return np.linspace(0, count - 1, SHOWN_WINDOWS).astype(int)


def _origin(split: Split, spec: Spec, window: int) -> str:
    """Which window it is."""
    columns = columns_of(spec)
    name = f"{split.raw[columns.series].iloc[window]}, " if columns.series else ""
    return f"{name}after {split.raw[columns.time].iloc[window]}"


def draw_error_by_step(errors: Mapping[str, Sequence[float]]) -> Figure:
    """Mean squared error of each step ahead, in standard scores: the model's as the thick line, then the others'."""
    figure, (axis,) = new_figure(1, 7, 4)
    for place, (name, values) in enumerate(errors.items()):
        steps = np.arange(1, len(values) + 1)
        width = 1.2 if place else 2.4
        axis.plot(steps, values, color=f"C{place}", linewidth=width, label=name, marker="" if len(values) > 1 else "o")
    axis.set(xlabel="steps ahead", ylabel="mean squared error (standard scores)", ylim=(0, None))
    figure.legend(loc="outside right upper", frameon=False)
    return figure
