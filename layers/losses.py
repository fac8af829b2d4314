"""Losses that Keras does not have."""

from __future__ import annotations

from typing import Any, Literal, get_args

import keras
import numpy as np
from keras import ops

from layers.masking import precise_dtype

Tensor = Any

Mining = Literal["semi-hard", "hard", "all"]
Distance = Literal["euclidean", "squared", "cosine"]


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


@keras.saving.register_keras_serializable(package="kerasloom")
class TripletLoss(keras.losses.Loss):
    """Pulls embeddings of one class together and pushes those of different classes a margin apart.

        L(a, p, n) = max(0, d(a, p) - d(a, n) + margin)

    for triplets of an anchor a, a positive p of the same class and a negative n of another, mined from the batch:

    - `"semi-hard"`: for every anchor and positive the nearest negative that is further than the positive, or the
      furthest one if none is (Schroff et al., 2015, "FaceNet: a unified embedding for face recognition and
      clustering", which leaves the second case open);
    - `"hard"`: for every anchor its furthest positive and its nearest negative ("batch hard" of Hermans et al., 2017,
      "In defense of the triplet loss for person re-identification");
    - `"all"`: every triplet that costs something ("batch all", mean over the triplets that are not zero, ibid.).

    The mean is taken over the mined triplets of the whole batch, so anchors that are in more of them weigh more, and
    examples without a positive or a negative do not count. Without any triplet the loss and its gradient are zero, and
    so is the gradient of the distance between equal embeddings. Computed in at least float32. Mining takes
    `batch^3` numbers, `"hard"` only `batch^2`.

    Args:
        margin: By how much a negative should be further than a positive, above 0, in the unit of the distance.
        mining: `"semi-hard"`, `"hard"` or `"all"`.
        distance: `"euclidean"`, `"squared"` (its square, FaceNet's, for embeddings of length 1) or `"cosine"` (1 minus
            the cosine).
        reduction: How the anchors' losses become one number, as in every Keras loss. They are scaled for the default.
        name: Name of the loss.
        **kwargs: `dtype`, as for every Keras loss.

    Call arguments:
        y_true: Classes, `(batch,)` or `(batch, 1)` integers; float32 holds them exactly up to 2^24.
        y_pred: Embeddings `(batch, features)`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> classes, embeddings = keras.ops.array([0, 0, 1]), keras.ops.array([[0.0], [1.0], [1.5]])
        >>> float(TripletLoss(margin=1.0, mining="all")(classes, embeddings))  # of max(0, 1 - 1.5 + 1), 1 - 0.5 + 1
        1.0
    """

    def __init__(
        self,
        margin: float = 0.2,
        mining: Mining = "semi-hard",
        distance: Distance = "euclidean",
        reduction: str = "sum_over_batch_size",
        name: str = "triplet_loss",
        **kwargs: Any,
    ) -> None:
        super().__init__(reduction=reduction, name=name, **kwargs)
        if not margin > 0:
            raise ValueError(f"margin must be above 0, got {margin!r}.")
        for argument, value, choices in (("mining", mining, Mining), ("distance", distance, Distance)):
            if value not in get_args(choices):
                raise ValueError(f"{argument} must be one of {get_args(choices)}, got {value!r}.")
        self.margin = margin
        self.mining = mining
        self.distance = distance

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Loss of each anchor, `(batch,)`: the sum over its triplets, over the number of triplets per example."""
        y_pred = ops.convert_to_tensor(y_pred)
        classes = ops.reshape(ops.convert_to_tensor(y_true), (-1, 1))
        is_same = ops.equal(classes, ops.transpose(classes))
        is_other_example = ops.logical_not(ops.eye(ops.shape(classes)[0], dtype="bool"))
        distances = _distances(ops.cast(y_pred, precise_dtype(y_pred)), self.distance)
        mine = {"semi-hard": self._semi_hard, "hard": self._hard, "all": self._all}[self.mining]
        losses, is_mined = mine(distances, is_same & is_other_example, ops.logical_not(is_same))
        is_mined = ops.cast(is_mined, losses.dtype)
        examples = ops.cast(ops.shape(classes)[0], losses.dtype)
        total, others = ops.sum(is_mined), tuple(range(1, len(losses.shape)))
        return ops.sum(losses * is_mined, axis=others) * (examples / ops.maximum(total, 1))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "margin": self.margin, "mining": self.mining, "distance": self.distance}

    def _semi_hard(self, distances: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the losses of anchors and positives, `(batch, batch)`, and which of them count."""
        to_negatives = ops.expand_dims(distances, 1)
        is_further = ops.expand_dims(negative, 1) & (to_negatives > ops.expand_dims(distances, 2))
        nearest_further = ops.min(ops.where(is_further, to_negatives, _most(distances)), axis=2)
        furthest = ops.max(ops.where(negative, distances, -_most(distances)), axis=1, keepdims=True)
        mined = ops.where(ops.any(is_further, axis=2), nearest_further, furthest)
        is_mined = positive & ops.any(negative, axis=1, keepdims=True)
        return self._cost(distances, mined, is_mined), is_mined

    def _hard(self, distances: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the losses of anchors, `(batch,)`, and which of them count."""
        furthest = ops.max(ops.where(positive, distances, -_most(distances)), axis=1)
        nearest = ops.min(ops.where(negative, distances, _most(distances)), axis=1)
        is_mined = ops.any(positive, axis=1) & ops.any(negative, axis=1)
        return self._cost(furthest, nearest, is_mined), is_mined

    def _all(self, distances: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the losses of all triplets, `(batch, batch, batch)`, and which of them count."""
        is_triplet = ops.expand_dims(positive, 2) & ops.expand_dims(negative, 1)
        losses = self._cost(ops.expand_dims(distances, 2), ops.expand_dims(distances, 1), is_triplet)
        return losses, losses > 0

    def _cost(self, to_positive: Tensor, to_negative: Tensor, is_triplet: Tensor) -> Tensor:
        difference = ops.where(is_triplet, to_positive - to_negative + self.margin, 0.0)
        return ops.where(difference > 0, difference, ops.zeros_like(difference))


def _distances(embeddings: Tensor, distance: Distance) -> Tensor:
    """Returns the distances of all pairs, `(batch, batch)`."""
    if distance == "cosine":
        lengths = _root(ops.sum(embeddings * embeddings, axis=-1, keepdims=True))
        embeddings = embeddings / ops.where(lengths > 0, lengths, ops.ones_like(lengths))
        return 1 - ops.matmul(embeddings, ops.transpose(embeddings))
    # Around their centre, so that little is lost where embeddings are long and close together.
    centred = embeddings - ops.sum(embeddings, axis=0) / ops.cast(ops.shape(embeddings)[0], embeddings.dtype)
    squares = ops.sum(centred * centred, axis=-1, keepdims=True)
    sums = squares + ops.transpose(squares)
    squared = sums - 2 * ops.matmul(centred, ops.transpose(centred))
    # Rounding leaves some of what should cancel; its root would have a gradient far too large.
    is_rounding = squared <= 4 * np.finfo(precise_dtype(embeddings)).eps * sums
    squared = ops.where(is_rounding, ops.zeros_like(squared), squared)
    return squared if distance == "squared" else _root(squared)


def _root(squared: Tensor) -> Tensor:
    """Returns the square root, with a gradient of zero at zero."""
    is_zero = squared <= 0
    return ops.where(is_zero, ops.zeros_like(squared), ops.sqrt(ops.where(is_zero, ops.ones_like(squared), squared)))


def _most(distances: Tensor) -> Tensor:
    """Returns more than all distances."""
    return ops.stop_gradient(ops.max(distances)) + 1
