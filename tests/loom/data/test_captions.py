"""Images with captions: scenes of shapes and what is read out of sentences, files, TFDS, and bad rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from apps import captioning
from apps.captioning import CAPTION, Config
from loom import UserError
from loom.data.captions import read_captions
from loom.data.coloured_shapes import COLOURS, SIZE, Fact, read_facts, scenes, share_of_exact
from loom.data.files import encode_png
from loom.data.images import IMAGE
from loom.data.pairs import split_pairs

IMAGES = 60


def write(folder: Path, name: str = "captions.tsv", lines: tuple[bytes, ...] = ()) -> Config:
    """Grey squares of different brightness, each with two captions, and more lines."""
    (folder / "pictures").mkdir()
    rows = []
    for number in range(IMAGES):
        pixels = np.full((6, 8, 3), 4 * number, np.uint8)
        (folder / "pictures" / f"{number}.png").write_bytes(encode_png(pixels))
        rows += [f"pictures/{number}.png\tShade {number} it is.", f"pictures/{number}.png\tA square of shade {number}."]
    (folder / name).write_bytes("\n".join(rows).encode() + b"\n" + b"".join(line + b"\n" for line in lines))
    return Config(data=str(folder / name), max_bad=0.1)


def test_scenes_have_two_sentences_that_say_the_same() -> None:
    frame = scenes(60)
    first, second = frame[CAPTION][::2], frame[CAPTION][1::2]
    assert (frame[IMAGE][::2].to_numpy() == frame[IMAGE][1::2].to_numpy()).all()
    assert (first.to_numpy() != second.to_numpy()).all()
    facts = [read_facts(sentence) for sentence in first]
    assert facts == [read_facts(sentence) for sentence in second]
    assert {len(found or ()) for found in facts} == {1, 2, 3}
    assert any(fact.position == "above" for found in facts for fact in found or ())
    assert frame.head(20).equals(scenes(10))
    assert not frame.equals(scenes(60, seed=1))


def test_the_pixels_are_what_the_sentence_says() -> None:
    """Where one shape is, the brightest pixels are of its colour and at its place."""
    middles = {"top": 0, "left": 0, "bottom": 2, "right": 2}
    for _, row in scenes(60).iloc[::2].iterrows():
        facts = read_facts(row[CAPTION])
        assert facts
        if len(facts) > 1:
            continue
        ((colour, _, position),) = facts
        pixels = tf.io.decode_png(row[IMAGE]).numpy().astype(float)
        assert pixels.shape == (SIZE, SIZE, 3)
        shape = np.abs(pixels - np.median(pixels, axis=(0, 1))).sum(axis=-1) > 120
        shades = np.array(list(COLOURS.values())) / np.linalg.norm(list(COLOURS.values()), axis=1, keepdims=True)
        assert list(COLOURS)[int((shades @ pixels[shape].mean(axis=0)).argmax())] == colour
        place = [int(axis.mean() // (SIZE / 3)) for axis in np.nonzero(shape)]
        words = position.split()
        expected = [
            next((middles[word] for word in words if word in names), 1)
            for names in (("top", "bottom"), ("left", "right"))
        ]
        assert place == expected


@pytest.mark.parametrize(
    ("sentence", "facts"),
    [
        ("a red circle at the top", {("red", "circle", "at the top")}),
        ("there is a red circle in the top left corner", {("red", "circle", "at the top left")}),
        ("a red circle above a blue square", {("red", "circle", "above"), ("blue", "square", "below")}),
        ("a blue square below a red circle", {("red", "circle", "above"), ("blue", "square", "below")}),
        (
            "a red cross in the middle, a red circle on the left and a white cross at the bottom right",
            {
                ("red", "cross", "in the centre"),
                ("red", "circle", "on the left"),
                ("white", "cross", "at the bottom right"),
            },
        ),
        ("a red circle", None),
        ("a red circle at the top and", None),
        ("a red circle at the top and a red circle at the top", None),
        ("a pink circle at the top", None),
        ("", None),
    ],
)
def test_facts_are_read_back_out_of_a_sentence(sentence: str, facts: set[tuple[str, str, str]] | None) -> None:
    assert read_facts(sentence) == (None if facts is None else {Fact(*fact) for fact in facts})


def test_exact_means_all_of_colour_shape_and_position() -> None:
    truth = "a red circle at the top and a blue square at the bottom"
    said = {
        "a blue square at the bottom and a red circle at the top": (1, 1, 1, 1),
        "a blue circle at the top and a red square at the bottom": (0, 1, 1, 1),
        "a green circle at the top and a blue square at the bottom": (0, 0, 1, 1),
        "a red circle at the top and a blue square on the left": (0, 1, 1, 0),
        "a red circle at the top": (0, 0, 0, 0),
        "no idea": (0, 0, 0, 0),
    }
    for sentence, shares in said.items():
        assert share_of_exact([sentence], [truth]) == dict(
            zip(("exact", "exact_colours", "exact_shapes", "exact_positions"), shares, strict=True)
        )
    assert share_of_exact([truth], ["A dog runs."]) is None


def test_a_file_has_a_row_for_each_caption_and_an_image_is_in_one_part(tmp_path: Path) -> None:
    config = write(tmp_path)
    examples, notes = read_captions(config)
    assert len(examples.train) == 2 * IMAGES
    assert not examples.bad
    assert not notes
    parts = split_pairs(examples, config, IMAGE)
    assert sum(map(len, parts.values())) == 2 * IMAGES
    images = [set(part[IMAGE]) for part in parts.values()]
    assert sum(map(len, images)) == len(set.union(*images)) == IMAGES


def test_images_with_several_captions_are_decoded_once(tmp_path: Path) -> None:
    data = captioning.load(write(tmp_path))
    column = data.train.inputs[IMAGE]
    assert column.shape == (len(data.train), 6, 8, 3)
    assert len(column.values) == len(data.train) / 2  # type: ignore[union-attr]
    shades = [int(text.rstrip(".").split()[1 if text.startswith("Shade") else -1 if "it" not in text else 1])
              for text in data.train.raw[CAPTION]]  # fmt: skip
    assert (column[np.arange(len(data.train))][:, 0, 0, 0] == 4 * np.array(shades)).all()
    assert len(data.train.take(np.arange(3)).inputs[IMAGE]) == 3


def test_bad_rows_are_listed_with_their_line(tmp_path: Path) -> None:
    lines = (
        b"pictures/1.png", b"", b"pictures/missing.png\tlost", b"pictures/1.png\t", b"captions.tsv\tno image",
        b"pictures/cut.png\tcut off", b"pictures/grey.png\tgrey", b"pictures/1.png\tlatin \xe9",
        b"pictures/1.png\t" + 100_000 * b"x",
    )  # fmt: skip
    config = write(tmp_path, lines=lines)
    (tmp_path / "pictures" / "cut.png").write_bytes((tmp_path / "pictures" / "1.png").read_bytes()[:40])
    (tmp_path / "pictures" / "grey.png").write_bytes(encode_png(np.zeros((6, 8, 1), np.uint8)))
    examples, _ = read_captions(config)
    start = 2 * IMAGES
    assert dict(examples.bad) == {
        f"captions.tsv:{start + 1}": "the row has 1 fields, not 2",
        f"captions.tsv:{start + 3}": "column 'image', pictures/missing.png: "
        "the file cannot be read (No such file or directory)",
        f"captions.tsv:{start + 4}": "no caption text",
        f"captions.tsv:{start + 5}": "column 'image', captions.tsv: it is no PNG, JPEG, BMP, GIF or WebP file",
        f"captions.tsv:{start + 6}": "column 'image', pictures/cut.png: "
        "the PNG file is damaged or cut off: it cannot be decoded",
        f"captions.tsv:{start + 7}": "it has 1 channel (grey), most images have 3; --channels 3 converts it",
        f"captions.tsv:{start + 8}": "the byte 0xE9 is not UTF-8",
        f"captions.tsv:{start + 9}": "the caption text has 100,000 characters, more than 2,000",
    }
    assert len(examples.train) == 2 * IMAGES
    with pytest.raises(UserError, match=r"rows of captions\.tsv are bad"):
        read_captions(Config(data=config.data))


def test_a_table_with_a_header_and_files_beside_it(tmp_path: Path) -> None:
    write(tmp_path)
    rows = [(f"pictures/{number}.png", f"shade {number}") for number in range(IMAGES)]
    pd.DataFrame(rows[:40], columns=["image", "text"]).to_csv(tmp_path / "train.csv", index=False)
    pd.DataFrame(rows[40:], columns=["image", "text"]).to_csv(tmp_path / "test.csv", index=False)
    examples, notes = read_captions(Config(data=str(tmp_path / "train.csv")))
    assert examples.test is not None
    assert [len(examples.train), len(examples.test)] == [40, 20]
    assert "column 'image' is the image and 'text' the caption" in notes[-1]


def test_coco_captions_of_tfds(tmp_path: Path) -> None:
    """A stand-in with the features and parts of the real one, which takes 40 GB to prepare."""
    import tensorflow_datasets as tfds

    class CocoCaptions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.1.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2014")]  # noqa: RUF012

        def _info(self):
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "image/filename": tfds.features.Text(),
                "image/id": np.int64,
                "captions": tfds.features.Sequence({"text": np.str_, "id": np.int64}),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            counts = {"train": 8, "val": 2, "test": 3, "restval": 1}
            return {part: self._generate_examples(count) for part, count in counts.items()}

        def _generate_examples(self, count):
            for number in range(count):
                texts = [{"text": f"Caption {place} of {number}.", "id": place} for place in range(1 + number % 3)]
                image = np.full((6 + number, 8, 3), 20 * number, np.uint8)
                yield number, {"image": image, "image/filename": "", "image/id": number, "captions": texts}

    CocoCaptions(data_dir=str(tmp_path)).download_and_prepare()
    examples, _ = read_captions(Config(data="tfds:coco_captions", data_dir=str(tmp_path), channels=3))
    assert examples.test is not None
    assert examples.validation is not None
    assert sorted(examples.validation[CAPTION]) == ["Caption 0 of 0.", "Caption 0 of 1.", "Caption 1 of 1."]
    assert sorted(examples.test.groupby(IMAGE)[CAPTION].size()) == [1, 2, 3]
    assert len(examples.train) == 15
    assert examples.train[IMAGE][0].startswith(b"\xff\xd8\xff")
