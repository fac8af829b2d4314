"""Asks saved models in a fresh process, which uses the code that was saved with them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loom.app import Answer
from loom.data.files import is_png, largest_pixel_difference
from loom.errors import UserError

TOLERANCE = {"float32": 1e-4, "mixed_bfloat16": 3e-2, "mixed_float16": 5e-3}
"""Largest difference between numbers computed by two processes, relative to the larger of 1 and the number."""


class FreshProcess:
    """A scoring process; it imports TensorFlow and MLflow while the model is still being trained."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()  # outside the repository: nothing is found by accident
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._errors = Path(self._folder.name) / "errors"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).with_name("scorer.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=self._folder.name,
                env=environment | {"CUDA_VISIBLE_DEVICES": "-1"},
                text=True,
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )

    def ask(self, model: Path, rows: list[dict[str, Any]], stream: bool = False) -> None:
        """Let a saved model answer raw examples, in the background; one example may have its answer streamed."""
        self._send({"model": str(model), "rows": rows, "stream": stream})

    def read(self, model: Path, piece: str) -> list[Answer]:
        """Let a saved model read the next piece of an endless text; returns what it has to say then.

        Raises:
            UserError: The model reads no such texts.
            RuntimeError: As for `answers`.
        """
        self._send({"model": str(model), "piece": piece})
        return self.answers(model)

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died while starting: `answers` says why

    def answers(self, model: Path, show: Callable[[Answer], None] = lambda answer: None) -> list[Answer]:
        """Answers to what was asked last; while one is streamed, `show` is told what there is of it.

        Raises:
            UserError: The model refused the examples.
            RuntimeError: The process died, or used other code than the model's own.
        """
        assert self._process.stdout is not None
        while True:
            line = self._process.stdout.readline()
            if not line:
                raise RuntimeError(f"the scoring process died:\n{self._error_text()}")
            reply = json.loads(line)
            if "growing" not in reply:
                break
            show(reply["growing"])
        if "refused" in reply:
            raise UserError(reply["refused"])
        if "error" in reply:
            raise UserError(f"{model}: {reply['error']}")
        if not Path(reply["code"]).is_relative_to(model.resolve()):
            raise RuntimeError(f"the model was answered for by {reply['code']}, not by the code saved with it")
        return list(reply["answers"])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def _error_text(self) -> str:
        return self._errors.read_text(encoding="utf-8", errors="replace")


def largest_difference(expected: Any, found: Any) -> float:
    """Largest relative difference between the numbers of two answers; infinite where anything else differs.

    What became of answers on the way through tables and JSON is no difference: NaN and None, arrays and lists.
    """
    expected, found = (value.tolist() if hasattr(value, "tolist") else value for value in (expected, found))
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        return max((largest_difference(expected[key], found[key]) for key in expected), default=0.0)
    if isinstance(expected, list | tuple) and isinstance(found, list | tuple) and len(expected) == len(found):
        return max(map(largest_difference, expected, found), default=0.0)
    if is_png(expected) and is_png(found):
        return largest_pixel_difference(expected, found)
    if _is_missing(expected) or _is_missing(found):
        return 0.0 if _is_missing(expected) and _is_missing(found) else math.inf
    if isinstance(expected, int | float) and isinstance(found, int | float):
        return abs(expected - found) / max(1.0, abs(expected))
    return 0.0 if expected == found else math.inf


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
