"""Test accuracy of `tabular` on the Titanic passengers beside gradient boosting, on the same stratified 80/20 splits.

    python benchmarks/titanic.py --data titanic.csv [--quick] [--json FILE] [--seeds 20] [--model mlp]

Both see the same rows and columns; gradient boosting also learns from the tenth of them that the network holds out for
validation. Nothing is recorded in MLflow.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from apps.tabular import APP, Config
from loom.lazy import keras
from loom.run import fit
from loom.train import prepare

SEEDS, QUICK_SEEDS = 20, 5


def main() -> None:
    """Measure, print a Markdown table, and write JSON."""
    options = _options()
    seeds = range(QUICK_SEEDS if options.quick else options.seeds)
    print("| split | tabular | gradient boosting | majority | difference | seconds |\n|---|---|---|---|---|---|")
    rows = []
    for seed in seeds:
        row = measure(Config(data=str(options.data), target=options.target, model=options.model, seed=seed))
        rows.append(row)
        print(_line(row["case"], row), flush=True)
    summary = _summary(rows)
    print(_line("mean", summary["mean"]), _line("std", summary["std"]), sep="\n")
    if options.json:
        versions = {name: version(name) for name in ("keras", "tensorflow", "scikit-learn", "numpy")}
        machine = {"processor": platform.machine(), "cores": len(os.sched_getaffinity(0))}
        result = {"rows": rows, "summary": summary, "versions": versions, "machine": machine}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(config: Config) -> dict[str, Any]:
    """Accuracies on one split, and the seconds it took to load, encode, build and train."""
    start = time.perf_counter()
    keras.utils.clear_session()
    data = APP.load(config)
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(APP, config, data, Path(folder))
        order = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: setattr(run.train_batches, "epoch", epoch)
        )
        run.callbacks.append(order)
        fit(run)
    seconds = time.perf_counter() - start
    ours = run.model.evaluate(run.batches(run.data.test).dataset(), return_dict=True, verbose=0)["accuracy"]
    baselines = {name: metrics["accuracy"] for name, metrics in APP.baselines(config, data).items()}
    return {
        "case": f"seed {config.seed}",
        "ours": ours,
        "boosting": baselines["boosting"],
        "majority": baselines["majority"],
        "difference": ours - baselines["boosting"],
        "seconds": seconds,
    }


def _summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    names = [name for name in rows[0] if name != "case"]
    return {
        "mean": {name: float(np.mean([row[name] for row in rows])) for name in names},
        "std": {name: float(np.std([row[name] for row in rows])) for name in names},
    }


def _line(case: str, row: dict[str, Any]) -> str:
    cells = [f"{row[name]:.4f}" for name in ("ours", "boosting", "majority")]
    return f"| {case} | {' | '.join(cells)} | {row['difference']:+.4f} | {row['seconds']:.1f} |"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="CSV with the Titanic passengers")
    parser.add_argument("--target", default="Survived", help="column to predict (default: Survived)")
    parser.add_argument("--model", default="mlp", choices=["perceptron", "logistic", "mlp"])
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"number of splits (default: {SEEDS})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SEEDS} splits")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
