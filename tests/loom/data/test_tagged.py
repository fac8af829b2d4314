"""Tagged sentences: files, entities and their scores, the built-in ones, and what linear models make of them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from apps.tagging import Config
from loom import UserError
from loom.data import tagged
from loom.data.sentences import tagged_sentences
from loom.data.tagged import Reading

CONLLU = """# sent_id = 1
# text = Don't go.
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\tVB\t_\t0\troot\t_\tNER=O
2\tn't\tnot\tPART\tRB\t_\t1\tx\t_\tSpaceAfter=No|NER=B-X
2.1\tgone\tgo\tVERB\tVB\t_\t_\t_\t_\t_
3\t#\t#\tSYM\tNN\t_\t1\tx\t_\tNER=O

1\tYes\tyes\tINTJ\tUH\t_\t0\troot\t_\tNER=O
"""


def reading(task: str = "upos", word: int = 0, tag: int = 0, max_words: int = 100) -> Reading:
    return Reading(task, word, tag, max_words)


def read(folder: Path, content: str | bytes, kind: Reading | None = None, name: str = "a.conllu") -> tagged.Table:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return tagged.read_tagged_file(folder / name, kind or reading())


@pytest.mark.parametrize(
    ("kind", "tags"),
    [
        (reading(), ["AUX PART SYM", "INTJ"]),
        (reading("xpos"), ["VB RB NN", "UH"]),
        (reading("ner"), ["O B-X O", "O"]),
        (reading(word=3, tag=8), ["root x x", "root"]),
    ],
)
def test_conllu_is_read_without_multiword_tokens_and_empty_nodes(
    kind: Reading, tags: list[str], tmp_path: Path
) -> None:
    table = read(tmp_path, CONLLU, kind)
    assert [row.replace("\t", " ") for row in table.frame["tags"]] == tags
    words = ["do not #", "yes"] if kind.word_column else ["Do n't #", "Yes"]
    assert [" ".join(tagged.words_of(row)) for row in table.frame["sentence"]] == words
    assert table.origins == [1, 9]


def test_column_files_have_the_word_first_and_the_tag_last(tmp_path: Path) -> None:
    table = read(
        tmp_path, "-DOCSTART- O\n\n# note\nRavi NNP B-PER\r\n# NN O\nsings VBZ O\n\n\n\nSo\tRB\tO", name="a.txt"
    )
    assert table.frame["sentence"].tolist() == ["Ravi\t#\tsings\t", "So\t"]
    assert table.frame["tags"].tolist() == ["B-PER\tO\tO", "O"]
    table = read(tmp_path, "# a note of many words\n#one X\n# Y\nend Z\n\n# note\n\n#\tA\nb\tB", name="a.txt")
    assert table.frame["sentence"].tolist() == ["#one\t#\tend\t", "#\tb\t"]


def test_bad_sentences_are_quarantined_with_their_line(tmp_path: Path) -> None:
    long = "x" * 100_000
    lines = [
        "a\tX",
        "b",
        "",
        "c\t",
        "",
        b"caf\xe9\tX",
        "",
        f"{long}\tX",
        "",
        "d\tX",
        "e\tX",
        "f\tX",
        "",
        "g\tX\0",
        "",
        long,
    ]
    content = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    table = read(tmp_path, content, reading(max_words=2), "a.tsv")
    assert table.frame["sentence"].tolist() == [long + "\t"]
    assert table.bad == [
        ("a.tsv:2", "the line has one column, a word and its tag are two"),
        ("a.tsv:4", "column 2 is empty"),
        ("a.tsv:6", "the byte 0xE9 is not UTF-8"),
        ("a.tsv:10", "the sentence has 3 words, more than 2"),
        ("a.tsv:14", "there is a NUL byte in it"),
        ("a.tsv:16", "the line has one column, a word and its tag are two"),
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("1\tDo\tdo", "the line has 3 columns, CoNLL-U has 10"),
        ("x\tDo\tdo\tAUX\tVB\t_\t0\troot\t_\t_", "the id 'x' is no number"),
        ("1\tDo\tdo\t_\tVB\t_\t0\troot\t_\t_", "the word has no tag"),
    ],
)
def test_bad_lines_of_conllu_are_named(line: str, why: str, tmp_path: Path) -> None:
    assert read(tmp_path, f"{CONLLU}\n{line}\n").bad == [("a.conllu:11", why)]


@pytest.mark.parametrize("data", ["", "en-ud-train.conllu"])
def test_parts_are_files_in_a_folder_and_beside_the_training_file(data: str, tmp_path: Path) -> None:
    for name in ("en-ud-train.conllu", "en-ud-dev.conllu", "en-ud-test.conllu", "readme.txt"):
        (tmp_path / name).write_text(CONLLU)
    examples, notes = tagged.read_tagged(Config(data=str(tmp_path / data)), reading())
    assert examples.test is not None
    assert examples.validation is not None
    assert [len(part) for part in (examples.train, examples.test, examples.validation)] == [2, 2, 2]
    assert "validation is en-ud-dev.conllu" in notes[0]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no file to train on"),
        ({"train.conllu": ""}, "is empty; it needs a word and its tag on each line"),
        ({"train.txt": "# nothing\n\n"}, "holds no sentences"),
        ({"train.txt": "a X\n\nb\n"}, r"1 of 2 sentences of .* are bad \(50 %.*train.txt:3: the line has one column"),
    ],
)
def test_what_cannot_be_used_is_one_line(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        tagged.read_tagged(Config(data=str(tmp_path)), reading())


SCORED = [  # truth, prediction, and what seqeval 1.2.2 gave for each: precision, recall, F1
    ("B-PER I-PER O B-LOC", "B-PER I-PER O B-LOC", (1.0, 1.0, 1.0)),
    ("B-PER I-PER O B-LOC", "B-PER O O B-LOC", (0.5, 0.5, 0.5)),
    ("B-PER B-PER O", "B-PER I-PER O", (0.0, 0.0, 0.0)),
    ("O B-LOC I-LOC / B-PER", "O I-LOC I-LOC / B-LOC", (0.5, 0.5, 0.5)),
    ("B-LOC I-PER O B-PER", "B-LOC I-LOC O B-PER", (1 / 2, 1 / 3, 0.4)),
    ("O B-LOC", "B-PER B-LOC", (0.5, 1.0, 2 / 3)),
]


@pytest.mark.parametrize(("truth", "predicted", "expected"), SCORED)
def test_entity_scores_are_those_of_conll(truth: str, predicted: str, expected: tuple[float, ...]) -> None:
    rows = [[row.split() for row in text.split(" / ")] for text in (truth, predicted)]
    found = tagged.entity_scores(*rows)
    assert tuple(found.values()) == pytest.approx(expected)
    sets = [{(place, *entity) for place, tags in enumerate(part) for entity in tagged.entities(tags)} for part in rows]
    assert len(sets[0] & sets[1]) / len(sets[1]) == pytest.approx(expected[0])


def test_entity_scores_are_their_definition() -> None:
    """Whatever follows what: `I-` after nothing, after another kind, entities inside others."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        truth, predicted = rng.choice(["O", "B-A", "I-A", "B-B", "I-B"], (2, 2, 6)).tolist()
        sets = [{(row, *entity) for row, tags in enumerate(part) for entity in tagged.entities(tags)}
                for part in (truth, predicted)]  # fmt: skip
        both = len(sets[0] & sets[1])
        expected = [both / max(len(sets[1]), 1), both / max(len(sets[0]), 1), 2 * both / max(sum(map(len, sets)), 1)]
        assert list(tagged.entity_scores(truth, predicted).values()) == pytest.approx(expected)


