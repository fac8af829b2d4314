"""What counting does without learning: neighbours counted, weighted and factorized, and how likely a word is at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from loom.data.pipeline import Ragged
from loom.data.words import noise_probabilities

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SMOOTHING = 0.75
"""Exponent of the counts of contexts, as of the noise of skip-gram."""


def count_neighbours(rows: Ragged, window: int, size: int) -> csr_matrix:
    """How often words are neighbours, (size, size); those d apart count 1 - (d - 1) / window.

    That is how often skip-gram takes them, which draws how far each word looks from 1 to `window`.
    """
    from scipy.sparse import csr_matrix

    text = np.repeat(np.arange(len(rows)), rows.lengths)
    total = csr_matrix((size, size))
    for distance in range(1, window + 1):
        together = text[distance:] == text[:-distance]
        first, second = rows.values[:-distance][together], rows.values[distance:][together]
        weights = np.full(len(first), 1 - (distance - 1) / window)
        counts = csr_matrix((weights, (first, second)), (size, size))
        total = total + counts + counts.T
    return total


def ppmi(counts: csr_matrix) -> csr_matrix:
    """Positive pointwise mutual information: max(0, log(P(w, c) / (P(w) P(c)))), with P(c) ∝ count ** 0.75.

    (Levy, Goldberg and Dagan 2015, Improving distributional similarity with lessons learned from word embeddings.)
    """
    found = counts.tocoo()
    of_words = np.asarray(counts.sum(axis=1)).ravel()
    of_contexts = np.asarray(counts.sum(axis=0)).ravel() ** SMOOTHING
    expected = of_words[found.row] * of_contexts[found.col] / of_contexts.sum()
    found.data = np.maximum(0, np.log(found.data / expected))
    return found.tocsr()


def svd_vectors(counts: csr_matrix, units: int) -> np.ndarray:
    """U √S of the truncated singular value decomposition of the PPMI: skip-gram factorizes such a matrix too.

    (Levy and Goldberg 2014, Neural word embedding as implicit matrix factorization.)
    """
    from sklearn.utils.extmath import randomized_svd

    matrix = ppmi(counts)
    left, values, _ = randomized_svd(matrix, min(units, min(matrix.shape) - 1), random_state=0)
    return left * np.sqrt(values)


def unigram_loss(train: csr_matrix, test: csr_matrix, frequencies: np.ndarray, negatives: int) -> float:
    """The least loss of skip-gram's pairs for who knows how likely each neighbour is, and nothing of the word.

    A pair with the neighbour c is real with log-odds log(P(c) / (k P_noise(c))).

    Args:
        train: Neighbours that P is estimated from, one more of each.
        test: Neighbours whose loss is measured.
        frequencies: Counts that the noise is drawn by.
        negatives: k.
    """
    noise = noise_probabilities(frequencies)
    known = noise > 0
    counted = np.asarray(train.sum(axis=0)).ravel() + known
    asked = np.asarray(test.sum(axis=0)).ravel()
    log_odds = np.log(counted[known] / counted[known].sum() / (negatives * noise[known]))
    of_pairs = (asked[known] * np.logaddexp(0, -log_odds)).sum() / asked[known].sum()
    return float(of_pairs + negatives * (noise[known] * np.logaddexp(0, log_odds)).sum())
