"""Accuracy of `tagging` on a treebank, softmax and CRF, over several seeds, beside what needs no network.

    python benchmarks/tagging.py --data FOLDER_OR_TRAINING_FILE [--task upos] [--seeds 3] [--quick] [--json FILE]

There are NAME-train.conllu, NAME-dev.conllu and NAME-test.conllu: seeds differ in initial weights, dropout and
the order of the sentences, not in the parts. Nothing is recorded in MLflow. `--quick` tags the built-in sentences.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from apps.tagging import APP, Config
from loom import Data
from loom.lazy import keras
from loom.run import fit, measure
from loom.train import prepare

SEEDS = 3
SETTINGS: dict[str, dict[str, Any]] = {"softmax": {}, "CRF": {"output": "crf"}}
QUICK = {"epochs": 4, "units": 32, "letter_units": 16}


def main() -> None:
    """Train every setting with every seed in turn, print a Markdown table, and write JSON."""
    options = _options()
    base = Config(**QUICK) if options.quick else Config(data=str(options.data), task=options.task)
    data = APP.load(base)
    rows = []
    print("| setting | seed | accuracy | known words | unknown words | seconds |\n|---|---|---|---|---|---|")
    for seed in range(1 if options.quick else options.seeds):
        for name, settings in SETTINGS.items():
            rows.append({"case": name, "seed": seed, **train(replace(base, seed=seed, **settings), data)})
            print(line(name, seed, rows[-1]), flush=True)
    baselines = APP.baselines(base, data)
    for name, metrics in baselines.items():
        print(line(name, "", metrics))
    for name, means in summary(rows).items():
        print(line(f"{name}, mean", len({row["seed"] for row in rows}), means))
    if options.json:
        _write(options.json, rows, baselines, base)


def train(config: Config, data: Data) -> dict[str, float]:
    """Test metrics of one run, and the seconds it took to encode, build, train and test."""
    start = time.perf_counter()
    keras.utils.clear_session()
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(APP, config, data, Path(folder))
        order = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: setattr(run.train_batches, "epoch", epoch)
        )
        run.callbacks.append(order)
        fit(run)
        return {**measure(run), "seconds": time.perf_counter() - start}


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over the seeds, and the standard deviation of the accuracy."""
    numbers = [name for name in rows[0] if name not in ("case", "seed")]
    cases = {row["case"]: [other for other in rows if other["case"] == row["case"]] for row in rows}
    return {
        case: {name: float(np.mean([row[name] for row in found])) for name in numbers}
        | {"std": float(np.std([row["accuracy"] for row in found]))}
        for case, found in cases.items()
    }


def line(case: str, seed: int | str, row: dict[str, Any]) -> str:
    """A row of the table."""
    accuracies = [f"{row[name]:.4f}" for name in ("accuracy", "accuracy_known", "accuracy_unknown")]
    seconds = f"{row['seconds']:.0f}" if "seconds" in row else ""
    return f"| {case} | {seed} | {' | '.join(accuracies)} | {seconds} |"


def _write(path: Path, rows: list[dict[str, Any]], baselines: dict[str, Any], config: Config) -> None:
    result = {
        "task": config.task,
        "rows": rows,
        "summary": summary(rows),
        "baselines": baselines,
        "versions": {name: version(name) for name in ("keras", "tensorflow", "scikit-learn")},
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "date": time.strftime("%Y-%m-%d"),
    }
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of CoNLL-U files, or that for training")
    parser.add_argument("--task", default="upos", choices=["upos", "xpos", "ner"])
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"runs of each setting (default: {SEEDS})")
    parser.add_argument("--quick", action="store_true", help="one small run of each on the built-in sentences")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    options = parser.parse_args()
    if not options.quick and options.data is None:
        parser.error("--data names the data, see --help; or give --quick")
    return options


if __name__ == "__main__":
    main()
