"""Series from tables: a row for each time, or for each time of each series, put on regular steps and cut into windows.

An example is a window of past steps and the steps that follow it. Windows look back at rows of the part before theirs;
what they forecast lies in their own part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from loom.config import TrainingConfig, split_names
from loom.data.clock import Clock, read_times
from loom.data.columns import plain, require_columns
from loom.data.pipeline import Data, Split
from loom.data.sample_series import chaotic, seasonal
from loom.data.sources import TFDS, Examples, read_examples
from loom.data.spec import Field, Spec
from loom.data.tables import Bad, check_bad
from loom.data.windows import Fill, Windows, filled
from loom.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

HISTORY, CALENDAR, FORECAST = "history", "calendar", "forecast"
"""Inputs and output of the core model."""
SAMPLES = {"seasonal": seasonal, "mackey_glass": chaotic}
NAMES_OF_TIMES = ("time", "date", "datetime", "timestamp", "ds", "step", "t")
"""What a column of times is called, where several columns could be one."""
NEARLY_ALL = 0.9
"""Share of numbers from which a column is taken for one of numbers."""
SPARSEST = 20
"""Steps for each row, at most: above, some time is a typing error rather than a gap."""
NAIVE = "naive"
"""Name of a statistic of a target: the mean error of the seasonal forecast one season ahead on the training part."""
Part = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class SeriesConfig(TrainingConfig):
    """Settings of applications that learn from series."""

    sample: Literal["seasonal", "mackey_glass"] = "seasonal"
    """Which built-in series --data sample is."""
    time_column: str = ""
    """Column with the times, ISO dates or numbers (default: the first that holds such)."""
    series_column: str = ""
    """Column that names each row's series, where rows of several stand below each other."""
    targets: str = ""
    """Columns to forecast, separated by commas (default: all that hold numbers)."""
    covariates: str = ""
    """Columns whose past is read too, but not forecast, separated by commas."""
    calendar: bool = False
    """Read hour, weekday and day of the year too, of the past and of the times to forecast."""
    look_back: int = 168
    """Steps of the past that a forecast is made from."""
    horizon: int = 24
    """Steps that are forecast."""
    season: int = 0
    """Steps of a season, for the seasonal baseline and MASE (0: a day, week or year, by the times)."""
    split: str = ""
    """Steps of train, validation and test part, in the order of time: `8640,2880,2880` (default: by shares)."""
    missing: Literal["error", "last", "interpolate"] = "error"
    """What stands for missing rows and values: nothing, the value before, or a line to the next one known by then."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        for name in ("look_back", "horizon"):
            self.require(name, getattr(self, name) >= 1, "must be at least 1")
        self.require(
            "season", 0 <= self.season <= self.look_back, f"must lie between 0 and --look-back {self.look_back}"
        )
        self.require("max_train", not self.max_train, "is not used here; --train-fraction and --split are")
        sizes = split_names(self.split)
        whole = not sizes or (len(sizes) == 3 and all(size.isdecimal() and int(size) > 0 for size in sizes))
        self.require("split", whole, "must be three numbers of steps with commas between, such as 8640,2880,2880")
        own = (*split_names(self.targets), *split_names(self.covariates))
        self.require("targets", len(set(own)) == len(own), "names a column twice, or one of --covariates")

    @property
    def fill(self) -> Fill:
        """How windows are filled."""
        return "nothing" if self.missing == "error" else self.missing


class Series(NamedTuple):
    """One series on regular steps."""

    name: str
    first: int
    """Number of its first step."""
    values: np.ndarray
    """(steps, columns); NaN where a value is missing."""


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are for."""

    time: str
    series: str
    targets: tuple[str, ...]
    covariates: tuple[str, ...]

    @property
    def numbers(self) -> tuple[str, ...]:
        """Targets first."""
        return (*self.targets, *self.covariates)


