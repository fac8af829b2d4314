"""Images: what does a picture show? One of several classes from pixels, by a perceptron, LeNet, a CNN or a ResNet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loom import App, Data, Metrics, Spec, main
from loom.config import Regularization, Schedule
from loom.data.augment import augment
from loom.data.images import (
    IMAGE,
    LABEL,
    ImageConfig,
    flat_pixels,
    image_input,
    load_classes,
    preprocess,
    scale,
)
from loom.data.targets import answers
from loom.lazy import keras
from loom.runtime import make_activation, make_batch_norm, make_regularizer

if TYPE_CHECKING:
    import pandas as pd
    from keras_tuner import HyperParameters

    from loom.app import Answer
    from loom.run import Run
    from loom.trained import Trained

FEWEST_STAGES, MOST_STAGES, LAST_SIDE = 2, 5, 4
"""A `cnn` has so many stages that the shorter side of the last maps is about this long."""
LEAST_SQUARES = 1e-6
"""Added to a sum of squares, whose root has no slope at zero."""
EXPLAINED = 16
"""Test images in the figure of what decides."""
ROWS_FOR_SVC, ROWS_FOR_NEAREST, BASELINE_SIDE = 2000, 20_000, 32
"""Most training images, and pixels of a side, that the baselines look at: they are to be done before training is."""


@dataclass(frozen=True)
class Config(ImageConfig):
    """Settings of `loom train images`."""

    model: Literal["mlp", "lenet", "cnn", "resnet"] = "cnn"
    """Hidden dense layers; LeNet-5; stages of convolution and pooling; or residual blocks."""
    units: int = 128
    """Width of the hidden dense layers (mlp, cnn)."""
    depth: int = 1
    """Hidden layers (mlp), convolutions in each stage (cnn), or residual blocks in each stage (resnet)."""
    filters: int = 32
    """Maps of the first stage; each stage has twice as many as the one before (cnn, resnet)."""
    activation: Literal["relu", "leaky_relu", "prelu", "elu", "selu", "tanh", "sigmoid"] = "relu"
    """Activation of the hidden layers; `prelu` learns the slope of its negative side, that of `leaky_relu` is 0.01."""
    initializer: Literal["auto", "zeros", "constant", "uniform", "small", "large", "glorot", "he", "lecun"] = "auto"
    """Initial kernels; `uniform` lies within 0.1, `small` and `large` are normal with 0.01 and 1; `auto` suits."""
    bias: bool = True
    """Whether layers add a learned bias (where no batch normalization follows, which has one)."""
    regularization: Regularization = "batchnorm"
    dropout: float = 0.25
    """Share of the values dropped after each stage and hidden layer, with --regularization dropout or both."""
    pooling: Literal["max", "average", "min", "l2"] = "max"
    """What stands for each 2 x 2 values between stages (cnn)."""
    loss: Literal["crossentropy", "squared_error"] = "crossentropy"
    """Softmax outputs and cross-entropy, or linear outputs and the mean squared error to zeros and a one."""
    label_smoothing: float = 0.0
    """Share of the target's one that is spread over all classes (crossentropy)."""
    weights: str = ""
    """Start from the weights of this run of `images` or `autoencoder`, where layers have the same name and shape."""
    batch_size: int = 64
    epochs: int = 20
    learning_rate: float = 0.004
    schedule: Schedule = "onecycle"
    jit: Literal["auto", "on", "off"] = "off"

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        for name in ("units", "depth", "filters"):
            self.require(name, getattr(self, name) >= 1, "must be at least 1")
        self.require("dropout", 0 <= self.dropout < 1, "must be at least 0 and below 1")
        self.require("label_smoothing", 0 <= self.label_smoothing < 1, "must be at least 0 and below 1")
        softmax = self.loss == "crossentropy"
        self.require("label_smoothing", softmax or not self.label_smoothing, "needs --loss crossentropy")


def load(config: Config) -> Data:
    """Image files and their classes as zeros and a one."""
    return load_classes(config, one_hot=True)


def build(config: Config, spec: Spec) -> keras.Model:
    """Pixels to the probability (or, with squared errors, the score) of each class."""
    pixels = image_input(spec.input(IMAGE))
    features = hidden_layers(scale(pixels), config)
    output = keras.layers.Dense(
        len(spec.target(LABEL).vocabulary),
        "softmax" if config.loss == "crossentropy" else "linear",
        use_bias=config.bias,
        kernel_initializer=make_initializer(config, "glorot"),
        kernel_regularizer=make_regularizer(config),
        dtype="float32",
        name="output",
    )(features)
    return keras.Model({IMAGE: pixels}, {LABEL: output})


def hidden_layers(image: keras.KerasTensor, config: Config) -> keras.KerasTensor:
    """What comes before the output: values from 0 to 1 to one vector. `autoencoder` encodes with the same layers."""
    return {"mlp": _mlp, "lenet": _lenet, "cnn": _cnn, "resnet": _resnet}[config.model](image, config)


