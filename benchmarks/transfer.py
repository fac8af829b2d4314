"""Does transfer pay? A network from the digits 0 to 4 learns 5 to 9 from ten images of each, or learns them anew.

    python benchmarks/transfer.py [--quick] [--data-dir DIR_WITH_TFDS_DATA] [--json FILE] [--folder STORE]

`loom train images` trains a network on the digits 0 to 4 of MNIST (without `--data-dir` or with `--quick`: on those of
scikit-learn). `loom compare transfer` then trains the same network on ten images of each of the digits 5 to 9: frozen,
fine-tuned and from scratch, the same number of epochs, with seeds that pick the images too. The score is the best
accuracy on the validation images, which are many; nothing else is chosen by it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measuring

PRETRAINED, NEW, EACH = "0,1,2,3,4", "5,6,7,8,9", 10
SEEDS, QUICK_SEEDS = 5, 2
SETTINGS = [
    "--epochs",
    "40",
    "--frozen-epochs",
    "20",
    "--learning-rate",
    "0.003",
    "--fine-tune-learning-rate",
    "0.0003",
]


def main() -> None:
    """Train, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="", help="folder with the prepared TFDS data set mnist")
    parser.add_argument("--quick", action="store_true", help=f"the built-in digits and {QUICK_SEEDS} seeds")
    parser.add_argument("--folder", type=Path, help="keep the tracking store here")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    options = parser.parse_args()
    mnist = options.data_dir and not options.quick
    data = ["--data", "tfds:mnist", "--data-dir", str(Path(options.data_dir).resolve())] if mnist else []
    # Half of what is not for the test, 2,000 images of MNIST, validate: the score of a few images would say little.
    few = [*data, "--classes", NEW, "--train-per-class", str(EACH), "--validation-fraction", "0.5"]
    few += ["--max-train", "2000"] if mnist else []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        passes = ["--epochs", "5"] if mnist else []
        source = _loom(folder, "train", "images", *data, *passes, "--classes", PRETRAINED)
        print(f"images, digits {PRETRAINED}: test accuracy {source['metrics']['test_accuracy']:.4f}", flush=True)
        compared = _loom(
            folder,
            *("compare", "transfer", *few, *SETTINGS, "--weights", source["run_id"]),
            *("--vary", "mode=frozen,fine_tuned,from_scratch"),
            *("--seeds", str(QUICK_SEEDS if options.quick else SEEDS)),
        )
    rows = [
        {"case": row["settings"]["mode"], **{name: row[name] for name in ("mean", "spread", "scores")}}
        for row in compared["variants"]
    ]
    print(f"\n| digits {NEW} from {EACH} images each | validation accuracy, mean | standard deviation |\n|---|---|---|")
    for row in rows:
        print(f"| {row['case']} | {row['mean']:.4f} | {row['spread']:.4f} |")
    if options.json:
        result = {
            "rows": rows,
            "data": "mnist" if mnist else "digits",
            "source": source["metrics"],
            "settings": SETTINGS,
        }
        result |= {"versions": measuring.versions(), "machine": measuring.machine(measuring.product_rate())}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _loom(folder: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "loom", *arguments, "--json"]
    done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


if __name__ == "__main__":
    main()
