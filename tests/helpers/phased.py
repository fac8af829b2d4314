"""Phased: which of two clouds is a point in? By a model whose lower part is frozen at first; it can be stopped."""

import os
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from loom import App, Data, Field, Phase, Spec, Split, TrainingConfig
from loom.lazy import keras


@dataclass(frozen=True)
class Config(TrainingConfig):
    frozen_epochs: int = 2
    """Epochs of the first phase."""
    epochs: int = 5
    dropout: float = 0.3
    """Of the hidden layer, in training."""
    learning_rate: float = 0.05
    jit: Literal["auto", "on", "off"] = "off"


def load(config):
    rng = np.random.default_rng(config.seed)

    def split():
        classes = rng.integers(0, 2, 64)
        points = pd.DataFrame(rng.normal(size=(64, 2)) + classes[:, None], columns=["x", "y"])
        return Split(points, {}, {"cloud": classes.astype("int32")[:, None]})

    spec = Spec((Field("x", "number"), Field("y", "number")), (Field("cloud", "binary", ("first", "second")),))
    return Data(split(), split(), split(), spec, source="random points")


def preprocess(config, spec):
    inputs = {column.name: keras.Input((1,), name=column.name) for column in spec.inputs}
    return keras.Model(inputs, {"point": keras.layers.Concatenate()(list(inputs.values()))})


def build(config, spec):
    point = keras.Input((2,), name="point")
    hidden = keras.layers.Dense(8, name="lower")(point)
    hidden = keras.layers.BatchNormalization(name="norm")(hidden)
    hidden = keras.layers.Dropout(config.dropout)(keras.layers.Activation("relu")(hidden))
    output = keras.layers.Dense(1, "sigmoid", name="head")(hidden)
    return keras.Model({"point": point}, {"cloud": output})


def phases(config, spec):
    def only(*trained):
        def set_trainable(model):
            for layer in model.layers:
                layer.trainable = layer.name in trained

        return set_trainable

    return [
        Phase("head", config.frozen_epochs, config.learning_rate, only("head")),
        Phase("all", config.epochs - config.frozen_epochs, config.learning_rate / 10, only("head", "lower")),
    ]


def fit(run):
    def stop(epoch, logs):
        if str(epoch) == os.environ.get("STOP_AT"):
            raise KeyboardInterrupt

    run.callbacks.insert(0, keras.callbacks.LambdaCallback(on_epoch_begin=stop))
    from loom.run import fit

    fit(run)


APP = App(
    "phased",
    Config,
    load,
    preprocess,
    build,
    lambda hp: {"dropout": hp.Float("dropout", 0, 0.5)},
    lambda config, data: {},
    lambda run: None,
    lambda trained, frame: [{"cloud": bool(p > 0.5)} for p in trained.outputs(frame)["cloud"][:, 0]],
    loss="binary_crossentropy",
    metrics=["accuracy"],
    objective="val_accuracy",
    direction="max",
    fit=fit,
    phases=phases,
)
