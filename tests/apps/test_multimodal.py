"""Multimodal: columns that hold images, a branch that is used twice, two outputs, mistakes, the whole command."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from support import loom

from apps import multimodal
from apps.multimodal import APP, Config
from loom import UserError
from loom.data import samples
from loom.data.files import encode_png
from loom.model_graph import model_graph
from loom.run import Run, fit
from loom.train import prepare

ROWS = 40
SMALL = {"epochs": 1, "filters": 4, "units": 8, "depth": 2, "image_units": 8, "text_units": 4, "batch_size": 16}


def write(folder: Path, **changes: object) -> Config:
    """A table with paths of pictures beside it, two for each row; `bright` follows from the first."""
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    values = rng.integers(0, 256, ROWS)
    for row, value in enumerate(values):
        for side in ("left", "right"):
            pixels = np.full((6, 8, 3), value if side == "left" else 100, "uint8")
            (folder / "pictures" / f"{side}{row}.png").write_bytes(encode_png(pixels))
    table = {
        "left": [f"pictures/left{row}.png" for row in range(ROWS)],
        "right": [f"pictures/right{row}.png" for row in range(ROWS)],
        "price": rng.normal(size=ROWS).round(3),
        "remark": [f"a remark about number {row}" for row in range(ROWS)],
        "city": rng.choice(["Bari", "Cork"], ROWS),
        "bright": np.where(values > 127, "yes", "no"),
        "value": values / 10,
    }
    pd.DataFrame(table | changes).to_csv(folder / "table.csv", index=False)
    return Config(data=str(folder / "table.csv"), target="bright,value", max_bad=0.1, **SMALL)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[np.ndarray]]:
    """A run on such a table, and its weights before training."""
    folder = tmp_path_factory.mktemp("table")
    config = write(folder)
    run = prepare(APP, config, multimodal.load(config), folder)
    before = run.model.get_weights()
    fit(run)
    return run, before


def test_image_columns_are_found_beside_the_others(trained) -> None:
    kinds = {column.name: column.kind for column in trained[0].data.spec.inputs}
    assert kinds == {"left": "image", "right": "image", "price": "number", "remark": "text", "city": "category"}
    assert trained[0].data.spec.input("left").statistics == {"height": 6, "width": 8, "channels": 3}
    assert trained[0].data.train.inputs["left"].dtype == np.uint8


def test_every_parameter_moves(trained) -> None:
    run, before = trained
    still = [
        variable.path
        for variable, old in zip(run.model.weights, before, strict=True)
        if np.array_equal(old, np.array(variable))
    ]
    assert not still


def test_one_encoder_sees_both_images_unless_each_has_its_own(trained) -> None:
    run, _ = trained
    encoder = run.model.get_layer("image_encoder")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 6, 8, 3)).astype("uint8")
    inputs = {name: run.data.test.inputs[name][:1] for name in run.model.input}
    vectors = keras.Model(run.model.input, run.model.get_layer("all_inputs").input)(
        {**inputs, "left": pixels, "right": pixels}
    )
    np.testing.assert_array_equal(vectors[0], vectors[1])
    np.testing.assert_allclose(vectors[0], encoder(pixels), atol=1e-6)
    apart = multimodal.build(Config(share=False, **SMALL), run.data.spec)
    assert apart.count_params() == run.model.count_params() + encoder.count_params()


def test_outputs_have_their_own_losses_and_weights(trained) -> None:
    run, _ = trained
    weights = multimodal.loss_weights(Config(target="bright,value", loss_weights="bright=3,value=0.5"), run.data.spec)
    variance = run.data.spec.target("value").statistics["variance"]
    assert weights == pytest.approx({"bright": 3, "value": 0.5 / variance})
    assert APP.resolve("loss", run.config, run.data.spec) == {"bright": "binary_crossentropy", "value": "mse"}
    assert {"bright_accuracy", "value_mae"} <= set(run.model.get_metrics_result())


def test_both_baselines_are_there_for_each_target(trained) -> None:
    run, _ = trained
    found = multimodal.baselines(run.config, run.data)
    assert found.keys() == {"majority", "mean", "boosting"}
    assert found["boosting"]["value_mae"] < found["mean"]["value_mae"]


def test_the_report_draws_the_model_and_what_it_says(trained) -> None:
    run, _ = trained
    multimodal.report(run)
    names = {path.name for path in run.folder.glob("*.png")}
    assert {"model.png", "examples.png", "importance_value.png", "confusion_matrix_bright.png"} <= names


def test_the_figure_has_a_box_for_every_layer_and_names_what_is_shared(trained) -> None:
    (axis,) = model_graph(trained[0].model).axes
    texts = [text.get_text() for text in axis.texts]
    assert {layer.name for layer in trained[0].model.layers} <= set(texts)
    assert f"Functional {SMALL['image_units']}, called 2 times" in texts
    nodes = [node for row in trained[0].model._nodes_by_depth.values() for node in row]
    arrows = {(parent.operation, node.operation) for node in nodes for parent in node.parent_nodes}
    assert sum(text == "" for text in texts) == len(arrows)


def test_an_answer_takes_files_and_does_without_one(trained) -> None:
    run, _ = trained
    row = run.data.test.raw.head(1)
    (answer,) = run.trained.predict(row)
    assert list(answer) == ["bright", "bright_probability", "value"]
    (without,) = run.trained.predict(row.assign(right=None))
    assert without != answer


def test_bad_pictures_are_listed_with_their_line(tmp_path) -> None:
    config = write(tmp_path)
    (tmp_path / "pictures" / "left3.png").write_bytes(b"")
    (tmp_path / "pictures" / "right5.png").unlink()
    data = multimodal.load(config)
    assert data.bad == (
        ("table.csv:5", "column 'left', pictures/left3.png: the file is empty"),
        ("table.csv:7", "column 'right', pictures/right5.png: the file cannot be read (No such file or directory)"),
    )
    assert sum(map(len, data.splits.values())) == ROWS - 2


def test_the_sample_is_what_its_words_say() -> None:
    train, test = samples.digit_questions()
    assert (len(train), len(test)) == (2400, 600)
    for column in ("first", "second"):
        assert not set(train[column]) & (set(test["first"]) | set(test["second"]))
    assert (np.where(test["answer"] > test["limit"], "above", "below") == test["verdict"]).all()
    assert train["question"].nunique() > len(train) / 2
    assert train["verdict"].value_counts(normalize=True).max() < 0.6


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target": "bright,prize"}, "--target prize: .*did you mean 'price'"),
        ({"columns": "left=ignore,right=ignore"}, "no column holds paths of image files"),
        ({"columns": "left=picture"}, "--columns left=picture: write COLUMN=KIND"),
        ({"loss_weights": "price=2"}, "--loss-weights price: there is no such column among bright, value"),
        ({"loss_weights": "bright=-1"}, "--loss-weights bright=-1: write COLUMN=NUMBER, a number above 0"),
        ({"dropout": 1.0}, "--dropout 1.0"),
        ({"depth": 0}, "--depth 0"),
        ({"mixup": 0.2}, "--mixup 0.2"),
        ({"train_per_class": 5}, "--train-per-class 5: is not used here"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(tmp_path, settings, words) -> None:
    written = write(tmp_path)

    def load() -> None:
        config = Config(**{"data": written.data, "target": written.target, **settings})
        APP.augment(config, multimodal.load(config).spec)

    with pytest.raises(UserError, match=words) as error:
        load()
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_search_space_that_runs(tmp_path) -> None:
    import keras_tuner

    config = Config(**{**write(tmp_path).__dict__, **APP.space(keras_tuner.HyperParameters())})
    fit(prepare(APP, config, multimodal.load(config), tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("regularization", ["batchnorm", "both", "l2"])
def test_regularizations_train(tmp_path, regularization: str) -> None:
    config = Config(**{**write(tmp_path).__dict__, "regularization": regularization, "text": "bag"})
    run = prepare(APP, config, multimodal.load(config), tmp_path)
    fit(run)
    norms = [layer for layer in run.model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    assert bool(norms) == (regularization != "l2")


@pytest.mark.slow
def test_the_command_trains_and_its_model_answers_a_table_elsewhere(tmp_path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    flags += ["--data=data/table.csv", "--target=bright,value"]
    outcome = loom("train", "multimodal", *flags, "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    answers = loom("predict", outcome.result["run_id"], "data/table.csv", "--json", cwd=tmp_path)
    assert answers.status == 0, answers.errors
    assert len(answers.output.splitlines()) == ROWS


@pytest.mark.slow
def test_the_sample_is_learned_and_every_input_is_needed(tmp_path) -> None:
    from loom.data.targets import permutation_importance

    config = Config()
    run = prepare(APP, config, multimodal.load(config), tmp_path)
    fit(run)
    test = run.model.evaluate(run.batches(run.data.test).dataset(), return_dict=True, verbose=0)
    boosting = multimodal.baselines(config, run.data)["boosting"]
    assert test["verdict_accuracy"] > boosting["verdict_accuracy"] + 0.03
    assert test["answer_mae"] < 0.7 * boosting["answer_mae"]
    needed = {
        target.name: dict(zip(names, changes.mean(axis=1), strict=True))
        for target, names, changes in permutation_importance(run, 0.5)
    }
    assert min(needed["verdict"].values()) > 0.01
    assert min(value for name, value in needed["answer"].items() if name != "limit") > 0.2
