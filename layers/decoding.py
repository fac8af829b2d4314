"""Decoding: from what a network says of the next token to whole sequences.

All functions work over a step `(tokens, state) -> (logits, state)`: `tokens` `(batch,)` are the last ones, `logits`
`(batch, vocabulary)` say what follows them, and `state` is whatever the network keeps of the sequences so far: tensors
in any nest of tuples, lists and dictionaries, such as the states of recurrent layers or `DecoderCache`. Their first
axis is the batch; scalars, such as the length of a cache, belong to all examples alike. What a step only reads, such as
what an encoder put out, is better closed over than part of the state.

A sequence ends with the token `end`, if one is given, and after `max_length` tokens otherwise; what follows its end is
zero. Decoding is over when all sequences of a batch have ended. Everything is computed by `keras.ops` in one loop, so
it can be traced as one function, and compiled by XLA where the step can.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

Tensor = Any
State = Any
Step = Callable[[Tensor, State], tuple[Tensor, State]]

LOW = -1e9
"""In place of minus infinity, which makes NaN of zero times itself."""


class Decoded(NamedTuple):
    """Sequences that were decoded.

    Attributes:
        tokens: `(batch, max_length)` integers, the token `end` among them; zeros after it.
        lengths: `(batch,)`: how many tokens there are, `end` among them.
        scores: `(batch,)`: log-probability of the tokens, summed; of beam search normalised by length.
    """

    tokens: Tensor
    lengths: Tensor
    scores: Tensor


def greedy(step: Step, start: Tensor, state: State, max_length: int, end: int | None = None) -> Decoded:
    """Returns sequences in which every token is the likeliest one after those before it.

    Args:
        step: What the network says of the next token, see the module.
        start: `(batch,)`: the tokens to begin with, which are no part of what is returned.
        state: The network's state before `start` is read.
        max_length: Number of tokens after which a sequence is cut.
        end: The token that ends a sequence.

    Example:
        >>> follows = keras.ops.array([[0.0, 2.0, 1.0], [0.0, 1.0, 3.0], [5.0, 0.0, 0.0]])  # 0, 1, 2, 0, 1, ...
        >>> decoded = greedy(lambda tokens, state: (keras.ops.take(follows, tokens, axis=0), state), [1], (), 4)
        >>> keras.ops.convert_to_numpy(decoded.tokens).tolist()
        [[2, 0, 1, 2]]
    """
    return _one_by_one(step, start, state, max_length, end, lambda logits, time: ops.argmax(logits, axis=-1))


def sample(
    step: Step,
    start: Tensor,
    state: State,
    uniforms: Tensor,
    end: int | None = None,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Decoded:
    """Returns sequences in which every token is drawn by its probability after those before it, see `draw`.

    Args:
        step: What the network says of the next token, see the module.
        start: `(batch,)`: the tokens to begin with, which are no part of what is returned.
        state: The network's state before `start` is read.
        uniforms: `(max_length, batch)`: numbers from 0 up to 1, all the randomness there is.
        end: The token that ends a sequence.
        temperature: As for `draw`.
        top_k: As for `draw`.
        top_p: As for `draw`.
    """
    uniforms = ops.convert_to_tensor(uniforms, "float32")

    def choose(logits: Tensor, time: Tensor) -> Tensor:
        return draw(logits, uniforms[time], temperature=temperature, top_k=top_k, top_p=top_p)

    return _one_by_one(step, start, state, uniforms.shape[0], end, choose)


def draw(logits: Tensor, uniforms: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Returns a token for each example, `(batch,)`, drawn by its probability softmax(logits / temperature).

    With `top_k` only the k likeliest tokens are left (Fan, Lewis and Dauphin, 2018, "Hierarchical neural story
    generation"); then, with `top_p`, the fewest likeliest ones whose probabilities come to at least p (Holtzman et al.,
    2020, "The curious case of neural text degeneration"). What is left is scaled to a sum of one. Among equal tokens
    those with lower numbers are likelier. A token is drawn where the cumulative probability passes a uniform number.

    Args:
        logits: `(batch, vocabulary)`.
        uniforms: `(batch,)`: numbers from 0 up to 1.
        temperature: Above 0. Below 1, what is likely gets likelier.
        top_k: How many tokens are left; 0 for all.
        top_p: How much probability is left, above 0 and at most 1.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> likely = keras.ops.array([[0.0, 3.0, 2.0, 1.0]])
        >>> [int(draw(likely, keras.ops.array([u]), top_k=2)[0]) for u in (0.0, 0.7, 0.8, 0.99)]
        [1, 1, 2, 2]
    """
    if not temperature > 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            "temperature must be above 0, top_k at least 0, and top_p above 0 and at most 1; got "
            f"{temperature}, {top_k} and {top_p}."
        )
    logits, tokens = ops.cast(logits, "float32") / temperature, None
    if top_k or top_p < 1:
        logits, tokens = ops.top_k(logits, min(top_k, logits.shape[-1]) or logits.shape[-1])
    probabilities = ops.softmax(logits)
    if top_p < 1:
        before = ops.cumsum(probabilities, axis=-1) - probabilities
        probabilities = ops.where(before < top_p, probabilities, 0.0)
        # The likeliest token is left, whatever rounding says.
        probabilities = ops.where(ops.arange(logits.shape[-1]) == 0, ops.maximum(probabilities, 1e-30), probabilities)
    cumulative = ops.cumsum(probabilities, axis=-1)
    wanted = ops.expand_dims(ops.cast(uniforms, "float32"), -1) * cumulative[:, -1:]
    places = ops.sum(ops.cast(cumulative <= wanted, "int32"), axis=-1)
    # A uniform number next to 1 may be rounded to it.
    last = ops.sum(ops.cast(cumulative < cumulative[:, -1:], "int32"), axis=-1)
    places = ops.minimum(places, last)
    if tokens is None:
        return places
    return ops.cast(ops.take_along_axis(tokens, places[:, None], axis=-1)[:, 0], "int32")


