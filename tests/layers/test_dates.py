import datetime
import doctest

import keras
import numpy as np
import pytest

from layers import DateFeatures, dates

pytestmark = pytest.mark.tensorflow_only  # strings


def features(*texts: str, **options: float) -> np.ndarray:
    import tensorflow as tf

    return DateFeatures(**options)(tf.constant(texts)[:, None]).numpy()


def test_days_agree_with_the_calendar() -> None:
    start = datetime.date(1583, 1, 1)
    days = [start + datetime.timedelta(days=977 * step) for step in range(400)]
    parts = np.array([(day.year, day.month, day.day) for day in days], np.int32).T
    expected = [(day - datetime.date(1970, 1, 1)).days for day in days]
    np.testing.assert_array_equal(dates.days_since_1970(*map(keras.ops.convert_to_tensor, parts)), expected)


def test_parts_of_a_date_are_its_places_in_the_cycles() -> None:
    found = features("2024-04-16T06:00", mean_day=19729.0, scale=50.0)[0]
    places = [3 / 12, 15 / 31, 1 / 7, 6 / 24]  # April, the 16th, a Tuesday, a quarter of the day
    waves = [wave(2 * np.pi * place) for place in places for wave in (np.sin, np.cos)]
    np.testing.assert_allclose(found, [2.0, *waves, 0.0], atol=1e-6)


@pytest.mark.parametrize("text", ["", "31.05.2024", "2024-05", "yesterday", "2024-05-31T"])
def test_what_is_no_date_is_missing(text: str) -> None:
    np.testing.assert_array_equal(features(text)[0], [0] * 9 + [1])


@pytest.mark.parametrize("text", ["2024-05-31 00:00", "2024-05-31T00:00:00Z", "2024-05-31T00:00:00.5+02:00"])
def test_a_time_at_midnight_is_the_date(text: str) -> None:
    np.testing.assert_array_equal(features(text), features("2024-05-31"))


def test_december_is_next_to_january() -> None:
    january, june, december = features("2024-01-15", "2024-06-15", "2024-12-15")[:, 1:3]
    assert np.linalg.norm(december - january) < np.linalg.norm(june - january) / 3


def test_a_model_with_dates_survives_saving(tmp_path) -> None:
    import tensorflow as tf

    date = keras.Input((1,), dtype="string")
    model = keras.Model(date, DateFeatures(10.0, 5.0)(date))
    assert model.output.shape == (None, dates.FEATURES)
    model.save(tmp_path / "model.keras")
    texts = tf.constant([["2024-05-31"], [""]])
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras")(texts), model(texts))


def test_a_scale_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="scale must be greater than 0"):
        DateFeatures(scale=0.0)


def test_examples_in_docstrings_run() -> None:
    assert doctest.testmod(dates).failed == 0
