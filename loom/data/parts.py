"""Data whose parts are files of their own: their names tell which is which."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from itertools import chain
from pathlib import Path

from loom.config import TrainingConfig
from loom.data.sources import PARTS, Examples
from loom.data.tables import Table, check_bad
from loom.errors import UserError

_WORD = re.compile("[a-z]+")


def read_parts(
    config: TrainingConfig, suffixes: Collection[str], read: Callable[[Path], Table], rows: str
) -> tuple[Examples, list[str]]:
    """Read the file or folder that `--data` names, and say which file is which part if there are several.

    Of a folder all files count whose names hold the word for a part (`news-train.tsv`, `dev.tsv`). With a training file
    come those beside it whose names differ from its own in that word alone (`news-test.tsv`). Any other file is alone.

    Args:
        config: Names the source, and how much of it may be unreadable.
        suffixes: Of the files of a folder, in lower case.
        read: Reads a file; that for training comes first.
        rows: What is counted in a file, in the plural.

    Raises:
        UserError: There is no such file or folder, none to train on, or more of it is bad than `--max-bad` allows.
    """
    import pandas as pd

    path = Path(config.data)
    files = _files_by_part(path, suffixes)
    tables = {part: [read(file) for file in files[part]] for part in PARTS if part in files}
    every = list(chain.from_iterable(tables.values()))
    bad = tuple(entry for table in every for entry in table.bad)
    check_bad(bad, sum(table.total for table in every), config.max_bad, f"{rows} of {path.name or path}")
    frames = {part: pd.concat([table.frame for table in found], ignore_index=True) for part, found in tables.items()}
    test, validation = frames.get("test"), frames.get("validation")
    examples = Examples(frames["train"], test, str(path.resolve()), bad, tuple(every), validation)
    named = ", ".join(f"{part} is {' and '.join(file.name for file in files[part])}" for part in tables)
    return examples, [f"parts of the data are files: {named}"] if len(every) > 1 else []


def _files_by_part(path: Path, suffixes: Collection[str]) -> dict[str, list[Path]]:
    if not path.exists():
        raise UserError(f"--data {path}: no such file or folder (built-in data: --data sample)")
    part, others = _part_of(path)
    if path.is_dir():
        found = [(_part_of(file)[0], file) for file in sorted(path.iterdir()) if file.suffix.lower() in suffixes]
    elif part == "train":
        beside = [(*_part_of(file), file) for file in sorted(path.parent.iterdir()) if file != path]
        found = [("train", path), *((part, file) for part, rest, file in beside if rest == others and part != "train")]
    else:
        found = [("train", path)]
    files = {part: [file for other, file in found if other == part and file.is_file()] for part in PARTS}
    if not files["train"]:
        kinds = ", ".join(sorted(suffixes))
        raise UserError(
            f"--data {path}: no file to train on; name the files in it NAME-train, NAME-dev and NAME-test "
            f"(with one of {kinds}), or give one file"
        )
    return {part: each for part, each in files.items() if each}


def _part_of(path: Path) -> tuple[str, str]:
    """The part that the last such word of a file's name tells, or "", and the name without that word."""
    name = path.name.lower()
    for word in reversed(list(_WORD.finditer(name))):
        for part, words in PARTS.items():
            if word[0] in words:
                return part, f"{name[: word.start()]}*{name[word.end() :]}"
    return "", name
