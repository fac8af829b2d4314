"""What the tests share: a store of their own, one small trained run, and real data where there is some."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import SMALL_SENTIMENT, TrainedRun, loom
from xdist.scheduler import LoadFileScheduling

LONGEST = ("test_sequence_contract.py", "test_tune.py", "test_resume.py")
"""Files that start first, so that no process is left alone with one of them at the end."""
SHARING = ("test_train.py", "test_model.py", "test_export.py")
"""Files that share the trained run `sentiment_run`, and so one process, next."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first."""
    items.sort(key=lambda item: (item.path.name not in LONGEST, item.path.name not in SHARING))


class ByFile(LoadFileScheduling):
    """Tests of a file run in one process, and so do those of files that share a trained run."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "sentiment_run" if file.endswith(SHARING) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """Every test process trains what its tests share."""
    return ByFile(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test writes to the project's own store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Lets processes started here be interrupted: shells start what runs in the background deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def sentiment_run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """`sentiment`, trained on its built-in data by the command."""
    folder = tmp_path_factory.mktemp("sentiment")
    outcome = loom("train", "sentiment", *SMALL_SENTIMENT, "--json", cwd=folder, fresh=True)
    assert outcome.status == 0, outcome.errors
    return TrainedRun(outcome.result["run_id"], folder, outcome)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real data sets, where the machine has one (environment variable KERASLOOM_DATA)."""
    folder = os.environ.get("KERASLOOM_DATA")
    if not folder:
        pytest.skip("KERASLOOM_DATA names no folder with real data")
    return Path(folder)
