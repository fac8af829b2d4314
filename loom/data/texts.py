"""One long text: a file, a folder of files, or what a TFDS data set holds."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loom.config import TrainingConfig
from loom.data.sources import TFDS, read_tfds
from loom.data.tables import Bad, check_bad, read_lines
from loom.data.tokens import LONGEST
from loom.errors import UserError

PART = "\n"
"""What stands between the texts of several files or examples."""


@dataclass(frozen=True)
class Text:
    """A text, and where it came from."""

    text: str
    source: str
    bad: tuple[Bad, ...] = ()
    notes: tuple[str, ...] = ()


def read_text(config: TrainingConfig, sample: Callable[[], str]) -> Text:
    """The text that `--data` names: of a folder all files `*.txt`, of a TFDS data set all texts of its training part.

    Lines that are not UTF-8 or hold a NUL byte are left out and listed.

    Raises:
        UserError: The source is missing, unreadable or empty, or more of it is unreadable than `--max-bad` allows.
    """
    if config.data == "sample":
        return Text(sample(), "built-in sample")
    if config.data.startswith(TFDS):
        examples = read_tfds(config, (), ())
        texts = [name for name in examples.train.columns if isinstance(examples.train[name].iloc[0], str)]
        if not texts:
            raise UserError(f"--data {config.data}: has no text among its features {', '.join(examples.train.columns)}")
        note = f"the text is that of the feature {texts[0]!r}"
        return Text(PART.join(examples.train[texts[0]]) + "\n", examples.source, notes=(note,))
    path = Path(config.data)
    if not path.exists():
        raise UserError(f"--data {config.data}: no such file or folder (built-in text: --data sample)")
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"--data {config.data}: the folder holds no file *.txt")
    found = [read_lines(file, "text") for file in files]
    bad = tuple(
        Bad(f"{file.name}:{number + 1}", why)
        for file, (_, spoiled) in zip(files, found, strict=True)
        for number, why in spoiled.items()
    )
    check_bad(bad, sum(len(lines) for lines, _ in found), config.max_bad, f"lines of {path.name}")
    kept = (
        "".join(line for number, line in enumerate(lines) if number not in spoiled).replace("\r\n", "\n")
        for lines, spoiled in found
    )
    return Text(PART.join(kept), str(path.resolve()), bad)


def in_order(text: str, config: TrainingConfig) -> dict[str, str]:
    """Train, validation and test part: three pieces in the order of the text, divided where a line ends."""
    ends = [1 - config.test_fraction, 1]
    ends = [ends[0] * (1 - config.validation_fraction), *ends]
    places = [0, *(_line_start(text, int(end * len(text))) for end in ends[:-1]), len(text)]
    train, validation, test = (text[start:stop] for start, stop in itertools.pairwise(places))
    return {"train": train[: int(config.train_fraction * len(train))], "validation": validation, "test": test}


def _line_start(text: str, place: int) -> int:
    """Where the line of a character begins; in one that is too long for that, a word near it."""
    nearest = max(0, place - LONGEST)
    ends = (text.rfind(sign, nearest, place) for sign in ("\n", " "))
    return next((end + 1 for end in ends if end >= 0), place)
