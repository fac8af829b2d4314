"""A trained model in the formats of other programs, each loaded again and compared before it is handed over."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loom.errors import UserError
from loom.lazy import ENVIRONMENT

REQUIRED = {"onnx": ("tf2onnx", "onnxruntime")}
"""Packages that a format needs beyond those that are always installed."""


@dataclass(frozen=True)
class Exported:
    """One file (or folder) that was written and checked."""

    format: str
    path: Path
    size: int
    """Bytes."""
    difference: float
    """Largest difference between its outputs and the model's own, relative to the larger of 1 and the output."""
    note: str

    def __str__(self) -> str:
        """One line that says it all."""
        size = f"{self.size / 1e6:.2f} MB"
        return f"{self.format:<11} {self.path}  {size}, largest difference {self.difference:.1g}; {self.note}"


def export(run_id: str, formats: Sequence[str], output: Path) -> list[Exported]:
    """Write the model of a run in other formats.

    A model is used with the code it was saved with, here too: a process that imports that code and not the code at hand
    writes the files (`loom.export_worker`). So a model cannot be written in formats that are newer than itself.

    Args:
        run_id: The run.
        formats: Some of `keras`, `savedmodel`, `onnx` and `litert`.
        output: Folder to make; `docs/export.md` describes what it will hold.

    Raises:
        UserError: No such run or model, the folder exists, packages are missing, or a format cannot hold this model
            (then nothing is left of any).
    """
    from loom.saving import local_model
    from loom.tracking import Store

    _check_packages(formats)
    if output.exists():
        raise UserError(f"--output {output}: exists already; name a new folder, or remove it first")
    model = local_model(Store(), run_id)
    with _folder_beside(output) as scratch:
        result = Path(scratch) / output.name
        result.mkdir()
        files = _run_worker(run_id, model.resolve(), result, list(dict.fromkeys(formats)))
        result.rename(output)
    return [_exported(output, file) for file in files]


def _check_packages(formats: Sequence[str]) -> None:
    for name in formats:
        missing = [package for package in REQUIRED.get(name, ()) if importlib.util.find_spec(package) is None]
        if missing:
            raise UserError(f"--format {name} needs {' and '.join(missing)}: pip install -e '.[{name}]' in the project")


def _folder_beside(output: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder on the same disk, so that what is complete can be renamed; it is removed whatever happens."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".export-", dir=output.parent)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror}") from None


def _run_worker(run_id: str, model: Path, folder: Path, formats: list[str]) -> list[dict[str, Any]]:
    """Let the model's own code write the files; returns a description of each."""
    code = model / "code"
    if not (code / "loom" / "export_worker.py").exists():
        raise UserError(f"run {run_id} was saved by code that cannot export; train it again: --from-run {run_id}")
    command = [sys.executable, "-P", "-m", "loom.export_worker", str(model), str(folder.resolve()), *formats]
    environment = ENVIRONMENT | os.environ | {"PYTHONPATH": str(code), "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise RuntimeError(f"the exporting process died:\n{done.stderr}")
    reply = json.loads(done.stdout)
    if "error" in reply:
        raise UserError(f"run {run_id}: {reply['error']}") from RuntimeError(reply["traceback"])
    if not Path(reply["code"]).is_relative_to(code):
        raise RuntimeError(f"the model was exported by {reply['code']}, not by the code saved with it")
    return list(reply["files"])


def _exported(output: Path, file: dict[str, Any]) -> Exported:
    path = output / file["name"]
    parts = path.rglob("*") if path.is_dir() else [path]
    return Exported(file["format"], path, sum(part.stat().st_size for part in parts), file["difference"], file["note"])
