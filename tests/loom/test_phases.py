"""A run in two phases: what each one trains, how it is recorded, and that it goes on where it was stopped."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import phased
import pytest
from rich.console import Console
from support import ROOT, client, empty_store, loom, same_weights, weights

from loom.progress import Progress
from loom.report import learning_curves
from loom.run import Run, fit
from loom.tracking import Store, Tracker
from loom.train import fit_recorded, prepare


class Snapshots(keras.callbacks.Callback):
    """Weights where each phase begins and ends, and its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[dict[str, np.ndarray]] = []
        self.optimizers: list[tuple[float, int]] = []

    def on_train_begin(self, logs: object = None) -> None:
        self.weights.append({variable.path: np.array(variable) for variable in self.model.weights})

    def on_train_end(self, logs: object = None) -> None:
        self.on_train_begin()
        optimizer = self.model.optimizer
        self.optimizers.append((float(optimizer.learning_rate), int(optimizer.iterations)))

    def moved(self, phase: int) -> set[str]:
        """Names of the weights that the phase changed."""
        before, after = self.weights[2 * phase : 2 * phase + 2]
        return {name for name in before if not np.array_equal(before[name], after[name])}


def prepared(config: phased.Config, folder: Path) -> tuple[Run, Snapshots]:
    run = prepare(phased.APP, config, phased.APP.load(config), folder)
    run.callbacks.append(snapshots := Snapshots())
    return run, snapshots


def test_each_phase_moves_its_own_weights_with_an_optimizer_of_its_own(tmp_path: Path) -> None:
    run, snapshots = prepared(phased.Config(), tmp_path)
    fit(run)
    assert snapshots.moved(0) == {"head/kernel", "head/bias"}
    assert snapshots.moved(1) == {"head/kernel", "head/bias", "lower/kernel", "lower/bias"}
    assert {"norm/gamma", "norm/moving_mean"} <= set(snapshots.weights[0])
    steps = len(run.train_batches)
    assert snapshots.optimizers == [(pytest.approx(0.05), 2 * steps), (pytest.approx(0.005), 3 * steps)]


def test_a_phase_that_no_longer_gets_better_gives_way_to_the_next(tmp_path: Path) -> None:
    run, snapshots = prepared(replace(phased.Config(), frozen_epochs=50, epochs=52), tmp_path)
    stopping = keras.callbacks.EarlyStopping("val_accuracy", mode="max", patience=3, restore_best_weights=True)
    run.callbacks.append(stopping)
    fit(run)
    frozen = snapshots.optimizers[0][1] // len(run.train_batches)
    assert 3 < frozen < 50
    assert run.initial_epoch == frozen + 2


def test_a_run_that_is_over_has_no_further_phase(tmp_path: Path) -> None:
    run, snapshots = prepared(phased.Config(), tmp_path)

    def end(epoch: int, logs: object) -> None:
        run.model.stop_training = run.is_over = True

    run.callbacks.append(keras.callbacks.LambdaCallback(on_epoch_end=end))
    fit(run)
    assert len(snapshots.optimizers) == 1
    assert run.initial_epoch == 1


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("phases")
    (folder / "mlruns").mkdir()
    shutil.copy(empty_store(), folder / "mlruns" / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return Store()


def train(store: Store, tracker: Tracker, folder: Path) -> list[np.ndarray]:
    """Weights after training goes on from where the recorded run is, as the command makes it."""
    config = phased.Config(patience=2)
    run = prepare(phased.APP, config, phased.APP.load(config), folder)
    try:
        fit_recorded(run, tracker, Progress(Console(quiet=True), 0))
    finally:
        tracker.release()
    return run.model.get_weights()


def history(store: Store, run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in store.client().get_metric_history(run_id, name))


@pytest.fixture(scope="module")
def whole(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[np.ndarray]]:
    tracker = Tracker.create(store, "phased", {}, "whole")
    return tracker.run_id, train(store, tracker, tmp_path_factory.mktemp("whole"))


def test_epochs_are_counted_through_in_one_series(store: Store, whole: tuple[str, list[np.ndarray]]) -> None:
    assert history(store, whole[0], "phase") == list(enumerate([1, 1, 2, 2, 2]))
    rates = [rate for _, rate in history(store, whole[0], "lr")]
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.005, 0.005])
    assert [step for step, _ in history(store, whole[0], "val_loss")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "epoch",
    [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)],
    ids=["in the first phase", "between them", "in the second phase"],
)
def test_a_stopped_run_goes_on_bit_for_bit(
    store: Store, whole: tuple[str, list[np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    tracker = Tracker.create(store, "phased", {}, "stopped")
    monkeypatch.setenv("STOP_AT", str(epoch))
    with pytest.raises(KeyboardInterrupt):
        train(store, tracker, tmp_path)
    monkeypatch.delenv("STOP_AT")
    assert len(history(store, tracker.run_id, "train_loss")) == epoch
    weights = train(store, Tracker.reopen(store, tracker.run_id), tmp_path)
    assert all(map(np.array_equal, weights, whole[1]))
    for name in ("train_loss", "val_loss", "lr", "phase"):
        assert history(store, tracker.run_id, name) == history(store, whole[0], name), name


@pytest.mark.slow
def test_the_command_goes_on_in_the_second_phase(tmp_path: Path) -> None:
    command = ("train", str(ROOT / "tests" / "helpers" / "phased.py"), "--json")
    whole = loom(*command, cwd=tmp_path)
    assert whole.status == 0, whole.errors
    assert "phase 1/2, head: trains 9 of 65 parameters, learning rate 0.05\n" in whole.errors
    assert "phase 2/2, all: trains 33 of 65 parameters, learning rate 0.005\n" in whole.errors
    assert whole.errors.count("first training step") == 1
    assert loom(*command, cwd=tmp_path, STOP_AT="3").status == 130
    (run,) = [run for run in client(tmp_path).search_runs(["1"]) if run.info.status != "FINISHED"]
    resumed = loom(*command, "--resume", run.info.run_id, cwd=tmp_path)
    assert resumed.status == 0, resumed.errors
    assert same_weights(weights(Path(resumed.result["model"])), weights(Path(whole.result["model"])))


def test_a_line_shows_where_a_phase_begins() -> None:
    metrics = {"train_loss": 1.0, "val_loss": 1.0}
    (axis,) = learning_curves([metrics | {"phase": phase} for phase in (1.0, 1.0, 2.0)]).axes
    (line,) = [line for line in axis.lines if line.get_label() == "next phase"]
    assert set(line.get_xdata()) == {2.5}
    (axis,) = learning_curves([metrics] * 3).axes
    assert not math.isnan(axis.lines[0].get_ydata()[0])
    assert len(axis.lines) == 2
