"""Worker processes on this machine: what runs in them can crash, hang or fill the memory, and nothing else is lost."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from loom.config import available_cores
from loom.errors import UserError
from tuning.trial import Done, Epoch, Failed, Job, Names, Question, Task, work

GROWTH = 1.3
"""A worker is replaced when it has so many times the memory of its own that it had after its first task."""
LOOK_SECONDS = 0.25
"""Between two looks at the workers' memory and time."""
SECONDS_TO_DIE = 5.0
GPU_CONTEXT = 2**29
"""Bytes of a GPU's memory that a process uses before it has computed anything."""
USABLE_MEMORY = 0.9
"""Share of the machine's memory that the workers may use together."""


@dataclass(frozen=True)
class Limits:
    """What one task may use.

    Attributes:
        seconds: Longest time, or 0 for any.
        memory: Bytes of memory.
    """

    seconds: float
    memory: int


@dataclass
class Worker:
    """One process, and what it is at."""

    process: ForkServerProcess
    connection: Connection
    log: Path
    gpu: str
    task: Task | Question | None = None
    started: float = 0.0
    memory: int = 0
    """Bytes of its own after the first task."""


@dataclass(frozen=True)
class Event:
    """What a worker said, or what became of it."""

    task: Task | Question
    message: Epoch | Done | Failed | Names


def start_server() -> None:
    """Starts the server that workers are forked from; it imports what they need while this process goes on."""
    forkserver.set_forkserver_preload(["tuning.preloaded"])
    forkserver.ensure_running()


def memory_share(workers: int) -> int:
    """Bytes of memory for each of so many workers."""
    return int(USABLE_MEMORY * psutil.virtual_memory().total / workers)


def gpu_with_room(gpus: Mapping[str, int], taken: Sequence[str], used: int) -> str | None:
    """The GPU for one more worker, or None where none has room.

    Args:
        gpus: Bytes of memory of every GPU.
        taken: GPU of every worker that there is.
        used: Most bytes that a task has used so far, or 0 before that is known: then there is one worker on a GPU.
    """

    def left(gpu: str) -> float:
        return USABLE_MEMORY * gpus[gpu] - taken.count(gpu) * (used + GPU_CONTEXT)

    empty = [gpu for gpu in gpus if gpu not in taken]
    if empty:
        return empty[0]
    gpu = max(gpus, key=left)
    return gpu if used and left(gpu) >= used + GPU_CONTEXT else None


