"""Detection: which objects are where in an image? Boxes and classes from a single-stage detector with focal loss."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loom import App, Data, Field, Metrics, Spec, Split, main
from loom.average_precision import Objects, average_precisions, mean_average_precision
from loom.components import connected_boxes, crop
from loom.config import Regularization, Schedule
from loom.data.augment import augment
from loom.data.boxes import Frame, on_grid, read_boxes, true_objects
from loom.data.files import Shape, as_bytes, decode_pixels, image_shape
from loom.data.images import (
    IMAGE,
    ImageConfig,
    check_memory,
    class_names,
    image_field,
    image_input,
    preprocess,
    scale,
    shape_of,
    split_images,
)
from loom.data.scenes import OBJECTS, Recipe, make_scenes
from loom.data.sources import split_examples
from loom.lazy import keras, layers, tf
from loom.runtime import make_batch_norm, make_regularizer

if TYPE_CHECKING:
    import pandas as pd
    from keras_tuner import HyperParameters

    from loom.app import Answer, Evaluate
    from loom.data.pipeline import Augment
    from loom.run import Run
    from loom.trained import Trained

CLASSES, BOXES = "classes", "boxes"
"""Outputs of the model: of every cell of its grid."""
MOVING = ("flip", "rotation", "translation", "zoom", "crop", "elastic", "cutout", "randaugment", "mixup", "cutmix")
"""Augmentation that moves or hides objects, but not their boxes."""
RARE = 0.01
"""Share of the cells that are taken for a class's before anything is learned."""
MOST_FOUND = 100
"""Boxes of an image that are looked at, as in COCO's measure."""
EVALUATED_SCORE = 0.02
"""Least score of boxes that count in the mean average precision."""
CROP_SIDE, NEIGHBOURS = 12, 5
SHOWN = 12


@dataclass(frozen=True)
class Config(ImageConfig):
    """Settings of `loom train detection`."""

    scenes: int = 2500
    """Scenes that are made of images of single objects, for all parts together."""
    scene_size: int = 64
    """Pixels on each side of a scene."""
    scene_objects: int = 6
    """Most objects in a scene."""
    scene_clutter: int = 6
    """Pieces of objects in a scene, which are to be ignored."""
    stride: Literal[4, 8, 16] = 4
    """Pixels from one cell of the detector's grid to the next."""
    radius: float = 1.0
    """How many cells around the middle of an object learn to find it."""
    filters: int = 12
    """Feature maps at full size; there are twice and four times as many where it is halved and quartered."""
    gamma: float = 2.0
    """Focal loss: how little the cells count that are right already (0: cross-entropy)."""
    alpha: float = 0.25
    """Focal loss: weight of cells with an object; that of the others is 1 - alpha."""
    box_weight: float = 2.0
    """Weight of the loss of boxes beside that of classes."""
    overlap: float = 0.5
    """Of two boxes of a class that overlap more than this, intersection over union, the one with less score goes."""
    min_score: float = 0.3
    """Least score of the objects in an answer."""
    dropout: float = 0.1
    """Share of the feature maps that is dropped in training (--regularization dropout or both)."""
    batch_size: int = 32
    epochs: int = 20
    learning_rate: float = 0.003
    schedule: Schedule = "cosine"
    regularization: Regularization = "batchnorm"
    jit: Literal["auto", "on", "off"] = "off"

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        for name in ("scene_objects", "filters"):
            self.require(name, getattr(self, name) >= 1, "must be at least 1")
        self.require("scene_size", self.scene_size >= 32, "must be at least 32")
        self.require("scenes", self.scenes >= 10, "must be at least 10")
        for name in ("scene_clutter", "gamma", "box_weight", "radius"):
            self.require(name, getattr(self, name) >= 0, "must not be negative")
        for name in ("alpha", "overlap", "min_score"):
            self.require(name, 0 < getattr(self, name) < 1, "must lie between 0 and 1")
        self.require("dropout", 0 <= self.dropout < 1, "must be at least 0 and below 1")
        for name in ("classes", "train_per_class"):
            problem = "is for images that scenes are made of, not for a file with boxes"
            self.require(name, not (self.has_own_boxes and getattr(self, name)), problem)
        for name in MOVING:
            self.require(name, getattr(self, name) in (0, "none"), "would move or hide objects, but not their boxes")

    @property
    def has_own_boxes(self) -> bool:
        """Whether `--data` names a file with boxes, not images to make scenes of."""
        return self.data.lower().endswith((".csv", ".tsv", ".json"))


