"""What the speed benchmarks share: steps that run in turn, memory of fresh processes, summaries."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

PAIRS = 40
SECONDS_PER_CASE = 3.0
SECONDS_PER_CALL = 0.02
# Freed memory goes back to the system at once, so that a process is as large as what it uses.
RETURN_MEMORY = dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), "65536") | {"MALLOC_ARENA_MAX": "1"}

Step = Callable[[int], Any]
"""Runs a step so many times."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """Returns the options all of these benchmarks have."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="two sizes only")
    options.add_argument("--json", type=Path, help="file to write the results to; rows of other cases in it stay")
    options.add_argument("--only", default="", help="only cases whose name contains this")
    options.add_argument("--torch", action="store_true", help="add PyTorch's times to the cases in the file")
    return options


def compare(ours: Callable[[bool], Step], baseline: Callable[[bool], Step]) -> dict[str, Any]:
    """Returns the times of two sides, each with `jit_compile` on or off, whichever is faster for it.

    Args:
        ours: Makes our step, given whether to compile it as a whole.
        baseline: Makes the step to compare with.
    """
    steps: dict[str, Step] = {}
    compiling, jits = {}, {}
    for side, make in (("ours", ours), ("baseline", baseline)):
        first: dict[bool, float] = {}
        candidates: dict[bool, Step] = {}
        for jit in (True, False):
            candidates[jit] = make(jit)
            first[jit] = seconds(candidates[jit])
        fastest = {jit: min(times) for jit, times in interleaved(candidates, pairs=8).items()}
        jits[side] = min(fastest, key=fastest.__getitem__)
        steps[side], compiling[side] = candidates[jits[side]], first[jits[side]]
    times = interleaved(steps)
    return {
        **{f"{side}_ms": 1e3 * statistics.median(values) for side, values in times.items()},
        # Of the pairs, because the speed of a machine changes from second to second.
        "ratio": statistics.median(theirs / own for own, theirs in zip(times["ours"], times["baseline"], strict=True)),
        "pairs": len(times["ours"]),
        **{f"{side}_jit": jit for side, jit in jits.items()},
        **{f"{side}_compile_seconds": value for side, value in compiling.items()},
    }


def interleaved(steps: Mapping[Any, Step], pairs: int = PAIRS) -> dict[Any, list[float]]:
    """Returns the seconds of one step, several times, the sides in turn."""
    counts = {side: call_count(step) for side, step in steps.items()}
    times: dict[Any, list[float]] = {side: [] for side in steps}
    start = time.perf_counter()
    for pair in range(pairs):
        if pair >= 5 and time.perf_counter() - start > SECONDS_PER_CASE:
            break
        for side, step in steps.items():
            times[side].append(seconds(step, counts[side]))
    return times


def call_count(step: Step) -> int:
    """Returns how often to run a step in one call."""
    return min(50, max(1, round(SECONDS_PER_CALL / min(seconds(step, 2) for _ in range(2)))))


def seconds(step: Step, count: int = 1) -> float:
    """Returns the seconds of a step, run so many times in one call."""
    start = time.perf_counter()
    step(count)
    return (time.perf_counter() - start) / count


def unknown_batch(array: np.ndarray) -> tf.TensorSpec:
    """Returns a signature; as in Keras' own `fit` on arrays, the batch size is not known when the graph is made."""
    return tf.TensorSpec((None, *array.shape[1:]))


def repeated(step: Callable[[tf.Tensor], list[tf.Tensor]], sequence: np.ndarray) -> Step:
    """Returns a function that runs a step as often as told, on an input that is a little different each time."""
    inputs = tf.constant(sequence)

    @tf.function(input_signature=[tf.TensorSpec((), "int32")])
    def steps(count: tf.Tensor) -> tf.Tensor:
        total = tf.constant(0.0)
        for index in tf.range(count):
            results = step(inputs + tf.cast(index, "float32"))
            # Something of every result, so that none of them is left out as not needed.
            total += tf.add_n([tf.reshape(result, [-1])[0] for result in results])
        return total

    return lambda count: steps(tf.constant(count)).numpy()


def with_torch(torch: Any, step: Step) -> dict[str, Any]:
    """Returns the time of a step of PyTorch, on one core or all of them, whichever is faster."""
    fastest = {}
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        torch.set_num_threads(threads)
        seconds(step)
        fastest[threads] = min(seconds(step) for _ in range(4))
    threads = min(fastest, key=fastest.__getitem__)
    torch.set_num_threads(threads)
    return {"torch_threads": threads, "torch_ms": 1e3 * statistics.median(interleaved({"torch": step})["torch"])}


def product_rate() -> float:
    """Returns the operations per second of a large matrix product on all cores."""
    size = 2048
    matrix = tf.random.normal((size, size))
    product = tf.function(lambda: tf.reduce_max(tf.matmul(matrix, matrix)))
    times = [seconds(lambda _: product().numpy()) for _ in range(12)]
    return 2 * size**3 / statistics.median(times[2:])


def in_fresh_process(script: str, *arguments: str) -> Any:
    """Returns what a script prints as JSON in a process that gives memory back at once."""
    command = [sys.executable, script, *arguments]
    process = subprocess.run(command, env=os.environ | RETURN_MEMORY, capture_output=True, check=True)
    return json.loads(process.stdout.splitlines()[-1])


def memory_of_this_process(which: str) -> float:
    """Returns `VmRSS`, the memory in use, or `VmHWM`, its peak, in MB (Linux only)."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(which))) / 1024


def start_peak_here() -> None:
    """Forgets the peak of memory so far."""
    Path("/proc/self/clear_refs").write_text("5", "utf-8")


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the geometric mean and the worst case of every group and layer."""
    entries: dict[str, Any] = {}
    for group, name in dict.fromkeys((row["group"], row["layer"]) for row in rows):
        chosen = [row for row in rows if (row["group"], row["layer"]) == (group, name)]
        worst = min(chosen, key=lambda row: row["ratio"])
        entry: dict[str, Any] = {"geometric_mean": statistics.geometric_mean([row["ratio"] for row in chosen])}
        entry |= {"worst": worst["ratio"], "worst_case": worst["case"]}
        line = "{} | {geometric_mean:.2f} | {worst:.2f} ({worst_case}) | ".format(len(chosen), **entry)
        if all("torch_ms" in row for row in chosen):
            entry["torch_geometric_mean"] = statistics.geometric_mean(
                [row["torch_ms"] / row["ours_ms"] for row in chosen]
            )
            line += f"{entry['torch_geometric_mean']:.2f}"
        entry["line"] = line.rstrip()
        entries[f"{group}: {name}"] = entry
    return entries


def print_summary(rows: list[dict[str, Any]]) -> None:
    """Prints the summary as a table."""
    print("\n| what | cases | geometric mean | worst case | PyTorch |\n|---|---|---|---|---|")
    for name, entry in summary(rows).items():
        print(f"| {name} | {entry['line']} |")


def versions() -> dict[str, str]:
    """Returns the versions of what is compared."""
    found = {}
    for package in ("keras", "tensorflow", "numpy", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine(rate: float) -> dict[str, Any]:
    """Returns what the times were taken on."""
    cores = len(os.sched_getaffinity(0))
    return {"cpu": platform.machine(), "cores": cores, "gflops": rate / 1e9, "date": time.strftime("%Y-%m-%d")}
