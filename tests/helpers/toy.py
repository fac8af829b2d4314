"""Toy: which of two clouds is a point in? An application that trains in a moment, and can be told to misbehave."""

import os
import signal
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from loom import App, Data, Field, Spec, Split, TrainingConfig, main
from loom.lazy import keras


@dataclass(frozen=True)
class Config(TrainingConfig):
    units: int = 8
    """Width of the hidden layer."""
    activation: Literal["relu", "tanh"] = "relu"
    """Of the hidden layer."""
    trouble: Literal["none", "raise", "exit", "crash", "hang", "memory", "nan", "large"] = "none"
    """What goes wrong."""
    pause: float = 0.0
    """Seconds before every epoch."""
    examples: int = 64
    """Of training."""
    epochs: int = 3
    learning_rate: float = 0.05
    jit: Literal["auto", "on", "off"] = "off"


def load(config):
    rng = np.random.default_rng(config.seed)

    def split(count):
        classes = rng.integers(0, 2, count)
        points = pd.DataFrame(rng.normal(size=(count, 2)) + classes[:, None], columns=["x", "y"])
        return Split(points, {}, {"cloud": classes.astype("int32")[:, None]})

    spec = Spec((Field("x", "number"), Field("y", "number")), (Field("cloud", "binary", ("first", "second")),))
    return Data(split(config.examples), split(64), split(64), spec, source="random points")


def preprocess(config, spec):
    inputs = {column.name: keras.Input((1,), name=column.name) for column in spec.inputs}
    return keras.Model(inputs, {"point": keras.layers.Concatenate()(list(inputs.values()))})


def build(config, spec):
    point = keras.Input((2,), name="point")
    hidden = keras.layers.Dense(config.units, config.activation)(point)
    output = keras.layers.Dense(1, "sigmoid", kernel_initializer=start(config))(hidden)
    return keras.Model({"point": point}, {"cloud": output})


def start(config):
    """What the weights start from, where nothing goes wrong."""
    if config.trouble == "raise":
        raise ValueError("no such thing")
    if config.trouble == "exit":
        os._exit(3)
    if config.trouble == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if config.trouble == "hang":
        time.sleep(1000)
    if config.trouble == "memory":
        kept = [np.ones(2**24) for _ in range(1000)]
        assert kept
    if config.trouble == "large":
        keras.layers.Dense(10**6).build((None, 10**6))
    return "glorot_uniform" if config.trouble != "nan" else keras.initializers.Constant(np.nan)


def fit(run):
    class Pause(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            time.sleep(run.config.pause)

    run.callbacks.insert(0, Pause())
    from loom.run import fit

    fit(run)


def space(hp):
    return {
        "units": hp.Int("units", 2, 64, sampling="log"),
        "activation": hp.Choice("activation", ["relu", "tanh"]),
        "learning_rate": hp.Float("learning_rate", 1e-3, 1e-1, sampling="log"),
    }


def baselines(config, data):
    share = data.test.targets["cloud"].mean()
    return {"majority": {"accuracy": float(max(share, 1 - share))}}


def predict(trained, frame):
    return [{"cloud": bool(p > 0.5)} for p in trained.outputs(frame)["cloud"][:, 0]]


APP = App(
    "toy",
    Config,
    load,
    preprocess,
    build,
    space,
    baselines,
    lambda run: None,
    predict,
    loss="binary_crossentropy",
    metrics=["accuracy"],
    fit=fit,
)

if __name__ == "__main__":
    main(APP)
