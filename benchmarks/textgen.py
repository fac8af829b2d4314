"""`textgen` on one long text: losses beside n-grams, whole wall time, and how fast it writes with and without a cache.

    python benchmarks/textgen.py --data FILE.txt [--quick] [--json FILE] [flags of loom train textgen]

The loss is that of one `loom train textgen` command, with its default settings if no flags are given, from the shell's
point of view: imports, reading, baselines, report, saving and the check of the saved model are all in its time. Its
model then writes, and so does a transformer that was not trained, with what was read kept from token to token
(`cached`) and read again for each token (`again`). `--quick` takes the built-in text and a small network.
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
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from apps.textgen import APP, TEXT, writer
from loom.data.tokens import END
from loom.lazy import layers, tf
from loom.trained import Trained

PROMPT = 16
REPEATS = 3
BATCHES = (1, 32)
TRANSFORMER = {"model": "transformer", "units": 128, "depth": 4, "heads": 4, "feed_forward_units": 512}
QUICK = ["--epochs", "2", "--units", "32"]


def main() -> None:
    """Train, write, print Markdown tables, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a text file")
    parser.add_argument("--quick", action="store_true", help="built-in text and a small network")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    options, flags = parser.parse_known_args()
    if not options.quick and options.data is None:
        parser.error("--data names a text file; or give --quick")
    flags = [*(QUICK if options.quick else ["--data", str(options.data.resolve())]), *flags]
    with tempfile.TemporaryDirectory() as folder:
        trained, rows, samples = train(flags, Path(folder))
        untrained: Any = replace(trained.config, **TRANSFORMER)
        network = Trained(APP, untrained, trained.spec, APP.build(untrained, trained.spec))
        networks = {trained.config.model: trained, "transformer, not trained": network}
        writing = [write(name, network, batch) for name, network in networks.items() for batch in BATCHES]
    print("| | validation loss | test loss | in context | bits per character | seconds |\n|---|---|---|---|---|---|")
    for row in rows:
        print(line(row))
    print("\n| network | texts at once | tokens/s, cached | tokens/s, read again |\n|---|---|---|---|")
    for row in writing:
        print(writing_line(row))
    if options.json:
        result = {
            "rows": rows,
            "writing": writing,
            "samples": samples,
            "versions": {name: version(name) for name in ("keras", "tensorflow")},
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
            "date": time.strftime("%Y-%m-%d"),
        }
        options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def train(flags: list[str], folder: Path) -> tuple[Trained, list[dict[str, Any]], list[dict[str, str]]]:
    """One command in an empty folder: the trained model, a row for it and for each baseline, and what it wrote."""
    command = [sys.executable, "-m", "loom", "train", "textgen", *flags, "--json"]
    start = time.perf_counter()
    process = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"loom train ended with status {process.returncode}")
    result = json.loads(process.stdout.splitlines()[-1])
    trained = Trained.open(Path(result["model"]) / "artifacts" / "trained")
    samples = json.loads((Path(result["model"]).parent / "report" / "samples.json").read_text("utf-8"))
    return trained, table(result, trained.config.model, seconds), samples


def table(result: dict[str, Any], model: str, seconds: float) -> list[dict[str, Any]]:
    """Rows of the baselines and of the model, from what `loom train --json` prints."""
    metrics = result["metrics"]
    rows = [
        {"case": case, **{name: metrics[f"{prefix}_{name}"] for name in ("loss", "bits_per_character")}}
        for case, prefix in (("unigram", "baseline_unigram"), ("n-gram", "baseline_ngram"), (model, "test"))
    ]
    measured = {"val_loss": metrics["val_loss"], "loss_in_context": metrics["test_loss_in_context"]}
    rows[-1] |= {**measured, "seconds": seconds, "timings": result["timings"]}
    return rows


def write(name: str, trained: Trained, batch: int) -> dict[str, Any]:
    """Tokens in a second with what was read kept, and read again; both have to write the same."""
    rng = np.random.default_rng(0)
    config: Any = trained.config
    size = trained.core.output[TEXT].shape[-1]
    prompts = rng.integers(END + 1, size, (batch, PROMPT)).astype(np.int32)
    uniforms = rng.uniform(size=(config.length - PROMPT, batch)).astype(np.float32)
    cached, tokens = _timed(lambda: _cached(trained, prompts, uniforms))
    again, same = _timed(_again(trained, prompts, uniforms))
    return {
        "case": name,
        "batch": batch,
        "tokens": uniforms.size,
        "cached": uniforms.size / cached,
        "again": uniforms.size / again,
        "same": float(np.mean(tokens == same)),
    }


def _timed(write: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Median of the seconds, once everything is traced."""
    write()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        tokens = write()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), tokens


def _cached(trained: Trained, prompts: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    pieces = list(writer(trained).stream(list(prompts), len(uniforms), uniforms))
    return np.stack([np.concatenate(column) for column in zip(*pieces, strict=True)])


def _again(trained: Trained, prompts: np.ndarray, uniforms: np.ndarray) -> Callable[[], np.ndarray]:
    config: Any = trained.config

    @tf.function(reduce_retracing=True)
    def following(tokens: Any, chance: Any) -> Any:
        logits = trained.core({TEXT: tokens}, training=False)[TEXT][:, -1]
        logits = tf.where(np.arange(logits.shape[-1]) < END + 1, -1e9, logits)
        return layers.draw(logits, chance, temperature=config.temperature, top_k=config.top_k, top_p=config.top_p)

    def write() -> np.ndarray:
        tokens = tf.constant(prompts)
        for chance in uniforms:
            tokens = tf.concat([tokens, tf.cast(following(tokens, chance), tf.int32)[:, None]], axis=1)
        return tokens.numpy()[:, PROMPT:]

    return write


def line(row: dict[str, Any]) -> str:
    """Row of the table of losses; baselines see the whole text, and are not timed."""
    names = ("val_loss", "loss", "loss_in_context", "bits_per_character")
    numbers = [f"{row[name]:.3f}" if name in row else "" for name in names]
    numbers.append(f"{row['seconds']:.0f}" if "seconds" in row else "")
    return f"| {row['case']} | {' | '.join(numbers)} |"


def writing_line(row: dict[str, Any]) -> str:
    """Row of the table of speeds."""
    return f"| {row['case']} | {row['batch']} | {row['cached']:,.0f} | {row['again']:,.0f} |"


if __name__ == "__main__":
    main()
