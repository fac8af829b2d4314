"""The whole state of a training run in one file, so that a killed run goes on as if it had never stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loom.errors import UserError

if TYPE_CHECKING:
    import keras

    from loom.tracking import RecordedRun, Tracker

FOLDER, FILE = "checkpoint", "state.npz"
State = dict[str, Any]
"""Arrays by name; right after `capture`, the variables are tensors that share their memory with the model's."""


def capture(model: keras.Model, callbacks: Sequence[keras.callbacks.Callback], progress: Mapping[str, Any]) -> State:
    """Take weights, optimizer, seed generators, callbacks and `progress` (a JSON value).

    Reading a variable copies nothing: TensorFlow gives the variable new memory when it is next written to. Seed
    generators are among `model.variables` but in none of Keras' own files; without them, dropout masks after a resume
    would repeat those from the start.
    """
    state = {f"variable/{index}": _value(variable) for index, variable in enumerate(_variables(model))}
    scalars = []
    for index, callback in enumerate(callbacks):
        values, arrays = _callback_state(callback)
        scalars.append(values)
        state |= {f"callback/{index}/{name}/{part}": array for name, part, array in arrays}
    state["json"] = np.array(json.dumps({"callbacks": scalars, "progress": dict(progress)}))
    return state


def restore(state: State, model: keras.Model, callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Put a captured state back into a model (built and compiled the same way) and its callbacks.

    Raises:
        UserError: The state belongs to another model.
    """
    variables = _variables(model)
    saved = [state[f"variable/{index}"] for index in range(sum(name.startswith("variable/") for name in state))]
    if [value.shape for value in saved] != [tuple(variable.shape) for variable in variables]:
        raise UserError("the checkpoint does not fit the model: the application's code has changed since")
    for variable, value in zip(variables, saved, strict=True):
        variable.assign(value)
    for index, (callback, values) in enumerate(zip(callbacks, _json(state)["callbacks"], strict=True)):
        vars(callback).update(values)
        vars(callback).update(_callback_arrays(state, f"callback/{index}/"))


def progress(state: State) -> dict[str, Any]:
    """The `progress` that was captured."""
    return dict(_json(state)["progress"])


def save(state: State, tracker: RecordedRun) -> None:
    """Replace the run's checkpoint; a reader finds the old one or the new one, whole."""
    folder = _folder(tracker)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (FILE + ".partial")
    with partial.open("wb") as file:
        np.savez(file, **{name: np.asarray(value) for name, value in state.items()})  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / FILE)
    if tracker.local_artifacts is None:
        tracker.client.log_artifact(tracker.run_id, str(folder / FILE), FOLDER)


def read(tracker: RecordedRun) -> State | None:
    """The run's checkpoint, or None if it stopped before the first."""
    path = _folder(tracker) / FILE
    if tracker.local_artifacts is None and tracker.has_artifact(f"{FOLDER}/{FILE}"):
        path = tracker.local_copy(f"{FOLDER}/{FILE}")  # another machine may have gone on since this one stopped
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def take_over(parent: RecordedRun, tracker: Tracker) -> None:
    """Let a run that has no checkpoint yet go on from the epochs of another, which become its own."""
    state = read(parent)
    if state is None or read(tracker) is not None:
        return
    save(state, tracker)
    for record in progress(state)["epochs"]:
        tracker.log_metrics(record["metrics"], record["epoch"], record["timestamp"])


def remove(tracker: RecordedRun) -> None:
    """Delete the checkpoint of a run, if it has one."""
    folder = _folder(tracker)
    for name in (FILE, FILE + ".partial"):
        (folder / name).unlink(missing_ok=True)
    if folder.exists():
        folder.rmdir()


def _folder(tracker: RecordedRun) -> Path:
    """Where the checkpoint is written: among the artifacts if they are on this machine, else to be sent there."""
    return (
        tracker.local_artifacts / FOLDER if tracker.local_artifacts else tracker.store.folder / FOLDER / tracker.run_id
    )


def _variables(model: keras.Model) -> list[Any]:
    """Those of the model and its optimizer, or its `optimizers` where it has several."""
    optimizers = getattr(model, "optimizers", [model.optimizer])
    return [*model.variables, *(variable for optimizer in optimizers for variable in optimizer.variables)]


def _value(variable: Any) -> Any:
    return variable.value.read_value() if hasattr(variable.value, "read_value") else np.array(variable)


def _json(state: State) -> dict[str, Any]:
    return dict(json.loads(str(state["json"])))


def _callback_state(callback: keras.callbacks.Callback) -> tuple[dict[str, Any], list[tuple[str, int, np.ndarray]]]:
    """A callback's numbers (best value, epochs waited, ...) and lists of arrays (best weights)."""
    values: dict[str, Any] = {}
    arrays = []
    for name, value in vars(callback).items():
        if name.startswith("_"):
            continue
        if value is None or isinstance(value, bool | int | float | np.generic):
            values[name] = value.item() if isinstance(value, np.generic) else value
        elif isinstance(value, list) and value and all(isinstance(part, np.ndarray) for part in value):
            arrays += [(name, part, array) for part, array in enumerate(value)]
    return values, arrays


def _callback_arrays(state: State, prefix: str) -> dict[str, list[np.ndarray]]:
    lists: dict[str, dict[int, np.ndarray]] = {}
    for key in (key for key in state if key.startswith(prefix)):
        name, part = key.removeprefix(prefix).split("/")
        lists.setdefault(name, {})[int(part)] = state[key]
    return {name: [parts[index] for index in sorted(parts)] for name, parts in lists.items()}
