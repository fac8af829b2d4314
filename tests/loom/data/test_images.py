"""Images from folders and samples: what is read, what is quarantined, sizes, and augmentation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from loom import UserError
from loom.data import images
from loom.data.augment import augment
from loom.data.encode import Encoder
from loom.data.files import Shape, as_base64, as_bytes, encode_png, image_shape, with_files
from loom.data.images import ImageConfig, load_classes, preprocess, read_images
from loom.data.pipeline import Batches
from loom.data.spec import Field, Spec

COUNT = 12


def png(*shape: int, seed: int = 0) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of colour images."""
    for index in range(2 * COUNT):
        path = tmp_path / "pets" / ("cat" if index % 2 else "dog") / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(8, 10, 3, seed=index))
    return tmp_path / "pets"


def settings(folder: Path, **options: object) -> ImageConfig:
    return ImageConfig(data=str(folder), **options)


def test_a_folder_per_class_is_read(folder: Path) -> None:
    data = load_classes(settings(folder))
    assert data.spec.target("label").vocabulary == ("cat", "dog")
    assert images.shape_of(data.spec.input("image")) == (8, 10, 3)
    assert sum(map(len, data.splits.values())) == 2 * COUNT
    pixels = Encoder(preprocess(settings(folder), data.spec), data.spec)(data.test.raw)["image"]
    assert pixels.dtype == np.uint8
    assert pixels.shape == (len(data.test), 8, 10, 3)
    before = dict(read_images(settings(folder)).train.to_numpy().tolist())
    names = [data.spec.target("label").vocabulary[index] for index in data.test.targets["label"][:, 0]]
    assert [before[content] for content in data.test.raw["image"]] == names


BAD = {
    "cut.png": (lambda: png(8, 10, 3)[:-30], "the PNG file is damaged or cut off: it cannot be decoded"),
    "text.jpg": (lambda: b"no picture at all", "it is no PNG, JPEG, BMP, GIF or WebP file"),
    "grey.png": (lambda: png(8, 10, 1), "it has 1 channel (grey), most images have 3; --channels 3 converts it"),
    "empty.png": (lambda: b"", "the file is empty"),
    "notes.txt": (lambda: b"notes", "it is no image file"),
}


@pytest.mark.parametrize("name", BAD)
def test_each_kind_of_bad_image_is_quarantined_and_listed(folder: Path, name: str) -> None:
    content, why = BAD[name]
    (folder / "cat" / name).write_bytes(content())
    data = load_classes(settings(folder, max_bad=0.1))
    assert data.bad == ((f"pets/cat/{name}", why),)
    assert sum(map(len, data.splits.values())) == 2 * COUNT
    with pytest.raises(UserError, match=r"1 of 25 files in .* are bad \(4 %, allowed are 1 %\).*--max-bad 0.04"):
        load_classes(settings(folder))


def test_channels_that_are_asked_for_convert_instead(folder: Path) -> None:
    (folder / "cat" / "grey.png").write_bytes(png(8, 10, 1))
    data = load_classes(settings(folder, channels=1))
    assert not data.bad
    assert images.shape_of(data.spec.input("image")) == (8, 10, 1)


def test_parts_of_a_folder_stay_parts(folder: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    for name in ("train", "test", "validation"):
        (parts / name).mkdir(parents=True)
        (parts / name / "cat").symlink_to(folder / "cat")  # a link to a class is not followed
    with pytest.raises(UserError, match="class folders: 0"):
        load_classes(settings(parts))
    for name, seed in (("train", 0), ("test", 100), ("validation", 200)):
        (parts / name / "cat").unlink()
        for label in ("cat", "dog"):
            (parts / name / label).mkdir()
            for index in range(3):
                (parts / name / label / f"{index}.png").write_bytes(png(4, 4, 3, seed=seed + index))
    data = load_classes(settings(parts))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 6, "validation": 6, "test": 6}
    assert data.test.raw["image"].isin([png(4, 4, 3, seed=100 + index) for index in range(3)]).all()
    orders = [load_classes(settings(parts, seed=seed)).train.targets["label"][:, 0].tolist() for seed in range(3)]
    assert any(order != sorted(order) for order in orders), "the first rows of a part are of one class"


def test_the_first_of_each_class_are_trained_on(folder: Path) -> None:
    config = settings(folder, max_train=6)
    data = load_classes(config)
    assert sorted(data.train.targets["label"][:, 0]) == [0, 0, 0, 1, 1, 1]
    assert len(data.validation) == 1
    assert not set(data.validation.raw["image"]) & set(data.train.raw["image"])
    with pytest.raises(UserError, match=r"--max-train 500: there are 19 examples to train on"):
        load_classes(replace(config, max_train=500))


