"""Loads saved models and answers raw examples, knowing nothing of this project but what the model carries.

Run as a file, never imported: `python -P scorer.py` reads one JSON request a line from standard input,
`{"model": folder, "rows": [{column: value}, ...], "stream": false}` or `{"model": folder, "piece": the next part of an
endless text}`, and writes one JSON line for each: `{"answers": [...], "code": path of the code used}` or
`{"error": ...}`, or `{"refused": ...}` where the rows are to blame. Where `stream` is true for one row, and the model
can do so, lines `{"growing": answer}` come before.
"""

import functools
import gc
import json
import os
import sys
import traceback
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)  # what libraries print must not get between the replies

gc.disable()  # what is imported is no garbage, and looking for some takes a quarter of the time
import mlflow.pyfunc  # noqa: E402
import pandas as pd  # noqa: E402
import tensorflow as tf  # noqa: E402, F401

gc.freeze()
gc.enable()


@functools.lru_cache(maxsize=1)
def load(folder: str) -> Any:
    """A saved model, which one request after the other may ask."""
    return mlflow.pyfunc.load_model(folder)


@functools.lru_cache(maxsize=1)
def watch(folder: str) -> Any:
    """What reads an endless text with a saved model."""
    return load(folder).unwrap_python_model().watch()


def answer(request: dict[str, Any]) -> dict[str, object]:
    """Ask a saved model."""
    if "piece" in request:
        answers = watch(request["model"])(request["piece"])
    else:
        answers = _predicted(load(request["model"]), pd.DataFrame(request["rows"]), request["stream"])
    return {"answers": answers, "code": sys.modules["loom"].__file__}


def _predicted(model: Any, frame: pd.DataFrame, stream: bool) -> Any:
    if not (stream and model.metadata.flavors["python_function"].get("streamable")):
        return model.predict(frame).to_dict("records")
    for growing in model.predict_stream(frame):
        reply({"growing": growing})
    return [growing]


def reply(value: dict[str, object]) -> None:
    """Write a line to who asked."""
    text = json.dumps(value, default=lambda value: getattr(value, "tolist", lambda: str(value))())
    print(text, file=replies, flush=True)


for line in sys.stdin:
    request = json.loads(line)
    try:
        found = answer(request)
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        if type(error).__name__ == "UserError":  # of the model's own code, whatever that is
            found = {"refused": str(error)}
    reply(found)
