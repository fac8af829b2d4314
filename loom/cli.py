"""The `loom` command."""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from loom import commands
from loom.app import App, AppFile, list_apps, load_app, locate_app
from loom.config import TrainingConfig, changed_fields
from loom.errors import UserError

START = time.perf_counter()
T = TypeVar("T")

USAGE = """usage: loom COMMAND ...

  loom list                            the applications
  loom train APP [--field value ...]   train, test, record, save and check a model
  loom tune APP [--trials N] ...       search hyperparameters, on several processes
  loom compare APP --vary F=A,B ...    train variants with several seeds, side by side
  loom predict RUN_ID INPUT ...        answers of a trained model for raw input
  loom chat RUN_ID                     talks in the terminal with a model that takes texts
  loom watch RUN_ID                    what a model detects in an endless text on standard input, as it comes
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
    status = run(arguments)
    gc.freeze()  # or the interpreter would look for garbage among all that was imported before it ends
    sys.exit(status)


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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to be said has no reader
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


def _application(command: str, arguments: list[str]) -> AppFile | None:
    """The application that a command names, or None after its usage was printed."""
    if arguments and not arguments[0].startswith("-"):
        return locate_app(arguments[0])
    if arguments and arguments[0] in ("-h", "--help"):
        print(
            f"usage: loom {command} APP [--field value ...]\n\n`loom {command} APP --help` shows every setting of APP."
        )
        return None
    raise UserError(f"{command} needs an application: `loom {command} APP`; `loom list` shows them")


def _train(arguments: list[str]) -> int:
    file = _application("train", arguments)
    if file is None:
        return 0
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

    def __init__(self, program: str, description: str = "", **options: Any) -> None:
        super().__init__(prog=program, description=description, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


TUNE_HELP = """
Every other flag is a setting of the application: it is not searched then.

--trials N            how many configurations to try (default: 20, or the whole grid)
--oracle KIND         random, grid, bayesian or hyperband (default: random)
--max-epochs N        for Hyperband: epochs of a trial that is never stopped
--space NAME=WHAT     what to vary: LOW..HIGH[:log][:step=N] or VALUE,VALUE; may be given several times
--objective NAME      metric that makes the score (default: the application's); --direction min or max
--workers N           processes, which share out threads and memory (default: 1)
--gpus 0,1            GPUs that the workers share out
--trial-timeout S     seconds after which a trial has failed
--trial-memory GIB    memory with which a trial has failed (default: what the workers share out)
--prune median        stops trials that are clearly worse than the others at the same epoch
--seeds K             scores a configuration by its mean over K seeds (default: 1)
--max-parameters N    models with more are refused (default: what fits into a worker's memory)
--keep N              of how many of the best trials the checkpoints stay (default: 1)
--no-final            does not train the best configuration as a full run, which is tested, exported and checked
--resume STUDY        goes on with a study; --trials may grow
--warm-start STUDY    a new study that knows the trials of another (random and bayesian)
--json                makes the last line of standard output one JSON object"""


def _tune(arguments: list[str]) -> int:
    file = _application("tune", arguments)
    if file is None:
        return 0
    options, rest = _tune_options(arguments[1:])
    as_json = options.pop("json")
    if options.get("resume"):
        if rest:
            raise UserError(f"--resume goes on with the settings of the study: leave out {' '.join(rest)}")
        return commands.tune(file, None, [], options, as_json, START)
    app = load_app(file)
    base = app.config()
    config = parse_dataclass(type(base), rest, base, f"loom tune {app.name}", TUNE_HELP)
    return commands.tune(file, config, _given(config, rest), options, as_json, START)


def _given(config: TrainingConfig, arguments: list[str]) -> list[str]:
    """Settings that the command line gives."""
    words = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    names = {word.removeprefix("--").removeprefix("no-").replace("-", "_") for word in words}
    return [field.name for field in fields(config) if field.name in names]


def _tune_options(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The flags that are given, and the rest; `tuning.command.Options` knows what stands for the others."""
    parser = _Parser("loom tune APP", add_help=False, argument_default=argparse.SUPPRESS)
    for flag, kind in (
        ("--trials", int),
        ("--max-epochs", int),
        ("--workers", int),
        ("--seeds", int),
        ("--keep", int),
        ("--max-parameters", int),
        ("--trial-timeout", float),
        ("--trial-memory", float),
        ("--objective", str),
        ("--resume", str),
        ("--warm-start", str),
    ):
        parser.add_argument(flag, type=kind)
    parser.add_argument("--oracle", choices=("random", "grid", "bayesian", "hyperband"))
    parser.add_argument("--prune", choices=("none", "median"))
    parser.add_argument("--direction", choices=("min", "max"))
    parser.add_argument("--space", action="append")
    parser.add_argument("--gpus")
    parser.add_argument("--no-final", dest="final", action="store_false", default=True)
    parser.add_argument("--json", action="store_true", default=False)
    options, rest = parser.parse_known_args(arguments)
    values = vars(options)
    values["space"] = tuple(values.get("space", ()))
    values["gpus"] = tuple(gpu for gpu in values.get("gpus", "").split(",") if gpu)
    return values, rest


COMPARE_HELP = """
Every other flag is a setting of the application that all variants share.

--vary NAME=A,B       settings to compare; given several times, every combination is a variant
--seeds N             trains each variant with so many seeds (default: 3)
--workers N           processes, which share out threads and memory (default: 1)
--objective NAME      metric to compare (default: the application's); --direction min or max
--json                makes the last line of standard output one JSON object"""


def _compare(arguments: list[str]) -> int:
    file = _application("compare", arguments)
    if file is None:
        return 0
    parser = _Parser("loom compare APP", add_help=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--vary", action="append", default=[])
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--objective")
    parser.add_argument("--direction", choices=("min", "max"))
    parser.add_argument("--json", action="store_true", default=False)
    options, rest = parser.parse_known_args(arguments[1:])
    values = vars(options) | {"vary": tuple(options.vary)}
    app = load_app(file)
    base = app.config()
    config = parse_dataclass(type(base), rest, base, f"loom compare {app.name}", COMPARE_HELP)
    as_json = values.pop("json")
    return commands.compare(file, config, _given(config, rest), values, as_json, START)


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


def _chat(arguments: list[str]) -> int:
    parser = _Parser("loom chat", "A line in, a line out, on a terminal or a pipe; Ctrl-D ends.")
    parser.add_argument("run_id", metavar="RUN_ID")
    return commands.chat(parser.parse_args(arguments).run_id)


def _watch(arguments: list[str]) -> int:
    parser = _Parser(
        "loom watch", "Reads standard input as it comes, a text without end; prints a line at each detection."
    )
    parser.add_argument("run_id", metavar="RUN_ID")
    parser.add_argument("--json", action="store_true", help="print the answers as JSON, one line each")
    options = parser.parse_args(arguments)
    return commands.watch(options.run_id, options.json)


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
    "tune": _tune,
    "compare": _compare,
    "predict": _predict,
    "chat": _chat,
    "watch": _watch,
    "serve": _serve,
    "export": _export,
    "ui": _ui,
}
