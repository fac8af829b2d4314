"""The translation application and its engine: data, every network, decoding, metrics, and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from support import TrainedRun, clean_environment, loom

from apps import translation
from apps.translation import APP, Config
from loom import Data, UserError
from loom.data import hindi
from loom.data.pairs import TARGET
from loom.data.pipeline import Batches, Buckets, Ragged
from loom.data.tokens import END, START
from loom.dictionary import Dictionary
from loom.seq2seq import PREVIOUS, previous_tokens
from loom.trained import Trained
from loom.translator import Translator

FLAGS = {
    "max_train": 200, "epochs": 1, "units": 8, "heads": 2, "depth": 1, "feed_forward_units": 8, "buckets": 1,
    "vocabulary_size": 400, "max_length": 60, "batch_size": 32, "jit": "off", "beam_width": 2,
    "test_fraction": 0.01,
}  # fmt: skip
SMALL = Config(**FLAGS)  # type: ignore[arg-type]
SENTENCES = ["The girl is reading a new book.", "", "We will buy a horse."]


@pytest.fixture(scope="module")
def data() -> Data:
    return translation.load(SMALL)


NETWORKS = [
    {"model": "transformer", "depth": 2},
    {"model": "lstm", "attention": "additive", "depth": 2},
    pytest.param({"model": "gru", "attention": "multiplicative", "bidirectional": False}, marks=pytest.mark.slow),
    pytest.param({"model": "lstm", "attention": "none", "depth": 2}, marks=pytest.mark.slow),
    pytest.param({"shared_vocabulary": False, "tie_output": False, "tokens": "words"}, marks=pytest.mark.slow),
    pytest.param({"scheduled_sampling": 0.5}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("settings", NETWORKS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_every_parameter_moves_and_steps_with_a_cache_say_what_whole_sequences_say(data: Data, settings: dict) -> None:
    config = replace(SMALL, **settings)
    if not {"shared_vocabulary", "tokens"}.isdisjoint(settings):
        data = translation.load(config)
    model = translation.build(config, data.spec)
    rows = np.arange(8)
    inputs = {name: column.padded(rows, 40) for name, column in data.train.inputs.items()}
    targets = {name: column.padded(rows, 40) for name, column in data.train.targets.items()}
    model.compile(keras.optimizers.SGD(1.0), translation.loss(config, data.spec), jit_compile=False, run_eagerly=True)
    before = [np.array(weight) for weight in model.trainable_weights]
    model.train_on_batch(inputs, targets)
    still = [
        weight.path
        for weight, old in zip(model.trainable_weights, before, strict=True)
        if np.array_equal(np.array(weight), old)
    ]
    assert not still

    column = data.spec.target("target")
    short = replace(column, statistics={**column.statistics, "most_tokens": 12.0})
    translator = Translator(Trained(APP, config, replace(data.spec, targets=(short,)), model))
    found = translator._decode_greedy(keras.ops.convert_to_tensor(inputs["source"]))  # eagerly: nothing is traced
    tokens = Ragged.from_padded(found.tokens.numpy())
    steps = int(tokens.lengths.max())
    previous = previous_tokens(tokens).padded(rows, steps)
    logits = np.array(model({"source": inputs["source"], PREVIOUS: previous})["target"], "float64")
    logits[:, :, :3] = -np.inf  # padding, the unknown token and the start are never said
    likely = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    said = tokens.padded(rows, steps)
    assert (likely.argmax(axis=-1) == said)[said != 0].all()
    scores = np.take_along_axis(likely, said[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(found.scores, np.where(said != 0, scores, 0).sum(axis=1), rtol=1e-4)


def test_scheduled_sampling_reads_its_own_answers_at_the_end_of_training(data: Data) -> None:
    model = translation.build(replace(SMALL, scheduled_sampling=1.0, dropout=0.0), data.spec)
    inputs = {name: column.padded(np.arange(8), 40) for name, column in data.train.inputs.items()}
    truth, begin = (model(inputs, training=training)[TARGET].numpy() for training in (False, True))
    np.testing.assert_allclose(begin, truth, atol=1e-5)
    next(variable for variable in model.variables if variable.path.endswith("taken")).assign(1e9)
    end = model(inputs, training=True)[TARGET].numpy()
    np.testing.assert_allclose(end[:, 0], truth[:, 0], atol=1e-5)  # nothing was said before
    assert (np.abs(end[:, 2] - truth[:, 2]).max(axis=-1) > 1e-3).any()


def test_padding_of_the_source_changes_nothing(data: Data) -> None:
    model = translation.build(replace(SMALL, model="gru"), data.spec)
    source, previous = np.array([[7, 8, END]], "int32"), np.array([[START, 9]], "int32")
    outputs = [
        np.array(model({"source": np.pad(source, ((0, 0), (0, pad))), PREVIOUS: previous})["target"]) for pad in (0, 5)
    ]
    np.testing.assert_allclose(*outputs, atol=1e-5)


def test_the_decoder_reads_the_token_before_each_token(data: Data) -> None:
    target, previous = data.train.targets["target"], data.train.inputs[PREVIOUS]
    for row in range(3):
        tokens, read = (column.take(np.array([row])).values.tolist() for column in (target, previous))
        assert read == [START, *tokens[:-1]]
        assert tokens[-1] == END


def test_pairs_with_too_many_tokens_are_left_out_and_named() -> None:
    data = translation.load(replace(SMALL, max_length=12, max_train=0))
    assert data.train.lengths.max() <= 12
    left_out = [entry for entry in data.bad if "--max-length" in entry.why]
    assert f"{len(left_out)} of" in data.notes[-1]
    assert len(left_out) + len(data.train) == 4000 - len(data.validation) - len(data.test)


def test_the_sample_agrees_in_gender_and_number_and_repeats_nothing() -> None:
    pairs = hindi.sentences(600)
    assert pairs["source"].is_unique
    assert pairs.equals(hindi.sentences(1000).head(600))
    written = dict(zip(pairs["source"], pairs["target"], strict=True))
    women = [target for source, target in written.items() if source.startswith("The women are ")]
    assert women
    assert all("औरतें" in target and "रही हैं" in target for target in women)
    questions = [target for source, target in written.items() if source.endswith("?")]
    assert all(target.startswith("क्या ") and target.endswith("?") for target in questions)


def test_a_dictionary_finds_the_words_that_belong_together() -> None:
    sources = ["the red house", "the house", "a red car", "the car", "a house"]
    targets = ["das rote haus", "das haus", "ein rotes auto", "das auto", "ein haus"]
    dictionary = Dictionary(sources, targets)
    assert dictionary.translate("the house") == ["das", "haus"]
    assert dictionary.translate("a xyzzy car") == ["ein", "xyzzy", "auto"]


def test_a_dictionary_is_learned_from_the_first_pairs_of_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loom.dictionary.MOST_PAIRS", 3)
    assert Dictionary(["the", "a", "no", "house"], ["das", "ein", "kein", "haus"]).translate("no house") == [
        "kein",
        "house",
    ]
    assert Dictionary(["the house"], ["das haus"]).translate("the house") != ["the", "house"]


def test_copying_is_a_weak_baseline_and_a_dictionary_a_stronger_one(data: Data) -> None:
    found = translation.baselines(SMALL, data)
    assert found["copy"]["bleu"] < 2
    assert found["copy"]["chrf"] + 20 < found["dictionary"]["chrf"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"units": 9}, "--units 9: must be a multiple of --heads 2"),
        ({"regularization": "dropout"}, "--regularization dropout: is not used here"),
        ({"top_p": 0.0}, "--top-p 0.0"),
        ({"model": "lstm", "units": 7}, "--units 7: must be even"),
        ({"attention": "none"}, "--attention none: chooses that of --model lstm and gru"),
        ({"bidirectional": False}, "--bidirectional False: is for --model lstm and gru"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(settings: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        replace(SMALL, **settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A run of the command."""
    folder = tmp_path_factory.mktemp("translation")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in FLAGS.items()]
    outcome = loom("train", "translation", *flags, "--json", cwd=folder)
    assert outcome.status == 0, outcome.errors
    return TrainedRun(outcome.result["run_id"], folder, outcome)


