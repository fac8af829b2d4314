"""The tabular application: guesses about columns, preprocessing, targets of every kind, every model, mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from support import loom

from apps import tabular
from apps.tabular import APP, Config
from loom import Data, UserError
from loom.data import columns, targets
from loom.data.encode import Encoder
from loom.data.sources import Examples
from loom.run import Run, fit
from loom.runtime import make_regularizer
from loom.train import prepare

ROWS = 60


def frame(**changes: object) -> pd.DataFrame:
    """A table with a column of every kind; `survived` follows from `fare`."""
    rng = np.random.default_rng(0)
    fare = rng.lognormal(3, 1, ROWS).round(2)
    values = {
        "id": range(1, ROWS + 1),
        "fare": fare,
        "port": rng.choice(["Aden", "Bari", "Cork"], ROWS),
        "boarded": [f"1907-03-{day:02}" for day in rng.integers(1, 28, ROWS)],
        "remark": [f"cabin {number} by the stairs" for number in range(ROWS)],
        "survived": (fare > np.median(fare)).astype(int),
    }
    return pd.DataFrame(values | changes)


@pytest.fixture
def write(tmp_path: Path):
    """Writes a table to a file and gives the settings that read it."""

    def settings(table: pd.DataFrame, **options: object) -> Config:
        table.to_csv(tmp_path / "table.csv", index=False)
        return Config(data=str(tmp_path / "table.csv"), **{"min_count": 1, "epochs": 3} | options)

    return settings


def encoder(config: Config, data: Data) -> Encoder:
    return Encoder(tabular.preprocess(config, data.spec), data.spec)


def trained(config: Config, folder: Path) -> Run:
    run = prepare(APP, config, tabular.load(config), folder)
    fit(run)
    run.test_metrics = run.model.evaluate(run.batches(run.data.test).dataset(), return_dict=True, verbose=0)
    return run


# What a column holds


def test_kinds_are_guessed_and_identifiers_ignored(write) -> None:
    data = tabular.load(write(frame()))
    kinds = {column.name: column.kind for column in data.spec.inputs}
    assert kinds == {"fare": "number", "port": "category", "boarded": "date", "remark": "text"}
    assert any("'id' is ignored" in note for note in data.notes)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([f"k{n}" for n in range(ROWS)], "no value occurs twice"),
        (["x"] * ROWS, "all values"),
        ([None] * ROWS, "no val"),
    ],
)
def test_useless_columns_are_ignored_with_a_note(values, why) -> None:
    kinds, notes = columns.choose_inputs(frame(extra=values), {})
    assert "extra" not in kinds
    assert any("'extra'" in note and why in note for note in notes)


def test_overrides_win_over_guesses(write) -> None:
    data = tabular.load(write(frame(), columns="id=category, remark=ignore"))
    assert [column.name for column in data.spec.inputs if column.kind == "category"] == ["id", "port"]
    assert "remark" not in data.train.raw


def test_a_few_words_among_numbers_are_pointed_out_and_quarantined_on_request(write) -> None:
    fares = frame()["fare"].astype(object)
    fares[7] = "free"
    data = tabular.load(write(frame(fare=fares)))
    assert any("'free'" in note for note in data.notes)
    data = tabular.load(write(frame(fare=fares), columns="fare=number", max_bad=0.05))
    assert data.bad == (("table.csv:9", "column 'fare' holds 'free', which is no number"),)
    assert sum(map(len, data.splits.values())) == ROWS - 1


def test_a_missing_target_is_left_out_and_listed_but_is_not_bad(write) -> None:
    survived = frame()["survived"].astype(object)
    survived[:10] = None
    data = tabular.load(write(frame(survived=survived)))
    assert [where for where, _ in data.bad] == [f"table.csv:{line}" for line in range(2, 12)]
    assert any("10 of 60 rows are left out" in note for note in data.notes)


def test_a_test_part_of_its_own_stays_the_test_part(monkeypatch) -> None:
    own_test = frame(survived=[None, *[0, 1] * 29, 1])
    monkeypatch.setattr(tabular, "read_examples", lambda *_: Examples(frame(), own_test, "tfds:ship"))
    data = tabular.load(Config(data="tfds:ship", min_count=1))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 54, "validation": 6, "test": ROWS - 1}
    assert data.bad == (("tfds:ship, row 61", "'survived', a target, is missing"),)


def test_the_fingerprint_covers_the_targets(write) -> None:
    before = tabular.load(write(frame())).fingerprint()
    assert tabular.load(write(frame())).fingerprint() == before
    flipped = frame().assign(survived=lambda table: 1 - table["survived"])
    assert tabular.load(write(flipped)).fingerprint() != before


# From raw values to numbers


def test_numbers_are_scaled_by_the_training_part_alone(write) -> None:
    config = write(frame(age=np.linspace(1, 80, ROWS)))
    data = tabular.load(config)
    training, test = (encoder(config, data)(split.raw)["age"][:, 0] for split in (data.train, data.test))
    assert training.mean() == pytest.approx(0, abs=1e-5)
    assert training.std() == pytest.approx(1, abs=1e-5)
    ages = data.train.raw["age"]
    np.testing.assert_allclose(test, (data.test.raw["age"] - ages.mean()) / ages.std(ddof=0), atol=1e-5)


def test_a_missing_number_is_zero_and_flagged(write) -> None:
    config = write(frame(age=[np.nan if row % 4 == 0 else row for row in range(ROWS)]))
    data = tabular.load(config)
    rows = data.train.raw.assign(age=np.nan)
    np.testing.assert_array_equal(encoder(config, data)(rows)["age"], [[0, 1]] * len(rows))
    assert encoder(config, data)(data.train.raw)["age"][:, 1].sum() == data.train.raw["age"].isna().sum()


def test_numbers_without_missing_values_have_no_flag_but_may_be_missing_later(write) -> None:
    config = write(frame())
    data = tabular.load(config)
    np.testing.assert_array_equal(encoder(config, data)(data.test.raw.assign(fare=np.nan))["fare"], [[0]] * 12)


def test_extreme_skew_is_compressed() -> None:
    values = pd.Series(np.random.default_rng(0).lognormal(3, 2, 500))
    statistics = columns.fit_input("fare", values, "number", 1).statistics
    assert statistics["unit"] == pytest.approx(values.median())
    spread = np.arcsinh(values / statistics["unit"])
    assert statistics["mean"] == pytest.approx(spread.mean())
    assert statistics["variance"] == pytest.approx(spread.var(ddof=0))


def test_categories_have_places_for_missing_and_unknown(write) -> None:
    config = write(frame())
    data = tabular.load(config)
    rows = data.test.raw.head(4).assign(port=["Cork", "Oslo", None, "cork"])
    known = data.spec.input("port").vocabulary.index("Cork")
    assert encoder(config, data)(rows)["port"][:, 0].tolist() == [known, 1, 0, 1]


def test_rare_categories_are_unknown() -> None:
    values = pd.Series(["a"] * 5 + ["b"] * 4 + ["c"])
    assert columns.fit_input("port", values, "category", 4).vocabulary == ("", "[UNK]", "a", "b")
    assert columns.fit_input("port", values, "category", 99).vocabulary == ("", "[UNK]", "a")


@pytest.mark.parametrize("kind", ["number", "category", "date", "text"])
def test_a_column_without_values_in_the_training_part_still_works(write, kind) -> None:
    config = write(frame(extra=None), columns=f"extra={kind}")
    data = tabular.load(config)
    assert np.isfinite(encoder(config, data)(data.test.raw)["extra"]).all()
    assert np.isfinite(columns.for_trees(data.spec, data.test.raw)).all()


def test_words_become_their_place_in_the_vocabulary(write) -> None:
    config = write(frame(), max_words=3)
    data = tabular.load(config)
    words = encoder(config, data)(data.test.raw.head(2).assign(remark=["BY the, stairs stairs", None]))["remark"]
    vocabulary = data.spec.input("remark").vocabulary
    assert words.tolist() == [[vocabulary.index(word) for word in ("by", "the", "stairs")], [0, 0, 0]]


def test_dates_are_split_and_flagged_only_where_training_dates_are_missing(write) -> None:
    config = write(frame())
    data = tabular.load(config)
    assert encoder(config, data)(data.test.raw)["boarded"].shape == (12, 9)
    config = write(frame(boarded=[None if row % 3 else "1907-03-09" for row in range(ROWS)]))
    data = tabular.load(config)
    dates = encoder(config, data)(data.test.raw)["boarded"]
    np.testing.assert_array_equal(dates[:, 9], data.test.raw["boarded"].isna())


# What a target asks for


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 1] * 5, "binary"),
        (["yes", "no"] * 5, "binary"),
        ([1.5, 2.5] * 5, "binary"),
        ([0, 1, 2, 3] * 5, "classes"),
        (["a", "b", "c"] * 5, "classes"),
        ([0.5, 1, 2] * 5, "number"),
        (range(11), "number"),
        (["a|b", "a", "b|c"] * 5, "labels"),
    ],
)
def test_target_kinds(values, kind) -> None:
    assert targets.target_kind("y", pd.Series(values)) == kind


def test_classes_are_ordered_as_numbers_where_they_are_numbers() -> None:
    values = pd.Series(["10", "2", "1", "10"])
    assert targets.fit_target("y", "classes", values, values).vocabulary == ("1", "2", "10")


def test_labels_become_zeros_and_ones() -> None:
    values = pd.Series(["drama|action", "action", "comedy | drama"])
    target = targets.fit_target("genre", "labels", values, values)
    assert target.vocabulary == ("action", "comedy", "drama")
    assert targets.encode_target(values, target).tolist() == [[1, 0, 1], [1, 0, 0], [0, 1, 1]]


def test_a_target_may_have_a_name_that_tensorflow_refuses(write, tmp_path) -> None:
    table = frame().rename(columns={"survived": "Überlebt (ja)?"}).assign(days=frame()["fare"])
    run = trained(write(table, target="Überlebt (ja)?,days", epochs=1), tmp_path)
    assert run.trained.predict(run.data.test.raw.head(1))[0].keys() == {
        "_berlebt_ja_",
        "_berlebt_ja__probability",
        "days",
    }


def test_rare_classes_do_not_stop_the_stratified_split(write) -> None:
    data = tabular.load(write(frame(survived=["a"] * 29 + ["b"] * 28 + ["c"] * 3), target_kinds="survived=classes"))
    assert data.spec.target("survived").vocabulary == ("a", "b", "c")


# Models


SAMPLE_MODELS = {
    "perceptron": ({"target": "survived"}, "accuracy", 0.05),
    "svm": ({"target": "survived", "learning_rate": 0.01}, "accuracy", 0.08),
    "logistic": ({"target": "survived", "learning_rate": 0.01}, "accuracy", 0.08),
    "softmax": ({"target": "deck", "learning_rate": 0.01}, "accuracy", 0.2),
    "linear": ({"target": "days_to_recover", "learning_rate": 0.01}, "mae", 0.8),
    "mlp": ({"target": "survived"}, "accuracy", 0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize("model", SAMPLE_MODELS)
def test_every_model_learns_the_sample(model, tmp_path) -> None:
    options, metric, margin = SAMPLE_MODELS[model]
    run = trained(Config(model=model, epochs=15, **options), tmp_path)
    simplest = next(iter(tabular.baselines(run.config, run.data).values()))[metric]
    gain = run.test_metrics[metric] - simplest
    assert (gain if metric == "accuracy" else -gain) > margin


def test_linear_models_are_one_dense_layer_on_all_features(write) -> None:
    config = write(frame(), model="logistic")
    data = tabular.load(config)
    model = tabular.build(config, data.spec)
    (dense,) = [layer for layer in model.layers if layer.weights]
    words, ports = len(data.spec.input("remark").vocabulary) - 1, len(data.spec.input("port").vocabulary)
    assert dense.kernel.shape == (1 + ports + 9 + words, 1)


def definition(model: str, scores: np.ndarray, truth: np.ndarray, variance: float) -> float:
    """Loss of f(x) = `scores` by the formula: classes from 0, of a number in units of its variance."""
    if model == "perceptron":
        return float(np.maximum(0, -(2 * truth - 1) * scores).mean())
    if model == "logistic":
        chances = 1 / (1 + np.exp(-scores))
        return float(-np.log(np.where(truth == 1, chances, 1 - chances)).mean())
    if model == "softmax":
        chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        return float(-np.log(np.take_along_axis(chances, truth.astype(int), axis=1)).mean())
    return float(np.square(scores * variance**0.5 - truth).mean() / variance)


@pytest.mark.parametrize(
    ("model", "target"),
    [("perceptron", "survived"), ("logistic", "survived"), ("softmax", "deck"), ("linear", "days")],
)
def test_linear_models_are_their_output_and_loss(write, tmp_path, model, target) -> None:
    """Perceptron: a step and max(0, -y f(x)), which asks for no margin; then sigmoid, softmax or nothing."""
    table = frame(deck=["up", "mid", "low"] * 20, days=frame()["fare"] * 2 + 100)[["fare", target]]
    config = write(table, model=model, target=target, jit="off", regularization="none")
    run = prepare(APP, config, tabular.load(config), tmp_path)
    (dense,) = [layer for layer in run.model.layers if layer.weights]
    dense.set_weights([np.random.default_rng(1).normal(size=weight.shape) for weight in dense.get_weights()])
    inputs, truth = run.data.test.inputs, np.asarray(run.data.test.targets[target])
    scores = np.asarray(inputs["fare"]) @ np.asarray(dense.kernel) + np.asarray(dense.bias)
    mean, variance = truth * 0, 1.0
    if model == "linear":
        statistics = run.data.spec.target(target).statistics
        mean, variance = mean + statistics["mean"], statistics["variance"]
    found = run.model.evaluate(dict(inputs), {target: truth}, return_dict=True, verbose=0)["loss"]
    assert found == pytest.approx(definition(model, scores, truth - mean, variance), rel=1e-4)
    if model == "perceptron":
        hinge = np.maximum(0, 1 - (2 * truth - 1) * scores).mean()
        assert abs(found - hinge) > 0.1
        answers = run.trained.predict(run.data.test.raw)
        assert [answer["label"] for answer in answers] == ["1" if score > 0 else "0" for score in scores[:, 0]]


def test_penalties_are_sums_without_the_half_and_the_share_of_keras_own() -> None:
    """Keras' L1 is λΣ|w| and its L2 λΣw²: λ/2n Σw² is that with --regularization-strength λ/2n."""
    weights, strength, count = np.array([[1.0, -2.0], [3.0, 0.5]]), 0.3, 60
    penalties = {
        kind: make_regularizer(Config(regularization=kind, regularization_strength=value))
        for kind, value in (("l1", strength), ("l2", strength / (2 * count)))
    }
    assert float(penalties["l1"](weights)) == pytest.approx(strength * np.abs(weights).sum())
    assert float(penalties["l2"](weights)) == pytest.approx(strength / (2 * count) * np.square(weights).sum())


