"""The similarity application: classes that are held out, batches, recall, what is remembered, resuming."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console
from support import loom

from apps import similarity
from apps.similarity import APP, Config
from loom import Data, UserError
from loom.data.images import digits
from loom.progress import Progress
from loom.retrieval import nearest, recall_at
from loom.run import Run
from loom.tracking import Store, Tracker
from loom.train import encoded, fit_recorded, prepare

SMALL = Config(filters=4, embedding_units=6, epochs=3, gallery=40, train_fraction=0.3)


@pytest.fixture(scope="module")
def data() -> Data:
    return encoded(APP, SMALL, similarity.load(SMALL))


def test_classes_that_are_held_out_are_in_the_test_part_only() -> None:
    data = similarity.load(replace(SMALL, held_out_classes="3, 8"))
    known = {name: set(split.targets["embedding"][:, 0].tolist()) for name, split in data.splits.items()}
    assert known["train"] == known["validation"] == {0, 1, 2, 4, 5, 6, 7, 9}
    assert known["test"] == set(range(10))
    assert any("images of the classes 3, 8 are not trained or validated on" in note for note in data.notes)


@pytest.mark.parametrize(
    ("classes", "words"),
    [("8,x", "--held-out-classes 8,x: there is no class 'x' among 0, 1"), ("0,1,2,3,4,5,6,7,8", "leave 2 to train on")],
)
def test_classes_that_cannot_be_held_out_are_named(classes: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        similarity.load(replace(SMALL, held_out_classes=classes))


@pytest.mark.parametrize(
    "settings",
    [
        {"mining": "hard", "regularization": "both"},
        pytest.param({"mining": "all", "regularization": "none", "distance": "cosine"}, marks=pytest.mark.slow),
        {"regularization": "l2", "height": 20, "width": 16, "distance": "squared"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_every_parameter_moves_in_one_step(data: Data, settings: dict) -> None:
    config = replace(SMALL, margin=1.0, **settings)
    if "height" in settings:
        data = encoded(APP, config, similarity.load(config))
    model = similarity.build(config, data.spec)
    inputs, targets = next(iter(data_batches(config, data)))
    model.compile(keras.optimizers.SGD(1.0), similarity.loss(config, data.spec), run_eagerly=True)
    before = [np.array(weight) for weight in model.trainable_weights]
    model.train_on_batch(inputs, targets)
    for weight, old in zip(model.trainable_weights, before, strict=True):
        # Under batch normalization only the direction of a kernel counts, and what a ReLU never lets through is still.
        assert not np.array_equal(np.array(weight), old), weight.path


def data_batches(config: Config, data: Data):
    from loom.runtime import start

    run = Run(APP, config, data, start(config), similarity.build(config, data.spec), Path())
    return run.train_batches


def test_embeddings_have_length_1_and_batches_hold_several_classes(data: Data) -> None:
    model = similarity.build(SMALL, data.spec)
    inputs, targets = next(iter(data_batches(SMALL, data)))
    lengths = np.linalg.norm(np.array(model(inputs)["embedding"]), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)
    _, counts = np.unique(targets["embedding"], return_counts=True)
    assert counts.tolist() == [8] * 8


def test_recall_of_held_out_classes_is_asked_among_all_images(data: Data) -> None:
    config = replace(SMALL, held_out_classes="3,8")
    vectors = np.random.default_rng(0).normal(size=(len(data.test), 6))
    classes = data.test.targets["embedding"][:, 0]
    found = similarity.evaluate(config, data)(data.test, {"embedding": vectors})
    assert found["recall_at_1"] == recall_at(vectors, classes, (1,))["recall_at_1"]
    held_out = recall_at(vectors, classes, (5,), np.isin(classes, [3, 8]))["recall_at_5"]
    assert found["held_out_recall_at_5"] == held_out


def test_linear_embeddings_are_far_better_than_chance(data: Data) -> None:
    found = similarity.baselines(SMALL, data)
    assert found["chance"]["recall_at_1"] == pytest.approx(0.1, abs=0.01)
    for name in ("pixels", "pca", "discriminants"):
        assert 0.75 < found[name]["recall_at_1"] < 1, name


class StopAt(keras.callbacks.Callback):
    """Ends a run like a signal would."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self._stop_at = epoch

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if epoch == self._stop_at:
            raise KeyboardInterrupt


