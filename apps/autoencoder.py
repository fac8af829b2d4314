"""Autoencoder: what remains of an image in a few numbers? Plain, denoising and variational, beside PCA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from apps import images
from loom import App, Data, Metrics, Spec, main
from loom.config import Regularization, Schedule
from loom.data.files import as_base64, encode_png
from loom.data.images import IMAGE, LABEL, ImageConfig, image_input, load_pixels, preprocess, scale, shape_of
from loom.generation import as_fractions, as_pixels, doublings
from loom.lazy import keras, layers
from loom.runtime import make_regularizer

if TYPE_CHECKING:
    import pandas as pd
    from keras_tuner import HyperParameters

    from loom.app import Answer
    from loom.data.pipeline import Augment
    from loom.run import Run
    from loom.trained import Trained

RECONSTRUCTION, DIVERGENCE, LATENT = "reconstruction", "divergence", "latent"
DENOISED = "denoised_mse"
"""Mean squared error of what becomes of noisy test images."""
SHOWN, STEPS = 10, 9
"""Test images in a figure; images on the way from one to another."""
PAIRS, MOST_DRAWN, BATCH = 6, 2000, 256
"""Pairs of images that are connected; points in a figure; images computed at a time."""
MOST_COMPARED = 10_000
"""Training images that principal components are fitted on at most."""


@dataclass(frozen=True)
class Config(ImageConfig):
    """Settings of `loom train autoencoder`."""

    model: Literal["plain", "denoising", "variational"] = "plain"
    """Reconstruct images, or clean images of noisy ones, or code them so that codes can be drawn at random."""
    encoder: Literal["mlp", "lenet", "cnn", "resnet"] = "cnn"
    """Layers of the encoder: those of the models of `images`. Only the decoder of `mlp` is dense, too."""
    latent_units: int = 16
    """Numbers that an image is reduced to."""
    units: int = 128
    """Width of the hidden dense layers (mlp, cnn)."""
    depth: int = 1
    """Hidden layers (mlp), convolutions in each stage (cnn), or residual blocks in each stage (resnet)."""
    filters: int = 32
    """Maps of the first stage, and of the decoder's last; each stage before has twice as many (cnn, resnet)."""
    activation: Literal["relu", "leaky_relu", "elu", "tanh"] = "relu"
    """Activation of the encoder's hidden layers."""
    regularization: Regularization = "batchnorm"
    reconstruction_loss: Literal["binary_crossentropy", "mse"] = "binary_crossentropy"
    """What a pixel costs: its value as a probability, or its squared error."""
    kl_weight: float = 1.0
    """Factor of the divergence of the codes from the standard normal distribution (variational)."""
    noise: float = 0.3
    """Standard deviation of the noise that is added to training images, which run from 0 to 1 (denoising)."""
    dropout: float = 0.25
    """Share of the encoder's values that is dropped in training, with --regularization dropout or both."""
    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 0.002
    schedule: Schedule = "cosine"
    jit: Literal["auto", "on", "off"] = "off"

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        for name in ("latent_units", "units", "depth", "filters"):
            self.require(name, getattr(self, name) >= 1, "must be at least 1")
        self.require("kl_weight", self.kl_weight >= 0, "must not be negative")
        self.require("dropout", 0 <= self.dropout < 1, "must be at least 0 and below 1")
        self.require("noise", self.model != "denoising" or self.noise > 0, "must be greater than 0 to be removed")
        for name in ("mixup", "cutmix"):
            self.require(name, not getattr(self, name), "is not used here: there are no classes to mix")


def load(config: Config) -> Data:
    """Images that are their own targets; the divergence's target is zero."""
    data = load_pixels(config)

    def targets(pixels: np.ndarray) -> dict[str, np.ndarray]:
        zeros = {DIVERGENCE: np.zeros((len(pixels), 1), np.float32)} if config.model == "variational" else {}
        return {RECONSTRUCTION: pixels, **zeros}

    return data.map_splits(lambda split: replace(split, targets=targets(split.targets[IMAGE])))


