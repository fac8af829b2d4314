"""Figures of tagged sentences: words with their tags in a font that has them, or numbers and a note."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.figure import Figure

from loom.figures_attention import attention_maps
from loom.figures_text import CHARACTERS, Tagged, colored_words, draw_tagged


def drawn(*words: Tagged) -> tuple[list[tuple[str, str, float]], Figure]:
    """Text, font and place of everything that is written, and the figure."""
    figure = draw_tagged([words], ["NOUN", "VERB"], "title", "sentences")
    return [(text.get_text(), text.get_fontname(), text.get_position()[0]) for text in figure.axes[0].texts], figure


def test_wrong_tags_stand_before_the_right_ones_and_their_words_are_underlined() -> None:
    written, figure = drawn(Tagged("cats", "NOUN", "NOUN"), Tagged("sleep", "NOUN", "VERB"))
    assert [text for text, *_ in written] == ["cats", "NOUN", "sleep", "NOUN for VERB"]
    (line,) = figure.axes[0].lines
    assert line.get_xdata()[0] == written[2][2] == 5
    assert not figure.get_supxlabel()


def test_words_are_given_room_for_the_font_that_has_them() -> None:
    for other, font, least in (("Straße", "DejaVu Sans Mono", 21), ("שלום", "DejaVu Sans", 33)):
        written, _ = drawn(Tagged("W" * 20, "NOUN", "NOUN"), Tagged(other, "NOUN", "NOUN"))
        assert [name for text, name, _ in written if text != "NOUN"] == [font] * 2
        assert written[2][2] >= least  # a W of the second font is 1.6 times as wide as a letter of the first


def test_dollars_are_no_formulas() -> None:
    _, figure = drawn(Tagged("$_$", "NOUN", "VERB"), Tagged("$", "VERB", "NOUN"))
    figure.savefig(io.BytesIO())
    colored_words([("$^$", ["$_$"], np.ones(1))], "title", "words").savefig(io.BytesIO())
    attention_maps([(np.ones((1, 1)), ["$_$"], ["$^$"])], "attention").savefig(io.BytesIO())


def test_words_that_no_font_has_are_numbers_and_long_ones_are_cut() -> None:
    written, figure = drawn(Tagged("a", "NOUN", "NOUN"), Tagged("\U0010fffd", "VERB", "VERB"))
    assert [text for text, *_ in written] == ["1", "NOUN", "2", "VERB"]
    assert "sentences.json has them" in figure.get_supxlabel()
    written, _ = drawn(Tagged("x" * 1000, "NOUN", "NOUN"))
    assert len(written[0][0]) == CHARACTERS - 1
