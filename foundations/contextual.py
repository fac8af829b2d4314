"""Static and contextual vectors of "bank": by the money and by the river, before and after self-attention.

python foundations/contextual.py [--seeds N] [--figure FILE] [--json FILE]

Sentences of a small grammar, in which half of the banks have money and the other half a river. A network of embeddings,
positions and transformer blocks learns to guess words that are hidden from it, as BERT does; nobody tells it that there
are two kinds of banks. Then the vector of "bank" is taken from sentences it has never seen: the static one, which the
embedding gives it, and the contextual one that the blocks make of it. Compared are cosines between banks of one kind
and of two, and how often the bank that is most similar to another one is of the same kind.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np

from foundations.comparison import Result, Training, markdown, run, shuffled
from loom.lazy import keras, layers, tf
from loom.report import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SENTENCES, TESTED, BATCH, EPOCHS = 2000, 1500, 50, 30
UNITS, HEADS, BLOCKS, LEARNING_RATE = 32, 4, 2, 0.004
HIDDEN = 0.25
"""Share of the words that are hidden in training."""
PADDING, MASK = "", "?"
KINDS = {
    "money": {
        "who": ("banker", "customer", "lawyer", "company", "clerk"),
        "does": ("opened", "robbed", "owns", "called", "sued"),
        "what": ("account", "loan", "interest", "cash", "credit"),
        "then": ("grew", "failed", "closed", "pays", "lends"),
    },
    "river": {
        "who": ("fisherman", "swimmer", "duck", "farmer", "child"),
        "does": ("reached", "climbed", "left", "walked", "saw"),
        "what": ("water", "mud", "grass", "fish", "reeds"),
        "then": ("flooded", "eroded", "dried", "froze", "flowered"),
    },
}
PATTERNS = (
    "the {who} {does} the bank",
    "the bank {then} near the {what}",
    "the {who} {does} the bank with the {what}",
    "the bank and the {what} {then}",
    "{what} at the bank that the {who} {does}",
    "the old bank {then} when the {who} {does} it",
)


def sentences(count: int, seed: int) -> tuple[list[list[str]], np.ndarray]:
    """Sentences as lists of words, and which kind of bank each is about."""
    generator = random.Random(seed)
    kinds = [generator.randrange(2) for _ in range(count)]
    texts = []
    for kind in kinds:
        words = {place: generator.choice(choices) for place, choices in list(KINDS.values())[kind].items()}
        texts.append(generator.choice(PATTERNS).format(**words).split())
    return texts, np.array(kinds)


def vocabulary() -> list[str]:
    """All words of the grammar, after padding and what stands for a hidden word."""
    fixed = {word for pattern in PATTERNS for word in pattern.split() if "{" not in word}
    return [
        PADDING,
        MASK,
        *sorted(fixed | {word for kind in KINDS.values() for words in kind.values() for word in words}),
    ]


def numbers(texts: list[list[str]], words: list[str]) -> np.ndarray:
    """Word numbers, filled with zeros to the longest sentence there can be."""
    length = max(len(pattern.split()) for pattern in PATTERNS)
    places = {word: number for number, word in enumerate(words)}
    return np.array([[places[word] for word in text] + [0] * (length - len(text)) for text in texts], "int32")


def network(words: int, length: int) -> keras.Model:
    """Word numbers to logits of the words in each place; its middle layers are named."""
    tokens = keras.Input((length,), dtype="int32")
    embedding = layers.TokenEmbedding(words, UNITS, name="static")
    vectors = layers.SinusoidalPositions()(embedding(tokens))
    for _ in range(BLOCKS - 1):
        vectors = layers.TransformerEncoderBlock(HEADS, 2 * UNITS)(vectors)
    vectors = layers.TransformerEncoderBlock(HEADS, 2 * UNITS, name="contextual")(vectors)
    return keras.Model(tokens, embedding(layers.LayerNorm()(vectors), reverse=True))


def hide(tokens: np.ndarray, epochs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Each sentence as often as there are epochs, with other words hidden every time; and those words, else zero."""
    generator = np.random.default_rng(seed)
    again = np.tile(tokens, (epochs, 1))
    is_hidden = (generator.random(again.shape) < HIDDEN) & (again > 0)
    return np.where(is_hidden, 1, again).astype("int32"), np.where(is_hidden, again, 0).astype("int32")


