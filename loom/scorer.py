"""Loads saved models and answers raw examples, knowing nothing of this project but what the model carries.

Run as a file, never imported: `python -P scorer.py` reads one JSON request a line from standard input,
`{"model": folder, "rows": [{column: value}, ...]}` or `{"model": folder, "piece": the next part of an endless text}`,
and writes one JSON line for each: `{"answers": [...], "code": path of the code used}` or `{"error": ...}`.
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
        answers = load(request["model"]).predict(pd.DataFrame(request["rows"])).to_dict("records")
    return {"answers": answers, "code": sys.modules["loom"].__file__}


for line in sys.stdin:
    request = json.loads(line)
    try:
        reply = answer(request)
    except Exception as error:
        reply = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    print(
        json.dumps(reply, default=lambda value: getattr(value, "tolist", lambda: str(value))()),
        file=replies,
        flush=True,
    )