def load(config: Config) -> Data:
    """Images with objects in three parts, and what each cell of the grid is to say about them."""
    if config.has_own_boxes:
        examples = read_boxes(config)
        parts = split_examples(examples, config, lambda part: None)
    else:
        examples, singles = split_images(config)
        parts = _scenes(singles, config)
    column, notes = image_field(IMAGE, parts["train"][IMAGE], config)
    check_memory(column, sum(map(len, parts.values())))
    names = class_names(
        entry["label"] for part in parts.values() for text in part[OBJECTS] for entry in json.loads(text)
    )
    splits = {name: Split(part, {}, _targets(part, column, names, config)) for name, part in parts.items()}
    cells = float((splits["train"].targets[BOXES].any(axis=-1)).sum(axis=(1, 2)).mean())
    target = Field(OBJECTS, "classes", names, {"cells": max(cells, 1.0)})
    return Data(**splits, spec=Spec((column,), (target,)), source=examples.source, bad=examples.bad, notes=tuple(notes))


def _scenes(parts: dict[str, pd.DataFrame], config: Config) -> dict[str, pd.DataFrame]:
    """Scenes for each part, of its own objects only."""
    test = max(1, round(config.scenes * config.test_fraction))
    validation = max(1, round((config.scenes - test) * config.validation_fraction))
    counts = {"train": config.scenes - test - validation, "validation": validation, "test": test}
    column, _ = image_field(IMAGE, parts["train"][IMAGE], config)
    recipe = Recipe(config.scene_size, config.scene_objects, config.scene_clutter, shape_of(column)[2])
    return {
        name: make_scenes(part, counts[name], recipe, (config.seed_of_splits, place))
        for place, (name, part) in enumerate(parts.items())
    }


def _targets(part: pd.DataFrame, column: Field, names: Sequence[str], config: Config) -> dict[str, np.ndarray]:
    return on_grid(_truth(part, names), _frames(part, column, config), len(names), config.stride, config.radius)


def _truth(part: pd.DataFrame, names: Sequence[str]) -> list[Objects]:
    """The true objects of each image, in its own pixels."""
    indices = {name: index for index, name in enumerate(names)}
    return [true_objects(text, indices) for text in part[OBJECTS]]


def _frames(part: pd.DataFrame, column: Field, config: Config) -> list[Frame]:
    """How each image is resized; one that is missing has the size already."""
    height, width, channels = shape_of(column)
    files = part[IMAGE].where(part[IMAGE].notna(), b"")
    shapes = [image_shape(as_bytes(IMAGE, file)) or Shape(height, width, channels) for file in files]
    return [Frame.of(shape, height, width, config.fit) for shape in shapes]


def build(config: Config, spec: Spec) -> keras.Model:
    """Feature maps down to a quarter of the grid and up again, and from those classes and boxes of every cell."""
    pixels = image_input(spec.input(IMAGE))
    maps, filters, pyramid = _convolution(scale(pixels), config.filters, config), config.filters, []
    for level in range(int(math.log2(4 * config.stride))):
        filters = config.filters * (2 if level == 0 else 4)
        maps = _convolution(_convolution(maps, filters, config, strides=2), filters, config)
        pyramid.append(maps)
    for finer in (pyramid[-2], pyramid[-3]):
        larger = keras.layers.UpSampling2D()(maps)[:, : finer.shape[1], : finer.shape[2]]
        maps = _convolution(keras.layers.Add()([finer, larger]), filters, config)
    if config.drops:
        maps = keras.layers.SpatialDropout2D(config.dropout)(maps)
    count = len(spec.target(OBJECTS).vocabulary)
    start = keras.initializers.Constant(math.log(RARE / (1 - RARE)))
    classes = keras.layers.Conv2D(count, 3, padding="same", bias_initializer=start, dtype="float32")
    sides = keras.layers.Conv2D(4, 3, padding="same", bias_initializer="ones", dtype="float32")
    outputs = {
        CLASSES: keras.layers.Activation("sigmoid", dtype="float32")(classes(_convolution(maps, filters, config))),
        BOXES: layers.CellBoxes(config.stride, dtype="float32")(sides(_convolution(maps, filters, config))),
    }
    return keras.Model({IMAGE: pixels}, outputs)


