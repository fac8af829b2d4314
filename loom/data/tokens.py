"""Tokens of raw text and back: subwords, words or characters, in a vocabulary that is one short text itself."""

from __future__ import annotations

import base64
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loom.data.pipeline import Ragged
from loom.errors import UserError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

Unit = Literal["subwords", "words", "characters"]
PADDING, UNKNOWN, START, END = range(4)
"""The first tokens of every vocabulary."""
KINDS = {"subwords": "bpe", "words": "word", "characters": "char"}
"""What SentencePiece calls the units."""
_JOINED = "\N{WORD JOINER}"
"""On the side of a sign that has no space there; words have none of their own."""
_JOINT = re.compile(f" ?{_JOINED} ?")
_NO_SPACE_BEFORE = re.compile(r" ([^\w\s(\[{\"'«„“#@&§$€£*+/=<>~-])(?!\w)")
_NO_SPACE_AFTER = re.compile(r"([(\[{«„]) ")
_AROUND_LINE_END = re.compile(r" *\n *")
_NO_SPACE_AROUND = re.compile(r"(?<=\w) (['\u2019-]) (?=\w)")
LONGEST = 10_000
"""Characters of a text that a vocabulary is learned from at once."""


class Tokenizer:
    """Texts to tokens and tokens to texts.

    A text is first brought into Unicode's composed form (NFC), its white space into single spaces, and into lower case
    if asked for. Subwords are byte pair encodings (Sennrich, Haddow and Birch, 2016, "Neural machine translation of
    rare words with subword units") with single bytes for characters that the training texts lack, so that every text
    of every script has tokens that give it back. Words are separated from the signs beside them, which know on what
    sides they had no space.

    Args:
        model: A serialized SentencePiece model, as base64 text.
        unit: What its tokens are.
        lower: Whether texts are brought into lower case.
        max_length: Longer texts are cut to this many tokens (0: never).
        lines: Whether white space is a part of the text: spaces as they are, and a token for the end of a line. (Words
            keep line ends alone.)
    """

    def __init__(
        self, model: str, unit: Unit = "subwords", lower: bool = False, max_length: int = 0, lines: bool = False
    ) -> None:
        self.model = model
        self.unit = unit
        self.lower = lower
        self.max_length = max_length
        self.lines = lines

    @classmethod
    def fit(
        cls, texts: Iterable[str], size: int, unit: Unit = "subwords", lower: bool = False, lines: bool = False
    ) -> Tokenizer:
        """A vocabulary of at most `size` tokens for texts, the same one for the same texts.

        Raises:
            UserError: The texts hold nothing, or the size is too small for them.
        """
        import sentencepiece

        tokenizer = cls("", unit, lower, lines=lines)
        exact: dict[str, Any] = {
            "remove_extra_whitespaces": False,
            "add_dummy_prefix": False,
            "user_defined_symbols": ["\n"],
        }
        # SentencePiece passes over a sentence of more than some bytes without a word.
        whole = [tokenizer.normalized(text) for text in texts]
        sentences = [text[start : start + LONGEST] for text in whole for start in range(0, len(text), LONGEST)]
        if not sentences:
            raise UserError("the training texts hold no words: check the text column")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                model_writer=model,
                model_type=KINDS[unit],
                vocab_size=size,
                hard_vocab_limit=False,
                byte_fallback=unit == "subwords",
                character_coverage=1.0,
                normalization_rule_name="identity",
                pad_id=PADDING,
                unk_id=UNKNOWN,
                bos_id=START,
                eos_id=END,
                max_sentence_length=4 * LONGEST,
                num_threads=1,
                **(exact if lines and unit != "words" else {}),
                minloglevel=2,
            )
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1].rpartition("] ")[2]
            if needed := re.search(r"required_chars\. \d+ vs (\d+)", reason):
                reason = f"give at least {needed[1]}, for the characters and bytes that texts are made of"
            raise UserError(f"--vocabulary-size {size}: no vocabulary of {unit} can be made: {reason}") from None
        return cls(base64.b64encode(model.getvalue()).decode("ascii"), unit, lower, lines=lines)

    @cached_property
    def _processor(self) -> SentencePieceProcessor:
        import sentencepiece

        return sentencepiece.SentencePieceProcessor(model_proto=base64.b64decode(self.model))

    def __len__(self) -> int:
        return int(self._processor.vocab_size())

    def settings(self, **changes: Any) -> dict[str, Any]:
        """The constructor's arguments, as a model's `Field` keeps them."""
        names = ("model", "unit", "lower", "max_length", "lines")
        return {name: getattr(self, name) for name in names} | changes

    def normalized(self, text: str) -> str:
        """A text as the vocabulary sees it."""
        text = unicodedata.normalize("NFC", text)
        text = text.lower() if self.lower else text
        rows = text.replace("\r\n", "\n").split("\n") if self.lines else [text]
        if self.unit == "words":
            return " \n ".join(" ".join(_marked_words(row)) for row in rows)
        return "\n".join(rows) if self.lines else " ".join(text.split())

    def encode(self, texts: Sequence[str]) -> Ragged:
        """Tokens of each text, and `END` after them."""
        found = self._processor.encode([self.normalized(text) for text in texts])
        if self.max_length:
            found = [tokens[: self.max_length - 1] for tokens in found]
        splits = np.cumsum([0, *(len(tokens) + 1 for tokens in found)])
        values = [token for tokens in found for token in (*tokens, END)]
        return Ragged(np.array(values, np.int32), splits)

    def encode_whole(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of several texts, one after the other, without any end."""
        found = self._processor.encode([self.normalized(text) for text in texts])
        return np.array([token for tokens in found for token in tokens], np.int32)

    def decode(self, tokens: Iterable[Sequence[int] | np.ndarray]) -> list[str]:
        """Text of each sequence of tokens, up to `END`."""
        rows = [[int(token) for token in row] for row in tokens]
        rows = [row[: row.index(END)] if END in row else row for row in rows]
        texts = self._processor.decode(rows) if rows else []
        if self.unit == "words":
            joined = (re.sub(" +", " ", _JOINT.sub("", text)) for text in texts)
            texts = [_AROUND_LINE_END.sub("\n", text).strip(" ") for text in joined]
        # Single bytes can be a line end, which only texts with lines have.
        return texts if self.lines else [" ".join(text.split()) for text in texts]

    def settled(self, tokens: np.ndarray) -> str:
        """The beginning of the tokens' text that stays as it is whatever follows them; for texts that grow."""
        (text,) = self.decode([tokens])
        return text.rstrip("\N{REPLACEMENT CHARACTER}")  # the first bytes of a character that has more

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """What each token stands for, with a space where a word begins; for figures."""
        names = {END: "(end)", PADDING: ""}
        pieces = (names[token] if token in names else self._processor.id_to_piece(token) for token in tokens)
        return [piece.replace("▁", " ").replace(_JOINED, "") for piece in pieces]


def split_words(text: str) -> list[str]:
    """Words and single signs. A letter's marks belong to its word, which `\\w` does not say of Indic vowel signs."""
    spaced = "".join(character if _is_of_word(character) else f" {character} " for character in text)
    return spaced.split()


def _marked_words(text: str) -> list[str]:
    """Words and single signs, these with a mark on each side where there is no space."""
    marked = []
    for together in text.replace(_JOINED, "").split():
        parts = split_words(together)
        words = [_is_of_word(part[0]) for part in parts]
        for place, (part, is_word) in enumerate(zip(parts, words, strict=True)):
            before = _JOINED if place > 0 and not is_word else ""
            after = _JOINED if not is_word and words[place + 1 : place + 2] == [True] else ""
            marked.append(f"{before}{part}{after}")
    return marked


def _is_of_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN" or character in "_\u200c\u200d"


def join_words(text: str) -> str:
    """Words and signs without the spaces that are usually not written between them."""
    text = _NO_SPACE_AROUND.sub(r"\1", text)
    text = _NO_SPACE_AFTER.sub(r"\1", text)
    previous = ""
    while previous != text:
        previous, text = text, _NO_SPACE_BEFORE.sub(r"\1", text)
    return text


def what_follows(prompt: str, text: str) -> str:
    """The rest of a text that begins as a prompt does, whose last character may be incomplete."""
    known = prompt if text.startswith(prompt) else prompt.rstrip("\N{REPLACEMENT CHARACTER}")
    return text[len(known) :]
