"""Decoding against enumeration, plain references and distributions; caches of layers against whole sequences."""

import doctest
from itertools import product

import keras
import numpy as np
import pytest
from keras import ops
from scipy import stats

import layers
from layers import beam_search, decoding, draw, greedy, sample

V, L, B, END = 4, 4, 5, 1  # vocabulary, longest sequence, batch, the token that ends one
SCALE = 2.0


class Table:
    """Random logits for every example and every sequence of tokens: `table[example, sequence read as a number]`."""

    def __init__(self, rng):
        self.logits = rng.normal(scale=SCALE, size=(B, (V + 1) ** (L + 1), V)).astype("float32")
        self.start = ops.zeros((B,), "int32")
        self.state = {"row": ops.arange(B), "read": ops.zeros((B,), "int32"), "steps": ops.convert_to_tensor(0)}

    def step(self, tokens, state):
        read = state["read"] * (V + 1) + tokens + 1
        table = ops.reshape(ops.convert_to_tensor(self.logits), (-1, V))
        logits = ops.take(table, state["row"] * self.logits.shape[1] + read, axis=0)
        return logits, {"row": state["row"], "read": read, "steps": state["steps"] + 1}

    def next(self, row, sequence):
        """Log-probabilities of what follows a sequence, by numpy."""
        read = 0
        for token in (0, *sequence):
            read = read * (V + 1) + token + 1
        return log_softmax(self.logits[row, read])


@pytest.fixture
def table(rng):
    return Table(rng)


def log_softmax(logits):
    logits = np.asarray(logits, "float64")
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def penalty(length, exponent):
    return ((5 + length) / 6) ** exponent


def probability(following, sequence):
    return sum(following(sequence[:place])[token] for place, token in enumerate(sequence))


def best_of_all(following, exponent):
    """By enumeration of every sequence that ends."""
    others = [token for token in range(V) if token != END]
    sequences = [(*body, END) for length in range(L) for body in product(others, repeat=length)]
    return max((probability(following, each) / penalty(len(each), exponent), each) for each in sequences)


def best_of_beam(following, width, exponent, length=L):
    """Beam search as its docstring says, sequence by sequence."""
    live, ended = [(0.0, ())], []
    for time in range(length):
        ended += [((total + following(each)[END]) / penalty(time + 1, exponent), (*each, END)) for total, each in live]
        continued = [
            (total + value, (*each, token))
            for total, each in live
            for token, value in enumerate(following(each))
            if token != END
        ]
        live = sorted(continued, reverse=True)[:width]
    return max(ended)


def sequences(decoded):
    tokens, lengths = ops.convert_to_numpy(decoded.tokens), ops.convert_to_numpy(decoded.lengths)
    assert not any(row[length:].any() for row, length in zip(tokens, lengths, strict=True))
    return [tuple(row[:length].tolist()) for row, length in zip(tokens, lengths, strict=True)]


def assert_found(decoded, expected):
    assert sequences(decoded) == [sequence for _, sequence in expected]
    np.testing.assert_allclose(ops.convert_to_numpy(decoded.scores), [score for score, _ in expected], atol=1e-5)


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_sequences(table, in_graph, exponent):
    search = in_graph(
        lambda start, state: beam_search(
            table.step, start, state, L, END, beam_width=(V - 1) ** (L - 1), length_penalty=exponent
        )
    )
    expected = [best_of_all(lambda each, row=row: table.next(row, each), exponent) for row in range(B)]
    assert_found(search(table.start, table.state), expected)


@pytest.mark.parametrize(("width", "exponent"), [(1, 0.6), (2, 0.0), (3, 1.0)])
def test_a_narrow_beam_finds_what_the_slow_search_finds(table, width, exponent):
    found = beam_search(table.step, table.start, table.state, L, END, beam_width=width, length_penalty=exponent)
    expected = [best_of_beam(lambda each, row=row: table.next(row, each), width, exponent) for row in range(B)]
    assert_found(found, expected)


def test_greedy_takes_the_likeliest_token_each_time(table, in_graph):
    found = in_graph(lambda start, state: greedy(table.step, start, state, L, END))(table.start, table.state)
    expected = []
    for row in range(B):
        sequence, total = (), 0.0
        while len(sequence) < L and END not in sequence:
            following = table.next(row, sequence)
            sequence, total = (*sequence, int(following.argmax())), total + following.max()
        expected.append((total, sequence))
    assert_found(found, expected)


def test_a_program_decodes_as_the_plain_functions_do(table):
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        def compiled(function):
            return tf.function(function, jit_compile=True)
    else:
        import jax

        compiled = jax.jit
    uniforms = np.random.default_rng(0).uniform(size=(L, B)).astype("float32")
    for function in (
        lambda start, state: beam_search(table.step, start, state, L, END, beam_width=3),
        lambda start, state: sample(table.step, start, state, uniforms, END, top_k=3, top_p=0.9),
    ):
        expected, found = function(table.start, table.state), compiled(function)(table.start, table.state)
        assert sequences(found) == sequences(expected)
        np.testing.assert_allclose(ops.convert_to_numpy(found.scores), ops.convert_to_numpy(expected.scores), rtol=1e-5)


@pytest.mark.tensorflow_only
def test_decoding_is_over_when_all_sequences_have_ended():
    """Eagerly every step is a call."""
    for decode in (greedy, beam_search):
        calls = []

        def step(tokens, state, calls=calls):
            calls.append(tokens)
            wanted = END if len(calls) >= 3 else 2
            return ops.where(ops.arange(V) == wanted, 9.0, 0.0) * ops.ones((len(tokens), 1)), state

        assert sequences(decode(step, [0, 0], (), 50, END)) == [(2, 2, END)] * 2
        # The beam has to see that what is still open can no longer win.
        assert len(calls) == 3 if decode is greedy else len(calls) < 10


