"""Pairs of texts: a sentence and its translation, a question and its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loom.config import TrainingConfig
from loom.data.parts import read_parts
from loom.data.sources import TFDS, Examples, read_tfds, split_examples
from loom.data.tables import Bad, Table, check_bad, read_fields, read_table
from loom.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

SOURCE, TARGET = "source", "target"
LINES = (".tsv", ".tab", ".txt")
"""Suffixes of files that hold a pair in each line and no header."""
MOST_CHARACTERS = 2000
"""Longer texts are no sentences, but files that are broken."""
SUFFIXES = frozenset({*LINES, ".csv"})


@dataclass(frozen=True)
class PairsConfig(TrainingConfig):
    """Settings of applications that learn from pairs of texts."""

    source_column: str = ""
    """Column with the texts to read (default: the first; a .tsv file without this has no header line)."""
    target_column: str = ""
    """Column with the texts to write (default: the second)."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        both = bool(self.source_column) == bool(self.target_column)
        self.require("source_column", both, f"give --target-column {self.target_column or 'NAME'} too, or neither")


def read_pairs(config: PairsConfig, sample: Callable[[], pd.DataFrame]) -> tuple[Examples, list[str]]:
    """Pairs of texts from what `--data` names, in columns `source` and `target`, and notes on how they were read.

    A file without a header line holds a pair in each line, with a tab between. Parts may be files of their own, see
    `loom.data.parts.read_parts`.

    Raises:
        UserError: The source is missing or unreadable, or more of it is than `--max-bad` allows.
    """
    notes: list[str] = []
    if config.data == "sample":
        examples = Examples(sample(), None, "built-in sample")
    elif config.data.startswith(TFDS):
        wanted = [name for name in (config.source_column, config.target_column) if name]
        examples = _two_columns(read_tfds(config, wanted, wanted), (SOURCE, TARGET), config, notes)
    else:
        examples = read_files(config, (SOURCE, TARGET), notes)
    return usable(examples, config, (SOURCE, TARGET)), notes


def split_pairs(examples: Examples, config: TrainingConfig, source: str = SOURCE) -> dict[str, pd.DataFrame]:
    """Train, validation and test part; all pairs with the same value in the column `source` are in one of them."""
    firsts = replace(examples, train=examples.train.drop_duplicates(source))
    parts = split_examples(firsts, config, lambda part: None)
    if len(firsts.train) == len(examples.train):
        return parts
    # Pairs of a source that several parts of the data have themselves stay where they are.
    others = examples.train[examples.train.duplicated(source)]
    own = {"validation": examples.validation, "test": examples.test}
    whole = {
        name: part if own.get(name) is not None else _concatenated(part, others[others[source].isin(part[source])])
        for name, part in parts.items()
    }
    return {**whole, "train": whole["train"].head(config.max_train or len(whole["train"]))}


def _concatenated(*frames: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    return pd.concat(frames, ignore_index=True)


def read_files(config: PairsConfig, names: tuple[str, str], notes: list[str]) -> Examples:
    """The two columns of the file or folder that `--data` names, under these names.

    Raises:
        UserError: A file is missing or unreadable, or more of it is than `--max-bad` allows.
    """
    columns = [name for name in (config.source_column, config.target_column) if name]

    def read(path: Path) -> Table:
        lines = path.suffix.lower() in LINES and not config.source_column
        table = read_fields(path, columns or [SOURCE, TARGET]) if lines else read_table(path, columns, frozenset({""}))
        columns.extend(list(table.frame)[len(columns) : 2])  # which further files have to have
        return table

    examples, parts = read_parts(config, SUFFIXES, read, "rows")
    notes += parts
    return _two_columns(examples, names, config, notes)


def _two_columns(examples: Examples, names: tuple[str, str], config: PairsConfig, notes: list[str]) -> Examples:
    """The same examples with two columns alone, under new names."""
    columns = list(map(str, examples.train.columns))
    chosen = [config.source_column, config.target_column] if config.source_column else columns[:2]
    if len(chosen) < 2:
        raise UserError(f"--data {config.data}: has one column only, {columns[0]!r}; pairs need two")
    if chosen != [SOURCE, TARGET] and not config.source_column:
        notes.append(
            f"column {chosen[0]!r} is the {names[0]} and {chosen[1]!r} the {names[1]}; "
            f"--source-column and --target-column choose others"
        )

    def renamed(frame: pd.DataFrame | None) -> pd.DataFrame:
        return None if frame is None else frame[chosen].set_axis(list(names), axis=1)

    return replace(
        examples, train=renamed(examples.train), test=renamed(examples.test), validation=renamed(examples.validation)
    )


def usable(examples: Examples, config: TrainingConfig, texts: Sequence[str]) -> Examples:
    """Quarantine the rows that lack one of these texts, or hold one of thousands of characters.

    Raises:
        UserError: There are more of them than `--max-bad` allows.
    """
    whole = examples.whole
    whys = [_why_bad(dict(zip(texts, row, strict=True))) for row in zip(*(whole[name] for name in texts), strict=True)]
    bad = [Bad(examples.where(row), why) for row, why in enumerate(whys) if why]
    every = (*examples.bad, *bad)
    check_bad(every, len(whole) + len(examples.bad), config.max_bad, f"rows of {config.data}")
    kept = whole[[not why for why in whys]]
    if not len(kept):
        raise UserError(f"--data {config.data}: no row can be used; {every[0].where}: {every[0].why}")
    return replace(examples.take(kept), bad=every)


def _why_bad(texts: Mapping[str, str | None]) -> str:
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            return f"no {name} text"
        if len(text) > MOST_CHARACTERS:
            return f"the {name} text has {len(text):,} characters, more than {MOST_CHARACTERS:,}"
    return ""
