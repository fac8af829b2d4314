"""A trained application as an MLflow model: raw input, answers out, its own code and exact requirements."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loom.app import AppFile
from loom.data.spec import Spec
from loom.errors import UserError
from loom.lazy import load
from loom.tracking import Store, local_path
from loom.trained import Trained

if TYPE_CHECKING:
    import pandas as pd

MODEL = "model"
"""Artifact folder of the model."""
REQUIRED = ("mlflow", "tensorflow", "keras", "numpy", "pandas", "tyro", "rich", "scikit-learn", "sentencepiece")
PACKAGES = ("loom", "layers", "apps")
EXAMPLES = "examples.json"
"""File with raw examples, which every copy of the model in another format has to answer alike."""


def save_model(trained: Trained, file: AppFile, examples: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write an MLflow model, and some raw examples with it, to `folder`, which must not exist."""
    mlflow = load("mlflow")
    with tempfile.TemporaryDirectory() as scratch:
        code = _collect_code(file, Path(scratch) / "code")
        files = Path(scratch) / "trained"
        trained.save(files, file.module)
        inputs = [{column.name: example[column.name] for column in trained.spec.inputs} for example in examples]
        (files / EXAMPLES).write_text(json.dumps(inputs, ensure_ascii=False), encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow's advice on type hints, which these models' columns do not fit
            logging.getLogger("mlflow").setLevel(logging.ERROR)
            mlflow.pyfunc.save_model(
                path=str(folder),
                python_model=str(Path(__file__).with_name("model_code.py")),
                artifacts={"trained": str(files)},
                code_paths=[str(path) for path in code],
                signature=_signature(trained.spec),
                pip_requirements=[f"{package}=={version(package)}" for package in REQUIRED],
                metadata={"app": trained.app.name},
                streamable=trained.app.stream is not None,
            )


def local_model(store: Store, run_id: str) -> Path:
    """Folder of a run's model on this machine, downloaded if the store is elsewhere.

    Raises:
        UserError: The run has no model.
    """
    run = store.run(run_id)
    folder = local_path(f"{run.info.artifact_uri}/{MODEL}")
    if folder is None:
        try:
            folder = Path(store.client().download_artifacts(run_id, MODEL))
        except (load("mlflow").exceptions.MlflowException, OSError):
            folder = Path(run_id)
    if not (folder / "MLmodel").exists():
        raise UserError(
            f"run {run_id} has no model: it is {run.info.status}; "
            f"`loom train {run.data.tags.get('app', 'APP')} --resume {run_id}` finishes it"
        )
    return folder


def trained_files(model: Path) -> Path:
    """Folder of an MLflow model's own files (`Trained.save` wrote them)."""
    return model / "artifacts" / "trained"


def read_examples(files: Path) -> pd.DataFrame:
    """The raw examples saved with a model."""
    import pandas as pd

    return pd.DataFrame(json.loads((files / EXAMPLES).read_text(encoding="utf-8")))


def _collect_code(file: AppFile, folder: Path) -> list[Path]:
    """Copies of the packages a model needs, without caches; an application from elsewhere comes as its one file."""
    root = Path(__file__).resolve().parent.parent
    for package in PACKAGES:
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    paths = [folder / package for package in PACKAGES]
    if not file.inside_package:
        paths.append(folder / f"{file.module}.py")
        shutil.copy(file.path, paths[-1])
    return paths


def _signature(spec: Spec) -> Any:
    """Every raw column by name; MLflow's number types would refuse integers and missing values."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import AnyType

    columns: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string if column.kind == "text" and len(spec.inputs) == 1 else AnyType(), column.name)
        for column in spec.inputs
    ]
    return ModelSignature(inputs=Schema(columns))
