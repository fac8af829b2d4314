"""Target columns of a table: what each one asks for, and from a model's outputs to answers and scores."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from loom.app import Answer, Metrics
from loom.config import TrainingConfig
from loom.data.columns import parse_kinds, plain, require_columns
from loom.data.pipeline import Data, Split, take_rows
from loom.data.sources import Examples, split_examples
from loom.data.spec import Field, Kind
from loom.data.tables import column_kind
from loom.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from loom.run import Run

TARGET_KINDS = ("binary", "classes", "number", "labels")
LOSSES = {
    "binary": "binary_crossentropy",
    "classes": "sparse_categorical_crossentropy",
    "number": "mse",
    "labels": "binary_crossentropy",
}
METRICS = {"binary": "accuracy", "classes": "accuracy", "number": "mae", "labels": "binary_accuracy"}
"""What Keras measures for each kind of target, and what it calls it; `score` computes the same."""
ACTIVATIONS = {"binary": "sigmoid", "classes": "softmax", "number": "linear", "labels": "sigmoid"}
MOST_NUMBERED_CLASSES, MOST_CLASSES = 10, 1000
"""More different whole numbers (strings) in a target are no classes unless `--target-kinds` says so."""
SEPARATOR = "|"
"""Between the labels in one cell."""
ROWS_FOR_EXACT_BOOSTING = 10_000
"""Above, the baseline's trees are grown on histograms, which is faster."""
SHUFFLES, SHUFFLED_ROWS = 5, 2000
"""Repeats and test examples of the permutation importance."""
FEWEST_TO_STRATIFY = 10
"""Examples that a class needs for its share to be kept equal in all parts."""


def choose_targets(frame: pd.DataFrame, names: Sequence[str], overrides: str) -> tuple[dict[str, Kind], list[str]]:
    """The kind of every target, and a note on each that was guessed.

    Args:
        frame: The table.
        names: Columns to predict.
        overrides: Kinds that are not to be guessed, as in `--target-kinds`.

    Raises:
        UserError: No such column, or a column that cannot be predicted.
    """
    given = parse_kinds("target_kinds", overrides, TARGET_KINDS)
    require_columns("target", names, list(frame))
    require_columns("target_kinds", given, names)
    kinds: dict[str, Kind] = {name: given.get(name) or target_kind(name, frame[name]) for name in names}
    notes = [f"target {name!r} is taken as {kind}; --target-kinds changes it" for name, kind in kinds.items()]
    return kinds, [note for name, note in zip(names, notes, strict=True) if name not in given]


def output_names(names: Sequence[str], taken: Collection[str]) -> dict[str, str]:
    """What each target is called as an output of the model, where TensorFlow takes only ASCII letters, digits, `_.-`.

    Args:
        names: Columns to predict.
        taken: Names of the other columns.

    Raises:
        UserError: Two columns would have the same name.
    """
    outputs = {name: re.sub(r"[^A-Za-z0-9_.-]+", "_", name) for name in names}
    for name, output in outputs.items():
        if list(outputs.values()).count(output) > 1 or (output != name and output in taken):
            raise UserError(f"--target {name}: another column is called {output!r}, as this one would be; rename one")
    return outputs


def target_kind(name: str, values: pd.Series) -> Kind:
    """What a target column asks for.

    Cells with `|` make it `labels`. Otherwise two different values make it `binary`; 3 to 10 different whole numbers
    `classes`; any other numbers `number`; up to 1,000 different strings, each four times on average, `classes`.

    Raises:
        UserError: None of these.
    """
    text = plain(values).dropna()
    distinct = text.unique()
    if len(distinct) < 2:
        held = f"all rows hold {distinct[0]!r}" if len(distinct) else "no row has a value"
        raise UserError(f"--target {name}: {held}, so there is nothing to learn; name another column")
    if text.str.contains(SEPARATOR, regex=False).any():
        return "labels"
    if len(distinct) == 2:
        return "binary"
    if column_kind(distinct) == "number":
        whole = all(float(value).is_integer() for value in distinct)
        return "classes" if whole and len(distinct) <= MOST_NUMBERED_CLASSES else "number"
    if len(distinct) <= min(MOST_CLASSES, len(text) / 4):
        return "classes"
    raise UserError(
        f"--target {name}: its {len(distinct)} different values in {len(text)} rows are no numbers and too many for "
        f"classes; name another column, or add --target-kinds {name}=classes"
    )


