"""Transfer: new image classes for a network that was trained on others, frozen at first and fine-tuned then."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from loom import App, Data, Metrics, Phase, Spec, UserError, main
from loom.config import Schedule
from loom.data import targets
from loom.data.augment import augment
from loom.data.images import (
    IMAGE,
    LABEL,
    ImageConfig,
    check_memory,
    flat_pixels,
    image_input,
    load_classes,
    preprocess,
    shape_of,
)
from loom.lazy import keras
from loom.weights import model_of_run, spec_of_run

if TYPE_CHECKING:
    import pandas as pd
    from keras_tuner import HyperParameters

    from loom.app import Answer
    from loom.run import Run
    from loom.trained import Trained


class Backbone(NamedTuple):
    """One of the Keras Applications."""

    module: str
    """Of `keras.applications`; it holds the network's preprocessing."""
    smallest: int
    """Fewest rows and columns of an image."""


BACKBONES = {
    "ResNet50": Backbone("resnet", 32),
    "VGG16": Backbone("vgg16", 32),
    "VGG19": Backbone("vgg19", 32),
    "InceptionV3": Backbone("inception_v3", 75),
    "MobileNetV2": Backbone("mobilenet_v2", 32),
    "MobileNetV3Small": Backbone("mobilenet_v3", 32),
    "EfficientNetB0": Backbone("efficientnet", 32),
}
FEATURES = "backbone"
"""Name of the layer that is the network without its output layer."""
SLOWEST_AVERAGES = 0.9
"""Batch normalization trained from scratch: Keras Applications average over 1,000 steps, more than small data has."""
MOST_FOR_BASELINES = 5000
"""Training images that the baselines learn from: a support vector machine takes its time."""


@dataclass(frozen=True)
class Config(ImageConfig):
    """Settings of `loom train transfer`."""

    backbone: Literal[
        "ResNet50", "VGG16", "VGG19", "InceptionV3", "MobileNetV2", "MobileNetV3Small", "EfficientNetB0"
    ] = "MobileNetV2"
    """Network to start from; it is that of the run where --weights names one."""
    weights: str = "none"
    """What the network has learned: `imagenet`, a run's id, an .h5 file (without top layers), or `none`: random."""
    mode: Literal["frozen", "fine_tuned", "from_scratch"] = "fine_tuned"
    """Train a new output layer alone, then the network too, or all of it from random weights (as --weights none)."""
    frozen_epochs: int = 10
    """Epochs of the first phase, in which the network is frozen (fine_tuned; the rest of --epochs fine-tunes it)."""
    fine_tune_from: str = ""
    """Layer of the network from which on it is fine-tuned: a name, or a number counted from its end (all if empty)."""
    fine_tune_learning_rate: float = 0.0001
    """Learning rate of the second phase."""
    channels: Literal[0, 1, 3] = 3
    dropout: float = 0.2
    """Share of the network's features that is dropped in training."""
    epochs: int = 20
    schedule: Schedule = "constant"
    jit: Literal["auto", "on", "off"] = "off"

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        self.require("frozen_epochs", self.frozen_epochs >= 1, "must be at least 1")
        self.require("fine_tune_learning_rate", self.fine_tune_learning_rate > 0, "must be greater than 0")
        self.require("dropout", 0 <= self.dropout < 1, "must be at least 0 and below 1")
        self.require("regularization", self.regularization == "none", "is not used here; --dropout is")
        is_run = re.fullmatch("[0-9a-f]{32}", self.run_id)
        self.require("weights", not self.run_id or bool(is_run), "is no run, no .h5 file, nor imagenet or none")
        if not self.run_id:
            smallest = BACKBONES[self.backbone].smallest
            for name in ("height", "width"):
                problem = f"{self.backbone} needs images of at least {smallest} x {smallest}"
                self.require(name, not 0 < getattr(self, name) < smallest, problem)
            self.require("channels", self.channels == 3, f"{self.backbone} takes colours; leave it out")

    @property
    def is_file(self) -> bool:
        """Whether the weights are in a file."""
        return self.weights.endswith(".h5")

    @property
    def run_id(self) -> str:
        """The run whose network is taken, or nothing."""
        return "" if self.weights in ("none", "imagenet") or self.is_file else self.weights

    @property
    def from_scratch(self) -> bool:
        """Whether nothing is transferred."""
        return self.mode == "from_scratch" or self.weights == "none"


