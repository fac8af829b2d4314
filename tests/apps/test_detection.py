"""The detection application: from boxes to the grid and back, every parameter, answers in an image's own pixels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from support import loom

from apps import detection
from apps.detection import APP, MOVING, Config
from loom import Data, UserError
from loom.average_precision import intersection_over_union
from loom.data.files import encode_png
from loom.train import encoded
from loom.trained import Trained

SMALL = Config(scenes=60, filters=4, scene_objects=3, epochs=2)


@pytest.fixture(scope="module")
def data() -> Data:
    return encoded(APP, SMALL, detection.load(SMALL))


def perfect(data: Data, part: str) -> dict[str, np.ndarray]:
    """What a model without mistakes puts out."""
    targets = data.splits[part].targets
    return {"classes": targets["classes"].astype(np.float32), "boxes": targets["boxes"]}


def test_parts_have_their_shares_of_the_scenes_and_their_own_digits(data: Data) -> None:
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 43, "validation": 5, "test": 12}
    target = data.spec.target("objects")
    assert target.vocabulary == tuple("0123456789")
    assert 1 < target.statistics["cells"] < 4 * 3
    assert data.train.targets["classes"].shape == (43, 16, 16, 10)


def test_scenes_follow_from_the_seed_of_the_splits() -> None:
    prints = [
        detection.load(replace(SMALL, scenes=12, **seeds)).fingerprint()
        for seeds in ({"seed": 3, "split_seed": 1}, {"seed": 4, "split_seed": 1}, {"seed": 1}, {"seed": 2})
    ]
    assert prints[0] == prints[1] == prints[2] != prints[3]


def test_outputs_without_mistakes_have_a_mean_average_precision_of_1(data: Data) -> None:
    found = detection.evaluate(SMALL, data)(data.test, perfect(data, "test"))
    assert found == {"map": 1.0, "map_50": 1.0}
    wrong = perfect(data, "test")
    wrong["classes"] = np.roll(wrong["classes"], 1, axis=-1)
    assert detection.evaluate(SMALL, data)(data.test, wrong)["map_50"] == 0


def test_scenes_are_made_of_the_classes_that_are_named() -> None:
    data = detection.load(replace(SMALL, scenes=12, classes="1,7", train_per_class=3))
    assert data.spec.target("objects").vocabulary == ("1", "7")


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_coloured_images_make_scenes_of_the_channels_that_are_asked_for(tmp_path: Path, channels: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(40):
        path = tmp_path / "abcd"[number % 4] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_png(rng.integers(0, 256, (9, 9, 1 + number // 4 % 4)).astype(np.uint8)))
    config = replace(SMALL, data=str(tmp_path), channels=channels, scenes=30, scene_size=32)
    data = encoded(APP, config, detection.load(config))
    assert data.train.inputs["image"].shape == (22, 32, 32, channels)
    assert detection.baselines(config, data).keys() == {"mean_box", "regions", "regions_neighbours"}


@pytest.fixture(params=["stretch", "pad"])
def own(request, tmp_path: Path) -> Config:
    """Settings that read images of different sizes, with a bright box of one of two classes in each."""
    rng = np.random.default_rng(0)
    lines = ["image,label,left,top,right,bottom"]
    for number in range(24):
        height, width = rng.integers(40, 90, 2)
        pixels = np.zeros((height, width, 3), np.uint8)
        left, top = rng.integers(2, 15, 2)
        right, bottom = left + rng.integers(12, 20), top + rng.integers(12, 20)
        kind = number % 2
        pixels[top:bottom, left:right, kind] = 200
        (tmp_path / f"{number}.png").write_bytes(encode_png(pixels))
        lines.append(f"{number}.png,{('red', 'green')[kind]},{left},{top},{right},{bottom}")
    (tmp_path / "boxes.csv").write_text("\n".join(lines) + "\n")
    return Config(data=str(tmp_path / "boxes.csv"), height=64, width=64, fit=request.param, filters=4)


def test_answers_are_in_pixels_of_the_image_itself(own: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(APP, own, detection.load(own))
    assert data.spec.target("objects").vocabulary == ("green", "red")
    assert detection.evaluate(own, data)(data.test, perfect(data, "test")) == {"map": 1.0, "map_50": 1.0}
    trained = Trained(APP, own, data.spec, detection.build(own, data.spec))
    monkeypatch.setattr(Trained, "outputs", lambda self, frame: perfect(data, "test"))
    for answer, text in zip(trained.predict(data.test.raw), data.test.raw["objects"], strict=True):
        (expected,) = json.loads(text)
        (found,) = answer["objects"]
        assert found["label"] == expected["label"]
        np.testing.assert_allclose(found["box"], expected["box"], atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"stride": 4}, marks=pytest.mark.slow),
        {"stride": 8, "regularization": "both", "height": 50, "width": 70},
        {"regularization": "none"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_every_parameter_moves_in_one_step(data: Data, settings: dict) -> None:
    config = replace(SMALL, **settings)
    if len(settings) > 1:
        data = encoded(APP, config, detection.load(config))
    model = detection.build(config, data.spec)
    split = data.train.take(np.arange(16))
    model.compile(
        keras.optimizers.SGD(0.1),
        detection.loss(config, data.spec),
        loss_weights=detection.loss_weights(config, data.spec),
        run_eagerly=True,
    )
    before = [np.array(weight) for weight in model.trainable_weights]
    model.train_on_batch(dict(split.inputs), dict(split.targets))
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert not np.array_equal(np.array(weight), old), weight.path


def test_the_focal_loss_counts_for_each_cell_with_an_object(data: Data) -> None:
    """Before anything is learned it is the sum over all cells and classes, for each cell that has an object."""
    weight = detection.loss_weights(SMALL, data.spec)["classes"]
    targets, rare = data.train.targets["classes"].astype(float), 0.01
    focal = detection.loss(SMALL, data.spec)["classes"]
    background, objects = 0.75 * rare**2 * -np.log(1 - rare), 0.25 * (1 - rare) ** 2 * -np.log(rare)
    expected = ((1 - targets) * background + targets * objects).sum() / targets.sum()
    assert weight * float(focal(targets, np.full_like(targets, rare))) == pytest.approx(expected, rel=1e-4)


def test_one_class_is_enough_and_no_object_is_no_answer(tmp_path: Path) -> None:
    lines = ["image,label,left,top,right,bottom"]
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(encode_png(np.zeros((32, 32, 1), np.uint8)))
        lines.append(f"{number}.png,face,2,2,12,14" if number % 3 else f"{number}.png,,,,,")
    (tmp_path / "boxes.csv").write_text("\n".join(lines) + "\n")
    config = Config(data=str(tmp_path / "boxes.csv"), filters=4)
    data = encoded(APP, config, detection.load(config))
    trained = Trained(APP, config, data.spec, detection.build(config, data.spec))
    assert trained.predict(data.test.raw) == [{"objects": []}] * len(data.test)  # nothing is likely at the start
    assert detection.baselines(config, data)["mean_box"]["map_50"] > 0.5


def test_boxes_that_overlap_are_found_once(data: Data) -> None:
    outputs = {"classes": np.zeros((1, 16, 16, 10), np.float32), "boxes": np.zeros((1, 16, 16, 4), np.float32)}
    for column, score in ((3, 0.9), (4, 0.8), (10, 0.7)):
        outputs["classes"][0, 3, column, 5] = score
        outputs["boxes"][0, 3, column] = [4 * column, 8, 4 * column + 20, 28]
    frames = detection._frames(data.test.raw.head(1), data.spec.input("image"), SMALL)
    (found,) = detection._found(outputs, frames, SMALL, 0.1)
    assert found.scores.tolist() == pytest.approx([0.9, 0.7])
    assert intersection_over_union(found.boxes, found.boxes)[0, 1] == 0
    (both,) = detection._found(outputs, frames, replace(SMALL, overlap=0.9), 0.1)
    assert len(both.boxes) == 3


def test_baselines_that_know_more_are_better(data: Data) -> None:
    found = detection.baselines(SMALL, data)
    assert found["mean_box"]["map_50"] < found["regions"]["map_50"] < found["regions_neighbours"]["map_50"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        *[
            ({name: {"flip": "both", "crop": 1}.get(name, 0.5)}, f"--{name} .*would move or hide objects")
            for name in MOVING
        ],
        ({"data": "boxes.csv", "classes": "1,2"}, "--classes 1,2: is for images that scenes are made of"),
        ({"overlap": 1.0}, "--overlap"),
        ({"scenes": 3}, "--scenes"),
        ({"stride": 5}, "--stride"),
        ({"radius": -1.0}, "--radius"),
        ({"scene_size": 8}, "--scene-size"),
    ],
)
def test_impossible_settings_are_refused_by_flag(settings: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        replace(SMALL, **settings)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"--data boxes.csv: no such file"):
        detection.load(replace(SMALL, data="boxes.csv"))


@pytest.mark.slow
def test_the_command_trains_and_its_model_answers_files(tmp_path: Path, data: Data) -> None:
    settings = ("--scenes", "80", "--filters", "4", "--epochs", "2", "--brightness", "0.1")
    outcome = loom("train", "detection", *settings, "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    metrics = outcome.result["metrics"]
    assert {"val_map", "test_map", "test_map_50", "baseline_regions_neighbours_map"} <= set(metrics)
    report = Path(outcome.result["model"]).parent / "report"
    made = {"objects.png", "precision_recall.png", "average_precision_by_class.json"}
    assert made <= {path.name for path in report.iterdir()}
    (tmp_path / "scene.png").write_bytes(data.test.raw["image"][0])
    answer = loom("predict", outcome.result["run_id"], "scene.png", "--json", cwd=tmp_path)
    assert answer.status == 0, answer.errors
    assert list(json.loads(answer.output)) == ["objects"]


@pytest.mark.slow
def test_the_default_search_space_runs(tmp_path: Path) -> None:
    outcome = loom("tune", "detection", "--trials", "2", "--epochs", "1", "--scenes", "60", "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors


@pytest.mark.slow
def test_scenes_are_learned_far_better_than_by_the_baselines(tmp_path: Path) -> None:
    outcome = loom("train", "detection", "--epochs", "12", "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    metrics = outcome.result["metrics"]
    assert metrics["test_map_50"] > metrics["baseline_regions_neighbours_map_50"] + 0.2


def test_the_search_space_names_settings_and_builds(data: Data) -> None:
    import keras_tuner

    config = replace(SMALL, **detection.space(keras_tuner.HyperParameters()))
    detection.build(config, data.spec)
