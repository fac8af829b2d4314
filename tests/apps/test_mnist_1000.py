"""The lecture notes' experiment on 1,000 images of MNIST, and the mistake in its code."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import ROOT, loom

from apps.images import APP, Config
from loom.data.images import shape_of
from loom.train import encoded

COMMANDS = runpy.run_path(str(ROOT / "benchmarks" / "images.py"))["COMMANDS"]


def source(real_data: Path) -> list[str]:
    return ["--data", "tfds:mnist", "--data-dir", str(real_data / "tfds")]


def train(real_data: Path, folder: Path, flags: str) -> dict[str, float]:
    outcome = loom("train", "images", *source(real_data), *flags.split(), "--json", cwd=folder)
    assert outcome.status == 0, outcome.errors
    return dict(outcome.result["metrics"])


def test_the_page_has_the_commands_of_the_benchmark() -> None:
    page = (ROOT / "docs" / "mnist_1000.md").read_text(encoding="utf-8")
    for flags in (COMMANDS["notes"]["notes, 350 epochs"], COMMANDS["thousand"]["everything"]):
        assert flags.removesuffix(" --patience 0") in page


def test_images_of_tfds_are_files_whose_classes_are_named(real_data: Path) -> None:
    data = APP.load(Config(data="tfds:mnist", data_dir=str(real_data / "tfds"), max_train=20))
    assert [len(data.train), len(data.test)] == [20, 10_000]
    assert shape_of(data.spec.input("image")) == (28, 28, 1)
    assert data.spec.target("label").vocabulary == tuple("0123456789")
    assert data.train.raw["image"][0].startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_notes_network_learns_every_training_image_and_early_stopping_improves_it(
    real_data: Path, tmp_path: Path
) -> None:
    whole, stopped = (train(real_data, tmp_path, flags) for flags in COMMANDS["notes"].values())
    assert whole["train_accuracy"] == 1.0
    assert 0.80 <= whole["test_accuracy"] <= 0.86
    assert stopped["test_accuracy"] > whole["test_accuracy"]


@pytest.mark.slow
def test_with_everything_a_thousand_images_are_enough(real_data: Path, tmp_path: Path) -> None:
    assert train(real_data, tmp_path, COMMANDS["thousand"]["everything"])["test_accuracy"] >= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("derivative", "low", "high"), [("notes", 0.60, 0.78), ("right", 0.80, 0.86)])
def test_the_derivative_of_relu_in_the_notes_code_costs_ten_points(
    real_data: Path, derivative: str, low: float, high: float
) -> None:
    """The notes' loop in NumPy, without and with their mistake."""
    config = Config(data="tfds:mnist", data_dir=str(real_data / "tfds"), max_train=1000)
    data = encoded(APP, config, APP.load(config))
    (images, labels), (test_images, test_labels) = (_arrays(split) for split in (data.train, data.test))
    rng = np.random.RandomState(1)
    hidden_weights, output_weights = 0.2 * rng.rand(784, 40) - 0.1, 0.2 * rng.rand(40, 10) - 0.1
    for _ in range(350):
        for image, label in zip(images, labels, strict=True):
            hidden = np.maximum(image @ hidden_weights, 0)
            error = label - hidden @ output_weights
            slope = hidden >= 0 if derivative == "notes" else hidden > 0
            hidden_error = (output_weights @ error) * slope
            output_weights += 0.005 * np.outer(hidden, error)
            hidden_weights += 0.005 * np.outer(image, hidden_error)
    outputs = np.maximum(test_images @ hidden_weights, 0) @ output_weights
    assert low <= (outputs.argmax(axis=1) == test_labels.argmax(axis=1)).mean() <= high


def _arrays(split: Any) -> tuple[np.ndarray, np.ndarray]:
    return split.inputs["image"].reshape(len(split), -1) / 255, split.targets["label"].astype(float)
