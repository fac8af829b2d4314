"""Boxes around objects: how well two of them agree, and boxes as the cells of a grid predict them.

A box is (left, top, right, bottom), in pixels from the upper left corner of its image. Keras has the pairwise
intersection over union (`keras.utils.bounding_boxes.compute_iou`), TensorFlow non-maximum suppression
(`tf.image.combined_non_max_suppression`).
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

Tensor = Any


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """Generalized intersection over union of pairs of boxes (Rezatofighi et al. 2019).

        GIoU = I / U - (H - U) / H, areas of the intersection, of the union, and of the smallest box around both

    1 for equal boxes, and it falls towards -1 the further apart they are, where the intersection over union is 0
    already and has no gradient. Boxes without an area give a number too, which means nothing.

    Args:
        first: Boxes `(..., 4)`.
        second: Boxes of the same shape.

    Returns:
        `(...)`, in the dtype of the boxes.

    Example:
        >>> first, second = ops.array([0.0, 0.0, 2.0, 2.0]), ops.array([1.0, 0.0, 3.0, 2.0])
        >>> round(float(generalized_iou(first, second)), 4)  # 2 / 6 - 0 / 6
        0.3333
    """
    first, second = ops.convert_to_tensor(first), ops.convert_to_tensor(second)
    overlap = _area(ops.maximum(first[..., :2], second[..., :2]), ops.minimum(first[..., 2:], second[..., 2:]))
    hull = _area(ops.minimum(first[..., :2], second[..., :2]), ops.maximum(first[..., 2:], second[..., 2:]))
    union = _area(first[..., :2], first[..., 2:]) + _area(second[..., :2], second[..., 2:]) - overlap
    smallest = keras.config.epsilon()
    return overlap / ops.maximum(union, smallest) - (hull - union) / ops.maximum(hull, smallest)


def _area(low: Tensor, high: Tensor) -> Tensor:
    sides = ops.maximum(high - low, 0.0)
    return sides[..., 0] * sides[..., 1]


@keras.saving.register_keras_serializable(package="kerasloom")
class GIoULoss(keras.losses.Loss):
    """What boxes cost that are predicted at cells of a grid, 1 - GIoU, where cells belong to an object.

    The mean is taken over such cells of the whole batch; the others neither cost anything nor get a gradient.

    Args:
        reduction: How the cells' losses become one number, as in every Keras loss. They are scaled for the default.
        name: Name of the loss.
        **kwargs: `dtype`, as for every Keras loss.

    Call arguments:
        y_true: Boxes `(batch, rows, columns, 4)`; one without an area (zeros) says that its cell has no object.
        y_pred: Predicted boxes, of the same shape.

    Example:
        >>> wanted = ops.array([[[[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]]]])
        >>> round(float(GIoULoss()(wanted, wanted + ops.array([1.0, 0.0, 1.0, 0.0]))), 4)
        0.6667
    """

    def __init__(self, reduction: str = "sum_over_batch_size", name: str = "giou_loss", **kwargs: Any) -> None:
        super().__init__(reduction=reduction, name=name, **kwargs)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Loss of each cell, `(batch, rows, columns)`."""
        y_pred = ops.convert_to_tensor(y_pred)
        y_true = ops.cast(y_true, y_pred.dtype)
        has_object = _area(y_true[..., :2], y_true[..., 2:]) > 0
        # Where there is no object any box without a difference will do: its loss and its gradient are zero.
        wanted = ops.where(has_object[..., None], y_true, ops.stop_gradient(y_pred))
        losses = ops.where(has_object, 1 - generalized_iou(wanted, y_pred), 0.0)
        counted = ops.cast(has_object, losses.dtype)
        return losses * (ops.cast(ops.size(counted), losses.dtype) / ops.maximum(ops.sum(counted), 1.0))


@keras.saving.register_keras_serializable(package="kerasloom")
class CellBoxes(keras.layers.Layer):
    """Boxes from the distances of their four sides to the centre of the cell that predicts them (Tian et al. 2019).

        (left, top, right, bottom) = (x - d_1, y - d_2, x + d_3, y + d_4), d = stride · softplus(input)

    with (x, y) = stride · (column + 1/2, row + 1/2). FCOS itself takes exp for softplus, which grows without bounds in
    the first steps.

    Args:
        stride: Pixels of the image from one cell to the next.

    Call arguments:
        distances: `(batch, rows, columns, 4)`, any real numbers.

    Output shape: `(batch, rows, columns, 4)`.

    Raises:
        ValueError: A stride below 1.

    Example:
        >>> [round(float(side), 2) for side in CellBoxes(4)(ops.zeros((1, 1, 2, 4)))[0, 0, 1]]  # around (6, 2)
        [3.23, -0.77, 8.77, 4.77]
    """

    def __init__(self, stride: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if stride < 1:
            raise ValueError(f"stride must be at least 1, got {stride!r}.")
        self.stride = stride

    def call(self, distances: Tensor) -> Tensor:
        """The boxes of all cells."""
        rows, columns = ops.shape(distances)[1], ops.shape(distances)[2]
        ys, xs = ops.meshgrid(ops.arange(rows), ops.arange(columns), indexing="ij")
        centres = ops.cast(ops.stack([xs, ys], axis=-1), distances.dtype) + 0.5
        sides = ops.softplus(distances)
        return self.stride * ops.concatenate([centres - sides[..., :2], centres + sides[..., 2:]], axis=-1)

    def compute_output_spec(self, distances: keras.KerasTensor) -> keras.KerasTensor:
        """One box for each four distances."""
        return keras.KerasTensor(distances.shape, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {**super().get_config(), "stride": self.stride}
