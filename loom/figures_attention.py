"""What is read for each token of an answer, of a text or of an image, as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from loom.data.pairs import SOURCE
from loom.figures_images import show_image
from loom.fonts import NO_FONT, font_for
from loom.lazy import tf
from loom.report import PLAIN, new_figure
from loom.translator import Translator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from loom.run import Run

WIDEST = 16
"""Tokens that the source of a map has at most, where there are such."""
PER_LINE, INCHES = 12, 1.1
"""Images beside each other, and the size of each."""
DIMMEST = 0.2
"""Brightness of what is not looked at."""


def draw_attention(run: Run, count: int) -> None:
    """For some test examples, what the decoder reads of the source for each token of its answer: figure and table."""
    config: Any = run.config
    if config.model != "transformer" and config.attention == "none":
        return
    translator, lengths = Translator.of(run.trained), run.data.test.lengths
    rows = np.flatnonzero(lengths <= WIDEST)[:count] if (lengths <= WIDEST).any() else np.array([lengths.argmin()])
    sources = run.data.test.raw[SOURCE].iloc[rows].tolist()
    answers = [answer.text for answer in translator.write(sources, "beam")]
    maps = [_map(translator, *pair) for pair in zip(sources, answers, strict=True)]
    run.figure("attention", attention_maps(maps, "attention"))
    named = zip(sources, answers, maps, strict=True)
    run.table(
        "attention",
        [
            {"source": source, "answer": answer, "source_tokens": tokens[0], "answer_tokens": tokens[1]}
            for source, answer, (_, *tokens) in named
        ],
    )


def _map(translator: Translator, source: str, answer: str) -> tuple[np.ndarray, list[str], list[str]]:
    weights, tokens = translator.attention(source, answer)
    return weights, translator.source_tokens(source), tokens


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
            set_ticks(range(len(side)), labels, rotation=turn, fontsize=8, fontfamily=font or "DejaVu Sans", **PLAIN)
        axis.xaxis.tick_top()
        axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="share of what is read", shrink=0.6)
    if not font:
        figure.supxlabel(NO_FONT.format(table=table), fontsize=8)
    return figure


def attention_over_images(rows: Sequence[tuple[np.ndarray, np.ndarray, Sequence[str]]]) -> Figure:
    """Images, and beside each of them where it was looked at for each token of its caption (bright).

    Args:
        rows: For each image its pixels (height, width, 1 or 3), uint8, the weights (tokens, rows, columns) over a grid
            of places, and the tokens.
    """
    from matplotlib.figure import Figure

    font = font_for(token for *_, tokens in rows for token in tokens) or "DejaVu Sans"
    lines = [-(-(len(tokens) + 1) // PER_LINE) for *_, tokens in rows]
    figure = Figure(figsize=(INCHES * PER_LINE, (INCHES + 0.25) * sum(lines)), layout="constrained")
    axes = figure.subplots(sum(lines), PER_LINE, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for line, (pixels, weights, tokens) in zip(np.cumsum([0, *lines[:-1]]), rows, strict=True):
        places = axes[line:].ravel()
        show_image(places[0], pixels)
        size = pixels.shape[:2]
        heat = tf.image.resize(weights[..., None], size).numpy()[..., 0]
        for axis, token, each in zip(places[1:], tokens, heat, strict=False):
            light = DIMMEST + (1 - DIMMEST) * each / max(float(each.max()), 1e-9)
            show_image(axis, pixels / 255 * light[..., None])
            axis.set_title(token.strip() or "·", fontsize=9, pad=3, fontfamily=font, **PLAIN)
    return figure
