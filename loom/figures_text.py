"""Figures of tagged sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from loom.fonts import NO_FONT, font_for, width_of
from loom.report import WORD_SIZE, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0
COLUMN = 0.61 * WORD_SIZE
"""Points; a DejaVu Sans Mono character is 0.602 of its size wide."""
CHARACTERS = int(WIDTH * 72 / COLUMN)
"""On a line."""
LINE = 0.36
"""Inches between two lines, with the tags below the words."""
FONT = "DejaVu Sans Mono"


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

    font = font_for((word.word for words in sentences for word in words), FONT)
    palette = [colormaps[name](place) for name in ("tab20", "tab20b") for place in range(20)]
    used = [name for name in classes if any(name == word.predicted for words in sentences for word in words)]
    colors = {name: _lightened(palette[place % len(palette)]) for place, name in enumerate(used)}
    lines = [_wrapped([_boxed(word, place, font) for place, word in enumerate(words, 1)]) for words in sentences]
    height = sum(len(wrapped) for wrapped in lines) + 0.6 * len(lines)
    figure, (axis,) = new_figure(1, WIDTH, LINE * height + 0.5)
    axis.set_axis_off()
    axis.set(xlim=(0, CHARACTERS), ylim=(height, -0.5))
    axis.set_title(title, loc="left")
    y = 0.2
    for wrapped in lines:
        for line in wrapped:
            _draw_line(axis, line, y, colors, font or FONT)
            y += 1
        y += 0.6
    if font is None:
        figure.supxlabel(NO_FONT.format(table=table), fontsize=8)
    return figure


class _Box(NamedTuple):
    """A word as it is shown, with its tags."""

    text: str
    columns: float
    """Characters of a line that the text is wide."""
    tags: Tagged

    @property
    def caption(self) -> str:
        """What stands below."""
        tags = self.tags
        return tags.predicted if tags.predicted == tags.true else f"{tags.predicted} for {tags.true}"

    @property
    def room(self) -> int:
        """Characters of a line that text and caption take, and a space; captions are smaller."""
        return math.ceil(max(self.columns, 0.85 * len(self.caption))) + 1


def _boxed(word: Tagged, place: int, font: str | None) -> _Box:
    """A word, cut if it is longer than a line; its place in the sentence where no font has its characters."""
    text = word.word if len(word.word) < CHARACTERS else word.word[: CHARACTERS - 4] + "..."
    text = text if font else str(place)
    return _Box(text, width_of(text, font or FONT, WORD_SIZE) / COLUMN, word)


def _lightened(color: Sequence[float]) -> tuple[float, ...]:
    """Light enough for black letters on it."""
    return tuple(0.45 + 0.55 * part for part in color[:3])


def _wrapped(boxes: Sequence[_Box]) -> list[list[_Box]]:
    lines: list[list[_Box]] = [[]]
    used = 0
    for box in boxes:
        if used + box.room > CHARACTERS and lines[-1]:
            lines.append([])
            used = 0
        lines[-1].append(box)
        used += box.room
    return lines


def _draw_line(axis: Axes, boxes: Sequence[_Box], y: float, colors: dict[str, tuple[float, ...]], font: str) -> None:
    x = 0
    for box in boxes:
        wrong = box.tags.predicted != box.tags.true
        background = {"facecolor": colors[box.tags.predicted], "edgecolor": "none", "pad": 1.2}
        # A word as long as the line must not push the lines together.
        axis.text(x, y, box.text, fontsize=WORD_SIZE, family=font, va="center", bbox=background, in_layout=False)
        color = "#b00000" if wrong else "#555555"
        axis.text(x, y + 0.42, box.caption, fontsize=0.72 * WORD_SIZE, va="center", color=color)
        if wrong:
            ends = [x, x + box.columns]
            axis.plot(ends, [y + 0.22, y + 0.22], color="#b00000", linewidth=1.6, solid_capstyle="butt")
        x += box.room
