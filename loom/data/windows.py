"""Windows of long sequences, which are held once however much the windows overlap, and gaps in them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

Fill = Literal["nothing", "last", "interpolate"]


@dataclass(frozen=True)
class Windows:
    """A column of equally long pieces of sequences."""

    values: np.ndarray
    """All steps of all sequences, one sequence after the other, (steps, columns); NaN where a value is missing."""
    starts: np.ndarray
    """The first step of each window."""
    length: int
    """Steps of a window."""
    columns: int
    """A window holds the first so many of the columns."""
    fill: Fill = "nothing"
    """How its missing values are filled, see `filled`."""

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, rows: Any) -> np.ndarray:
        steps = np.asarray(self.starts[rows])[..., None] + np.arange(self.length)
        return filled(self.values[steps, : self.columns], self.fill)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array with a row of its own for each window."""
        return (len(self), self.length, self.columns)

    @property
    def dtype(self) -> np.dtype:
        """Of the values."""
        return self.values.dtype

    def take(self, rows: np.ndarray) -> Windows:
        """Only these windows, in this order."""
        return replace(self, starts=self.starts[rows])


def filled(windows: np.ndarray, fill: Fill) -> np.ndarray:
    """Windows (..., steps, columns) without missing values, by nothing but what the same window holds.

    `last` repeats the value before; `interpolate` draws a line from the value before to the value after, if the window
    has one after: what comes behind its end is never looked at. At the beginning of a window both take its first value.
    A column without any value becomes 0.
    """
    missing = np.isnan(windows)
    if fill == "nothing" or not missing.any():
        return windows
    count = windows.shape[-2]
    steps = np.arange(count)[:, None]
    before = np.maximum.accumulate(np.where(missing, -1, steps), axis=-2)
    after = np.flip(np.minimum.accumulate(np.flip(np.where(missing, count, steps), -2), axis=-2), -2)
    start = np.where(before < 0, after, before)
    end = start if fill == "last" else np.where(after == count, start, after)
    share = (steps - start) / np.maximum(end - start, 1)
    first, second = (np.take_along_axis(windows, np.minimum(place, count - 1), axis=-2) for place in (start, end))
    between = first + np.where(end > start, share, 0) * (second - first)
    return np.where(missing, np.where(start == count, 0, between), windows).astype(windows.dtype)
