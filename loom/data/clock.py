"""Times of series: what they say, which regular steps they are meant to be at, and what comes after the last."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from loom.data.spec import Field
from loom.data.tables import DATE
from loom.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

HOUR, DAY, WEEK = 3600.0, 86_400.0, 604_800.0
YEAR = 365.25 * DAY
SHORTEST_MONTH = 28 * DAY
TOLERANCE = 1e-3
"""Share of a step by which a time may miss it."""
ZONE = re.compile(r"(?:Z|[+-]\d{2}:?\d{2})$")
"""At the end of a date with a time."""


@dataclass(frozen=True)
class Clock:
    """Regular steps in time, with whole numbers: step 0 is at the anchor."""

    anchor: float
    """A number, or of dates the seconds since 1970."""
    step: float
    """Length of a step in the same unit; of calendar months a rough one."""
    months: int = 0
    """Length of a step in calendar months, where it has no fixed number of seconds."""
    pattern: str = ""
    """How dates are written, as for `strftime`; numbers have none."""

    @classmethod
    def fit(cls, times: Sequence[np.ndarray], pattern: str) -> Clock:
        """The steps that most times of some series, ascending each, keep to.

        Raises:
            UserError: No series has two times.
        """
        gaps = np.concatenate([np.diff(each) for each in times])
        if not len(gaps):
            raise UserError("no series has two rows: there is nothing to learn from")
        lengths, counts = np.unique(np.round(gaps, 6), return_counts=True)
        step, anchor = float(lengths[counts.argmax()]), float(min(each[0] for each in times))
        if pattern and gaps.min() >= SHORTEST_MONTH - HOUR:
            clock = cls(anchor, step, 1, pattern)
            months = np.concatenate([np.diff(clock.places(each)) for each in times])
            if (months % 1 == 0).all():
                lengths, counts = np.unique(months, return_counts=True)
                return cls(anchor, step, int(lengths[counts.argmax()]), pattern)
        return cls(anchor, step, 0, pattern)

    @classmethod
    def of(cls, field: Field) -> Clock:
        """The clock that `field` has kept."""
        numbers: dict[str, Any] = dict(field.statistics)
        return cls(numbers["anchor"], numbers["step"], int(numbers["months"]), field.vocabulary[0])

    def field(self, name: str) -> Field:
        """What a saved model keeps of the clock, under the name of the column of times."""
        numbers = {key: float(value) for key, value in asdict(self).items() if key != "pattern"}
        return Field(name, "time", (self.pattern,), numbers)

    @property
    def season(self) -> int:
        """Steps of the shortest season that series with such steps usually have: a day, a week, a year; 1 for none."""
        if not self.pattern:
            return 1
        if self.months:
            return max(1, 12 // self.months)
        season = next((length for length in (DAY, WEEK, YEAR) if self.step < length), self.step)
        return round(season / self.step)

    def places(self, times: np.ndarray) -> np.ndarray:
        """Where times are in steps; a whole number is a regular one."""
        if not self.months:
            places = (times - self.anchor) / self.step
        else:
            dates, anchor = _dates(times), _dates(np.array([self.anchor]))[0]
            exact = (dates.day == anchor.day) | (dates.is_month_end & anchor.is_month_end)
            exact &= dates.normalize() + (anchor - anchor.normalize()) == dates
            months = (dates.year - anchor.year) * 12 + dates.month - anchor.month
            places = (months - np.where(exact, 0, 0.5)) / self.months
        nearest = np.round(places)
        return np.where(np.abs(places - nearest) <= TOLERANCE, nearest, places)

    def times(self, steps: np.ndarray) -> np.ndarray:
        """The times of steps."""
        if not self.months:
            return np.round(self.anchor + steps * self.step, 6)
        import pandas as pd

        anchor = _dates(np.array([self.anchor]))[0]
        found = [anchor + pd.DateOffset(months=int(step) * self.months) for step in steps]
        if anchor.is_month_end:
            found = [date + pd.offsets.MonthEnd(0) for date in found]
        return seconds(pd.Series(found)).to_numpy()

    def texts(self, steps: np.ndarray) -> list[str]:
        """The times of steps, written as the data writes its own."""
        times = self.times(steps)
        if not self.pattern:
            return [f"{time:.10g}" for time in times]
        return list(_dates(times).strftime(self.pattern))

    def calendar(self, steps: np.ndarray) -> np.ndarray:
        """Where steps are in the day, the week and the year, (steps, features): sine and cosine of each angle.

        Cycles that are not longer than two steps are left out. What a date says of them is known before it comes.
        """
        dates = _dates(self.times(steps))
        hours = (dates - dates.normalize()).total_seconds().to_numpy() / DAY
        cycles = {
            DAY: hours,
            WEEK: (dates.day_of_week.to_numpy() + hours) / 7,
            YEAR: (dates.day_of_year.to_numpy() - 1 + hours) * DAY / YEAR,
        }
        angles = [2 * np.pi * place for length, place in cycles.items() if length > 2 * self.step]
        waves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
        return np.stack(waves, axis=1).astype(np.float32) if waves else np.zeros((len(steps), 0), np.float32)


def read_times(text: pd.Series, pattern: str | None = None) -> tuple[np.ndarray, str]:
    """Numbers, or of ISO dates the seconds since 1970, NaN where a value is neither; and how dates are written.

    Dates with a zone become UTC.

    Args:
        text: As `loom.data.columns.plain` returns it.
        pattern: How dates are written, "" for numbers; by default what most values are.

    Raises:
        UserError: Some dates have a zone and some have none.
    """
    import pandas as pd

    known = text.dropna()
    numbers = pd.to_numeric(text, errors="coerce").astype(float)
    dates = known[known.str.fullmatch(DATE).astype(bool)]
    if pattern is None:
        pattern = _pattern(dates.iloc[0]) if len(dates) > numbers.notna().sum() else ""
    if not pattern:
        return numbers.where(np.isfinite(numbers)).to_numpy(), ""
    zoned = dates.str.contains(ZONE)
    if zoned.any() and not zoned.all():
        raise UserError(f"the time {dates[~zoned].iloc[0]!r} has no zone, and {dates[zoned].iloc[0]!r} has one")
    parsed = pd.to_datetime(dates, format="ISO8601", utc=True, errors="coerce")
    return seconds(parsed).reindex(text.index).to_numpy(float), pattern


def seconds(dates: pd.Series) -> pd.Series:
    """Since 1970, in UTC where there is no zone."""
    import pandas as pd

    return (dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)


def _pattern(text: str) -> str:
    """How a date is written."""
    zone = ZONE.search(text)
    time = text[11 : zone.start() if zone else None]
    clock = {0: "", 5: "%H:%M", 8: "%H:%M:%S"}.get(len(time), "%H:%M:%S.%f")
    return f"%Y-%m-%d{text[10:11]}{clock}" + (("Z" if zone[0] == "Z" else "+00:00") if zone else "")


def _dates(times: np.ndarray) -> pd.DatetimeIndex:
    import pandas as pd

    return pd.to_datetime(np.round(np.asarray(times, float) * 1e6).astype("int64"), unit="us", utc=True)