class Rows(NamedTuple):
    """Usable rows of a table, sorted by series and time."""

    names: np.ndarray
    times: np.ndarray
    values: np.ndarray
    bad: list[Bad]
    pattern: str
    in_order: bool
    """Whether each series came in the order of time."""

    @property
    def series(self) -> dict[str, slice]:
        """Where the rows of each series are."""
        names, starts = np.unique(self.names, return_index=True)
        ends = [*starts[1:], len(self.names)]
        return {str(name): slice(*bounds) for name, *bounds in zip(names, starts, ends, strict=True)}


def load_series(config: SeriesConfig) -> Data:
    """Windows of the series that `--data` names, in three parts one after the other.

    Values are standard scores: less their mean, over their standard deviation, both of the training part's rows.

    Raises:
        UserError: The source or a setting cannot be used.
    """
    config.require("sample", config.data == "sample" or config.sample == "seasonal", "is for --data sample")
    if config.data != "sample" and (config.data.startswith(TFDS) or Path(config.data).is_dir()):
        raise UserError(f"--data {config.data}: name a .csv file with a column of times")
    examples = read_examples(config, SAMPLES[config.sample], (), ())
    frame = examples.whole
    columns, notes = choose_columns(frame, config)
    rows = usable_rows(frame, columns, examples)
    check_bad(rows.bad, len(frame), config.max_bad, f"rows of {config.data}")
    if not len(rows.times):
        raise UserError(f"--data {config.data}: no row can be used; the first is bad because {rows.bad[0].why}")
    if not rows.in_order:
        notes.append("the rows were not in the order of time: they are sorted")
    clock = Clock.fit([rows.times[each] for each in rows.series.values()], rows.pattern)
    series, gaps = on_steps(rows, clock, columns, config)
    parts = part_bounds(series, config)
    notes += [*gaps, *_described(clock, columns, parts)]
    spec = fit_spec(series, clock, columns, parts["train"], config)
    splits = {name: cut(series, spec, bounds, config, name) for name, bounds in parts.items()}
    bad = (*examples.bad, *rows.bad)
    return Data(**splits, spec=spec, source=examples.source, bad=bad, notes=tuple(notes))


def choose_columns(frame: pd.DataFrame, config: SeriesConfig) -> tuple[Columns, list[str]]:
    """What each column is for, and notes on those that are for nothing.

    Raises:
        UserError: A column that a flag names is not there, no column holds times, or none is left to forecast.
    """
    names, notes = list(map(str, frame.columns)), []
    for field in ("time_column", "series_column", "targets", "covariates"):
        require_columns(field, split_names(getattr(config, field)), names)
    targets, covariates = split_names(config.targets), split_names(config.covariates)
    others = {config.series_column, *targets, *covariates}
    time = config.time_column or _time_column(frame, [name for name in names if name not in others])
    if time in others:
        raise UserError(f"--time-column {time}: is the column of times, and cannot be another one too")
    if not targets:
        left = [name for name in names if name not in {time, *others}]
        targets = tuple(name for name in left if _holds_numbers(frame[name]))
        unused = [name for name in left if name not in targets]
        if unused:
            notes.append(f"no numbers are in {', '.join(map(repr, unused))}: not used (--series-column names series)")
    if not targets:
        raise UserError(f"--targets: no column but {time!r} holds numbers, of {', '.join(names)}")
    return Columns(time, config.series_column, targets, covariates), notes


def _time_column(frame: pd.DataFrame, names: Sequence[str]) -> str:
    """The first column of dates, or a column of numbers that is called as times are."""
    called = [name for name in names if name.lower() in NAMES_OF_TIMES]
    for name in (*called, *names):
        text = plain(frame[name]).dropna()
        times, pattern = read_times(text)
        if (pattern or name in called) and len(text) and np.isfinite(times).mean() >= NEARLY_ALL:
            return name
    raise UserError(f"--time-column: no column holds ISO dates such as 2024-05-31 18:00, of {', '.join(names)}")


