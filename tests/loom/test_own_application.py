"""An application of one's own: one short file, outside the repository, named by its path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import client, loom

APPLICATION = '''"""Ring: does a point lie near the origin? A whole application in fewer than sixty lines."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from loom import App, Data, Field, Spec, Split, TrainingConfig, main
from loom.lazy import keras


@dataclass(frozen=True)
class Config(TrainingConfig):
    units: int = 16
    """Width of the hidden layer."""
    learning_rate: float = 0.02


def load(config):
    rng = np.random.default_rng(config.seed)

    def split(count):
        points = pd.DataFrame(rng.normal(size=(count, 2)), columns=["x", "y"])
        near = np.hypot(points.x, points.y) < 1.2
        return Split(points, {}, {"near": near.to_numpy(np.int32)[:, None]})

    spec = Spec((Field("x", "number"), Field("y", "number")), (Field("near", "binary", ("no", "yes")),))
    return Data(split(800), split(100), split(300), spec, source="random points")


def preprocess(config, spec):
    inputs = {column.name: keras.Input((1,), name=column.name) for column in spec.inputs}
    return keras.Model(inputs, {"point": keras.layers.Concatenate()(list(inputs.values()))})


def build(config, spec):
    point = keras.Input((2,), name="point")
    hidden = keras.layers.Dense(config.units, "relu")(point)
    return keras.Model({"point": point}, {"near": keras.layers.Dense(1, "sigmoid")(hidden)})


def baselines(config, data):
    share = data.test.targets["near"].mean()
    return {"majority": {"accuracy": float(max(share, 1 - share))}}


def predict(trained, frame):
    return [{"near": bool(p > 0.5), "probability": float(p)} for p in trained.outputs(frame)["near"][:, 0]]


APP = App(
    "ring", Config, load, preprocess, build, lambda hp: {"units": hp.Int("units", 4, 64)}, baselines,
    lambda run: run.table("sizes", {"test": len(run.data.test)}), predict,
    loss="binary_crossentropy", metrics=["accuracy"],
)

if __name__ == "__main__":
    main(APP)
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert APPLICATION.count("\n") < 60
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "ring.py").write_text(APPLICATION)
    return tmp_path


@pytest.mark.slow
def test_it_trains_is_tracked_and_predicts(folder: Path) -> None:
    outcome = loom("train", "mine/ring.py", "--epochs", "8", "--json", cwd=folder)
    assert outcome.status == 0, outcome.errors
    metrics = outcome.result["metrics"]
    assert metrics["test_accuracy"] > metrics["baseline_majority_accuracy"] + 0.2
    run = client(folder).get_run(outcome.result["run_id"])
    assert run.data.tags["app"] == "ring"
    assert run.data.params["units"] == "16"
    assert (Path(outcome.result["model"]) / "code" / "ring.py").read_text() == APPLICATION
    (folder / "mine" / "ring.py").unlink()  # a model needs nothing but itself
    answers = loom("predict", outcome.result["run_id"], '{"x": 0.1, "y": 0}', '{"x": 3, "y": 3}', "--json", cwd=folder)
    assert answers.status == 0, answers.errors
    assert [json.loads(line)["near"] for line in answers.output.splitlines()] == [True, False]


def test_its_settings_are_flags_and_its_mistakes_one_line(folder: Path) -> None:
    assert "Width of the hidden layer" in loom("train", "mine/ring.py", "--help", cwd=folder).output
    outcome = loom("train", "mine/ring.py", "--unit", "3", cwd=folder)
    assert outcome.status == 2
    assert "did you mean --units?" in outcome.errors