def games() -> pd.DataFrame:
    """What is known of a team before a game, and three things that are known after it."""
    rng = np.random.default_rng(0)
    toes, winrate, fans = rng.uniform(8, 10, ROWS), rng.uniform(0.4, 1, ROWS), rng.uniform(0.4, 1.5, ROWS)
    win = np.where(winrate + 0.4 * fans > 1.1, "yes", "no")
    hurt, sad = (toes < 8.6) * 0.1 + 0.02 * fans, 0.2 - 0.1 * winrate
    table = pd.DataFrame({"toes": toes, "winrate": winrate, "fans": fans, "hurt": hurt, "win": win, "sad": sad})
    return table.round({"toes": 1, "winrate": 2, "fans": 1, "hurt": 3, "sad": 3})


def test_three_inputs_have_three_outputs_of_their_own_kinds(write) -> None:
    config = write(games(), target="hurt,win,sad")
    spec = tabular.load(config).spec
    assert [column.name for column in spec.inputs] == ["toes", "winrate", "fans"]
    assert {target.name: target.kind for target in spec.targets} == {"hurt": "number", "win": "binary", "sad": "number"}
    model = tabular.build(config, spec)
    assert set(model.output) == set(tabular.loss(config, spec)) == {"hurt", "win", "sad"}


