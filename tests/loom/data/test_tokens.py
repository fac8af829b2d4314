"""Tokens of raw text: every script comes back, in every unit, and the vocabulary is one short text."""

from __future__ import annotations

import itertools
import json
import unicodedata

import numpy as np
import pytest

from loom import Field, UserError
from loom.data.tokens import END, KINDS, UNKNOWN, Tokenizer

TEXTS = [
    "A man, in a hat (red), is sleeping.",
    "छोटी लड़की बाग़ में नई किताब पढ़ रही है।",
    "It's a well-known thing; isn't it?",
    "Ein Mädchen läuft über die Straße: schnell!",
    'She said: "3.14 is (nearly) 22/7..." - and/or it\'s 1,000 % of "that" ,too.',
    "धीरे-धीरे, माता-पिता: १,२३४ रु.",
]


def rows(tokens):
    return [tokens.values[start:end].tolist() for start, end in zip(tokens.splits, tokens.splits[1:], strict=False)]


@pytest.mark.parametrize("unit", list(KINDS))
def test_known_texts_come_back_as_they_were(unit) -> None:
    tokenizer = Tokenizer.fit(TEXTS, 400, unit)
    tokens = rows(tokenizer.encode(TEXTS))
    assert all(row[-1] == END and min(row) > 0 and max(row) < len(tokenizer) for row in tokens)
    assert tokenizer.decode(tokens) == [unicodedata.normalize("NFC", text) for text in TEXTS]


def test_subwords_give_every_script_back() -> None:
    tokenizer = Tokenizer.fit(TEXTS[:1], 300)
    unseen = ["Καλημέρα", "日本語 ½", "क्षत्रिय"]
    assert tokenizer.decode(rows(tokenizer.encode(unseen))) == unseen


def test_composed_and_decomposed_characters_are_the_same() -> None:
    tokenizer = Tokenizer.fit(TEXTS, 400)
    composed, decomposed = (unicodedata.normalize(form, "Mädchen बाग़") for form in ("NFC", "NFD"))
    assert composed != decomposed
    assert rows(tokenizer.encode([composed])) == rows(tokenizer.encode([decomposed]))


def test_lower_case_is_an_option() -> None:
    tokenizer = Tokenizer.fit(TEXTS, 400, lower=True)
    assert tokenizer.decode(rows(tokenizer.encode(["  A  MAN "]))) == ["a man"]


def test_long_texts_are_cut_and_still_end() -> None:
    tokenizer = Tokenizer.fit(TEXTS, 400)
    short = Tokenizer(**tokenizer.settings(max_length=5))
    assert rows(short.encode(TEXTS[:1])) == [[*rows(tokenizer.encode(TEXTS[:1]))[0][:4], END]]


def test_a_field_carries_the_vocabulary_as_text() -> None:
    tokenizer = Tokenizer.fit(TEXTS, 400)
    again = json.loads(json.dumps(Field("source", "text", tokenizer=tokenizer.settings()).tokenizer))
    assert rows(Tokenizer(**again).encode(TEXTS)) == rows(tokenizer.encode(TEXTS))
    assert Tokenizer.fit(TEXTS, 400).model == tokenizer.model


@pytest.mark.parametrize("unit", KINDS)
def test_long_lines_are_learned_from(unit) -> None:
    text = "एक लंबी पंक्ति and a long line " * 4000
    tokenizer = Tokenizer.fit([text, "short"], 400, unit, lines=True)
    assert UNKNOWN not in tokenizer.encode_whole([text[:100]])


def test_what_follows_the_end_is_no_text() -> None:
    tokenizer = Tokenizer.fit(TEXTS, 400)
    (row,) = rows(tokenizer.encode(["a man"]))
    assert tokenizer.decode([[*row, *row, 0, 0]]) == ["a man"]
    assert tokenizer.decode([[END], []]) == ["", ""]


@pytest.mark.parametrize(
    ("texts", "size", "words"),
    [(["", " "], 400, "no words"), (TEXTS, 20, "--vocabulary-size 20: .*give at least 3\\d\\d")],
)
def test_no_vocabulary_is_one_line(texts, size, words) -> None:
    with pytest.raises(UserError, match=words) as error:
        Tokenizer.fit(texts, size)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("unit", list(KINDS))
def test_what_is_settled_stays_whatever_follows(unit) -> None:
    """Of any tokens in any order, bytes of characters and signs that take no space before or after them among them."""
    texts = [*TEXTS, "- ' - ( ( ) . . , 5 - 5 'tis \u2019 [x] ; ! \"q\" \n\n# a\n"] * 2
    tokenizer = Tokenizer.fit(texts, 400, unit, lines=True)
    rng = np.random.default_rng(0)
    for _ in range(20):
        tokens = rng.integers(END + 1, len(tokenizer), 60)
        (whole,) = tokenizer.decode([tokens])
        kept = [tokenizer.settled(tokens[:count]) for count in range(61)]
        assert all(later.startswith(earlier) for earlier, later in itertools.pairwise([*kept, whole]))
        assert len(kept[-1]) > len(whole) - 30
