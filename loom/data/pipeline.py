"""From examples in memory to batches: ragged columns, splits, length buckets, and an order fixed by (seed, epoch)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from loom.data.spec import Spec
from loom.data.tables import Bad
from loom.data.windows import Windows
from loom.lazy import tf

if TYPE_CHECKING:
    import pandas as pd

Augment = Callable[[Mapping[str, Any], Mapping[str, Any], Any], tuple[Mapping[str, Any], Mapping[str, Any]]]
"""Takes inputs and targets of a batch and two integers that seed what is random, as tensors; returns changed ones."""
LENGTH_MULTIPLE = 8
"""Lengths to pad to are rounded up to this, or a smaller power of two where that is more than a quarter of the mean."""
MOST_SHAPES = 1024
"""Shapes that the best ones are chosen from, where sequences have several lengths."""
CHUNK = 512
"""Examples that are handed to TensorFlow together where all batches have one shape."""


@dataclass(frozen=True)
class Ragged:
    """Sequences of different lengths: the values of all steps in one row, and where each sequence starts and ends."""

    values: np.ndarray
    splits: np.ndarray

    @classmethod
    def from_padded(cls, padded: np.ndarray) -> Ragged:
        """Take the trailing zeros off the rows of `padded` (batch, time) or (batch, time, ...)."""
        steps = np.arange(1, padded.shape[1] + 1)
        filled = (padded != 0).any(axis=tuple(range(2, padded.ndim)))
        lengths = (filled * steps).max(axis=1, initial=0)
        return cls(padded[steps <= lengths[:, None]], np.concatenate([[0], np.cumsum(lengths)]))

    @classmethod
    def concatenate(cls, parts: Sequence[Ragged]) -> Ragged:
        """All sequences of all parts, in order."""
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(np.concatenate([part.values for part in parts]), np.concatenate([[0], np.cumsum(lengths)]))

    def __len__(self) -> int:
        return len(self.splits) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Number of steps of each sequence."""
        return np.diff(self.splits)

    def take(self, rows: np.ndarray) -> Ragged:
        """Only these sequences, in this order."""
        width = int(self.lengths[rows].max(initial=0))
        kept = np.arange(width) < self.lengths[rows][:, None]
        return Ragged(self.padded(rows, width)[kept], np.concatenate([[0], np.cumsum(self.lengths[rows])]))

    def padded(self, rows: np.ndarray, length: int) -> np.ndarray:
        """These sequences, cut or filled with zeros to (len(rows), length, ...)."""
        steps = np.arange(length)
        kept = steps < self.lengths[rows][:, None]
        padded = np.zeros((len(rows), length, *self.values.shape[1:]), self.values.dtype)
        padded[kept] = self.values[(self.splits[rows][:, None] + steps)[kept]]
        return padded