def _mlp(image: keras.KerasTensor, config: Config) -> keras.KerasTensor:
    """Hidden layers on all pixels at once."""
    vector = keras.layers.Flatten()(image)
    for number in range(1, config.depth + 1):
        vector = _drop(_dense(vector, config.units, config, number), config)
    return vector


def _lenet(image: keras.KerasTensor, config: Config) -> keras.KerasTensor:
    """LeNet-5 (LeCun et al. 1998), with a softmax in place of its radial basis functions."""
    maps = keras.layers.AveragePooling2D(2, padding="same")(_convolution(image, 6, config, "1", size=5))
    padding = "valid" if min(maps.shape[1:3]) >= 10 else "same"
    maps = _convolution(maps, 16, config, "2", size=5, padding=padding)
    vector = keras.layers.Flatten()(_drop(keras.layers.AveragePooling2D(2, padding="same")(maps), config))
    for number, units in enumerate((120, 84), start=1):
        vector = _drop(_dense(vector, units, config, number), config)
    return vector


def _cnn(image: keras.KerasTensor, config: Config) -> keras.KerasTensor:
    """Stages of 3 x 3 convolutions, each with twice the maps at half the size, then a hidden layer."""
    maps = image
    stages = round(math.log2(min(image.shape[1:3]) / LAST_SIDE))
    for stage in range(min(max(stages, FEWEST_STAGES), MOST_STAGES)):
        for number in range(config.depth):
            name, is_last = str(stage * config.depth + number + 1), number == config.depth - 1
            maps = _convolution(maps, config.filters * 2**stage, config, name, pool=is_last)
        maps = _drop(maps, config)
    return _drop(_dense(keras.layers.Flatten()(maps), config.units, config, 1), config)


def _resnet(image: keras.KerasTensor, config: Config) -> keras.KerasTensor:
    """Three stages of residual blocks (He et al. 2016): maps + two convolutions of them."""
    maps = _convolution(image, config.filters, config, "1")
    for stage in range(3):
        for block in range(config.depth):
            name, filters = f"{stage + 1}_{block + 1}", config.filters * 2**stage
            strides = 2 if stage and not block else 1
            inner = _convolution(maps, filters, config, f"{name}_a", strides=strides)
            inner = _convolution(inner, filters, config, f"{name}_b", activated=False)
            if maps.shape[-1] != filters:
                maps = _convolution(maps, filters, config, f"{name}_shortcut", 1, strides=strides, activated=False)
            maps = _activate(keras.layers.Add()([maps, inner]), config)
        maps = _drop(maps, config)
    return keras.layers.GlobalAveragePooling2D()(maps)


def _convolution(
    maps: keras.KerasTensor,
    filters: int,
    config: Config,
    name: str,
    size: int = 3,
    strides: int = 1,
    padding: str = "same",
    pool: bool = False,
    activated: bool = True,
) -> keras.KerasTensor:
    """Convolution, normalization and activation; pooled right away, both have a quarter of the values to look at."""
    maps = keras.layers.Conv2D(filters, size, strides, padding, name=f"conv_{name}", **_options(config))(maps)
    if pool:
        maps = _pool(maps, config)
    if config.normalizes:
        maps = make_batch_norm(f"norm_{name}")(maps)
    return _activate(maps, config) if activated else maps


def _pool(maps: keras.KerasTensor, config: Config) -> keras.KerasTensor:
    """Maps of half the size: of each 2 x 2 values the largest, mean, smallest, or root of 4 times the mean square."""
    largest, mean = keras.layers.MaxPooling2D(2, padding="same"), keras.layers.AveragePooling2D(2, padding="same")
    if config.pooling == "min":
        return -largest(-maps)
    if config.pooling == "l2":
        return keras.ops.sqrt(4 * mean(keras.ops.square(maps)) + LEAST_SQUARES)
    return (mean if config.pooling == "average" else largest)(maps)


def _dense(vector: keras.KerasTensor, units: int, config: Config, number: int) -> keras.KerasTensor:
    vector = keras.layers.Dense(units, name=f"dense_{number}", **_options(config))(vector)
    if config.normalizes:
        vector = make_batch_norm(f"norm_dense_{number}")(vector)
    return _activate(vector, config)


def _options(config: Config) -> dict[str, Any]:
    """What all hidden layers with a kernel have in common."""
    suits = {"selu": "lecun", "tanh": "glorot", "sigmoid": "glorot"}
    return {
        "use_bias": config.bias and not config.normalizes,
        "kernel_initializer": make_initializer(config, suits.get(config.activation, "he")),
        "kernel_regularizer": make_regularizer(config),
    }


def make_initializer(config: Config, suitable: str) -> keras.initializers.Initializer:
    """The initializer that the config names, or the one that suits."""
    kinds = {
        "zeros": lambda: keras.initializers.Zeros(),
        "constant": lambda: keras.initializers.Constant(0.1),
        "uniform": lambda: keras.initializers.RandomUniform(-0.1, 0.1),
        "small": lambda: keras.initializers.RandomNormal(stddev=0.01),
        "large": lambda: keras.initializers.RandomNormal(stddev=1.0),
        "glorot": lambda: keras.initializers.GlorotUniform(),
        "he": lambda: keras.initializers.HeNormal(),
        "lecun": lambda: keras.initializers.LecunNormal(),
    }
    return kinds[suitable if config.initializer == "auto" else config.initializer]()


