"""What an application is, and how one is found by its name or its file."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from loom.config import TrainingConfig
from loom.errors import UserError

if TYPE_CHECKING:
    import keras
    import numpy as np
    import pandas as pd

    from loom.data.pipeline import Augment, Batches, Data, Split
    from loom.data.spec import Spec
    from loom.run import Run
    from loom.trained import Trained

Metrics = dict[str, float]
"""Metric name to value, e.g. `{"accuracy": 0.9}`."""
Answer = dict[str, Any]
"""What a person gets for one raw example, e.g. `{"label": "positive", "probability": 0.97}`."""

Evaluate = Callable[["Split", "dict[str, np.ndarray]"], Metrics]
"""Measures a whole part of the data by the model's outputs for it."""


@dataclass(frozen=True)
class Phase:
    """Epochs in a row that train the same part of the model with an optimizer of their own; see `App.phases`."""

    name: str
    epochs: int
    learning_rate: float
    set_trainable: Callable[[keras.Model], None] | None = None
    """Says of all of the model's layers whether they are trained, whatever they were before."""


@dataclass(frozen=True)
class App:
    """The functions that make an application; `docs/applications.md` walks through one.

    `loss`, `metrics` and `loss_weights` are what `keras.Model.compile` takes, by output name, or functions of
    `(config, spec)` that return it; so is `objective`, the metric that early stopping and searches look at, which is to
    fall unless `direction` is "max". `loss` is None where the model's own steps compute it.

    `augment` gives what changes training batches at random (`loom.data.augment`), if anything. `start` sets weights
    that a new model starts from, and returns a sentence on each thing that may surprise. `phases` divides the epochs of
    a run into stretches that are trained differently, such as a frozen and a fine-tuned one; without it all are one.
    `optimizer` makes what `compile` takes from `(config, learning rate, steps)`, where that is not the one optimizer
    that the config names. `outputs` names those of the model's outputs that answers, reports and `evaluate` look at,
    where others are there for a loss only; all by default. `train_batches` makes the batches to train on, where their
    order is to be another than a random one.

    `evaluate` takes config and data, and gives a function of a whole part and the model's outputs for it that returns
    metrics which no mean over batches is, such as a recall among all examples: of the validation part after every epoch
    (`val_NAME`, an objective too), and as those of the test part. `test` gives more metrics of the test part, from
    a trained run and what was measured so far.

    `stream` gives the answers of `predict` as they grow, the whole ones last: the first value of an answer is a text to
    whose end something is added each time. What is asked for one example in the terminal is shown so.

    `ask` gives raw rows that a saved model has to answer as the trained one does, where the first ones of the test part
    would not do: of series a forecast takes many.

    `watch` makes what `loom watch` reads an endless text with: a function that takes the next piece of it, of any
    length, and returns the answers that can be given by then.

    `no_export` says why a model cannot be written in other formats, if it cannot.
    """

    name: str
    config: type[TrainingConfig]
    load: Callable[[Any], Data]
    preprocess: Callable[[Any, Spec], keras.Model]
    build: Callable[[Any, Spec], keras.Model]
    space: Callable[[Any], dict[str, Any]]
    baselines: Callable[[Any, Data], dict[str, Metrics]]
    report: Callable[[Run], None]
    predict: Callable[[Trained, pd.DataFrame], Sequence[Answer]]
    loss: Any
    metrics: Any = None
    loss_weights: Any = None
    objective: str | Callable[[Any, Spec], str] = "val_loss"
    direction: Literal["min", "max"] = "min"
    fit: Callable[[Run], None] | None = None
    phases: Callable[[Any, Spec], Sequence[Phase]] | None = None
    augment: Callable[[Any, Spec], Augment | None] | None = None
    start: Callable[[Any, keras.Model], Sequence[str]] | None = None
    optimizer: Callable[[Any, float, int], Any] | None = None
    train_batches: Callable[[Run], Batches] | None = None
    evaluate: Callable[[Any, Data], Evaluate] | None = None
    test: Callable[[Run, Metrics], Metrics] | None = None
    stream: Callable[[Trained, pd.DataFrame], Iterator[Sequence[Answer]]] | None = None
    watch: Callable[[Trained], Callable[[str], Sequence[Answer]]] | None = None
    ask: Callable[[Run], pd.DataFrame] | None = None
    no_export: str = ""
    outputs: Sequence[str] = ()

    def resolve(self, what: str, config: TrainingConfig, spec: Spec) -> Any:
        """Value of `loss`, `metrics`, `loss_weights` or `objective` for this config and data."""
        value = getattr(self, what)
        return value(config, spec) if callable(value) else value


@dataclass(frozen=True)
class AppFile:
    """Where an application's code lies."""

    path: Path
    module: str

    @property
    def argument(self) -> str:
        """What a command calls it."""
        return self.path.stem if self.inside_package else str(self.path)

    @property
    def inside_package(self) -> bool:
        """Whether it is one of the project's own applications."""
        return self.module.startswith("apps.")


def applications_folder() -> Path:
    """Folder of the project's own applications."""
    return Path(__file__).resolve().parent.parent / "apps"


def list_apps() -> dict[str, str]:
    """Name and one-line description of every application, read without importing any."""
    files = sorted(path for path in applications_folder().glob("*.py") if not path.name.startswith("_"))
    return {path.stem: _first_line(path) for path in files}


def locate_app(name: str) -> AppFile:
    """Find an application by its name (`sentiment`) or its file (`path/to/app.py`).

    Raises:
        UserError: No such application or file, or a file name that cannot be imported.
    """
    if not name.endswith(".py"):
        names = list(list_apps())
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise UserError(
                f"unknown application {name!r}{hint}: `loom list` shows {', '.join(names)}; or name a .py file"
            )
        return AppFile(applications_folder() / f"{name}.py", f"apps.{name}")
    path = Path(name).resolve()
    if not path.is_file():
        raise UserError(f"{name}: no such application file")
    if path.parent == applications_folder():
        return AppFile(path, f"apps.{path.stem}")
    if not path.stem.isidentifier():
        raise UserError(f"{name}: rename the file so that it can be imported: letters, digits and _ only")
    return AppFile(path, path.stem)


def load_app(file: AppFile) -> App:
    """Import an application's module and return its `APP`.

    Raises:
        UserError: The file defines no `APP`, or its name belongs to another module already.
    """
    module = importlib.import_module(file.module) if file.inside_package else _import_file(file)
    app = getattr(module, "APP", None)
    if not isinstance(app, App):
        raise UserError(f"{file.path}: defines no APP = App(...)")
    return app


def _import_file(file: AppFile) -> ModuleType:
    loaded = sys.modules.get(file.module)
    if loaded is not None and Path(getattr(loaded, "__file__", None) or "") == file.path:
        return loaded
    found = None if loaded is not None else importlib.util.find_spec(file.module)
    if loaded is not None or (found is not None and found.origin != str(file.path)):
        raise UserError(f"{file.path}: another module is named {file.module} already; rename the file")
    spec = importlib.util.spec_from_file_location(file.module, file.path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.module] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[file.module]
        raise
    return module


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]
