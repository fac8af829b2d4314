"""Forecasting: nothing is known of what comes later, every model learns, measures, calibrated quantiles, answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from support import loom

from apps import forecasting
from apps.forecasting import APP, Config
from loom import Data, UserError, forecasts
from loom.data.sample_series import seasonal
from loom.data.series import FORECAST, HISTORY, in_units
from loom.forecasts import Scores
from loom.run import Run, measure
from loom.train import build_run
from loom.trained import Trained

HOURS = 420
LEVELS = (0.1, 0.5, 0.9)
SMALL: dict[str, Any] = {"look_back": 24, "horizon": 6, "epochs": 2, "learning_rate": 0.01, "test_fraction": 0.3}
TINY: dict[str, Any] = {
    **{"look_back": 12, "horizon": 3, "patch_length": 4, "patch_stride": 2, "units": 4, "heads": 2, "depth": 2},
    **{"feed_forward_units": 6, "dropout": 0.0},
}
ALL: dict[str, Any] = {"mixed": True, "calendar": True, "quantiles": "0.2,0.5"}
MODELS = ("linear", "elman", "lstm", "gru", "echo_state", "encoder_decoder", "transformer")


def holed(name: str, seed: int) -> pd.DataFrame:
    """A series without some rows and some values."""
    rng = np.random.default_rng(seed)
    frame = seasonal(HOURS, seed).assign(place=name)
    for column in ("households", "temperature"):
        frame.loc[rng.random(HOURS) < 0.15, column] = None
    return frame.drop(index=[40, 41, *range(300, 306), *range(380, 400, 3)])


def settings_of(folder: Path, **options: Any) -> Config:
    """Two series with gaps, where only demands are forecast."""
    frame = pd.concat([holed("north", 0), holed("south", 1)])
    frame.to_csv(folder / "table.csv", index=False)
    columns = {"series_column": "place", "targets": "households,offices", "covariates": "temperature"}
    return Config(data=str(folder / "table.csv"), **{**columns, **SMALL, "missing": "interpolate", **options})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained with everything at once: several series, gaps, covariates, calendar, calibrated quantiles."""
    folder = tmp_path_factory.mktemp("forecasting")
    config = settings_of(folder, quantiles="0.1,0.5,0.9", calendar=True, units=8)
    run = build_run(APP, config, APP.load(config), folder)
    forecasting.fit(run)
    run.test_metrics = measure(run)
    return run


def table(run: Run) -> pd.DataFrame:
    return pd.read_csv(run.config.data)


# Nothing is known of what comes later


def test_a_forecast_from_a_table_cut_at_a_time_is_the_one_inside_the_whole(run: Run) -> None:
    """Rows and values are missing before, at and after the times, and what came later is no better when spoiled."""
    raw, whole, rng = run.data.test.raw, table(run), np.random.default_rng(0)
    outputs = run.test_outputs()[FORECAST]
    for name in ("north", "south"):
        windows = np.flatnonzero(raw["place"] == name)
        present = set(whole.loc[whole["place"] == name, "time"])
        windows = [window for window in windows if raw["time"].iloc[window] in present]
        for window in rng.choice(windows, 8, replace=False):
            time = raw["time"].iloc[window]
            cut = whole[(whole["place"] == name) & (whole["time"] <= time)]
            answers = run.trained.predict(cut)
            for place, column in enumerate(("households", "offices")):
                for suffix, level in (("_0.1", 0), ("", 1), ("_0.9", 2)):
                    found = [answer[column + suffix] for answer in answers]
                    inside = in_units(outputs[window, :, :, level], run.data.spec)[:, place]
                    np.testing.assert_allclose(found, inside, rtol=1e-4)


@pytest.mark.parametrize("missing", ["last", "interpolate"])
def test_inputs_of_a_window_end_with_it(tmp_path: Path, missing: Any) -> None:
    """Of every window of the test part: rows behind its end are changed, and its input is not."""
    config = settings_of(tmp_path, missing=missing)
    data = APP.load(config)
    history, targets = data.test.inputs[HISTORY], data.test.targets[FORECAST]
    for window in range(0, len(data.test), 7):
        spoiled = history.values.copy()
        spoiled[targets.starts[window] :] = 1e6
        np.testing.assert_array_equal(replace(history, values=spoiled)[window], history[window])


