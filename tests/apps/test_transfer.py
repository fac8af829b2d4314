"""Transfer: what each phase trains, where a network comes from, mistakes, and the whole command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import small_images
from support import ROOT, loom

from apps import transfer
from apps.transfer import APP, BACKBONES, Config
from loom import Spec, UserError
from loom.config import from_dict, to_dict
from loom.run import Run, fit
from loom.train import prepare

RUN = "0" * 32
FEW = {"classes": "5,6,7,8,9", "train_per_class": 10, "weights": RUN, "learning_rate": 0.01}
HEAD = {"label/kernel", "label/bias"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[keras.Model, Spec]:
    """A network that was trained on the digits 0 to 4."""
    config = small_images.Config(classes="0,1,2,3,4")
    run = prepare(small_images.APP, config, small_images.load_classes(config), tmp_path_factory.mktemp("source"))
    fit(run)
    return run.model, run.data.spec


@pytest.fixture(autouse=True)
def _runs(monkeypatch: pytest.MonkeyPatch, source: tuple[keras.Model, Spec]) -> None:
    """The run `RUN` is there, without a store; each one who asks for its model gets one of his own."""

    def model_of_run(run_id: str) -> keras.Model:
        copy = keras.models.clone_model(source[0])
        copy.set_weights(source[0].get_weights())
        return copy

    monkeypatch.setattr(transfer, "model_of_run", model_of_run)
    monkeypatch.setattr(transfer, "spec_of_run", lambda run_id: source[1])


def prepared(folder: Path, **settings: object) -> Run:
    config = Config(**{**FEW, **settings})
    return prepare(APP, config, transfer.load(config), folder)


class Phases(keras.callbacks.Callback):
    """Weights before and after each phase."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[dict[str, np.ndarray]] = []

    def on_train_begin(self, logs: object = None) -> None:
        self.weights.append({variable.path: np.array(variable) for variable in self.model.weights})

    def on_train_end(self, logs: object = None) -> None:
        self.on_train_begin()

    def moved(self, phase: int) -> set[str]:
        before, after = self.weights[2 * phase : 2 * phase + 2]
        return {name.removeprefix("backbone/") for name in before if not np.array_equal(before[name], after[name])}


