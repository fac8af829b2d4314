"""What all applications share: configuration, data, training, tracking, reports, export and the `loom` command.

Importing this package is quick: TensorFlow, Keras and MLflow are imported when they are first used.
"""

from loom.app import Answer, App, Metrics, Phase
from loom.cli import main
from loom.config import TrainingConfig
from loom.data.pipeline import Data, Ragged, Split
from loom.data.spec import Field, Spec
from loom.errors import UserError

__all__ = [
    "Answer",
    "App",
    "Data",
    "Field",
    "Metrics",
    "Phase",
    "Ragged",
    "Spec",
    "Split",
    "TrainingConfig",
    "UserError",
    "main",
]
