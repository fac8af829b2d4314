"""Fonts for figures with texts of any script."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FALLBACKS = ("Last Resort",)
"""Fonts that have a box for every character."""
NO_FONT = "no installed font has these characters:\ntokens are numbered, and {table}.json has them"


def font_for(texts: Iterable[str], preferred: str = "DejaVu Sans") -> str | None:
    """Name of an installed font that has every character of the texts, or None; the preferred one if it has them."""
    needed = {ord(character) for text in texts for character in text if not character.isspace()}
    candidates = sorted(_files(), key=lambda name: (name != preferred, name))
    return next((name for name in candidates if needed <= _characters(_files()[name])), None)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, each text in fonts that have its characters; a box stands for one that no font has."""
    from matplotlib.font_manager import findfont
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        lacking = set(map(ord, text.get_text())) - {ord("\n")} - _characters(findfont(text.get_fontproperties()))
        if lacking:
            text.set_fontfamily([*text.get_fontfamily(), *_fonts_between_them(lacking)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        figure.savefig(path, dpi=110)


def _fonts_between_them(needed: set[int]) -> list[str]:
    """Names of installed fonts that together have as many of these characters as all fonts have, few of them."""
    names = []
    while found := max((needed & _characters(file) for file in _files().values()), key=len):
        names.append(next(name for name, file in sorted(_files().items()) if found <= _characters(file)))
        needed = needed - found
    return names


def width_of(text: str, font: str, size: float) -> float:
    """Width of a line of text in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    properties = FontProperties(family=font, size=size)
    return float(text_to_path.get_text_width_height_descent(text, properties, ismath=False)[0])


@cache
def _files() -> dict[str, str]:
    """File of each upright font of normal weight that matplotlib finds."""
    from matplotlib.font_manager import fontManager

    return {
        font.name: font.fname
        for font in fontManager.ttflist
        if font.style == "normal" and str(font.weight) in ("400", "normal") and not font.name.startswith(FALLBACKS)
    }


@cache
def _characters(file: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(file).get_charmap())
