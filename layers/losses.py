"""Losses that Keras does not have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import keras
import numpy as np
from keras import ops

from layers.masking import precise_dtype

Tensor = Any

Mining = Literal["semi-hard", "hard", "all"]
Distance = Literal["euclidean", "squared", "cosine"]
PointLoss = Literal["mse", "mae", "huber"]


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
class SmoothedCrossentropy(keras.losses.Loss):
    """Cross-entropy of classes that are given by their numbers, with smoothed labels.

        L(y, z) = log sum over v of exp(z_v) - (1 - ε) z_y - ε mean over v of z_v

    which is `keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=ε)` of one-hot labels (Szegedy et
    al., 2016, "Rethinking the inception architecture for computer vision", section 7), without making them: of a large
    vocabulary they take more time and memory than the loss itself. Steps that the mask of the logits leaves out do not
    count. Computed in at least float32.

    Args:
        label_smoothing: ε, at least 0 and below 1: the share of probability that all classes have alike.
        reduction: How the losses become one number, as in every Keras loss.
        name: Name of the loss.

    Call arguments:
        y_true: Classes, `(batch, ...)` integers.
        y_pred: Logits `(batch, ..., classes)`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> logits = keras.ops.array([[2.0, 0.0]])
        >>> round(float(SmoothedCrossentropy(0.1)(keras.ops.array([0]), logits)), 4)  # 0.95 · 0.1269 + 0.05 · 2.1269
        0.2269
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        reduction: str = "sum_over_batch_size",
        name: str = "smoothed_crossentropy",
        **kwargs: Any,
    ) -> None:
        super().__init__(reduction=reduction, name=name, **kwargs)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing!r}.")
        self.label_smoothing = label_smoothing

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Loss of each label, `(batch, ...)`."""
        logits = ops.cast(y_pred, precise_dtype(y_pred))
        is_label = ops.arange(logits.shape[-1], dtype="int32") == ops.expand_dims(ops.cast(y_true, "int32"), -1)
        # A sum that XLA takes on the way; gathering would scatter the gradient into a tensor of zeros.
        of_label = ops.sum(ops.where(is_label, logits, ops.zeros_like(logits)), axis=-1)
        loss = ops.logsumexp(logits, axis=-1) - (1 - self.label_smoothing) * of_label
        return loss - self.label_smoothing * ops.mean(logits, axis=-1) if self.label_smoothing else loss

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable(package="kerasloom")
class ForecastLoss(keras.losses.Loss):
    """What forecasts cost, where some targets may be missing.

        L(y, f) = mean over the quantiles τ of max(τ (y - f_τ), (τ - 1) (y - f_τ))

    which is least where f_τ is the τ-quantile of y (Koenker and Bassett, 1978, "Regression quantiles": the pinball
    loss); of forecasts of one number, one of Keras' losses of each step. A missing target, NaN, costs nothing: the mean
    of an example is over its other targets. Computed in at least float32.

    Args:
        kind: Keras' loss of forecasts of one number: `"mse"`, `"mae"` or `"huber"`.
        quantiles: Each above 0 and below 1; none for forecasts of one number.
        reduction: How the examples' losses become one number, as in every Keras loss.
        name: Name of the loss.

    Call arguments:
        y_true: `(batch, ...)`, NaN where a target is missing.
        y_pred: The same shape; of quantiles with an axis for them at the end.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> truth = keras.ops.array([[1.0, float("nan")]])
        >>> float(ForecastLoss("mse")(truth, keras.ops.array([[3.0, 5.0]])))
        4.0
        >>> round(float(ForecastLoss(quantiles=(0.9,))(truth, keras.ops.array([[[3.0], [5.0]]]))), 2)
        0.2
    """

    def __init__(
        self,
        kind: PointLoss = "mse",
        quantiles: Sequence[float] = (),
        reduction: str = "sum_over_batch_size",
        name: str = "forecast_loss",
        **kwargs: Any,
    ) -> None:
        super().__init__(reduction=reduction, name=name, **kwargs)
        if kind not in get_args(PointLoss):
            raise ValueError(f"kind must be one of {get_args(PointLoss)}, got {kind!r}.")
        if not all(0 < quantile < 1 for quantile in quantiles):
            raise ValueError(f"quantiles must lie between 0 and 1, got {tuple(quantiles)!r}.")
        self.kind = kind
        self.quantiles = tuple(quantiles)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Loss of each example, `(batch,)`."""
        forecast = ops.cast(y_pred, precise_dtype(y_pred))
        truth = ops.cast(y_true, forecast.dtype)
        if self.quantiles:
            truth = ops.expand_dims(truth, -1)
        known = ops.logical_not(ops.isnan(truth))
        # Not multiplied with a mask: zero times NaN is NaN.
        cost = ops.where(known, self._cost(ops.where(known, truth, 0.0), forecast), 0.0)
        axes = tuple(range(1, len(cost.shape)))
        counted = ops.cast(ops.broadcast_to(known, ops.shape(cost)), cost.dtype)
        return ops.sum(cost, axis=axes) / ops.maximum(ops.sum(counted, axis=axes), 1.0)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "kind": self.kind, "quantiles": list(self.quantiles)}

    def _cost(self, truth: Tensor, forecast: Tensor) -> Tensor:
        if not self.quantiles:
            return keras.losses.get(self.kind)(ops.expand_dims(truth, -1), ops.expand_dims(forecast, -1))
        levels, error = ops.convert_to_tensor(self.quantiles, dtype=forecast.dtype), truth - forecast
        return ops.maximum(levels * error, (levels - 1) * error)


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