def fit_target(name: str, kind: Kind, values: pd.Series, training: pd.Series) -> Field:
    """A target with its class names or labels (from all examples) or its mean and variance (from the training part).

    Raises:
        UserError: Too few classes for the kind, or a number that never varies.
    """
    if kind == "number":
        variance = float(training.var(ddof=0))
        if not variance > 0:
            raise UserError(f"--target {name}: all numbers are the same, so there is nothing to learn")
        return Field(name, kind, statistics={"mean": float(training.mean()), "variance": variance})
    names = sorted({label for cell in values for label in split_labels(cell, kind)}, key=_numbers_first)
    fewest, most = {"binary": (2, 2), "classes": (2, len(names)), "labels": (1, len(names))}[kind]
    if not fewest <= len(names) <= most:
        raise UserError(f"--target-kinds {name}={kind}: the column holds {len(names)} different values")
    return Field(name, kind, tuple(names))


def split_labels(cell: str, kind: Kind) -> list[str]:
    """The labels in a cell; of any kind but `labels` a cell is one."""
    return [label.strip() for label in cell.split(SEPARATOR) if label.strip()] if kind == "labels" else [cell]


def _numbers_first(name: str) -> tuple[float, str]:
    return (float(name), name) if column_kind([name]) == "number" else (float("inf"), name)


def encode_target(values: pd.Series, target: Field) -> np.ndarray:
    """Targets as Keras takes them: (rows, 1) numbers or class indices, or (rows, labels) zeros and ones."""
    if target.kind == "number":
        return values.to_numpy(np.float32)[:, None]
    index = {name: position for position, name in enumerate(target.vocabulary)}
    if target.kind != "labels":
        return values.map(index).to_numpy(np.int32)[:, None]
    present = np.zeros((len(values), len(index)), np.float32)
    for row, cell in enumerate(values):
        present[row, [index[label] for label in split_labels(cell, target.kind)]] = 1
    return present


def split_rows(examples: Examples, config: TrainingConfig, kinds: Mapping[str, Kind]) -> dict[str, pd.DataFrame]:
    """Rows in three parts, each with its share of every class of the first target that has classes."""
    name = next((name for name, kind in kinds.items() if kind in ("binary", "classes")), None)
    return split_examples(examples, config, lambda part: classes_to_stratify(part[name]) if name else None)


def encode_parts(parts: Mapping[str, pd.DataFrame], targets: Sequence[Field]) -> dict[str, Split]:
    """Parts of a table with their targets as Keras takes them."""
    return {
        name: Split(part, {}, {target.name: encode_target(part[target.name], target) for target in targets})
        for name, part in parts.items()
    }


def classes_to_stratify(values: pd.Series) -> np.ndarray:
    """The class of each row; classes too rare to be in every part count as the most common one."""
    counts = values.map(values.value_counts())
    return values.where(counts >= FEWEST_TO_STRATIFY, values.mode()[0]).to_numpy()


