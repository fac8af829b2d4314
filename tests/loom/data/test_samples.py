import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from loom.data.samples import passengers, reviews
from loom.data.tables import column_kind

CATEGORIES = ["gender", "cabin_class", "embarked"]
NUMBERS = ["age", "ticket_price", "relatives", "day"]


@pytest.fixture(scope="module")
def review_frame():
    return reviews()


@pytest.fixture(scope="module")
def passenger_frame():
    return passengers()


def review_accuracy(texts, labels, longest_ngram):
    words = TfidfVectorizer(ngram_range=(1, longest_ngram), token_pattern=r"\w+")
    return cross_val_score(make_pipeline(words, LogisticRegression(C=10, max_iter=2000)), texts, labels, cv=4).mean()


def passenger_score(frame, target, model):
    inputs = frame.assign(day=pd.to_datetime(frame["boarding_date"]).dt.day, embarked=frame["embarked"].fillna("?"))
    columns = make_column_transformer(
        (OneHotEncoder(sparse_output=False), CATEGORIES),
        (make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), NUMBERS),
        (CountVectorizer(), "remark"),
        sparse_threshold=0,
    )
    return cross_val_score(make_pipeline(columns, model), inputs, frame[target], cv=4).mean()


@pytest.mark.parametrize("make", [reviews, passengers])
def test_a_seed_names_one_sample(make):
    pd.testing.assert_frame_equal(make(50, seed=3), make(50, seed=3))
    assert not make(50, seed=3).equals(make(50, seed=4))


@pytest.mark.parametrize("make", [reviews, passengers])
def test_a_larger_sample_begins_with_the_smaller_one(make):
    pd.testing.assert_frame_equal(make(40), make(90).head(40))


@pytest.mark.parametrize("make", [reviews, passengers])
def test_making_a_sample_leaves_the_global_random_state_alone(make):
    np.random.seed(5)
    expected = np.random.RandomState(5).rand()
    make(20)
    assert np.random.rand() == expected


def test_samples_need_neither_tensorflow_nor_keras_nor_mlflow():
    code = (
        "import sys, importlib.util as u\n"
        "spec = u.spec_from_file_location('samples', sys.argv[1]); module = u.module_from_spec(spec)\n"
        "spec.loader.exec_module(module); assert 'pandas' not in sys.modules\n"
        "module.reviews(5); module.passengers(5)\n"
        "assert not {'tensorflow', 'keras', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, sys.modules["loom.data.samples"].__file__], check=True)


def test_samples_are_made_in_a_moment():
    start = time.process_time()
    reviews()
    passengers()
    assert time.process_time() - start < 3


def test_reviews_have_the_promised_columns(review_frame):
    assert list(review_frame.columns) == ["text", "label", "rating"]
    assert len(review_frame) == 3000
    assert set(review_frame["label"]) == {"negative", "positive"}
    assert review_frame["rating"].between(1, 10).all()
    assert set(review_frame["rating"]) == set(range(1, 11))
    assert all(isinstance(text, str) for text in review_frame["text"])
    assert column_kind(review_frame["text"]) == "text"


def test_reviews_are_positive_from_rating_six_on(review_frame):
    assert ((review_frame["rating"] >= 6) == (review_frame["label"] == "positive")).all()


def test_review_classes_are_balanced(review_frame):
    assert 0.47 < (review_frame["label"] == "positive").mean() < 0.53


def test_reviews_are_all_different_and_of_varying_length(review_frame):
    assert review_frame["text"].is_unique
    words = review_frame["text"].str.split().str.len()
    assert words.min() >= 5
    assert words.max() <= 120
    assert words.quantile(0.9) > 2 * words.quantile(0.1)
    sentences = review_frame["text"].str.count(r"[.!]+(?: |$)")
    assert sentences.min() == 1
    assert sentences.max() == 8


HARD = (
    *(r"\bwas not \w+", r"\bfar from\b", r"\bnever\b", r"\bNobody could call\b", r"\bAlthough\b.*, ", r", but "),
    *(r"!!!", r"\.\.\.", r"\bextremely\b", r"\bIt was raining\b", r"\b[A-Z]{4,} [A-Z]{3,}\b"),
    *(r"\bplot\b", r"\bprose\b", r"\bsoup\b"),
)


@pytest.mark.parametrize("phrase", HARD)
def test_reviews_contain_what_makes_them_hard(review_frame, phrase):
    assert review_frame["text"].str.contains(phrase).mean() > 0.01


def test_the_later_half_of_a_contrast_carries_more_weight():
    frame = reviews(15_000)
    short = frame[frame["text"].str.fullmatch(r"(?:Although|While|Even though) [^.!]*, [^.!]*[.!]+")]
    later = short["text"].str.split(", ").str[-1]
    praised = later.str.contains("good|superb|brilliant|wonderful|charming|clever|solid|decent|delightful")
    negated = later.str.contains(r"\b(?:not|never|far|anything|no means|nobody)\b", case=False)
    plain = short[praised & ~negated]
    assert len(plain) >= 10
    assert (plain["label"] == "positive").mean() > 0.9


def test_ratings_are_seldom_near_the_border(review_frame):
    assert review_frame["rating"].isin([5, 6]).mean() < 0.3


def test_reviews_are_as_hard_as_documented(review_frame):
    single = review_accuracy(review_frame["text"], review_frame["label"], 1)
    pairs = review_accuracy(review_frame["text"], review_frame["label"], 2)
    assert single == pytest.approx(0.82, abs=0.02)
    assert pairs == pytest.approx(0.91, abs=0.02)
    assert round((review_frame["label"] == review_frame["label"].mode()[0]).mean(), 2) == 0.51


def test_the_order_of_the_words_matters(review_frame):
    texts, labels = review_frame["text"], review_frame["label"]
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=10, max_iter=2000))
    model.fit(texts[:2000], labels[:2000])
    rng = np.random.default_rng(0)
    shuffled = [" ".join(rng.permutation(text.split())) for text in texts[2000:]]
    assert model.score(shuffled, labels[2000:]) < model.score(texts[2000:], labels[2000:]) - 0.05


