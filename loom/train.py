"""One training run, from its settings to a model that is proved to load."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from loom import checkpoint, lazy, report, runtime
from loom.app import Answer, App, AppFile, Metrics, load_app
from loom.background import Baselines
from loom.config import TrainingConfig, changed_fields
from loom.data.encode import Encoder
from loom.data.pipeline import Data
from loom.errors import UserError
from loom.fresh import TOLERANCE, FreshProcess, largest_difference
from loom.progress import Progress
from loom.run import Run, fit, test
from loom.saving import MODEL, save_model
from loom.tracking import Store, Tracker, read_json, run_tags

if TYPE_CHECKING:
    import pandas as pd

    from loom.callbacks import Recorder

CHECKED_ROWS = 32
"""Raw test examples whose answers a fresh process has to repeat."""
SAVED_ROWS = 8
"""Raw test examples that are saved with the model, to check other formats of it."""


@dataclass
class Training:
    """The parts of a run that its steps pass on to each other."""

    file: AppFile
    run: Run
    tracker: Tracker
    progress: Progress
    baselines: Baselines


def train(file: AppFile, config: TrainingConfig, console: Console, start: float, resume: str = "") -> dict[str, Any]:
    """Train, evaluate, record, export and check one run; returns what `--json` prints.

    Args:
        file: The application.
        config: Its settings.
        console: Where progress is shown.
        start: Value of `time.perf_counter` when the command started.
        resume: Id of the stopped run to go on with; "" starts a new one.

    Raises:
        UserError: A setting, the data, the store or the run to resume cannot be used.
    """
    app = load_app(file)
    store = Store()
    store.check_writable()
    if resume:
        store.check_resumable(resume)
    progress = Progress(console, start)
    lazy.after_import("tensorflow", lambda: runtime.start(config))
    with progress.phase("reading data"):
        data = app.load(config)
    baselines = Baselines(file, config, data)
    try:
        with tempfile.TemporaryDirectory() as folder:
            with progress.phase("preparing data"):
                run = prepare(app, config, data, Path(folder))
            with progress.phase("opening the store"):
                tracker = _reopen(store, resume, run) if resume else _create(store, run)
            with _closed_properly(app.name, tracker, progress):
                return _complete(Training(file, run, tracker, progress, baselines))
    finally:
        baselines.cancel()


def prepare(app: App, config: TrainingConfig, data: Data, folder: Path) -> Run:
    """Turn the examples into numbers and build the model."""
    settings = runtime.start(config)
    encode = Encoder(app.preprocess(config, data.spec), data.spec)
    data = data.map_splits(lambda split: replace(split, inputs=encode(split.raw)))
    with settings.scope():
        run = Run(app, config, data, settings, app.build(config, data.spec), folder)
        if config.devices > 1:
            runtime.synchronize_batch_norm(run.model)
        runtime.compile_model(run.model, app, config, data.spec, settings, len(run.train_batches))
        run.model.optimizer.build(run.model.trainable_variables)
    return run


def _create(store: Store, run: Run) -> Tracker:
    app, config, settings = run.app.name, run.config, run.runtime
    tags = run_tags(app, "train", settings.device, settings.threads)
    tracker = Tracker.create(store, app, config, tags, _run_name(config))
    data = run.data
    counts = {name: len(split) for name, split in data.splits.items()}
    fingerprint = data.fingerprint()
    bad = [{"where": where, "why": why} for where, why in data.bad]
    description = {"source": data.source, "fingerprint": fingerprint, "counts": counts, "quarantined": bad}
    description |= {"notes": list(data.notes)}
    tracker.log_json("data.json", description)
    tracker.log_dataset(config.data.rpartition("/")[2], data.source, fingerprint, counts)
    return tracker


def _run_name(config: TrainingConfig) -> str:
    """The data, and the settings that are not the defaults; short enough for a column."""
    changed = changed_fields(config, type(config)())
    shown = {name: value for name, value in changed.items() if name not in ("data", "data_dir")}
    source = config.data.removeprefix("tfds:").rstrip("/").rpartition("/")[2]
    return " ".join([source, *(f"{name}={value}" for name, value in shown.items())])[:60]


def _reopen(store: Store, run_id: str, run: Run) -> Tracker:
    recorded = read_json(store, run_id, "data.json")["fingerprint"]
    if recorded != run.data.fingerprint():
        raise UserError(f"--resume {run_id}: the data in {run.data.source} has changed since the run was started")
    return Tracker.reopen(store, store.run(run_id))


def _complete(training: Training) -> dict[str, Any]:
    """Everything between an open run and a finished one."""
    run, tracker, progress = training.run, training.tracker, training.progress
    progress.say(f"run {tracker.run_name} ({tracker.run_id}): {_describe(run)}")
    for note in run.data.notes:
        progress.say(f"note: {note}")
    fresh = FreshProcess()
    try:
        with progress.phase("training"):
            recorder = _fit(training)
        with progress.phase("testing"):
            run.test_metrics = test(run)
        with progress.phase("saving the model"):
            model = _save(training)
        examples = run.data.test.raw.head(CHECKED_ROWS)
        fresh.ask(model, as_records(examples))
        with progress.phase("report"):
            report.draw(run)
            tracker.log_folder(run.folder, "report")
        with progress.phase("checking the saved model"):
            difference = _check(run, examples, fresh.answers(model))
    finally:
        fresh.close()
    with progress.phase("waiting for the baselines"):
        baselines = training.baselines.result()
    return _conclude(training, recorder, baselines, difference)


def _fit(training: Training) -> Recorder:
    from loom import callbacks

    run = training.run
    state = checkpoint.read(training.tracker)
    recorder = callbacks.Recorder(run, training.tracker, training.progress, state)
    objective = run.app.resolve("objective", run.config, run.data.spec)
    if run.config.patience:
        run.callbacks.append(callbacks.early_stopping(objective, run.config.patience))
    run.callbacks.append(recorder)
    if state is not None:
        done = checkpoint.progress(state)
        run.initial_epoch = run.config.epochs if done["stopped"] else len(done["epochs"])
    training.tracker.start_system_metrics()
    (run.app.fit or fit)(run)
    return recorder


def _save(training: Training) -> Path:
    """Save the model and record it; returns its folder here."""
    folder = training.run.folder.parent / f"{training.tracker.run_id}.model"
    try:
        examples = as_records(training.run.data.test.raw.head(SAVED_ROWS))
        save_model(training.run.trained, training.file, examples, folder)
        training.tracker.log_folder(folder, MODEL)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return training.tracker.local_copy(MODEL)


def _check(run: Run, examples: pd.DataFrame, answers: list[Answer]) -> float:
    """Compare the answers of a fresh process, which loaded the saved model, with the trained model's own.

    Raises:
        RuntimeError: They differ by more than two processes' arithmetic does.
    """
    difference = largest_difference(run.trained.predict(examples), answers)
    if not difference <= TOLERANCE[run.runtime.precision]:
        raise RuntimeError(f"the saved model's answers differ from the trained model's by {difference:.3g}")
    return difference


def _conclude(
    training: Training, recorder: Recorder, baselines: dict[str, Metrics], difference: float
) -> dict[str, Any]:
    """Record what the run came to, close it, and show it."""
    run, tracker, progress = training.run, training.tracker, training.progress
    seconds = time.perf_counter() - progress.start
    timings = {f"seconds_{name.replace(' ', '_')}": value for name, value in progress.seconds.items()}
    timings |= {"seconds_total": seconds, "seconds_tracking": recorder.seconds}
    metrics = {f"test_{name}": value for name, value in run.test_metrics.items()}
    metrics |= {f"baseline_{name}_{m}": v for name, values in baselines.items() for m, v in values.items()}
    tracker.log_metrics_once(metrics | timings | {"check_difference": difference})
    checkpoint.remove(tracker)
    tracker.finish()
    report.show(progress.console, run, baselines, tracker, seconds)
    return {
        "run_id": tracker.run_id,
        "app": run.app.name,
        "metrics": {**run.history[-1], **metrics},
        "seconds": seconds,
        "timings": timings,
        "model": str(tracker.local_copy(MODEL)),
    }


def as_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries that JSON can hold; missing values are None."""
    values = frame.astype(object)
    return [
        {str(name): value for name, value in row.items()}
        for row in values.where(frame.notna(), None).to_dict("records")
    ]


def _describe(run: Run) -> str:
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in run.data.splits.items())
    settings = run.runtime
    where = f"{settings.device}, {settings.threads} threads" + (
        f", {settings.devices} devices" if settings.strategy else ""
    )
    compiled = "XLA" if settings.jit else "no XLA"
    bad = f", {len(run.data.bad)} quarantined" if run.data.bad else ""
    return f"{sizes}{bad}; {run.model.count_params():,} parameters; {where}, {settings.precision}, {compiled}"


@contextmanager
def _closed_properly(app: str, tracker: Tracker, progress: Progress) -> Iterator[None]:
    """Close the run as KILLED or FAILED, with the reason, when its steps do not come to their end."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        progress.close()
        tracker.finish("KILLED", "interrupted")
        raise KeyboardInterrupt(f"stopped; go on with: loom train {app} --resume {tracker.run_id}") from None
    except BaseException as error:
        progress.close()
        tracker.finish("FAILED", str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
