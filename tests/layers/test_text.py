"""Layers between raw text and sequence models, against plain Python and NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import keras
import numpy as np
import pytest

from layers import (
    GRU,
    BagOfWordPairs,
    Bidirectional,
    MaskedPooling1D,
    PairRows,
    Segmented,
    Shorten,
    WordDropout,
    standardize_text,
)

needs_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="operations on strings")


@needs_tensorflow
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Great!<br /><br />Don't miss it.", ["great", "!", "don't", "miss", "it"]),
        ("WHY?? (really)", ["why", "?", "?", "really"]),
        ("ÉTÉ à l'ombre", ["été", "à", "l'ombre"]),
        ("अच्छी फ़िल्म।", ["अच्छी", "फ़िल्म"]),
        ("", []),
    ],
)
def test_text_is_cleaned_in_every_script(text: str, words: list[str]) -> None:
    import tensorflow as tf

    assert standardize_text(tf.constant(text)).numpy().decode().split() == words


@pytest.mark.parametrize("length", [1, 3, 4, 9])
@pytest.mark.parametrize("keep", ["head", "tail", "ends"])
def test_shorten_keeps_the_steps_it_says(keep: str, length: int) -> None:
    sequences = [[1, 2, 3, 4, 5, 6, 7], [8, 9], [10, 11, 12, 13], []]
    padded = np.array([sequence + [0] * (7 - len(sequence)) for sequence in sequences])
    half = length - length // 2
    for row, sequence in zip(np.array(Shorten(length, keep)(padded)), sequences, strict=True):
        if len(sequence) <= length:
            expected = sequence
        elif keep == "ends":
            expected = sequence[:half] + (sequence[-(length // 2) :] if length > 1 else [])
        else:
            expected = sequence[:length] if keep == "head" else sequence[-length:]
        assert row.tolist() == expected + [0] * (min(7, length) - len(expected))


def bag_by_hand(layer: BagOfWordPairs, words: list[int]) -> np.ndarray:
    tables = [np.array(weight) for weight in layer.weights]
    words = [word for word in words if word]
    rows = [(40503 * first + 30011 * second) % layer.pair_buckets for first, second in itertools.pairwise(words)]
    total = np.zeros(layer.units)
    for table, entries in zip(tables, (set(words), set(rows)), strict=True):
        if entries:
            total += sum(table[entry] for entry in entries) / np.sqrt(len(entries))
    return total


@pytest.mark.parametrize("buckets", [7, 1000, 2**20])
def test_the_bag_counts_every_word_and_pair_once(buckets: int) -> None:
    layer = BagOfWordPairs(50_000, 3, buckets)
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 50_000, 9).tolist(), [5, 5, 5, 5], [49_999, 49_999], [3], []]
    padded = np.array([text + [0] * (9 - len(text)) for text in texts], np.int32)
    expected = [bag_by_hand(layer, text) for text in texts] if layer(padded) is not None else []
    np.testing.assert_allclose(np.array(layer(padded)), expected, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_words_are_dropped_whole_and_in_training_only(compiled: bool) -> None:
    words = np.random.default_rng(0).integers(1, 1000, (200, 50)).astype(np.int32)
    words[:, 40:] = 0
    layer = WordDropout(0.3, seed=1)
    np.testing.assert_array_equal(np.array(layer(words)), words)
    wrapped = compiled_call if compiled else lambda layer: layer
    call = wrapped(layer)
    first, second = (np.array(call(words, training=True)) for _ in range(2))
    for dropped in (first, second):
        assert set(np.unique(dropped[dropped != words])) == {0}
        assert np.mean(dropped[:, :40] == 0) == pytest.approx(0.3, abs=0.02)  # 8,000 words: standard deviation 0.005
    assert np.mean((first == 0) & (second == 0) & (words != 0)) * 50 / 40 == pytest.approx(0.09, abs=0.02)
    again = wrapped(WordDropout.from_config(layer.get_config()))
    np.testing.assert_array_equal(np.array(again(words, training=True)), first)
    np.testing.assert_array_equal(np.array(WordDropout(0.0)(words, training=True)), words)
    with pytest.raises(ValueError, match="rate must be at least 0 and below 1"):
        WordDropout(1.0)


def test_dropped_words_may_become_another_where_padding_stays() -> None:
    words = np.array([[3] * 50 + [0] * 50] * 20)
    dropped = np.array(WordDropout(0.4, replacement=1, seed=1)(words, training=True))
    assert set(dropped[:, :50].ravel().tolist()) == {1, 3}
    assert not dropped[:, 50:].any()


def compiled_call(layer: keras.layers.Layer) -> Callable[..., object]:
    if keras.backend.backend() != "tensorflow":
        pytest.skip("compiled by TensorFlow")
    import tensorflow as tf

    return tf.function(layer, jit_compile=True)


def test_padding_never_changes_a_bag() -> None:
    layer = BagOfWordPairs(100, 4, 64)
    words = np.random.default_rng(1).integers(1, 100, (5, 12)).astype(np.int32)
    padded = np.pad(words, ((0, 0), (0, 20)))
    np.testing.assert_allclose(np.array(layer(words)), np.array(layer(padded)), atol=1e-6)


def test_the_order_of_words_matters_only_with_pairs() -> None:
    one, other = np.array([[3, 4, 5]]), np.array([[5, 3, 4]])
    with_pairs, without = BagOfWordPairs(10, 4, 1000), BagOfWordPairs(10, 4, 0)
    assert not np.allclose(np.array(with_pairs(one)), np.array(with_pairs(other)))
    np.testing.assert_allclose(np.array(without(one)), np.array(without(other)), atol=1e-6)


@pytest.mark.parametrize("arguments", [(0, 4), (10, 0), (10, 4, -1), (60_000, 4, 2**20)])
def test_impossible_bags_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="vocabulary_size"):
        BagOfWordPairs(*arguments)


def scaled_sum(values: np.ndarray, axis: int) -> np.ndarray:
    return values.sum(axis) / np.sqrt(values.shape[axis])


def test_a_word_and_the_one_before_it_share_the_row_of_the_bag() -> None:
    words = np.array([[7, 3, 7, 3, 0, 0]])
    rows = np.array(PairRows(64)(words))[0]
    expected = np.array(BagOfWordPairs(10, 1, 64).pair_rows(words))[0, :3] + 1
    np.testing.assert_array_equal(rows[1:4], expected)
    assert rows[1] == rows[3] != rows[2]
    assert rows[4:].tolist() == [0, 0]


@pytest.mark.parametrize(("mode", "expected"), [("max", np.max), ("mean", np.mean), ("root", scaled_sum)])
def test_pooling_sees_only_steps_that_are_not_masked(mode: str, expected: Callable[..., np.ndarray]) -> None:
    sequence = -np.random.default_rng(2).uniform(1, 2, (3, 5, 4)).astype(np.float32)
    mask = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)
    pooled = np.array(MaskedPooling1D(mode)(np.where(mask[..., None], sequence, 0), mask=mask))
    np.testing.assert_allclose(pooled[0], expected(sequence[0, :2], axis=0), rtol=1e-6)
    np.testing.assert_allclose(pooled[1], expected(sequence[1], axis=0), rtol=1e-6)
    np.testing.assert_array_equal(pooled[2], 0)
    np.testing.assert_allclose(np.array(MaskedPooling1D(mode)(sequence)), expected(sequence, axis=1), rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 4, 6, 8])
def test_every_segment_is_read_as_a_sequence_of_its_own(steps: int) -> None:
    layer = Bidirectional(GRU(3, return_sequences=True))
    sequence = np.random.default_rng(4).normal(size=(2, steps, 5)).astype(np.float32)
    mask = np.arange(steps) < np.array([[steps], [5]])
    together = np.array(Segmented(layer, 4)(sequence, mask=mask))
    for start in range(0, steps, 4):
        piece = slice(start, start + 4)
        alone = np.array(layer(sequence[:, piece], mask=mask[:, piece]))
        np.testing.assert_allclose(together[:, piece], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("jit", [False, True])
def test_a_model_with_these_layers_trains_and_reloads(tmp_path, jit: bool) -> None:
    words = keras.Input((None,), dtype="int32")
    bag = BagOfWordPairs(50, 4, 64, embeddings_regularizer="l2")(Shorten(6, "ends")(words))
    vectors = keras.layers.Embedding(50, 4, mask_zero=True)(words)
    states = Segmented(Bidirectional(GRU(4, return_sequences=True)), 3)(vectors)
    parts = [bag, MaskedPooling1D("max")(vectors), MaskedPooling1D("root")(states)]
    model = keras.Model(words, keras.layers.Dense(1)(keras.layers.Concatenate()(parts)))
    model.compile("adam", "mse", jit_compile=jit)
    texts = np.random.default_rng(3).integers(0, 50, (16, 8)).astype(np.int32)
    before = [np.array(weight) for weight in model.weights]
    model.fit(texts, texts[:, :1].astype(np.float32), epochs=1, verbose=0)
    assert all(not np.array_equal(old, np.array(new)) for old, new in zip(before, model.weights, strict=True))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.predict(texts, verbose=0), model.predict(texts, verbose=0), atol=1e-6)