@pytest.mark.slow
def test_the_command_measures_its_translations(trained: TrainedRun) -> None:
    metrics = trained.outcome.result["metrics"]
    for name in ("test_bleu", "test_chrf", "test_greedy_bleu", "test_loss", "test_accuracy"):
        assert name in metrics
    assert metrics["val_loss"] > 0
    assert metrics["baseline_dictionary_chrf"] > metrics["baseline_copy_chrf"]
    report = trained.model.parent / "report"
    rows = json.loads((report / "translations.json").read_text("utf-8"))
    assert len(rows) == 40
    assert rows[0].keys() == {"source", "reference", "beam", "greedy"}
    assert (report / "attention.png").exists()


@pytest.mark.slow
def test_a_saved_model_translates_raw_strings_one_after_the_other(trained: TrainedRun) -> None:
    """`chat` asks a fresh process, line by line; an empty line has its answer too."""
    done = subprocess.run(
        [Path(sys.executable).with_name("loom"), "chat", trained.run_id],
        input="\n".join(SENTENCES) + "\n",
        cwd=trained.folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    model = Trained.open(trained.model / "artifacts" / "trained")
    assert done.stdout.split("\n")[:-1] == [answer.text for answer in Translator.of(model).write(SENTENCES)]


@pytest.mark.slow
def test_predict_and_export(trained: TrainedRun) -> None:
    answer = loom("predict", trained.run_id, SENTENCES[0], "--json", cwd=trained.folder)
    assert answer.result.keys() == {"translation", "score"}
    refused = loom("export", trained.run_id, cwd=trained.folder)
    assert refused.status == 2
    assert "translation cannot be exported: its answers are decoded token by token" in refused.errors
    assert len(refused.errors.splitlines()) == 1


@pytest.mark.slow
def test_batches_by_both_lengths_pad_little(real_data: Path) -> None:
    """Multi30k, 16 shapes: 0.111."""
    file = real_data / "translation" / "multi30k.en-de.train.tsv"
    config = Config(data=str(file), lower=True, max_length=60)
    train = translation.load(config).train
    assert len(train) == 28_999  # one line holds three texts
    buckets = Buckets.fit(train.inputs, train.targets, config.buckets)
    assert len(buckets.shapes) <= 16
    plan = Batches(train.inputs, train.targets, config.batch_size, buckets, seed=0).plan()
    computed = sum(len(rows) * sum(shape) for rows, shape in plan)
    read = train.inputs["source"].lengths.sum() + train.targets["target"].lengths.sum()
    assert 1 - read / computed < 0.13


@pytest.mark.slow
def test_the_grammar_is_learned(tmp_path: Path) -> None:
    outcome = loom("train", "translation", "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors
    metrics = outcome.result["metrics"]
    assert metrics["test_bleu"] > 85
    assert metrics["test_bleu"] > metrics["baseline_dictionary_bleu"] + 30


@pytest.mark.slow
def test_a_search_space_that_runs(tmp_path: Path) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in FLAGS.items() if name != "units"]
    space = ["--space", "units=8,16", "--space", "model=transformer,gru", "--trials", "2", "--no-final"]
    outcome = loom("tune", "translation", *flags, *space, "--json", cwd=tmp_path)
    assert outcome.status == 0, outcome.errors


@pytest.mark.slow
@pytest.mark.parametrize("how", ["beam", "greedy", "sampling"])
def test_answers_do_not_depend_on_what_is_asked_beside(trained: TrainedRun, how: str) -> None:
    files = trained.model / "artifacts" / "trained"
    together = Translator(Trained.open(files)).write(SENTENCES, how)
    alone = Translator(Trained.open(files))
    assert [alone.write([text], how)[0].text for text in SENTENCES] == [answer.text for answer in together]
