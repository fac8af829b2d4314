"""A perceptron and a network with a hidden layer on data that no line separates.

python foundations/separation.py [--seeds N] [--figure FILE] [--json FILE]

Points in the plane: two clouds that a line separates, four clouds in the corners of a square (exclusive or), and a ring
around a cloud. Four models: a perceptron; two linear layers, which are one; a hidden layer of four ReLU units, and one
of 32. Measured is the share of new points on the right side, and drawn where each model has its line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from foundations.comparison import Result, Training, accuracy, markdown, run, shuffled
from loom.lazy import keras, layers
from loom.report import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS, BATCH, EPOCHS = 400, 20, 60
MODELS = ("perceptron", "two linear layers", "4 hidden units", "32 hidden units")
RATES = {"perceptron": 0.01}
RATE = 0.05


def clouds(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two clouds, one on each side of a line."""
    classes = np.arange(POINTS) % 2
    return np.where(classes, 1.2, -1.2)[:, None] + 0.35 * generator.normal(size=(POINTS, 2)), classes


def exclusive_or(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Four clouds; those at opposite corners belong together."""
    corners = np.arange(POINTS) % 4
    x, y = np.where(corners // 2, 1.0, -1.0), np.where(corners % 2, 1.0, -1.0)
    return np.stack([x, y], axis=1) + 0.25 * generator.normal(size=(POINTS, 2)), (x * y > 0).astype(int)


def ring(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A ring around a cloud."""
    classes, angles = np.arange(POINTS) % 2, generator.uniform(0, 2 * np.pi, POINTS)
    radii = np.where(classes, 1.7, 0.5) + 0.12 * generator.normal(size=POINTS)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1), classes


DATA: dict[str, Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]] = {
    "two clouds": clouds,
    "exclusive or": exclusive_or,
    "ring": ring,
}


def network(name: str) -> keras.Model:
    """From a point to a score, positive for the second class."""
    units = {"perceptron": [], "two linear layers": [32], "4 hidden units": [4], "32 hidden units": [32]}[name]
    function = "linear" if name == "two linear layers" else "relu"
    hidden = [keras.layers.Dense(count, function, kernel_initializer="he_normal") for count in units]
    return keras.Sequential([keras.Input((2,)), *hidden, keras.layers.Dense(1)])


def make_training(name: str) -> Training:
    """The perceptron has its own loss and plain gradient descent: the perceptron trick with batches."""
    if name == "perceptron":
        return Training(network(name), layers.PerceptronLoss(), keras.optimizers.SGD())
    return Training(network(name), keras.losses.BinaryCrossentropy(from_logits=True), keras.optimizers.Adam())


def measure(seeds: int) -> Result:
    """Accuracies on new points, scores over the plane, and how far two linear layers are from one."""
    rows, curves, difference = [], {}, 0.0
    for model in MODELS:
        training = make_training(model)
        row: Result = {"model": model}
        for data, make in DATA.items():
            scores = []
            for seed in range(seeds):
                points, classes = _float32(make(np.random.default_rng(seed)))
                training.start(seed, RATES.get(model, RATE))
                training.take(points, classes[:, None], shuffled(POINTS, BATCH, EPOCHS, seed))
                scores.append(accuracy(training.model, *_float32(make(np.random.default_rng(1000 + seed)))))
                if model == "two linear layers":
                    difference = max(difference, _distance_from_one_layer(training.model, points))
            curves[model, data] = np.asarray(training.model(_grid())).reshape(GRID, GRID)
            row[data] = {"mean": float(np.mean(scores)), "worst": float(np.min(scores))}
        rows.append(row)
    return {"rows": rows, "seeds": seeds, "linear_difference": difference, "curves": curves}


def _float32(data: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return data[0].astype("float32"), data[1]


def _distance_from_one_layer(model: keras.Model, points: np.ndarray) -> float:
    """Largest difference between two linear layers and the one whose kernel is the product of theirs."""
    kernel, bias, second_kernel, second_bias = (weight.astype("float64") for weight in model.get_weights())
    as_one = points @ (kernel @ second_kernel) + (bias @ second_kernel + second_bias)
    return float(np.abs(np.asarray(model(points)) - as_one).max())


GRID, EDGE = 120, 2.6


def _grid() -> np.ndarray:
    line = np.linspace(-EDGE, EDGE, GRID, dtype="float32")
    return np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)


def table(result: Result) -> list[str]:
    """Mean accuracy and, in brackets, the worst seed's."""
    cells = [
        [row["model"], *(f"{row[data]['mean']:.3f} ({row[data]['worst']:.3f})" for data in DATA)]
        for row in result["rows"]
    ]
    return markdown(["model", *DATA], cells)


def draw(result: Result) -> Figure:
    """Points and regions of the last seed."""
    figure, axes = new_figure(len(MODELS), 2.9, 2.9, rows=len(DATA))
    for number, (data, make) in enumerate(DATA.items()):
        points, classes = make(np.random.default_rng(result["seeds"] - 1))
        for axis, model in zip(axes[number * len(MODELS) :], MODELS, strict=False):
            scores: Any = result["curves"][model, data]
            extent = (-EDGE, EDGE, -EDGE, EDGE)
            axis.imshow(scores > 0, origin="lower", extent=extent, cmap="coolwarm", alpha=0.35, vmin=0, vmax=1)
            axis.scatter(points[:, 0], points[:, 1], c=classes, cmap="coolwarm", s=4, linewidths=0)
            axis.set(xticks=[], yticks=[])
            if not number:
                axis.set_title(model, fontsize=10)
        axes[number * len(MODELS)].set_ylabel(data)
    return figure


if __name__ == "__main__":
    run(__file__, __doc__, measure, table, draw, seeds=5)
