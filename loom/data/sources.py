"""Where examples come from: built-in samples, TFDS, and a person's own files, all through `--data`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loom.config import TrainingConfig
from loom.data.tables import MISSING, TEXTS, Bad, FileKind, Table, check_bad, read_class_folders, read_table
from loom.errors import UserError
from loom.lazy import load, silenced_stderr

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

TFDS = "tfds:"
PARTS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val", "dev", "development"),
}
"""What each part of a data set is called, in the names of files and in TFDS."""


@dataclass(frozen=True)
class Examples:
    """Raw examples as a table; `test` and `validation` are None where the source has no such part of its own."""

    train: pd.DataFrame
    test: pd.DataFrame | None
    source: str
    bad: tuple[Bad, ...] = ()
    tables: tuple[Table, ...] = ()
    """The files or folders that the rows of `whole` were read from, if they were, in order."""
    validation: pd.DataFrame | None = None
    by_class: bool = False
    """Whether rows are sorted by class, so that the first ones stand for nothing."""
    kept: np.ndarray | None = None
    """Which of the rows that were read are left, where some are not."""

    @property
    def whole(self) -> pd.DataFrame:
        """All rows, those of `test` and then of `validation` at the end, numbered from 0."""
        import pandas as pd

        parts = [part for part in (self.train, self.test, self.validation) if part is not None]
        return pd.concat(parts, ignore_index=True)

    def take(self, rows: pd.DataFrame) -> Examples:
        """Only these rows; they come from `whole`, changed perhaps, but with its index."""
        import numpy as np

        parts, start = [], 0
        for part in (self.train, self.test, self.validation):
            end = start + (0 if part is None else len(part))
            parts.append(None if part is None else rows[(rows.index >= start) & (rows.index < end)])
            start = end
        train, test, validation = parts
        assert train is not None
        left = np.concatenate([part.index for part in parts if part is not None])
        kept = left if self.kept is None else self.kept[left]
        return replace(self, train=train, test=test, validation=validation, kept=kept)

    def where(self, row: int) -> str:
        """Where row number `row` of `whole` (from 0) is from, as in `Bad.where`."""
        row = row if self.kept is None else int(self.kept[row])
        for table in self.tables:
            if row < len(table.frame):
                return table.where(row)
            row -= len(table.frame)
        return f"{self.source}, row {row + 1}"


def read_examples(
    config: TrainingConfig,
    sample: Callable[[], pd.DataFrame | tuple[pd.DataFrame, pd.DataFrame]],
    columns: Sequence[str],
    required: Sequence[str],
    missing: frozenset[str] = MISSING,
) -> Examples:
    """Read what `--data` names.

    Args:
        config: Names the source, and how much of it may be unreadable.
        sample: Makes the built-in data set: one table, or a table for training and one for the test.
        columns: Features of a TFDS data set to read; all that are scalars by default.
        required: Columns that a table needs.
        missing: What stands for a missing value in a table, in lower case.

    Raises:
        UserError: The source is missing, unreadable, or lacks a column.
    """
    if config.data == "sample":
        made = sample()
        train, test = made if isinstance(made, tuple) else (made, None)
        _require(train, required, "the built-in sample")
        return Examples(train, test, "built-in sample")
    if config.data.startswith(TFDS):
        return read_tfds(config, columns, required)
    path = Path(config.data)
    if not path.exists():
        raise UserError(
            f"--data {config.data}: no such file or folder (built-in data: --data sample; TFDS: --data tfds:NAME)"
        )
    if path.is_dir():
        found = read_folder(config, path, TEXTS)
        _require(found.train, required, config.data)
        return found
    table = read_table(path, required, missing)
    check_bad(table.bad, table.total, config.max_bad, f"rows of {path.name}")
    return Examples(table.frame, None, str(path.resolve()), tuple(table.bad), (table,))


def require_values(examples: Examples, config: TrainingConfig, columns: Sequence[str]) -> Examples:
    """Quarantine the rows that lack a value in one of these columns.

    Raises:
        UserError: There are more of them than `--max-bad` allows.
    """
    whole = examples.whole
    lacking = whole[list(columns)].isna() | (whole[list(columns)] == "")
    bad = [
        Bad(examples.where(int(row)), f"no value in column {lacking.columns[cells.argmax()]!r}")
        for row, cells in zip(whole.index, lacking.to_numpy(), strict=True)
        if cells.any()
    ]
    check_bad(bad, len(whole), config.max_bad, f"rows of {config.data}")
    return replace(examples.take(whole[~lacking.any(axis=1)]), bad=(*examples.bad, *bad))


def split_examples(
    examples: Examples, config: TrainingConfig, stratify: Callable[[pd.DataFrame], np.ndarray | None]
) -> dict[str, pd.DataFrame]:
    """Train, validation and test part, picked by the config's seed for splits, none of them sorted by class.

    Args:
        examples: What was read.
        config: Seeds and shares.
        stratify: Gives the class of each row, whose shares are kept equal in all parts; None where there are none.
    """
    train, test, validation = examples.train, examples.test, examples.validation
    seed = config.seed_of_splits
    if examples.by_class:  # no split will mix the parts that the source has of its own
        test, validation = (
            None if part is None else part.sample(frac=1, random_state=seed) for part in (test, validation)
        )
        train = train if validation is None else train.sample(frac=1, random_state=seed)
    if test is None:
        train, test = _split(train, config.test_fraction, seed, stratify(train), "--test-fraction")
    if config.max_train:
        train, rest = _first(train.sort_index(), config, examples.by_class, stratify)
        if validation is None:
            validation = _validation_of_the_rest(rest, config, seed)
    if validation is None:
        train, validation = _split(train, config.validation_fraction, seed, stratify(train), "--validation-fraction")
    if config.train_fraction < 1:
        _, train = _split(train, config.train_fraction, seed, stratify(train), "--train-fraction")
    parts = {"train": train, "validation": validation, "test": test}
    return {name: part.reset_index(drop=True) for name, part in parts.items()}


def _first(
    train: pd.DataFrame, config: TrainingConfig, by_class: bool, stratify: Callable[[pd.DataFrame], np.ndarray | None]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The first `--max-train` examples in the source's order, or of sorted classes the first of each in turn."""
    config.require("max_train", config.max_train < len(train), f"there are {len(train)} examples to train on")
    classes = stratify(train) if by_class else None
    if classes is not None:
        turns = train.groupby(classes).cumcount().to_numpy()
        train = train.iloc[turns.argsort(kind="stable")]
    return train.iloc[: config.max_train], train.iloc[config.max_train :]