def gpu_memory(numbers: Sequence[str]) -> dict[str, int]:
    """Bytes of memory of these GPUs.

    Raises:
        UserError: There is no such GPU, or none at all.
    """
    command = ["nvidia-smi", "--query-gpu=index,memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"--gpus {','.join(numbers)}: nvidia-smi does not tell of any GPU here: {error}") from None
    found = {index.strip(): int(megabytes) * 2**20 for index, megabytes in (line.split(",") for line in lines)}
    for number in numbers:
        if number not in found:
            raise UserError(f"--gpus {number}: there is no such GPU here, but {', '.join(found) or 'none'}")
    return {number: found[number] for number in numbers}


def thread_share(workers: int) -> int:
    """Threads for each of so many workers."""
    return max(1, available_cores() // workers)


class Pool:
    """Workers that are forked from a server which has imported everything, and kept for several tasks.

    Args:
        job: What all tasks have in common.
        size: Number of workers.
        limits: What a task may use.
        gpus: Bytes of memory of every GPU that the workers share out, by its number; none without. There is one worker
            on each until a task has ended: then as many as its memory has room for, by the largest task so far.
    """

    def __init__(self, job: Job, size: int, limits: Limits, gpus: Mapping[str, int] | None = None) -> None:
        self._job, self.size, self._limits, self._gpus = job, size, limits, dict(gpus or {})
        self._gpu_memory = 0
        start_server()
        self._context = multiprocessing.get_context("forkserver")
        self._folder = TemporaryDirectory()
        self._workers: list[Worker] = []
        self._made = 0

    def __enter__(self) -> Pool:
        """Starts the workers."""
        self._fill()
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends them, whatever they are at."""
        for worker in [*self._workers]:
            self._end(worker)
        self._folder.cleanup()

    @property
    def is_free(self) -> bool:
        """Whether a worker has nothing to do."""
        return any(worker.task is None for worker in self._workers)

    @property
    def is_busy(self) -> bool:
        """Whether a worker has something to do."""
        return any(worker.task is not None for worker in self._workers)

    def ask(self, question: Question) -> Names:
        """Waits for an answer.

        Raises:
            UserError: There is none; the message says why.
        """
        self.submit(question)
        while True:
            for event in self.events():
                if isinstance(event.message, Names):
                    return event.message
                if isinstance(event.message, Failed):
                    raise UserError(event.message.reason)

    def submit(self, task: Task | Question) -> None:
        """Gives a task to a worker that has none."""
        worker = next(worker for worker in self._workers if worker.task is None)
        worker.task, worker.started = task, time.monotonic()
        _send(worker, task)

    def events(self, seconds: float = LOOK_SECONDS) -> Iterator[Event]:
        """Yields what has happened, after waiting for so long at most."""
        busy = [worker for worker in self._workers if worker.task is not None]
        ready = set(wait([each for worker in busy for each in (worker.connection, worker.process.sentinel)], seconds))
        for worker in busy:
            spoke = worker.connection in ready or worker.process.sentinel in ready
            if spoke and worker in self._workers and worker.task is not None:
                yield from self._said(worker)
        for worker in [*self._workers]:
            reason = worker.task and self._excess(worker)
            if worker.task is not None and reason:
                yield self._lost(worker, reason)

    def answer(self, event: Event, go_on: bool) -> None:
        """Tells the worker of an epoch whether to go on."""
        for worker in self._workers:
            if worker.task is event.task:
                _send(worker, go_on)

    def _said(self, worker: Worker) -> Iterator[Event]:
        assert worker.task is not None
        try:
            while worker.connection.poll():
                event = Event(worker.task, worker.connection.recv())
                if isinstance(event.message, Epoch):
                    yield event
                    continue
                worker.task = None
                if isinstance(event.message, Done):
                    self._rest(worker, event.message)
                yield event
                return
        except (EOFError, OSError):
            worker.process.join(SECONDS_TO_DIE)
        if not worker.process.is_alive():
            yield self._lost(worker, self._death(worker), worker.process.exitcode == -signal.SIGKILL)

    def _rest(self, worker: Worker, done: Done) -> None:
        """Keeps a worker for the next task, unless it has grown."""
        used = _own_memory(worker)
        worker.memory = worker.memory or used
        if used > GROWTH * worker.memory:
            self._end(worker)
        self._gpu_memory = max(self._gpu_memory, done.gpu_memory)
        self._fill()

    def _lost(self, worker: Worker, reason: str, was_killed: bool = False) -> Event:
        """Replaces a worker in the middle of its task."""
        assert worker.task is not None
        event = Event(worker.task, Failed(reason, was_killed))
        self._end(worker)
        self._fill()
        return event

    def _excess(self, worker: Worker) -> str:
        """Why a worker has to be stopped, or nothing."""
        limits = self._limits
        if limits.seconds and time.monotonic() - worker.started > limits.seconds:
            return f"no end after {limits.seconds:g} s (--trial-timeout)"
        if _memory(worker) > limits.memory:
            return f"out of memory: more than its share of {limits.memory / 2**30:.1f} GiB"
        return ""

    def _death(self, worker: Worker) -> str:
        status = worker.process.exitcode or 0
        if status < 0:
            name = signal.Signals(-status).name
            hint = ", perhaps out of memory" if -status == signal.SIGKILL else ""
            return f"the worker died of {name}{hint}{_last_words(worker.log)}"
        return f"the worker ended with status {status}{_last_words(worker.log)}"

    def _fill(self) -> None:
        """Starts as many workers as there is room for."""
        while len(self._workers) < self.size:
            taken = [worker.gpu for worker in self._workers]
            gpu = gpu_with_room(self._gpus, taken, self._gpu_memory) if self._gpus else ""
            if gpu is None:
                return
            self._add(gpu)

    def _add(self, gpu: str) -> None:
        self._made += 1
        ours, theirs = self._context.Pipe()
        log = Path(self._folder.name) / f"{self._made}.log"
        environment = {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
        process = self._context.Process(target=work, args=(theirs, self._job, log, environment), daemon=True)
        process.start()
        theirs.close()
        self._workers.append(Worker(process, ours, log, gpu))

    def _end(self, worker: Worker) -> None:
        self._workers.remove(worker)
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
        worker.process.close()


def _send(worker: Worker, message: Any) -> None:
    with contextlib.suppress(OSError):  # it is gone, which `events` will find out
        worker.connection.send(message)


def _own_memory(worker: Worker) -> int:
    """Memory that a worker does not share with the server, as nearly everything that it has imported."""
    try:
        return int(psutil.Process(worker.process.pid).memory_full_info().uss)
    except psutil.Error:
        return 0


def _memory(worker: Worker) -> int:
    try:
        return int(psutil.Process(worker.process.pid).memory_info().rss)
    except psutil.Error:
        return 0


def _last_words(log: Path) -> str:
    """What a process printed last, where that may say why it died."""
    try:
        text = log.read_bytes()[-20_000:].decode("utf-8", "replace")
    except OSError:
        return ""
    fatal = [line for line in text.splitlines() if line.startswith(("Fatal Python error", "F0000", "terminate called"))]
    return f": {fatal[-1][:200]}" if fatal else ""
