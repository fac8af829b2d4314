"""`embeddings` on one long text: nearest neighbours of some words, the loss beside that of counting, and the speed.

    python benchmarks/embeddings.py --data FILE.txt [--words WORD ...] [--json FILE] [flags of loom train embeddings]
    python benchmarks/embeddings.py --quick [--json FILE]
    python benchmarks/embeddings.py --steps [--json FILE]

One `loom train embeddings` command, from the shell's point of view. `--quick` takes the built-in text and few epochs.
`--steps` takes the time of training steps instead, of optimizers that change all rows of a table and of SGD, which
changes those that a batch has touched, and adds it to what is in FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from apps.embeddings import APP, TEXT, Config
from apps.embeddings import WORDS as INPUT
from loom import Field, Spec
from loom.lazy import tf
from loom.runtime import make_optimizer
from loom.trained import Trained

WORDS = "king queen father love death sword blood thou night crown lord tongue"
SHOWN = 6
STEPS = 20


def main() -> None:
    """Train, ask, print a Markdown table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a text file")
    parser.add_argument("--words", nargs="+", default=WORDS.split(), help="whose neighbours to show")
    parser.add_argument("--quick", action="store_true", help="built-in text, three epochs")
    parser.add_argument("--steps", action="store_true", help="time of single steps, without a text")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    options, flags = parser.parse_known_args()
    if options.steps:
        time_steps(options.json)
        return
    if not options.quick and options.data is None:
        parser.error("--data names a text file; or give --quick or --steps")
    flags = [*(["--epochs", "3"] if options.quick else ["--data", str(options.data.resolve())]), *flags]
    result = {"flags": " ".join(flags[0 if options.quick else 2 :]), **train(flags, options.words)}
    print("| word | nearest |\n|---|---|")
    for row in result["rows"]:
        print(line(row))
    print(summary(result))
    if options.json:
        result |= {
            "versions": {name: version(name) for name in ("keras", "tensorflow")},
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
            "date": time.strftime("%Y-%m-%d"),
        }
        options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def train(flags: list[str], words: list[str]) -> dict[str, Any]:
    """One command in an empty folder: what it measured, and what its saved model answers to each word."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "loom", "train", "embeddings", *flags, "--json"]
        start = time.perf_counter()
        process = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
        seconds = time.perf_counter() - start
        if process.returncode:
            sys.exit(f"loom train ended with status {process.returncode}")
        found = json.loads(process.stdout.splitlines()[-1])
        trained = Trained.open(Path(found["model"]) / "artifacts" / "trained")
        speed = json.loads((Path(found["model"]).parent / "report" / "speed.json").read_text("utf-8"))
    answers = APP.predict(trained, pd.DataFrame({TEXT: words}))
    counts = trained.spec.input(TEXT).statistics
    return {
        "rows": [{"word": word, "nearest": answer["nearest"]} for word, answer in zip(words, answers, strict=True)],
        "words": sum(counts.values()),
        "vocabulary": len(counts),
        "loss": found["metrics"]["test_loss"],
        "unigram": found["metrics"]["baseline_unigram_loss"],
        "seconds": seconds,
        "training_seconds": found["timings"]["seconds_training"],
        **speed,
    }


def time_steps(path: Path | None) -> None:
    """Print a table of steps, and add it to the recorded results."""
    rows = [
        step(optimizer, size, jit) for size in (3000, 50_000) for optimizer in ("sgd", "adam") for jit in (False, True)
    ]
    print("| words in the tables | optimizer | XLA | ms of a step | words a second |\n|---|---|---|---|---|")
    for row in rows:
        print(step_line(row))
    if path:
        result = {**(json.loads(path.read_text("utf-8")) if path.exists() else {}), "steps": rows}
        path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def step(optimizer: str, size: int, jit: bool) -> dict[str, Any]:
    """Processor time of a step, which other work on the machine changes little, on rows with Zipf's frequencies."""
    config = Config(optimizer=optimizer)
    counts = {str(number): 1 / number for number in range(1, size)}
    model = APP.build(config, Spec((Field(TEXT, "text", tuple(counts), statistics=counts),), ()))
    model.compile(make_optimizer(config, 0.01, 1))
    model.optimizer.build(model.trainable_variables)
    rows = np.random.default_rng(0).zipf(1.3, (128, 40)) % (size - 1) + 1
    batch = ({INPUT: tf.constant(rows, tf.int32)}, {})
    train_step = tf.function(model.train_step, jit_compile=jit)
    train_step(batch)
    seconds = []
    for _ in range(STEPS):
        start = time.process_time()
        train_step(batch)["loss"].numpy()
        seconds.append(time.process_time() - start)
    median = statistics.median(seconds)
    return {"optimizer": optimizer, "size": size, "jit": jit, "ms": 1e3 * median, "rate": rows.size / median}


def step_line(row: dict[str, Any]) -> str:
    """Row of the table of steps."""
    return "| {size:,} | {optimizer} | {xla} | {ms:.0f} | {rate:,.0f} |".format(
        **row, xla="on" if row["jit"] else "off"
    )


def line(row: dict[str, Any]) -> str:
    """Row of the table of neighbours."""
    nearest = [f"{word} {similarity:.2f}" for word, similarity in list(row["nearest"].items())[:SHOWN]]
    return f"| {row['word']} | {', '.join(nearest)} |"


def summary(result: dict[str, Any]) -> str:
    """A sentence on the run."""
    return (
        "{words:,.0f} words, {vocabulary:,} different ones; test loss {loss:.3f} (unigram {unigram:.3f}); "
        "{words_per_second:,.0f} words a second, {seconds:.0f} s in all"
    ).format(**result)


if __name__ == "__main__":
    main()
