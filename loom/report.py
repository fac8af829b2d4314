"""Figures and tables that several applications share, and the summary on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from loom.app import Metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from loom.run import Run
    from loom.tracking import Tracker

MAX_CLASSES_WITH_NUMBERS = 20
"""Above this, the cells of a confusion matrix are too small to write in."""
PLAIN: dict[str, Any] = {"parse_math": False}
"""For texts of data in figures: two dollars in one are no formula."""


def plain_legend(axis: Axes, **options: Any) -> None:
    """The legend, whose texts are data."""
    for text in axis.legend(frameon=False, **options).get_texts():
        text.set(**PLAIN)


def draw(run: Run) -> None:
    """Draw what every run has (learning curves, advice), then what its application adds."""
    if run.history:
        run.figure("learning_curves", learning_curves(run.history))
    run.table("advice", advice(run.history))
    run.app.report(run)


def new_figure(columns: int = 1, width: float = 6.0, height: float = 4.0, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with axes side by side, row by row; made without pyplot, which keeps global state and opens windows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def learning_curves(history: Sequence[Metrics]) -> Figure:
    """Loss and every other metric against the epoch, training beside validation; a line where a phase begins."""
    recorded = [name.partition("_") for name in history[0] if name.startswith(("train_", "val_"))]
    names = list(dict.fromkeys(name for _, _, name in recorded))
    figure, axes = new_figure(len(names), 4.5, 3.4)
    epochs = range(1, len(history) + 1)
    for axis, name in zip(axes, names, strict=True):
        for part, label, style in (("train", "train", "C0--"), ("val", "validation", "C1-")):
            values = [metrics.get(f"{part}_{name}", np.nan) for metrics in history]
            if not np.isnan(values).all():
                axis.plot(epochs, values, style, marker="o", markersize=3, label=label)
        for epoch in epochs[:-1]:
            if history[epoch].get("phase") != history[epoch - 1].get("phase"):
                axis.axvline(epoch + 0.5, color="grey", linewidth=0.8, label="next phase")
        axis.set(xlabel="epoch", title=name)
        axis.locator_params(axis="x", integer=True)
    axes[0].legend(frameon=False)
    return figure


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> Figure:
    """Counts of predicted classes (columns) for each true class (rows), coloured by their share of the row."""
    from sklearn.metrics import confusion_matrix as count_confusions

    counts = count_confusions(truth, predicted, labels=range(len(classes)))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = max(4.0, 0.6 * len(classes) + 2)
    figure, (axis,) = new_figure(1, size + 0.8, size)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    axis.set_xticks(range(len(classes)), classes, rotation=45 if len(classes) > 4 else 0, ha="center", **PLAIN)
    axis.set_yticks(range(len(classes)), classes, **PLAIN)
    axis.set(xlabel="predicted", ylabel="true")
    if len(classes) <= MAX_CLASSES_WITH_NUMBERS:
        for row, column in np.ndindex(counts.shape):
            color = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=color)
    return figure


def predicted_against_true(truth: np.ndarray, predicted: np.ndarray, name: str) -> Figure:
    """Scatter of predictions over true values, with the line where they agree."""
    figure, (axis,) = new_figure(1, 5, 4.6)
    axis.plot(truth, predicted, ".", alpha=min(1.0, 300 / max(len(truth), 1)), markeredgewidth=0)
    ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
    axis.plot(ends, ends, color="black", linewidth=0.8)
    axis.set_xlabel(f"true {name}", **PLAIN)
    axis.set_ylabel(f"predicted {name}", **PLAIN)
    return figure


def draw_targets(run: Run, threshold: float) -> None:
    """For each target of a table where the model errs, scores, and which columns it needs.

    Args:
        run: A trained run.
        threshold: As for `loom.data.targets.decide`.
    """
    from loom.data import targets

    scores = {}
    for target in run.data.spec.targets:
        truth, outputs = run.data.test.targets[target.name], run.test_outputs()[target.name]
        decided = targets.decide(target, outputs, threshold)
        measured = {targets.METRICS[target.kind]: targets.score(target, truth, decided)}
        scores[target.name] = measured | targets.areas_under_curve(target, truth, outputs)
        if target.kind == "number":
            run.figure(f"predictions_{target.name}", predicted_against_true(truth[:, 0], decided[:, 0], target.name))
        elif target.kind != "labels":
            figure = confusion_matrix(truth[:, 0], decided[:, 0], target.vocabulary)
            run.figure(f"confusion_matrix_{target.name}", figure)
    run.table("scores", scores)
    for target, names, changes in targets.permutation_importance(run, threshold):
        metric = f"{targets.METRICS[target.kind].replace('_', ' ')} {'added' if target.kind == 'number' else 'lost'}"
        title = f"{target.name}: {metric} when a column is shuffled"
        figure = horizontal_bars(names, changes.mean(axis=1), changes.std(axis=1), title)
        run.figure(f"importance_{target.name}", figure)


def horizontal_bars(
    labels: Sequence[str], values: Sequence[float], errors: Sequence[float] | None, title: str
) -> Figure:
    """Named numbers, the largest on top, with error bars where given."""
    order = np.argsort(values)
    figure, (axis,) = new_figure(1, 6, 0.32 * len(labels) + 1.2)
    axis.barh(
        range(len(labels)),
        np.asarray(values)[order],
        xerr=None if errors is None else np.asarray(errors)[order],
        color="#4477aa",
    )
    axis.set_yticks(range(len(labels)), [labels[index] for index in order], **PLAIN)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_title(title, **PLAIN)
    return figure


def advice(history: Sequence[Metrics]) -> list[str]:
    """What the learning curves say, with the usual remedies; empty where nothing stands out."""
    if len(history) < 3 or "train_loss" not in history[0]:  # losses of adversaries need not fall
        return []
    train = [metrics["train_loss"] for metrics in history]
    validation = [metrics["val_loss"] for metrics in history]
    best = int(np.argmin(validation))
    found = []
    if len(validation) - best > 2 and validation[-1] > 1.1 * validation[best] and train[-1] < train[best]:
        found.append(
            f"overfitting: the validation loss was best in epoch {best + 1} and rises since, while the training loss "
            "falls; try --patience 2, more dropout, --regularization l2, or more data"
        )
    if train[-1] > 0.98 * train[0]:
        found.append(
            "no learning: the training loss hardly fell; try another --learning-rate (ten times larger or smaller), "
            "scaled inputs, or another --optimizer"
        )
    if best == len(validation) - 1 and validation[-1] < 0.97 * validation[-2]:
        found.append("not finished: the validation loss still falls; try more --epochs")
    return found


def show(console: Console, run: Run, baselines: Mapping[str, Metrics], tracker: Tracker, seconds: float) -> None:
    """Print the model's test metrics beside the baselines', advice, and what to do next."""
    table = Table(title=f"{run.app.name}: {len(run.data.test):,} test examples", title_justify="left")
    columns = {"this model": run.test_metrics, **baselines}
    for label in ("", *columns):
        table.add_column(label, justify="right" if label else "left")
    for name in dict.fromkeys(name for values in columns.values() for name in values):
        table.add_row(name, *(f"{values[name]:.4f}" if name in values else "" for values in columns.values()))
    console.print(table)
    for sentence in advice(run.history):
        console.print(f"advice: {sentence}", highlight=False, soft_wrap=True)
    done = f"done in {seconds:.1f} s; the saved model was loaded in a fresh process and gave the same answers"
    console.print(done, highlight=False, soft_wrap=True)
    run_id = tracker.run_id
    for command, meaning in (
        (f"loom predict {run_id} {_example(run)}", "answers for raw input"),
        *([(f"tail -f FILE | loom watch {run_id}", "detections in an endless text")] if run.app.watch else []),
        (f"loom serve {run_id}", "an HTTP server"),
        ("loom ui", "runs, charts and figures in the browser"),
    ):
        console.print(f"  {command:<70} {meaning}", highlight=False, soft_wrap=True)


def _example(run: Run) -> str:
    kinds = [column.kind for column in run.data.spec.inputs]
    examples = {"text": '"some text"', "image": "picture.png", "number": "1"}
    return examples.get(kinds[0], "rows.csv") if len(kinds) == 1 else "rows.csv"
