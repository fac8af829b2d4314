"""Sentences whose words have tags: CoNLL-U and column files, entities in BIO tags, and their scores."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from loom.app import Metrics
from loom.config import TrainingConfig
from loom.data.parts import read_parts
from loom.data.pipeline import Ragged
from loom.data.sentences import SENTENCE
from loom.data.sources import Examples
from loom.data.tables import Bad, Table, read_lines
from loom.data.text import PADDING, UNKNOWN
from loom.errors import UserError

TAGS = "tags"
"""Column of tags, with a tab between two."""
CONLLU_FIELDS = 10
FORM, MISC = 2, 10
TASK_COLUMNS = {"upos": 4, "xpos": 5}
"""Numbers of CoNLL-U's columns, from 1."""
SUFFIXES = frozenset({".conllu", ".conll", ".tsv", ".txt", ".bio", ".iob", ".iob2"})
_BIO = re.compile(r"O|[BI]-.+")
_DIGIT = re.compile(r"\d")
_SKIPPED_ID = re.compile(r"\d+-\d+|\d+\.\d+")  # a token of several words, a word that is not in the text
_DOCUMENT = "-DOCSTART-"


@dataclass(frozen=True)
class Reading:
    """Which columns of a file count, from 1."""

    task: str
    """`upos`, `xpos` or `ner`: what to read of CoNLL-U."""
    word_column: int
    """0: CoNLL-U's FORM, or the first."""
    tag_column: int
    """0: that of the task in CoNLL-U (`NER=` in MISC for `ner`), or the last."""
    max_words: int
    """Longer sentences are quarantined."""


class Entity(NamedTuple):
    """Words `start` to `end` (not included) are one thing of this kind."""

    kind: str
    start: int
    end: int


def read_tagged(config: TrainingConfig, reading: Reading) -> tuple[Examples, list[str]]:
    """Read the file or folder that `--data` names, see `loom.data.parts.read_parts`, and notes on how it was read.

    Raises:
        UserError: It is missing, holds no sentence or no file to train on, or too many bad sentences.
    """
    return read_parts(config, SUFFIXES, partial(read_tagged_file, reading=reading), "sentences")


def read_tagged_file(path: Path, reading: Reading) -> Table:
    """Read a CoNLL-U file, or one with a word and its tags on each line; blank lines end sentences.

    In other files than CoNLL-U, tabs separate columns, or white space where a line has no tab. Quarantined is, with the
    line, a sentence that has too few columns, no tag, bytes that are not UTF-8 or more words than `max_words`.

    Returns:
        Columns `sentence` (words, each followed by a tab) and `tags` (with a tab between two).

    Raises:
        UserError: The file is missing, unreadable or has no sentences.
    """
    import pandas as pd

    lines, spoiled = read_lines(path, "a word and its tag on each line")
    is_conllu = path.suffix.lower() == ".conllu" or _looks_like_conllu(lines)
    rows, starts, bad = [], [], []
    for start, block in _blocks(lines):
        words, tags, problem = _read_block(start, block, reading, is_conllu, spoiled)
        if problem is not None:
            bad.append(Bad(f"{path.name}:{problem[0] + 1}", problem[1]))
        elif words and words != [_DOCUMENT]:
            rows.append(("".join(word + "\t" for word in words), "\t".join(tags)))
            starts.append(start + 1)
    if not rows and not bad:
        raise UserError(f"{path}: holds no sentences; it needs a word and its tag on each line")
    return Table(pd.DataFrame(rows, columns=[SENTENCE, TAGS], dtype=object), bad, path, starts)


def _looks_like_conllu(lines: Iterable[str]) -> bool:
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    return first.count("\t") == CONLLU_FIELDS - 1


