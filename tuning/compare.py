"""What `loom compare` does: every variant with several seeds, side by side."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from loom import fonts
from loom.app import App, AppFile, load_app
from loom.closing import closed_properly
from loom.config import TrainingConfig, flag, to_dict
from loom.errors import UserError
from loom.report import new_figure
from loom.tracking import RecordedRun, Store, Tracker, run_tags
from tuning.display import described
from tuning.objective import objective_of
from tuning.record import log_settings
from tuning.space import typed_values
from tuning.trial import BYTES_PER_PARAMETER, Done, Epoch, Failed, Job, Question, Task
from tuning.workers import Limits, Pool, memory_share, thread_share

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Options:
    """The flags of `loom compare`; see `loom compare --help`."""

    vary: tuple[str, ...] = ()
    seeds: int = 3
    workers: int = 1
    objective: str = ""
    direction: str = ""


@dataclass
class Variant:
    """Settings that are compared with others.

    Attributes:
        settings: What is different.
        scores: Best objective with every seed that came to its end.
        reasons: Why the others did not.
    """

    settings: dict[str, Any]
    scores: list[float]
    reasons: list[str]

    @property
    def mean(self) -> float:
        """Of its scores."""
        return statistics.mean(self.scores)

    @property
    def spread(self) -> float:
        """Standard deviation of its scores."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else 0.0


