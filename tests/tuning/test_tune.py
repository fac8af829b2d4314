"""Searches by the command: what is recorded, what may go wrong, and how they go on after having been killed."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import ROOT, Outcome, clean_environment, client, loom

from loom import UserError
from tuning.command import Options, check

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


@pytest.mark.slow
def test_a_trial_can_be_run_again_as_a_plain_run(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, result = searched
    again = loom("train", TOY, "--from-run", result["best"]["run_id"], "--json", cwd=folder)
    assert again.status == 0, again.errors
    history = client(folder).get_metric_history(again.result["run_id"], "val_loss")
    assert min(metric.value for metric in history) == result["best"]["score"]


@pytest.mark.slow
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


REASONS = {
    "raise": "ValueError: no such thing",
    "exit": "the worker ended with status 3",
    "crash": "the worker died of SIGSEGV",
    "hang": "no end after 60 s",
    "memory": "out of memory: more than its share of 2.5 GiB",
    "nan": "became nan",
    "large": "too large: more than",
}


@pytest.mark.parametrize(
    "troubles", [("exit", "nan"), pytest.param(tuple(REASONS), marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_one_failed_trial_is_one_failed_trial(tmp_path: Path, troubles: tuple[str, ...]) -> None:
    space = ("--space", f"trouble={','.join(('none', *troubles))}")
    fixed = ("--units", "4", "--activation", "relu", "--learning-rate", "0.1")
    limits = ("--trial-timeout", "60", "--trial-memory", "2.5")
    outcome = tune(tmp_path, "--oracle", "grid", "--workers", "2", *space, *fixed, *limits)
    assert outcome.status == 0, outcome.errors
    runs = children(tmp_path, outcome.result["study"])
    reasons = {run.data.params["trouble"]: run.data.tags["reason"] for run in runs}
    assert outcome.result["failed"] == len(troubles)
    assert reasons.pop("none") == ""
    assert reasons.keys() == set(troubles)
    for trouble in troubles:
        assert REASONS[trouble] in reasons[trouble]
    assert {run.info.status for run in runs if run.data.params["trouble"] != "none"} == {"FAILED"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(
            ["--objective", "val_f1"], ["--objective val_f1", "val_loss", "val_accuracy"], marks=pytest.mark.slow
        ),
        pytest.param(["--resume", "0" * 32], ["unknown run"], marks=pytest.mark.slow),
        (["--unit", "4"], ["did you mean --units?"]),
        (["--trials", "x"], ["--trials"]),
    ],
)
def test_mistakes_are_one_line(searched: tuple[Path, dict[str, Any]], arguments: list[str], words: list[str]) -> None:
    outcome = tune(searched[0], *arguments)
    assert outcome.status == 2, outcome.errors
    assert outcome.errors.count("\n") == 1
    assert all(word in outcome.errors for word in words), outcome.errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(oracle="hyperband"), "--max-epochs"),
        (Options(oracle="hyperband", max_epochs=9, trials=5), "--trials"),
        (Options(oracle="hyperband", max_epochs=9, prune="median"), "--prune"),
        (Options(oracle="hyperband", max_epochs=9, seeds=2), "--seeds"),
        (Options(max_epochs=9), "--max-epochs: is for"),
        (Options(workers=0), "--workers 0"),
        (Options(seeds=0), "--seeds 0"),
        (Options(trials=-1), "--trials -1"),
        (Options(oracle="grid", warm_start="1"), "--warm-start: grid"),
        (Options(resume="1", oracle="grid"), "leave out --oracle"),
        (Options(resume="1", space=("units=1..2",)), "leave out --space"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(options: Options, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check(options)


@pytest.mark.slow
def test_a_study_of_another_application_is_refused(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, result = searched
    outcome = loom("tune", "tabular", "--resume", result["study"], cwd=folder)
    assert outcome.status == 2
    assert "is a study of toy, not of tabular" in outcome.errors
    run = loom("tune", TOY, "--resume", result["best"]["run_id"], cwd=folder)
    assert "is no study, but a trial" in run.errors


def studies(folder: Path) -> list[str]:
    """Studies whose definition is recorded, found without MLflow's imports."""
    return [path.parts[-3] for path in folder.glob("mlruns/artifacts/*/*/artifacts/study.json")]


