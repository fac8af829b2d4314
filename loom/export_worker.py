"""Writes a trained model in other formats and checks each, with the code that was saved with the model.

`loom.export` starts it in a process of its own: `python -P -m loom.export_worker MODEL FOLDER FORMAT...`. It writes one
JSON object to standard output: `{"files": [...], "code": path of the code used}` or `{"error": ..., "traceback": ...}`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import loom
from loom.config import to_dict
from loom.data.encode import as_tensors, raw_inputs
from loom.data.spec import Field
from loom.errors import UserError
from loom.fresh import TOLERANCE, largest_difference
from loom.lazy import keras, tf
from loom.saving import read_examples, trained_files
from loom.trained import Trained

if TYPE_CHECKING:
    import pandas as pd

    Tensors = dict[str, Any]
    Batch = dict[str, Any]

OPSET = 18
"""Version of the ONNX operators."""
PREPROCESSING = "preprocessing.json"


def main(model: Path, folder: Path, formats: list[str]) -> dict[str, Any]:
    """Write and check every format; what `loom.export` reads."""
    trained = Trained.open(trained_files(model))
    if trained.app.no_export:
        raise UserError(f"{trained.app.name} cannot be exported: {trained.app.no_export}")
    examples = read_examples(trained_files(model))
    exporter = Exporter(in_float32(trained, examples), examples, folder)
    return {"files": [exporter.write(name) for name in formats], "code": loom.__file__}


def in_float32(trained: Trained, examples: pd.DataFrame) -> Trained:
    """The same model computing in float32, which every format and every machine knows.

    Raises:
        UserError: In float32 the model's answers are different.
    """
    policies = {layer.dtype_policy.name for layer in trained.core.layers}
    precision = next((name for name in TOLERANCE if name != "float32" and name in policies), "float32")
    if precision == "float32":
        return trained
    keras.config.set_dtype_policy("float32")
    core = trained.app.build(trained.config, trained.spec)
    core.set_weights(trained.core.get_weights())
    converted = Trained(trained.app, trained.config, trained.spec, core)
    compare("float32", as_lists(trained.outputs(examples)), as_lists(converted.outputs(examples)), TOLERANCE[precision])
    return converted


class Exporter:
    """Writes one model in several formats to one folder."""

    def __init__(self, trained: Trained, examples: pd.DataFrame, folder: Path) -> None:
        self.trained = trained
        self.core = trained.core
        self.folder = folder
        raw = as_tensors(raw_inputs(trained.spec, examples))
        rows = range(len(examples))
        self.batches = [raw, *({name: column[row : row + 1] for name, column in raw.items()} for row in rows[:3])]
        """Raw examples all at once and alone, so that no number of examples and no length is a constant."""

    def write(self, name: str) -> dict[str, Any]:
        """Write and check one format; returns its description.

        Raises:
            UserError: The model cannot be converted, or the file gives other outputs.
        """
        writers: dict[str, Callable[[], dict[str, Any]]] = {
            "keras": self.keras,
            "savedmodel": self.savedmodel,
            "onnx": self.onnx,
            "litert": self.litert,
        }
        try:
            return {"format": name, **writers[name]()}
        except UserError:
            raise
        except Exception as error:  # each converter raises classes of its own
            raise UserError(f"{name}: this model cannot be converted: {_first_line(error)}") from error

    def keras(self) -> dict[str, Any]:
        """Raw columns to answers, for Keras with our layers."""
        model, path = self._with_answers(), self.folder / "model.keras"
        model.save(path)
        difference = self._check_raw("keras", path, model)
        return {"name": path.name, "difference": difference, "note": "raw input; to be loaded after `import layers`"}

    def savedmodel(self) -> dict[str, Any]:
        """Raw columns to answers, for TensorFlow alone."""
        model, path = self._with_answers(), self.folder / "savedmodel"
        model.export(path, format="tf_saved_model", verbose=False)
        difference = self._check_raw("savedmodel", path, model)
        return {"name": path.name, "difference": difference, "note": "raw input; needs TensorFlow only"}

    def onnx(self) -> dict[str, Any]:
        """Numbers to numbers, for ONNX runtimes."""
        import onnx
        import tf2onnx

        path = self.folder / "model.onnx"
        function = self._function(None)
        handlers: dict[str, tuple[Any, list[str]]] = {"Erfc": (_erfc_in_onnx, [])}
        proto, _ = tf2onnx.convert.from_function(
            function, function.input_signature, opset=OPSET, custom_op_handlers=handlers
        )
        _name_dimensions(proto.graph)
        onnx.save(proto, path)
        self._write_preprocessing()
        return {
            "name": path.name,
            "difference": self._check_core("onnx", path, self.batches),
            "note": f"numbers as {PREPROCESSING} says; opset {OPSET}",
        }

    def litert(self) -> dict[str, Any]:
        """Numbers to numbers, for LiteRT (formerly TensorFlow Lite), with its built-in operators only.

        LiteRT keeps the steps of a time loop in lists whose entries have a size known beforehand, so a recurrent model
        takes one example at a time, of any length.
        """
        path = self.folder / "model.tflite"
        try:
            content, batches, note = self._convert_to_litert(None), self.batches, "any number of examples"
        except Exception:  # what the converter raises has no class that it documents
            content, batches, note = self._convert_to_litert(1), self.batches[1:], "one example at a time"
        path.write_bytes(content)
        self._write_preprocessing()
        return {
            "name": path.name,
            "difference": self._check_core("litert", path, batches),
            "note": f"numbers as {PREPROCESSING} says; built-in operators, {note}",
        }

    def _with_answers(self) -> Any:
        """Raw columns to the core's outputs by name, and for targets that are classes their names too."""
        raw = {
            column.name: keras.Input((1,), dtype="string" if column.is_string else "float32", name=column.name)
            for column in self.trained.spec.inputs
        }
        outputs = self.core(self.trained.preprocess(raw))
        labels = {
            f"{target.name}_label": label_of(target, outputs[target.name])
            for target in self.trained.spec.targets
            if target.kind != "number" and target.name in outputs
        }
        return keras.Model(raw, outputs | labels)

    def _function(self, batch_size: int | None) -> Any:
        """The core as a graph of its own, with named inputs and outputs."""
        signature = {
            name: tf.TensorSpec((batch_size, *tensor.shape[1:]), tensor.dtype, name=name)
            for name, tensor in self.core.input.items()
        }
        return tf.function(lambda inputs: self.core(inputs, training=False), input_signature=[signature])

    def _convert_to_litert(self, batch_size: int | None) -> bytes:
        module = tf.Module()
        module.variables_of_core = [variable.value for variable in self.core.variables]
        module.function = self._function(batch_size)
        with tempfile.TemporaryDirectory() as folder:
            tf.saved_model.save(module, folder, signatures=module.function.get_concrete_function())
            return bytes(tf.lite.TFLiteConverter.from_saved_model(folder).convert())

    def _write_preprocessing(self) -> None:
        """What another program has to know to make the core's numbers and to understand its outputs."""
        description = {
            "app": self.trained.app.name,
            "config": to_dict(self.trained.config),
            **asdict(self.trained.spec),
            "core_inputs": _describe(self.core.input),
            "core_outputs": _describe(self.core.output),
        }
        text = json.dumps(description, indent=1, ensure_ascii=False)
        (self.folder / PREPROCESSING).write_text(text + "\n", encoding="utf-8")

    def _check_raw(self, name: str, path: Path, model: Any) -> float:
        expected = [model(batch) for batch in self.batches]
        return check(name, path, self.batches, expected)

    def _check_core(self, name: str, path: Path, batches: list[Batch]) -> float:
        numbers = [self._numbers(batch) for batch in batches]
        return check(name, path, numbers, [self.core(batch) for batch in numbers])

    def _numbers(self, raw: Batch) -> Tensors:
        encoded = self.trained.preprocess(raw)
        return {name: tf.cast(encoded[name], tensor.dtype) for name, tensor in self.core.input.items()}