@pytest.mark.parametrize("options", [{}, {"max_train": 200}], ids=["all", "of the first"])
def test_the_seed_picks_some_of_each_class(options: dict) -> None:
    parts = [load_classes(ImageConfig(train_per_class=5, seed=seed, split_seed=split, **options)).train
             for seed, split in ((0, -1), (1, -1), (1, 0))]  # fmt: skip
    first, second, same_splits = (set(part.raw["image"]) for part in parts)
    assert first == same_splits != second
    for part in parts:
        assert np.bincount(part.targets["label"][:, 0]).tolist() == [5] * 10


def test_the_first_digits_are_trained_on() -> None:
    sample = images.digits()
    data = load_classes(ImageConfig(max_train=100), lambda: sample)
    place = {content: row for row, content in enumerate(sample["image"])}
    rows = [place[content] for content in data.train.raw["image"]]
    assert rows == sorted(rows)
    assert len(rows) == 100
    others = {place[content] for part in (data.test, data.validation) for content in part.raw["image"]}
    assert max(rows) < min(others - set(range(max(rows)))), "rows in between are those of the test part"


def test_the_sample_is_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets import load_digits

    data = load_classes(ImageConfig(), one_hot=True)
    assert data.test.targets["label"].shape == (360, 10)
    sample = images.digits()
    pixels = Encoder(preprocess(ImageConfig(), data.spec), data.spec)(sample.head(50))["image"][..., 0]
    np.testing.assert_allclose(pixels * (16 / 255), load_digits().images[:50], atol=0.04)
    assert sample["label"].tolist() == load_digits().target.astype(str).tolist()


def test_what_is_usual_among_sizes() -> None:
    same = [Shape(28, 30, 1)] * 3 + [Shape(5, 5, 3)] * 2
    assert images.usual_shape(same) == (28, 30, 1)
    assert images.usual_shape([Shape(200, 100, 3), Shape(400, 300, 3), Shape(300, 200, 3)]) == (128, 85, 3)


def test_images_of_different_sizes_are_resized_with_a_note(folder: Path) -> None:
    for index, path in enumerate(sorted(folder.rglob("*.png"))):
        path.write_bytes(png(20 + index, 30, 3))
    data = load_classes(settings(folder))
    assert any("different sizes" in note for note in data.notes)
    assert not load_classes(settings(folder, height=8, width=8)).notes


def test_images_that_would_not_fit_into_memory_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="give a smaller --height and --width"):
        load_classes(settings(folder, height=10**5, width=10**5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "nowhere"}, "--data nowhere: no such folder"),
        ({"rotation": 200.0}, "--rotation 200.0: must lie between 0 and 180 degrees"),
        ({"mixup": 0.2, "cutmix": 0.5}, "--cutmix 0.5: give this or --mixup"),
        ({"saturation": 0.5, "channels": 1}, "--saturation 0.5: needs images with colours"),
        ({"max_train": 10, "train_fraction": 0.5}, "--max-train 10: give this or --train-fraction"),
    ],
)
def test_mistakes_are_one_line(options: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_classes(ImageConfig(**options))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_raw_images_are_bytes_or_base64(folder: Path) -> None:
    content = png(4, 4, 3)
    assert as_bytes("image", as_base64(content)) == as_bytes("image", content) == content
    with pytest.raises(UserError, match=r"input column 'image' takes images.*not 'cat.png'"):
        as_bytes("image", "cat.png")
    spec = Spec((Field("image", "image"), Field("name", "text")), ())
    path = folder / "cat" / "01.png"
    row = with_files({"image": str(path), "name": str(path)}, spec)
    assert row == {"image": as_base64(path.read_bytes()), "name": str(path)}
    path.write_bytes(b"")
    with pytest.raises(UserError, match="the file is empty"):
        with_files({"image": str(path)}, spec)


def test_a_bad_image_is_named_when_it_is_to_be_answered(folder: Path) -> None:
    data = load_classes(settings(folder))
    encode = Encoder(preprocess(settings(folder), data.spec), data.spec)
    frame = pd.DataFrame({"image": [png(8, 10, 3), png(8, 10, 3)[:-9]]}, dtype=object)
    with pytest.raises(UserError, match="input column 'image', row 2: the PNG file is damaged"):
        encode(frame)


def test_image_shapes() -> None:
    assert image_shape(png(3, 5, 4)) == Shape(3, 5, 3)
    assert image_shape(png(3, 5, 2)) == Shape(3, 5, 1)
    assert image_shape(b"GIF89a") is None


# Augmentation

KINDS = {
    "flip": "both", "rotation": 30.0, "translation": 0.2, "zoom": 0.2, "crop": 2, "elastic": 1.0, "brightness": 0.3,
    "contrast": 0.5, "saturation": 0.8, "noise": 0.1, "cutout": 1.0, "randaugment": 0.5, "mixup": 0.4, "cutmix": 1.0,
}  # fmt: skip
FEW = ("rotation", "elastic", "noise", "mixup")
"""Those that are tested every time; the slow suite tests all."""
SPEC = Spec(
    (Field("image", "image", statistics={"height": 8, "width": 10, "channels": 3}),),
    (Field("label", "classes", ("a", "b", "c")),),
)


def batches(seed: int = 0, **options: object) -> Batches:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 8, 10, 3)).astype(np.uint8)
    targets = np.eye(3, dtype=np.float32)[np.arange(40) % 3]
    return Batches({"image": pixels}, {"label": targets}, 16, (), seed, augment(ImageConfig(**options), SPEC))


