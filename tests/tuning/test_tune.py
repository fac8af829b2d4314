"""Searches by the command: what is recorded, what may go wrong, and how they go on after having been killed."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import ROOT, Outcome, clean_environment, client, loom

TOY = str(ROOT / "tests" / "helpers" / "toy.py")


def tune(folder: Path, *arguments: str) -> Outcome:
    return loom("tune", TOY, "--json", "--no-final", *arguments, cwd=folder)


def children(folder: Path, study: str) -> list[Any]:
    """Trials of a study, in the order of their numbers."""
    found = client(folder).search_runs(["1"], f"tags.study = '{study}' and tags.kind = 'trial'", max_results=1000)
    return sorted(found, key=lambda run: int(run.data.tags["trial_number"]))


def outcomes(folder: Path, study: str) -> list[tuple[str, str, str]]:
    """What makes trials the same: settings, status, and score to the last digit."""
    tags = [run.data.tags for run in children(folder, study)]
    return [(each["settings"], each["status"], each["score"]) for each in tags]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("searched")
    outcome = tune(folder, "--trials", "5", "--workers", "2")
    assert outcome.status == 0, outcome.errors
    assert "trial 5/5 completed" in outcome.errors
    return folder, outcome.result


def test_trials_are_child_runs_with_what_varies(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, result = searched
    study = client(folder).get_run(result["study"])
    assert study.data.tags["kind"] == "study"
    assert study.info.status == "FINISHED"
    runs = children(folder, result["study"])
    assert [run.data.tags["trial_number"] for run in runs] == ["1", "2", "3", "4", "5"]
    for run in runs:
        tags = run.data.tags
        assert tags["mlflow.parentRunId"] == study.info.run_id
        assert (tags["kind"], tags["status"], run.info.status) == ("trial", "completed", "FINISHED")
        assert set(run.data.params) == {"units", "activation", "learning_rate"}
        assert len(client(folder).get_metric_history(run.info.run_id, "val_loss")) == 3
        assert float(tags["score"]) == run.data.metrics["score"]
        assert float(tags["score"]) == min(
            metric.value for metric in client(folder).get_metric_history(run.info.run_id, "val_loss")
        )
        assert not any(name.startswith("test_") for name in run.data.metrics)
    sequence = [int(run.data.tags[f"sequence_{end}"]) for run in runs for end in ("start", "end")]
    assert sorted(sequence) == list(range(10))
    assert result["best"]["score"] == min(run.data.metrics["score"] for run in runs)


def test_only_the_best_trial_keeps_its_checkpoint(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, result = searched
    (checkpoint,) = folder.glob("mlruns/artifacts/*/*/artifacts/checkpoint/state.npz")
    assert result["best"]["run_id"] in str(checkpoint)


def test_a_trial_can_be_run_again_as_a_plain_run(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, result = searched
    again = loom("train", TOY, "--from-run", result["best"]["run_id"], "--json", cwd=folder)
    assert again.status == 0, again.errors
    history = client(folder).get_metric_history(again.result["run_id"], "val_loss")
    assert min(metric.value for metric in history) == result["best"]["score"]


def test_trials_may_grow(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, result = searched
    before = outcomes(folder, result["study"])
    fewer = tune(folder, "--resume", result["study"], "--trials", "3")
    assert (fewer.status, fewer.errors.count("\n")) == (2, 1)
    assert "has 5 already" in fewer.errors
    more = tune(folder, "--resume", result["study"], "--trials", "7")
    assert more.status == 0, more.errors
    assert outcomes(folder, result["study"])[:5] == before
    assert len(children(folder, result["study"])) == 7


def test_one_failed_trial_is_one_failed_trial(tmp_path: Path) -> None:
    troubles = ("none", "raise", "exit", "crash", "hang", "memory", "nan", "large")
    space = (
        "--space",
        f"trouble={','.join(troubles)}",
        "--units",
        "4",
        "--activation",
        "relu",
        "--learning-rate",
        "0.1",
    )
    limits = ("--trial-timeout", "20", "--trial-memory", "2.5")
    outcome = tune(tmp_path, "--oracle", "grid", "--workers", "2", *space, *limits)
    assert outcome.status == 0, outcome.errors
    runs = children(tmp_path, outcome.result["study"])
    reasons = {run.data.params["trouble"]: run.data.tags["reason"] for run in runs}
    assert outcome.result["failed"] == 7
    assert reasons.pop("none") == ""
    expected = {
        "raise": "ValueError: no such thing",
        "exit": "the worker ended with status 3",
        "crash": "the worker died of SIGSEGV",
        "hang": "no end after 20 s",
        "memory": "out of memory: more than its share of 2.5 GiB",
        "nan": "became nan",
        "large": "too large: more than",
    }
    assert reasons.keys() == expected.keys()
    for trouble, words in expected.items():
        assert words in reasons[trouble]
    assert {run.info.status for run in runs if run.data.params["trouble"] != "none"} == {"FAILED"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--space", "unit=1..2"], ["--space unit=1..2", "did you mean units?"]),
        (["--space", "units=9..1"], ["range is empty"]),
        (["--objective", "val_f1"], ["--objective val_f1", "val_loss", "val_accuracy"]),
        (["--resume", "0" * 32], ["unknown run"]),
        (["--oracle", "hyperband"], ["--max-epochs"]),
        (["--workers", "0"], ["--workers 0"]),
        (["--unit", "4"], ["did you mean --units?"]),
        (["--trials", "x"], ["--trials"]),
    ],
)
def test_mistakes_are_one_line(searched: tuple[Path, dict[str, Any]], arguments: list[str], words: list[str]) -> None:
    outcome = tune(searched[0], *arguments)
    assert outcome.status == 2, outcome.errors
    assert outcome.errors.count("\n") == 1
    assert all(word in outcome.errors for word in words), outcome.errors


def test_a_study_of_another_application_is_refused(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, result = searched
    outcome = loom("tune", "tabular", "--resume", result["study"], cwd=folder)
    assert outcome.status == 2
    assert "is a study of toy, not of tabular" in outcome.errors
    run = loom("tune", TOY, "--resume", result["best"]["run_id"], cwd=folder)
    assert "is no study, but a trial" in run.errors


def studies(folder: Path) -> list[str]:
    """Studies in the store, read without MLflow's imports; none while the store is being made."""
    try:
        database = sqlite3.connect(f"file:{folder}/mlruns/mlflow.db?mode=ro", uri=True)
        rows = database.execute("select run_uuid from tags where key = 'kind' and value = 'study'")
        return [row[0] for row in rows]
    except sqlite3.OperationalError:
        return []


