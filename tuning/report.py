"""What a study came to: figures, a table of all trials, and one page that holds everything."""

from __future__ import annotations

import base64
import csv
import io
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from loom import fonts
from loom.report import new_figure
from tuning.display import described, shown_score
from tuning.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST_FOR_IMPORTANCE = 10
"""Completed trials; a forest on fewer says nothing."""
FOLDS, TREES, SHUFFLES = 5, 100, 5
BEST_SHOWN = 10


def write(study: Study, folder: Path) -> dict[str, float]:
    """Writes figures, `trials.csv` and `report.html`; returns the importance of each hyperparameter."""
    figures = {"best_so_far": best_so_far(study)}
    if study.completed:
        figures["cost"] = cost(study)
        figures["parallel_coordinates"] = parallel_coordinates(study)
    shares = importance(study)
    if shares:
        figures["importance"] = importance_figure(shares)
    for name, figure in figures.items():
        fonts.save(figure, folder / f"{name}.png")
    (folder / "trials.csv").write_text(table(study), encoding="utf-8")
    images = {name: (folder / f"{name}.png").read_bytes() for name in figures}
    (folder / "report.html").write_text(page(study, shares, images), encoding="utf-8")
    return shares


def best_so_far(study: Study) -> Figure:
    """Score of every trial in the order of their ends, and the best until then."""
    figure, (axis,) = new_figure(width=8.0)
    ended = sorted((trial for trial in study.trials if trial.end is not None), key=lambda trial: trial.end or 0)
    places = range(1, len(ended) + 1)
    scores = np.array([np.nan if trial.score is None else trial.score for trial in ended])
    axis.plot(places, scores, "o", markersize=4, alpha=0.6, label="trials")
    best = np.fmin if study.definition.direction == "min" else np.fmax
    if np.isfinite(scores).any():
        axis.step(places, best.accumulate(scores), where="post", label="best so far")
    for status, marker in (("failed", "x"), ("pruned", "v")):
        stopped = [place for place, trial in zip(places, ended, strict=True) if trial.status == status]
        if stopped:
            base = axis.get_ylim()[0]
            axis.plot(stopped, [base] * len(stopped), marker, markersize=5, color="0.4", label=status, clip_on=False)
    axis.set(xlabel="trials that have ended", ylabel=study.definition.objective)
    axis.locator_params(axis="x", integer=True)
    axis.legend(frameon=False)
    return figure


def cost(study: Study) -> Figure:
    """Score against the time and the size of the model."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    figure, axes = new_figure(2, 4.5)
    scores = [trial.score or 0.0 for trial in study.completed]
    for axis, name in zip(axes, ("seconds", "parameters"), strict=True):
        axis.plot([getattr(trial, name) for trial in study.completed], scores, "o", markersize=4, alpha=0.7)
        axis.set(xlabel=name, ylabel=study.definition.objective)
    if all(trial.parameters > 0 for trial in study.completed):
        axes[1].set_xscale("log")
        axes[1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[1].xaxis.set_major_formatter(EngFormatter(sep=""))
        axes[1].xaxis.set_minor_formatter(NullFormatter())
    return figure


def parallel_coordinates(study: Study) -> Figure:
    """One line per completed trial through its values; the colour is its score."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scales = {name: Scale(study, name) for name in study.space.varied}
    figure, (axis,) = new_figure(width=max(6.0, 1.8 * (len(scales) + 1)), height=4.5)
    scores = [trial.score or 0.0 for trial in study.completed]
    good = colormaps["viridis"] if study.definition.direction == "max" else colormaps["viridis_r"]
    shades = ScalarMappable(Normalize(min(scores), max(scores)), good)
    for trial in reversed(study.completed):
        heights = [scale.height(trial.settings.get(name)) for name, scale in scales.items()]
        axis.plot(range(len(scales)), heights, color=shades.to_rgba(np.array(trial.score)), alpha=0.7, linewidth=1.2)
    for place, (name, scale) in enumerate(scales.items()):
        axis.axvline(place, color="0.8", linewidth=0.8, zorder=0)
        for height, label in scale.marks():
            axis.annotate(label, (place, height), xytext=(4, 0), textcoords="offset points", fontsize=8, va="center")
        axis.annotate(name, (place, 1.06), ha="center", fontsize=9, annotation_clip=False)
    axis.set(xticks=[], yticks=[], ylim=(-0.05, 1.05))
    axis.spines[["left", "bottom"]].set_visible(False)
    figure.colorbar(shades, ax=axis, label=study.definition.objective)
    return figure


