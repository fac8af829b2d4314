"""Series from tables: columns, bad rows, gaps, parts that do not leak into each other, windows, the last ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from loom import Data, Spec, UserError
from loom.data import series
from loom.data.series import FORECAST, HISTORY, SeriesConfig, load_series

HOURS = 100


def table(count: int = HOURS, **changes: Any) -> pd.DataFrame:
    """Hourly rows; `load` counts them, so a window says where it is from."""
    times = pd.date_range("2024-02-25", periods=count, freq="h").strftime("%Y-%m-%d %H:%M:%S")
    columns = {"time": times, "load": np.arange(count, dtype=float), "wind": 7 - np.arange(count) % 5}
    return pd.DataFrame(columns | changes)


@pytest.fixture
def write(tmp_path: Path):
    """Writes a table to a file and gives the settings that read it."""

    def settings(frame: pd.DataFrame | str, **options: Any) -> SeriesConfig:
        text = frame if isinstance(frame, str) else frame.to_csv(index=False)
        (tmp_path / "table.csv").write_text(text, encoding="utf-8", errors="surrogateescape")
        return SeriesConfig(data=str(tmp_path / "table.csv"), **{"look_back": 10, "horizon": 4} | options)

    return settings


def values_of(data: Data, part: str, what: str = FORECAST) -> np.ndarray:
    """Windows in the table's units."""
    split = data.splits[part]
    return series.in_units(np.asarray((split.targets if what == FORECAST else split.inputs)[what]), data.spec)


def test_columns_are_guessed_and_told(write) -> None:
    frame = table(place="here")
    data = load_series(write(frame))
    assert [field.name for field in data.spec.targets] == ["load", "wind"]
    assert (data.spec.inputs[0].name, data.spec.inputs[0].kind) == ("time", "time")
    assert any("'place'" in note for note in data.notes)
    data = load_series(write(frame, targets="load", covariates="wind"))
    assert [field.name for field in data.spec.targets] == ["load"]
    assert data.train.inputs[HISTORY].shape[1:] == (10, 2)
    assert data.train.targets[FORECAST].shape[1:] == (4, 1)
    numbered = load_series(write(frame.assign(time=range(HOURS)), time_column="time"))
    assert numbered.test.raw["time"].iloc[-1] == str(HOURS - 5)


def test_parts_follow_each_other_and_do_not_leak(write) -> None:
    config = write(table(), split="60,20,20")
    data = load_series(config)
    spans = {part: values_of(data, part)[..., 0] for part in data.splits}
    assert [(round(span.min()), round(span.max())) for span in spans.values()] == [
        (10, 59),
        (60, 79),
        (80, 99),
    ]
    assert [len(split) for split in data.splits.values()] == [47, 17, 17]
    for part, span in spans.items():
        past = values_of(data, part, HISTORY)[..., 0]
        np.testing.assert_allclose(span[:, 0], past[:, -1] + 1, atol=1e-4)
        np.testing.assert_allclose(np.diff(past, axis=1), 1, atol=1e-4)
        origins = pd.to_datetime(data.splits[part].raw["time"]) - pd.Timestamp("2024-02-25")
        np.testing.assert_allclose(past[:, -1], origins / pd.Timedelta(hours=1), atol=1e-4)
    scaled = np.asarray(data.train.inputs[HISTORY].values[:60, 0])
    assert (scaled.mean(), scaled.std()) == (pytest.approx(0, abs=1e-6), pytest.approx(1))
    other = table()
    other.loc[60:, "load"] *= 100  # what comes later changes nothing of what the training part says
    again = load_series(write(other, split="60,20,20"))
    assert again.spec == data.spec
    assert again.fingerprint() != data.fingerprint()
    fewer = load_series(write(table(), split="60,20,20", train_fraction=0.5))
    assert round(values_of(fewer, "train", HISTORY).min()) <= 30
    assert values_of(fewer, "train")[..., 0].min() == pytest.approx(40, abs=1e-4)