def test_passengers_have_columns_of_every_kind(passenger_frame):
    kinds = {name: column_kind(passenger_frame[name]) for name in passenger_frame}
    assert kinds == {
        "gender": "category",
        "cabin_class": "category",
        "age": "number",
        "ticket_price": "number",
        "embarked": "category",
        "relatives": "number",
        "boarding_date": "date",
        "remark": "text",
        "survived": "number",
        "days_to_recover": "number",
        "deck": "category",
    }
    assert len(passenger_frame) == 1500


def test_passengers_lack_the_documented_values(passenger_frame):
    missing = passenger_frame.isna().mean()
    assert missing["age"] == pytest.approx(0.15, abs=0.03)
    assert missing["ticket_price"] == pytest.approx(0.02, abs=0.015)
    assert missing["embarked"] == pytest.approx(0.015, abs=0.01)
    assert missing["boarding_date"] == pytest.approx(0.04, abs=0.02)
    others = missing.drop(["age", "ticket_price", "embarked", "boarding_date"])
    assert (others == 0).all()


def test_passenger_values_are_in_their_documented_ranges(passenger_frame):
    assert set(passenger_frame["gender"]) == {"female", "male"}
    assert set(passenger_frame["cabin_class"]) == {"first", "second", "third"}
    assert passenger_frame["age"].dropna().between(1, 80).all()
    assert passenger_frame["relatives"].between(0, 7).all()
    assert passenger_frame["boarding_date"].dropna().str.fullmatch(r"1907-03-\d\d").all()
    assert set(passenger_frame["survived"]) == {0, 1}
    assert set(passenger_frame["deck"]) == {"upper", "middle", "lower"}
    assert passenger_frame["days_to_recover"].min() >= 1
    assert passenger_frame["survived"].mean() == pytest.approx(1 / 3, abs=0.03)
    assert passenger_frame["deck"].value_counts(normalize=True).min() > 0.15


def test_ticket_prices_are_skewed(passenger_frame):
    prices = passenger_frame["ticket_price"]
    assert prices.mean() > 1.4 * prices.median()


@pytest.mark.slow
def test_survival_is_as_hard_as_documented(passenger_frame):
    linear = passenger_score(passenger_frame, "survived", LogisticRegression(max_iter=2000))
    boosted = passenger_score(passenger_frame, "survived", GradientBoostingClassifier(random_state=0))
    assert linear == pytest.approx(0.80, abs=0.015)
    assert boosted == pytest.approx(0.84, abs=0.015)
    assert boosted > linear + 0.015


@pytest.mark.slow
def test_days_to_recover_are_as_hard_as_documented(passenger_frame):
    linear = passenger_score(passenger_frame, "days_to_recover", Ridge())
    boosted = passenger_score(passenger_frame, "days_to_recover", GradientBoostingRegressor(random_state=0))
    assert linear == pytest.approx(0.59, abs=0.02)
    assert boosted == pytest.approx(0.78, abs=0.02)


@pytest.mark.slow
def test_the_deck_is_as_hard_as_documented(passenger_frame):
    linear = passenger_score(passenger_frame, "deck", LogisticRegression(max_iter=2000))
    boosted = passenger_score(passenger_frame, "deck", GradientBoostingClassifier(n_estimators=40, random_state=0))
    assert linear == pytest.approx(0.79, abs=0.02)
    assert boosted == pytest.approx(0.80, abs=0.02)


@pytest.mark.slow
def test_remarks_help_to_predict_survival(passenger_frame):
    blank = passenger_frame.assign(remark="nothing")
    with_remarks = passenger_score(passenger_frame, "survived", LogisticRegression(max_iter=2000))
    assert with_remarks > passenger_score(blank, "survived", LogisticRegression(max_iter=2000)) + 0.01