def hidden_words_loss(truth: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Mean cross-entropy of the hidden words."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(truth, logits)
    counts = tf.cast(truth > 0, "float32")
    return tf.reduce_sum(losses * counts) / tf.maximum(tf.reduce_sum(counts), 1)


def vectors_of_bank(model: keras.Model, tokens: np.ndarray, bank: int) -> dict[str, np.ndarray]:
    """The static and the contextual vectors of the only bank in each sentence, `(sentences, UNITS)`."""
    outputs = keras.Model(model.input, [model.get_layer("static").output, model.get_layer("contextual").output])
    rows, places = np.nonzero(tokens == bank)
    static, contextual = outputs(tokens)
    return {"static": static.numpy()[rows, places], "contextual": contextual.numpy()[rows, places]}


def compare(vectors: np.ndarray, kinds: np.ndarray) -> Result:
    """Mean cosines within and between kinds, and how often the most similar other vector is of the same kind."""
    directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines, same = directions @ directions.T, kinds[:, None] == kinds
    pairs = ~np.eye(len(kinds), dtype=bool)
    nearest = np.where(pairs, cosines, -np.inf).argmax(axis=1)
    is_tie = np.ptp(cosines, axis=1) < 1e-4
    return {
        "within": float(cosines[same & pairs].mean()),
        "between": float(cosines[~same].mean()),
        "right": float(np.where(is_tie, 0.5, kinds[nearest] == kinds).mean()),
    }


def measure(seeds: int) -> Result:
    """Cosines and most similar banks: static vectors, contextual ones before training, and after."""
    words = vocabulary()
    train, (test, kinds) = numbers(sentences(SENTENCES, 0)[0], words), sentences(TESTED, 1)
    seen = {tuple(row) for row in train}
    tokens = numbers(test, words)
    is_new = np.array([tuple(row) not in seen for row in tokens])
    tokens, first = np.unique(tokens[is_new], axis=0, return_index=True)
    kinds, bank = kinds[is_new][first], words.index("bank")
    training = Training(network(len(words), train.shape[1]), hidden_words_loss, keras.optimizers.Adam())
    found: dict[str, list[Result]] = {"static": [], "contextual, untrained": [], "contextual": []}
    for seed in range(seeds):
        training.start(seed, LEARNING_RATE)
        found["contextual, untrained"].append(
            compare(vectors_of_bank(training.model, tokens, bank)["contextual"], kinds)
        )
        hidden, truth = hide(train, EPOCHS, seed)
        training.take(hidden, truth, shuffled(len(hidden), BATCH, 1, seed))
        vectors = vectors_of_bank(training.model, tokens, bank)
        for name, each in vectors.items():
            found[name].append(compare(each, kinds))
    rows = [
        {"vectors": name, **{key: float(np.mean([each[key] for each in results])) for key in results[0]}}
        for name, results in found.items()
    ]
    return {"rows": rows, "seeds": seeds, "sentences": len(tokens), "curves": {**vectors, "kinds": kinds}}


def table(result: Result) -> list[str]:
    """Cosines of two banks, and the share whose most similar one is of their kind."""
    cells = [
        [row["vectors"], f"{row['within']:.3f}", f"{row['between']:.3f}", f"{row['right']:.3f}"]
        for row in result["rows"]
    ]
    return markdown(
        ["vectors of bank", "cosine, same kind", "cosine, other kind", "most similar is of the same kind"], cells
    )


def draw(result: Result) -> Figure:
    """Vectors of bank in the plane of their two main directions."""
    figure, axes = new_figure(2, 4.4, 3.8)
    curves = result["curves"]
    for axis, name in zip(axes, ("static", "contextual"), strict=True):
        centred = curves["contextual"] - curves["contextual"].mean(axis=0)
        plane = np.linalg.svd(centred, full_matrices=False)[2][:2]
        vectors = (curves[name] - curves[name].mean(axis=0)) @ plane.T
        for kind, (label, marker) in enumerate(zip(KINDS, "o^", strict=True)):
            points = vectors[curves["kinds"] == kind]
            axis.plot(
                *points.T, marker, markersize=4, alpha=0.5, label=f"{label} bank: {len(points)}", markeredgewidth=0
            )
        axis.set(title=name, xlabel="first direction", ylabel="second direction")
        axis.legend(fontsize=8, frameon=False)
    axes[0].set(xlim=axes[1].get_xlim(), ylim=axes[1].get_ylim())
    return figure


if __name__ == "__main__":
    run(__file__, __doc__, measure, table, draw, seeds=3)