def compare(
    file: AppFile, config: TrainingConfig, given: Sequence[str], options: Options, console: Console, start: float
) -> dict[str, Any]:
    """Trains every variant with every seed; returns what `--json` prints.

    Args:
        file: The application.
        config: Settings of what does not vary.
        given: Settings that the command line gives one value.
        options: The flags.
        console: Where progress is shown.
        start: Value of `time.perf_counter` when the command started.
    """
    app, store = load_app(file), Store()
    store.check_writable()
    variants = variants_of(config, options, given)
    store.client()  # imports MLflow while the server, which workers are forked from, imports TensorFlow
    memory = memory_share(options.workers)
    with Pool(Job(file, memory // BYTES_PER_PARAMETER), options.workers, Limits(0, memory)) as pool:
        config = replace(config, threads=config.threads or thread_share(options.workers))
        objective, direction = objective_of(app, pool.ask(Question(to_dict(config))), options)
        tracker = Tracker.create(store, app.name, run_tags(app.name, "compare", {}), " ".join(options.vary)[:60])
        tracker.log_parameters({"vary": " ".join(options.vary), "seeds": options.seeds, "objective": objective})
        comparison = _Comparison(app, store, tracker, objective, direction, console)
        with closed_properly(comparison.end):
            comparison.run(pool, config, variants, options.seeds)
            sign = -1 if direction == "max" else 1
            variants.sort(key=lambda variant: (not variant.scores, sign * variant.mean if variant.scores else 0))
            comparison.report(variants)
    comparison.end()
    rows = [
        {
            "settings": each.settings,
            "mean": each.mean if each.scores else None,
            "spread": each.spread,
            "scores": each.scores,
        }
        for each in variants
    ]
    return {
        "comparison": tracker.run_id,
        "objective": objective,
        "variants": rows,
        "seconds": time.perf_counter() - start,
    }


def variants_of(config: TrainingConfig, options: Options, given: Sequence[str]) -> list[Variant]:
    """Every combination of what varies.

    Raises:
        UserError: Nothing varies, a setting is unknown or given twice, or the application refuses a combination.
    """
    if not options.vary:
        raise UserError("--vary NAME=VALUE,VALUE names what to compare")
    if options.seeds < 1:
        raise UserError(f"--seeds {options.seeds}: must be at least 1")
    if options.workers < 1:
        raise UserError(f"--workers {options.workers}: must be at least 1")
    lists: dict[str, list[Any]] = {}
    for text in options.vary:
        name, values = typed_values("--vary", text, config)
        if name in lists:
            raise UserError(f"--vary {text}: {name} is given twice")
        if name in given:
            raise UserError(f"--vary {text}: {flag(name)} gives it one value; leave out one of them")
        lists[name] = values
    if "seed" in lists:
        raise UserError("--vary seed: --seeds says how many")
    variants = [Variant(dict(zip(lists, values, strict=True)), [], []) for values in itertools.product(*lists.values())]
    for variant in variants:
        replace(config, **variant.settings)  # raises where the application refuses a variant
    return variants


class _Comparison:
    """Runs and reports variants."""

    def __init__(
        self, app: App, store: Store, tracker: Tracker, objective: str, direction: str, console: Console
    ) -> None:
        self._app, self._store, self._tracker, self._console = app, store, tracker, console
        self._objective, self._direction = objective, direction
        self._running: dict[str, tuple[int, Variant]] = {}

    def run(self, pool: Pool, config: TrainingConfig, variants: Sequence[Variant], seeds: int) -> None:
        """Trains all of them, seed by seed."""
        waiting = [(seed, variant) for seed in range(config.seed, config.seed + seeds) for variant in variants]
        count, ended = len(waiting), 0
        running, again = self._running, list[Task]()
        while waiting or running:
            while waiting and pool.is_free:
                seed, variant = waiting.pop(0)
                task = self._task(config, variant, seed)
                running[task.run_id] = seed, variant
                pool.submit(task)
            for event in pool.events():
                if isinstance(event.message, Epoch) or not isinstance(event.task, Task):
                    continue
                if isinstance(event.message, Failed) and event.message.was_killed and event.task not in again:
                    again.append(event.task)
                    pool.submit(event.task)  # it goes on from its last epoch
                    continue
                seed, variant = running.pop(event.task.run_id)
                ended += 1
                self._end(event.task.run_id, variant, event.message)
                result = (
                    f"{self._objective} {variant.scores[-1]:.4f}"
                    if isinstance(event.message, Done)
                    else variant.reasons[-1]
                )
                line = f"{ended}/{count} {described(variant.settings)} seed={seed}: {result}"
                self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def end(self, status: str = "FINISHED", reason: str = "") -> None:
        """Closes the comparison's run, and those that have not ended."""
        for run_id in self._running:
            self._store.client().set_terminated(run_id, "KILLED")
        self._tracker.finish(status, reason)

    def _task(self, config: TrainingConfig, variant: Variant, seed: int) -> Task:
        settings = {**variant.settings, "seed": seed}
        tags = run_tags(self._app.name, "variant", {"threads": str(config.threads)}) | {
            "mlflow.parentRunId": self._tracker.run_id,
            "study": self._tracker.run_id,
            "status": "running",
            "settings": json.dumps(settings),
        }
        run = self._store.client().create_run(self._tracker.experiment_id, run_name=described(settings)[:60], tags=tags)
        log_settings(RecordedRun(self._store, run), to_dict(replace(config, **settings)), settings)
        return Task(run.info.run_id, to_dict(replace(config, **settings)), self._objective, self._direction)  # type: ignore[arg-type]

    def _end(self, run_id: str, variant: Variant, message: Any) -> None:
        from loom import checkpoint

        client = self._store.client()
        if isinstance(message, Done):
            variant.scores.append(message.score)
            client.log_metric(run_id, "score", message.score)
        elif isinstance(message, Failed):
            variant.reasons.append(message.reason)
            client.set_tag(run_id, "reason", message.reason[:5000])
        client.set_tag(run_id, "status", "completed" if isinstance(message, Done) else "failed")
        checkpoint.remove(RecordedRun(self._store, self._store.run(run_id)))
        client.set_terminated(run_id, "FINISHED" if isinstance(message, Done) else "FAILED")

    def report(self, variants: Sequence[Variant]) -> None:
        """Puts table and figure on the screen and on the parent run."""
        shown = Table("variant", f"{self._objective}, mean", "standard deviation", "seeds")
        for variant in variants:
            mean = f"{variant.mean:.4f}" if variant.scores else "failed"
            spread = f"{variant.spread:.4f}" if len(variant.scores) > 1 else ""
            shown.add_row(described(variant.settings), mean, spread, str(len(variant.scores)))
        self._console.print(shown)
        with TemporaryDirectory() as folder:
            fonts.save(figure(variants, self._objective), Path(folder) / "comparison.png")
            rows = [{"settings": variant.settings, "scores": variant.scores} for variant in variants]
            (Path(folder) / "comparison.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
            self._tracker.log_folder(Path(folder), "report")


def figure(variants: Sequence[Variant], objective: str) -> Figure:
    """A dot for every seed, a bar for mean and standard deviation of every variant; the best on top."""
    drawn, (axis,) = new_figure(width=7.0, height=1.0 + 0.4 * len(variants))
    for place, variant in enumerate(reversed(variants)):
        axis.plot(variant.scores, [place] * len(variant.scores), "o", markersize=4, alpha=0.5, color="C0")
        if variant.scores:
            axis.errorbar(variant.mean, place, xerr=variant.spread, fmt="|", color="C1", capsize=3, markersize=12)
    axis.set_yticks(range(len(variants)), [described(variant.settings) for variant in reversed(variants)])
    axis.set(xlabel=f"{objective}: seeds, mean and standard deviation")
    return drawn
