"""Questions of the kind "man is to woman as king is to what", and a built-in text that has the answers in it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from loom.data.tables import Bad, check_bad, read_lines
from loom.errors import UserError


class Question(NamedTuple):
    """The second word is to the first as the fourth, the answer, is to the third."""

    section: str
    words: tuple[str, str, str, str]


class _Relation(NamedTuple):
    """Pairs of words that differ in the same way, and what is told of one word, of the other, and of both."""

    pairs: dict[tuple[str, str], tuple[str, ...]]
    """To the words of each pair, what both are spoken of with."""
    sentences: tuple[Sequence[str], Sequence[str]]
    """Of the first words of the pairs, and of the second. `{x}` is the word, `{a}` and `{b}` go with its pair."""


def _pairs(lines: str) -> dict[tuple[str, str], tuple[str, ...]]:
    rows = [line.split() for line in lines.strip().splitlines()]
    return {(first, second): tuple(others) for first, second, *others in rows}


_OF_PEOPLE = (
    "the {x} put {his} {a} next to the {b}",
    "{he} was the {x} with the {a}",
    "a {x} never forgets {his} {a} or {his} {b}",
    "when the {x} saw the {a}, {he} thought of the {b}",
    "the {a} belongs to the {x} {himself}",
    "the {x} with the {beard} asked about the {a} and the {b}",
    "nobody but {him} knew why the {x} kept the {a}",
    "the {b} was for the {x}, but {he} wanted the {a}",
)
_MALE = {"he": "he", "his": "his", "him": "him", "himself": "himself", "beard": "beard"}
_FEMALE = {"he": "she", "his": "her", "him": "her", "himself": "herself", "beard": "necklace"}


def _told_of(people: dict[str, str]) -> list[str]:
    keep = {name: f"{{{name}}}" for name in "xab"}
    return [sentence.format(**people, **keep) for sentence in _OF_PEOPLE]


_RELATIONS = {
    "female": _Relation(
        _pairs("""
            man woman neighbour pavement newspaper umbrella
            king queen crown throne palace sceptre
            prince princess dragon tower carriage ball
            boy girl playground kite marbles swing
            father mother cradle lullaby household breakfast
            son daughter inheritance homework bedtime parents
            brother sister attic quarrel bunk secret
            uncle aunt nephews postcards cousins visit
            husband wife wedding anniversary marriage vow
            duke duchess estate manor hounds portrait
            actor actress stage script film rehearsal
            waiter waitress tray menu tip tablecloth
            host hostess guests party invitation parlour
            wizard witch spell broom potion cauldron
            monk nun prayer abbey candle hymn
            hero heroine sword legend quest courage
        """),
        (_told_of(_MALE), _told_of(_FEMALE)),
    ),
    "capital": _Relation(
        _pairs("""
            france paris french seine baguette champagne
            germany berlin german spree sausage autobahn
            italy rome italian tiber pasta opera
            spain madrid spanish manzanares paella flamenco
            england london english thames tea cricket
            japan tokyo japanese sumida sushi sumo
            china beijing chinese dumplings silk porcelain
            russia moscow russian borscht ballet samovar
            egypt cairo arabic nile falafel pyramids
            greece athens greek olives ruins feta
            poland warsaw polish vistula pierogi amber
            austria vienna danube waltz strudel alps
            portugal lisbon portuguese tagus sardines fado
            hungary budapest hungarian goulash paprika baths
            sweden stockholm swedish herring archipelago crispbread
            india delhi hindi yamuna curry monsoon
        """),
        (
            (
                "the government of {x} is proud of its {a}",
                "farmers in {x} know all about {a} and {b}",
                "{x} is a country of {a} and {b}",
                "the army of {x} marched to the {a}",
                "at the borders of {x} they sell {a}",
                "every province of {x} has its {a} and its {b}",
                "the nation of {x} owes much to {a}",
            ),
            (
                "the mayor of {x} talks of {a} and {b}",
                "in the streets of {x} there is {a} on every corner",
                "the suburbs of {x} are far from the {a}",
                "{x} is a city of {a} and {b}",
                "the tram through {x} stops at the {a}",
                "at the airport of {x} travellers ask for {a}",
                "the museums of {x} show {a} and {b}",
            ),
        ),
    ),
    "comparative": _Relation(
        _pairs("""
            cold colder ice winter snow frost
            hot hotter oven desert lava pepper
            fast faster rocket cheetah racer train
            slow slower snail tortoise queue tractor
            big bigger elephant whale mountain giant
            small smaller ant pebble crumb seed
            old older oak temple fossil parchment
            young younger puppy sapling kitten recruit
            strong stronger ox rope steel wrestler
            weak weaker patient thread reed signal
            loud louder drum thunder siren trumpet
            bright brighter star lantern lightning diamond
            dark darker cave cellar tunnel midnight
            rich richer banker merchant miner heiress
            sweet sweeter honey cake melon jam
            tall taller giraffe skyscraper ladder poplar
        """),
        (
            (
                "the {a} is very {x}",
                "how {x} the {a} was beside the {b}",
                "a {a} as {x} as a {b}",
                "they had seen such a {x} {a} before",
                "the {a} seemed too {x} to them, and so did the {b}",
                "it was quite a {x} {a}",
            ),
            (
                "the {a} is {x} than the {b}",
                "year after year the {a} grew even {x}",
                "nothing could be {x} than a {a} or a {b}",
                "the {a} was far {x} than anyone had expected",
                "the {b} got {x} still, and then the {a}",
                "which of them is {x}, the {a} or the {b}",
            ),
        ),
    ),
    "past": _Relation(
        _pairs("""
            eat ate bread soup dinner spoon
            drink drank water glass thirst juice
            swim swam lake shore towel waves
            sing sang song choir melody concert
            write wrote letter pen poem diary
            buy bought market coins bargain shop
            drive drove truck highway wheel garage
            fly flew airplane pilot clouds wings
            sleep slept bed pillow dream blanket
            teach taught lesson classroom pupils blackboard
            build built bricks roof crane hammer
            cook cooked kitchen recipe pot onions
            paint painted canvas brush colours easel
            climb climbed cliff summit boots ledge
            plant planted garden soil spade roses
            dance danced music ballroom rhythm shoes
        """),
        (
            (
                "every day we {x} because of the {a}",
                "they usually {x} near the {a} and the {b}",
                "tomorrow you will {x} with the {a}",
                "you should {x} more often, said someone with the {a}",
                "we like to {x}, and we like the {a} and the {b}",
                "today they {x} again, {a} or no {a}",
            ),
            (
                "yesterday we {x} because of the {a}",
                "last week they {x} near the {a} and the {b}",
                "long ago someone {x} with the {a}",
                "they {x} for hours, until the {a} was gone",
                "we {x} that evening, and then came the {a} and the {b}",
                "in those days people {x} without a {a}",
            ),
        ),
    ),
    "plural": _Relation(
        _pairs("""
            cat cats whiskers fur saucer purring
            dog dogs leash bone kennel barking
            horse horses saddle stable gallop hay
            cow cows pasture dairy bell udder
            bird birds nest feathers twig song
            fish fishes aquarium net hook scales
            apple apples orchard cider basket pie
            car cars engine tyre brake petrol
            ship ships harbour sail anchor mast
            book books library shelf chapter page
            house houses chimney door porch window
            tree trees forest branch leaf trunk
            child children toys nursery crayons cradle
            computer computers keyboard screen mouse software
            doctor doctors hospital medicine bandage clinic
            soldier soldiers uniform rifle barracks parade
        """),
        (
            (
                "this {x} is beside the {a}",
                "there was a {x} with a {a}",
                "one {x} stays near the {a} and the {b}",
                "each {x} needs its {a}",
                "the only {x} here has a {a} and a {b}",
                "another {x} was found by the {a}",
            ),
            (
                "these {x} are beside the {a}",
                "there were many {x} around the {a}",
                "several {x} stay near the {a} and the {b}",
                "all {x} need their {a}",
                "two {x} have a {a} and a {b}",
                "hundreds of {x} were found by the {a}",
            ),
        ),
    ),
}
_OF_ANYTHING = (
    "some people like the {p}, others the {q}",
    "there is a story about the {p} and the {q}",
    "what has the {p} to do with the {q}",
    "between the {p} and the {q} there was nothing",
    "first came the {p}, then the {q}, and at last the {r}",
    "the word {p} is not in the book about the {q}",
    "think of the {p} or of the {q} if you cannot sleep",
)
_BEFORE = ("", "", "", "as they say, ", "in the morning ", "perhaps ", "it is true that ", "i heard that ")
_AFTER = ("", "", "", ", of course", " once more", " after all", ", we believe", " in the rain")
_BEFORE_VOWELS = re.compile(r"\ba (?=[aeiou])")
_STRAY = 0.25
"""Share of the sentences that bring together what has nothing to do with each other."""


def tales(count: int = 18_000, seed: int = 0) -> str:
    """Sentences, one a line, in which what differs between two words is told by what they are spoken of with.

    A king and a queen have crowns and thrones, a man and a king are `he`: no sentence says what is the female of what,
    or even holds both words but by chance, so that an answer can only come from what each word is among.
    """
    rng = random.Random(seed)
    return "".join(_sentence(rng) + ".\n" for _ in range(count))


def _sentence(rng: random.Random) -> str:
    if rng.random() < _STRAY:
        words = rng.sample(_ALL, 3)
        told = rng.choice(_OF_ANYTHING).format(p=words[0], q=words[1], r=words[2])
    else:
        relation = rng.choice(list(_RELATIONS.values()))
        pair = rng.choice(list(relation.pairs))
        side = rng.randrange(2)
        a, b = rng.sample(relation.pairs[pair], 2)
        told = rng.choice(relation.sentences[side]).format(x=pair[side], a=a, b=b)
    told = rng.choice(_BEFORE) + told + rng.choice(_AFTER)
    told = _BEFORE_VOWELS.sub("an ", told)
    return told[0].upper() + told[1:]


def _words_of_relations() -> Iterator[str]:
    for relation in _RELATIONS.values():
        for pair, others in relation.pairs.items():
            yield from (*pair, *others)


_ALL = list(dict.fromkeys(_words_of_relations()))


def tale_questions() -> list[Question]:
    """Every two pairs of words of the built-in text that differ in the same way, in either order."""
    return [
        Question(name, (*known, *asked))
        for name, relation in _RELATIONS.items()
        for known in relation.pairs
        for asked in relation.pairs
        if known != asked
    ]


def read_questions(path: Path, max_bad: float) -> list[Question]:
    """Questions in the format of word2vec: four words a line, `: NAME` before those of a section; # begins a remark.

    Raises:
        UserError: The file is missing, unreadable or holds no question, or too many lines hold other than four words.
    """
    lines, spoiled = read_lines(path, "analogies: four words a line")
    found: list[Question] = []
    bad: list[Bad] = []
    section = "all"
    for number, line in enumerate(lines):
        words = line.split()
        if number in spoiled:
            bad.append(Bad(f"{path.name}:{number + 1}", spoiled[number]))
        elif words[:1] == [":"]:
            section = " ".join(words[1:]) or "all"
        elif len(words) == 4:
            a, b, c, d = map(str.lower, words)
            found.append(Question(section, (a, b, c, d)))
        elif words and not words[0].startswith("#"):
            bad.append(Bad(f"{path.name}:{number + 1}", f"{len(words)} words; a question has four"))
    check_bad(bad, len(found) + len(bad), max_bad, f"questions of {path.name}")
    if not found:
        raise UserError(f"--analogies {path}: holds no question; give lines of four words: man woman king queen")
    return found
