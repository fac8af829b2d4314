"""Tabular: columns of a table from its other columns. Numbers, categories, dates and short texts in; classes, numbers or labels out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loom import App, Data, Field, Metrics, Spec, Split, TrainingConfig, UserError, main
from loom.data import columns, samples
from loom.data.sources import Examples, read_examples, split_examples
from loom.data.tables import check_bad
from loom.lazy import keras, layers
from loom.runtime import make_regularizer

if TYPE_CHECKING:
    import pandas as pd
    from keras_tuner import HyperParameters

    from loom.app import Answer
    from loom.run import Run
    from loom.trained import Trained

SAMPLE_TARGETS = ("survived", "days_to_recover", "deck")
"""Columns of the built-in sample that are to be predicted, so never inputs of each other."""
FITS = {
    "perceptron": ("binary",),
    "logistic": ("binary", "labels"),
    "softmax": ("classes",),
    "linear": ("number",),
    "mlp": columns.TARGET_KINDS,
}
"""Kinds of target that each model can have."""
LOSSES = {
    "binary": "binary_crossentropy",
    "classes": "sparse_categorical_crossentropy",
    "number": "mse",
    "labels": "binary_crossentropy",
}
METRICS = {"binary": "accuracy", "classes": "accuracy", "number": "mae", "labels": "binary_accuracy"}
ROWS_FOR_EXACT_BOOSTING = 10_000
"""Above, the baseline's trees are grown on histograms."""
SHUFFLES, SHUFFLED_ROWS = 5, 2000
"""Repeats and test examples of the permutation importance."""


@dataclass(frozen=True)
class Config(TrainingConfig):
    """Settings of `loom train tabular`."""

    target: str = "survived"
    """Column to predict, or several, separated by commas; all other columns are inputs."""
    target_kinds: str = ""
    """How to understand targets, where guessed wrong: `rating=number,rank=classes` (binary, classes, number, labels)."""
    columns: str = ""
    """How to understand inputs, where guessed wrong: `Pclass=category,Id=ignore` (number, category, date, text, ignore)."""
    model: Literal["perceptron", "logistic", "softmax", "linear", "mlp"] = "mlp"
    """A linear model with its own output and loss, or layers in between for targets of any kind."""
    min_count: int = 5
    """Categories and words that are rarer in the training part are one unknown value."""
    max_words: int = 32
    """Longer texts are cut to this many words."""
    embedding_units: int = 8
    """Width of a category's and of a text's vector (mlp)."""
    units: int = 64
    """Width of the hidden layers (mlp)."""
    depth: int = 1
    """Number of hidden layers (mlp)."""
    activation: Literal["relu", "leaky_relu", "elu", "selu", "tanh", "sigmoid"] = "relu"
    """Activation of the hidden layers, whose initial weights are chosen to suit it (mlp)."""
    batch_norm: bool = False
    """Normalize each hidden layer over the batch (mlp)."""
    dropout: float = 0.3
    """Share of the hidden values that is dropped in training (mlp)."""
    epochs: int = 40
    learning_rate: float = 0.003
    schedule: Literal["constant", "cosine", "linear", "exponential"] = "cosine"

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        for name in ("min_count", "max_words", "embedding_units", "units", "depth"):
            self.require(name, getattr(self, name) >= 1, "must be at least 1")
        self.require("dropout", 0 <= self.dropout < 1, "must be at least 0 and below 1")
        self.require("target", bool(self.targets), "name a column")
        self.require("target", len(set(self.targets)) == len(self.targets), "names a column twice")
        columns.parse_kinds("columns", self.columns, columns.INPUT_KINDS)
        columns.parse_kinds("target_kinds", self.target_kinds, columns.TARGET_KINDS)

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the columns to predict."""
        return tuple(filter(None, map(str.strip, self.target.split(","))))


def load(config: Config) -> Data:
    """The table's usable rows in three parts, and what the training part says about each column."""
    import pandas as pd

    examples = read_examples(config, samples.passengers, (), ())
    whole = pd.concat([examples.train, examples.test], ignore_index=True) if examples.test is not None else examples.train
    inputs, targets, notes = _choose_columns(whole, config)
    rows, bad, dropped = columns.tidy(whole, inputs, targets, examples.where)
    check_bad(bad, len(whole), config.max_bad, f"rows of {config.data}")
    if dropped:
        notes.append(f"{len(dropped)} of {len(whole)} rows are left out because a target is missing")
    train = rows[rows.index < len(examples.train)]
    test = None if examples.test is None else rows[rows.index >= len(examples.train)]
    parts = split_examples(Examples(train, test, examples.source), config, lambda part: _classes(part, targets))
    spec = Spec(
        tuple(columns.fit_input(name, parts["train"][name], kind, config.min_count) for name, kind in inputs.items()),
        tuple(columns.fit_target(name, kind, rows[name], parts["train"][name]) for name, kind in targets.items()),
    )
    splits = {name: Split(part[list(inputs)], {}, _targets(part, spec)) for name, part in parts.items()}
    return Data(
        **splits, spec=spec, source=examples.source, bad=(*examples.bad, *bad, *dropped), notes=tuple(notes)
    )


