"""GAN: what could another such image look like? A generator that learns to pass for real, from a number to an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loom import App, Data, Field, Metrics, Spec, Split, main, runtime
from loom.config import Regularization
from loom.data.files import as_base64, encode_png
from loom.data.images import IMAGE, LABEL, ImageConfig, load_pixels, shape_of
from loom.generation import FeatureSpace, as_fractions, as_pixels, doublings, halvings
from loom.lazy import keras, layers
from loom.runtime import make_batch_norm, make_optimizer, make_regularizer

if TYPE_CHECKING:
    import pandas as pd
    from keras_tuner import HyperParameters

    from loom.app import Answer, Evaluate
    from loom.data.pipeline import Augment
    from loom.run import Run
    from loom.trained import Trained

SEED, NOISE = "seed", "noise"
SAMPLES = 32
"""Images that are kept of every epoch."""


@dataclass(frozen=True)
class Config(ImageConfig):
    """Settings of `loom train gan`."""

    loss: Literal["non-saturating", "minimax"] = "non-saturating"
    """What the generator minimizes: -log D(G(z)), or log(1 - D(G(z)))."""
    noise_units: int = 64
    """Width of the noise that an image is made from."""
    filters: int = 32
    """Filters of the layers at an image's full size; each halving of the side doubles them."""
    real_target: float = 0.9
    """What the discriminator is to answer to real images (1: no label smoothing)."""
    discriminator_rate: float = 1.0
    """Learning rate of the discriminator, in terms of the generator's."""
    regularization: Regularization = "both"
    dropout: float = 0.3
    """Share of the discriminator's values that is dropped in training, with --regularization dropout or both."""
    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 0.001
    momentum: float = 0.5
    jit: Literal["auto", "on", "off"] = "off"

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        for name in ("noise_units", "filters"):
            self.require(name, getattr(self, name) >= 1, "must be at least 1")
        self.require("real_target", 0.5 < self.real_target <= 1, "must be above 0.5 and at most 1")
        self.require("discriminator_rate", self.discriminator_rate > 0, "must be greater than 0")
        self.require("dropout", 0 <= self.dropout < 1, "must be at least 0 and below 1")
        for name in ("mixup", "cutmix"):
            self.require(name, not getattr(self, name), "is not used here: there are no classes to mix")
        self.require("devices", self.devices == 1, "must be 1: all devices would draw the same noise")


def load(config: Config) -> Data:
    """Numbers to make images from, and as many real images, which have nothing to do with them."""
    import pandas as pd

    data = load_pixels(config)
    numbers = iter(range(sum(map(len, data.splits.values()))))

    def without_pairs(split: Split) -> Split:
        seeds = [float(next(numbers)) for _ in range(len(split))]
        return Split(pd.DataFrame({SEED: seeds, LABEL: split.raw[LABEL]}), {}, {IMAGE: split.targets[IMAGE]})

    spec = Spec((Field(SEED, "number"),), (data.spec.target(IMAGE),))
    return replace(data.map_splits(without_pairs), spec=spec)


def augment(config: Config, spec: Spec) -> Augment | None:
    """Changes real images."""
    from loom.data.augment import augment

    change = augment(config, Spec((spec.target(IMAGE),), ()), mixing=False)
    if change is None:
        return None
    return lambda inputs, targets, seed: (inputs, {**targets, **change({IMAGE: targets[IMAGE]}, {}, seed)[0]})


def preprocess(config: Config, spec: Spec) -> keras.Model:
    """A number to noise, always the same for the same number."""
    seed = keras.Input((1,), name=SEED)
    return keras.Model({SEED: seed}, {NOISE: layers.SeededNormal(config.noise_units)(seed)})


def build(config: Config, spec: Spec) -> keras.Model:
    """The generator, and the discriminator that it learns from."""
    from loom.adversarial import Adversarial

    shape = shape_of(spec.target(IMAGE))
    generator, discriminator = _generator(config, shape), _discriminator(config, shape)
    return Adversarial(generator, discriminator, config.loss, config.real_target, config.seed)


