"""The detector on its built-in test stream, and `loom watch` on a pipe.

python benchmarks/detector.py [--quick] [--json FILE]

Each row is one `loom train detector` command: precision, recall and delay on 100,000 random letters with the word
planted 500 times and near misses 2,000 times, beside the baselines. Then random letters with words and near misses go
through a pipe to `loom watch`, as fast as it takes them: letters per second, once it has started, and whether it found
exactly what is there. Before them, single letters: the milliseconds from the last letter of a word to the line that
says so. `--quick` trains for an epoch and sends less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import measuring

from loom.data import streams

WORD = "happy"
CASES = {
    "gru": ["--cell", "gru"],
    "lstm": ["--cell", "lstm"],
    "elman": ["--cell", "elman"],
}
LETTERS = 1_000_000
"""Random letters that are sent through the pipe."""
SINGLE = 50
"""Words that are sent letter by letter."""


def main() -> None:
    """Train, watch, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one epoch, one cell, a shorter stream")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    options = parser.parse_args()
    cases = dict(list(CASES.items())[:1]) if options.quick else CASES
    with tempfile.TemporaryDirectory() as folder:
        result: dict[str, Any] = {"rows": [], "date": time.strftime("%Y-%m-%d"), "versions": measuring.versions()}
        result["machine"] = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
        for case, flags in cases.items():
            row = _trained(Path(folder), case, [*flags, *(["--epochs", "1"] if options.quick else [])])
            if not result["rows"]:
                result["pipe"] = _watched(Path(folder), row["run_id"], LETTERS // 20 if options.quick else LETTERS)
                print(pipe_line(result["pipe"]))
                print("\n| | precision | recall | delay | seconds |\n|---|---|---|---|---|")
            result["rows"].append(row)
            print(line(row), flush=True)
            if options.json:  # what was measured so far is worth having
                options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    numbers = [row["metrics"].get(f"test_{name}", float("nan")) for name in ("precision", "recall", "delay")]
    return f"| {row['case']} | {' | '.join(f'{number:.4f}' for number in numbers)} | {row['seconds']:.0f} |"


def baseline_line(row: dict[str, Any], name: str) -> str:
    """A baseline's row of the same table."""
    numbers = [f"{row['metrics'][f'baseline_{name}_{metric}']:.4f}" for metric in ("precision", "recall")]
    return f"| {name} | {' | '.join(numbers)} | | |"


def pipe_line(pipe: dict[str, Any]) -> str:
    """What went through the pipe, in a sentence."""
    return (
        f"{pipe['letters']:,} letters in {pipe['seconds']:.1f} s, {pipe['letters_per_second']:,.0f} in a second, "
        f"with {pipe['found']:,} of {pipe['words']:,} words found and {pipe['false_alarms']:,} false alarms; "
        f"{pipe['milliseconds']:.1f} ms from a word's last letter to the line that says so"
    )


def _trained(folder: Path, case: str, flags: list[str]) -> dict[str, Any]:
    """What a run measured."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "loom", "train", "detector", *flags, "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    kept = {name: value for name, value in found["metrics"].items() if name.startswith(("test_", "baseline_"))}
    return {
        "case": case,
        "command": " ".join(["loom train detector", *flags]),
        "run_id": found["run_id"],
        "metrics": kept,
        "seconds": time.perf_counter() - start,
    }


def _watched(folder: Path, run_id: str, count: int) -> dict[str, Any]:
    """Speed and detections of `loom watch`."""
    rng = random.Random(0)
    alphabet = streams.script_of(WORD)
    letters = streams.random_letters(rng, count, alphabet, WORD)
    text = streams.plant(rng, letters, WORD, count // 200, count // 50, alphabet).text
    command = [sys.executable, "-m", "loom", "watch", run_id, "--json"]
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        waits = [_seconds_of_a_word(process.stdin.fileno(), process.stdout) for _ in range(SINGLE)]
        start = time.perf_counter()
        writer = threading.Thread(target=_send, args=(process.stdin, text.encode()))
        writer.start()
        lines = process.stdout.read().splitlines()
        seconds = time.perf_counter() - start
        writer.join()
    sent = SINGLE * len(WORD)
    ends = set((streams.last_letters(WORD, text) + sent + 1).tolist())
    fired = [json.loads(found)["letter"] for found in lines]
    return {
        "letters": len(text),
        "seconds": seconds,
        "letters_per_second": len(text) / seconds,
        "words": len(ends),
        "found": len(ends.intersection(fired)),
        "false_alarms": len(set(fired) - ends),
        "milliseconds": 1e3 * statistics.median(waits[1:]),
    }


def _seconds_of_a_word(file: int, answers: Any) -> float:
    """From a word's last letter, which comes after a pause, to the answer."""
    for letter in WORD:
        time.sleep(0.02)
        start = time.perf_counter()
        os.write(file, letter.encode())
    answers.readline()
    return time.perf_counter() - start


def _send(file: Any, content: bytes) -> None:
    file.write(content)
    file.close()


if __name__ == "__main__":
    main()
