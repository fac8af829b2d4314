"""The problems of `benchmarks/memory.py` are what their definitions say, and its measures are right."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "memory.py"


@pytest.fixture(scope="module")
def memory() -> ModuleType:
    spec = importlib.util.spec_from_file_location("memory", SCRIPT)
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_adding_has_two_markers_and_their_numbers_sum(memory: ModuleType) -> None:
    problem = memory.Adding(20)
    sequence, sums = problem.batch(np.random.default_rng(0), 5000)
    numbers, markers = sequence[..., 0], sequence[..., 1]
    assert sequence.shape == (5000, 20, 2)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert numbers.mean() == pytest.approx(0.5, abs=0.01)
    assert set(np.unique(markers)) == {0, 1}
    np.testing.assert_array_equal(markers[:, :10].sum(axis=1), 1)
    np.testing.assert_array_equal(markers[:, 10:].sum(axis=1), 1)
    assert (markers.sum(axis=0) > 0).all()  # anywhere
    marked = np.sort(np.where(markers == 1, numbers, -1), axis=1)[:, -2:]
    np.testing.assert_allclose(marked.sum(axis=1, keepdims=True), sums, rtol=1e-6)
    assert problem.score(np.ones_like(sums), sums) == pytest.approx(problem.baseline, rel=0.05)


def test_copying_asks_for_the_first_symbols_after_the_delay(memory: ModuleType) -> None:
    problem = memory.Copying(7)
    sequence, symbols = problem.batch(np.random.default_rng(0), 500)
    read = sequence.argmax(axis=-1)
    np.testing.assert_array_equal(sequence.sum(axis=-1), 1)
    np.testing.assert_array_equal(read[:, :10], symbols)
    assert set(np.unique(symbols)) == set(range(8))
    np.testing.assert_array_equal(read[:, 10:16], 8)  # blanks
    np.testing.assert_array_equal(read[:, 16], 9)  # the signal
    np.testing.assert_array_equal(read[:, 17:], 8)
    assert read.shape == (500, problem.steps) == (500, 27)


def test_recall_is_the_share_of_right_symbols(memory: ModuleType) -> None:
    problem = memory.Copying(50)
    symbols = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 0, 1]] * 2)
    answers = np.eye(8)[symbols]
    assert problem.score(answers, symbols) == 1
    answers[0, :3] = np.roll(answers[0, :3], 1, axis=-1)
    assert problem.score(answers, symbols) == pytest.approx(0.85)
    assert problem.solved(0.99)
    assert not problem.solved(0.9899)
    assert not problem.solved(0.99, margin=0.1)


def test_training_and_test_sequences_differ(memory: ModuleType) -> None:
    first, second = (memory.Copying(50).batch(np.random.default_rng(seed), 2000)[1] for seed in (0, 2))
    assert not {tuple(row) for row in first} & {tuple(row) for row in second}


def test_the_linear_forecast_goes_on_with_a_wave(memory: ModuleType) -> None:
    """A sine wave follows from its last two values exactly."""
    series = np.sin(np.arange(memory.SERIES) / 7)
    forecast = memory.LinearForecast(series, lags=2)
    weights = memory._readouts(forecast.features, series)[1e-12]
    starts = np.array([5000, 6001])
    np.testing.assert_allclose(forecast.ahead(weights, starts), series[starts + memory.AHEAD], atol=1e-6)
    assert memory._error(series[starts + memory.AHEAD], series, starts) == 0
    assert memory._error(series[starts + memory.AHEAD] + np.std(series), series, starts) == pytest.approx(1)


def test_the_echo_state_forecast_reads_its_own_output(memory: ModuleType) -> None:
    """With a readout of the value alone, which is handed on, it never changes."""
    series = np.sin(np.arange(300) / 7)
    forecast = memory.EchoForecast(series, memory.GIVEN, seed=0)
    weights = np.zeros(forecast.features.shape[1])
    weights[-2] = 1
    starts = np.array([100, 200])
    np.testing.assert_allclose(forecast.ahead(weights, starts), series[starts])
    assert 20 < forecast.steps_to_forget() < 300


@pytest.mark.slow
def test_quick_run_solves_its_problems(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--json", "memory.json", "--figure", "memory.png"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))
    assert all(row["solved"] for row in result["rows"])
    assert result["mackey_glass"]["rows"][0]["error"] < 0.05
    assert (tmp_path / "memory.png").stat().st_size > 10_000
