"""What the tests share: a store of their own, one small trained run, and real data where there is some."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import SMALL_SENTIMENT, TrainedRun, loom


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts with the longest files, so that processes working side by side end at about the same time."""
    items.sort(key=lambda item: item.path.name not in ("test_resume.py", "test_tune.py"))


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test writes to the project's own store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


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
