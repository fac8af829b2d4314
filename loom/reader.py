"""Reading on: a recurrent network follows a sequence without end, in pieces of any length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from loom.lazy import tf

STRIDE = 2048
"""Steps that one call of the program reads at most."""
Tensor = Any
State = Any
Step = Callable[[Tensor, State], tuple[Tensor, State]]


class Reader:
    """Reads integers one after the other and keeps the network's state from piece to piece.

    One XLA program reads as many steps as there are, each by the same operations: so what is put out is the same bit
    for bit wherever a sequence was cut, and a single step costs little more than the call.

    Args:
        step: Takes an integer, a scalar tensor, and the state; returns what the network says then, (width,) float32,
            and the next state.
        state: What it is before the first step.
        width: Number of values that are put out at each step.
    """

    def __init__(self, step: Step, state: State, width: int = 1) -> None:
        self.first_state = state
        self._step = step
        self._width = width
        self._program = tf.function(self._traced, jit_compile=True, autograph=False)

    def read(self, sequence: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        """What the network says at each step of a piece, (steps, width), and the state after it.

        Args:
            sequence: Integers, (steps,).
            state: What `read` returned for the piece before, or `first_state`.
        """
        found = [np.zeros((0, self._width), np.float32)]
        for start in range(0, len(sequence), STRIDE):
            piece = sequence[start : start + STRIDE]
            padded = np.zeros(STRIDE, np.int32)
            padded[: len(piece)] = piece
            outputs, state = self._program(tf.constant(padded), tf.constant(len(piece)), state)
            found.append(outputs.numpy()[: len(piece)])
        return np.concatenate(found), state

    def _traced(self, sequence: Tensor, steps: Tensor, state: State) -> tuple[Tensor, State]:
        def go_on(time: Tensor, found: Any, state: State) -> Any:
            output, state = self._step(sequence[time], state)
            return time + 1, found.write(time, output), state

        found = tf.TensorArray(tf.float32, size=STRIDE, element_shape=(self._width,))
        _, found, state = tf.while_loop(
            lambda time, *others: time < steps, go_on, (tf.constant(0), found, state), maximum_iterations=STRIDE
        )
        return found.stack(), state
