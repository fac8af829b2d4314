"""What the comparisons of the foundations show is what their page says, recorded and measured again."""

from __future__ import annotations

import importlib
import json
from types import ModuleType

import pytest
from support import ROOT

from foundations import depth, padding
from foundations.comparison import Result

NAMES = ("optimizers", "depth", "batches", "dying_relu", "padding", "separation", "contextual", "diagnoses")
EVERY_COMPARISON = pytest.mark.parametrize("name", NAMES)


def by(rows: list[Result], *names: str) -> dict:
    """Rows by the values of some of their columns."""
    return {row[names[0]] if len(names) == 1 else tuple(row[name] for name in names): row for row in rows}


def shows_optimizers(result: Result) -> None:
    """Momentum and Adam need fewer steps than plain descent; what adapts to each axis needs axes that fit."""
    rows = by(result["rows"], "optimizer")
    for surface in ("ravine", "turned ravine", "saddle"):
        for name in ("momentum", "Nesterov", "Adam"):
            assert rows[name][surface]["steps"] < rows["SGD"][surface]["steps"] / 2
    for name in ("SGD", "momentum", "Nesterov"):
        assert rows[name]["ravine"]["steps"] == pytest.approx(rows[name]["turned ravine"]["steps"], rel=0.1)
    for name in ("Adagrad", "RMSprop"):
        assert rows[name]["turned ravine"]["steps"] > 1.3 * rows[name]["ravine"]["steps"]
        assert rows[name]["saddle"]["steps"] < rows["SGD"]["saddle"]["steps"] / 2


def shows_depth(result: Result) -> None:
    """Each activation has its initializer, and sigmoid none; zeros and constants leave all units alike."""
    rows = by(result["rows"], "activation", "initializer")
    verdicts = {key: depth.verdict(row) for key, row in rows.items()}
    for function in ("sigmoid", "tanh", "relu", "selu"):
        assert verdicts[function, "zeros"] == verdicts[function, "constant"] == "all units alike"
        assert verdicts[function, "small"] == "vanishes"
    for function in ("tanh", "relu", "selu"):
        assert verdicts[function, "large"] == "explodes"
    fits = {("tanh", "Glorot"), ("relu", "He"), ("selu", "LeCun")}
    assert {verdicts[pair] for pair in fits} == {"keeps its size"}
    assert {verdicts["sigmoid", name] for name in ("Glorot", "He", "LeCun")} == {"vanishes"}
    assert verdicts["relu", "Glorot"] == "vanishes"
    assert {depth.verdict(row) for row in result["remedies"] if row["remedy"] == "batch norm"} == {"keeps its size"}
    properties = by(result["properties"], "activation")
    assert [name for name, row in properties.items() if abs(row["mean"]) < 0.01] == ["tanh", "selu"]
    assert [name for name, row in properties.items() if row["slope_high"] < 0.01] == ["sigmoid", "tanh"]


def shows_batches(result: Result) -> None:
    """Per example seen, small batches learn more, on noisier gradients; an epoch of them takes longer."""
    whole, some, one = result["rows"]
    assert whole["noise"] < 1e-3 < some["noise"] < one["noise"]
    assert whole["same"]["loss"] > some["same"]["loss"] > one["same"]["loss"]
    assert whole["best"]["loss"] > 5 * max(some["best"]["loss"], one["best"]["loss"])
    assert whole["epoch_seconds"] < some["epoch_seconds"]
    assert whole["epoch_seconds"] < one["epoch_seconds"]


def shows_dying_relu(result: Result) -> None:
    """A high rate and low biases kill; a lower rate helps, a slope below zero keeps alive, 0.01 does little."""
    rows = by(result["rows"], "case")
    assert rows["ReLU, sound rate"]["dead_at_end"] < 0.05
    assert rows["high rate"]["dead_at_end"] > 0.2
    assert rows["high rate, bias 0.01"]["dead_at_end"] > 0.2
    assert rows["high rate, lowered tenfold"]["dead_at_end"] < 0.05
    assert rows["high rate, leaky ReLU"]["dead_at_end"] == 0
    assert rows["high rate, lowered tenfold"]["accuracy"] > rows["high rate, leaky ReLU"]["accuracy"] + 0.05
    assert rows["low bias"]["dead_at_start"] > 0.3
    assert rows["low bias, ELU"]["dead_at_end"] == rows["low bias, leaky ReLU"]["dead_at_end"] == 0
    assert all(row["back"][0] == 0 for row in result["rows"])
    assert rows["high rate"]["back"][1] > 0


