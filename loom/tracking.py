"""Runs in MLflow: the store, and one run's settings, metrics and artifacts."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import logging
import os
import platform
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from loom.config import TrainingConfig, to_dict
from loom.errors import UserError
from loom.lazy import load

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

STORE, LOCKS = "mlruns", "locks"
VERSIONED = ("keras", "tensorflow", "mlflow", "numpy", "pandas", "keras-tuner")
"""Packages whose versions every run records."""
SYSTEM_METRICS_INTERVAL = 10
"""Seconds between two samples of processor, memory and GPU use."""
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Lets the UI show what concerns training, not its pages for language models."""


class Store:
    """The tracking store: `mlruns/` in the working directory, or the server that MLFLOW_TRACKING_URI names."""

    def __init__(self) -> None:
        self.folder = Path(STORE).resolve()
        local = f"sqlite:///{self.folder}/mlflow.db"
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or local
        self.is_local = self.uri == local
        self._client: MlflowClient | None = None

    def check_writable(self) -> None:
        """Refuse a store that cannot be used, before any work is done for it."""
        database = self.folder / "mlflow.db"
        if self.uri.startswith("http"):
            _check_answers(self.uri)
        if not self.is_local:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder}: the tracking store cannot be made: {error.strerror}") from None
        for path in (self.folder, database):
            if path.exists() and not _writable(path):
                raise UserError(f"{path}: the tracking store cannot be written; check its permissions")

    def client(self) -> MlflowClient:
        """Client of this store; the first use makes the database."""
        if self._client is None:
            mlflow = load("mlflow")
            logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
            logging.getLogger("alembic").setLevel(logging.WARNING)
            # Not `set_tracking_uri`: it would speak for every other store of this process and its children.
            with self._alone():
                self._client = mlflow.MlflowClient(tracking_uri=self.uri)
        return self._client

    def experiment(self, name: str) -> str:
        """Id of an application's experiment, made when it is not there."""
        client = self.client()
        found = client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage == "deleted":
            raise UserError(f"the experiment {name} was deleted in {self.uri}: restore it, or delete it for good")
        if found is not None:
            return found.experiment_id
        location = (self.folder / "artifacts" / name).as_uri() if self.is_local else None
        try:
            return client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS)
        except load("mlflow").exceptions.MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
            return found.experiment_id  # another process made it just now

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from making the local database at the same time."""
        if not (self.is_local and self.folder.is_dir() and _writable(self.folder)):
            yield
            return
        (self.folder / LOCKS).mkdir(exist_ok=True)
        with (self.folder / LOCKS / "store").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def forget_lock(self, run_id: str) -> None:
        """Delete the lock file of a run that nobody will go on with."""
        (self.folder / LOCKS / run_id).unlink(missing_ok=True)

    def run(self, run_id: str) -> MlflowRun:
        """Run of that id.

        Raises:
            UserError: No such run in this store.
        """
        if self.is_local and not (self.folder / "mlflow.db").exists():
            raise UserError(f"unknown run {run_id}: there is no tracking store at {self.folder} yet")
        mlflow = load("mlflow")
        try:
            return self.client().get_run(run_id)
        except mlflow.exceptions.MlflowException:
            raise UserError(f"unknown run {run_id} in {self.uri}: `loom ui` shows the runs there are") from None


class RecordedRun:
    """One run of a store."""

    def __init__(self, store: Store, run: MlflowRun) -> None:
        self.store = store
        self.client = store.client()
        self.run_id = run.info.run_id
        self.run_name = run.info.run_name
        self.experiment_id = run.info.experiment_id
        self.artifact_uri = run.info.artifact_uri

    def tags(self) -> dict[str, str]:
        """The run's tags as they are now."""
        return dict(self.client.get_run(self.run_id).data.tags)

    @property
    def local_artifacts(self) -> Path | None:
        """Folder of the run's artifacts, or None where the store keeps them elsewhere."""
        return local_path(self.artifact_uri)

    def has_artifact(self, name: str) -> bool:
        """Whether the run has an artifact of that path."""
        return any(entry.path == name for entry in self.client.list_artifacts(self.run_id, str(Path(name).parent)))

    def local_copy(self, name: str) -> Path:
        """An artifact as a path on this machine, downloaded if the store keeps it elsewhere."""
        if self.local_artifacts is not None:
            return self.local_artifacts / name
        return Path(self.client.download_artifacts(self.run_id, name))


