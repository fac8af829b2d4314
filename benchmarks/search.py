"""A search on real data: does what it finds beat the default, and does another seed of the study say the same?

    python benchmarks/search.py --data-dir DIR_WITH_TFDS_DATA --json benchmarks/results/search.json

Two studies of 40 trials of `sentiment` on a fifth of IMDB's training reviews (another fifth validates), with different
seeds. Then the default and the best configuration of the first study are trained as full runs with five seeds that no
study has used, each pair of runs on the same reviews; only these see test data.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import measuring

TRIALS, WORKERS, STUDIES, FRESH_SEEDS = 40, 2, (0, 1), range(100, 105)
FIFTH = ["--train-fraction", "0.25", "--validation-fraction", "0.2"]  # a quarter of the four fifths that are left
SPACE = (
    "learning_rate=0.0005..0.05:log",
    "dropout=0..0.7:step=0.1",
    "pair_buckets=1048576,2097152",
    "units=1..4",
)
PINNED = ["--encoder", "bag"]
SEARCH = [*PINNED, "--objective", "val_loss", *(word for what in SPACE for word in ("--space", what))]


def main() -> None:
    """Search, train, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="", help="folder with the prepared TFDS data set imdb_reviews")
    parser.add_argument("--quick", action="store_true", help="few trials and seeds on the built-in data")
    parser.add_argument("--folder", type=Path, help="keep the tracking store here")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    options = parser.parse_args()
    data = [*FIFTH]
    if not options.quick:
        data += ["--data", "tfds:imdb_reviews", "--data-dir", str(Path(options.data_dir).resolve())]
    trials, seeds = (4, FRESH_SEEDS[:2]) if options.quick else (TRIALS, FRESH_SEEDS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        search = [*SEARCH, *data, "--trials", str(trials), "--workers", str(WORKERS), "--no-final"]
        studies = [_loom(folder, "tune", "sentiment", *search, "--seed", str(seed)) for seed in STUDIES]
        for seed, study in zip(STUDIES, studies, strict=True):
            shares = ", ".join(f"{name} {share:.2f}" for name, share in study["importance"].items())
            best = study["best"]
            print(
                f"study with seed {seed}: {best['settings']}, validation {best['score']:.4f}, {study['seconds']:.0f} s"
            )
            print(f"  importance: {shares or 'none'}", flush=True)
        best = PINNED + [
            f"--{name.replace('_', '-')}={value}" for name, value in studies[0]["best"]["settings"].items()
        ]
        runs = [[*data, *flags, "--seed", str(seed), "--threads", "1"] for seed in seeds for flags in ([], best)]
        with ThreadPoolExecutor(WORKERS) as pool:
            trained = list(pool.map(lambda flags: _loom(folder, "train", "sentiment", *flags), runs))
        tested = [run["metrics"]["test_accuracy"] for run in trained]
        accuracies = {"default": tested[::2], "best": tested[1::2]}
    means = {name: statistics.mean(each) for name, each in accuracies.items()}
    error = math.sqrt(sum(statistics.variance(each) / len(each) for each in accuracies.values()))
    gains = [best - default for default, best in zip(*accuracies.values(), strict=True)]
    gain, paired_error = statistics.mean(gains), statistics.stdev(gains) / math.sqrt(len(gains))
    print("\n| | test accuracy, mean | standard deviation |\n|---|---|---|")
    for name, each in accuracies.items():
        print(f"| {name} | {means[name]:.4f} | {statistics.stdev(each):.4f} |")
    print(f"\nbetter by {gain:.4f}: {gain / error:.1f} standard errors of the difference of the means,")
    print(f"{gain / paired_error:.1f} of the mean difference between two runs on the same reviews")
    if options.json:
        result = {"studies": studies, "accuracies": accuracies, "gain": gain, "standard_error": error}
        result["paired_standard_error"] = paired_error
        result |= {"versions": measuring.versions(), "machine": measuring.machine(measuring.product_rate())}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _loom(folder: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "loom", *arguments, "--json"]
    done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


if __name__ == "__main__":
    main()
