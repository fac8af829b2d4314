"""The GAN: data without pairs, both networks, scores beside noise and real images, and the command from end to end."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras_tuner
import numpy as np
import pytest
import tensorflow as tf
from support import clean_environment, client, loom, same_weights, weights

from apps import gan
from apps.gan import APP, Config
from loom import Data, Field, Spec, UserError
from loom.train import prepare

SMALL = Config(noise_units=6, filters=4, max_train=128, batch_size=32, epochs=1)
FLAGS = ("--noise-units", "6", "--filters", "4", "--max-train", "300", "--batch-size", "50")


@pytest.fixture(scope="module")
def data() -> Data:
    return gan.load(SMALL)


def test_every_example_has_a_number_of_its_own_and_a_real_image_that_has_nothing_to_do_with_it(data: Data) -> None:
    seeds = np.concatenate([split.raw["seed"] for split in data.splits.values()])
    assert len(np.unique(seeds)) == len(seeds)
    assert [column.name for column in data.spec.inputs] == ["seed"]
    assert data.train.targets["image"].shape == (128, 8, 8, 1)


@pytest.mark.parametrize(
    "settings", [{}, {"loss": "minimax", "regularization": "l2"}], ids=["non-saturating-both", "minimax-l2"]
)
def test_every_parameter_of_both_networks_moves_in_one_step(data: Data, settings: dict, tmp_path: Path) -> None:
    run = prepare(APP, replace(SMALL, **settings), data, tmp_path)
    before = {weight.path: np.array(weight) for weight in run.model.trainable_weights}
    networks = {path.split("/")[0] for path in before}
    run.model.fit(run.train_batches.dataset().take(2), verbose=0, shuffle=False)
    for weight in run.model.trainable_weights:
        assert not np.array_equal(np.array(weight), before[weight.path]), weight.path
    assert len(networks) > 4


def test_a_penalty_is_on_every_kernel(data: Data) -> None:
    model = gan.build(replace(SMALL, regularization="l2"), data.spec)
    kernels = [layer for layer in model._flatten_layers() if hasattr(layer, "kernel")]
    assert len(kernels) > 4
    assert all(layer.kernel_regularizer is not None for layer in kernels)


def test_optimizers_have_their_own_rates_and_the_momentum_of_the_settings(data: Data, tmp_path: Path) -> None:
    config = replace(SMALL, learning_rate=0.002, discriminator_rate=0.25, momentum=0.4)
    model = prepare(APP, config, data, tmp_path).model
    rates = [float(optimizer.learning_rate) for optimizer in model.optimizers]
    assert rates == pytest.approx([0.002, 0.0005])
    assert [optimizer.beta_1 for optimizer in model.optimizers] == [0.4, 0.4]
    sizes = [sum(v.shape.num_elements() or 1 for v in optimizer.variables) for optimizer in model.optimizers]
    parameters = [network.count_params() for network in (model.generator, model.discriminator)]
    assert all(size < 2 * count + 10 for size, count in zip(sizes, parameters, strict=True))  # two moments each


def test_images_of_any_size_and_colour_can_be_made() -> None:
    image = Field("image", "image", statistics={"height": 9, "width": 30, "channels": 3})
    model = gan.build(SMALL, Spec((Field("seed", "number"),), (image,)))
    made = model({"noise": np.zeros((2, 6), np.float32)})["image"].numpy()
    assert made.shape == (2, 9, 30, 3)
    assert model.discriminator(made).shape == (2, 1)
    assert 0 < made.min() <= made.max() < 1


def test_augmentation_changes_real_images_and_no_noise(data: Data) -> None:
    assert gan.augment(SMALL, data.spec) is None
    change = gan.augment(replace(SMALL, translation=0.3), data.spec)
    assert change is not None
    noise, images = tf.ones((4, 6)), tf.constant(data.train.targets["image"][:4])
    inputs, targets = change({"noise": noise}, {"image": images}, tf.constant([1, 2]))
    assert inputs["noise"] is noise
    assert not np.array_equal(targets["image"], images)
    assert targets["image"].dtype == tf.uint8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": 2}, "--devices 2: must be 1"),
        ({"noise_units": 0}, "--noise-units 0: must be at least 1"),
        ({"real_target": 0.4}, "--real-target 0.4: must be above 0.5"),
        ({"discriminator_rate": 0.0}, "--discriminator-rate 0.0: must be greater than 0"),
        ({"loss": "hinge"}, "--loss hinge: must be one of non-saturating, minimax"),
        ({"cutmix": 0.2}, "--cutmix 0.2: is not used here"),
    ],
)
def test_impossible_settings_are_one_line(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Config(**settings)


def test_the_search_space_builds_and_its_objective_is_a_metric(data: Data, tmp_path: Path) -> None:
    config = replace(SMALL, **gan.space(keras_tuner.HyperParameters()))
    run = prepare(APP, config, data, tmp_path)
    assert APP.objective in {f"val_{name}" for name in run.evaluate(run.data.validation)}


@pytest.mark.slow
def test_from_the_command_to_an_image_for_a_number(tmp_path: Path) -> None:
    """A small one, trained, scored, saved, checked and asked in a fresh process."""
    outcome = loom("train", "gan", *FLAGS, "--epochs", "2", "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    metrics = outcome.result["metrics"]
    assert metrics["baseline_real_frechet"] < 0.3 * metrics["baseline_noise_frechet"]
    assert metrics["baseline_real_recall"] > 0.5 > 2 * metrics["baseline_noise_recall"]
    assert {"train_generator_loss", "train_discriminator_loss", "val_frechet", "test_frechet"} <= set(metrics)
    run_id = outcome.result["run_id"]
    history = client(tmp_path).get_metric_history(run_id, "val_frechet")
    assert [metric.step for metric in history] == [0, 1]
    report = Path(outcome.result["model"]).parent / "report"
    assert {"samples", "epochs", "nearest", "interpolation"} <= {path.stem for path in report.glob("*.png")}
    assert {path.stem for path in report.glob("epochs/*.png")} == {"samples_0001", "samples_0002"}
    asked = loom("predict", run_id, "7", "8", "7", cwd=tmp_path)
    assert asked.status == 0, asked.errors
    files = [tmp_path / "predictions" / run_id / f"image_{number}.png" for number in (1, 2, 3)]
    assert [tmp_path / line.partition("  ")[0] for line in asked.output.splitlines()] == files
    seven, eight, seven_again = (file.read_bytes() for file in files)
    assert seven == seven_again != eight
    assert tf.io.decode_png(seven).shape == (8, 8, 1)


def train_until(folder: Path, epoch: int, *settings: str) -> str:
    """Start a run, kill it after an epoch, and return its id."""
    command = [sys.executable, "-m", "loom", "train", "gan", *FLAGS, *settings]
    with subprocess.Popen(command, cwd=folder, env=clean_environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout)
        run_id = next(line for line in lines if line.startswith("run ")).partition("(")[2].partition(")")[0]
        next(line for line in lines if line.startswith(f"epoch {epoch}/"))
        process.send_signal(signal.SIGKILL)
    return run_id


@pytest.mark.slow
def test_a_killed_run_ends_with_the_weights_and_samples_of_one_never_killed(tmp_path: Path) -> None:
    settings = ("--epochs", "30", "--translation", "0.1")
    whole = loom("train", "gan", *FLAGS, *settings, "--json", cwd=tmp_path)
    assert whole.status == 0, whole.errors
    run_id = train_until(tmp_path, 12, *settings)
    resumed = loom("train", "gan", "--resume", run_id, "--json", cwd=tmp_path)
    assert resumed.status == 0, resumed.errors
    models = [Path(outcome.result["model"]) for outcome in (whole, resumed)]
    assert same_weights(*map(weights, models))
    for name in ("epochs/samples_0005.png", "epochs/samples_0030.png"):
        first, second = (tf.io.decode_png((model.parent / "report" / name).read_bytes()) for model in models)
        np.testing.assert_array_equal(first, second)
    for name in ("train_generator_loss", "val_frechet", "test_recall"):
        histories = [client(tmp_path).get_metric_history(run, name) for run in (whole.result["run_id"], run_id)]
        assert [(m.step, m.value) for m in histories[0]] == [(m.step, m.value) for m in histories[1]], name


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["non-saturating", "minimax"])
def test_its_images_are_far_better_than_noise(tmp_path: Path, loss: str) -> None:
    outcome = loom("train", "gan", "--loss", loss, "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    metrics = outcome.result["metrics"]
    assert metrics["test_frechet"] < 0.25 * metrics["baseline_noise_frechet"]
    assert metrics["test_recall"] > 3 * metrics["baseline_noise_recall"]


@pytest.mark.slow
def test_a_search_runs(tmp_path: Path) -> None:
    outcome = loom("tune", "gan", *FLAGS, "--trials", "2", "--epochs", "1", "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
