"""What a worker process does: it trains one trial after the other, with its data and its imports kept."""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar

import numpy as np

from loom.app import AppFile, load_app
from loom.background import end_with_parent
from loom.config import TrainingConfig, from_dict
from loom.errors import UserError

BYTES_PER_PARAMETER = 16
"""Weight, gradient and the two moments that Adam keeps, in float32."""
FEW = 8
"""Examples that tell the names of an application's own metrics."""
LOCK_SECONDS = 30.0
"""How long to wait for a worker that died to let go of a run."""

C = TypeVar("C", bound=TrainingConfig)
Report = Callable[[int, float], bool]
"""Takes number and objective of an epoch that is over; returns whether to go on."""


@dataclass(frozen=True)
class Job:
    """What all tasks of a pool of workers have in common.

    Attributes:
        file: The application.
        max_parameters: Models with more are refused.
        asks: Whether every epoch waits to be told to go on.
    """

    file: AppFile
    max_parameters: int
    asks: bool = False


@dataclass(frozen=True)
class Question:
    """Asks which metrics there are, before anything is trained.

    Attributes:
        config: Settings of a run.
    """

    config: Mapping[str, Any]


@dataclass(frozen=True)
class Names:
    """What the metrics are called, and which of them the application looks at."""

    metrics: list[str]
    objective: str


@dataclass(frozen=True)
class Task:
    """One training run.

    Attributes:
        run_id: Where it is recorded.
        config: Its settings.
        objective: Metric that makes the score.
        direction: Whether a good one is small or large.
        parent: Run whose training it goes on with.
    """

    run_id: str
    config: Mapping[str, Any]
    objective: str
    direction: Literal["min", "max"]
    parent: str | None = None


@dataclass(frozen=True)
class Epoch:
    """An epoch is over."""

    number: int
    objective: float


@dataclass(frozen=True)
class Done:
    """A training run is over: the best objective, and what it took.

    Attributes:
        score: Best objective.
        seconds: How long.
        parameters: Size of the model.
        gpu_memory: Most bytes that were in use on the GPU.
    """

    score: float
    seconds: float
    parameters: int
    gpu_memory: int = 0


@dataclass(frozen=True)
class Failed:
    """A training run came to nothing.

    Attributes:
        reason: Why.
        was_killed: Whether its process was killed from outside, which says nothing about the run.
    """

    reason: str
    was_killed: bool = False


def work(connection: Connection, job: Job, log: Path, environment: Mapping[str, str]) -> None:
    """Trains what comes through the connection until it closes or None comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.environ |= environment
    _write_to(log)
    trainer = Trainer(job)

    def report(number: int, objective: float) -> bool:
        connection.send(Epoch(number, objective))
        return not job.asks or bool(connection.recv())

    while (task := _received(connection)) is not None:
        connection.send(trainer.result(task, report))


def _received(connection: Connection) -> Task | Question | None:
    try:
        return connection.recv()
    except EOFError:
        return None


def _write_to(log: Path) -> None:
    """Lets what libraries print go to a file, where the reason of a crash can be looked up."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    faulthandler.enable()


