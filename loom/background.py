"""Baselines, computed by a process of their own while the model trains."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection

from loom.app import AppFile, Metrics, load_app
from loom.config import TrainingConfig
from loom.data.pipeline import Data
from loom.errors import UserError


class Baselines:
    """An application's baselines on the test examples; they see raw examples and targets, never the model's numbers."""

    def __init__(self, file: AppFile, config: TrainingConfig, data: Data) -> None:
        context = multiprocessing.get_context("spawn")  # a forked TensorFlow hangs
        self._receiver, sender = context.Pipe(duplex=False)
        raw = data.map_splits(lambda split: replace(split, inputs={}))
        self._process = context.Process(target=_work, args=(sender, file, config, raw), daemon=True)
        self._process.start()
        sender.close()

    def result(self) -> dict[str, Metrics]:
        """Metrics of every baseline, by its name.

        Raises:
            RuntimeError: The baselines failed; the message is their traceback.
        """
        try:
            metrics, failure = self._receiver.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"the baselines' process ended with status {self._process.exitcode}") from None
        if failure:
            raise RuntimeError(f"the baselines failed\n{failure}")
        return dict(metrics)

    def cancel(self) -> None:
        """End the process if it is still at work."""
        self._process.terminate()


def _work(sender: Connection, file: AppFile, config: TrainingConfig, data: Data) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    try:
        sender.send((load_app(file).baselines(config, data), ""))
    except UserError as error:
        sender.send(({}, str(error)))
    except Exception:
        sender.send(({}, traceback.format_exc()))
