"""Data sets that need no network: made from a seed, learnable, and with something left for better models to find.

Both are generated row after row from one random stream: the first rows of a larger sample are those of a smaller one.
"""

from __future__ import annotations

import datetime
import math
import random
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

# --- reviews ----------------------------------------------------------------------------------------------------------

_SUBJECTS: dict[str, tuple[str, ...]] = {
    "film": ("plot", "acting", "soundtrack", "camera work", "ending", "dialogue", "opening scene", "lead actor"),
    "book": ("story", "prose", "first chapter", "heroine", "ending", "translation", "dialogue", "narrator"),
    "restaurant": ("soup", "service", "menu", "dessert", "wine list", "waiter", "music", "seafood"),
}

# Strength 1 to 3, from lukewarm to extreme. The words serve every subject: a small sample shows each of them often.
_PRAISE: dict[str, float] = {
    "decent": 1, "pleasant": 1, "good": 1, "solid": 1, "enjoyable": 1.5,
    "charming": 2, "delightful": 2, "clever": 2, "memorable": 2, "impressive": 2,
    "superb": 3, "brilliant": 3, "outstanding": 3, "wonderful": 3,
}  # fmt: skip
_BLAME: dict[str, float] = {
    "mediocre": -1, "bland": -1, "flat": -1, "weak": -1, "tedious": -1.5,
    "dull": -2, "boring": -2, "clumsy": -2, "disappointing": -2, "careless": -2,
    "dreadful": -3, "awful": -3, "terrible": -3, "atrocious": -3,
}  # fmt: skip

_INTENSIFIERS: dict[str, float] = {
    "very": 1.3, "really": 1.3, "extremely": 1.5, "utterly": 1.5, "truly": 1.4,
    "quite": 0.8, "rather": 0.8, "somewhat": 0.6, "slightly": 0.5, "a bit": 0.5,
}  # fmt: skip

# What a negation makes of an adjective's value. In the second group it stands several words before the adjective:
# pairs of words do not see it.
_NEAR_NEGATIONS: dict[str, float] = {
    "The {aspect} was not {adjective}": -0.7,
    "The {aspect} is not {adjective} at all": -1.0,
    "The {aspect} was never {adjective}": -0.9,
    "The {aspect} is far from {adjective}": -0.9,
    "The {aspect} was anything but {adjective}": -1.0,
    "The {aspect} is by no means {adjective}": -0.9,
}
_FAR_NEGATIONS: dict[str, float] = {
    "Nobody could call the {aspect} {adjective}": -0.9,
    "I cannot say that the {aspect} was {adjective}": -0.8,
    "I do not think the {aspect} is {adjective}": -0.8,
    "It is not true that the {aspect} is {adjective}": -0.8,
}
_STATEMENTS: tuple[str, ...] = (
    "The {aspect} is {adjective}",
    "The {aspect} was {adjective}",
    "I found the {aspect} {adjective}",
    "To me the {aspect} seemed {adjective}",
)

# Both orders of the same two opinions occur, and the later one counts: the words alone do not tell which.
_CONTRASTS: tuple[str, ...] = (
    "Although {first}, {second}",
    "Even though {first}, {second}",
    "While {first}, {second}",
    "{first}, but {second}",
    "{first}, yet {second}",
    "{first}; however, {second}",
)
_EARLIER_SHARE, _LATER_SHARE = 0.2, 0.8

_VERDICTS: tuple[tuple[str, float], ...] = (
    ("I would recommend this {subject} to anyone", 2.0),
    ("I would not recommend this {subject} to anyone", -2.0),
    ("I cannot recommend this {subject} enough", 2.5),
    ("I loved the {aspect}", 2.0),
    ("I did not love the {aspect}", -1.0),
    ("I regret every minute of it", -2.5),
    ("I do not regret a minute of it", 2.0),
    ("Nothing about the {aspect} disappointed me", 1.5),
    ("Nothing about the {aspect} pleased me", -1.5),
    ("My friends were pleased with the {aspect}", 1.5),
    ("The {aspect} disappointed me", -1.5),
    ("I would not change a thing about the {aspect}", 2.0),
    ("I would change everything about the {aspect}", -2.0),
)

# Sentences without an opinion on the subject; some use the words of an opinion all the same.
_FILLERS: tuple[str, ...] = (
    "We went on a Tuesday evening after work",
    "My sister had told me about this {subject} last year",
    "It was raining and the bus was late",
    "The weather was awful that day",
    "I had a terrible cold all week",
    "My neighbour, a wonderful person, came along",
    "It was a pleasant walk from the station",
    "I usually do not write about a {subject}",
    "There were about forty people in the room",
    "I paid in cash",
    "A colleague lent me her ticket",
    "We had been talking about {subject}s for hours",
    "The town is rather dull in winter",
    "This was our third {subject} that month",
)

