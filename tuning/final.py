"""A full run in a process of its own, forked from the workers' server: the one that searches has no TensorFlow."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from rich.console import Console

from loom.app import AppFile, load_app
from loom.background import end_with_parent
from loom.config import TrainingConfig, from_dict, to_dict
from loom.errors import UserError

SECONDS_TO_CLOSE = 10.0
"""For a run that is interrupted to record that."""


def train_apart(
    file: AppFile, config: TrainingConfig, console: Console, resume: str, tags: Mapping[str, str]
) -> dict[str, Any]:
    """Trains as `loom train` does; returns the same.

    Args:
        file: The application.
        config: All settings.
        console: Where progress is shown.
        resume: Run to go on with, or nothing.
        tags: More tags of the run.

    Raises:
        UserError: As `loom.train.train`.
        RuntimeError: Anything else went wrong; the message is the traceback.
    """
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    arguments = (theirs, file, to_dict(config), console.stderr, resume, dict(tags))
    process = context.Process(target=_train, args=arguments)
    process.start()
    theirs.close()
    try:
        result, failure = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the process of the full run ended with status {process.exitcode}") from None
    except KeyboardInterrupt:
        _stop(process)
        raise
    process.join()
    if failure is not None:
        raise failure
    return dict(result)


def _stop(process: BaseProcess) -> None:
    """Ctrl-C reaches both processes, SIGTERM only this one."""
    with contextlib.suppress(KeyboardInterrupt):
        process.join(SECONDS_TO_CLOSE)
    if process.is_alive():
        process.terminate()
        process.join()


def _train(
    sender: Connection, file: AppFile, values: dict[str, Any], to_stderr: bool, resume: str, tags: dict[str, str]
) -> None:
    from loom.train import train

    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        config = from_dict(load_app(file).config, values)
        result = train(file, config, Console(stderr=to_stderr), time.perf_counter(), resume, tags)
        sender.send((result, None))
    except UserError as error:
        sender.send(({}, error))
    except KeyboardInterrupt:
        return
    except Exception:
        sender.send(({}, RuntimeError(f"the full run failed\n{traceback.format_exc()}")))
