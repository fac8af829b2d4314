"""The autoencoder: every kind of it, what its codes are, answers, and the command from end to end."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import keras
import keras_tuner
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from support import loom

from apps import autoencoder, images
from apps.autoencoder import APP, Config
from loom import Data, Field, Spec, UserError
from loom.data.files import encode_png
from loom.data.images import digits
from loom.saving import trained_files
from loom.train import build_run, encoded
from loom.trained import Trained
from loom.weights import copy_weights

SMALL = Config(latent_units=4, units=16, filters=4, max_train=128, batch_size=32, epochs=1)
KINDS = [
    {"model": "plain", "encoder": "cnn"},
    {"model": "denoising", "encoder": "mlp", "depth": 2, "regularization": "both"},
    {"model": "variational", "encoder": "cnn", "regularization": "both"},
]


def name(settings: dict) -> str:
    return "-".join(map(str, settings.values()))


@pytest.fixture(scope="module")
def data() -> Data:
    """Of a variational autoencoder: the others have a target fewer."""
    return autoencoder.load(replace(SMALL, model="variational"))


def untrained(config: Config, data: Data) -> Trained:
    keras.utils.set_random_seed(config.seed)
    return Trained(APP, config, data.spec, autoencoder.build(config, data.spec))


def test_images_are_their_own_targets_and_the_same_arrays(data: Data) -> None:
    assert encoded(APP, SMALL, data) is data  # they are numbers already
    for split in data.splits.values():
        assert split.inputs["image"] is split.targets["reconstruction"]
        assert split.inputs["image"].dtype == np.uint8
        assert not split.targets["divergence"].any()
    assert set(data.test.raw["label"]) == set("0123456789")


@pytest.mark.parametrize("settings", KINDS, ids=name)
def test_every_parameter_moves_in_one_step(data: Data, settings: dict, tmp_path: Path) -> None:
    config = replace(SMALL, **settings)
    targets = ["reconstruction", "divergence"][: 2 if config.model == "variational" else 1]
    data = data.map_splits(lambda split: replace(split, targets={key: split.targets[key] for key in targets}))
    run = build_run(APP, config, data, tmp_path)
    before = {weight.path: np.array(weight) for weight in run.model.trainable_weights}
    run.model.fit(run.train_batches.dataset().take(2), verbose=0, shuffle=False)
    for weight in run.model.trainable_weights:
        assert not np.array_equal(np.array(weight), before[weight.path]), weight.path


@pytest.mark.parametrize("settings", [{"encoder": "mlp"}, {"model": "variational"}], ids=name)
def test_a_penalty_is_on_every_kernel(data: Data, settings: dict) -> None:
    core = autoencoder.build(replace(SMALL, regularization="l2", **settings), data.spec)
    kernels = [layer for layer in core._flatten_layers() if hasattr(layer, "kernel")]
    assert all(layer.kernel_regularizer is not None for layer in kernels)


@pytest.mark.parametrize("encoder", ["mlp", "cnn"])
def test_images_of_any_size_and_colour_come_back_in_their_own_size(encoder: str) -> None:
    statistics = {"height": 9, "width": 22, "channels": 3}
    spec = Spec((Field("image", "image", statistics=statistics),), (Field("image", "image", statistics=statistics),))
    core = autoencoder.build(replace(SMALL, encoder=encoder), spec)
    made = core({"image": np.full((2, 9, 22, 3), 255, np.uint8)})["reconstruction"].numpy()
    assert made.shape == (2, 9, 22, 3)
    assert 0 < made.min() <= made.max() < 1


def test_the_divergence_is_the_closed_form_of_mean_and_variance(data: Data) -> None:
    config = replace(SMALL, model="variational")
    core = untrained(config, data).core
    kernel = core.get_layer("latent_log_variance").kernel
    kernel.assign(np.random.default_rng(0).normal(0, 0.3, kernel.shape))
    pixels = data.test.inputs["image"][:20]
    parts = keras.Model(core.input, [core.get_layer(f"latent_{part}").output for part in ("mean", "log_variance")])
    mean, log_variance = (part.numpy().astype(float) for part in parts({"image": pixels}))
    by_hand = -0.5 * (1 + log_variance - mean**2 - np.exp(log_variance)).sum(axis=1)
    found = core({"image": pixels})["divergence"].numpy()[:, 0]
    np.testing.assert_allclose(found, by_hand, rtol=1e-4)
    np.testing.assert_array_equal(autoencoder.encode(core, pixels), mean.astype(np.float32))


def test_the_loss_of_a_variational_one_is_the_evidence_lower_bound_per_value(data: Data, tmp_path: Path) -> None:
    config = replace(SMALL, model="variational", kl_weight=3.0)
    run = build_run(APP, config, data, tmp_path)
    inputs, targets = next(iter(run.batches(data.test)))
    found = run.model.test_on_batch(inputs, targets, return_dict=True)
    made = run.model(inputs)
    image, truth = made["reconstruction"].numpy().astype(float), inputs["image"] / 255
    entropy = -(truth * np.log(image) + (1 - truth) * np.log(1 - image)).sum(axis=(1, 2, 3))
    bound = entropy + 3.0 * made["divergence"].numpy()[:, 0]
    assert found["loss"] == pytest.approx(bound.mean() / 64, rel=1e-4)
    assert found["reconstruction_mse"] == pytest.approx(np.square(image - truth).mean(), rel=1e-4)


def test_noise_comes_in_training_only_and_the_target_stays_clean(data: Data) -> None:
    core = untrained(replace(SMALL, model="denoising"), data).core
    inputs = {"image": data.test.inputs["image"][:4]}
    outputs = [core(inputs, training=training)["reconstruction"].numpy() for training in (False, False, True)]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert not np.allclose(outputs[0], outputs[2], atol=1e-4)
    assert autoencoder.augment(replace(SMALL, model="denoising"), data.spec) is None  # the noise is the model's own


def test_a_denoising_one_is_tested_on_noisy_images(data: Data, tmp_path: Path) -> None:
    config = replace(SMALL, model="denoising", noise=0.5)
    data = data.map_splits(lambda split: replace(split, targets={"reconstruction": split.targets["reconstruction"]}))
    run = build_run(APP, config, data, tmp_path)
    clean = data.test.inputs["image"] / np.float32(255)
    noisy = autoencoder.noisy_pixels(config, clean)
    made = run.trained.outputs_of({"image": noisy})["reconstruction"]
    (found,) = autoencoder.test(run, {}).values()
    assert found == pytest.approx(np.square(made - clean).mean(), rel=1e-4)
    baselines = autoencoder.baselines(config, data)
    assert baselines["noisy"]["denoised_mse"] == pytest.approx(np.square(noisy / 255 - clean).mean(), rel=1e-4)
    assert baselines["pca"]["mse"] < baselines["pca"]["denoised_mse"] < baselines["noisy"]["denoised_mse"]
    np.testing.assert_array_equal(autoencoder.noisy_pixels(config, clean[:3]), noisy[:3])


def test_augmented_images_are_their_own_targets_too(data: Data) -> None:
    change = autoencoder.augment(replace(SMALL, flip="both", translation=0.2), data.spec)
    assert change is not None
    pixels = tf.constant(data.train.inputs["image"][:8])
    inputs, targets = change({"image": pixels}, {"reconstruction": pixels}, tf.constant([1, 2]))
    assert not np.array_equal(inputs["image"], pixels)
    np.testing.assert_array_equal(inputs["image"], targets["reconstruction"])


def test_principal_components_are_the_best_linear_code_of_their_size(data: Data) -> None:
    """Their squared error is the variance that the components leave out."""
    known = data.train.inputs["image"] / np.float32(255)
    made = autoencoder.principal_reconstruction(replace(SMALL, latent_units=60), known, known)
    rows = known.reshape(len(known), -1)
    left = np.linalg.eigvalsh(np.cov(rows, rowvar=False, bias=True))[:4].sum() / 64
    assert np.square(made - known).mean() == pytest.approx(left, abs=1e-5)
    found = autoencoder.baselines(SMALL, data.map_splits(lambda split: replace(split, inputs={})))
    assert 0.01 < found["pca"]["mse"] < 0.8 * found["mean"]["mse"]


@pytest.mark.parametrize("model", ["mlp", "lenet", "cnn", "resnet"])
def test_its_encoder_is_that_of_images_which_starts_from_all_of_its_weights(data: Data, model: str) -> None:
    core = untrained(replace(SMALL, encoder=model), data).core
    config = images.Config(model=model, units=16, filters=4)  # its own default regularization
    spec = Spec(data.spec.inputs, (Field("label", "classes", tuple("0123456789")),))
    classifier = images.build(config, spec)
    sentence = copy_weights(classifier, core, "--weights 123")
    assert sentence.partition("; ")[2].startswith("output (")  # nothing else starts anew
    assert sentence.count("(") == 1
    same = [layer for layer in classifier.layers if layer.weights and layer.name != "output"]
    for layer in same:
        for found, wanted in zip(layer.weights, core.get_layer(layer.name).weights, strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent_units": 0}, "--latent-units 0: must be at least 1"),
        ({"kl_weight": -1.0}, "--kl-weight -1.0: must not be negative"),
        ({"model": "denoising", "noise": 0.0}, "--noise 0.0: must be greater than 0"),
        ({"mixup": 0.2}, "--mixup 0.2: is not used here"),
        ({"dropout": 1.0}, "--dropout 1.0"),
    ],
)
def test_impossible_settings_are_one_line(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Config(**settings)


def test_the_search_space_names_settings_and_builds(data: Data) -> None:
    config = replace(SMALL, **autoencoder.space(keras_tuner.HyperParameters()))
    assert autoencoder.build(config, data.spec).count_params() > 0


@pytest.mark.slow
def test_from_the_command_to_an_answer_of_the_saved_model(tmp_path: Path) -> None:
    """A small variational one, trained, saved, checked in a fresh process, and asked."""
    settings = ("--model", "variational", "--encoder", "mlp", "--units", "16", "--latent-units", "3")
    outcome = loom("train", "autoencoder", *settings, "--epochs", "2", "--max-train", "300", "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    metrics = outcome.result["metrics"]
    assert metrics["train_divergence_loss"] > 0
    assert metrics["test_reconstruction_mse"] > 0
    assert metrics["baseline_pca_reconstruction_mse"] < metrics["baseline_mean_reconstruction_mse"]
    report = Path(outcome.result["model"]).parent / "report"
    figures = {"reconstructions", "latent_space", "interpolation", "samples", "learning_curves", "filters"}
    assert figures <= {path.stem for path in report.glob("*.png")}
    trained = Trained.open(trained_files(Path(outcome.result["model"])))
    (answer,) = trained.predict(digits().iloc[7:8])
    assert len(answer["latent"]) == 3
    made = tf.io.decode_png(base64.b64decode(answer["reconstruction"])).numpy() / 255
    truth = tf.io.decode_png(digits()["image"][7]).numpy() / 255
    assert made.shape == (8, 8, 1)
    assert answer["error"] == pytest.approx(np.square(made - truth).mean(), abs=2e-3)
    assert answer["latent"] == pytest.approx(autoencoder.encode(trained.core, (255 * truth[None]).astype(np.uint8))[0])


def test_files_that_are_no_images_are_refused_in_one_line(data: Data) -> None:
    trained = untrained(SMALL, data)
    whole = encode_png(np.zeros((8, 8), np.uint8))
    with pytest.raises(UserError, match="row 2"):
        trained.predict(pd.DataFrame({"image": [whole, whole[:40]]}))
    with pytest.raises(UserError, match="nowhere"):
        autoencoder.load(replace(SMALL, data="nowhere"))


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["mlp", "cnn"])
def test_it_beats_principal_components_of_the_same_size(tmp_path: Path, encoder: str) -> None:
    outcome = loom("train", "autoencoder", "--encoder", encoder, "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    metrics = outcome.result["metrics"]
    assert metrics["test_mse"] < 0.9 * metrics["baseline_pca_mse"]


@pytest.mark.slow
def test_a_denoiser_beats_the_projection_on_principal_components(tmp_path: Path) -> None:
    outcome = loom("train", "autoencoder", "--model", "denoising", "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    metrics = outcome.result["metrics"]
    assert metrics["test_denoised_mse"] < 0.9 * metrics["baseline_pca_denoised_mse"]
    assert metrics["baseline_pca_denoised_mse"] < metrics["baseline_noisy_denoised_mse"]


@pytest.mark.slow
def test_a_search_runs(tmp_path: Path) -> None:
    options = ("--trials", "2", "--epochs", "1", "--max-train", "200", "--json")
    outcome = loom("tune", "autoencoder", *options, cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