def beam_search(
    step: Step,
    start: Tensor,
    state: State,
    max_length: int,
    end: int,
    *,
    beam_width: int = 4,
    length_penalty: float = 0.6,
) -> Decoded:
    """Returns the best sequences that a beam search finds among those that end within `max_length` tokens.

        score(y) = log p(y) / ((5 + |y|) / 6)^length_penalty,   |y| with the token `end`

    (Wu et al., 2016, "Google's neural machine translation system", without coverage). In every step each of the
    `beam_width` likeliest unfinished sequences may end, which makes a candidate for the answer, and of all their other
    continuations the likeliest ones, as many again, go on. The search is over where the best unfinished sequence could
    no longer win: its probability only falls, and is divided by no more than the penalty of the greatest length. A beam
    as wide as there are unfinished sequences finds the best of all.

    Args:
        step: What the network says of the next token, see the module, for `batch * beam_width` sequences, those of an
            example next to each other. What the step closes over has to be `repeated`.
        start: `(batch,)`: the tokens to begin with, which are no part of what is returned.
        state: The network's state before `start` is read, for `batch` sequences.
        max_length: Number of tokens by which a sequence has ended, at least 1.
        end: The token that ends a sequence.
        beam_width: Number of unfinished sequences that go on, at least 1.
        length_penalty: Exponent of the penalty, at least 0: the larger, the longer the answers.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> logits = keras.ops.log(keras.ops.array([[0.1, 0.5, 0.4], [0.4, 0.3, 0.3], [0.9, 0.05, 0.05]]))
        >>> step = lambda tokens, state: (keras.ops.take(logits, tokens, axis=0), state)
        >>> decoded = beam_search(step, [0], (), 3, end=0, beam_width=2)  # 1 is likelier than 2, but 2 ends at once
        >>> keras.ops.convert_to_numpy(decoded.tokens).tolist()
        [[2, 0, 0]]
    """
    if beam_width < 1 or length_penalty < 0:
        raise ValueError(
            f"beam_width must be at least 1 and length_penalty at least 0, got {beam_width} and {length_penalty}."
        )
    start = ops.cast(start, "int32")
    batch = ops.shape(start)[0]
    first_rows = ops.expand_dims(ops.arange(batch) * beam_width, 1)
    greatest = _penalty(max_length, length_penalty)

    def unfinished(time: Tensor, last: Tensor, live: Tensor, live_scores: Tensor, best: Decoded, state: State) -> Any:
        return ops.any(ops.max(live_scores, axis=1) / greatest > best.scores)

    def go_on(time: Tensor, last: Tensor, live: Tensor, live_scores: Tensor, best: Decoded, state: State) -> Any:
        logits, state = step(last, state)
        logits = ops.cast(logits, "float32")
        live_totals = live_scores - ops.reshape(ops.logsumexp(logits, axis=-1), (-1, beam_width))
        ended = live_totals + ops.reshape(logits[:, end], (-1, beam_width))
        best = _better(best, ended / _penalty(time + 1, length_penalty), _with_token(live, time, end), time + 1)
        # The likeliest continuations of all sequences are among those of each; one of these may be the end.
        count = min(beam_width + 1, logits.shape[-1])
        values, tokens = ops.top_k(logits, count)
        values = ops.reshape(ops.where(tokens == end, LOW, values), (-1, beam_width, count))
        totals = ops.reshape(values + ops.expand_dims(live_totals, -1), (-1, beam_width * count))
        live_scores, places = ops.top_k(totals, beam_width)
        tokens = ops.take_along_axis(ops.reshape(tokens, (-1, beam_width * count)), places, axis=1)
        parents, tokens = ops.cast(places, "int32") // count, ops.cast(tokens, "int32")
        live = ops.take_along_axis(live, ops.expand_dims(parents, -1), axis=1)
        state = _of_rows(state, ops.reshape(parents + first_rows, (-1,)))
        return time + 1, ops.reshape(tokens, (-1,)), _with_token(live, time, tokens), live_scores, best, state

    # Only the first of the equal sequences may go on, or all would do the same.
    only_first = ops.where(ops.arange(beam_width) == 0, 0.0, LOW)
    nothing = Decoded(
        ops.zeros((batch, max_length), "int32"), ops.zeros((batch,), "int32"), ops.full((batch,), -float("inf"))
    )
    *_, best, _ = ops.while_loop(
        unfinished,
        go_on,
        (
            ops.convert_to_tensor(0, "int32"),
            ops.repeat(start, beam_width, axis=0),
            ops.zeros((batch, beam_width, max_length), "int32"),
            ops.broadcast_to(only_first, (batch, beam_width)),
            nothing,
            repeated(state, beam_width),
        ),
        maximum_iterations=max_length,
    )
    return Decoded(*best)