@pytest.mark.slow
def test_three_inputs_with_three_outputs_train_by_the_command(tmp_path) -> None:
    games().to_csv(tmp_path / "games.csv", index=False)
    flags = ["--target", "hurt,win,sad", "--epochs", "60", "--batch-size", "8", "--json"]
    outcome = loom("train", "tabular", "--data", "games.csv", *flags, cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    metrics = outcome.result["metrics"]
    assert metrics["test_win_accuracy"] > metrics["baseline_majority_win_accuracy"]
    assert metrics["test_sad_mae"] < metrics["baseline_mean_sad_mae"]
    row = '{"toes": 9.5, "winrate": 0.95, "fans": 1.3}'
    answer = loom("predict", outcome.result["run_id"], row, "--json", cwd=tmp_path)
    assert answer.status == 0, answer.errors
    found = json.loads(answer.output)
    assert found["win"] == "yes"
    assert abs(found["sad"] - 0.105) < 0.03
    assert "hurt" in found


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "selu"},
        {"activation": "leaky_relu", "regularization": "both"},
        {"regularization": "l1", "depth": 2},
    ],
)
def test_options_of_the_hidden_layers(write, options) -> None:
    config = write(frame(), **options)
    model = tabular.build(config, tabular.load(config).spec)
    hidden = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)][:-1]
    assert len(hidden) == config.depth
    assert all((layer.kernel_regularizer is not None) == (config.regularization == "l1") for layer in hidden)
    assert any(isinstance(layer, keras.layers.AlphaDropout) for layer in model.layers) == (config.activation == "selu")
    assert any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers) == config.normalizes