def _choose_columns(frame: pd.DataFrame, config: Config) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Inputs and targets with their kinds, and notes on what was decided."""
    overrides = columns.parse_kinds("columns", config.columns, columns.INPUT_KINDS)
    kinds = columns.parse_kinds("target_kinds", config.target_kinds, columns.TARGET_KINDS)
    columns.require_columns("target", config.targets, list(frame))
    columns.require_columns("target_kinds", kinds, config.targets)
    candidates = frame.drop(columns=list(config.targets))
    if config.data == "sample":
        candidates = candidates.drop(columns=[name for name in SAMPLE_TARGETS if name in candidates])
    columns.require_columns("columns", overrides, list(candidates))
    inputs, notes = columns.choose_inputs(candidates, overrides)
    if not inputs:
        raise UserError(f"--columns {config.columns}: no column is left as an input; ignore fewer")
    columns.require_plain_names(inputs, config.targets)
    targets = {name: kinds.get(name) or columns.target_kind(name, frame[name]) for name in config.targets}
    for name, kind in targets.items():
        if kind not in FITS[config.model]:
            fitting = ", ".join(model for model, kinds in FITS.items() if kind in kinds)
            raise UserError(f"--model {config.model}: does not fit the target {name!r}, which is {kind}; use {fitting}")
        notes.append(f"target {name!r} is taken as {kind}" + ("" if name in kinds else " (--target-kinds changes it)"))
    return inputs, targets, notes


def _classes(part: pd.DataFrame, targets: Mapping[str, str]) -> np.ndarray | None:
    """The first target with classes keeps their shares in all parts."""
    names = [name for name, kind in targets.items() if kind in ("binary", "classes")]
    return columns.classes_to_stratify(part[names[0]]) if names else None


def _targets(part: pd.DataFrame, spec: Spec) -> dict[str, np.ndarray]:
    return {target.name: columns.encode_target(part[target.name], target) for target in spec.targets}


def preprocess(config: Config, spec: Spec) -> keras.Model:
    """Each raw column to its numbers."""
    return columns.preprocess_columns(spec, config.max_words)


def build(config: Config, spec: Spec) -> keras.Model:
    """Every column's numbers as one vector, hidden layers in between (mlp), and one output for each target."""
    inputs = {
        name: keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=name)
        for name, tensor in preprocess(config, spec).output.items()
    }
    represent = _embed if config.model == "mlp" else _one_hot
    vector = keras.layers.Concatenate()([represent(inputs[column.name], column, config) for column in spec.inputs])
    if config.model == "mlp":
        vector = _hidden(vector, config)
    return keras.Model(inputs, {target.name: _output(vector, target, config) for target in spec.targets})


def _embed(numbers: keras.KerasTensor, column: Field, config: Config) -> keras.KerasTensor:
    """A learned vector for a category, or for the set of a text's words."""
    size = len(column.vocabulary)
    if column.kind == "category":
        return keras.layers.Flatten()(keras.layers.Embedding(size, config.embedding_units)(numbers))
    if column.kind == "text":
        return layers.BagOfWordPairs(size, config.embedding_units, pair_buckets=0)(numbers)
    return numbers