class Trainer:
    """Trains trials in this process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._app = load_app(job.file)
        self._data = Cache()

    def result(self, task: Task | Question, report: Report) -> Done | Failed | Names:
        """Trains one; whatever goes wrong is an answer."""
        from loom.lazy import tf

        try:
            return self._names(task) if isinstance(task, Question) else self._trained(task, report)
        except UserError as error:
            return Failed(str(error))
        except (MemoryError, tf.errors.ResourceExhaustedError) as error:
            return Failed(f"out of memory: {_first_line(error)}")
        except Exception as error:
            return Failed(f"{type(error).__name__}: {_first_line(error)}")

    def _names(self, question: Question) -> Names:
        from loom.train import build_run

        config = replace(from_dict(self._app.config, question.config), devices=1)
        with TemporaryDirectory() as folder:
            run = build_run(self._app, config, self._examples(config), Path(folder))
            names = list(run.model.get_metrics_result())
            few = run.data.validation.take(np.arange(min(FEW, len(run.data.validation))))
            of_whole_parts = list(run.evaluate(few))
        objective = self._app.resolve("objective", config, run.data.spec)
        return Names([f"val_{name}" for name in (*names, *of_whole_parts)] + names, objective)

    def _trained(self, task: Task, report: Report) -> Done:
        from rich.console import Console

        from loom import checkpoint
        from loom.lazy import keras
        from loom.progress import Progress
        from loom.tracking import RecordedRun, Store
        from loom.train import build_run, fit_recorded

        start = time.perf_counter()
        app = replace(self._app, objective=task.objective, direction=task.direction)
        keras.backend.clear_session()
        config = from_dict(self._app.config, task.config)
        store = Store()
        tracker = _opened(store, task.run_id)
        try:
            examples = self._examples(config)
            with TemporaryDirectory() as folder:
                with _small_enough(self._job.max_parameters):
                    run = build_run(app, config, examples, Path(folder))
                if task.parent is not None:
                    checkpoint.take_over(RecordedRun(store, store.run(task.parent)), tracker)
                if self._go_on(tracker, run, task, report):
                    run.callbacks.append(_reporting(run, report, task.objective))
                    fit_recorded(run, tracker, Progress(Console(quiet=True), start))
        finally:
            tracker.release()
        history = [metrics[recorded_name(task.objective)] for metrics in run.history]
        best = min if task.direction == "min" else max
        finite = [value for value in history if math.isfinite(value)]
        if not finite:
            raise UserError(f"{task.objective} was never a number")
        seconds = time.perf_counter() - start
        return Done(best(finite), seconds, run.model.count_params(), _gpu_memory())

    def _go_on(self, tracker: Any, run: Any, task: Task, report: Report) -> bool:
        """Reports the epochs that there are already; returns whether more are wanted."""
        from loom import checkpoint

        state = checkpoint.read(tracker)
        for record in checkpoint.progress(state)["epochs"] if state else []:
            run.history.append(record["metrics"])
            if not report(record["epoch"], record["metrics"][recorded_name(task.objective)]):
                return False
        return True

    def _examples(self, config: TrainingConfig) -> Any:
        from loom import runtime
        from loom.train import encoded

        runtime.start(config)
        return self._data.get(config, lambda config: encoded(self._app, config, self._app.load(config)))


class Cache:
    """The last value that was computed from a config, for configs that differ only in what was not looked at."""

    def __init__(self) -> None:
        self._seen: dict[str, Any] = {}
        self._value: Any = None

    def get(self, config: C, compute: Callable[[C], Any]) -> Any:
        """Returns the value, computed anew if a field that it depends on has changed."""
        if not self._seen or any(getattr(config, name) != value for name, value in self._seen.items()):
            self._value = None  # not two of them at once
            watched, read = _watched(config)
            self._value = compute(watched)
            self._seen = {name: getattr(config, name) for name in read}
        return self._value


def _watched(config: C) -> tuple[C, set[str]]:
    """Returns the same config, and the names of its fields that have been read."""
    names = {field.name for field in fields(config)}
    read: set[str] = set()
    kind: Any = type(config)

    class Watched(kind):
        def __getattribute__(self, name: str) -> Any:
            if name in names:
                read.add(name)
            return super().__getattribute__(name)

    watched = object.__new__(Watched)
    object.__getattribute__(watched, "__dict__").update(vars(config))
    return watched, read


@contextmanager
def _small_enough(most: int) -> Iterator[None]:
    """Refuses a model before the weights that make it too large are there."""
    from loom.lazy import keras

    add_weight = keras.layers.Layer.add_weight
    count = 0

    def counted(layer: Any, shape: Any = None, *args: Any, **options: Any) -> Any:
        nonlocal count
        count += math.prod(shape or ())
        if count > most:
            raise UserError(f"too large: more than {most:,} parameters; refused before training (--max-parameters)")
        return add_weight(layer, shape, *args, **options)

    keras.layers.Layer.add_weight = counted
    try:
        yield
    finally:
        keras.layers.Layer.add_weight = add_weight


def _gpu_memory() -> int:
    """Most bytes in use on the GPU since the last call."""
    from loom.lazy import tf

    if not tf.config.list_logical_devices("GPU"):
        return 0
    peak = int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    tf.config.experimental.reset_memory_stats("GPU:0")
    return peak


def recorded_name(metric: str) -> str:
    """Name under which runs record a metric of Keras'."""
    return metric if metric.startswith("val_") else f"train_{metric}"


def _reporting(run: Any, report: Report, objective: str) -> Any:
    from loom.lazy import keras

    class Reporting(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
            value = (logs or {}).get(objective)
            if value is not None and not report(epoch, float(value)):
                self.model.stop_training = run.is_over = True

    return Reporting()


def _opened(store: Any, run_id: str) -> Any:
    """The run to record to; a worker that was killed may hold it for a moment longer."""
    from loom.tracking import Tracker

    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return Tracker.reopen(store, run_id)
        except UserError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0][:300]
