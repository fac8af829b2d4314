"""What forecasts are worth: measures, simple methods to compare with, calibrated quantiles, and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from loom.app import Answer, Metrics
from loom.data.clock import Clock
from loom.data.pipeline import Data, Split
from loom.data.series import FORECAST, NAIVE, Histories, SeriesConfig, columns_of, in_units, season_of
from loom.data.spec import Spec
from loom.data.windows import Windows

if TYPE_CHECKING:
    from loom.run import Run

MOST_ROWS = 20_000
"""Windows of single targets that the linear baseline is fitted to, at most, spread evenly over the training part."""
RIDGES = (1.0, 10.0, 100.0, 1000.0)
NORM, SHIFT = "instance_norm", "quantile_shift"
"""Layers of the core model that a calibration needs."""


class Scores(NamedTuple):
    """Forecasts of one part, and what came."""

    truth: np.ndarray
    """(windows, steps, targets), NaN where it is not known."""
    forecast: np.ndarray
    """The same shape; of quantiles the median."""
    quantiles: np.ndarray | None = None
    """(windows, steps, targets, quantiles), ascending."""

    @classmethod
    def of(cls, split: Split, outputs: np.ndarray, levels: Sequence[float]) -> Scores:
        """Those of a model's outputs."""
        truth = np.asarray(split.targets[FORECAST])
        return cls(truth, outputs[..., levels.index(0.5)], outputs) if levels else cls(truth, outputs)

    def metrics(self, spec: Spec, series: Sequence[str], levels: Sequence[float] = ()) -> Metrics:
        """Errors in standard scores, over all windows, steps and targets alike; MASE; and of quantiles their coverage.

        MASE is the mean absolute error over that of the seasonal forecast one season ahead on the training part
        (Hyndman and Koehler, 2006, "Another look at measures of forecast accuracy"), the mean over series and targets.
        """
        error = self.forecast - self.truth
        found = {"mse": _mean(error**2), "mae": _mean(np.abs(error)), "mase": self._mase(spec, np.asarray(series))}
        if self.quantiles is not None:
            distance = self.truth[..., None] - self.quantiles
            weights = np.asarray(levels)
            found["pinball"] = _mean(np.maximum(weights * distance, (weights - 1) * distance))
            found["coverage"] = self.coverage()
        return found

    def coverage(self) -> float:
        """Share of what came that lay from the lowest quantile to the highest."""
        assert self.quantiles is not None
        inside = (self.truth >= self.quantiles[..., 0]) & (self.truth <= self.quantiles[..., -1])
        return float(inside[~np.isnan(self.truth)].mean())

    def below(self) -> list[float]:
        """For each quantile the share of what came that lay below it."""
        assert self.quantiles is not None
        known = ~np.isnan(self.truth)
        return [float((self.truth < each)[known].mean()) for each in np.moveaxis(self.quantiles, -1, 0)]

    def by_step(self) -> list[float]:
        """Mean squared error of each step ahead."""
        return [_mean((self.forecast[:, step] - self.truth[:, step]) ** 2) for step in range(self.truth.shape[1])]

    def by_target(self, spec: Spec) -> dict[str, Metrics]:
        """Errors of each target: the mean squared one in standard scores, the absolute one in its own units."""
        errors = {field.name: self.forecast[..., place] - self.truth[..., place] for place, field in _targets(spec)}
        scale = {field.name: field.statistics["scale"] for field in spec.targets}
        return {
            name: {"mse": _mean(error**2), "mae_in_units": _mean(np.abs(error)) * scale[name]}
            for name, error in errors.items()
        }

    def _mase(self, spec: Spec, series: np.ndarray) -> float:
        ratios = []
        for place, field in _targets(spec):
            error = np.abs(self.forecast[..., place] - self.truth[..., place])
            for name in np.unique(series):
                naive = field.statistics[f"{NAIVE} {name}"]
                if naive:
                    ratios.append(_mean(error[series == name]) / naive)
        return float(np.nanmean(ratios)) if ratios else float("nan")


def _targets(spec: Spec) -> list[tuple[int, Any]]:
    return list(enumerate(spec.targets))


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean(dtype=float)) if known.size else float("nan")


def series_of(split: Split, spec: Spec) -> list[str]:
    """Name of the series of each window."""
    name = columns_of(spec).series
    return list(split.raw[name]) if name else [""] * len(split)


def histories_of(targets: Windows, config: SeriesConfig) -> Windows:
    """What was known of the targets of windows before them."""
    return replace(targets, starts=targets.starts - config.look_back, length=config.look_back, fill=config.fill)


def simple_forecasts(config: SeriesConfig, data: Data) -> dict[str, np.ndarray]:
    """Forecasts of the test part by methods that need no network, in standard scores.

    `last` repeats the last value, `seasonal` the last season, `drift` goes on along the line from a window's first
    value to its last; `ridge` is linear in the window, less its mean, with the same weights for all targets and a
    penalty that the validation part chooses.
    """
    past = histories_of(data.test.targets[FORECAST], config)[:]
    last, steps = past[:, -1:], np.arange(1, config.horizon + 1)
    season = season_of(Clock.of(data.spec.inputs[0]), config)
    slope = (last - past[:, :1]) / max(1, config.look_back - 1)
    return {
        "last": np.repeat(last, config.horizon, axis=1),
        "seasonal": past[:, config.look_back - season + (steps - 1) % season],
        "drift": last + slope * steps[:, None],
        "ridge": _ridge(config, data, past),
    }