def _generator(config: Config, shape: tuple[int, ...]) -> keras.Model:
    """Noise to an image: a small map that transposed convolutions double until it is large enough."""
    height, width, channels = shape
    small, filters = doublings(shape, config.filters)
    noise = keras.Input((config.noise_units,), name=NOISE)
    values = keras.layers.Dense(math.prod(small), **_weights(config))(noise)
    maps = keras.layers.ReLU()(_normalized(keras.layers.Reshape(small)(values), config))
    for count in filters:
        maps = keras.layers.Conv2DTranspose(count, 4, 2, padding="same", **_weights(config))(maps)
        maps = keras.layers.ReLU()(_normalized(maps, config))
    maps = maps[:, :height, :width]
    image = keras.layers.Conv2D(
        channels, 3, padding="same", activation="sigmoid", kernel_regularizer=make_regularizer(config), dtype="float32"
    )(maps)
    return keras.Model({NOISE: noise}, {IMAGE: image}, name="generator")


def _discriminator(config: Config, shape: tuple[int, ...]) -> keras.Model:
    """An image to the log-odds that it is real: convolutions that halve it until it is small."""
    image = keras.Input(shape, name=IMAGE)
    maps = keras.layers.Rescaling(2.0, -1.0)(image)
    penalty = make_regularizer(config)
    maps = keras.layers.Conv2D(config.filters, 3, padding="same", kernel_regularizer=penalty)(maps)
    maps = keras.layers.LeakyReLU(0.2)(maps)
    for count in halvings(max(shape[:2]), 2 * config.filters):
        maps = keras.layers.Conv2D(count, 4, 2, padding="same", **_weights(config))(maps)
        maps = keras.layers.LeakyReLU(0.2)(_normalized(maps, config))
        if config.drops:
            maps = keras.layers.Dropout(config.dropout)(maps)
    logit = keras.layers.Dense(1, kernel_regularizer=penalty, dtype="float32")(keras.layers.Flatten()(maps))
    return keras.Model(image, logit, name="discriminator")


def _weights(config: Config) -> dict[str, Any]:
    """Initial weights of DCGAN (Radford et al. 2016), the penalty on them, and no bias where one is normalized away."""
    initializer = keras.initializers.RandomNormal(stddev=0.02)
    penalty = make_regularizer(config)
    return {"kernel_initializer": initializer, "kernel_regularizer": penalty, "use_bias": not config.normalizes}


def _normalized(maps: keras.KerasTensor, config: Config) -> keras.KerasTensor:
    return make_batch_norm()(maps) if config.normalizes else maps


def optimizer(config: Config, learning_rate: float, steps: int) -> tuple[Any, Any]:
    """The generator's, and the discriminator's."""
    rates = (learning_rate, learning_rate * config.discriminator_rate)
    generator, discriminator = (make_optimizer(config, rate, steps) for rate in rates)
    return generator, discriminator


def fit(run: Run) -> None:
    """Train both networks, and keep some images of every epoch."""
    run.callbacks.insert(0, _samples(run))
    from loom.run import fit

    fit(run)


def evaluate(config: Config, data: Data) -> Evaluate:
    """How much generated images are like real ones, in features that tell the real training images' classes apart."""
    _, classes = np.unique(data.train.raw[LABEL].astype(str), return_inverse=True)
    features = FeatureSpace(data.train.targets[IMAGE], classes)
    return lambda split, outputs: features.score(split.targets[IMAGE], outputs[IMAGE])


