"""Raw examples to numbers, through the same preprocessing model that is exported."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from loom.data.files import as_bytes, why_no_image
from loom.data.pipeline import Column, Ragged
from loom.data.spec import Field, Spec
from loom.data.tokens import Tokenizer
from loom.errors import UserError
from loom.lazy import tf

if TYPE_CHECKING:
    import keras
    import pandas as pd

CHUNK = 1024
"""Rows preprocessed at a time."""


class Encoder:
    """Runs a preprocessing model over tables of raw examples, several chunks at a time.

    A text with a tokenizer comes to the preprocessing model as its tokens, (batch, None) integers. Outputs of unknown
    length (batch, None) become `Ragged`, without their padding zeros.
    """

    def __init__(self, preprocess: keras.Model, spec: Spec) -> None:
        self._spec = spec
        self._ragged = {name for name, tensor in preprocess.output.items() if None in tensor.shape[1:]}
        self._tokenizers = {column.name: Tokenizer(**column.tokenizer) for column in spec.inputs if column.tokenizer}
        dtypes = {column.name: tf.string if column.is_string else tf.float32 for column in spec.inputs}
        signature = {name: tf.TensorSpec((None, 1), dtype) for name, dtype in dtypes.items()}
        signature |= dict.fromkeys(self._tokenizers, tf.TensorSpec((None, None), tf.int32))
        # Traced here, once: threads that call an untraced function trace it once each.
        self._run = tf.function(preprocess, input_signature=[signature]).get_concrete_function()

    def __call__(self, frame: pd.DataFrame) -> dict[str, Column]:
        """Numbers of every row, by the names of the core model's inputs.

        Raises:
            UserError: An input column is missing, a number does not parse, or a file is no image.
        """
        raw = raw_inputs(self._spec, frame)
        starts = range(0, max(len(frame), 1), CHUNK)  # an empty table has columns too
        with ThreadPoolExecutor() as pool:
            try:
                chunks = list(pool.map(lambda start: self._encode_chunk(raw, start), starts))
            except tf.errors.InvalidArgumentError:
                _refuse_bad_images(self._spec, raw)
                raise
        return {name: _concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def _encode_chunk(self, raw: dict[str, np.ndarray], start: int) -> dict[str, Column]:
        rows = {name: column[start : start + CHUNK, None] for name, column in raw.items()}
        for name, tokenizer in self._tokenizers.items():
            tokens = tokenizer.encode(rows[name][:, 0].tolist())
            rows[name] = tokens.padded(np.arange(len(tokens)), int(tokens.lengths.max(initial=0)))
        chunk = {name: tf.constant(column) for name, column in rows.items()}
        outputs = {name: tensor.numpy() for name, tensor in self._run(chunk).items()}
        return {name: Ragged.from_padded(value) if name in self._ragged else value for name, value in outputs.items()}


def raw_inputs(spec: Spec, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """Raw columns as arrays: float32 with NaN, or strings with "" for what is missing, of images the files' bytes.

    Raises:
        UserError: An input column is missing, a number does not parse, or an image is neither bytes nor base64 text.
    """
    return {column.name: _raw_column(column, frame) for column in spec.inputs}


def _refuse_bad_images(spec: Spec, raw: Mapping[str, np.ndarray]) -> None:
    for column in spec.inputs:
        for row, content in enumerate(raw[column.name] if column.kind == "image" else ()):
            if content and (why := why_no_image(content)):
                raise UserError(f"input column {column.name!r}, row {row + 1}: {why}")


def _raw_column(column: Field, frame: pd.DataFrame) -> np.ndarray:
    import pandas as pd

    if column.name not in frame:
        raise UserError(
            f"input column {column.name!r} is missing: the columns are {', '.join(map(str, frame.columns))}"
        )
    values = frame[column.name]
    if column.kind == "image":
        return np.array([as_bytes(column.name, value) for value in values.where(values.notna(), b"")], object)
    if column.is_string:
        return values.where(values.notna(), "").astype(str).to_numpy(object)
    try:
        return pd.to_numeric(values).to_numpy(np.float32, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise UserError(f"input column {column.name!r} takes numbers: {error}") from None


def _concatenate(parts: list[Any]) -> Column:
    return Ragged.concatenate(parts) if isinstance(parts[0], Ragged) else np.concatenate(parts)


def as_tensors(raw: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Raw columns as the named (batch, 1) tensors that exported models take."""
    return {name: tf.constant(column[:, None]) for name, column in raw.items()}