def _activate(values: keras.KerasTensor, config: Config) -> keras.KerasTensor:
    if config.activation == "prelu":
        return keras.layers.PReLU(shared_axes=[1, 2] if len(values.shape) == 4 else None)(values)
    return make_activation(config.activation)(values)


def _drop(values: keras.KerasTensor, config: Config) -> keras.KerasTensor:
    kind = keras.layers.AlphaDropout if config.activation == "selu" else keras.layers.Dropout
    return kind(config.dropout)(values) if config.drops else values


def start(config: Config, model: keras.Model) -> list[str]:
    """Take over the weights of another run, if one is named."""
    from loom.weights import copy_from_run

    return [copy_from_run(config.weights, model)] if config.weights else []


def space(hp: HyperParameters) -> dict[str, Any]:
    """What a search varies unless told otherwise."""
    return {
        "model": hp.Choice("model", ["lenet", "cnn", "resnet"]),
        "filters": hp.Int("filters", 8, 64, sampling="log"),
        "regularization": hp.Choice("regularization", ["none", "dropout", "batchnorm", "both"]),
        "translation": hp.Float("translation", 0.0, 0.15, step=0.05),
        "learning_rate": hp.Float("learning_rate", 5e-4, 2e-2, sampling="log"),
    }


def loss(config: Config, spec: Spec) -> dict[str, Any]:
    """The loss that the settings name."""
    if config.loss == "squared_error":
        return {LABEL: "mse"}
    return {LABEL: keras.losses.CategoricalCrossentropy(label_smoothing=config.label_smoothing)}


def baselines(config: Config, data: Data) -> dict[str, Metrics]:
    """Knowing nothing, and on pixels a support vector machine or, of many images, the nearest neighbours."""
    import pandas as pd
    from sklearn.dummy import DummyClassifier
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    known = pd.concat([data.train.raw, data.validation.raw], ignore_index=True).iloc[:ROWS_FOR_NEAREST]
    classes = np.concatenate([part.targets[LABEL].argmax(axis=1) for part in (data.train, data.validation)])
    classes = classes[: len(known)]
    truth = data.test.targets[LABEL].argmax(axis=1)
    features, test_features = (flat_pixels(config, data.spec, frame, BASELINE_SIDE) for frame in (known, data.test.raw))
    few = len(known) <= ROWS_FOR_SVC
    strong = {"svc": SVC(C=10)} if few else {"nearest": KNeighborsClassifier(3, weights="distance")}
    return {
        name: {"accuracy": float((method.fit(features, classes).predict(test_features) == truth).mean())}
        for name, method in {"majority": DummyClassifier(), **strong}.items()
    }


def predict(trained: Trained, frame: pd.DataFrame) -> Sequence[Answer]:
    """The likeliest class of each image, and its probability or score."""
    config: Any = trained.config
    return answers(trained.spec.targets, trained.outputs(frame), probable=config.loss == "crossentropy")


def report(run: Run) -> None:
    """Where the model errs, what it looks for, and which part of an image decides."""
    from loom import figures_images as draw
    from loom.report import confusion_matrix

    config: Any = run.config
    names = run.data.spec.target(LABEL).vocabulary
    images, outputs = np.asarray(run.data.test.inputs[IMAGE]), run.test_outputs()[LABEL]
    truth, predicted = run.data.test.targets[LABEL].argmax(axis=1), outputs.argmax(axis=1)
    recalls = {name: (predicted == truth)[truth == index].mean() for index, name in enumerate(names) if index in truth}
    run.table("recall_of_each_class", recalls)
    figures = {
        "confusion_matrix": confusion_matrix(truth, predicted, names),
        "mistakes": draw.confident_mistakes(images, outputs, truth, names),
        "filters": draw.filters(run.model),
        "feature_maps": draw.feature_maps(run.model, images[0]),
        "augmented": draw.augmented(run, IMAGE),
    }
    shown = slice(0, EXPLAINED)
    heat = draw.grad_cam(run.model, images[shown], predicted[shown], LABEL, config.loss == "crossentropy")
    if heat is not None:
        titles = [
            f"{names[index]} ({row.max():.2f})" for index, row in zip(predicted[shown], outputs[shown], strict=True)
        ]
        title = "Grad-CAM: where the evidence for the predicted class lies (red)"
        figures["grad_cam"] = draw.image_grid(images[shown], titles, title, heat=heat)
    for name, figure in figures.items():
        if figure is not None:
            run.figure(name, figure)


APP = App(
    "images",
    Config,
    load,
    preprocess,
    build,
    space,
    baselines,
    report,
    predict,
    loss=loss,
    metrics=lambda config, spec: {LABEL: ["accuracy"]},
    objective="val_accuracy",
    direction="max",
    augment=augment,
    start=start,
)

if __name__ == "__main__":
    main(APP)
