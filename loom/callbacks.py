"""What happens around each epoch: the order of the data, progress, tracking, and the checkpoint."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import keras

from loom import checkpoint
from loom.app import Metrics
from loom.errors import UserError
from loom.progress import Progress
from loom.run import Run
from loom.tracking import Tracker, now

FIRST_STEP_POLL = 0.02
"""Seconds between two looks at whether the first step is done."""


class WholePart(keras.callbacks.Callback):
    """Adds an application's metrics of the whole validation part to an epoch's; before callbacks that look at them."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def on_epoch_end(self, epoch: int, logs: Metrics | None = None) -> None:
        """Measure the epoch's model."""
        metrics = self._run.evaluate(self._run.data.validation)
        (logs if logs is not None else {}).update({f"val_{name}": value for name, value in metrics.items()})


class Recorder(keras.callbacks.Callback):
    """Keeps the record of a training run; the last of its callbacks, so that it sees what the others decided.

    An epoch's state is copied when the epoch ends; writing it, and then logging the epoch's metrics, goes on beside the
    next epoch. The state is on disk before its metrics are logged, and a resumed run logs its last epoch again with the
    same timestamps, which MLflow stores once: no epoch is lost and none is there twice.
    """

    def __init__(self, run: Run, tracker: Tracker, progress: Progress, state: checkpoint.State | None) -> None:
        super().__init__()
        self._run = run
        self._tracker = tracker
        self._progress = progress
        self._state = state
        self._writer = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._records: list[dict[str, Any]] = checkpoint.progress(state)["epochs"] if state else []
        self._epoch_start = self._validation_start = 0.0
        self._watching = False
        self._closed = threading.Event()
        self.seconds = 0.0
        """Time spent here while training waited."""

    def on_train_begin(self, logs: Metrics | None = None) -> None:
        """Go on from the checkpoint, and log its last epoch in case the run was killed before it could."""
        if self._state is not None:
            checkpoint.restore(self._state, self.model, self._run.callbacks)
            self._state = None  # restored once; it is as large as the model
            self._log(self._records[-1])
        self._progress.begin_training(
            self._run.config.epochs, len(self._run.train_batches), lambda: self._run.train_batches.served
        )
        self._run.history[:] = [record["metrics"] for record in self._records]
        self._announce_phase()

    def on_epoch_begin(self, epoch: int, logs: Metrics | None = None) -> None:
        """Order the epoch's examples."""
        self._run.train_batches.epoch = epoch
        if not self._watching:
            self._watching = True
            threading.Thread(target=self._watch_first_step, args=(self._iterations(),), daemon=True).start()
        self._progress.start_epoch(epoch)
        self._epoch_start = self._validation_start = time.perf_counter()

    def on_test_begin(self, logs: Metrics | None = None) -> None:
        """Training of the epoch is over, validation begins."""
        self._validation_start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Metrics | None = None) -> None:
        """Record the epoch."""
        start = time.perf_counter()
        self._check_objective(logs or {})
        metrics = self._metrics(logs or {}, start)
        record = {"epoch": epoch, "phase": self._run.phase, "timestamp": now(), "metrics": metrics}
        self._records.append(record)
        self._run.history.append(metrics)
        self._progress.end_epoch(epoch, metrics)
        _check_finite(epoch, metrics)
        state = checkpoint.capture(
            self.model, self._run.callbacks, {"epochs": self._records, "stopped": self.model.stop_training}
        )
        self.wait()
        self._pending = self._writer.submit(self._write, state, record)
        self.seconds += time.perf_counter() - start

    def on_train_end(self, logs: Metrics | None = None) -> None:
        """Everything is on disk and logged when training is over."""
        start = time.perf_counter()
        self.wait()
        self.seconds += time.perf_counter() - start

    def wait(self) -> None:
        """Wait for the epoch that is being written; its errors come up here."""
        if self._pending is not None:
            self._pending.result()

    def close(self) -> None:
        """End the threads, however training ended; what is being written is written."""
        self._closed.set()
        self._writer.shutdown()

    def _announce_phase(self) -> None:
        run = self._run
        if len(run.phases) == 1 or run.initial_epoch >= run.last_epoch:
            return
        trained = sum(math.prod(variable.shape) for variable in self.model.trainable_variables)
        self._progress.say(
            f"phase {run.phase + 1}/{len(run.phases)}, {run.phases[run.phase].name}: trains {trained:,} of "
            f"{self.model.count_params():,} parameters, learning rate {run.phases[run.phase].learning_rate:g}"
        )

    def _check_objective(self, logs: Metrics) -> None:
        run = self._run
        objective = run.app.resolve("objective", run.config, run.data.spec)
        if objective not in logs:
            raise UserError(f"{run.app.name}: the objective {objective!r} is none of the metrics {', '.join(logs)}")

    def _metrics(self, logs: Metrics, end: float) -> Metrics:
        metrics = {name if name.startswith("val_") else f"train_{name}": float(value) for name, value in logs.items()}
        metrics["lr"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        if len(self._run.phases) > 1:
            metrics["phase"] = self._run.phase + 1.0
        metrics["epoch_seconds"] = end - self._epoch_start
        training = max(self._validation_start - self._epoch_start, 1e-9)
        metrics["examples_per_second"] = len(self._run.data.train) / training
        return metrics

    def _write(self, state: checkpoint.State, record: dict[str, Any]) -> None:
        checkpoint.save(state, self._tracker)
        self._log(record)

    def _log(self, record: dict[str, Any]) -> None:
        self._tracker.log_metrics(record["metrics"], record["epoch"], record["timestamp"])

    def _iterations(self) -> int:
        return int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))

    def _watch_first_step(self, iterations: int) -> None:
        """A hook for every batch would make the model wait for its own logs; looking at a counter does not."""
        while not self._closed.wait(FIRST_STEP_POLL):
            if self._iterations() != iterations:
                self._progress.first_step()
                return


def _check_finite(epoch: int, metrics: Metrics) -> None:
    for name, value in metrics.items():
        if name.startswith("train_") and not math.isfinite(value):
            raise UserError(
                f"the {name.removeprefix('train_')} became {value} in epoch {epoch + 1}: "
                "try a smaller --learning-rate or --clip-norm 1, and look for unscaled numbers in the data"
            )