@pytest.mark.parametrize(
    ("name", "costs"), [("mse", (0.25, 9.0)), ("mae", (0.5, 3.0)), ("huber", (0.25 / 2, 3.0 - 0.5))]
)
def test_errors_of_numbers_cost_what_is_asked_for(write, name: str, costs: tuple[float, float]) -> None:
    """In units of the target's standard deviation, so that targets with large numbers count no more than others."""
    config = write(frame(), target="fare", model="linear", number_loss=name)
    spec = tabular.load(config).spec
    (weight,), (loss,) = tabular.loss_weights(config, spec).values(), tabular.loss(config, spec).values()
    deviation = spec.target("fare").statistics["variance"] ** 0.5
    for error, cost in zip((0.5, 3.0), costs, strict=True):
        value = keras.losses.get(loss)(np.array([[7.0]]), np.array([[7 + error * deviation]]))
        assert weight * float(np.mean(value)) == pytest.approx(cost, rel=1e-5)


def test_a_support_vector_machine_pays_for_its_margin(write) -> None:
    config = write(frame(), model="svm")
    spec = tabular.load(config).spec
    (loss,) = tabular.loss(config, spec).values()
    value = keras.losses.get(loss)(np.array([[0.0], [1.0]]), np.array([[0.25], [0.25]]))
    np.testing.assert_allclose(value, [1.25, 0.75])
    (output,) = tabular.build(config, spec).output.values()
    assert config.threshold == 0
    assert output.shape == (None, 1)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Run:
    """Trained on a target of every kind at once."""
    folder = tmp_path_factory.mktemp("mixed")
    table = frame(days=frame()["fare"] * 2 + 100, deck=["up", "mid", "low"] * 20, genre=["a|b", "b", "a|c"] * 20)
    table.to_csv(folder / "table.csv", index=False)
    config = Config(data=str(folder / "table.csv"), target="survived,days,deck,genre", min_count=1, epochs=30)
    return trained(config, folder)


