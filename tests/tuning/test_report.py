"""The study's report: what is drawn and said agrees with the trials."""

from __future__ import annotations

import csv
import io
import math
import random
from types import SimpleNamespace
from typing import Any

import pytest
from support import ROOT

from loom.app import load_app, locate_app
from tuning import report
from tuning.record import Trial
from tuning.space import Space

APP = load_app(locate_app(str(ROOT / "tests" / "helpers" / "toy.py")))


def study(count: int = 40, direction: str = "max", seeds: int = 1) -> Any:
    """Trials whose score follows the learning rate, a little the units, and never the activation."""
    generator, space, trials = random.Random(0), Space(APP, APP.config()), []
    for number in range(1, count + 1):
        settings = {
            "units": generator.randint(2, 64),
            "activation": generator.choice(["relu", "tanh"]),
            "learning_rate": 10 ** generator.uniform(-3, -1),
        }
        score = -((math.log10(settings["learning_rate"]) + 2) ** 2) + 0.003 * settings["units"]
        trial = Trial(number, f"run{number}", "", {}, settings, 2 * number, 2 * number + 1, "completed", score)
        trial.seconds, trial.parameters = 1.0 + number, 4 * settings["units"]
        trial.scores = [score - 0.1, score + 0.1][:seeds]
        trials.append(trial)
    trials[3].status, trials[3].score, trials[3].reason = "failed", None, "<b>no such thing</b>"
    trials[7].status, trials[7].score, trials[7].reason = "pruned", None, "pruned in epoch 2"
    completed = [trial for trial in trials if trial.score is not None]
    completed.sort(key=lambda trial: trial.score or 0.0, reverse=direction == "max")
    definition = SimpleNamespace(app="toy", oracle="random", objective="val_accuracy", direction=direction, seeds=seeds)
    better = max if direction == "max" else min
    return SimpleNamespace(trials=trials, completed=completed, space=space, definition=definition, better=better)


def test_the_most_important_hyperparameter_is_found() -> None:
    shares = report.importance(study())
    assert next(iter(shares)) == "learning_rate"
    assert shares["learning_rate"] > 0.7
    assert shares["activation"] < 0.1
    assert sum(shares.values()) == pytest.approx(1)
    assert report.importance(study(8)) == {}


def test_nothing_is_important_for_random_scores() -> None:
    given, generator = study(60), random.Random(1)
    for trial in given.completed:
        trial.score = generator.random()
    assert report.importance(given) == {}


@pytest.mark.parametrize("direction", ["min", "max"])
def test_best_so_far_never_gets_worse(direction: str) -> None:
    given = study(direction=direction)
    _, best, *_ = report.best_so_far(given).axes[0].lines
    heights = [height for height in best.get_ydata() if not math.isnan(height)]
    assert heights == sorted(heights, reverse=direction == "min")
    assert heights[-1] == given.completed[0].score


def test_parallel_coordinates_have_a_line_for_every_scored_trial() -> None:
    given = study()
    axis = report.parallel_coordinates(given).axes[0]
    lines = [line for line in axis.lines if len(line.get_ydata()) == 3]
    assert len(lines) == len(given.completed) == 38
    assert all(0 <= height <= 1 for line in lines for height in line.get_ydata())


def test_the_table_has_every_trial() -> None:
    given = study(seeds=2)
    rows = list(csv.DictReader(io.StringIO(report.table(given))))
    assert [row["trial"] for row in rows] == [str(trial.number) for trial in given.trials]
    assert [row["score"] for row in rows] == ["" if each.score is None else repr(each.score) for each in given.trials]
    assert float(rows[0]["score_spread"]) == pytest.approx(0.2 / math.sqrt(2))
    assert rows[3]["reason"] == "<b>no such thing</b>"
    assert "score_spread" not in report.table(study())


def test_the_page_stands_alone_and_takes_no_markup_from_reasons() -> None:
    given = study(seeds=2)
    page = report.page(given, {"units": 0.75, "learning_rate": 0.25}, {"cost": b"image"})
    assert "&lt;b&gt;no such thing" in page
    assert "<b>" not in page
    assert 'src="data:image/png;base64,' in page
    assert "http" not in page
    assert "38 completed" in page
    assert "units 75 %" in page
    assert " ± " in page


def test_more_trials_are_worth_it_while_the_best_still_moves() -> None:
    given = study()
    for trial in given.completed:
        trial.score = 1.0
    given.completed[0].score = 1.5
    assert "more trials look worth it" in report.outlook(given)
    for trial in given.completed:
        trial.score = 1.0 + 1e-3 * (trial.number % 5)
    assert "hardly worth it" in report.outlook(given)
    given.completed = given.completed[:3]
    assert "Too few" in report.outlook(given)
