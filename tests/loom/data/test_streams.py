"""Streams: letters of every script, what is planted, where the word is, and which firing stands for which word."""

from __future__ import annotations

import itertools
import random
import unicodedata

import numpy as np
import pytest

from loom.data import streams
from loom.data.streams import compare, last_letters, letters_of, near_miss, numbered, plant, script_of

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def test_letters_are_small_and_taken_apart_whatever_the_pieces() -> None:
    assert letters_of("HaPPy\n") == "happy\n"
    assert letters_of("Café") == letters_of("Cafe\u0301") == "cafe\u0301"
    assert letters_of("\u0958") == letters_of("क़") == "\u0915\u093c"  # composed forms that NFC takes apart too
    text = "ΑΣ Café \u0958ल 한글 İ 😀 �"
    for cut in range(len(text) + 1):
        assert letters_of(text[:cut]) + letters_of(text[cut:]) == letters_of(text)
    assert letters_of(unicodedata.normalize("NFC", text)) == letters_of(unicodedata.normalize("NFD", text))


def test_places_lead_back_to_the_characters() -> None:
    text = "aéह한x"
    places = streams.places_of_letters(text)
    assert len(places) == len(letters_of(text))
    assert ["".join(letters_of(text)[i] for i in np.flatnonzero(places == p)) for p in range(len(text))] == [
        letters_of(character) for character in text
    ]


def test_numbers_are_those_of_the_known_letters() -> None:
    assert numbered("happy!", ["a", "h", "p", "y"]).tolist() == [3, 2, 4, 4, 5, 1]
    assert numbered("हैप्पी x", ["प", "ह"]).tolist() == [3, 1, 2, 1, 2, 1, 1, 1]
    assert numbered("", ["a"]).tolist() == []


def test_an_alphabet_is_that_of_the_words_script() -> None:
    assert script_of("happy") == ALPHABET
    hindi = script_of(letters_of("हैप्पी"))
    assert set(letters_of("हैप्पी")) < set(hindi)
    assert {unicodedata.name(letter).split()[0] for letter in hindi} == {"DEVANAGARI"}
    assert len(hindi) > 80
    assert set("4u") < set(script_of("4u"))


def test_a_word_is_found_wherever_it_ends() -> None:
    assert last_letters("happy", "hahappyhappy").tolist() == [6, 11]
    assert last_letters("aa", "aaaa").tolist() == [1, 2, 3]
    assert last_letters("happy", "happ").tolist() == []


@pytest.mark.parametrize("word", ["happy", "aa", "papa", "हैप्पी"])
def test_near_misses_miss_and_are_near(word: str) -> None:
    rng = random.Random(0)
    found = {near_miss(rng, word, ALPHABET) for _ in range(400)}
    assert not any(word in missed for missed in found)
    assert all(len(word) / 2 <= len(missed) < 2 * len(word) for missed in found)
    if word == "happy":
        kinds = {"hap", "happhap", "hsppy", "hapy", "happpy", "hpapy", "happ", "apy"}
        assert len(kinds & found) >= 5
        assert len(found) > 70


def test_as_many_pieces_are_planted_as_asked_for() -> None:
    rng = random.Random(1)
    background = streams.random_letters(rng, 20_000, ALPHABET, "happy")
    stream = plant(rng, background, "happy", 100, 400, ALPHABET)
    assert len(stream.text) == len(stream.marks)
    kept = "".join(letter for letter, mark in zip(stream.text, stream.marks, strict=True) if mark == streams.NOTHING)
    assert kept == background
    planted = [place for place in last_letters("happy", stream.text) if stream.marks[place] == streams.WORD]
    assert len(planted) == 100
    assert 0.2 < sum(stream.text[place - 6] == "h" or stream.text[place - 7] == "h" for place in planted) / 100 < 0.6
    assert stream.marks.count(streams.NEAR_MISS) > 4 * 400 * 0.6
    again = random.Random(1)
    assert plant(again, streams.random_letters(again, 20_000, ALPHABET, "happy"), "happy", 100, 400, ALPHABET) == stream


def test_letters_are_drawn_from_the_word_as_often_as_asked_for() -> None:
    letters = streams.random_letters(random.Random(0), 10_000, "xyz", "ab", share=0.7)
    assert sum(letter in "ab" for letter in letters) == pytest.approx(7000, abs=200)


def test_each_firing_stands_for_one_word() -> None:
    found = compare(np.array([10, 20, 30, 31]), np.array([5, 10, 11, 23, 31, 32]), most_delay=3)
    assert found.delays == [0, 3, 1, 1]
    assert found.false_alarms.tolist() == [5, 11]
    assert found.metrics() == {"precision": 4 / 6, "recall": 1.0, "delay": 1.25}
    strict = compare(np.array([10, 20, 30, 31]), np.array([5, 10, 11, 23, 31, 32]), most_delay=0)
    assert strict.delays == [0, None, None, 0]
    assert strict.missed.tolist() == [20, 30]
    assert compare(np.array([3]), np.array([], int), 3).metrics() == {"precision": 0.0, "recall": 0.0}


def test_no_other_assignment_finds_more_words() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        ends, firings = (np.flatnonzero(rng.random(9) < 0.4) for _ in range(2))
        found = sum(delay is not None for delay in compare(ends, firings, 2).delays)
        assert found == most_found(ends.tolist(), firings.tolist(), 2)


def most_found(ends: list[int], firings: list[int], most_delay: int) -> int:
    """By trying every choice of a firing, or none, for each word."""
    choices = [[None, *(firing for firing in firings if 0 <= firing - end <= most_delay)] for end in ends]
    taken = ([firing for firing in choice if firing is not None] for choice in itertools.product(*choices))
    return max(len(choice) for choice in taken if len(set(choice)) == len(choice))


def test_a_regression_on_the_windows_finds_the_word() -> None:
    rng = random.Random(0)
    train, test = (
        plant(rng, streams.random_letters(rng, 3000, ALPHABET, "papa"), "papa", 90, 200, ALPHABET).text
        for _ in range(2)
    )
    probabilities = streams.window_regression([train[:1500], train[1500:]], test, "papa", ["a", "p"])
    np.testing.assert_array_equal(np.flatnonzero(probabilities > 0.9), last_letters("papa", test))
    assert streams.window_regression(["xxx"], "papa", "papa", ["a", "p"]).tolist() == [0] * 4
