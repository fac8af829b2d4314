"""Linear-chain conditional random field: the tags of a sequence chosen together, not one by one.

Potentials hold everything that training and decoding need, so a model ends in `CRF`, is compiled with `CRFLoss`, and
its output is decoded by `viterbi` (`Viterbi` inside a model); none of the three knows the others.

The loops over time are XLA programs of their own in a plain graph, as those of the recurrent layers are, and the
gradient is in closed form: the logarithm of the partition function has the probabilities of all pairs of neighbouring
tags for a gradient, which the forward-backward algorithm gives.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from layers.derivatives import Tensor, Tensors, with_gradient
from layers.kernels import compiled, padded_length, required, scan
from layers.masking import precise_dtype

Shape = tuple[int | None, ...]

IMPOSSIBLE = -1e9
"""Potential of what must not be. Not minus infinity, whose differences are NaN."""

PADDING = -1e18
"""Potential by which steps that the mask leaves out are known: no sum of what must not be comes near it."""


@keras.saving.register_keras_serializable(package="kerasloom")
class CRF(keras.layers.Layer):
    """Scores of every tag after every other, from scores of the tags of each step.

        p(y | x) = exp(s(x, y)) / sum over all y' of exp(s(x, y'))
        s(x, y) = start[y_1] + sum over t of x_t[y_t] + sum over t > 1 of transitions[y_{t-1}, y_t] + end[y_T]

    Source: Lafferty, McCallum and Pereira, 2001, "Conditional random fields: probabilistic models for segmenting and
    labeling sequence data"; with a network below: Huang, Xu and Yu, 2015, "Bidirectional LSTM-CRF models for sequence
    tagging". Weights: transitions `(tags, tags)`, start `(tags,)`, end `(tags,)`.

    Args:
        transition_initializer: Initializer of the transitions.
        transition_regularizer: Regularizer of the transitions.
        **kwargs: `name`, `dtype` and `trainable`, as for every Keras layer.

    Call arguments:
        scores: `(batch, time, tags)`, not squashed: x above.
        mask: `(batch, time)` booleans, true where a step is valid. The others, wherever they stand, count as if they
            were not there, and whatever their scores hold, NaN included, reaches neither values nor gradients.

    Output shape:
        Potentials, `(batch, time, tags, tags)`: at `[b, t, i, j]` what tag j at step t adds to the score when tag i
        stands at the step before. At the first step all i hold the same. A step that the mask leaves out hands the tag
        on; before the first valid step that is tag 0. Computed, and put out, in at least float32.

    Raises:
        ValueError: If there are fewer than two tags.

    Example:
        >>> tuple(CRF()(keras.ops.zeros((2, 7, 5))).shape)
        (2, 7, 5, 5)
    """

    def __init__(self, transition_initializer: Any = "zeros", transition_regularizer: Any = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.transition_initializer = keras.initializers.get(transition_initializer)
        self.transition_regularizer = keras.regularizers.get(transition_regularizer)
        self.supports_masking = True

    def build(self, scores_shape: Shape) -> None:
        """Creates the transitions."""
        tags = scores_shape[-1]
        if tags is None or tags < 2:
            raise ValueError(
                f"scores of {self.name} must be of at least two tags, got the shape {tuple(scores_shape)}."
            )
        self.transitions = self.add_weight(
            shape=(tags, tags),
            name="transitions",
            initializer=self.transition_initializer,
            regularizer=self.transition_regularizer,
            autocast=False,
        )
        self.start = self.add_weight(shape=(tags,), name="start", initializer="zeros", autocast=False)
        self.end = self.add_weight(shape=(tags,), name="end", initializer="zeros", autocast=False)

    def call(self, scores: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the potentials."""
        dtype, (_, steps, tags) = precise_dtype(scores), ops.shape(scores)
        transitions, start, end = (ops.cast(each, dtype) for each in (self.transitions, self.start, self.end))
        place = ops.reshape(ops.arange(steps), (1, -1, 1, 1))
        valid = None if mask is None else ops.expand_dims(ops.convert_to_tensor(mask, "bool"), (2, 3))
        begins = place == 0 if valid is None else valid & (ops.cumsum(ops.cast(valid, "int32"), axis=1) == 1)
        before = ops.where(begins, ops.broadcast_to(start, (tags, tags)), transitions)
        potentials = ops.expand_dims(ops.cast(scores, dtype), 2) + before
        if valid is not None:
            potentials = ops.where(valid, potentials, _handed_on(place == 0, tags, dtype))
        return potentials + ops.where(place == steps - 1, end, ops.zeros_like(end))

    def compute_mask(self, scores: Any, mask: Any = None) -> None:
        """Returns none: the potentials know which steps are padding."""
        return

    def compute_output_shape(self, scores_shape: Shape) -> Shape:
        """Returns the shape of the potentials."""
        return (*scores_shape, scores_shape[-1])

    def compute_output_spec(self, scores: Any, mask: Any = None) -> keras.KerasTensor:
        """Returns shape and dtype of the potentials."""
        dtype = "float64" if self.compute_dtype == "float64" else "float32"
        return keras.KerasTensor(self.compute_output_shape(scores.shape), dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "transition_initializer": keras.initializers.serialize(self.transition_initializer),
            "transition_regularizer": keras.regularizers.serialize(self.transition_regularizer),
        }


