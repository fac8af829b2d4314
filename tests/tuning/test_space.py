"""The search space: what applications say, what the command line makes of it, and what is refused."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
from keras_tuner import HyperParameters

from loom import UserError
from loom.app import App
from loom.config import TrainingConfig
from tuning.space import Space, grid_size


@dataclass(frozen=True)
class Config(TrainingConfig):
    cell: Literal["lstm", "gru"] = "lstm"
    """Cell."""
    units: int = 8
    """Units."""
    reset_after: bool = True
    """Of GRU."""
    dropout: float = 0.0
    """Dropout."""
    shape: tuple[int, ...] = (1, 2)
    """Something that is no single value."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("units", self.units >= 1, "must be at least 1")
        self.require("units", self.cell != "gru" or self.units % 2 == 0, "must be even with --cell gru")


def ask(hp: HyperParameters) -> dict[str, Any]:
    cell = hp.Choice("cell", ["lstm", "gru"])
    with hp.conditional_scope("cell", ["gru"]):
        reset_after = hp.Boolean("reset_after") if cell == "gru" else None
    return {
        "cell": cell,
        "reset_after": reset_after,
        "units": hp.Int("units", 2, 64, sampling="log"),
        "dropout": hp.Float("dropout", 0.0, 0.5, step=0.1),
    }


def app(space: Any = ask) -> App:
    unused: Any = None
    return App("toy", Config, unused, unused, unused, space, unused, unused, unused, loss="mse")


def made(*changes: str, pinned: tuple[str, ...] = (), **settings: Any) -> Space:
    return Space(app(), Config(**settings), changes, pinned)


def names(space: Space) -> list[str]:
    return [hp.name for hp in space.hyperparameters.space]


def test_all_of_an_applications_space_is_found_conditions_included() -> None:
    space = made()
    assert names(space) == ["cell", "units", "dropout", "reset_after"]
    assert set(space.varied) == {"cell", "units", "dropout", "reset_after"}
    assert space.settings({"cell": "lstm", "units": 3, "dropout": 0.1}) == {"cell": "lstm", "units": 3, "dropout": 0.1}
    gru = space.config({"cell": "gru", "units": 4, "dropout": 0.1, "reset_after": False})
    assert gru == Config(cell="gru", units=4, dropout=0.1, reset_after=False)


def test_numbers_are_rounded_and_stay_in_their_range() -> None:
    values = {"cell": "lstm", "units": 65, "dropout": 0.30000000000000004}
    assert made().settings(values) == {"cell": "lstm", "units": 64, "dropout": 0.3}


def test_the_command_line_narrows_replaces_adds_and_pins() -> None:
    space = made(
        "units=4..6", "dropout=0.25", "batch_size=16,32", "learning-rate=1e-4..1e-2:log", "reset_after=true,false"
    )
    assert set(space.varied) == {"cell", "units", "reset_after", "batch_size", "learning_rate"}
    values = {"cell": "gru", "reset_after": True, "units": 4, "dropout": 0.25, "batch_size": 16, "learning_rate": 0.001}
    assert space.config(values) == replace(Config(), **values)
    assert made(pinned=("cell",), cell="gru").settings({"cell": "gru", "units": 4, "dropout": 0.0})["cell"] == "gru"
    assert "cell" not in made(pinned=("cell",), cell="gru").varied
    assert made(pinned=("seed",)).varied == made().varied, "what is not searched needs no pin"


def test_steps_and_logarithms() -> None:
    space = made("units=2..32:log:step=2", "dropout=0.1..0.3:step=0.1", "cell=lstm")
    by_name = {hp.name: hp for hp in space.hyperparameters.space}
    assert list(by_name["units"].values) == [2, 4, 8, 16, 32]
    assert len(list(by_name["dropout"].values)) == 3
    assert grid_size(space.hyperparameters) == 15


def test_grid_size_counts_conditions() -> None:
    assert grid_size(made("units=2..4", "dropout=0.1").hyperparameters) == 3 * 3


def test_settings_are_placed_in_another_space() -> None:
    values = {"cell": "gru", "reset_after": True, "units": 4, "dropout": 0.1}
    settings = {"cell": "gru", "reset_after": True, "units": 4, "dropout": 0.1, "epochs": 3}
    assert made().placed(settings) == values
    assert made("units=8..16").placed(settings) is None
    assert made("dropout=0.1").placed(settings) == values
    assert made("dropout=0.2").placed(settings) is None
    assert made().placed({**settings, "cell": "lstm"}) == {"cell": "lstm", "units": 4, "dropout": 0.1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("unit=1..2", ["no setting 'unit'", "did you mean units?"]),
        ("units", ["NAME=LOW..HIGH"]),
        ("units=", ["NAME=LOW..HIGH"]),
        ("units=9..3", ["range is empty"]),
        ("units=a..3", ["'a' is not a whole number"]),
        ("units=1.5..3", ["'1.5' is not a whole number"]),
        ("dropout=0..inf", ["not a finite number"]),
        ("units=1..9:lin", ["'lin' is neither log nor step=N"]),
        ("units=0..9:log", ["begin above 0"]),
        ("units=1..9:step=0", ["step must be above 0"]),
        ("units=1..9:log:step=1", ["factor above 1"]),
        ("cell=lstm,rnn", ["'rnn' must be one of lstm, gru"]),
        ("cell=lstm,lstm", ["listed twice"]),
        ("cell=a..b", ["only numbers have ranges"]),
        ("reset_after=yes,no", ["must be true or false"]),
        ("shape=1,2", ["cannot be searched"]),
        ("threads=1,2", ["threads", "the workers share them out"]),
        ("test_fraction=0.1,0.2", ["see test examples"]),
        ("split_seed=0,1", ["see test examples"]),
        ("units=-4..4", ["--space units: --units -4: must be at least 1"]),
        ("batch_size=0,8", ["--batch-size 0"]),
    ],
)
def test_what_cannot_be_searched_is_one_line(change: str, words: list[str]) -> None:
    with pytest.raises(UserError) as refusal:
        made(change)
    assert "--space" in str(refusal.value)
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_conflicts_are_refused() -> None:
    with pytest.raises(UserError, match="given twice"):
        made("units=1..2", "units=3..4")
    with pytest.raises(UserError, match="leave out one"):
        made("units=2..4", pinned=("units",))
    with pytest.raises(UserError, match="nothing is searched"):
        made(pinned=("cell", "units", "dropout"))
    with pytest.raises(UserError, match="its space sets 'width'"):
        Space(app(lambda hp: {"width": hp.Int("width", 1, 2)}), Config())


def test_a_combination_that_is_refused_does_not_refuse_the_range() -> None:
    space = made("units=3..5")
    assert space.config({"cell": "lstm", "units": 3, "dropout": 0.0}).units == 3
    with pytest.raises(UserError, match="even with --cell gru"):
        space.config({"cell": "gru", "reset_after": True, "units": 3, "dropout": 0.0})


def test_every_random_sample_is_a_possible_config() -> None:
    space = made("units=2..64:step=2")
    for seed in range(50):
        space.config(space._sample(random.Random(seed), {}))