def _convolution(maps: keras.KerasTensor, filters: int, config: Config, strides: int = 1) -> keras.KerasTensor:
    maps = keras.layers.Conv2D(
        filters,
        3,
        strides,
        "same",
        use_bias=not config.normalizes,
        kernel_initializer="he_normal",
        kernel_regularizer=make_regularizer(config),
    )(maps)
    return keras.layers.ReLU()(make_batch_norm()(maps) if config.normalizes else maps)


def loss(config: Config, spec: Spec) -> dict[str, Any]:
    """Focal loss of the classes of all cells; generalized intersection over union where there is an object."""
    focal = keras.losses.BinaryFocalCrossentropy(apply_class_balancing=True, alpha=config.alpha, gamma=config.gamma)
    return {CLASSES: focal, BOXES: layers.GIoULoss()}


def loss_weights(config: Config, spec: Spec) -> dict[str, float]:
    """Keras means the focal loss over all cells; what counts is its sum for each cell that has an object."""
    height, width, _ = shape_of(spec.input(IMAGE))
    target = spec.target(OBJECTS)
    numbers = -(-height // config.stride) * -(-width // config.stride) * len(target.vocabulary)
    return {CLASSES: numbers / target.statistics["cells"], BOXES: config.box_weight}


def augmentation(config: Config, spec: Spec) -> Augment | None:
    """What changes training images: brightness, contrast, saturation, noise."""
    return augment(config, spec, mixing=False)


def space(hp: HyperParameters) -> dict[str, Any]:
    """What a search varies unless told otherwise."""
    return {
        "filters": hp.Int("filters", 6, 24, sampling="log"),
        "radius": hp.Float("radius", 0.5, 2.0, step=0.5),
        "gamma": hp.Float("gamma", 0.0, 3.0, step=0.5),
        "box_weight": hp.Float("box_weight", 0.5, 4.0, sampling="log"),
        "learning_rate": hp.Float("learning_rate", 5e-4, 1e-2, sampling="log"),
    }


def _found(outputs: dict[str, np.ndarray], frames: Sequence[Frame], config: Config, least: float) -> list[Objects]:
    """The objects of each image, in its own pixels, with at least this score, those with the highest first."""
    scores, boxes = outputs[CLASSES], outputs[BOXES]
    count = len(scores)
    kept = tf.image.combined_non_max_suppression(
        boxes.reshape(count, -1, 1, 4),
        scores.reshape(count, -1, scores.shape[-1]),
        MOST_FOUND,
        MOST_FOUND,
        config.overlap,
        least,
        clip_boxes=False,
    )
    return [
        Objects(frame.original(boxes[:valid].astype(float)), kinds[:valid].astype(int), scores[:valid].astype(float))
        for frame, boxes, scores, kinds, valid in zip(frames, *(part.numpy() for part in kept), strict=True)
    ]


def evaluate(config: Config, data: Data) -> Evaluate:
    """Mean average precision on all images of a part."""
    column, names = data.spec.input(IMAGE), data.spec.target(OBJECTS).vocabulary

    def measure(split: Split, outputs: dict[str, np.ndarray]) -> Metrics:
        found = _found(outputs, _frames(split.raw, column, config), config, EVALUATED_SCORE)
        return mean_average_precision(_truth(split.raw, names), found, len(names))

    return measure


def predict(trained: Trained, frame: pd.DataFrame) -> Sequence[Answer]:
    """For each image its objects: class, score and box (left, top, right, bottom) in pixels of the image itself."""
    config: Any = trained.config
    names = trained.spec.target(OBJECTS).vocabulary
    frames = _frames(frame, trained.spec.input(IMAGE), config)
    found = _found(trained.outputs(frame), frames, config, config.min_score)
    return [
        {
            OBJECTS: [
                {"label": names[kind], "score": float(score), "box": [float(side) for side in box]}
                for box, kind, score in zip(*objects, strict=True)
            ]
        }
        for objects in found
    ]


def baselines(config: Config, data: Data) -> dict[str, Metrics]:
    """Three that learn no features: the mean box, connected regions, and those with the class of their neighbours.

    The first two call everything by the most frequent class. Neighbours are the training objects whose pixels, in their
    boxes, are nearest to those of the region.
    """
    from sklearn.neighbors import KNeighborsClassifier

    names = data.spec.target(OBJECTS).vocabulary
    known, truth = _truth(data.train.raw, names), _truth(data.test.raw, names)
    boxes = np.concatenate([objects.boxes for objects in known])
    kinds = np.concatenate([objects.classes for objects in known])
    usual = Counter(kinds.tolist()).most_common(1)[0][0]
    smallest = np.quantile(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), RARE)
    images = zip(_pixels(data.train.raw, data.spec), known, strict=True)
    crops = [crop(image, box, CROP_SIDE) for image, objects in images for box in objects.boxes]
    neighbours = KNeighborsClassifier(min(NEIGHBOURS, len(crops)), weights="distance").fit(crops, kinds)
    found: dict[str, list[Objects]] = {"mean_box": [], "regions": [], "regions_neighbours": []}
    for image in _pixels(data.test.raw, data.spec):
        regions = connected_boxes(image, smallest)
        of_usual = np.full(len(regions), usual)
        found["mean_box"].append(Objects(boxes.mean(axis=0, keepdims=True), np.array([usual]), np.ones(1)))
        found["regions"].append(Objects(regions, of_usual, np.ones(len(regions))))
        shares = np.zeros((0, len(neighbours.classes_)))
        if len(regions):
            shares = neighbours.predict_proba([crop(image, box, CROP_SIDE) for box in regions])
        found["regions_neighbours"].append(
            Objects(regions, neighbours.classes_[shares.argmax(axis=1)], shares.max(axis=1))
        )
    return {name: mean_average_precision(truth, objects, len(names)) for name, objects in found.items()}


