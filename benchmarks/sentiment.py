"""Sentiment on IMDB: accuracy and whole wall time of several settings, each beside TF-IDF with logistic regression.

python benchmarks/sentiment.py --data-dir DIR_WITH_TFDS_DATA [--quick] [--json FILE] [--only TEXT]

Every row is one `loom train sentiment` command, from the shell's point of view: imports, reading, baselines, reports,
saving and the check of the saved model are all in its time. `--quick` runs the built-in data instead.
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

TRAINING = "--max-words 800 --dropout 0.5 --batch-size 64 --learning-rate 0.004 --schedule linear --epochs 2"
RECURRENT = (
    "--bidirectional --units 16 --embedding-units 16 --pair-units 8 --pair-buckets 262144 "
    f"--segment 20 --pooling root --jit off {TRAINING}"
)
SETTINGS = {
    "bag of words and pairs (default)": "",
    "bag of words": "--pair-buckets 0",
    "GRU, both directions": f"--encoder gru {RECURRENT}",
    "LSTM, both directions": f"--encoder lstm {RECURRENT}",
    "Elman, both directions": f"--encoder elman {RECURRENT} --clip-norm 1",
    "transformer": (
        "--encoder transformer --units 32 --heads 2 --feed-forward-units 32 --embedding-units 32 --segment 40 "
        f"--pooling root --jit off {TRAINING}"
    ),
    "bag of words and pairs, wide and trained like these": f"--units 16 --pair-buckets 262144 {TRAINING}",
}


def main() -> None:
    """Run the settings and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="", help="folder with the prepared TFDS data set imdb_reviews")
    parser.add_argument("--quick", action="store_true", help="built-in data instead of IMDB")
    parser.add_argument("--json", type=Path, help="file to write the results to; rows of other settings in it stay")
    parser.add_argument("--only", default="", help="only settings whose name contains this")
    options = parser.parse_args()
    data = [] if options.quick else ["--data", "tfds:imdb_reviews", "--data-dir", str(Path(options.data_dir).resolve())]
    earlier = json.loads(options.json.read_text("utf-8")) if options.json and options.json.exists() else {"rows": []}
    found = {row["case"]: row for row in earlier["rows"]}
    print("| setting | test accuracy | TF-IDF | first step, s | in all, s |\n|---|---|---|---|---|")
    for name, flags in SETTINGS.items():
        if options.only not in name:
            continue
        row = {"case": name, "flags": flags, "date": time.strftime("%Y-%m-%d")}
        row |= _train([*data, *flags.split()])
        found[name] = row
        print("| {case} | {accuracy:.4f} | {tfidf:.4f} | {first_step:.0f} | {seconds:.0f} |".format(**row), flush=True)
    if options.json:
        versions = {package: version(package) for package in ("keras", "tensorflow", "scikit-learn")}
        machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
        result = {"rows": [found[name] for name in SETTINGS if name in found], "versions": versions, "machine": machine}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _train(flags: list[str]) -> dict[str, Any]:
    """One command in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "loom", "train", "sentiment", *flags, "--json"]
        start = time.perf_counter()
        process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(process.stderr)
    result = json.loads(process.stdout.splitlines()[-1])
    return {
        "accuracy": result["metrics"]["test_accuracy"],
        "tfidf": result["metrics"]["baseline_tfidf_accuracy"],
        "first_step": result["timings"]["seconds_first_step"],
        "seconds": seconds,
        "timings": result["timings"],
    }


if __name__ == "__main__":
    main()
