"""Built-in questions and answers for a chatbot: small talk, and facts that are asked for in several ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_CAPITALS = {
    "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Greece": "Athens", "Egypt": "Cairo", "India": "New Delhi",
    "Nepal": "Kathmandu", "Japan": "Tokyo", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago", "Kenya": "Nairobi",
    "Ghana": "Accra", "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Poland": "Warsaw",
    "Austria": "Vienna", "Hungary": "Budapest", "Portugal": "Lisbon", "Ireland": "Dublin", "Canada": "Ottawa",
}  # fmt: skip
_OPPOSITES = {
    "big": "small", "hot": "cold", "early": "late", "open": "closed", "heavy": "light", "dark": "bright",
    "happy": "sad", "young": "old", "fast": "slow", "full": "empty", "high": "low", "wet": "dry", "soft": "hard",
}  # fmt: skip
_SOUNDS = {
    "dog": "barks", "cat": "meows", "cow": "moos", "duck": "quacks", "sheep": "bleats", "horse": "neighs",
    "lion": "roars", "wolf": "howls", "bee": "buzzes", "snake": "hisses",
}  # fmt: skip
_COLOURS = {
    "grass": "green", "snow": "white", "the sky": "blue", "a lemon": "yellow", "blood": "red", "coal": "black",
    "an orange": "orange", "a pine tree": "green",
}  # fmt: skip
_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen",
)  # fmt: skip

_FACTS: tuple[tuple[dict[str, str], tuple[str, ...], tuple[str, ...]], ...] = (
    (
        _CAPITALS,
        ("What is the capital of {}?", "Which city is the capital of {}?", "Do you know the capital of {}?"),
        ("It is {1}.", "The capital of {0} is {1}."),
    ),
    (
        _OPPOSITES,
        ("What is the opposite of {}?", "Tell me the opposite of {}.", "Which word is the opposite of {}?"),
        ("{1}.", "The opposite of {0} is {1}."),
    ),
    (_SOUNDS, ("What does a {} do?", "Which sound does a {} make?"), ("A {0} {1}.", "It {1}.")),
    (_COLOURS, ("Which colour is {}?", "What colour does {} have?"), ("It is {1}.", "Most people say {1}.")),
)

_SMALL_TALK: dict[tuple[str, ...], tuple[str, ...]] = {
    ("Hello.", "Hi there!", "Good morning."): ("Hello! What can I do for you?", "Nice to meet you.", "Hi!"),
    ("How are you?", "How do you do?"): ("I am fine, thank you.", "Very well. And you?"),
    ("What is your name?", "Who are you?", "Who am I talking to?"): ("I am a small chatbot.", "I have no name yet."),
    ("Are you a robot?", "Are you human?"): ("I am a program.", "I am made of numbers."),
    ("How old are you?",): ("I was trained a moment ago.",),
    ("Where do you live?",): ("In a file on your computer.", "Wherever you saved me."),
    ("What can you do?", "Can you help me?"): ("Ask me about capitals, opposites, animals and small sums.",),
    ("Thank you.", "Thanks a lot!"): ("You are welcome.", "It was a pleasure."),
    ("Goodbye.", "See you later!"): ("Goodbye!", "See you soon."),
    ("Tell me a joke.", "Do you know a joke?"): ("Two vectors meet. Says one: we should do a product.",),
    ("Do you like music?",): ("I like sequences of all kinds.",),
    ("What do you think of me?",): ("You ask good questions.", "I like talking to you."),
}


def questions() -> pd.DataFrame:
    """Questions (`source`) and answers (`target`); many questions have several answers, in as many rows."""
    import pandas as pd

    pairs = [
        (question.format(name), _sentence(answer.format(name, fact)))
        for facts, asked, answers in _FACTS
        for name, fact in facts.items()
        for question in asked
        for answer in answers
    ]
    pairs += [(question, answer) for asked, answers in _SMALL_TALK.items() for question in asked for answer in answers]
    for first in range(len(_NUMBERS) - 6):
        for second in range(1, 7):
            total = _NUMBERS[first + second]
            pairs.append((f"What is {_NUMBERS[first]} plus {_NUMBERS[second]}?", _sentence(f"{total}.")))
    return pd.DataFrame(pairs, columns=["source", "target"])


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
