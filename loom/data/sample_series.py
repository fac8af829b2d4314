"""Built-in series: hourly demand with seasons and a trend, and a chaotic one from a differential equation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

HOURS = 24 * 7 * 26
CHAOTIC_STEPS = 3000
FIRST_HOUR = "2024-01-01 00:00:00"


def seasonal(count: int = HOURS, seed: int = 0) -> pd.DataFrame:
    """Hourly demand of households and of offices, and the temperature, for half a year.

    Both demands have a daily profile, another one at weekends, a level that drifts, and noise that lasts for hours;
    households need more when it is cold. The temperature has a daily and a yearly wave and spells of weather. What a
    day was like says much about the next: always the same hour of the week before misses the drift and the weather.

    Args:
        count: Number of hours.
        seed: Another seed gives other weather and noise.

    Returns:
        Columns `time` (str), `households`, `offices` and `temperature` (float).
    """
    import pandas as pd

    generator = np.random.default_rng(seed)
    hours = np.arange(count)
    hour, day = hours % 24, hours // 24
    weekend = day % 7 >= 5
    temperature = 10 - 9 * np.cos(2 * np.pi * (day + 10) / 365) - 4 * np.cos(2 * np.pi * (hour - 3) / 24)
    temperature = temperature + 3 * _lasting(generator, count, 48)
    morning, evening = np.exp(-(((hour - np.where(weekend, 10, 7)) / 2) ** 2)), np.exp(-(((hour - 19) / 3) ** 2))
    households = 40 + 18 * morning + 30 * evening + 1.2 * np.maximum(0, 16 - temperature)
    households = households + 3 * _lasting(generator, count, 12) + generator.normal(0, 1, count)
    working = np.clip((hour - 6) / 3, 0, 1) * np.clip((20 - hour) / 3, 0, 1)
    level = 60 + 0.003 * hours + 5 * _lasting(generator, count, 24 * 14)
    offices = level * np.where(weekend, 0.35, 0.3 + 0.7 * working)
    offices = offices + 2 * _lasting(generator, count, 6) + generator.normal(0, 1, count)
    times = pd.date_range(FIRST_HOUR, periods=count, freq="h").strftime("%Y-%m-%d %H:%M:%S")
    columns = {"households": households, "offices": offices, "temperature": temperature}
    return pd.DataFrame({"time": times, **{name: values.round(3) for name, values in columns.items()}})


def _lasting(generator: np.random.Generator, count: int, hours: float) -> np.ndarray:
    """Noise of variance 1 that forgets in so many steps: an autoregressive process of order one."""
    kept = np.exp(-1 / hours)
    shocks = generator.normal(0, np.sqrt(1 - kept**2), count)
    values, value = np.empty(count), generator.normal()
    for step, shock in enumerate(shocks):
        value = values[step] = kept * value + shock
    return values


def chaotic(count: int = CHAOTIC_STEPS) -> pd.DataFrame:
    """`mackey_glass` as a table with columns `step` and `value`."""
    import pandas as pd

    return pd.DataFrame({"step": np.arange(count), "value": mackey_glass(count)})


def mackey_glass(count: int, delay: int = 17, history: float = 1.2, skip: int = 1000, parts: int = 10) -> np.ndarray:
    """The series of Mackey and Glass, 1977, "Oscillation and chaos in physiological control systems", at unit steps.

        dx/dt = 0.2 x(t - delay) / (1 + x(t - delay)^10) - 0.1 x(t)

    Integrated with Runge-Kutta's method of order four; between its points the past is a cubic polynomial.

    Args:
        count: Number of values.
        delay: How far back the equation looks.
        history: The value at and before time zero.
        skip: Values to leave out at the beginning.
        parts: Integration steps per value.
    """
    lag, size = delay * parts, 1 / parts
    values, slopes = [history] * (lag + 1), [0.0] * lag

    def slope(value: float, past: float) -> float:
        return 0.2 * past / (1 + past**10) - 0.1 * value

    for index in range((count + skip) * parts):
        value, before, after = values[-1], values[index], values[index + 1]
        slopes.append(slope(value, before))
        later = slopes[index + 1] if index + 1 != lag else 0.0  # at time zero the slope jumps
        between = (before + after) / 2 + size * (slopes[index] - later) / 8
        second = slope(value + size / 2 * slopes[-1], between)
        third = slope(value + size / 2 * second, between)
        fourth = slope(value + size * third, after)
        values.append(value + size / 6 * (slopes[-1] + 2 * second + 2 * third + fourth))
    return np.array(values[lag::parts][skip : skip + count])
