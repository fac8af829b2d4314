"""Figures of tagged sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from loom.report import WORD_SIZE, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0
CHARACTERS = int(WIDTH * 72 / (0.61 * WORD_SIZE))
"""On a line; a DejaVu Sans Mono character is 0.602 of its size wide."""
LINE = 0.36
"""Inches between two lines, with the tags below the words."""


class Tagged(NamedTuple):
    """A word and its tags."""

    word: str
    predicted: str
    true: str


def draw_tagged(sentences: Sequence[Sequence[Tagged]], classes: Sequence[str], title: str) -> Figure:
    """Words on the colours of their predicted tags, and these below; a wrong one is underlined, with the true one.

    Args:
        sentences: The words of each sentence.
        classes: All tags, of which the first 40 have colours of their own.
        title: Title of the figure.
    """
    from matplotlib import colormaps

    palette = [colormaps[name](place) for name in ("tab20", "tab20b") for place in range(20)]
    used = [name for name in classes if any(name == word.predicted for words in sentences for word in words)]
    colors = {name: _lightened(palette[place % len(palette)]) for place, name in enumerate(used)}
    lines = [_wrapped(words) for words in sentences]
    height = sum(len(wrapped) for wrapped in lines) + 0.6 * len(lines)
    figure, (axis,) = new_figure(1, WIDTH, LINE * height + 0.5)
    axis.set_axis_off()
    axis.set(xlim=(0, CHARACTERS), ylim=(height, -0.5))
    axis.set_title(title, loc="left")
    y = 0.2
    for wrapped in lines:
        for line in wrapped:
            _draw_line(axis, line, y, colors)
            y += 1
        y += 0.6
    return figure


def _lightened(color: Sequence[float]) -> tuple[float, ...]:
    """Light enough for black letters on it."""
    return tuple(0.45 + 0.55 * part for part in color[:3])


def _caption(word: Tagged) -> str:
    return word.predicted if word.predicted == word.true else f"{word.predicted} for {word.true}"


def _columns(word: Tagged) -> int:
    """Characters of a line that a word takes; captions are smaller."""
    shown = word.word if len(word.word) < CHARACTERS else word.word[: CHARACTERS - 4] + "..."
    return max(len(shown), math.ceil(0.85 * len(_caption(word)))) + 1


def _wrapped(words: Sequence[Tagged]) -> list[list[Tagged]]:
    lines: list[list[Tagged]] = [[]]
    used = 0
    for word in words:
        if used + _columns(word) > CHARACTERS and lines[-1]:
            lines.append([])
            used = 0
        lines[-1].append(word)
        used += _columns(word)
    return lines


def _draw_line(axis: Axes, words: Sequence[Tagged], y: float, colors: dict[str, tuple[float, ...]]) -> None:
    x = 0
    for word in words:
        wrong = word.predicted != word.true
        box = {"facecolor": colors[word.predicted], "edgecolor": "none", "pad": 1.2}
        text = word.word[: CHARACTERS - 4]
        axis.text(x, y, text, fontsize=WORD_SIZE, family="DejaVu Sans Mono", va="center", bbox=box)
        axis.text(
            x, y + 0.42, _caption(word), fontsize=0.72 * WORD_SIZE, va="center", color="#b00000" if wrong else "#555555"
        )
        if wrong:
            axis.plot([x, x + len(text)], [y + 0.22, y + 0.22], color="#b00000", linewidth=1.6, solid_capstyle="butt")
        x += _columns(word)