def _validation_of_the_rest(rest: pd.DataFrame, config: TrainingConfig, seed: int) -> pd.DataFrame:
    """As many examples as `--validation-fraction` would hold out if they came from the same ones as the training's."""
    count = max(1, round(config.max_train * config.validation_fraction / (1 - config.validation_fraction)))
    if count > len(rest):
        problem = f"{count} validation examples are needed too, and {len(rest)} are left"
        raise UserError(f"--max-train {config.max_train}: {problem}; give fewer, or a smaller --validation-fraction")
    return rest.sample(count, random_state=seed)


def _split(
    frame: pd.DataFrame, share: float, seed: int, classes: np.ndarray | None, name: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    from sklearn.model_selection import train_test_split

    try:
        return tuple(train_test_split(frame, test_size=share, random_state=seed, stratify=classes))
    except ValueError as error:
        raise UserError(f"{name} {share}: {len(frame)} examples cannot be split so: {error}") from None


def read_folder(config: TrainingConfig, folder: Path, kind: FileKind) -> Examples:
    """A folder per class; or folders `train`, `test` and perhaps `validation` that hold a folder per class each."""
    names = ["train", "test", "validation"] if (folder / "train").is_dir() and (folder / "test").is_dir() else []
    parts = [folder / name for name in names if (folder / name).is_dir()] or [folder]
    tables: list[Table] = [read_class_folders(part, kind) for part in parts]
    bad = [entry for table in tables for entry in table.bad]
    check_bad(bad, sum(table.total for table in tables), config.max_bad, f"files in {folder}")
    frames = [table.frame for table in tables] + [None] * (3 - len(tables))
    return Examples(frames[0], frames[1], str(folder.resolve()), tuple(bad), tuple(tables), frames[2], True)


def read_tfds(config: TrainingConfig, columns: Sequence[str], required: Sequence[str]) -> Examples:
    """The features of a TFDS data set; images as their files, class labels as names, sequences of texts as lists.

    Raises:
        UserError: No such data set, or it lacks a part or a column.
    """
    name = config.data.removeprefix(TFDS)
    with silenced_stderr():
        builder = _tfds_builder(name, config)
    _prepare(builder, config)
    splits = sorted(builder.info.splits)
    if "train" not in splits:
        raise UserError(f"--data {config.data}: has no part named train, but {', '.join(splits)}")
    found = {part: [name for name in names if name in splits] for part, names in PARTS.items()}
    parts = {part: names[0] for part, names in found.items() if names}
    frames = {part: _tfds_frame(builder, split, columns) for part, split in parts.items()}
    for frame in frames.values():
        _require(frame, required, config.data)
    source = f"tfds:{builder.info.full_name}"
    return Examples(frames["train"], frames.get("test"), source, validation=frames.get("validation"))


def _tfds_builder(name: str, config: TrainingConfig) -> Any:
    load("tensorflow")
    import tensorflow_datasets as tfds

    where = f"--data {config.data}" + (f" --data-dir {config.data_dir}" if config.data_dir else "")
    if config.data_dir and not Path(config.data_dir).is_dir():
        raise UserError(f"--data-dir {config.data_dir}: no such folder")
    try:
        builder = tfds.builder(name, data_dir=config.data_dir or None)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        close = difflib.get_close_matches(name.partition(":")[0], tfds.list_builders(), n=1)
        hint = f"; did you mean tfds:{close[0]}?" if close else ""
        raise UserError(f"{where}: no such data set{hint} ({str(error).splitlines()[0]})") from None
    return builder


def _prepare(builder: Any, config: TrainingConfig) -> None:
    """Download what is not there yet, with TFDS' own progress on the screen."""
    if not builder.is_prepared():
        where = f"--data {config.data}" + (f" --data-dir {config.data_dir}" if config.data_dir else "")
        try:
            builder.download_and_prepare()
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{where}: the data set is not prepared there and could not be downloaded: {reason}"
            ) from None


