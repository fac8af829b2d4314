"""Similarity: which known images are most like this one? An embedding learned by triplet loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loom import App, Data, Metrics, Spec, Split, main
from loom.config import Regularization, Schedule, split_names
from loom.data.augment import augment
from loom.data.images import (
    IMAGE,
    LABEL,
    ImageConfig,
    flat_pixels,
    image_input,
    load_classes,
    preprocess,
    require_classes,
    scale,
)
from loom.data.pipeline import Batches, ClassBatches
from loom.lazy import keras, layers
from loom.retrieval import chance, nearest, recall_at, retrievals
from loom.run import fit as fit_model
from loom.runtime import make_batch_norm, make_regularizer

if TYPE_CHECKING:
    import pandas as pd
    from keras_tuner import HyperParameters

    from loom.app import Answer, Evaluate
    from loom.data.pipeline import Augment
    from loom.run import Run
    from loom.trained import Trained

EMBEDDING, GALLERY = "embedding", "gallery"
COUNTS = (1, 5)
"""The k of recall at k."""
ANSWERED = 5
"""Known images that an answer names."""
SMALLEST_MAP = 4
"""Rows and columns below which feature maps are not pooled any further."""
QUERIES, FOUND = 8, 8
"""Rows and columns of the figure."""
BASELINE_SIDE = 32
"""Pixels of a side, at most, that the baselines look at."""


@dataclass(frozen=True)
class Config(ImageConfig):
    """Settings of `loom train similarity`."""

    embedding_units: int = 32
    """Width of an image's embedding, a vector of length 1."""
    filters: int = 32
    """Feature maps of the first convolutions; there are twice as many after each pooling."""
    dropout: float = 0.3
    """Share of the values before the embedding that is dropped in training (--regularization dropout or both)."""
    margin: float = 0.2
    """By how much images of another class should be further away than those of the same."""
    mining: Literal["semi-hard", "hard", "all"] = "semi-hard"
    """Which triplets of a batch count."""
    distance: Literal["euclidean", "squared", "cosine"] = "euclidean"
    """What is measured between embeddings in the loss; the order of neighbours is the same for all three."""
    examples_per_class: int = 8
    """Images of each class in a batch; --batch-size says how many classes have room in it."""
    held_out_classes: str = ""
    """Classes that are never trained on, separated by commas; the test measures them on their own too."""
    gallery: int = 5000
    """Training images, at most, that the saved model knows and answers with."""
    batch_size: int = 64
    epochs: int = 30
    learning_rate: float = 0.002
    schedule: Schedule = "cosine"
    regularization: Regularization = "batchnorm"
    rotation: float = 10.0
    translation: float = 0.08
    zoom: float = 0.1
    jit: Literal["auto", "on", "off"] = "off"

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        for name in ("embedding_units", "filters", "gallery"):
            self.require(name, getattr(self, name) >= 1, "must be at least 1")
        self.require("dropout", 0 <= self.dropout < 1, "must be at least 0 and below 1")
        self.require("margin", self.margin > 0, "must be greater than 0")
        self.require("examples_per_class", self.examples_per_class >= 2, "must be at least 2: a pair of one class")
        room = self.batch_size >= 2 * self.examples_per_class
        self.require("batch_size", room, f"must hold 2 classes of --examples-per-class {self.examples_per_class}")

    @property
    def held_out(self) -> tuple[str, ...]:
        """Names of the classes that are never trained on."""
        return split_names(self.held_out_classes)


def load(config: Config) -> Data:
    """Images and the indices of their classes; classes that are held out are in the test part only."""
    data = load_classes(config)
    label = data.spec.target(LABEL)
    require_classes(config, "held_out_classes", config.held_out, label.vocabulary)
    config.require("held_out_classes", len(label.vocabulary) - len(set(config.held_out)) >= 2, "leave 2 to train on")
    trained, notes = data, list(data.notes)
    if config.held_out:
        trained = data.map_splits(lambda part: part.take(np.flatnonzero(~_held_out(config, data.spec, _classes(part)))))
        left_out = sum(len(data.splits[name]) - len(trained.splits[name]) for name in ("train", "validation"))
        notes.append(f"{left_out:,} images of the classes {config.held_out_classes} are not trained or validated on")
    data = replace(trained, test=data.test, notes=tuple(notes))
    target = replace(label, statistics={GALLERY: min(config.gallery, len(data.train))})
    data = data.map_splits(lambda split: replace(split, targets={EMBEDDING: split.targets[LABEL]}))
    return replace(data, spec=replace(data.spec, targets=(target,)))


