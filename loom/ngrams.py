"""The n-gram model: the baseline of what predicts the next token from those before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST_KEYS = 2**62


class NGrams:
    """Probability of each token after the `order - 1` tokens before it, smoothed by those of shorter contexts.

        p(w | c) = (count(c w) + kinds(c) · p(w | c without its first token)) / (count(c) + kinds(c))

    where kinds(c) is the number of different tokens that follow c (Witten and Bell, 1991, "The zero-frequency problem",
    interpolated as in Chen and Goodman, 1999, "An empirical study of smoothing techniques for language modeling").
    Without any tokens before it, each token's probability is mixed with that of a draw from all.

    Args:
        tokens: What to learn from, (count,) integers from 0 to `size` - 1.
        size: Number of different tokens.
        order: Length of an n-gram, at least 1.

    Raises:
        ValueError: The order is less than 1, or n-grams of so many tokens cannot be numbered.
    """

    def __init__(self, tokens: np.ndarray, size: int, order: int) -> None:
        if order < 1 or size**order > MOST_KEYS:
            raise ValueError(f"order must be at least 1, and {size} ** order at most 2 ** 62; got {order}.")
        self.size = size
        self.order = order
        self._levels = [self._count(np.asarray(tokens, np.int64), length) for length in range(1, order + 1)]

    def _count(self, tokens: np.ndarray, length: int) -> tuple[np.ndarray, ...]:
        grams, counts = np.unique(_numbered(tokens, self.size, length), return_counts=True)
        contexts, starts = np.unique(grams // self.size, return_index=True)
        kinds = np.diff(np.append(starts, len(grams)))
        return grams, counts, contexts, np.add.reduceat(counts, starts), kinds

    def log_probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """Natural logarithm of each token's probability after those before it, (count,); the first ones see fewer."""
        tokens = np.asarray(tokens, np.int64)
        probabilities = np.full(len(tokens), 1 / self.size)
        for length, (grams, counts, contexts, totals, kinds) in enumerate(self._levels, start=1):
            if len(tokens) < length:
                break
            asked = _numbered(tokens, self.size, length)
            seen = _looked_up(grams, counts, asked)
            total, kind = (_looked_up(contexts, values, asked // self.size) for values in (totals, kinds))
            shorter = probabilities[length - 1 :]
            longer = (seen + kind * shorter) / np.maximum(total + kind, 1)
            probabilities[length - 1 :] = np.where(total > 0, longer, shorter)
        return np.log(probabilities)

    @classmethod
    def best(cls, train: np.ndarray, validation: np.ndarray, size: int, orders: Sequence[int]) -> NGrams:
        """The model of that order which predicts the validation tokens best."""
        models = [cls(train, size, order) for order in orders if size**order <= MOST_KEYS]
        return max(models, key=lambda model: float(model.log_probabilities(validation).mean()))


def _numbered(tokens: np.ndarray, size: int, length: int) -> np.ndarray:
    """The n-gram that ends with each token from the `length`-th on, as one number."""
    count = max(len(tokens) - length + 1, 0)
    numbers = np.zeros(count, np.int64)
    for place in range(length):
        numbers = numbers * size + tokens[place : place + count]
    return numbers


def _looked_up(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Value of each key that is asked for, 0 where there is none."""
    places = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[places] == asked, values[places], 0)
