"""Random changes of training images, whose result is a function of (seed, epoch, step) alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loom.data.images import LABEL, ImageConfig, shape_of
from loom.data.pipeline import Augment
from loom.data.spec import Spec
from loom.lazy import keras, layers, tf

Tensors = Mapping[str, Any]
FINE_SIDE = 56
"""Pixels of the shorter side below which images are moved on a finer grid."""


def augment(config: ImageConfig, spec: Spec, mixing: bool = True) -> Augment | None:
    """The augmentation that the settings ask for, or None where they ask for none; what `App.augment` takes.

    Args:
        config: The settings.
        spec: Of the data; every image input is changed, each by its own random numbers.
        mixing: Whether `--mixup` and `--cutmix` may mix the targets, which have to be one-hot then.

    Raises:
        UserError: `--mixup` or `--cutmix` where targets cannot be mixed, `--saturation` for grey images.
    """
    for name in ("mixup", "cutmix"):
        config.require(name, mixing or not getattr(config, name), "this application's targets cannot be mixed")
    shapes = {column.name: shape_of(column) for column in spec.inputs if column.kind == "image"}
    colored = all(channels == 3 for _, _, channels in shapes.values())
    config.require("saturation", not config.saturation or colored, "needs images with colours")
    changes = {name: augmentation_layers(config, shape) for name, shape in shapes.items()}
    mixer = _mixer(config)
    return _Augmentation(changes, mixer) if mixer or any(changes.values()) else None


def augmentation_layers(config: ImageConfig, shape: tuple[int, int, int]) -> list[keras.layers.Layer]:
    """Layers that change images one by one, for pixels from 0 to 1, in the order in which they are applied."""
    height, width, _ = shape
    kinds, bounds = keras.layers, (0.0, 1.0)
    flips = {"both": "horizontal_and_vertical"}
    # Pairs of numbers: a single one is the end of a range from 0, so that contrast would only grow.
    wanted: list[tuple[Any, Callable[[], list[Any]]]] = [
        (config.flip != "none", lambda: [kinds.RandomFlip(flips.get(config.flip, config.flip))]),
        (config.crop, lambda: [kinds.ZeroPadding2D(config.crop), kinds.RandomCrop(height, width)]),
        (True, lambda: _moving_layers(config, min(height, width))),
        (config.brightness, lambda: [kinds.RandomBrightness(config.brightness, bounds)]),
        (config.contrast, lambda: [kinds.RandomContrast([config.contrast] * 2, bounds)]),
        (config.saturation, lambda: [kinds.RandomSaturation(_around_a_half(config.saturation), bounds)]),
        (config.randaugment, lambda: [kinds.RandAugment(bounds, factor=config.randaugment)]),
        (config.noise, lambda: [kinds.GaussianNoise(config.noise)]),
        (config.cutout, lambda: [kinds.RandomErasing([config.cutout] * 2, fill_value=0.0, value_range=bounds)]),
    ]
    return [layer for value, make in wanted if value for layer in make()]


def _moving_layers(config: ImageConfig, side: int) -> list[keras.layers.Layer]:
    """Layers that move pixels to places between pixels, on a finer grid where images are small.

    Each of them interpolates: several in a row would blur small images so much that the sharp ones of the test are
    something else. Every pixel becomes several equal ones, which are moved, and their mean is the new pixel.
    """
    kinds, fill = keras.layers, config.fill
    finer = -(-FINE_SIDE // side)
    wanted: list[tuple[Any, Callable[[], Any]]] = [
        (config.rotation, lambda: kinds.RandomRotation(config.rotation / 360, fill)),
        (config.translation, lambda: kinds.RandomTranslation(config.translation, config.translation, fill)),
        (config.zoom, lambda: kinds.RandomZoom(config.zoom, fill_mode=fill)),
        (config.elastic, lambda: layers.RandomElastic(finer * config.elastic, max(1.0, finer * side / 7))),
    ]
    moving = [make() for value, make in wanted if value]
    if not moving or finer == 1:
        return moving
    return [kinds.UpSampling2D(finer, interpolation="nearest"), *moving, kinds.AveragePooling2D(finer)]


def _around_a_half(factor: float) -> tuple[float, float]:
    """Keras' saturation is 0.5 where nothing changes, 0 grey, 1 fully saturated."""
    return (0.5 - factor / 2, 0.5 + factor / 2)


def _mixer(config: ImageConfig) -> Any:
    if config.mixup:
        return keras.layers.MixUp(config.mixup)
    return keras.layers.CutMix([config.cutmix] * 2) if config.cutmix else None  # of one number alpha would be drawn


class _Augmentation:
    """Changes the images of a batch, and its targets where images are mixed."""

    def __init__(self, changes: Mapping[str, Sequence[Any]], mixer: Any) -> None:
        self._changes = changes
        self._mixer = mixer
        self._seeds = layers.StepSeeds()
        for layer in [layer for found in changes.values() for layer in found] + ([mixer] if mixer else []):
            self._seeds.seed(layer)

    def __call__(self, inputs: Tensors, targets: Tensors, seed: Any) -> tuple[Tensors, Tensors]:
        """Augment one batch; called while TensorFlow traces a graph, in which `seed` is a tensor of two integers."""
        self._seeds.start(seed)
        changed, mixed = dict(inputs), dict(targets)
        for name, changes in self._changes.items():
            images = tf.cast(inputs[name], tf.float32) / 255
            for layer in changes:
                images = layer(images, training=True)
            if self._mixer is not None:
                both = self._mixer({"images": images, "labels": targets[LABEL]}, training=True)
                images, mixed[LABEL] = both["images"], both["labels"]
            images = tf.round(255 * tf.clip_by_value(images, 0.0, 1.0))
            changed[name] = tf.ensure_shape(tf.cast(images, inputs[name].dtype), inputs[name].shape)
        return changed, mixed
