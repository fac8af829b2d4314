"""The images application: every model, its settings, files in and answers out, resuming, searching."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from rich.console import Console
from support import TrainedRun, client, empty_store, loom, served

from apps import images
from apps.images import APP, Config
from loom import Data, UserError
from loom.data.files import as_base64
from loom.data.images import digits
from loom.progress import Progress
from loom.run import fit
from loom.tracking import Store, Tracker
from loom.train import build_run, encoded, fit_recorded
from loom.weights import copy_weights

SMALL = Config(filters=4, units=8, train_fraction=0.3, epochs=1)
AUGMENTED = {"model": "mlp", "rotation": 10.0, "noise": 0.1, "mixup": 0.2}
FLAGS = ("--filters", "8", "--units", "16", "--epochs", "3", "--rotation", "10", "--noise", "0.05", "--cutout", "0.2")


@pytest.fixture(scope="module")
def data() -> Data:
    """The digits as numbers, some of them."""
    return encoded(APP, SMALL, images.load(SMALL))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """Trained on the built-in digits by the command."""
    folder = tmp_path_factory.mktemp("images")
    outcome = loom("train", "images", *FLAGS, "--json", cwd=folder)
    assert outcome.status == 0, outcome.errors
    return TrainedRun(outcome.result["run_id"], folder, outcome)


# The command, from files to answers


def test_the_command_learns_and_is_measured_beside_its_baselines(run: TrainedRun) -> None:
    metrics = run.outcome.result["metrics"]
    assert metrics["test_accuracy"] > metrics["baseline_majority_accuracy"] + 0.2
    assert metrics["baseline_svc_accuracy"] > 0.95
    assert metrics["check_difference"] < 1e-4
    assert {"train_accuracy", "val_accuracy", "test_loss"} <= set(metrics)


def test_the_report_shows_what_the_model_sees(run: TrainedRun) -> None:
    names = {Path(file.path).name for file in client(run.folder).list_artifacts(run.run_id, "report")}
    figures = ("confusion_matrix", "mistakes", "filters", "feature_maps", "augmented", "grad_cam", "learning_curves")
    assert names >= {f"{name}.png" for name in figures} | {"recall_of_each_class.json"}


@pytest.mark.slow
def test_image_files_and_base64_give_the_same_answers(run: TrainedRun) -> None:
    """In a process that loads the saved model, with the code saved in it."""
    sample = digits().head(4)
    paths = [run.folder / f"{row}.png" for row in range(4)]
    for path, content in zip(paths, sample["image"], strict=True):
        path.write_bytes(content)
    (run.folder / "list.csv").write_text("image\n" + "\n".join(map(str, paths)))
    text = json.dumps({"image": as_base64(sample["image"][0])})
    outcome = loom("predict", run.run_id, "--json", *map(str, paths), text, "list.csv", cwd=run.folder)
    assert outcome.status == 0, outcome.errors
    answers = [json.loads(line) for line in outcome.output.splitlines()]
    assert answers[4] == pytest.approx(answers[0])
    assert answers[5:] == answers[:4]
    assert all(answer["label"] in set("0123456789") and 0.1 <= answer["probability"] <= 1 for answer in answers)


@pytest.mark.slow
def test_the_server_takes_base64_text(run: TrainedRun) -> None:
    text = as_base64(digits()["image"][0])
    outcome = loom("predict", run.run_id, "--json", json.dumps({"image": text}), cwd=run.folder)
    assert served(run, [{"image": text}]) == [json.loads(outcome.output)]


@pytest.mark.slow
def test_every_format_is_written_and_takes_files_or_pixels(run: TrainedRun) -> None:
    """The command compares each format's outputs with the model's own."""
    import tensorflow as tf

    formats = ["keras", "savedmodel", "litert", *(["onnx"] if importlib.util.find_spec("tf2onnx") else [])]
    outcome = loom("export", run.run_id, "--format", *formats, "--output", "exported", cwd=run.folder)
    assert outcome.status == 0, outcome.errors
    exported = tf.saved_model.load(run.folder / "exported" / "savedmodel")  # whose variables go with it
    answer = exported.serve({"image": [[digits()["image"][0]]]})
    assert answer["label_label"].numpy()[0].decode() in set("0123456789")
    (pixels,) = json.loads((run.folder / "exported" / "preprocessing.json").read_text())["core_inputs"]
    assert pixels == {"name": "image", "dtype": "uint8", "shape": [None, 8, 8, 1]}


@pytest.mark.slow
def test_two_devices_train_on_augmented_images(tmp_path: Path) -> None:
    settings = ("--epochs", "1", "--max-train", "200", "--filters", "4", "--rotation", "10", "--mixup", "0.2")
    outcome = loom("train", "images", *settings, "--devices", "2", "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    assert "2 devices" in outcome.errors


@pytest.mark.slow
def test_a_file_that_is_no_image_is_refused_in_one_line(run: TrainedRun) -> None:
    (run.folder / "cut.png").write_bytes(digits()["image"][0][:-20])
    outcome = loom("predict", run.run_id, "cut.png", cwd=run.folder)
    assert outcome.status == 2
    assert "input column 'image', row 1: the PNG file is damaged or cut off" in outcome.errors
    assert outcome.errors.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dropout", "1.5"], "--dropout 1.5: must be at least 0 and below 1"),
        (["--loss", "squared_error", "--label-smoothing", "0.1"], "--label-smoothing 0.1: needs --loss crossentropy"),
        (["--data", "nowhere"], "--data nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, flags: list[str], message: str) -> None:
    outcome = loom("train", "images", *flags, cwd=tmp_path)
    assert outcome.status == 2
    assert message in outcome.errors
    assert outcome.errors.count("\n") == 1


@pytest.mark.slow
def test_the_search_space_runs(tmp_path: Path) -> None:
    settings = ("--epochs", "1", "--train-fraction", "0.2", "--model", "lenet")
    outcome = loom("tune", "images", "--trials", "2", "--no-final", "--json", *settings, cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    assert "trial 2/2 completed" in outcome.errors


# Models

MODELS: list[dict[str, Any]] = [
    {"model": "mlp", "depth": 2, "regularization": "none"},
    {"model": "mlp", "activation": "prelu", "loss": "squared_error", "bias": False, "regularization": "l1"},
    {"model": "lenet", "activation": "tanh"},
    {"model": "cnn"},
    {"model": "cnn", "depth": 2, "activation": "leaky_relu", "regularization": "l2", "pooling": "l2"},
    {"model": "resnet", "activation": "elu"},
    {"model": "resnet", "activation": "selu", "regularization": "dropout"},
]


@pytest.mark.parametrize("settings", MODELS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_every_parameter_of_every_model_moves_in_one_step(data: Data, settings: dict[str, Any]) -> None:
    config = replace(SMALL, **settings)
    keras.utils.set_random_seed(0)
    model = images.build(config, data.spec)
    model.compile(keras.optimizers.SGD(1.0), images.loss(config, data.spec), jit_compile=False)
    before = [np.array(weight) for weight in model.trainable_weights]
    model.fit(data.train.inputs, data.train.targets, batch_size=len(data.train), epochs=1, verbose=0)
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert not np.array_equal(np.array(weight), old), weight.path


@pytest.mark.parametrize(
    ("regularization", "kinds"),
    [
        ("none", set()),
        ("dropout", {"Dropout"}),
        ("both", {"Dropout", "BatchNormalization"}),
        ("l2", set()),
    ],
)
@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet"])
def test_regularization_is_what_it_says(data: Data, model: str, regularization: str, kinds: set[str]) -> None:
    built = images.build(replace(SMALL, model=model, regularization=regularization), data.spec)
    names = {type(layer).__name__ for layer in built.layers}
    assert names & {"Dropout", "BatchNormalization"} == kinds
    kernels = [layer for layer in built.layers if hasattr(layer, "kernel")]
    assert all((layer.kernel_regularizer is not None) == (regularization == "l2") for layer in kernels)


def test_the_networks_have_the_sizes_of_their_papers() -> None:
    """784-40-10 without biases, and LeNet-5 with full connections between its convolutions."""
    data = images.load(SMALL)
    column = replace(data.spec.inputs[0], statistics={"height": 28, "width": 28, "channels": 1})
    spec = replace(data.spec, inputs=(column,))
    plain = {"regularization": "none"}
    assert images.build(Config(model="mlp", units=40, bias=False, **plain), spec).count_params() == 784 * 40 + 400
    assert images.build(Config(model="lenet", **plain), spec).count_params() == 61_706


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("max", [[5, 3], [7, 4]]),
        ("average", [[2.75, 1.5], [3.25, 1.75]]),
        ("min", [[1, 0], [1, 0]]),
        ("l2", [[39**0.5, 14**0.5], [63**0.5, 21**0.5]]),
    ],
)
def test_pooling_is_what_it_says(pooling: Any, expected: list) -> None:
    values = [[3, 1, 1, 3], [2, 5, 0, 2], [7, 1, 4, 0], [2, 3, 1, 2]]
    maps = keras.Input((4, 4, 1))
    model = keras.Model(maps, images._pool(maps, Config(pooling=pooling)))
    pooled = model.predict_on_batch(np.array(values, float)[None, :, :, None])
    np.testing.assert_allclose(pooled[0, :, :, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["zeros", "constant", "uniform", "small", "large", "glorot", "he", "lecun"])
def test_initializers_are_what_they_say(data: Data, name: str) -> None:
    model = images.build(replace(SMALL, model="mlp", units=500, initializer=name), data.spec)
    kernel = np.array(model.get_layer("dense_1").kernel)  # 64 inputs, 500 units
    spreads = {"zeros": 0, "constant": 0, "uniform": 0.1 / 3**0.5, "small": 0.01, "large": 1}
    spreads |= {"glorot": (2 / 564) ** 0.5, "he": (2 / 64) ** 0.5, "lecun": (1 / 64) ** 0.5}
    assert kernel.std() == pytest.approx(spreads[name], rel=0.02, abs=1e-6)


# Training


@pytest.mark.slow
def test_a_stopped_and_resumed_run_ends_as_one_that_never_stopped(data: Data, tmp_path: Path) -> None:
    """Bit for bit, with dropout, augmented images and mixed targets."""
    config = replace(SMALL, epochs=4, **AUGMENTED)
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_store(), tmp_path / "mlruns" / "mlflow.db")

    def weights(tracker: Tracker, stop_after: int) -> list[np.ndarray]:
        """Of a run that is stopped before one of its epochs, and then goes on from its checkpoint."""
        run = build_run(APP, config, data, tmp_path)
        run.callbacks.append(
            keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, _: _stop_at(epoch, stop_after))
        )
        try:
            fit_recorded(run, tracker, Progress(Console(file=io.StringIO()), 0.0))
        except KeyboardInterrupt:
            return weights(tracker, config.epochs)
        tracker.finish()
        return run.model.get_weights()

    whole, resumed = (weights(Tracker.create(Store(), "images", {}, "test"), stop) for stop in (config.epochs, 2))
    for one, other in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(one, other)


def _stop_at(epoch: int, last: int) -> None:
    if epoch == last:
        raise KeyboardInterrupt


def test_only_training_images_are_augmented(data: Data, tmp_path: Path) -> None:
    run = build_run(APP, replace(SMALL, **AUGMENTED), data, tmp_path)
    for part in (data.validation, data.test):
        ((inputs, targets), *_) = run.batches(part).dataset().as_numpy_iterator()
        np.testing.assert_array_equal(inputs["image"], part.inputs["image"][: len(inputs["image"])])
        assert set(np.unique(targets["label"])) == {0.0, 1.0}
    rows, _ = run.train_batches.plan()[0]
    inputs, targets = next(run.train_batches.dataset().as_numpy_iterator())
    assert (inputs["image"] != data.train.inputs["image"][rows]).any()
    assert ((targets["label"] > 0) & (targets["label"] < 1)).any()


def test_weights_of_another_run_are_taken_over_where_they_fit(data: Data) -> None:
    first, second = (images.build(replace(SMALL, model="cnn", units=units), data.spec) for units in (8, 6))
    note = copy_weights(second, first, "--weights RUN")
    assert "weights of conv_1, norm_1, conv_2, norm_2 are taken over" in note
    assert "dense_1 (32 x 6 here, 32 x 8 there)" in note
    np.testing.assert_array_equal(second.get_layer("conv_2").kernel, first.get_layer("conv_2").kernel)
    other = images.build(replace(SMALL, model="mlp", units=9), data.spec)
    with pytest.raises(UserError, match=r"--weights RUN: none of its layers .* fits: dense_1 \(64 x 9 here"):
        copy_weights(other, second, "--weights RUN")


def test_a_run_starts_from_the_weights_of_another(run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.folder)
    config = replace(SMALL, filters=8, units=16, weights=run.run_id)
    data = encoded(APP, config, images.load(config))
    run_again = build_run(APP, config, data, run.folder)
    assert any("weights of conv_1" in note for note in run_again.data.notes)
    accuracy = (run_again.test_outputs()["label"].argmax(axis=1) == data.test.targets["label"].argmax(axis=1)).mean()
    assert accuracy == pytest.approx(run.outcome.result["metrics"]["test_accuracy"])
    with pytest.raises(UserError, match="no-such-run"):
        images.start(replace(config, weights="no-such-run"), run_again.model)


def test_squared_errors_are_answered_with_scores(data: Data, tmp_path: Path) -> None:
    run = build_run(APP, replace(SMALL, model="mlp", loss="squared_error"), data, tmp_path)
    fit(run)
    answers = run.trained.predict(data.test.raw.head(3))
    assert [set(answer) for answer in answers] == [{"label", "score"}] * 3
