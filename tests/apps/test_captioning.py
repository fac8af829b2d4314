"""The captioning application: its network, what a saved model says of an image, scores, figures, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from support import TrainedRun, loom

from apps import captioning
from apps.captioning import APP, CAPTION, Config
from loom import Data, UserError
from loom.data.images import IMAGE
from loom.data.pipeline import Ragged
from loom.figures_attention import DIMMEST, attention_over_images
from loom.scores import bleu_and_chrf
from loom.seq2seq import PREVIOUS, previous_tokens
from loom.trained import Trained
from loom.translator import Translator

FLAGS = {
    "scenes": 60, "epochs": 1, "units": 8, "heads": 2, "depth": 1, "feed_forward_units": 8, "filters": 4, "buckets": 1,
    "batch_size": 16, "beam_width": 2,
}  # fmt: skip
SMALL = Config(**FLAGS)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def data() -> Data:
    return captioning.load(SMALL)


NETWORKS = [
    {"model": "lstm", "attention": "additive", "depth": 2},
    {"model": "transformer"},
    pytest.param({"model": "gru", "attention": "multiplicative", "regularization": "none"}, marks=pytest.mark.slow),
    pytest.param({"model": "lstm", "attention": "none"}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("settings", NETWORKS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_every_parameter_moves_and_steps_with_a_cache_say_what_whole_captions_say(data: Data, settings: dict) -> None:
    config, rows = replace(SMALL, dropout=0.0, **settings), np.arange(6)
    model = captioning.build(config, data.spec)
    images, previous = data.train.inputs[IMAGE], data.train.inputs[PREVIOUS]
    targets = {CAPTION: data.train.targets[CAPTION].padded(rows, 20)}
    inputs: dict[str, Any] = {IMAGE: images[rows], PREVIOUS: previous.padded(rows, 20)}  # type: ignore[union-attr]
    model.compile(keras.optimizers.SGD(1.0), captioning.loss(config, data.spec), jit_compile=False, run_eagerly=True)
    before = {weight.path: np.array(weight) for weight in model.trainable_weights}
    model.train_on_batch(inputs, targets)
    weights = model.trainable_weights
    assert not [weight.path for weight in weights if np.array_equal(np.array(weight), before[weight.path])]

    target = data.spec.target(CAPTION)
    short = replace(target, statistics={**target.statistics, "most_tokens": 10.0})
    trained = Trained(APP, config, replace(data.spec, targets=(short,)), model)
    translator = Translator(trained, captioning.network)
    found = translator._decode_greedy(keras.ops.convert_to_tensor(inputs[IMAGE]))  # eagerly: nothing is traced
    tokens = Ragged.from_padded(found.tokens.numpy())
    steps = int(tokens.lengths.max())
    whole = model({IMAGE: inputs[IMAGE], PREVIOUS: previous_tokens(tokens).padded(rows, steps)})[CAPTION]
    logits = np.array(whole, "float64")
    logits[:, :, :3] = -np.inf  # padding, the unknown token and the start are never said
    likely = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    said = tokens.padded(rows, steps)
    assert (likely.argmax(axis=-1) == said)[said != 0].all()
    scores = np.take_along_axis(likely, said[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(found.scores, np.where(said != 0, scores, 0).sum(axis=1), rtol=1e-4)
    if settings.get("attention") != "none":
        weights, words = translator.attention(data.train.raw[IMAGE][0], data.train.raw[CAPTION][0])
        assert weights.shape == (len(words), np.prod(captioning.sides(config, data.spec.input(IMAGE))[-1]))
        np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-4)


def test_convolutions_halve_the_image_until_the_grid_is_small_enough(data: Data) -> None:
    column = data.spec.input(IMAGE)
    assert captioning.sides(SMALL, column) == [(24, 24), (12, 12), (6, 6)]
    assert captioning.sides(replace(SMALL, grid=24), column) == [(24, 24)]
    wide = replace(column, statistics={"height": 5, "width": 70, "channels": 3})
    assert captioning.sides(SMALL, wide)[-1] == (1, 5)


def test_convolutions_start_from_those_of_images(data: Data) -> None:
    from apps import images
    from loom.weights import copy_weights

    other = images.build(images.Config(filters=4, units=4), replace(data.spec, targets=(_classes(),)))
    model = captioning.build(SMALL, data.spec)
    sentence = copy_weights(model, other, "--weights RUN")
    copied = sentence.partition("weights of ")[2].partition(" are taken over")[0].split(", ")
    assert sorted(copied) == ["conv_1", "conv_2", "conv_3", "norm_1", "norm_2", "norm_3"]
    kernels = [each.get_layer("conv_3").get_weights()[0] for each in (model.get_layer("encoder"), other)]
    np.testing.assert_array_equal(*kernels)


def _classes() -> Any:
    from loom import Field

    return Field("label", "classes", ("a", "b"))


def test_bleu_takes_the_reference_that_fits_best() -> None:
    references = [["a dog runs on the beach", "the cat sleeps here all day"], ["two men play chess in a park"]]
    best = ["the cat sleeps here all day", "two men play chess in a park"]
    assert bleu_and_chrf(best, references, False) == pytest.approx({"bleu": 100, "chrf": 100})
    assert bleu_and_chrf(best, [known[:1] for known in references], False)["bleu"] < 80


def test_scores_tell_scenes_that_were_never_trained_on_apart(data: Data) -> None:
    references = captioning.captions_of(data.test.raw)
    right = captioning.scores([known[1] for known in references], SMALL, data)
    assert right["exact"] == right["exact_unseen"] == 1
    assert right["bleu"] == pytest.approx(100)
    found = captioning.baselines(SMALL, data)
    assert found.keys() == {"most_frequent", "nearest"}
    for values in found.values():
        assert values.keys() == right.keys()
        assert values["exact"] < 0.5


def test_each_word_has_a_picture_that_is_bright_where_it_looked() -> None:
    image, words = np.full((8, 12, 3), 200, np.uint8), [" a", " dog", "(end)"]
    weights = np.zeros((3, 2, 3), np.float32)
    weights[0, 0, 0] = weights[1, 1, 2] = weights[2, 0, 1] = 1
    axes = attention_over_images([(image, weights, words), (image, weights[:1], words[:1])]).axes
    assert [axis.get_title() for axis in axes if axis.get_title()] == ["a", "dog", "(end)", "a"]
    shown = [np.array(axis.images[0].get_array()) for axis in axes if axis.images]
    assert [picture.shape for picture in shown] == 6 * [(8, 12, 3)]
    assert shown[1][0, 0, 0] == shown[2][-1, -1, 0] == pytest.approx(200 / 255)
    assert shown[1][-1, -1, 0] == pytest.approx(DIMMEST * 200 / 255)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"regularization": "l2"}, "--regularization l2: is not used here; give none or batchnorm"),
        ({"train_per_class": 3}, "--train-per-class 3: is not used here"),
        ({"grid": 0}, "--grid 0: must be at least 1"),
        ({"scenes": 5}, "--scenes 5: must be at least 20"),
        ({"source_column": "a"}, "--source-column a: give --target-column"),
        ({"model": "transformer", "units": 9}, "--units 9: must be a multiple of --heads 2"),
        ({"mixup": 0.2}, "--mixup 0.2: this application's targets cannot be mixed"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(data: Data, settings: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        captioning.augmentation(replace(SMALL, **settings), data.spec)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A run of the command."""
    folder = tmp_path_factory.mktemp("captioning")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in FLAGS.items()]
    outcome = loom("train", "captioning", *flags, "--json", cwd=folder)
    assert outcome.status == 0, outcome.errors
    return TrainedRun(outcome.result["run_id"], folder, outcome)


