"""The saved model: the same answers everywhere, by the code it was saved with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import TrainedRun, clean_environment, loom, served

TEXTS = ["A superb film, I loved every minute!", "Not good at all.", "far from dull", "", "?", "ünïcödé हिन्दी"]
OUTSIDE = """
import importlib.util, json, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
assert importlib.util.find_spec("loom") is None and importlib.util.find_spec("layers") is None
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
print(json.dumps(model.predict(pandas.DataFrame({"text": json.loads(sys.argv[2])})).to_dict("records")))
"""


@pytest.fixture(scope="module")
def answers(sentiment_run: TrainedRun) -> list[dict[str, object]]:
    """What `loom predict` says."""
    outcome = loom("predict", sentiment_run.run_id, "--json", *TEXTS, cwd=sentiment_run.folder)
    assert outcome.status == 0, outcome.errors
    return [json.loads(line) for line in outcome.output.splitlines()]


def test_every_text_has_an_answer(answers: list[dict[str, object]]) -> None:
    assert len(answers) == len(TEXTS)
    assert answers[0]["label"] == "positive"
    assert all(answer["label"] in ("positive", "negative") for answer in answers)
    assert all(0.5 <= float(str(answer["probability"])) <= 1 for answer in answers)


def test_a_process_without_kerasloom_gives_the_same_answers(
    sentiment_run: TrainedRun, answers: list[dict[str, object]], tmp_path: Path
) -> None:
    output = subprocess.run(
        [sys.executable, "-P", "-c", OUTSIDE, str(sentiment_run.model), json.dumps(TEXTS)],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert json.loads(output.splitlines()[-1]) == answers


def test_the_server_gives_the_same_answers(sentiment_run: TrainedRun, answers: list[dict[str, object]]) -> None:
    assert served(sentiment_run, [{"text": text} for text in TEXTS]) == answers


@pytest.mark.slow
def test_a_model_predicts_with_the_code_it_was_saved_with(sentiment_run: TrainedRun) -> None:
    code = sentiment_run.model / "code" / "apps" / "sentiment.py"
    saved = code.read_text()
    code.write_text(saved.replace('"label": target.vocabulary', '"opinion": target.vocabulary'))
    try:
        outcome = loom("predict", sentiment_run.run_id, "--json", "good", cwd=sentiment_run.folder)
    finally:
        code.write_text(saved)
    assert "opinion" in json.loads(outcome.output)


def test_inputs_from_a_file_from_json_and_from_standard_input(sentiment_run: TrainedRun, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("id,text\n1,superb\n2,awful\n")
    outcome = loom(
        "predict", sentiment_run.run_id, str(tmp_path / "texts.csv"), '{"text": "superb"}', cwd=sentiment_run.folder
    )
    lines = outcome.output.splitlines()
    assert outcome.status == 0
    assert [line.rpartition("| ")[2] for line in lines] == ["superb", "awful", "superb"]
    assert lines[0] == lines[2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"texts": "a"}', ["unknown input texts", "text"]),
        pytest.param("{a", ["not JSON"], marks=pytest.mark.slow),
        pytest.param("no.csv", ["no.csv"], marks=pytest.mark.slow),
    ],
)
def test_inputs_that_cannot_be_read(sentiment_run: TrainedRun, text: str, words: list[str]) -> None:
    outcome = loom("predict", sentiment_run.run_id, text, cwd=sentiment_run.folder)
    assert outcome.status == 2
    assert outcome.errors.count("\n") == 1
    assert all(word in outcome.errors for word in words)
