"""The search space: an application's own, narrowed or replaced on the command line.

A change is written `NAME=LOW..HIGH`, with `:log` and `:step=N` where wanted, or `NAME=VALUE,VALUE`; a single value
takes a setting out of the search. Hyperparameters bear the names of config fields, so that a trial is
`replace(config, **settings)` and can be run again as a plain training run.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from keras_tuner import HyperParameters
from keras_tuner.engine.hyperparameters import Boolean, Choice, Fixed, Float, HyperParameter, Int

from loom.app import App
from loom.config import TrainingConfig, flag
from loom.errors import UserError

SIGNIFICANT_DIGITS = 4
"""Of the numbers that are tried: more make no difference and cannot be read."""
UNSEARCHABLE = {
    "threads": "the workers share them out",
    "devices": "the workers share them out",
    "test_fraction": "it would let the search see test examples",
    "split_seed": "it would let the search see test examples",
}
"""What cannot be searched, and why."""
FORM = "write NAME=LOW..HIGH[:log][:step=N] or NAME=VALUE,VALUE"
TRIES = 20
ROUNDING = 1e-6

Make = Callable[[HyperParameters, str], Any]
"""Registers a hyperparameter of that name; returns its value."""


class Space:
    """What a search varies, and how its values become settings.

    Args:
        app: The application.
        config: Settings of what is not searched.
        changes: Changes to the application's own space, as on the command line.
        pinned: Settings that keep their value though the application would search them.

    Raises:
        UserError: A change that cannot be read, an unknown or unsearchable setting, an empty or impossible range.
    """

    def __init__(
        self, app: App, config: TrainingConfig, changes: Sequence[str] = (), pinned: Iterable[str] = ()
    ) -> None:
        self._app, self._config = app, config
        self._changes: dict[str, Make] = {}
        for text in changes:
            name, make = _parsed(text, config)
            if name in self._changes:
                raise UserError(f"--space {text}: {name} is given twice")
            self._changes[name] = make
        asked = _ask(app, _Changed(self._changes))
        for name in pinned:
            if name in self._changes:
                raise UserError(f"--space {name}=...: {flag(name)} gives it one value; leave out one of them")
            if name in asked:
                self._changes[name] = _fixed(getattr(config, name))
        self.hyperparameters = self._explored()
        """All of them, with those that depend on others."""
        if not self.varied:
            raise UserError(f"{app.name}: nothing is searched; --space NAME=LOW..HIGH names what to vary")
        self._check()

    @property
    def varied(self) -> list[str]:
        """Names of what takes more than one value."""
        return list(dict.fromkeys(hp.name for hp in self.hyperparameters.space if not isinstance(hp, Fixed)))

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of a trial with these values of the hyperparameters; numbers are rounded to what can be read."""
        found = _ask(self._app, _Changed(self._changes, {name: self._tidy(name, values[name]) for name in values}))
        return {name: value for name, value in found.items() if value is not None}

    def config(self, values: Mapping[str, Any]) -> TrainingConfig:
        """Config of a trial with these values of the hyperparameters.

        Raises:
            UserError: The application refuses this combination.
        """
        return replace(self._config, **self.settings(values))

    def placed(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Values of the hyperparameters that make these settings, or None where they lie outside."""
        hyperparameters = self.hyperparameters.copy()
        hyperparameters.values = {hp.name: settings.get(hp.name) for hp in hyperparameters.space}
        for hp in hyperparameters.space:
            if hyperparameters.is_active(hp) and not _lies_in(hp, settings.get(hp.name)):
                return None
        active = {hp.name for hp in hyperparameters.space if hyperparameters.is_active(hp)}
        return {name: value for name, value in hyperparameters.values.items() if name in active}

    def to_json(self) -> list[dict[str, Any]]:
        """Every hyperparameter, for the record and to compare with another space."""
        return list(self.hyperparameters.get_config()["space"])

    def _explored(self) -> HyperParameters:
        """Asks the application until every condition in its function has held once."""
        found = HyperParameters()
        values: dict[str, Any] = {}
        seen: list[Any] = []
        inactive: list[Any] = []
        while True:
            asked = _Changed(self._changes, values)
            _ask(self._app, asked)
            found.merge(asked, overwrite=False)
            seen += asked.active_scopes
            inactive += asked.inactive_scopes
            missing = [scope for scope in inactive if scope not in seen]
            if not missing:
                return found
            values = {condition.name: condition.values[0] for condition in missing[0]}
            seen.append(missing[0])  # a setting with one value may never let it hold

    def _tidy(self, name: str, value: Any) -> Any:
        """A value as it is tried; KerasTuner's logarithmic ranges can go beyond their end."""
        for hp in self.hyperparameters.space:
            if hp.name == name and isinstance(hp, Int):
                return min(max(value, hp.min_value), hp.max_value)
            if hp.name == name and isinstance(hp, Float):
                return min(max(float(f"{value:.{SIGNIFICANT_DIGITS}g}"), hp.min_value), hp.max_value)
        return value

    def _check(self) -> None:
        """Refuse settings that there are not, and values that are impossible whatever the others are."""
        fields = {field.name for field in dataclasses.fields(self._config)}
        for name in self.settings(self._sample(random.Random(0), {})):
            if name not in fields:
                raise UserError(f"{self._app.name}: its space sets {name!r}, which is no setting of it")
            if name in UNSEARCHABLE:
                raise UserError(f"--space {name}: cannot be searched: {UNSEARCHABLE[name]}")
        for hp in self.hyperparameters.space:
            for value in _extremes(hp):
                self._check_possible(hp.name, value)

    def _check_possible(self, name: str, value: Any) -> None:
        generator = random.Random(0)
        refusal = None
        for _ in range(TRIES):
            try:
                self.config(self._sample(generator, {name: value}))
            except UserError as error:
                if not str(error).startswith(f"{flag(name)} "):
                    return
                refusal = error
            else:
                return
        raise UserError(f"--space {name}: {refusal}")

    def _sample(self, generator: random.Random, values: Mapping[str, Any]) -> dict[str, Any]:
        """Random values of the others."""
        sample = HyperParameters()
        sample.values = dict(values)
        for hp in self.hyperparameters.space:
            sample.merge([hp], overwrite=False)
            if sample.is_active(hp) and hp.name not in values:
                sample.values[hp.name] = hp.random_sample(generator.randrange(2**31))
        return dict(sample.values)


def grid_size(hyperparameters: HyperParameters) -> int:
    """Number of combinations; a range without steps counts as the ten values that a grid takes from it."""

    def count(index: int, values: dict[str, Any]) -> int:
        if index == len(hyperparameters.space):
            return 1
        hp = hyperparameters.space[index]
        if not all(condition.is_active(values) for condition in hp.conditions):
            return count(index + 1, values)
        options = [hp.value] if isinstance(hp, Fixed) else list(dict.fromkeys([hp.default, *hp.values]))
        decides = any(condition.name == hp.name for other in hyperparameters.space for condition in other.conditions)
        if not decides:
            return len(options) * count(index + 1, values)
        return sum(count(index + 1, {**values, hp.name: option}) for option in options)

    return count(0, {})


class _Changed(HyperParameters):
    """Hyperparameters of which some are not what the application says.

    Args:
        changes: Those, by name.
        values: Values that are given already.
    """

    def __init__(self, changes: Mapping[str, Make], values: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.changes = changes
        self.values = dict(values or {})


def _changeable(method: Callable[..., Any]) -> Callable[..., Any]:
    def define(self: _Changed, name: str, *args: Any, **options: Any) -> Any:
        make = self.changes.get(name)
        return method(self, name, *args, **options) if make is None else make(self, name)

    return define


def _float(
    hyperparameters: HyperParameters,
    name: str,
    min_value: float,
    max_value: float,
    step: float | None = None,
    **options: Any,
) -> Any:
    """`HyperParameters.Float`, which loses the end of 0.1, 0.2, 0.3 to rounding."""
    if step is not None and options.get("sampling", "linear") == "linear":
        max_value += step * ROUNDING
    return HyperParameters.Float(hyperparameters, name, min_value, max_value, step, **options)


for _kind in ("Boolean", "Choice", "Fixed", "Int"):
    setattr(_Changed, _kind, _changeable(getattr(HyperParameters, _kind)))
_Changed.Float = _changeable(_float)


def _ask(app: App, hyperparameters: _Changed) -> dict[str, Any]:
    """Settings that an application makes of hyperparameters, and those that only the command line searches."""
    settings = dict(app.space(hyperparameters))
    known = {hp.name for hp in hyperparameters.space}
    more = {name: make for name, make in hyperparameters.changes.items() if name not in known}
    return settings | {name: make(hyperparameters, name) for name, make in more.items()}


def _fixed(value: Any) -> Make:
    def make(hyperparameters: HyperParameters, name: str) -> Any:
        hyperparameters.values[name] = value
        return HyperParameters.Fixed(hyperparameters, name, value)

    return make


def _parsed(text: str, config: TrainingConfig) -> tuple[str, Make]:
    """Name and definition that one `--space` gives."""
    where = f"--space {text}"
    name, what, kind = _named(where, text, config)
    return name, _range(where, what, kind) if ".." in what else _choice(where, what, kind)


def typed_values(flag: str, text: str, config: TrainingConfig) -> tuple[str, list[Any]]:
    """Name and values that a flag gives as `NAME=VALUE,VALUE`."""
    where = f"{flag} {text}"
    name, what, kind = _named(where, text, config)
    return name, _values(where, what, kind)


def _named(where: str, text: str, config: TrainingConfig) -> tuple[str, str, Any]:
    """Name, right side and type of a setting."""
    name, _, what = text.partition("=")
    name = name.strip().replace("-", "_")
    if not name or not what.strip():
        raise UserError(f"{where}: {FORM}")
    hints = get_type_hints(type(config))
    names = [field.name for field in dataclasses.fields(config)]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(f"{where}: there is no setting {name!r}{hint}; `loom train APP --help` lists them")
    return name, what, hints[name]


def _range(where: str, what: str, kind: Any) -> Make:
    if kind not in (int, float):
        raise UserError(f"{where}: only numbers have ranges; list the values: NAME=VALUE,VALUE")
    bounds, *options = what.split(":")
    low, _, high = bounds.partition("..")
    first, last = _typed(where, low, kind), _typed(where, high, kind)
    if first > last:
        raise UserError(f"{where}: the range is empty, {low.strip()} is above {high.strip()}")
    if first == last:
        return _fixed(first)
    given: dict[str, Any] = {}
    for option in options:
        word, _, number = option.strip().partition("=")
        if word == "log" and not number:
            given["sampling"] = "log"
        elif word == "step" and number:
            given["step"] = _typed(where, number, kind)
        else:
            raise UserError(f"{where}: {option!r} is neither log nor step=N; {FORM}")
    _check_steps(where, first, given)
    define = HyperParameters.Int if kind is int else _float
    return lambda hyperparameters, name: define(hyperparameters, name, first, last, **given)


def _check_steps(where: str, first: float, given: Mapping[str, Any]) -> None:
    logarithmic, step = "sampling" in given, given.get("step")
    if logarithmic and first <= 0:
        raise UserError(f"{where}: a logarithmic range must begin above 0")
    if step is not None and step <= (1 if logarithmic else 0):
        least = "a factor above 1 in a logarithmic range" if logarithmic else "above 0"
        raise UserError(f"{where}: the step must be {least}")


def _choice(where: str, what: str, kind: Any) -> Make:
    values = _values(where, what, kind)
    if len(values) == 1:
        return _fixed(values[0])
    if kind is bool:
        return lambda hyperparameters, name: HyperParameters.Boolean(hyperparameters, name)
    return lambda hyperparameters, name: HyperParameters.Choice(hyperparameters, name, values)


def _values(where: str, what: str, kind: Any) -> list[Any]:
    values = [_typed(where, value, kind) for value in what.split(",")]
    if len(set(values)) < len(values):
        raise UserError(f"{where}: a value is listed twice")
    return values


def _typed(where: str, value: str, kind: Any) -> Any:
    """A value as the type of its setting."""
    value = value.strip()
    if get_origin(kind) is Literal:
        matching = [choice for choice in get_args(kind) if str(choice) == value]
        if not matching:
            raise UserError(f"{where}: {value!r} must be one of {', '.join(map(str, get_args(kind)))}")
        return matching[0]
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise UserError(f"{where}: {value!r} must be true or false")
        return value.lower() == "true"
    if kind not in (int, float, str):
        raise UserError(f"{where}: settings of this type cannot be searched")
    try:
        typed = kind(value)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise UserError(f"{where}: {value!r} is not {wanted}; {FORM}") from None
    if kind is float and not math.isfinite(typed):
        raise UserError(f"{where}: {value!r} is not a finite number")
    return typed


def _lies_in(hp: HyperParameter, value: Any) -> bool:
    if isinstance(hp, Int | Float):
        return isinstance(value, int | float) and hp.min_value <= value <= hp.max_value
    if isinstance(hp, Fixed):
        return bool(value == hp.value)
    return value in (hp.values if isinstance(hp, Choice) else (True, False))


def _extremes(hp: HyperParameter) -> list[Any]:
    """Values of a hyperparameter that are the first to be impossible."""
    if isinstance(hp, Int | Float):
        return [hp.min_value, hp.max_value]
    if isinstance(hp, Choice):
        return list(hp.values)
    return [hp.value] if isinstance(hp, Fixed) else [True, False] if isinstance(hp, Boolean) else []
