"""Input columns of a table: what each one holds, which are used, and how raw values become numbers."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from loom.config import flag
from loom.data.spec import Field, Kind, Spec
from loom.data.tables import MISSING, Bad, column_kind
from loom.data.text import PADDING, UNKNOWN, build_vocabulary
from loom.errors import UserError
from loom.lazy import keras, layers

if TYPE_CHECKING:
    import pandas as pd

INPUT_KINDS = ("number", "category", "date", "text", "ignore")
FEWEST_ROWS = 20
"""Below, a column without repeated values is not taken for an identifier."""
NEARLY_ALL = 0.9
"""Share of numbers from which a column that is no number column is worth a note."""
EXTREME_SKEW = 2.0
"""Skewness from which numbers are compressed before they are scaled (an exponential distribution has 2)."""
LARGEST_VOCABULARY = 20_000
NEVER_SEEN = "(none)"
"""The vocabulary of a column without values in the training part: Keras' tables cannot be empty."""
LOWEST = -1e30
"""Stands for a missing value, since some of scikit-learn's trees do not take NaN."""


def parse_kinds(field: str, text: str, allowed: Collection[str]) -> dict[str, Any]:
    """Read `Pclass=category,Name=ignore`, the value of the flag of a config field.

    Raises:
        UserError: A part that is no `column=kind`, or an unknown kind.
    """
    kinds = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, kind = map(str.strip, part.rpartition("="))
        if not equals or not name or kind not in allowed:
            raise UserError(f"{flag(field)} {part}: write COLUMN=KIND, where KIND is one of {', '.join(allowed)}")
        kinds[name] = kind
    return kinds


def parse_numbers(field: str, text: str) -> dict[str, float]:
    """Read `price=2,rating=0.5`, the value of the flag of a config field: positive numbers by column.

    Raises:
        UserError: A part that is none.
    """
    numbers = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, number = map(str.strip, part.rpartition("="))
        if not equals or not name or column_kind([number]) != "number" or float(number) <= 0:
            raise UserError(f"{flag(field)} {part}: write COLUMN=NUMBER, a number above 0")
        numbers[name] = float(number)
    return numbers


def require_columns(field: str, names: Iterable[str], columns: Sequence[str]) -> None:
    """Refuse names that are no columns, naming the flag.

    Raises:
        UserError: The first name that is missing, with the closest there is.
    """
    for name in names:
        if name not in columns:
            by_lower = {column.lower(): column for column in columns}
            close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
            hint = f"; did you mean {by_lower[close[0]]!r}?" if close else ""
            raise UserError(f"{flag(field)} {name}: there is no such column among {', '.join(columns)}{hint}")


def plain(values: pd.Series) -> pd.Series:
    """Values as text, white space around it removed, whole numbers without `.0`; None where missing."""
    return values.astype(object).map(_plain_text).astype(object)


def _plain_text(value: object) -> str | None:
    if isinstance(value, float | np.floating) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return None if text.lower() in MISSING or text in ("NaT", "<NA>") else text


def choose_inputs(frame: pd.DataFrame, overrides: Mapping[str, Any]) -> tuple[dict[str, Kind], list[str]]:
    """The kind of every column that becomes an input, and a note on what may surprise.

    Ignored unless `overrides` names them: columns without any value or with one only, and identifiers, which are whole
    numbers that rise from row to row, or single words that are all different.

    Raises:
        UserError: An override for no column, a name that Keras cannot take, or no input at all.
    """
    require_columns("columns", overrides, list(frame))
    kinds: dict[str, Kind] = {}
    notes = []
    for name in frame:
        kind = overrides.get(name)
        if kind is None:
            text = plain(frame[name])
            strays = _strays_among_numbers(text)
            if not strays and (why := _why_useless(text)):
                notes.append(f"column {name!r} is ignored: {why}; --columns {name}=KIND uses it")
                continue
            kind = column_kind(text)
            if strays:
                notes.append(
                    f"column {name!r} is taken as {kind} because of values such as {strays[0]!r}; "
                    f"--columns {name}=number takes it as numbers and lists those rows as bad"
                )
        if kind != "ignore":
            if "/" in name:
                raise UserError(f"--columns {name}=ignore: leave this column out or rename it: a name cannot hold '/'")
            kinds[name] = kind
    if not kinds:
        raise UserError(f"--columns: no input is left of {', '.join(frame) or 'no columns'}; {'; '.join(notes)}")
    return kinds, notes


