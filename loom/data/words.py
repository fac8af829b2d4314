"""Words of a long text: rows of numbers, the vocabulary they stand for, and batches without some frequent words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np

from loom.data.pipeline import Batches, Buckets, Ragged, Shape
from loom.data.tagged import composed
from loom.lazy import layers, tf

Within = Literal["line", "paragraph", "text"]
CHUNK = 2048
"""Lines that are taken apart at a time."""
_BLANK = re.compile(r"\n[^\S\n]*\n")


def lines_of(text: str, within: Within) -> list[list[str]]:
    """Groups of lines whose words are neighbours: each line, the lines up to an empty one, or all."""
    groups = {"line": text.splitlines, "paragraph": lambda: _BLANK.split(text), "text": lambda: [text]}
    return [group.splitlines() for group in groups[within]()]


def read_words(groups: Sequence[Sequence[str]]) -> tuple[list[str], Ragged]:
    """The different words of some texts in small letters, and the words of each text as places among them.

    Words are what `layers.SplitWords` takes texts apart into, without what has neither a letter nor a digit in it.

    Args:
        groups: The lines of each text.
    """
    lines = [composed(line) for group in groups for line in group]
    numbers: dict[bytes, int] = {}
    places, lengths = [np.zeros(0, np.int32)], [np.zeros(0, int)]
    with ThreadPoolExecutor() as pool:
        for names, indices, counts in pool.map(_split, [lines[at : at + CHUNK] for at in range(0, len(lines), CHUNK)]):
            known = np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int32)
            places.append(known[indices])
            lengths.append(counts)
    words = [name.decode() for name in numbers]
    in_lines = Ragged(np.concatenate(places), np.concatenate([[0], np.cumsum(np.concatenate(lengths))]))
    ends = np.cumsum([0, *map(len, groups)])
    are_words = np.array([is_word(word) for word in words], bool)
    return words, _only(Ragged(in_lines.values, in_lines.splits[ends]), are_words[in_lines.values])


def _split(lines: Sequence[str]) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    words = layers.words.split_words(tf.constant(lines, tf.string))
    found = tf.unique(tf.strings.lower(words.values, encoding="utf-8"))
    return found.y.numpy().tolist(), found.idx.numpy(), words.row_lengths().numpy()


def words_of(texts: Iterable[str]) -> list[list[str]]:
    """The words of each text."""
    words, rows = read_words([[text] for text in texts])
    return [[words[place] for place in row] for row in np.split(rows.values, rows.splits[1:-1])]


def read_corpus(
    parts: Mapping[str, Sequence[Sequence[str]]], min_count: int, size: int
) -> tuple[dict[str, float], dict[str, Ragged]]:
    """The vocabulary of the training part with the number of times each word is there, and the words of every part.

    Args:
        parts: By name the lines of each text, those of the part `train` among them.
        min_count: Words that the training part has less often are left out of all parts.
        size: Number of words, at most: the most frequent ones; ties in alphabetical order.

    Returns:
        Words with their counts, the most frequent first; and for each part a row for each text, numbers from 1 on.
    """
    names, rows = read_words([lines for part in parts.values() for lines in part])
    ends = np.cumsum([0, *map(len, parts.values())])
    of_parts = {name: _between(rows, ends[place], ends[place + 1]) for place, name in enumerate(parts)}
    counts = np.bincount(of_parts["train"].values, minlength=len(names))
    kept = sorted(np.flatnonzero(counts >= min_count).tolist(), key=lambda place: (-counts[place], names[place]))[:size]
    numbers = np.zeros(len(names), np.int32)
    numbers[kept] = np.arange(1, len(kept) + 1)
    numbered = {name: Ragged(numbers[each.values], each.splits) for name, each in of_parts.items()}
    return {names[place]: float(counts[place]) for place in kept}, {
        name: _only(each, each.values > 0) for name, each in numbered.items()
    }


def _between(rows: Ragged, start: int, stop: int) -> Ragged:
    """The rows from one to another."""
    splits = rows.splits[start : stop + 1]
    return Ragged(rows.values[splits[0] : splits[-1]], splits - splits[0])


def is_word(word: str) -> bool:
    """Whether it has a letter or a digit."""
    return any(character.isalnum() for character in word)


def _only(rows: Ragged, kept: np.ndarray) -> Ragged:
    """Rows without the values that are not kept, (values,)."""
    return Ragged(rows.values[kept], np.concatenate([[0], np.cumsum(kept)])[rows.splits])


def cut(rows: Ragged, longest: int, shortest: int) -> Ragged:
    """Rows of at most so many values, longer ones in pieces; those with fewer than `shortest` are left out."""
    counts = -(-rows.lengths // longest)
    first = np.repeat(rows.splits[:-1], counts)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = first + number * longest
    lengths = np.minimum(longest, np.repeat(rows.splits[1:], counts) - starts)
    starts, lengths = starts[lengths >= shortest], lengths[lengths >= shortest]
    splits = np.concatenate([[0], np.cumsum(lengths)])
    values = rows.values[np.repeat(starts - splits[:-1], lengths) + np.arange(splits[-1])]
    return Ragged(values, splits)


def noise_probabilities(frequencies: np.ndarray) -> np.ndarray:
    """P ∝ frequency ** 0.75, which draws rare words more often than they are there."""
    raised = np.asarray(frequencies, float) ** 0.75
    return raised / raised.sum()


def keep_probabilities(frequencies: np.ndarray, threshold: float) -> np.ndarray:
    """How likely an occurrence of each word is kept: min(1, √(threshold / share of the text)); 0 keeps everything.

    (Mikolov et al. 2013, equation 5.)
    """
    shares = np.asarray(frequencies, float) / max(np.sum(frequencies), 1)
    return np.minimum(1, np.sqrt(threshold / np.maximum(shares, 1e-12))) if threshold else np.ones(len(shares))


def thinned(words: Ragged, keep: np.ndarray, seed: int, epoch: int = 0) -> Ragged:
    """Rows without the occurrences that chance leaves out in an epoch: those beside them become neighbours.

    Args:
        words: Rows of integers.
        keep: How likely an occurrence of each is kept, (integers,).
        seed: What chance follows from, together with the epoch.
        epoch: Counted from 0.
    """
    rng = np.random.default_rng((seed, epoch, 1))
    return _only(words, rng.random(len(words.values)) < keep[words.values])


class ThinnedBatches(Batches):
    """Rows of words from which frequent ones are left out at random, others in each epoch.

    What is left out, and the order, depend on nothing but (seed, epoch).

    Args:
        name: Of the input.
        words: Rows of integers.
        keep: How likely an occurrence of each word is kept, (words,).
        batch_size: Rows of a batch.
        shapes: Lengths that rows are padded to, at most.
        seed: What the order follows from, together with the epoch.
    """

    def __init__(self, name: str, words: Ragged, keep: np.ndarray, batch_size: int, shapes: int, seed: int) -> None:
        self._name, self._words, self._keep, self._seed = name, words, keep, seed
        first = {name: self._thinned(0)}
        # Lengths are chosen for what is left; a last one holds rows from which nothing was left out.
        buckets = Buckets.fit(first, {}, shapes).extended({name: words}, {}, len(words))
        super().__init__(first, {}, batch_size, buckets, seed)

    def _thinned(self, epoch: int) -> Ragged:
        return thinned(self._words, self._keep, self._seed, epoch)

    def plan(self) -> list[tuple[np.ndarray, Shape]]:
        """Rows and padded lengths of every batch of the current epoch."""
        self.inputs = {self._name: self._thinned(self.epoch)}
        self._bucket_of = self.buckets.smallest(self.buckets.lengths(self.inputs, {}, self.count))
        return super().plan()
