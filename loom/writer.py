"""Writing on: a trained network continues sequences of tokens, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from loom.config import TrainingConfig
from loom.lazy import layers, tf

STRIDE = 16
"""Tokens that are written in one go; a stream shows them together."""
Tensor = Any
State = Any


@dataclass(frozen=True)
class SamplingConfig(TrainingConfig):
    """Settings of networks whose tokens can be drawn by chance, see `layers.draw`."""

    temperature: float = 1.0
    """Of sampling: below 1, likely tokens get likelier."""
    top_k: int = 0
    """Of sampling: only so many of the likeliest tokens are drawn from (0: all)."""
    top_p: float = 1.0
    """Of sampling: only the likeliest tokens that have so much probability together are drawn from."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        self.require("temperature", self.temperature > 0, "must be greater than 0")
        self.require("top_k", self.top_k >= 0, "must not be negative")
        self.require("top_p", 0 < self.top_p <= 1, "must be above 0 and at most 1")


class Steps(Protocol):
    """A network that reads one token after the other."""

    def begin(self, batch: Any, room: int) -> State:
        """The state before the first token, with room for so many."""

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Reads a token of each sequence, (batch,); what it says of the next, logits (batch, tokens), and the state."""


class Writer:
    """Continues sequences with tokens drawn by their probability, see `layers.draw`.

    The state of the network is carried from token to token: nothing is read twice, unless there is no room for more.
    Then it begins anew with the later half of what it had room for.

    Args:
        network: What to ask for the next token.
        room: Tokens that the network can have read, an even number; 0 if there is no limit.
        temperature: As for `layers.draw`.
        top_k: As for `layers.draw`.
        top_p: As for `layers.draw`.
    """

    def __init__(
        self, network: Steps, room: int = 0, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
    ) -> None:
        self._network = network
        self._room = room
        self._options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        self._go_on = tf.function(self._traced, reduce_retracing=True)

    def stream(self, prompts: Sequence[np.ndarray], count: int, uniforms: np.ndarray) -> Iterator[list[np.ndarray]]:
        """The next tokens of each sequence, as they come, until there are `count` for each.

        Args:
            prompts: What each begins with, at least one token each.
            count: Number of tokens to write after each.
            uniforms: Numbers from 0 up to 1 that decide, (count, sequences).
        """
        lengths = np.array([len(prompt) for prompt in prompts])
        total = int(lengths.max()) + count
        known = np.zeros((total, len(prompts)), np.int32)  # zero where it is still to be written
        drawn = np.zeros((total, len(prompts)), np.float32)
        for column, prompt in enumerate(prompts):
            known[: len(prompt), column] = prompt
            drawn[len(prompt) : len(prompt) + count, column] = uniforms[:, column]
        state, read = self._network.begin(len(prompts), self._room), 0
        start = 0
        while start < total - 1:
            if self._room and read + STRIDE > self._room:
                half = self._room // 2
                state, read = self._network.begin(len(prompts), self._room), 0
                for past in range(start - half, start, STRIDE):
                    stop = min(past + STRIDE, start)
                    _, state = self._go_on(
                        known[past:stop], known[past + 1 : stop + 1], drawn[past + 1 : stop + 1], state
                    )
                    read += stop - past
            stop = min(start + STRIDE, total - 1)
            before = known[start + 1 : stop + 1].copy()
            found, state = self._go_on(known[start:stop], before, drawn[start + 1 : stop + 1], state)
            known[start + 1 : stop + 1] = found.numpy()
            places = np.arange(start + 1, stop + 1)[:, None]
            new = (places >= lengths) & (places < lengths + count)
            yield [known[start + 1 : stop + 1, column][new[:, column]] for column in range(len(prompts))]
            read += stop - start
            start = stop

    def _traced(self, tokens: Tensor, known: Tensor, uniforms: Tensor, state: State) -> tuple[Tensor, State]:
        """Reads `tokens` (steps, batch), zeros among which are what was drawn for them; returns what follows each."""
        steps = tf.shape(tokens)[0]

        def go_on(time: Tensor, last: Tensor, found: Tensor, state: State) -> Any:
            logits, state = self._network.step(last, state)
            following = tf.cast(layers.draw(logits, uniforms[time], **self._options), tf.int32)
            following = tf.where(known[time] == 0, following, known[time])
            return time + 1, following, found.write(time, following), state

        found = tf.TensorArray(tf.int32, size=steps)
        _, _, found, state = tf.while_loop(
            lambda time, *others: time < steps, go_on, (tf.constant(0), tokens[0], found, state)
        )
        return found.stack(), state