def test_targets_of_every_kind_in_one_model(mixed) -> None:
    assert {target.name: target.kind for target in mixed.data.spec.targets} == {
        "survived": "binary", "days": "number", "deck": "classes", "genre": "labels"
    }  # fmt: skip
    shapes = {name: output.shape[1] for name, output in mixed.test_outputs().items()}
    assert shapes == {"survived": 1, "days": 1, "deck": 3, "genre": 3}
    names = {"survived_accuracy", "days_mae", "deck_accuracy", "genre_binary_accuracy"}
    assert names <= set(mixed.test_metrics)
    found = tabular.baselines(mixed.config, mixed.data)
    assert set(found["boosting"]) == names
    assert set(found["mean"]) == {"days_mae"}


def test_a_number_is_predicted_in_its_own_units(mixed) -> None:
    assert mixed.test_outputs()["days"].mean() == pytest.approx(mixed.data.train.targets["days"].mean(), rel=0.3)
    assert mixed.test_metrics["days_mae"] < tabular.baselines(mixed.config, mixed.data)["mean"]["days_mae"]
    weights = tabular.loss_weights(mixed.config, mixed.data.spec)
    assert weights["days"] == pytest.approx(1 / mixed.data.train.targets["days"].var(), rel=1e-4)


def test_our_scores_are_those_of_keras(mixed) -> None:
    for target in mixed.data.spec.targets:
        decided = targets.decide(target, mixed.test_outputs()[target.name])
        ours = targets.score(target, mixed.data.test.targets[target.name], decided)
        assert ours == pytest.approx(mixed.test_metrics[f"{target.name}_{targets.METRICS[target.kind]}"], rel=1e-5)


def test_answers_name_their_targets(mixed) -> None:
    answer = mixed.trained.predict(mixed.data.test.raw.head(1))[0]
    assert list(answer) == [
        *("survived", "survived_probability", "days", "deck", "deck_probability", "genre", "genre_probabilities")
    ]
    assert answer["survived"] in ("0", "1")
    assert 0.5 <= answer["survived_probability"] <= 1
    chosen = [label for label, probability in answer["genre_probabilities"].items() if probability > 0.5]
    assert answer["genre"] == "|".join(chosen)


