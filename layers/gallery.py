"""Embeddings that a model knows, kept with its weights."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

Tensor = Any


@keras.saving.register_keras_serializable(package="kerasloom")
class Gallery(keras.layers.Layer):
    """Remembers embeddings of known examples and their classes, to look for the nearest ones of a new embedding.

    In the model it hands its input on unchanged. What it remembers are weights that are not trained: they are saved and
    loaded with the model, so that a model for retrieval is whole without the examples.

    Args:
        size: Number of embeddings that are remembered.

    Call arguments:
        embeddings: `(batch, features)`.

    Output shape: that of `embeddings`.

    Raises:
        ValueError: A size below 1.

    Example:
        >>> gallery = Gallery(2)
        >>> gallery.build((None, 1))
        >>> gallery.fill([[0.5], [0.7]], [3, 4])
        >>> keras.ops.convert_to_numpy(gallery.classes).tolist()
        [3, 4]
    """

    def __init__(self, size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size!r}.")
        self.size = size

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make room for the embeddings."""
        options = {"initializer": "zeros", "trainable": False, "autocast": False}
        self.embeddings = self.add_weight((self.size, input_shape[-1]), dtype="float32", name="embeddings", **options)
        self.classes = self.add_weight((self.size,), dtype="int32", name="classes", **options)

    def fill(self, embeddings: Tensor, classes: Tensor) -> None:
        """Remember embeddings `(size, features)` and the indices of their classes `(size,)`."""
        self.embeddings.assign(ops.cast(embeddings, "float32"))
        self.classes.assign(ops.cast(classes, "int32"))

    def call(self, embeddings: Tensor) -> Tensor:
        """The embeddings as they are."""
        return embeddings

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        return {**super().get_config(), "size": self.size}
