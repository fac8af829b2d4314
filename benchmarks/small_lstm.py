"""Small LSTM: an application as small as a search needs it to be measured; data of 40 steps with 16 features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from loom import App, Data, Field, Spec, Split, TrainingConfig, main
from loom.lazy import keras

if TYPE_CHECKING:
    from keras_tuner import HyperParameters

EXAMPLES, STEPS, FEATURES, EPOCHS = 1600, 40, 16, 2


@dataclass(frozen=True)
class Config(TrainingConfig):
    """Those of the search that was measured with KerasTuner alone."""

    units: int = 32
    """Width of the LSTM."""
    dropout: float = 0.0
    """Before the output."""
    epochs: int = EPOCHS
    jit: Literal["auto", "on", "off"] = "off"


def load(config: Config) -> Data:
    """Numbers, which become waves; is the number above 0?"""

    def split(count: int, seed: int) -> Split:
        values = np.random.default_rng(seed).normal(size=count)
        return Split(pd.DataFrame({"value": values}), {}, {"above": (values > 0).astype("int32")[:, None]})

    spec = Spec((Field("value", "number"),), (Field("above", "binary", ("no", "yes")),))
    return Data(split(EXAMPLES, 0), split(400, 1), split(400, 2), spec, source="random numbers")


def preprocess(config: Config, spec: Spec) -> keras.Model:
    """Waves of different frequencies and phases, a noisy one for every step and feature."""
    value = keras.Input((1,), name="value")
    rng = np.random.default_rng(3)
    wave = keras.layers.Dense(STEPS * FEATURES, keras.ops.sin)
    waves = keras.layers.Reshape((STEPS, FEATURES))(wave(value))
    wave.set_weights([rng.normal(size=(1, STEPS * FEATURES)), rng.normal(size=STEPS * FEATURES)])
    return keras.Model({"value": value}, {"waves": waves})


def build(config: Config, spec: Spec) -> keras.Model:
    """The model of both sides."""
    return model_of(config.units, config.dropout)


def model_of(units: int, dropout: float) -> keras.Model:
    """Keras' own LSTM, because the search is measured, not the layer."""
    waves = keras.Input((STEPS, FEATURES), name="waves")
    hidden = keras.layers.Dropout(dropout)(keras.layers.LSTM(units)(waves))
    return keras.Model({"waves": waves}, {"above": keras.layers.Dense(1, "sigmoid", name="above")(hidden)})


def space(hp: HyperParameters) -> dict[str, Any]:
    """What both sides search."""
    return {
        "units": hp.Int("units", 8, 64, step=8),
        "dropout": hp.Float("dropout", 0.0, 0.5, step=0.1),
        "learning_rate": hp.Float("learning_rate", 1e-4, 1e-2, sampling="log"),
    }


APP = App(
    "small_lstm",
    Config,
    load,
    preprocess,
    build,
    space,
    lambda config, data: {},
    lambda run: None,
    lambda trained, frame: [],
    loss="binary_crossentropy",
    metrics=["accuracy"],
    objective="val_accuracy",
    direction="max",
)

if __name__ == "__main__":
    main(APP)