class Disturbed:
    """A study whose coordinator, workers, or both are killed at random moments, and which is resumed each time."""

    def __init__(self, folder: Path, arguments: list[str], seed: int) -> None:
        self.folder, self._arguments, self._random = folder, arguments, random.Random(seed)
        self._process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        self._starts = (
            (self.folder / "log").read_text("utf-8").count("val_loss wins") + 1 if studies(self.folder) else 1
        )
        what = ["--resume", *found] if (found := studies(self.folder)) else self._arguments
        command = [sys.executable, "-m", "loom", "tune", TOY, "--no-final", *what]
        environment, log = clean_environment(), (self.folder / "log").open("ab")
        with log:
            return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)

    def _has_begun(self) -> bool:
        """Whether the process that is running has come to the trials."""
        return (self.folder / "log").read_text("utf-8").count("val_loss wins") >= self._starts

    def _wait(self) -> None:
        """Until a random moment: while the process starts, or while trials run."""
        while self._process.poll() is None and self._random.random() < 0.998 and not self._has_begun():
            time.sleep(0.1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=self._random.uniform(0, 8))
            raise AssertionError(f"the study is over already: {(self.folder / 'log').read_text('utf-8')}")

    def kill(self, whom: str) -> bool:
        """Kills at a random moment; returns whether there was anyone to kill."""
        self._wait()
        found = 0
        if whom != "coordinator":
            for process in psutil.Process(self._process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.ppid() != self._process.pid:  # the server's children, not the server
                        process.kill()
                        found += 1
        if whom == "worker":
            return found > 0
        self._process.kill()
        self._process.wait()
        self._process = self._started()
        return True

    def interrupted(self, signal_number: int) -> tuple[int, str]:
        """Exit status and output of a study that is interrupted while its first trial runs."""
        while self._process.poll() is None and not any(self.folder.glob("mlruns/artifacts/*/*/artifacts/config.json")):
            time.sleep(0.1)
        self._process.send_signal(signal_number)
        return self._process.wait(), (self.folder / "log").read_text("utf-8")

    def finished(self) -> str:
        """Waits for the end; returns the study's run."""
        status = self._process.wait()
        assert status == 0, (self.folder / "log").read_text("utf-8")
        (study,) = studies(self.folder)
        return study


def disturbed(folder: Path, arguments: list[str], kills: int) -> str:
    """A study that was killed so often; returns its run."""
    folder.mkdir()
    study, done = Disturbed(folder, arguments, seed=kills), 0
    while done < kills:
        done += study.kill(("coordinator", "worker", "both")[done % 3])
    return study.finished()


GRID = ["--space", "units=2..8", "--learning-rate", "0.01"]
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("oracle", "arguments", "trials", "kills", "pause"),
    [
        ("random", ["--trials", "3"], 3, 1, 0.6),
        pytest.param("random", ["--trials", "12"], 12, 20, 2, marks=SLOW),
        pytest.param("grid", ["--trials", "12", *GRID], 12, 20, 2, marks=SLOW),
        pytest.param("bayesian", ["--trials", "12"], 12, 20, 2, marks=SLOW),
        pytest.param("hyperband", ["--max-epochs", "9"], 23, 20, 0.5, marks=SLOW),
    ],
)
def test_a_killed_study_makes_the_trials_of_one_never_killed(
    tmp_path: Path, oracle: str, arguments: list[str], trials: int, kills: int, pause: float
) -> None:
    arguments = ["--oracle", oracle, *arguments]
    (tmp_path / "whole").mkdir()
    whole = tune(tmp_path / "whole", *arguments)
    assert whole.status == 0, whole.errors
    study = disturbed(tmp_path / "killed", [*arguments, "--pause", str(pause)], kills)
    expected = outcomes(tmp_path / "whole", whole.result["study"])
    assert len(expected) == trials
    assert outcomes(tmp_path / "killed", study) == expected


@pytest.mark.slow
def test_with_several_workers_no_trial_is_lost_and_none_is_there_twice(tmp_path: Path) -> None:
    study = disturbed(tmp_path / "killed", ["--trials", "16", "--workers", "3", "--pause", "2"], 10)
    runs = children(tmp_path / "killed", study)
    assert [run.data.tags["trial_number"] for run in runs] == [str(number) for number in range(1, 17)]
    assert len({run.data.tags["hyperparameters"] for run in runs}) == 16
    assert {run.data.tags["status"] for run in runs} == {"completed"}
    sequence = [int(run.data.tags[f"sequence_{end}"]) for run in runs for end in ("start", "end")]
    assert sorted(sequence) == list(range(32))
    for run in runs:
        steps = [metric.step for metric in client(tmp_path / "killed").get_metric_history(run.info.run_id, "val_loss")]
        assert steps == [0, 1, 2]