def search_and_kill(folder: Path, arguments: list[str], whom: str, seconds: float) -> bool:
    """Search, and kill the coordinator, its workers or both some time after the study's start; whether it had to be."""
    command = [sys.executable, "-m", "loom", "tune", TOY, "--no-final", *arguments]
    before = len(studies(folder))
    with subprocess.Popen(
        command, cwd=folder, env=clean_environment(), stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while len(studies(folder)) == before and not before and process.poll() is None:
            time.sleep(0.05)
        try:
            process.wait(timeout=seconds)
            return False
        except subprocess.TimeoutExpired:
            everyone = psutil.Process(process.pid).children(recursive=True)
            if whom != "coordinator":
                busy = [each for each in everyone if each.is_running() and each.memory_info().rss > 2**27]
                for each in busy[-1:]:
                    each.kill()
            if whom == "worker":
                process.wait()
                return False
            process.send_signal(signal.SIGKILL)
        process.wait()
    return True


def killed_and_resumed(folder: Path, arguments: list[str], kills: int, seed: int) -> str:
    """A study that was killed so often; returns its run."""
    generator, killed = random.Random(seed), 0
    while killed < kills:
        found = studies(folder)
        resume = ["--resume", found[-1]] if found else arguments
        start = 7.0 if found else 2.0
        whom = ("coordinator", "both", "coordinator")[killed % 3]
        if not search_and_kill(folder, resume, whom, start + generator.uniform(0, 4)):
            break
        killed += 1
    assert killed, "the study was over before it was killed"
    (study,) = studies(folder)
    if client(folder).get_run(study).info.status != "FINISHED":
        outcome = tune(folder, "--resume", study)
        assert outcome.status == 0, outcome.errors
    return study


ORACLES = {
    "random": ["--trials", "12"],
    "grid": ["--trials", "12", "--space", "units=2..8", "--learning-rate", "0.01"],
    "bayesian": ["--trials", "12"],
    "hyperband": ["--max-epochs", "9"],
}


@pytest.mark.parametrize(
    ("oracle", "kills"),
    [("bayesian", 3), *(pytest.param(oracle, 20, marks=pytest.mark.slow) for oracle in ORACLES)],
)
def test_a_killed_study_makes_the_trials_of_one_never_killed(tmp_path: Path, oracle: str, kills: int) -> None:
    arguments = ["--oracle", oracle, *ORACLES[oracle], "--pause", "0.3"]
    (tmp_path / "whole").mkdir()
    whole = tune(tmp_path / "whole", *arguments)
    assert whole.status == 0, whole.errors
    (tmp_path / "killed").mkdir()
    study = killed_and_resumed(tmp_path / "killed", arguments, kills, seed=kills)
    expected = outcomes(tmp_path / "whole", whole.result["study"])
    assert len(expected) == (23 if oracle == "hyperband" else 12)
    assert outcomes(tmp_path / "killed", study) == expected
