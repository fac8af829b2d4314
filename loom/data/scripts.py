"""Scenes of a made-up television series: the built-in text to generate more of."""

from __future__ import annotations

import random

CAST = ("Anna", "Ben", "Clara", "David", "Ella", "Frank", "Grace", "Henry", "Iris", "Jonas", "Kate", "Leo")
PLACES = ("the kitchen", "the garden", "the office", "the station", "the library", "the harbour", "the old theatre")
TIMES = ("morning", "noon", "evening", "night")
THINGS = ("key", "letter", "lamp", "map", "camera", "ticket", "ring", "suitcase", "photograph", "violin")
SPOTS = ("under the table", "behind the door", "in the drawer", "on the roof", "next to the window", "in the well")
MOODS = ("happy", "tired", "worried", "in a hurry", "very quiet", "late again")
OPENINGS = (
    ("Have you seen the {thing}, {other}?", "The {thing}? It was {spot}.", "I looked {spot}. The {thing} is gone."),
    ("{other}, who took the {thing}?", "Not me. Ask {third}.", "{third} never comes to {place}."),
    ("You are {mood}, {other}.", "I am {mood} because of the {thing}.", "Then leave the {thing} {spot}."),
    ("Good {time}, {other}.", "Good {time}, {other}. Is that the {thing}?", "Yes. I found the {thing} {spot}."),
)
GOING_ON = (
    ("I do not believe you, {other}.", "Believe me, {other}. It is only a {thing}."),
    ("What do we do now?", "We wait {spot} until {third} brings the {thing}."),
    ("Is {third} coming to {place}?", "{third} is {mood}. We are alone, {other}."),
    ("Give me the {thing}, {other}.", "Never! The {thing} stays in {place}."),
    ("Did you hear that?", "It came from {spot}, {other}."),
)
ENDINGS = ("{self} takes the {thing} and leaves.", "{self} and {other} laugh.", "The lights go out in {place}.")


def scripts(scenes: int = 400, seed: int = 0) -> str:
    """Scenes with two speakers each who talk about one thing; the same text for the same seed.

    Who may speak, what about and where is said in the first lines of a scene and holds to its end: to predict it takes
    a longer memory than that of a few characters.
    """
    rng = random.Random(seed)
    return "\n\n".join(_scene(rng, number) for number in range(1, scenes + 1)) + "\n"


def _scene(rng: random.Random, number: int) -> str:
    first, second, third = rng.sample(CAST, 3)
    place, time, thing = rng.choice(PLACES), rng.choice(TIMES), rng.choice(THINGS)
    lines = [
        f"SCENE {number}. {place.upper()}. {time.upper()}.",
        f"{first} and {second} are looking for a {thing}.",
        "",
    ]
    speakers = [(first, second), (second, first)]
    turn = 0
    exchanges = [rng.choice(OPENINGS), *rng.sample(GOING_ON, rng.randint(1, 4))]
    for exchange in exchanges:
        spot, mood = rng.choice(SPOTS), rng.choice(MOODS)
        for line in exchange:
            speaker, other = speakers[turn % 2]
            said = line.format(other=other, third=third, place=place, time=time, thing=thing, spot=spot, mood=mood)
            lines.append(f"{speaker.upper()}: {said}")
            turn += 1
    speaker, other = speakers[turn % 2]
    lines.append("(" + rng.choice(ENDINGS).format(self=speaker, other=other, thing=thing, place=place) + ")")
    return "\n".join(lines)
