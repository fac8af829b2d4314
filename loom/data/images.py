"""Images with classes: built in, from TFDS, or in a person's own folders, and what becomes of them before a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from loom.config import TrainingConfig, split_names
from loom.data.encode import Encoder
from loom.data.files import SUFFIXES, Shape, encode_png, image_shape, why_no_image
from loom.data.pipeline import Data, Split
from loom.data.sources import TFDS, Examples, read_folder, read_tfds, split_examples
from loom.data.spec import Field, Spec
from loom.data.tables import Bad, FileKind, check_bad
from loom.data.targets import classes_to_stratify
from loom.errors import UserError
from loom.lazy import keras, layers
from loom.runtime import full_precision

if TYPE_CHECKING:
    import pandas as pd

IMAGE, LABEL = "image", "label"
LARGEST_USUAL = 128
"""Pixels of the longer side where images of different sizes are resized to what is usual among them."""
SIDE_FOR_SIMPLE_METHODS = 16
"""Pixels of a side that methods with a long time for each pixel look at."""
MOST_LISTED = 20
"""Classes that a message names."""
SHARE_OF_MEMORY = 0.4
"""Of the free memory that decoded images may take."""


@dataclass(frozen=True)
class ImageConfig(TrainingConfig):
    """Settings of applications whose input is an image. Augmentation changes training images only."""

    height: int = 0
    """Rows that images are resized to (0: the usual height of the training images)."""
    width: int = 0
    """Columns that images are resized to (0: the usual width of the training images)."""
    channels: Literal[0, 1, 3] = 0
    """1 makes images grey, 3 gives them colours (0: as most files are; files that differ are listed as bad)."""
    fit: Literal["stretch", "pad", "crop"] = "stretch"
    """How an image with another ratio of sides is resized: stretched, padded to fit inside, or cropped to fill."""
    classes: str = ""
    """Use only the images of these classes, separated by commas (all if empty)."""
    train_per_class: int = 0
    """Train on this many images of each class, which the seed picks (0: all)."""
    flip: Literal["none", "horizontal", "vertical", "both"] = "none"
    """Augmentation: mirror half of the images."""
    rotation: float = 0.0
    """Augmentation: rotate by up to this many degrees, either way."""
    translation: float = 0.0
    """Augmentation: shift by up to this share of height and width, either way."""
    zoom: float = 0.0
    """Augmentation: enlarge or shrink by up to this share."""
    crop: int = 0
    """Augmentation: pad by this many black pixels all around, then crop to size at a place drawn for each batch."""
    elastic: float = 0.0
    """Augmentation: move every pixel by about this many, neighbours alike, as if printed on rubber."""
    brightness: float = 0.0
    """Augmentation: add up to this share of the range of values, or take it away."""
    contrast: float = 0.0
    """Augmentation: move values away from the image's mean or towards it by up to this share."""
    saturation: float = 0.0
    """Augmentation: make colours paler or stronger, 0 to 1 (images with colours only)."""
    noise: float = 0.0
    """Augmentation: add Gaussian noise with this share of the range of values as its standard deviation."""
    cutout: float = 0.0
    """Augmentation: erase a rectangle in this share of the images."""
    randaugment: float = 0.0
    """Augmentation: two random operations on each batch, with this magnitude (0 to 1; RandAugment)."""
    mixup: float = 0.0
    """Augmentation: blend pairs of images and their targets; the parameter alpha of the beta distribution."""
    cutmix: float = 0.0
    """Augmentation: paste a part of another image, targets mixed by area; the parameter alpha (0 to 1)."""
    fill: Literal["constant", "nearest", "reflect", "wrap"] = "constant"
    """What comes in from beyond the edges when images are rotated, shifted or shrunk; `constant` is black."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        for name in ("height", "width", "train_per_class", "crop", "elastic", "noise", "mixup"):
            self.require(name, getattr(self, name) >= 0, "must not be negative")
        for name in ("translation", "brightness", "contrast", "saturation", "cutout", "randaugment", "cutmix"):
            self.require(name, 0 <= getattr(self, name) <= 1, "must lie between 0 and 1")
        self.require("zoom", 0 <= self.zoom < 1, "must be at least 0 and below 1")
        self.require("rotation", 0 <= self.rotation <= 180, "must lie between 0 and 180 degrees")
        self.require("saturation", not self.saturation or self.channels != 1, "needs images with colours")
        self.require("cutmix", not self.cutmix or not self.mixup, "give this or --mixup")


def digits() -> pd.DataFrame:
    """The 1,797 handwritten digits of scikit-learn, 8 x 8 pixels each, as PNG files (columns `image` and `label`)."""
    import pandas as pd
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)
    files = pd.Series([encode_png(image) for image in pixels], dtype=object)
    return pd.DataFrame({IMAGE: files, LABEL: data.target.astype(str).astype(object)})


def _read_image(path: Path) -> tuple[bytes | None, str]:
    content = path.read_bytes()
    why = why_no_image(content)
    return (None, why) if why else (content, "")


IMAGES = FileKind("image", "image", SUFFIXES, _read_image, other_types_are_bad=True)
"""Images that can be decoded to their end."""


def read_images(config: ImageConfig, sample: Callable[[], pd.DataFrame] = digits) -> Examples:
    """Read the images that `--data` names: columns `image` (the file's bytes) and `label`.

    Sources are the built-in sample, `tfds:NAME`, and a folder with a sub-folder of images per class, or with such
    folders in its parts `train`, `test` and perhaps `validation`. Files that are empty, damaged, cut off or of another
    type, and those with another number of channels than most (unless `--channels` says what to make of them), are
    quarantined.

    Raises:
        UserError: The source is missing or unreadable, or more of it is bad than `--max-bad` allows.
    """
    if config.data == "sample":
        return Examples(sample(), None, "built-in sample")
    if config.data.startswith(TFDS):
        return read_tfds(config, (IMAGE, LABEL), (IMAGE, LABEL))
    path = Path(config.data)
    if not path.is_dir():
        problem = "is no folder with images of each class in a sub-folder" if path.exists() else "no such folder"
        raise UserError(f"--data {config.data}: {problem} (built-in data: --data sample; TFDS: --data tfds:NAME)")
    examples = read_folder(config, path, IMAGES)
    return examples if config.channels else without_odd_channels(examples, config)


def without_odd_channels(examples: Examples, config: ImageConfig) -> Examples:
    """Quarantine the images with fewer or more channels than most.

    Raises:
        UserError: There are more of them than `--max-bad` allows.
    """
    whole = examples.whole
    channels = np.array([shape.channels for shape in _shapes(whole[IMAGE])])
    usual = Counter(channels.tolist()).most_common(1)[0][0]
    names = {1: "1 channel (grey)", 3: "3 channels (colours)"}
    why = f"it has {names[4 - usual]}, most images have {usual}; --channels {usual} converts it"
    bad = [Bad(examples.where(int(row)), why) for row in np.flatnonzero(channels != usual)]
    found = [*examples.bad, *bad]
    check_bad(found, len(whole) + len(examples.bad), config.max_bad, f"files in {config.data}")
    return replace(examples.take(whole[channels == usual]), bad=tuple(found))


def _shapes(files: Sequence[bytes]) -> list[Shape]:
    """Sizes of images that are known to be good."""
    with ThreadPoolExecutor() as pool:
        return [shape for shape in pool.map(image_shape, files) if shape is not None]


def usual_shape(shapes: Sequence[Shape]) -> Shape:
    """The size that more than half of the images have; else the medians, the longer one 128 at most."""
    channels = Counter(shape.channels for shape in shapes).most_common(1)[0][0]
    (height, width), count = Counter((shape.height, shape.width) for shape in shapes).most_common(1)[0]
    if 2 * count <= len(shapes):
        height, width = (int(np.median([shape[side] for shape in shapes])) for side in (0, 1))
        shrink = min(1.0, LARGEST_USUAL / max(height, width))
        height, width = max(1, round(shrink * height)), max(1, round(shrink * width))
    return Shape(height, width, channels)


def image_field(name: str, files: Sequence[bytes], config: ImageConfig) -> tuple[Field, list[str]]:
    """What preprocessing has to know about a column of images, from the training part, and notes on what was decided.

    Args:
        name: Of the column.
        files: Contents of the files.
        config: Sizes that are asked for; 0 stands for what is usual.
    """
    looked_at = list(files)[:: max(1, len(files) // 1000)]
    shapes = _shapes(looked_at)
    usual = usual_shape(shapes)
    height, width = config.height or usual.height, config.width or usual.width
    channels = config.channels or usual.channels
    notes = []
    if len(set(shapes)) > 1 and not (config.height and config.width):
        notes.append(f"images of different sizes become {height} x {width}; --height and --width change it")
    return Field(name, "image", statistics={"height": height, "width": width, "channels": channels}), notes


def shape_of(column: Field) -> tuple[int, int, int]:
    """Height, width and channels of an image column's pixels."""
    return (int(column.statistics["height"]), int(column.statistics["width"]), int(column.statistics["channels"]))


def load_classes(config: ImageConfig, sample: Callable[[], pd.DataFrame] = digits, one_hot: bool = False) -> Data:
    """Images and their classes in three parts.

    Args:
        config: Names the source.
        sample: Makes the built-in data set.
        one_hot: Whether targets are zeros and a one, float32 (examples, classes), as MixUp, label smoothing and squared
            errors need them; otherwise class indices, int32 (examples, 1).

    Raises:
        UserError: The source cannot be used, there are fewer than two classes, or the images do not fit into memory.
    """
    examples, parts = split_images(config, sample)
    column, notes = image_field(IMAGE, parts["train"][IMAGE], config)
    check_memory(column, sum(map(len, parts.values())))
    target = class_field(LABEL, examples.whole[LABEL])
    index = {label: position for position, label in enumerate(target.vocabulary)}
    splits = {}
    for name, part in parts.items():
        indices = part[LABEL].map(index).to_numpy(np.int32)
        wanted = np.eye(len(index), dtype=np.float32)[indices] if one_hot else indices[:, None]
        splits[name] = Split(part[[IMAGE]], {}, {LABEL: wanted})
    return Data(**splits, spec=Spec((column,), (target,)), source=examples.source, bad=examples.bad, notes=tuple(notes))


def load_pixels(config: ImageConfig, sample: Callable[[], pd.DataFrame] = digits) -> Data:
    """Images as what is to be made: decoded already, as the input `image` and, the same arrays, as the target `image`.

    Classes stay in the raw column `label`, for figures and scores.

    Raises:
        UserError: The source cannot be used, or the images do not fit into memory.
    """
    examples, parts = split_images(config, sample, classes_to_stratify)
    column, notes = image_field(IMAGE, parts["train"][IMAGE], config)
    check_memory(column, sum(map(len, parts.values())))
    spec = Spec((column,), (column,))
    with full_precision():
        encode = Encoder(preprocess(config, spec), spec)
    splits = {}
    for name, part in parts.items():
        pixels = np.asarray(encode(part)[IMAGE])
        splits[name] = Split(part, {IMAGE: pixels}, {IMAGE: pixels})
    return Data(**splits, spec=spec, source=examples.source, bad=examples.bad, notes=tuple(notes))


def split_images(
    config: ImageConfig,
    sample: Callable[[], pd.DataFrame] = digits,
    stratify: Callable[[pd.Series], np.ndarray] = np.asarray,
) -> tuple[Examples, dict[str, pd.DataFrame]]:
    """The images of `--classes`, whole and in three parts, of the training part those of `--train-per-class`.

    Args:
        config: Names the source.
        sample: Makes the built-in data set.
        stratify: Turns labels into the classes whose shares are kept equal in all parts; one for each by default.

    Raises:
        UserError: The source cannot be used, or has no such classes.
    """
    examples = _only_classes(read_images(config, sample), config)
    parts = split_examples(examples, config, lambda part: stratify(part[LABEL]))
    if config.train_per_class:
        parts["train"] = _some_of_each_class(parts["train"], config)
    return examples, parts


def _only_classes(examples: Examples, config: ImageConfig) -> Examples:
    """The examples of `--classes`.

    Raises:
        UserError: One of them does not exist.
    """
    wanted, whole = split_names(config.classes), examples.whole
    require_classes(config, "classes", wanted, sorted(set(whole[LABEL])))
    return examples.take(whole[whole[LABEL].isin(wanted)]) if wanted else examples


def require_classes(config: ImageConfig, field: str, wanted: Iterable[str], known: Sequence[str]) -> None:
    """Refuse a field of the config that names a class which does not exist.

    Raises:
        UserError: It does, with the classes that there are.
    """
    listed = ", ".join(known[:MOST_LISTED]) + (", ..." if len(known) > MOST_LISTED else "")
    for name in wanted:
        config.require(field, name in known, f"there is no class {name!r} among {listed}")


def _some_of_each_class(part: pd.DataFrame, config: ImageConfig) -> pd.DataFrame:
    """As many as `--train-per-class` names, whatever picked the part and its order."""
    fewest, label = part[LABEL].value_counts().min(), part[LABEL].value_counts().idxmin()
    problem = f"of class {label!r} there are {fewest} images to train on"
    config.require("train_per_class", config.train_per_class <= fewest, problem)
    shuffled = part.sample(frac=1, random_state=config.seed_of_splits)
    return shuffled.groupby(LABEL).head(config.train_per_class).reset_index(drop=True)


def class_field(name: str, labels: pd.Series) -> Field:
    """A target with one class for each different label, numbers in their own order.

    Raises:
        UserError: There are fewer than two.
    """
    names = class_names(labels)
    if len(names) < 2:
        raise UserError(f"all images are of the class {names[0]!r}; at least 2 classes are needed")
    return Field(name, "classes", names)


def class_names(labels: Iterable[object]) -> tuple[str, ...]:
    """The different labels in order, numbers in their own and before words."""

    def place(label: str) -> tuple[bool, int, str]:
        return (not label.isdecimal(), int(label) if label.isdecimal() else 0, label)

    return tuple(sorted({str(label) for label in labels}, key=place))


def check_memory(column: Field, count: int) -> None:
    """Refuse images that would not fit into memory once they are decoded.

    Raises:
        UserError: They do not, with the size that they need.
    """
    import psutil

    height, width, channels = shape_of(column)
    needed, free = count * height * width * channels, psutil.virtual_memory().available
    if needed > SHARE_OF_MEMORY * free:
        sizes = f"{count:,} images of {height} x {width} x {channels} need {needed / 2**30:.1f} GiB"
        raise UserError(f"{sizes}, {free / 2**30:.1f} GiB are free; give a smaller --height and --width")


def image_columns(frame: pd.DataFrame) -> list[str]:
    """The columns of a table whose values are all paths of image files, by their endings, or contents of files."""

    def is_image(value: object) -> bool:
        return isinstance(value, bytes) or Path(str(value)).suffix.lower() in SUFFIXES

    return [name for name in frame if len(known := frame[name].dropna()) and known.map(is_image).all()]


def read_image_columns(
    frame: pd.DataFrame, folder: Path, where: Callable[[int], str]
) -> tuple[pd.DataFrame, list[Bad]]:
    """Contents of files instead of their paths, in the rows whose files are all good images; and the other rows.

    Args:
        frame: Paths, or contents already; an empty cell stays so.
        folder: What relative paths start from.
        where: Tells where a row is from, as `Examples.where`.
    """
    import pandas as pd

    paths = sorted({value for name in frame for value in frame[name] if isinstance(value, str)})
    with ThreadPoolExecutor() as pool:
        read = dict(zip(paths, pool.map(lambda path: _content(folder / path), paths), strict=True))
    files, bad = {}, dict[int, Bad]()
    for name in frame:
        pairs = [read[value] if isinstance(value, str) else (value, "") for value in frame[name]]
        files[name] = pd.Series([content for content, _ in pairs], frame.index, object)
        for row, value, (_, why) in zip(frame.index, frame[name], pairs, strict=True):
            if why:
                bad.setdefault(row, Bad(where(row), f"column {name!r}, {value}: {why}"))
    return pd.DataFrame(files).drop(index=list(bad)), list(bad.values())


def _content(path: Path) -> tuple[bytes | None, str]:
    try:
        return _read_image(path)
    except OSError as error:
        return None, f"the file cannot be read ({error.strerror})"


def preprocess(config: ImageConfig, spec: Spec) -> keras.Model:
    """Files of images to pixels, uint8 (batch, height, width, channels); `scale` is the model's first layer then."""
    column = spec.input(IMAGE)
    files = keras.Input((1,), dtype="string", name=column.name)
    return keras.Model({column.name: files}, {column.name: decode(files, column, config)})


def decode(files: keras.KerasTensor, column: Field, config: ImageConfig) -> keras.KerasTensor:
    """Files of one column of images to pixels."""
    return layers.DecodeImages(*shape_of(column), fit=config.fit)(files)


def flat_pixels(
    config: ImageConfig, spec: Spec, frame: pd.DataFrame, side: int = SIDE_FOR_SIMPLE_METHODS
) -> np.ndarray:
    """Pixels from 0 to 1 as simple methods take them: all images of an example in one row, `side` x `side` at most."""

    def small(column: Field) -> Field:
        sides = {name: min(column.statistics[name], side) for name in ("height", "width")}
        return replace(column, statistics={**column.statistics, **sides})

    images = Spec(tuple(small(column) for column in spec.inputs if column.kind == "image"), ())
    files = {column.name: keras.Input((1,), dtype="string", name=column.name) for column in images.inputs}
    decoded = {column.name: decode(files[column.name], column, config) for column in images.inputs}
    pixels = Encoder(keras.Model(files, decoded), images)(frame)
    return np.concatenate([np.asarray(values).reshape(len(frame), -1) for values in pixels.values()], axis=1) / 255


def image_input(column: Field) -> keras.KerasTensor:
    """The core model's input for a column of images: pixels from 0 to 255."""
    return keras.Input(shape_of(column), dtype="uint8", name=column.name)


def scale(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """Pixels from 0 to 255 as numbers from 0 to 1."""
    return keras.layers.Rescaling(1 / 255)(pixels)