def test_a_forecast_changes_with_the_last_value(run: Run) -> None:
    frame = table(run)
    frame = frame[frame["place"] == "north"]
    before = run.trained.predict(frame)
    changed = frame.copy()
    changed.iloc[-1, changed.columns.get_loc("offices")] += 10
    assert run.trained.predict(changed)[0]["offices"] != before[0]["offices"]


# Models


@pytest.fixture(scope="module")
def data() -> Data:
    return APP.load(Config(**TINY, sample="mackey_glass"))


MOVING = [
    *[pytest.param(model, {}, marks=pytest.mark.slow if model in ("elman", "lstm", "gru") else ()) for model in MODELS],
    ("linear", ALL),
    ("gru", ALL),
    *[pytest.param(model, ALL, marks=pytest.mark.slow) for model in MODELS if model not in ("linear", "gru")],
]


@pytest.mark.parametrize(("model", "options"), MOVING, ids=str)
def test_every_parameter_moves(model: Any, options: dict[str, Any]) -> None:
    config = Config(**TINY, model=model, **options)
    data = APP.load(config)
    network = forecasting.build(config, data.spec)
    network.compile(keras.optimizers.SGD(0.3), forecasting.loss(config, data.spec), run_eagerly=True, jit_compile=False)
    before = [np.array(weight) for weight in network.trainable_weights]
    rows = np.arange(0, 64)
    for _ in range(3):  # from zeros, a linear model's norm moves only after its matrix has
        batch = {name: column[rows] for name, column in data.train.inputs.items()}
        network.train_on_batch(batch, {FORECAST: data.train.targets[FORECAST][rows]})
    for weight, old in zip(network.trainable_weights, before, strict=True):
        assert not np.array_equal(np.array(weight), old), weight.path
    shape = (None, 3, 3, 2) if options else (None, 3, 3)
    assert network.output[FORECAST].shape == shape


def test_each_target_is_forecast_by_itself_unless_they_are_mixed() -> None:
    past = np.random.default_rng(0).normal(size=(2, 12, 3)).astype(np.float32)
    other = past.copy()
    other[..., 1] += np.linspace(0, 3, 12)
    for mixed in (False, True):
        config = Config(**TINY, model="gru", mixed=mixed)
        network = forecasting.build(config, APP.load(config).spec)
        first, second = (network({HISTORY: each})[FORECAST].numpy() for each in (past, other))
        assert np.allclose(first[..., 0], second[..., 0], atol=1e-5) is not mixed
        assert not np.allclose(first[..., 1], second[..., 1], atol=1e-3)


def test_instance_normalization_follows_level_and_spread(data: Data) -> None:
    config = Config(**TINY, model="gru", sample="mackey_glass")
    network = forecasting.build(config, data.spec)
    past = data.test.inputs[HISTORY][:4]
    forecast = network({HISTORY: past})[FORECAST].numpy()
    np.testing.assert_allclose(
        network({HISTORY: 5 + 3 * past})[FORECAST].numpy(), 5 + 3 * forecast, rtol=1e-3, atol=1e-2
    )
    plain = forecasting.build(replace(config, instance_norm=False), data.spec)
    assert not np.allclose(plain({HISTORY: 5 + past})[FORECAST], 5 + plain({HISTORY: past})[FORECAST].numpy(), atol=0.1)


# Measures


