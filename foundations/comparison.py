"""What the comparisons share: their command line, their tables, and where results are kept."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loom.fonts import save
from loom.lazy import keras, tf

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Result = dict[str, Any]
"""What a comparison measured, ready for JSON: `rows` of a table and more; what is only drawn is under `curves`."""


def run(
    script: str,
    description: str | None,
    measure: Callable[[int], Result],
    table: Callable[[Result], list[str]],
    draw: Callable[[Result], Figure],
    seeds: int,
) -> None:
    """The command of a comparison: measure, print the table, draw the figure, write the numbers.

    Args:
        script: Path of the comparison's file.
        description: Its docstring.
        measure: Does the work for so many seeds.
        table: Lines of a Markdown table.
        draw: The figure.
        seeds: Repetitions unless told otherwise.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds, help=f"repetitions ({seeds})")
    parser.add_argument("--figure", type=Path, help="file to draw to")
    parser.add_argument("--json", type=Path, help="file to write the numbers to, beside those of other comparisons")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds}: must be at least 1")
    tf.get_logger().setLevel("ERROR")  # TensorFlow warns that the same loop is traced for one model after the other
    start, working = time.perf_counter(), time.process_time()
    result = measure(options.seeds)
    worked = time.process_time() - working  # by this process alone, whatever else the machine does
    print("\n".join(table(result)))
    print(f"{time.perf_counter() - start:.0f} s, of which the processor worked {worked:.0f} s")
    if options.figure:
        save(draw(result), options.figure)
    if options.json:
        kept = json.loads(options.json.read_text("utf-8")) if options.json.exists() else {}
        kept[Path(script).stem] = {name: value for name, value in result.items() if name != "curves"}
        options.json.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", "utf-8")


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    head, *lines = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    return [head, f"|{'---|' * len(columns)}", *lines]


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scikit-learn's digits, 1,437 to train on and 360 to test with: pixels `(examples, 64)` and classes of both."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    pixels = (found.data / 16 - 0.3).astype("float32")
    train, test, classes, test_classes = train_test_split(
        pixels, found.target, test_size=360, random_state=0, stratify=found.target
    )
    return train, classes, test, test_classes


def accuracy(model: keras.Model, inputs: np.ndarray, classes: np.ndarray) -> float:
    """Share of examples whose largest output, or the sign of the only one, is right."""
    outputs = np.asarray(model(inputs))
    decided = outputs.argmax(axis=-1) if outputs.shape[-1] > 1 else outputs[:, 0] > 0
    return float((decided == classes).mean())


class Training:
    """Trains a model as often as asked for, each time from new weights, in one compiled loop.

    Args:
        model: The model.
        loss: Of a batch.
        optimizer: The optimizer, whose learning rate every start sets anew.
        xla: Whether XLA compiles the loop: steps are faster, but of a deep network it takes long to begin.
    """

    def __init__(self, model: keras.Model, loss: Any, optimizer: keras.optimizers.Optimizer, xla: bool = True) -> None:
        self.model, self._loss, self._optimizer = model, loss, optimizer
        optimizer.build(model.trainable_variables)
        self._fresh = [variable.numpy() for variable in optimizer.variables]
        self._steps = tf.function(self._take_steps, jit_compile=xla)

    def start(self, seed: int, learning_rate: float) -> None:
        """Draw new weights and forget what the optimizer knew."""
        keras.utils.set_random_seed(seed)
        self.model.set_weights(keras.models.clone_model(self.model).get_weights())
        for variable, value in zip(self._optimizer.variables, self._fresh, strict=True):
            variable.assign(value)
        self.set_learning_rate(learning_rate)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Go on with another learning rate."""
        self._optimizer.learning_rate = learning_rate

    def take(self, inputs: np.ndarray, targets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Steps on batches of these rows, `(steps, batch)`; returns each step's loss and norm of the gradient."""
        losses, norms = self._steps(tf.constant(inputs), tf.constant(targets), tf.constant(rows, "int32"))
        return losses.numpy(), norms.numpy()

    def _take_steps(self, inputs: tf.Tensor, targets: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        losses, norms = (tf.TensorArray("float32", rows.shape[0]) for _ in range(2))
        for step in tf.range(rows.shape[0]):
            with tf.GradientTape() as tape:
                outputs = self.model(tf.gather(inputs, rows[step]), training=True)
                loss = tf.reduce_mean(self._loss(tf.gather(targets, rows[step]), outputs)) + sum(self.model.losses)
            gradients = tape.gradient(loss, self.model.trainable_variables)
            self._optimizer.apply(gradients)
            losses, norms = losses.write(step, loss), norms.write(step, tf.linalg.global_norm(gradients))
        return losses.stack(), norms.stack()


def shuffled(examples: int, batch_size: int, epochs: int, seed: int) -> np.ndarray:
    """Rows of the batches of so many epochs, each in a new order, `(steps, batch_size)`; only whole batches."""
    generator = np.random.default_rng(seed)
    batches = examples // batch_size
    orders = [generator.permutation(examples)[: batches * batch_size] for _ in range(epochs)]
    return np.concatenate(orders).reshape(epochs * batches, batch_size)
