"""Dates as numbers that a network can use."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

Tensor = Any
FEATURES = 10
"""Width of a date's vector."""
_ISO = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?$"


@keras.saving.register_keras_serializable(package="kerasloom")
class DateFeatures(keras.layers.Layer):
    """An ISO date as its place in time and its places in the year, month, week and day.

    The first feature is (days since 1970-01-01 - mean_day) / scale. Four pairs follow, sin(2πp) and cos(2πp), where p
    is the month / 12, (day of the month - 1) / 31, weekday / 7 (Monday is 0) and hour / 24 (minutes included), months
    counted from 0, so that December is next to January. The last feature is 1 where there is no date, and all others
    are 0 there. Time zones are ignored. TensorFlow backend only, as every operation on strings.

    Args:
        mean_day: Day that becomes 0.
        scale: Days that become 1.

    Call arguments:
        dates: Strings `(batch, 1)`: `2024-05-31`, or with a time, `2024-05-31T18:30`. Anything else is no date.

    Output shape: `(batch, 10)`, float32.

    Raises:
        ValueError: A scale that is not positive.

    Example:
        >>> import tensorflow as tf
        >>> DateFeatures(mean_day=19723.0)(tf.constant([["2024-01-01"], [""]])).numpy()[:, [0, 2, 9]].tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """

    def __init__(self, mean_day: float = 0.0, scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if scale <= 0:
            raise ValueError(f"scale must be greater than 0, not {scale}")
        self.mean_day = mean_day
        self.scale = scale

    def call(self, dates: Tensor) -> Tensor:
        """Cut out the digits, count the days, wrap the cycles."""
        import tensorflow as tf

        known = tf.strings.regex_full_match(dates, _ISO)
        dates = tf.where(known, dates, "1970-01-01")
        has_time = tf.strings.length(dates) > 10
        dates = tf.where(has_time, dates, tf.strings.join([dates, " 00:00"]))
        year, month, day, hour, minute = (
            tf.strings.to_number(tf.strings.substr(dates, start, length), tf.int32)
            for start, length in ((0, 4), (5, 2), (8, 2), (11, 2), (14, 2))
        )
        days = days_since_1970(year, month, day)
        cycles = [
            ops.cast(month - 1, "float32") / 12,
            ops.cast(day - 1, "float32") / 31,
            ops.cast((days + 3) % 7, "float32") / 7,  # 1970-01-01 was a Thursday
            (ops.cast(hour, "float32") + ops.cast(minute, "float32") / 60) / 24,
        ]
        waves = [wave(2 * math.pi * place) for place in cycles for wave in (ops.sin, ops.cos)]
        time = (ops.cast(days, "float32") - self.mean_day) / self.scale
        features = ops.where(known, ops.concatenate([time, *waves], axis=1), 0.0)
        return ops.concatenate([features, ops.cast(~known, "float32")], axis=1)

    def compute_output_spec(self, dates: keras.KerasTensor) -> keras.KerasTensor:
        """Ten numbers for each date."""
        return keras.KerasTensor((dates.shape[0], FEATURES), "float32")

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "mean_day": self.mean_day, "scale": self.scale}


def days_since_1970(year: Tensor, month: Tensor, day: Tensor) -> Tensor:
    """Days from 1970-01-01 in the Gregorian calendar, for integers of any shape.

    Years are counted from March, so that the leap day is the last of a year (Hinnant 2013, chrono-compatible low-level
    date algorithms).
    """
    year = year - ops.cast(month <= 2, "int32")
    era = year // 400
    year_of_era = year - era * 400
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return era * 146097 + day_of_era - 719468
