"""Oracles that are led through a recorded order are where the first ones were."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import keras_tuner
import numpy as np
import pytest
from keras_tuner import HyperParameters

from tuning.oracles import Oracle, Proposal, QuickRegressor, hyperband_trials

KINDS = ("random", "grid", "bayesian", "hyperband")


def space() -> HyperParameters:
    hyperparameters = HyperParameters()
    hyperparameters.Choice("cell", ["lstm", "gru"])
    with hyperparameters.conditional_scope("cell", ["gru"]):
        hyperparameters.Boolean("reset_after")
    hyperparameters.Int("units", 2, 64, sampling="log")
    hyperparameters.Float("dropout", 0.0, 0.4, step=0.2)
    return hyperparameters


def made(kind: Any, seed: int = 0) -> Oracle:
    return Oracle(kind, space(), "max", seed, lambda values: json.dumps(dict(values), sort_keys=True), max_epochs=9)


def score_of(values: Mapping[str, Any]) -> float | None:
    """Some fail, always the same ones."""
    digest = random.Random(json.dumps(dict(values), sort_keys=True)).random()
    return None if digest < 0.1 else digest + values["units"] / 64


Step = tuple[str, Proposal | str, float | None]


def simulated(oracle: Oracle, workers: int, count: int, seed: int) -> list[Step]:
    """Starts and ends of trials on several workers, which end in a random order."""
    order, running, steps, started = random.Random(seed), [], [], 0
    while True:
        while len(running) < workers and started < count:
            proposal = oracle.propose()
            if not isinstance(proposal, Proposal):
                break
            started += 1
            running.append(proposal)
            steps.append(("begin", proposal, None))
        if not running:
            return steps
        ended = running.pop(order.randrange(len(running)))
        score = score_of(ended.values)
        oracle.tell(ended.trial_id, score)
        steps.append(("end", ended.trial_id, score))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_new_oracle_goes_on_where_the_old_one_stopped(kind: str, workers: int) -> None:
    count = 7 if kind == "bayesian" else 26  # which takes a second for each
    steps = simulated(made(kind), workers, count, seed=workers)
    assert sum(step[0] == "begin" for step in steps) > count // 2
    for stopped in (7,) if kind == "bayesian" else (0, 1, 7, 20, len(steps)):
        oracle = made(kind)
        for what, subject, score in steps[:stopped]:
            if what == "begin":
                assert oracle.propose() == subject
            else:
                oracle.tell(str(subject), score)
        for what, subject, score in steps[stopped:]:
            if what == "end":
                oracle.tell(str(subject), score)
                continue
            for _ in range(3):  # asked too early, it says so and is none the wiser
                proposal = oracle.propose()
                if proposal != "wait":
                    break
            assert proposal == subject


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_decide_and_zero_is_one(kind: str) -> None:
    first, again, other = ([step[1] for step in simulated(made(kind, seed), 1, 6, 0)] for seed in (0, 0, 1))
    assert first == again
    if kind != "grid":
        assert first != other


def test_grid_tries_everything_once() -> None:
    hyperparameters = HyperParameters()
    hyperparameters.Choice("cell", ["lstm", "gru"])
    with hyperparameters.conditional_scope("cell", ["gru"]):
        hyperparameters.Boolean("reset_after")
    hyperparameters.Int("units", 2, 4)
    oracle = Oracle("grid", hyperparameters, "min", 0, lambda values: str(sorted(values.items())))
    found = []
    while isinstance(proposal := oracle.propose(), Proposal):
        found.append(tuple(sorted(proposal.values.items())))
        oracle.tell(proposal.trial_id, 1.0)
    assert len(found) == len(set(found)) == 9


def test_what_was_tried_is_not_tried_again() -> None:
    hyperparameters = HyperParameters()
    hyperparameters.Choice("units", [2, 4, 8, 16, 32, 64])
    oracle = Oracle("bayesian", hyperparameters, "min", 0, lambda values: values["units"])
    found = []
    while isinstance(proposal := oracle.propose(), Proposal):
        found.append(proposal.values["units"])
        oracle.tell(proposal.trial_id, float(proposal.values["units"]))
    assert len(found) == len(set(found)) >= 5


@pytest.mark.slow
def test_bayesian_search_finds_more_than_chance() -> None:
    hyperparameters = HyperParameters()
    for name in ("x", "y"):
        hyperparameters.Float(name, 0.0, 1.0)
    best = {}
    for kind in ("random", "bayesian"):
        scores = []
        for seed in range(3):
            oracle = Oracle(kind, hyperparameters, "min", seed, str)  # type: ignore[arg-type]
            lowest = 1.0
            for _ in range(15):
                proposal = oracle.propose()
                assert isinstance(proposal, Proposal)
                score = (proposal.values["x"] - 0.3) ** 2 + (proposal.values["y"] - 0.8) ** 2
                lowest = min(lowest, score)
                oracle.tell(proposal.trial_id, score)
            scores.append(lowest)
        best[kind] = sum(scores)
    assert best["bayesian"] < best["random"] / 5


def test_quick_predictions_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    known = keras_tuner.oracles.BayesianOptimizationOracle(keras_tuner.Objective("score", "min"), seed=1).gpr
    quick = QuickRegressor(**known.get_params(deep=False))
    points, scores = rng.uniform(size=(20, 3)), rng.normal(5, 2, size=20)
    for regressor in (known, quick):
        regressor.fit(points, scores)
    for point in [*rng.uniform(size=(50, 3)), *points]:
        expected, actual = (each.predict(point[None], return_std=True) for each in (known, quick))
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-7)
        np.testing.assert_allclose(quick.predict(point[None]), known.predict(point[None]), rtol=1e-9)
    together = quick.predict(points, return_std=True)
    np.testing.assert_allclose(together, known.predict(points, return_std=True))


def test_known_trials_are_not_tried_again_and_lead_the_search() -> None:
    hyperparameters = HyperParameters()
    hyperparameters.Float("x", 0.0, 1.0)
    oracle = Oracle("bayesian", hyperparameters, "max", 0, str)
    for x in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        oracle.know({"x": x}, -((x - 0.7) ** 2))
    proposal = oracle.propose()
    assert isinstance(proposal, Proposal)
    assert 0.5 < proposal.values["x"] < 0.9


def test_hyperband_fills_its_rungs_though_trials_fail() -> None:
    assert hyperband_trials(space(), 9) == 23
    oracle, begun, generator = made("hyperband"), 0, random.Random(0)
    while isinstance(proposal := oracle.propose(), Proposal):
        begun += 1
        assert (proposal.parent is None) == (proposal.values["tuner/initial_epoch"] == 0)
        oracle.tell(proposal.trial_id, None if generator.random() < 0.5 else generator.random())
    assert begun == 23


def test_checkpoints_are_needed_while_a_bracket_is_open() -> None:
    oracle, first = made("hyperband"), None
    while isinstance(proposal := oracle.propose(), Proposal):
        first = first or proposal.trial_id
        if proposal.parent:
            assert oracle.is_open(proposal.parent)
        oracle.tell(proposal.trial_id, score_of(proposal.values))
    assert first is not None
    assert not oracle.is_open(first)
