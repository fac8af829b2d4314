"""Word embeddings: what is read, what a step costs, what is asked and answered, and files of vectors and questions."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from rich.console import Console
from support import TrainedRun, loom

from apps import embeddings
from apps.embeddings import APP, SUM, TEXT, WORDS, Config
from loom import Ragged, UserError, commands
from loom.cooccurrence import count_neighbours, ppmi, unigram_loss
from loom.data.analogies import Question, read_questions, tale_questions, tales
from loom.data.words import (
    ThinnedBatches,
    cut,
    keep_probabilities,
    lines_of,
    noise_probabilities,
    read_words,
    thinned,
    words_of,
)
from loom.progress import Progress
from loom.run import fit, measure
from loom.skipgram import SkipGram
from loom.tracking import Store, Tracker
from loom.train import build_run, fit_recorded
from loom.vectors import WordVectors, read_vectors, write_vectors

SMALL = {"units": 8, "noise": 16, "jit": "off", "buckets": 1}
LINES = (
    "".join(f"The {who} wears a {what}.\n" for who in ("king", "queen", "prince") for what in ("crown", "ring")) * 40
)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(LINES, encoding="utf-8")
    return path


def run_of(path: Path, **settings: Any) -> Any:
    config = Config(data=str(path), **{**SMALL, "epochs": 1, "batch_size": 16, **settings})
    return build_run(APP, config, APP.load(config), path.parent)


def rows_of(*rows: list[int]) -> Ragged:
    return Ragged(np.array([value for row in rows for value in row], np.int32), np.cumsum([0, *map(len, rows)]))


def as_lists(rows: Ragged) -> list[list[int]]:
    return [row.tolist() for row in np.split(rows.values, rows.splits[1:-1])]


def test_words_of_any_script_are_read_without_signs() -> None:
    found = words_of(["Der König's café, cafe\u0301 (3.14)!", "राजा और रानी।", "...", "sku_12 well-known"])
    assert found == [
        ["der", "könig", "'s", "café", "café", "3.14"],
        ["राजा", "और", "रानी"],
        [],
        ["sku_12", "well-known"],
    ]


@pytest.mark.parametrize(("within", "texts"), [("line", 5), ("paragraph", 2), ("text", 1)])
def test_neighbours_are_of_a_line_a_paragraph_or_the_text(within: Any, texts: int) -> None:
    words, rows = read_words(lines_of("one two\nthree\n \n\nfour five\n", within))
    assert len(rows) == texts
    assert [words[place] for place in rows.values] == ["one", "two", "three", "four", "five"]


def test_long_rows_are_cut_and_short_ones_left_out() -> None:
    rows = cut(rows_of([1, 2, 3, 4, 5], [6], [], [7, 8]), longest=3, shortest=2)
    assert as_lists(rows) == [[1, 2, 3], [4, 5], [7, 8]]
    assert as_lists(cut(rows_of([1, 2, 3, 4]), longest=3, shortest=2)) == [[1, 2, 3]]


def test_frequent_words_are_left_out_by_chance_and_noise_prefers_rare_ones() -> None:
    frequencies = np.array([0, 900, 90, 10])
    keep = keep_probabilities(frequencies, 0.01)
    np.testing.assert_allclose(keep[1:], [(0.01 / 0.9) ** 0.5, (0.01 / 0.09) ** 0.5, 1])
    assert (keep_probabilities(frequencies, 0) == 1).all()
    rows = rows_of(*[[1, 2, 3]] * 3000)
    left = thinned(rows, keep, seed=1)
    shares = np.bincount(left.values, minlength=4)[1:] / 3000
    np.testing.assert_allclose(shares, keep[1:], atol=0.03)
    assert len(left) == len(rows)
    np.testing.assert_allclose(noise_probabilities(frequencies) / frequencies.clip(1) ** 0.75 * [0, 1, 1, 1], noise())


def noise() -> np.ndarray:
    return np.array([0, 1, 1, 1]) / (900**0.75 + 90**0.75 + 10**0.75)


def test_an_epoch_has_words_of_its_own_and_the_same_ones_again() -> None:
    rows = rows_of(*[[1, 2, 1, 3, 1]] * 50)
    batches = ThinnedBatches(WORDS, rows, np.array([1, 0.3, 1, 1]), 8, 2, seed=4)
    epochs = []
    for epoch in (0, 1, 0):
        batches.epoch = epoch
        epochs.append(np.concatenate([inputs[WORDS].ravel() for inputs, _ in batches]))
    assert np.array_equal(epochs[0], epochs[2])
    assert not np.array_equal(np.resize(epochs[1], len(epochs[0])), epochs[0])
    for found in epochs:
        assert np.bincount(found, minlength=4)[2:].tolist() == [50, 50]
    assert len(list(batches)) == len(batches)


def skip_gram(window: int, negatives: int) -> SkipGram:
    keras.utils.set_random_seed(0)
    words = keras.Input((None,), dtype="int32", name=WORDS)
    table = keras.layers.Embedding(5, 3, keras.initializers.RandomNormal(stddev=1.0, seed=1))
    contexts = keras.layers.Embedding(5, 3, keras.initializers.RandomNormal(stddev=1.0, seed=2))
    reader = keras.Model({WORDS: words}, {SUM: keras.ops.sum(table(words), axis=1)})
    return SkipGram(reader, table, contexts, np.array([0, 9, 4, 2, 1]), window, negatives, noise=4000, seed=3)


def losses_by_hand(model: SkipGram, rows: list[list[int]]) -> tuple[float, float]:
    """Of a pair on average, and their number, by the definition: one pair after the other, all noise."""
    v, u = (np.array(layer.embeddings, np.float64) for layer in (model.words, model.contexts))
    chances = noise_probabilities(np.array([0, 9, 4, 2, 1]))
    total = count = 0.0
    for row in rows:
        for place, word in enumerate(row):
            for other, context in enumerate(row):
                distance = abs(place - other)
                if 0 < distance <= model.window:
                    share = 1 - (distance - 1) / model.window  # how often a reach from 1 to window is as far
                    cost = np.logaddexp(0, -v[word] @ u[context])
                    cost += model.negatives * (chances @ np.logaddexp(0, u @ v[word]))
                    total, count = total + share * cost, count + share
    return total / count, count


def test_a_pair_costs_what_the_paper_says_and_training_sees_the_same_on_average() -> None:
    model = skip_gram(window=3, negatives=2)
    rows = [[1, 2, 3, 4, 1], [2, 1], [3], [4, 4, 2]]
    padded = np.zeros((4, 6), np.int32)
    for row, words in enumerate(rows):
        padded[row, : len(words)] = words
    expected, _ = losses_by_hand(model, rows)
    model.compile(keras.optimizers.SGD(1e-9))
    data = ({WORDS: keras.ops.convert_to_tensor(padded)}, {})
    assert float(model.test_step(data)["loss"]) == pytest.approx(expected, rel=0.05)  # 1,000 words of noise
    model.reset_metrics()
    step = tf.function(model.train_step)
    for _ in range(150):
        found = step(data)["loss"]
    assert float(found) == pytest.approx(expected, rel=0.03)


def test_counted_neighbours_are_those_that_skip_gram_takes() -> None:
    counts = count_neighbours(rows_of([1, 2, 3], [2, 1]), window=2, size=4).toarray()
    assert counts.tolist() == [[0, 0, 0, 0], [0, 0, 2, 0.5], [0, 2, 0, 1], [0, 0.5, 1, 0]]
    frequencies = np.array([0, 2, 2, 1])
    # Whoever says that each pair is real with a chance of 1/2 pays log 2 for it and for each word of the noise.
    known = count_neighbours(rows_of([1, 2, 3] * 2000), window=2, size=4)
    loss = unigram_loss(known, known, frequencies, negatives=1)
    assert loss == pytest.approx(2 * np.log(2), abs=0.02)
    # Counts that are a product of those of words and contexts say nothing.
    independent = type(known)(np.outer([1, 2, 3], [4, 4, 4]))
    assert ppmi(independent).max() == pytest.approx(0, abs=1e-12)


def test_every_parameter_moves_and_words_that_are_used_alike_come_near(book: Path) -> None:
    run = run_of(book, epochs=8, learning_rate=0.05, subsample=0.0)
    before = {weight.path: weight.numpy() for weight in run.model.trainable_weights}
    assert len(before) == 2
    first = measure(run)["loss"]
    fit(run)
    for weight in run.model.trainable_weights:
        assert not np.array_equal(weight.numpy()[1:], before[weight.path][1:]), weight.path
    assert measure(run)["loss"] < 0.8 * first
    near, gone, nothing, many = APP.predict(
        run.trained, pd.DataFrame({TEXT: ["KING", "king - king", "xyzzy !", "the  queen - prince + 'foo'"]})
    )
    assert set(list(near["nearest"])[:2]) == {"queen", "prince"}
    assert all(-1.001 <= value <= 1.001 for value in near["nearest"].values())
    assert gone == {"nearest": {}, "unknown": []}
    assert nothing == {"nearest": {}, "unknown": ["xyzzy"]}
    assert many["unknown"] == ["foo"]
    known = embeddings.word_vectors(run.trained)
    u = {word: known.units[row] for word, row in known.places.items()}
    asked = u["the"] + u["queen"] - u["prince"]
    best = max(known.places.keys() - {"the", "queen", "prince"}, key=lambda word: float(u[word] @ asked))
    assert next(iter(many["nearest"])) == best
    assert not {"the", "queen", "prince"} & many["nearest"].keys()


def test_parts_follow_each_other_and_rare_words_are_left_out(book: Path) -> None:
    book.write_text(LINES + "Once upon a time there was a king with a ring.\n", encoding="utf-8")
    data = APP.load(Config(data=str(book), **SMALL))
    assert set(data.spec.input(TEXT).vocabulary) == {"the", "wears", "a", "king", "queen", "prince", "crown", "ring"}
    assert data.test.raw[TEXT].iloc[-1] == "a\ta\tking\ta\tring"
    assert [len(split) for split in data.splits.values()] == [218, 11, 12]
    counts = data.spec.input(TEXT).statistics
    assert counts["the"] == counts["wears"] == 218
    encoded = build_run(APP, Config(data=str(book), **SMALL), data, book.parent).trained.encode(data.test.raw)[WORDS]
    names = ["", *data.spec.input(TEXT).vocabulary]
    assert ["\t".join(names[place] for place in row) for row in as_lists(encoded)] == data.test.raw[TEXT].tolist()


def test_the_answer_is_nearest_to_the_sum_without_what_was_asked() -> None:
    known = WordVectors(["man", "woman", "king", "queen", "crown"], np.array([[1, 0], [1, 1], [3, 0], [2, 2], [9, 1]]))
    (asked,) = known.answers([Question("female", ("man", "woman", "king", "queen"))])
    assert asked == "queen"
    assert known.answers([Question("female", ("woman", "man", "queen", "king"))], offset=False) == ["crown"]
    assert [word for word, _ in known.nearest(np.array([[1.0, 0]]), [[0]], 2)[0]] == ["king", "crown"]


def test_the_built_in_text_never_tells_an_answer_and_has_all_words() -> None:
    text = tales(4000)
    assert text == tales(4000)
    assert text != tales(4000, seed=1)
    lines = [set(line.split()) for line in text.lower().replace(",", "").replace(".", "").splitlines()]
    asked = {question.words[2:]: question for question in tale_questions()}
    together = {pair: sum(set(pair) <= line for line in lines) for pair in asked}
    assert sum(together.values()) < 10  # by chance only
    assert set().union(*lines) >= {word for pair in asked for word in pair}
    assert len(tale_questions()) == 5 * 16 * 15


def test_questions_have_sections_and_remarks(tmp_path: Path) -> None:
    path = tmp_path / "questions.txt"
    path.write_text("# mine\n: family\nMan woman king Queen\n\n: verbs 2\ngo went eat ate\n", encoding="utf-8")
    assert read_questions(path, 0.0) == [
        Question("family", ("man", "woman", "king", "queen")),
        Question("verbs 2", ("go", "went", "eat", "ate")),
    ]
    for content, message in (("a b c\n", "1 words?|3 words"), ("", "empty"), (": x\n", "holds no question")):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=message) as error:
            read_questions(path, 0.0)
        assert "\n" not in str(error.value)


def test_vectors_are_written_and_read_back_with_and_without_a_head(tmp_path: Path, book: Path) -> None:
    known = WordVectors(["राजा", "the", "queen"], np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32))
    path = tmp_path / "vectors.txt"
    write_vectors(path, known)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "3 8"
    for text in (lines, lines[1:]):  # of word2vec, and of GloVe
        path.write_text("\n".join(text) + "\n", encoding="utf-8")
        found = read_vectors(path, ["queen", "राजा", "king"], 0.0)
        assert found.words == ["राजा", "queen"]
        np.testing.assert_allclose(found.vectors, known.vectors[[0, 2]], rtol=1e-5)
    run = run_of(book, vectors=str(path))
    start = embeddings.word_vectors(run.trained)
    np.testing.assert_allclose(start.vectors[start.places["queen"]], known.units[2], rtol=1e-5)
    assert np.abs(start.vectors[start.places["king"]]).max() < 0.1
    assert any("2 of 8 words start with vectors" in note for note in run.data.notes)
    with pytest.raises(UserError, match=r"--units 9: the vectors in .* have 8 values"):
        run_of(book, vectors=str(path), units=9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("", "holds no vectors"),
        ("the 1 2\nqueen 1\n", "values"),
        ("the 1 nan\n", "vectors"),
        ("the 1 x\n", "vectors"),
    ],
)
def test_vectors_that_cannot_be_used_are_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "vectors.txt"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        read_vectors(path, ["the", "queen"], 0.01)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"word\n", "no two words"),
        (b"one two\n" * 3, "no two words that occur 5 times"),
        (b"\xff bad\ngood words\n" * 20, "bad"),
    ],
)
def test_texts_that_cannot_be_used_are_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        APP.load(Config(data=str(path)))
    assert "\n" not in str(error.value)


def test_empty_and_endless_lines_and_other_encodings_are_read_or_listed(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    endless = b"king queen " * 10_000
    lines = LINES.encode()
    path.write_bytes(b"\n" + lines + b"k\xf6nig\n\n" + endless + b"\n" + b"x" * 100_000 + b"\n" + 6 * lines)
    data = APP.load(Config(data=str(path), **SMALL))
    assert [where for where, _ in data.bad] == [f"text.txt:{LINES.count(chr(10)) + 2}"]
    longest = max(len(text.split("\t")) for split in data.splits.values() for text in split.raw[TEXT])
    assert longest == embeddings.ROW


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"window": 0}, "--window"),
        ({"window": 64}, "--window"),
        ({"negatives": 0}, "--negatives"),
        ({"subsample": 2.0}, "--subsample"),
        ({"regularization": "l2"}, "--regularization"),
        ({"devices": 2}, "--devices"),
        ({"within": "page"}, "--within"),
    ],
)
def test_impossible_settings_are_refused_by_flag(settings: dict[str, Any], flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        replace(Config(), **settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A run on a small text, through the command."""
    folder = tmp_path_factory.mktemp("embeddings")
    (folder / "book.txt").write_text(LINES, encoding="utf-8")
    (folder / "asked.txt").write_text(": worn\nking crown queen ring\nking crown xyzzy ring\n", encoding="utf-8")
    flags = ["--units", "8", "--epochs", "2", "--jit", "off", "--buckets", "1", "--analogies", "asked.txt"]
    outcome = loom("train", "embeddings", "--data", "book.txt", *flags, "--json", cwd=folder)
    assert outcome.status == 0, outcome.errors
    return TrainedRun(outcome.result["run_id"], folder, outcome)


