"""Tabular: what do a table's columns say about another one? Classes, numbers and labels from columns of every kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from loom import App, Data, Field, Metrics, Spec, TrainingConfig, UserError, main
from loom.config import Regularization, Schedule, split_names
from loom.data import columns, samples, targets
from loom.data.sources import read_examples
from loom.data.tables import check_bad
from loom.data.targets import LOSSES, METRICS, TARGET_KINDS
from loom.lazy import keras, layers
from loom.runtime import make_activation, make_batch_norm, make_regularizer

if TYPE_CHECKING:
    import pandas as pd
    from keras_tuner import HyperParameters

    from loom.app import Answer
    from loom.data.spec import Kind
    from loom.run import Run
    from loom.trained import Trained

SAMPLE_TARGETS = ("survived", "days_to_recover", "deck")
"""Columns of the built-in sample that are to be predicted, so never inputs of each other."""
FITS = {
    "perceptron": ("binary",),
    "svm": ("binary",),
    "logistic": ("binary", "labels"),
    "softmax": ("classes",),
    "linear": ("number",),
    "mlp": TARGET_KINDS,
}
"""Kinds of target that each model can have."""


MARGINS = ("perceptron", "svm")
"""Models whose output is f(x) itself; its sign decides."""


@dataclass(frozen=True)
class Config(TrainingConfig):
    """Settings of `loom train tabular`."""

    target: str = "survived"
    """Column to predict, or several, separated by commas; all other columns are inputs."""
    target_kinds: str = ""
    """Kinds of targets, where guessed wrong: `rating=number,rank=classes` (binary, classes, number, labels)."""
    columns: str = ""
    """Kinds of inputs, where guessed wrong: `Pclass=category,Id=ignore` (number, category, date, text, ignore)."""
    model: Literal["perceptron", "svm", "logistic", "softmax", "linear", "mlp"] = "mlp"
    """A linear model with its own output and loss, or layers in between for targets of any kind."""
    number_loss: Literal["mse", "mae", "huber"] = "mse"
    """What an error of a number costs: its square, its size, or its square up to one standard deviation."""
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
    regularization: Regularization = "dropout"
    dropout: float = 0.3
    """Share of the hidden values that is dropped in training, with --regularization dropout or both (mlp)."""
    epochs: int = 40
    jit: Literal["auto", "on", "off"] = "off"
    learning_rate: float = 0.003
    schedule: Schedule = "cosine"

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        for name in ("min_count", "max_words", "embedding_units", "units", "depth"):
            self.require(name, getattr(self, name) >= 1, "must be at least 1")
        self.require("dropout", 0 <= self.dropout < 1, "must be at least 0 and below 1")
        distinct = len(set(self.targets)) == len(self.targets) > 0
        self.require("target", distinct, "name one column, or several different ones with commas between")
        columns.parse_kinds("columns", self.columns, columns.INPUT_KINDS)
        columns.parse_kinds("target_kinds", self.target_kinds, TARGET_KINDS)

    @property
    def threshold(self) -> float:
        """Output above which the second of two classes is predicted."""
        return 0.0 if self.model in MARGINS else 0.5

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the columns to predict."""
        return split_names(self.target)


def load(config: Config) -> Data:
    """The table's usable rows in three parts, and what the training part says about each column."""
    examples = read_examples(config, samples.passengers, (), ())
    whole = examples.whole
    names = targets.output_names(config.targets, list(whole))
    inputs, wanted, notes = _choose_columns(whole, config)
    wanted = {names[name]: kind for name, kind in wanted.items()}
    rows, bad, dropped = columns.tidy(whole.rename(columns=names), inputs, wanted, examples.where)
    check_bad(bad, len(whole), config.max_bad, f"rows of {config.data}")
    if dropped:
        notes.append(f"{len(dropped)} of {len(whole)} rows are left out because a target is missing")
    parts = targets.split_rows(examples.take(rows), config, wanted)
    known = parts["train"]
    spec = Spec(
        tuple(columns.fit_input(name, known[name], kind, config.min_count) for name, kind in inputs.items()),
        tuple(targets.fit_target(name, kind, rows[name], known[name]) for name, kind in wanted.items()),
    )
    splits = targets.encode_parts(parts, spec.targets)
    return Data(**splits, spec=spec, source=examples.source, bad=(*examples.bad, *bad, *dropped), notes=tuple(notes))


