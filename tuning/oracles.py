"""KerasTuner's oracles, asked step by step: the order of questions and answers is all that has to be recorded."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import keras_tuner
import numpy as np
from keras_tuner import HyperParameters, Objective
from keras_tuner.engine.trial import Trial
from scipy.linalg import lapack
from sklearn.gaussian_process import GaussianProcessRegressor
from threadpoolctl import threadpool_limits

Kind = Literal["random", "grid", "bayesian", "hyperband"]
SCORE = "score"
REPEATS = 20
"""Proposals of what was tried already, one after the other, that show a space to be exhausted."""
INITIAL_POINTS = 5
"""Fewest random trials before the first one of Bayesian search that is not."""
NEVER = 10**9


@dataclass(frozen=True)
class Proposal:
    """A trial that an oracle wants.

    Attributes:
        trial_id: The oracle's name for it.
        values: Values of its hyperparameters.
        epochs: How many epochs to train, where the oracle says so.
        parent: Trial whose training is to go on, where there is one.
    """

    trial_id: str
    values: dict[str, Any]
    epochs: int | None = None
    parent: str | None = None


class QuickRegressor(GaussianProcessRegressor):
    """scikit-learn's, with a prediction for one point that does without its checks.

    For every proposal KerasTuner predicts tens of thousands of points, one by one, all with the kernel that it has
    chosen, k(r) = (1 + √5 r + 5/3 r²) exp(-√5 r), r = |x - x'| / length scale (Rasmussen and Williams, 2006, "Gaussian
    processes for machine learning", equations 2.25, 2.26 and 4.17).
    """

    def predict(self, X: np.ndarray, return_std: bool = False, return_cov: bool = False) -> Any:  # noqa: N803
        """Mean, and standard deviation if wanted, at every row."""
        if len(X) > 1 or return_cov or not hasattr(self, "X_train_"):
            return super().predict(X, return_std=return_std, return_cov=return_cov)
        distances = math.sqrt(5) * np.sqrt(np.square(self.X_train_ - X).sum(1)) / self.kernel_.length_scale
        covariances = (1 + distances + np.square(distances) / 3) * np.exp(-distances)
        mean = self._y_train_std * (covariances @ self.alpha_) + self._y_train_mean
        if not return_std:
            return mean[None]
        explained, _ = lapack.dtrtrs(self.L_, covariances, lower=True)
        variance = max(1 - explained @ explained, 0.0)
        return mean[None], self._y_train_std * np.sqrt(np.array([variance]))


class Oracle:
    """One of KerasTuner's oracles, without its files.

    What it proposes is a function of its arguments and of the order of `propose` and `tell` calls: a new one that is
    led through a recorded order is in the state of the old one.

    Args:
        kind: Which.
        space: What is searched.
        direction: Whether a good score is small or large.
        seed: Picks the random values.
        key: What two trials share that need not both run; the second gets the score of the first.
        max_epochs: Epochs of a trial that is never stopped; for Hyperband.
    """

    def __init__(
        self,
        kind: Kind,
        space: HyperParameters,
        direction: Literal["min", "max"],
        seed: int,
        key: Callable[[Mapping[str, Any]], Hashable],
        max_epochs: int = 0,
    ) -> None:
        self.kind, self._key, self._direction = kind, key, direction
        make = {
            "random": keras_tuner.oracles.RandomSearchOracle,
            "grid": keras_tuner.oracles.GridSearchOracle,
            "bayesian": keras_tuner.oracles.BayesianOptimizationOracle,
            "hyperband": keras_tuner.oracles.HyperbandOracle,
        }[kind]
        options: dict[str, Any] = {"max_epochs": max_epochs} if kind == "hyperband" else {"max_trials": None}
        if kind == "bayesian":
            options["num_initial_points"] = max(INITIAL_POINTS, len(space.space) + 1)
        self._oracle = make(
            objective=Objective(SCORE, direction),
            hyperparameters=space.copy(),
            allow_new_entries=False,
            tune_new_entries=False,
            seed=seed + 1,  # 0 would be no seed
            max_consecutive_failed_trials=NEVER,
            **options,
        )
        if kind == "bayesian":
            self._oracle.gpr = QuickRegressor(**self._oracle.gpr.get_params(deep=False))
        self._oracle.verbose = 0
        # It would write its state in place after every step; the tracking store has it all.
        self._oracle.save = lambda: None
        self._oracle._save_trial = lambda trial: None
        self._asked = 0
        self._scores: dict[Hashable, float | None] = {}

    def propose(self) -> Proposal | Literal["wait", "done"]:
        """Returns the next trial, or that there is none before another ends, or none at all."""
        for _ in range(REPEATS):
            trial = self._create()
            if trial.status != "RUNNING":
                return "wait" if trial.status == "IDLE" else "done"
            values = dict(trial.hyperparameters.values)
            if self.kind != "hyperband" and self._key(values) in self._scores:
                self._end(trial, self._scores[self._key(values)])
                continue
            return Proposal(trial.trial_id, values, values.get("tuner/epochs"), values.get("tuner/trial_id"))
        return "done"

    def tell(self, trial_id: str, score: float | None) -> None:
        """Ends a trial; None says that it has no score.

        Hyperband fills its rungs with scores only: what failed counts as the worst there can be.
        """
        trial = self._oracle.trials[trial_id]
        self._scores[self._key(trial.hyperparameters.values)] = score
        if score is None and self.kind == "hyperband":
            score = -math.inf if self._direction == "max" else math.inf
        self._end(trial, score)

    def know(self, values: Mapping[str, Any], score: float) -> None:
        """Takes up a finished trial of another search of the same hyperparameters, before the first is proposed."""
        hyperparameters = self._oracle.hyperparameters.copy()
        hyperparameters.values = dict(values)
        trial_id = f"{len(self._oracle.trials):04d}"
        trial = Trial(hyperparameters=hyperparameters, trial_id=trial_id, status="RUNNING")
        self._oracle.trials[trial_id] = trial
        self._oracle.start_order.append(trial_id)
        self.tell(trial_id, score)

    def is_open(self, trial_id: str) -> bool:
        """Whether a trial's training may be gone on with by a later one."""
        brackets = getattr(self._oracle, "_brackets", [])
        return any(
            entry["id"] == trial_id for bracket in brackets for entries in bracket["rounds"] for entry in entries
        )

    def _create(self) -> Trial:
        before = self._oracle._seed_state
        self._asked += 1
        # Bayesian search solves many small systems of equations, for which more threads only wait for each other.
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore")  # of the Gaussian process, on few points
            trial = self._oracle.create_trial(f"asked {self._asked}")
        if trial.status != "RUNNING":
            # To have asked in vain must leave no trace: it is not recorded.
            self._oracle._seed_state = before
        return trial

    def _end(self, trial: Trial, score: float | None) -> None:
        if score is not None:
            self._oracle.update_trial(trial.trial_id, {SCORE: score})
        trial.status = "FAILED" if score is None else "COMPLETED"
        self._oracle.end_trial(trial)


def hyperband_trials(space: HyperParameters, max_epochs: int) -> int:
    """Number of trials that Hyperband makes of a space."""
    oracle = Oracle("hyperband", space, "min", 0, lambda values: None, max_epochs)
    count = 0
    while isinstance(proposal := oracle.propose(), Proposal):
        oracle.tell(proposal.trial_id, float(count))
        count += 1
    return count