@keras.saving.register_keras_serializable(package="kerasloom")
class CRFLoss(keras.losses.Loss):
    """Negative log-likelihood of the tags of whole sequences, given the potentials of a `CRF`.

        L(x, y) = -log p(y | x)

    Steps that are padding, and steps whose tag is negative (unknown), may have any tag: the likelihood is summed over
    all of them (Tsuboi et al., 2008, "Training conditional random fields using incomplete annotations").

    Args:
        reduction: How the sequences' losses become one number, as in every Keras loss. By default their mean, which
            weighs long sequences more than short ones: it is per sequence, not per step.
        name: Name of the loss.
        **kwargs: `dtype`, at least float32, as for every Keras loss.

    Call arguments:
        y_true: Integer tags `(batch, time)`.
        y_pred: Potentials `(batch, time, tags, tags)`.

    Raises:
        ValueError: If a tag is as large as the number of tags; an error of TensorFlow's in graphs, and in XLA programs,
            which cannot stop, a loss that is NaN.

    Example:
        >>> potentials = CRF()(keras.ops.zeros((1, 3, 2)))  # all 8 paths are equally likely
        >>> round(float(CRFLoss()(keras.ops.zeros((1, 3), "int32"), potentials)), 4)
        2.0794
    """

    def __init__(self, reduction: str = "sum_over_batch_size", name: str = "crf_loss", **kwargs: Any):
        super().__init__(reduction=reduction, name=name, **kwargs)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Loss of each sequence, `(batch,)`."""
        y_pred = ops.convert_to_tensor(y_pred)
        tags = ops.expand_dims(ops.cast(y_true, "int32"), -1)
        is_padding = y_pred[:, :, 0, -1:] <= PADDING / 2
        allowed = (tags < 0) | is_padding | (tags == ops.arange(y_pred.shape[-1], dtype="int32"))
        count = y_pred.shape[-1]
        message = f"CRFLoss: there are {count} tags, and y_true has one that is not below {count}."
        y_pred = required(ops.all((tags < count) | is_padding), message, y_pred)
        impossible = ops.cast(IMPOSSIBLE, y_pred.dtype)
        told = y_pred + ops.where(ops.expand_dims(allowed, 2), ops.zeros_like(impossible), impossible)
        return log_partition(y_pred) - log_partition(told)


@keras.saving.register_keras_serializable(package="kerasloom")
class Viterbi(keras.layers.Layer):
    """The most likely tags, by `viterbi`, as a layer.

    Call arguments:
        potentials: `(batch, time, tags, tags)`, see `CRF`.

    Output shape: `(batch, time)` integers.

    Example:
        >>> tuple(Viterbi()(keras.ops.zeros((1, 2, 3, 3))).shape)
        (1, 2)
    """

    def call(self, potentials: Tensor) -> Tensor:
        """Returns the tags."""
        return viterbi(potentials)

    def compute_output_spec(self, potentials: Any) -> keras.KerasTensor:
        """Returns one tag for each step."""
        return keras.KerasTensor(potentials.shape[:2], "int32")


def log_partition(potentials: Tensor) -> Tensor:
    """Returns the logarithm of the sum over all tag sequences of exp(score), `(batch,)`.

    Args:
        potentials: `(batch, time, tags, tags)`, see `CRF`.

    Example:
        >>> round(float(log_partition(CRF()(keras.ops.zeros((1, 3, 2))))[0]), 4)  # ln 8
        2.0794
    """
    steps = ops.shape(potentials)[1]
    length = padded_length(steps, training=True)
    if length is not None:
        potentials = _lengthened(potentials, length - steps)
    programs = [compiled(each, training=True) for each in (_forward, _pair_probabilities)]

    def forward(tensors: Tensors) -> tuple[Tensors, Tensors]:
        result, prefixes = programs[0](tensors[0])
        return (result,), (prefixes, result)

    def backward(tensors: Tensors, saved: Tensors, upstream: Tensors) -> Tensors:
        probabilities = programs[1](tensors[0], *saved)
        return (probabilities * ops.reshape(upstream[0], (-1, 1, 1, 1)),)

    (result,) = with_gradient(lambda tensors: _forward(*tensors)[:1], forward, backward)((potentials,))
    return result


def viterbi(potentials: Tensor) -> Tensor:
    """Returns the most likely tags, `(batch, time)` integers; padding repeats the tag before it, or is 0.

    Source: Viterbi, 1967, "Error bounds for convolutional codes and an asymptotically optimum decoding algorithm".

    Args:
        potentials: `(batch, time, tags, tags)`, see `CRF`.

    Example:
        >>> potentials = CRF()(keras.ops.array([[[0.0, 1.0], [3.0, 0.0]]]))
        >>> [int(tag) for tag in viterbi(potentials)[0]]
        [1, 0]
    """
    return compiled(_most_likely, training=False)(potentials)


def _forward(potentials: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the log partition, and that of the tags up to each step, by the last: `(time + 1, batch, tags)`."""

    def step(prefixes: tuple[Tensor], slices: tuple[Tensor]) -> tuple[tuple[Tensor], tuple[()]]:
        return (_logsumexp(ops.expand_dims(prefixes[0], -1) + slices[0], axis=1),), ()

    (last,), _, (history,) = scan(step, (_before_all(potentials),), (_time_first(potentials),), [], history=True)
    return _logsumexp(last, axis=-1), history


