"""Every application as it comes, on its built-in data, beside its baselines.

python benchmarks/applications.py [--quick] [--json FILE] [--only NAME ...] [--store FOLDER]

Each row is one `loom train` command with its default settings, or with those that are named. `--quick` trains for an
epoch. `--store` keeps the runs with their figures there. Rows of other cases in FILE stay.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measuring

CASES = {
    "sentiment": ("sentiment", "accuracy"),
    "tabular": ("tabular", "accuracy"),
    "images": ("images", "accuracy"),
    "multimodal": ("multimodal", "verdict_accuracy"),
    "similarity": ("similarity", "recall_at_1"),
    "similarity, classes never seen": ("similarity --held-out-classes 8,9", "held_out_recall_at_1"),
    "autoencoder": ("autoencoder", "mse"),
    "autoencoder, denoising": ("autoencoder --model denoising", "denoised_mse"),
    "autoencoder, variational": ("autoencoder --model variational", "reconstruction_mse"),
    "gan": ("gan --epochs 40", "frechet"),
    "gan, minimax": ("gan --epochs 40 --loss minimax", "frechet"),
    "detection": ("detection", "map"),
    "captioning": ("captioning", "exact"),
    "embeddings": ("embeddings", "analogies"),
}
"""Command and the metric to show."""


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one epoch each")
    parser.add_argument("--json", type=Path, help="file to write the results to; rows of other cases in it stay")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="only these")
    parser.add_argument("--store", type=Path, help="keep the tracking store here")
    options = parser.parse_args()
    rows = {row["case"]: row for row in _recorded(options.json)}
    print("| | metric | this model | baselines | seconds |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.store or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for case in options.only:
            command, metric = CASES[case]
            rows[case] = {"case": case, "command": f"loom train {command}", "metric": metric}
            rows[case] |= _trained(folder, [*command.split(), *(["--epochs", "1"] if options.quick else [])], metric)
            print(line(rows[case]), flush=True)
    if options.json:
        result = {"rows": [rows[case] for case in CASES if case in rows]}
        result |= {"versions": measuring.versions(), "machine": measuring.machine(measuring.product_rate())}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    baselines = ", ".join(f"{name} {value:.4f}" for name, value in row["baselines"].items())
    return f"| {row['case']} | {row['metric']} | {row['model']:.4f} | {baselines} | {row['seconds']:.0f} |"


def _recorded(path: Path | None) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text("utf-8"))["rows"]) if path and path.exists() else []


def _trained(folder: Path, arguments: list[str], metric: str) -> dict[str, Any]:
    """What a run measured."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "loom", "train", *arguments, "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    prefix, suffix = "baseline_", f"_{metric}"
    baselines = {
        name.removeprefix(prefix).removesuffix(suffix): value
        for name, value in found["metrics"].items()
        if name.startswith(prefix) and name.endswith(suffix)
    }
    return {
        "run_id": found["run_id"],
        "model": found["metrics"][f"test_{metric}"],
        "test": {name: value for name, value in found["metrics"].items() if name.startswith("test_")},
        "baselines": baselines,
        "seconds": time.perf_counter() - start,
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