class Scale:
    """Where the values of one hyperparameter stand between 0 and 1."""

    def __init__(self, study: Study, name: str) -> None:
        found = [trial.settings.get(name) for trial in study.completed]
        self.values = [value for value in found if value is not None]
        numbers = bool(self.values) and all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in self.values
        )
        self.is_number = numbers
        sampling = [getattr(hp, "sampling", None) for hp in study.space.hyperparameters.space if hp.name == name]
        self.is_log = numbers and "log" in sampling and min(self.values) > 0
        self.choices = sorted(set(map(str, self.values)))

    def number(self, value: Any) -> float:
        """A number for the value; missing ones have the place below all others."""
        if value is None:
            return -1.0
        if not self.is_number:
            return float(self.choices.index(str(value)))
        return math.log(value) if self.is_log else float(value)

    def height(self, value: Any) -> float:
        """Place between 0 and 1; not a number where there is no value."""
        if value is None:
            return math.nan
        numbers = [self.number(each) for each in self.values]
        low, high = min(numbers), max(numbers)
        return 0.5 if low == high else (self.number(value) - low) / (high - low)

    def marks(self) -> list[tuple[float, str]]:
        """Places and labels of some values."""
        if not self.is_number:
            by_name = {str(value): value for value in self.values}
            return [(self.height(by_name[name]), name) for name in self.choices]
        middle = sorted(self.values)[len(self.values) // 2]
        chosen = dict.fromkeys((min(self.values), middle, max(self.values)))
        return [(self.height(value), f"{value:g}") for value in chosen]


def importance(study: Study) -> dict[str, float]:
    """Share of each hyperparameter in what a forest can say about the order of the scores.

    Empty for few trials, and where the forest ranks trials it has not seen no better than their mean would.

    A random forest learns the ranks of the scores from the values. How much worse it ranks trials it has not seen, when
    the values of one hyperparameter are shuffled among them, is that one's importance (Breiman, 2001, "Random
    forests").
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.model_selection import KFold

    trials, names = study.completed, study.space.varied
    if len(trials) < FEWEST_FOR_IMPORTANCE:
        return {}
    scales = {name: Scale(study, name) for name in names}
    values = np.array([[scales[name].number(trial.settings.get(name)) for name in names] for trial in trials])
    ranks = np.argsort(np.argsort([trial.score or 0.0 for trial in trials])).astype(float)
    totals, predicted = np.zeros(len(names)), np.zeros(len(ranks))
    for learned, unseen in KFold(FOLDS, shuffle=True, random_state=0).split(values):
        forest = RandomForestRegressor(TREES, random_state=0, min_samples_leaf=2).fit(values[learned], ranks[learned])
        found = permutation_importance(
            forest, values[unseen], ranks[unseen], scoring="neg_mean_squared_error", n_repeats=SHUFFLES, random_state=0
        )
        totals += found.importances_mean
        predicted[unseen] = forest.predict(values[unseen])
    totals = np.maximum(totals, 0)
    if not totals.sum() or np.square(predicted - ranks).sum() >= np.square(ranks - ranks.mean()).sum():
        return {}
    shares = totals / totals.sum()
    return dict(sorted(zip(names, map(float, shares), strict=True), key=lambda share: -share[1]))


def importance_figure(shares: Mapping[str, float]) -> Figure:
    """Bars, the longest on top."""
    figure, (axis,) = new_figure(width=6.0, height=0.8 + 0.35 * len(shares))
    names = list(shares)[::-1]
    axis.barh(names, [shares[name] for name in names])
    axis.set(xlabel="share of what the values say about the score")
    return figure


def table(study: Study) -> str:
    """All trials as CSV."""
    names = study.space.varied
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    spread = ["score_spread"] if study.definition.seeds > 1 else []
    writer.writerow(["trial", "status", "score", *spread, *names, "seconds", "parameters", "run_id", "reason"])
    for trial in study.trials:
        score = "" if trial.score is None else repr(trial.score)
        values = [trial.settings.get(name, "") for name in names]
        spreads = ["" if trial.spread is None else repr(trial.spread) for _ in spread]
        cells = [trial.number, trial.status, score, *spreads, *values, f"{trial.seconds:.2f}", trial.parameters]
        writer.writerow([*cells, trial.run_id, trial.reason])
    return text.getvalue()


def outlook(study: Study) -> str:
    """Whether more trials look worth it, from what half of them would have found."""
    scores = [trial.score or 0.0 for trial in study.completed]
    if len(scores) < 4:
        return "Too few trials have a score to say whether more look worth it."
    best = study.better(scores)
    last = max(trial.number for trial in study.completed if trial.score == best)
    generator = np.random.default_rng(0)
    halves = [study.better(generator.choice(scores, len(scores) // 2, replace=False)) for _ in range(2000)]
    gain = abs(best - float(np.mean(halves)))
    spread = statistics.stdev(scores)
    verdict = "more trials look worth it" if gain > 0.1 * spread else "many more trials look hardly worth it"
    return (
        f"The best score, {best:.4g}, came with trial {last} of {len(study.trials)}. A random half of the trials "
        f"would have come to {float(np.mean(halves)):.4g} on average, so twice as many may bring another {gain:.2g}, "
        f"beside a standard deviation of {spread:.2g} between trials: {verdict}."
    )


PAGE = """<!doctype html>
<html>
<head>
<meta charset="utf-8">
<title>{{ study.definition.app }}: {{ study.definition.oracle }} search</title>
<style>
body { font: 15px sans-serif; max-width: 60em; margin: 2em auto }
table { border-collapse: collapse }
td, th { padding: .2em .8em; text-align: left }
img { max-width: 100% }
</style>
</head>
<body>
<h1>{{ study.definition.app }}: {{ study.definition.oracle }} search for {{ study.definition.objective }}</h1>
<p>{{ study.trials | length }} trials:
{% for status, trials in study.trials | groupby("status") %}
{{ trials | length }} {{ status }}{{ ", " if not loop.last }}
{%- endfor %}. {{ spread }} {{ outlook }}</p>
<h2>Best trials</h2>
<table>
<tr><th>trial</th><th>{{ study.definition.objective }}</th><th>settings</th><th>seconds</th><th>parameters</th>
<th>run</th></tr>
{% for trial in study.completed[:shown] %}
<tr><td>{{ trial.number }}</td><td>{{ shown_score(trial) }}</td><td>{{ described(trial.settings) }}</td>
<td>{{ "%.1f" | format(trial.seconds) }}</td><td>{{ trial.parameters }}</td><td>{{ trial.run_id }}</td></tr>
{% endfor %}
</table>
{% if shares %}
<h2>Importance</h2>
<p>{% for name, share in shares.items() %}{{ name }} {{ "%.0f" | format(100 * share) }} %{{ ", " if not loop.last }}
{%- endfor %}</p>
{% endif %}
{% for trial in study.trials if trial.reason %}
{% if loop.first %}<h2>Trials without a score</h2><ul>{% endif %}
<li>trial {{ trial.number }} ({{ trial.status }}): {{ trial.reason }}</li>
{% if loop.last %}</ul>{% endif %}
{% endfor %}
{% for name, image in images.items() %}
<h2>{{ name.replace("_", " ") }}</h2>
<img alt="{{ name }}" src="data:image/png;base64,{{ image }}">
{% endfor %}
</body>
</html>
"""


def page(study: Study, shares: Mapping[str, float], images: Mapping[str, bytes]) -> str:
    """Everything as one HTML page without links to other files."""
    scores = [trial.score or 0.0 for trial in study.completed]
    spread = f"Scores: {statistics.mean(scores):.4g} ± {statistics.stdev(scores):.2g}." if len(scores) > 1 else ""
    return (
        jinja2.Environment(autoescape=True, trim_blocks=True)
        .from_string(PAGE)
        .render(
            study=study,
            spread=spread,
            outlook=outlook(study),
            shares=shares,
            images={name: base64.b64encode(image).decode() for name, image in images.items()},
            described=described,
            shown_score=shown_score,
            shown=BEST_SHOWN,
        )
    )