def _why_useless(text: pd.Series) -> str:
    known = text.dropna()
    if known.empty:
        return "it has no values"
    if known.nunique() == 1 and len(known) == len(text):
        return f"all values are {known.iloc[0]!r}"
    if len(text) < FEWEST_ROWS or known.nunique() < len(text):
        return ""
    kind = column_kind(known)
    if kind == "category" and not known.str.contains(r"\s").any():
        return "no value occurs twice, as in an identifier"
    if kind == "number" and (steps := np.diff(known.astype(float))).min() > 0 and (steps % 1 == 0).all():
        return "it counts the rows, as an identifier does"
    return ""


def _strays_among_numbers(text: pd.Series) -> list[str]:
    """The values that are no numbers, where nearly all are."""
    import pandas as pd

    known = text.dropna()
    strays = known[pd.to_numeric(known, errors="coerce").isna()]
    return strays.tolist() if len(strays) <= (1 - NEARLY_ALL) * len(known) else []


def tidy(
    frame: pd.DataFrame, inputs: Mapping[str, Kind], targets: Mapping[str, Kind], where: Callable[[int], str]
) -> tuple[pd.DataFrame, list[Bad], list[Bad]]:
    """Only the columns that matter, as the encoder takes them, and only the rows that can be used.

    Returns:
        The table, whose index tells the rows' places in `frame`; the rows with a value that its column's kind does not
        allow; and the rows without a target.
    """
    import pandas as pd

    why_bad, columns = pd.Series("", frame.index), {}
    for name, kind in {**inputs, **targets}.items():
        columns[name], wrong = _typed(frame[name], kind)
        for row in np.flatnonzero(wrong):
            why_bad.iloc[row] = f"column {name!r} holds {frame[name].iloc[row]!r}, which is no {kind}"
    table = pd.DataFrame(columns)
    unanswered = table[list(targets)].isna() & (why_bad == "").to_numpy()[:, None]
    bad = [Bad(where(row), why) for row, why in enumerate(why_bad) if why]
    dropped = [
        Bad(where(row), f"{unanswered.columns[cells.argmax()]!r}, a target, is missing")
        for row, cells in enumerate(unanswered.to_numpy())
        if cells.any()
    ]
    return table[(why_bad == "").to_numpy() & ~unanswered.any(axis=1).to_numpy()], bad, dropped


def _typed(values: pd.Series, kind: Kind) -> tuple[pd.Series, pd.Series]:
    """Floats with NaN or strings with None, and which values are wrong."""
    import pandas as pd

    text = plain(values)
    if kind == "number":
        numbers = pd.to_numeric(text, errors="coerce").astype(float)
        return numbers, text.notna() & ~np.isfinite(numbers.astype(np.float32))
    if kind == "date":
        return text, text.notna() & (text.map(lambda value: column_kind([value])) != "date")
    return text, pd.Series(False, text.index)


def fit_input(name: str, values: pd.Series, kind: Kind, min_count: int) -> Field:
    """What preprocessing has to know about a column, from its values in the training part.

    Args:
        name: Of the column.
        values: As `tidy` returns them.
        kind: Of the column.
        min_count: Rarer words and categories become the unknown one; the most frequent is always kept.
    """
    if kind == "number":
        return Field(name, kind, statistics=_number_statistics(values))
    if kind == "date":
        return Field(name, kind, statistics=_date_statistics(values))
    if not values.fillna("").str.contains(r"[\w'!?]").any():
        return Field(name, kind, (PADDING, UNKNOWN, NEVER_SEEN))
    if kind == "text":
        return Field(name, kind, build_vocabulary(values.fillna("").tolist(), LARGEST_VOCABULARY, min_count))
    counts = values.value_counts()
    ordered = sorted(counts.index, key=lambda value: (-counts[value], value))[:LARGEST_VOCABULARY]
    frequent = [value for value in ordered if counts[value] >= min_count]
    return Field(name, kind, (PADDING, UNKNOWN, *(frequent or ordered[:1])))


def _number_statistics(values: pd.Series) -> dict[str, float]:
    """Mean and variance, of asinh(value / unit) where `unit` is not 0, and the share of missing values."""
    known, unit = values.dropna(), 0.0
    if abs(known.skew()) > EXTREME_SKEW:
        unit = float(known[known != 0].abs().median())
        known = np.arcsinh(known / unit)
    mean, variance = (float(known.mean()), float(known.var(ddof=0))) if len(known) else (0.0, 1.0)
    return {"mean": mean, "variance": variance or 1.0, "unit": unit, "missing": float(values.isna().mean())}