# How often, of all opinions (of all negations for the second): the knobs of how hard the reviews are.
_NEGATED, _FAR = 0.22, 0.15
_CONTRASTED, _SUMMED_UP = 0.12, 0.15
_FAITHFUL = 0.96  # share of a review's opinions that go with its mood

_WORDS_MIN, _WORDS_MAX = 5, 120
_MARGIN = 0.6  # no review whose score is nearer to zero than this: nobody could tell its class
_NOISE = 0.04  # share of the ratings drawn at random; half of them land on the other side


class _Opinion(NamedTuple):
    """A sentence without its full stop, and its value: negative is blame, positive is praise, 0 is neither."""

    text: str
    value: float


def _adjective(rng: random.Random, sign: int) -> tuple[str, float]:
    return rng.choice(list((_PRAISE if sign > 0 else _BLAME).items()))


def _statement(rng: random.Random, aspect: str, sign: int) -> _Opinion:
    """An opinion of the wanted sign on one aspect: plain, intensified or by a negated opposite."""
    if rng.random() < _NEGATED:
        adjective, value = _adjective(rng, -sign)
        negations = _FAR_NEGATIONS if rng.random() < _FAR else _NEAR_NEGATIONS
        template, factor = rng.choice(list(negations.items()))
        return _Opinion(template.format(aspect=aspect, adjective=adjective), value * factor)
    adjective, value = _adjective(rng, sign)
    template = rng.choice(_STATEMENTS)
    if rng.random() < 0.4:
        intensifier, factor = rng.choice(list(_INTENSIFIERS.items()))
        adjective, value = f"{intensifier} {adjective}", value * factor
    return _Opinion(template.format(aspect=aspect, adjective=adjective), value)


def _lower_first(text: str) -> str:
    return text if text.startswith("I ") else text[0].lower() + text[1:]


def _contrast(rng: random.Random, aspects: tuple[str, str], sign: int) -> _Opinion:
    """Two opposite opinions in one sentence, whose sign is that of the later one."""
    earlier = _statement(rng, aspects[0], -sign)
    later = _statement(rng, aspects[1], sign)
    template = rng.choice(_CONTRASTS)
    text = template.format(first=_lower_first(earlier.text), second=_lower_first(later.text))
    return _Opinion(text[0].upper() + text[1:], _EARLIER_SHARE * earlier.value + _LATER_SHARE * later.value)


def _verdict(rng: random.Random, subject: str, aspect: str, sign: int) -> _Opinion:
    template, value = rng.choice([verdict for verdict in _VERDICTS if verdict[1] * sign > 0])
    return _Opinion(template.format(subject=subject, aspect=aspect), value)


def _opinion(rng: random.Random, subject: str, sign: int) -> _Opinion:
    first, second = rng.sample(_SUBJECTS[subject], 2)
    kind = rng.random()
    if kind < _CONTRASTED:
        return _contrast(rng, (first, second), sign)
    if kind < _CONTRASTED + _SUMMED_UP:
        return _verdict(rng, subject, first, sign)
    return _statement(rng, first, sign)


def _punctuate(rng: random.Random, opinion: _Opinion) -> str:
    """End the sentence; strong opinions shout now and then."""
    text = opinion.text
    if abs(opinion.value) >= 2 and rng.random() < 0.3:
        return (text.upper() if rng.random() < 0.15 else text) + rng.choice(("!", "!", "!!!"))
    return text + ("..." if rng.random() < 0.05 else ".")


def _review(rng: random.Random) -> tuple[str, float]:
    """One review and its score: the mean value of its opinions."""
    subject = rng.choice(list(_SUBJECTS))
    mood = rng.choice((-1, 1))
    sentences: list[_Opinion] = []
    for _ in range(rng.randint(1, 5)):
        sentences.append(_opinion(rng, subject, mood if rng.random() < _FAITHFUL else -mood))
    score = sum(sentence.value for sentence in sentences) / len(sentences)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        filler = rng.choice(_FILLERS).format(subject=subject)
        sentences.insert(rng.randint(0, len(sentences)), _Opinion(filler, 0))
    text = " ".join(_punctuate(rng, sentence) for sentence in sentences)
    return (text.lower() if rng.random() < 0.1 else text), score


