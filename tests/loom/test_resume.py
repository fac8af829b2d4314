"""A run that is killed again and again ends as if it had never been."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import SMALL_SENTIMENT, clean_environment, client, loom, same_weights, weights

SETTINGS = (*SMALL_SENTIMENT, "--epochs", "12", "--patience", "3", "--recurrent-dropout", "0.2")
SETTINGS = (*SETTINGS, "--encoder", "gru", "--embedding-units", "8")


def run_ids(folder: Path) -> list[str]:
    """Runs in the store, without TensorFlow's or MLflow's imports; none while the store is being made."""
    try:
        database = sqlite3.connect(f"file:{folder}/mlruns/mlflow.db?mode=ro", uri=True)
        return [row[0] for row in database.execute("select run_uuid from runs")]
    except sqlite3.OperationalError:
        return []


def train_and_kill(folder: Path, arguments: list[str], moment: float) -> bool:
    """Train, and kill the process `moment` seconds after its start; whether it had not finished by then."""
    command = [sys.executable, "-m", "loom", "train", "sentiment", *arguments]
    with subprocess.Popen(command, cwd=folder, env=clean_environment(), stdout=subprocess.DEVNULL) as process:
        try:
            return process.wait(timeout=moment) != 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return True


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_weights_of_one_never_killed(tmp_path: Path, kills: int) -> None:
    start = time.monotonic()
    whole = loom("train", "sentiment", *SETTINGS, "--json", cwd=tmp_path)
    duration = time.monotonic() - start
    assert whole.status == 0, whole.errors
    rng = random.Random(kills)
    killed = 0
    while killed < kills:
        others = [run for run in run_ids(tmp_path) if run != whole.result["run_id"]]
        arguments = ["--resume", others[0]] if others else list(SETTINGS)
        # Not before the imports are over: those kills prove nothing. Early at first, so that it does not finish.
        latest = duration * (0.5 + 0.4 * killed / kills)
        if not train_and_kill(tmp_path, arguments, rng.uniform(0.25 * duration, latest)):
            break
        killed += 1
    assert killed >= min(kills, 3)
    (run_id,) = (run for run in run_ids(tmp_path) if run != whole.result["run_id"])
    if client(tmp_path).get_run(run_id).info.status != "FINISHED":
        resumed = loom("train", "sentiment", "--resume", run_id, "--json", cwd=tmp_path)
        assert resumed.status == 0, resumed.errors
    store = client(tmp_path)
    model = Path(whole.result["model"].replace(whole.result["run_id"], run_id))
    assert same_weights(weights(model), weights(Path(whole.result["model"])))
    for name in ("train_loss", "val_loss", "val_accuracy", "lr", "test_loss", "baseline_tfidf_accuracy"):
        histories = [
            sorted((metric.step, metric.value) for metric in store.get_metric_history(run, name))
            for run in (run_id, whole.result["run_id"])
        ]
        assert histories[0] == histories[1], name
