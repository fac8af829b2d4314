"""Built-in pairs of sentences, English and Hindi, from a small grammar: made from a seed, and really to be learned.

What a dictionary cannot do is what the grammar is about: the verb goes to the end, negation before it and a question
word to the front; adjectives agree with their noun, verbs with the gender and number of who does it, and `it` and `is`
become different words for each of them.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd


class _Noun(NamedTuple):
    english: str
    hindi: str
    gender: str
    """m or f."""
    plural: bool = False
    may_have_adjective: bool = True


_SUBJECTS = (
    _Noun("the boy", "लड़का", "m"), _Noun("the girl", "लड़की", "f"),
    _Noun("the boys", "लड़के", "m", True), _Noun("the girls", "लड़कियाँ", "f", True),
    _Noun("the man", "आदमी", "m"), _Noun("the woman", "औरत", "f"), _Noun("the women", "औरतें", "f", True),
    _Noun("the student", "छात्र", "m"), _Noun("the children", "बच्चे", "m", True), _Noun("the child", "बच्चा", "m"),
    _Noun("Ravi", "रवि", "m", False, False), _Noun("Sita", "सीता", "f", False, False),
    _Noun("Anil", "अनिल", "m", False, False), _Noun("Meena", "मीना", "f", False, False),
    _Noun("he", "वह", "m", False, False), _Noun("she", "वह", "f", False, False),
    _Noun("they", "वे", "m", True, False), _Noun("we", "हम", "m", True, False),
)  # fmt: skip

_THINGS = {
    "apple": _Noun("apple", "सेब", "m"), "bread": _Noun("bread", "रोटी", "f"), "mango": _Noun("mango", "आम", "m"),
    "water": _Noun("water", "पानी", "m"), "tea": _Noun("tea", "चाय", "f"), "milk": _Noun("milk", "दूध", "m"),
    "book": _Noun("book", "किताब", "f"), "letter": _Noun("letter", "चिट्ठी", "f"),
    "newspaper": _Noun("newspaper", "अख़बार", "m"), "story": _Noun("story", "कहानी", "f"),
    "house": _Noun("house", "घर", "m"), "car": _Noun("car", "गाड़ी", "f"), "tree": _Noun("tree", "पेड़", "m"),
    "picture": _Noun("picture", "तस्वीर", "f"), "film": _Noun("film", "फ़िल्म", "f"),
    "shirt": _Noun("shirt", "कमीज़", "f"), "horse": _Noun("horse", "घोड़ा", "m"),
}  # fmt: skip
_UNCOUNTED = {"bread", "water", "tea", "milk"}


class _Verb(NamedTuple):
    base: str
    third: str
    participle: str
    stem: str
    future: str
    """What the endings of the future follow."""
    things: tuple[str, ...]


_VERBS = (
    _Verb("eat", "eats", "eating", "खा", "खाए", ("apple", "bread", "mango")),
    _Verb("drink", "drinks", "drinking", "पी", "पिए", ("water", "tea", "milk")),
    _Verb("read", "reads", "reading", "पढ़", "पढ़े", ("book", "letter", "newspaper", "story")),
    _Verb("write", "writes", "writing", "लिख", "लिखे", ("book", "letter", "story")),
    _Verb("see", "sees", "seeing", "देख", "देखे", ("house", "car", "tree", "picture", "film", "horse")),
    _Verb("buy", "buys", "buying", "ख़रीद", "ख़रीदे", ("apple", "book", "house", "car", "picture", "shirt", "horse")),
)  # fmt: skip

# Masculine singular, masculine plural, feminine; some never change.
_ADJECTIVES = {
    "big": ("बड़ा", "बड़े", "बड़ी"), "small": ("छोटा", "छोटे", "छोटी"), "good": ("अच्छा", "अच्छे", "अच्छी"),
    "new": ("नया", "नए", "नई"), "old": ("पुराना", "पुराने", "पुरानी"), "red": ("लाल", "लाल", "लाल"),
    "beautiful": ("सुंदर", "सुंदर", "सुंदर"), "black": ("काला", "काले", "काली"),
}  # fmt: skip
_OF_PEOPLE = ("big", "small", "good", "beautiful")
_OF_FOOD = ("good", "small", "big", "red")
_FOOD = {"apple", "bread", "mango", "water", "tea", "milk"}

_PLACES = {
    "in the garden": "बाग़ में", "at home": "घर पर", "in the school": "स्कूल में", "in the market": "बाज़ार में",
    "on the roof": "छत पर", "in the city": "शहर में", "in the village": "गाँव में",
}  # fmt: skip
_TIMES = {"today": "आज", "every day": "हर दिन", "now": "अभी", "in the morning": "सुबह", "in the evening": "शाम को"}
_TENSES = ("habit", "present", "past", "future")

_WITH_ADJECTIVE, _WITH_PLACE, _WITH_TIME = 0.45, 0.5, 0.35
_NEGATED, _ASKED = 0.2, 0.2


def sentences(count: int = 4000, seed: int = 0) -> pd.DataFrame:
    """Different English sentences (`source`) and their Hindi translations (`target`)."""
    import pandas as pd

    rng = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < count:
        english, hindi = _sentence(rng)
        found.setdefault(english, hindi)
    return pd.DataFrame({"source": list(found), "target": list(found.values())})


def _sentence(rng: random.Random) -> tuple[str, str]:
    subject, verb, tense = rng.choice(_SUBJECTS), rng.choice(_VERBS), rng.choice(_TENSES)
    thing = rng.choice(verb.things)
    asked = rng.random() < _ASKED
    negated = not asked and rng.random() < _NEGATED
    who = _people(rng, subject)
    what = _thing(rng, thing)
    place = rng.choice(list(_PLACES.items())) if rng.random() < _WITH_PLACE else ("", "")
    time = rng.choice(list(_TIMES.items())) if rng.random() < _WITH_TIME else ("", "")
    english = _english(subject, who[0], verb, tense, what[0], asked, negated)
    ending = [place[0], time[0]]
    hindi = [who[1], time[1], place[1], what[1], "नहीं" if negated else "", _hindi_verb(subject, verb, tense)]
    if asked:
        hindi = ["क्या", *hindi]
    written = " ".join(filter(None, [english, *ending]))
    return written[0].upper() + written[1:] + ("?" if asked else "."), " ".join(filter(None, hindi)) + (
        "?" if asked else "।"
    )


def _people(rng: random.Random, subject: _Noun) -> tuple[str, str]:
    if not subject.may_have_adjective or rng.random() > _WITH_ADJECTIVE:
        return subject.english, subject.hindi
    adjective = rng.choice(_OF_PEOPLE)
    return subject.english.replace("the ", f"the {adjective} "), f"{_agreeing(adjective, subject)} {subject.hindi}"


def _thing(rng: random.Random, name: str) -> tuple[str, str]:
    noun, words = _THINGS[name], [name]
    hindi = noun.hindi
    if rng.random() < _WITH_ADJECTIVE:
        adjective = rng.choice(_OF_FOOD if name in _FOOD else list(_ADJECTIVES))
        words, hindi = [adjective, name], f"{_agreeing(adjective, noun)} {hindi}"
    if name not in _UNCOUNTED:
        words = ["an" if words[0][0] in "aeiou" else "a", *words]
    return " ".join(words), hindi


def _agreeing(adjective: str, noun: _Noun) -> str:
    masculine, plural, feminine = _ADJECTIVES[adjective]
    return feminine if noun.gender == "f" else plural if noun.plural else masculine


def _english(subject: _Noun, who: str, verb: _Verb, tense: str, what: str, asked: bool, negated: bool) -> str:
    helper = {
        "habit": "do" if subject.plural else "does",
        "present": "are" if subject.plural else "is",
        "past": "were" if subject.plural else "was",
        "future": "will",
    }[tense]
    form = verb.participle if tense in ("present", "past") else verb.base
    if asked:
        return f"{helper} {who} {form} {what}"
    if negated:
        return f"{who} {helper} not {form} {what}"
    if tense == "habit":
        return f"{who} {verb.base if subject.plural else verb.third} {what}"
    return f"{who} {helper} {form} {what}"


def _hindi_verb(subject: _Noun, verb: _Verb, tense: str) -> str:
    """The verb with the endings for who does it: masculine, masculine plural, feminine."""

    def of(masculine: str, plural: str, feminine: str) -> str:
        return feminine if subject.gender == "f" else plural if subject.plural else masculine

    if tense == "habit":
        return f"{verb.stem}{of('ता', 'ते', 'ती')} {'हैं' if subject.plural else 'है'}"
    if tense == "present":
        return f"{verb.stem} {of('रहा', 'रहे', 'रही')} {'हैं' if subject.plural else 'है'}"
    if tense == "past":
        were = "थीं" if subject.plural else "थी"
        return f"{verb.stem} {of('रहा था', 'रहे थे', f'रही {were}')}"
    nasal = "ं" if subject.plural else ""
    return f"{verb.future}{nasal}{of('गा', 'गे', 'गी')}"