def _rating(rng: random.Random, score: float) -> int:
    if rng.random() < _NOISE:
        return rng.randint(1, 10)
    return min(10, max(1, round(5.5 + 1.4 * score)))


def reviews(count: int = 3000, seed: int = 0) -> pd.DataFrame:
    """Reviews of films, books and restaurants in English, put together from a grammar.

    A review has one to eight sentences (5 to 120 words): opinions on aspects of its subject, with adjectives of graded
    strength, intensifiers, negations ("far from dull", "Nobody could call the plot boring") and contrasts ("although
    the plot is dull, the acting is superb": the later half counts four times the earlier one), and sentences that have
    nothing to do with it, some with an opinion's words ("The weather was awful that day").

    How hard it is (3,000 reviews, seed 0, 4-fold cross-validation, checked by `tests/loom/data/test_samples.py`):
    always the larger class 0.51; logistic regression on single words 0.82, on words and pairs 0.91. No model can expect
    more than 0.98: 4 % of the ratings are drawn at random, and half of those contradict their text.

    Args:
        count: Number of reviews, no two alike.
        seed: Another seed gives other reviews of the same kind.

    Returns:
        Columns `text` (str), `label` ("negative" or "positive", nearly as many of each) and `rating` (int, 1 worst to
        10 best; positive from 6 on).
    """
    import pandas as pd

    rng = random.Random(seed)
    rows: list[tuple[str, str, int]] = []
    seen: set[str] = set()
    while len(rows) < count:
        text, score = _review(rng)
        if abs(score) < _MARGIN or text in seen or not _WORDS_MIN <= len(text.split()) <= _WORDS_MAX:
            continue
        seen.add(text)
        rating = _rating(rng, score)
        rows.append((text, "positive" if rating >= 6 else "negative", rating))
    return pd.DataFrame(rows, columns=["text", "label", "rating"], dtype=object).astype({"rating": int})


# --- passengers -------------------------------------------------------------------------------------------------------

_CLASSES: dict[str, tuple[float, float]] = {  # share of the passengers, median ticket price
    "first": (0.22, 62.0),
    "second": (0.28, 21.0),
    "third": (0.50, 8.5),
}
_PORTS: dict[str, float] = {"Aberwick": 0.55, "Norhaven": 0.30, "Port Salt": 0.15}

# What the purser noted down: phrase, effect on the log-odds to survive, on the days to recover.
_REMARKS: tuple[tuple[str, float, float], ...] = (
    ("strong swimmer", 2.2, -2.0),
    ("has been to sea before", 1.0, -1.0),
    ("knows the way to the boats", 1.6, 0.0),
    ("walks with a cane", -1.8, 4.0),
    ("seasick since the first night", -1.4, 3.0),
    ("heavy sleeper", -1.2, 0.0),
    ("travels with a large trunk", 0.0, 0.0),
    ("asked for another cabin", 0.0, 0.0),
    ("plays the violin", 0.0, 0.0),
    ("reads in the saloon", 0.0, 0.0),
    ("writes many letters", 0.0, 0.0),
    ("dines late", 0.0, 0.0),
    ("keeps a small dog", 0.0, 0.0),
    ("pays in foreign coin", 0.0, 0.0),
)
_STEEPNESS = 1.2  # factor on the log-odds: more of it leaves less to chance
_FIRST_DAY = datetime.date(1907, 3, 1)
_DECKS = ("upper", "middle", "lower")
_AGE_MISSING = {"first": 0.08, "second": 0.12, "third": 0.20}
_PRICE_MISSING, _PORT_MISSING, _DATE_MISSING = 0.02, 0.015, 0.04


class _Person(NamedTuple):
    """A passenger before anything is lost from the record."""

    gender: str
    cabin_class: str
    age: float
    ticket_price: float
    embarked: str
    relatives: int
    day: int
    remarks: tuple[tuple[str, float, float], ...]


def _weighted(rng: random.Random, shares: dict[str, float]) -> str:
    return rng.choices(list(shares), weights=list(shares.values()))[0]