def _tfds_frame(builder: Any, part: str, columns: Sequence[str]) -> pd.DataFrame:
    """Scalar features of one part, and asked-for images and sequences of texts; class labels become their names."""
    import numpy as np
    import pandas as pd
    import tensorflow_datasets as tfds

    features = builder.info.features
    images = [name for name in columns if name in features and isinstance(features[name], tfds.features.Image)]
    lists = [name for name in columns if name in features and type(features[name]) is tfds.features.Sequence]
    inside = {name: {"text": True} if "text" in (features[name].feature.shape or ()) else True for name in lists}
    names = [name for name in columns or features if name in features and features[name].shape == ()] + images
    files = {name: tfds.decode.SkipDecoding() for name in images}
    # Nothing beside them is decoded.
    only = tfds.decode.PartialDecoding(dict.fromkeys(names, True) | inside, decoders=files)
    with silenced_stderr():  # TFDS warns of its own deprecated attributes
        dataset = builder.as_dataset(split=part, shuffle_files=False, decoders=only)
    batch = next(iter(dataset.ragged_batch(builder.info.splits[part].num_examples)))
    frame = {}
    for name in names:
        values = batch[name].numpy()
        if name in images:
            frame[name] = values
        elif hasattr(features[name], "names") and features[name].names:
            frame[name] = np.array(features[name].names, object)[values]
        else:
            frame[name] = [value.decode("utf-8", "replace") for value in values] if values.dtype == object else values
    for name in lists:
        texts = batch[name]["text"] if inside[name] is not True else batch[name]
        frame[name] = [[text.decode("utf-8", "replace") for text in example] for example in texts.to_list()]
    return pd.DataFrame(frame)


def _require(frame: pd.DataFrame, required: Sequence[str], source: str) -> None:
    missing = [name for name in required if name not in frame]
    if missing:
        raise UserError(f"{source} has no column {missing[0]!r}: its columns are {', '.join(map(str, frame.columns))}")