def augment(config: Config, spec: Spec) -> Augment | None:
    """Changes images and, alike, what is to become of them; noise is the model's own."""
    from loom.data.augment import augment

    change = augment(replace(config, model="plain", noise=0.0), spec, mixing=False)
    if change is None:
        return None

    def change_both(inputs: Any, targets: Any, seed: Any) -> tuple[Any, Any]:
        changed, _ = change(inputs, {}, seed)
        return changed, {**targets, RECONSTRUCTION: changed[IMAGE]}

    return change_both


def build(config: Config, spec: Spec) -> keras.Model:
    """An image to a few numbers, and these to an image; of a variational one also the divergence of its codes."""
    shape = shape_of(spec.input(IMAGE))
    pixels = image_input(spec.input(IMAGE))
    values = scale(pixels)
    if config.model == "denoising":
        values = keras.layers.GaussianNoise(config.noise)(values)
    hidden = images.hidden_layers(values, _encoder(config))
    outputs = {}
    if config.model == "variational":
        mean = _numbers(hidden, config, "latent_mean")
        log_variance = _numbers(hidden, config, "latent_log_variance", "zeros")
        latent = layers.GaussianSample(config.seed, name=LATENT, dtype="float32")(mean, log_variance)
        outputs = {DIVERGENCE: layers.GaussianDivergence(dtype="float32")(mean, log_variance)}
    else:
        latent = _numbers(hidden, config, LATENT)
    decoder = _dense_decoder(config, shape) if config.encoder == "mlp" else _conv_decoder(config, shape)
    return keras.Model({IMAGE: pixels}, {RECONSTRUCTION: decoder(latent), **outputs})


def _numbers(
    hidden: keras.KerasTensor, config: Config, name: str, initializer: str = "glorot_uniform"
) -> keras.KerasTensor:
    """As many numbers as the code has."""
    return keras.layers.Dense(
        config.latent_units,
        kernel_initializer=initializer,
        kernel_regularizer=make_regularizer(config),
        name=name,
        dtype="float32",
    )(hidden)


def _encoder(config: Config) -> images.Config:
    """Settings of `images` for the layers that it shares, under the names by which it takes over their weights."""
    shared = ("units", "depth", "filters", "activation", "regularization", "regularization_strength", "dropout")
    return images.Config(model=config.encoder, **{name: getattr(config, name) for name in shared})


def _dense_decoder(config: Config, shape: tuple[int, ...]) -> keras.Model:
    latent = hidden = keras.Input((config.latent_units,), name=LATENT)
    for number in range(1, config.depth + 1):
        hidden = _dense(hidden, config, config.units, f"decoder_dense_{number}")
    penalty = make_regularizer(config)
    values = keras.layers.Dense(
        math.prod(shape), "sigmoid", kernel_regularizer=penalty, dtype="float32", name="decoder_pixels"
    )(hidden)
    return keras.Model(latent, keras.layers.Reshape(shape)(values), name="decoder")


def _conv_decoder(config: Config, shape: tuple[int, ...]) -> keras.Model:
    """A small map, which transposed convolutions double until it is large enough."""
    height, width, channels = shape
    small, filters = doublings(shape, config.filters)
    latent = keras.Input((config.latent_units,), name=LATENT)
    values = keras.layers.Reshape(small)(_dense(latent, config, math.prod(small), "decoder_dense"))
    for number, count in enumerate(filters, start=1):
        values = keras.layers.Conv2DTranspose(
            count,
            4,
            2,
            padding="same",
            activation="relu",
            kernel_initializer="he_normal",
            kernel_regularizer=make_regularizer(config),
            name=f"decoder_conv_{number}",
        )(values)
    values = values[:, :height, :width]
    image = keras.layers.Conv2D(
        channels,
        3,
        padding="same",
        activation="sigmoid",
        kernel_regularizer=make_regularizer(config),
        dtype="float32",
        name="decoder_pixels",
    )(values)
    return keras.Model(latent, image, name="decoder")


def _dense(values: keras.KerasTensor, config: Config, units: int, name: str) -> keras.KerasTensor:
    penalty = make_regularizer(config)
    dense = keras.layers.Dense(units, "relu", kernel_initializer="he_normal", kernel_regularizer=penalty, name=name)
    return dense(values)