def _person(rng: random.Random) -> _Person:
    child = rng.random() < 0.18
    cabin_class = _weighted(rng, {name: share for name, (share, _) in _CLASSES.items()})
    relatives = rng.choices(range(8), weights=(18, 22, 24, 16, 9, 6, 3, 2) if child else (52, 22, 12, 6, 3, 2, 2, 1))[0]
    return _Person(
        gender="female" if rng.random() < 0.4 else "male",
        cabin_class=cabin_class,
        age=float(rng.randint(1, 14)) if child else min(80.0, 15.0 + float(round(rng.gammavariate(2.6, 8.0)))),
        ticket_price=round(_CLASSES[cabin_class][1] * rng.lognormvariate(0.0, 0.45) * (1 + 0.25 * relatives), 2),
        embarked=_weighted(rng, _PORTS),
        relatives=relatives,
        day=rng.randrange(28),
        remarks=tuple(rng.sample(_REMARKS, rng.choice((2, 3, 3)))),
    )


def _log_odds_to_survive(person: _Person) -> float:
    """Effects that depend on each other: class helps women most, youth helps in small families, ..."""
    log_odds = -2.4 + sum(remark[1] for remark in person.remarks)
    if person.age < 13:
        log_odds += 3.6 if person.relatives <= 3 else -0.6
    elif person.gender == "female":
        log_odds += {"first": 5.2, "second": 4.4, "third": 1.4}[person.cabin_class]
        log_odds -= 2.4 if person.relatives > 3 else 0.0
    else:
        log_odds += {"first": 1.2, "second": -0.6, "third": -0.2}[person.cabin_class]
        log_odds -= 1.2 if person.age > 55 else 0.0
    alone_and_late = person.relatives == 0 and person.day >= 20
    return log_odds - (1.5 if alone_and_late else 0.0)


def _days_to_recover(rng: random.Random, person: _Person) -> float:
    days = 6.0 + sum(remark[2] for remark in person.remarks)
    days += 0.006 * max(0.0, person.age - 25) ** 2 + (3.0 if person.age < 6 else 0.0)
    days *= {"first": 0.8, "second": 1.0, "third": 1.25}[person.cabin_class]
    return round(max(1.0, days + rng.gauss(0.0, 1.5)), 1)


def _deck(rng: random.Random, person: _Person) -> str:
    height = {"first": 2.0, "second": 0.9, "third": 0.0}[person.cabin_class]
    dearness = math.log(person.ticket_price / (_CLASSES[person.cabin_class][1] * (1 + 0.25 * person.relatives)))
    height += 0.9 * dearness + (0.5 if person.gender == "female" and person.relatives > 0 else 0.0) + rng.gauss(0, 0.3)
    return _DECKS[0] if height > 1.6 else _DECKS[1] if height > 0.5 else _DECKS[2]


def _record(rng: random.Random, person: _Person) -> dict[str, object]:
    """The row: what happened to the passenger, and what of the person's data was written down."""
    survived = rng.random() < 1 / (1 + math.exp(-_STEEPNESS * _log_odds_to_survive(person)))
    days, deck = _days_to_recover(rng, person), _deck(rng, person)
    lost = {name: rng.random() for name in ("age", "ticket_price", "embarked", "boarding_date")}
    date = (_FIRST_DAY + datetime.timedelta(days=person.day)).isoformat()
    remark = ", ".join(remark[0] for remark in person.remarks)
    return {
        "gender": person.gender,
        "cabin_class": person.cabin_class,
        "age": None if lost["age"] < _AGE_MISSING[person.cabin_class] else person.age,
        "ticket_price": None if lost["ticket_price"] < _PRICE_MISSING else person.ticket_price,
        "embarked": None if lost["embarked"] < _PORT_MISSING else person.embarked,
        "relatives": person.relatives,
        "boarding_date": None if lost["boarding_date"] < _DATE_MISSING else date,
        "remark": remark[0].upper() + remark[1:],
        "survived": int(survived),
        "days_to_recover": days,
        "deck": deck,
    }


def passengers(count: int = 1500, seed: int = 0) -> pd.DataFrame:
    """Passengers of a ship that sank, all invented: a table with columns of every kind and three targets.

    Inputs (a missing value is None in a column of strings, NaN in a column of numbers):
        gender: "female" or "male".
        cabin_class: "first", "second" or "third".
        age: Years, 1 to 80; about 15 % missing, more in third class.
        ticket_price: In shillings; a few high, 2 % missing.
        embarked: "Aberwick", "Norhaven" or "Port Salt"; 1.5 % missing. Has no effect.
        relatives: Relatives on board, 0 to 7.
        boarding_date: ISO date in March 1907; 4 % missing.
        remark: The purser's notes, two or three phrases; 6 of the 14 phrases matter for survival.

    Targets, and how hard they are (1,500 passengers, seed 0, 4-fold cross-validation, every input used, checked by
    `tests/loom/data/test_samples.py`):
        survived: 1 or 0, a third survive. Class, gender, age and relatives act together: logistic regression 0.80,
            gradient boosting 0.84; knowing every cause, 0.87.
        days_to_recover: Days in bed the ship's doctor would prescribe after a fall into the sea, whether the passenger
            survived or not. R²: ridge regression 0.59, gradient boosting 0.78.
        deck: "upper", "middle" or "lower". Logistic regression 0.79, gradient boosting 0.80.

    Args:
        count: Number of passengers.
        seed: Another seed gives other passengers of the same kind.
    """
    import pandas as pd

    rng = random.Random(seed)
    frame = pd.DataFrame([_record(rng, _person(rng)) for _ in range(count)], dtype=object)
    numbers = dict.fromkeys(("age", "ticket_price", "days_to_recover"), float)
    return frame.astype(numbers | dict.fromkeys(("relatives", "survived"), int))