def shows_padding(result: Result) -> None:
    """Without a mask, zeros after the text leave nothing of it; before the text they do little."""
    rows = by(result["rows"], "cell", "way", "length")
    masked, after, before = padding.WAYS
    shortest, longest = padding.LENGTHS[0], padding.LENGTHS[-1]
    for cell in padding.CELLS:
        assert rows[cell, after, longest]["mean"] < rows[cell, masked, shortest]["mean"] - 0.1
        assert rows[cell, after, longest]["mean"] < 0.6
        assert rows[cell, before, longest]["mean"] > rows[cell, masked, shortest]["mean"] - 0.1


def shows_separation(result: Result) -> None:
    """A line is enough for two clouds only, whether it has one layer or two."""
    rows = by(result["rows"], "model")
    for data in ("exclusive or", "ring"):
        for model in ("perceptron", "two linear layers"):
            assert rows[model]["two clouds"]["mean"] > 0.98
            assert rows[model][data]["mean"] < 0.76
        assert rows["32 hidden units"][data]["worst"] > 0.98
    assert result["linear_difference"] < 1e-4


def shows_contextual(result: Result) -> None:
    """Static vectors are the same everywhere; after training the contextual ones are apart."""
    rows = by(result["rows"], "vectors")
    assert rows["static"]["within"] == rows["static"]["between"] == pytest.approx(1, abs=1e-6)
    assert rows["static"]["right"] == 0.5
    assert rows["contextual"]["right"] > 0.98
    assert rows["contextual"]["within"] > rows["contextual"]["between"] + 0.05
    untrained = rows["contextual, untrained"]
    assert (
        untrained["within"] - untrained["between"] < (rows["contextual"]["within"] - rows["contextual"]["between"]) / 2
    )


def shows_diagnoses(result: Result) -> None:
    """Every symptom is there in the first line of its group and gone in most of the others."""
    rows = by(result["rows"], "symptom", "case")
    groups = {symptom: [row for row in result["rows"] if row["symptom"] == symptom] for symptom, _ in rows}
    sick, *helped = groups["vanishing gradient"]
    assert sick["ratio"] < 1e-3
    assert sick["train"] > 2.2
    assert sick["says"].startswith("no learning")
    assert all(row["ratio"] > 100 * sick["ratio"] and row["train"] < sick["train"] - 0.5 for row in helped)
    sick, *helped = groups["exploding gradient"]
    assert sick["train"] is None
    assert sick["says"].startswith("stops")
    assert all(row["train"] is not None for row in helped)
    assert sick["norm"] > 100 * rows["exploding gradient", "He's initializer as it is"]["norm"]
    sick, *helped = groups["overfitting"]
    assert sick["says"].startswith("overfitting")
    assert sick["train"] < 0.01 < sick["test"]
    assert max(helped, key=lambda row: row["accuracy"])["case"] == "1,437 examples"
    for remedy in ("L2 penalty", "early stopping", "1,437 examples"):
        assert rows["overfitting", remedy]["test"] < sick["test"]
    sick, scaled, *_ = groups["slow or no learning"]
    assert scaled["accuracy"] > sick["accuracy"] + 0.1


def recorded(name: str) -> Result:
    return dict(json.loads((ROOT / "benchmarks" / "results" / "foundations.json").read_text(encoding="utf-8"))[name])


def module(name: str) -> ModuleType:
    return importlib.import_module(f"foundations.{name}")


@EVERY_COMPARISON
def test_the_recorded_results_show_what_the_page_says(name: str) -> None:
    globals()[f"shows_{name}"](recorded(name))


@EVERY_COMPARISON
def test_the_tables_of_the_page_are_the_recorded_ones(name: str) -> None:
    page = (ROOT / "docs" / "foundations.md").read_text(encoding="utf-8")
    for line in module(name).table(recorded(name)):
        assert line in page


@pytest.mark.slow
@EVERY_COMPARISON
def test_a_comparison_measured_again_shows_the_same(name: str) -> None:
    result = module(name).measure(recorded(name)["seeds"])
    globals()[f"shows_{name}"](result)
    assert module(name).draw(result).axes


def test_every_comparison_is_tested() -> None:
    files = {path.stem for path in (ROOT / "foundations").glob("*.py")} - {"__init__", "comparison"}
    assert files == set(NAMES)
