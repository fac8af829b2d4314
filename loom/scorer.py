"""Loads saved models and answers raw examples, knowing nothing of this project but what the model carries.

Run as a file, never imported: `python -P scorer.py` reads one JSON request a line from standard input,
`{"model": folder, "rows": [{column: value}, ...], "stream": false}`, and writes one JSON line for each:
`{"answers": [...], "code": path of the code used}` or `{"error": ...}`. Where `stream` is true for one row, and the
model can do so, lines `{"growing": answer}` come before it.
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


def answer(folder: str, rows: list[dict[str, object]], stream: bool) -> dict[str, object]:
    """Predict with a saved model."""
    model, frame = load(folder), pd.DataFrame(rows)
    if stream and model.metadata.flavors["python_function"].get("streamable"):
        for growing in model.predict_stream(frame):
            reply({"growing": growing})
        answers = [growing]
    else:
        answers = model.predict(frame).to_dict("records")
    return {"answers": answers, "code": sys.modules["loom"].__file__}


def reply(value: dict[str, object]) -> None:
    """Write a line to who asked."""
    text = json.dumps(value, default=lambda value: getattr(value, "tolist", lambda: str(value))())
    print(text, file=replies, flush=True)


for line in sys.stdin:
    request = json.loads(line)
    try:
        found = answer(request["model"], request["rows"], request["stream"])
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    reply(found)
