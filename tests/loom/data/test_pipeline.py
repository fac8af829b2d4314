"""Ragged columns, length buckets, and batches whose order depends on (seed, epoch) only."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from loom import Data, Field, Ragged, Spec, Split
from loom.data.pipeline import Batches, bucket_lengths


def random_ragged(count: int, longest: int, seed: int = 0) -> tuple[Ragged, list[list[int]]]:
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(1, 1000, rng.integers(0, longest + 1)).tolist() for _ in range(count)]
    padded = np.array([sequence + [0] * (longest - len(sequence)) for sequence in sequences], np.int32)
    return Ragged.from_padded(padded), sequences


def test_ragged_keeps_every_sequence_and_no_padding() -> None:
    ragged, sequences = random_ragged(50, 9)
    assert [ragged.values[a:b].tolist() for a, b in itertools.pairwise(ragged.splits)] == sequences
    assert ragged.lengths.tolist() == [len(sequence) for sequence in sequences]


def test_zeros_inside_a_sequence_are_kept() -> None:
    ragged = Ragged.from_padded(np.array([[3, 0, 4, 0, 0], [0, 0, 0, 0, 0]]))
    assert ragged.values.tolist() == [3, 0, 4]
    assert ragged.lengths.tolist() == [3, 0]


def test_ragged_rows_are_taken_padded_and_joined() -> None:
    ragged, sequences = random_ragged(20, 7)
    rows = np.array([4, 19, 0, 4])
    taken = ragged.take(rows)
    assert [taken.values[a:b].tolist() for a, b in itertools.pairwise(taken.splits)] == [sequences[r] for r in rows]
    assert ragged.padded(rows, 5).tolist() == [(sequences[r] + [0] * 5)[:5] for r in rows]
    joined = Ragged.concatenate([ragged, taken])
    assert len(joined) == 24
    assert joined.padded(np.array([20]), 7).tolist() == ragged.padded(np.array([4]), 7).tolist()


def padded_size(lengths: np.ndarray, buckets: tuple[int, ...]) -> int:
    return sum(min(bucket for bucket in buckets if bucket >= length) for length in lengths)


def test_bucket_lengths_waste_the_least_padding_there_can_be() -> None:
    lengths = np.random.default_rng(1).geometric(0.03, 300)
    candidates = sorted({int(-(-length // 8) * 8) for length in lengths})
    best = min(padded_size(lengths, (*chosen, candidates[-1])) for chosen in itertools.combinations(candidates[:-1], 2))
    found = bucket_lengths(lengths, 3)
    assert len(found) == 3
    assert padded_size(lengths, found) == best


@pytest.mark.parametrize(
    ("lengths", "count", "expected"), [([5], 4, (8,)), ([0, 0], 2, (8,)), ([3, 20, 20], 9, (8, 24))]
)
def test_there_are_never_more_buckets_than_distinct_lengths(
    lengths: list[int], count: int, expected: tuple[int, ...]
) -> None:
    assert bucket_lengths(np.array(lengths), count) == expected


def words(count: int = 1000, seed: int | None = 3, batch_size: int = 32) -> Batches:
    ragged, _ = random_ragged(count, 60)
    targets = {"row": np.arange(count)}
    return Batches({"words": ragged}, targets, batch_size, bucket_lengths(ragged.lengths, 4), seed)


def test_every_example_is_in_exactly_one_batch_of_an_epoch() -> None:
    rows = np.concatenate([targets["row"] for _, targets in words()])
    assert sorted(rows) == list(range(1000))


def test_sequences_arrive_whole_in_a_bucket_that_holds_them() -> None:
    _, sequences = random_ragged(1000, 60)
    for inputs, targets in words():
        for padded, row in zip(inputs["words"], targets["row"], strict=True):
            assert padded.tolist() == sequences[row] + [0] * (inputs["words"].shape[1] - len(sequences[row]))


def test_an_epoch_has_no_more_shapes_than_buckets_and_one_partial_batch() -> None:
    batches = words()
    shapes = {inputs["words"].shape for inputs, _ in batches}
    assert len(shapes) <= 5
    assert sum(shape[0] < 32 for shape in shapes) <= 1
    batches.epoch = 1
    assert {inputs["words"].shape for inputs, _ in batches} == shapes


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = words(seed=seed)
        batches.epoch = epoch
        return np.concatenate([targets["row"] for _, targets in batches]).tolist()

    assert order(3, 5) == order(3, 5)
    assert order(3, 5) != order(3, 6)
    assert order(3, 5) != order(4, 5)


def test_evaluation_reads_examples_by_length() -> None:
    lengths = [inputs["words"].shape[1] for inputs, _ in words(seed=None)]
    assert lengths == sorted(lengths)


def test_400_rows_in_batches_of_150_are_150_150_100() -> None:
    """From the lecture notes."""
    batches = Batches({"x": np.zeros((400, 2))}, {}, 150, seed=0)
    assert sorted(inputs["x"].shape[0] for inputs, _ in batches) == [100, 150, 150]


def numbers(seed: int | None, batch_size: int) -> Batches:
    rows = np.arange(1100)
    return Batches({"words": rows[:, None] / 7}, {"row": rows}, batch_size, seed=seed)


@pytest.mark.parametrize(
    "batches", [words(count=100), numbers(0, 3), numbers(1, 600), numbers(2, 2000), numbers(None, 64)]
)
def test_the_dataset_gives_the_same_batches_as_the_iterator(batches: Batches) -> None:
    for epoch in range(2):
        batches.epoch = epoch
        for (inputs, targets), (tensors, rows) in zip(batches, batches.dataset(), strict=True):
            np.testing.assert_array_equal(inputs["words"], tensors["words"].numpy())
            np.testing.assert_array_equal(targets["row"], rows["row"].numpy())
        assert batches.served == len(batches)


def small_data(texts: list[str]) -> Data:
    split = Split(pd.DataFrame({"text": texts}), {}, {})
    return Data(split, split, split, Spec((Field("text", "text"),), ()), "test")


def test_the_fingerprint_changes_with_any_example_and_with_the_order() -> None:
    first = small_data(["a", "b"]).fingerprint()
    assert first == small_data(["a", "b"]).fingerprint()
    assert len({first, small_data(["a", "c"]).fingerprint(), small_data(["b", "a"]).fingerprint()}) == 3
