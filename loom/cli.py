"""The `loom` command."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from loom import commands
from loom.app import App, AppFile, list_apps, load_app, locate_app
from loom.config import TrainingConfig, changed_fields
from loom.errors import UserError

START = time.perf_counter()
T = TypeVar("T")

USAGE = """usage: loom COMMAND ...

  loom list                            the applications
  loom train APP [--field value ...]   train, test, record, save and check a model
  loom predict RUN_ID INPUT ...        answers of a trained model for raw input
  loom serve RUN_ID [--port N]         the model as an HTTP server on this machine
  loom export RUN_ID --format F        files for other programs: keras, savedmodel, onnx, litert
  loom ui [--port N]                   the MLflow UI: runs, charts, figures, comparisons

`loom COMMAND --help` explains a command, `loom train APP --help` every setting of an application.
An application is a name from the list or the path of a file of your own. `--debug` shows tracebacks."""


def main(app: App | Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit with its status.

    Args:
        app: An application, when its file is run as a script: the arguments are those of `loom train APP`. Or the
            arguments themselves; those of the process by default.
    """
    arguments = list(app) if app is not None and not isinstance(app, App) else sys.argv[1:]
    if isinstance(app, App):
        arguments = ["train", str(Path(sys.argv[0])), *arguments]
    sys.exit(run(arguments))


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit status."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return dispatch(arguments)
    except UserError as error:
        if debug:
            traceback.print_exc()
        print("loom:", " ".join(str(error).split("\n")), file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print("loom:", str(error) or "stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141


def dispatch(arguments: list[str]) -> int:
    """Find the command and call it."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}: one of {', '.join(COMMANDS)}")
    return COMMANDS[name](rest)


def _list(arguments: list[str]) -> int:
    _Parser("loom list", "The applications, one line each.").parse_args(arguments)
    for name, line in list_apps().items():
        print(f"{name:<14} {line}")
    return 0


def _train(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] in ("-h", "--help"):
            print("usage: loom train APP [--field value ...]\n\n`loom train APP --help` shows every setting of APP.")
            return 0
        raise UserError("train needs an application: `loom train APP`; `loom list` shows them")
    file = locate_app(arguments[0])
    options, rest = _train_options(arguments[1:])
    config = _config(file, options, rest)
    return commands.train(file, config, options.resume, options.json, START)


def _train_options(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = _Parser("loom train APP", add_help=False)
    parser.add_argument("--resume", default="", metavar="RUN_ID")
    parser.add_argument("--from-run", default="", metavar="RUN_ID")
    parser.add_argument("--json", action="store_true")
    options, rest = parser.parse_known_args(arguments)
    if options.resume and options.from_run:
        raise UserError("--resume and --from-run: give one of them")
    return options, rest


TRAIN_HELP = """
--resume RUN_ID goes on with a stopped run, --from-run RUN_ID starts from the settings of another run,
--json makes the last line of standard output one JSON object."""


def _config(file: AppFile, options: argparse.Namespace, arguments: list[str]) -> TrainingConfig:
    """Settings from the command line, over those of a recorded run where one is named."""
    app = load_app(file)
    recorded = options.resume or options.from_run
    base = commands.recorded_config(app, recorded) if recorded else app.config()
    config = parse_dataclass(type(base), arguments, base, f"loom train {app.name}", TRAIN_HELP)
    if options.resume and config != base:
        changed = changed_fields(config, base)
        raise UserError(
            f"--resume goes on with the settings of the run: leave out {', '.join(changed)}, or use --from-run"
        )
    return config


def parse_dataclass(kind: type[T], arguments: list[str], default: T, program: str, description: str) -> T:
    """Flags from the fields of a dataclass; a mistake is one line.

    Raises:
        UserError: An unknown flag or a value that does not fit, in tyro's words without its box.
    """
    import tyro

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, args=arguments, default=default, prog=program, description=description)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"{_first_sentences(errors.getvalue())}; see {program} --help") from None


def _first_sentences(box: str) -> str:
    """The message in one of tyro's boxes (title, message and proposals, with rules between), on one line."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    rules = re.compile(r"^[^\w\n]*[-\u2500-\u257f]{9,}[^\w\n]*$", re.MULTILINE)
    parts = [" ".join(part.replace("\u2502", " ").split()) for part in rules.split(plain)]
    titled = plain.lstrip().startswith("\u256d")  # the title is part of the frame, or else a part of its own
    message = (parts[0].rpartition("\u256e ")[2] if titled else parts[1]) if len(parts) > 1 else parts[0]
    proposed = re.search(r"Perhaps you meant:\W*(--[\w-]+)", " ".join(parts))
    hint = f" (did you mean {proposed[1]}?)" if proposed else ""
    return message.replace("Unrecognized options:", "unknown flag").rstrip(".") + hint


class _Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line."""

    def __init__(self, program: str, description: str = "", add_help: bool = True) -> None:
        super().__init__(prog=program, description=description, allow_abbrev=False, add_help=add_help)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def _predict(arguments: list[str]) -> int:
    parser = _Parser("loom predict", "Answers of a trained model for raw input, with the code it was saved with.")
    parser.add_argument("run_id", metavar="RUN_ID")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="a text; a JSON object with one example's columns; a .csv or .tsv file; - for one input a line on stdin",
    )
    parser.add_argument("--json", action="store_true", help="print the answers as JSON, one line each")
    options = parser.parse_args(arguments)
    return commands.predict(options.run_id, options.inputs, options.json)


def _serve(arguments: list[str]) -> int:
    parser = _Parser("loom serve", "MLflow's scoring server with the model of a run: POST raw input to /invocations.")
    parser.add_argument("run_id", metavar="RUN_ID")
    _add_address(parser, 5001)
    options = parser.parse_args(arguments)
    return commands.serve(options.run_id, options.host, options.port)


def _export(arguments: list[str]) -> int:
    parser = _Parser("loom export", "Write a trained model for other programs; each file is loaded again and compared.")
    parser.add_argument("run_id", metavar="RUN_ID")
    parser.add_argument("--format", nargs="+", choices=commands.FORMATS, default=["keras"], help="default: keras")
    parser.add_argument(
        "--output", type=Path, help="folder to write to, which must not exist (default: exports/RUN_ID)"
    )
    options = parser.parse_args(arguments)
    return commands.export(options.run_id, options.format, options.output)


def _ui(arguments: list[str]) -> int:
    parser = _Parser("loom ui", "The MLflow UI on the tracking store of this folder.")
    _add_address(parser, 5000)
    options = parser.parse_args(arguments)
    return commands.ui(options.host, options.port)


def _add_address(parser: _Parser, port: int) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=port, help=f"default: {port}")


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "list": _list,
    "train": _train,
    "predict": _predict,
    "serve": _serve,
    "export": _export,
    "ui": _ui,
}