def _classes(split: Split) -> np.ndarray:
    """Index of each image's class, (images,)."""
    return next(iter(split.targets.values()))[:, 0]


def _held_out(config: Config, spec: Spec, classes: np.ndarray) -> np.ndarray:
    """Which of these classes are never trained on."""
    return np.isin(np.array(spec.target(LABEL).vocabulary)[classes], config.held_out)


def build(config: Config, spec: Spec) -> keras.Model:
    """Convolutions, two and a pooling at a time, and a dense layer whose output is scaled to length 1."""
    pixels = image_input(spec.input(IMAGE))
    maps, filters, count = scale(pixels), config.filters, 0
    while min(maps.shape[1:3]) >= 2 * SMALLEST_MAP or not count:
        for _ in range(2):
            count += 1
            maps = _convolution(maps, filters, count, config)
        maps = keras.layers.MaxPooling2D(padding="same")(maps)
        filters *= 2
    vector = keras.layers.Flatten()(maps)
    if config.drops:
        vector = keras.layers.Dropout(config.dropout)(vector)
    dense = keras.layers.Dense(config.embedding_units, kernel_regularizer=make_regularizer(config), name="dense_1")
    vector = keras.layers.UnitNormalization(dtype="float32")(dense(vector))
    # Known images are remembered here once training is over: `fit` fills it, `predict` looks them up.
    size = int(spec.target(LABEL).statistics[GALLERY])
    return keras.Model({IMAGE: pixels}, {EMBEDDING: layers.Gallery(size, name=GALLERY, dtype="float32")(vector)})


def _convolution(maps: keras.KerasTensor, filters: int, number: int, config: Config) -> keras.KerasTensor:
    maps = keras.layers.Conv2D(
        filters,
        3,
        padding="same",
        use_bias=not config.normalizes,
        kernel_initializer="he_normal",
        kernel_regularizer=make_regularizer(config),
        name=f"conv_{number}",
    )(maps)
    if config.normalizes:
        maps = make_batch_norm(f"norm_{number}")(maps)
    return keras.layers.ReLU()(maps)


def loss(config: Config, spec: Spec) -> dict[str, Any]:
    """The triplet loss, on triplets that are mined from each batch."""
    return {EMBEDDING: layers.TripletLoss(config.margin, config.mining, config.distance)}


def augmentation(config: Config, spec: Spec) -> Augment | None:
    """What changes training images; images of two classes cannot be mixed."""
    return augment(config, spec, mixing=False)


def train_batches(run: Run) -> Batches:
    """Batches in which classes meet: a triplet needs two images of one class and one of another."""
    config: Any = run.config
    train, changes = run.data.train, augmentation(config, run.data.spec)
    size, per_class = config.batch_size, config.examples_per_class
    return ClassBatches(train.inputs, train.targets, _classes(train), size, per_class, config.seed, changes)


def fit(run: Run) -> None:
    """Train, and remember the embeddings of training images."""
    fit_model(run)
    gallery = run.model.get_layer(GALLERY)
    known = run.data.train.take(np.arange(gallery.size))
    gallery.fill(run.trained.outputs_of(known.inputs)[EMBEDDING], _classes(known))


def space(hp: HyperParameters) -> dict[str, Any]:
    """What a search varies unless told otherwise."""
    return {
        "embedding_units": hp.Int("embedding_units", 8, 128, sampling="log"),
        "filters": hp.Int("filters", 8, 64, sampling="log"),
        "margin": hp.Float("margin", 0.05, 1.0, sampling="log"),
        "mining": hp.Choice("mining", ["semi-hard", "hard", "all"]),
        "learning_rate": hp.Float("learning_rate", 3e-4, 1e-2, sampling="log"),
    }