def label_of(target: Field, output: Any) -> Any:
    """Name of the likeliest class, one for each example; of `labels`, each name, or "" where it does not apply."""
    names = list(target.vocabulary)
    if target.kind == "labels":
        names = ["", *names]
        indices = keras.ops.where(output > 0.5, keras.ops.arange(1, len(names)), 0)
    elif target.kind == "binary":
        indices = keras.ops.cast(output[..., 0] > 0.5, "int32")
    else:
        indices = keras.ops.argmax(output, axis=-1)
    return keras.layers.StringLookup(vocabulary=names, num_oov_indices=0, invert=True)(indices)


def check(name: str, path: Path, batches: list[Batch], expected: list[Tensors]) -> float:
    """Let a process that knows nothing but the format answer, too; returns the largest difference.

    Raises:
        UserError: The file does not work there, or its answers are different.
    """
    request = [
        {key: {"dtype": value.dtype.name, "values": as_list(value)} for key, value in b.items()} for b in batches
    ]
    command = [sys.executable, "-P", str(Path(__file__).with_name("export_check.py")), name, str(path)]
    environment = dict(os.environ)
    if name != "keras":
        environment.pop("PYTHONPATH")
    done = subprocess.run(
        command, input=json.dumps(request), env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"{name}: the file does not load and run: {done.stderr.strip().rpartition(chr(10))[2]}")
    return compare(name, [as_lists(outputs) for outputs in expected], json.loads(done.stdout), TOLERANCE["float32"])


