"""Small pieces on which runs rely."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import toy

from apps import sentiment
from loom import Data, Field, Ragged, Spec, Split, TrainingConfig, UserError, runtime
from loom.config import from_dict, to_dict
from loom.fresh import largest_difference
from loom.run import Run, begin_phase, fit, measure
from loom.tracking import Store, Tracker
from loom.train import prepare
from loom.trained import Trained


@pytest.mark.parametrize(
    ("expected", "found", "difference"),
    [
        ({"label": "a", "p": 0.5}, {"label": "a", "p": 0.5}, 0),
        ({"label": "a", "p": 0.5}, {"label": "b", "p": 0.5}, math.inf),
        ({"p": 0.5}, {"p": 0.75}, 0.25),
        ({"value": 200.0}, {"value": 201.0}, 0.005),
        ({"p": [0.5, 0.9]}, {"p": [0.5, math.nan]}, math.inf),
        ({"p": None}, {"p": math.nan}, 0),
        ({"p": np.array([1.0, 2.0])}, {"p": [1.0, 2.0]}, 0),
        ({"p": 1}, {"q": 1}, math.inf),
        ({"p": [1]}, {"p": [1, 2]}, math.inf),
        ({"near": True}, {"near": False}, 1),
    ],
)
def test_differences_between_answers_are_seen(expected: Any, found: Any, difference: float) -> None:
    assert largest_difference(expected, found) == pytest.approx(difference)


def test_two_stores_in_one_process_are_the_same_store(tmp_path: Path) -> None:
    for name in ("a", "b"):
        store = Store()
        assert store.is_local
        tracker = Tracker.create(store, name, {}, "run")
        assert tracker.local_artifacts is not None
        assert tracker.local_artifacts.is_relative_to(tmp_path / "mlruns" / "artifacts" / name)
        tracker.finish()
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_a_server_that_does_not_answer_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI http://127.0.0.1:9: the tracking server does not answer"):
        Store().check_writable()


def test_a_run_that_another_process_trains_is_left_alone() -> None:
    store = Store()
    tracker = Tracker.create(store, "a", {}, "run")
    with pytest.raises(UserError, match="another process"):
        Tracker.reopen(store, tracker.run_id)
    tracker.finish("KILLED", "test")
    Tracker.reopen(store, tracker.run_id).finish("FINISHED")
    with pytest.raises(UserError, match="is finished"):
        Tracker.reopen(store, tracker.run_id)


@dataclass(frozen=True)
class TupleConfig(TrainingConfig):
    filters: tuple[int, ...] = (8, 16)


def test_tuples_survive_json() -> None:
    values = {**to_dict(TupleConfig()), "filters": [8, 16]}
    assert from_dict(TupleConfig, values) == TupleConfig()


def numbers_run(policy: str, tmp_path: Path) -> Run:
    """A run whose model gives back its input, a large number."""
    values = np.array([[201000.0], [203000.0]], np.float32)
    split = Split(pd.DataFrame({"x": values[:, 0]}), {"x": values}, {"y": values})
    data = Data(split, split, split, Spec((Field("x", "number"),), (Field("y", "number"),)), "test")
    x = keras.Input((1,), name="x")
    model = keras.Model({"x": x}, {"y": keras.layers.Identity(dtype="float32")(x)})
    app = replace(sentiment.APP, loss="mse", metrics=["mae"])
    keras.config.set_dtype_policy(policy)
    return Run(app, TrainingConfig(), data, runtime.Runtime("cpu", 1, 2, policy, False), model, tmp_path)


def test_test_metrics_are_exact_under_mixed_precision(tmp_path: Path) -> None:
    try:
        assert measure(numbers_run("mixed_bfloat16", tmp_path)) == {"loss": 0.0, "mae": 0.0}
    finally:
        keras.config.set_dtype_policy("float32")


def test_outputs_for_each_step_come_in_order_filled_to_the_longest() -> None:
    words = keras.Input((None,), dtype="int32", name="words")
    doubled = keras.layers.Embedding(100, 1, embeddings_initializer=lambda shape, dtype: 2.0 * np.arange(100)[:, None])
    core = keras.Model({"words": words}, {"y": doubled(words)})
    padded = np.array([[1, 2, 3] + [4] * 20, [5] + [0] * 22, [6, 7] + [0] * 21], np.int32)
    trained = Trained(sentiment.APP, sentiment.Config(), Spec((), ()), core)
    outputs = trained.outputs_of({"words": Ragged.from_padded(padded)})["y"][..., 0]
    np.testing.assert_array_equal(outputs[:, :23], 2 * padded)


@pytest.mark.parametrize("jit", [pytest.param(False, marks=pytest.mark.slow), True])
def test_padding_counts_in_neither_losses_nor_metrics_of_steps(jit: bool, tmp_path: Path) -> None:
    """The model says class 1 with 0.9 after word 1, class 0 with 0.9 after word 2."""
    padded = np.array([[1, 2, 1, 1, 2], [2, 0, 0, 0, 0], [1, 1, 0, 0, 0]], np.int32)
    words, table = Ragged.from_padded(padded), np.log([[0.5, 0.5], [0.1, 0.9], [0.9, 0.1]])
    tags = Ragged(np.array([1, 0, 1, 0, 0, 0, 1, 0], np.int32), words.splits)
    split = Split(pd.DataFrame({"t": list("abc")}), {"words": words}, {"tags": tags})
    data = Data(split, split, split, Spec((Field("t", "text"),), ()), "test")
    tokens = keras.Input((None,), dtype="int32", name="words")
    vectors = keras.layers.Embedding(3, 2, mask_zero=True, embeddings_initializer=lambda shape, dtype: table)(tokens)
    model = keras.Model({"words": tokens}, {"tags": keras.layers.Activation("softmax")(vectors)})
    app = replace(sentiment.APP, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    config = TrainingConfig(epochs=1, buckets=1, learning_rate=1e-9)
    run = Run(app, config, data, runtime.Runtime("cpu", 1, 2, "float32", jit), model, tmp_path)
    begin_phase(run, 0)
    expected = {"loss": -(6 * np.log(0.9) + 2 * np.log(0.1)) / 8, "accuracy": 6 / 8}
    assert measure(run) == pytest.approx(expected, rel=1e-5)
    history = model.fit(run.train_batches.dataset(), shuffle=False, verbose=0).history
    assert {name: values[0] for name, values in history.items()} == pytest.approx(expected, rel=1e-5)
    outputs = run.test_outputs()["tags"]
    np.testing.assert_allclose(outputs[padded > 0], np.exp(table)[padded[padded > 0]], rtol=1e-5)
    assert not outputs[padded == 0].any()


def test_longer_validation_texts_are_not_cut(tmp_path: Path) -> None:
    short, long = (Ragged.from_padded(np.ones((4, length), np.int32)) for length in (5, 50))
    frame, spec = pd.DataFrame({"t": list("abcd")}), Spec((Field("t", "text"),), ())
    parts = [Split(frame, {"words": words}, {}) for words in (short, long, long)]
    settings = runtime.Runtime("cpu", 1, 2, "float32", False)
    run = Run(sentiment.APP, TrainingConfig(), Data(*parts, spec, "test"), settings, None, tmp_path)
    assert {inputs["words"].shape[1] for inputs, _ in run.batches(run.data.validation)} == {56}


def test_the_first_step_is_traced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = sentiment.Config(epochs=1, pair_buckets=64)
    run = prepare(sentiment.APP, config, sentiment.load(config), tmp_path)
    step, traces = keras.Model.train_step, []
    monkeypatch.setattr(keras.Model, "train_step", lambda model, data: traces.append(data) or step(model, data))
    fit(run)
    assert len(traces) == 1


@pytest.mark.parametrize("jit", [pytest.param("on", marks=pytest.mark.slow), "off"])
def test_steps_taken_in_one_go_are_the_same_steps(tmp_path: Path, jit: str) -> None:
    ends = []
    for count in (1, 5):
        config = toy.Config(examples=70, batch_size=10, jit=jit, steps_per_execution=count)
        run = prepare(toy.APP, config, toy.load(config), tmp_path)
        fit(run)
        ends.append([variable.numpy() for variable in run.model.optimizer.variables + run.model.weights])
    assert ends[0][0] == 21  # steps of three epochs
    for one, several in zip(*ends, strict=True):
        np.testing.assert_allclose(one, several, rtol=1e-5, atol=1e-7)


def test_one_cycle_rises_to_the_learning_rate_and_falls_to_nothing() -> None:
    optimizer = runtime.make_optimizer(TrainingConfig(schedule="onecycle"), learning_rate=0.5, steps=100)
    rates = []
    for step in range(101):
        optimizer.iterations.assign(step)
        rates.append(float(keras.ops.convert_to_numpy(optimizer.learning_rate)))
    assert rates[0] == pytest.approx(0.02)
    assert rates[30] == max(rates) == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(np.diff(rates[:31]), 0.48 / 30, rtol=1e-3)
    assert (np.diff(rates[30:]) < 0).all()


def test_muon_takes_orthogonal_steps_but_adams_of_embeddings_and_outputs() -> None:
    optimizer = runtime.make_optimizer(TrainingConfig(optimizer="muon"), learning_rate=0.1, steps=100)
    words = keras.Input((3,), dtype="int32")
    hidden = keras.layers.Dense(8)(keras.layers.Flatten()(keras.layers.Embedding(5, 4)(words)))
    model = keras.Model(words, keras.layers.Dense(6, name="output")(hidden))
    before, rng = model.get_weights(), np.random.default_rng(0)
    gradients = [keras.ops.convert_to_tensor(rng.normal(size=weight.shape), "float32") for weight in before]
    optimizer.apply(gradients, model.trainable_variables)
    embedding, kernel, _, output, _ = (np.abs(new - old) for new, old in zip(model.get_weights(), before, strict=True))
    for step in (embedding, output):
        np.testing.assert_allclose(step, 0.1, rtol=1e-3)  # Adam's first step is the gradient's sign
    assert kernel.std() > 0.01
    stretched = np.linalg.svd(model.get_weights()[1] - before[1], compute_uv=False)
    assert stretched.max() < 2 * stretched.min()


def test_regularization_means_the_same_everywhere() -> None:
    settings = {name: TrainingConfig(regularization=name) for name in ("none", "dropout", "batchnorm", "both", "l2")}
    assert [name for name, config in settings.items() if config.drops] == ["dropout", "both"]
    assert [name for name, config in settings.items() if config.normalizes] == ["batchnorm", "both"]
    assert [name for name, config in settings.items() if runtime.make_regularizer(config)] == ["l2"]