def _one_hot(numbers: keras.KerasTensor, column: Field, config: Config) -> keras.KerasTensor:
    """One input for each category or word, so that a dense layer on them is linear in them."""
    if column.kind in ("number", "date"):
        return numbers
    hot = keras.layers.CategoryEncoding(len(column.vocabulary), output_mode="multi_hot")(numbers)
    return hot if column.kind == "category" else hot[:, 1:]  # a text's padding says nothing


def _hidden(vector: keras.KerasTensor, config: Config) -> keras.KerasTensor:
    initializers = {"selu": "lecun_normal", "tanh": "glorot_uniform", "sigmoid": "glorot_uniform"}
    dropout = keras.layers.AlphaDropout if config.activation == "selu" else keras.layers.Dropout
    for _ in range(config.depth):
        vector = keras.layers.Dense(
            config.units,
            use_bias=not config.batch_norm,
            kernel_initializer=initializers.get(config.activation, "he_normal"),
            kernel_regularizer=make_regularizer(config),
        )(vector)
        if config.batch_norm:
            vector = keras.layers.BatchNormalization()(vector)
        vector = dropout(config.dropout)(keras.layers.Activation(config.activation)(vector))
    return vector


def _output(vector: keras.KerasTensor, target: Field, config: Config) -> keras.KerasTensor:
    """The answer in the target's own terms: a probability for each class or label, f(x) for a perceptron, or a number."""
    width = len(target.vocabulary) if target.kind in ("classes", "labels") else 1
    activation = {"binary": "sigmoid", "classes": "softmax", "number": "linear", "labels": "sigmoid"}[target.kind]
    output = keras.layers.Dense(
        width,
        "linear" if config.model == "perceptron" else activation,
        # A linear model has one minimum and nothing to break a symmetry for; values never seen in training then weigh 0.
        kernel_initializer="glorot_uniform" if config.model == "mlp" else "zeros",
        kernel_regularizer=make_regularizer(config),
        dtype="float32",
    )(vector)
    if target.kind == "number":
        mean, variance = target.statistics["mean"], target.statistics["variance"]
        output = keras.layers.Rescaling(variance**0.5, mean, dtype="float32")(output)
    return output


def space(hp: HyperParameters) -> dict[str, Any]:
    """What a search varies unless told otherwise."""
    return {
        "units": hp.Int("units", 16, 256, sampling="log"),
        "depth": hp.Int("depth", 1, 3),
        "activation": hp.Choice("activation", ["relu", "selu", "tanh"]),
        "dropout": hp.Float("dropout", 0.0, 0.6, step=0.1),
        "learning_rate": hp.Float("learning_rate", 5e-4, 2e-2, sampling="log"),
    }


def loss(config: Config, spec: Spec) -> dict[str, Any]:
    """The loss that fits each target."""
    if config.model == "perceptron":
        return {target.name: layers.PerceptronLoss() for target in spec.targets}
    return {target.name: LOSSES[target.kind] for target in spec.targets}


def loss_weights(config: Config, spec: Spec) -> dict[str, float]:
    """Squared errors count in units of the target's variance, so that all losses are of the same size."""
    return {target.name: 1 / target.statistics.get("variance", 1.0) for target in spec.targets}


def metrics(config: Config, spec: Spec) -> dict[str, list[Any]]:
    """What is reported beside the loss."""
    if config.model == "perceptron":
        return {target.name: [keras.metrics.BinaryAccuracy("accuracy", threshold=0)] for target in spec.targets}
    return {target.name: [METRICS[target.kind]] for target in spec.targets}


def baselines(config: Config, data: Data) -> dict[str, Metrics]:
    """Knowing nothing, and gradient boosting on the same columns, for each target on its own."""
    known = [data.train, data.validation]
    features, test_features = columns.for_trees(data.spec, [*(split.raw for split in known)]), None
    raise NotImplementedError


def predict(trained: Trained, frame: pd.DataFrame) -> Sequence[Answer]:
    """For each row a label with its probability, a number, or labels with theirs; several targets by their names."""
    outputs = trained.outputs(frame)
    targets = trained.spec.targets
    answers: list[Answer] = [{} for _ in range(len(frame))]
    for target in targets:
        prefix = f"{target.name}_" if len(targets) > 1 else ""
        for answer, output in zip(answers, outputs[target.name], strict=True):
            answer |= _answer(target, output, prefix, trained.config.model == "perceptron")
    return answers