def _holds_numbers(values: pd.Series) -> bool:
    import pandas as pd

    known = plain(values).dropna()
    return bool(len(known)) and float(pd.to_numeric(known, errors="coerce").notna().mean()) >= NEARLY_ALL


def usable_rows(
    frame: pd.DataFrame, columns: Columns, examples: Examples | None = None, pattern: str | None = None
) -> Rows:
    """Rows with a time and with nothing but numbers in the columns of numbers; the others, with why.

    Args:
        frame: The raw table.
        columns: What its columns are for.
        examples: Say where a row is from, if they are known.
        pattern: As for `read_times`.
    """
    import pandas as pd

    texts = {name: plain(frame[name]) for name in columns.numbers}
    numbers = {name: pd.to_numeric(text, errors="coerce").astype(float).to_numpy() for name, text in texts.items()}
    time_texts = plain(frame[columns.time])
    times, pattern = read_times(time_texts.reset_index(drop=True), pattern)
    names = plain(frame[columns.series]).to_numpy(object) if columns.series else np.full(len(frame), "", object)
    why = np.full(len(frame), "", object)
    for name, text in texts.items():
        for row in np.flatnonzero(text.notna().to_numpy() & ~np.isfinite(numbers[name])):
            why[row] = f"column {name!r} holds {_short(text.iloc[row])}, which is no number"
    for row in np.flatnonzero(~np.isfinite(times)):
        why[row] = f"column {columns.time!r} holds {_short(time_texts.iloc[row])}, which is no time"
    why[[name is None for name in names]] = f"column {columns.series!r}, the series, has no value"
    good = why == ""
    again = pd.DataFrame({"series": names, "time": times})[good].duplicated()
    for row in np.flatnonzero(good)[again.to_numpy()]:
        which = f" in {names[row]!r}" if columns.series else "; are there several series (--series-column)?"
        why[row] = f"the time {time_texts.iloc[row]} is there twice{which}"
    left = np.flatnonzero(why == "")
    names = names[left].astype(str)
    order = np.lexsort((times[left], names))
    as_they_came = np.argsort(names, kind="stable")
    values = np.column_stack([numbers[name][left][order] for name in columns.numbers])
    where = examples.where if examples else lambda row: f"row {row + 1}"
    bad = [Bad(where(int(row)), why[row]) for row in np.flatnonzero(why != "")]
    return Rows(names[order], times[left][order], values, bad, pattern, bool((order == as_they_came).all()))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def on_steps(rows: Rows, clock: Clock, columns: Columns, config: SeriesConfig) -> tuple[list[Series], list[str]]:
    """Each series on the steps of the clock, and notes on what is missing.

    A row between two steps counts for the later one, as what is known by then; of several the last does.

    Raises:
        UserError: Rows or values are missing, or times are irregular, and `--missing` is to be told how to go on; or
            most steps would be empty.
    """
    places = clock.places(rows.times)
    steps = np.ceil(places).astype(int)
    between = int((places != steps).sum())
    found, empty = [], 0
    for name, which in rows.series.items():
        own = steps[which]
        first, last = own[0], own[-1]
        if last - first + 1 > SPARSEST * len(own):
            ends = clock.texts(np.array([first, last]))
            raise UserError(
                f"--data {config.data}: {len(own)} rows from {ends[0]} to {ends[1]}{_of(name)} leave most steps of "
                f"{_length(clock)} empty; is a time wrong?"
            )
        values = np.full((last - first + 1, len(columns.numbers)), np.nan)
        values[own - first] = rows.values[which]
        empty += len(values) - len(np.unique(own))
        found.append(Series(name, int(first), values))
    cells = int(np.isnan(rows.values).sum())
    counts = {"rows are between two steps": between, "steps have no row": empty, "values are missing": cells}
    problems = [f"{count} {what}" for what, count in counts.items() if count]
    if not problems:
        return found, []
    if config.missing == "error":
        raise UserError(
            f"--missing error: in steps of {_length(clock)}, {', '.join(problems)}; the first is "
            f"{_first_problem(found, clock, rows.times[places != steps])}; "
            "--missing last or interpolate fills them by what is known at the time"
        )
    how = {"last": "by the value before", "interpolate": "by a line between the values around it"}[config.missing]
    return found, [f"in steps of {_length(clock)}, {', '.join(problems)}: filled {how} in each window"]


