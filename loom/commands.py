"""What the `loom` command does, once its arguments are read."""

from __future__ import annotations

import codecs
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loom.app import Answer, App, AppFile
from loom.config import TrainingConfig, from_dict
from loom.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from loom.data.spec import Spec

FORMATS = ("keras", "savedmodel", "onnx", "litert")
PIECE = 2**16
"""Bytes of standard input that are read at a time, if so many have arrived."""


def train(file: AppFile, config: TrainingConfig, resume: str, as_json: bool, start: float) -> int:
    """Train one run; with `as_json`, standard output is one JSON object and progress goes to standard error."""
    from rich.console import Console

    from loom.train import train

    return _printed(train(file, config, Console(stderr=as_json), start, resume), as_json)


def tune(
    file: AppFile,
    config: TrainingConfig | None,
    given: list[str],
    options: dict[str, Any],
    as_json: bool,
    start: float,
) -> int:
    """Search hyperparameters; with `as_json`, progress goes to standard error."""
    from rich.console import Console

    _prepare_search()
    from tuning.command import Options, tune

    return _printed(tune(file, config, given, Options(**options), Console(stderr=as_json), start), as_json)


def compare(
    file: AppFile, config: TrainingConfig, given: list[str], options: dict[str, Any], as_json: bool, start: float
) -> int:
    """Train variants side by side; with `as_json`, progress goes to standard error."""
    from rich.console import Console

    _prepare_search()
    from tuning.compare import Options, compare

    return _printed(compare(file, config, given, Options(**options), Console(stderr=as_json), start), as_json)


def _prepare_search() -> None:
    """Start the server that workers are forked from, which imports TensorFlow beside this process.

    This process computes nothing, and is spared TensorFlow: KerasTuner is content with Keras on NumPy.
    """
    from loom.lazy import load
    from tuning.workers import start_server

    start_server()
    os.environ["KERAS_BACKEND"] = "numpy"
    load("keras_tuner")


def _printed(result: dict[str, Any], as_json: bool) -> int:
    if as_json:
        print(json.dumps(result))
    return 0


def recorded_config(app: App, run_id: str) -> TrainingConfig:
    """Settings of a recorded run of this application.

    Raises:
        UserError: No such run, or it is another application's.
    """
    from loom.tracking import Store, read_json

    store = Store()
    owner = store.run(run_id).data.tags.get("app")
    if owner != app.name:
        raise UserError(f"run {run_id} is a run of {owner}, not of {app.name}")
    return from_dict(app.config, read_json(store, run_id, "config.json"))


def predict(run_id: str, inputs: list[str], as_json: bool) -> int:
    """Print one answer a line."""
    from loom.data.files import with_files
    from loom.fresh import FreshProcess

    model = _model(run_id)
    spec = _spec(model)
    rows = [row for text in inputs for row in _read_rows(text, spec)]
    process, growing = FreshProcess(), _Growing()
    try:
        process.ask(model, [with_files(row, spec) for row in rows], stream=len(rows) == 1 and not as_json)
        answers = process.answers(model, growing.show)
    finally:
        process.close()
    asked: list[dict[str, Any]] = [{}] * len(answers) if spec.is_series else rows
    for number, (row, answer) in enumerate(zip(asked, answers, strict=True), start=1):
        if as_json:
            print(json.dumps(answer, ensure_ascii=False))
        else:
            growing.end(_describe(row, _with_images_in_files(answer, Path("predictions") / run_id, number)))
    return 0


def chat(run_id: str) -> int:
    """Answer one line after the other, until the input ends."""
    from loom.fresh import FreshProcess

    model = _model(run_id)
    spec = _spec(model)
    if [column.kind for column in spec.inputs] != ["text"]:
        names = ", ".join(column.name for column in spec.inputs)
        raise UserError(
            f"run {run_id}: chat needs a model that takes one text; this one takes {names}: use loom predict"
        )
    process = FreshProcess()
    try:
        for line in _lines_of_a_person():
            process.ask(model, [{spec.inputs[0].name: line}], stream=True)
            growing = _Growing()
            (answer,) = process.answers(model, growing.show)
            growing.end(_as_text(next(iter(answer.values()))))
    finally:
        process.close()
    return 0


def _model(run_id: str) -> Path:
    """Folder of a run's model."""
    from loom.saving import local_model
    from loom.tracking import Store

    return local_model(Store(), run_id)


def _spec(model: Path) -> Spec:
    """What a saved model takes."""
    from loom.data.spec import Spec
    from loom.saving import trained_files

    return Spec.from_json((trained_files(model) / "spec.json").read_text(encoding="utf-8"))


class _Growing:
    """A line on the screen that grows with an answer's text."""

    def __init__(self) -> None:
        self._shown = ""

    def show(self, answer: Answer) -> None:
        """Print what has been added to the answer's first value."""
        self._add(str(next(iter(answer.values()))))

    def end(self, text: str) -> None:
        """Print the rest of the line, and begin a new one."""
        self._add(text)
        print(flush=True)
        self._shown = ""

    def _add(self, text: str) -> None:
        print(text[len(self._shown) :], end="", flush=True)
        self._shown = text


def _lines_of_a_person() -> Iterator[str]:
    """Lines of standard input as they come; in a terminal after a prompt."""
    if not sys.stdin.isatty():
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # a line in another encoding has its answer too
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    print("type a line and Enter; Ctrl-D ends")
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


