"""A search by KerasTuner alone, in one process, and by `loom tune` with two workers, tracking included.

Both make the same number of random trials of `benchmarks/small_lstm.py`, each in a fresh process and an empty folder,
in turn; what counts is the time from the start of the process to its end. The memory is that of the coordinator, the
server and the workers together, after the first trials and after many.

    python benchmarks/tuning.py --json benchmarks/results/tuning.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measuring
import psutil

APPLICATION = Path(__file__).with_name("small_lstm.py")
TRIALS, REPEATS, WORKERS = 24, 3, 2
EARLY, LATE = 10, 100


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few trials, once, and no memory")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--keras-tuner", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.keras_tuner:
        _with_keras_tuner(options.keras_tuner)
        return
    trials = 6 if options.quick else TRIALS
    seconds: dict[str, list[float]] = {"ours": [], "KerasTuner": []}
    for _ in range(1 if options.quick else REPEATS):
        seconds["KerasTuner"].append(_seconds([sys.executable, __file__, "--keras-tuner", str(trials)]))
        seconds["ours"].append(_seconds(_search(trials)))
    rates = {side: 60 * trials / statistics.median(each) for side, each in seconds.items()}
    ratio = statistics.median(theirs / own for own, theirs in zip(seconds["ours"], seconds["KerasTuner"], strict=True))
    print("| | seconds | trials per minute |\n|---|---|---|")
    for side, each in seconds.items():
        print(f"| {side} | {statistics.median(each):.1f} | {rates[side]:.1f} |")
    print(f"\n{ratio:.2f} times the trials per minute")
    result: dict[str, Any] = {"trials": trials, "workers": WORKERS, "seconds": seconds, "rates": rates, "ratio": ratio}
    if not options.quick:
        result["memory"] = _memory()
        early, late = result["memory"]["mb"]
        print(f"memory of all processes: {early:.0f} MB after {EARLY} trials, {late:.0f} MB after {LATE}")
    if options.json:
        result |= {"versions": measuring.versions(), "machine": measuring.machine(measuring.product_rate())}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _search(trials: int) -> list[str]:
    loom = [sys.executable, "-m", "loom", "tune", str(APPLICATION), "--no-final"]
    return [*loom, "--trials", str(trials), "--workers", str(WORKERS), "--json"]


def _seconds(command: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


def _memory() -> dict[str, Any]:
    """Memory of a long study: the median over the trials around the early and the late one."""
    with tempfile.TemporaryDirectory() as folder:
        command = _search(LATE + 5)
        samples: list[tuple[int, float]] = []
        with subprocess.Popen(
            command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stderr is not None
            ended = 0
            for line in process.stderr:
                if line.startswith("trial "):
                    ended += 1
                    samples.append((ended, _megabytes(process.pid)))
        assert process.returncode == 0
    around = {
        place: statistics.median(mb for ended, mb in samples if abs(ended - place) <= 4) for place in (EARLY, LATE)
    }
    return {"after": [EARLY, LATE], "mb": [around[EARLY], around[LATE]], "samples": samples}


def _megabytes(process: int) -> float:
    """Memory of a process and all below it; what they share counts once."""
    everyone = [psutil.Process(process), *psutil.Process(process).children(recursive=True)]
    total = 0
    for each in everyone:
        try:
            total += each.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20


def _with_keras_tuner(trials: int) -> None:
    """The search as its documentation has it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import keras_tuner
    import numpy as np
    import small_lstm

    data = small_lstm.load(small_lstm.Config())
    encode = small_lstm.preprocess(small_lstm.Config(), data.spec)
    parts = {}
    for name in ("train", "validation"):
        split = getattr(data, name)
        waves = encode.predict({"value": split.raw[["value"]].to_numpy(np.float32)}, verbose=0)
        parts[name] = (waves, {"above": split.targets["above"]})

    def build(hp: keras_tuner.HyperParameters) -> keras.Model:
        settings = small_lstm.space(hp)
        model = small_lstm.model_of(settings["units"], settings["dropout"])
        model.compile(keras.optimizers.Adam(settings["learning_rate"]), "binary_crossentropy", metrics=["accuracy"])
        return model

    class Search(keras_tuner.RandomSearch):
        def _configure_tensorboard_dir(self, *args: Any) -> None:
            """It needs tensorboard, which KerasTuner does not declare, also where no callback is TensorBoard's."""

    tuner = Search(build, objective="val_accuracy", max_trials=trials, seed=1, directory="search")
    inputs, targets = parts["train"]
    tuner.search(inputs, targets, validation_data=parts["validation"], epochs=small_lstm.EPOCHS, verbose=0)


if __name__ == "__main__":
    main()
