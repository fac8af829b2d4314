"""Multimodal: images, numbers and text as inputs of one model, a branch that is used twice, several outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loom import App, Data, Field, Metrics, Spec, UserError, main
from loom.config import Regularization, Schedule, split_names
from loom.data import columns, samples, targets
from loom.data.augment import augment
from loom.data.images import (
    ImageConfig,
    check_memory,
    decode,
    flat_pixels,
    image_columns,
    image_field,
    read_image_columns,
    scale,
    shape_of,
)
from loom.data.pipeline import take_rows
from loom.data.sources import read_examples
from loom.data.tables import check_bad
from loom.data.targets import ACTIVATIONS, LOSSES, METRICS, TARGET_KINDS
from loom.lazy import keras, layers
from loom.runtime import make_batch_norm, make_regularizer

if TYPE_CHECKING:
    import pandas as pd
    from keras_tuner import HyperParameters

    from loom.app import Answer
    from loom.run import Run
    from loom.trained import Trained

INPUT_KINDS = (*columns.INPUT_KINDS, "image")
SMALLEST_MAP, MOST_FILTERS = 4, 128
"""Convolutions go on, the image halved before each, until it has at most so many rows or columns."""
WORDS_IN_GROUP, WIDENING = 3, 4
"""Neighbouring words that a convolution over a text reads at once, and its filters for each --text-units."""
SHOWN, CAPTION_WIDTH = 12, 44
"""Test examples in a figure, and characters in a line of what is written above each."""


@dataclass(frozen=True)
class Config(ImageConfig):
    """Settings of `loom train multimodal`."""

    target: str = "verdict,answer"
    """Columns to predict, separated by commas; all other columns are inputs."""
    target_kinds: str = ""
    """Kinds of targets, where guessed wrong: `rating=number,rank=classes` (binary, classes, number, labels)."""
    columns: str = ""
    """Kinds of inputs, where guessed wrong: `photo=image,Id=ignore` (number, category, date, text, image, ignore)."""
    loss_weights: str = ""
    """What a target's loss counts for, 1 if not given: `verdict=2,answer=0.5`."""
    share: bool = True
    """One encoder for all image columns, with the same weights; otherwise one for each."""
    filters: int = 32
    """Filters of the first convolution; each further one has twice as many, up to 128."""
    image_units: int = 32
    """Width of an image's vector."""
    text: Literal["bag", "cnn", "gru"] = "cnn"
    """A text's vector: the mean of its words' vectors, what is strongest among its groups of three words, or the last
    state of a recurrent layer."""
    text_units: int = 16
    """Width of a word's and of a category's vector, and of a text's but with --text cnn, which has 4 times as many."""
    max_words: int = 32
    """Longer texts are cut to this many words."""
    min_count: int = 2
    """Categories and words that are rarer in the training part are one unknown value."""
    units: int = 128
    """Width of the hidden layers on top of all inputs."""
    depth: int = 2
    """Number of those layers; each but the first is added to what it gets (a residual connection)."""
    regularization: Regularization = "dropout"
    dropout: float = 0.1
    """Share of an image's and of the hidden values that is dropped in training, with --regularization dropout."""
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.006
    schedule: Schedule = "cosine"
    jit: Literal["auto", "on", "off"] = "off"

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        for name in ("filters", "image_units", "text_units", "max_words", "min_count", "units", "depth"):
            self.require(name, getattr(self, name) >= 1, "must be at least 1")
        self.require("dropout", 0 <= self.dropout < 1, "must be at least 0 and below 1")
        distinct = len(set(self.targets)) == len(self.targets) > 0
        self.require("target", distinct, "name one column, or several different ones with commas between")
        for name in ("classes", "train_per_class"):
            self.require(name, not getattr(self, name), "is not used here: --max-train takes some of a table's rows")
        columns.parse_kinds("columns", self.columns, INPUT_KINDS)
        columns.parse_kinds("target_kinds", self.target_kinds, TARGET_KINDS)
        columns.require_columns("loss_weights", columns.parse_numbers("loss_weights", self.loss_weights), self.targets)

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the columns to predict."""
        return split_names(self.target)


def load(config: Config) -> Data:
    """The table's usable rows in three parts, images as the contents of their files."""
    examples = read_examples(config, samples.digit_questions, (), ())
    whole = examples.whole
    names = targets.output_names(config.targets, list(whole))
    given = columns.parse_kinds("columns", config.columns, INPUT_KINDS)
    wanted, notes = targets.choose_targets(whole, config.targets, config.target_kinds)
    others = whole[[name for name in whole if name not in wanted]]
    inputs, ignored = columns.choose_inputs(others, dict.fromkeys(image_columns(others), "image") | given)
    images = [name for name, kind in inputs.items() if kind == "image"]
    if not images:
        raise UserError(f"--data {config.data}: no column holds paths of image files; --columns NAME=image names one")
    files, unreadable = read_image_columns(whole[images], Path(config.data).parent, examples.where)
    plain = {name: kind for name, kind in inputs.items() if kind != "image"}
    wanted = {names[name]: kind for name, kind in wanted.items()}
    rows, bad, dropped = columns.tidy(whole.rename(columns=names), plain, wanted, examples.where)
    bad = [*unreadable, *bad]
    check_bad(bad, len(whole), config.max_bad, f"rows of {config.data}")
    rows = rows.join(files, how="inner")
    if dropped:
        notes.append(f"{len(dropped)} of {len(whole)} rows are left out because a target is missing")
    parts = targets.split_rows(examples.take(rows), config, wanted)
    known = parts["train"]
    # One size for all image columns: they may share their encoder.
    size, more_notes = image_field("", [file for name in images for file in known[name] if file], config)
    check_memory(size, len(rows) * len(images))
    spec = Spec(
        tuple(
            replace(size, name=name)
            if kind == "image"
            else columns.fit_input(name, known[name], kind, config.min_count)
            for name, kind in inputs.items()
        ),
        tuple(targets.fit_target(name, kind, rows[name], known[name]) for name, kind in wanted.items()),
    )
    splits = targets.encode_parts(parts, spec.targets)
    bad = [*examples.bad, *bad, *dropped]
    return Data(**splits, spec=spec, source=examples.source, bad=tuple(bad), notes=(*ignored, *notes, *more_notes))