def space(hp: HyperParameters) -> dict[str, Any]:
    """What a search varies unless told otherwise; not the size of the code, of which more is always better."""
    return {
        "encoder": hp.Choice("encoder", ["mlp", "cnn"]),
        "units": hp.Int("units", 64, 512, sampling="log"),
        "filters": hp.Choice("filters", [8, 16, 32]),
        "learning_rate": hp.Float("learning_rate", 3e-4, 1e-2, sampling="log"),
    }


def loss(config: Config, spec: Spec) -> dict[str, Any]:
    """What a pixel costs on average; and of a variational one, the mean divergence, which is its distance from 0."""
    losses: dict[str, Any] = {RECONSTRUCTION: _of_pixels(config.reconstruction_loss)}
    return losses | ({DIVERGENCE: "mae"} if config.model == "variational" else {})


def loss_weights(config: Config, spec: Spec) -> dict[str, float] | None:
    """The divergence of an image is shared out among its values: the loss is an evidence lower bound per value."""
    if config.model != "variational":
        return None
    return {RECONSTRUCTION: 1.0, DIVERGENCE: config.kl_weight / math.prod(shape_of(spec.input(IMAGE)))}


def metrics(config: Config, spec: Spec) -> dict[str, list[Any]]:
    """Mean squared error of values from 0 to 1, which principal components make as small as linear codes can."""
    error = {RECONSTRUCTION: [keras.metrics.MeanMetricWrapper(_of_pixels("mse"), name="mse")]}
    return error | ({DIVERGENCE: []} if config.model == "variational" else {})


def _of_pixels(name: str) -> Any:
    """A loss by name, for pixels from 0 to 255 and reconstructions from 0 to 1."""
    measure = keras.losses.get(name)

    def of_pixels(pixels: Any, reconstruction: Any) -> Any:
        return measure(keras.ops.cast(pixels, "float32") / 255, keras.ops.cast(reconstruction, "float32"))

    return of_pixels


def baselines(config: Config, data: Data) -> dict[str, Metrics]:
    """The mean training image, and as many principal components as the code has numbers; noisy images as they are."""
    known, test = (as_fractions(split.targets[RECONSTRUCTION]) for split in (data.train, data.test))
    name = f"{RECONSTRUCTION}_mse" if config.model == "variational" else "mse"
    made = {"mean": known.mean(axis=0), "pca": principal_reconstruction(config, known, test)}
    found = {method: {name: _mean_squared_error(image, test)} for method, image in made.items()}
    if config.model == "denoising":
        noisy = as_fractions(noisy_pixels(config, test))
        found["pca"][DENOISED] = _mean_squared_error(principal_reconstruction(config, known, noisy), test)
        found["noisy"] = {DENOISED: _mean_squared_error(noisy, test)}
    return found


def test(run: Run, measured: Metrics) -> Metrics:
    """Of a denoising one what it is for: the error of what it makes of noisy images."""
    config: Any = run.config
    if config.model != "denoising":
        return {}
    clean = as_fractions(run.data.test.targets[RECONSTRUCTION])
    denoised = decode(run.model, encode(run.model, noisy_pixels(config, clean)))
    return {DENOISED: _mean_squared_error(denoised, clean)}


def noisy_pixels(config: Config, clean: np.ndarray) -> np.ndarray:
    """Images, values from 0 to 1, with as much noise as in training, as pixels; the first of many as they are alone."""
    noise = np.random.default_rng(config.seed).normal(scale=config.noise, size=clean.shape)
    return as_pixels(clean + noise)


def _mean_squared_error(made: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.square(made - wanted).mean())


