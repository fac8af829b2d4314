"""Files of images: their bytes, as base64 text in JSON, and why some are no images."""

from __future__ import annotations

import base64
import binascii
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from loom.data.spec import Spec
from loom.errors import UserError
from loom.lazy import tf

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})
_PNG_AS_BASE64 = base64.b64encode(b"\x89PNG\r\n\x1a\n")[:10].decode("ascii")
_SIGNATURES = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP", b"GIF8": "GIF", b"RIFF": "WebP"}


class Shape(NamedTuple):
    """Size of an image."""

    height: int
    width: int
    channels: int
    """1 (grey) or 3 (colours); transparency is not counted."""


def encode_png(pixels: np.ndarray) -> bytes:
    """The PNG file of an image (height, width, channels) or (height, width), uint8."""
    return bytes(tf.io.encode_png(pixels if pixels.ndim == 3 else pixels[..., None]).numpy())


def as_bytes(column: str, value: Any) -> bytes:
    """A raw image: `bytes`, or their base64 text.

    Raises:
        UserError: Neither.
    """
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(str(value).encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        shown = str(value) if len(str(value)) <= 40 else f"{str(value)[:37]}..."
        raise UserError(
            f"input column {column!r} takes images, as bytes or base64 text, not {shown!r}; "
            "on the command line name a file that exists"
        ) from None


def as_base64(content: bytes) -> str:
    """An image for JSON."""
    return base64.b64encode(content).decode("ascii")


def with_files(row: dict[str, Any], spec: Spec) -> dict[str, Any]:
    """A row whose images are named by paths, with the files' contents as base64 text instead.

    What is no path of a file stays as it is: it may be base64 text already.

    Raises:
        UserError: A file that cannot be read, or is empty.
    """
    read = dict(row)
    for column in spec.inputs:
        value = row.get(column.name)
        if column.kind == "image" and isinstance(value, str) and os.path.isfile(value):
            content = read_file(Path(value))
            if not content:
                raise UserError(f"{value}: the file is empty")
            read[column.name] = as_base64(content)
    return read


def located(row: dict[str, Any], spec: Spec, folder: Path) -> dict[str, Any]:
    """A row of a table that lies in `folder`, from which the relative paths of its images start."""
    images = {column.name for column in spec.inputs if column.kind == "image"}
    return {
        name: str(folder / value) if name in images and isinstance(value, str) else value for name, value in row.items()
    }


def read_file(path: Path) -> bytes:
    """A file's content.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def is_png(value: Any) -> bool:
    """Whether a value of an answer is a PNG file as base64 text."""
    return isinstance(value, str) and value.startswith(_PNG_AS_BASE64)


def largest_pixel_difference(first: str, second: str) -> float:
    """Of two PNG files as base64 text, 0 to 1 or infinite; 0 for one of the 255 steps, which rounding may make."""
    images = [tf.io.decode_png(base64.b64decode(text)).numpy().astype(float) for text in (first, second)]
    if images[0].shape != images[1].shape:
        return math.inf
    return max(float(np.abs(images[0] - images[1]).max()) - 1, 0.0) / 255


def decode_pixels(content: bytes, channels: int) -> np.ndarray:
    """Pixels (height, width, channels) of an image, uint8, in its own size, as `layers.DecodeImages` decodes them.

    Args:
        content: Of a file that can be decoded.
        channels: 1 (grey) or 3 (colours).
    """
    pixels = tf.io.decode_image(content, expand_animations=False)
    colored = pixels.shape[-1] >= 3
    if channels == 1:
        return (tf.image.rgb_to_grayscale(pixels[..., :3]) if colored else pixels[..., :1]).numpy()
    return (pixels[..., :3] if colored else tf.repeat(pixels[..., :1], 3, axis=-1)).numpy()


def image_shape(content: bytes) -> Shape | None:
    """Size of an image that can be decoded to its end; None for any other file."""
    try:
        height, width, channels = tf.io.decode_image(content, expand_animations=False).shape
    except tf.errors.InvalidArgumentError:
        return None
    return Shape(height, width, 3 if channels >= 3 else 1)


def why_no_image(content: bytes) -> str:
    """Why a file cannot be used as an image; "" if it can."""
    if not content:
        return "the file is empty"
    kind = next((name for start, name in _SIGNATURES.items() if content.startswith(start)), "")
    if not kind:
        return "it is no PNG, JPEG, BMP, GIF or WebP file"
    return "" if image_shape(content) else f"the {kind} file is damaged or cut off: it cannot be decoded"