def _pair_probabilities(potentials: Tensor, prefixes: Tensor, total: Tensor) -> Tensor:
    """Returns the probability of tags i, j at the steps t - 1, t, `(batch, time, tags, tags)`."""

    def step(suffixes: tuple[Tensor], slices: tuple[Tensor]) -> tuple[tuple[Tensor], tuple[Tensor]]:
        return (_logsumexp(ops.expand_dims(suffixes[0], 1) + slices[0], axis=2),), suffixes

    nothing = ops.zeros_like(prefixes[0])
    _, (suffixes,), _ = scan(step, (nothing,), (_time_first(potentials),), [potentials.shape[-1]], reverse=True)
    before, after = (ops.transpose(each, (1, 0, 2)) for each in (prefixes[:-1], suffixes))
    scores = ops.expand_dims(before, -1) + potentials + ops.expand_dims(after, 2)
    return ops.exp(scores - ops.reshape(total, (-1, 1, 1, 1)))


def _most_likely(potentials: Tensor) -> Tensor:
    tags, dtype = potentials.shape[-1], potentials.dtype

    def forward(best: tuple[Tensor], slices: tuple[Tensor]) -> tuple[tuple[Tensor], tuple[Tensor]]:
        scores = ops.expand_dims(best[0], -1) + slices[0]
        return (ops.max(scores, axis=1),), (ops.cast(ops.argmax(scores, axis=1), dtype),)

    def backward(tag: tuple[Tensor], slices: tuple[Tensor]) -> tuple[tuple[Tensor], tuple[Tensor]]:
        return (ops.take_along_axis(slices[0], ops.cast(tag[0], "int32"), axis=1),), tag

    (best,), (pointers,), _ = scan(forward, (_before_all(potentials),), (_time_first(potentials),), [tags])
    last = ops.cast(ops.expand_dims(ops.argmax(best, axis=-1), -1), dtype)
    _, (path,), _ = scan(backward, (last,), (pointers,), [1], reverse=True)
    return ops.cast(ops.transpose(path[:, :, 0]), "int32")


def _before_all(potentials: Tensor) -> Tensor:
    """Returns scores of the tags before the first step, `(batch, tags)`: tag 0, as if that were known."""
    nothing = ops.zeros_like(potentials[:, 0, 0])
    return ops.where(ops.arange(potentials.shape[-1]) == 0, nothing, nothing + IMPOSSIBLE)


def _handed_on(is_first: Tensor | bool, tags: int, dtype: Any) -> Tensor:
    """Returns potentials that leave only the old tag, and at the first step only tag 0."""
    is_only = ops.where(is_first, ops.arange(tags) == 0, ops.eye(tags, dtype="bool"))
    return ops.cast(ops.where(is_only, 0.0, PADDING), dtype)


def _lengthened(potentials: Tensor, steps: Tensor) -> Tensor:
    batch, _, tags, _ = ops.shape(potentials)
    padding = ops.broadcast_to(_handed_on(False, tags, potentials.dtype), (batch, steps, tags, tags))
    return ops.concatenate([potentials, padding], axis=1)


def _time_first(potentials: Tensor) -> Tensor:
    return ops.transpose(potentials, (1, 0, 2, 3))


def _logsumexp(tensor: Tensor, axis: int) -> Tensor:
    # Not `ops.logsumexp`, which looks for infinities; there are none here.
    highest = ops.max(tensor, axis=axis, keepdims=True)
    return ops.log(ops.sum(ops.exp(tensor - highest), axis=axis)) + ops.squeeze(highest, axis)