def _date_statistics(values: pd.Series) -> dict[str, float]:
    import pandas as pd

    dates = pd.to_datetime(values.dropna().str[:10], format="%Y-%m-%d")
    days = (dates - pd.Timestamp(0)) / pd.Timedelta(days=1)
    mean, scale = (float(days.mean()), float(days.std(ddof=0))) if len(days) else (0.0, 1.0)
    return {"mean": mean, "scale": scale or 1.0, "missing": float(values.isna().mean())}


def preprocess_columns(spec: Spec, max_words: int) -> keras.Model:
    """Raw columns to numbers, each column on its own.

    A number becomes (x - mean) / √variance, 0 where missing, and an indicator of missing values if the training part
    has some; a date the vector of `layers.DateFeatures`, its indicator under the same condition; a category its index,
    where 0 is missing and 1 unknown; a text the indices of its words, zeros at the end.

    Args:
        spec: Inputs as `fit_input` returns them.
        max_words: Longer texts are cut.
    """
    inputs = {
        column.name: keras.Input((1,), dtype="string" if column.is_string else "float32", name=column.name)
        for column in spec.inputs
    }
    return keras.Model(
        inputs, {column.name: _preprocess(inputs[column.name], column, max_words) for column in spec.inputs}
    )


def _preprocess(raw: keras.KerasTensor, column: Field, max_words: int) -> keras.KerasTensor:
    if column.kind == "number":
        return _preprocess_number(raw, column.statistics)
    if column.kind == "date":
        features = layers.DateFeatures(column.statistics["mean"], column.statistics["scale"], dtype="float32")(raw)
        return features if column.statistics["missing"] else features[:, :-1]
    if column.kind == "category":
        ids = keras.layers.StringLookup(vocabulary=list(column.vocabulary), mask_token=PADDING)(raw)
    else:
        ids = keras.layers.TextVectorization(
            standardize=layers.standardize_text,
            vocabulary=list(column.vocabulary[2:]),
            output_sequence_length=max_words,
        )(raw)
    return keras.ops.cast(ids, "int32")


def _preprocess_number(raw: keras.KerasTensor, statistics: Mapping[str, float]) -> keras.KerasTensor:
    missing = keras.ops.isnan(raw)
    if statistics["unit"]:
        raw = keras.ops.arcsinh(keras.layers.Rescaling(1 / statistics["unit"], dtype="float32")(raw))
    scale = keras.layers.Normalization(mean=statistics["mean"], variance=statistics["variance"], dtype="float32")
    scaled = keras.ops.where(missing, 0.0, scale(raw))
    if not statistics["missing"]:
        return scaled
    return keras.ops.concatenate([scaled, keras.ops.cast(missing, "float32")], axis=1)


def for_trees(spec: Spec, frame: pd.DataFrame) -> np.ndarray:
    """The inputs as decision trees take them, missing values as a number below all others.

    Categories become their rank by frequency, dates three numbers (day, month, weekday), and each word a 0 or 1.
    """
    features = np.concatenate([_for_trees(column, frame[column.name]) for column in spec.inputs], axis=1)
    return np.nan_to_num(features, nan=LOWEST)


def _for_trees(column: Field, values: pd.Series) -> np.ndarray:
    import pandas as pd

    if column.kind == "number":
        return values.to_numpy(np.float32)[:, None]
    if column.kind == "category":
        rank = {value: index for index, value in enumerate(column.vocabulary)}
        return values.map(lambda value: np.nan if value is None else rank.get(value, 1)).to_numpy(np.float32)[:, None]
    if column.kind == "date":
        dates = pd.to_datetime(values.str[:10], format="%Y-%m-%d")
        parts = [(dates - pd.Timestamp(0)) / pd.Timedelta(days=1), dates.dt.month, dates.dt.day_of_week]
        return np.stack([part.to_numpy(np.float32) for part in parts], axis=1)
    from sklearn.feature_extraction.text import CountVectorizer

    words = CountVectorizer(vocabulary=column.vocabulary[2:], token_pattern=r"[\w']+|[!?]", binary=True)
    return words.transform(values.fillna("")).toarray().astype(np.float32)
