"""A trained application: raw examples in, answers out, from memory or from its saved files."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from loom import lazy
from loom.app import Answer, App
from loom.config import TrainingConfig, from_dict, to_dict
from loom.data.encode import Encoder
from loom.data.pipeline import Batches, Buckets, Columns
from loom.data.spec import Spec
from loom.lazy import keras, layers, load
from loom.runtime import full_precision

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
CORE, SPEC, CONFIG, APP = "core.keras", "spec.json", "config.json", "app.json"
"""Files of a saved application."""


@dataclass(frozen=True)
class Trained:
    """An application's model with everything that turns raw examples into its numbers and its numbers into answers."""

    app: App
    config: TrainingConfig
    spec: Spec
    core: keras.Model
    _kept: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def kept(self, name: str, make: Callable[[], T]) -> T:
        """What an application needs for its answers and makes once, such as functions that are traced."""
        if name not in self._kept:
            self._kept[name] = make()
        return cast("T", self._kept[name])

    @cached_property
    def encode(self) -> Encoder:
        """Tables of raw examples to the numbers that `core` takes."""
        return Encoder(self.preprocess, self.spec)

    @cached_property
    def _forward(self) -> Any:
        """The core as one graph for all shapes: `Model.predict_on_batch` would answer once for each device."""
        signature = {name: lazy.tf.TensorSpec(tensor.shape, tensor.dtype) for name, tensor in self.core.input.items()}
        return lazy.tf.function(
            lambda inputs: {
                name: layers.masking.valid_only(output, getattr(output, "_keras_mask", None))
                for name, output in self.core(inputs, training=False).items()
                if name in (self.app.outputs or self.core.output)
            },
            input_signature=[signature],
        )

    @cached_property
    def preprocess(self) -> keras.Model:
        """Raw columns to the numbers that `core` takes."""
        with full_precision():
            return self.app.preprocess(self.config, self.spec)

    def predict(self, frame: pd.DataFrame) -> list[Answer]:
        """One answer for each raw example."""
        return list(self.app.predict(self, frame)) if len(frame) else []

    def stream(self, example: Mapping[str, Any]) -> Iterator[Answer]:
        """The answer to one raw example as it grows, whole at the end; of an application that streams."""
        assert self.app.stream is not None
        import pandas as pd

        for (answer,) in self.app.stream(self, pd.DataFrame([example])):
            yield answer

    def outputs(self, frame: pd.DataFrame) -> dict[str, np.ndarray]:
        """The core model's outputs for raw examples, by name."""
        return self.outputs_of(self.encode(frame))

    def outputs_of(self, inputs: Columns) -> dict[str, np.ndarray]:
        """The core model's outputs for examples that are numbers already, in their order.

        Outputs with values for each step are filled up with zeros to the longest, and zero where the model masks them.
        """
        count = len(next(iter(inputs.values())))
        buckets = Buckets.fit(inputs, {}, self.config.buckets)
        batches = Batches(inputs, {}, max(self.config.batch_size, 128), buckets)
        places = [rows for rows, _ in batches.plan()]
        parts = [{name: _as_array(value) for name, value in self._forward(batch).items()} for batch, _ in batches]
        return {name: _in_order([part[name] for part in parts], places, count) for name in parts[0]}

    def save(self, folder: Path, module: str) -> None:
        """Write the files that `open` reads; `module` is the name the application's code is imported by."""
        folder.mkdir(parents=True)
        # The same layers without the optimizer, whose state is twice as large as the weights.
        keras.Model(self.core.input, self.core.output, name=self.core.name).save(folder / CORE)
        (folder / SPEC).write_text(self.spec.to_json(), encoding="utf-8")
        (folder / CONFIG).write_text(json.dumps(to_dict(self.config)), encoding="utf-8")
        (folder / APP).write_text(json.dumps({"module": module}), encoding="utf-8")

    @classmethod
    def open(cls, folder: Path) -> Trained:
        """Load a saved application with the code that is importable here: in a model, its own."""
        app = importlib.import_module(json.loads((folder / APP).read_text(encoding="utf-8"))["module"]).APP
        config = from_dict(app.config, json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        spec = Spec.from_json((folder / SPEC).read_text(encoding="utf-8"))
        load("layers")  # Keras finds registered layers only once they are imported
        core = keras.saving.load_model(folder / CORE, compile=False)
        return cls(app, config, spec, core)


def _as_array(output: Any) -> np.ndarray:
    """NumPy has neither bfloat16 nor reason to keep float16."""
    return output.numpy() if output.dtype.is_integer or output.dtype.is_bool else output.numpy().astype(np.float32)


def _in_order(parts: list[np.ndarray], places: list[np.ndarray], count: int) -> np.ndarray:
    """Batches of one output, each example at its place."""
    shape = np.max([part.shape[1:] for part in parts], axis=0).astype(int)
    values = np.zeros((count, *shape), parts[0].dtype)
    for part, rows in zip(parts, places, strict=True):
        place: Any = (rows, *map(slice, part.shape[1:]))
        values[place] = part
    return values
