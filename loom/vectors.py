"""Vectors of words: which are near, what is to one word as a second is to a third, and word2vec's text files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from loom.data.analogies import Question
from loom.data.tables import Bad, check_bad
from loom.errors import UserError

CHUNK = 512
"""Vectors at a time that are compared with those of all words."""


class Neighbour(NamedTuple):
    """A word, and the cosine of the angle between its vector and the one that was asked for."""

    word: str
    similarity: float


@dataclass(frozen=True)
class WordVectors:
    """Words and their vectors (words, features)."""

    words: Sequence[str]
    vectors: np.ndarray

    @cached_property
    def units(self) -> np.ndarray:
        """The vectors, scaled to length 1; those that are zero stay so."""
        return unit(self.vectors)

    @cached_property
    def places(self) -> dict[str, int]:
        """Row of each word."""
        return {word: row for row, word in enumerate(self.words)}

    def nearest(self, vectors: np.ndarray, without: Sequence[Iterable[int]], count: int) -> list[list[Neighbour]]:
        """The words with the most similar vectors, the most similar first.

        Args:
            vectors: What is looked for, (queries, features).
            without: For each query the rows of words that do not count.
            count: How many to give, at most.
        """
        found = []
        for query, left_out in zip(self._compared(vectors), without, strict=True):
            query[list(left_out)] = -np.inf
            rows = np.argsort(-query, kind="stable")[:count]
            found.append([Neighbour(self.words[row], float(query[row])) for row in rows if np.isfinite(query[row])])
        return found

    def _compared(self, vectors: np.ndarray) -> Iterator[np.ndarray]:
        """Cosines of each vector with those of all words."""
        for start in range(0, len(vectors), CHUNK):
            yield from unit(vectors[start : start + CHUNK]) @ self.units.T

    def answers(self, questions: Sequence[Question], offset: bool = True) -> list[str]:
        """The word whose vector is most similar to b - a + c, for questions a is to b as c is to what (3CosAdd).

        argmax over all words but a, b and c of cos(w, b - a + c), with vectors of length 1 (Mikolov, Yih and Zweig
        2013, Linguistic regularities in continuous space word representations).

        Args:
            questions: Of words that all have vectors.
            offset: Whether a and b count; without them the answer is c's nearest neighbour, which is often right
                where nothing was learned of the relation (Linzen 2016, Issues in evaluating semantic spaces).
        """
        known = np.array([[self.places[word] for word in question.words[:3]] for question in questions]).reshape(-1, 3)
        a, b, c = (self.units[known[:, place]] for place in range(3))
        found = self.nearest(b - a + c if offset else c, list(known), 1)
        return [neighbours[0].word if neighbours else "" for neighbours in found]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (count, features) scaled to length 1; those that are zero stay so."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths, lengths, 1)


def askable(questions: Sequence[Question], words: Sequence[str]) -> list[Question]:
    """Those whose words are all among these."""
    known = set(words)
    return [question for question in questions if known.issuperset(question.words)]


def share_right(questions: Sequence[Question], answers: Sequence[str]) -> float:
    """Share of the questions that are answered right."""
    return sum(answer == question.words[3] for question, answer in zip(questions, answers, strict=True)) / len(answers)


def accuracy_by_section(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, float]:
    """Share of right answers in each section."""
    asked = Counter(question.section for question in questions)
    right = Counter(
        question.section for question, answer in zip(questions, answers, strict=True) if answer == question.words[3]
    )
    return {section: right[section] / count for section, count in asked.items()}


def write_vectors(path: Path, known: WordVectors) -> None:
    """A text file in the format of word2vec: the number of words and features, then a word and its values a line."""
    with path.open("w", encoding="utf-8") as file:
        file.write(f"{len(known.words)} {known.vectors.shape[1]}\n")
        for word, vector in zip(known.words, known.vectors, strict=True):
            file.write(f"{word} {' '.join(f'{value:.6g}' for value in vector)}\n")


def read_vectors(path: Path, words: Sequence[str], max_bad: float) -> WordVectors:
    """Vectors of those of the words that a text file of word2vec or GloVe has; of the latter, the first line counts.

    Raises:
        UserError: The file is missing, unreadable or holds no vectors, or too many lines hold other ones.
    """
    wanted, found, bad, total, width = set(words), {}, [], 0, 0
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                word, *values = line.rstrip().split(" ")
                if (number == 1 and len(values) == 1) or not line.strip():
                    continue
                total += 1
                width = width or len(values)
                if len(values) != width:
                    bad.append(Bad(f"{path.name}:{number}", f"{len(values)} values; the first line has {width}"))
                elif word in wanted:
                    vector = _parsed(values)
                    if vector is None:
                        bad.append(Bad(f"{path.name}:{number}", "values that are no numbers"))
                    else:
                        found[word] = vector
    except OSError as error:
        raise UserError(f"--vectors {path}: cannot be read: {error.strerror}") from None
    if not total or not width:
        raise UserError(f"--vectors {path}: holds no vectors; give lines of a word and its values, in UTF-8")
    check_bad(bad, total, max_bad, f"lines of {path.name}")
    return WordVectors(list(found), np.array(list(found.values()), np.float32).reshape(-1, width))


def _parsed(values: Sequence[str]) -> np.ndarray | None:
    try:
        vector = np.array(values, np.float32)
    except ValueError:
        return None
    return vector if np.isfinite(vector).all() else None
