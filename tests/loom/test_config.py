"""Settings: refused when impossible, recorded and read back whole."""

from __future__ import annotations

import os

import pytest

from apps.sentiment import Config
from loom import TrainingConfig, UserError
from loom.config import changed_fields, from_dict, to_dict


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("epochs", 0),
        ("learning_rate", 0.0),
        ("learning_rate", -1.0),
        ("test_fraction", 1.0),
        ("validation_fraction", 0.0),
        ("train_fraction", 0.0),
        ("split_seed", -2),
        ("max_bad", 1.5),
        ("threads", -1),
        ("clip_norm", -0.1),
        ("optimizer", "adamm"),
        ("precision", "float8"),
        ("devices", 33),
    ],
)
def test_impossible_settings_are_refused_by_the_name_of_their_flag(field: str, value: object) -> None:
    with pytest.raises(UserError, match=f"--{field.replace('_', '-')} {value}"):
        TrainingConfig(**{field: value})


@pytest.mark.parametrize("field", ["devices", "deterministic"])
def test_xla_is_refused_where_it_cannot_work(field: str) -> None:
    with pytest.raises(UserError, match="--jit on"):
        TrainingConfig(jit="on", **{field: 2 if field == "devices" else True})


@pytest.mark.parametrize("field", ["bidirectional", "recurrent_dropout"])
def test_recurrent_settings_need_a_recurrent_encoder(field: str) -> None:
    with pytest.raises(UserError, match="needs a recurrent --encoder"):
        Config(**{field: 0.5 if field == "recurrent_dropout" else True})


def test_a_recorded_config_is_read_back_equal() -> None:
    config = Config(encoder="lstm", units=7, dropout=0.25, data="some/file.csv")
    assert from_dict(Config, to_dict(config)) == config
    assert changed_fields(config, Config()) == {
        "data": "some/file.csv",
        "encoder": "lstm",
        "units": 7,
        "dropout": 0.25,
    }


def test_recorded_settings_that_no_longer_exist_are_named() -> None:
    with pytest.raises(UserError, match="momentum_of_old"):
        from_dict(Config, {"momentum_of_old": 1})


def test_zero_threads_means_the_cores_of_this_process() -> None:
    assert TrainingConfig().cores == len(os.sched_getaffinity(0))
    assert TrainingConfig(threads=3).cores == 3


def test_every_setting_is_explained() -> None:
    from tyro._docstrings import get_field_docstring

    for name in to_dict(Config()):
        assert get_field_docstring(Config, name, ()), f"{name} has no docstring"
