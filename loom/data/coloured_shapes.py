"""Built-in images with captions: coloured shapes on a dark ground, and what is where in words, made from a seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loom.data.files import encode_png
from loom.data.images import IMAGE

if TYPE_CHECKING:
    import pandas as pd

CAPTION = "caption"
COLOURS = {
    "red": (225, 40, 40), "green": (40, 190, 70), "blue": (50, 80, 235), "yellow": (240, 220, 40),
    "purple": (165, 50, 195), "white": (245, 245, 245),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = {
    (0, 0): ("at the top left", "in the top left corner"), (0, 1): ("at the top",),
    (0, 2): ("at the top right", "in the top right corner"), (1, 0): ("on the left",),
    (1, 1): ("in the centre", "in the middle"), (1, 2): ("on the right",),
    (2, 0): ("at the bottom left", "in the bottom left corner"), (2, 1): ("at the bottom",),
    (2, 2): ("at the bottom right", "in the bottom right corner"),
}  # fmt: skip
"""Row and column of each place, and what it is called."""
INVERSES = {
    "above": "below", "below": "above", "to the left of": "to the right of", "to the right of": "to the left of",
}  # fmt: skip
"""Where one shape is, seen from another one, and where that is, seen from it."""
SIZE = 48
"""Pixels on each side of an image."""
SMALLEST, LARGEST = 5.0, 7.0
"""Half of a shape's width, in pixels."""
DIMMEST, NOISE = 0.8, 6.0
"""Brightness of the dimmest shapes in terms of the brightest, and the standard deviation of the noise."""
GROUND = 60
"""Values of the ground are below this."""
COUNTS = (0.2, 0.4, 0.4)
"""Shares of the images with one, two and three shapes."""


class Thing(NamedTuple):
    """A shape in one of nine places."""

    colour: str
    shape: str
    place: tuple[int, int]

    @property
    def name(self) -> str:
        """What it is called."""
        return f"a {self.colour} {self.shape}"


class Fact(NamedTuple):
    """What a sentence says of one shape."""

    colour: str
    shape: str
    position: str
    """The first name of its place, or its relation to the other shape."""


def scenes(count: int = 5000, seed: int = 0) -> pd.DataFrame:
    """Images (PNG files, `image`) of one to three shapes, and two different sentences for each (`caption`).

    The first scenes of a larger count are those of a smaller one.
    """
    import pandas as pd

    rows = []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        things = _things(rng)
        image = encode_png(_pixels(things, rng))
        rows += [(image, sentence) for sentence in _sentences(things, rng)]
    return pd.DataFrame(rows, columns=[IMAGE, CAPTION], dtype=object)


def _things(rng: np.random.Generator) -> list[Thing]:
    """Different shapes in different places, row after row."""
    count = 1 + int(rng.choice(len(COUNTS), p=COUNTS))
    places = sorted(int(place) for place in rng.choice(len(PLACES), count, replace=False))
    kinds = [divmod(int(kind), len(SHAPES)) for kind in rng.choice(len(COLOURS) * len(SHAPES), count, replace=False)]
    return [
        Thing(list(COLOURS)[colour], SHAPES[shape], list(PLACES)[place])
        for place, (colour, shape) in zip(places, kinds, strict=True)
    ]


def _pixels(things: Sequence[Thing], rng: np.random.Generator) -> np.ndarray:
    """The image, uint8 (SIZE, SIZE, 3), with smooth edges."""
    cell = SIZE / 3
    ground = rng.uniform(0, GROUND, 3)
    canvas = ground + rng.normal(0, NOISE, (SIZE, SIZE, 3))
    sides = np.arange(SIZE) + 0.5
    for thing in things:
        radius = rng.uniform(SMALLEST, LARGEST)
        free = cell / 2 - radius
        middle = (np.array(thing.place) + 0.5) * cell + rng.uniform(-free, free, 2)
        outside = _distance(thing.shape, sides - middle[1], sides[:, None] - middle[0], radius)
        inside = np.clip(0.5 - outside, 0, 1)[..., None]
        colour = np.array(COLOURS[thing.colour]) * rng.uniform(DIMMEST, 1)
        canvas += inside * (colour - ground)
    return np.round(np.clip(canvas, 0, 255)).astype(np.uint8)


