"""One display of what a run is doing: a live bar on a terminal, one line per epoch everywhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

POLL = 0.2
"""Seconds between two updates of the bar."""


class Progress:
    """Prints and times the phases and epochs of one run.

    Args:
        console: Where to print.
        start: Value of `time.perf_counter` when the command started.
    """

    def __init__(self, console: Console, start: float) -> None:
        self.console = console
        self.start = start
        self.seconds: dict[str, float] = {}
        """Duration of every phase that is over."""
        self._bar: _EpochBar | None = None
        self._epochs = 0
        self._served: Callable[[], int] = int
        self._batches = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase, and show its name while it lasts where there is a terminal to show it on."""
        began = time.perf_counter()
        if self.console.is_terminal:
            with self.console.status(name):
                yield
        else:
            yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def begin_training(self, epochs: int, batches: int, served: Callable[[], int]) -> None:
        """Announce how much there is to do; `served` tells how many batches of the epoch were handed out."""
        self._epochs, self._batches, self._served = epochs, batches, served

    def first_step(self) -> None:
        """The first training step is done."""
        self.seconds["first step"] = time.perf_counter() - self.start
        self.say(f"first training step after {self.seconds['first step']:.1f} s")

    def start_epoch(self, epoch: int) -> None:
        """Show a bar for the epoch."""
        if self.console.is_terminal:
            title = f"epoch {epoch + 1}/{self._epochs}"
            self._bar = _EpochBar(self.console, title, self._batches, self._served)

    def end_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Replace the bar by one line of metrics."""
        self.close()
        shown = {name: value for name, value in metrics.items() if name.startswith(("train_", "val_"))}
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
        self.say(f"epoch {epoch + 1}/{self._epochs}  {numbers}  {metrics['epoch_seconds']:.1f} s")

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _EpochBar:
    """A bar that looks by itself how far the epoch is, so that the training loop does nothing for it."""

    def __init__(self, console: Console, title: str, batches: int, served: Callable[[], int]) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Bars(*columns, console=console, transient=True)
        self._task = self._bars.add_task(title, total=batches)
        self._served = served
        self._closed = threading.Event()
        self._bars.start()
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        while not self._closed.wait(POLL):
            self._bars.update(self._task, completed=self._served())

    def close(self) -> None:
        self._closed.set()
        self._bars.stop()