def trained(data: Data, folder: Path, tracker: Tracker, stop_at: int = -1) -> Run:
    run = prepare(APP, SMALL, data, folder)
    run.callbacks.append(StopAt(stop_at))
    fit_recorded(run, tracker, Progress(Console(quiet=True), time.perf_counter()))
    return run


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_with_the_weights_of_one_never_stopped(data: Data, tmp_path: Path) -> None:
    store = Store()
    whole_tracker = Tracker.create(store, "whole", {}, "whole")
    whole = trained(data, tmp_path, whole_tracker)
    tracker = Tracker.create(store, "stopped", {}, "stopped")
    with pytest.raises(KeyboardInterrupt):
        trained(data, tmp_path, tracker, stop_at=2)
    tracker.finish("KILLED", "test")
    tracker = Tracker.reopen(store, tracker.run_id)
    resumed = trained(data, tmp_path, tracker)
    for finished in (tracker, whole_tracker):
        finished.finish()
    assert len(resumed.history) == len(whole.history) == SMALL.epochs
    assert [epoch["val_recall_at_1"] for epoch in resumed.history] == [
        epoch["val_recall_at_1"] for epoch in whole.history
    ]
    for ours, theirs in zip(resumed.model.weights, whole.model.weights, strict=True):  # the gallery is among them
        np.testing.assert_array_equal(np.array(ours), np.array(theirs), err_msg=ours.path)
    check_answers(resumed)


def check_answers(run: Run) -> None:
    """A training image that is remembered finds itself; others find what is nearest among those that are."""
    gallery = run.model.get_layer("gallery")
    known = run.trained.predict(run.data.train.raw.head(5))
    for answer, kind in zip(known, np.array(gallery.classes), strict=False):
        assert answer["label"] == str(kind)
        assert answer["distance"] == pytest.approx(0, abs=1e-3)
    vectors = run.test_outputs()["embedding"][:8]
    rows, distances = nearest(vectors, np.array(gallery.embeddings), 5)
    for answer, found, away in zip(run.trained.predict(run.data.test.raw.head(8)), rows, distances, strict=True):
        assert [entry["label"] for entry in answer["nearest"]] == [str(np.array(gallery.classes)[row]) for row in found]
        assert [entry["distance"] for entry in answer["nearest"]] == pytest.approx(away.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"margin": 0.0}, "--margin"),
        ({"examples_per_class": 1}, "--examples-per-class"),
        ({"batch_size": 15}, "--batch-size 15: must hold 2 classes"),
        ({"gallery": 0}, "--gallery"),
        ({"dropout": 1.0}, "--dropout"),
        ({"mining": "easy"}, "--mining"),
    ],
)
def test_impossible_settings_are_refused_by_flag(settings: dict, flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        replace(SMALL, **settings)


def test_images_of_two_classes_cannot_be_mixed(data: Data) -> None:
    with pytest.raises(UserError, match="--mixup"):
        similarity.augmentation(replace(SMALL, mixup=0.2), data.spec)


@pytest.mark.slow
def test_the_command_trains_and_its_model_answers_files(tmp_path: Path) -> None:
    settings = ("--filters", "4", "--epochs", "2", "--held-out-classes", "9", "--train-fraction", "0.4")
    outcome = loom("train", "similarity", *settings, "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    metrics = outcome.result["metrics"]
    assert metrics["test_recall_at_1"] > 2 * metrics["baseline_chance_recall_at_1"]
    assert {"val_recall_at_5", "test_held_out_recall_at_1", "baseline_pixels_held_out_recall_at_5"} <= set(metrics)
    assert "test_loss" not in metrics
    report = Path(outcome.result["model"]).parent / "report"
    made = {"retrieval.png", "embedding.png", "recall_at_1_by_class.json", "learning_curves.png"}
    assert made <= {path.name for path in report.iterdir()}
    (tmp_path / "digit.png").write_bytes(digits()["image"][0])
    answer = loom("predict", outcome.result["run_id"], "digit.png", cwd=tmp_path)
    assert answer.status == 0, answer.errors
    assert "distance" in answer.output


@pytest.mark.slow
def test_the_default_search_space_runs(tmp_path: Path) -> None:
    settings = ("--trials", "2", "--epochs", "1", "--train-fraction", "0.3")
    outcome = loom("tune", "similarity", *settings, "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors


@pytest.mark.slow
def test_the_digits_are_found_better_than_by_their_pixels(tmp_path: Path) -> None:
    outcome = loom("train", "similarity", "--epochs", "15", "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    metrics = outcome.result["metrics"]
    assert metrics["test_recall_at_1"] > metrics["baseline_pixels_recall_at_1"]