def seen(source: Batches) -> np.ndarray:
    return np.concatenate([inputs["image"] for inputs, _ in source.dataset().as_numpy_iterator()])


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=() if kind in FEW else pytest.mark.slow) for kind in KINDS])
def test_each_augmentation_changes_images_the_same_way_in_the_same_step(kind: str) -> None:
    source = batches(**{kind: KINDS[kind]})
    plain = np.concatenate([inputs["image"] for inputs, _ in source])
    first, again = seen(source), seen(batches(**{kind: KINDS[kind]}))
    assert first.dtype == np.uint8
    assert (first != plain).any(axis=(1, 2, 3)).mean() > 0.3
    np.testing.assert_array_equal(first, again)


def test_contrast_falls_and_rises() -> None:
    source = batches(contrast=0.8)
    plain = np.concatenate([inputs["image"] for inputs, _ in source])
    changes = seen(source).std(axis=(1, 2)).mean(axis=-1) / plain.std(axis=(1, 2)).mean(axis=-1)
    assert changes.min() < 0.7
    assert changes.max() > 1.1


def test_small_images_that_are_moved_again_and_again_stay_sharp() -> None:
    """Each layer interpolates: without care, the contrast of thin lines is 0.58."""
    pixels = np.zeros((64, 28, 28, 1), np.uint8)
    pixels[:, 6:22, 13:15] = 255
    spec = Spec((Field("image", "image", statistics={"height": 28, "width": 28, "channels": 1}),), SPEC.targets)
    moves = ImageConfig(rotation=15.0, translation=0.1, zoom=0.1, elastic=1.0)
    targets = np.eye(3, dtype=np.float32)[np.arange(64) % 3]
    moved = seen(Batches({"image": pixels}, {"label": targets}, 16, None, 0, augment(moves, spec)))
    assert (moved != pixels).any(axis=(1, 2, 3)).all()
    contrast = np.square(moved / 255).sum() / (moved / 255).sum()
    assert contrast > 0.66


def test_every_epoch_and_seed_sees_other_images() -> None:
    source = batches(noise=0.2)
    source.plan = lambda: [(np.arange(40), 1)] * 3  # the same images in the same order
    first = seen(source)
    source.epoch = 1
    second = seen(source)
    source.seed, source.epoch = 1, 0
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, seen(source))


def test_without_settings_nothing_is_augmented() -> None:
    assert augment(ImageConfig(), SPEC) is None


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_targets_are_mixed_as_the_images_are(kind: str) -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, 64)
    pixels = np.broadcast_to((classes * 100)[:, None, None, None], (64, 8, 10, 3)).astype(np.uint8)
    source = Batches(
        {"image": pixels}, {"label": np.eye(3, dtype=np.float32)[classes]}, 64, (), 0,
        augment(ImageConfig(**{kind: 0.5}), SPEC),
    )  # fmt: skip
    ((inputs, targets),) = source.dataset().as_numpy_iterator()
    np.testing.assert_allclose(targets["label"].sum(axis=1), 1, rtol=1e-5)
    mean = inputs["image"].mean(axis=(1, 2, 3))
    expected = targets["label"] @ [0, 100, 200]
    if kind == "mixup":
        np.testing.assert_allclose(mean, expected, atol=1.5)
    else:  # Keras mixes targets by the size of the box before it is cut off at the edges
        assert np.corrcoef(mean, expected)[0, 1] > 0.9
    assert ((targets["label"] > 0.05) & (targets["label"] < 0.95)).any()


def test_grey_images_have_no_saturation() -> None:
    grey = Spec((Field("image", "image", statistics={"height": 8, "width": 10, "channels": 1}),), SPEC.targets)
    with pytest.raises(UserError, match=r"--saturation 0\.5: needs images with colours"):
        augment(ImageConfig(saturation=0.5), grey)


def test_targets_that_cannot_be_mixed_are_refused() -> None:
    with pytest.raises(UserError, match=r"--mixup 0\.2: this application's targets cannot be mixed"):
        augment(ImageConfig(mixup=0.2), SPEC, mixing=False)
