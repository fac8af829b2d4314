"""One training run, from its settings to a model that is proved to load."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from loom import checkpoint, lazy, report, runtime
from loom.app import Answer, App, AppFile, Metrics, load_app
from loom.background import Baselines
from loom.closing import closed_properly
from loom.config import TrainingConfig, changed_fields
from loom.data.encode import Encoder
from loom.data.files import as_base64
from loom.data.pipeline import Data
from loom.errors import UserError
from loom.fresh import TOLERANCE, FreshProcess, largest_difference
from loom.lazy import keras
from loom.progress import Progress
from loom.run import Run, begin_phase, fit, measure
from loom.saving import MODEL, save_model
from loom.tracking import Store, Tracker, read_json, run_tags, versions

if TYPE_CHECKING:
    import pandas as pd

    from loom.callbacks import Recorder

CHECKED_ROWS = 32
"""Raw test examples whose answers a fresh process has to repeat."""
ANSWERS_AT_A_TIE = 1
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


@dataclass(frozen=True)
class Outcome:
    """What a finished run came to, beside its test metrics."""

    baselines: dict[str, Metrics]
    difference: float
    """Largest difference between answers of the trained and of the saved model."""
    tracking_seconds: float
    seconds: float

    def metrics(self, run: Run) -> Metrics:
        """Metrics that are recorded once."""
        found = {f"test_{name}": value for name, value in run.test_metrics.items()}
        for baseline, values in self.baselines.items():
            found |= {f"baseline_{baseline}_{name}": value for name, value in values.items()}
        return found | {"check_difference": self.difference}

    def timings(self, progress: Progress) -> Metrics:
        """Where the time went."""
        phases = {f"seconds_{name.replace(' ', '_')}": value for name, value in progress.seconds.items()}
        return phases | {"seconds_total": self.seconds, "seconds_tracking": self.tracking_seconds}


def train(
    file: AppFile,
    config: TrainingConfig,
    console: Console,
    start: float,
    resume: str = "",
    tags: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Train, evaluate, record, export and check one run; returns what `--json` prints.

    Args:
        file: The application.
        config: Its settings.
        console: Where progress is shown.
        start: Value of `time.perf_counter` when the command started.
        resume: Id of the stopped run to go on with; "" starts a new one.
        tags: More tags of a new run.

    Raises:
        UserError: A setting, the data, the store or the run to resume cannot be used.
    """
    app = load_app(file)
    store = Store()
    store.check_writable()
    tracker = Tracker.reopen(store, resume) if resume else None
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
                tracker = _same_run(tracker, run, progress) if tracker else _new_run(store, run, tags or {})
            go_on = f"loom train {file.argument} --resume {tracker.run_id}"
            with closed_properly(partial(_stop, tracker, progress), go_on):
                outcome = _complete(Training(file, run, tracker, progress, baselines), bool(resume))
            return _conclude(run, tracker, progress, outcome)
    finally:
        baselines.cancel()


def _stop(tracker: Tracker, progress: Progress, status: str, reason: str) -> None:
    progress.close()
    tracker.finish(status, reason)


def prepare(app: App, config: TrainingConfig, data: Data, folder: Path) -> Run:
    """Turn the examples into numbers and build the model."""
    runtime.start(config)
    return build_run(app, config, encoded(app, config, data), folder)


def encoded(app: App, config: TrainingConfig, data: Data) -> Data:
    """The examples as numbers, if they are none yet."""
    if data.train.inputs:
        return data
    with runtime.full_precision():
        encode = Encoder(app.preprocess(config, data.spec), data.spec)
    return data.map_splits(lambda split: replace(split, inputs=encode(split.raw)))


def build_run(app: App, config: TrainingConfig, data: Data, folder: Path) -> Run:
    """Build the model for examples that are numbers; the same one, whatever this process has done before."""
    settings = runtime.start(config)
    with settings.scope():
        model = app.build(config, data.spec)
        notes = app.start(config, model) if app.start else ()
        run = Run(app, config, replace(data, notes=(*data.notes, *notes)), settings, model, folder)
        if config.devices > 1:
            runtime.synchronize_batch_norm(run.model)
    begin_phase(run, 0)
    return run


def _new_run(store: Store, run: Run, tags: Mapping[str, str]) -> Tracker:
    tags = run_tags(run.app.name, "train", run.runtime.tags()) | dict(tags)
    return Tracker.create(store, run.app.name, tags, _run_name(run.config))


def _run_name(config: TrainingConfig) -> str:
    """The data, and the settings that are not the defaults; short enough for a column."""
    changed = changed_fields(config, type(config)())
    shown = {name: value for name, value in changed.items() if name not in ("data", "data_dir")}
    source = config.data.removeprefix("tfds:").rstrip("/").rpartition("/")[2]
    return " ".join([source, *(f"{name}={value}" for name, value in shown.items())])[:60]


def _same_run(tracker: Tracker, run: Run, progress: Progress) -> Tracker:
    """Make sure that a stopped run goes on with the same data, and say where the same bits are not to be expected."""
    recorded = read_json(tracker.store, tracker.run_id, "data.json")["fingerprint"]
    if recorded != run.data.fingerprint():
        problem = f"the data in {run.data.source} has changed since the run was started"
        raise UserError(f"--resume {tracker.run_id}: {problem}; `--from-run` starts anew with it")
    tags = tracker.tags()
    for name, value in {**run.runtime.tags(), **versions()}.items():
        if tags.get(name, value) != value:
            progress.say(f"note: {name} was {tags[name]} and is {value}: results may differ in their last digits")
    return tracker


