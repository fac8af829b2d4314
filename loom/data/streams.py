"""Streams of letters: a word put into them, strings that are almost the word, where it ends, and what fires at it."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NOTHING, WORD, NEAR_MISS = ".", "w", "n"
"""Marks of letters: put in as a part of the word or of a near miss, or neither."""
UNKNOWN_LETTER = 1
"""Number of every letter that is not in the word; 0 is for padding."""
BLOCK = 128
"""Code points that letters of one script lie among."""
OVERLAPS = 1 / 3
"""Share of the planted words right before which the word has begun already."""


class Stream(NamedTuple):
    """Letters, and what each was put in as a part of."""

    text: str
    marks: str
    """As many characters: `NOTHING`, `WORD` or `NEAR_MISS`."""


class Detections(NamedTuple):
    """What firings come to, compared with where the word is."""

    ends: np.ndarray
    """Places of the word's last letter, ascending."""
    firings: np.ndarray
    """Places that were fired at, ascending."""
    delays: Sequence[int | None]
    """For each word, letters from its last one to the firing for it, or None."""

    def metrics(self) -> dict[str, float]:
        """Precision, recall, and the mean delay where any word was found."""
        found = [delay for delay in self.delays if delay is not None]
        shares = {"precision": len(found) / max(len(self.firings), 1), "recall": len(found) / max(len(self.ends), 1)}
        return shares | ({"delay": float(np.mean(found))} if found else {})

    @property
    def missed(self) -> np.ndarray:
        """Places of the last letter of words that were not noticed."""
        return self.ends[[delay is None for delay in self.delays]]

    @property
    def false_alarms(self) -> np.ndarray:
        """Places that were fired at for no word."""
        right = [end + delay for end, delay in zip(self.ends, self.delays, strict=True) if delay is not None]
        return np.setdiff1d(self.firings, np.array(right, int))


class _Forms(dict[int, str]):
    """The letters that each code point stands for."""

    def __missing__(self, point: int) -> str:
        self[point] = unicodedata.normalize("NFD", chr(point).lower())
        return self[point]


_FORMS = _Forms()


def letters_of(text: str) -> str:
    """The letters of a text: small, and taken apart into base letters and marks (Unicode's NFD).

    Each character is taken for itself, so the letters of a stream do not depend on the pieces in which it comes.
    """
    return text.translate(_FORMS)


def places_of_letters(text: str) -> np.ndarray:
    """For each of the letters of a text the place of the character that it comes from, from 0."""
    return np.repeat(np.arange(len(text)), [len(_FORMS[ord(character)]) for character in text])


def numbered(letters: str, known: Sequence[str]) -> np.ndarray:
    """Numbers of letters: from 2 up in the order of the known ones, `UNKNOWN_LETTER` for all others."""
    points = np.frombuffer(letters.encode("utf-32-le", "surrogatepass"), np.uint32)
    numbers = np.full(len(points), UNKNOWN_LETTER, np.int32)
    for number, letter in enumerate(known, start=UNKNOWN_LETTER + 1):
        numbers[points == ord(letter)] = number
    return numbers


