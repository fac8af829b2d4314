"""The n-gram model against its definition."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from loom.ngrams import NGrams


def probability(train: list[int], size: int, context: tuple[int, ...], token: int) -> float:
    """Witten and Bell's interpolation, as it is written down."""
    windows = [tuple(train[i : i + len(context) + 1]) for i in range(len(train) - len(context))]
    following = Counter(window[-1] for window in windows if window[:-1] == context)
    shorter = probability(train, size, context[1:], token) if context else 1 / size
    total, kinds = sum(following.values()), len(following)
    return (following[token] + kinds * shorter) / (total + kinds) if total else shorter


@pytest.mark.parametrize("order", [1, 2, 4])
def test_probabilities_are_those_of_the_definition(order: int) -> None:
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 4, count).tolist() for count in (60, 25))
    found = NGrams(np.array(train), 5, order).log_probabilities(np.array(test))
    for place, token in enumerate(test):
        context = tuple(test[max(0, place - order + 1) : place])
        assert found[place] == pytest.approx(math.log(probability(train, 5, context, token)))


def test_probabilities_of_all_tokens_add_up_to_one() -> None:
    model = NGrams(np.array([0, 1, 2, 0, 1, 3, 0, 1]), 5, 3)
    for context in ([0, 1], [3, 0], [4, 4]):
        each = [math.exp(model.log_probabilities(np.array([*context, token]))[-1]) for token in range(5)]
        assert sum(each) == pytest.approx(1)


def test_the_order_that_predicts_best_is_chosen() -> None:
    pattern = np.tile([0, 0, 1], 50)
    assert NGrams.best(pattern, pattern[:30], 2, range(1, 4)).order == 3
    noise = np.random.default_rng(0).integers(0, 2, 3000)
    assert NGrams.best(noise[:2000], noise[2000:], 2, (1, 8)).order == 1


def test_too_many_ngrams_to_number_are_refused() -> None:
    with pytest.raises(ValueError, match="order must be at least 1"):
        NGrams(np.array([1]), 100_000, 4)
