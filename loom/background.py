"""Baselines, computed by a process of their own while the model trains."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from loom.app import AppFile, Metrics, load_app
from loom.config import TrainingConfig, from_dict, to_dict
from loom.data.pipeline import Data
from loom.errors import UserError


class Baselines:
    """An application's baselines on the test examples; they see raw examples and targets, never the model's numbers."""

    def __init__(self, file: AppFile, config: TrainingConfig, data: Data) -> None:
        context = multiprocessing.get_context("spawn")  # a forked TensorFlow hangs
        self._receiver, sender = context.Pipe(duplex=False)
        raw = data.map_splits(lambda split: replace(split, inputs={}))
        # The config as plain values: its class is unknown to the new process until the application is loaded there.
        self._process = context.Process(target=_work, args=(sender, file, to_dict(config), raw), daemon=True)
        self._process.start()
        sender.close()

    def result(self) -> dict[str, Metrics]:
        """Metrics of every baseline, by its name.

        Raises:
            UserError: The baselines refused the data.
            RuntimeError: The baselines failed; the message is their traceback.
        """
        try:
            metrics, failure = self._receiver.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"the baselines' process ended with status {self._process.exitcode}") from None
        if failure is not None:
            raise failure
        return dict(metrics)

    def cancel(self) -> None:
        """End the process if it is still at work."""
        self._process.terminate()


def _work(sender: Connection, file: AppFile, values: dict[str, Any], data: Data) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    try:
        app = load_app(file)
        sender.send((app.baselines(from_dict(app.config, values), data), None))
    except UserError as error:
        sender.send(({}, error))
    except Exception:
        sender.send(({}, RuntimeError(f"the baselines failed\n{traceback.format_exc()}")))


def end_with_parent() -> None:
    """A parent that was killed cannot end its children; a resumed run would share the cores with them."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