def preprocess(config: Config, spec: Spec) -> keras.Model:
    """Each raw column to its numbers; files of images to pixels."""
    images = [column for column in spec.inputs if column.kind == "image"]
    others = Spec(tuple(column for column in spec.inputs if column.kind != "image"), spec.targets)
    files = {column.name: keras.Input((1,), dtype="string", name=column.name) for column in images}
    pixels = {column.name: decode(files[column.name], column, config) for column in images}
    table = columns.preprocess_columns(others, config.max_words) if others.inputs else None
    return keras.Model(
        {**files, **(table.input if table else {})},
        {**pixels, **(table.output if table else {})},
    )


def build(config: Config, spec: Spec) -> keras.Model:
    """Every input as a vector, all of them side by side, residual layers on top, and one output for each target."""
    inputs = {
        name: keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=name)
        for name, tensor in preprocess(config, spec).output.items()
    }
    images = [column for column in spec.inputs if column.kind == "image"]
    shared = image_encoder("image_encoder", shape_of(images[0]), config) if config.share else None
    vectors = []
    for column in spec.inputs:
        if column.kind == "image":
            encoder = shared or image_encoder(f"{column.name}_encoder", shape_of(column), config)
            vectors.append(encoder(inputs[column.name]))
        else:
            vectors.append(_vector(inputs[column.name], column, config))
    hidden = keras.layers.Concatenate(name="all_inputs")(vectors) if len(vectors) > 1 else vectors[0]
    for number in range(1, config.depth + 1):
        hidden = _hidden_layer(hidden, number, config)
    return keras.Model(inputs, {target.name: _output(hidden, target, config) for target in spec.targets})


