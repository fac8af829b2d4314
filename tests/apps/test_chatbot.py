"""The chatbot: what it is trained and tested on, its baselines, and the command."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support import clean_environment, loom

from apps import chatbot
from apps.chatbot import Config
from loom import Data, UserError
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


def test_settings_that_take_fewer_pairs_take_the_first_ones(data: Data) -> None:
    for settings, count in (({"max_train": 50}, 50), ({"max_train": 0, "train_fraction": 0.5}, len(data.train) // 2)):
        fewer = chatbot.load(replace(SMALL, **settings))  # type: ignore[arg-type]
        assert fewer.train.raw.equals(data.train.raw.head(len(fewer.train)))
        assert len(fewer.train) == pytest.approx(count, abs=1)
        assert fewer.spec.input("source").statistics["examples"] == len(fewer.train)
        assert fewer.test.raw.equals(data.test.raw)


def test_a_share_for_the_test_is_refused() -> None:
    with pytest.raises(UserError, match=r"--test-fraction 0\.3: is not used here"):
        replace(SMALL, test_fraction=0.3)


def test_the_recorded_answers_of_real_data_are_read(real_data: Path) -> None:
    """16 of 2,393 lines have no answer, and all 749 questions are asked."""
    data = chatbot.load(Config(data=str(real_data / "chat" / "chatterbot.en.tsv")))
    assert sum("no target text" in why for _, why in data.bad) == 16
    assert len(data.train) + len(data.bad) == 2393
    assert len(data.test) == 749


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