def _ridge(config: SeriesConfig, data: Data, past: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import Ridge

    train, validation = (_pairs(split.targets[FORECAST], config) for split in (data.train, data.validation))
    models = [Ridge(alpha=alpha).fit(*train) for alpha in RIDGES]
    model = min(models, key=lambda each: float(np.mean((each.predict(validation[0]) - validation[1]) ** 2)))
    mean = past.mean(axis=1, keepdims=True)
    rows = np.moveaxis(past - mean, 1, 2)
    forecast = model.predict(rows.reshape(-1, config.look_back)).reshape(*rows.shape[:2], config.horizon)
    return np.moveaxis(forecast, 2, 1).astype(np.float32) + mean


def _pairs(targets: Windows, config: SeriesConfig) -> tuple[np.ndarray, np.ndarray]:
    """Pasts and futures of single targets, less the mean of the past, which stands for what is missing too."""
    count = max(1, MOST_ROWS // targets.columns)
    kept = targets.take(np.unique(np.linspace(0, len(targets) - 1, min(count, len(targets))).astype(int)))
    past, future = histories_of(kept, config)[:], kept[:]
    mean = past.mean(axis=1, keepdims=True)
    pairs = (np.nan_to_num(part - mean) for part in (past, future))
    first, second = (np.moveaxis(part, 1, 2).reshape(-1, part.shape[1]) for part in pairs)
    return first, second


def calibrate(run: Run, levels: Sequence[float]) -> None:
    """Shift the quantiles of a model so that each has its share of the validation part below it.

    The median stays, as the forecast that it is: a validation part that rose on the whole says little of the next one.
    For each step and target, in units of the spread of the window where the model divides by that. The windows overlap,
    so what conformalized quantile regression guarantees for exchangeable examples is not guaranteed here.
    """
    layer, split = run.model.get_layer(SHIFT), run.data.validation
    layer.shift.assign(np.zeros(layer.shift.shape, np.float32))
    outputs = run.trained.outputs_of(split.inputs)[FORECAST]
    residuals = np.asarray(split.targets[FORECAST])[..., None] - outputs
    if NORM in [each.name for each in run.model.layers]:
        config: Any = run.config
        _, (_, spread) = run.model.get_layer(NORM)(histories_of(split.targets[FORECAST], config)[:])
        residuals = residuals / np.asarray(spread)[..., None]
    shift = conformal_shift(residuals, levels)
    shift[..., list(levels).index(0.5)] = 0
    layer.shift.assign(shift)


def conformal_shift(residuals: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """What to add to quantiles so that they have their share of some residuals below them.

    Args:
        residuals: What came, less the quantile, (examples, ..., quantiles); NaN where it is not known.
        levels: Of the quantiles. Below the median the rank is rounded down, above it up, so an interval is rather too
            wide than too narrow.

    Returns:
        (..., quantiles); 0 where no residual is known.
    """
    ordered, known = np.sort(residuals, axis=0), (~np.isnan(residuals)).sum(axis=0)
    share = np.asarray(levels)
    rank = np.where(share < 0.5, np.floor((known + 1) * share), np.ceil((known + 1) * share)).astype(int)
    place = np.clip(rank, 1, np.maximum(known, 1)) - 1
    return np.nan_to_num(np.take_along_axis(ordered, place[None], axis=0)[0])


def answers(histories: Histories, outputs: np.ndarray, spec: Spec, levels: Sequence[float]) -> list[Answer]:
    """The rows that are to come, series after series: time, and of each target the value, or its quantiles too.

    Args:
        histories: What was known.
        outputs: The core model's, (series, steps, targets) in standard scores, or with quantiles at the end.
        spec: Of the data.
        levels: Of the quantiles.
    """
    columns, clock = columns_of(spec), Clock.of(spec.inputs[0])
    shown = {"": outputs} if not levels else {"": outputs[..., levels.index(0.5)]}
    shown |= {f"_{level:g}": outputs[..., place] for place, level in enumerate(levels) if level != 0.5}
    values = {suffix: in_units(each, spec) for suffix, each in shown.items()}
    found: list[Answer] = []
    for row, (name, last) in enumerate(zip(histories.names, histories.last, strict=True)):
        times = clock.texts(last + np.arange(1, outputs.shape[1] + 1))
        for step, time in enumerate(times):
            numbers = {
                f"{target}{suffix}": float(each[row, step, place])
                for place, target in enumerate(columns.targets)
                for suffix, each in values.items()
            }
            named = {columns.series: name} if columns.series else {}
            found.append({columns.time: time, **named, **numbers})
    return found


def scores_of_simple_methods(config: SeriesConfig, data: Data) -> Mapping[str, Scores]:
    """Those of `simple_forecasts`."""
    truth = np.asarray(data.test.targets[FORECAST])
    return {name: Scores(truth, forecast) for name, forecast in simple_forecasts(config, data).items()}