@pytest.mark.slow
def test_seeds_are_averaged(tmp_path: Path) -> None:
    outcome = tune(tmp_path, "--trials", "2", "--seeds", "3", "--workers", "2")
    assert outcome.status == 0, outcome.errors
    for trial in children(tmp_path, outcome.result["study"]):
        scores = json.loads(trial.data.tags["seed_scores"])
        assert len(set(scores)) == 3
        assert float(trial.data.tags["score"]) == pytest.approx(statistics.mean(scores))
        assert trial.data.metrics["score_spread"] == pytest.approx(statistics.stdev(scores))
        repeats = client(tmp_path).search_runs(["1"], f"tags.trial = '{trial.info.run_id}'")
        assert sorted(run.data.params["seed"] for run in repeats) == ["1", "2"]
        assert {run.data.tags["mlflow.parentRunId"] for run in repeats} == {trial.info.run_id}
        for run in repeats:
            (config,) = tmp_path.glob(f"mlruns/artifacts/*/{run.info.run_id}/artifacts/config.json")
            assert json.loads(config.read_text("utf-8"))["split_seed"] == 0


@pytest.mark.slow
def test_trials_that_are_clearly_worse_are_pruned(tmp_path: Path) -> None:
    rates = ",".join(["0.1", "0.09", "0.08", "0.07", "0.06", "0.05", "0.000001"])
    varied = ("--space", f"learning_rate={rates}", "--units", "8", "--activation", "tanh")
    outcome = tune(tmp_path, "--oracle", "grid", "--prune", "median", "--epochs", "6", *varied)
    assert outcome.status == 0, outcome.errors
    runs = {run.data.params["learning_rate"]: run for run in children(tmp_path, outcome.result["study"])}
    slow = runs.pop("1e-06")
    assert (slow.data.tags["status"], slow.info.status) == ("pruned", "KILLED")
    assert "while the median of the others was" in slow.data.tags["reason"]
    assert len(client(tmp_path).get_metric_history(slow.info.run_id, "val_loss")) == 1
    for run in runs.values():
        assert (
            (run.data.tags["status"] == "completed") == ("score" in run.data.metrics) == (not run.data.tags["reason"])
        )
    assert outcome.result["best"]["run_id"] in {run.info.run_id for run in runs.values()}


@pytest.mark.slow
def test_another_study_can_start_from_what_one_has_found(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, result = searched
    wider = ("--space", "units=2..128:log", "--oracle", "bayesian", "--trials", "2")
    outcome = tune(folder, "--warm-start", result["study"], *wider)
    assert outcome.status == 0, outcome.errors
    assert len(children(folder, outcome.result["study"])) == 2
    (path,) = folder.glob(f"mlruns/artifacts/*/{outcome.result['study']}/artifacts/study.json")
    assert len(json.loads(path.read_text("utf-8"))["known"]) == len(children(folder, result["study"]))
    narrow = tune(folder, "--warm-start", result["study"], "--space", "units=500..600", "--trials", "2")
    assert narrow.status == 2
    assert "none of its finished trials lies in this search space" in narrow.errors


@pytest.mark.slow
def test_the_best_configuration_is_trained_as_a_full_run_that_alone_is_tested(tmp_path: Path) -> None:
    outcome = loom("tune", TOY, "--trials", "3", "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    final = client(tmp_path).get_run(outcome.result["final"]["run_id"])
    assert final.data.tags["kind"] == "train"
    assert final.data.tags["study"] == outcome.result["study"]
    assert final.data.tags["trial"] == outcome.result["best"]["run_id"]
    assert {name for name in final.data.metrics if name.startswith("test_")} >= {"test_loss", "test_accuracy"}
    for name, value in outcome.result["best"]["settings"].items():
        assert final.data.params[name] == str(value)
    history = client(tmp_path).get_metric_history(final.info.run_id, "val_loss")
    assert min(metric.value for metric in history) == pytest.approx(outcome.result["best"]["score"], rel=1e-5)
    (report,) = tmp_path.glob(f"mlruns/artifacts/*/{outcome.result['study']}/artifacts/report")
    names = {"report.html", "trials.csv", "best_so_far.png", "cost.png", "parallel_coordinates.png"}
    assert {path.name for path in report.iterdir()} == names


@pytest.mark.slow
@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_study_is_killed_and_goes_on(tmp_path: Path, signal_number: int) -> None:
    study = Disturbed(tmp_path, ["--trials", "3", "--pause", "1"], seed=0)
    status, said = study.interrupted(signal_number)
    (run_id,) = studies(tmp_path)
    assert status == 130
    assert said.splitlines()[-1] == f"loom: stopped; go on with: loom tune {TOY} --resume {run_id}"
    assert client(tmp_path).get_run(run_id).info.status == "KILLED"
    begun = children(tmp_path, run_id)
    assert begun
    for run in begun:
        ended = run.data.tags["status"] == "completed"
        assert run.info.status == ("FINISHED" if ended else "KILLED")
    outcome = tune(tmp_path, "--resume", run_id)
    assert outcome.status == 0, outcome.errors
    assert {run.info.status for run in children(tmp_path, run_id)} == {"FINISHED"}
