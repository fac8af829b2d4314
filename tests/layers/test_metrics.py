"""Accuracy of steps: every valid one counts alike, however long the batch is padded."""

import doctest

import keras
import numpy as np
import pytest

import layers
from layers import StepAccuracy, metrics


def test_padding_does_not_count_and_steps_of_long_batches_do_not_count_less():
    short = np.array([[1, 2]]), np.array([[1, 3]])
    long = np.pad([[3, 2, 1]], ((0, 0), (0, 61))), np.pad([[3, 2, 1]], ((0, 0), (0, 61)))
    # Says of each token that it is itself; the mask leaves token 0 out.
    same = keras.layers.Embedding(4, 4, mask_zero=True, embeddings_initializer="identity")
    kerass, ours = keras.metrics.SparseCategoricalAccuracy(), StepAccuracy()
    for tokens, classes in (short, long):
        for accuracy in (kerass, ours):
            accuracy.update_state(keras.ops.convert_to_tensor(classes), same(keras.ops.convert_to_tensor(tokens)))
    assert float(kerass.result()) == pytest.approx((1 / 2 + 3 / 64) / (2 / 2 + 3 / 64), abs=1e-4)
    assert float(ours.result()) == pytest.approx(4 / 5)


def test_weights_of_steps_count():
    accuracy = StepAccuracy()
    accuracy.update_state(np.array([[1, 2]]), np.eye(4)[[[1, 1]]], np.array([[3.0, 1.0]]))
    assert float(accuracy.result()) == pytest.approx(3 / 4)


def test_a_copy_is_the_same_metric():
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(StepAccuracy("mine")))
    assert isinstance(copy, StepAccuracy)
    assert copy.name == "mine"


def test_docstring_examples_run():
    assert doctest.testmod(metrics, extraglobs={name: getattr(layers, name) for name in layers.__all__}).failed == 0
