"""Symptoms of training that goes wrong, each with its usual remedies.

python foundations/diagnoses.py [--seeds N] [--figure FILE] [--json FILE]

Networks learn scikit-learn's digits. The first line of each group has the symptom: the gradient vanishes, it explodes,
the network overfits, or it learns slowly or not at all. Every other line changes one thing. Beside the losses stand the
norm of the first gradient, the share of it in the first layer's kernel in terms of the last hidden layer's, and what a
run of Kerasloom would say in its advice, or why it would stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from foundations.comparison import Result, Training, accuracy, digits, markdown, run, shuffled
from loom.lazy import keras, tf
from loom.report import advice, new_figure
from loom.runtime import make_activation, make_batch_norm

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Case:
    """A network and how it is trained.

    Attributes:
        symptom: What goes wrong with the first case of this symptom.
        name: What is different here.
        spread: Factor on the standard deviation of the initial kernels.
        clip: Greatest norm of the gradient, if there is one.
        decays: Whether the learning rate is halved after each epoch.
        scaled: Whether pixels lie around zero, not around a hundred.
        stops: Whether the weights of the epoch with the lowest validation loss are taken.
    """

    symptom: str
    name: str
    depth: int = 2
    units: int = 64
    function: str = "relu"
    initializer: str = "he_normal"
    spread: float = 1.0
    batch_norm: bool = False
    residual: bool = False
    dropout: float = 0.0
    l2: float = 0.0
    optimizer: str = "SGD"
    learning_rate: float = 0.1
    decays: bool = False
    clip: float | None = None
    scaled: bool = True
    examples: int = 1437
    epochs: int = 15
    stops: bool = False


def _vanishing(name: str, **changes: Any) -> Case:
    settings: dict[str, Any] = {"depth": 8, "function": "sigmoid", "initializer": "glorot_uniform"}
    return Case("vanishing gradient", name, **settings | changes)


def _exploding(name: str, **changes: Any) -> Case:
    settings: dict[str, Any] = {"depth": 8, "spread": 3.0, "learning_rate": 0.05}
    return Case("exploding gradient", name, **settings | changes)


def _overfitting(name: str, **changes: Any) -> Case:
    settings: dict[str, Any] = {
        "units": 256,
        "examples": 100,
        "epochs": 60,
        "optimizer": "Adam",
        "learning_rate": 0.003,
    }
    return Case("overfitting", name, **settings | changes)


def _slow(name: str, **changes: Any) -> Case:
    settings: dict[str, Any] = {"function": "tanh", "initializer": "glorot_uniform"}
    return Case("slow or no learning", name, **settings | changes)


CASES = (
    _vanishing("8 sigmoid layers"),
    _vanishing("ReLU and He's initializer", function="relu", initializer="he_normal"),
    _vanishing("batch normalization", batch_norm=True),
    _vanishing("residual connections", residual=True),
    _vanishing("2 layers", depth=2),
    _exploding("8 ReLU layers, weights 3 times too large"),
    _exploding("gradient clipped to norm 1", clip=1.0),
    _exploding("learning rate / 1,000", learning_rate=5e-5),
    _exploding("He's initializer as it is", spread=1.0),
    _exploding("batch normalization", batch_norm=True),
    _overfitting("100 examples, 256 units, 60 epochs"),
    _overfitting("dropout of a half", dropout=0.5),
    _overfitting("L2 penalty", l2=3e-3),
    _overfitting("1,437 examples", examples=1437, epochs=8),
    _overfitting("16 units", units=16),
    _overfitting("early stopping", stops=True),
    _slow("unscaled inputs", scaled=False),
    _slow("scaled inputs"),
    _slow("learning rate too small", learning_rate=1e-4),
    _slow("learning rate too large", learning_rate=3.0),
    _slow("too large, but it falls", learning_rate=3.0, decays=True),
    _slow("too small, but Adam", learning_rate=1e-4, optimizer="Adam"),
)


def network(case: Case) -> keras.Model:
    """Hidden layers and ten logits."""
    vector = first = keras.Input((64,))
    regularizer = keras.regularizers.L2(case.l2) if case.l2 else None
    for number in range(case.depth):
        before = vector
        vector = keras.layers.Dense(
            case.units, kernel_initializer=case.initializer, kernel_regularizer=regularizer, name=f"hidden_{number}"
        )(vector)
        vector = make_batch_norm()(vector) if case.batch_norm else vector
        vector = make_activation(case.function)(vector)
        vector = keras.layers.Add()([before, vector]) if case.residual else vector
        vector = keras.layers.Dropout(case.dropout)(vector) if case.dropout else vector
    return keras.Model(first, keras.layers.Dense(10)(vector))


def measure(seeds: int) -> Result:
    """Losses, accuracies and gradients of all cases, and what a run would say."""
    rows, curves = [], {}
    for case in CASES:
        optimizer = getattr(keras.optimizers, case.optimizer)(global_clipnorm=case.clip)
        training = Training(network(case), _crossentropy(), optimizer, xla=False)
        found = [_trained(training, case, seed) for seed in range(seeds)]
        train, validation = (np.median([each[part] for each in found], axis=0) for part in ("train", "validation"))
        history = [{"train_loss": own, "val_loss": other} for own, other in zip(train, validation, strict=True)]
        curves[case.symptom, case.name] = validation if case.symptom == "overfitting" else train
        row: Result = {"symptom": case.symptom, "case": case.name, "says": says(history)}
        row |= {
            name: float(np.median([each[name] for each in found])) for name in ("norm", "ratio", "test", "accuracy")
        }
        # No JSON has a number for what is none.
        row["train"] = float(train[-1]) if np.isfinite(train[-1]) else None
        rows.append(row | ({} if np.isfinite(row["test"]) else {"test": None}))
    return {"rows": rows, "seeds": seeds, "curves": curves}


def _crossentropy() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _trained(training: Training, case: Case, seed: int) -> Result:
    """Losses after each epoch, what the test part says, and the first layer's gradient at the start."""
    train, classes, held_out, held_classes = digits()
    train, classes = train[: case.examples], classes[: case.examples]
    if not case.scaled:
        train, held_out = ((1 + each) * 100 for each in (train, held_out))
    validation, test = ((held_out[part::2], held_classes[part::2]) for part in (0, 1))
    training.start(seed, case.learning_rate)
    for number in range(case.depth):
        kernel = training.model.get_layer(f"hidden_{number}").kernel
        kernel.assign(kernel * case.spread)
    ratio = _gradient_ratio(training.model, case.depth, train, classes)
    batch = 32 if case.examples > 1000 else 20
    losses: list[tuple[float, ...]] = []
    norms: list[float] = []
    for epoch, rows in enumerate(np.split(shuffled(len(train), batch, case.epochs, seed), case.epochs)):
        if case.decays:
            training.set_learning_rate(case.learning_rate * 0.5**epoch)
        norms.append(training.take(train, classes, rows)[1][0])
        parts = ((train, classes), validation, test)
        score = accuracy(training.model, *test)
        losses.append((*(float(_crossentropy()(truth, training.model(inputs))) for inputs, truth in parts), score))
    own, other, of_test, scores = np.array(losses).T
    last = int(np.argmin(other)) if case.stops else -1
    return {
        "train": own,
        "validation": other,
        "test": of_test[last],
        "accuracy": scores[last],
        "ratio": ratio,
        "norm": norms[0],
    }