def test_tags_are_of_names_if_they_say_where_those_begin() -> None:
    assert tagged.is_bio(["O", "B-PER", "I-PER"])
    assert not tagged.is_bio(["O"])
    assert not tagged.is_bio(["O", "NOUN"])


def test_scores_tell_known_and_unknown_words_apart() -> None:
    known = [np.array([True, False]), np.array([True])]
    scores = tagged.scores([["A", "B"], ["A"]], [["A", "A"], ["A"]], known, False)
    assert scores == {"accuracy": pytest.approx(2 / 3), "accuracy_known": 1.0, "accuracy_unknown": 0.0}


def test_a_part_without_entities_has_scores_of_them() -> None:
    scores = tagged.scores([["O", "O"]], [["O", "O"]], [np.array([True, True])], True)
    assert scores == {"accuracy": 1.0, "accuracy_known": 1.0, "precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_letters_with_marks_are_composed(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "é")
    assert read(tmp_path, f"caf{decomposed}\tX", name="a.tsv").frame["sentence"].tolist() == ["café\t"]


def test_built_in_sentences_are_as_hard_as_they_say() -> None:
    frame = tagged_sentences(1500)
    assert frame.equals(tagged_sentences(1500))
    assert frame.head(50).equals(tagged_sentences(50))
    words = [tagged.words_of(sentence) for sentence in frame["sentence"]]
    known = {tagged.normalized(word) for row in words[300:] for word in row}
    is_known = [np.array([tagged.normalized(word) in known for word in row]) for row in words[:300]]
    found = {}
    for task, methods in {"upos": 2, "ner": 1}.items():
        tags = [row.split("\t") for row in frame[task]]
        assert [len(row) for row in tags] == [len(row) for row in words]
        for method in (tagged.logistic_regression, tagged.most_frequent_tag_of_each_word)[:methods]:
            found[task, method] = tagged.scores(
                tags[:300], method(words[300:], tags[300:], words[:300]), is_known, task == "ner"
            )
    assert found["upos", tagged.most_frequent_tag_of_each_word]["accuracy"] == pytest.approx(0.757, abs=0.005)
    assert found["upos", tagged.logistic_regression]["accuracy"] == pytest.approx(0.974, abs=0.005)
    assert found["ner", tagged.logistic_regression]["f1"] == pytest.approx(0.978, abs=0.01)
