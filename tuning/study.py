"""A study: one process owns the oracle, the tracking store has everything else.

Every trial is a child run of the study's. It carries the numbers of its start and of its end in the one sequence of all
starts and ends; a new oracle that is led through that sequence is where the old one was. So a study goes on from the
store alone, whatever was killed, on any machine.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

from loom import checkpoint
from loom.app import App
from loom.config import from_dict
from loom.errors import UserError
from loom.tracking import RecordedRun, Store, Tracker, run_tags
from tuning.oracles import Oracle, Proposal
from tuning.record import (
    DEFINITION,
    RUN_STATUS,
    Definition,
    Status,
    Trial,
    log_settings,
    plain,
    recorded_definition,
    recorded_epochs,
    recorded_trials,
)
from tuning.space import Space
from tuning.trial import Done, Epoch, Failed, Task, recorded_name
from tuning.workers import Event, Pool

TRIALS_TO_COMPARE = 5
"""Fewest other trials that make a median."""


class Watcher(Protocol):
    """Shows how a study goes on."""

    def changed(self, study: Study, trial: Trial) -> None:
        """A trial has begun, gone on, or ended."""


class Study:
    """A study in the store, new or recorded.

    Args:
        app: The application.
        store: Where it is recorded.
        tracker: Its run.
        definition: What it is.
        trials: What it has come to so far.
    """

    def __init__(
        self, app: App, store: Store, tracker: Tracker, definition: Definition, trials: Sequence[Trial] = ()
    ) -> None:
        self.app, self.store, self.tracker, self.definition = app, store, tracker, definition
        self.config = from_dict(app.config, definition.config)
        self.space = Space(app, self.config, definition.changes, definition.pinned)
        self.trials = list(trials)
        self._client = store.client()
        self._tidied: set[str] = set()
        self._to_close: list[Trial] = []
        if self.space.to_json() != definition.space:
            raise UserError(
                f"study {tracker.run_id}: the search space of {app.name} has changed since; "
                f"start a new study with --warm-start {tracker.run_id}"
            )
        self.oracle = self._led_oracle()

    @classmethod
    def create(cls, app: App, store: Store, definition: Definition) -> Study:
        """Starts a study."""
        tags = run_tags(app.name, "study", {})
        tracker = Tracker.create(store, app.name, tags, f"search {definition.oracle}")
        tracker.log_json(DEFINITION, definition.to_json())
        shown = {"oracle": definition.oracle, "objective": definition.objective, "seed": definition.seed}
        shown |= {"seeds": definition.seeds} if definition.seeds > 1 else {}
        tracker.log_parameters(shown)
        return cls(app, store, tracker, definition)

    @classmethod
    def reopen(cls, app: App, store: Store, run_id: str) -> Study:
        """Goes on with a study.

        Raises:
            UserError: There is no such study of this application, or another process is at it.
        """
        definition = recorded_definition(store, run_id, app.name)
        tracker = Tracker(store, store.run(run_id))
        try:
            trials = recorded_trials(store, tracker)
            if definition.prune != "none":
                for trial in trials:
                    if trial.end is not None:
                        trial.epochs = recorded_epochs(store.client(), trial, recorded_name(definition.objective))
            study = cls(app, store, tracker, definition, trials)
        except BaseException:
            tracker.release()
            raise
        return study

    @property
    def better(self) -> Any:
        """Function that picks the best of several scores."""
        return min if self.definition.direction == "min" else max

    @property
    def completed(self) -> list[Trial]:
        """Trials that have a score, the best first."""
        scored = [trial for trial in self.trials if trial.status == "completed" and trial.score is not None]
        return sorted(scored, key=lambda trial: trial.score or 0.0, reverse=self.definition.direction == "max")

    def run(self, pool: Pool, count: int, keep: int, watcher: Watcher) -> None:
        """Runs trials until there are so many, and all of them have ended.

        Args:
            pool: The workers.
            count: Number of trials; fewer, if the oracle has no more.
            keep: Of how many of the best trials the checkpoints stay.
            watcher: Shows what happens.
        """
        waiting = [trial for trial in self.trials if trial.end is None]
        done = False
        while True:
            while pool.is_free and not done:
                trial = waiting.pop(0) if waiting else None
                if trial is not None:
                    self._client.update_run(trial.run_id, status="RUNNING")
                    self._client.update_run(self._current(trial), status="RUNNING")
                else:
                    proposal = "done" if len(self.trials) >= count else self.oracle.propose()
                    done = proposal == "done"
                    if isinstance(proposal, str):
                        break
                    trial = self._begin(proposal)
                self._submit(pool, trial)
                watcher.changed(self, trial)
            self._close(keep)  # now that the workers are busy again
            if done and not pool.is_busy:
                return
            for event in pool.events():
                assert isinstance(event.task, Task)
                trial = self._by_run(event.task.run_id)
                self._heard(trial, event, pool)
                watcher.changed(self, trial)

    def end(self, status: str = "FINISHED", reason: str = "") -> None:
        """Closes the study's run, and those of its trials that are open still."""
        for trial in self._to_close:
            self._client.set_terminated(trial.run_id, RUN_STATUS[trial.status])
        self._to_close.clear()
        for trial in self.trials:
            if trial.end is None:
                for run_id in {trial.run_id, trial.current or trial.run_id}:
                    self._client.set_terminated(run_id, "KILLED")
        self.tracker.finish(status, reason)

    def _by_run(self, run_id: str) -> Trial:
        return next(trial for trial in self.trials if trial.current == run_id)

    @cached_property
    def _experiment(self) -> str:
        return self.store.experiment(self.app.name)

    def _led_oracle(self) -> Oracle:
        """A new oracle, in the state that the recorded trials have led to."""
        definition = self.definition
        oracle = Oracle(
            definition.oracle,
            self.space.hyperparameters,
            definition.direction,
            definition.seed,
            lambda values: json.dumps(self.space.settings(values), sort_keys=True),
            definition.max_epochs,
        )
        for values, score in definition.known:
            oracle.know(values, score)
        steps = [(trial.start, True, trial) for trial in self.trials]
        steps += [(trial.end, False, trial) for trial in self.trials if trial.end is not None]
        for _, begins, trial in sorted(steps, key=lambda step: step[0]):
            if not begins:
                oracle.tell(trial.oracle_id, trial.score)
                continue
            proposal = oracle.propose()
            if not isinstance(proposal, Proposal) or (proposal.trial_id, plain(proposal.values)) != (
                trial.oracle_id,
                trial.values,
            ):
                raise UserError(
                    f"study {self.tracker.run_id}: the oracle does not propose trial {trial.number} again; it was "
                    "begun with other versions (see the run's tags): start anew with "
                    f"--warm-start {self.tracker.run_id}"
                )
        return oracle

    @property
    def _next(self) -> int:
        """Number of the next start or end."""
        numbers = [trial.start for trial in self.trials] + [trial.end for trial in self.trials if trial.end is not None]
        return max(numbers, default=-1) + 1

    def _begin(self, proposal: Proposal) -> Trial:
        """Records the start of a trial: all at once, so that it is there or not."""
        values, number = plain(proposal.values), len(self.trials) + 1
        settings = plain(self.space.settings(values))
        if proposal.epochs is not None:
            settings["epochs"] = proposal.epochs
        tags = run_tags(self.app.name, "trial", {"threads": str(self.definition.threads)}) | {
            "mlflow.parentRunId": self.tracker.run_id,
            "study": self.tracker.run_id,
            "trial_number": str(number),
            "status": "running",
            "oracle_trial": proposal.trial_id,
            "sequence_start": str(self._next),
            "hyperparameters": json.dumps(values),
            "settings": json.dumps(settings),
        }
        run = self._client.create_run(self._experiment, run_name=f"trial {number}", tags=tags)
        trial = Trial(number, run.info.run_id, proposal.trial_id, values, settings, self._next)
        self.trials.append(trial)
        return trial

    def _submit(self, pool: Pool, trial: Trial) -> None:
        """Records the settings of a trial's next seed, and gives it to a worker."""
        definition = self.definition
        trial.current = self._current(trial)
        config, seed = {**definition.config, "threads": definition.threads, **trial.settings}, len(trial.scores)
        config |= {"seed": config["seed"] + seed}
        shown = {name: value for name, value in trial.settings.items() if name in {*self.space.varied, "epochs"}}
        shown |= {"seed": config["seed"]} if seed else {}
        log_settings(RecordedRun(self.store, self.store.run(trial.current)), config, shown)
        parent = trial.values.get("tuner/trial_id")
        by_oracle = {other.oracle_id: other.run_id for other in self.trials}
        pool.submit(
            Task(
                trial.current,
                config,
                definition.objective,
                definition.direction,
                by_oracle[parent] if parent else None,
            )
        )

    def _current(self, trial: Trial) -> str:
        """Run of a trial's next seed: the trial's own, then its children."""
        seed = len(trial.scores)
        if not seed:
            return trial.run_id
        query = f"tags.trial = '{trial.run_id}' and tags.repeat = '{seed}'"
        begun = self._client.search_runs([self._experiment], query, max_results=1)
        if begun:
            return str(begun[0].info.run_id)
        tags = run_tags(self.app.name, "repeat", {"threads": str(self.definition.threads)}) | {
            "mlflow.parentRunId": trial.run_id,
            "study": self.tracker.run_id,
            "trial": trial.run_id,
            "trial_number": str(trial.number),
            "repeat": str(seed),
        }
        name = f"trial {trial.number}, seed {seed + 1}"
        return str(self._client.create_run(self._experiment, run_name=name, tags=tags).info.run_id)

    def _heard(self, trial: Trial, event: Event, pool: Pool) -> None:
        message = event.message
        if isinstance(message, Epoch):
            trial.reached = max(trial.reached, (len(trial.scores), message.number))
            if not trial.scores:
                trial.epochs[message.number] = message.objective
            if self.definition.prune != "none":
                trial.reason = "" if trial.scores else self._why_stop(trial)
                pool.answer(event, go_on=not trial.reason)
            return
        if isinstance(message, Done):
            trial.seconds, trial.parameters = trial.seconds + message.seconds, message.parameters
            self._seed_done(trial, message.score)
            if len(trial.scores) < self.definition.seeds and not trial.reason:
                self._submit(pool, trial)
                return
            trial.score = None if trial.reason else statistics.mean(trial.scores)
            self._finish(trial, "pruned" if trial.reason else "completed")
        elif isinstance(message, Failed):
            if message.was_killed and trial.reached > trial.died_at:  # it goes on, as long as it gets on
                trial.died_at = trial.reached
                self._submit(pool, trial)
                return
            if self.definition.oracle == "hyperband" and trial.attempts == 1:
                trial.attempts += 1
                self._client.set_tag(trial.run_id, "first_failure", message.reason)
                self._submit(pool, trial)
                return
            trial.reason = message.reason
            self._close_repeat(trial, "FAILED")
            self._finish(trial, "failed")

    def _seed_done(self, trial: Trial, score: float) -> None:
        """Records the score of a seed, from when on it is not trained again."""
        from mlflow.entities import RunTag

        trial.scores.append(score)
        if self.definition.seeds > 1:
            tags = {"seed_scores": json.dumps(trial.scores), "seconds": repr(trial.seconds)}
            self._client.log_batch(trial.run_id, tags=[RunTag(name, value) for name, value in tags.items()])
            self._client.log_metric(trial.current, "seed_score", score)
            self._close_repeat(trial, "FINISHED")

    def _close_repeat(self, trial: Trial, status: str) -> None:
        """Ends a child run of a trial."""
        if trial.current != trial.run_id:
            self._client.set_terminated(trial.current, status)
            checkpoint.remove(RecordedRun(self.store, self.store.run(trial.current)))
            self.store.forget_lock(trial.current)

    def _why_stop(self, trial: Trial) -> str:
        """Why a trial is not worth going on with, or nothing.

        Its best objective so far is compared with that of all others at the same epoch: it must be worse than their
        median by more than their median distance from it.
        """
        epoch = max(trial.epochs)
        best = {
            each.number: self.better(value for number, value in each.epochs.items() if number <= epoch)
            for each in self.trials
            if epoch in each.epochs
        }
        own = best.pop(trial.number)
        if len(best) < TRIALS_TO_COMPARE:
            return ""
        median = statistics.median(best.values())
        spread = statistics.median(abs(value - median) for value in best.values())
        worse_by = own - median if self.definition.direction == "min" else median - own
        if worse_by <= spread:
            return ""
        return f"pruned in epoch {epoch + 1}: {own:.4g}, while the median of the others was {median:.4g}"

    def _finish(self, trial: Trial, status: Status) -> None:
        """Records the end of a trial, then tells the oracle."""
        from mlflow.entities import Metric, RunTag

        trial.end, trial.status = self._next, status
        moment = time.time_ns() // 1_000_000
        metrics = (
            {"seconds": trial.seconds} if trial.score is None else {"score": trial.score, "seconds": trial.seconds}
        )
        metrics |= {"parameters": trial.parameters} if trial.parameters else {}
        tags = {"status": status, "sequence_end": str(trial.end), "reason": trial.reason[:5000]}
        tags |= {"score": "" if trial.score is None else repr(trial.score), "attempts": str(trial.attempts)}
        if trial.spread is not None:
            metrics["score_spread"] = trial.spread
        tags |= {"seconds": repr(trial.seconds), "parameters": str(trial.parameters)}
        self._client.log_batch(
            trial.run_id,
            metrics=[Metric(name, float(value), moment, 0) for name, value in metrics.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )
        self.oracle.tell(trial.oracle_id, trial.score)
        self._to_close.append(trial)

    def _close(self, keep: int) -> None:
        """Closes the runs of trials that have ended, and tidies up."""
        for trial in self._to_close:
            self._client.set_terminated(trial.run_id, RUN_STATUS[trial.status])
            self.store.forget_lock(trial.run_id)
        if self._to_close:
            self._to_close.clear()
            self._tidy(keep)

    def _tidy(self, keep: int) -> None:
        """Deletes the checkpoints that nothing will go on from."""
        best = {trial.run_id for trial in self.completed[:keep]}
        for trial in self.trials:
            ended = trial.end is not None and trial.run_id not in self._tidied
            if ended and trial.run_id not in best and not self.oracle.is_open(trial.oracle_id):
                checkpoint.remove(RecordedRun(self.store, self.store.run(trial.run_id)))
                self._tidied.add(trial.run_id)
