"""One run from the command to its record: what is stored, and what happens when something goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import SMALL_SENTIMENT, TrainedRun, clean_environment, client, loom, same_weights, weights


def test_the_result_tells_the_run_its_metrics_and_its_time(sentiment_run: TrainedRun) -> None:
    result = sentiment_run.outcome.result
    assert result["app"] == "sentiment"
    assert 0.75 < result["metrics"]["test_accuracy"] <= 1
    assert 0.4 < result["metrics"]["baseline_majority_accuracy"] < 0.6
    assert result["metrics"]["baseline_tfidf_accuracy"] > 0.8
    assert 0 < result["timings"]["seconds_first_step"] < result["seconds"]


def test_progress_goes_to_standard_error_and_nothing_else_does(sentiment_run: TrainedRun) -> None:
    lines = [line for line in sentiment_run.outcome.errors.splitlines() if line.strip()]
    assert sum(line.startswith("epoch ") for line in lines) == 3
    assert any("first training step after" in line for line in lines)
    assert any("tfidf" in line for line in lines)
    assert not [line for line in lines if "WARNING" in line or "oneDNN" in line or "I0000" in line]


def test_the_store_holds_every_epoch_once(sentiment_run: TrainedRun) -> None:
    store = client(sentiment_run.folder)
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "epoch_seconds"):
        history = store.get_metric_history(sentiment_run.run_id, name)
        assert sorted(metric.step for metric in history) == [0, 1, 2], name


def test_the_store_holds_settings_tags_and_data(sentiment_run: TrainedRun) -> None:
    run = client(sentiment_run.folder).get_run(sentiment_run.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["vocabulary_size"] == "800"
    assert run.data.params["optimizer"] == "adam"
    assert run.data.tags["app"] == "sentiment"
    assert run.data.tags["kind"] == "train"
    assert run.data.tags["version.keras"]
    (dataset,) = run.inputs.dataset_inputs
    assert json.loads(dataset.dataset.profile) == {"train": 2160, "validation": 240, "test": 600}


def test_the_artifacts_are_a_model_a_report_and_no_checkpoint(sentiment_run: TrainedRun) -> None:
    artifacts = sentiment_run.model.parent
    names = {path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*")}
    assert {"config.json", "data.json", "model/MLmodel", "report/learning_curves.png", "report/words.png"} <= names
    assert {"report/confusion_matrix.png", "report/advice.json"} <= names
    assert not any(name.startswith("checkpoint") for name in names)
    assert all(path.stat().st_size > 5000 for path in artifacts.glob("report/*.png"))
    assert json.loads((artifacts / "config.json").read_text())["vocabulary_size"] == 800


@pytest.mark.slow
def test_the_same_settings_give_the_same_weights_bit_for_bit(sentiment_run: TrainedRun) -> None:
    again = loom("train", "sentiment", "--from-run", sentiment_run.run_id, "--json", cwd=sentiment_run.folder)
    assert again.status == 0, again.errors
    assert again.result["run_id"] != sentiment_run.run_id
    assert same_weights(weights(Path(again.result["model"])), weights(sentiment_run.model))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--resume", "RUN"], ["is finished", "--from-run"]),
        pytest.param(["--resume", "RUN", "--epochs", "9"], ["leave out epochs"], marks=pytest.mark.slow),
        pytest.param(["--from-run", "RUN", "--epochs", "0"], ["--epochs 0"], marks=pytest.mark.slow),
    ],
)
def test_a_finished_run_is_not_resumed(sentiment_run: TrainedRun, arguments: list[str], words: list[str]) -> None:
    arguments = [sentiment_run.run_id if argument == "RUN" else argument for argument in arguments]
    outcome = loom("train", "sentiment", *arguments, cwd=sentiment_run.folder)
    assert outcome.status == 2
    assert outcome.errors.count("\n") == 1
    assert all(word in outcome.errors for word in words)


@pytest.mark.slow
def test_bad_rows_are_quarantined_and_listed(tmp_path: Path) -> None:
    good = "".join(f"a {'good' if n % 2 else 'bad'} film {n},{'pos' if n % 2 else 'neg'}\n" for n in range(300))
    (tmp_path / "films.csv").write_bytes(b"text,label\n" + good.encode() + b"caf\xe9,pos\none,two,three\n")
    settings = ("--epochs", "1", "--jit", "off", "--pair-buckets", "0")
    outcome = loom("train", "sentiment", "--data", "films.csv", *settings, "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    assert "2 quarantined" in outcome.errors
    data = json.loads((Path(outcome.result["model"]).parent / "data.json").read_text())
    assert [entry["where"] for entry in data["quarantined"]] == ["films.csv:302", "films.csv:303"]
    assert "UTF-8" in data["quarantined"][0]["why"]


@pytest.mark.slow
def test_a_loss_that_becomes_infinite_fails_the_run_with_its_reason(tmp_path: Path) -> None:
    settings = ("--optimizer", "sgd", "--learning-rate", "1e38", "--target", "rating")
    outcome = loom("train", "sentiment", *SMALL_SENTIMENT, *settings, cwd=tmp_path)
    assert outcome.status == 2
    assert "the loss became" in outcome.errors.splitlines()[-1]
    (run,) = client(tmp_path).search_runs(["1"])
    assert run.info.status == "FAILED"
    assert "--learning-rate" in run.data.tags["reason"]


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupted_run_is_killed_and_can_be_resumed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loom", "train", "sentiment", *SMALL_SENTIMENT, "--epochs", "3000"]
    with subprocess.Popen(
        [*command, "--patience", "0"],
        cwd=tmp_path,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        next(line for line in process.stdout if line.startswith("epoch 2"))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the baselines' process too
        start = time.monotonic()
        process.stdout.read()
        errors = process.stderr.read()
    assert process.returncode == 130
    assert time.monotonic() - start < 20
    (run,) = client(tmp_path).search_runs(["1"])
    assert run.info.status == "KILLED"
    assert errors == f"loom: stopped; go on with: loom train sentiment --resume {run.info.run_id}\n"
