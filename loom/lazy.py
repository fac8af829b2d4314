"""Modules that take seconds to import, imported when their first attribute is used.

`from loom.lazy import keras` costs nothing, so a mistyped flag or a missing file is reported at once, and an
application file still reads like ordinary Keras code: `keras.Input(...)` inside its functions just works.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from loom.errors import UserError

if TYPE_CHECKING:
    import keras as keras
    import mlflow as mlflow
    import tensorflow as tf

    import layers as layers


ENVIRONMENT = {
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Read by these libraries when they are imported; what is set already stays."""


class LazyModule(ModuleType):
    """Stands in for a module until one of its attributes is asked for."""

    def __getattr__(self, attribute: str) -> Any:
        return getattr(load(self.__name__), attribute)


_waiting: dict[str, Callable[[], object]] = {}
_importing = threading.RLock()
"""Two threads that put file descriptor 2 aside at once would put it back in the wrong order."""


def load(name: str) -> ModuleType:
    """Import a heavy module now, with TensorFlow's start-up lines kept off the screen."""
    if name in sys.modules:
        return importlib.import_module(name)
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    with _importing:
        with silenced_stderr(), _no_collections():
            module = importlib.import_module(name)
        for imported in [name for name in _waiting if name in sys.modules]:
            _waiting.pop(imported)()
    return module


@contextmanager
def _no_collections() -> Iterator[None]:
    """An import makes a million objects and no garbage; looking for some takes a sixth of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def after_import(name: str, action: Callable[[], object]) -> None:
    """Do something as soon as a module is imported: now, or before anything else uses it."""
    if name in sys.modules:
        action()
    else:
        _waiting[name] = action


@contextmanager
def silenced_stderr() -> Iterator[None]:
    """Hold back what native code writes to file descriptor 2; show it if the block fails, by no person's mistake."""
    with _importing, tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        original = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception as error:
            if not isinstance(error, UserError):
                held.seek(0)
                os.write(original, held.read())
            raise
        finally:
            os.dup2(original, 2)
            os.close(original)


if not TYPE_CHECKING:
    keras = LazyModule("keras")
    layers = LazyModule("layers")
    mlflow = LazyModule("mlflow")
    tf = LazyModule("tensorflow")
