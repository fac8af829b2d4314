"""From examples in memory to batches: ragged columns, splits, length buckets, and an order fixed by (seed, epoch)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from loom.data.spec import Spec
from loom.data.tables import Bad
from loom.lazy import tf

if TYPE_CHECKING:
    import pandas as pd

Augment = Callable[[Mapping[str, Any], Mapping[str, Any], Any], tuple[Mapping[str, Any], Mapping[str, Any]]]
"""Takes inputs and targets of a batch and two integers that seed what is random, as tensors; returns changed ones."""
LENGTH_MULTIPLE = 8
"""Bucket lengths are rounded up to this, so that vector units are filled and lengths repeat between data sets."""
CHUNK = 512
"""Examples that are handed to TensorFlow together where all batches have one shape."""


@dataclass(frozen=True)
class Ragged:
    """Sequences of different lengths: all values in one row, and where each sequence starts and ends."""

    values: np.ndarray
    splits: np.ndarray

    @classmethod
    def from_padded(cls, padded: np.ndarray) -> Ragged:
        """Take the trailing zeros off the rows of `padded` (batch, time)."""
        steps = np.arange(1, padded.shape[1] + 1)
        lengths = ((padded != 0) * steps).max(axis=1, initial=0)
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
        """Number of values in each sequence."""
        return np.diff(self.splits)

    def take(self, rows: np.ndarray) -> Ragged:
        """Only these sequences, in this order."""
        width = int(self.lengths[rows].max(initial=0))
        kept = np.arange(width) < self.lengths[rows][:, None]
        return Ragged(self.padded(rows, width)[kept], np.concatenate([[0], np.cumsum(self.lengths[rows])]))

    def padded(self, rows: np.ndarray, length: int) -> np.ndarray:
        """These sequences, cut or filled with zeros to (len(rows), length)."""
        steps = np.arange(length)
        kept = steps < self.lengths[rows][:, None]
        positions = np.where(kept, self.splits[rows][:, None] + steps, 0)
        if not len(self.values):
            return np.zeros(positions.shape, self.values.dtype)
        return np.where(kept, self.values[positions], 0)


Column = np.ndarray | Ragged


@dataclass(frozen=True)
class Split:
    """Examples of one part, as people wrote them (`raw`) and as numbers."""

    raw: pd.DataFrame
    inputs: Mapping[str, Column]
    targets: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.raw)

    def take(self, rows: np.ndarray) -> Split:
        """Only these examples, in this order."""
        return Split(
            self.raw.iloc[rows].reset_index(drop=True),
            {name: take_rows(column, rows) for name, column in self.inputs.items()},
            {name: column[rows] for name, column in self.targets.items()},
        )

    @property
    def lengths(self) -> np.ndarray:
        """Length of each example's longest sequence (zeros where nothing is a sequence)."""
        return sequence_lengths(self.inputs, len(self))


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
                digest.update(np.ascontiguousarray(target).tobytes())
        return digest.hexdigest()[:16]


def take_rows(column: Column, rows: np.ndarray) -> Column:
    """Some examples of one column."""
    return column.take(rows) if isinstance(column, Ragged) else column[rows]


def sequence_lengths(inputs: Mapping[str, Column], count: int) -> np.ndarray:
    """Length of the longest sequence of each of `count` examples."""
    ragged = [column.lengths for column in inputs.values() if isinstance(column, Ragged)]
    return np.max(ragged, axis=0) if ragged else np.zeros(count, int)


