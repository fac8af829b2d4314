"""Windows are cut out when asked for, and their gaps are filled by nothing but themselves."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

from loom.data.windows import Windows, filled

VALUES = np.arange(24.0, dtype=np.float32).reshape(12, 2)
NONE = np.nan


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def test_windows_are_pieces_of_what_they_share() -> None:
    windows = Windows(VALUES, np.array([0, 3, 9]), 3, 1)
    assert windows.shape == np.asarray(windows).shape == (3, 3, 1)
    np.testing.assert_array_equal(windows[np.array([2, 0])], [VALUES[9:12, :1], VALUES[:3, :1]])
    np.testing.assert_array_equal(windows[1], VALUES[3:6, :1])
    np.testing.assert_array_equal(windows.take(np.array([1]))[:], [VALUES[3:6, :1]])
    many = Windows(np.zeros((5000, 1), np.float32), np.arange(4000), 1000, 1)
    assert len(pickle.dumps(many)) < 100_000  # not 16 MB


@pytest.mark.parametrize(
    ("fill", "window", "expected"),
    [
        ("last", (1, NONE, NONE, 4), (1, 1, 1, 4)),
        ("last", (NONE, 2, NONE, NONE), (2, 2, 2, 2)),
        ("interpolate", (1, NONE, NONE, 4), (1, 2, 3, 4)),
        ("interpolate", (NONE, 2, NONE, 4, NONE, NONE), (2, 2, 3, 4, 4, 4)),
        ("interpolate", (NONE, NONE), (0, 0)),
        ("last", (NONE, NONE), (0, 0)),
        ("nothing", (1, NONE), (1, NONE)),
    ],
)
def test_gaps_are_filled_as_told(fill, window, expected) -> None:
    np.testing.assert_array_equal(filled(column(*window), fill), column(*expected))


def test_lines_are_those_of_pandas_and_columns_do_not_mix() -> None:
    rng = np.random.default_rng(0)
    windows = rng.normal(size=(5, 30, 3)).astype(np.float32)
    windows[rng.random(windows.shape) < 0.4] = NONE
    for method, ours in (("interpolate", "interpolate"), ("ffill", "last")):
        for window, found in zip(windows, filled(windows, ours), strict=True):
            expected = getattr(pd.DataFrame(window), method)().ffill().bfill().to_numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
