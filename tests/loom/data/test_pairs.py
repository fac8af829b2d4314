"""Pairs of texts from files: with and without a header, in parts beside each other, and bad lines."""

from __future__ import annotations

import pandas as pd
import pytest

from loom import UserError
from loom.data.pairs import PairsConfig, read_pairs, split_pairs

LINES = [f"text {n}\tzeile {n}" for n in range(200)]


def write(path, lines):
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return PairsConfig(data=str(path), max_bad=0.05)


def no_sample():
    raise AssertionError("the sample was not asked for")


def test_lines_with_a_tab_are_pairs_without_a_header(tmp_path) -> None:
    examples, notes = read_pairs(write(tmp_path / "pairs.tsv", ['say "hi"\tsag "hallo', "", *LINES]), no_sample)
    assert examples.train.iloc[0].tolist() == ['say "hi"', 'sag "hallo']
    assert len(examples.train) == 201
    assert not examples.bad
    assert not notes


def test_bad_lines_are_listed_with_their_number(tmp_path) -> None:
    path = tmp_path / "pairs.tsv"
    config = write(path, LINES)
    path.write_bytes(
        path.read_bytes() + b"one column\nlatin \xe9\tlatin\n\tno source\nendless\t" + 100_000 * b"x" + b"\na\tb\tc\n"
    )
    examples, _ = read_pairs(config, no_sample)
    assert examples.bad == (
        ("pairs.tsv:201", "the row has 1 fields, not 2"),
        ("pairs.tsv:202", "the byte 0xE9 is not UTF-8"),
        ("pairs.tsv:205", "the row has 3 fields, not 2"),
        ("pairs.tsv:203", "no source text"),
        ("pairs.tsv:204", "the target text has 100,000 characters, more than 2,000"),
    )
    assert len(examples.train) == 200
    with pytest.raises(UserError, match=r"3 of 205 rows of pairs\.tsv are bad"):
        read_pairs(PairsConfig(data=str(path)), no_sample)


@pytest.mark.parametrize("data", ["news.train.en-de.tsv", ""])
def test_other_parts_are_files_beside_the_training_part_and_in_a_folder(data, tmp_path) -> None:
    for part, lines in {"train": LINES, "val": LINES[:20], "test": LINES[:30]}.items():
        write(tmp_path / f"news.{part}.en-de.tsv", lines)
    examples, notes = read_pairs(PairsConfig(data=str(tmp_path / data)), no_sample)
    parts = split_pairs(examples, PairsConfig())
    assert {name: len(part) for name, part in parts.items()} == {"train": 200, "validation": 20, "test": 30}
    assert "test is news.test.en-de.tsv" in notes[0]


def test_the_columns_of_the_training_part_are_those_of_all_parts(tmp_path) -> None:
    (tmp_path / "train.csv").write_text("en,hi\na,b\n")
    for header in ("hi,en", "hi,english"):
        (tmp_path / "test.csv").write_text(f"{header}\nc,d\n")
        config = PairsConfig(data=str(tmp_path / "train.csv"))
        if header == "hi,en":
            assert read_pairs(config, no_sample)[0].whole.to_numpy().tolist() == [["a", "b"], ["d", "c"]]
        else:
            with pytest.raises(UserError, match=r"test\.csv:1: there is no column 'en'"):
                read_pairs(config, no_sample)


def test_all_bad_rows_count_against_what_is_allowed(tmp_path) -> None:
    config = write(tmp_path / "pairs.tsv", [*LINES[:94], "one column", "three\tof\tthem", *["no answer\t"] * 4])
    with pytest.raises(UserError, match=r"6 of 100 rows of .*pairs\.tsv are bad \(6 %, allowed are 5 %\)"):
        read_pairs(config, no_sample)


def test_a_source_is_in_one_part_only(tmp_path) -> None:
    lines = [f"text {n % 40}\tzeile {n}" for n in range(200)]
    examples, _ = read_pairs(write(tmp_path / "pairs.tsv", lines), no_sample)
    parts = split_pairs(examples, PairsConfig())
    assert sum(map(len, parts.values())) == 200
    sources = [set(part["source"]) for part in parts.values()]
    assert not sources[0] & sources[1]
    assert not sources[0] & sources[2]
    assert not sources[1] & sources[2]


def test_as_many_pairs_are_trained_on_as_are_asked_for(tmp_path) -> None:
    lines = "".join(f"text {number % 40}\tanswer {number}\n" for number in range(120))
    (tmp_path / "pairs.tsv").write_text(lines)
    config = PairsConfig(data=str(tmp_path / "pairs.tsv"), max_train=10)
    assert len(split_pairs(read_pairs(config, no_sample)[0], config)["train"]) == 10


def test_columns_of_a_table_are_chosen_by_name(tmp_path) -> None:
    frame = pd.DataFrame(
        {"id": range(20), "hi": [f"हिन्दी {n}" for n in range(20)], "en": [f"text {n}" for n in range(20)]}
    )
    frame.to_csv(tmp_path / "pairs.csv", index=False)
    named = PairsConfig(data=str(tmp_path / "pairs.csv"), source_column="en", target_column="hi")
    examples, notes = read_pairs(named, no_sample)
    assert examples.train.iloc[3].tolist() == ["text 3", "हिन्दी 3"]
    assert not notes
    _, notes = read_pairs(PairsConfig(data=str(tmp_path / "pairs.csv")), no_sample)
    assert notes == ["column 'id' is the source and 'hi' the target; --source-column and --target-column choose others"]


def test_nothing_left_is_one_line(tmp_path) -> None:
    (tmp_path / "pairs.tsv").write_text("alone\nno pair\n")
    with pytest.raises(UserError, match=r"no row can be used; pairs\.tsv:1: the row has 1 fields, not 2"):
        read_pairs(PairsConfig(data=str(tmp_path / "pairs.tsv"), max_bad=1.0), no_sample)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": "missing.tsv"}, "no such file"),
        ({"data": "."}, "no file to train on"),
        ({"source_column": "en"}, "--source-column en: give --target-column"),
        ({"source_column": "eng", "target_column": "hi"}, "no column 'eng'.*did you mean 'en'"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, changes, words) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("en,hi\na,b\n")
    with pytest.raises(UserError, match=words) as error:
        read_pairs(PairsConfig(**{"data": str(path), **changes}), no_sample)
    assert "\n" not in str(error.value)
