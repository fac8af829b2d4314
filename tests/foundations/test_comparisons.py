"""The comparisons of the foundations measure what they say."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from foundations import comparison, contextual, depth, diagnoses, dying_relu, optimizers, padding, separation
from foundations.comparison import Training, shuffled
from loom.report import new_figure


def test_the_command_prints_draws_and_keeps_other_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, figure = tmp_path / "all.json", tmp_path / "figure.png"
    kept.write_text('{"other": 1}', encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["x", "--seeds", "3", "--json", str(kept), "--figure", str(figure)])
    comparison.run(
        "somewhere/small.py",
        "What is compared.",
        lambda seeds: {"rows": [seeds], "curves": object()},
        lambda result: comparison.markdown(["seeds"], [[str(row)] for row in result["rows"]]),
        lambda result: new_figure()[0],
        seeds=5,
    )
    assert capsys.readouterr().out.startswith("| seeds |\n|---|\n| 3 |\n")
    assert json.loads(kept.read_text(encoding="utf-8")) == {"other": 1, "small": {"rows": [3]}}
    assert figure.stat().st_size > 1000


def test_training_is_that_of_keras_and_starts_anew() -> None:
    """Two epochs of `fit` in the same order, with the same weights, end with the same weights."""
    generator = np.random.default_rng(0)
    inputs, targets = generator.normal(size=(12, 3)).astype("float32"), generator.normal(size=(12, 1)).astype("float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])
    training = Training(model, keras.losses.MeanSquaredError(), keras.optimizers.Adam())
    rows = shuffled(12, 5, 2, seed=0)
    assert rows.shape == (4, 5)
    assert all(len(set(batch)) == 5 for batch in rows)
    training.start(1, 0.1)
    plain = keras.models.clone_model(model)
    plain.set_weights(model.get_weights())
    losses, norms = training.take(inputs, targets, rows)
    assert (norms > 0).all()
    plain.compile(keras.optimizers.Adam(0.1), "mse", run_eagerly=True)
    for batch in rows:
        plain.train_on_batch(inputs[batch], targets[batch])
    for ours, theirs in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    training.start(1, 0.1)
    np.testing.assert_array_equal(training.take(inputs, targets, rows)[0], losses)


def test_the_saddle_is_flat_and_falls_away_along_y() -> None:
    points = tf.constant([[0.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    with tf.GradientTape() as tape:
        tape.watch(points)
        heights = optimizers.saddle(points)
    np.testing.assert_array_equal(tape.gradient(heights, points), 0)
    np.testing.assert_array_equal(heights, [0, -0.25, -0.25])
    x = 3.0
    turned = optimizers.turned_ravine(np.array([[np.cos(optimizers.TURN), np.sin(optimizers.TURN)]]) * x)
    np.testing.assert_allclose(turned, optimizers.ravine(np.array([[x, 0.0]])))


def test_steps_are_counted_until_a_path_stays_at_the_bottom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "STEPS", 5)
    x = np.array([[8, 0, 4, 0, 0, 0], [8, 8, 8, 8, 8, 8]], float).T
    paths = np.stack([x, np.zeros_like(x)], axis=-1)
    assert optimizers.steps_needed("ravine", paths) == (3 + 5) / 2


def test_signals_and_gradients_of_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth, "DEPTH", 3)
    monkeypatch.setattr(depth, "UNITS", 16)
    model = depth.network("tanh")
    depth.start(model, "zeros", 0)
    signal, gradient, units = depth.sizes(model, 0)
    assert (signal == 0).all()
    assert gradient[-1] > 0.9
    assert gradient[0] == 0
    assert units == 1
    depth.start(model, "LeCun", 0)
    signal, gradient, units = depth.sizes(model, 0)
    assert (signal > 0.3).all()
    assert units == 16


def test_dead_units_have_no_slope_at_any_example() -> None:
    pixels = np.random.default_rng(0).normal(size=(20, 64)).astype("float32")
    for function, share in (("relu", 0.5), ("leaky_relu", 0.0), ("elu", 0.5)):
        model = dying_relu.network(function)
        model.get_layer("sums_2").bias.assign([-1000.0] * dying_relu.UNITS)
        dead = dying_relu.dead_units(model, function, pixels)
        assert dead[1].mean() == 2 * share
        assert dead[0].mean() < 0.1


def test_padding_stands_after_or_before_a_text() -> None:
    rows = [np.array([3, 4]), np.array([5])]
    np.testing.assert_array_equal(padding.padded(rows, 3, at_end=True), [[3, 4, 0], [5, 0, 0]])
    np.testing.assert_array_equal(padding.padded(rows, 3, at_end=False), [[0, 3, 4], [0, 0, 5]])


def test_a_hidden_layer_separates_what_two_linear_layers_cannot() -> None:
    generator = np.random.default_rng(0)
    for make in separation.DATA.values():
        points, classes = make(generator)
        assert points.shape == (separation.POINTS, 2)
        assert classes.mean() == 0.5
    model = separation.network("two linear layers")
    assert separation._distance_from_one_layer(model, points.astype("float32")) < 1e-5


def test_every_sentence_has_one_bank_and_words_of_one_kind() -> None:
    words = contextual.vocabulary()
    texts, kinds = contextual.sentences(300, 0)
    assert all(text.count("bank") == 1 for text in texts)
    for kind, (name, other) in enumerate((("money", "river"), ("river", "money"))):
        of_kind = {word for text, each in zip(texts, kinds, strict=True) for word in text if each == kind}
        assert {word for words in contextual.KINDS[name].values() for word in words} <= of_kind
        assert not {word for words in contextual.KINDS[other].values() for word in words} & of_kind
    tokens = contextual.numbers(texts, words)
    assert tokens.max() < len(words)
    hidden, truth = contextual.hide(tokens, 2, seed=0)
    np.testing.assert_array_equal(np.where(truth > 0, truth, hidden), np.tile(tokens, (2, 1)))
    assert (hidden[truth > 0] == words.index(contextual.MASK)).all()
    assert (truth > 0).sum() / (2 * (tokens > 0).sum()) == pytest.approx(contextual.HIDDEN, abs=0.05)


def test_vectors_are_compared_within_and_between_kinds() -> None:
    kinds = np.array([0, 1] * 4)
    apart = np.eye(2)[kinds] + 0.0
    assert contextual.compare(apart, kinds) == {"within": 1.0, "between": 0.0, "right": 1.0}
    assert contextual.compare(np.ones((8, 2)), kinds) == pytest.approx({"within": 1, "between": 1, "right": 0.5})


def test_a_run_says_what_is_wrong() -> None:
    def history(train: list[float], validation: list[float]) -> list[dict[str, float]]:
        return [{"train_loss": own, "val_loss": other} for own, other in zip(train, validation, strict=True)]

    assert diagnoses.says(history([2, 1, 0.1, 0.05, 0.01], [2, 1, 1.5, 2, 3])) == "overfitting"
    assert diagnoses.says(history([2.3] * 4, [2.3] * 4)) == "no learning"
    assert diagnoses.says(history([2.0, float("nan"), float("nan")], [2, 2, 2])) == "stops: the loss is no number"
    assert diagnoses.says(history([2, 1, 0.5, 0.4], [2, 1, 0.6, 0.6])) == "nothing"