def image_encoder(name: str, shape: tuple[int, int, int], config: Config) -> keras.Model:
    """Convolutions that halve an image until little of it is left, then a vector: a model that is used as a layer."""
    pixels = keras.Input(shape, dtype="uint8", name="pixels")
    maps, filters = scale(pixels), config.filters
    while True:
        maps = keras.layers.Conv2D(filters, 3, padding="same", kernel_regularizer=make_regularizer(config))(maps)
        maps = _activated(maps, config)
        if min(maps.shape[1:3]) <= SMALLEST_MAP:
            break
        maps, filters = keras.layers.MaxPooling2D(padding="same")(maps), max(filters, min(2 * filters, MOST_FILTERS))
    vector = keras.layers.Flatten()(maps)
    vector = keras.layers.Dropout(config.dropout)(vector) if config.drops else vector
    vector = keras.layers.Dense(config.image_units, kernel_regularizer=make_regularizer(config))(vector)
    return keras.Model(pixels, _activated(vector, config), name=name)


def _activated(tensor: keras.KerasTensor, config: Config) -> keras.KerasTensor:
    tensor = make_batch_norm()(tensor) if config.normalizes else tensor
    return keras.layers.Activation("relu")(tensor)


def _vector(numbers: keras.KerasTensor, column: Field, config: Config) -> keras.KerasTensor:
    """A learned vector for a text or category; numbers and dates are vectors as they are."""
    if column.kind not in ("text", "category"):
        return numbers
    embedding = keras.layers.Embedding(
        len(column.vocabulary),
        config.text_units,
        # Vectors of length 1 count as much as a scaled number from the first step.
        embeddings_initializer=keras.initializers.VarianceScaling(mode="fan_out"),
        mask_zero=column.kind == "text" and config.text != "cnn",
        name=f"{column.name}_embedding",
    )(numbers)
    if column.kind == "category":
        return keras.layers.Flatten(name=f"{column.name}_vector")(embedding)
    if config.text == "cnn":
        # Kim, 2014, "Convolutional neural networks for sentence classification". The order of neighbouring words counts
        # from the first step on; a recurrent layer has to learn to keep it.
        groups = keras.layers.Conv1D(
            WIDENING * config.text_units,
            WORDS_IN_GROUP,
            padding="same",
            activation="relu",
            kernel_regularizer=make_regularizer(config),
            name=f"{column.name}_groups",
        )(embedding)
        return keras.layers.GlobalMaxPooling1D(name=f"{column.name}_vector")(groups)
    if config.text == "bag":
        return keras.layers.GlobalAveragePooling1D(name=f"{column.name}_vector")(embedding)
    return layers.GRU(config.text_units, name=f"{column.name}_vector")(embedding)


def _hidden_layer(vector: keras.KerasTensor, number: int, config: Config) -> keras.KerasTensor:
    dense = keras.layers.Dense(
        config.units,
        kernel_initializer="he_normal",
        kernel_regularizer=make_regularizer(config),
        name=f"hidden_{number}",
    )
    hidden = _activated(dense(vector), config)
    hidden = keras.layers.Dropout(config.dropout)(hidden) if config.drops else hidden
    return hidden if number == 1 else keras.layers.Add(name=f"residual_{number}")([vector, hidden])


def _output(vector: keras.KerasTensor, target: Field, config: Config) -> keras.KerasTensor:
    """A probability for each class or label, or a number in the target's own units."""
    is_number = target.kind == "number"
    output = keras.layers.Dense(
        len(target.vocabulary) if target.kind in ("classes", "labels") else 1,
        ACTIVATIONS[target.kind],
        kernel_regularizer=make_regularizer(config),
        dtype="float32",
        name=f"{target.name}_scaled" if is_number else target.name,
    )(vector)
    if not is_number:
        return output
    spread, mean = target.statistics["variance"] ** 0.5, target.statistics["mean"]
    return keras.layers.Rescaling(spread, mean, dtype="float32", name=target.name)(output)


def space(hp: HyperParameters) -> dict[str, Any]:
    """What a search varies unless told otherwise."""
    return {
        "filters": hp.Choice("filters", [16, 32, 64]),
        "image_units": hp.Int("image_units", 8, 64, sampling="log"),
        "units": hp.Int("units", 32, 256, sampling="log"),
        "depth": hp.Int("depth", 1, 3),
        "dropout": hp.Float("dropout", 0.0, 0.4, step=0.1),
        "learning_rate": hp.Float("learning_rate", 5e-4, 1e-2, sampling="log"),
    }


