"""Writing on against its definition: one sequence at a time, with everything read again for each token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from loom.writer import Writer

SIZE = 7
LOGITS = np.random.default_rng(0).normal(size=(SIZE, SIZE, SIZE)).astype(np.float32)
LOGITS[..., 0] = -1e9  # zero is never written


class Trigrams:
    """Knows two tokens, and how many were read."""

    def begin(self, batch: int, room: int) -> Any:
        return tf.zeros((batch,), tf.int32), tf.constant(0)

    def step(self, tokens: Any, state: Any) -> tuple[Any, Any]:
        before, read = state
        # A token that was read long ago counts too: a half that is read again is noticed.
        logits = tf.gather_nd(tf.constant(LOGITS), tf.stack([before, tokens], axis=1))
        return logits + 0.1 * tf.cast(read, tf.float32) * tf.range(SIZE, dtype=tf.float32), (tokens, read + 1)


def written(prompt: list[int], count: int, uniforms: np.ndarray, room: int) -> list[int]:
    tokens = list(prompt)
    first = 0  # what the network has read begins here
    for place in range(1, len(prompt) + count):
        if room and place - 1 - first >= room - room % 16:
            first = place - 1 - room // 2
        before = tokens[place - 2] if place - 2 >= first else 0
        logits = LOGITS[before, tokens[place - 1]] + 0.1 * (place - 1 - first) * np.arange(SIZE)
        if place >= len(prompt):
            shares = np.exp(logits - logits.max())
            cumulative = (shares / shares.sum()).cumsum()
            tokens.append(int((cumulative <= uniforms[place - len(prompt)]).sum()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("room", [0, 32])
def test_each_sequence_is_what_it_would_be_alone(room: int) -> None:
    prompts = [[3], [1, 2, 3, 4, 5] * 4, [6, 6]]
    count = 45
    uniforms = np.random.default_rng(1).uniform(size=(count, 3)).astype(np.float32)
    pieces = list(Writer(Trigrams(), room).stream([np.array(prompt) for prompt in prompts], count, uniforms))
    assert len(pieces) > 3  # a stream
    for column, prompt in enumerate(prompts):
        found = np.concatenate([piece[column] for piece in pieces]).tolist()
        assert len(found) == count
        if not room:  # where the half begins depends on the others' prompts too
            assert found == written(prompt, count, uniforms[:, column], room)
    if room:
        for column, prompt in enumerate(prompts):
            alone = Writer(Trigrams(), room).stream([np.array(prompt)], count, uniforms[:, column : column + 1])
            found = np.concatenate([piece[0] for piece in alone]).tolist()
            assert found == written(prompt, count, uniforms[:, column], room)
