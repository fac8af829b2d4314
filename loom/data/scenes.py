"""Scenes: images with several objects each, made of images of one object by a seed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loom.data.files import decode_pixels, encode_png
from loom.data.images import IMAGE, LABEL

if TYPE_CHECKING:
    import pandas as pd

OBJECTS = "objects"
"""Column with the objects of an image, JSON: `[{"label": "3", "box": [left, top, right, bottom]}, ...]` in pixels."""
INK = 0.25
"""Values below this share of the brightest belong to no object: its box is drawn around the others."""
SMALLEST, LARGEST = 0.16, 0.4
"""Sides of an object, in terms of the scene's."""
MOST_COVERED = 0.1
"""Share of a box that another one may cover."""
TRIES = 20
"""Places tried for an object before it is left out."""
DIMMEST, NOISE = 0.5, 0.06
"""Brightness of the dimmest objects, and the standard deviation of the noise, in terms of white."""


class Recipe(NamedTuple):
    """What scenes are made of."""

    size: int
    """Pixels on each side."""
    most: int
    """Objects in a scene: one to this many."""
    clutter: int
    """Pieces of objects in a scene, which are none."""
    channels: int = 1
    """1 (grey) or 3 (colours)."""


def make_scenes(parts: pd.DataFrame, count: int, recipe: Recipe, seed: tuple[int, ...]) -> pd.DataFrame:
    """Scenes of objects at random places, in random sizes and shades of brightness, with clutter and noise.

    Objects hardly cover each other, but may touch. The first scenes of a larger count are those of a smaller one.

    Args:
        parts: Images of one bright object each on black: columns `image` (the file's bytes) and `label`.
        count: Number of scenes.
        recipe: What is in them.
        seed: Picks everything.

    Returns:
        Columns `image` (PNG files) and `objects` (JSON).
    """
    import pandas as pd

    files, labels = parts[IMAGE].tolist(), parts[LABEL].tolist()
    images, objects = [], []
    for number in range(count):
        rng = np.random.default_rng((*seed, number))
        pixels, found = _scene(files, labels, recipe, rng)
        images.append(encode_png(pixels))
        objects.append(json.dumps(found))
    return pd.DataFrame({IMAGE: pd.Series(images, dtype=object), OBJECTS: pd.Series(objects, dtype=object)})


def _scene(
    files: list[bytes], labels: list[str], recipe: Recipe, rng: np.random.Generator
) -> tuple[np.ndarray, list[dict[str, object]]]:
    """Pixels of one scene, uint8 (size, size, channels), and its objects."""
    canvas = np.zeros((recipe.size, recipe.size, recipe.channels), np.float32)
    boxes: list[np.ndarray] = []
    found: list[dict[str, object]] = []
    for _ in range(rng.integers(1, recipe.most + 1)):
        row = int(rng.integers(len(files)))
        piece = _piece(files[row], recipe, rng)
        place = _free_place(piece, recipe.size, boxes, rng)
        if place is not None:
            _paint(canvas, piece, place)
            boxes.append(_box(piece, place))
            found.append({"label": labels[row], "box": boxes[-1].tolist()})
    for _ in range(recipe.clutter):
        piece = _fragment(_piece(files[int(rng.integers(len(files)))], recipe, rng), rng)
        place = _free_place(piece, recipe.size, boxes, rng)
        if place is not None:
            _paint(canvas, piece, place)
    noisy = canvas + rng.normal(0, NOISE, canvas.shape).astype(np.float32)
    return np.round(255 * np.clip(noisy, 0, 1)).astype(np.uint8), found


def _piece(file: bytes, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """One object, resized and cut to the box around its ink, in a random brightness, floats up to 1."""
    image = decode_pixels(file, recipe.channels).astype(np.float32)
    image = _cut(image / max(image.max(), 1.0))
    side = max(4, round(recipe.size * rng.uniform(SMALLEST, LARGEST)))
    scale = side / max(image.shape[:2])
    height, width = (max(2, round(scale * length)) for length in image.shape[:2])
    resized = np.einsum("iy,yxc,jx->ijc", _stretch(image.shape[0], height), image, _stretch(image.shape[1], width))
    return _cut(resized) * np.float32(rng.uniform(DIMMEST, 1))


def _stretch(source: int, target: int) -> np.ndarray:
    """Matrix (target, source) of a linear interpolation between the centres of pixels."""
    places = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(source))).astype(np.float32)


def _cut(image: np.ndarray) -> np.ndarray:
    """Only the rows and columns that hold ink; the whole of an image without any."""
    ink = image.max(axis=-1) > INK * max(float(image.max()), 1e-6)
    if not ink.any():
        return image
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _fragment(piece: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A quarter of an object, about."""
    height, width = (max(2, length // 2) for length in piece.shape[:2])
    top = int(rng.integers(piece.shape[0] - height + 1))
    left = int(rng.integers(piece.shape[1] - width + 1))
    return piece[top : top + height, left : left + width]


def _free_place(
    piece: np.ndarray, size: int, boxes: list[np.ndarray], rng: np.random.Generator
) -> tuple[int, int] | None:
    """Row and column where a piece covers little of the boxes and they of it; None if none was found."""
    for _ in range(TRIES):
        place = (int(rng.integers(size - piece.shape[0] + 1)), int(rng.integers(size - piece.shape[1] + 1)))
        if all(_covered(_box(piece, place), box) <= MOST_COVERED for box in boxes):
            return place
    return None


def _covered(first: np.ndarray, second: np.ndarray) -> float:
    """Share of the smaller box that the other one covers."""
    sides = np.maximum(np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2]), 0)
    return float(np.prod(sides) / min(np.prod(first[2:] - first[:2]), np.prod(second[2:] - second[:2])))


def _box(piece: np.ndarray, place: tuple[int, int]) -> np.ndarray:
    top, left = place
    return np.array([left, top, left + piece.shape[1], top + piece.shape[0]], float)


def _paint(canvas: np.ndarray, piece: np.ndarray, place: tuple[int, int]) -> None:
    top, left = place
    part = canvas[top : top + piece.shape[0], left : left + piece.shape[1]]
    np.maximum(part, piece, out=part)
