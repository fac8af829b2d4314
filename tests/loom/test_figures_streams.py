"""Figures of streams: the stretch that is shown, letters below it, and what is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loom import figures_streams
from loom.data.streams import Stream, compare
from loom.figures_streams import draw_delays, draw_stretch, fullest


def test_the_stretch_with_the_most_words_is_shown() -> None:
    marks = "." * 30 + "wwnn" + "." * 30 + "ww.ww" + "." * 30
    assert marks[fullest(marks, 8) :][:8].count("w") == 4
    assert fullest(marks, 1000) == 0


def test_letters_stand_below_their_probabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "x\nhappy" * 20
    figure = draw_stretch(Stream(text, "..wwwww" * 20), 1000, np.linspace(0, 1, len(text)), 0.9)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == list(text[:64].replace("\n", " "))
    assert [axis.get_ylabel() for axis in figure.axes] == ["from 1,001", "from 1,065", "from 1,129"]
    monkeypatch.setattr(figures_streams, "font_for", lambda texts, preferred: None)
    unknown = draw_stretch(Stream("हैप्पी", "." * 6), 0, np.zeros(6), 0.9)
    assert "stretch.json" in unknown.get_supxlabel()
    for drawn in (figure, unknown):
        drawn.savefig(tmp_path / "figure.png")


def test_bars_count_delays_misses_and_false_alarms() -> None:
    figure = draw_delays(compare(np.array([5, 20, 40]), np.array([5, 22, 60, 61]), 2), 2)
    assert [bar.get_height() for bar in figure.axes[0].patches] == [1, 0, 1, 1, 2]
