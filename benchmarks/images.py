"""Images on MNIST: the time to 0.99 beside a plain Keras network, the best in ten minutes, and what 1,000 images give.

python benchmarks/images.py --data-dir DIR_WITH_TFDS_DATA [--quick] [--json FILE] [--only PART] [--seeds 3]

`race`: three epochs of LeNet with batch normalization and a one-cycle schedule, and the convolutional network of
keras.io's `mnist_convnet` example (two convolutions with ReLU and max pooling, dropout 0.5, Adam, batches of 128, up to
15 epochs, ended when it has reached the threshold), in turn, each in a process of its own, on the same images in
memory, with a tenth of them held out to validate. Seconds are those of training with validation; the test accuracy is
taken after each epoch with the clock stopped. `full` is a `loom train images` command on all images; `notes` and
`thousand` are such commands on the first 1,000: the 784-40-10 network of the lecture notes with and without early
stopping, and all the application offers. `regularization` is `loom compare` on 1,000 images. `--quick` runs the
built-in digits, where the threshold is 0.9, for a few epochs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

NOTES = (
    "--max-train 1000 --model mlp --units 40 --no-bias --regularization none --loss squared_error "
    "--initializer uniform --optimizer sgd --learning-rate 0.025 --schedule constant --batch-size 1 --epochs 350 "
    "--steps-per-execution 50"
)
THOUSAND = "--max-train 1000 --epochs 80 --regularization both --rotation 12 --zoom 0.1 --elastic 1.2 --patience 0"
RACE = "--model lenet --regularization batchnorm --epochs 3 --batch-size 128 --learning-rate 0.01"
FULL = "--filters 24 --regularization batchnorm --epochs 8 --batch-size 128 --rotation 8 --translation 0.08"
COMMANDS = {
    "full": {"all images": FULL},
    "notes": {
        "notes, 350 epochs": NOTES,
        "notes, early stopping": f"{NOTES} --validation-fraction 0.5 --patience 20",
    },
    "thousand": {"everything": THOUSAND},
}
COMPARE = "--max-train 1000 --validation-fraction 0.67 --vary regularization=none,dropout,batchnorm,both"
PASSES = (20, 60)
THRESHOLD, QUICK_THRESHOLD = 0.99, 0.9
QUICK = "--max-train 500 --epochs 3 --test-fraction 0.5"


def main() -> None:
    """Run the parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="", help="folder with the prepared TFDS data set mnist")
    parser.add_argument("--quick", action="store_true", help="built-in digits instead of MNIST, a few epochs")
    parser.add_argument("--json", type=Path, help="file to write the results to; other parts in it stay")
    parser.add_argument("--only", choices=("race", *COMMANDS, "regularization"), help="only this part")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each case")
    parser.add_argument("--side", choices=("ours", "keras"), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    data = [] if options.quick else ["--data", "tfds:mnist", "--data-dir", str(Path(options.data_dir).resolve())]
    if options.side:
        print(json.dumps(_ours(data, options) if options.side == "ours" else _keras_io(data, options)))
        return
    result = json.loads(options.json.read_text("utf-8")) if options.json and options.json.exists() else {}
    if options.only in (None, "race"):
        result["race"] = _race(options)
    for part, commands in COMMANDS.items():
        if options.only in (None, part):
            result[part] = _commands(commands, data, options)
    if options.only in (None, "regularization"):
        result["regularization"] = _compare(data, options)
    if options.json:
        result["versions"] = {package: version(package) for package in ("keras", "tensorflow", "scikit-learn")}
        result["machine"] = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _race(options: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turn."""
    threshold = QUICK_THRESHOLD if options.quick else THRESHOLD
    print(f"| | seed | seconds to {threshold} | last test accuracy | all seconds |\n|---|---|---|---|---|")
    rows = []
    for seed in range(1 if options.quick else options.seeds):
        for side in ("ours", "keras"):
            arguments = [sys.executable, __file__, "--side", side, "--seed", str(seed), "--data-dir", options.data_dir]
            done = subprocess.run(
                [*arguments, *(["--quick"] if options.quick else [])], stdout=subprocess.PIPE, text=True, check=True
            )
            curve = json.loads(done.stdout.splitlines()[-1])
            reached = next((seconds for seconds, accuracy in curve if accuracy >= threshold), None)
            row = {"side": side, "seed": seed, "seconds_to_threshold": reached}
            row |= {"accuracy": curve[-1][1], "seconds": curve[-1][0], "curve": curve}
            row["date"] = time.strftime("%Y-%m-%d")
            rows.append(row)
            line = "| {side} | {seed} | {shown} | {accuracy:.4f} | {seconds:.0f} |"
            print(line.format(shown=f"{reached:.0f}" if reached else "never", **row), flush=True)
    sides = {side: [row for row in rows if row["side"] == side] for side in ("ours", "keras")}
    # What never got there is no faster for having stopped early; Keras' time is at least that of all its epochs.
    never = {"ours": lambda row: math.inf, "keras": lambda row: row["seconds"]}
    times = {side: [row["seconds_to_threshold"] or never[side](row) for row in found] for side, found in sides.items()}
    medians = {side: statistics.median(values) for side, values in times.items()}
    summary = {f"{side}_seconds": seconds for side, seconds in medians.items()}
    summary |= {"ratio": medians["keras"] / medians["ours"], "threshold": threshold}
    print(f"to {threshold}: {medians['ours']:.1f} s and {medians['keras']:.1f} s, {summary['ratio']:.2f} times as fast")
    return {"rows": rows, "summary": summary}


def _timer(test: tuple[Any, Any], curve: list[tuple[float, float]], enough: float = 1.0) -> Any:
    """A callback that notes seconds of training and test accuracy after each epoch, and ends when it is `enough`."""
    import keras

    class Timer(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seconds = time.perf_counter() - self.start
            outputs = self.model.predict(test[0], batch_size=1000, verbose=0)
            outputs = outputs["label"] if isinstance(outputs, dict) else outputs
            curve.append((seconds, float((outputs.argmax(axis=1) == test[1]).mean())))
            self.model.stop_training |= curve[-1][1] >= enough
            self.start = time.perf_counter() - seconds

    return Timer()


def _data(data: list[str], options: argparse.Namespace) -> tuple[Any, Any]:
    """Our settings, and the images as numbers."""
    from apps.images import APP, Config
    from loom.cli import parse_dataclass
    from loom.train import encoded

    flags = [*data, "--seed", str(options.seed), *(_with(RACE, QUICK) if options.quick else RACE).split()]
    config = parse_dataclass(Config, flags, Config(), "loom train images", "")
    return config, encoded(APP, config, APP.load(config))


def _ours(data: list[str], options: argparse.Namespace) -> list[tuple[float, float]]:
    """The application's settings `RACE`, without recording anything."""
    import keras

    from apps.images import APP
    from loom import runtime
    from loom.run import fit
    from loom.train import build_run

    config, found = _data(data, options)
    runtime.start(config)
    curve: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = build_run(APP, config, found, Path(folder))
        order = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: setattr(run.train_batches, "epoch", epoch)
        )
        run.callbacks += [order, _timer((found.test.inputs, found.test.targets["label"].argmax(axis=1)), curve)]
        fit(run)
    return curve


def _keras_io(data: list[str], options: argparse.Namespace) -> list[tuple[float, float]]:
    """The same images through the network and the training of keras.io's example."""
    import keras
    import numpy as np

    config, found = _data(data, options)
    keras.utils.set_random_seed(config.seed)
    parts = {name: np.float32(split.inputs["image"]) / 255 for name, split in found.splits.items()}
    targets = {name: split.targets["label"] for name, split in found.splits.items()}
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(parts["train"].shape[1:]),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu", padding="valid" if parts["train"].shape[1] > 8 else "same"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(targets["train"].shape[1], activation="softmax"),
        ]
    )
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    curve: list[tuple[float, float]] = []
    model.fit(
        parts["train"],
        targets["train"],
        batch_size=128,
        epochs=15,
        validation_data=(parts["validation"], targets["validation"]),
        callbacks=[
            _timer(
                (parts["test"], targets["test"].argmax(axis=1)),
                curve,
                QUICK_THRESHOLD if options.quick else THRESHOLD,
            )
        ],
        verbose=0,
    )
    return curve


