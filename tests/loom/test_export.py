"""Exported models: other programs get the answers of `loom predict`, or nothing is written."""

from __future__ import annotations

import importlib.util
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import SMALL_SENTIMENT, TrainedRun, loom

from loom import UserError
from loom.data.spec import Field

TEXTS = ["A superb film, I loved every minute!", "Not good at all.", "far from dull", "good", "?"]
HAS_ONNX = all(importlib.util.find_spec(package) for package in ("tf2onnx", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx")


def export(run_id: str, cwd: Path, *formats: str, output: Path | None = None) -> Path:
    """Export by the command; returns the folder."""
    output = output or cwd / "-".join(("exported", *formats))
    outcome = loom("export", run_id, "--format", *formats, "--output", str(output), cwd=cwd)
    assert outcome.status == 0, outcome.errors
    assert len(outcome.output.splitlines()) == len(formats)
    return output


def predicted(run: TrainedRun, texts: list[str]) -> list[dict[str, Any]]:
    """What `loom predict` answers."""
    outcome = loom("predict", run.run_id, "--json", *texts, cwd=run.folder)
    assert outcome.status == 0, outcome.errors
    return [json.loads(line) for line in outcome.output.splitlines()]


@pytest.fixture(scope="module")
def exported(sentiment_run: TrainedRun) -> Path:
    return export(sentiment_run.run_id, sentiment_run.folder, "savedmodel")


@pytest.fixture(scope="module")
def answers(sentiment_run: TrainedRun) -> list[dict[str, Any]]:
    return predicted(sentiment_run, [*TEXTS, ""])


def probability_of_second_class(answers: list[dict[str, Any]], classes: list[str]) -> np.ndarray:
    """Answers as the one output of a model with two classes."""
    values = [a["probability"] if a["label"] == classes[1] else 1 - a["probability"] for a in answers]
    return np.array(values)[:, None]


def word_ids(texts: list[str], preprocessing: dict[str, Any]) -> np.ndarray:
    """Preprocessing written anew from what `preprocessing.json` says (enough for these texts)."""
    ids = {word: index for index, word in enumerate(preprocessing["inputs"][0]["vocabulary"])}
    words = [re.sub(r"[^a-z0-9'!? ]+", " ", re.sub("([!?])", r" \1 ", text.lower())).split() for text in texts]
    padded = np.zeros((len(texts), max(map(len, words))), np.int32)
    for row, sequence in zip(padded, words, strict=True):
        row[: len(sequence)] = [ids.get(word, 1) for word in sequence]
    return padded


@pytest.mark.slow
def test_savedmodel_answers_raw_texts_with_tensorflow_alone(exported: Path, answers: list[dict[str, Any]]) -> None:
    import tensorflow as tf

    model = tf.saved_model.load(exported / "savedmodel")
    outputs = model.signatures["serving_default"](text=tf.constant([[text] for text in [*TEXTS, ""]]))
    labels = [label.decode() for label in outputs["sentiment_label"].numpy()]
    expected = probability_of_second_class(answers, ["negative", "positive"])
    assert labels == [answer["label"] for answer in answers]
    np.testing.assert_allclose(outputs["sentiment"], expected, atol=1e-4)


@pytest.mark.slow
def test_savedmodel_answers_a_text_without_words(exported: Path, answers: list[dict[str, Any]]) -> None:
    import tensorflow as tf

    model = tf.saved_model.load(exported / "savedmodel")
    outputs = model.serve({"text": tf.constant([[""]])})
    assert outputs["sentiment_label"].numpy().tolist() == [answers[-1]["label"].encode()]


@pytest.mark.slow
def test_keras_file_answers_raw_texts(sentiment_run: TrainedRun, answers: list[dict[str, Any]]) -> None:
    import keras
    import tensorflow as tf

    import layers  # noqa: F401 - registers our layers with Keras

    exported = export(sentiment_run.run_id, sentiment_run.folder, "keras")
    model = keras.saving.load_model(exported / "model.keras")
    outputs = model({"text": tf.constant([[text] for text in [*TEXTS, ""]])})
    np.testing.assert_allclose(
        outputs["sentiment"], probability_of_second_class(answers, ["negative", "positive"]), atol=1e-4
    )


@pytest.mark.slow
def test_litert_and_preprocessing_json_are_enough(sentiment_run: TrainedRun, answers: list[dict[str, Any]]) -> None:
    import tensorflow as tf

    exported = export(sentiment_run.run_id, sentiment_run.folder, "litert")
    preprocessing = json.loads((exported / "preprocessing.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the interpreter announces its move to another package
        interpreter = tf.lite.Interpreter(model_path=str(exported / "model.tflite"))
    run = interpreter.get_signature_runner()
    expected = probability_of_second_class(answers[:-1], preprocessing["targets"][0]["vocabulary"])
    np.testing.assert_allclose(run(words=word_ids(TEXTS, preprocessing))["sentiment"], expected, atol=1e-4)
    alone = run(words=word_ids(["good"], preprocessing))["sentiment"]
    np.testing.assert_allclose(alone, expected[3:4], atol=1e-4)


@pytest.mark.slow
@needs_onnx
def test_onnx_and_preprocessing_json_are_enough(sentiment_run: TrainedRun, answers: list[dict[str, Any]]) -> None:
    import onnxruntime

    folder = export(sentiment_run.run_id, sentiment_run.folder, "onnx")
    preprocessing = json.loads((folder / "preprocessing.json").read_text())
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert [entry["name"] for entry in preprocessing["core_inputs"]] == [entry.name for entry in session.get_inputs()]
    assert session.get_inputs()[0].shape == ["batch", "words_1"]
    expected = probability_of_second_class(answers[:-1], preprocessing["targets"][0]["vocabulary"])
    (outputs,) = session.run(["sentiment"], {"words": word_ids(TEXTS, preprocessing)})
    np.testing.assert_allclose(outputs, expected, atol=1e-4)
    (alone,) = session.run(["sentiment"], {"words": word_ids(["good"], preprocessing)})
    np.testing.assert_allclose(alone, expected[3:4], atol=1e-4)


def test_missing_packages_are_named_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from loom.export import export

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs tf2onnx and onnxruntime: pip install -e '.\[onnx\]'"):
        export("no-run", ["keras", "onnx"], tmp_path / "exported")


def test_an_existing_folder_is_refused(sentiment_run: TrainedRun, tmp_path: Path) -> None:
    outcome = loom("export", sentiment_run.run_id, "--output", str(tmp_path), cwd=sentiment_run.folder)
    assert outcome.status == 2
    assert outcome.errors.count("\n") == 1
    assert "exists already" in outcome.errors
    assert not list(tmp_path.iterdir())


def test_an_unknown_run_is_refused(sentiment_run: TrainedRun, tmp_path: Path) -> None:
    outcome = loom("export", "0" * 32, "--output", str(tmp_path / "exported"), cwd=sentiment_run.folder)
    assert outcome.status == 2
    assert "unknown run" in outcome.errors
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_nothing_is_written_when_answers_differ(sentiment_run: TrainedRun, tmp_path: Path) -> None:
    code = sentiment_run.model / "code" / "loom" / "export_check.py"
    saved = code.read_text()
    code.write_text(saved.replace("np.asarray(value)", "np.asarray(value + 1 if sys.argv[1] == 'litert' else value)"))
    try:
        arguments = ("--format", "keras", "litert", "--output", str(tmp_path / "exported"))
        outcome = loom("export", sentiment_run.run_id, *arguments, cwd=sentiment_run.folder)
    finally:
        code.write_text(saved)
    assert outcome.status == 2
    assert "litert: the outputs differ from the model's own" in outcome.errors
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "names", "outputs", "labels"),
    [
        ("binary", ("no", "yes"), [[0.2], [0.9]], [b"no", b"yes"]),
        ("classes", ("a", "b", "c"), [[0.1, 0.2, 0.7], [0.5, 0.4, 0.1]], [b"c", b"a"]),
        ("labels", ("fast", "red"), [[0.9, 0.6], [0.1, 0.8]], [[b"fast", b"red"], [b"", b"red"]]),
    ],
)
def test_labels_of_every_kind_of_target(kind: Any, names: tuple[str, ...], outputs: Any, labels: Any) -> None:
    import tensorflow as tf

    from loom.export_worker import label_of

    assert label_of(Field("target", kind, names), tf.constant(outputs)).numpy().tolist() == labels


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoder",
    [
        ("elman",),
        ("lstm", "--pooling", "last", "--precision", "mixed_bfloat16"),
        ("lstm", "--pooling", "mean", "--depth", "2"),
        ("gru", "--bidirectional", "--depth", "2"),
        ("transformer", "--units", "8", "--depth", "2"),
    ],
    ids=" ".join,
)
def test_every_encoder_in_every_format(encoder: tuple[str, ...], tmp_path: Path) -> None:
    settings = (*SMALL_SENTIMENT, "--epochs", "1", "--max-words", "96", "--encoder", *encoder)
    outcome = loom("train", "sentiment", *settings, "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    formats = ["keras", "savedmodel", "litert", *(["onnx"] if HAS_ONNX else [])]
    export(outcome.result["run_id"], tmp_path, *formats)
