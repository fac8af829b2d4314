"""Two networks that learn from each other, as one Keras model: `fit` and checkpoints are those of any other."""

from __future__ import annotations

from typing import Any, Literal

import keras
import tensorflow as tf


class Adversarial(keras.Model):
    """A generator, and a discriminator that learns to tell what it makes from what is real.

    With D(x) = 1 / (1 + exp(-discriminator(x))) the probability that x is real, each step first changes the weights of
    the discriminator so that its loss falls, and then, with new noise, those of the generator so that its own does:

        discriminator:             -E log D(x) - E log(1 - D(G(z)))
        generator, minimax:         E log(1 - D(G(z)))
        generator, non-saturating: -E log D(G(z))

    (Goodfellow et al. 2014, Generative adversarial nets, algorithm 1 with k = 1, and section 3). Minimax is what the
    discriminator maximizes, turned round, and is flat where D(G(z)) is near 0, as it soon is at the start; the
    non-saturating loss is steep there, and has the same fixed point: D = ½ everywhere, where the discriminator's loss
    is 2 log 2 = 1.386 and the generator's -log 2 or log 2.

    As a model it is the generator: that is what is called, and what is saved. Training draws new noise in every step;
    the noise among the data serves validation and test. Real images are numbers from 0 to 1, or uint8 from 0 to 255.

    Args:
        generator: One named input of noise `(batch, units)`, one named output, images.
        discriminator: One input, such images, and one output of logits `(batch, 1)`.
        loss: The generator's loss, `"minimax"` or `"non-saturating"`.
        real_target: What the discriminator is to answer to real images; below 1 keeps it from certainty (one-sided
            label smoothing, Salimans et al. 2016, Improved techniques for training GANs).
        seed: Seed of the noise.
    """

    def __init__(
        self,
        generator: keras.Model,
        discriminator: keras.Model,
        loss: Literal["minimax", "non-saturating"] = "non-saturating",
        real_target: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(generator.input, generator.output, name="adversarial")
        (self._image_name,) = generator.output
        self.generator = generator
        self.discriminator = discriminator
        self.loss_name = loss
        self.real_target = real_target
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.entropy = keras.losses.BinaryCrossentropy(from_logits=True)
        self.seen = [keras.metrics.Mean(name) for name in ("generator_loss", "discriminator_loss")]

    def compile(
        self,
        optimizer: tuple[Any, Any],
        jit_compile: bool | str = "auto",
        steps_per_execution: int = 1,
        **losses: Any,
    ) -> None:
        """Take the generator's and the discriminator's optimizer; outputs have no losses of their own here."""
        super().compile(optimizer[1], jit_compile=jit_compile)
        self.discriminator_optimizer = self.optimizer  # in Keras' wrapper, where float16 needs one
        super().compile(optimizer[0], jit_compile=jit_compile, steps_per_execution=steps_per_execution)
        self.optimizer.build(self.generator.trainable_variables)
        self.discriminator_optimizer.build(self.discriminator.trainable_variables)

    @property
    def optimizers(self) -> list[keras.optimizers.Optimizer]:
        """Both optimizers; their variables belong to a checkpoint."""
        return [self.optimizer, self.discriminator_optimizer]

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Losses of both networks."""
        return self.seen

    def train_step(self, data: Any) -> dict[str, Any]:
        """One update of the discriminator, then one of the generator."""
        inputs, targets = data
        real, generated = self._real(targets), self._generate(inputs)
        with tf.GradientTape() as tape:
            discriminator_loss = self._discriminator_loss(real, generated, training=True)
            scaled = self.discriminator_optimizer.scale_loss(discriminator_loss)
        weights = self.discriminator.trainable_variables
        self.discriminator_optimizer.apply(tape.gradient(scaled, weights), weights)
        with tf.GradientTape() as tape:
            generator_loss = self._generator_loss(self._generate(inputs), training=True)
            scaled = self.optimizer.scale_loss(generator_loss)
        weights = self.generator.trainable_variables
        self.optimizer.apply(tape.gradient(scaled, weights), weights)
        return self._losses_so_far(generator_loss, discriminator_loss, real)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Both losses, with the noise among the data."""
        inputs, targets = data
        real, generated = self._real(targets), self(inputs, training=False)[self._image_name]
        discriminator_loss = self._discriminator_loss(real, generated, training=False)
        return self._losses_so_far(self._generator_loss(generated, training=False), discriminator_loss, real)

    def _real(self, targets: dict[str, Any]) -> Any:
        images = targets[self._image_name]
        return tf.cast(images, tf.float32) / 255 if images.dtype == tf.uint8 else images

    def _generate(self, inputs: dict[str, Any]) -> Any:
        (noise,) = inputs.values()
        drawn = keras.random.normal(tf.shape(noise), dtype=noise.dtype, seed=self.seed_generator)
        return self.generator(dict.fromkeys(inputs, drawn), training=True)[self._image_name]

    def _discriminator_loss(self, real: Any, generated: Any, training: bool) -> Any:
        of_real = self.discriminator(real, training=training)
        of_generated = self.discriminator(generated, training=training)
        entropy_of_real = self.entropy(self.real_target * tf.ones_like(of_real), of_real)
        entropy_of_generated = self.entropy(tf.zeros_like(of_generated), of_generated)
        return entropy_of_real + entropy_of_generated + sum(self.discriminator.losses)

    def _generator_loss(self, generated: Any, training: bool) -> Any:
        logits = self.discriminator(generated, training=training)
        minimax = self.loss_name == "minimax"
        loss = -self.entropy(tf.zeros_like(logits), logits) if minimax else self.entropy(tf.ones_like(logits), logits)
        return loss + sum(self.generator.losses)

    def _losses_so_far(self, generator_loss: Any, discriminator_loss: Any, real: Any) -> dict[str, Any]:
        for metric, loss in zip(self.seen, (generator_loss, discriminator_loss), strict=True):
            metric.update_state(loss, sample_weight=tf.shape(real)[0])
        return {metric.name: metric.result() for metric in self.seen}
