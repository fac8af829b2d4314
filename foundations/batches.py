"""Gradient descent with all examples, with batches of some, and with one at a time.

python foundations/batches.py [--seeds N] [--figure FILE] [--json FILE]

A network learns scikit-learn's digits by plain gradient descent. All ways see the same number of examples; they differ
in how many of them one step is an average over: all, 32, or one. Once with the same learning rate for all ways, and
once with the one of seven that leaves the lowest training loss.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from foundations.comparison import Result, Training, accuracy, digits, markdown, run, shuffled
from loom.lazy import keras, tf
from loom.report import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPOCHS = 8
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
SAME = 0.03
"""Learning rate that all ways share."""
SAMPLED = 100
"""Batches whose gradients are compared with that of all examples."""


def network() -> keras.Model:
    """64 pixels, 32 hidden units, 10 classes."""
    hidden = keras.layers.Dense(32, "relu", kernel_initializer="he_normal")
    return keras.Sequential([keras.Input((64,)), hidden, keras.layers.Dense(10)])


def measure(seeds: int) -> Result:
    """Losses, accuracies, noise and times of the three ways."""
    pixels, classes, test, test_classes = digits()
    rows, curves = [], {}
    for size in (len(pixels), 32, 1):
        training = Training(network(), _crossentropy(), keras.optimizers.SGD())
        tried = {rate: _train(training, pixels, classes, size, rate, seed=0)[-1] for rate in RATES}
        best = min(tried, key=lambda rate: (not np.isfinite(tried[rate]), tried[rate]))
        row: Result = {"batch_size": size, "updates": len(pixels) // size * EPOCHS, "rate": best}
        for name, rate in (("same", SAME), ("best", best)):
            found, scores = [], []
            for seed in range(seeds):
                found.append(_train(training, pixels, classes, size, rate, seed))
                scores.append(accuracy(training.model, test, test_classes))
            curves[size, name] = np.mean(found, axis=0)
            row[name] = {"loss": float(curves[size, name][-1]), "accuracy": float(np.mean(scores))}
        training.start(0, SAME)
        row["noise"] = _noise(training.model, pixels, classes, size)
        row["epoch_seconds"] = _seconds(training, pixels, classes, size)
        rows.append(row)
    return {"rows": rows, "seeds": seeds, "curves": curves}


def _crossentropy() -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _train(
    training: Training, pixels: np.ndarray, classes: np.ndarray, size: int, rate: float, seed: int
) -> np.ndarray:
    """Training loss at the start and after each epoch."""
    training.start(seed, rate)
    steps = np.split(shuffled(len(pixels), size, EPOCHS, seed), EPOCHS)
    losses = [_loss(training.model, pixels, classes)]
    for epoch in steps:
        training.take(pixels, classes, epoch)
        losses.append(_loss(training.model, pixels, classes))
    return np.array(losses)


def _loss(model: keras.Model, pixels: np.ndarray, classes: np.ndarray) -> float:
    return float(_crossentropy()(classes, model(pixels)))


def _noise(model: keras.Model, pixels: np.ndarray, classes: np.ndarray, size: int) -> float:
    """Root mean square distance of the gradient of a batch from that of all examples, in terms of its length."""

    @tf.function
    def gradient(rows: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = _crossentropy()(tf.gather(classes, rows), model(tf.gather(pixels, rows)))
        return tf.concat([tf.reshape(each, [-1]) for each in tape.gradient(loss, model.trainable_variables)], axis=0)

    generator = np.random.default_rng(0)
    whole = gradient(tf.range(len(pixels))).numpy()
    batches = [generator.choice(len(pixels), size, replace=False) for _ in range(SAMPLED)]
    deviations = [gradient(tf.constant(batch)).numpy() - whole for batch in batches]
    return float(np.sqrt(np.mean([deviation @ deviation for deviation in deviations]) / (whole @ whole)))


def _seconds(training: Training, pixels: np.ndarray, classes: np.ndarray, size: int) -> float:
    """Seconds of an epoch that is compiled already, the median of five."""
    rows, times = shuffled(len(pixels), size, 1, 0), []
    for _ in range(5):
        start = time.perf_counter()
        training.take(pixels, classes, rows)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def table(result: Result) -> list[str]:
    """A line for each way."""
    columns = [
        "batch",
        "updates",
        "noise of a gradient",
        "loss, same rate",
        "loss, own rate",
        "its test accuracy",
        "ms an epoch",
    ]
    cells = [
        [
            f"{row['batch_size']:,}",
            f"{row['updates']:,}",
            f"{row['noise']:.2f}",
            f"{row['same']['loss']:.3f}",
            f"{row['best']['loss']:.3f} ({row['rate']:g})",
            f"{row['best']['accuracy']:.3f}",
            f"{1000 * row['epoch_seconds']:.0f}",
        ]
        for row in result["rows"]
    ]
    return markdown(columns, cells)


def draw(result: Result) -> Figure:
    """Training loss against epochs, with the same rate and with each way's own."""
    figure, axes = new_figure(2, 4.6, 3.6)
    for axis, name in zip(axes, ("same", "best"), strict=True):
        for row in result["rows"]:
            size, rate = row["batch_size"], SAME if name == "same" else row["rate"]
            axis.semilogy(result["curves"][size, name], "o-", markersize=3, label=f"batch of {size:,}, rate {rate:g}")
        axis.set(xlabel="epoch", ylabel="loss of all training examples")
        axis.set_title("the same learning rate" if name == "same" else "each with its own learning rate")
        axis.legend(fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    run(__file__, __doc__, measure, table, draw, seeds=5)
