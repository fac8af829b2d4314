"""The tracking store when several processes use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support import clean_environment, client

MAKES_AN_EXPERIMENT = """
from loom.tracking import Store
store = Store()
store.check_writable()
print(store.experiment("sentiment"))
"""


@pytest.mark.slow
def test_runs_that_start_at_the_same_moment_make_one_database_and_one_experiment(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAKES_AN_EXPERIMENT]
    processes = [
        subprocess.Popen(command, cwd=tmp_path, env=clean_environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    answers = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert len(set(answers)) == 1
    assert len(client(tmp_path).search_experiments(filter_string="name = 'sentiment'")) == 1