def _gradient_ratio(model: keras.Model, depth: int, inputs: np.ndarray, classes: np.ndarray) -> float:
    """Root mean square gradient of the first hidden kernel over that of the last one."""
    kernels = [model.get_layer(f"hidden_{number}").kernel.value for number in (0, depth - 1)]
    with tf.GradientTape() as tape:
        loss = _crossentropy()(classes, model(inputs, training=True))
    first, last = (np.sqrt(np.mean(np.square(each, dtype="float64"))) for each in tape.gradient(loss, kernels))
    return float(first / last) if last else 0.0


def says(history: list[dict[str, float]]) -> str:
    """What `loom train` would say of these losses, in short."""
    if not np.isfinite(history[-1]["train_loss"]):
        return "stops: the loss is no number"
    return ", ".join(sentence.partition(":")[0] for sentence in advice(history)) or "nothing"


def table(result: Result) -> list[str]:
    """A line for each case."""
    cells = [
        [
            row["symptom"] if row["symptom"] != before else "",
            row["case"],
            f"{row['norm']:.0e}",
            f"{row['ratio']:.0e}",
            *("NaN" if row[part] is None else f"{row[part]:.3f}" for part in ("train", "test")),
            f"{row['accuracy']:.3f}",
            row["says"],
        ]
        for row, before in zip(result["rows"], ["", *(row["symptom"] for row in result["rows"])], strict=False)
    ]
    columns = [
        "symptom",
        "case",
        "gradient",
        "first layer's / last's",
        "training loss",
        "test loss",
        "test accuracy",
        "a run says",
    ]
    return markdown(columns, cells)


def draw(result: Result) -> Figure:
    """Training losses, and of overfitting networks validation losses, against epochs."""
    symptoms = list(dict.fromkeys(row["symptom"] for row in result["rows"]))
    figure, axes = new_figure(2, 6.6, 3.4, rows=2)
    for axis, symptom in zip(axes, symptoms, strict=True):
        for (of, name), losses in result["curves"].items():
            if of == symptom:
                axis.semilogy(range(1, len(losses) + 1), losses, linewidth=1.4, label=name)
        part = "validation" if symptom == "overfitting" else "training"
        axis.set(xlabel="epoch", ylabel=f"{part} loss", title=symptom)
        axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


if __name__ == "__main__":
    run(__file__, __doc__, measure, table, draw, seeds=1)
