"""Parts of the data in files of their own: told by the files' names, in a folder or beside the training file."""

from __future__ import annotations

from pathlib import Path

import pytest

from loom import UserError
from loom.config import TrainingConfig
from loom.data.parts import read_parts
from loom.data.tables import Table, read_fields

NAMES = (
    "news.train.en-de.tsv", "news.val.en-de.tsv", "news.TEST.en-de.tsv", "news.test.en-fr.tsv", "news.en-de.tsv",
    "news.training.en-de.tsv", "news.test.en-de.zip", "constrained.tsv",
)  # fmt: skip


def read(file: Path) -> Table:
    return read_fields(file, ["name"])


def parts_of(folder: Path, data: str) -> tuple[list[list[str] | None], list[str]]:
    """What is in the parts of what `data` names, where every file holds its name, and the notes."""
    for name in NAMES:
        (folder / name).write_text(f"{name}\n")
    examples, notes = read_parts(TrainingConfig(data=str(folder / data)), {".tsv"}, read, "lines")
    assert [examples.where(row) for row in range(len(examples.whole))] == [f"{name}:1" for name in examples.whole.name]
    frames = (examples.train, examples.test, examples.validation)
    return [None if frame is None else frame["name"].tolist() for frame in frames], notes


def test_beside_a_training_file_are_the_parts_whose_names_differ_in_one_word(tmp_path: Path) -> None:
    parts, notes = parts_of(tmp_path, "news.train.en-de.tsv")
    assert parts == [["news.train.en-de.tsv"], ["news.TEST.en-de.tsv"], ["news.val.en-de.tsv"]]
    assert notes == [
        "parts of the data are files: train is news.train.en-de.tsv, test is news.TEST.en-de.tsv, "
        "validation is news.val.en-de.tsv"
    ]


def test_of_a_folder_all_files_with_the_word_for_a_part_count(tmp_path: Path) -> None:
    parts, notes = parts_of(tmp_path, "")
    assert parts == [
        ["news.train.en-de.tsv", "news.training.en-de.tsv"],
        ["news.TEST.en-de.tsv", "news.test.en-fr.tsv"],
        ["news.val.en-de.tsv"],
    ]
    assert "train is news.train.en-de.tsv and news.training.en-de.tsv" in notes[0]


@pytest.mark.parametrize("name", ["news.en-de.tsv", "news.val.en-de.tsv", "constrained.tsv"])
def test_any_other_file_is_alone(name: str, tmp_path: Path) -> None:
    assert parts_of(tmp_path, name) == ([[name], None, None], [])


def test_bad_rows_of_all_files_count_together(tmp_path: Path) -> None:
    for name, lines in {"train": ["good"] * 7, "test": ["good", "b\tad"], "dev": ["b\tad"]}.items():
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines))
    examples, _ = read_parts(TrainingConfig(data=str(tmp_path / "train.tsv"), max_bad=0.2), {".tsv"}, read, "lines")
    assert [where for where, _ in examples.bad] == ["test.tsv:2", "dev.tsv:1"]
    with pytest.raises(UserError, match=r"2 of 10 lines of .* are bad \(20 %, allowed are 19 %\)"):
        read_parts(TrainingConfig(data=str(tmp_path), max_bad=0.19), {".tsv"}, read, "lines")


@pytest.mark.parametrize(
    ("data", "words"), [("missing.tsv", "no such file or folder"), ("", "no file to train on.*NAME-train.*.tsv")]
)
def test_a_mistake_is_one_line(data: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "test.tsv").write_text("a test is not enough\n")
    with pytest.raises(UserError, match=words) as error:
        read_parts(TrainingConfig(data=str(tmp_path / data)), {".tsv"}, read, "lines")
    assert "\n" not in str(error.value)
