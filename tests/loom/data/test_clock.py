"""Times: how they are read and written, which steps they keep to, and where those are in the day, week and year."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from loom import UserError
from loom.data.clock import Clock, read_times


def clock_of(*texts: str) -> tuple[Clock, np.ndarray]:
    times, pattern = read_times(pd.Series(texts, dtype=object))
    return Clock.fit([times], pattern), times


@pytest.mark.parametrize(
    ("texts", "following", "season"),
    [
        (("2024-02-28", "2024-02-29", "2024-03-01"), "2024-03-02", 7),
        (("2024-02-29 22:00", "2024-02-29 23:00"), "2024-03-01 00:00", 24),
        (("2024-05-31T18:00:00", "2024-05-31T18:15:00"), "2024-05-31T18:30:00", 96),
        (("2024-05-31T18:00:00Z", "2024-05-31T21:00:00Z"), "2024-06-01T00:00:00Z", 8),
        (("2024-05-31T18:00+02:00", "2024-05-31T19:00+02:00"), "2024-05-31T18:00+00:00", 24),
        (("2023-12-01", "2024-01-01", "2024-02-01"), "2024-03-01", 12),
        (("2023-12-31", "2024-01-31", "2024-02-29", "2024-03-31"), "2024-04-30", 12),
        (("2023-07-01", "2023-10-01", "2024-01-01"), "2024-04-01", 4),
        (("2024-01-01", "2024-01-08", "2024-01-15"), "2024-01-22", 52),
        (("7", "9", "11"), "13", 1),
        (("0.1", "0.2", "0.3"), "0.4", 1),
    ],
)
def test_what_follows_is_written_as_the_rest(texts, following, season) -> None:
    clock, times = clock_of(*texts)
    steps = clock.places(times)
    np.testing.assert_array_equal(steps, range(len(texts)))
    assert clock.texts(np.array([len(texts)])) == [following]
    assert clock.season == season
    assert Clock.of(clock.field("time")) == clock
    if "+" not in texts[0]:
        assert clock.texts(steps.astype(int)) == list(texts)


def test_times_beside_the_steps_have_a_fraction() -> None:
    clock, _ = clock_of("2024-05-31 18:00", "2024-05-31 19:00", "2024-05-31 20:00")
    times, _ = read_times(pd.Series(["2024-05-31 21:30", "2024-05-31 22:00"]), clock.pattern)
    np.testing.assert_allclose(clock.places(times), [3.5, 4])
    clock, _ = clock_of("2024-01-01", "2024-02-01", "2024-03-01", "2024-05-01")
    times, _ = read_times(pd.Series(["2024-04-01", "2024-04-15"]), clock.pattern)
    assert clock.places(times)[0] == 3
    assert clock.places(times)[1] % 1


def test_what_is_no_time_is_nan() -> None:
    times, pattern = read_times(pd.Series(["2024-05-31", "yesterday", "2024-13-01", None], dtype=object))
    assert pattern == "%Y-%m-%d"
    np.testing.assert_array_equal(np.isnan(times), [False, True, True, True])
    with pytest.raises(UserError, match="has no zone"):
        read_times(pd.Series(["2024-05-31T10:00", "2024-05-31T10:00Z"], dtype=object))
    with pytest.raises(UserError, match="no series has two rows"):
        clock_of("2024-05-31")


def test_the_calendar_comes_back_after_a_day_and_a_week() -> None:
    clock, _ = clock_of("2024-01-01 00:00", "2024-01-01 01:00")
    features = clock.calendar(np.array([0, 6, 24, 24 * 7]))
    assert features.shape == (4, 6)
    np.testing.assert_allclose(features[:, :2], [[0, 1], [1, 0], [0, 1], [0, 1]], atol=1e-6)
    np.testing.assert_allclose(features[0, 2:4], features[3, 2:4], atol=1e-6)
    assert abs(features[0, 2:4] - features[2, 2:4]).max() > 0.1
    assert clock_of("2024-01-01", "2024-01-02")[0].calendar(np.array([0])).shape == (1, 4)  # no day of days