def test_parts_are_shares_by_default_and_covariates_belong_to_the_data(write) -> None:
    data = load_series(write(table(), test_fraction=0.25, validation_fraction=0.2))
    assert [values_of(data, part)[..., 0].max().round() for part in data.splits] == [59, 74, 99]
    changed = table()
    changed.loc[50, "wind"] += 1
    options: dict[str, Any] = {"targets": "load", "covariates": "wind"}
    first, second = (load_series(write(frame, **options)).fingerprint() for frame in (table(), changed))
    assert first != second


def test_several_series_are_cut_at_the_same_times(write) -> None:
    late = table(70).assign(name="late")
    late["time"] = table(100)["time"][30:].to_numpy()
    early = table(100).assign(name="early", load=lambda frame: frame["load"] + 1000)
    frame = pd.concat([early, late]).sample(frac=1, random_state=0)
    data = load_series(write(frame, series_column="name", split="60,20,20"))
    assert any("not in the order of time" in note for note in data.notes)
    assert [field.name for field in data.spec.inputs if field.kind == "category"] == ["name"]
    for part, ends in {"train": (59, 29), "validation": (79, 49), "test": (99, 69)}.items():
        loads = values_of(data, part)[..., 0]
        names = data.splits[part].raw["name"].to_numpy()
        assert (loads[names == "early"].max().round() - 1000, loads[names == "late"].max().round()) == ends
        assert (np.diff(values_of(data, part, HISTORY)[..., 0], axis=1).round(3) == 1).all()  # none of both series


def test_gaps_are_refused_or_reported_and_filled(write) -> None:
    frame = table().drop(index=[30, 31, 90])
    frame.loc[50, "load"] = None
    with pytest.raises(UserError) as error:
        load_series(write(frame))
    for words in ("--missing error", "3 steps have no row", "1 values are missing", "2024-02-26 06:00:00"):
        assert words in str(error.value)
    assert "\n" not in str(error.value)
    data = load_series(write(frame, missing="interpolate"))
    assert any("3 steps have no row" in note and "by a line" in note for note in data.notes)
    past = values_of(data, "train", HISTORY)[..., 0]
    behind = past[past[:, -1].round() == 35]
    np.testing.assert_allclose(behind[0], np.arange(26, 36), atol=1e-4)
    row = list(data.train.raw["time"]).index("2024-02-26 07:00:00")  # the gap's own end: nothing is known behind it
    np.testing.assert_allclose(past[row, -3:], 29, atol=1e-4)
    assert np.isnan(np.asarray(data.train.targets[FORECAST])).sum() == 3 * 4 * 1 + 2 * 4  # load 3 times, wind twice
    last = load_series(write(frame, missing="last"))
    np.testing.assert_allclose(values_of(last, "train", HISTORY)[row + 3, -6:, 0], [29, 29, 29, 32, 33, 34], atol=1e-4)


def test_a_time_between_two_steps_counts_for_the_later_one(write) -> None:
    frame = table()
    frame.loc[40, "time"] = "2024-02-26 15:40:00"  # instead of 16:00
    with pytest.raises(UserError, match=r"1 rows are between two steps; the first is at 2024-02-26 15:40:00"):
        load_series(write(frame))
    data = load_series(write(frame, missing="last"))
    assert (np.diff(values_of(data, "train", HISTORY)[..., 0], axis=1).round(3) == 1).all()


def test_bad_rows_are_listed_and_leave_a_gap(write) -> None:
    frame = table().astype(object)
    frame.loc[20, "load"], frame.loc[40, "time"] = "much", "soon"
    frame.loc[60, "time"] = frame.loc[59, "time"]
    with pytest.raises(UserError, match=r"3 of 100 rows of .*table.csv are bad .*--max-bad"):
        load_series(write(frame, missing="last"))
    data = load_series(write(frame, missing="last", max_bad=0.1))
    assert [where for where, _ in data.bad] == ["table.csv:22", "table.csv:42", "table.csv:62"]
    whys = ["column 'load' holds 'much', which is no number", "column 'time' holds 'soon', which is no time"]
    assert [why for _, why in data.bad][:2] == whys
    assert data.bad[2][1].startswith("the time 2024-02-27 11:00:00 is there twice; are there several series")
    assert any("3 steps have no row" in note for note in data.notes)


