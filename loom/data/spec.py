"""What a model has to know about its data, as plain values that are saved with it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["text", "number", "category", "date", "time", "image", "binary", "classes", "labels"]


@dataclass(frozen=True)
class Field:
    """One named column of the raw examples: an input, or a target.

    Input kinds: `text`, `number`, `category`, `date`, `image`, and `time` of a row among others of a series. Target
    kinds: `binary` (two classes), `classes` (one of several), `labels` (any of several) and `number`. A raw image is
    the content of its file, `bytes`, or in JSON that content as base64 text.
    """

    name: str
    kind: Kind
    vocabulary: tuple[str, ...] = ()
    """Words, categories, class names or labels; their order is their index."""
    statistics: dict[str, float] = field(default_factory=dict)
    """Numbers fitted on the training examples, such as `mean` and `scale`, or `height`, `width` and `channels`."""
    tokenizer: dict[str, Any] = field(default_factory=dict)
    """Of a text that becomes tokens before any graph sees it: the arguments of `loom.data.tokens.Tokenizer`."""

    @property
    def is_string(self) -> bool:
        """Whether raw values are strings, of text or bytes (numbers are float32, missing ones NaN)."""
        return self.kind != "number"


@dataclass(frozen=True)
class Spec:
    """Inputs and targets of an application on one data set."""

    inputs: tuple[Field, ...]
    targets: tuple[Field, ...]

    @property
    def is_series(self) -> bool:
        """Whether rows follow each other in time: they are read together, and have no answer each."""
        return any(column.kind == "time" for column in self.inputs)

    def input(self, name: str) -> Field:
        """Input column of that name."""
        return _named(self.inputs, name)

    def target(self, name: str) -> Field:
        """Target column of that name."""
        return _named(self.targets, name)

    def to_json(self) -> str:
        """Text that `from_json` reads back to an equal spec."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """Read a spec written by `to_json`."""
        values = json.loads(text)
        return cls(_fields(values["inputs"]), _fields(values["targets"]))


def _named(fields: Iterable[Field], name: str) -> Field:
    return next(column for column in fields if column.name == name)


def _fields(values: list[dict[str, Any]]) -> tuple[Field, ...]:
    return tuple(Field(**{**value, "vocabulary": tuple(value["vocabulary"])}) for value in values)
