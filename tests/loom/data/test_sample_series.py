"""Built-in series: the same every time, and what their equations say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from loom.data.sample_series import chaotic, mackey_glass, seasonal


def test_mackey_glass_follows_its_equation() -> None:
    """Before the delay has passed, the equation is linear and has a solution; after it, one by quadrature."""
    series = mackey_glass(35, skip=0)
    inflow = 0.2 * 1.2 / (1 + 1.2**10)

    def early(time: np.ndarray) -> np.ndarray:
        return 10 * inflow + (1.2 - 10 * inflow) * np.exp(-time / 10)

    np.testing.assert_allclose(series[:18], early(np.arange(18)), rtol=1e-8)
    for later in (1, 9, 17):
        times = np.linspace(0, later, 20001)
        past = early(times)
        flow = 0.2 * past / (1 + past**10) * np.exp((times - later) / 10)
        expected = series[17] * np.exp(-later / 10) + np.trapezoid(flow, times)
        assert series[17 + later] == pytest.approx(expected, rel=1e-7)


def test_mackey_glass_has_its_period_and_range() -> None:
    series = mackey_glass(4000)
    power = np.abs(np.fft.rfft((series - series.mean()) * np.hanning(len(series))))
    assert len(series) / power.argmax() == pytest.approx(50, abs=3)
    assert 0.2 < series.min() < 0.5
    assert 1.2 < series.max() < 1.4
    # A smaller integration step changes little at first; later the two part, as in every chaotic system.
    np.testing.assert_allclose(mackey_glass(200, skip=0), mackey_glass(200, skip=0, parts=20), atol=1e-5)


def test_samples_are_the_same_every_time_and_another_seed_gives_others() -> None:
    pd.testing.assert_frame_equal(seasonal(500), seasonal(500))
    assert not np.allclose(seasonal(500)["offices"], seasonal(500, seed=1)["offices"])
    np.testing.assert_allclose(chaotic(50)["value"], mackey_glass(50))
    assert pd.to_datetime(seasonal()["time"]).diff().dropna().eq(pd.Timedelta(hours=1)).all()


def test_seasons_say_much_and_not_all() -> None:
    table = seasonal()
    shares = {}
    for name in ("households", "offices"):
        values = table[name].to_numpy()
        shares[name] = [np.mean((values[lag:] - values[:-lag]) ** 2) / values.var() for lag in (168, 24)]
        assert 0.02 < shares[name][0] < 0.6
    assert shares["offices"][0] < 0.5 * shares["offices"][1]  # a Monday is not like a Sunday