def bucket_lengths(lengths: np.ndarray, count: int) -> tuple[int, ...]:
    """At most `count` lengths to pad to, chosen so that the padding summed over all sequences is the least possible.

    Dynamic programming over the distinct lengths (rounded up to a multiple of 8); the longest is always among them.
    """
    rounded = -(-np.maximum(lengths, 1) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    distinct, counts = np.unique(rounded, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    # cost[j]: least padded size of the sequences shorter than or equal to distinct[j - 1]
    cost = np.concatenate([[0.0], np.full(len(distinct), np.inf)])
    choices = []
    for _ in range(min(count, len(distinct))):
        group = cost[:, None] + (below[None, 1:] - below[:, None]) * distinct[None, :]
        group[np.tri(len(group), k=-1, dtype=bool)[:, : group.shape[1]]] = np.inf  # a bucket starts before it ends
        choices.append(group.argmin(axis=0))
        cost = np.concatenate([[0.0], group.min(axis=0)])
    chosen, end = [], len(distinct)
    for choice in reversed(choices):
        if end == 0:
            break
        chosen.append(int(distinct[end - 1]))
        end = int(choice[end - 1])
    return tuple(reversed(chosen))


class Batches:
    """Batches of one split, as a `tf.data.Dataset` whose order depends on nothing but (seed, epoch).

    Sequences are padded to the shortest bucket that holds them. What does not fill a batch moves up to the next bucket,
    so there is one partial batch at most, and as many compiled shapes as buckets, plus one.

    Args:
        inputs: Columns by name.
        targets: Columns by name; may be empty.
        batch_size: Examples per batch.
        buckets: Lengths to pad to, ascending; longer sequences are cut.
        seed: Shuffles by `(seed, epoch)`; None keeps examples sorted by length.
        augment: Changes batches at random, given two integers that follow from `(seed, epoch, step)`.
    """

    def __init__(
        self,
        inputs: Mapping[str, Column],
        targets: Mapping[str, np.ndarray],
        batch_size: int,
        buckets: Sequence[int] = (),
        seed: int | None = None,
        augment: Augment | None = None,
    ) -> None:
        self.inputs = dict(inputs)
        self.targets = dict(targets)
        self.batch_size = batch_size
        self.buckets = np.array(buckets or [1])
        self.seed = seed
        self.augment = augment
        self.epoch = 0
        self.served = 0
        """Batches handed out so far in this pass."""
        self.count = len(next(iter(inputs.values())))
        lengths = sequence_lengths(inputs, self.count)
        self._bucket_of = np.minimum(np.searchsorted(self.buckets, lengths), len(self.buckets) - 1)
        self._sorted_rows = np.argsort(lengths, kind="stable")

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def plan(self) -> list[tuple[np.ndarray, int]]:
        """Rows and padded length of every batch of the current epoch."""
        if self.seed is None:
            return self._fill(self._sorted_rows)
        rng = np.random.default_rng((self.seed, self.epoch))
        batches = self._fill(rng.permutation(self.count))
        if len(self.buckets) == 1:
            return batches
        return [batches[index] for index in rng.permutation(len(batches))]

    def _fill(self, rows: np.ndarray) -> list[tuple[np.ndarray, int]]:
        batches, waiting = [], rows[:0]
        for bucket, length in enumerate(self.buckets.tolist()):
            waiting = np.concatenate([waiting, rows[self._bucket_of[rows] == bucket]])
            full = len(waiting) - len(waiting) % self.batch_size
            batches += [(waiting[start : start + self.batch_size], length) for start in range(0, full, self.batch_size)]
            waiting = waiting[full:]
        return [*batches, (waiting, length)] if len(waiting) else batches

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for number, (rows, length) in enumerate(self.plan(), start=1):
            self.served = number
            yield self._examples(rows, length)

    def _examples(self, rows: np.ndarray, length: int) -> tuple[Any, ...]:
        inputs = {name: _batch(column, rows, length) for name, column in self.inputs.items()}
        return inputs, {name: column[rows] for name, column in self.targets.items()}

    def _chunks(self) -> Iterator[tuple[Any, ...]]:
        """Several batches of one length at once: what a handover to TensorFlow costs does not depend on their size."""
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
        if self.augment is None and len(self.buckets) == 1:
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
        inputs: Mapping[str, Column],
        targets: Mapping[str, np.ndarray],
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

    def plan(self) -> list[tuple[np.ndarray, int]]:
        """Rows of every batch of the current epoch, class after class, and the length 1: nothing is padded."""
        rng = np.random.default_rng((self.seed or 0, self.epoch))
        hands = [_dealt(rows, self.per_class, rng) for rows in self.rows]
        kinds = [rng.choice(len(hands), self.classes_per_batch, replace=False) for _ in range(len(self))]
        return [(np.concatenate([next(hands[kind]) for kind in chosen]), 1) for chosen in kinds]


def _dealt(rows: np.ndarray, count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """So many of the rows at a time, without end, in an order drawn anew when too few are left."""
    while True:
        order = np.resize(rng.permutation(rows), max(count, len(rows) - len(rows) % count))
        yield from order.reshape(-1, count)


def _batch(column: Column, rows: np.ndarray, length: int) -> np.ndarray:
    return column.padded(rows, length) if isinstance(column, Ragged) else column[rows]


def _element_spec(column: Column) -> tf.TensorSpec:
    if isinstance(column, Ragged):
        return tf.TensorSpec((None, None), column.values.dtype)
    return tf.TensorSpec((None, *column.shape[1:]), column.dtype)
