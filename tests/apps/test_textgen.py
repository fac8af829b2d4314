"""Text generation: what is read, that stepping is reading, and that a saved model writes what the trained one does."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from support import clean_environment, loom

from apps import textgen
from apps.textgen import APP, TEXT, Config, Network
from loom import UserError
from loom.data.texts import in_order, read_text
from loom.data.tokens import Tokenizer, what_follows
from loom.fresh import FreshProcess
from loom.run import fit, measure
from loom.train import build_run, encoded
from loom.trained import Trained

SMALL = {"units": 8, "embedding_units": 4, "heads": 2, "feed_forward_units": 12, "length": 32, "new_tokens": 40}
LINES = "".join(f"ANNA: {number} keys, Ben?\n" for number in range(300))


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(LINES, encoding="utf-8")
    return path


def run_of(book: Path, **settings: Any) -> Any:
    config = Config(data=str(book), epochs=1, batch_size=8, jit="off", **{**SMALL, **settings})
    return build_run(APP, config, encoded(APP, config, APP.load(config)), book.parent)


@pytest.mark.parametrize(
    ("model", "depth"),
    [
        pytest.param("lstm", 2, marks=pytest.mark.slow),
        pytest.param("gru", 1, marks=pytest.mark.slow),
        ("transformer", 2),
    ],
)
def test_every_parameter_moves_and_stepping_is_reading(book: Path, model: str, depth: int) -> None:
    run = run_of(book, model=model, depth=depth, dropout=0.0)
    before = {weight.path: weight.numpy() for weight in run.model.trainable_weights}
    fit(run)
    for weight in run.model.trainable_weights:
        assert not np.array_equal(weight.numpy(), before[weight.path]), weight.path
    tokens = run.data.test.inputs[TEXT][:3, :9]
    whole = run.model({TEXT: tokens}, training=False)[TEXT].numpy()
    network = Network(run.config, run.data.spec, lambda name, make: run.model.get_layer(name))
    state = network.begin(3, 32)
    for place in range(9):
        logits, state = network.step(tf.constant(tokens[:, place]), state)
        np.testing.assert_allclose(logits[:, 4:], whole[:, place, 4:], rtol=1e-4, atol=1e-5)
        assert (logits[:, :4].numpy() < -1e8).all()


@pytest.mark.parametrize("tokens", ["characters", "subwords", "words"])
def test_parts_follow_each_other_and_targets_are_the_next_tokens(book: Path, tokens: str) -> None:
    config = Config(data=str(book), **SMALL, tokens=tokens, vocabulary_size=300)
    data = APP.load(config)
    tokenizer = Tokenizer(**data.spec.input(TEXT).tokenizer)
    starts = []
    for split in data.splits.values():
        np.testing.assert_array_equal(split.inputs[TEXT][:, 1:], split.targets[TEXT][:, :-1])
        np.testing.assert_array_equal(split.inputs[TEXT][1:, 0], split.targets[TEXT][:-1, -1])
        if tokens != "words":  # words that are unknown do not come back
            text = "".join(tokenizer.decode([split.inputs[TEXT].ravel()]))
            assert text in LINES
            starts.append(LINES.index(text))
    assert starts == sorted(starts)


def test_the_same_text_has_the_same_continuation_alone_and_among_others(book: Path) -> None:
    run = run_of(book)
    frame = pd.DataFrame({TEXT: ["ANNA: ", "", "1 keys, Ben?\nANNA: 2", "\u0939"]})
    answers = APP.predict(run.trained, frame)
    lengths = {len(answer["continuation"]) for answer in answers}
    assert lengths == {40}
    again = Trained(APP, run.config, run.data.spec, run.model)
    assert [APP.predict(again, frame.iloc[[row]])[0] for row in range(4)] == list(answers)
    *growing, last = [answer["continuation"] for answer in again.stream({TEXT: "ANNA: "})]
    assert last == answers[0]["continuation"]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise([*growing, last]))
    assert [len(text) for text in growing] == sorted(set(map(len, growing)))  # a piece more each time


def test_the_loss_is_the_cross_entropy_and_measures_follow_from_it(book: Path) -> None:
    run = run_of(book, tokens="subwords", vocabulary_size=300)
    split, part = run.data.test, in_order(LINES, run.config)["test"]
    logits = run.model({TEXT: split.inputs[TEXT]}, training=False)[TEXT].numpy().astype(np.float64)
    chosen = np.take_along_axis(logits, split.targets[TEXT][..., None], axis=-1)[..., 0]
    nats = float(np.mean(np.log(np.exp(logits).sum(axis=-1)) - chosen))
    metrics = measure(run)
    assert metrics["loss"] == pytest.approx(nats, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(np.exp(nats), rel=1e-5)
    tokenizer = Tokenizer(**run.data.spec.input(TEXT).tokenizer)
    bits = nats / np.log(2) * len(tokenizer.encode_whole([part]))
    assert metrics["bits_per_character"] == pytest.approx(bits / len(part), rel=1e-5)
    assert len(tokenizer.encode_whole([part])) < 0.8 * len(part)
    tokens, half = np.append(split.inputs[TEXT].ravel(), split.targets[TEXT][-1, -1]), run.config.length // 2
    chosen = []
    for place in range(half, len(tokens) - half, half):  # half a window in which each token has as much before it
        window = tokens[place - half : place + half]
        rates = run.model({TEXT: window[None]}, training=False)[TEXT].numpy()[0, half:].astype(np.float64)
        rates -= np.log(np.exp(rates).sum(axis=-1, keepdims=True))
        chosen += rates[np.arange(half), tokens[place + 1 : place + half + 1]].tolist()
    assert metrics["loss_in_context"] == pytest.approx(-np.mean(chosen), rel=1e-5)


@pytest.mark.parametrize("tokens", ["characters", "subwords", "words"])
def test_a_continuation_follows_its_prompt(tokens: str) -> None:
    tokenizer = Tokenizer.fit(["a - b", "well-known", "(x) 'tis, we - go"], 300, tokens, lines=True)
    for prompt, rest in (("(", "x) we"), ("well -", "known"), ("we", "- go"), ("a ", "b")):
        start, end = (tokenizer.encode_whole([text]) for text in (prompt, rest))
        shown = what_follows(tokenizer.decode([start])[0], tokenizer.decode([np.append(start, end)])[0])
        assert shown.replace(" ", "") == rest.replace(" ", "")
        assert tokens == "words" or shown == rest


def test_a_text_in_one_line_is_divided_between_words(tmp_path: Path) -> None:
    (tmp_path / "line.txt").write_text("zwei Wörter " * 3000, encoding="utf-8")
    data = APP.load(Config(data=str(tmp_path / "line.txt"), length=32))
    starts = [split.raw[TEXT].iloc[0] for split in data.splits.values()]
    assert all(start.startswith(("zwei", "Wörter")) for start in starts)
    assert len(data.train) > 5 * len(data.test) > 0


def test_signs_stand_with_their_letters_in_the_figure() -> None:
    pieces, rates = textgen._with_marks([*"किताब", "\n"], np.arange(6.0))
    assert pieces == ["कि", "ता", "ब", "↵"]
    assert rates.tolist() == [1, 5, 4, 5]


def test_the_baseline_is_beaten_by_knowing_more(book: Path) -> None:
    config = Config(data=str(book), **SMALL)
    found = textgen.baselines(config, APP.load(config))
    assert found["ngram"]["loss"] < 0.7 * found["unigram"]["loss"]
    assert found["ngram"]["perplexity"] == pytest.approx(np.exp(found["ngram"]["loss"]))
    assert found["ngram"]["bits_per_character"] == pytest.approx(found["ngram"]["loss"] / np.log(2))


def test_folders_and_lines_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"second\r\n\xff\xfe bad\n" + b"x" * 100_000)
    (tmp_path / "a.txt").write_text("first\n\nline\n", encoding="utf-8")
    found = read_text(Config(data=str(tmp_path), max_bad=0.5), lambda: "")
    assert found.text == "first\n\nline\n\nsecond\n" + "x" * 100_000
    assert [where for where, _ in found.bad] == ["b.txt:2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file or folder"),
        (b"", "is empty"),
        (b"too short\n", "give more text"),
        (b"\xff bad\ngood\n" * 20, "unreadable|bad"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        APP.load(Config(data=str(path)))
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--model", "transformer", "--tokens", "subwords", "--vocabulary-size", "300"]])
def test_from_the_command_to_a_continuation(tmp_path: Path, book: Path, flags: list[str]) -> None:
    sizes = ["--units", "8", "--length", "32", "--new-tokens", "40", "--epochs", "1"]
    outcome = loom("train", "textgen", "--data", str(book), *sizes, *flags, "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    metrics = outcome.result["metrics"]
    assert metrics["test_perplexity"] == pytest.approx(np.exp(metrics["test_loss"]), rel=1e-5)
    assert metrics["baseline_ngram_loss"] > 0
    answer = loom("predict", outcome.result["run_id"], "ANNA: 7", cwd=tmp_path)
    assert answer.status == 0, answer.errors
    model, growing = Path(outcome.result["model"]), []
    process = FreshProcess()
    try:
        process.ask(model, [{TEXT: "ANNA: 7"}], stream=True)
        (last,) = process.answers(model, growing.append)
    finally:
        process.close()
    assert len(growing) > 2
    assert growing[-1] == last
    assert answer.output == f"{last['continuation']}  | ANNA: 7\n"


@pytest.mark.slow
def test_a_line_in_the_terminal_has_its_continuation(tmp_path: Path, book: Path) -> None:
    sizes = ["--units", "8", "--length", "32", "--new-tokens", "40", "--epochs", "1"]
    outcome = loom("train", "textgen", "--data", str(book), *sizes, "--tokens", "words", "--json", cwd=tmp_path)
    talk = subprocess.run(
        [Path(sys.executable).with_name("loom"), "chat", outcome.result["run_id"]],
        input="ANNA: 7\n\n",
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    trained = Trained.open(Path(outcome.result["model"]) / "artifacts" / "trained")
    answers = APP.predict(trained, pd.DataFrame({TEXT: ["ANNA: 7", ""]}))
    assert talk.stdout == "".join(f"{answer['continuation']}\n" for answer in answers)


@pytest.mark.slow
def test_a_search_runs(tmp_path: Path, book: Path) -> None:
    sizes = ["--length", "32", "--epochs", "1"]
    outcome = loom("tune", "textgen", "--data", str(book), *sizes, "--trials", "2", "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
