"""Zero padding with and without a mask: what a recurrent network makes of the steps after, or before, a text.

python foundations/padding.py [--seeds N] [--figure FILE] [--json FILE]

Built-in reviews are read by an Elman network or an LSTM, whose last state says whether they are positive. A batch pads
them with zeros to a common length, at the end or at the beginning. With a mask the network skips these steps; without
one it reads them like words, and after many of them little may be left of the text. Every combination is trained anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from foundations.comparison import Result, Training, accuracy, markdown, run, shuffled
from loom.data import samples
from loom.data.text import build_vocabulary
from loom.lazy import keras, layers, tf
from loom.report import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAIN, TEST, BATCH, EPOCHS = 1200, 600, 40, 5
LENGTHS = (60, 120)
"""Steps that texts are padded to; of the few that are longer than the first, that many words are read."""
UNITS, LEARNING_RATE = 16, 0.01
CELLS = ("Elman", "LSTM")
WAYS = ("mask", "no mask, padded at the end", "no mask, padded at the beginning")


def texts() -> tuple[list[np.ndarray], np.ndarray, int]:
    """Word numbers of each review, from 1 on, whether it is positive, and how many words there are."""
    frame = samples.reviews(TRAIN + TEST, seed=0)
    words = [layers.standardize_text(tf.constant(text)).numpy().decode().split() for text in frame["text"]]
    known = {word: number for number, word in enumerate(build_vocabulary(frame["text"][:TRAIN].tolist(), 2000))}
    numbers = [np.array([known.get(word, 1) for word in each][: LENGTHS[0]]) for each in words]
    return numbers, (frame["label"] == "positive").to_numpy(int), len(known)


def padded(numbers: list[np.ndarray], length: int, at_end: bool) -> np.ndarray:
    """Texts with zeros after or before them, `(texts, length)`."""
    rows = np.zeros((len(numbers), length), "int32")
    for row, text in zip(rows, numbers, strict=True):
        row[slice(len(text)) if at_end else slice(length - len(text), None)] = text
    return rows


def network(cell: str, words: int, length: int, mask: bool) -> keras.Model:
    """Vectors of words, one recurrent layer, and a score that is positive for positive reviews."""
    numbers = keras.Input((length,), dtype="int32")
    vectors = keras.layers.Embedding(words, UNITS, mask_zero=mask)(numbers)
    return keras.Model(numbers, keras.layers.Dense(1)(getattr(layers, cell)(UNITS)(vectors)))


def measure(seeds: int) -> Result:
    """Test accuracies of every way, and how far a word reaches across padding."""
    numbers, positive, words = texts()
    rows = []
    for cell in CELLS:
        for way in WAYS:
            # With a mask the answers do not depend on the padding: the tests prove it, and one length is enough.
            for length in LENGTHS[:1] if way == "mask" else LENGTHS:
                inputs = padded(numbers, length, at_end=way != WAYS[2])
                model = network(cell, words, length, mask=way == "mask")
                scores = _trained(model, inputs, positive, seeds)
                row: Result = {"cell": cell, "way": way, "length": length}
                rows.append(row | {"mean": float(np.mean(scores)), "spread": float(np.std(scores)), "scores": scores})
    lengths = [len(text) for text in numbers]
    return {"rows": rows, "seeds": seeds, "words": float(np.mean(lengths)), "longest": max(lengths)}


def _trained(model: keras.Model, inputs: np.ndarray, positive: np.ndarray, seeds: int) -> list[float]:
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    training, scores = Training(model, loss, keras.optimizers.Adam(clipnorm=1.0)), []
    for seed in range(seeds):
        training.start(seed, LEARNING_RATE)
        training.take(inputs[:TRAIN], positive[:TRAIN, None], shuffled(TRAIN, BATCH, EPOCHS, seed))
        scores.append(accuracy(model, inputs[TRAIN:], positive[TRAIN:]))
    return scores


def table(result: Result) -> list[str]:
    """Mean and spread of the test accuracies, a column for each length."""
    cells = []
    for cell in CELLS:
        for way in WAYS:
            found = {row["length"]: row for row in result["rows"] if (row["cell"], row["way"]) == (cell, way)}
            of_lengths = [found.get(length, found[LENGTHS[0]]) for length in LENGTHS]
            cells.append([cell, way, *(f"{row['mean']:.3f} ± {row['spread']:.3f}" for row in of_lengths)])
    return markdown(["network", "padding", *(f"{length} steps" for length in LENGTHS)], cells)


def draw(result: Result) -> Figure:
    """Accuracy against the length that texts are padded to."""
    figure, axes = new_figure(len(CELLS), 4.6, 3.6)
    for axis, cell in zip(axes, CELLS, strict=True):
        for number, way in enumerate(WAYS):
            found = [row for row in result["rows"] if (row["cell"], row["way"]) == (cell, way)]
            means, spreads = ([row[name] for row in found] for name in ("mean", "spread"))
            if len(found) == 1:
                means, spreads = means * len(LENGTHS), spreads * len(LENGTHS)
            axis.errorbar(LENGTHS, means, spreads, color=f"C{number}", marker="o", capsize=3, label=way)
        axis.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
        axis.set(xlabel="padded to so many steps", ylabel="test accuracy", title=cell, ylim=(0.45, 1), xticks=LENGTHS)
    axes[1].legend(fontsize=8, frameon=False, loc="center")
    return figure


if __name__ == "__main__":
    run(__file__, __doc__, measure, table, draw, seeds=3)
