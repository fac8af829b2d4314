"""The command line: quick to start, and one clear line for every mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from loom import cli

HEAVY = ("tensorflow", "keras", "mlflow", "sklearn", "matplotlib")


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a wrong command prints; also asserts its status, and that nothing was stored."""
    assert cli.run(list(arguments)) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert not Path("mlruns/mlflow.db").exists()
    return captured.err


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["train", "--help"]])
def test_help_and_list_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys; from loom import cli; assert cli.run({arguments!r}) == 0; "
        f"assert not set({HEAVY!r}) & set(sys.modules), set({HEAVY!r}) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_list_shows_every_application_with_its_docstring(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["list"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert any(line.startswith("sentiment ") and "Sentiment: what does" in line for line in lines)
    assert any(line.startswith("tabular ") for line in lines)


def test_help_of_an_application_explains_its_settings(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.run(["train", "sentiment", "--help"])
    assert stop.value.code == 0
    text = capfd.readouterr().out
    assert "--recurrent-dropout" in text
    assert "the same units at every step" in text.replace("\n", " ").replace("  ", " ") or "same units" in text
    assert "--resume RUN_ID" in text


def test_unknown_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert "unknown command 'trian'" in refused(capfd, "trian", "sentiment")


def test_unknown_application_proposes_the_closest(capfd: pytest.CaptureFixture[str]) -> None:
    assert "did you mean sentiment?" in refused(capfd, "train", "sentimant")


def test_unknown_flag_proposes_the_closest(capfd: pytest.CaptureFixture[str]) -> None:
    line = refused(capfd, "train", "sentiment", "--learning-rat", "0.1")
    assert "unknown flag --learning-rat" in line
    assert "did you mean --learning-rate?" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch-size", "0"], ["--batch-size 0", "at least 1"]),
        (["--epochs", "many"], ["--epochs", "many"]),
        (["--encoder", "convolution"], ["--encoder", "convolution", "lstm"]),
        (["--data", "missing.csv"], ["--data missing.csv", "no such file"]),
        (["--data", "tfds:imdb_review", "--data-dir", "."], ["tfds:imdb_review", "did you mean tfds:imdb_reviews?"]),
        (["--data", "tfds:imdb_reviews", "--data-dir", "nowhere"], ["--data-dir nowhere", "no such folder"]),
        (["--label-column", "stars"], ["'stars'", "text, label, rating"]),
        (["--resume", "abc"], ["unknown run abc"]),
        (["--from-run", "abc"], ["unknown run abc"]),
        (["--resume", "abc", "--from-run", "abc"], ["--resume", "--from-run"]),
    ],
)
def test_wrong_settings(capfd: pytest.CaptureFixture[str], arguments: list[str], words: list[str]) -> None:
    line = refused(capfd, "train", "sentiment", *arguments)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["reviews.csv", "empty"]),
        (b"text,label\n", ["reviews.csv", "no rows"]),
        (b"words,label\ngood,1\n", ["'text'", "'words', 'label'"]),
        (b"text,label\n" + b"good film,pos\n" * 9, ["one class", "pos"]),
        (b"text,label\n" + b"good,pos\nbad,neg\n" * 9 + b"a,b,c\n", ["reviews.csv:20", "--max-bad"]),
        (b"text,label\ngood,pos\nbad,neg\n", ["--test-fraction", "cannot be split"]),
        (b"text,label\n" + b"...,pos\n---,neg\n" * 20, ["no words", "text column"]),
    ],
)
def test_unusable_files(capfd: pytest.CaptureFixture[str], content: bytes, words: list[str]) -> None:
    Path("reviews.csv").write_bytes(content)
    line = refused(capfd, "train", "sentiment", "--data", "reviews.csv")
    assert all(word in line for word in words), line


def test_a_rating_that_is_no_number(capfd: pytest.CaptureFixture[str]) -> None:
    Path("r.csv").write_text("text,rating\n" + "fine,7\nbad,4\n" * 49 + "worse,two\n")
    line = refused(capfd, "train", "sentiment", "--data", "r.csv", "--target", "rating")
    assert "'two'" in line
    assert "no number" in line


def test_a_folder_has_no_ratings(capfd: pytest.CaptureFixture[str]) -> None:
    for label in ("good", "bad"):
        Path("texts", label).mkdir(parents=True)
        Path("texts", label, "1.txt").write_text("words")
    line = refused(capfd, "train", "sentiment", "--data", "texts", "--target", "rating")
    assert "texts has no column 'rating': its columns are text, label" in line


def test_a_store_that_cannot_be_written(capfd: pytest.CaptureFixture[str]) -> None:
    Path("mlruns").write_text("a file where the store should be")
    line = refused(capfd, "train", "sentiment")
    assert "mlruns: the tracking store cannot be made" in line


@pytest.mark.parametrize("command", [["predict", "abc", "text"], ["serve", "abc"], ["export", "abc"]])
def test_commands_on_an_unknown_run(capfd: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert "unknown run abc" in refused(capfd, *command)


def test_ui_without_a_store(capfd: pytest.CaptureFixture[str]) -> None:
    assert "no tracking store" in refused(capfd, "ui")


def test_a_tracking_server_shows_the_ui_itself(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert cli.run(["ui"]) == 0
    assert capfd.readouterr().out.endswith("itself: http://127.0.0.1:9\n")


def test_an_application_file_that_is_none(capfd: pytest.CaptureFixture[str]) -> None:
    Path("empty.py").write_text("")
    assert "empty.py: defines no APP" in refused(capfd, "train", "empty.py")
    assert "no such application file" in refused(capfd, "train", "absent.py")
    Path("json.py").write_text("")
    assert "rename the file" in refused(capfd, "train", "json.py")


def test_debug_shows_the_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", "nothing", "--debug"]) == 2
    assert "Traceback" in capfd.readouterr().err
