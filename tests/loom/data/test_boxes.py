"""Scenes, files with boxes, the grid of a detector, and batches in which classes meet."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import layers
from apps.detection import Config
from loom import UserError
from loom.average_precision import Objects
from loom.data.boxes import Frame, on_grid, read_boxes, true_objects
from loom.data.files import Shape, encode_png
from loom.data.images import digits
from loom.data.pipeline import ClassBatches
from loom.data.scenes import Recipe, make_scenes

RECIPE = Recipe(64, 4, 3)


def pixels(file: bytes) -> np.ndarray:
    return tf.io.decode_png(file).numpy()


# Scenes


def test_scenes_are_a_function_of_their_seed_and_the_first_of_more_are_the_same() -> None:
    parts = digits().head(50)
    few, more = make_scenes(parts, 3, RECIPE, (0, 1)), make_scenes(parts, 6, RECIPE, (0, 1))
    assert few.equals(more.head(3))
    assert not few.equals(make_scenes(parts, 3, RECIPE, (0, 2)))


def test_boxes_are_drawn_around_the_ink_and_hardly_cover_each_other() -> None:
    scenes = make_scenes(digits().head(200), 30, Recipe(64, 6, 0), (0,))
    counts = Counter()
    for file, text in zip(scenes["image"], scenes["objects"], strict=True):
        image, found = pixels(file)[..., 0] / 255.0, json.loads(text)
        counts[len(found)] += 1
        outside = np.ones(image.shape, bool)
        for entry in found:
            left, top, right, bottom = map(int, entry["box"])
            inside = image[top:bottom, left:right]
            outside[top:bottom, left:right] = False
            assert inside.max() > 0.35
            for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert edge.max() > 0.08  # a faint stroke reaches every side
        assert image[outside].max() < 0.35  # noise, and nothing of an object
    assert set(counts) == {1, 2, 3, 4, 5, 6}


def test_clutter_is_ink_that_no_box_is_around() -> None:
    parts = digits().head(200)
    inks = []
    for clutter in (0, 5):
        scenes = make_scenes(parts, 10, Recipe(64, 2, clutter), (0,))
        outside = []
        for file, text in zip(scenes["image"], scenes["objects"], strict=True):
            image = pixels(file)[..., 0].copy()
            for entry in json.loads(text):
                left, top, right, bottom = map(int, entry["box"])
                image[top:bottom, left:right] = 0
            outside.append((image > 90).sum())
        inks.append(np.mean(outside))
    assert inks[1] > inks[0] + 30


# Files with boxes


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two images, of 40 x 20 and of 10 x 10 pixels (width x height), and one that is damaged."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "wide.png").write_bytes(encode_png(np.zeros((20, 40, 1), np.uint8)))
    (tmp_path / "images" / "small.png").write_bytes(encode_png(np.zeros((10, 10, 1), np.uint8)))
    (tmp_path / "images" / "cut.png").write_bytes(encode_png(np.zeros((30, 30, 1), np.uint8))[:50])
    return tmp_path


HEADER = "image,label,left,top,right,bottom\n"


def test_a_csv_of_boxes(pictures: Path) -> None:
    (pictures / "boxes.csv").write_text(
        HEADER + "images/wide.png,cat,1,2,11,12\nimages/wide.png,dog,30,5,40.5,20\nimages/small.png,,,,,\n"
    )
    found = read_boxes(Config(data=str(pictures / "boxes.csv")))
    assert [json.loads(text) for text in found.train["objects"]] == [
        [{"label": "cat", "box": [1, 2, 11, 12]}, {"label": "dog", "box": [30, 5, 40, 20]}],  # cut off at the edge
        [],
    ]
    assert found.bad == ()


def test_a_json_of_coco(pictures: Path) -> None:
    content = {
        "images": [{"id": 5, "file_name": "images/wide.png"}, {"id": 6, "file_name": "images/small.png"}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [{"image_id": 5, "category_id": 3, "bbox": [1, 2, 10, 10]}],
    }
    (pictures / "boxes.json").write_text(json.dumps(content))
    found = read_boxes(Config(data=str(pictures / "boxes.json")))
    assert json.loads(found.train["objects"][0]) == [{"label": "cat", "box": [1, 2, 11, 12]}]
    assert len(found.train) == 2


BAD = {
    "images/wide.png,cat,5,5,5,9": "no area",
    "images/wide.png,cat,9,5,8,9": "no area",
    "images/wide.png,cat,one,5,8,9": "no number",
    "images/wide.png,cat,,5,8,9": "no number",
    "images/wide.png,cat,nan,5,8,9": "no number",
    "images/wide.png,cat,1,5,45,9": "stands out of its image, which is 40 x 20",
    "images/wide.png,,1,5,8,9": "no label",
    "images/cut.png,cat,1,5,8,9": "damaged or cut off",
    "images/none.png,cat,1,5,8,9": "cannot be read",
    "../outside.png,cat,1,5,8,9": "leaves the folder",
    "images/wide.png,cat,1,5": "fields",
}


def test_bad_boxes_and_images_are_quarantined_and_named(pictures: Path) -> None:
    (pictures.parent / "outside.png").write_bytes(encode_png(np.zeros((9, 9, 1), np.uint8)))
    (pictures / "boxes.csv").write_text(HEADER + "images/wide.png,cat,1,2,11,12\n" + "\n".join(BAD) + "\n")
    with pytest.raises(UserError, match=r"of 13 images and boxes of boxes.csv are bad .* --max-bad"):
        read_boxes(Config(data=str(pictures / "boxes.csv")))
    found = read_boxes(Config(data=str(pictures / "boxes.csv"), max_bad=1.0))
    assert json.loads(found.train["objects"][0]) == [{"label": "cat", "box": [1, 2, 11, 12]}]
    whys = {entry.where: entry.why for entry in found.bad}
    assert len(whys) == len(BAD)
    for line, (row, why) in enumerate(BAD.items(), start=3):
        where = row.partition(",")[0] if row.partition(",")[0] in whys else f"boxes.csv:{line}"
        assert why in whys[where], row


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read as COCO's JSON"),
        ('{"images": []}', "'annotations'|'categories'"),
        ('{"images": [], "annotations": [], "categories": []}', "no image has a usable box"),
    ],
)
def test_json_that_is_not_cocos_is_one_line(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(UserError, match=words) as error:
        read_boxes(Config(data=str(tmp_path / "boxes.json")))
    assert "\n" not in str(error.value)


def test_annotations_of_unknown_images_and_categories_are_bad(pictures: Path) -> None:
    box = [1, 2, 3, 4]
    content = {
        "images": [{"id": 5, "file_name": "images/wide.png"}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [
            {"image_id": 5, "category_id": 3, "bbox": box},
            {"image_id": 9, "category_id": 3, "bbox": box},
            {"image_id": 5, "category_id": 4, "bbox": box},
            {"image_id": 5, "category_id": 3, "bbox": [1, 2]},
        ],
    }
    (pictures / "boxes.json").write_text(json.dumps(content))
    found = read_boxes(Config(data=str(pictures / "boxes.json"), max_bad=1.0))
    assert [entry.where for entry in found.bad] == [f"boxes.json, annotation {number}" for number in (2, 3, 4)]
    assert len(json.loads(found.train["objects"][0])) == 1


# Resized images and the grid


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("own", [Shape(20, 40, 1), Shape(45, 23, 1), Shape(31, 31, 1)])
def test_boxes_move_with_the_pixels_of_a_resized_image(fit: str, own: Shape) -> None:
    image = np.zeros((own.height, own.width, 1), np.uint8)
    box = np.array([[own.width * 0.4, own.height * 0.4, own.width * 0.6, own.height * 0.7]]).round()
    left, top, right, bottom = box[0].astype(int)
    image[top:bottom, left:right] = 255
    resized = layers.DecodeImages(64, 64, 1, fit)(tf.constant([[encode_png(image)]]))[0, ..., 0].numpy()
    frame = Frame.of(own, 64, 64, fit)
    moved = frame.resized(box)
    rows, columns = (np.flatnonzero((resized > 127).any(axis=axis)) for axis in (1, 0))
    drawn = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(moved[0], drawn, atol=1.0)
    np.testing.assert_allclose(frame.original(moved), box, atol=1e-6)


def test_cells_around_the_middle_of_an_object_are_its_own_and_the_smaller_object_wins() -> None:
    large, small = [0.0, 0, 32, 32], [13.0, 13, 20, 21]
    known = Objects(np.array([large, small]), np.array([1, 0]), np.ones(2))
    found = on_grid([known], [Frame.of(Shape(32, 32, 1), 32, 32, "stretch")], 2, 4, 2.0)
    kinds, boxes = found["classes"][0], found["boxes"][0]
    assert kinds.dtype == np.uint8
    # Of the large one: centres less than 8 pixels from (16, 16); of the small one: those inside it.
    owners = np.where(kinds.any(axis=-1), kinds.argmax(axis=-1), 9)
    expected = np.full((8, 8), 9)
    expected[2:6, 2:6] = 1
    expected[3:5, 3:5] = 0
    assert owners.tolist() == expected.tolist()
    np.testing.assert_array_equal(boxes[4, 4], small)
    np.testing.assert_array_equal(boxes[2, 5], large)
    assert not boxes[0].any()


def test_an_object_between_the_centres_has_the_cell_that_holds_its_middle() -> None:
    known = Objects(np.array([[8.1, 4.1, 9.0, 5.0]]), np.array([0]), np.ones(1))
    found = on_grid([known], [Frame.of(Shape(16, 16, 1), 16, 16, "stretch")], 1, 4, 1.0)
    assert np.argwhere(found["classes"][0, ..., 0]).tolist() == [[1, 2]]


def test_what_a_crop_cuts_away_is_no_object() -> None:
    known = Objects(np.array([[0.0, 0, 9, 10], [12.0, 2, 28, 18]]), np.array([0, 0]), np.ones(2))
    found = on_grid([known], [Frame.of(Shape(20, 40, 1), 16, 16, "crop")], 1, 4, 1.0)
    assert len(np.unique(found["boxes"][0].reshape(-1, 4), axis=0)) == 2  # zeros and the second one


def test_no_objects_are_objects_too() -> None:
    empty = true_objects("[]", {})
    assert empty.boxes.shape == (0, 4)
    assert not on_grid([empty], [Frame.of(Shape(8, 8, 1), 8, 8, "stretch")], 1, 4, 1.0)["classes"].any()


# Batches in which classes meet


def class_batches(classes: np.ndarray, batch_size: int = 12, per_class: int = 4, seed: int = 0) -> ClassBatches:
    rows = np.arange(len(classes))
    return ClassBatches({"row": rows}, {"class": classes}, classes, batch_size, per_class, seed)


def test_every_batch_has_as_many_examples_of_each_of_several_classes() -> None:
    classes = np.repeat(np.arange(5), [30, 20, 25, 40, 9])
    batches = class_batches(classes)
    found = list(batches)
    assert len(found) == len(batches) == -(-len(classes) // 12)
    for inputs, targets in found:
        assert sorted(Counter(targets["class"].tolist()).values()) == [4, 4, 4]
        assert len(set(inputs["row"].tolist())) == 12
        np.testing.assert_array_equal(classes[inputs["row"]], targets["class"])


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    classes = np.repeat(np.arange(4), 25)

    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = class_batches(classes, seed=seed)
        batches.epoch = epoch
        return [rows.tolist() for rows, _ in batches.plan()]

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)


def test_a_class_is_dealt_out_before_any_of_it_comes_again() -> None:
    classes = np.repeat(np.arange(3), 20)
    rows = np.concatenate([rows for rows, _ in class_batches(classes).plan()])
    for kind in range(3):
        seen = rows[classes[rows] == kind]
        assert len(seen) == 20  # 5 batches with 4 each
        assert len(set(seen.tolist())) == 20


def test_few_classes_and_small_ones_fill_what_they_can() -> None:
    classes = np.repeat([0, 1], [50, 3])
    batches = class_batches(classes, batch_size=64, per_class=8)
    assert batches.batch_size == 16
    for inputs, targets in batches:
        assert Counter(targets["class"].tolist()) == {0: 8, 1: 8}
        assert set(inputs["row"][targets["class"] == 1].tolist()) == {50, 51, 52}