def _first_problem(series: Sequence[Series], clock: Clock, irregular: np.ndarray) -> str:
    for name, first, values in series:
        gaps = np.flatnonzero(np.isnan(values).any(axis=1))
        if len(gaps):
            return f"at {clock.texts(np.array([first + gaps[0]]))[0]}{_of(name)}"
    return f"at {Clock(irregular[0], 1.0, 0, clock.pattern).texts(np.array([0]))[0]}"


def _of(name: str) -> str:
    return f" in {name!r}" if name else ""


def _length(clock: Clock) -> str:
    """A step in words."""
    if clock.months:
        return f"{clock.months} months" if clock.months > 1 else "a month"
    units = {"days": 86_400, "hours": 3600, "minutes": 60, "seconds": 1} if clock.pattern else {"": 1}
    unit, size = next((pair for pair in units.items() if clock.step >= pair[1]), ("seconds", 1))
    count = clock.step / size
    return f"{count:g} {unit.removesuffix('s') if count == 1 else unit}".strip()


def _described(clock: Clock, columns: Columns, parts: Mapping[Part, tuple[int, int]]) -> list[str]:
    """What was made of the table."""
    ends = {part: clock.texts(np.array([first, last - 1])) for part, (first, last) in parts.items()}
    spans = ", ".join(f"{part} {last - first:,}" for part, (first, last) in parts.items())
    read = f", and reads {', '.join(columns.covariates)} too" if columns.covariates else ""
    return [
        f"forecasts {', '.join(columns.targets)} by {columns.time!r}{read}",
        f"steps of {_length(clock)}: {spans}; the test part is from {ends['test'][0]} to {ends['test'][1]}",
    ]


def part_bounds(series: Sequence[Series], config: SeriesConfig) -> dict[Part, tuple[int, int]]:
    """First step of each part and the one after its last.

    They are the same for all series: one that is trained on must not tell of the future of another.

    Raises:
        UserError: There are not so many steps.
    """
    first, end = min(each.first for each in series), max(each.first + len(each.values) for each in series)
    count = end - first
    if config.split:
        sizes = [int(size) for size in split_names(config.split)]
        if sum(sizes) > count:
            raise UserError(f"--split {config.split}: there are {count} steps only")
    else:
        test = round(count * config.test_fraction)
        validation = round((count - test) * config.validation_fraction)
        sizes = [count - test - validation, validation, test]
    ends = first + np.cumsum(sizes)
    begin = ends[0] - max(1, round(sizes[0] * config.train_fraction))
    return {
        "train": (int(begin), int(ends[0])),
        "validation": (int(ends[0]), int(ends[1])),
        "test": (int(ends[1]), int(ends[2])),
    }


def fit_spec(
    series: Sequence[Series], clock: Clock, columns: Columns, bounds: tuple[int, int], config: SeriesConfig
) -> Spec:
    """What preprocessing has to know, from the steps of the training part.

    Raises:
        UserError: A column has no value there.
    """
    if config.calendar and not clock.pattern:
        raise UserError(f"--calendar: the times in {columns.time!r} are numbers, no dates")
    pieces = {each.name: _between(each, bounds) for each in series}
    whole = np.concatenate(list(pieces.values()))
    season = season_of(clock, config)
    numbers = []
    for place, name in enumerate(columns.numbers):
        known = whole[:, place][~np.isnan(whole[:, place])]
        if not len(known):
            raise UserError(f"--data {config.data}: column {name!r} has no value in the training part")
        scale = float(known.std()) or 1.0
        statistics = {"mean": float(known.mean()), "scale": scale}
        if name in columns.targets:
            for label, piece in pieces.items():
                error = np.abs(piece[season:, place] - piece[:-season, place])
                statistics[f"{NAIVE} {label}"] = float(np.nanmean(error)) / scale if _known(error) else 0.0
        numbers.append(Field(name, "number", statistics=statistics))
    named = (Field(columns.series, "category"),) if columns.series else ()
    return Spec((clock.field(columns.time), *named, *numbers), tuple(numbers[: len(columns.targets)]))