def test_from_the_command_to_an_answer_and_files(trained: TrainedRun) -> None:
    metrics = trained.outcome.result["metrics"]
    assert {"test_loss", "val_loss", "baseline_unigram_loss"} <= metrics.keys()
    assert {"test_analogies", "baseline_svd_analogies", "baseline_most_frequent_analogies"} <= metrics.keys()
    report = trained.model.parent / "report"
    assert {"words.png", "pairs.png", "vectors.txt"} <= {path.name for path in report.iterdir()}
    assert json.loads((report / "analogies.json").read_text("utf-8"))["questions"] == 1
    assert json.loads((report / "speed.json").read_text("utf-8"))["words_per_second"] > 0
    kept = read_vectors(report / "vectors.txt", ["king", "queen"], 0.0)
    shown = loom("predict", trained.run_id, "king", "queen - king + xyzzy", "--json", cwd=trained.folder)
    assert shown.status == 0, shown.errors
    near, other = map(json.loads, shown.output.splitlines())
    assert near["nearest"]["queen"] == pytest.approx(float(np.prod(kept.units, axis=0).sum()), abs=1e-4)
    assert (near["unknown"], other["unknown"]) == ([], ["xyzzy"])
    assert len(other["nearest"]) == 6  # eight words but the two that were asked for


