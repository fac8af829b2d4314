"""Images among answers and in figures: how they are compared, written to files, and laid side by side."""

from __future__ import annotations

import math
from pathlib import Path

import keras
import numpy as np
import pytest

from loom.commands import _describe, _with_images_in_files
from loom.data.files import as_base64, encode_png, is_png
from loom.figures_images import _mosaic, confident_mistakes, embedding_map, grad_cam, image_grid
from loom.fresh import largest_difference
from loom.report import advice, learning_curves

PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)


def png(pixels: np.ndarray) -> str:
    return as_base64(encode_png(pixels))


def test_a_step_of_rounding_is_no_difference_between_two_answers() -> None:
    assert is_png(png(PIXELS))
    assert not is_png("a text")
    assert largest_difference({"image": png(PIXELS)}, {"image": png(PIXELS + 1)}) == 0
    changed = PIXELS.copy()
    changed[1, 2] += 52
    assert largest_difference([png(PIXELS)], [png(changed)]) == 51 / 255
    assert largest_difference(png(PIXELS), png(PIXELS[:2])) == math.inf
    assert largest_difference(png(PIXELS), "a text") == math.inf


def test_images_of_an_answer_are_files_on_the_screen(tmp_path: Path) -> None:
    answer = {"image": png(PIXELS), "error": 0.25, "latent": [0.5, -1.25]}
    shown = _with_images_in_files(answer, tmp_path / "predictions", 2)
    path = tmp_path / "predictions" / "image_2.png"
    assert path.read_bytes() == encode_png(PIXELS)
    assert _describe({"seed": "7"}, shown) == f"{path}  error 0.25  latent (0.5, -1.25)  | 7"


def test_images_lie_side_by_side_with_white_between_and_after_them() -> None:
    images = np.stack([np.full((2, 3, 1), value, np.float32) for value in (0.1, 0.2, 0.3)])
    found = _mosaic(images, rows=2, columns=2, white=1.0)[..., 0]
    expected = np.ones((6, 8), np.float32)
    expected[:2, :3], expected[:2, 4:7], expected[3:5, :3] = 0.1, 0.2, 0.3
    np.testing.assert_array_equal(found, expected)
    (axis,) = image_grid(np.zeros((5, 4, 4, 3), np.uint8), columns=3).axes
    assert axis.images[0].get_array().shape == (10, 15, 3)


@pytest.mark.parametrize("probable", [True, False], ids=["probabilities", "scores"])
def test_grad_cam_shows_where_the_evidence_for_a_class_lies(probable: bool) -> None:
    """A class for what is bright and one for what is dark; scores are negative, which is no reason to see nothing."""
    pixels = keras.Input((6, 6, 1), dtype="uint8", name="image")
    bright_and_dark = keras.layers.Conv2D(2, 1, name="maps")
    vector = keras.layers.GlobalAveragePooling2D()(bright_and_dark(keras.layers.Rescaling(1 / 255)(pixels)))
    classes = keras.layers.Dense(2, "softmax" if probable else "linear", name="label")
    model = keras.Model({"image": pixels}, {"label": classes(vector)})
    bright_and_dark.set_weights([np.array([[[[1.0, -1.0]]]]), np.array([0.0, 1.0])])
    classes.set_weights([9 * np.eye(2), np.array([-20.0, -20.0])])
    image = np.zeros((6, 6, 1), np.uint8)
    image[1:3, 2:5] = 255
    heat = grad_cam(model, np.stack([image, image]), np.array([0, 1]), "label", probable)
    assert heat is not None
    is_bright = image[..., 0] > 0
    np.testing.assert_allclose(heat, [is_bright, ~is_bright], atol=1e-6)


def test_the_most_confident_mistakes_come_first() -> None:
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    figure = confident_mistakes(np.zeros((4, 2, 2, 1), np.uint8), probabilities, np.array([1, 0, 1, 0]), ["a", "b"])
    assert [axis.get_title() for axis in figure.axes] == ["b (0.70)\nis a", "a (0.60)\nis b"]


def test_codes_are_points_coloured_by_class_where_there_are_a_few() -> None:
    codes = np.random.default_rng(0).normal(size=(30, 4))
    (axis,) = embedding_map(codes, ["b", "a"] * 15, "Codes").axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b"]
    (axis,) = embedding_map(codes[:, :1], [str(number) for number in range(30)], "Codes").axes
    assert axis.get_legend() is None
    np.testing.assert_array_equal(axis.collections[0].get_offsets()[:, 0], codes[:, 0])


def test_metrics_of_validation_alone_have_a_curve_and_losses_of_adversaries_no_advice() -> None:
    history = [{"train_generator_loss": 1.0, "val_generator_loss": 1.0, "val_frechet": 0.5}] * 4
    axes = learning_curves(history).axes
    assert [(axis.get_title(), len(axis.lines)) for axis in axes] == [("generator_loss", 2), ("frechet", 1)]
    assert advice(history) == []
