"""Images with boxes around their objects, from a person's own files, and boxes on the grid of a detector."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loom.average_precision import Objects
from loom.data.files import Shape, image_shape, why_no_image
from loom.data.images import IMAGE, ImageConfig, without_odd_channels
from loom.data.scenes import OBJECTS
from loom.data.sources import Examples
from loom.data.tables import Bad, check_bad, read_table
from loom.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

SIDES = ("left", "top", "right", "bottom")
COLUMNS = ("image", "label", *SIDES)
OUTSIDE = 1.0
"""Pixels by which a box may stand out of its image: it is cut off there."""
LEAST_LEFT = 0.3
"""Share of a box that has to be left where --fit crop cuts its image."""


@dataclass
class _Pictures:
    """Images as they are named by a file of boxes, and what is bad."""

    folder: Path
    content: dict[str, bytes] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    objects: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)
    unusable: set[str] = field(default_factory=set)
    boxes: int = 0

    def add(self, name: str) -> bool:
        """Read an image when it is first named; whether it can be used."""
        if name in self.content:
            return True
        if name not in self.unusable:
            content, why = _read_inside(self.folder, name)
            shape = image_shape(content) if not why else None
            if shape is None:
                self.unusable.add(name)
                self.bad.append(Bad(name, why))
                return False
            self.content[name], self.shapes[name], self.objects[name] = content, shape, []
        return name in self.content

    def add_box(self, where: str, name: str, label: str, sides: Sequence[float | None]) -> None:
        """Note an object of an image that was added, or why it cannot be one."""
        self.boxes += 1
        box, why = _checked(sides, self.shapes[name])
        if why or not label:
            self.bad.append(Bad(where, why or "the box has no label"))
        else:
            self.objects[name].append({"label": label, "box": box})


def read_boxes(config: ImageConfig) -> Examples:
    """Read the images and boxes that a `.csv` or `.json` file names; columns `image` and `objects` (JSON).

    A CSV file has the columns `image` (a path), `label`, `left`, `top`, `right` and `bottom` (pixels), one row for each
    object; a row with an image alone says that it holds none. A JSON file is COCO's: `images` (`id`, `file_name`),
    `annotations` (`image_id`, `category_id`, `bbox`: left, top, width, height) and `categories` (`id`, `name`). Paths
    are relative to the file, and stay inside its folder.

    Quarantined are images that are missing, damaged or outside the folder, and boxes without an area, with a side that
    is no number or more than a pixel outside the image, or without a known image and label.

    Raises:
        UserError: The file cannot be read, holds no usable box, or more of it is bad than `--max-bad` allows.
    """
    path = Path(config.data)
    if not path.is_file():
        raise UserError(f"--data {config.data}: no such file")
    pictures = _Pictures(path.parent)
    if path.suffix.lower() == ".json":
        _read_coco(path, pictures)
    else:
        _read_csv(path, pictures)
    total = pictures.boxes + len(pictures.content) + len(pictures.unusable)
    check_bad(pictures.bad, total, config.max_bad, f"images and boxes of {path.name}")
    if not any(pictures.objects.values()):
        raise UserError(f"--data {config.data}: no image has a usable box")
    examples = Examples(_frame(pictures), None, str(path.resolve()), tuple(pictures.bad))
    return examples if config.channels else without_odd_channels(examples, config)


def _frame(pictures: _Pictures) -> pd.DataFrame:
    import pandas as pd

    rows = [(pictures.content[name], json.dumps(objects)) for name, objects in pictures.objects.items()]
    return pd.DataFrame(rows, columns=[IMAGE, OBJECTS], dtype=object)


def _read_csv(path: Path, pictures: _Pictures) -> None:
    table = read_table(path, COLUMNS)
    pictures.bad += table.bad
    pictures.boxes += len(table.bad)
    for row, values in enumerate(table.frame[list(COLUMNS)].itertuples(index=False, name=None)):
        name, label, *sides = ("" if value is None else str(value) for value in values)
        if pictures.add(name) and any((label, *sides)):
            pictures.add_box(table.where(row), name, label, [_number(side) for side in sides])


def _read_coco(path: Path, pictures: _Pictures) -> None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = {entry["id"]: str(entry["file_name"]) for entry in content["images"]}
        labels = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        boxes = [(entry["image_id"], entry["category_id"], entry["bbox"]) for entry in content["annotations"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        form = "images (id, file_name), annotations (image_id, category_id, bbox) and categories (id, name) are needed"
        raise UserError(f"{path}: cannot be read as COCO's JSON ({why}); {form}") from None
    usable = {key for key, name in files.items() if pictures.add(name)}
    for number, (key, category, sides) in enumerate(boxes):
        where = f"{path.name}, annotation {number + 1}"
        if key not in files:
            pictures.boxes += 1
            pictures.bad.append(Bad(where, f"there is no image with the id {key!r}"))
        elif key in usable:
            pictures.add_box(where, files[key], labels.get(category, ""), _corners(sides))


def _corners(sides: Any) -> list[float | None]:
    """The sides of a box of COCO's: left, top, width, height."""
    values = [_number(side) for side in sides] if isinstance(sides, list) and len(sides) == 4 else [None] * 4
    left, top, width, height = values
    if left is None or top is None or width is None or height is None:
        return [None] * 4
    return [left, top, left + width, top + height]


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _read_inside(folder: Path, name: str) -> tuple[bytes, str]:
    """An image's content, or why it cannot be used."""
    if not name:
        return b"", "no image is named"
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        return b"", "the path leaves the folder of the file with the boxes"
    try:
        content = path.read_bytes()
    except OSError as error:
        return b"", f"the image cannot be read ({error.strerror})"
    return content, why_no_image(content)


