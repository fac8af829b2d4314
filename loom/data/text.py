"""Vocabularies of raw text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from loom.errors import UserError
from loom.lazy import layers, tf

CHUNK = 2048
"""Texts that are counted at a time."""
PADDING, UNKNOWN = "", "[UNK]"
"""The first two words of every vocabulary, as in `keras.layers.TextVectorization`."""


def build_vocabulary(texts: Sequence[str], size: int, min_count: int = 1) -> tuple[str, ...]:
    """The most frequent words of standardized texts, after padding and the unknown word; ties in alphabetical order.

    Words that occur less than `min_count` times are left out, except for the most frequent one.

    Raises:
        UserError: The texts hold no word at all.
    """
    chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
    counts: Counter[bytes] = Counter()
    with ThreadPoolExecutor() as pool:
        for words, numbers in pool.map(_count_words, chunks):
            counts.update(dict(zip(words, numbers, strict=True)))
    if not counts:
        raise UserError("the training texts hold no words: check the text column")
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    frequent = [word.decode() for word in ordered[: size - 2] if counts[word] >= min_count]
    return (PADDING, UNKNOWN, *(frequent or [ordered[0].decode()]))


def _count_words(texts: Sequence[str]) -> tuple[list[bytes], list[int]]:
    words = tf.strings.split(layers.standardize_text(tf.constant(texts, tf.string))).values
    found = tf.unique_with_counts(words)
    return found.y.numpy().tolist(), found.count.numpy().tolist()
