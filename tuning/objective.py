"""The metric that makes a score, checked before anything is trained."""

from __future__ import annotations

from typing import Literal, Protocol

from keras_tuner.engine.metrics_tracking import infer_metric_direction

from loom.app import App
from loom.errors import UserError
from tuning.trial import Names


class Flags(Protocol):
    """The flags that name it."""

    @property
    def objective(self) -> str:
        """Its name, or nothing for the application's."""

    @property
    def direction(self) -> str:
        """Whether a good one is small (`min`) or large (`max`), or nothing where that is known."""


def objective_of(app: App, names: Names, flags: Flags) -> tuple[str, Literal["min", "max"]]:
    """Name and direction of the metric that makes the score."""
    name = flags.objective or names.objective
    if name not in names.metrics:
        raise UserError(f"--objective {name}: {app.name} has no such metric, but {', '.join(names.metrics)}")
    direction = flags.direction or (app.direction if name == names.objective else infer_metric_direction(name))
    if direction == "min":
        return name, "min"
    if direction == "max":
        return name, "max"
    raise UserError(f"--objective {name}: say whether it should be small or large, with --direction min or max")
