"""Comparisons by the command: every variant with every seed, side by side."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, Outcome, client, loom

from loom import UserError
from loom.app import load_app, locate_app
from tuning.compare import Options, variants_of

TOY = str(ROOT / "tests" / "helpers" / "toy.py")


def compare(folder: Path, *arguments: str) -> Outcome:
    return loom("compare", TOY, "--json", *arguments, cwd=folder)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("compared")
    varied = ("--vary", "units=2,16", "--vary", "trouble=none,raise")
    outcome = compare(folder, *varied, "--seeds", "2", "--workers", "2", "--objective", "val_accuracy")
    assert outcome.status == 0, outcome.errors
    return folder, outcome


def children(folder: Path, comparison: str) -> list[Any]:
    return list(client(folder).search_runs(["1"], f"tags.study = '{comparison}' and tags.kind = 'variant'"))


def test_every_variant_is_trained_with_every_seed(compared: tuple[Path, Outcome]) -> None:
    folder, outcome = compared
    runs = children(folder, outcome.result["comparison"])
    combinations = {(run.data.params["units"], run.data.params["trouble"], run.data.params["seed"]) for run in runs}
    assert len(runs) == len(combinations) == 2 * 2 * 2
    for run in runs:
        fine = run.data.params["trouble"] == "none"
        assert run.data.tags["mlflow.parentRunId"] == outcome.result["comparison"]
        assert (run.info.status, run.data.tags["status"]) == (
            ("FINISHED", "completed") if fine else ("FAILED", "failed")
        )
        assert ("reason" in run.data.tags) == (not fine)
        assert not any(name.startswith("test_") for name in run.data.metrics)
    assert client(folder).get_run(outcome.result["comparison"]).info.status == "FINISHED"
    assert not list(folder.glob("mlruns/artifacts/*/*/artifacts/checkpoint"))


def test_the_table_is_the_mean_and_spread_of_the_runs(compared: tuple[Path, Outcome]) -> None:
    folder, outcome = compared
    scores: dict[str, list[float]] = {}
    for run in children(folder, outcome.result["comparison"]):
        if run.data.params["trouble"] == "none":
            scores.setdefault(run.data.params["units"], []).append(run.data.metrics["score"])
    rows = outcome.result["variants"]
    assert [row["mean"] is None for row in rows] == [False, False, True, True]
    for row in rows[:2]:
        found = scores[str(row["settings"]["units"])]
        assert row["mean"] == pytest.approx(statistics.mean(found))
        assert row["spread"] == pytest.approx(statistics.stdev(found))
        assert f"{row['mean']:.4f}" in outcome.errors
    assert rows[0]["mean"] >= rows[1]["mean"]
    (report,) = folder.glob(f"mlruns/artifacts/*/{outcome.result['comparison']}/artifacts/report")
    assert (report / "comparison.png").read_bytes().startswith(b"\x89PNG")
    recorded = json.loads((report / "comparison.json").read_text("utf-8"))
    assert [row["scores"] for row in recorded] == [row["scores"] for row in rows]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(
            ["--vary", "units=1,2", "--objective", "val_f1"],
            ["--objective val_f1", "val_accuracy"],
            marks=pytest.mark.slow,
        ),
        (["--vary", "units=1,2", "--units", "3"], ["--units gives it one value"]),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    outcome = compare(tmp_path, *arguments)
    assert outcome.status == 2, outcome.errors
    assert outcome.errors.count("\n") == 1
    assert all(word in outcome.errors for word in words), outcome.errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(), "--vary NAME=VALUE,VALUE"),
        (Options(("unit=1,2",)), "--vary unit=1,2: .*did you mean units"),
        (Options(("epochs=0,1",)), "--epochs 0"),
        (Options(("seed=1,2",)), "--seeds says how many"),
        (Options(("units=1,2",), seeds=0), "--seeds 0"),
        (Options(("units=1,2",), workers=0), "--workers 0"),
        (Options(("units=1,2", "units=3")), "units is given twice"),
    ],
)
def test_variants_that_cannot_be_are_refused(options: Options, words: str) -> None:
    config = load_app(locate_app(TOY)).config()
    with pytest.raises(UserError, match=words):
        variants_of(config, options, [])