def principal_reconstruction(config: Config, known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Images from as many principal components of known ones as the code has numbers, cut to values from 0 to 1."""
    from sklearn.decomposition import PCA

    rows = known[:MOST_COMPARED].reshape(min(len(known), MOST_COMPARED), -1)
    components = PCA(min(config.latent_units, *rows.shape), random_state=0).fit(rows)
    coded = components.transform(wanted.reshape(len(wanted), -1))
    return np.clip(components.inverse_transform(coded), 0, 1).reshape(wanted.shape)


def encode(core: keras.Model, pixels: np.ndarray) -> np.ndarray:
    """Codes (count, numbers) of images, uint8; of a variational autoencoder their means."""
    encoder = keras.Model(core.input, core.get_layer(LATENT).output)
    return _in_batches(lambda batch: encoder({IMAGE: batch}, training=False), pixels)


def decode(core: keras.Model, latent: np.ndarray) -> np.ndarray:
    """Images, values from 0 to 1, that codes (count, numbers) stand for."""
    decoder = core.get_layer("decoder")
    return _in_batches(lambda batch: decoder(batch, training=False), latent.astype(np.float32))


def _in_batches(function: Any, values: np.ndarray) -> np.ndarray:
    parts = [function(values[start : start + BATCH]).numpy() for start in range(0, len(values), BATCH)]
    return np.concatenate(parts).astype(np.float32)


def predict(trained: Trained, frame: pd.DataFrame) -> Sequence[Answer]:
    """For each image its reconstruction as a PNG file, the reconstruction's mean squared error, and the code."""
    pixels: Any = trained.encode(frame)[IMAGE]
    latent = encode(trained.core, pixels)
    reconstructions = decode(trained.core, latent)
    errors = np.square(reconstructions - as_fractions(pixels)).mean(axis=(1, 2, 3))
    return [
        {RECONSTRUCTION: as_base64(encode_png(as_pixels(image))), "error": float(error), LATENT: code.tolist()}
        for image, error, code in zip(reconstructions, errors, latent, strict=True)
    ]


def report(run: Run) -> None:
    """What is lost, where images lie among the codes, what lies between them, and what the code knows beside them."""
    from loom import figures_images as draw

    config: Any = run.config
    core, test = run.model, run.data.test
    known = as_fractions(run.data.train.targets[RECONSTRUCTION][:MOST_COMPARED])
    shown = as_fractions(test.targets[RECONSTRUCTION][:SHOWN])
    rows = [shown, run.test_outputs()[RECONSTRUCTION][:SHOWN], principal_reconstruction(config, known, shown)]
    title = f"Test images, from {config.latent_units} numbers, from {config.latent_units} principal components"
    run.figure("reconstructions", draw.image_grid(np.concatenate(rows), title=title, columns=len(shown)))
    latent = encode(core, test.targets[RECONSTRUCTION][:MOST_DRAWN])
    classes = test.raw[LABEL][:MOST_DRAWN].tolist()
    run.figure("latent_space", draw.embedding_map(latent, classes, "Codes of test images"))
    between = draw.image_grid(_between(core, latent), title="From one image to another", columns=STEPS)
    run.figure("interpolation", between)
    if config.model == "denoising":
        _report_denoising(run, known, shown)
    if config.model == "variational":
        drawn = np.random.default_rng(config.seed).normal(size=(64, config.latent_units))
        run.figure("samples", draw.image_grid(decode(core, drawn), title="Images from random codes"))
    if (found := draw.filters(core)) is not None:
        run.figure("filters", found)
    spread = {"mean": latent.mean(axis=0).tolist(), "standard_deviation": latent.std(axis=0).tolist()}
    run.table("latent_space", spread)


def _between(core: keras.Model, latent: np.ndarray) -> np.ndarray:
    """Images of codes on the straight lines between those of some pairs of images."""
    pairs = min(PAIRS, len(latent) // 2)
    share = np.linspace(0, 1, STEPS)[None, :, None]
    codes = latent[:pairs, None] * (1 - share) + latent[pairs : 2 * pairs, None] * share
    return decode(core, codes.reshape(-1, latent.shape[1]))


def _report_denoising(run: Run, known: np.ndarray, shown: np.ndarray) -> None:
    """Noisy test images and what becomes of them, beside what principal components make of them."""
    from loom import figures_images as draw

    config: Any = run.config
    noisy = noisy_pixels(config, shown)
    denoised = decode(run.model, encode(run.model, noisy))
    rows = [shown, as_fractions(noisy), denoised, principal_reconstruction(config, known, as_fractions(noisy))]
    title = "Test images, with noise, without it again, from principal components"
    run.figure("denoising", draw.image_grid(np.concatenate(rows), title=title, columns=len(shown)))


APP = App(
    "autoencoder",
    Config,
    load,
    preprocess,
    build,
    space,
    baselines,
    report,
    predict,
    loss=loss,
    metrics=metrics,
    loss_weights=loss_weights,
    objective="val_loss",
    augment=augment,
    test=test,
)

if __name__ == "__main__":
    main(APP)
