"""A tracking server that a team shares: what one machine begins, another goes on with."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, clean_environment, loom

TOY = str(ROOT / "tests" / "helpers" / "toy.py")
SECONDS_TO_START = 120


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Address of an MLflow server that keeps artifacts itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", f"{tmp_path}/kept"]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), *where]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--workers", "1"], stdout=log, stderr=log, cwd=tmp_path, env=clean_environment()
        )
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS_TO_START
    try:
        while True:
            with suppress(OSError):
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait()


def machine(folder: Path) -> Path:
    folder.mkdir()
    return folder


def trials(server: str, study: str) -> list[Any]:
    import mlflow

    store = mlflow.MlflowClient(server)
    (experiment,) = (each for each in store.search_experiments() if each.name == "toy")
    return list(store.search_runs([experiment.experiment_id], f"tags.study = '{study}' and tags.kind = 'trial'"))


@pytest.mark.slow
def test_a_study_is_gone_on_with_from_another_machine(server: str, tmp_path: Path) -> None:
    here, there = machine(tmp_path / "here"), machine(tmp_path / "there")
    begun = loom("tune", TOY, "--trials", "2", "--no-final", "--json", cwd=here, MLFLOW_TRACKING_URI=server)
    assert begun.status == 0, begun.errors
    study = begun.result["study"]
    before = {run.info.run_id: run.data.metrics["score"] for run in trials(server, study)}
    assert len(before) == 2
    ended = loom("tune", TOY, "--resume", study, "--trials", "4", "--json", cwd=there, MLFLOW_TRACKING_URI=server)
    assert ended.status == 0, ended.errors
    after = {run.info.run_id: run.data.metrics["score"] for run in trials(server, study)}
    assert len(after) == 4
    assert before.items() <= after.items()
    assert ended.result["final"]["metrics"]["test_accuracy"] > 0.5
    answers = loom("predict", ended.result["final"]["run_id"], '{"x": 3, "y": 3}', cwd=here, MLFLOW_TRACKING_URI=server)
    assert answers.status == 0, answers.errors
    assert not list((tmp_path / "here").glob("mlruns/*.db"))
