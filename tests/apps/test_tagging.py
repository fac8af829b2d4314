"""The tagging application: what the model is told of words, every encoder and output, answers, mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from support import TrainedRun, client, loom

from apps import tagging
from apps.tagging import APP, Config
from loom import Data, Ragged, UserError
from loom.data import tagged
from loom.data.sentences import SENTENCE
from loom.data.tagged import TAGS
from loom.train import encoded
from loom.trained import Trained

SMALL = Config(
    min_count=1,
    word_units=6,
    letter_units=4,
    max_letters=7,
    affixes=2,
    affix_units=3,
    units=4,
    heads=2,
    feed_forward_units=6,
)
MODELS = [
    {"encoder": "lstm", "depth": 2},
    {"encoder": "gru", "letters": "lstm", "output": "crf"},
    {"encoder": "transformer", "affixes": 0, "output": "crf"},
    pytest.param({"encoder": "elman", "letters": "none", "bidirectional": False}, marks=pytest.mark.slow),
]
every_model = pytest.mark.parametrize("settings", MODELS, ids=lambda settings: "-".join(map(str, settings.values())))


@pytest.fixture(scope="module")
def data() -> Data:
    return encoded(APP, SMALL, tagging.load(SMALL))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp("tagging")
    # One length of batches, and none that is smaller: every shape is compiled.
    settings = ("--max-train", "576", "--epochs", "5", "--batch-size", "32", "--buckets", "1", "--units", "24")
    outcome = loom("train", "tagging", *settings, "--learning-rate", "0.01", "--dropout", "0.2", "--json", cwd=folder)
    assert outcome.status == 0, outcome.errors
    return TrainedRun(outcome.result["run_id"], folder, outcome)


@pytest.mark.slow
def test_a_run_beats_the_most_frequent_tags(run: TrainedRun) -> None:
    metrics = run.outcome.result["metrics"]
    assert metrics["test_accuracy"] > metrics["baseline_word_accuracy"] + 0.05
    assert (
        metrics["baseline_majority_accuracy"]
        < metrics["baseline_word_accuracy"]
        < metrics["baseline_logistic_accuracy"]
    )
    assert 0 < metrics["test_accuracy_unknown"] < metrics["test_accuracy_known"] <= 1


@pytest.mark.slow
def test_a_saved_model_tags_raw_text_in_a_fresh_process(run: TrainedRun) -> None:
    outcome = loom("predict", run.run_id, "Peter doesn't watch the old house, she does!", "", "--json", cwd=run.folder)
    assert outcome.status == 0, outcome.errors
    answer, empty = map(json.loads, outcome.output.splitlines())
    words = ["Peter", "does", "n't", "watch", "the", "old", "house", ",", "she", "does", "!"]
    assert [word for word, _ in answer["tags"]] == words
    tags = dict(answer["tags"])
    assert (tags["the"], tags[","], tags["!"]) == ("DET", "PUNCT", "PUNCT")
    assert empty == {"tags": []}


@pytest.mark.slow
def test_the_report_shows_sentences_and_confusions(run: TrainedRun) -> None:
    names = {Path(file.path).name for file in client(run.folder).list_artifacts(run.run_id, "report")}
    assert {"sentences.png", "sentences.json", "confusion_matrix.png"} <= names


def test_words_and_tags_stand_beside_each_other(data: Data) -> None:
    for split in data.splits.values():
        words, tags = split.inputs["words"], split.targets[TAGS]
        np.testing.assert_array_equal(words.splits, tags.splits)
        assert split.inputs["letters"].values.shape == (len(tags.values), 7)
        np.testing.assert_array_equal(split.inputs["shapes"].splits, tags.splits)
    vocabulary = data.spec.input(SENTENCE).vocabulary
    first = tagged.words_of(data.test.raw[SENTENCE][0])
    expected = [vocabulary.index(word) if word in vocabulary else 1 for word in map(tagged.normalized, first)]
    assert data.test.inputs["words"].take(np.array([0])).values.tolist() == expected
    assert 0.05 < (data.test.inputs["words"].values == tagging.UNKNOWN_WORD).mean() < 0.3
    assert not (data.train.inputs["words"].values == tagging.UNKNOWN_WORD).any()
    fewer = tagging.load(replace(SMALL, min_count=3)).spec.input(SENTENCE).vocabulary
    assert fewer[:2] == vocabulary[:2]
    assert 100 < len(fewer) < len(vocabulary) / 2


def padded(data: Data, count: int, extra: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rows = np.arange(count)
    length = int(data.train.lengths[rows].max()) + extra
    inputs = {name: column.padded(rows, length) for name, column in data.train.inputs.items()}
    return inputs, {TAGS: data.train.targets[TAGS].padded(rows, length)}


@every_model
def test_every_parameter_moves_in_one_step_and_padding_changes_nothing(data: Data, settings: dict) -> None:
    config = replace(SMALL, **settings)
    model = tagging.build(config, data.spec)
    model.compile(keras.optimizers.SGD(1.0), tagging.loss(config, data.spec), run_eagerly=True, jit_compile=False)
    few, more = (padded(data, 4, extra) for extra in (0, 3))
    losses = [model.evaluate(*batch, verbose=0) for batch in (few, more)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    valid = few[0]["words"] > 0
    best = [np.array(model(batch[0])["best"])[:, : valid.shape[1]][valid] for batch in (few, more)]
    np.testing.assert_array_equal(*best)
    before = [np.array(weight) for weight in model.trainable_weights]
    model.train_on_batch(*padded(data, 32, 0))
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert not np.array_equal(np.array(weight), old), weight.path


def test_scores_are_of_all_words_alike(data: Data) -> None:
    classes = data.spec.target(TAGS).vocabulary
    truth = data.test.targets[TAGS]
    best = truth.padded(np.arange(len(truth)), int(truth.lengths.max()) + 2)
    score = tagging.evaluate(SMALL, data)
    assert score(data.test, {"best": best})["accuracy"] == 1
    best[0, : truth.lengths[0]] = (best[0, : truth.lengths[0]] + 1) % len(classes)
    assert score(data.test, {"best": best})["accuracy"] == pytest.approx(1 - truth.lengths[0] / len(truth.values))


def test_names_are_entities_in_answers_and_scores() -> None:
    config = replace(SMALL, task="ner")
    data = tagging.load(config)
    assert APP.resolve("objective", config, data.spec) == "val_f1"
    trained = Trained(APP, config, data.spec, tagging.build(config, data.spec))
    answers = trained.predict(pd.DataFrame({SENTENCE: ["Mr. Ravi Zouton walks to New Brinley, often.", "Why?"]}))
    words = ["Mr.", "Ravi", "Zouton", "walks", "to", "New", "Brinley", ",", "often", "."]
    assert [word for word, _ in answers[0]["tags"]] == words
    found = tagged.entities([tag for _, tag in answers[0]["tags"]])
    assert answers[0]["entities"] == [[" ".join(words[start:end]), kind] for kind, start, end in found]
    accents = trained.predict(pd.DataFrame({SENTENCE: ["Cafe\u0301s"]}))  # a letter and a mark, as some keyboards write
    assert [word for word, _ in accents[0]["tags"]] == ["Caf\u00e9s"]
    test = encoded(APP, config, data.map_splits(lambda split: split.take(np.arange(20)))).test
    best = test.targets[TAGS].padded(np.arange(20), int(test.lengths.max()))
    scores = tagging.evaluate(config, data)(test, {"best": best})
    assert (scores["precision"], scores["recall"], scores["f1"]) == (1, 1, 1)


def test_tags_that_only_other_parts_have_are_told(tmp_path: Path) -> None:
    for part, tag in {"train": "W", "dev": "Y", "test": "Z"}.items():
        (tmp_path / f"{part}.tsv").write_text(f"one\tX\ntwo\t{tag}\n\n" * 9)
    data = tagging.load(replace(SMALL, data=str(tmp_path)))
    assert data.spec.target(TAGS).vocabulary == ("W", "X", "Y", "Z")
    assert data.notes[-1] == "no training sentence has the tags Y, Z"
    assert isinstance(data.test.targets[TAGS], Ragged)
    assert data.test.targets[TAGS].values[:2].tolist() == [1, 3]


def test_one_tag_is_nothing_to_learn(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("one\tX\n\n" * 9)
    with pytest.raises(UserError, match="all words have the tag 'X'"):
        tagging.load(replace(SMALL, data=str(tmp_path / "a.tsv")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "tfds:conll2003"}, "--data tfds:conll2003: name a file"),
        ({"data": "missing.conllu"}, "--data missing.conllu: no such file"),
        ({"units": 0}, "--units 0"),
        ({"letter_units": 7}, "--letter-units 7: must be even"),
        ({"encoder": "transformer", "bidirectional": False}, "--bidirectional False: needs a recurrent"),
        ({"dropout": 1.0}, "--dropout 1.0"),
    ],
)
def test_mistakes_are_one_line(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tagging.load(Config(**settings))


def test_the_search_space_names_settings() -> None:
    import keras_tuner

    replace(Config(), **tagging.space(keras_tuner.HyperParameters()))


@pytest.mark.slow
def test_the_search_space_runs(tmp_path: Path) -> None:
    settings = ("--max-train", "200", "--epochs", "1", "--trials", "2", "--no-final")
    outcome = loom("tune", "tagging", *settings, "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