# --- questions about two digits ---------------------------------------------------------------------------------------

_OPERATIONS: dict[str, tuple[str, ...]] = {
    "sum": (
        "add the first and the second",
        "form the sum of both",
        "put the two together",
        "add the second to the first",
    ),
    "first - second": (
        "take the second away from the first",
        "compute the first minus the second",
        "subtract the second from the first",
        "reduce the first by the second",
    ),
    "second - first": (
        "take the first away from the second",
        "compute the second minus the first",
        "subtract the first from the second",
        "reduce the second by the first",
    ),
    "larger": (
        "name the larger of the two",
        "pick whichever is more",
        "find the maximum of both",
        "keep the greater one",
    ),
    "smaller": (
        "name the smaller of the two",
        "pick whichever is less",
        "find the minimum of both",
        "keep the lesser one",
    ),
}
_OPENINGS: tuple[str, ...] = (
    "please", "now", "could you", "I want you to", "your task is to", "try to", "would you", "let us", "next,",
    "again,", "what happens if you", "tell me what comes out when you", "for this pair,", "look at both and", "just",
)  # fmt: skip
_ENDINGS: tuple[str, ...] = (
    "", "at last", "for me", "if you can", "once more", "as before", "without haste", "in your head", "today",
    "carefully", "and say the result", "and write it down", "before you go on", "like a calculator", "quickly",
)  # fmt: skip
_DIGITS_FOR_TESTS = 360


def _computed(operation: str, first: int, second: int) -> int:
    results = {
        "sum": first + second,
        "first - second": first - second,
        "second - first": second - first,
        "larger": max(first, second),
        "smaller": min(first, second),
    }
    return results[operation]


def _question(rng: random.Random, operation: str) -> str:
    return f"{rng.choice(_OPENINGS)} {rng.choice(_OPERATIONS[operation])} {rng.choice(_ENDINGS)}".strip()


def digit_questions(count: int = 3000, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Questions about two handwritten digits (scikit-learn's), a training and a test part without a common picture.

    Columns: `first` and `second` are PNG files, `question` says what to compute of the two digits, `offset` is added to
    that, which makes `answer`; `verdict` tells whether the answer is above or below `limit`. To know the verdict takes
    both pictures, the question with the order of its words, and both numbers.

    Args:
        count: Questions, a fifth of them in the test part.
        seed: Of everything that is drawn.
    """
    import numpy as np

    from loom.data.images import IMAGE, LABEL, digits

    pictures = digits()
    order = np.random.default_rng(seed).permutation(len(pictures))
    parts = (order[_DIGITS_FOR_TESTS:], count - count // 5), (order[:_DIGITS_FOR_TESTS], count // 5)
    rng = random.Random(seed)
    train, test = (
        _questions(rng, pictures[IMAGE].iloc[rows].tolist(), pictures[LABEL].iloc[rows].astype(int).tolist(), number)
        for rows, number in parts
    )
    return train, test


def _questions(rng: random.Random, files: list[bytes], digits: list[int], count: int) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for _ in range(count):
        first, second = rng.randrange(len(files)), rng.randrange(len(files))
        operation = rng.choice(list(_OPERATIONS))
        offset, limit = round(rng.uniform(-5, 5), 1), round(rng.gauss(4, 6), 1)
        answer = round(_computed(operation, digits[first], digits[second]) + offset, 1)
        rows.append(
            {
                "first": files[first],
                "second": files[second],
                "question": _question(rng, operation),
                "offset": offset,
                "limit": limit,
                "answer": answer,
                "verdict": "above" if answer > limit else "below",
            }
        )
    return pd.DataFrame(rows)