def watch(run_id: str, as_json: bool) -> int:
    """Read standard input as it comes, until it ends, and print what a model has to say of it at once."""
    from loom.fresh import FreshProcess

    model = _model(run_id)
    process = FreshProcess()
    try:
        process.read(model, "")  # the model is loaded, or refuses, before anything is waited for
        if sys.stdin.isatty():
            print("type, and Enter sends; Ctrl-D ends", file=sys.stderr)
        for piece in _pieces_of_text(sys.stdin.fileno()):
            for answer in process.read(model, piece):
                print(json.dumps(answer, ensure_ascii=False) if as_json else _as_line(answer))
            sys.stdout.flush()
    finally:
        process.close()
    return 0


def _pieces_of_text(file: int) -> Iterator[str]:
    """What has arrived of a UTF-8 text, whenever some has; what is not UTF-8 becomes U+FFFD.

    A character whose bytes come one after the other is there with its last one.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
    ended = False
    while not ended:
        try:
            arrived = os.read(file, PIECE)
        except OSError as error:
            raise UserError(f"standard input cannot be read: {error.strerror}; give a text") from None
        ended = not arrived
        piece = decoder.decode(arrived, final=ended)
        if piece:
            yield piece


def serve(run_id: str, host: str, port: int) -> int:
    """Run MLflow's scoring server until it is stopped."""
    model = _model(run_id)
    _check_port(host, port)
    print(f"POST raw input to http://{host}:{port}/invocations, for example:\n  {_curl(model, host, port)}", flush=True)
    arguments = ["models", "serve", "--model-uri", str(model), "--env-manager", "local"]
    return _mlflow([*arguments, "--host", host, "--port", str(port)])


def ui(host: str, port: int) -> int:
    """Run the MLflow UI until it is stopped."""
    from loom.tracking import Store

    store = Store()
    if store.uri.startswith("http"):
        print(f"MLFLOW_TRACKING_URI names a server, which shows the UI itself: {store.uri}")
        return 0
    if store.is_local and not (store.folder / "mlflow.db").exists():
        raise UserError(
            f"there is no tracking store at {store.folder} yet: train something first, or change the folder"
        )
    _check_port(host, port)
    print(f"MLflow UI: http://{host}:{port}", flush=True)
    return _mlflow(["ui", "--backend-store-uri", store.uri, "--host", host, "--port", str(port)])


def export(run_id: str, formats: list[str], output: Path | None) -> int:
    """Write a trained model in other formats."""
    from loom.export import export

    for file in export(run_id, formats, output or Path("exports") / run_id):
        print(file)
    return 0


def _read_rows(text: str, spec: Spec) -> list[dict[str, Any]]:
    """Raw examples from one INPUT argument."""
    from loom.data.files import located
    from loom.data.tables import read_table

    names = [column.name for column in spec.inputs]
    if text == "-":
        return [row for line in sys.stdin for row in _read_rows(line.rstrip("\n"), spec)]
    if text.endswith((".csv", ".tsv")):
        frame: pd.DataFrame = read_table(Path(text), required=names).frame
        rows = [{str(name): value for name, value in row.items()} for row in frame[names].to_dict("records")]
        return [located(row, spec, Path(text).parent) for row in rows]
    if text.startswith("{"):
        return [_json_row(text, names)]
    if len(names) == 1:
        return [{names[0]: text}]
    raise UserError(
        f"{text!r}: this model takes several inputs; name a .csv file, or a JSON object with {', '.join(names)}"
    )


def _json_row(text: str, names: list[str]) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{text!r} is not JSON: {error}") from None
    unknown = sorted(set(row) - set(names))
    if unknown:
        raise UserError(f"unknown input {', '.join(unknown)}: the model takes {', '.join(names)}")
    return {name: row.get(name) for name in names}


def _with_images_in_files(answer: Answer, folder: Path, number: int) -> Answer:
    """An answer for the screen, where images are named by the files that they are written to."""
    from loom.data.files import as_bytes, is_png

    shown = dict(answer)
    for name, value in answer.items():
        if is_png(value):
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{name}_{number}.png"
            path.write_bytes(as_bytes(name, value))
            shown[name] = str(path)
    return shown


def _describe(row: dict[str, Any], answer: Answer) -> str:
    example = " ".join(str(value) for value in row.values() if value is not None)
    if not row:
        return _as_line(answer)
    return f"{_as_line(answer)}  | {example if len(example) <= 80 else example[:77] + '...'}"


def _as_line(answer: Answer) -> str:
    """What an answer says first, and the rest with its names, but for empty lists."""
    first, *others = answer.items()
    shown = [f"{name} {_as_text(value)}" for name, value in others if value != []]
    return "  ".join([_as_text(first[1]), *shown])


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_as_text(each)}" for name, each in value.items()) or "nothing"
    if isinstance(value, list):
        return f"({', '.join(map(_as_text, value))})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _check_port(host: str, port: int) -> None:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"--host {host} --port {port}: {error}; choose another --port") from None


def _mlflow(arguments: list[str]) -> int:
    """Run an MLflow command with this interpreter, in a folder where none of our code lies."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    environment["PYTHONSAFEPATH"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mlflow", *arguments]
        # A group of its own: MLflow starts servers of its own, which have to end with it.
        process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return process.wait()
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            return 0


def _curl(model: Path, host: str, port: int) -> str:
    values = {"number": 1.0, "time": "2024-05-31 18:00:00", "image": "the image file as base64 text"}
    spec = _spec(model)
    example = {column.name: values.get(column.kind, "some text") for column in spec.inputs}
    rows = json.dumps(example, ensure_ascii=False) + (", ... a row for each step" if spec.is_series else "")
    body = f'{{"dataframe_records": [{rows}]}}'
    return f"curl http://{host}:{port}/invocations -H 'Content-Type: application/json' -d '{body}'"