def _known(values: np.ndarray) -> bool:
    return bool((~np.isnan(values)).any())


def _between(series: Series, bounds: tuple[int, int]) -> np.ndarray:
    first, end = (min(max(bound - series.first, 0), len(series.values)) for bound in bounds)
    return series.values[first:end]


def season_of(clock: Clock, config: SeriesConfig) -> int:
    """Steps of a season: as told, else as the times suggest where a window is that long, else 1."""
    return config.season or (clock.season if clock.season <= config.look_back else 1)


def cut(series: Sequence[Series], spec: Spec, bounds: tuple[int, int], config: SeriesConfig, part: Part) -> Split:
    """The windows of one part: what is forecast lies in it, what is looked back at may lie before it.

    The training part looks back at nothing before its own first step.

    Raises:
        UserError: There is none.
    """
    import pandas as pd

    clock, targets = Clock.of(spec.inputs[0]), len(spec.targets)
    starts, steps, names, before = [], [], [], 0
    for each in series:
        earliest = max(each.first, bounds[0] if part == "train" else each.first) + config.look_back
        first = max(earliest, bounds[0])
        last = min(bounds[1], each.first + len(each.values)) - config.horizon
        found = np.arange(first, last + 1)
        starts.append(found - each.first + before)
        steps.append(found)
        names += [each.name] * len(found)
        before += len(each.values)
    if not names:
        need = config.horizon + (config.look_back if part == "train" else 0)
        raise UserError(
            f"--horizon {config.horizon}, --look-back {config.look_back}: the {part} part has {bounds[1] - bounds[0]} "
            f"steps, and one forecast takes {need} in a row; give more rows, or less of them"
        )
    values, first_steps = standardized(np.concatenate([each.values for each in series]), spec), np.concatenate(starts)
    inputs = {HISTORY: Windows(values, first_steps - config.look_back, config.look_back, values.shape[1], config.fill)}
    if config.calendar:
        every = np.concatenate([np.arange(each.first, each.first + len(each.values)) for each in series])
        features, length = clock.calendar(every), config.look_back + config.horizon
        inputs[CALENDAR] = Windows(features, first_steps - config.look_back, length, features.shape[1])
    named = {field.name: names for field in spec.inputs if field.kind == "category"}
    raw = pd.DataFrame({**named, spec.inputs[0].name: clock.texts(np.concatenate(steps) - 1)})
    return Split(raw, inputs, {FORECAST: Windows(values, first_steps, config.horizon, targets)})


class Histories(NamedTuple):
    """The last window of each of some series."""

    names: list[str]
    last: list[int]
    """Number of the last step of each."""
    values: np.ndarray
    """(series, look-back, columns), as the table has them; NaN where a value is missing."""


