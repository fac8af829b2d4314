"""Losses that Keras does not have."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

Tensor = Any


@keras.saving.register_keras_serializable(package="kerasloom")
class PerceptronLoss(keras.losses.Loss):
    """What a linear classifier pays for points on the wrong side of its line, or on the line itself.

    L(y, f(x)) = max(0, -y · f(x)), y ∈ {-1, 1}

    Unlike the hinge loss max(0, 1 - y · f(x)) it asks for no margin. Its gradient with respect to w, for f(x) = w · x,
    is -y · x for a misclassified point and 0 for any other, so stochastic gradient descent with batches of one example
    is the perceptron trick w ← w + rate · y · x (Rosenblatt 1958, The perceptron). A point with f(x) = 0 counts as
    misclassified: otherwise nothing would ever be learned from weights of zero.

    Args:
        reduction: How the examples' losses become one number, as in every Keras loss.
        name: Name of the loss.

    Call arguments:
        y_true: Classes `(batch, 1)`, 1 or anything not positive (0 or -1).
        y_pred: Values of f `(batch, 1)`, not squashed.

    Example:
        >>> float(PerceptronLoss()(keras.ops.array([[0.0], [1.0]]), keras.ops.array([[3.0], [3.0]])))
        1.5
    """

    def __init__(self, reduction: str = "sum_over_batch_size", name: str = "perceptron_loss", **kwargs: Any) -> None:
        super().__init__(reduction=reduction, name=name, **kwargs)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Loss of each example, `(batch,)`."""
        y_pred = ops.convert_to_tensor(y_pred)
        margin = ops.where(ops.convert_to_tensor(y_true) > 0, y_pred, -y_pred)
        # Not maximum(0, -margin), whose gradient at 0 is 0, 1/2 or 1 depending on the backend.
        return ops.mean(ops.where(margin <= 0, -margin, ops.zeros_like(margin)), axis=-1)