def evaluate(config: Config, data: Data) -> Evaluate:
    """Recall at k among the images of a part, and of those whose class was never trained on."""

    def measure(split: Split, outputs: dict[str, np.ndarray]) -> Metrics:
        return _recalls(outputs[EMBEDDING], _classes(split), _held_out(config, data.spec, _classes(split)))

    return measure


def _recalls(vectors: np.ndarray | None, classes: np.ndarray, held_out: np.ndarray) -> Metrics:
    """Recall at k of vectors, or of chance; all images can be found, whatever is asked for."""

    def recalls(asked: np.ndarray | None) -> Metrics:
        return chance(classes, COUNTS, asked) if vectors is None else recall_at(vectors, classes, COUNTS, asked)

    found = recalls(None)
    if held_out.any():
        found |= {f"held_out_{name}": value for name, value in recalls(held_out).items()}
    return found


def baselines(config: Config, data: Data) -> dict[str, Metrics]:
    """Chance, the images' own pixels, and two linear embeddings of them: PCA and discriminant analysis."""
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    train, test = (flat_pixels(config, data.spec, part.raw, BASELINE_SIDE) for part in (data.train, data.test))
    classes, held_out = _classes(data.test), _held_out(config, data.spec, _classes(data.test))
    pca = PCA(min(config.embedding_units, *train.shape), random_state=0).fit(train)
    discriminants = LinearDiscriminantAnalysis().fit(pca.transform(train), _classes(data.train))
    vectors = {
        "chance": None,
        "pixels": test,
        "pca": pca.transform(test),
        "discriminants": discriminants.transform(pca.transform(test)),
    }
    return {name: _recalls(values, classes, held_out) for name, values in vectors.items()}


def predict(trained: Trained, frame: pd.DataFrame) -> Sequence[Answer]:
    """For each image the class of the known image nearest to it, the distance, and the nearest known images."""
    gallery, names = trained.core.get_layer(GALLERY), trained.spec.target(LABEL).vocabulary
    classes = np.asarray(gallery.classes)
    rows, distances = nearest(trained.outputs(frame)[EMBEDDING], np.asarray(gallery.embeddings), ANSWERED)
    answers = []
    for found, away in zip(rows, distances.tolist(), strict=True):
        known = [{"label": names[classes[row]], "distance": far} for row, far in zip(found, away, strict=True)]
        answers.append({**known[0], "nearest": known})
    return answers


def report(run: Run) -> None:
    """Queries among the test images and what they find, and where the classes lie."""
    from loom.figures_images import embedding_map

    vectors, classes = run.test_outputs()[EMBEDDING], _classes(run.data.test)
    names = run.data.spec.target(LABEL).vocabulary
    rows, _ = nearest(vectors, vectors, FOUND, same=True)
    right = classes[rows] == classes[:, None]
    failed = np.flatnonzero(~right[:, 0])[: QUERIES // 2]
    first = np.unique(classes, return_index=True)[1]
    queries = np.concatenate([failed, np.setdiff1d(first, failed)[: QUERIES - len(failed)]])
    images: Any = run.data.test.inputs[IMAGE]
    run.figure("retrieval", retrievals(images, classes, names, {query: rows[query] for query in queries.tolist()}))
    title = "Embeddings of the test images"
    run.figure("embedding", embedding_map(vectors, [names[kind] for kind in classes], title))
    by_class = {names[kind]: float(right[classes == kind, 0].mean()) for kind in np.unique(classes)}
    run.table("recall_at_1_by_class", by_class)


APP = App(
    "similarity",
    Config,
    load,
    preprocess,
    build,
    space,
    baselines,
    report,
    predict,
    loss=loss,
    objective="val_recall_at_1",
    direction="max",
    fit=fit,
    augment=augmentation,
    train_batches=train_batches,
    evaluate=evaluate,
)

if __name__ == "__main__":
    main(APP)
