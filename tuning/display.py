"""How a study goes on: a live table on a terminal, one line per trial everywhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from tuning.record import Trial
from tuning.study import Study

BEST_SHOWN = 5


class Display:
    """Shows the trials of a study while it runs.

    Args:
        console: Where to.
        study: The study.
        count: Number of trials it is to have.
    """

    def __init__(self, console: Console, study: Study, count: int) -> None:
        self._console, self._study, self._count = console, study, count
        self._began = time.monotonic()
        self._before = self._ended
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=2, transient=True)

    def __enter__(self) -> Display:
        """Begins to show them."""
        definition = self._study.definition
        count = f"{self._count} trials" + (f" of up to {definition.max_epochs} epochs" if definition.max_epochs else "")
        going_on = f", {len(self._study.trials)} of them begun already" if self._study.trials else ""
        self.say(f"study {self._study.tracker.run_id}: {definition.oracle} search, {count}{going_on}")
        self.say(f"{'largest' if definition.direction == 'max' else 'smallest'} {definition.objective} wins")
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Takes the table off the screen."""
        self._live.stop()

    def say(self, text: str) -> None:
        """Prints one line."""
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def changed(self, study: Study, trial: Trial) -> None:
        """Prints a line for a trial that has ended."""
        if trial.end is None:
            return
        result = f"{study.definition.objective} {shown_score(trial)}" if trial.score is not None else trial.reason
        what = f"trial {trial.number}/{self._count} {trial.status}: {result}"
        self.say(f"{what}  {described(trial.settings)}  {trial.seconds:.1f} s")

    @property
    def _ended(self) -> int:
        return sum(trial.end is not None for trial in self._study.trials)

    def _table(self) -> RenderableType:
        study = self._study
        running = Table("trial", "epoch", study.definition.objective, "settings", title="running", title_justify="left")
        for trial in study.trials:
            if trial.end is None:
                best = f"{study.better(list(trial.epochs.values())):.4f}" if trial.epochs else ""
                running.add_row(str(trial.number), str(len(trial.epochs)), best, described(trial.settings))
        best_ones = Table("trial", study.definition.objective, "settings", title="best", title_justify="left")
        for trial in study.completed[:BEST_SHOWN]:
            best_ones.add_row(str(trial.number), shown_score(trial), described(trial.settings))
        return Group(running, best_ones, self._summary())

    def _summary(self) -> str:
        failed = sum(trial.status == "failed" for trial in self._study.trials)
        parts = [f"{self._ended} of {self._count} trials ended"]
        parts += [f"{failed} failed"] if failed else []
        done = self._ended - self._before
        if done:
            left = (time.monotonic() - self._began) / done * (self._count - self._ended)
            parts.append(f"about {left / 60:.0f} min left" if left > 90 else f"about {left:.0f} s left")
        return ", ".join(parts)


def shown_score(trial: Trial) -> str:
    """Score of a trial, with the spread between its seeds."""
    spread = f" ± {trial.spread:.2g}" if trial.spread is not None else ""
    return f"{trial.score:.4f}{spread}"


def described(settings: Mapping[str, Any]) -> str:
    """Settings on one line."""
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in settings.items()
    )