def script_of(word: str) -> str:
    """Letters and marks of the script or scripts that a word is written in, those of the word among them."""
    starts = {ord(letter) // BLOCK * BLOCK for letter in word}
    characters = (chr(point) for start in starts for point in range(start, start + BLOCK))
    letters = {each for character in characters if unicodedata.category(character)[0] in "LM" for each in character}
    return "".join(sorted(set(letters_of("".join(letters))) | set(word)))


def last_letters(word: str, letters: str) -> np.ndarray:
    """Places of the word's last letter wherever it is in a stream, also where two of them overlap."""
    places, start = [], letters.find(word)
    while start >= 0:
        places.append(start + len(word) - 1)
        start = letters.find(word, start + 1)
    return np.array(places, int)


def random_letters(rng: random.Random, count: int, alphabet: str, word: str, share: float = 0.0) -> str:
    """Letters drawn from an alphabet, and so many of them from the word's own."""
    alike = [share / len(word)] * len(word) + [(1 - share) / len(alphabet)] * len(alphabet)
    return "".join(rng.choices(word + alphabet, alike, k=count))


def plant(rng: random.Random, letters: str, word: str, words: int, near_misses: int, alphabet: str) -> Stream:
    """Put a word, and strings that are almost the word, between letters at random places.

    A third of the words stand right after a beginning of the word, such as `hahappy`. The word may also come about by
    chance: only `last_letters` knows where it is.
    """
    pieces = [(_planted(rng, word), WORD) for _ in range(words)]
    pieces += [(near_miss(rng, word, alphabet), NEAR_MISS) for _ in range(near_misses)]
    rng.shuffle(pieces)
    places = sorted(rng.choices(range(len(letters) + 1), k=len(pieces)))
    text, marks, start = [], [], 0
    for place, (piece, mark) in zip(places, pieces, strict=True):
        text += [letters[start:place], piece]
        marks += [NOTHING * (place - start), mark * len(piece)]
        start = place
    return Stream("".join([*text, letters[start:]]), "".join([*marks, NOTHING * (len(letters) - start)]))


def _planted(rng: random.Random, word: str) -> str:
    return word[: rng.randrange(1, len(word))] + word if rng.random() < OVERLAPS else word


def near_miss(rng: random.Random, word: str, alphabet: str) -> str:
    """The word with one thing wrong: cut, begun anew, or with a letter changed, left out, doubled, put in or swapped.

    Args:
        rng: Draws everything.
        word: At least two letters.
        alphabet: Where letters that are changed and put in come from, beside the word itself.
    """
    while True:
        place, other = rng.randrange(len(word)), rng.choice(rng.choice((word, alphabet)))
        before, letter, after = word[:place], word[place], word[place + 1 :]
        missed = rng.choice(
            (
                before,
                before + word[: rng.randrange(1, len(word))],
                before + other + after,
                before + after,
                before + letter + letter + after,
                before + other + letter + after,
                before + after[:1] + letter + after[1:],
            )
        )
        if 2 * len(missed) >= len(word) and word not in missed:
            return missed


def compare(ends: np.ndarray, firings: np.ndarray, most_delay: int) -> Detections:
    """Which firing stands for which word: each for one, the first that comes with a word's last letter or soon after.

    Args:
        ends: Places of the word's last letter, ascending.
        firings: Places that were fired at, ascending.
        most_delay: Letters after a word within which a firing still counts for it.
    """
    delays: list[int | None] = []
    following = 0
    for end in ends.tolist():
        following += int(np.searchsorted(firings[following:], end))
        found = following < len(firings) and firings[following] <= end + most_delay
        delays.append(int(firings[following]) - end if found else None)
        following += int(found)
    return Detections(ends, firings, delays)


def window_regression(texts: Sequence[str], test: str, word: str, known: Sequence[str]) -> np.ndarray:
    """Probability that the word ends with each letter of a stream, by logistic regression on the letters before.

    It sees as many letters as the word has, each in its place, and learns from those windows of the texts.

    Args:
        texts: Streams to learn from.
        test: The stream to look at.
        word: What to look for.
        known: Letters to tell apart.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import OneHotEncoder

    rows = np.concatenate([_last_numbers(text, len(word), known) for text in texts])
    targets = np.concatenate([np.isin(np.arange(len(text)), last_letters(word, text)) for text in texts])
    if targets.all() or not targets.any():
        return np.full(len(test), float(targets.any()))
    both, counts = np.unique(np.column_stack([rows, targets]), axis=0, return_counts=True)
    encoder = OneHotEncoder(handle_unknown="ignore").fit(both[:, :-1])
    regression = LogisticRegression(C=1e4, max_iter=1000)
    regression.fit(encoder.transform(both[:, :-1]), both[:, -1], sample_weight=counts)
    return np.asarray(regression.predict_proba(encoder.transform(_last_numbers(test, len(word), known)))[:, 1])


def _last_numbers(text: str, length: int, known: Sequence[str]) -> np.ndarray:
    """The numbers of each letter and of those before it, (letters, length); zeros before the first."""
    padded = np.concatenate([np.zeros(length - 1, np.int32), numbered(text, known)])
    return np.lib.stride_tricks.sliding_window_view(padded, length)