def _blocks(lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Lines between blank ones, with the number of the first, from 0."""
    start = 0
    for number, line in enumerate([*lines, ""]):
        if not line.strip():
            if number > start:
                yield start, list(lines[start:number])
            start = number + 1


def _read_block(
    start: int, lines: Sequence[str], reading: Reading, is_conllu: bool, spoiled: dict[int, str]
) -> tuple[list[str], list[str], tuple[int, str] | None]:
    """Words and tags of a sentence, and the line of what is wrong with it, if anything is."""
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate(lines, start):
        if number in spoiled:
            return [], [], (number, spoiled[number])
        if line.startswith("#") and (is_conllu or (not words and _is_comment(line, lines))):
            continue
        try:
            token = _conllu_token if is_conllu else _token
            found = token(line.rstrip("\r\n"), reading)
        except ValueError as error:
            return [], [], (number, str(error))
        if found is not None:
            words.append(found[0])
            tags.append(found[1])
    if len(words) > reading.max_words:
        return [], [], (start, f"the sentence has {len(words):,} words, more than {reading.max_words:,}")
    return words, tags, None


def _is_comment(line: str, lines: Sequence[str]) -> bool:
    """Whether a line with # before a sentence is none of its words, which have as many columns as the last one."""
    first, last = (len(each.split("\t" if "\t" in lines[-1] else None)) for each in (line, lines[-1]))
    return first != last or all(each.startswith("#") for each in lines)


def _conllu_token(line: str, reading: Reading) -> tuple[str, str] | None:
    fields = line.split("\t")
    if len(fields) != CONLLU_FIELDS:
        raise ValueError(f"the line has {len(fields)} columns, CoNLL-U has {CONLLU_FIELDS}")
    if _SKIPPED_ID.fullmatch(fields[0]):
        return None
    if not fields[0].isdecimal():
        raise ValueError(f"the id {fields[0]!r} is no number")
    word = _field(fields, reading.word_column or FORM)
    if reading.tag_column or reading.task in TASK_COLUMNS:
        tag = _field(fields, reading.tag_column or TASK_COLUMNS[reading.task])
    else:
        entries = dict(entry.partition("=")[::2] for entry in fields[MISC - 1].split("|"))
        tag = entries.get("NER", "_")
    if tag == "_":
        raise ValueError("the word has no tag" + (": there is no NER= in MISC" if reading.task == "ner" else ""))
    return word, tag


def _token(line: str, reading: Reading) -> tuple[str, str]:
    fields = line.split("\t") if "\t" in line else line.split()
    if len(fields) < 2:
        raise ValueError("the line has one column, a word and its tag are two")
    return _field(fields, reading.word_column or 1), _field(fields, reading.tag_column or len(fields))


def _field(fields: Sequence[str], column: int) -> str:
    if column > len(fields):
        raise ValueError(f"the line has {len(fields)} columns, column {column} is asked for")
    value = composed(fields[column - 1].strip())
    if not value:
        raise ValueError(f"column {column} is empty")
    return value


def is_bio(tags: Iterable[str]) -> bool:
    """Whether tags say where entities begin (`B-PER`), go on (`I-PER`) and are not (`O`)."""
    tags = set(tags)
    return len(tags) > 1 and all(map(_BIO.fullmatch, tags))


def entity_scores(truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Metrics:
    """Precision, recall and F1 of the entities of all sentences: right ones have their kind, first and last word."""
    from nervaluate import Evaluator

    kinds = sorted({tag.partition("-")[2] for tags in (*truth, *predicted) for tag in tags} - {""})
    scores = Evaluator([*map(list, truth)], [*map(list, predicted)], kinds, loader="list").evaluate()
    strict = scores["overall"]["strict"]
    return {name: float(getattr(strict, name)) for name in ("precision", "recall", "f1")}


def entities(tags: Sequence[str]) -> list[Entity]:
    """Entities of BIO tags; an `I-` that goes on with nothing of its kind begins one, as in CoNLL's own scoring."""
    found: list[Entity] = []
    start, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind and (prefix != "I" or name != kind):
            found.append(Entity(kind, start, place))
            kind = ""
        if prefix != "O" and not kind:
            start, kind = place, name
    return found


def composed(text: str) -> str:
    """A text in Unicode's composed form (NFC), in which letters with marks are written in one way only."""
    return unicodedata.normalize("NFC", text)


def words_of(sentence: str) -> list[str]:
    """Words of a sentence that is taken apart already."""
    return sentence.rstrip("\t").split("\t")


def normalized(word: str) -> str:
    """A word as vocabularies hold it: small, all digits 0; what `layers.NormalizeWords` does to tensors."""
    return _DIGIT.sub("0", word.lower())


def vocabulary(sentences: Iterable[str], size: int, min_count: int) -> tuple[str, ...]:
    """The most frequent words after padding and the unknown word, but for rarer ones; ties in alphabetical order."""
    counts = Counter(normalized(word) for sentence in sentences for word in words_of(sentence))
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    frequent = [word for word in ordered if counts[word] >= min_count] or ordered[:1]
    return (PADDING, UNKNOWN, *frequent[: size - 2])


def scores(
    truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], known: Sequence[np.ndarray], is_bio: bool
) -> Metrics:
    """Share of right tags, that among known and among unknown words, and of BIO tags the scores of entities.

    Args:
        truth: Tags of each sentence.
        predicted: As many tags.
        known: Whether each word is one of the vocabulary, for each sentence.
        is_bio: Whether tags are of entities; a part of the data may hold none.
    """
    right = [np.array([a == b for a, b in zip(*row, strict=True)]) for row in zip(truth, predicted, strict=True)]
    found = {"accuracy": float(np.concatenate(right).mean())}
    is_known = np.concatenate(known)
    for name, words in (("known", is_known), ("unknown", ~is_known)):
        if words.any():
            found[f"accuracy_{name}"] = float(np.concatenate(right)[words].mean())
    return found | (entity_scores(truth, predicted) if is_bio else {})


def names(tags: Ragged, classes: Sequence[str]) -> list[list[str]]:
    """Tags of each sentence by name."""
    return [[classes[tag] for tag in row] for row in np.split(tags.values, tags.splits[1:-1])]


# What can be had without a network: each takes training sentences with their tags, and gives tags for others.

Rows = Sequence[Sequence[str]]


def most_frequent_tag(words: Rows, tags: Rows, others: Rows) -> list[list[str]]:
    """The same tag for every word."""
    best = Counter(tag for row in tags for tag in row).most_common(1)[0][0]
    return [[best] * len(row) for row in others]


def most_frequent_tag_of_each_word(words: Rows, tags: Rows, others: Rows) -> list[list[str]]:
    """The tag that a word has most often; for unknown words the most frequent tag."""
    counts: dict[str, Counter[str]] = {}
    for word, tag in zip(chain.from_iterable(words), chain.from_iterable(tags), strict=True):
        counts.setdefault(normalized(word), Counter())[tag] += 1
    best = {word: count.most_common(1)[0][0] for word, count in counts.items()}
    other = most_frequent_tag(words, tags, [[""]])[0][0]
    return [[best.get(normalized(word), other) for word in row] for row in others]


def logistic_regression(words: Rows, tags: Rows, others: Rows) -> list[list[str]]:
    """Logistic regression, fitted by stochastic descent, on each word, its ends and shape, and its neighbours."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import SGDClassifier

    vectorizer = CountVectorizer(analyzer=lambda features: features, binary=True)
    numbers = vectorizer.fit_transform(chain.from_iterable(map(word_features, words)))
    model = SGDClassifier(loss="log_loss", alpha=1e-5, max_iter=10, tol=None, random_state=0)
    model.fit(numbers, list(chain.from_iterable(tags)))
    found = iter(model.predict(vectorizer.transform(chain.from_iterable(map(word_features, others)))))
    return [[str(next(found)) for _ in row] for row in others]


def word_features(words: Sequence[str]) -> list[list[str]]:
    """What a linear model is told of each word of a sentence."""
    known = [normalized(word) for word in words]
    around = ["|", "|", *known, "|", "|"]
    rows = []
    for place, (word, raw) in enumerate(zip(known, words, strict=True)):
        before, after = around[place + 1], around[place + 3]
        features = [f"word {word}", f"shape {_shape(raw)}", f"shape {_shape(raw)} {place == 0}"]
        features += [f"suffix {word[-length:]}" for length in range(1, 5)]
        features += [f"prefix {word[:length]}" for length in range(1, 5)]
        features += [f"{offset} {around[place + 2 + offset]}" for offset in (-2, -1, 1, 2)]
        features += [f"before ...{before[-3:]}", f"after ...{after[-3:]}"]
        rows.append(features)
    return rows


def _shape(word: str) -> str:
    """`Aa0` for `Route66`."""
    kinds = ("A" if sign.isupper() else "0" if sign.isdigit() else "a" if sign.isalpha() else sign for sign in word)
    return "".join(kind for kind, _ in groupby(kinds))