def _distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """How far outside of a shape around (0, 0) each point is, below 0 inside."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.9 * radius
    if shape == "triangle":  # equal sides, one below
        return np.maximum(y, abs(x) * 3**0.5 / 2 - y / 2) - 0.6 * radius
    bars = np.maximum(abs(x), abs(y)) - radius
    return np.maximum(bars, np.minimum(abs(x), abs(y)) - 0.3 * radius)


def _sentences(things: Sequence[Thing], rng: np.random.Generator) -> list[str]:
    """Two different sentences about the same things."""
    found: list[str] = []
    while len(found) < 2:
        sentence = _sentence(things if rng.random() < 0.5 else things[::-1], rng)
        found += [] if sentence in found else [sentence]
    return found


def _sentence(things: Sequence[Thing], rng: np.random.Generator) -> str:
    start = "there is " if rng.random() < 0.3 else ""
    if relation := _relation(things):
        return f"{start}{things[0].name} {relation} {things[1].name}"
    *firsts, last = (f"{thing.name} {rng.choice(PLACES[thing.place])}" for thing in things)
    return start + (f"{', '.join(firsts)} and {last}" if firsts else last)


def _relation(things: Sequence[Thing]) -> str:
    """Where the first of two things is, seen from the second, if they are in one row or column."""
    if len(things) != 2:
        return ""
    (row, column), (other_row, other_column) = (thing.place for thing in things)
    if column == other_column:
        return "above" if row < other_row else "below"
    if row == other_row:
        return "to the left of" if column < other_column else "to the right of"
    return ""


_THING = rf"a ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_RELATED = re.compile(rf"{_THING} ({'|'.join(INVERSES)}) {_THING}")
_NAMES = {name: names[0] for names in PLACES.values() for name in names}
_PLACED = re.compile(rf"{_THING} ({'|'.join(sorted(_NAMES, key=len, reverse=True))})")


def read_facts(sentence: str) -> frozenset[Fact] | None:
    """Colour, shape and position of everything in a sentence; None for one that does not say that and nothing else.

    Sentences that say the same in other words or in another order have the same facts.

    Example:
        >>> read_facts("a red circle above a blue square") == read_facts("there is a blue square below a red circle")
        True
    """
    sentence = sentence.removeprefix("there is ")
    if found := _RELATED.fullmatch(sentence):
        colour, shape, relation, other_colour, other_shape = found.groups()
        return frozenset((Fact(colour, shape, relation), Fact(other_colour, other_shape, INVERSES[relation])))
    parts = [_PLACED.fullmatch(part) for part in re.split(", | and ", sentence)]
    facts = [Fact(found[1], found[2], _NAMES[found[3]]) for found in parts if found]
    return frozenset(facts) if facts and len(set(facts)) == len(parts) else None


def share_of_exact(sentences: Sequence[str], references: Sequence[str]) -> dict[str, float] | None:
    """Shares of the sentences that name exactly what their reference does; None where references are no such sentences.

    Returns:
        `exact`, and of colours, shapes and positions alone `exact_colours`, `exact_shapes`, `exact_positions`.
    """
    truth = [read_facts(reference) for reference in references]
    if not truth or None in truth:
        return None
    said = [read_facts(sentence) or frozenset() for sentence in sentences]
    pairs = [(sorted(one), sorted(other or ())) for one, other in zip(said, truth, strict=True)]
    shares = {"exact": float(np.mean([one == other for one, other in pairs]))}
    for place, name in enumerate(("colours", "shapes", "positions")):
        alone = [sorted(fact[place] for fact in one) == sorted(fact[place] for fact in other) for one, other in pairs]
        shares[f"exact_{name}"] = float(np.mean(alone))
    return shares
