"""How workers share a machine: memory, threads, GPUs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from loom import UserError
from tuning import workers

GIB = 2**30


def assigned(gpus: dict[str, int], used: int, most: int = 20) -> list[str]:
    """GPU of every worker that there is room for."""
    taken: list[str] = []
    while len(taken) < most and (gpu := workers.gpu_with_room(gpus, taken, used)) is not None:
        taken.append(gpu)
    return taken


def test_every_gpu_has_one_worker_until_a_task_was_measured() -> None:
    assert assigned({"0": 16 * GIB, "1": 16 * GIB}, used=0) == ["0", "1"]


def test_small_tasks_share_a_gpu_and_large_ones_do_not() -> None:
    assert assigned({"0": 16 * GIB}, used=10 * GIB) == ["0"]
    taken = assigned({"0": 16 * GIB}, used=2 * GIB)
    assert len(taken) == int(workers.USABLE_MEMORY * 16 * GIB / (2 * GIB + workers.GPU_CONTEXT)) == 5


def test_larger_gpus_have_more_workers() -> None:
    taken = assigned({"0": 8 * GIB, "3": 24 * GIB}, used=3 * GIB)
    assert (taken.count("0"), taken.count("3")) == (2, 6)


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, with two GPUs."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '0, 16384\\n1, 24576\\n'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


@pytest.mark.usefixtures("nvidia_smi")
def test_the_driver_tells_how_much_memory_a_gpu_has() -> None:
    assert workers.gpu_memory(["1"]) == {"1": 24 * GIB}
    with pytest.raises(UserError, match="--gpus 2: there is no such GPU here, but 0, 1"):
        workers.gpu_memory(["0", "2"])


def test_without_a_driver_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--gpus 0: nvidia-smi does not tell"):
        workers.gpu_memory(["0"])


def test_threads_and_memory_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "available_cores", lambda: 8)
    assert [workers.thread_share(count) for count in (1, 2, 3, 16)] == [8, 4, 2, 1]
    assert workers.memory_share(4) * 4 == pytest.approx(workers.memory_share(1), rel=1e-6)