def compare(name: str, expected: Any, found: Any, tolerance: float) -> float:
    """Largest difference between two sets of outputs.

    Raises:
        UserError: It is above the tolerance.
    """
    difference = largest_difference(expected, found)
    if not difference <= tolerance:
        raise UserError(f"{name}: the outputs differ from the model's own by {difference:.2g}, so nothing was written")
    return difference


def as_lists(outputs: Tensors) -> dict[str, Any]:
    """Named outputs as plain values."""
    return {name: as_list(value) for name, value in outputs.items()}


def as_list(value: Any) -> Any:
    """A tensor as nested lists of numbers and strings."""
    array = value.numpy() if hasattr(value, "numpy") else value
    return json.loads(json.dumps(array.tolist(), default=lambda text: text.decode("utf-8", "surrogateescape")))


def _describe(tensors: Tensors) -> list[dict[str, Any]]:
    return [{"name": name, "dtype": str(tensor.dtype), "shape": list(tensor.shape)} for name, tensor in tensors.items()]


def _erfc_in_onnx(graph: Any, node: Any, name: str, arguments: Any) -> None:
    """erfc(x) = 1 - erf(x), in GELU: tf2onnx leaves it as it is, and ONNX knows erf only."""
    del name, arguments
    (source,), (output,) = node.input, node.output
    kind = {"shapes": [graph.get_shape(output)], "dtypes": [graph.get_dtype(output)]}
    one = graph.make_const(f"{node.name}/one", np.array(1, np.float32))
    graph.remove_node(node.name)
    erf = graph.make_node("Erf", [source], **kind)
    graph.make_node("Sub", [one.output[0], erf.output[0]], outputs=[output], **kind)


def _name_dimensions(graph: Any) -> None:
    """Give the unknown dimensions of an ONNX graph's inputs and outputs names that say what they are."""
    for value in [*graph.input, *graph.output]:
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            if not dimension.HasField("dim_value"):
                dimension.dim_param = f"{value.name}_{axis}" if axis else "batch"


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.partition("\n")[0][:300]


if __name__ == "__main__":
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not get into the reply
    try:
        reply = main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    except Exception as error:
        reply = {"error": _first_line(error), "traceback": traceback.format_exc()}
    print(json.dumps(reply), file=replies)