def load(config: Config) -> Data:
    """Images and their classes, in the size that the network takes."""
    # Here, not among the settings: a trained model is loaded where there is no such file any more.
    config.require("weights", not config.is_file or Path(config.weights).is_file(), "there is no such file")
    data = load_classes(config, one_hot=True)
    (column,) = data.spec.inputs
    if config.run_id:
        shape = _shape_of_run(config)
    else:
        smallest = BACKBONES[config.backbone].smallest
        height, width, channels = shape_of(column)
        shape = (max(height, smallest), max(width, smallest), channels)
    if shape == shape_of(column):
        return data
    sizes = dict(zip(("height", "width", "channels"), shape, strict=True))
    column = replace(column, statistics={**column.statistics, **sizes})
    check_memory(column, sum(map(len, data.splits.values())))
    taken = f"the network of run {config.run_id}" if config.run_id else config.backbone
    note = f"images become {' x '.join(map(str, shape))}, as {taken} takes them"
    return replace(data, spec=replace(data.spec, inputs=(column,)), notes=(note,))


def _shape_of_run(config: Config) -> tuple[int, int, int]:
    """Height, width and channels of the images that the run was trained on."""
    spec = spec_of_run(config.run_id)
    kinds = [column.kind for column in spec.inputs], [target.kind for target in spec.targets]
    if kinds != (["image"], ["classes"]):
        raise UserError(f"--weights {config.run_id}: the run does not tell classes of images apart")
    shape = shape_of(spec.inputs[0])
    for name, size in zip(("height", "width"), shape, strict=False):
        config.require(name, getattr(config, name) in (0, size), f"run {config.run_id} takes {size}; leave it out")
    return shape


def build(config: Config, spec: Spec) -> keras.Model:
    """The network without its output layer, a new one for these classes, and before both what the network expects."""
    column, target = spec.input(IMAGE), spec.target(LABEL)
    pixels = image_input(column)
    network = _network_of_run(config) if config.run_id else _application(config, shape_of(column))
    first_trained(network, config.fine_tune_from)  # a name that is none of its layers is reported before training
    if config.from_scratch:
        for layer in network._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = min(layer.momentum, SLOWEST_AVERAGES)
    values = pixels
    if not config.run_id:
        module = getattr(keras.applications, BACKBONES[config.backbone].module)
        values = module.preprocess_input(keras.ops.cast(pixels, "float32"))
    # What was learned elsewhere always works as in use: its dropout is off, its batch normalization keeps its averages.
    features = network(values, training=None if config.from_scratch else False)
    features = keras.layers.Dropout(config.dropout)(features)
    output = keras.layers.Dense(len(target.vocabulary), "softmax", dtype="float32", name=LABEL)(features)
    return keras.Model({IMAGE: pixels}, {LABEL: output})


def _network_of_run(config: Config) -> keras.Model:
    """The run's model without its top layers; with new random weights if nothing is to be transferred."""
    model = model_of_run(config.run_id)
    (pixels,) = model.input.values()
    network = keras.Model(pixels, _features(model), name=FEATURES)
    if len(network.output.shape) != 2:
        raise UserError(f"--weights {config.run_id}: no layer of that run's network makes one vector of an image")
    return keras.models.clone_model(network) if config.from_scratch else network


def _features(model: keras.Model) -> keras.KerasTensor:
    """The last maps as one vector, as the model itself makes one of them; what its output layer gets if it has none.

    Dense layers above the maps know the old classes rather than images, and are left out.
    """
    learned = False
    for layer in model.layers:
        learned = learned or bool(layer.weights)
        (node,) = layer._inbound_nodes
        ranks = [len(tensor.shape) for tensors in (node.input_tensors, node.output_tensors) for tensor in tensors]
        if learned and ranks == [4, 2]:
            return node.output_tensors[0]
    features = [layer for layer in model.layers if layer.weights][-1].input
    while isinstance(made_by := features._keras_history.operation, keras.layers.Dropout):
        features = made_by.input
    return features


def _application(config: Config, shape: tuple[int, int, int]) -> keras.Model:
    """A Keras Application with mean pooling instead of its top layers.

    Raises:
        UserError: The weights cannot be downloaded, or those in the file are another network's.
    """
    make = getattr(keras.applications, config.backbone)
    weights = None if config.from_scratch else config.weights
    try:
        with warnings.catch_warnings(action="ignore"):  # of sizes that the weights were not made for, which is meant
            return make(weights=weights, include_top=False, input_shape=shape, pooling="avg", name=FEATURES)
    except Exception as error:  # of every kind: Keras, h5py and the network each have their own
        if weights is None:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if config.is_file:
            network = f"{config.backbone} without its top layers"
            raise UserError(f"--weights {weights}: these are not the weights of {network}: {reason}") from None
        raise UserError(
            f"--weights imagenet: those of {config.backbone} could not be downloaded ({reason}); get that file where "
            "there is a network and give --weights FILE.h5, or start from a run of yours with --weights RUN_ID"
        ) from None


