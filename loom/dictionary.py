"""Translation word by word with a dictionary learned from pairs of texts: what a network has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loom.data.tokens import split_words

ROUNDS = 5
"""Rounds of expectation maximization; after these few the likeliest words hardly change."""
MOST_PAIRS = 10_000_000
"""Pairs of words that are learned from, every word of a text with every word of its translation: 1.5 GB."""


class Dictionary:
    """The likeliest translation of each word on its own, whatever stands beside it.

    t(f | e), the probability that the word e becomes f, by expectation maximization over all the ways in which the
    words of a target may come from those of its source (model 1 of Brown et al., 1993, "The mathematics of statistical
    machine translation"), without the empty word. Words that are not known are copied.

    Args:
        sources: Texts to translate from; the first ones count, up to 10 million pairs of words.
        targets: Their translations.
    """

    def __init__(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        names: tuple[dict[str, int], dict[str, int]] = ({}, {})
        pairs: list[np.ndarray] = []
        total = 0
        for place, (source, target) in enumerate(zip(sources, targets, strict=True)):
            words = [
                np.array([known.setdefault(word, len(known)) for word in split_words(text)], int)
                for known, text in zip(names, (source, target), strict=True)
            ]
            count = len(words[0]) * len(words[1])
            total += count
            if pairs and total > MOST_PAIRS:
                break
            # Every word of the target with every word of the source, and which target word it is.
            step = np.repeat(np.arange(len(words[1])), len(words[0]))
            pairs.append(np.stack([np.tile(words[0], len(words[1])), words[1][step], step, np.full(count, place)]))
        source_words, target_words, steps, places = np.concatenate(pairs, axis=1)
        keys, pair_of = np.unique(source_words * len(names[1]) + target_words, return_inverse=True)
        _, step_of = np.unique(places * (steps.max(initial=0) + 1) + steps, return_inverse=True)
        word_of = keys // len(names[1])
        probability = np.ones(len(keys))
        for _ in range(ROUNDS):
            shares = probability[pair_of]
            shares /= np.bincount(step_of, shares)[step_of]
            counts = np.bincount(pair_of, shares, len(keys))
            probability = counts / np.bincount(word_of, counts)[word_of]
        order = np.lexsort((keys, -probability))
        likeliest = dict(zip(word_of[order][::-1].tolist(), (keys[order] % len(names[1]))[::-1].tolist(), strict=True))
        target_names = list(names[1])
        self._words = {
            word: target_names[likeliest[number]] for word, number in names[0].items() if number in likeliest
        }

    def translate(self, text: str) -> list[str]:
        """The words of a translation."""
        return [self._words.get(word, word) for word in split_words(text)]
