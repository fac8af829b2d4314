"""Fonts for figures: one that has all characters, or none, and then a note instead of boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from loom.figures_attention import attention_maps
from loom.figures_text import colored_words
from loom.fonts import font_for, save
from loom.report import confusion_matrix, horizontal_bars


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


def test_names_of_classes_have_a_font_that_has_their_characters(tmp_path: Path) -> None:
    lacking = "\N{MATHEMATICAL BOLD FRAKTUR SMALL A}"  # in a font that comes with matplotlib, but not in the usual one
    assert font_for([lacking]) not in (None, "DejaVu Sans")
    names = ["$5", "no $5", "हाँ", f"ja {lacking}"]
    save(figure := confusion_matrix(np.arange(4), np.arange(4), names), tmp_path / "matrix.png")  # without a warning
    families = [label.get_fontfamily() for label in figure.axes[0].get_yticklabels()]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == names
    assert families[0] == families[1] == ["sans-serif"]
    assert font_for([lacking]) in families[3]
    save(horizontal_bars(names, [1.0, 2.0, 3.0, 4.0], None, "$x and $y"), tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > (tmp_path / "matrix.png").stat().st_size / 10 > 0