def test_answers_are_lines_that_can_be_read() -> None:
    assert (
        commands._as_line({"nearest": {"queen": 0.81234, "prince": 0.5}, "unknown": []}) == "queen 0.8123, prince 0.5"
    )
    assert commands._as_line({"nearest": {}, "unknown": ["xyzzy"]}) == "nothing  unknown (xyzzy)"


@pytest.mark.slow
def test_the_default_search_space_runs(tmp_path: Path, book: Path) -> None:
    flags = ["--data", str(book), "--epochs", "1", "--jit", "off", "--buckets", "1"]
    outcome = loom("tune", "embeddings", *flags, "--trials", "2", "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors


@pytest.mark.slow
def test_analogies_of_the_built_in_text_are_answered(tmp_path: Path) -> None:
    outcome = loom("train", "embeddings", "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    metrics = outcome.result["metrics"]
    assert metrics["test_analogies"] >= 0.9
    assert metrics["test_analogies_nearest"] < 0.5
    assert metrics["baseline_most_frequent_analogies"] < 0.05
    assert metrics["test_loss"] < metrics["baseline_unigram_loss"] - 0.3
    answer = loom("predict", outcome.result["run_id"], "king - man + woman", cwd=tmp_path)
    assert answer.output.startswith("queen ")


class StopAt(keras.callbacks.Callback):
    """Ends a run like a signal would."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self._stop_at = epoch

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if epoch == self._stop_at:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_with_the_weights_of_one_never_stopped(book: Path) -> None:
    store = Store()

    def trained(tracker: Tracker, stop_at: int = -1) -> Any:
        run = run_of(book, epochs=3)
        run.callbacks.append(StopAt(stop_at))
        fit_recorded(run, tracker, Progress(Console(quiet=True), time.perf_counter()))
        return run

    whole_tracker, tracker = (Tracker.create(store, name, {}, name) for name in ("whole", "stopped"))
    whole = trained(whole_tracker)
    with pytest.raises(KeyboardInterrupt):
        trained(tracker, stop_at=2)
    tracker.finish("KILLED", "test")
    tracker = Tracker.reopen(store, tracker.run_id)
    resumed = trained(tracker)
    for finished in (tracker, whole_tracker):
        finished.finish()
    assert len(resumed.history) == len(whole.history) == 3
    for ours, theirs in zip(resumed.model.weights, whole.model.weights, strict=True):
        np.testing.assert_array_equal(np.array(ours), np.array(theirs), err_msg=ours.path)