def test_measures_are_those_of_their_definitions(run: Run) -> None:
    spec, split, metrics = run.data.spec, run.data.test, run.test_metrics
    truth, outputs = np.asarray(split.targets[FORECAST]), run.test_outputs()[FORECAST]
    assert np.isnan(truth).any()
    error = outputs[..., 1] - truth
    assert metrics["mse"] == pytest.approx(np.nanmean(error**2), rel=1e-5)
    assert metrics["mae"] == pytest.approx(np.nanmean(np.abs(error)), rel=1e-5)
    inside = (truth >= outputs[..., 0]) & (truth <= outputs[..., 2])
    assert metrics["coverage"] == pytest.approx(inside[~np.isnan(truth)].mean())
    frame, ratios = table(run), []
    lengths = HOURS - round(HOURS * 0.3) - round((HOURS - round(HOURS * 0.3)) * 0.1)
    grid = pd.DataFrame({"time": seasonal(HOURS)["time"][:lengths]})
    for name in ("north", "south"):
        rows = grid.merge(frame[frame["place"] == name], how="left", on="time")
        for place, column in enumerate(("households", "offices")):
            naive = np.nanmean(np.abs(rows[column].to_numpy()[24:] - rows[column].to_numpy()[:-24]))
            mine = np.abs(error[(split.raw["place"] == name).to_numpy(), :, place])
            ratios.append(np.nanmean(mine) * spec.targets[place].statistics["scale"] / naive)
    assert metrics["mase"] == pytest.approx(np.mean(ratios), rel=1e-5)


def test_simple_methods_do_what_they_are_called(tmp_path: Path) -> None:
    config = Config(**{**SMALL, "look_back": 48})
    data = APP.load(config)
    past, found = np.asarray(data.test.inputs[HISTORY]), forecasts.simple_forecasts(config, data)
    np.testing.assert_array_equal(found["last"][:, 5], past[:, -1])
    np.testing.assert_array_equal(found["seasonal"], past[:, 24:30])
    np.testing.assert_allclose(
        found["drift"][:, 0] - past[:, -1], (past[:, -1] - past[:, 0]) / 47, rtol=1e-3, atol=1e-6
    )
    metrics = forecasting.baselines(config, data)
    assert metrics["ridge"]["mse"] < 0.5 * metrics["seasonal"]["mse"] < metrics["last"]["mse"]
    assert forecasts.simple_forecasts(replace(config, season=7), data)["seasonal"][0, 0, 0] == past[0, 41, 0]


def test_shifted_quantiles_have_their_share_below_them() -> None:
    rng = np.random.default_rng(0)
    residuals = rng.exponential(size=(999, 5, 2, 1)) - np.array([0.5, 1.0, 3.0])
    residuals[rng.random(residuals.shape[:3]) < 0.2] = np.nan
    shift = forecasts.conformal_shift(residuals, LEVELS)
    known = ~np.isnan(residuals)
    share = ((residuals < shift) & known).sum(axis=0) / known.sum(axis=0)
    np.testing.assert_allclose(share, np.broadcast_to(LEVELS, share.shape), atol=0.003)
    assert (forecasts.conformal_shift(np.full((3, 1, 3), np.nan), LEVELS) == 0).all()


def test_calibrated_quantiles_cover_the_validation_part_and_never_cross(run: Run) -> None:
    split = run.data.validation
    scores = Scores.of(split, run.trained.outputs_of(split.inputs)[FORECAST], LEVELS)
    np.testing.assert_allclose(scores.below()[::2], LEVELS[::2], atol=0.05)
    assert (np.array(run.model.get_layer(forecasts.SHIFT).shift)[..., 1] == 0).all()
    assert (np.diff(run.test_outputs()[FORECAST], axis=-1) >= 0).all()


# Answers


def test_answers_go_on_with_the_rows_of_each_series(run: Run, tmp_path: Path) -> None:
    frame = table(run)
    answers = run.trained.predict(frame)
    assert [answer["place"] for answer in answers] == ["north"] * 6 + ["south"] * 6
    times = [answer["time"] for answer in answers[:6]]
    last = pd.Timestamp(frame["time"].max())
    assert times == [str(last + pd.Timedelta(hours=ahead)) for ahead in range(1, 7)]
    for answer in answers:
        assert answer["offices_0.1"] <= answer["offices"] <= answer["offices_0.9"]
        assert 0 < answer["households"] < 150
    assert run.trained.predict(frame.sample(frac=1, random_state=0)[frame.columns[::-1]]) == answers
    run.trained.save(tmp_path / "saved", "apps.forecasting")
    assert Trained.open(tmp_path / "saved").predict(frame) == answers
    asked = APP.ask(run)
    assert len(run.trained.predict(asked)) == 12
    assert len(asked) == 2 * run.config.look_back


