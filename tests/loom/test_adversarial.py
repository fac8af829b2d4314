"""Adversarial training: both losses by hand, who learns from which, and going on as if never stopped."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from loom import checkpoint
from loom.adversarial import Adversarial

UNITS, SIDE, EXAMPLES, BATCH = 3, 4, 24, 8
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (EXAMPLES, SIDE, SIDE, 1), np.uint8)
NOISE = RNG.normal(size=(EXAMPLES, UNITS)).astype("float32")


def adversaries(**options: Any) -> Adversarial:
    keras.utils.set_random_seed(0)
    noise, image = keras.Input((UNITS,), name="noise"), keras.Input((SIDE, SIDE, 1))
    pixels = keras.layers.Dense(SIDE * SIDE, "sigmoid", kernel_regularizer="l2")(noise)
    made = keras.layers.Reshape((SIDE, SIDE, 1), name="made")(keras.layers.BatchNormalization()(pixels))
    hidden = keras.layers.Dense(5, "tanh")(keras.layers.Flatten()(image))
    logit = keras.layers.Dense(1)(keras.layers.Dropout(0.2)(hidden))
    model = Adversarial(keras.Model({"noise": noise}, {"image": made}), keras.Model(image, logit), **options)
    model.compile((keras.optimizers.Adam(0.01, 0.5), keras.optimizers.SGD(0.1, 0.9)), jit_compile=False)
    model.run_eagerly = True  # a few steps take less time than tracing one
    return model


def batches() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(({"noise": NOISE}, {"image": IMAGES})).batch(BATCH)


def values(model: keras.Model) -> list[np.ndarray]:
    return [np.array(weight) for weight in model.weights]


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(float)))


@pytest.mark.parametrize("loss", ["minimax", "non-saturating"])
@pytest.mark.parametrize("real_target", [1.0, 0.9])
def test_losses_are_those_of_the_paper(loss: Any, real_target: float) -> None:
    model = adversaries(loss=loss, real_target=real_target)
    found = model.evaluate(batches(), return_dict=True, verbose=0)
    of_real = sigmoid(np.array(model.discriminator(IMAGES / 255.0)))
    of_made = sigmoid(np.array(model.discriminator(model.generator({"noise": NOISE})["image"])))
    entropy_of_real = -(real_target * np.log(of_real) + (1 - real_target) * np.log(1 - of_real)).mean()
    penalty = 0.01 * np.square(values(model.generator)[0]).sum()
    by_hand = np.log(1 - of_made).mean() if loss == "minimax" else -np.log(of_made).mean()
    assert found["discriminator_loss"] == pytest.approx(entropy_of_real - np.log(1 - of_made).mean(), rel=1e-4)
    assert found["generator_loss"] == pytest.approx(by_hand + penalty, rel=1e-4)


@pytest.mark.parametrize("loss", ["minimax", "non-saturating"])
def test_each_network_learns_against_the_other(loss: Any) -> None:
    """With the other one still, the discriminator tells them apart better, and the generator is taken for real."""
    inputs, targets = next(iter(batches()))

    def verdicts(model: Adversarial) -> tuple[float, float]:
        made = model.generator({"noise": NOISE})["image"]
        return tuple(float(np.mean(model.discriminator(images))) for images in (IMAGES / 255.0, made))

    model = adversaries(loss=loss)
    model.optimizer.learning_rate = 0.0
    real_before, made_before = verdicts(model)
    for _ in range(6):
        model.train_step((inputs, targets))
    real_after, made_after = verdicts(model)
    assert real_after - made_after > real_before - made_before
    model = adversaries(loss=loss)
    model.discriminator_optimizer.learning_rate = 0.0
    _, made_before = verdicts(model)
    for _ in range(6):
        model.train_step((inputs, targets))
    assert verdicts(model)[1] > made_before


def test_the_saturating_loss_hardly_moves_a_generator_that_fools_nobody() -> None:
    """log(1 - D) is flat where D is near 0, -log D is steep: the reason to prefer the second."""
    slopes = {}
    for loss in ("minimax", "non-saturating"):
        model = adversaries(loss=loss)
        model.discriminator.layers[-1].bias.assign([-6.0])  # sure that everything is generated
        with tf.GradientTape() as tape:
            cost = model._generator_loss(model.generator({"noise": NOISE})["image"], training=False)
            cost -= sum(model.generator.losses)
        slopes[loss] = float(tf.linalg.global_norm(tape.gradient(cost, model.generator.trainable_variables)))
    assert slopes["non-saturating"] > 100 * slopes["minimax"]


def test_every_parameter_of_both_networks_moves_in_one_step() -> None:
    model = adversaries()
    before = {weight.path: np.array(weight) for weight in model.trainable_weights}
    assert len(before) == len(model.generator.trainable_weights) + len(model.discriminator.trainable_weights)
    model.fit(batches().take(1), verbose=0, shuffle=False)
    for weight in model.trainable_weights:
        assert not np.array_equal(np.array(weight), before[weight.path]), weight.path


def test_training_goes_on_from_a_checkpoint_as_if_never_stopped(tmp_path: Any) -> None:
    """Both networks, both optimizers, the noise and the dropout masks: nothing is missing from it."""
    whole = adversaries()
    whole.fit(batches(), epochs=5, verbose=0, shuffle=False)
    first = adversaries()
    first.fit(batches(), epochs=2, verbose=0, shuffle=False)
    tracker: Any = SimpleNamespace(local_artifacts=tmp_path)
    checkpoint.save(checkpoint.capture(first, [], {}), tracker)
    second = adversaries()
    state = checkpoint.read(tracker)
    assert state is not None
    checkpoint.restore(state, second, [])
    second.fit(batches(), initial_epoch=2, epochs=5, verbose=0, shuffle=False)
    for expected, found in zip(values(whole), values(second), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_is_saved_is_the_generator_alone(tmp_path: Any) -> None:
    model = adversaries()
    keras.Model(model.input, model.output).save(tmp_path / "generator.keras")
    loaded = keras.saving.load_model(tmp_path / "generator.keras", compile=False)
    assert loaded.count_params() == model.generator.count_params() < model.count_params()
    np.testing.assert_array_equal(loaded({"noise": NOISE})["image"], model({"noise": NOISE})["image"])


def test_several_steps_are_taken_in_one_go_where_that_is_asked_for() -> None:
    model = adversaries()
    rates = (keras.optimizers.SGD(0.01), keras.optimizers.SGD(0.01))
    model.compile(rates, jit_compile=False, steps_per_execution=3)
    model.fit(batches(), verbose=0, shuffle=False)
    assert model.steps_per_execution == 3
    assert int(model.optimizer.iterations) == EXAMPLES // BATCH
