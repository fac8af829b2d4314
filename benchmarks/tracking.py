"""What tracking, checkpoints and reports cost: the same training with and without them, epoch by epoch in turn.

python benchmarks/tracking.py [--data DATA] [--data-dir DIR] [--quick] [--json FILE]

Inside training: the same model with plain `keras.Model.fit` and with the callbacks of a run (metrics to MLflow,
whole-state checkpoint) in turn; medians. Outside: opening the store, drawing and recording the report.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from apps.sentiment import APP, Config, load
from loom import report, runtime
from loom.lazy import keras
from loom.progress import Progress
from loom.run import Run, fit, measure
from loom.tracking import Store, Tracker, run_tags
from loom.train import prepare

EPOCHS = 5
"""Epochs of one training; its last has to wait for its own record, the others are recorded beside the next."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--quick", action="store_true", help="one pair of trainings instead of seven")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    options = parser.parse_args()
    options.data_dir = options.data_dir and str(Path(options.data_dir).resolve())
    options.json = options.json and options.json.resolve()
    config = Config(data=options.data, data_dir=options.data_dir, epochs=EPOCHS, patience=0)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        (Path(folder) / "report").mkdir()
        result = _measure(config, Path(folder) / "report", pairs=1 if options.quick else 7)
    print("| part | without | with | cost |\n|---|---|---|---|")
    print("| an epoch, s | {plain:.3f} | {tracked:.3f} | {percent:.2f} % |".format(**result))
    print("| of it waiting in callbacks | | | {waited:.2f} % |".format(**result))
    print("| store and report, s | | {outside:.2f} | |".format(**result))
    if options.json:
        result["versions"] = {package: version(package) for package in ("keras", "tensorflow", "mlflow")}
        result["machine"] = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _measure(config: Config, folder: Path, pairs: int) -> dict[str, float]:
    runtime.start(config)
    run = prepare(APP, config, load(config), folder)
    start = time.perf_counter()
    store = Store()
    tracker = Tracker.create(store, APP.name, run_tags(APP.name, "train", run.runtime.tags()), "cost")
    tracker.log_settings(config)
    opening = time.perf_counter() - start
    from loom.callbacks import Recorder

    progress = Progress(Console(quiet=True), time.perf_counter())
    # The recorder sets the epoch, on which the order of the examples depends; without it, one order would repeat.
    order = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: setattr(run.train_batches, "epoch", epoch)
    )
    plain, tracked, waited = [], [], []
    fit(run)  # compiles
    for pair in range(pairs):
        recorder = Recorder(run, tracker, progress, None)
        for with_recorder in (pair % 2 == 0, pair % 2 == 1):  # neither is always the first
            seconds = _epoch(run, [recorder] if with_recorder else [order])
            (tracked if with_recorder else plain).append(seconds)
        recorder.close()
        waited.append(100 * recorder.seconds / (EPOCHS * tracked[-1]))
    measure(run)
    start = time.perf_counter()
    report.draw(run)
    tracker.log_folder(folder, "report")
    drawing = time.perf_counter() - start
    tracker.finish()
    middle, costly = statistics.median(plain), statistics.median(tracked)
    percent = 100 * statistics.median(b / a - 1 for a, b in zip(plain, tracked, strict=True))
    waiting = statistics.median(waited)
    return {"plain": middle, "tracked": costly, "percent": percent, "waited": waiting, "outside": opening + drawing}


def _epoch(run: Run, callbacks: list) -> float:
    """Seconds of one epoch, on average over one training."""
    run.callbacks[:] = callbacks
    start = time.perf_counter()
    fit(run)
    return (time.perf_counter() - start) / EPOCHS


if __name__ == "__main__":
    main()
