"""Mean average precision and recall at k against cases computed by hand and in loops."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest

from loom.average_precision import (
    THRESHOLDS,
    Objects,
    average_precision,
    average_precisions,
    intersection_over_union,
    match,
    mean_average_precision,
)
from loom.components import connected_boxes, crop, otsu
from loom.retrieval import chance, nearest, recall_at


def objects(*entries: tuple[list[float], int, float]) -> Objects:
    boxes, classes, scores = (list(column) for column in zip(*entries, strict=True)) if entries else ([], [], [])
    return Objects(np.array(boxes, float).reshape(-1, 4), np.array(classes, int), np.array(scores, float))


BOX, FAR = [0.0, 0, 10, 10], [50.0, 50, 60, 60]
THREE_QUARTERS = [0.0, 0, 10, 7.5]
"""Overlaps BOX by 0.75."""


def test_overlaps_are_those_of_keras() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 10, (12, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.1, 8, (12, 2))], axis=1)
    expected = keras.utils.bounding_boxes.compute_iou(boxes[:5], boxes[5:], "xyxy")
    np.testing.assert_allclose(intersection_over_union(boxes[:5], boxes[5:]), np.array(expected), atol=1e-5)


def test_an_object_that_is_found_twice_is_right_once() -> None:
    assert match(np.array([[0.6], [0.9]]), 0.5).tolist() == [True, False]


def test_a_found_box_takes_the_true_one_that_it_overlaps_most() -> None:
    # The second box would have taken what the first one takes, and is left with its second choice.
    assert match(np.array([[0.5, 0.9], [0.6, 0.8]]), 0.5).tolist() == [True, True]
    assert match(np.array([[0.5, 0.9], [0.4, 0.8]]), 0.5).tolist() == [True, False]


@pytest.mark.parametrize(
    ("right", "total", "value"),
    [
        ([True, True], 2, 1.0),
        ([False, True], 1, 0.5),
        ([True, False, True], 2, (51 + 50 * 2 / 3) / 101),  # recalls 0 to 0.5 at precision 1, the rest at 2 / 3
        ([True], 2, 51 / 101),
        ([], 3, 0.0),
        ([False, False], 1, 0.0),
    ],
)
def test_average_precision_of_cases_computed_by_hand(right: list[bool], total: int, value: float) -> None:
    assert average_precision(np.array(right, bool), total) == pytest.approx(value)


def test_everything_found_is_1_and_nothing_found_is_0() -> None:
    truth = [objects((BOX, 0, 1), (FAR, 1, 1)), objects((BOX, 1, 1))]
    assert mean_average_precision(truth, truth, 2) == {"map": 1.0, "map_50": 1.0}
    assert mean_average_precision(truth, [objects(), objects()], 2) == {"map": 0.0, "map_50": 0.0}


def test_a_box_that_overlaps_three_quarters_counts_up_to_that_threshold() -> None:
    found = mean_average_precision([objects((BOX, 0, 1))], [objects((THREE_QUARTERS, 0, 0.9))], 1)
    assert found == pytest.approx({"map": 0.6, "map_50": 1.0})  # 0.5, 0.55, 0.6, 0.65, 0.7 and 0.75 of ten


def test_the_order_of_scores_runs_over_all_images_and_classes_are_apart() -> None:
    truth = [objects((BOX, 0, 1)), objects((BOX, 0, 1), (FAR, 1, 1))]
    found = [objects((FAR, 0, 0.9)), objects((BOX, 0, 0.8), (FAR, 0, 0.7), (FAR, 1, 0.1))]
    values = average_precisions(truth, found, 3)
    # Of class 0 the boxes are wrong, right, wrong: precision 1 / 2 up to recall 1 / 2.
    assert values[0, 0] == pytest.approx(51 / 101 / 2)
    assert values[1, 0] == 1
    assert np.isnan(values[2]).all()
    assert mean_average_precision(truth, found, 3)["map_50"] == pytest.approx((51 / 101 / 2 + 1) / 2)


def test_a_box_of_another_class_is_no_hit() -> None:
    assert mean_average_precision([objects((BOX, 0, 1))], [objects((BOX, 1, 1))], 2)["map_50"] == 0


def test_random_cases_agree_with_a_loop_over_the_definition() -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        truth, found = [], []
        for _ in range(4):
            corners = rng.integers(0, 12, (6, 2)).astype(float)
            boxes = np.concatenate([corners, corners + rng.integers(4, 9, (6, 2))], axis=1)
            shifted = boxes + rng.integers(-1, 2, boxes.shape)
            truth.append(Objects(boxes[:4], rng.integers(0, 2, 4), np.ones(4)))
            found.append(Objects(shifted, rng.integers(0, 2, 6), rng.permutation(6) + rng.random(6)))
        values = average_precisions(truth, found, 2)
        for kind, (place, threshold) in itertools.product(range(2), enumerate(THRESHOLDS)):
            assert values[kind, place] == pytest.approx(by_definition(truth, found, kind, threshold))


def by_definition(truth: list[Objects], found: list[Objects], kind: int, threshold: float) -> float:
    """Average precision, one found box after the other."""
    ranked = sorted(
        (-score, image, tuple(box))
        for image, seen in enumerate(found)
        for box, each, score in zip(*seen, strict=True)
        if each == kind
    )
    free = {(image, index) for image, true in enumerate(truth) for index in np.flatnonzero(true.classes == kind)}
    total, hits, points = len(free), 0, []
    for rank, (_, image, box) in enumerate(ranked, start=1):
        overlaps = {
            place: intersection_over_union(np.array([box]), truth[image].boxes[place[1]][None])[0, 0]
            for place in sorted(free)
            if place[0] == image
        }
        best = max(overlaps, key=lambda place: overlaps[place], default=None)
        if best is not None and overlaps[best] >= threshold:
            free.remove(best)
            hits += 1
        points.append((hits / total, hits / rank))
    reached = [[precision for recall, precision in points if recall >= least / 100 - 1e-9] for least in range(101)]
    return float(np.mean([max(each, default=0.0) for each in reached]))


# Recall at k


LINE = np.array([[0.0], [1.0], [1.1], [5.0], [5.1], [9.0]])
CLASSES = np.array([0, 0, 1, 1, 1, 2])


def test_recall_at_k_of_points_on_a_line() -> None:
    # Nearest others: 1, 2, 1, 4, 3, ... and the point of class 2 has nothing to find.
    found = recall_at(LINE, CLASSES, (1, 2))
    assert found == pytest.approx({"recall_at_1": 3 / 5, "recall_at_2": 4 / 5})
    asked = CLASSES == 0
    assert recall_at(LINE, CLASSES, (1, 2), asked) == pytest.approx({"recall_at_1": 0.5, "recall_at_2": 1.0})


def test_the_nearest_are_those_of_all_distances() -> None:
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(30, 4)), rng.normal(size=(2100, 4))
    rows, distances = nearest(queries, gallery, 7)
    every = np.sqrt(((queries[:, None] - gallery) ** 2).sum(axis=-1))
    np.testing.assert_array_equal(rows, every.argsort(axis=1)[:, :7])
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :7], atol=1e-7)
    rows, _ = nearest(gallery, gallery, 1, same=True)
    every = ((gallery[1500] - gallery) ** 2).sum(axis=-1)
    assert rows[1500, 0] == every.argsort()[1]
    assert nearest(gallery[:3], gallery[:3], 5, same=True)[0].shape == (3, 2)


def test_chance_is_what_random_vectors_reach_on_average() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, 12)
    found = [recall_at(rng.normal(size=(12, 2)), classes, (1, 5)) for _ in range(400)]
    for name, value in chance(classes, (1, 5)).items():
        assert np.mean([each[name] for each in found]) == pytest.approx(value, abs=0.03)


# Connected regions


def test_connected_regions_are_boxes_and_noise_is_left_out() -> None:
    image = np.full((20, 30, 1), 10, np.uint8)
    image[2:6, 3:9] = 200
    image[6, 9] = 210  # touches at a corner
    image[15, 20] = 200
    assert connected_boxes(image, smallest=4).tolist() == [[3, 2, 10, 7]]
    assert len(connected_boxes(image, smallest=1)) == 2


def test_the_threshold_lies_between_two_groups() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(10, 1, 500), np.random.default_rng(1).normal(90, 5, 60)])
    assert 15 < otsu(values) < 75


def test_a_crop_has_its_size_and_its_brightest_is_1() -> None:
    image = np.zeros((10, 10, 3), np.uint8)
    image[2:4, 2:8] = 100
    small = crop(image, np.array([2.0, 2, 8, 4]), 4)
    assert small.shape == (16,)
    assert np.all(small == 1)