@dataclass(frozen=True)
class Shared:
    """An array that several examples share rows of, such as an image with several captions."""

    values: np.ndarray
    rows: np.ndarray
    """Which row of the values each example has."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, examples: Any) -> np.ndarray:
        return np.asarray(self.values[self.rows[examples]])

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array with a row of its own for each example."""
        return (len(self.rows), *self.values.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """Of the values."""
        return self.values.dtype

    def take(self, examples: np.ndarray) -> Shared:
        """Only these examples, in this order."""
        return Shared(self.values, self.rows[examples])


Column = np.ndarray | Ragged | Shared | Windows
Columns = Mapping[str, Column]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """Examples of one part, as people wrote them (`raw`) and as numbers."""

    raw: pd.DataFrame
    inputs: Columns
    targets: Mapping[str, Any]
    """Arrays, `Windows`, or `Ragged` columns of integers where every step of a sequence has a target."""

    def __len__(self) -> int:
        return len(self.raw)

    def take(self, rows: np.ndarray) -> Split:
        """Only these examples, in this order."""
        return Split(
            self.raw.iloc[rows].reset_index(drop=True),
            {name: take_rows(column, rows) for name, column in self.inputs.items()},
            {name: take_rows(column, rows) for name, column in self.targets.items()},
        )

    @property
    def lengths(self) -> np.ndarray:
        """Length of each example's longest input sequence (zeros where nothing is a sequence)."""
        ragged = [column.lengths for column in self.inputs.values() if isinstance(column, Ragged)]
        return np.max(ragged, axis=0) if ragged else np.zeros(len(self), int)


@dataclass(frozen=True)
class Data:
    """Everything a run needs from its data set."""

    train: Split
    validation: Split
    test: Split
    spec: Spec
    source: str
    bad: tuple[Bad, ...] = ()
    notes: tuple[str, ...] = ()
    """What was decided about the data and may surprise, one sentence each; shown and kept in data.json."""

    @property
    def splits(self) -> dict[str, Split]:
        """The three parts by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def map_splits(self, change: Callable[[Split], Split]) -> Data:
        """The same data with every part changed."""
        return replace(self, train=change(self.train), validation=change(self.validation), test=change(self.test))

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change when any example, its part, or its order does."""
        import pandas as pd

        digest = hashlib.sha256()
        for name, split in self.splits.items():
            digest.update(name.encode())
            digest.update(repr([*split.raw, *split.targets]).encode())
            digest.update(pd.util.hash_pandas_object(split.raw, index=False).to_numpy().tobytes())
            for target in split.targets.values():
                for part in _arrays(target):
                    digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()[:16]


def _arrays(column: Column) -> tuple[np.ndarray, ...]:
    """What a column is made of."""
    if isinstance(column, Ragged):
        return column.values, column.splits
    return (column.values, column.starts) if isinstance(column, Windows) else (np.asarray(column),)


def take_rows(column: Column, rows: np.ndarray) -> Column:
    """Some examples of one column."""
    return column[rows] if isinstance(column, np.ndarray) else column.take(rows)


@dataclass(frozen=True)
class Buckets:
    """The shapes of batches: how many steps the sequences of each ragged column are padded to.

    Columns whose sequences have equal lengths in every example, such as words and their tags, share one length of a
    shape; a translation and its source have two.
    """

    axes: Mapping[tuple[str, str], int]
    """Which of a shape's lengths each ragged column takes, by `("inputs", name)` or `("targets", name)`."""
    shapes: tuple[Shape, ...]
    """Ascending in every length; the last holds all sequences."""

    @classmethod
    def fit(cls, inputs: Columns, targets: Columns, count: int) -> Buckets:
        """At most `count` shapes, chosen so that little is padded."""
        axes: dict[tuple[str, str], int] = {}
        lengths: list[np.ndarray] = []
        for key, column in _ragged(inputs, targets).items():
            known = (axis for axis, others in enumerate(lengths) if np.array_equal(others, column.lengths))
            axes[key] = next(known, len(lengths))
            if axes[key] == len(lengths):
                lengths.append(column.lengths)
        shapes = bucket_shapes(np.stack(lengths, axis=1), count) if lengths else ((),)
        return cls(axes, shapes)

    def lengths(self, inputs: Columns, targets: Columns, count: int) -> np.ndarray:
        """Steps that each of `count` examples needs, (examples, axes)."""
        lengths = np.zeros((count, len(self.shapes[0])), int)
        for key, column in _ragged(inputs, targets).items():
            axis = self.axes[key]
            lengths[:, axis] = np.maximum(lengths[:, axis], column.lengths)
        return lengths

    def extended(self, inputs: Columns, targets: Columns, count: int) -> Buckets:
        """With one more shape where some of `count` examples fit into none."""
        longest = self.lengths(inputs, targets, count).max(axis=0, initial=0)
        last = np.array(self.shapes[-1], int)
        if (longest <= last).all():
            return self
        return replace(self, shapes=(*self.shapes, tuple(np.maximum(last, _rounded(longest)).tolist())))

    def smallest(self, lengths: np.ndarray) -> np.ndarray:
        """Index of the first shape that holds an example of these lengths (examples, axes), else of the last."""
        fits = np.all(lengths[:, None] <= np.array(self.shapes, int), axis=2)
        return np.where(fits.any(axis=1), fits.argmax(axis=1), len(self.shapes) - 1)

    def padded_to(self, part: str, name: str, shape: Shape) -> int:
        """Length of a column's sequences in a batch of this shape."""
        return shape[self.axes[part, name]]


def _ragged(inputs: Columns, targets: Columns) -> dict[tuple[str, str], Ragged]:
    parts = {"inputs": inputs, "targets": targets}
    columns = {(part, name): column for part, columns in parts.items() for name, column in columns.items()}
    return {key: column for key, column in columns.items() if isinstance(column, Ragged)}


def bucket_shapes(lengths: np.ndarray, count: int) -> tuple[Shape, ...]:
    """At most `count` shapes to pad to, ascending in every length.

    Chosen so that the padded size summed over all examples is the least possible, by dynamic programming over the
    distinct lengths (rounded up); of several axes, over a grid of at most 1,024 shapes, the best lengths of each axis.

    Args:
        lengths: Steps of each example's sequences, (examples, axes).
        count: Number of shapes.
    """
    axes = lengths.shape[1]
    candidates = [np.unique(_rounded(axis)) for axis in lengths.T]
    if axes > 1:
        most = int(MOST_SHAPES ** (1 / axes))
        candidates = [_best(lengths[:, [axis]], [each], most)[:, 0] for axis, each in enumerate(candidates)]
    return tuple(tuple(shape) for shape in _best(lengths, candidates, count).tolist())


def _rounded(lengths: np.ndarray) -> np.ndarray:
    lengths = np.maximum(lengths, 1)
    multiple = LENGTH_MULTIPLE
    while multiple > max(1, lengths.mean() / 4):
        multiple //= 2
    return -(-lengths // multiple) * multiple


def _best(lengths: np.ndarray, candidates: Sequence[np.ndarray], count: int) -> np.ndarray:
    """The chain of at most `count` shapes of a grid with the least padding; the largest shape is always among them."""
    grid = np.stack(np.meshgrid(*candidates, indexing="ij"), axis=-1).reshape(-1, len(candidates))
    places = [np.searchsorted(each, axis) for each, axis in zip(candidates, lengths.T, strict=True)]
    held = np.zeros([len(each) for each in candidates])  # examples that each shape of the grid holds
    np.add.at(held, tuple(places), 1)
    for axis in range(len(candidates)):
        held = held.cumsum(axis=axis)
    below = np.concatenate([[0], held.ravel()])
    may_follow = np.ones((len(grid) + 1, len(grid)), bool)
    may_follow[1:] = (grid[:, None] <= grid).all(axis=2) & ~np.eye(len(grid), dtype=bool)
    added = np.where(may_follow, (below[None, 1:] - below[:, None]) * grid.sum(axis=1), np.inf)
    # cost[j]: least padded size of the examples that shape j - 1 holds
    cost = np.concatenate([[0.0], np.full(len(grid), np.inf)])
    choices = []
    for _ in range(min(count, len(grid))):
        total = cost[:, None] + added
        choices.append(total.argmin(axis=0))
        cost = np.concatenate([[0.0], total.min(axis=0)])
    chosen, end = [], len(grid)
    for choice in reversed(choices):
        if end == 0:
            break
        chosen.append(grid[end - 1])
        end = int(choice[end - 1])
    return np.array(chosen[::-1])


class Batches:
    """Batches of one split, as a `tf.data.Dataset` whose order depends on nothing but (seed, epoch).

    Sequences are padded with zeros to the smallest shape that holds them. What does not fill a batch moves up to the
    next shape, so there is one partial batch at most, and as many compiled shapes as those of the buckets, plus one.

    Args:
        inputs: Columns by name.
        targets: Columns by name; may be empty. Targets of each step are ragged columns of integers, in batches
            (batch, time): losses and metrics pass over the steps that the mask of the model's output leaves out.
        batch_size: Examples per batch.
        buckets: What sequences are padded to, one shape by default; longer sequences are cut.
        seed: Shuffles by `(seed, epoch)`; None keeps examples sorted by length.
        augment: Changes batches at random, given two integers that follow from `(seed, epoch, step)`.
    """

    def __init__(
        self,
        inputs: Columns,
        targets: Columns,
        batch_size: int,
        buckets: Buckets | None = None,
        seed: int | None = None,
        augment: Augment | None = None,
    ) -> None:
        self.inputs = dict(inputs)
        self.targets = dict(targets)
        self.batch_size = batch_size
        self.buckets = buckets or Buckets.fit(inputs, targets, 1)
        self.seed = seed
        self.augment = augment
        self.epoch = 0
        self.served = 0
        """Batches handed out so far in this pass."""
        self.count = len(next(iter(inputs.values())))
        lengths = self.buckets.lengths(inputs, targets, self.count)
        self._bucket_of = self.buckets.smallest(lengths)
        self._sorted_rows = np.argsort(lengths.sum(axis=1), kind="stable")

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def plan(self) -> list[tuple[np.ndarray, Shape]]:
        """Rows and padded lengths of every batch of the current epoch."""
        if self.seed is None:
            return self._fill(self._sorted_rows)
        rng = np.random.default_rng((self.seed, self.epoch))
        batches = self._fill(rng.permutation(self.count))
        if len(self.buckets.shapes) == 1:
            return batches
        return [batches[index] for index in rng.permutation(len(batches))]

    def _fill(self, rows: np.ndarray) -> list[tuple[np.ndarray, Shape]]:
        batches, waiting = [], rows[:0]
        for bucket, shape in enumerate(self.buckets.shapes):
            waiting = np.concatenate([waiting, rows[self._bucket_of[rows] == bucket]])
            full = len(waiting) - len(waiting) % self.batch_size
            batches += [(waiting[start : start + self.batch_size], shape) for start in range(0, full, self.batch_size)]
            waiting = waiting[full:]
        return [*batches, (waiting, shape)] if len(waiting) else batches

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for number, (rows, shape) in enumerate(self.plan(), start=1):
            self.served = number
            yield self._examples(rows, shape)

    def _examples(self, rows: np.ndarray, shape: Shape) -> tuple[Any, ...]:
        return self._padded("inputs", rows, shape), self._padded("targets", rows, shape)

    def _padded(self, part: str, rows: np.ndarray, shape: Shape) -> dict[str, np.ndarray]:
        columns = self.inputs if part == "inputs" else self.targets
        return {
            name: column.padded(rows, self.buckets.padded_to(part, name, shape))
            if isinstance(column, Ragged)
            else column[rows]
            for name, column in columns.items()
        }

    def _chunks(self) -> Iterator[tuple[Any, ...]]:
        """Several batches of one shape at once: what a handover to TensorFlow costs does not depend on their size."""
        plan = self.plan()
        count = max(1, CHUNK // self.batch_size)
        for start in range(0, len(plan), count):
            batches = plan[start : start + count]
            self.served = start + len(batches)
            yield self._examples(np.concatenate([rows for rows, _ in batches]), batches[0][1])

    def dataset(self) -> tf.data.Dataset:
        """These batches, prepared in the background while the model works on the ones before."""
        signature = (
            {name: _element_spec(column) for name, column in self.inputs.items()},
            {name: _element_spec(column) for name, column in self.targets.items()},
        )
        if self.augment is None and len(self.buckets.shapes) == 1:
            batches = tf.data.Dataset.from_generator(self._chunks, output_signature=signature).rebatch(self.batch_size)
        elif self.augment is None:
            batches = tf.data.Dataset.from_generator(lambda: iter(self), output_signature=signature)
        else:
            seed = tf.TensorSpec((2,), tf.int32)
            batches = tf.data.Dataset.from_generator(self._seeded, output_signature=(*signature, seed))
            batches = batches.map(self.augment, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return batches.apply(tf.data.experimental.assert_cardinality(len(self))).prefetch(4)

    def _seeded(self) -> Iterator[tuple[Any, ...]]:
        """Batches with two integers each that no other step of any epoch has."""
        for step, (inputs, targets) in enumerate(self):
            state = np.random.SeedSequence((self.seed or 0, self.epoch, step)).generate_state(2)
            yield inputs, targets, (state >> 1).astype(np.int32)


class ClassBatches(Batches):
    """Batches in which classes meet: the same number of examples of each of several classes, drawn for each batch.

    The examples of a class are dealt in a random order, again and again; an epoch has as many batches as the examples
    fill. What is drawn depends on nothing but (seed, epoch), as in all batches that are shuffled.

    Args:
        inputs: Columns by name.
        targets: Columns by name.
        classes: Class of each example, (examples,).
        batch_size: Examples per batch, at most: as many classes meet as this has room for.
        per_class: Examples of one class in a batch. Classes that have fewer repeat some.
        seed: What the order follows from, together with the epoch.
        augment: As for `Batches`.
    """

    def __init__(
        self,
        inputs: Columns,
        targets: Columns,
        classes: np.ndarray,
        batch_size: int,
        per_class: int,
        seed: int,
        augment: Augment | None = None,
    ) -> None:
        self.rows = [np.flatnonzero(classes == kind) for kind in np.unique(classes)]
        self.per_class = per_class
        self.classes_per_batch = min(batch_size // per_class, len(self.rows))
        super().__init__(inputs, targets, self.classes_per_batch * per_class, seed=seed, augment=augment)

    def plan(self) -> list[tuple[np.ndarray, Shape]]:
        """Rows of every batch of the current epoch, class after class, and the shape that holds all sequences."""
        rng = np.random.default_rng((self.seed or 0, self.epoch))
        hands = [_dealt(rows, self.per_class, rng) for rows in self.rows]
        kinds = [rng.choice(len(hands), self.classes_per_batch, replace=False) for _ in range(len(self))]
        shape = self.buckets.shapes[-1]
        return [(np.concatenate([next(hands[kind]) for kind in chosen]), shape) for chosen in kinds]


def _dealt(rows: np.ndarray, count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """So many of the rows at a time, without end, in an order drawn anew when too few are left."""
    while True:
        order = np.resize(rng.permutation(rows), max(count, len(rows) - len(rows) % count))
        yield from order.reshape(-1, count)


def _element_spec(column: Column) -> tf.TensorSpec:
    if isinstance(column, Ragged):
        return tf.TensorSpec((None, None, *column.values.shape[1:]), column.values.dtype)
    return tf.TensorSpec((None, *column.shape[1:]), column.dtype)
