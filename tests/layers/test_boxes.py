"""Boxes on a grid, their loss, and embeddings that a model remembers."""

import doctest
from pathlib import Path

import keras
import numpy as np
import pytest
from differences import numeric_gradients
from keras import ops
from sequence_contract import outputs_and_gradients

import layers
from layers import CellBoxes, Gallery, GIoULoss, boxes, gallery, generalized_iou


def random_boxes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    corner, sides = rng.uniform(0, 10, (*shape, 2)), rng.uniform(1, 6, (*shape, 2))
    return np.concatenate([corner, corner + sides], axis=-1)


def giou_by_pixels(first: np.ndarray, second: np.ndarray) -> float:
    """Counts pixels of boxes with whole coordinates."""
    ys, xs = np.mgrid[:20, :20] + 0.5
    covered = [(xs > box[0]) & (xs < box[2]) & (ys > box[1]) & (ys < box[3]) for box in (first, second)]
    hull = np.prod(np.maximum(first[2:], second[2:]) - np.minimum(first[:2], second[:2]))
    union = (covered[0] | covered[1]).sum()
    return float((covered[0] & covered[1]).sum() / union - (hull - union) / hull)


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], 1.0),
        ([0, 0, 2, 2], [2, 0, 4, 2], 0.0),  # side by side: nothing shared, nothing between
        ([0, 0, 1, 1], [3, 0, 4, 1], -0.5),  # half of the hull is between them
        ([0, 0, 4, 4], [1, 1, 3, 3], 0.25),  # one inside the other
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7 - 2 / 9),
    ],
)
def test_generalized_iou_of_cases_computed_by_hand(first: list[int], second: list[int], value: float) -> None:
    found = generalized_iou(np.array(first, np.float32), np.array(second, np.float32))
    assert float(found) == pytest.approx(value, abs=1e-6)


def test_generalized_iou_counts_pixels(rng: np.random.Generator) -> None:
    pairs = np.round(random_boxes(rng, 40, 2))
    expected = [giou_by_pixels(*pair) for pair in pairs]
    found = generalized_iou(pairs[:, 0].astype("float32"), pairs[:, 1].astype("float32"))
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, atol=1e-5)


def test_the_loss_is_the_mean_over_cells_with_an_object(rng: np.random.Generator) -> None:
    wanted, predicted = random_boxes(rng, 2, 3, 4), random_boxes(rng, 2, 3, 4)
    wanted[rng.random((2, 3, 4)) < 0.6] = 0
    cells = wanted.any(axis=-1)
    assert 2 < cells.sum() < 20
    values = [
        1 - float(generalized_iou(wanted[cell].astype("float32"), predicted[cell].astype("float32")))
        for cell in zip(*np.nonzero(cells), strict=True)
    ]
    assert float(GIoULoss()(wanted, predicted)) == pytest.approx(np.mean(values), rel=1e-5)


def gradient_of(loss: GIoULoss, wanted: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """The gradient by the predicted boxes, with the factor of `linear_loss` taken out."""
    _, (gradient,) = outputs_and_gradients(keras.layers.Identity(), lambda x: [loss(wanted, x)], [predicted])
    return gradient / np.random.default_rng(11).normal()


def test_gradients_of_the_loss_are_finite_differences_and_zero_without_an_object(rng: np.random.Generator) -> None:
    wanted, predicted = random_boxes(rng, 1, 2, 2), random_boxes(rng, 1, 2, 2)
    wanted[0, 1] = 0
    loss = GIoULoss(dtype="float64")
    gradient = gradient_of(loss, wanted, predicted)
    (numeric,) = numeric_gradients(lambda values: float(loss(wanted, values)), [predicted])
    np.testing.assert_allclose(gradient, numeric, atol=1e-6)
    assert not gradient[0, 1].any()
    assert (gradient[0, 0] != 0).any(axis=-1).all()


def test_boxes_without_an_area_have_finite_gradients() -> None:
    wanted, point = np.array([[[[0.0, 0.0, 2.0, 2.0]]]]), np.full((1, 1, 1, 4), 3.0)
    assert np.isfinite(gradient_of(GIoULoss(), wanted, point)).all()


def test_a_batch_without_objects_costs_nothing(rng: np.random.Generator) -> None:
    assert float(GIoULoss()(np.zeros((2, 3, 3, 4)), random_boxes(rng, 2, 3, 3))) == 0


def test_boxes_lie_around_the_centres_of_their_cells(rng: np.random.Generator) -> None:
    distances = rng.normal(size=(2, 3, 5, 4))
    found = ops.convert_to_numpy(CellBoxes(8, dtype="float64")(distances))
    sides = 8 * np.log1p(np.exp(distances))
    for row, column in np.ndindex(3, 5):
        x, y = 8 * column + 4, 8 * row + 4
        expected = np.array([x, y, x, y]) + sides[:, row, column] * [-1, -1, 1, 1]
        np.testing.assert_allclose(found[:, row, column], expected, rtol=1e-9)


def test_layers_survive_saving_and_images_of_any_size(rng: np.random.Generator, tmp_path: Path) -> None:
    maps = keras.Input((None, None, 4))
    model = keras.Model(maps, CellBoxes(4)(maps))
    model.compile(loss=GIoULoss())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    values = rng.normal(size=(1, 2, 3, 4)).astype("float32")
    np.testing.assert_array_equal(*(ops.convert_to_numpy(each(values)) for each in (model, loaded)))
    assert isinstance(loaded.loss, GIoULoss)


def test_a_gallery_is_saved_with_the_model_and_changes_nothing(rng: np.random.Generator, tmp_path: Path) -> None:
    vector = keras.Input((3,))
    model = keras.Model(vector, Gallery(4, name="gallery")(vector))
    known = rng.normal(size=(4, 3)).astype("float32")
    model.get_layer("gallery").fill(known, [7, 8, 9, 7])
    assert model.trainable_weights == []
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(ops.convert_to_numpy(loaded.get_layer("gallery").embeddings), known)
    assert ops.convert_to_numpy(loaded.get_layer("gallery").classes).tolist() == [7, 8, 9, 7]
    np.testing.assert_array_equal(ops.convert_to_numpy(loaded(known)), known)


@pytest.mark.parametrize("layer", [CellBoxes, Gallery])
def test_nothing_smaller_than_1(layer: type[keras.layers.Layer]) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        layer(0)


@pytest.mark.parametrize("module", [boxes, gallery], ids=lambda module: module.__name__)
def test_examples_in_docstrings_run(module) -> None:
    results = doctest.testmod(module, extraglobs={name: getattr(layers, name) for name in layers.__all__})
    assert results.attempted > 0
    assert results.failed == 0
