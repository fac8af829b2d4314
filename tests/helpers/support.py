"""Helpers of the tests: commands in fresh processes."""

from __future__ import annotations

import functools
import io
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL_SENTIMENT = (
    *("--epochs", "3", "--vocabulary-size", "800", "--pair-buckets", "4096", "--dropout", "0.3"),
    *("--units", "8", "--jit", "off"),
)
"""Settings with which `sentiment` trains on its built-in data in seconds."""


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    status: int
    output: str
    errors: str

    @property
    def result(self) -> dict[str, Any]:
        """The JSON object in the last line of standard output."""
        return dict(json.loads(self.output.strip().splitlines()[-1]))


@functools.cache
def empty_store() -> Path:
    """A tracking store without runs; MLflow takes seconds to make one."""
    path = Path(tempfile.mkdtemp()) / "mlflow.db"
    client_of(path)
    return path


def loom(*arguments: str, cwd: Path, fresh: bool = False, **environment: str) -> Outcome:
    """Run a `loom` command in a process of its own.

    Args:
        *arguments: The command's.
        cwd: Its working directory.
        fresh: Run the installed command, in a new process, which makes the tracking store too. Otherwise the process is
            forked from one that has imported everything already, and a prepared store is there: the same code runs,
            many seconds earlier.
        **environment: Variables it gets.
    """
    variables = clean_environment() | environment
    if fresh:
        command = [str(Path(sys.executable).with_name("loom")), *arguments]
        process = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=False)
        return Outcome(process.returncode, process.stdout, process.stderr)
    recording = arguments[0] in ("train", "tune", "compare") and "MLFLOW_TRACKING_URI" not in variables
    if recording and not (cwd / "mlruns").exists():
        (cwd / "mlruns").mkdir()
        shutil.copy(empty_store(), cwd / "mlruns" / "mlflow.db")
    with tempfile.TemporaryDirectory() as folder:
        texts = [Path(folder) / name for name in ("output", "errors")]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["preloaded"])
        forked = context.Process(target=_run_command, args=(arguments, cwd, variables, texts))
        forked.start()
        forked.join()
        return Outcome(forked.exitcode or 0, *(path.read_text(encoding="utf-8") for path in texts))


def _run_command(arguments: Sequence[str], cwd: Path, variables: Mapping[str, str], texts: Sequence[Path]) -> None:
    """What a forked process does."""
    from loom import cli

    cli.START = time.perf_counter()
    os.chdir(cwd)
    os.environ.clear()
    os.environ |= variables
    for descriptor, path in enumerate(texts, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.exit(cli.run(list(arguments)))


def clean_environment() -> dict[str, str]:
    """The environment without what names another tracking store."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}


@dataclass(frozen=True)
class TrainedRun:
    """A finished run and the folder it was trained in."""

    run_id: str
    folder: Path
    outcome: Outcome

    @property
    def model(self) -> Path:
        """Folder of its MLflow model."""
        return Path(self.outcome.result["model"])


def client(folder: Path) -> Any:
    """MLflow client of the store in a folder."""
    return client_of(folder / "mlruns" / "mlflow.db")


def client_of(database: Path) -> Any:
    """MLflow client of a database, which is made if it is not there."""
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{database}")


def weights(model: Path) -> dict[str, Any]:
    """Every array of a saved core model, by its path in the file."""
    import h5py

    with zipfile.ZipFile(model / "artifacts" / "trained" / "core.keras") as archive:
        file = h5py.File(io.BytesIO(archive.read("model.weights.h5")))
    found: dict[str, Any] = {}
    file.visititems(lambda name, item: found.update({name: item[...]}) if isinstance(item, h5py.Dataset) else None)
    return found


def same_weights(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two saved models agree bit for bit."""
    assert first.keys() == second.keys()
    return all(np.array_equal(first[name], second[name]) for name in first)


def served(run: TrainedRun, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What `loom serve` answers to rows of raw input."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "loom", "serve", run.run_id, "--port", str(port)]
    log = run.folder / "server.log"
    with (
        log.open("wb") as lines,
        subprocess.Popen(
            command, cwd=run.folder, env=clean_environment(), stdout=lines, stderr=subprocess.STDOUT
        ) as server,
    ):
        try:
            assert _is_healthy(port, server), f"the server did not start: {log.read_text('utf-8', 'replace')}"
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/invocations",
                json.dumps({"dataframe_records": list(records)}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request) as response:
                return list(json.load(response)["predictions"])
        finally:
            server.terminate()


def _is_healthy(port: int, server: subprocess.Popen[bytes]) -> bool:
    """Whether a server starts. On a busy machine TensorFlow alone may need a minute."""
    deadline = time.monotonic() + 600
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60):
                return True
        except OSError:
            time.sleep(0.1)
    return False