def phases_of(run: Run) -> list[set[str]]:
    """Names of the weights that each phase moves."""
    run.callbacks.append(seen := Phases())
    fit(run)
    return [seen.moved(phase) for phase in range(len(seen.weights) // 2)]


CONVOLUTIONS = {"conv_1/kernel", "conv_1/bias", "conv_2/kernel", "conv_2/bias"}
AVERAGES = {"norm_1/moving_mean", "norm_1/moving_variance"}


LAST = {"conv_2/kernel", "conv_2/bias"}
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("settings", "moved"),
    [
        ({"epochs": 3, "frozen_epochs": 1}, [HEAD, HEAD | CONVOLUTIONS]),
        ({"epochs": 1, "mode": "from_scratch"}, [HEAD | CONVOLUTIONS | AVERAGES | {"norm_1/gamma", "norm_1/beta"}]),
        pytest.param({"epochs": 2, "frozen_epochs": 1, "fine_tune_from": "1"}, [HEAD, HEAD | LAST], marks=SLOW),
        pytest.param({"epochs": 1, "mode": "frozen"}, [HEAD], marks=SLOW),
    ],
    ids=["fine-tuned", "from scratch", "fine-tuned from a layer on", "frozen"],
)
def test_each_phase_moves_exactly_what_it_should(tmp_path, settings, moved) -> None:
    assert phases_of(prepared(tmp_path, **settings)) == moved


def test_the_network_starts_with_the_weights_of_the_run_or_with_new_ones(source) -> None:
    data = transfer.load(Config(**FEW))
    for mode, same in (("fine_tuned", True), ("from_scratch", False)):
        network = transfer.build(Config(**FEW, mode=mode), data.spec).get_layer("backbone")
        kernel = np.array(network.get_layer("conv_1").kernel)
        assert np.array_equal(kernel, np.array(source[0].get_layer("conv_1").kernel)) == same
        assert np.any(np.array(network.get_layer("norm_1").moving_mean)) == same
        assert not any(isinstance(layer, keras.layers.Dropout) for layer in network.layers)


@pytest.mark.parametrize(("first", "trained"), [("1", ["conv_2"]), ("conv_2", ["conv_2"]), ("2", ["conv_1", "conv_2"])])
def test_fine_tuning_begins_at_a_layer(first: str, trained: list[str]) -> None:
    model = transfer.build(Config(**FEW), transfer.load(Config(**FEW)).spec)
    transfer.freeze(model)
    assert len(model.trainable_variables) == 2
    transfer.unfreeze(model, first)
    assert [layer.name for layer in model.get_layer("backbone").layers if layer.trainable_variables] == trained


def test_images_take_the_size_of_the_run_or_the_smallest_that_the_network_takes(tmp_path) -> None:
    assert transfer.load(Config(**FEW)).spec.input("image").statistics == {"height": 8, "width": 8, "channels": 1}
    data = transfer.load(Config(backbone="InceptionV3"))
    assert data.spec.input("image").statistics == {"height": 75, "width": 75, "channels": 3}
    assert data.notes == ("images become 75 x 75 x 3, as InceptionV3 takes them",)


@pytest.mark.parametrize("name", ["ResNet50", "MobileNetV2", "EfficientNetB0"])
def test_preprocessing_is_the_networks_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(*arguments: object, **options: object) -> keras.Model:
        values = keras.Input((32, 32, 3))
        return keras.Model(values, keras.layers.Flatten(name="seen")(values), name="backbone")

    monkeypatch.setattr(transfer, "_application", identity)
    config = Config(backbone=name)
    model = transfer.build(config, transfer.load(config).spec)
    seen = keras.Model(model.input, model.layers[-2].input)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    module = getattr(keras.applications, BACKBONES[name].module)
    expected = module.preprocess_input(pixels.astype("float32")).reshape(2, -1)
    np.testing.assert_allclose(seen({"image": pixels}), expected, atol=1e-4)


# Mistakes


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weights": "none", "height": 31}, "--height 31: MobileNetV2 needs images of at least 32 x 32"),
        ({"weights": "none", "backbone": "InceptionV3", "width": 64}, "--width 64: InceptionV3 .* 75 x 75"),
        ({"weights": "none", "channels": 1}, "--channels 1: MobileNetV2 takes colours"),
        ({"weights": "imagnet"}, "--weights imagnet: is no run"),
        ({"frozen_epochs": 0}, "--frozen-epochs 0"),
        ({"fine_tune_learning_rate": 0.0}, "--fine-tune-learning-rate 0.0"),
        ({"dropout": 1.0}, "--dropout 1.0"),
        ({"regularization": "l2"}, "--regularization l2: is not used here"),
    ],
)
def test_impossible_settings_are_refused_by_flag(settings, words) -> None:
    with pytest.raises(UserError, match=words):
        Config(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fine_tune_from": "conv2"}, "--fine-tune-from conv2: .*did you mean conv_2"),
        ({"fine_tune_from": "9"}, "--fine-tune-from 9: the network has 2 layers to train"),
        ({"weights": "missing.h5"}, "--weights missing.h5: there is no such file"),
        ({"height": 16}, f"--height 16: run {RUN} takes 8"),
        ({"classes": "5,x"}, "--classes 5,x: there is no class 'x' among 0, 1, 2"),
        ({"train_per_class": 1000}, "--train-per-class 1000: of class '8' there are 125 images to train on"),
        ({"classes": "5"}, "at least 2 classes"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(settings, words) -> None:
    config = Config(**{**FEW, **settings})
    with pytest.raises(UserError, match=words) as error:
        transfer.build(config, transfer.load(config).spec)
    assert "\n" not in str(error.value)


def test_a_run_whose_network_makes_no_vector_is_refused(source, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = keras.Input((8, 8, 1), dtype="uint8", name="image")
    maps = keras.layers.Conv2D(2, 3)(keras.layers.Conv2D(2, 3)(keras.layers.Rescaling(1 / 255)(pixels)))
    monkeypatch.setattr(transfer, "model_of_run", lambda run_id: keras.Model({"image": pixels}, {"cells": maps}))
    with pytest.raises(UserError, match=f"--weights {RUN}: no layer of that run's network makes one vector"):
        transfer.build(Config(**FEW), source[1])


def test_without_a_network_the_error_says_how_to_supply_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> None:
        assert options["weights"] == "imagenet"
        raise Exception("URL fetch failure on https://example.org/vgg16.h5: None -- Name or service not known")

    monkeypatch.setattr(keras.applications, "VGG16", fail)
    config = Config(weights="imagenet", backbone="VGG16")
    with pytest.raises(UserError, match=r"https://example.org/vgg16.h5.*--weights FILE.h5.*--weights RUN_ID") as error:
        transfer.build(config, transfer.load(config).spec)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_search_space_that_runs(tmp_path) -> None:
    import keras_tuner

    found = APP.space(keras_tuner.HyperParameters())
    config = from_dict(Config, to_dict(Config(**FEW, epochs=2, frozen_epochs=1)) | found)
    fit(prepare(APP, config, transfer.load(config), tmp_path))


# The whole command


@pytest.mark.slow
def test_a_run_is_the_start_of_another_whose_model_answers_an_image(tmp_path) -> None:
    """The real thing: train on 0 to 4, transfer to 5 to 9, load in a fresh process, answer a file."""
    pretrained = loom(
        "train", str(ROOT / "tests" / "helpers" / "small_images.py"), "--classes", "0,1,2,3,4", "--json", cwd=tmp_path
    )
    assert pretrained.status == 0, pretrained.errors
    arguments = ["--weights", pretrained.result["run_id"], "--classes", "5,6,7,8,9", "--train-per-class", "10"]
    arguments += ["--epochs", "4", "--frozen-epochs", "2", "--learning-rate", "0.01"]
    outcome = loom("train", "transfer", *arguments, "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    assert "phase 1/2, feature extraction: trains 2,565 of" in outcome.errors
    assert "phase 2/2, fine-tuning" in outcome.errors
    report = Path(outcome.result["model"]).parent / "report"
    assert {"model.png", "confusion_matrix.png", "learning_curves.png"} <= {path.name for path in report.iterdir()}
    digit = small_images.load_classes(small_images.Config()).test.raw["image"].iloc[0]
    (tmp_path / "digit.png").write_bytes(digit)
    answer = loom("predict", outcome.result["run_id"], "digit.png", "--json", cwd=tmp_path)
    assert answer.status == 0, answer.errors
    assert '"label"' in answer.output


# Keras Applications, which take long to build


@pytest.mark.slow
@pytest.mark.parametrize("name", list(BACKBONES))
def test_every_backbone_trains_a_step_and_answers(name, tmp_path, real_data) -> None:
    flowers = real_data / "images" / "flowers" / "train"
    config = Config(data=str(flowers), backbone=name, train_per_class=2, epochs=1, height=96, width=96, batch_size=10)
    run = prepare(APP, config, transfer.load(config), tmp_path)
    before = {variable.path: np.array(variable) for variable in run.model.trainable_variables}
    fit(run)
    still = [path for path, value in before.items() if np.array_equal(value, np.array(_of(run.model, path)))]
    assert not still
    answers = run.trained.predict(run.data.test.raw.head(3))
    assert {answer["label"] for answer in answers} <= {"daisy", "dandelion", "roses", "sunflowers", "tulips"}


def _of(model: keras.Model, path: str) -> keras.Variable:
    return next(variable for variable in model.variables if variable.path == path)


@pytest.mark.slow
def test_weights_come_from_a_file(tmp_path) -> None:
    network = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg")
    network.save_weights(tmp_path / "network.weights.h5")
    config = Config(weights=str(tmp_path / "network.weights.h5"), classes="0,1")
    model = transfer.build(config, transfer.load(config).spec)
    ours = model.get_layer("backbone")
    assert all(map(np.array_equal, ours.get_weights(), network.get_weights()))
    with pytest.raises(UserError, match="these are not the weights of VGG16 without its top layers"):
        transfer.build(replace(config, backbone="VGG16"), transfer.load(config).spec)
