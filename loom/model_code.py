"""The MLflow model of every application. MLflow copies this file into the model and runs it there: no pickle."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.models
import pandas as pd
from mlflow.pyfunc import PythonModel


class ApplicationModel(PythonModel):
    """Raw examples in, answers out, by the code saved beside it."""

    def load_context(self, context: Any) -> None:
        """Load the model; `loom` here is the one among the model's own code."""
        from loom.trained import Trained

        self.trained = Trained.open(Path(context.artifacts["trained"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row of answers for each row of raw columns."""
        return pd.DataFrame(self.trained.predict(model_input))

    def predict_stream(
        self, context: Any, model_input: dict[str, Any], params: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The answer to one example as it grows; only models that MLflow lists as streamable have one."""
        return self.trained.stream(model_input)


mlflow.models.set_model(ApplicationModel())
