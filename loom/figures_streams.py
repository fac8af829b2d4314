"""Figures of a stream of letters and of what was detected in it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from loom.data.streams import NEAR_MISS, WORD, Detections, Stream
from loom.fonts import font_for
from loom.report import PLAIN, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LETTERS = 64
"""In a row of a stretch."""
STRETCH = 4 * LETTERS
COLORS = {WORD: "#bfe3c5", NEAR_MISS: "#fbdca8"}
NAMES = {WORD: "the word", NEAR_MISS: "near miss"}
NO_FONT = "no installed font has these letters: stretch.json has them"


def draw_stretch(stream: Stream, first: int, probabilities: np.ndarray, threshold: float) -> Figure:
    """The probability at each letter of a stretch of a stream, on the colours of what was planted there.

    Args:
        stream: Letters of the stretch and their marks.
        first: Place of the first of them in the whole stream, from 0.
        probabilities: One for each letter.
        threshold: Where the detector fires.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    starts = range(0, len(stream.text), LETTERS)
    figure = Figure(figsize=(10, 1.35 * len(starts) + 0.6), layout="constrained")
    font = font_for([letter for letter in stream.text if letter.isprintable()], "DejaVu Sans Mono")
    for axis, start in zip(figure.subplots(len(starts), 1, squeeze=False)[:, 0], starts, strict=True):
        row = slice(start, start + LETTERS)
        _draw_row(axis, stream.marks[row], probabilities[row], threshold)
        if font:
            letters = [letter if letter.isprintable() else " " for letter in stream.text[row]]
            axis.set_xticks(range(len(letters)), letters, fontsize=9, fontfamily=font, **PLAIN)
        axis.set_ylabel(f"from {first + start + 1:,}", fontsize=8)
    handles = [Patch(facecolor=COLORS[mark], label=f"{name} planted") for mark, name in NAMES.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    figure.suptitle("Probability that the word ends here", x=0.01, ha="left", fontsize=11)
    if not font:
        figure.supxlabel(NO_FONT, fontsize=8)
    return figure


def fullest(marks: str, length: int = STRETCH) -> int:
    """Start of the stretch with the most letters of words, the first of them; near misses decide between equals."""
    letters = np.frombuffer(marks.encode("ascii"), np.uint8)
    counts = np.concatenate([[0], np.cumsum(100 * (letters == ord(WORD)) + (letters == ord(NEAR_MISS)))])
    last = max(len(marks) - length, 0)
    return int(np.argmax(counts[np.minimum(np.arange(last + 1) + length, len(marks))] - counts[: last + 1]))


def _draw_row(axis: Axes, marks: str, probabilities: np.ndarray, threshold: float) -> None:
    places = np.arange(len(probabilities))
    for mark, color in COLORS.items():
        for place in places[[each == mark for each in marks]]:
            axis.axvspan(place - 0.5, place + 0.5, color=color, linewidth=0)
    axis.axhline(threshold, color="grey", linewidth=0.8, linestyle="--")
    axis.vlines(places, 0, probabilities, color="#4477aa", linewidth=2)
    fired = probabilities > threshold
    axis.plot(places[fired], probabilities[fired], "o", color="#b00000", markersize=5)
    axis.set(xlim=(-0.5, LETTERS - 0.5), ylim=(0, 1.05), yticks=(0, threshold, 1))
    axis.tick_params(axis="y", labelsize=7)
    axis.tick_params(axis="x", length=0)
    axis.spines[["top", "right"]].set_visible(False)


def draw_delays(found: Detections, most_delay: int) -> Figure:
    """Words by the letters that passed before the firing for them, beside those missed and the false alarms."""
    counts = Counter(found.delays)
    labels = ["at the last letter", *(f"{delay} later" for delay in range(1, most_delay + 1)), "missed", "false alarms"]
    values = [*(counts[delay] for delay in range(most_delay + 1)), counts[None], len(found.false_alarms)]
    figure, (axis,) = new_figure(1, 1.1 * len(labels) + 1, 3.2)
    colors = ["#4477aa"] * (most_delay + 1) + ["#b00000"] * 2
    axis.bar_label(axis.bar(labels, values, color=colors), [f"{value:,}" for value in values])
    axis.set(title=f"{len(found.ends):,} words", ylabel="count")
    return figure
