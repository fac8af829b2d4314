"""Images and sentences about them: from files, and from TFDS."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loom.data.coloured_shapes import CAPTION, scenes
from loom.data.encode import Encoder
from loom.data.images import IMAGE, ImageConfig, preprocess, read_image_columns, without_odd_channels
from loom.data.pairs import PairsConfig, read_files, usable
from loom.data.pipeline import Shared
from loom.data.sources import TFDS, Examples, read_tfds
from loom.data.spec import Field, Spec
from loom.data.tables import check_bad
from loom.runtime import full_precision

if TYPE_CHECKING:
    import pandas as pd

TFDS_CAPTIONS = "captions"
"""Feature of TFDS' `coco_captions` with the captions of an image."""


@dataclass(frozen=True)
class CaptionsConfig(ImageConfig, PairsConfig):
    """Settings of applications that learn from images and sentences about them."""

    source_column: str = ""
    """Column with the images' paths (default: the first; a .tsv file without this has no header line)."""
    target_column: str = ""
    """Column with the captions (default: the second)."""
    scenes: int = 5000
    """Images of coloured shapes in the built-in data, for all parts together."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        self.require("scenes", self.scenes >= 20, "must be at least 20")


def read_captions(config: CaptionsConfig) -> tuple[Examples, list[str]]:
    """Pairs of an image and a sentence about it from what `--data` names, and notes on how they were read.

    Columns are `image` (the file's bytes) and `caption`; an image with several captions has several rows. Sources are
    the built-in sample; a file as `loom.data.pairs.read_pairs` takes it, with paths of images, relative to the file, in
    the first column; and TFDS, where an image may have a list of captions.

    Raises:
        UserError: The source is missing or unreadable, or more of it is than `--max-bad` allows.
    """
    notes: list[str] = []
    if config.data == "sample":
        return Examples(scenes(config.scenes), None, "built-in sample"), notes
    if config.data.startswith(TFDS):
        examples = usable(_read_tfds(config), config, (CAPTION,))
    else:
        examples = _with_images(usable(read_files(config, (IMAGE, CAPTION), notes), config, (CAPTION,)), config)
    return examples if config.channels else without_odd_channels(examples, config), notes


def _read_tfds(config: CaptionsConfig) -> Examples:
    """A row for each caption of each image."""
    wanted = [config.source_column or IMAGE, config.target_column or TFDS_CAPTIONS]
    examples = read_tfds(config, wanted, wanted)

    def pairs(frame: pd.DataFrame | None) -> pd.DataFrame:
        if frame is None:
            return None
        return frame[wanted].set_axis([IMAGE, CAPTION], axis=1).explode(CAPTION, ignore_index=True)

    train, test, validation = map(pairs, (examples.train, examples.test, examples.validation))
    return replace(examples, train=train, test=test, validation=validation)


def _with_images(examples: Examples, config: CaptionsConfig) -> Examples:
    """Contents of the images instead of their paths; without the rows whose image cannot be used."""
    whole, path = examples.whole, Path(config.data)
    folder = path if path.is_dir() else path.parent
    files, bad = read_image_columns(whole[[IMAGE]], folder, examples.where)
    check_bad(bad, len(whole), config.max_bad, f"rows of {config.data}")
    return replace(examples.take(whole.loc[files.index].assign(**{IMAGE: files[IMAGE]})), bad=(*examples.bad, *bad))


def encode_images(parts: dict[str, pd.DataFrame], column: Field, config: CaptionsConfig) -> dict[str, Shared]:
    """Pixels of the images of each part, once for all captions of an image."""
    spec = Spec((column,), ())
    with full_precision():
        encode = Encoder(preprocess(config, spec), spec)
    encoded = {}
    for name, part in parts.items():
        rows, files = part[IMAGE].factorize()
        encoded[name] = Shared(np.asarray(encode(files.to_frame(name=IMAGE))[IMAGE]), rows)
    return encoded