def test_without_an_end_sequences_have_the_greatest_length(table):
    found = sequences(greedy(table.step, table.start, table.state, L))
    assert [len(each) for each in found] == [L] * B


@pytest.fixture(params=["gru", "transformer"])
def network(request, rng):
    """A language model: its step with a cache, the state before the first token, and logits of whole sequences."""
    embedding, dense = keras.layers.Embedding(V, 8), keras.layers.Dense(V, kernel_initializer="random_normal")
    embedding.build((None, None))
    dense.build((None, 8))
    embedding.set_weights([rng.normal(size=(V, 8))])
    dense.set_weights([rng.normal(size=(8, V)), np.array([0, -2, 0, 0])])
    if request.param == "gru":
        layer = layers.GRU(8, return_sequences=True)
        layer.build((None, None, 8))
        state = (ops.zeros((B, 8)),)
    else:
        layer = layers.TransformerDecoderBlock(2, 16, cross_attention=False, rotary=True)
        layer.build((None, None, 8))
        state = layer.empty_cache(B, L)

    def step(tokens, state):
        output, state = layer.step(embedding(tokens), state)
        return dense(output), state

    return step, state, lambda tokens: dense(layer(embedding(ops.convert_to_tensor(tokens))))


def test_the_state_of_layers_follows_its_sequence(network, in_graph):
    """Scores with the cache, whose rows move with every step of a search, are those of whole sequences without one."""
    step, state, whole = network

    starts = np.arange(B, dtype="int32") % V
    others = [token for token in range(V) if token != END]
    read = list(product(set(starts.tolist()), *[others] * (L - 1)))
    logits = ops.convert_to_numpy(whole(np.array(read, "int32")))
    known = {each[: n + 1]: log_softmax(row[n]) for each, row in zip(read, logits, strict=True) for n in range(L)}

    def after(start):
        return lambda sequence: known[(start, *sequence)]

    found = in_graph(lambda state: beam_search(step, starts, state, L, END, beam_width=3))(state)
    assert_found(found, [best_of_beam(after(start), 3, 0.6) for start in starts.tolist()])
    found = in_graph(lambda state: greedy(step, starts, state, L, END))(state)
    for start, sequence, score in zip(
        starts.tolist(), sequences(found), ops.convert_to_numpy(found.scores), strict=True
    ):
        assert all(token == after(start)(sequence[:place]).argmax() for place, token in enumerate(sequence))
        assert score == pytest.approx(probability(after(start), sequence), abs=1e-4)


DRAWS = 20_000
LOGITS = np.array([1.0, -0.5, 2.0, 0.3, 1.9, -1.0], "float32")


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"temperature": 0.5}, [0, 1, 2, 3, 4, 5]),
        ({"top_k": 2}, [2, 4]),
        ({"top_k": 10}, [0, 1, 2, 3, 4, 5]),
        ({"top_p": 0.3}, [2]),  # 0.39 are of token 2 alone
        ({"top_p": 0.8}, [0, 2, 4]),
        ({"top_k": 3, "top_p": 0.6, "temperature": 2.0}, [2, 4]),
        ({"top_p": 1e-6}, [2]),
    ],
)
def test_tokens_are_drawn_from_what_is_left_by_their_probability(rng, options, left):
    uniforms = rng.uniform(size=DRAWS).astype("float32")
    drawn = draw(ops.convert_to_tensor(np.tile(LOGITS, (DRAWS, 1))), ops.convert_to_tensor(uniforms), **options)
    counts = np.bincount(ops.convert_to_numpy(drawn), minlength=len(LOGITS))
    assert np.flatnonzero(counts).tolist() == left
    weights = np.exp(LOGITS[left].astype("float64") / options.get("temperature", 1.0))
    expected = DRAWS * weights / weights.sum()
    assert len(left) == 1 or stats.chisquare(counts[left], expected).pvalue > 0.001


def test_every_uniform_number_draws_a_token_that_is_left():
    logits = ops.convert_to_tensor(np.tile(LOGITS, (3, 1)))
    uniforms = ops.convert_to_tensor(np.array([0.0, 0.5, 1.0], "float32"))
    for options in ({}, {"top_k": 2}, {"top_p": 0.7}):
        drawn = ops.convert_to_numpy(draw(logits, uniforms, **options))
        assert set(drawn) <= ({2, 4} if options else set(range(6)))


def test_a_sample_draws_each_token_after_those_before_it(table, in_graph):
    """With a temperature near zero it is greedy; otherwise each token is what `draw` takes at its time."""
    uniforms = np.random.default_rng(3).uniform(size=(L, B)).astype("float32")
    cold = sample(table.step, table.start, table.state, uniforms, END, temperature=1e-3)
    assert sequences(cold) == sequences(greedy(table.step, table.start, table.state, L, END))
    warm = in_graph(lambda uniforms: sample(table.step, table.start, table.state, uniforms, END))(uniforms)
    for row, sequence in enumerate(sequences(warm)):
        for place, token in enumerate(sequence):
            logits = ops.convert_to_tensor(table.next(row, sequence[:place])[None].astype("float32"))
            assert token == int(draw(logits, uniforms[place, row : row + 1])[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [({"temperature": 0.0}, "temperature"), ({"top_k": -1}, "top_k"), ({"top_p": 0.0}, "top_p")],
)
def test_impossible_settings_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        draw(ops.zeros((1, 3)), ops.zeros((1,)), **options)
    with pytest.raises(ValueError, match="beam_width"):
        beam_search(lambda tokens, state: (tokens, state), [0], (), 3, END, beam_width=0)


def test_docstring_examples_run():
    assert doctest.testmod(decoding, globs=vars(decoding) | {"keras": keras}).failed == 0
