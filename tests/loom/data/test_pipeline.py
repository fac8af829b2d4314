"""Ragged columns, length buckets, and batches whose order depends on (seed, epoch) only."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from loom import Data, Field, Ragged, Spec, Split
from loom.data.pipeline import Batches, Buckets, bucket_shapes


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


def test_steps_may_hold_several_numbers() -> None:
    padded = np.zeros((3, 4, 2), np.int32)
    padded[0, :3, 1] = padded[2, :2, 0] = 7
    ragged = Ragged.from_padded(padded)
    assert ragged.lengths.tolist() == [3, 0, 2]
    np.testing.assert_array_equal(ragged.padded(np.arange(3), 4), padded)
    assert ragged.take(np.array([2])).values.tolist() == [[7, 0], [7, 0]]


def padded_size(lengths: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> int:
    """Steps of all examples when each takes the smallest shape that holds it."""
    sizes = [[sum(shape) if (row <= shape).all() else 10**9 for shape in shapes] for row in lengths]
    return int(np.min(sizes, axis=1).sum())


def test_shapes_waste_the_least_padding_there_can_be() -> None:
    lengths = np.random.default_rng(1).geometric(0.03, (300, 1))
    candidates = sorted({(int(-(-length // 8) * 8),) for length in lengths[:, 0]})
    best = min(padded_size(lengths, (*chosen, candidates[-1])) for chosen in itertools.combinations(candidates[:-1], 2))
    found = bucket_shapes(lengths, 3)
    assert len(found) == 3
    assert padded_size(lengths, found) == best


@pytest.mark.parametrize(
    ("lengths", "count", "expected"),
    [([5], 4, ((5,),)), ([33], 4, ((40,),)), ([0, 0], 2, ((1,),)), ([3, 60, 60], 9, ((8,), (64,)))],
)
def test_there_are_never_more_shapes_than_distinct_lengths(
    lengths: list[int], count: int, expected: tuple[tuple[int], ...]
) -> None:
    assert bucket_shapes(np.array(lengths)[:, None], count) == expected


def test_a_summary_is_not_padded_to_the_length_of_its_text() -> None:
    rng = np.random.default_rng(2)
    texts = rng.integers(20, 200, 500)
    summaries = np.maximum(1, texts // 10 + rng.integers(-2, 3, 500))
    shapes = bucket_shapes(np.stack([texts, summaries], axis=1), 8)
    assert len(shapes) == 8
    assert (np.diff(np.array(shapes), axis=0) >= 0).all()
    assert padded_size(np.stack([texts, summaries], axis=1), shapes) < 1.15 * (texts + summaries).sum()


def words(count: int = 1000, seed: int | None = 3, batch_size: int = 32) -> Batches:
    ragged, _ = random_ragged(count, 60)
    targets = {"row": np.arange(count)}
    return Batches({"words": ragged}, targets, batch_size, Buckets.fit({"words": ragged}, targets, 4), seed)


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


def test_the_dataset_gives_the_same_batches_as_the_iterator() -> None:
    batches = words(count=100)
    for (inputs, targets), (tensors, rows) in zip(batches, batches.dataset(), strict=True):
        np.testing.assert_array_equal(inputs["words"], tensors["words"].numpy())
        np.testing.assert_array_equal(targets["row"], rows["row"].numpy())


def translations(count: int = 300) -> tuple[dict[str, Ragged], dict[str, Ragged]]:
    source, _ = random_ragged(count, 40, 1)
    target, _ = random_ragged(count, 20, 2)
    return {"source": source, "target": target}, {"target": Ragged(target.values + 1, target.splits)}


def test_columns_of_equal_lengths_share_one_and_others_have_their_own() -> None:
    inputs, targets = translations()
    buckets = Buckets.fit(inputs, targets, 6)
    assert buckets.axes == {("inputs", "source"): 0, ("inputs", "target"): 1, ("targets", "target"): 1}
    batches = Batches(inputs, targets, 16, buckets, seed=0)
    shapes = {(numbers["source"].shape[1], numbers["target"].shape[1]) for numbers, _ in batches}
    assert shapes == set(buckets.shapes)
    for numbers, answers in batches:
        np.testing.assert_array_equal(answers["target"], np.where(numbers["target"], numbers["target"] + 1, 0))


def test_parts_with_longer_sequences_have_one_more_shape() -> None:
    inputs, targets = translations()
    few = {name: column.take(np.flatnonzero(column.lengths < 15)[:20]) for name, column in inputs.items()}
    buckets = Buckets.fit(few, {}, 2)
    longer = buckets.extended(inputs, {}, 300)
    assert longer.shapes[:-1] == buckets.shapes
    assert all(longer.padded_to("inputs", name, longer.shapes[-1]) >= max(inputs[name].lengths) for name in inputs)
    assert longer.extended(few, {}, 20) is longer
    taken = Split(pd.DataFrame({"row": np.arange(300)}), inputs, targets).take(np.array([7, 3]))
    assert taken.targets["target"].lengths.tolist() == targets["target"].lengths[[7, 3]].tolist()


def small_data(texts: list[str]) -> Data:
    split = Split(pd.DataFrame({"text": texts}), {}, {})
    return Data(split, split, split, Spec((Field("text", "text"),), ()), "test")


def test_the_fingerprint_changes_with_any_example_and_with_the_order() -> None:
    first = small_data(["a", "b"]).fingerprint()
    assert first == small_data(["a", "b"]).fingerprint()
    assert len({first, small_data(["a", "c"]).fingerprint(), small_data(["b", "a"]).fingerprint()}) == 3


def test_the_fingerprint_knows_where_a_sequence_of_targets_ends() -> None:
    def fingerprint(*splits: int) -> str:
        tags = Ragged(np.array([1, 2, 3]), np.array(splits))
        return small_data(["a", "b"]).map_splits(lambda split: replace(split, targets={"tags": tags})).fingerprint()

    assert len({fingerprint(0, 1, 3), fingerprint(0, 2, 3)}) == 2
