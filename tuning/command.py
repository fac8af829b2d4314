"""What `loom tune` does, once its arguments are read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from rich.console import Console

from loom.app import App, AppFile, load_app
from loom.closing import closed_properly
from loom.config import TrainingConfig, flag, from_dict, to_dict
from loom.errors import UserError
from loom.tracking import RecordedRun, Store
from tuning import report
from tuning.display import Display, described, shown_score
from tuning.final import train_apart
from tuning.objective import objective_of
from tuning.oracles import Kind, hyperband_trials
from tuning.record import Definition, Trial, recorded_definition, recorded_trials
from tuning.space import Space, grid_size
from tuning.study import Study
from tuning.trial import BYTES_PER_PARAMETER, Job, Question
from tuning.workers import Limits, Pool, gpu_memory, memory_share, thread_share


@dataclass(frozen=True)
class Options:
    """The flags of `loom tune`; see `loom tune --help`."""

    trials: int = 0
    oracle: Kind = "random"
    workers: int = 1
    space: tuple[str, ...] = ()
    objective: str = ""
    direction: str = ""
    max_epochs: int = 0
    trial_timeout: float = 0.0
    trial_memory: float = 0.0
    prune: Literal["none", "median"] = "none"
    seeds: int = 1
    max_parameters: int = 0
    keep: int = 1
    gpus: tuple[str, ...] = ()
    resume: str = ""
    warm_start: str = ""
    final: bool = True


DEFAULT_TRIALS = 20
LEAST = {"workers": 1, "seeds": 1, "trials": 0, "keep": 0, "max_parameters": 0, "trial_timeout": 0, "trial_memory": 0}
"""Of the flags that are numbers; 0 stands for what is not given."""


def tune(
    file: AppFile,
    config: TrainingConfig | None,
    pinned: Sequence[str],
    options: Options,
    console: Console,
    start: float,
) -> dict[str, Any]:
    """Searches; returns what `--json` prints.

    Args:
        file: The application.
        config: Settings of what is not searched; None to go on with those of a study.
        pinned: Settings that the command line gives.
        options: The other flags.
        console: Where progress is shown.
        start: Value of `time.perf_counter` when the command started.
    """
    check(options)
    app, store = load_app(file), Store()
    store.check_writable()
    definition = None if options.resume else _definition(app, config, pinned, options)
    study = Study.reopen(app, store, options.resume) if options.resume else None
    count = _count(study, options) if study else 0
    store.client()  # imports MLflow while the server, which workers are forked from, imports TensorFlow
    memory = int(options.trial_memory * 2**30) or memory_share(options.workers)
    asks = (study.definition.prune if study else options.prune) != "none"
    limits, gpus = Limits(options.trial_timeout, memory), gpu_memory(options.gpus) if options.gpus else {}
    job = Job(file, options.max_parameters or memory // BYTES_PER_PARAMETER, asks)
    with Pool(job, options.workers, limits, gpus) as pool:
        if study is None:
            assert definition is not None
            study = _started(app, store, definition, options, pool)
            count = _count(study, options)
        go_on = f"loom tune {file.argument} --resume {study.tracker.run_id}"
        with closed_properly(study.end, go_on), Display(console, study, count) as display:
            study.tracker.restart()
            study.run(pool, count, options.keep, display)
    best = study.completed[0] if study.completed else None
    result: dict[str, Any] = {
        "study": study.tracker.run_id,
        "app": app.name,
        "trials": len(study.trials),
        "failed": sum(trial.status == "failed" for trial in study.trials),
        "best": best and {"run_id": best.run_id, "score": best.score, "settings": best.settings},
    }
    with closed_properly(study.end, go_on):
        with TemporaryDirectory() as folder:
            result["importance"] = report.write(study, Path(folder))
            study.tracker.log_folder(Path(folder), "report")
        _say_what_came_of_it(study, console)
        if best and options.final:
            result["final"] = _final(file, study, best, console)
    study.end()
    return {**result, "seconds": time.perf_counter() - start}


def _say_what_came_of_it(study: Study, console: Console) -> None:
    lines = [f"{len(study.trials)} trials; figures, report.html and trials.csv are on run {study.tracker.run_id}"]
    if study.completed:
        best = study.completed[0]
        lines.append(f"best: trial {best.number}, {study.definition.objective} {shown_score(best)}, run {best.run_id}")
        lines.append(f"  {described(best.settings)}")
    else:
        lines.append("no trial has a score; their reasons are in the report")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _final(file: AppFile, study: Study, best: Trial, console: Console) -> dict[str, Any]:
    """Trains the best configuration as a full run, which alone sees the test data; goes on with one that was killed."""
    config = from_dict(study.app.config, {**study.definition.config, **best.settings})
    tags = {"study": study.tracker.run_id, "trial": best.run_id}
    query = " and ".join(f"tags.{name} = '{value}'" for name, value in {**tags, "kind": "train"}.items())
    begun = study.store.client().search_runs([study.tracker.experiment_id], query, max_results=1)
    if begun and begun[0].info.status == "FINISHED":
        return {"run_id": begun[0].info.run_id, "metrics": begun[0].data.metrics}
    resume = begun[0].info.run_id if begun else ""
    console.print("the best configuration, trained as a full run:", highlight=False)
    return train_apart(file, config, console, resume, tags)


def check(options: Options) -> None:
    """Refuses flags that cannot be meant together.

    Raises:
        UserError: There are such.
    """
    for name in ("oracle", "space", "objective", "direction", "max_epochs", "prune", "seeds", "warm_start"):
        if options.resume and getattr(options, name) != getattr(Options(), name):
            raise UserError(f"--resume goes on with the settings of the study: leave out {flag(name)}")
    for name, least in LEAST.items():
        if getattr(options, name) < least:
            raise UserError(f"{flag(name)} {getattr(options, name)}: must be at least {least}")
    if options.warm_start and options.oracle not in ("random", "bayesian"):
        raise UserError(
            f"--warm-start: {options.oracle} search cannot use trials of another study; random and bayesian can"
        )
    if options.oracle == "hyperband":
        _check_hyperband(options)
    elif options.max_epochs:
        raise UserError("--max-epochs: is for --oracle hyperband; --epochs sets the epochs of every trial")


def _check_hyperband(options: Options) -> None:
    if options.max_epochs < 2:
        raise UserError(
            "--oracle hyperband: needs --max-epochs, the epochs of a trial that is never stopped, at least 2"
        )
    if options.trials:
        raise UserError("--trials: Hyperband makes as many as --max-epochs asks for; leave it out")
    if options.prune != "none":
        raise UserError(f"--prune {options.prune}: Hyperband stops trials itself; leave it out")
    if options.seeds > 1:
        raise UserError("--seeds: Hyperband goes on with the training of a trial, which has one seed; leave it out")


def _definition(app: App, config: TrainingConfig | None, pinned: Sequence[str], options: Options) -> Definition:
    """What a new study is, but for its objective."""
    assert config is not None
    if config.split_seed == -1:  # other seeds must not let the search see test examples
        config = replace(config, split_seed=config.seed)
    space = Space(app, config, options.space, pinned)
    if options.oracle == "hyperband" and "epochs" in space.varied:
        raise UserError("--space epochs: Hyperband sets the epochs itself; leave it out")
    return Definition(
        app=app.name,
        oracle=options.oracle,
        objective=options.objective,
        direction="min",
        seed=config.seed,
        config=to_dict(config),
        threads=config.threads or thread_share(options.workers),
        prune=options.prune,
        changes=[*options.space],
        pinned=[*pinned],
        space=space.to_json(),
        max_epochs=options.max_epochs,
        seeds=options.seeds,
    )


def _started(app: App, store: Store, definition: Definition, options: Options, pool: Pool) -> Study:
    """A new study, once a worker has found its objective among the metrics."""
    names = pool.ask(Question({**definition.config, "threads": definition.threads}))
    objective, direction = objective_of(app, names, options)
    definition = replace(definition, objective=objective, direction=direction)
    if options.warm_start:
        space = Space(app, from_dict(app.config, definition.config), definition.changes, definition.pinned)
        definition = replace(definition, known=_known(app, store, space, objective, options.warm_start))
    return Study.create(app, store, definition)


def _known(app: App, store: Store, space: Space, objective: str, study: str) -> list[tuple[dict[str, Any], float]]:
    """Finished trials of an earlier study, as far as they lie in the space of the new one."""
    earlier = recorded_definition(store, study, app.name)
    if objective != earlier.objective:
        raise UserError(f"--warm-start {study}: its scores are {earlier.objective}, not {objective}")
    found = []
    for trial in recorded_trials(store, RecordedRun(store, store.run(study))):
        values = space.placed({**earlier.config, **trial.settings})
        if trial.score is not None and values is not None:
            found.append((values, trial.score))
    if not found:
        raise UserError(f"--warm-start {study}: none of its finished trials lies in this search space")
    return found


def _count(study: Study, options: Options) -> int:
    """Number of trials that the study is to have."""
    if study.definition.oracle == "hyperband":
        if options.trials:
            raise UserError("--trials: Hyperband makes as many as its --max-epochs asks for; leave it out")
        return hyperband_trials(study.space.hyperparameters, study.definition.max_epochs)
    recorded = int(study.tracker.tags().get("trials", 0))
    count = options.trials or recorded or DEFAULT_TRIALS
    if study.definition.oracle == "grid" and not (options.trials or recorded):
        count = grid_size(study.space.hyperparameters)
    if count < len(study.trials):
        raise UserError(f"--trials {count}: the study has {len(study.trials)} already")
    study.tracker.set_tags({"trials": str(count)})
    return count
