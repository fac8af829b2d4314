"""Loads saved models and answers raw examples, knowing nothing of this project but what the model carries.

Run as a file, never imported: `python -P scorer.py` reads one JSON request a line from standard input,
`{"model": folder, "rows": [{column: value}, ...]}`, and writes one JSON line for each:
`{"answers": [...], "code": path of the code used}` or `{"error": ...}`.
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


def answer(folder: str, rows: list[dict[str, object]]) -> dict[str, object]:
    """Predict with a saved model."""
    answers = load(folder).predict(pd.DataFrame(rows))
    return {"answers": answers.to_dict("records"), "code": sys.modules["loom"].__file__}


for line in sys.stdin:
    request = json.loads(line)
    try:
        reply = answer(request["model"], request["rows"])
    except Exception as error:
        reply = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    print(
        json.dumps(reply, default=lambda value: getattr(value, "tolist", lambda: str(value))()),
        file=replies,
        flush=True,
    )