def _commands(commands: dict[str, str], data: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Each command with several seeds."""
    print("| | training accuracy | test accuracy, mean | each seed | baseline | seconds |\n|---|---|---|---|---|---|")
    rows = []
    for name, flags in commands.items():
        settings = [*data, *(_with(flags, QUICK) if options.quick else flags).split()]
        found = [_train([*settings, "--seed", str(seed)]) for seed in range(1 if options.quick else options.seeds)]
        row = {"case": name, "flags": flags, "date": time.strftime("%Y-%m-%d"), "runs": found}
        for key in ("train", "test", "baseline", "seconds"):
            row[key] = statistics.mean(run[key] for run in found)
        rows.append(row)
        each = ", ".join(f"{run['test']:.4f}" for run in found)
        line = "| {case} | {train:.3f} | {test:.4f} | {each} | {baseline:.4f} | {seconds:.0f} |"
        print(line.format(**row, each=each), flush=True)
    return rows


def _compare(data: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Validation accuracy with each kind of regularization, after few epochs and after many."""
    seeds = str(1 if options.quick else options.seeds)
    print("| epochs | regularization | validation accuracy, mean | standard deviation |\n|---|---|---|---|")
    compared = []
    for epochs in PASSES[:1] if options.quick else PASSES:
        flags = _with(COMPARE, QUICK) if options.quick else f"{COMPARE} --epochs {epochs}"
        found = _loom("compare", [*data, *flags.split(), "--seeds", seeds])["variants"]
        for row in found:
            kind = row["settings"]["regularization"]
            print(f"| {epochs} | {kind} | {row['mean']:.4f} | {row['spread']:.4f} |", flush=True)
        compared.append({"epochs": epochs, "flags": flags, "date": time.strftime("%Y-%m-%d"), "variants": found})
    return compared


def _with(flags: str, others: str) -> str:
    """Flags with a value each or none, those of `others` instead of the same ones."""
    groups = [f"--{group}".split() for text in (flags, others) for group in re.split(r"(?:^|\s)--", text) if group]
    return " ".join(" ".join(group) for group in {group[0]: group for group in groups}.values())


def _train(flags: list[str]) -> dict[str, Any]:
    """What a run measured."""
    start = time.perf_counter()
    metrics = _loom("train", flags)["metrics"]
    seconds = time.perf_counter() - start
    baseline = max(value for key, value in metrics.items() if key.startswith("baseline_") and "majority" not in key)
    return {
        "train": metrics["train_accuracy"],
        "test": metrics["test_accuracy"],
        "baseline": baseline,
        "seconds": seconds,
    }


def _loom(command: str, flags: list[str]) -> dict[str, Any]:
    """The result of a command, in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [sys.executable, "-m", "loom", command, "images", *flags, "--json"]
        process = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
    if process.returncode:
        sys.exit(process.stderr)
    return dict(json.loads(process.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
