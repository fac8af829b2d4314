"""Figures of texts: words on colours, with their contributions or their tags."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from loom.fonts import NO_FONT, font_for, width_of
from loom.report import PLAIN, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0
SIZE = 8
"""Points; of the words."""
COLUMN = 0.61 * SIZE
"""Points; a DejaVu Sans Mono character is 0.602 of its size wide."""
CHARACTERS = int(WIDTH * 72 / COLUMN)
"""On a line."""
GAP = 0.6
"""Lines between two texts."""
FONT = "DejaVu Sans Mono"
WRONG = "#b00000"


def colored_words(rows: Sequence[tuple[str, Sequence[str], np.ndarray]], title: str, table: str) -> Figure:
    """Lines of words, each on a background from red (lowers the output) to blue (raises it).

    Args:
        rows: For each text a heading, its words, and one contribution per word.
        title: Title of the figure.
        table: Name of the table that holds the words too, for characters that no font has.
    """
    texts = []
    for heading, words, values in rows:
        strengths = values / max(np.abs(values).max(initial=0.0), 1e-9)
        texts.append((heading, [_colored(word, value) for word, value in zip(words, strengths, strict=True)]))
    return _drawn(texts, 0.26, title, table)


class Tagged(NamedTuple):
    """A word and its tags."""

    word: str
    predicted: str
    true: str


def draw_tagged(sentences: Sequence[Sequence[Tagged]], classes: Sequence[str], title: str, table: str) -> Figure:
    """Words on the colours of their predicted tags, and these below; a wrong one is underlined, with the true one.

    Args:
        sentences: The words of each sentence.
        classes: All tags, of which the first 40 have colours of their own.
        title: Title of the figure.
        table: Name of the table that holds the words too, for characters that no font has.
    """
    from matplotlib import colormaps

    palette = [colormaps[name](place) for name in ("tab20", "tab20b") for place in range(20)]
    used = [name for name in classes if any(name == word.predicted for words in sentences for word in words)]
    colors = {name: _lightened(palette[place % len(palette)]) for place, name in enumerate(used)}
    return _drawn([("", [_tagged(word, colors) for word in words]) for words in sentences], 0.36, title, table)


class _Word(NamedTuple):
    """A word as it is shown."""

    text: str
    background: tuple[float, ...]
    color: str = "black"
    caption: str = ""
    """What stands below."""
    wrong: bool = False
    """Underlined."""


def _colored(word: str, strength: float) -> _Word:
    from matplotlib import colormaps

    return _Word(word, colormaps["RdBu"](0.5 + 0.4 * strength), "white" if abs(strength) > 0.75 else "black")


def _tagged(word: Tagged, colors: dict[str, tuple[float, ...]]) -> _Word:
    wrong = word.predicted != word.true
    caption = f"{word.predicted} for {word.true}" if wrong else word.predicted
    return _Word(word.word, colors[word.predicted], caption=caption, wrong=wrong)


def _lightened(color: Sequence[float]) -> tuple[float, ...]:
    """Light enough for black letters on it."""
    return tuple(0.45 + 0.55 * part for part in color[:3])


def _drawn(texts: Sequence[tuple[str, Sequence[_Word]]], line_height: float, title: str, table: str) -> Figure:
    """Headings, and words below them in lines of some inches each."""
    font = font_for((word.text for _, words in texts for word in words), FONT)
    shown = font or FONT
    pages = [(heading, _wrapped(words if font else _numbered(words), shown)) for heading, words in texts]
    height = sum(len(lines) + bool(heading) + GAP for heading, lines in pages)
    figure, (axis,) = new_figure(1, WIDTH, line_height * height + 0.5)
    axis.set_axis_off()
    axis.set(xlim=(0, CHARACTERS), ylim=(height, -0.5))
    axis.set_title(title, loc="left")
    y = 0.2
    for heading, lines in pages:
        if heading:
            axis.text(0, y, heading, fontsize=8, weight="bold", va="center", **PLAIN)
            y += 1
        for line in lines:
            _draw_line(axis, line, y, shown)
            y += 1
        y += GAP
    if font is None:
        figure.supxlabel(NO_FONT.format(table=table), fontsize=8)
    return figure


def _numbered(words: Iterable[_Word]) -> list[_Word]:
    """Places in the text instead of words."""
    return [word._replace(text=str(place)) for place, word in enumerate(words, 1)]


def _wrapped(words: Iterable[_Word], font: str) -> list[list[tuple[int, float, _Word]]]:
    """Lines of words, each with its place on the line and its width; one longer than a line is cut."""
    lines: list[list[tuple[int, float, _Word]]] = [[]]
    used = 0
    for word in words:
        if len(word.text) >= CHARACTERS:
            word = word._replace(text=word.text[: CHARACTERS - 4] + "...")
        width = width_of(word.text, font, SIZE) / COLUMN
        room = math.ceil(max(width, 0.85 * len(word.caption)))  # captions are smaller
        if used + room > CHARACTERS and lines[-1]:
            lines.append([])
            used = 0
        lines[-1].append((used, width, word))
        used += room + 1
    return lines


def _draw_line(axis: Axes, line: Iterable[tuple[int, float, _Word]], y: float, font: str) -> None:
    for x, width, word in line:
        box = {"facecolor": word.background, "edgecolor": "none", "pad": 1.1}
        # A word as long as the line must not push the lines together.
        style: dict[str, Any] = {
            "fontsize": SIZE,
            "family": font,
            "va": "center",
            "bbox": box,
            "in_layout": False,
            **PLAIN,
        }
        axis.text(x, y, word.text, color=word.color, **style)
        if word.caption:
            color = WRONG if word.wrong else "#555555"
            axis.text(x, y + 0.42, word.caption, fontsize=0.72 * SIZE, va="center", color=color, **PLAIN)
        if word.wrong:
            axis.plot([x, x + width], [y + 0.22, y + 0.22], color=WRONG, linewidth=1.6, solid_capstyle="butt")
