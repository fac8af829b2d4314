"""Runs an exported file as a program would that knows nothing of this project.

Run as a file, never imported: `python -P export_check.py FORMAT PATH` reads one JSON value from standard input, batches
of inputs `[{name: {"dtype": ..., "values": nested lists}, ...}, ...]`, and writes one, their outputs
`[{name: nested lists, ...}, ...]`.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)  # what libraries print must not get into the reply

Arrays = dict[str, Any]
Program = Callable[[Arrays], Arrays]


def open_keras(path: str) -> Program:
    """Keras and our layers; the process finds no other code of ours."""
    import keras

    import layers  # noqa: F401 - Keras finds registered layers only once they are imported

    model = keras.saving.load_model(path)
    return lambda inputs: model({name: keras.ops.convert_to_tensor(value) for name, value in inputs.items()})


def open_savedmodel(path: str) -> Program:
    """TensorFlow alone."""
    import tensorflow as tf

    model = tf.saved_model.load(path)
    return lambda inputs: model.serve({name: tf.constant(value) for name, value in inputs.items()})


def open_onnx(path: str) -> Program:
    """ONNX Runtime alone."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def open_litert(path: str) -> Program:
    """The LiteRT interpreter that TensorFlow brings."""
    import tensorflow as tf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces its move to a package of its own
        interpreter = tf.lite.Interpreter(model_path=path)
    run = interpreter.get_signature_runner()
    return lambda inputs: run(**inputs)


OPEN = {"keras": open_keras, "savedmodel": open_savedmodel, "onnx": open_onnx, "litert": open_litert}


def array(value: dict[str, Any]) -> np.ndarray:
    """One input from its JSON form."""
    if value["dtype"] != "string":
        return np.array(value["values"], dtype=value["dtype"])
    texts = np.array(value["values"], dtype=object)
    contents = [text.encode("utf-8", "surrogateescape") for text in texts.ravel()]  # images are no UTF-8
    return np.array([*contents, None], dtype=object)[:-1].reshape(texts.shape)


program = OPEN[sys.argv[1]](sys.argv[2])
results = [program({name: array(value) for name, value in batch.items()}) for batch in json.load(sys.stdin)]
reply = [{name: np.asarray(value).tolist() for name, value in outputs.items()} for outputs in results]
print(json.dumps(reply, default=lambda text: text.decode()), file=replies)
