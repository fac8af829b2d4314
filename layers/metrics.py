"""Metrics that Keras does not have."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

Tensor = Any


@keras.saving.register_keras_serializable(package="kerasloom")
class StepAccuracy(keras.metrics.Mean):
    """Share of the valid steps of all batches whose likeliest class is the right one.

    `keras.metrics.SparseCategoricalAccuracy` adds up what each batch has right, divided by its number of steps: where
    batches are padded to different lengths, a step of a long one counts less.

    Args:
        name: Name of the metric.
        **kwargs: `dtype`, as for every Keras metric.

    Call arguments:
        y_true: Classes, `(batch, time)` integers.
        y_pred: Probabilities or logits `(batch, time, classes)`; steps that their mask leaves out do not count.
        sample_weight: `(batch, time)`, how much each step counts, or None.

    Example:
        >>> accuracy = StepAccuracy()
        >>> accuracy.update_state([[1, 0]], keras.ops.array([[[0.0, 1.0], [0.0, 1.0]]]))
        >>> accuracy.update_state([[1]], keras.ops.array([[[0.0, 1.0]]]))
        >>> round(float(accuracy.result()), 4)  # two of three steps
        0.6667
    """

    def __init__(self, name: str = "accuracy", **kwargs: Any):
        super().__init__(name=name, **kwargs)

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> None:
        """Count the steps of a batch."""
        right = ops.equal(ops.cast(y_true, "int32"), ops.cast(ops.argmax(y_pred, axis=-1), "int32"))
        mask = getattr(y_pred, "_keras_mask", None)
        weight = ops.ones_like(right, self.dtype)
        for each in (mask, sample_weight):
            weight = weight if each is None else weight * ops.cast(each, self.dtype)
        super().update_state(ops.reshape(ops.cast(right, self.dtype), (-1,)), ops.reshape(weight, (-1,)))