def test_broken_lines_are_quarantined(write) -> None:
    text = table().to_csv(index=False).splitlines()
    text[30] = text[30].rpartition(",")[0]
    text[50] = "x" * 100_000
    text[70] = text[70] + "\udce9"
    text[80] = ""
    data = load_series(write("\n".join(text) + "\n", missing="last", max_bad=0.1))
    assert [where for where, _ in data.bad] == ["table.csv:31", "table.csv:51", "table.csv:71"]
    assert len(data.test.raw)


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({}, {"time_column": "when"}, ["--time-column when", "did you mean"]),
        ({"time": "soon"}, {}, ["--time-column", "no column holds ISO dates"]),
        ({}, {"targets": "lod"}, ["--targets lod", "did you mean 'load'"]),
        ({}, {"covariates": "sun"}, ["--covariates sun"]),
        ({}, {"series_column": "place"}, ["--series-column place"]),
        ({"load": "x", "wind": "y"}, {}, ["--targets", "holds numbers"]),
        ({}, {"split": "60,20,40"}, ["--split 60,20,40", "100 steps only"]),
        ({}, {"split": "12,40,40"}, ["the train part has 12 steps", "one forecast takes 14"]),
        ({}, {"split": "60,3,20"}, ["the validation part has 3 steps"]),
        ({"time": ["1924-02-25", *table()["time"][1:]]}, {}, ["leave most steps", "is a time wrong?"]),
        ({"time": range(HOURS)}, {"calendar": True}, ["--calendar", "are numbers"]),
        ({"load": [None] * 80 + [1.0] * 20}, {"missing": "last"}, ["'load' has no value in the training part"]),
        ({"time": table()["time"] + "Z"}, {"time_column": "load", "targets": "load"}, ["--time-column load"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(write, change, options, words) -> None:
    with pytest.raises(UserError) as error:
        load_series(write(table(**change), **options))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"horizon": 0},
        {"look_back": 0},
        {"season": 200},
        {"split": "1,2"},
        {"split": "a,b,c"},
        {"targets": "a,a"},
        {"covariates": "a", "targets": "a"},
        {"max_train": 5},
        {"missing": "zero"},
    ],
)
def test_impossible_settings_are_refused(options) -> None:
    with pytest.raises(UserError, match="--"):
        SeriesConfig(**options)
    with pytest.raises(UserError, match=r"name a \.csv file"):
        load_series(SeriesConfig(data="/tmp"))


def test_the_last_window_is_what_a_table_ends_with(write) -> None:
    config = write(table(), calendar=True)
    spec = Spec.from_json(load_series(config).spec.to_json())
    frame = table(40)
    shuffled = frame.sample(frac=1, random_state=0)[["wind", "time", "load"]]
    for rows in (frame, frame.tail(10), shuffled, json.loads(frame.to_json(orient="records"))):
        found = series.latest(pd.DataFrame(rows), spec, config)
        assert found.names == [""]
        np.testing.assert_array_equal(found.values[0, :, 0], range(30, 40))
        calendar = series.inputs_of(found, spec, config)["calendar"]
        assert calendar.shape == (1, 14, 6)
    for rows, words in (
        (frame.tail(9), "9 steps of 1 hour are there: a forecast needs 10"),
        (frame.drop(index=35), "a row or value is missing"),
        (frame.assign(load="x"), "row 1: column 'load' holds 'x', which is no number"),
        (frame[["time", "load"]], "input column 'wind' is missing"),
        (pd.concat([frame, frame.tail(1)]), "is there twice"),
    ):
        with pytest.raises(UserError, match=words):
            series.latest(rows, spec, config)
    assert series.latest(frame.drop(index=5), spec, config).last == [39]  # long before the window


def test_years_and_months_are_steps_too(write) -> None:
    frame = table(80).assign(time=pd.date_range("2010-01-31", periods=80, freq="ME").strftime("%Y-%m-%d"))
    data = load_series(write(frame))
    assert any(note.startswith("steps of a month") for note in data.notes)
    found = series.latest(frame, data.spec, write(frame))
    clock = series.Clock.of(data.spec.inputs[0])
    assert clock.texts(np.array(found.last) + 1) == ["2016-09-30"]
