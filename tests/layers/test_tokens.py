"""Vectors and logits of tokens, a context vector for every step, and tokens that the model said itself."""

import doctest

import keras
import numpy as np
import pytest
from keras import ops

from layers import RepeatedContext, ScheduledSampling, TokenEmbedding, tokens

IDS = np.array([[3, 1, 4, 0], [2, 0, 0, 0]], "int32")


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def test_vectors_are_scaled_rows_and_logits_products_with_them(rng):
    embedding = TokenEmbedding(6, 4)
    embedding.build()
    table = rng.normal(size=(6, 4)).astype("float32")
    embedding.set_weights([table])
    np.testing.assert_allclose(numpy(embedding(ops.convert_to_tensor(IDS))), 2 * table[IDS], rtol=1e-6)
    hidden = rng.normal(size=(2, 3, 4)).astype("float32")
    np.testing.assert_allclose(
        numpy(embedding(ops.convert_to_tensor(hidden), reverse=True)), hidden @ table.T, rtol=1e-4, atol=1e-5
    )


def test_untied_logits_have_weights_of_their_own():
    embedding = TokenEmbedding(6, 4, tie_weights=False)
    embedding.build()
    assert [tuple(weight.shape) for weight in embedding.weights] == [(6, 4), (4, 6)]


def test_padding_is_masked_from_the_tokens_to_their_logits():
    ids = keras.Input((None,), dtype="int32")
    embedding = TokenEmbedding(6, 4)
    model = keras.Model(ids, embedding(keras.layers.Dropout(0.1)(embedding(ids)), reverse=True))
    model = keras.Model.from_config(model.get_config())
    np.testing.assert_array_equal(numpy(model(IDS)._keras_mask), IDS != 0)


def test_every_step_has_the_same_context():
    query, vector = ops.ones((2, 3, 4)), ops.convert_to_tensor([[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_array_equal(numpy(RepeatedContext()(query, vector)), [[[1, 2]] * 3, [[3, 4]] * 3])


def test_the_share_of_replaced_tokens_rises_along_a_line():
    """The answers are token 5 everywhere, which no true token is."""
    layer = ScheduledSampling(0.8, steps=4, seed=0)
    true = np.full((100, 50), 2, "int32")
    true[:, 40:] = 0
    logits = ops.convert_to_tensor(np.tile(np.eye(6, dtype="float32")[5], (100, 50, 1)))
    shares = []
    for _ in range(6):
        mixed = numpy(layer(ops.convert_to_tensor(true), logits, training=True))
        assert (mixed[:, 0] == 2).all()  # nothing was said before the first
        assert not mixed[:, 40:].any()
        shares.append((mixed[:, 1:40] == 5).mean())
    np.testing.assert_allclose(shares, [0, 0.2, 0.4, 0.6, 0.8, 0.8], atol=0.03)
    np.testing.assert_array_equal(numpy(layer(ops.convert_to_tensor(true), logits)), true)


def test_what_is_said_moves_one_step_on():
    said = np.array([[5, 4, 3, 2]])
    logits = ops.convert_to_tensor(np.eye(6, dtype="float32")[said])
    layer = ScheduledSampling(1.0)
    layer(ops.convert_to_tensor(IDS[:1]), logits, training=True)  # the first step replaces nothing yet
    mixed = numpy(layer(ops.convert_to_tensor(np.array([[1, 1, 1, 1]], "int32")), logits, training=True))
    assert mixed.tolist() == [[1, 5, 4, 3]]


def test_impossible_rates_are_refused():
    with pytest.raises(ValueError, match="rate"):
        ScheduledSampling(1.5)


def test_docstring_examples_run():
    assert doctest.testmod(tokens, globs=vars(tokens)).failed == 0