def _samples(run: Run) -> keras.callbacks.Callback:
    """Keeps what becomes of the same noise, epoch after epoch; its lists of arrays are part of the checkpoint."""
    noise = np.asarray(run.data.test.inputs[NOISE])[:SAMPLES]

    class Samples(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.images: list[np.ndarray] = []

        def on_epoch_end(self, epoch: int, logs: Metrics | None = None) -> None:
            self.images.append(as_pixels(np.array(self.model({NOISE: noise}, training=False)[IMAGE])))

    return Samples()


def space(hp: HyperParameters) -> dict[str, Any]:
    """What a search varies unless told otherwise."""
    return {
        "loss": hp.Choice("loss", ["non-saturating", "minimax"]),
        "discriminator_rate": hp.Float("discriminator_rate", 0.25, 4.0, sampling="log"),
        "learning_rate": hp.Float("learning_rate", 2e-4, 4e-3, sampling="log"),
        "dropout": hp.Float("dropout", 0.0, 0.5, step=0.1),
    }


def baselines(config: Config, data: Data) -> dict[str, Metrics]:
    """Noise with every pixel's mean and spread; and other real images, than which nothing can be better."""
    runtime.start(config)
    rng, judge = np.random.default_rng(0), evaluate(config, data)
    train, test = as_fractions(data.train.targets[IMAGE]), data.test
    noise = rng.normal(train.mean(axis=0), train.std(axis=0), (len(test), *train.shape[1:]))
    real = train[rng.permutation(len(train))[: len(test)]]
    return {
        "noise": judge(test, {IMAGE: np.clip(noise, 0, 1)}),
        "real": judge(test.take(np.arange(len(real))), {IMAGE: real}),
    }


def predict(trained: Trained, frame: pd.DataFrame) -> Sequence[Answer]:
    """An image as a PNG file for each number."""
    return [{IMAGE: as_base64(encode_png(as_pixels(image)))} for image in trained.outputs(frame)[IMAGE]]


def report(run: Run) -> None:
    """What is generated, how it became so, and whether training images are only repeated."""
    from loom import figures_images as draw

    generated, real = run.test_outputs()[IMAGE], as_fractions(run.data.train.targets[IMAGE])
    run.figure("samples", draw.image_grid(generated[:64], title="Generated images"))
    kept = next(callback.images for callback in run.callbacks if hasattr(callback, "images"))
    for epoch, images in enumerate(kept, start=1):
        run.figure(f"epochs/samples_{epoch:04}", draw.image_grid(images, title=f"After epoch {epoch}"))
    if kept:
        chosen = np.unique(np.geomspace(1, len(kept), 8).round().astype(int))
        rows = np.concatenate([kept[epoch - 1][:12] for epoch in chosen])
        title = f"The same noise after epochs {', '.join(map(str, chosen))}"
        run.figure("epochs", draw.image_grid(rows, title=title, columns=12))
    nearest = _nearest(generated[:12], real)
    title = "Generated images, and the training images nearest to them"
    run.figure("nearest", draw.image_grid(np.concatenate([generated[:12], nearest]), title=title, columns=12))
    run.figure("interpolation", draw.image_grid(_between(run), title="From one noise to another", columns=9))


def _nearest(images: np.ndarray, real: np.ndarray) -> np.ndarray:
    """The real image at the least Euclidean distance from each one."""
    return np.stack([real[np.square(real - image).sum(axis=(1, 2, 3)).argmin()] for image in images])


def _between(run: Run) -> np.ndarray:
    """Images of noise on the great circle between that of some pairs; on the straight line noise is shorter."""
    noise = np.asarray(run.data.test.inputs[NOISE])[:12]
    angle = np.linspace(0, np.pi / 2, 9)[None, :, None]
    path = np.cos(angle) * noise[: len(noise) // 2, None] + np.sin(angle) * noise[-(len(noise) // 2) :, None]
    return run.trained.outputs_of({NOISE: path.reshape(-1, noise.shape[1]).astype(np.float32)})[IMAGE]


APP = App(
    "gan",
    Config,
    load,
    preprocess,
    build,
    space,
    baselines,
    report,
    predict,
    loss=None,
    objective="val_frechet",
    fit=fit,
    augment=augment,
    optimizer=optimizer,
    evaluate=evaluate,
)

if __name__ == "__main__":
    main(APP)