def _describe_data(training: Training) -> None:
    """Record which data the run is about."""
    data, tracker = training.run.data, training.tracker
    counts = {name: len(split) for name, split in data.splits.items()}
    fingerprint = data.fingerprint()
    bad = [{"where": where, "why": why} for where, why in data.bad]
    description = {"source": data.source, "fingerprint": fingerprint, "counts": counts, "quarantined": bad}
    tracker.log_json("data.json", description | {"notes": list(data.notes)})
    name = training.run.config.data.rstrip("/").rpartition("/")[2]
    tracker.log_dataset(name, data.source, fingerprint, counts)


def _complete(training: Training, resumed: bool) -> Outcome:
    """Everything between an open run and a finished one."""
    run, tracker, progress = training.run, training.tracker, training.progress
    if resumed:
        tracker.restart()
    else:
        tracker.log_settings(run.config)
        _describe_data(training)
    progress.say(f"run {tracker.run_name} ({tracker.run_id}): {_describe(run)}")
    for note in run.data.notes:
        progress.say(f"note: {note}")
    fresh = FreshProcess()
    try:
        with progress.phase("training"):
            tracker.start_system_metrics()
            recorder = fit_recorded(run, tracker, progress)
        with progress.phase("testing"):
            run.test_metrics = measure(run)
        with progress.phase("saving the model"):
            model = _save(training)
        examples = run.asked(CHECKED_ROWS)
        fresh.ask(model, as_records(examples))
        # Before the report asks for more: sampled answers depend on what was asked before.
        expected = run.trained.predict(examples)
        with progress.phase("report"):
            report.draw(run)
            tracker.log_folder(run.folder, "report")
        with progress.phase("checking the saved model"):
            difference = _check(expected, fresh.answers(model), TOLERANCE[run.runtime.precision])
    finally:
        fresh.close()
    with progress.phase("waiting for the baselines"):
        baselines = training.baselines.result()
    outcome = Outcome(baselines, difference, recorder.seconds, time.perf_counter() - progress.start)
    tracker.log_metrics_once(outcome.metrics(run) | outcome.timings(progress))
    tracker.finish()
    return outcome


def fit_recorded(run: Run, tracker: Tracker, progress: Progress) -> Recorder:
    """Train, from the run's checkpoint if it has one, and record every epoch."""
    from loom import callbacks

    state = checkpoint.read(tracker)
    recorder = callbacks.Recorder(run, tracker, progress, state)
    objective = run.app.resolve("objective", run.config, run.data.spec)
    if run.app.evaluate is not None:
        run.callbacks.insert(0, callbacks.WholePart(run))
    if run.config.patience:
        stopping = keras.callbacks.EarlyStopping(
            objective, patience=run.config.patience, mode=run.app.direction, restore_best_weights=True
        )
        run.callbacks.append(stopping)
    run.callbacks.append(recorder)
    if state is not None:
        _go_on_in_phase(run, checkpoint.progress(state))
    try:
        (run.app.fit or fit)(run)
    finally:
        recorder.close()
    return recorder


def _go_on_in_phase(run: Run, progress: Mapping[str, Any]) -> None:
    """Begin the phase of the last epoch again: the checkpoint holds the state of its optimizer."""
    phases = [record.get("phase", 0) for record in progress["epochs"]]
    if phases[-1] != run.phase:
        run.initial_epoch = phases.index(phases[-1])
        begin_phase(run, phases[-1])
    run.initial_epoch = len(phases)
    if progress["stopped"]:
        run.last_epoch = len(phases)


def _save(training: Training) -> Path:
    """Save the model and record it; returns its folder here."""
    folder = training.run.folder.parent / f"{training.tracker.run_id}.model"
    try:
        examples = as_records(training.run.asked(SAVED_ROWS))
        save_model(training.run.trained, training.file, examples, folder)
        training.tracker.log_folder(folder, MODEL)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return training.tracker.local_copy(MODEL)


def _check(expected: list[Answer], answers: list[Answer], tolerance: float) -> float:
    """Compare the answers of a fresh process, which loaded the saved model, with the trained model's own.

    One answer may differ altogether: at a tie, the last digit decides what is said.

    Raises:
        RuntimeError: They differ by more than two processes' arithmetic does.
    """
    if len(answers) != len(expected):
        raise RuntimeError(f"the saved model gave {len(answers)} answers to {len(expected)} examples")
    differences = sorted(map(largest_difference, expected, answers))
    beyond = sum(not difference <= tolerance for difference in differences)
    if beyond > ANSWERS_AT_A_TIE:
        raise RuntimeError(f"{beyond} of {len(expected)} answers of the saved model differ from the trained model's")
    return differences[-1 - beyond]


def _conclude(run: Run, tracker: Tracker, progress: Progress, outcome: Outcome) -> dict[str, Any]:
    """Tidy up after a finished run, and show what it came to."""
    checkpoint.remove(tracker)
    report.show(progress.console, run, outcome.baselines, tracker, outcome.seconds)
    return {
        "run_id": tracker.run_id,
        "app": run.app.name,
        "metrics": {**(run.history[-1] if run.history else {}), **outcome.metrics(run)},
        "seconds": outcome.seconds,
        "timings": outcome.timings(progress),
        "model": str(tracker.local_artifacts / MODEL) if tracker.local_artifacts else f"{tracker.artifact_uri}/{MODEL}",
    }


def as_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries that JSON can hold; missing values are None, images base64 text."""
    values = frame.astype(object)
    return [
        {str(name): as_base64(value) if isinstance(value, bytes) else value for name, value in row.items()}
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