def decide(target: Field, outputs: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """A model's outputs as targets: numbers, class indices, or zeros and ones where they exceed `threshold`."""
    if target.kind == "number":
        return outputs
    if target.kind == "classes":
        return outputs.argmax(axis=1)[:, None]
    return (outputs > threshold).astype(np.int32)


def score(target: Field, truth: np.ndarray, decided: np.ndarray) -> float:
    """Mean absolute error of numbers, share of correct cells otherwise."""
    return float(np.abs(truth - decided).mean() if target.kind == "number" else (truth == decided).mean())


def areas_under_curve(target: Field, truth: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
    """Area under the receiver operating characteristic of each label for which `truth` has both answers."""
    from sklearn.metrics import roc_auc_score

    if target.kind not in ("binary", "labels"):
        return {}
    names = ["auc"] if target.kind == "binary" else [f"auc of {label}" for label in target.vocabulary]
    pairs = zip(names, truth.T, outputs.T, strict=True)
    return {name: float(roc_auc_score(true, output)) for name, true, output in pairs if len(np.unique(true)) > 1}


def answers(
    targets: Sequence[Field], outputs: Mapping[str, np.ndarray], threshold: float = 0.5, probable: bool = True
) -> list[Answer]:
    """What a person reads for each row.

    Args:
        targets: What the model predicts; where there are several, their names are in the keys.
        outputs: The model's, by target.
        threshold: As for `decide`.
        probable: Whether outputs are probabilities; otherwise scores, highest for the likeliest class, or positive for
            the second one.
    """
    rows: list[Answer] = [{} for _ in outputs[targets[0].name]]
    for target in targets:
        decided = decide(target, outputs[target.name], threshold)
        for row, output, decision in zip(rows, outputs[target.name], decided, strict=True):
            row |= _answer(target, output, decision, len(targets) > 1, probable)
    return rows


def _answer(target: Field, output: np.ndarray, decided: np.ndarray, several: bool, probable: bool) -> Answer:
    name, prefix = (target.name, f"{target.name}_") if several else ("label", "")
    if target.kind == "number":
        return {target.name: float(output[0])}
    if target.kind == "labels":
        chosen = SEPARATOR.join(np.array(target.vocabulary, object)[decided == 1])
        probabilities = dict(zip(target.vocabulary, map(float, output), strict=True))
        return {name if several else "labels": chosen, f"{prefix}probabilities": probabilities}
    index = int(decided[0])
    likely = output[index] if target.kind == "classes" else output[0]
    if not probable:
        return {name: target.vocabulary[index], f"{prefix}score": float(likely)}
    probability = likely if target.kind == "classes" or index else 1 - likely
    return {name: target.vocabulary[index], f"{prefix}probability": float(probability)}


def measure_simple_methods(data: Data, features: np.ndarray, test_features: np.ndarray) -> dict[str, Metrics]:
    """Test metrics of the majority (or mean) and of scikit-learn's gradient boosting, under the names that Keras gives.

    Args:
        data: Its training and validation part are learned from.
        features: Rows of these two parts, as `columns.for_trees` makes them.
        test_features: Rows of the test part.
    """
    found: dict[str, Metrics] = {}
    for target in data.spec.targets:
        known = np.concatenate([data.train.targets[target.name], data.validation.targets[target.name]])
        prefix = f"{target.name}_" if len(data.spec.targets) > 1 else ""
        for name, decided in _decide_simply(target, features, known, test_features).items():
            value = score(target, data.test.targets[target.name], decided)
            found.setdefault(name, {})[prefix + METRICS[target.kind]] = value
    return found


def _decide_simply(
    target: Field, features: np.ndarray, known: np.ndarray, test_features: np.ndarray
) -> dict[str, np.ndarray]:
    """What each method decides for the test rows; every column of a target is learned on its own."""
    from sklearn import dummy, ensemble

    exact = len(known) <= ROWS_FOR_EXACT_BOOSTING
    if target.kind == "number":
        regressor = ensemble.GradientBoostingRegressor if exact else ensemble.HistGradientBoostingRegressor
        methods = {"mean": dummy.DummyRegressor(), "boosting": regressor(random_state=0)}
    else:
        classifier = ensemble.GradientBoostingClassifier if exact else ensemble.HistGradientBoostingClassifier
        methods = {"majority": dummy.DummyClassifier(), "boosting": classifier(random_state=0)}

    def decide_column(method: Any, column: np.ndarray) -> np.ndarray:
        if (column == column[0]).all():  # a label that no row has: scikit-learn refuses to fit a single class
            return np.full(len(test_features), column[0])
        return method.fit(features, column).predict(test_features)

    return {
        name: np.stack([decide_column(method, column) for column in known.T], axis=1)
        for name, method in methods.items()
    }


def permutation_importance(run: Run, threshold: float) -> Iterator[tuple[Field, list[str], np.ndarray]]:
    """How much worse targets are predicted when one column's values are shuffled among the test examples.

    Args:
        run: A trained run.
        threshold: As for `decide`.

    Yields:
        Each target, the names of the columns, and the change of the target's metric for the worse, (columns, shuffles)
        (Breiman 2001, Random forests).
    """
    rng, trained = np.random.default_rng(run.config.seed), run.trained
    part = run.data.test.take(rng.permutation(len(run.data.test))[:SHUFFLED_ROWS])
    intact = trained.outputs_of(part.inputs)
    shuffled = [
        [
            trained.outputs_of({**part.inputs, name: take_rows(column, rng.permutation(len(part)))})
            for _ in range(SHUFFLES)
        ]
        for name, column in part.inputs.items()
    ]
    for target in run.data.spec.targets:
        truth, sign = part.targets[target.name], 1 if target.kind == "number" else -1
        before = score(target, truth, decide(target, intact[target.name], threshold))
        after = [
            [score(target, truth, decide(target, outputs[target.name], threshold)) for outputs in repeats]
            for repeats in shuffled
        ]
        yield target, list(part.inputs), sign * (np.array(after) - before)
