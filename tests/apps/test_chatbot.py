"""The chatbot: what it is trained and tested on, its baselines, and the command."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import clean_environment, loom

from apps import chatbot
from apps.chatbot import Config
from loom import Data
from loom.data import questions

FLAGS = {
    "max_train": 120, "epochs": 1, "units": 8, "heads": 2, "depth": 1, "feed_forward_units": 8, "buckets": 1,
    "vocabulary_size": 400, "max_length": 60, "batch_size": 32, "jit": "off", "beam_width": 2,
}  # fmt: skip
SMALL = Config(**FLAGS)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def data() -> Data:
    return chatbot.load(replace(SMALL, max_train=0))


def test_every_pair_is_trained_on_and_every_question_tested_once(data: Data) -> None:
    pairs = questions.questions()
    assert len(data.train) == len(pairs)
    assert sorted(data.test.raw["source"]) == sorted(set(pairs["source"]))
    assert "learned by heart" in data.notes[0]
    assert pairs["source"].duplicated().any()


def test_any_recorded_answer_to_a_question_counts(data: Data) -> None:
    pairs, asked = data.train.raw, data.test.raw["source"]
    last = dict(zip(pairs["source"], pairs["target"], strict=True))
    assert chatbot.recorded(data, [last[question] for question in asked]) == 1
    assert chatbot.recorded(data, ["no such answer"] * len(asked)) == 0


def test_the_nearest_question_is_a_strong_baseline(data: Data) -> None:
    found = chatbot.baselines(SMALL, data)
    assert found["nearest"]["recorded"] == 1
    assert 0.3 < found["nearest"]["recorded_hurried"] < 1
    assert found["one_answer"]["recorded"] < 0.1


def test_a_question_loses_its_middle_word() -> None:
    assert chatbot.without_a_word("What is the capital of France?") == "What is the of France?"
    assert chatbot.without_a_word("Hi there!") == "Hi there!"


def test_settings_that_take_fewer_pairs(data: Data) -> None:
    assert len(chatbot.load(replace(SMALL, max_train=50)).train) == 50
    half = chatbot.load(replace(SMALL, max_train=0, train_fraction=0.5)).train
    assert len(half) == pytest.approx(len(data.train) / 2, abs=1)
    assert np.array_equal(half.targets["target"].values, data.train.take(np.arange(len(half))).targets["target"].values)


@pytest.mark.slow
def test_the_command_trains_and_talks_by_chance_too(tmp_path: Path) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in FLAGS.items()]
    outcome = loom("train", "chatbot", *flags, "--decoding=sampling", "--top-p=0.9", "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    assert {"test_recorded", "test_recorded_hurried", "baseline_nearest_recorded"} <= outcome.result["metrics"].keys()
    talk = ["Hello.", "Hello.", "x" * 100_000, ""]
    command = [Path(sys.executable).with_name("loom"), "chat", outcome.result["run_id"]]
    first, second = (
        subprocess.run(
            command,
            input="\n".join(talk) + "\n",
            cwd=tmp_path,
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    )
    assert first == second
    assert len(first.split("\n")) == len(talk) + 1
    assert first.split("\n")[0] != first.split("\n")[1]  # the second time by other numbers


@pytest.mark.slow
def test_chat_needs_a_model_that_takes_one_text(tmp_path: Path) -> None:
    outcome = loom("train", "tabular", "--epochs=1", "--json", cwd=tmp_path)
    refused = loom("chat", outcome.result["run_id"], cwd=tmp_path)
    assert refused.status == 2
    assert "chat needs a model that takes one text" in refused.errors


@pytest.mark.slow
def test_the_questions_are_learned_by_heart(tmp_path: Path) -> None:
    outcome = loom("train", "chatbot", "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    assert outcome.result["metrics"]["test_recorded"] >= 0.95


@pytest.mark.slow
def test_a_search_space_that_runs(tmp_path: Path) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in FLAGS.items() if name != "units"]
    space = ["--space", "units=8,16", "--trials", "2", "--no-final"]
    outcome = loom("tune", "chatbot", *flags, *space, "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
