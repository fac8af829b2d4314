"""Layers for single words: texts taken apart, letters, shapes, and rows for prefixes and suffixes.

Those that take strings need the TensorFlow backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

Tensor = Any
Shape = tuple[int | None, ...]

LETTER_IDS = 1024
"""Ids that `LetterIds` gives: those of code points that leave the same remainder are shared."""
WORD_SHAPES = 8
"""Ids that `WordShapes` gives."""

_CLITICS = "s|S|re|RE|ve|VE|ll|LL|d|D|m|M"
_ABBREVIATIONS = "Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|No|Inc|Ltd|Co|Corp"
_RULES = (  # in this order, on a text with a space at either end
    (r"[\s\p{Z}]+", " "),
    (r"([^\p{L}\p{M}\p{N}\x{200C}\x{200D}'\x{2019}.,:/@&_ -])", r" \1 "),  # the joiners belong to words
    (r"([,:/])([^\p{N}])", r" \1 \2"),
    (r"([^\p{N}])([,:/])", r"\1 \2 "),
    (r" (['\x{2019}])", r" \1 "),
    (r"(['\x{2019}]) ", r" \1 "),
    (r"(\p{L})([nN]['\x{2019}][tT]) ", r"\1 \2 "),
    (rf"([\p{{L}}\p{{N}}])(['\x{{2019}}](?:{_CLITICS})) ", r"\1 \2 "),
    (r" ([cC]an)(not) ", r" \1 \2 "),
    (r"(\.\.+)", r" \1 "),
    (r"([\p{L}\p{M}]{2}|[^\p{L}. ])\. ", r"\1 . "),
    (rf" ({_ABBREVIATIONS}) \. ", r" \1. "),
    (r" +", "\t"),
)
_SHAPES = (
    r"\P{L}*\p{Nd}\P{L}*",  # a number
    r"\P{L}+",  # punctuation
    r".*\p{Nd}.*",  # letters and digits
    r"\P{Ll}*\p{Lu}\P{Ll}*\p{Lu}\P{Ll}*",  # capitals only
    r"\p{Lu}\P{Lu}*",  # a capital first
    r".*\p{Lu}.*",  # a capital inside
    r"(?s).*",  # small letters, or those of a script without capitals
)
_FIRST_FACTOR, _SECOND_FACTOR = 30011, 40503  # odd and without common factors, so that affixes spread over all rows

_registered = keras.saving.register_keras_serializable(package="kerasloom")


def split_words(texts: Tensor) -> Tensor:
    """Words of each text, as `SplitWords` takes them apart.

    Args:
        texts: Strings `(batch,)`.

    Returns:
        Ragged strings `(batch, None)`: texts of very different lengths fill nothing up.
    """
    import tensorflow as tf

    apart = tf.strings.join([" ", texts, " "])
    for pattern, replacement in _RULES:
        apart = tf.strings.regex_replace(apart, pattern, replacement)
    known = tf.strings.regex_full_match(texts, r"(?s).*\t.*")
    apart = tf.strings.regex_replace(tf.where(known, texts, apart), r"\t+", "\t")
    apart = tf.strings.regex_replace(apart, r"^\t|\t$", "")
    return tf.strings.split(apart, "\t")


@_registered
class SplitWords(keras.layers.Layer):
    r"""Takes texts apart into words; punctuation marks are words too.

    A text with a tab in it has been taken apart already: it is split at its tabs and nowhere else. In others, white
    space ends a word, punctuation is a word of its own except inside numbers (`3.14`), abbreviations (`U.S.`, `Dr.`)
    and compounds (`long-term`), and so are English endings with an apostrophe (`do n't`, `John 's`), as in the
    treebanks of Universal Dependencies.

    Call arguments:
        text: Strings `(batch, 1)`.

    Output shape: Strings `(batch, words)`, "" where a text has no more words; one at least.
    """

    def call(self, text: Tensor) -> Tensor:
        """Split."""
        import tensorflow as tf

        words = split_words(text[:, 0]).to_tensor("")
        return tf.pad(words, [[0, 0], [0, tf.maximum(1 - tf.shape(words)[1], 0)]], constant_values="")

    def compute_output_spec(self, text: keras.KerasTensor) -> keras.KerasTensor:
        """One string for each word."""
        return keras.KerasTensor((text.shape[0], None), "string")


@_registered
class NormalizeWords(keras.layers.Layer):
    """Makes words small, and all their digits 0.

    Args:
        digits: Whether digits become 0; otherwise they stay as they are.

    Call arguments:
        words: Strings.

    Output shape: that of `words`.
    """

    def __init__(self, digits: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.digits = digits

    def call(self, words: Tensor) -> Tensor:
        """Normalize."""
        import tensorflow as tf

        small = tf.strings.lower(words, encoding="utf-8")
        return tf.strings.regex_replace(small, r"\p{Nd}", "0") if self.digits else small

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "digits": self.digits}

    def compute_output_spec(self, words: keras.KerasTensor) -> keras.KerasTensor:
        """As many words as before."""
        return keras.KerasTensor(words.shape, "string")


@_registered
class LetterIds(keras.layers.Layer):
    """The letters of words, their code points modulo 1,023: exact for Latin letters, without a vocabulary for others.

    Args:
        length: Letters of a word; of longer words only the first and the last ones, half of each, count.

    Call arguments:
        words: Strings `(batch, words)`.

    Output shape: Integers `(batch, words, length)`, 1 to 1,023, then zeros.

    Raises:
        ValueError: A length below 2.
    """

    def __init__(self, length: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if length < 2:
            raise ValueError(f"length must be at least 2, not {length}")
        self.length = length

    def call(self, words: Tensor) -> Tensor:
        """Look at the letters."""
        import tensorflow as tf

        head, tail = self.length - self.length // 2, self.length // 2
        ends = tf.strings.regex_replace(tf.reshape(words, [-1]), f"(?s)^(.{{{head}}}).+(.{{{tail}}})$", r"\1\2")
        points = tf.strings.unicode_decode(ends, "UTF-8")
        ids = points.with_values(1 + points.values % (LETTER_IDS - 1)).to_tensor(shape=[None, self.length])
        return tf.reshape(ids, tf.concat([tf.shape(words), [self.length]], axis=0))

    def compute_output_spec(self, words: keras.KerasTensor) -> keras.KerasTensor:
        """Letters of each word."""
        return keras.KerasTensor((*words.shape, self.length), "int32")

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "length": self.length}


@_registered
class KnownLetters(keras.layers.Layer):
    """The letters of texts, by their place among those that are known; capitals count as small letters.

    Args:
        letters: The known ones, single code points.

    Call arguments:
        text: Strings `(batch, 1)`.

    Output shape: Integers `(batch, letters)`: from 2 up for the known letters, 1 for others, zeros after a text's last
    letter; one at least.

    Raises:
        ValueError: No letters, or some that are not one code point each.
    """

    def __init__(self, letters: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not letters or any(len(letter) != 1 for letter in letters):
            raise ValueError(f"letters must be single code points, not {letters!r}")
        self.letters = list(letters)

    def call(self, text: Tensor) -> Tensor:
        """Compare every letter with the known ones."""
        import tensorflow as tf

        points = tf.strings.unicode_decode(tf.strings.lower(text[:, 0], encoding="utf-8"), "UTF-8")
        known = tf.equal(points.values[:, None], [[ord(letter) for letter in self.letters]])
        numbers = tf.where(tf.reduce_any(known, axis=1), 2 + tf.argmax(known, axis=1, output_type=tf.int32), 1)
        padded = points.with_values(numbers).to_tensor()
        return tf.pad(padded, [[0, 0], [0, tf.maximum(1 - tf.shape(padded)[1], 0)]])

    def compute_output_spec(self, text: keras.KerasTensor) -> keras.KerasTensor:
        """One number for each letter."""
        return keras.KerasTensor((text.shape[0], None), "int32")

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "letters": self.letters}


@_registered
class WordShapes(keras.layers.Layer):
    """What words look like.

    1 a number, 2 punctuation, 3 letters with digits, 4 capitals only, 5 a capital first (and no other), 6 a capital
    inside, 7 anything else; 0 is no word.

    Call arguments:
        words: Strings.

    Output shape: Integers of the shape of `words`.
    """

    def call(self, words: Tensor) -> Tensor:
        """Match the patterns, of which the first one counts."""
        import tensorflow as tf

        shapes = tf.zeros_like(words, tf.int32)
        for number, pattern in reversed(list(enumerate(_SHAPES, start=1))):
            shapes = tf.where(tf.strings.regex_full_match(words, pattern), number, shapes)
        return tf.where(words == "", 0, shapes)

    def compute_output_spec(self, words: keras.KerasTensor) -> keras.KerasTensor:
        """One number for each word."""
        return keras.KerasTensor(words.shape, "int32")


@_registered
class AffixRows(keras.layers.Layer):
    """Rows of an embedding for the prefixes and suffixes of words, by hashing.

    Args:
        longest: Letters of the longest prefix and suffix; there is one of each length up to it.
        buckets: Number of rows that they share.

    Call arguments:
        letters: Integers `(batch, words, letters)`, zeros after a word's last letter.

    Output shape: Integers `(batch, words, 2 · longest)`, 1 to `buckets`; 0 where a word is shorter than its affix.

    Raises:
        ValueError: A number below 1, or hashes that would overflow.
    """

    def __init__(self, longest: int, buckets: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if longest < 1 or not 1 <= buckets <= 2**16:
            raise ValueError(f"longest ({longest}) must be at least 1 and buckets ({buckets}) lie between 1 and 65,536")
        self.longest = longest
        self.buckets = buckets

    def call(self, letters: Tensor) -> Tensor:
        """Hash the letters from either end, one more at a time."""
        letters = ops.cast(letters, "int32")
        lengths = ops.sum(ops.cast(letters != 0, "int32"), axis=-1)
        rows = []
        for side in (0, 1):
            hashed = ops.full_like(lengths, 1 + side)
            for step in range(self.longest):
                first = ops.full_like(lengths, min(step, letters.shape[-1] - 1))
                place = ops.maximum(lengths - 1 - step, 0) if side else first
                letter = ops.take_along_axis(letters, ops.expand_dims(place, -1), axis=-1)[..., 0]
                hashed = ops.mod(hashed * _FIRST_FACTOR, self.buckets)
                hashed = ops.mod(hashed + letter * _SECOND_FACTOR, self.buckets)
                rows.append(ops.where(lengths > step, 1 + hashed, 0))
        return ops.stack(rows, axis=-1)

    def compute_output_spec(self, letters: keras.KerasTensor) -> keras.KerasTensor:
        """Rows of each word's affixes."""
        return keras.KerasTensor((*letters.shape[:-1], 2 * self.longest), "int32")

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "longest": self.longest, "buckets": self.buckets}


@_registered
class MaxOverLetters(keras.layers.Layer):
    """The largest value of each feature over the letters of a word.

    Call arguments:
        features: `(batch, words, letters, features)`, or the letters of all words in one row.
        letters: Integers `(batch, words, letters)`, zeros after a word's last letter: those do not count.

    Output shape: `(batch, words, features)`; zeros where there is no word.
    """

    def call(self, features: Tensor, letters: Tensor) -> Tensor:
        """Pool."""
        features = ops.reshape(features, (*ops.shape(letters), features.shape[-1]))
        valid = ops.expand_dims(letters != 0, -1)
        highest = ops.max(ops.where(valid, features, ops.full_like(features, -3e4)), axis=2)  # within float16
        return ops.where(ops.any(valid, axis=2), highest, ops.zeros_like(highest))

    def compute_mask(self, features: Tensor, mask: Tensor | None = None) -> None:
        """Returns none: a mask of the features would be one of letters."""
        return

    def compute_output_spec(self, features: keras.KerasTensor, letters: keras.KerasTensor) -> keras.KerasTensor:
        """One vector for each word."""
        return keras.KerasTensor((*letters.shape[:2], features.shape[-1]), features.dtype)
