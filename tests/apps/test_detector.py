"""The detector: its streams, what it learns, that it reads on wherever a stream is cut, and pipes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from support import TrainedRun, clean_environment, client, loom

from apps import detector
from apps.detector import APP, LETTERS, MARKS, PROBABILITY, TEXT, Config
from loom import Data, UserError
from loom.data.streams import last_letters, letters_of, numbered
from loom.train import encoded
from loom.trained import Trained

SMALL = Config(letters=1000, test_letters=1000, units=5, window=32)
FLAGS = ("--letters", "12000", "--test-letters", "8000", "--epochs", "25", "--window", "40")
SILENCE = 300
"""Seconds after which nobody waits for an answer any more."""
STREAM = "xhappyhappyhapphappyhappHAPPy happ\ny hapy"
SLOW_CELLS = [pytest.param(cell, marks=pytest.mark.slow) for cell in ("elman", "lstm")]
EVERY_CELL = pytest.mark.parametrize("cell", ["gru", *SLOW_CELLS])


@pytest.fixture(scope="module")
def data() -> Data:
    return encoded(APP, SMALL, detector.load(SMALL))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp("detector")
    outcome = loom("train", "detector", *FLAGS, "--json", cwd=folder)
    assert outcome.status == 0, outcome.errors
    return TrainedRun(outcome.result["run_id"], folder, outcome)


def trained_with(cell: str, data: Data) -> Trained:
    config = replace(SMALL, cell=cell)
    keras.utils.set_random_seed(0)
    core = detector.build(config, data.spec)
    judge = core.get_layer(detector.JUDGE)
    judge.set_weights([9 * weight for weight in judge.get_weights()])  # probabilities far from the middle
    return Trained(APP, replace(config, threshold=0.5), data.spec, core)


@pytest.mark.slow
def test_a_run_finds_the_word_and_nothing_else(run: TrainedRun) -> None:
    metrics = run.outcome.result["metrics"]
    assert metrics["test_precision"] > 0.9
    assert metrics["test_recall"] > 0.9
    assert metrics["test_delay"] < 0.1
    assert metrics["baseline_last_letter_recall"] == metrics["baseline_window_recall"] == 1
    assert metrics["baseline_last_letter_precision"] < 0.2 < metrics["baseline_window_precision"]
    assert metrics["baseline_never_recall"] == 0
    names = {Path(file.path).name for file in client(run.folder).list_artifacts(run.run_id, "report")}
    assert {"stretch.png", "delays.png", "errors.json"} <= names


@pytest.mark.slow
def test_a_pipe_is_answered_at_once_and_letter_by_letter(run: TrainedRun) -> None:
    command = [str(Path(sys.executable).with_name("loom")), "watch", run.run_id, "--json"]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=run.folder, env=clean_environment(), **pipes) as process:
        watchdog = threading.Timer(SILENCE, process.kill)
        watchdog.start()
        for letter in b"\xef\xbb\xbfxxhappy":  # a byte order mark is no letter
            os.write(process.stdin.fileno(), bytes([letter]))
        first = json.loads(process.stdout.readline())  # the pipe is still open
        assert first["letter"] == 7
        assert first["probability"] > 0.9
        assert first["text"] == "xxhappy"
        rest = "é".encode() + b"\xff" + b"z" * 100_000 + b"ha\npPYhapHAPPY" + "ह".encode()[:2]
        output, errors = process.communicate(rest)
        watchdog.cancel()
    assert (process.returncode, errors) == (0, b"")
    answers = [json.loads(line) for line in output.decode().splitlines()]
    assert [answer["letter"] for answer in answers] == [7 + 2 + 100_000 + 6 + 8]
    assert answers[0]["text"].endswith("ha pPYhapHAPPY")


@EVERY_CELL
def test_a_stream_in_pieces_is_the_stream_at_once(data: Data, cell: str) -> None:
    trained = trained_with(cell, data)
    text = "".join(data.test.raw[TEXT][:9]) + STREAM
    letters = letters_of(text)
    whole, state = detector.read(trained, letters)
    core = trained.core({LETTERS: numbered(letters, data.spec.input(TEXT).vocabulary[2:])[None]})[PROBABILITY]
    np.testing.assert_allclose(whole, np.array(core)[0, :, 0], atol=1e-5)
    rng = np.random.default_rng(0)
    for count in (1, 7, len(letters) - 1):
        cuts = [0, *sorted(rng.choice(np.arange(1, len(letters)), count, replace=False)), len(letters)]
        state, pieces = None, []
        for start, end in itertools.pairwise(cuts):
            found, state = detector.read(trained, letters[start:end], state)
            pieces.append(found)
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
    assert (whole > 0.5).any()
    assert (whole < 0.5).any()
    at_once = detector.watch(trained)(text)
    watch = detector.watch(trained)
    assert [answer for letter in text for answer in watch(letter)] == list(at_once)
    assert [answer["letter"] for answer in at_once] == (np.flatnonzero(whole > 0.5) + 1).tolist()
    assert all(text[: answer["letter"]].replace("\n", " ").endswith(answer["text"]) for answer in at_once)


def test_answers_name_characters_and_every_text_has_one(data: Data) -> None:
    trained = trained_with("gru", data)
    found = trained.predict(pd.DataFrame({TEXT: ["", "caféhappy", None, "x" * 5000]}))
    assert found[0] == found[2] == {"fires": [], "probabilities": [], "highest": 0.0}
    probabilities = detector.read(trained, letters_of("caféhappy"))[0]
    fired = [place for place in range(10) if probabilities[place] > 0.5]
    assert found[1]["fires"] == [place + 1 if place < 4 else place for place in fired]  # é is two letters
    assert found[1]["highest"] == pytest.approx(probabilities.max())
    assert 0 < found[3]["highest"] < 1


@EVERY_CELL
def test_every_parameter_moves_in_one_step_and_padding_changes_nothing(data: Data, cell: str) -> None:
    config = replace(SMALL, cell=cell)
    model = detector.build(config, data.spec)
    metrics = detector.metrics(config, data.spec)
    model.compile(keras.optimizers.SGD(1.0), APP.loss, metrics=metrics, run_eagerly=True, jit_compile=False)
    rows = np.arange(4)
    batches = [
        (
            {LETTERS: data.train.inputs[LETTERS].padded(rows, length)},
            {PROBABILITY: data.train.targets[PROBABILITY].padded(rows, length)},
        )
        for length in (32, 37)
    ]
    losses = [model.evaluate(*batch, verbose=0) for batch in batches]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    before = [np.array(weight) for weight in model.trainable_weights]
    model.train_on_batch(*batches[0])
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert not np.array_equal(np.array(weight), old), weight.path


def test_windows_are_the_stream_and_targets_what_can_be_seen_in_them(data: Data) -> None:
    assert data.test.raw[TEXT].str.len()[:-1].eq(32).all()
    for split in data.splits.values():
        assert split.raw[TEXT].str.len().tolist() == split.raw[MARKS].str.len().tolist()
        np.testing.assert_array_equal(split.inputs[LETTERS].splits, split.targets[PROBABILITY].splits)
        ends = [np.isin(np.arange(len(text)), last_letters("happy", text)) for text in split.raw[TEXT]]
        np.testing.assert_array_equal(split.targets[PROBABILITY].values[:, 0], np.concatenate(ends))
        known = data.spec.input(TEXT).vocabulary[2:]
        np.testing.assert_array_equal(split.inputs[LETTERS].values, numbered("".join(split.raw[TEXT]), known))
    assert data.spec.input(TEXT).vocabulary == ("", "[UNK]", "a", "h", "p", "y")
    assert detector.load(SMALL).fingerprint() == detector.load(SMALL).fingerprint()


def test_the_test_stream_is_as_large_as_asked_for() -> None:
    test = detector.load(replace(SMALL, letters=100, test_letters=100_000)).test.raw
    text, marks = ("".join(test[name]) for name in (TEXT, MARKS))
    assert marks.count(".") == 100_000
    assert sum(marks[place] == "w" for place in last_letters("happy", text)) == 500
    assert len(last_letters("happy", text)) >= 500


def test_text_of_ones_own_in_any_script(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("एक हैप्पी बच्चा आया।\n".encode() * 200 + b"\xff\n\n" + b"x" * 100_000 + b"\n")
    config = replace(SMALL, data=str(path), word="हैप्पी", max_bad=0.01, test_fraction=0.98)
    data = encoded(APP, config, detector.load(config))
    assert [where for where, _ in data.bad] == ["text.txt:201"]
    assert set(data.spec.input(TEXT).vocabulary[2:]) == set("हैप्पी")
    assert data.train.targets[PROBABILITY].values.sum() > 20
    config = replace(SMALL, data=str(path), word="missing", planted=0)
    with pytest.raises(UserError, match=r"--word missing: the train stream of .* larger --planted"):
        detector.load(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"word": "a"}, "--word a: must be one word of at least two letters"),
        ({"word": "two words"}, "--word two words: must be one word"),
        ({"alphabet": "aa"}, "--alphabet aa: must be of several letters"),
        ({"units": 0}, "--units 0"),
        ({"test_fraction": 0.5}, "--test-fraction 0.5: is for text of your own"),
        ({"window": 19}, "--window 19: must be at least four times"),
        ({"threshold": 1.0}, "--threshold 1.0"),
        ({"most_delay": -1}, "--most-delay -1"),
        ({"cell": "transformer"}, "--cell transformer: must be one of"),
        ({"regularization": "dropout"}, "--regularization dropout: is not used here"),
        ({"data": "missing.txt"}, "--data missing.txt: no such file"),
        ({"letters": 20, "planted": 0.0}, "does not hold it"),
    ],
)
def test_mistakes_are_one_line(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        detector.load(Config(**settings))
    assert "\n" not in str(error.value)


def test_the_search_space_names_settings() -> None:
    import keras_tuner

    replace(Config(), **detector.space(keras_tuner.HyperParameters()))


@pytest.mark.slow
def test_other_commands_use_the_model(run: TrainedRun, tmp_path: Path) -> None:
    outcome = loom("predict", run.run_id, "a happy, unhappy end", "", "--json", cwd=run.folder)
    assert outcome.status == 0, outcome.errors
    answers = [json.loads(line) for line in outcome.output.splitlines()]
    assert [answer["fires"] for answer in answers] == [[7, 16], []]
    exported = loom("export", run.run_id, "--format", "keras", "savedmodel", "litert", cwd=run.folder)
    assert exported.status == 0, exported.errors


@pytest.mark.slow
def test_watch_needs_a_model_that_reads_on(tmp_path: Path) -> None:
    outcome = loom("train", "tabular", "--epochs=1", "--json", cwd=tmp_path)
    refused = loom("watch", outcome.result["run_id"], cwd=tmp_path)
    assert refused.status == 2
    assert "tabular does not read a text without end" in refused.errors
    assert refused.errors.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [[], ["--cell", "elman"], ["--cell", "lstm"], ["--word", "हैप्पी"], ["--word", "papa", "--seed", "1"]]
)
def test_500_words_among_2000_near_misses_are_found(tmp_path: Path, flags: list[str]) -> None:
    outcome = loom("train", "detector", *flags, "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    metrics = outcome.result["metrics"]
    assert (metrics["test_precision"], metrics["test_recall"], metrics["test_delay"]) == (1, 1, 0)


@pytest.mark.slow
def test_the_search_space_runs(tmp_path: Path) -> None:
    settings = ("--letters", "2000", "--test-letters", "1000", "--epochs", "1", "--trials", "2", "--no-final")
    outcome = loom("tune", "detector", *settings, "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
