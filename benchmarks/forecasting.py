"""`forecasting` on ETTh1: the error of every model beside simple methods, whole wall time, and coverage of quantiles.

    python benchmarks/forecasting.py --data ETTh1.csv [--only TEXT] [--quick] [--json FILE]

Each row is one `loom train forecasting` command from the shell's point of view: imports, reading, baselines, report,
saving and the check of the saved model are all in its time. All columns, 96 steps ahead, 12, 4 and 4 months for
training, validation and test, standard scores from the training part, errors over all 2,785 windows of the test part:
as the literature does. `--only` runs the cases whose names contain a text, and takes the others from the file.
`--quick` runs two small cases on the built-in series.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

SPLIT = "8640,2880,2880"
COMMON = ["--horizon", "96", "--split", SPLIT, "--patience", "3"]
LONG = ["--look-back", "336"]
RECURRENT = [*LONG, "--epochs", "6", "--batch-size", "64", "--learning-rate", "0.002"]
SLOWEST = [*LONG, "--epochs", "4", "--batch-size", "64", "--learning-rate", "0.002"]
QUANTILES = ["--quantiles", "0.1,0.5,0.9"]
LINEAR = [*LONG, "--epochs", "12", "--batch-size", "64", "--learning-rate", "0.002"]
TRANSFORMER = [
    *("--model", "transformer", *LONG, "--epochs", "8", "--batch-size", "64", "--units", "16", "--depth", "2"),
    *("--feed-forward-units", "64", "--dropout", "0.3", "--learning-rate", "0.002"),
]
CASES: dict[str, list[str]] = {
    "linear": LINEAR,
    "linear, absolute error": [*LINEAR, "--loss", "mae"],
    "elman": ["--model", "elman", *RECURRENT],
    "lstm": ["--model", "lstm", *RECURRENT],
    "gru": ["--model", "gru", *RECURRENT],
    "echo_state": ["--model", "echo_state", *RECURRENT, "--units", "256"],
    "encoder_decoder": ["--model", "encoder_decoder", *SLOWEST],
    "transformer": TRANSFORMER,
    "linear, quantiles": [*LINEAR, *QUANTILES],
}
QUICK = {"linear": ["--epochs", "2"], "gru, quantiles": ["--model", "gru", "--epochs", "1", "--units", "8", *QUANTILES]}
BASELINES = ("last", "seasonal", "drift", "ridge")
MEASURES = ("mse", "mae", "mase", "coverage")


def main() -> None:
    """Run every case, print a Markdown table, and write JSON after each."""
    options = _options()
    earlier = json.loads(options.json.read_text("utf-8"))["rows"] if options.only and options.json.exists() else []
    rows = {row["case"]: row for row in earlier}
    data = [] if options.quick else ["--data", str(options.data.resolve()), *COMMON]
    print("| | MSE | MAE | MASE | coverage | seconds |\n|---|---|---|---|---|---|")
    for case, flags in (QUICK if options.quick else CASES).items():
        if options.only in case:
            found = train(case, [*data, *flags])
            rows |= {row["case"]: row for row in found}
            for row in found:
                print(line(row), flush=True)
            if options.json:
                _write(options.json, rows)


def train(case: str, flags: list[str]) -> list[dict[str, Any]]:
    """Rows of the baselines and of the model, from what `loom train --json` prints."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "loom", "train", "forecasting", *flags, "--json"]
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        process = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"loom train forecasting ended with status {process.returncode}")
    seconds = time.perf_counter() - start
    metrics = json.loads(process.stdout.splitlines()[-1])["metrics"]
    baselines = [{"case": name, **_measures(metrics, f"baseline_{name}")} for name in BASELINES]
    settings = {"flags": " ".join(flags[flags.index("--horizon") if "--horizon" in flags else 0 :])}
    return [*baselines, {"case": case, **_measures(metrics, "test"), "seconds": seconds, **settings}]


def _measures(metrics: dict[str, float], prefix: str) -> dict[str, float]:
    return {name: metrics[f"{prefix}_{name}"] for name in MEASURES if f"{prefix}_{name}" in metrics}


def line(row: dict[str, Any]) -> str:
    """A row of the table; baselines are not timed."""
    numbers = [f"{row[name]:.3f}" if name in row else "" for name in MEASURES]
    numbers.append(f"{row['seconds']:.0f}" if "seconds" in row else "")
    return f"| {row['case']} | {' | '.join(numbers)} |"


def _write(path: Path, rows: dict[str, dict[str, Any]]) -> None:
    cases = [*CASES, *QUICK, *BASELINES]
    result = {
        "rows": sorted(rows.values(), key=lambda row: cases.index(row["case"])),
        "versions": {name: version(name) for name in ("keras", "tensorflow", "scikit-learn")},
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "date": time.strftime("%Y-%m-%d"),
    }
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="ETTh1.csv")
    parser.add_argument("--only", default="", help="run only the cases whose names contain this; needs --json")
    parser.add_argument("--quick", action="store_true", help="two small cases on the built-in series")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    options = parser.parse_args()
    if not options.quick and options.data is None:
        parser.error("--data names the file; or give --quick")
    if options.only and options.json is None:
        parser.error("--only needs --json, where the other cases are")
    return options


if __name__ == "__main__":
    main()