def test_the_report_has_a_figure_for_each_target(mixed) -> None:
    tabular.report(mixed)
    made = {path.name for path in mixed.folder.glob("*.*")}
    assert {"confusion_matrix_survived.png", "predictions_days.png", "importance_genre.png", "scores.json"} <= made


def test_shuffling_the_column_that_decides_hurts_most(mixed) -> None:
    importance = {target.name: changes for target, _, changes in targets.permutation_importance(mixed, 0.5)}
    assert mixed.data.spec.inputs[importance["days"].mean(axis=1).argmax()].name == "fare"


def test_answers_do_not_depend_on_the_order_of_the_columns(mixed) -> None:
    rows = mixed.data.test.raw
    assert mixed.trained.predict(rows[rows.columns[::-1]]) == mixed.trained.predict(rows)


def test_one_target_answers_with_label_and_probability(write, tmp_path) -> None:
    run = trained(write(frame()), tmp_path)
    answers = run.trained.predict(run.data.test.raw.assign(port=None, remark="never seen"))
    assert {tuple(answer) for answer in answers} == {("label", "probability")}


def test_a_perceptron_answers_with_a_score_whose_sign_decides(write, tmp_path) -> None:
    run = trained(write(frame(), model="perceptron"), tmp_path)
    for answer in run.trained.predict(run.data.test.raw):
        assert answer["label"] == ("1" if answer["score"] > 0 else "0")


# Mistakes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "Survive"}, ["--target Survive", "did you mean 'survived'"]),
        ({"columns": "age=number"}, ["--columns age", "no such column"]),
        ({"columns": "survived=ignore"}, ["--columns survived"]),
        ({"target_kinds": "port=classes"}, ["--target-kinds port"]),
        ({"target": "remark"}, ["--target remark", "60 different values", "--target-kinds"]),
        ({"target": "constant"}, ["--target constant", "all rows hold '1'"]),
        ({"target": "empty"}, ["--target empty", "no row has a value"]),
        ({"target": "port", "target_kinds": "port=binary"}, ["--target-kinds port=binary", "3 different values"]),
        ({"target": "port", "target_kinds": "port=number"}, ["'port' holds", "no number", "--max-bad"]),
        ({"target": "port", "model": "linear"}, ["--model linear", "'port'", "classes", "softmax or mlp"]),
        ({"columns": "a/b=number"}, ["a/b", "'/'"]),
        ({"target": "a/b,a_b"}, ["--target a/b", "'a_b'"]),
        ({"columns": "port=number"}, ["'port' holds", "--max-bad"]),
        ({"columns": "fare=ignore,port=ignore,boarded=ignore,remark=ignore"}, ["--columns", "no input is left"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(write, options, words) -> None:
    extra = {"constant": 1, "empty": None} | ({"a/b": range(ROWS), "a_b": 1} if "a/b" in str(options) else {})
    with pytest.raises(UserError) as error:
        tabular.load(write(frame().assign(**extra), **options))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"target": " , "}, "--target"),
        ({"target": "a,a"}, "--target"),
        ({"columns": "age"}, "--columns age"),
        ({"columns": "age=float"}, "--columns age=float"),
        ({"target_kinds": "age=date"}, "--target-kinds age=date"),
        ({"dropout": 1.0}, "--dropout"),
        ({"units": 0}, "--units"),
        ({"model": "forest"}, "--model"),
    ],
)
def test_impossible_settings_are_refused_by_flag(options, flag) -> None:
    with pytest.raises(UserError, match=flag):
        Config(**options)


# The whole command


@pytest.mark.slow
def test_the_command_trains_and_its_model_answers_raw_rows(tmp_path) -> None:
    frame().to_csv(tmp_path / "table.csv", index=False)
    outcome = loom("train", "tabular", "--data", "table.csv", "--epochs", "3", "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    assert "note: column 'id' is ignored" in outcome.errors
    answers = loom("predict", outcome.result["run_id"], "table.csv", "--json", cwd=tmp_path)
    assert answers.status == 0, answers.errors
    assert len(answers.output.splitlines()) == ROWS


@pytest.mark.slow
def test_the_sample_is_learned_as_well_as_gradient_boosting_learns_it(tmp_path) -> None:
    config = Config()
    run = trained(replace(config, seed=1), tmp_path)
    assert run.test_metrics["accuracy"] > tabular.baselines(config, run.data)["boosting"]["accuracy"] - 0.04
