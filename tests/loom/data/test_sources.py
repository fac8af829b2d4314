"""How examples are split."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from loom import TrainingConfig
from loom.data.sources import Examples, split_examples

EXAMPLES = Examples(pd.DataFrame({"number": range(200), "label": ["a", "b", "b", "b"] * 50}), None, "test")


def split(config: TrainingConfig) -> dict[str, pd.DataFrame]:
    return split_examples(EXAMPLES, config, lambda part: part["label"].to_numpy())


def test_parts_are_disjoint_stratified_and_whole() -> None:
    parts = split(TrainingConfig())
    assert {name: len(part) for name, part in parts.items()} == {"train": 144, "validation": 16, "test": 40}
    assert sorted(number for part in parts.values() for number in part["number"]) == list(range(200))
    for part in parts.values():
        assert (part["label"] == "a").mean() == pytest.approx(0.25)


def test_a_seed_of_its_own_holds_the_split_still() -> None:
    first, second, held = (
        split(config) for config in (TrainingConfig(), TrainingConfig(seed=1), TrainingConfig(seed=1, split_seed=0))
    )
    assert not first["test"].equals(second["test"])
    for name, part in first.items():
        assert part.equals(held[name])


def test_a_fraction_of_the_training_examples_leaves_the_others_whole() -> None:
    config = TrainingConfig()
    whole, fifth = split(config), split(replace(config, train_fraction=0.25))
    assert len(fifth["train"]) == 36
    assert set(fifth["train"]["number"]) < set(whole["train"]["number"])
    assert (fifth["train"]["label"] == "a").mean() == pytest.approx(0.25)
    for name in ("validation", "test"):
        assert fifth[name].equals(whole[name])
