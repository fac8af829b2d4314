"""Small images: which digit is it? Convolutions with batch normalization and dropout, to transfer from."""

from dataclasses import dataclass
from typing import Literal

from loom import App
from loom.data import targets
from loom.data.images import IMAGE, LABEL, ImageConfig, image_input, load_classes, preprocess, scale
from loom.lazy import keras


@dataclass(frozen=True)
class Config(ImageConfig):
    epochs: int = 8
    learning_rate: float = 0.01
    jit: Literal["auto", "on", "off"] = "off"


def build(config, spec):
    pixels = image_input(spec.input(IMAGE))
    maps = keras.layers.Conv2D(16, 3, name="conv_1")(scale(pixels))
    maps = keras.layers.BatchNormalization(momentum=0.9, name="norm_1")(maps)
    maps = keras.layers.Conv2D(32, 3, activation="relu", name="conv_2")(keras.layers.Activation("relu")(maps))
    vector = keras.layers.Dropout(0.3)(keras.layers.Flatten()(maps))
    output = keras.layers.Dense(len(spec.target(LABEL).vocabulary), "softmax", name="dense_1")(vector)
    return keras.Model({IMAGE: pixels}, {LABEL: output})


APP = App(
    "small_images",
    Config,
    load_classes,
    preprocess,
    build,
    lambda hp: {},
    lambda config, data: {},
    lambda run: None,
    lambda trained, frame: targets.answers(trained.spec.targets, trained.outputs(frame), 0.5, True),
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
)