def _checked(sides: Sequence[float | None], shape: Shape) -> tuple[list[float], str]:
    """A box inside its image, or why it is none."""
    known = [side for side in sides if side is not None]
    if len(known) < len(SIDES):
        return [], "a side of the box is no number"
    left, top, right, bottom = known
    if right <= left or bottom <= top:
        return [], f"the box has no area: {left:g} to {right:g}, {top:g} to {bottom:g}"
    if min(left, top) < -OUTSIDE or right > shape.width + OUTSIDE or bottom > shape.height + OUTSIDE:
        return [], f"the box stands out of its image, which is {shape.width} x {shape.height}"
    return [max(left, 0.0), max(top, 0.0), min(right, float(shape.width)), min(bottom, float(shape.height))], ""


@dataclass(frozen=True)
class Frame:
    """How the pixels of an image of one size lie in one of another, as `layers.DecodeImages` resizes it."""

    scale: np.ndarray
    """(horizontal, vertical): pixels of the resized image for each of its own."""
    start: np.ndarray
    """(left, top): where its corner lies; negative where it is cropped."""
    size: np.ndarray
    """(width, height) of the resized image."""
    own: np.ndarray
    """(width, height) of the image itself."""

    @classmethod
    def of(cls, own: Shape, height: int, width: int, fit: Literal["stretch", "pad", "crop"]) -> Frame:
        """For an image of its own size that becomes (height, width)."""
        size, before = np.array([width, height], float), np.array([own.width, own.height], float)
        if fit == "stretch":
            return cls(size / before, np.zeros(2), size, before)
        ratio = (size / before).min() if fit == "pad" else (size / before).max()
        resized = np.maximum(1, np.round(before * ratio))
        start = np.where(size >= resized, (size - resized) // 2, -((resized - size) // 2))
        return cls(resized / before, start, size, before)

    def resized(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (count, 4) of the image in pixels of the resized one, cut off at its edges."""
        moved = boxes * np.tile(self.scale, 2) + np.tile(self.start, 2)
        return np.clip(moved, 0, np.tile(self.size, 2))

    def original(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (count, 4) of the resized image in pixels of the image, cut off at its edges."""
        moved = (boxes - np.tile(self.start, 2)) / np.tile(self.scale, 2)
        return np.clip(moved, 0, np.tile(self.own, 2))


def true_objects(text: str, indices: Mapping[str, int]) -> Objects:
    """Objects of one image from their JSON."""
    entries = json.loads(text)
    boxes = np.array([entry["box"] for entry in entries], float).reshape(-1, 4)
    classes = np.array([indices[entry["label"]] for entry in entries], int)
    return Objects(boxes, classes, np.ones(len(entries)))


def on_grid(
    objects: Sequence[Objects], frames: Sequence[Frame], classes: int, stride: int, radius: float
) -> dict[str, np.ndarray]:
    """What the cells of a detector's grid are to say, as FCOS has it (Tian et al. 2019) on one level.

    A cell belongs to an object if its centre lies inside the object's box and no further than `radius` cells from the
    middle of the box, horizontally and vertically; the cell that holds the middle always does. Where objects share a
    cell it belongs to the smallest.

    Args:
        objects: Of each image, in its own pixels.
        frames: How each image is resized.
        classes: Number of classes.
        stride: Pixels from one cell to the next.
        radius: In cells.

    Returns:
        `classes`, uint8 (images, rows, columns, classes), and `boxes`, float32 (images, rows, columns, 4) in pixels of
        the resized images, zeros where there is no object.
    """
    columns, rows = (-(-int(side) // stride) for side in frames[0].size)
    kinds = np.zeros((len(objects), rows, columns, classes), np.uint8)
    boxes = np.zeros((len(objects), rows, columns, 4), np.float32)
    xs, ys = (np.arange(columns) + 0.5) * stride, (np.arange(rows) + 0.5) * stride
    for image, (known, frame) in enumerate(zip(objects, frames, strict=True)):
        moved = frame.resized(known.boxes)
        areas = np.prod(moved[:, 2:] - moved[:, :2], axis=1)
        whole = np.prod(frame.scale) * np.prod(known.boxes[:, 2:] - known.boxes[:, :2], axis=1)
        for index in np.argsort(-areas, kind="stable"):
            left, top, right, bottom = box = moved[index]
            if areas[index] < max(LEAST_LEFT * whole[index], 1e-6):
                continue
            x, y = (left + right) / 2, (top + bottom) / 2
            across = (np.abs(xs - x) < radius * stride) & (xs > left) & (xs < right)
            down = (np.abs(ys - y) < radius * stride) & (ys > top) & (ys < bottom)
            across[min(int(x // stride), columns - 1)] = down[min(int(y // stride), rows - 1)] = True
            cells = (image, *np.ix_(down, across))
            kinds[cells] = np.eye(classes, dtype=np.uint8)[known.classes[index]]
            boxes[cells] = box
    return {"classes": kinds, "boxes": boxes}