def loss(config: Config, spec: Spec) -> dict[str, str]:
    """The loss that fits each target."""
    return {target.name: LOSSES[target.kind] for target in spec.targets}


def loss_weights(config: Config, spec: Spec) -> dict[str, float]:
    """`--loss-weights`, where squared errors count in units of the target's variance."""
    given = columns.parse_numbers("loss_weights", config.loss_weights)
    outputs = targets.output_names(config.targets, ())
    weights = {outputs[name]: weight for name, weight in given.items()}
    return {t.name: weights.get(t.name, 1.0) / t.statistics.get("variance", 1.0) for t in spec.targets}


def metrics(config: Config, spec: Spec) -> dict[str, list[str]]:
    """What is reported beside the loss."""
    return {target.name: [METRICS[target.kind]] for target in spec.targets}


def baselines(config: Config, data: Data) -> dict[str, Metrics]:
    """Knowing nothing, and gradient boosting on pixels, numbers and words, for each target on its own."""
    import pandas as pd

    known = pd.concat([data.train.raw, data.validation.raw])
    return targets.measure_simple_methods(
        data, _for_trees(config, data.spec, known), _for_trees(config, data.spec, data.test.raw)
    )


def _for_trees(config: Config, spec: Spec, frame: pd.DataFrame) -> np.ndarray:
    """The inputs as decision trees take them."""
    others = Spec(tuple(column for column in spec.inputs if column.kind != "image"), spec.targets)
    table = [columns.for_trees(others, frame)] if others.inputs else []
    return np.concatenate([flat_pixels(config, spec, frame), *table], axis=1)


def predict(trained: Trained, frame: pd.DataFrame) -> Sequence[Answer]:
    """For each row a label with its probability or a number; several targets by their names."""
    return targets.answers(trained.spec.targets, trained.outputs(frame))


def report(run: Run) -> None:
    """The model's graph, test examples with its answers, where it errs, and which inputs it needs."""
    from loom import report as draw
    from loom.figures_images import image_grid
    from loom.model_graph import model_graph

    run.figure("model", model_graph(run.model))
    pictures, captions = _examples(run)
    run.figure("examples", image_grid(pictures, captions, "Test examples: truth and answer", 3, width=2.6))
    draw.draw_targets(run, 0.5)


def _examples(run: Run) -> tuple[np.ndarray, list[str]]:
    """The images of the first test examples side by side, and what was asked and answered."""
    spec, test = run.data.spec, run.data.test
    images = [column.name for column in spec.inputs if column.kind == "image"]
    shown = test.raw.head(SHOWN)
    rows = np.arange(len(shown))
    pictures = np.concatenate([np.asarray(take_rows(test.inputs[name], rows)) for name in images], axis=2)
    captions = []
    for row, answer in enumerate(run.trained.predict(shown)):
        asked = [str(shown[column.name].iloc[row]) for column in spec.inputs if column.kind != "image"]
        found = [_described(target, answer, len(spec.targets) > 1) for target in spec.targets]
        truth = [_truth(target, test.targets[target.name][row]) for target in spec.targets]
        lines = [f"{true}: {said}" for true, said in zip(truth, found, strict=True)]
        captions.append("\n".join([*wrap(", ".join(asked), CAPTION_WIDTH)[:3], *lines]))
    return pictures, captions


def _truth(target: Field, value: np.ndarray) -> str:
    if target.kind == "number":
        return f"{value[0]:.4g}"
    if target.kind == "labels":
        return targets.SEPARATOR.join(np.array(target.vocabulary, object)[value == 1])
    return target.vocabulary[int(value[0])]


def _described(target: Field, answer: Mapping[str, Any], several: bool) -> str:
    label = answer[
        target.name if several or target.kind == "number" else "labels" if target.kind == "labels" else "label"
    ]
    return f"{label:.4g}" if isinstance(label, float) else str(label)


APP = App(
    "multimodal",
    Config,
    load,
    preprocess,
    build,
    space,
    baselines,
    report,
    predict,
    loss=loss,
    metrics=metrics,
    loss_weights=loss_weights,
    augment=lambda config, spec: augment(config, spec, mixing=False),
)

if __name__ == "__main__":
    main(APP)
