"""Layers for words, against plain Python."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest

from layers import AffixRows, KnownLetters, LetterIds, MaxOverLetters, NormalizeWords, SplitWords, WordShapes

needs_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="operations on strings")


def strings(*rows: list[str]):
    import tensorflow as tf

    return tf.constant(rows)


def decoded(tensor) -> list[list[str]]:
    return [[word.decode() for word in row if word] for row in tensor.numpy().tolist()]


@needs_tensorflow
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cat cannot sit.", "The cat can not sit ."),
        ('He said: "No, I don\'t!" (twice)', 'He said : " No , I do n\'t ! " ( twice )'),
        (
            "It\N{RIGHT SINGLE QUOTATION MARK}s John's dogs' food.",
            "It \N{RIGHT SINGLE QUOTATION MARK}s John 's dogs ' food .",
        ),
        ("At 10:30 it cost $1,000.50, not 3.", "At 10:30 it cost $ 1,000.50 , not 3 ."),
        ("Dr. Smith of the U.S. left at 5 p.m. today...", "Dr. Smith of the U.S. left at 5 p.m. today ..."),
        ("a long-term plan - and/or more", "a long-term plan - and / or more"),
        ("राम घर गया।", "राम घर गया ।"),
        ("می\u200cشود؟ क\u200d्ष", "می\u200cشود ؟ क\u200d्ष"),
        ("Ça va?\n\tno", "Ça va?\n|no"),
        ("  ", ""),
        ("U.S.\t", "U.S."),
        ("\tAnna\t\twalks\t\t\thome", "Anna|walks|home"),
    ],
)
def test_texts_are_taken_apart_as_treebanks_do(text: str, words: str) -> None:
    apart = words.split("|") if "|" in words else words.split(" ") if words else []
    assert decoded(SplitWords()(strings([text]))) == [apart]


@needs_tensorflow
def test_a_batch_without_words_has_one_step_of_padding() -> None:
    assert SplitWords()(strings([""], [" "])).numpy().tolist() == [[b""], [b""]]


@needs_tensorflow
def test_words_are_made_small_with_zeros_for_digits() -> None:
    assert decoded(NormalizeWords()(strings(["ÉTÉ", "B2B", "२०"]))) == [["été", "b0b", "00"]]


@needs_tensorflow
def test_letters_are_code_points_and_long_words_keep_their_ends() -> None:
    letters = LetterIds(5)(strings(["ab", "abcdefgh", ""], ["ह" + "x" * 100_000 + "z", "abcde", "abcdef"])).numpy()
    ids = [["".join(chr(code - 1) for code in word if code) for word in row] for row in letters]
    assert ids[0] == ["ab", "abcgh", ""]
    assert ids[1][1:] == ["abcde", "abcef"]
    assert letters[1, 0].tolist() == [1 + ord("ह") % 1023, 1 + ord("x"), 1 + ord("x"), 1 + ord("x"), 1 + ord("z")]


@needs_tensorflow
def test_shapes_are_told_apart_in_this_order() -> None:
    words = ["3.14", "1,000", "...", "B2B", "NATO", "U.S.", "Paris", "McDonald", "cat", "राम", "n't", ""]
    assert WordShapes()(strings(words)).numpy().tolist() == [[1, 1, 2, 3, 4, 4, 5, 6, 7, 7, 7, 0]]


def test_affixes_share_a_row_exactly_where_they_are_the_same() -> None:
    words = ["nation", "native", "station", "on", "no", "ann", "a"]
    letters = np.array([[[ord(letter) for letter in word] + [0] * (8 - len(word)) for word in words]])
    rows = keras.ops.convert_to_numpy(AffixRows(4, 2**16)(letters))[0]
    keys = [
        [(side, (word[:n] if side == "prefix" else word[-n:])) for side in ("prefix", "suffix") for n in range(1, 5)]
        for word in words
    ]
    found = [
        (key, row)
        for word, names, numbers in zip(words, keys, rows, strict=True)
        for place, (key, row) in enumerate(zip(names, numbers.tolist(), strict=True))
        if place % 4 < len(word)
    ]
    for (key, row), (other_key, other_row) in itertools.combinations(found, 2):
        assert (row == other_row) == (key == other_key), (key, other_key)
    shorter = [[place % 4 >= len(word) for place in range(8)] for word in words]
    np.testing.assert_array_equal(rows == 0, shorter)
    assert rows.max() <= 2**16


def test_affixes_longer_than_what_is_read_of_a_word_have_no_row() -> None:
    rows = keras.ops.convert_to_numpy(AffixRows(4, 100)(np.array([[[5, 6]]])))
    assert (rows[0, 0] > 0).tolist() == [True, True, False, False] * 2


def test_only_letters_count_in_the_largest_features() -> None:
    letters = np.array([[[1, 2, 0], [0, 0, 0]]])
    features = np.array([[[[-1.0], [-2.0], [9.0]], [[9.0], [9.0], [9.0]]]], np.float32)
    for given in (features, features.reshape(1, 6, 1)):
        np.testing.assert_array_equal(MaxOverLetters()(given, letters), [[[-1.0], [0.0]]])


@pytest.mark.parametrize("make", [lambda: LetterIds(1), lambda: AffixRows(0, 5), lambda: AffixRows(2, 2**17)])
def test_impossible_sizes_are_refused(make) -> None:
    with pytest.raises(ValueError, match="must"):
        make()


@needs_tensorflow
def test_known_letters_are_counted_from_two() -> None:
    layer = KnownLetters("ahpyह")
    found = layer(strings(["xHaPPy!"], ["हा"], [""])).numpy().tolist()
    assert found == [[1, 3, 2, 4, 4, 5, 1], [6, 1, 0, 0, 0, 0, 0], [0] * 7]
    assert layer(strings([""])).shape == (1, 1)
    again = KnownLetters.from_config(layer.get_config())
    assert again(strings(["happy"])).numpy().tolist() == [[3, 2, 4, 4, 5]]
    with pytest.raises(ValueError, match="single code points"):
        KnownLetters(["ab"])
