"""A run that is killed again and again ends as if it had never been."""

from __future__ import annotations

import fcntl
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import SMALL_SENTIMENT, clean_environment, client, loom, same_weights, weights

SETTINGS = (*SMALL_SENTIMENT, "--recurrent-dropout", "0.2", "--encoder", "gru", "--embedding-units", "8")
SHORT = ("--epochs", "25", "--patience", "0")
LONG = ("--epochs", "60", "--patience", "40")
LONGER = ("--epochs", "250", "--patience", "0")


def run_ids(folder: Path) -> list[str]:
    """Runs in the store, without TensorFlow's or MLflow's imports; none while the store is being made."""
    try:
        database = sqlite3.connect(f"file:{folder}/mlruns/mlflow.db?mode=ro", uri=True)
        return [row[0] for row in database.execute("select run_uuid from runs")]
    except sqlite3.OperationalError:
        return []


def train_and_kill(folder: Path, arguments: list[str], after_epoch: bool, seconds: float) -> bool:
    """Train, and kill the process some time after its start or its first epoch; whether it had not finished by then."""
    command = [sys.executable, "-m", "loom", "train", "sentiment", *arguments]
    with subprocess.Popen(command, cwd=folder, env=clean_environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if after_epoch:
            next((line for line in process.stdout if line.startswith("epoch")), None)
        try:
            return process.wait(timeout=seconds) != 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return True


@pytest.mark.parametrize(
    ("kills", "length", "jit"),
    [
        pytest.param(1, SHORT, "off", marks=pytest.mark.slow),
        pytest.param(3, LONG, "on", marks=pytest.mark.slow),
        pytest.param(20, LONGER, "off", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_with_the_weights_of_one_never_killed(
    tmp_path: Path, kills: int, length: tuple[str, ...], jit: str
) -> None:
    settings = [*SETTINGS, *length, "--jit", jit]
    whole = loom("train", "sentiment", *settings, "--json", cwd=tmp_path)
    assert whole.status == 0, whole.errors
    startup = whole.result["timings"]["seconds_first_step"]
    rng = random.Random(kills)
    killed, went_on = 0, 0
    while killed < kills:
        others = [run for run in run_ids(tmp_path) if run != whole.result["run_id"]]
        arguments = ["--resume", others[0]] if others else settings
        went_on += any(tmp_path.glob("mlruns/artifacts/*/*/artifacts/checkpoint/state.npz"))
        # Every other kill comes soon after an epoch, the rest around the first step.
        after_epoch = killed % 2 == 0
        seconds = rng.uniform(0, 1.5) if after_epoch else rng.uniform(0.5, 1.3) * startup
        if not train_and_kill(tmp_path, arguments, after_epoch, seconds):
            break
        killed += 1
    assert killed == kills, "the run was finished before it was killed often enough"
    (run_id,) = (run for run in run_ids(tmp_path) if run != whole.result["run_id"])
    if client(tmp_path).get_run(run_id).info.status != "FINISHED":
        went_on += any(tmp_path.glob("mlruns/artifacts/*/*/artifacts/checkpoint/state.npz"))
        resumed = loom("train", "sentiment", "--resume", run_id, "--json", cwd=tmp_path)
        assert resumed.status == 0, resumed.errors
    assert went_on, "no kill came after the first checkpoint: the test has proved nothing"
    compare(tmp_path, run_id, whole.result)


def compare(folder: Path, run_id: str, whole: dict[str, Any]) -> None:
    """The weights are the same bit for bit, and the store has every step once, with the same values."""
    model = Path(whole["model"].replace(whole["run_id"], run_id))
    assert same_weights(weights(model), weights(Path(whole["model"])))
    store = client(folder)
    for name in ("train_loss", "val_loss", "val_accuracy", "lr", "test_loss", "baseline_tfidf_accuracy"):
        histories = [
            sorted((metric.step, metric.value) for metric in store.get_metric_history(run, name))
            for run in (run_id, whole["run_id"])
        ]
        assert histories[0] == histories[1], name


def start_and_stop_after_an_epoch(folder: Path, *settings: str) -> str:
    """A run that was killed when it had a checkpoint; returns its id."""
    command = [sys.executable, "-m", "loom", "train", "sentiment", *SMALL_SENTIMENT, "--epochs", "3000", *settings]
    with subprocess.Popen(
        [*command, "--patience", "0"], cwd=folder, env=clean_environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("epoch 3"))
        process.send_signal(signal.SIGKILL)
    return run_ids(folder)[-1]


@pytest.mark.slow
def test_what_cannot_be_resumed_is_said(tmp_path: Path) -> None:
    rows = "".join(f"a {'good' if n % 2 else 'bad'} film {n},{'pos' if n % 2 else 'neg'}\n" for n in range(300))
    (tmp_path / "films.csv").write_text("text,label\n" + rows)
    run_id = start_and_stop_after_an_epoch(tmp_path, "--data", "films.csv")
    resume = ("train", "sentiment", "--resume", run_id)
    with (tmp_path / "mlruns" / "locks" / run_id).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process" in loom(*resume, cwd=tmp_path).errors
    (tmp_path / "films.csv").write_text("text,label\n" + rows.replace("film 7,", "film seven,"))
    changed = loom(*resume, cwd=tmp_path)
    assert changed.status == 2
    assert "has changed since the run was started" in changed.errors
    (tmp_path / "films.csv").write_text("text,label\n" + rows)
    (checkpoint,) = tmp_path.glob("mlruns/artifacts/*/*/artifacts/checkpoint/state.npz")
    with np.load(checkpoint) as file:
        np.savez(
            checkpoint, **{name: value[..., :1] if name == "variable/0" else value for name, value in file.items()}
        )
    misfit = loom(*resume, cwd=tmp_path)
    assert misfit.status == 2
    assert "does not fit the model" in misfit.errors