def repeated(state: State, count: int) -> State:
    """Returns a state in which every example is there so many times, next to each other; scalars stay."""
    return keras.tree.map_structure(lambda each: ops.repeat(each, count, axis=0) if len(each.shape) else each, state)


def _one_by_one(
    step: Step,
    start: Tensor,
    state: State,
    max_length: int,
    end: int | None,
    choose: Callable[[Tensor, Tensor], Tensor],
) -> Decoded:
    """Returns sequences whose tokens are chosen one after the other, for good."""
    start = ops.cast(start, "int32")

    def unfinished(time: Tensor, last: Tensor, done: Tensor, found: Decoded, state: State) -> Any:
        return ops.logical_not(ops.all(done))

    def go_on(time: Tensor, last: Tensor, done: Tensor, found: Decoded, state: State) -> Any:
        logits, state = step(last, state)
        chosen = ops.cast(choose(logits, time), "int32")
        likely = ops.log_softmax(ops.cast(logits, "float32"))
        likely = ops.take_along_axis(likely, ops.expand_dims(chosen, -1), axis=-1)[:, 0]
        chosen = ops.where(done, 0, chosen)
        found = Decoded(
            _with_token(found.tokens, time, chosen),
            found.lengths + ops.cast(ops.logical_not(done), "int32"),
            found.scores + ops.where(done, 0.0, likely),
        )
        done = done if end is None else ops.logical_or(done, chosen == end)
        return time + 1, chosen, done, found, state

    empty = ops.zeros_like(start)
    nothing = Decoded(
        ops.zeros((ops.shape(start)[0], max_length), "int32"), empty, ops.zeros_like(start, dtype="float32")
    )
    *_, found, _ = ops.while_loop(
        unfinished,
        go_on,
        (ops.convert_to_tensor(0, "int32"), start, ops.zeros_like(start, dtype="bool"), nothing, state),
        maximum_iterations=max_length,
    )
    return Decoded(*found)


def _penalty(length: Any, exponent: float) -> Any:
    return ((5.0 + (ops.cast(length, "float32") if hasattr(length, "dtype") else length)) / 6.0) ** exponent


def _better(best: Decoded, scores: Tensor, sequences: Tensor, length: Tensor) -> Decoded:
    """Returns for each example the best of what there was and of several sequences (batch, beam, time) of a length."""
    place = ops.expand_dims(ops.argmax(scores, axis=1), -1)
    score = ops.take_along_axis(scores, place, axis=1)[:, 0]
    sequence = ops.take_along_axis(sequences, ops.expand_dims(place, -1), axis=1)[:, 0]
    wins = score > best.scores
    return Decoded(
        ops.where(ops.expand_dims(wins, -1), sequence, best.tokens),
        ops.where(wins, length, best.lengths),
        ops.where(wins, score, best.scores),
    )


def _with_token(sequences: Tensor, time: Tensor, token: Any) -> Tensor:
    """Returns sequences (..., max_length) with a token, or one for each, at a time."""
    here = ops.arange(sequences.shape[-1]) == time
    return ops.where(here, ops.expand_dims(token, -1) if hasattr(token, "shape") else token, sequences)


def _of_rows(state: State, rows: Tensor) -> State:
    return keras.tree.map_structure(lambda each: ops.take(each, rows, axis=0) if len(each.shape) else each, state)
