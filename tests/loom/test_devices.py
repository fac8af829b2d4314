"""Data parallelism on two logical CPU devices, and arithmetic."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support import SMALL_SENTIMENT, clean_environment, loom

BATCH_NORM = """
import numpy as np
from loom import runtime
from loom.config import TrainingConfig
settings = runtime.start(TrainingConfig(devices=2))
from loom.lazy import keras
with settings.scope():
    model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization(momentum=0.0)])
    runtime.synchronize_batch_norm(model)
    model.compile("sgd", "mse", jit_compile=settings.jit)
    assert settings.jit is False
values = np.array([[0.0], [2.0], [10.0], [20.0]], "float32")  # the halves have means 1 and 15
model.fit(values, values, batch_size=4, epochs=1, verbose=0)
mean, variance = (float(weight.numpy()[0]) for weight in model.layers[-1].non_trainable_weights)
assert abs(mean - 8) < 1e-4, mean
assert abs(variance - values.var()) < 1e-3, variance
"""


@pytest.mark.slow
def test_two_devices_learn_and_the_saved_model_answers_as_the_trained_one(tmp_path: Path) -> None:
    """The run itself compares the saved model with the trained one, in a fresh process without devices."""
    settings = [setting for setting in SMALL_SENTIMENT if setting not in ("--jit", "off")]
    outcome = loom("train", "sentiment", *settings, "--devices", "2", "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    assert "2 devices, float32, no XLA" in outcome.errors
    assert outcome.result["metrics"]["test_accuracy"] > 0.7


@pytest.mark.slow
def test_batch_norm_sees_the_whole_batch_on_two_devices() -> None:
    subprocess.run([sys.executable, "-c", BATCH_NORM], check=True, env=clean_environment())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains_and_passes_its_check(tmp_path: Path, precision: str) -> None:
    settings = ("--precision", precision, "--encoder", "lstm", "--units", "8", "--embedding-units", "8")
    outcome = loom("train", "sentiment", *SMALL_SENTIMENT, *settings, "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    assert precision in outcome.errors
    assert outcome.result["metrics"]["train_loss"] < 0.7