def _pixels(part: pd.DataFrame, spec: Spec) -> Iterator[np.ndarray]:
    """Each image in its own size."""
    _, _, channels = shape_of(spec.input(IMAGE))
    return (decode_pixels(file, channels) for file in part[IMAGE])


def report(run: Run) -> None:
    """Test images with what was found in them, and how sure a box has to be to be right."""
    from loom.figures_boxes import boxes_in_images, precision_recall_curves

    config: Any = run.config
    spec, test = run.data.spec, run.data.test.raw
    names = spec.target(OBJECTS).vocabulary
    truth, frames = _truth(test, names), _frames(test, spec.input(IMAGE), config)
    found = _found(run.test_outputs(), frames, config, EVALUATED_SCORE)
    sure = [Objects(*(part[objects.scores >= config.min_score] for part in objects)) for objects in found[:SHOWN]]
    run.figure("objects", boxes_in_images(list(_pixels(test.head(SHOWN), spec)), truth[:SHOWN], sure, names))
    run.figure("precision_recall", precision_recall_curves(truth, found, names))
    values = average_precisions(truth, found, len(names))
    present = {name: row for name, row in zip(names, values, strict=True) if not np.isnan(row[0])}
    by_class = {name: {"map": row.mean(), "map_50": row[0]} for name, row in present.items()}
    run.table("average_precision_by_class", by_class)


APP = App(
    "detection",
    Config,
    load,
    preprocess,
    build,
    space,
    baselines,
    report,
    predict,
    loss=loss,
    loss_weights=loss_weights,
    objective="val_map",
    direction="max",
    augment=augmentation,
    evaluate=evaluate,
)

if __name__ == "__main__":
    main(APP)
