"""Gradients in closed form: the derivatives of derivatives are right in every mode."""

import numpy as np
import pytest

from layers import GRU, MultiHeadAttention
from layers.kernels import tensorflow as kernels

pytestmark = pytest.mark.tensorflow_only

LAYERS = {
    "recurrent": lambda: GRU(3, return_sequences=True, dtype="float64"),
    "attention_at_once": lambda: MultiHeadAttention(2, 2, dtype="float64"),
    "attention_in_blocks": lambda: MultiHeadAttention(2, 2, dtype="float64"),
}


@pytest.mark.parametrize("training", [False, True], ids=["prediction", "training"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradient_penalty_in_a_graph_equals_eager_mode(name, training, rng, monkeypatch):
    import tensorflow as tf

    layer = LAYERS[name]()
    inputs = 1 if name == "recurrent" else 2
    layer.build(*[(None, None, 4)] * inputs)
    layer.set_weights([rng.normal(scale=0.6, size=tuple(weight.shape)) for weight in layer.weights])
    sequence = tf.constant(rng.normal(size=(3, 5, 4)))

    def penalty_gradients(sequence):
        weights = [weight.value for weight in layer.trainable_weights]
        with tf.GradientTape() as outer:
            outer.watch(sequence)
            with tf.GradientTape() as inner:
                inner.watch(sequence)
                loss = tf.reduce_sum(layer(*[sequence] * inputs, training=training) ** 2)
            penalty = tf.reduce_sum(inner.gradient(loss, sequence) ** 2)
        return outer.gradient(penalty, [sequence, *weights], unconnected_gradients="zero")

    wanted = penalty_gradients(sequence)
    assert all(np.abs(each).max() > 1e-3 for each in wanted if each.shape != layer.weights[-1].shape)
    monkeypatch.setattr(kernels, "SHORT", 1 if name == "attention_in_blocks" else 100)
    for actual, expected in zip(tf.function(penalty_gradients)(sequence), wanted, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-10)