def _choose_columns(frame: pd.DataFrame, config: Config) -> tuple[dict[str, Kind], dict[str, Kind], list[str]]:
    """Inputs and targets with their kinds, and notes on what was decided."""
    overrides = columns.parse_kinds("columns", config.columns, columns.INPUT_KINDS)
    wanted, target_notes = targets.choose_targets(frame, config.targets, config.target_kinds)
    for name, kind in wanted.items():
        if kind not in FITS[config.model]:
            fitting = " or ".join(model for model, fits in FITS.items() if kind in fits)
            raise UserError(f"--model {config.model}: the target {name!r} is taken as {kind}; use --model {fitting}")
    others = {*wanted, *(SAMPLE_TARGETS if config.data == "sample" else ())}
    inputs, notes = columns.choose_inputs(frame[[name for name in frame if name not in others]], overrides)
    return inputs, wanted, [*notes, *target_notes]


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
    size, units = len(column.vocabulary), config.embedding_units
    # Vectors of length 1 count as much as a scaled number from the first step; Keras' default is a tenth of that.
    start = keras.initializers.VarianceScaling(mode="fan_out")
    if column.kind == "category":
        return keras.layers.Flatten()(keras.layers.Embedding(size, units, embeddings_initializer=start)(numbers))
    if column.kind == "text":
        return layers.BagOfWordPairs(size, units, pair_buckets=0, embeddings_initializer=start)(numbers)
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
            use_bias=not config.normalizes,
            kernel_initializer=initializers.get(config.activation, "he_normal"),
            kernel_regularizer=make_regularizer(config),
        )(vector)
        if config.normalizes:
            vector = make_batch_norm()(vector)
        vector = make_activation(config.activation)(vector)
        vector = dropout(config.dropout)(vector) if config.drops else vector
    return vector


def _output(vector: keras.KerasTensor, target: Field, config: Config) -> keras.KerasTensor:
    """A probability for each class or label, f(x) of a model with a margin, or a number in the target's own units."""
    output = keras.layers.Dense(
        len(target.vocabulary) if target.kind in ("classes", "labels") else 1,
        "linear" if config.model in MARGINS else targets.ACTIVATIONS[target.kind],
        # Linear models have no symmetry to break, and from zeros what is never seen in training weighs nothing.
        kernel_initializer="glorot_uniform" if config.model == "mlp" else "zeros",
        kernel_regularizer=make_regularizer(config),
        dtype="float32",
    )(vector)
    if target.kind != "number":
        return output
    scale, mean = target.statistics["variance"] ** 0.5, target.statistics["mean"]
    return keras.layers.Rescaling(scale, mean, dtype="float32")(output)


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
    if config.model in MARGINS:
        return {
            target.name: layers.PerceptronLoss() if config.model == "perceptron" else "hinge" for target in spec.targets
        }
    kinds = {target.name: LOSSES[target.kind] for target in spec.targets}
    return kinds | {target.name: _of_number(target, config) for target in spec.targets if target.kind == "number"}


def _of_number(target: Field, config: Config) -> Any:
    deviation = target.statistics["variance"] ** 0.5
    return keras.losses.Huber(deviation) if config.number_loss == "huber" else config.number_loss


def loss_weights(config: Config, spec: Spec) -> dict[str, float]:
    """Errors count in units of the target's standard deviation, so that all losses are of the same size."""
    power = 0.5 if config.number_loss == "mae" else 1.0
    return {target.name: target.statistics.get("variance", 1.0) ** -power for target in spec.targets}


def metrics(config: Config, spec: Spec) -> dict[str, list[Any]]:
    """What is reported beside the loss."""
    if config.model in MARGINS:
        return {target.name: [keras.metrics.BinaryAccuracy("accuracy", threshold=0)] for target in spec.targets}
    return {target.name: [METRICS[target.kind]] for target in spec.targets}


def baselines(config: Config, data: Data) -> dict[str, Metrics]:
    """Knowing nothing, and gradient boosting on the same columns, for each target on its own."""
    import pandas as pd

    features = columns.for_trees(data.spec, pd.concat([data.train.raw, data.validation.raw]))
    return targets.measure_simple_methods(data, features, columns.for_trees(data.spec, data.test.raw))


def predict(trained: Trained, frame: pd.DataFrame) -> Sequence[Answer]:
    """For each row a label with its probability, a number, or labels with theirs; several targets by their names."""
    config: Any = trained.config
    outputs, probable = trained.outputs(frame), config.model not in MARGINS
    return targets.answers(trained.spec.targets, outputs, config.threshold, probable)


def report(run: Run) -> None:
    """Where the model errs, and which columns it needs."""
    from loom.report import draw_targets

    config: Any = run.config
    draw_targets(run, config.threshold)


APP = App(
    "tabular",
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
    objective="val_loss",
)

if __name__ == "__main__":
    main(APP)
