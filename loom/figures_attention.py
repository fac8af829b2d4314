"""Attention between two texts as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from loom.data.pairs import SOURCE
from loom.fonts import NO_FONT, font_for
from loom.report import new_figure
from loom.translator import Translator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from loom.run import Run

WIDEST = 16
"""Tokens that the source of a map has at most, where there are such."""


def draw_attention(run: Run, count: int) -> None:
    """For some test examples, what the decoder reads of the source for each token of its answer: figure and table."""
    config: Any = run.config
    if config.model != "transformer" and config.attention == "none":
        return
    translator, lengths = Translator.of(run.trained), run.data.test.lengths
    rows = np.flatnonzero(lengths <= WIDEST)[:count] if (lengths <= WIDEST).any() else np.array([lengths.argmin()])
    sources = run.data.test.raw[SOURCE].iloc[rows].tolist()
    answers = [answer.text for answer in translator.write(sources, "beam")]
    maps = [translator.attention(*pair) for pair in zip(sources, answers, strict=True)]
    run.figure("attention", attention_maps(maps, "attention"))
    named = zip(sources, answers, maps, strict=True)
    run.table(
        "attention",
        [
            {"source": source, "answer": answer, "source_tokens": tokens[0], "answer_tokens": tokens[1]}
            for source, answer, (_, *tokens) in named
        ],
    )


def attention_maps(rows: Sequence[tuple[np.ndarray, Sequence[str], Sequence[str]]], table: str) -> Figure:
    """Weights of attention, one map beside the other.

    Args:
        rows: For each pair of texts the weights (target tokens, source tokens), and both sides' tokens.
        table: Name of the table that holds the tokens too, for characters that no font has.
    """
    font = font_for(token for _, *sides in rows for tokens in sides for token in tokens)
    longest = max(max(weights.shape) for weights, *_ in rows)
    size = min(max(3.4, 0.27 * longest + 1.2), 9.0)
    figure, axes = new_figure(len(rows), size, size)
    for axis, (weights, source, target) in zip(axes, rows, strict=True):
        image = axis.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for side, set_ticks, turn in ((source, axis.set_xticks, 90), (target, axis.set_yticks, 0)):
            labels = (
                [token.strip() or "·" for token in side] if font else [str(place + 1) for place in range(len(side))]
            )
            set_ticks(range(len(side)), labels, rotation=turn, fontsize=8, fontfamily=font or "DejaVu Sans")
        axis.xaxis.tick_top()
        axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="share of what is read", shrink=0.6)
    if not font:
        figure.supxlabel(NO_FONT.format(table=table), fontsize=8)
    return figure