class Tracker(RecordedRun):
    """One run that is being recorded, by this process alone."""

    def __init__(self, store: Store, run: MlflowRun) -> None:
        super().__init__(store, run)
        self._lock = _lock(store, self.run_id)
        self._system_metrics: Any = None

    @classmethod
    def create(cls, store: Store, app: str, tags: Mapping[str, str], name: str) -> Tracker:
        """Start a run."""
        return cls(store, store.client().create_run(store.experiment(app), run_name=name, tags=dict(tags)))

    @classmethod
    def reopen(cls, store: Store, run_id: str) -> Tracker:
        """Go on with a run that was stopped.

        Raises:
            UserError: No such run, it is finished, or another process is still at it.
        """
        tracker = cls(store, store.run(run_id))
        if store.run(run_id).info.status == "FINISHED":  # asked again, now that the lock is held
            tracker._lock.close()
            raise UserError(f"--resume {run_id}: the run is finished; `--from-run` trains its settings again")
        return tracker

    def restart(self) -> None:
        """Mark a reopened run as running."""
        self.client.update_run(self.run_id, status="RUNNING")
        self.set_tags({"reason": ""})

    def log_settings(self, config: TrainingConfig) -> None:
        """Record every setting, as parameters and as an artifact."""
        self.log_json("config.json", to_dict(config))
        self.log_parameters(to_dict(config))

    def log_parameters(self, values: Mapping[str, Any]) -> None:
        """Record settings, once."""
        from mlflow.entities import Param

        params = [Param(name, str(value)[:6000]) for name, value in values.items()]
        self.client.log_batch(self.run_id, params=params)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0, timestamp: int | None = None) -> None:
        """Record numbers in one request; the same step with the same timestamp (in ms) is stored once."""
        from mlflow.entities import Metric

        moment = now() if timestamp is None else timestamp
        self.client.log_batch(
            self.run_id, metrics=[Metric(name, float(value), moment, step) for name, value in metrics.items()]
        )

    def log_metrics_once(self, metrics: Mapping[str, float]) -> None:
        """Record numbers of which a run has one each; those it has already stay as they are."""
        recorded = self.client.get_run(self.run_id).data.metrics
        self.log_metrics({name: value for name, value in metrics.items() if name not in recorded})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record tags, replacing those of the same name."""
        from mlflow.entities import RunTag

        self.client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def log_json(self, name: str, value: Any) -> None:
        """Record an artifact that is one JSON value."""
        self.client.log_text(self.run_id, json.dumps(value, indent=2, ensure_ascii=False) + "\n", name)

    def log_folder(self, folder: Path, name: str) -> None:
        """Record the files of a folder as artifacts below `name`."""
        self.client.log_artifacts(self.run_id, str(folder), name)

    def log_dataset(self, name: str, source: str, fingerprint: str, counts: Mapping[str, int]) -> None:
        """Record which data the run is about, as an MLflow dataset."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=fingerprint,
            source_type="kerasloom",
            source=json.dumps({"source": source}),
            profile=json.dumps(dict(counts)),
        )
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def start_system_metrics(self) -> None:
        """Sample the machine's load in the background; runs shorter than one interval get none."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
        self._system_metrics = SystemMetricsMonitor(
            self.run_id,
            sampling_interval=SYSTEM_METRICS_INTERVAL,
            resume_logging=True,
            tracking_uri=self.store.uri,
        )
        self._system_metrics.start()

    def release(self) -> None:
        """Let other processes go on with the run, which stays open."""
        self._lock.close()

    def finish(self, status: str = "FINISHED", reason: str = "") -> None:
        """Close the run; `reason` says why it stopped or failed."""
        if self._system_metrics is not None:
            self._system_metrics.finish()
        if reason:
            self.set_tags({"reason": reason[:5000]})
        self.client.set_terminated(self.run_id, status)
        if status == "FINISHED":  # whoever waits for the lock of a stopped run has opened this very file
            Path(self._lock.name).unlink(missing_ok=True)
        self._lock.close()


def read_json(store: Store, run_id: str, name: str) -> Any:
    """An artifact of a run that is one JSON value.

    Raises:
        UserError: The run has no such artifact.
    """
    mlflow = load("mlflow")
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = store.client().download_artifacts(run_id, name, folder)
            return json.loads(Path(path).read_text(encoding="utf-8"))
    except (mlflow.exceptions.MlflowException, OSError, json.JSONDecodeError):  # or half of it
        raise UserError(f"run {run_id} has no {name}: it was stopped before it recorded its settings") from None


def run_tags(app: str, kind: str, runtime: Mapping[str, str]) -> dict[str, str]:
    """Tags that every run carries."""
    tags = {"app": app, "kind": kind, "backend": "tensorflow", **runtime}
    tags |= {"mlflow.source.name": f"loom train {app}", "mlflow.source.type": "LOCAL"}
    tags |= {"mlflow.user": _user_name()}
    tags |= versions()
    commit = _git_commit()
    return tags | ({"mlflow.source.git.commit": commit} if commit else {})


def versions() -> dict[str, str]:
    """Tags with the versions of what computes."""
    tags = {f"version.{package}": version(package) for package in VERSIONED}
    return tags | {"version.python": platform.python_version()}


def _check_answers(uri: str) -> None:
    """MLflow itself tries for minutes before it gives a server up."""
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10).close()
    except urllib.error.HTTPError:
        return  # it answers; whether it lets us in, MLflow will say
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"MLFLOW_TRACKING_URI {uri}: the tracking server does not answer: {reason}") from None


def local_path(uri: str) -> Path | None:
    """Path of a `file:` address or plain path, None for every other address."""
    parsed = urlparse(uri)
    return Path(unquote(parsed.path)) if parsed.scheme in ("", "file") else None


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _git_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.strip()
    except OSError:
        return ""


def _writable(path: Path) -> bool:
    if path.is_dir():
        probe = path / f".writable.{os.getpid()}"
        try:
            probe.touch()
            probe.unlink()
        except OSError:
            return False
        return True
    try:
        path.open("ab").close()
    except OSError:
        return False
    return True


def _lock(store: Store, run_id: str) -> IO[str]:
    """A file lock that the operating system gives back whenever and however this process ends."""
    folder = store.folder / LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    handle = (folder / run_id).open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise UserError(f"run {run_id} is still being trained by another process") from None
    return handle
