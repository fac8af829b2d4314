"""Fonts for figures: one that has all characters, or none, and then a note instead of boxes."""

from __future__ import annotations

import numpy as np

from loom.figures_attention import attention_maps
from loom.figures_text import colored_words
from loom.fonts import font_for


def test_a_font_with_all_characters_is_found() -> None:
    assert font_for(["Ein Mädchen läuft, γειά"]) == "DejaVu Sans"


def test_boxes_are_no_glyphs() -> None:
    assert font_for(["\U0010fffd"]) is None  # for private use: only the last resort has it


def test_attention_without_a_font_has_numbers_and_a_note() -> None:
    weights = np.full((2, 3), 1 / 3)
    figure = attention_maps([(weights, ["a", "b", "∎"], ["\U0010fffd", "∎"])], "attention")
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", "3"]
    assert "no installed font has these characters" in figure.get_supxlabel()
    named = attention_maps([(weights, ["a", " b", "∎"], ["c", "∎"])], "attention")
    assert [label.get_text() for label in named.axes[0].get_xticklabels()] == ["a", "b", "∎"]
    assert not named.get_supxlabel()


def test_colored_words_without_a_font_have_numbers_and_a_note() -> None:
    for word, shown, note in (("b", "b", False), ("\U0010fffd", "2", True)):
        figure = colored_words([("text", ["a", word], np.array([0.5, -1.0]))], "title", "words")
        assert figure.axes[0].texts[-1].get_text() == shown
        assert ("words.json has them" in figure.get_supxlabel()) == note