def test_the_report_shows_forecasts_and_errors(run: Run) -> None:
    forecasting.report(run)
    assert {"forecasts.png", "error_by_horizon.png"} <= {path.name for path in run.folder.iterdir()}
    errors = json.loads((run.folder / "errors.json").read_text("utf-8"))
    assert list(errors["by_step"]) == ["linear", "last", "seasonal", "drift", "ridge"]
    assert np.mean(errors["by_step"]["linear"]) == pytest.approx(run.test_metrics["mse"], rel=0.01)
    assert list(errors["by_target"]) == ["households", "offices"]


# Mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantiles": "0.1,0.9"}, "--quantiles 0.1,0.9"),
        ({"quantiles": "0.5,1"}, "--quantiles 0.5,1"),
        ({"quantiles": "half"}, "--quantiles half"),
        ({"patch_stride": 20}, "--patch-stride 20"),
        ({"units": 6, "model": "transformer"}, "--units 6: must be a multiple of --heads 4"),
        ({"dropout": 1.0}, "--dropout 1.0"),
        ({"regularization": "l2"}, "--regularization l2"),
        ({"leak": 0.0}, "--leak 0.0"),
        ({"sample": "mackey_glass", "data": "x.csv"}, "--sample mackey_glass: is for --data sample"),
        ({"data": "missing.csv"}, "--data missing.csv: no such file"),
    ],
)
def test_mistakes_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        APP.load(Config(**settings))
    assert "\n" not in str(error.value)


def test_the_search_space_names_settings() -> None:
    import keras_tuner

    replace(Config(), **forecasting.space(keras_tuner.HyperParameters()))


# The whole command


def test_the_command_trains_and_its_model_forecasts_from_a_table(tmp_path: Path) -> None:
    frame = seasonal(300)
    frame.to_csv(tmp_path / "table.csv", index=False)
    options = ("--look-back", "24", "--horizon", "6", "--epochs", "1", "--quantiles", "0.1,0.5,0.9")
    outcome = loom("train", "forecasting", "--data", "table.csv", *options, "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    assert outcome.result["metrics"]["check_difference"] < 1e-4
    answers = loom("predict", outcome.result["run_id"], "table.csv", cwd=tmp_path)
    assert answers.status == 0, answers.errors
    lines = answers.output.splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("2024-01-13 12:00:00  households ")
    frame.tail(20).to_csv(tmp_path / "short.csv", index=False)
    refused = loom("predict", outcome.result["run_id"], "short.csv", cwd=tmp_path)
    assert refused.status == 2
    assert refused.errors.startswith("loom: 20 steps of 1 hour are there: a forecast needs 24")


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_model_beats_the_last_season_on_the_sample(model: Any, tmp_path: Path) -> None:
    config = Config(model=model, epochs=6)
    run = build_run(APP, config, APP.load(config), tmp_path)
    forecasting.fit(run)
    assert measure(run)["mse"] < 0.9 * forecasting.baselines(config, run.data)["seasonal"]["mse"]


@pytest.mark.slow
def test_a_reservoir_goes_on_with_a_chaotic_series(tmp_path: Path) -> None:
    read: dict[str, Any] = {"look_back": 96, "patch_length": 1, "patch_stride": 1}
    config = Config(sample="mackey_glass", model="echo_state", units=200, epochs=8, **read)
    run = build_run(APP, config, APP.load(config), tmp_path)
    forecasting.fit(run)
    simple = forecasting.baselines(config, run.data)
    assert measure(run)["mse"] < 0.1 * simple["last"]["mse"]


@pytest.mark.slow
def test_the_search_space_runs(tmp_path: Path) -> None:
    options = ("--train-fraction", "0.2", "--horizon", "6", "--epochs", "1", "--trials", "2", "--no-final")
    outcome = loom("tune", "forecasting", *options, "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
