"""The sentiment application: data, every encoder, answers, explanations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

import layers
from apps import sentiment
from apps.sentiment import APP, Config
from loom import Data, UserError
from loom.data.encode import Encoder
from loom.trained import Trained

SMALL = Config(vocabulary_size=500, pair_buckets=1024, units=4, embedding_units=6, max_words=40)


@pytest.fixture(scope="module")
def data() -> Data:
    return sentiment.load(SMALL)


@pytest.fixture(scope="module")
def encode(data: Data) -> Encoder:
    return Encoder(sentiment.preprocess(SMALL, data.spec), data.spec)


def test_the_parts_keep_the_shares_of_the_classes(data: Data) -> None:
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 2160, "validation": 240, "test": 600}
    shares = [split.targets["sentiment"].mean() for split in data.splits.values()]
    assert max(shares) - min(shares) < 0.01


def test_no_example_is_in_two_parts(data: Data) -> None:
    """The grammar may write a short text twice, but not as many as a leak would give."""
    train, test = set(data.train.raw["text"]), set(data.test.raw["text"])
    assert len(train & test) < 0.02 * len(test)


def test_the_vocabulary_comes_from_the_training_texts_most_frequent_first(data: Data) -> None:
    vocabulary = data.spec.input("text").vocabulary
    assert vocabulary[:2] == ("", "[UNK]")
    assert 150 < len(vocabulary) < 500  # the grammar has no more words
    assert vocabulary.index("the") < vocabulary.index("not")


def test_words_become_their_place_in_the_vocabulary(data: Data, encode: Encoder) -> None:
    vocabulary = data.spec.input("text").vocabulary
    words = encode(pd.DataFrame({"text": ["The, NOT the xyzzy!", ""]}))["words"]
    expected = [vocabulary.index(word) for word in ("the", "not", "the")] + [1, vocabulary.index("!")]
    assert words.values.tolist() == expected
    assert words.lengths.tolist() == [5, 0]


ENCODERS = [
    {"encoder": "bag"},
    {"encoder": "bag", "pair_buckets": 0},
    {"encoder": "elman"},
    {"encoder": "gru", "pooling": "mean", "mask_padding": False},
    {"encoder": "transformer", "depth": 2, "units": 6, "dropout": 0.1},
    *(
        pytest.param(settings, marks=pytest.mark.slow)
        for settings in (
            {"encoder": "lstm", "bidirectional": True, "recurrent_dropout": 0.2, "dropout": 0.2},
            {"encoder": "gru", "depth": 2, "pooling": "last"},
            {"encoder": "gru", "pooling": "root", "bidirectional": True, "segment": 7, "pair_units": 3},
            {"encoder": "transformer", "pooling": "root", "segment": 7, "pair_units": 3, "units": 5, "heads": 2},
        )
    ),
]


@pytest.mark.parametrize("settings", ENCODERS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_every_parameter_of_every_encoder_moves_in_one_step(data: Data, encode: Encoder, settings: dict) -> None:
    config = replace(SMALL, **settings)
    model = sentiment.build(config, data.spec)
    rows = np.arange(64)
    words = encode(data.train.raw.head(64))["words"].padded(rows, 40)
    words[:, :12] = np.arange(12)  # so that every kind of row is there
    model.compile(keras.optimizers.SGD(1.0), sentiment.loss(config, data.spec), jit_compile=False)
    before = [np.array(weight) for weight in model.trainable_weights]
    model.fit({"words": words}, {"sentiment": data.train.targets["sentiment"][:64]}, epochs=1, verbose=0)
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert not np.array_equal(np.array(weight), old), weight.path


PLAIN = {"encoder": "lstm", "pooling": "last"}
ATTENTION = {"encoder": "transformer", "pooling": "mean", "units": 6}
SEGMENTED = {"encoder": "gru", "pooling": "root", "bidirectional": True, "segment": 7, "pair_units": 3}


@pytest.mark.parametrize(
    ("settings", "masked", "changes"),
    [
        (PLAIN, True, False),
        (PLAIN, False, True),
        (SEGMENTED, True, False),
        (ATTENTION, True, False),
        (ATTENTION, False, True),
    ],
)
def test_padding_changes_the_answer_only_without_a_mask(
    data: Data, settings: dict, masked: bool, changes: bool
) -> None:
    model = sentiment.build(replace(SMALL, mask_padding=masked, **settings), data.spec)
    words = np.random.default_rng(0).integers(1, 150, (4, 10)).astype(np.int32)
    outputs = [np.array(model({"words": np.pad(words, ((0, 0), (0, pad)))})["sentiment"]) for pad in (0, 15)]
    assert np.allclose(*outputs, atol=1e-6) != changes


def test_a_segment_ends_what_a_word_can_change(data: Data) -> None:
    """Of 12 words read 5 at a time, the eighth is read with the sixth to the tenth and no others."""
    model = sentiment.build(replace(SMALL, encoder="gru", pooling="root", bidirectional=True, segment=5), data.spec)
    layer = next(layer for layer in model.layers if isinstance(layer, layers.Segmented))
    states = keras.Model(model.input, layer.output)
    words = np.arange(2, 14, dtype=np.int32)[None]
    changed = np.where(words == words[0, 7], 20, words)
    differs = np.any(np.array(states({"words": words})) != np.array(states({"words": changed})), axis=(0, 2))
    assert np.flatnonzero(differs).tolist() == [5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    "settings", [{"encoder": "bag"}, {"encoder": "gru", "pooling": "last"}], ids=lambda settings: settings["encoder"]
)
def test_segments_without_a_layer_or_pooling_for_them_are_refused(settings: dict) -> None:
    with pytest.raises(UserError, match="--segment 5: needs"):
        replace(SMALL, segment=5, **settings)


def test_attention_has_no_last_state_to_pool() -> None:
    with pytest.raises(UserError, match="--pooling last: needs"):
        replace(SMALL, encoder="transformer", pooling="last")


def test_three_classes_and_ratings_have_their_own_outputs(tmp_path: Path) -> None:
    rows = "".join(f"text number {n},{('bad', 'fair', 'good')[n % 3]},{n % 10}\n" for n in range(90))
    (tmp_path / "texts.csv").write_text("text,label,rating\n" + rows)
    config = replace(SMALL, data=str(tmp_path / "texts.csv"))
    classes = sentiment.load(config).spec.target("sentiment")
    assert (classes.kind, classes.vocabulary) == ("classes", ("bad", "fair", "good"))
    rating = sentiment.load(replace(config, target="rating")).spec.target("sentiment")
    assert rating.kind == "number"
    assert rating.statistics["mean"] == pytest.approx(4.5, abs=0.5)  # of the training part


def test_a_class_called_none_is_a_class(tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("text,label\n" + "words here,none\nother words,some\n" * 20)
    spec = sentiment.load(replace(SMALL, data=str(tmp_path / "texts.csv"))).spec
    assert spec.target("sentiment").vocabulary == ("none", "some")


def test_rows_without_a_text_or_label_are_quarantined_never_dropped_silently(tmp_path: Path) -> None:
    rows = "good film,pos\nbad film,neg\n" * 50 + ",pos\nno label,\n"
    (tmp_path / "texts.csv").write_text("text,label\n" + rows)
    config = replace(SMALL, data=str(tmp_path / "texts.csv"))
    with pytest.raises(UserError, match="2 of 102 rows"):
        sentiment.load(config)
    data = sentiment.load(replace(config, max_bad=0.05))
    assert [entry.where for entry in data.bad] == ["texts.csv:102", "texts.csv:103"]
    assert [entry.why for entry in data.bad] == ["no value in column 'text'", "no value in column 'label'"]


def test_a_folder_per_class_is_read(tmp_path: Path) -> None:
    for label in ("good", "bad"):
        (tmp_path / label).mkdir()
        for number in range(20):
            (tmp_path / label / f"{number}.txt").write_text(f"a {label} thing, number {number}")
    data = sentiment.load(replace(SMALL, data=str(tmp_path)))
    assert data.spec.target("sentiment").vocabulary == ("bad", "good")
    assert sum(map(len, data.splits.values())) == 40


def test_a_class_that_training_never_saw_is_an_error(tmp_path: Path) -> None:
    for part, labels in {"train": ("good", "bad"), "test": ("good", "ugly")}.items():
        for label in labels:
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(12):
                (tmp_path / part / label / f"{number}.txt").write_text(f"a {label} thing {number}")
    with pytest.raises(UserError, match="'ugly'"):
        sentiment.load(replace(SMALL, data=str(tmp_path)))


def test_contributions_say_how_far_the_answer_falls_without_the_word(data: Data) -> None:
    trained = Trained(APP, SMALL, data.spec, sentiment.build(SMALL, data.spec))
    text = "the not good film"
    ((heading, words, contributions),) = sentiment.explain(trained, [text])
    label, probability = heading.split()
    assert words == text.split()
    for place, contribution in enumerate(contributions):
        without = " ".join("xyzzy" if index == place else word for index, word in enumerate(words))
        (answer,) = trained.predict(pd.DataFrame({"text": [without]}))
        rest = answer["probability"] if answer["label"] == label else 1 - answer["probability"]
        assert contribution == pytest.approx(float(probability) - rest, abs=2e-3)


@pytest.mark.parametrize("keep", ["head", "tail", "ends"])
def test_shortened_texts_are_explained_by_the_words_that_were_kept(data: Data, keep: str) -> None:
    config = replace(SMALL, max_words=5, keep=keep)
    trained = Trained(APP, config, data.spec, sentiment.build(config, data.spec))
    ((_, words, contributions),) = sentiment.explain(trained, ["one two three four five six seven"])
    kept = {"head": "one two three four five", "tail": "three four five six seven", "ends": "one two three six seven"}
    assert words == kept[keep].split()
    assert len(contributions) == 5


def test_the_baselines_know_nothing_or_are_strong(data: Data) -> None:
    found = sentiment.baselines(SMALL, data)
    assert found["majority"]["accuracy"] == pytest.approx(0.507, abs=0.01)
    assert found["tfidf"]["accuracy"] > 0.88


def test_the_rating_baselines_are_errors_in_points(data: Data) -> None:
    config = replace(SMALL, target="rating")
    found = sentiment.baselines(config, sentiment.load(config))
    assert found["tfidf"]["mae"] < 0.75 * found["mean"]["mae"]


def test_the_search_space_names_settings_and_builds() -> None:
    import keras_tuner

    values = sentiment.space(keras_tuner.HyperParameters())
    replace(Config(), **values)
