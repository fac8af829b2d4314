"""Dying ReLU: units that put out zero for every example, what kills them, and what helps.

python foundations/dying_relu.py [--seeds N] [--figure FILE] [--json FILE]

A network with two hidden layers learns scikit-learn's digits by plain gradient descent: with a sound learning rate,
with one that is too high, and with biases that start far below zero; then again with each of the usual remedies. A unit
is dead when its slope is zero for every training example, so that nothing can change its weights. The second table
follows the units that are dead after the first epoch: how many of them are alive at the end?
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foundations.comparison import Result, Training, accuracy, digits, markdown, run, shuffled
from loom.lazy import keras
from loom.report import new_figure
from loom.runtime import make_activation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNITS, EPOCHS, BATCH = 64, 20, 32
SOUND, HIGH = 0.1, 1.5
"""Learning rates."""
LOW_BIAS = -1.0


@dataclass(frozen=True)
class Case:
    """A way to train the network."""

    name: str
    function: str = "relu"
    learning_rate: float = SOUND
    bias: float = 0.0
    """Where all biases start."""


CASES = (
    Case("ReLU, sound rate"),
    Case("high rate", learning_rate=HIGH),
    Case("high rate, bias 0.01", learning_rate=HIGH, bias=0.01),
    Case("high rate, leaky ReLU", "leaky_relu", HIGH),
    Case("high rate, ELU", "elu", HIGH),
    Case("high rate, lowered tenfold", learning_rate=HIGH / 10),
    Case("low bias", bias=LOW_BIAS),
    Case("low bias, leaky ReLU", "leaky_relu", bias=LOW_BIAS),
    Case("low bias, ELU", "elu", bias=LOW_BIAS),
    Case("bias 0.01 in its place", bias=0.01),
)


def network(function: str) -> keras.Model:
    """Two hidden layers; the sums before each activation have names."""
    vector = first = keras.Input((64,))
    for number in (1, 2):
        vector = keras.layers.Dense(UNITS, kernel_initializer="he_normal", name=f"sums_{number}")(vector)
        vector = make_activation(function)(vector)
    return keras.Model(first, keras.layers.Dense(10)(vector))


def dead_units(model: keras.Model, function: str, pixels: np.ndarray) -> np.ndarray:
    """Which units of both hidden layers have no slope at any example, `(2, UNITS)`."""
    sums = keras.Model(model.input, [model.get_layer(f"sums_{number}").output for number in (1, 2)])(pixels)
    below = np.array([(each.numpy() <= 0).all(axis=0) for each in sums])
    # The slope of a leaky ReLU is 0.01 there; that of ELU is exp(sum), which rounding makes zero far down.
    if function == "relu":
        return below
    if function == "leaky_relu":
        return np.zeros_like(below)
    return below & np.array([(np.exp(np.minimum(each.numpy(), 0)) == 0).all(axis=0) for each in sums])


def measure(seeds: int) -> Result:
    """Dead units and test accuracy of each case, and what becomes of dead units."""
    pixels, classes, test, test_classes = digits()
    trainings = {
        function: Training(
            network(function), keras.losses.SparseCategoricalCrossentropy(from_logits=True), keras.optimizers.SGD()
        )
        for function in ("relu", "leaky_relu", "elu")
    }
    rows, curves = [], {}
    for case in CASES:
        training, found = trainings[case.function], []
        for seed in range(seeds):
            training.start(seed, case.learning_rate)
            for number in (1, 2):
                training.model.get_layer(f"sums_{number}").bias.assign(np.full(UNITS, case.bias))
            dead = [dead_units(training.model, case.function, pixels)]
            for epoch in np.split(shuffled(len(pixels), BATCH, EPOCHS, seed), EPOCHS):
                training.take(pixels, classes, epoch)
                dead.append(dead_units(training.model, case.function, pixels))
            found.append((np.array(dead), accuracy(training.model, test, test_classes)))
        shares = np.mean([dead.mean(axis=(1, 2)) for dead, _ in found], axis=0)
        curves[case.name] = shares
        after_one, at_end = (np.sum([dead[when].sum(axis=1) for dead, _ in found], axis=0) for when in (1, -1))
        back = np.sum([(dead[1] & ~dead[-1]).sum(axis=1) for dead, _ in found], axis=0)
        rows.append(
            {
                "case": case.name,
                "dead_at_start": float(shares[0]),
                "dead_at_end": float(shares[-1]),
                "accuracy": float(np.mean([score for _, score in found])),
                "dead_after_one": after_one.tolist(),
                "dead_in_layers": at_end.tolist(),
                "back": back.tolist(),
            }
        )
    return {"rows": rows, "seeds": seeds, "curves": curves}


def table(result: Result) -> list[str]:
    """Shares of dead units, and of how many came back."""
    cells = [
        [row["case"], f"{row['dead_at_start']:.0%}", f"{row['dead_at_end']:.0%}", f"{row['accuracy']:.3f}"]
        for row in result["rows"]
    ]
    back = [
        [row["case"], *(f"{alive} of {dead}" for alive, dead in zip(row["back"], row["dead_after_one"], strict=True))]
        for row in result["rows"]
        if sum(row["dead_after_one"])
    ]
    return [
        *markdown(["case", "dead at the start", "dead at the end", "test accuracy"], cells),
        "",
        *markdown(["dead after one epoch, alive at the end", "first layer", "second layer"], back),
    ]


def draw(result: Result) -> Figure:
    """Share of dead units against epochs, for each of the two causes with its remedies."""
    figure, axes = new_figure(2, 5.0, 3.6)
    for axis, cause, title in zip(
        axes, ("high rate", "bias"), ("a high learning rate", "biases that start low"), strict=True
    ):
        names = [name for name in result["curves"] if (name.startswith("high rate")) == (cause == "high rate")]
        for number, name in enumerate(names):
            axis.plot(100 * result["curves"][name], f"C{number}", linewidth=1.5, alpha=0.8, label=name)
        axis.set(xlabel="epoch", ylabel="dead units, %", ylim=(-3, 103), title=title)
        axis.legend(fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    run(__file__, __doc__, measure, table, draw, seeds=5)