def phases(config: Config, spec: Spec) -> list[Phase]:
    """Feature extraction, then fine-tuning; or everything at once where nothing is transferred."""
    if config.from_scratch:
        return [Phase("training from scratch", config.epochs, config.learning_rate, train_all)]
    frozen = config.epochs if config.mode == "frozen" else min(config.frozen_epochs, config.epochs)
    found = [Phase("feature extraction", frozen, config.learning_rate, freeze)]
    if frozen < config.epochs:
        fine_tune = partial(unfreeze, first=config.fine_tune_from)
        found.append(Phase("fine-tuning", config.epochs - frozen, config.fine_tune_learning_rate, fine_tune))
    return found


def train_all(model: keras.Model) -> None:
    """Train every layer."""
    model.trainable = True


def freeze(model: keras.Model) -> None:
    """Train the new output layer alone."""
    model.trainable = True
    model.get_layer(FEATURES).trainable = False


def unfreeze(model: keras.Model, first: str) -> None:
    """Train the output layer and the network from its layer `first` on, but no batch normalization."""
    model.trainable = True
    network = model.get_layer(FEATURES)
    layers = _layers(network)
    before = layers.index(first_trained(network, first))
    for number, layer in enumerate(layers):
        layer.trainable = number >= before and not isinstance(layer, keras.layers.BatchNormalization)


def first_trained(network: keras.Model, first: str) -> keras.layers.Layer:
    """The layer of that name, or the one of so many from the end that are no batch normalization and have weights.

    Raises:
        UserError: There is no such layer.
    """
    layers = _layers(network)
    trained = [layer for layer in layers if layer.weights and not isinstance(layer, keras.layers.BatchNormalization)]
    if not first:
        return layers[0]
    if first.isdigit() and 1 <= int(first) <= len(trained):
        return trained[-int(first)]
    names = {layer.name: layer for layer in layers}
    if first not in names:
        close = difflib.get_close_matches(first, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the last ones are {', '.join(list(names)[-5:])}"
        raise UserError(
            f"--fine-tune-from {first}: the network has {len(trained)} layers to train, none of that name; {hint}"
        )
    return names[first]


def _layers(network: keras.Model) -> list[keras.layers.Layer]:
    """Its layers, those of models inside it too, from the first to the last."""
    return [layer for layer in network._flatten_layers(include_self=False) if not isinstance(layer, keras.Model)]


def space(hp: HyperParameters) -> dict[str, Any]:
    """What a search varies unless told otherwise."""
    return {
        "learning_rate": hp.Float("learning_rate", 3e-4, 1e-2, sampling="log"),
        "fine_tune_learning_rate": hp.Float("fine_tune_learning_rate", 1e-5, 1e-3, sampling="log"),
        "fine_tune_from": hp.Choice("fine_tune_from", ["", "1", "2", "4"]),
        "dropout": hp.Float("dropout", 0.0, 0.6, step=0.1),
    }


def baselines(config: Config, data: Data) -> dict[str, Metrics]:
    """The most frequent class, and a support vector machine on the pixels, from the training images."""
    from sklearn.dummy import DummyClassifier
    from sklearn.svm import SVC

    known = data.train.take(np.arange(min(len(data.train), MOST_FOR_BASELINES)))
    features, test = (flat_pixels(config, data.spec, part.raw) for part in (known, data.test))
    classes, truth = (part.targets[LABEL].argmax(axis=1) for part in (known, data.test))
    methods = {"majority": DummyClassifier(), "svc": SVC(C=10)}
    return {
        name: {"accuracy": float(method.fit(features, classes).score(test, truth))} for name, method in methods.items()
    }


def predict(trained: Trained, frame: pd.DataFrame) -> Sequence[Answer]:
    """For each image a label with its probability."""
    return targets.answers(trained.spec.targets, trained.outputs(frame))


def report(run: Run) -> None:
    """The model's graph, what is taken for what, and the most confident mistakes."""
    from loom import report as draw
    from loom.figures_images import confident_mistakes
    from loom.model_graph import model_graph

    run.figure("model", model_graph(run.model))
    probabilities, names = run.test_outputs()[LABEL], run.data.spec.target(LABEL).vocabulary
    truth = run.data.test.targets[LABEL].argmax(axis=1)
    run.figure("confusion_matrix", draw.confusion_matrix(truth, probabilities.argmax(axis=1), names))
    pictures = np.asarray(run.data.test.inputs[IMAGE])
    run.figure("mistakes", confident_mistakes(pictures, probabilities, truth, names))


APP = App(
    "transfer",
    Config,
    load,
    preprocess,
    build,
    space,
    baselines,
    report,
    predict,
    loss="categorical_crossentropy",
    metrics=["accuracy"],
    objective="val_accuracy",
    direction="max",
    augment=augment,
    phases=phases,
)

if __name__ == "__main__":
    main(APP)
