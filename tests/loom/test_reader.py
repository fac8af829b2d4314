"""Reading on: the same as reading at once, wherever the sequence is cut."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import tensorflow as tf

from loom import reader
from loom.reader import Reader


def leaky_sum(value: Any, state: Any) -> tuple[Any, Any]:
    (total,) = state
    total = 0.9 * total + tf.cast(value, tf.float32)
    return tf.stack([total, tf.sin(total)]), (total,)


def test_pieces_give_what_the_whole_gives_bit_for_bit() -> None:
    reading = Reader(leaky_sum, (tf.constant(0.0),), width=2)
    sequence = np.random.default_rng(0).integers(0, 9, 2 * reader.STRIDE + 77).astype(np.int32)
    whole, last = reading.read(sequence, reading.first_state)
    expected = np.zeros(len(sequence) + 1)
    for place, value in enumerate(sequence):
        expected[place + 1] = 0.9 * expected[place] + value
    np.testing.assert_allclose(whole, np.stack([expected[1:], np.sin(expected[1:])], axis=1), rtol=1e-4, atol=1e-3)
    cuts = [0, 0, 1, 2, 50, reader.STRIDE, reader.STRIDE + 1, 2 * reader.STRIDE + 1, len(sequence), len(sequence)]
    state, pieces = reading.first_state, []
    for start, end in itertools.pairwise(cuts):
        found, state = reading.read(sequence[start:end], state)
        pieces.append(found)
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    np.testing.assert_array_equal(state[0], last[0])