@pytest.mark.slow
def test_the_command_measures_captions_and_draws_where_it_looked(trained: TrainedRun) -> None:
    metrics = trained.outcome.result["metrics"]
    measured = ("bleu", "chrf", "exact", "exact_colours", "exact_unseen", "greedy_exact", "loss", "accuracy")
    assert {f"test_{name}" for name in measured} <= metrics.keys()
    assert {"baseline_most_frequent_exact", "baseline_nearest_bleu"} <= metrics.keys()
    report = trained.model.parent / "report"
    rows = json.loads((report / "captions.json").read_text("utf-8"))
    assert len(rows) == 12
    assert rows[0].keys() == {"references", "beam", "greedy"}
    assert len(rows[0]["references"]) == 2
    assert {"captions.png", "attention.png"} <= {path.name for path in report.iterdir()}


@pytest.mark.slow
def test_a_saved_model_describes_the_file_of_an_image(trained: TrainedRun) -> None:
    model = Trained.open(trained.model / "artifacts" / "trained")
    image = captioning.load(SMALL).test.raw[IMAGE][0]
    (trained.folder / "scene.png").write_bytes(image)
    answer = loom("predict", trained.run_id, "scene.png", "--json", cwd=trained.folder)
    assert answer.status == 0, answer.errors
    (expected,) = Translator.of(model, captioning.network).write([image])
    assert answer.result["caption"] == expected.text
    assert answer.result["score"] == pytest.approx(expected.score, rel=1e-3)


@pytest.mark.slow
def test_sampling_is_the_same_in_the_same_order(trained: TrainedRun) -> None:
    images = captioning.load(SMALL).test.raw[IMAGE].iloc[[0, 0, 1]].tolist()
    files = trained.model / "artifacts" / "trained"
    first, second = (
        [answer.text for answer in Translator.of(Trained.open(files), captioning.network).write(images, "sampling")]
        for _ in range(2)
    )
    assert first == second
    assert first[0] != first[1]


@pytest.mark.slow
def test_a_run_that_samples_its_answers(tmp_path: Path) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in FLAGS.items()]
    outcome = loom("train", "captioning", *flags, "--decoding", "sampling", "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors


@pytest.mark.slow
def test_scenes_are_described_exactly(tmp_path: Path) -> None:
    outcome = loom("train", "captioning", "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    metrics = outcome.result["metrics"]
    assert min(metrics["test_exact"], metrics["test_exact_unseen"]) >= 0.95
    assert metrics["baseline_nearest_exact"] < 0.1


@pytest.mark.slow
def test_own_files_augmentation_and_a_search_space_that_run(tmp_path: Path) -> None:
    from loom.data.coloured_shapes import scenes

    frame = scenes(60)
    for number, image in enumerate(frame[IMAGE].unique()):
        (tmp_path / f"{number}.png").write_bytes(image)
    lines = [f"{row // 2}.png\t{text}\n" for row, text in enumerate(frame[CAPTION])]
    (tmp_path / "captions.tsv").write_text("".join(lines), "utf-8")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in FLAGS.items() if name not in ("units", "scenes")]
    flags += ["--data=captions.tsv", "--brightness=0.1", "--translation=0.02", "--tokens=subwords"]
    space = ["--space", "units=8,16", "--space", "model=transformer,gru", "--trials", "2", "--no-final"]
    outcome = loom("tune", "captioning", *flags, *space, "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
