"""What the tracking store holds of a study and its trials."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from loom.errors import UserError
from loom.tracking import RecordedRun, Store, read_json
from tuning.oracles import Kind

DEFINITION = "study.json"
PAGE = 1000

Status = Literal["running", "completed", "failed", "pruned"]
RUN_STATUS = {"completed": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
"""What MLflow calls it."""


@dataclass(frozen=True)
class Definition:
    """What makes a study the study it is; recorded once.

    Attributes:
        app: Name of the application.
        oracle: Which.
        objective: Metric that makes the score.
        direction: Whether a good score is small or large.
        seed: Of the oracle.
        config: Settings of what is not searched.
        threads: Threads of every trial, where the config does not say.
        prune: Whether trials that are clearly worse than the others at the same epoch are stopped.
        changes: Changes to the application's own space, as on the command line.
        pinned: Settings that keep their value though the application would search them.
        space: Every hyperparameter.
        max_epochs: Epochs of a trial that is never stopped; for Hyperband.
        known: Values and scores of finished trials of an earlier study.
        seeds: Training runs of every trial, each with a seed of its own; the score is their mean.
    """

    app: str
    oracle: Kind
    objective: str
    direction: Literal["min", "max"]
    seed: int
    config: dict[str, Any]
    threads: int
    prune: Literal["none", "median"]
    changes: list[str]
    pinned: list[str]
    space: list[dict[str, Any]]
    max_epochs: int = 0
    known: list[tuple[dict[str, Any], float]] = field(default_factory=list)
    seeds: int = 1

    def to_json(self) -> dict[str, Any]:
        """Everything, for the record."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Definition:
        """What was recorded."""
        known = [(dict(hyperparameters), float(score)) for hyperparameters, score in values["known"]]
        return cls(**{**values, "known": known})


@dataclass
class Trial:
    """One configuration that is tried.

    Attributes:
        number: From 1, in the order of their starts.
        run_id: Its child run.
        oracle_id: The oracle's name for it.
        values: Values of its hyperparameters.
        settings: What these make of the config.
        start: Number of its start in the sequence of starts and ends.
        end: Number of its end, or None.
        status: What became of it.
        score: Its best objective, the mean of all seeds, if it has one.
        reason: Why it failed.
        epochs: Objective of every epoch, with the first seed.
        seconds: How long it took.
        parameters: Size of its model.
        attempts: How often it was started anew after a failure.
        scores: Best objective of every seed that is done.
        current: Run of the seed that is being trained; that of the first is the trial's own.
        reached: Seed and epoch that have been trained last.
        died_at: Where it was when its worker was killed last.
    """

    number: int
    run_id: str
    oracle_id: str
    values: dict[str, Any]
    settings: dict[str, Any]
    start: int
    end: int | None = None
    status: Status = "running"
    score: float | None = None
    reason: str = ""
    epochs: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    parameters: int = 0
    attempts: int = 1
    scores: list[float] = field(default_factory=list)
    current: str = ""
    reached: tuple[int, int] = (0, -1)
    died_at: tuple[int, int] = (0, -2)

    @property
    def spread(self) -> float | None:
        """Standard deviation between its seeds, if there are several."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None


def log_settings(run: RecordedRun, config: Mapping[str, Any], shown: Mapping[str, Any]) -> None:
    """Records all settings of a trial, and those that vary as its parameters; again, if it is begun again."""
    from mlflow.entities import Param

    run.client.log_text(run.run_id, json.dumps(config, indent=2, ensure_ascii=False) + "\n", "config.json")
    run.client.log_batch(run.run_id, params=[Param(name, str(value)) for name, value in shown.items()])


def recorded_definition(store: Store, run_id: str, app: str) -> Definition:
    """What a recorded study is.

    Raises:
        UserError: There is no such study of this application.
    """
    tags = store.run(run_id).data.tags
    if tags.get("kind") != "study":
        raise UserError(f"run {run_id} is no study, but a {tags.get('kind', 'run of something else')}")
    if tags.get("app") != app:
        raise UserError(f"study {run_id} is a study of {tags.get('app')}, not of {app}")
    return Definition.from_json(read_json(store, run_id, DEFINITION))


def recorded_trials(store: Store, study: RecordedRun) -> list[Trial]:
    """The trials of a study, in the order of their starts."""
    client, token, found = store.client(), None, []
    while True:
        query = f"tags.study = '{study.run_id}' and tags.kind = 'trial'"
        page = client.search_runs([study.experiment_id], query, max_results=PAGE, page_token=token)
        found += [_recorded_trial(client, run) for run in page]
        token = page.token
        if not token:
            return sorted(found, key=lambda trial: trial.start)


def _recorded_trial(client: Any, run: Any) -> Trial:
    tags = run.data.tags
    ended = tags.get("sequence_end")
    trial = Trial(
        number=int(tags["trial_number"]),
        run_id=run.info.run_id,
        oracle_id=tags["oracle_trial"],
        values=json.loads(tags["hyperparameters"]),
        settings=json.loads(tags["settings"]),
        start=int(tags["sequence_start"]),
        end=int(ended) if ended else None,
        status=tags["status"],
        score=float(tags["score"]) if tags.get("score") else None,
        reason=tags.get("reason", ""),
        seconds=float(tags.get("seconds", 0)),
        parameters=int(tags.get("parameters", 0)),
        attempts=2 if "first_failure" in tags else 1,
        scores=json.loads(tags.get("seed_scores", "[]")),
    )
    if trial.end is not None and run.info.status != RUN_STATUS[trial.status]:  # killed between the two
        client.set_terminated(trial.run_id, RUN_STATUS[trial.status])
    return trial


def recorded_epochs(client: Any, trial: Trial, objective: str) -> dict[int, float]:
    """Objective of every epoch of a trial that has ended."""
    return {metric.step: metric.value for metric in client.get_metric_history(trial.run_id, objective)}


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they come back from the record."""
    return dict(json.loads(json.dumps(dict(values), default=lambda value: value.item())))