def latest(frame: pd.DataFrame, spec: Spec, config: SeriesConfig) -> Histories:
    """The last window of each series in a table; rows before it, and its place in the table, change nothing.

    Raises:
        UserError: A column is missing, a row cannot be used, a series is too short, or rows or values are missing that
            `--missing error` asks for.
    """
    for field in spec.inputs:
        if field.name not in frame:
            there = ", ".join(map(str, frame.columns))
            raise UserError(f"input column {field.name!r} is missing: the columns are {there}")
    clock, columns = Clock.of(spec.inputs[0]), columns_of(spec)
    rows = usable_rows(frame, columns, pattern=clock.pattern)
    if rows.bad:
        raise UserError(f"{rows.bad[0].where}: {rows.bad[0].why}")
    places = clock.places(rows.times)
    steps = np.ceil(places).astype(int)
    values = np.full((len(rows.series), config.look_back, len(columns.numbers)), np.nan)
    last: list[int] = []
    for window, (name, which) in zip(values, rows.series.items(), strict=True):
        last.append(int(steps[which][-1]))
        first = last[-1] + 1 - config.look_back
        if steps[which][0] > first:
            count = last[-1] + 1 - steps[which][0]
            raise UserError(
                f"{count} steps of {_length(clock)} are there{_of(name)}: a forecast needs {config.look_back} in a row"
            )
        kept = np.arange(which.start, which.stop)[steps[which] >= first]
        window[steps[kept] - first] = rows.values[kept]
        if config.missing == "error" and (np.isnan(window).any() or (places[kept] != steps[kept]).any()):
            where = _first_problem([Series(name, first, window)], clock, rows.times[kept][places[kept] != steps[kept]])
            raise UserError(
                f"a row or value is missing, or a time between two steps of {_length(clock)}, {where}; "
                "a model trained with --missing last or interpolate goes on"
            )
    return Histories(list(rows.series), last, values)


def columns_of(spec: Spec) -> Columns:
    """What a saved model's columns are for."""
    targets = tuple(field.name for field in spec.targets)
    series = next((field.name for field in spec.inputs if field.kind == "category"), "")
    numbers = (field.name for field in spec.inputs if field.kind == "number")
    return Columns(spec.inputs[0].name, series, targets, tuple(name for name in numbers if name not in targets))


def inputs_of(histories: Histories, spec: Spec, config: SeriesConfig) -> dict[str, np.ndarray]:
    """What the core model takes of each series."""
    inputs = {HISTORY: filled(standardized(histories.values, spec), config.fill)}
    if config.calendar:
        steps = np.arange(1 - config.look_back, config.horizon + 1)
        inputs[CALENDAR] = np.stack([Clock.of(spec.inputs[0]).calendar(last + steps) for last in histories.last])
    return inputs


def rows_before(split: Split, spec: Spec, config: SeriesConfig, most: int) -> pd.DataFrame:
    """Rows as a table has them: the last window of each series, of so many series at most, before its forecast."""
    import pandas as pd

    columns, clock, history = columns_of(spec), Clock.of(spec.inputs[0]), split.inputs[HISTORY]
    assert isinstance(history, Windows)
    last = split.raw.drop_duplicates(columns.series, keep="last") if columns.series else split.raw.tail(1)
    frames = []
    for row in last.index[:most]:
        times, _ = read_times(split.raw[columns.time].iloc[[row]].astype(object), clock.pattern)
        step = int(np.round(clock.places(times)[0]))
        values = in_units(replace(history, fill="nothing")[row], spec)
        frame = pd.DataFrame(dict(zip(columns.numbers, values.T, strict=True)))
        frame[columns.time] = clock.texts(step + np.arange(1 - config.look_back, 1))
        if columns.series:
            frame[columns.series] = split.raw[columns.series].iloc[row]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def standardized(values: np.ndarray, spec: Spec) -> np.ndarray:
    """Values (..., columns) as standard scores, float32."""
    mean, scale = _moments(spec, values.shape[-1])
    return ((values - mean) / scale).astype(np.float32)


def in_units(scores: np.ndarray, spec: Spec) -> np.ndarray:
    """Standard scores (..., columns) as values again."""
    mean, scale = _moments(spec, scores.shape[-1])
    return np.asarray(scores, float) * scale + mean


def _moments(spec: Spec, count: int) -> tuple[np.ndarray, np.ndarray]:
    fields = [field for field in spec.inputs if field.kind == "number"][:count]
    return tuple(np.array([field.statistics[name] for field in fields]) for name in ("mean", "scale"))  # type: ignore[return-value]
