"""Captioning: what an image shows, as a sentence. One-to-many: a sequence of words from one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loom import App, Data, Field, Metrics, Spec, main
from loom.config import Optimizer, Regularization, Schedule
from loom.data.augment import augment
from loom.data.captions import CaptionsConfig, encode_images, read_captions
from loom.data.coloured_shapes import CAPTION, read_facts, share_of_exact
from loom.data.images import IMAGE, check_memory, flat_pixels, image_field, image_input, preprocess, scale, shape_of
from loom.data.pairs import split_pairs
from loom.data.tokens import Tokenizer, Unit
from loom.lazy import keras, layers
from loom.runtime import make_batch_norm
from loom.scores import bleu_and_chrf
from loom.seq2seq import DecoderConfig, Encoded, MakeLayer, Network, connect, loss, make_decoder, metrics, with_targets
from loom.translator import Translator

if TYPE_CHECKING:
    import pandas as pd
    from keras_tuner import HyperParameters

    from loom.app import Answer
    from loom.data.pipeline import Augment
    from loom.run import Run
    from loom.trained import Trained

MOST_FOR_NEAREST = 20_000
"""Training images among which the baseline looks for the nearest one."""
SHOWN, SHOWN_WITH_ATTENTION = 12, 4
"""Test images in the figures."""


@dataclass(frozen=True)
class Config(CaptionsConfig, DecoderConfig):
    """Settings of `loom train captioning`."""

    filters: int = 16
    """Maps of the encoder's first convolution; each one has twice as many as the one before, 512 at most."""
    grid: int = 8
    """Most places along a side of the image that the decoder can attend to: convolutions halve the image until then."""
    weights: str = ""
    """Start from the convolutions of this run of `images` or `autoencoder`, as far as they have the same shapes."""
    model: Literal["transformer", "lstm", "gru"] = "lstm"
    """The decoder's layers; of `transformer` the encoder has as many blocks on top of its convolutions."""
    attention: Literal["additive", "multiplicative", "none"] = "additive"
    """How a recurrent decoder reads the image: with attention, or (`none`) the mean over all places."""
    tokens: Unit = "words"
    """What captions are made of."""
    vocabulary_size: int = 8000
    """Number of tokens, at most."""
    lower: bool = True
    """Bring all captions into lower case."""
    label_smoothing: float = 0.0
    """Share of each target's probability that all tokens have alike."""
    regularization: Regularization = "batchnorm"
    """`batchnorm` normalizes the encoder's maps; only that and `none` are used here, beside --dropout."""
    epochs: int = 12
    batch_size: int = 32
    buckets: int = 1  # images with captions of one length are of one kind, which would mislead batch norm
    optimizer: Optimizer = "muon"
    learning_rate: float = 0.004
    schedule: Schedule = "onecycle"
    clip_norm: float = 1.0
    jit: Literal["auto", "on", "off"] = "off"

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        for name in ("filters", "grid"):
            self.require(name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("classes", "train_per_class"):
            self.require(name, not getattr(self, name), "is not used here: images have captions, not classes")
        known = self.regularization in ("none", "batchnorm")
        self.require("regularization", known, "is not used here; give none or batchnorm, and --dropout")


def load(config: Config) -> Data:
    """Pixels, and the tokens of each caption of an image."""
    examples, notes = read_captions(config)
    parts = split_pairs(examples, config, IMAGE)
    column, more = image_field(IMAGE, parts["train"][IMAGE], config)
    check_memory(column, sum(part[IMAGE].nunique() for part in parts.values()))
    tokenizer = Tokenizer.fit(parts["train"][CAPTION], config.vocabulary_size, config.tokens, config.lower)
    target = Field(CAPTION, "text", tokenizer=tokenizer.settings())
    return with_targets(parts, column, encode_images(parts, column, config), target, examples, config, [*notes, *more])


def build(config: Config, spec: Spec) -> keras.Model:
    """Pixels, and the caption up to each word, to the logits of its next word."""
    return connect(config, spec, image_input(spec.input(IMAGE)), network)


def network(config: Config, spec: Spec, layer: MakeLayer) -> Network:
    """The encoder and the decoder that attends to its places."""
    encoder = layer("encoder", lambda: make_encoder(config, spec.input(IMAGE)))

    def encode(image: Any) -> Encoded:
        places = encoder(image)
        return Encoded(places, keras.ops.mean(places, axis=1))

    return Network(encode, make_decoder(config, spec, layer))


def make_encoder(config: Config, column: Field) -> keras.Model:
    """Pixels to a vector for each place of a grid over the image, (batch, rows * columns, units)."""
    pixels = image_input(column)
    maps, filters = scale(pixels), config.filters
    for stage in range(1, len(sides(config, column)) + 1):
        maps = keras.layers.Conv2D(
            filters,
            3,
            padding="same",
            use_bias=not config.normalizes,
            kernel_initializer="he_normal",
            name=f"conv_{stage}",
        )(maps)
        maps = keras.layers.MaxPooling2D(padding="same")(maps)
        maps = keras.layers.ReLU()(make_batch_norm(f"norm_{stage}")(maps) if config.normalizes else maps)
        filters = min(2 * filters, 512)
    places = keras.layers.Reshape((-1, maps.shape[-1]))(maps)
    places = keras.layers.Dense(config.units, name="places")(places)
    places = layers.LearnedPositions(places.shape[1], name="positions")(places)
    if config.model == "transformer":
        for number in range(1, config.depth + 1):
            places = layers.TransformerEncoderBlock(
                config.heads,
                config.feed_forward_units,
                dropout=config.dropout,
                seed=config.seed + number,
                name=f"block_{number}",
            )(places)
        places = layers.LayerNorm(name="places_norm")(places)
    return keras.Model(pixels, places, name="encoder")


def sides(config: Config, column: Field) -> list[tuple[int, int]]:
    """Rows and columns of the maps after each convolution of the encoder; the last are those of the grid."""
    height, width, _ = shape_of(column)
    found: list[tuple[int, int]] = []
    while not found or max(height, width) > config.grid:
        height, width = -(-height // 2), -(-width // 2)
        found.append((height, width))
    return found


def start(config: Config, model: keras.Model) -> list[str]:
    """Take over the weights of another run, if one is named."""
    from loom.weights import copy_from_run

    return [copy_from_run(config.weights, model)] if config.weights else []


def augmentation(config: Config, spec: Spec) -> Augment | None:
    """What changes training images; not what blends several, whose captions cannot be blended."""
    return augment(config, spec, mixing=False)


def space(hp: HyperParameters) -> dict[str, Any]:
    """What a search varies unless told otherwise."""
    return {
        "model": hp.Choice("model", ["lstm", "gru", "transformer"]),
        "filters": hp.Int("filters", 8, 64, sampling="log"),
        "units": hp.Choice("units", [64, 128, 256]),
        "depth": hp.Int("depth", 1, 2),
        "dropout": hp.Float("dropout", 0.0, 0.4, step=0.1),
        "learning_rate": hp.Float("learning_rate", 1e-3, 1e-2, sampling="log"),
    }


def captions_of(part: pd.DataFrame) -> pd.Series:
    """All captions of each image: a list for each."""
    return part.groupby(IMAGE, sort=False)[CAPTION].agg(list)


def scores(captions: Sequence[str], config: Config, data: Data) -> Metrics:
    """BLEU and chrF of a caption for each test image against all of its own; of scenes of shapes, how many are exact.

    `exact_unseen` counts the scenes alone of which no training image has the same shapes in the same places.
    """
    references = captions_of(data.test.raw).tolist()
    if config.lower:
        captions, references = _lower(captions), list(map(_lower, references))
    measured, firsts = bleu_and_chrf(captions, references, config.lower), [known[0] for known in references]
    exact = share_of_exact(captions, firsts)
    if exact is None:
        return measured
    seen = set(map(read_facts, data.train.raw[CAPTION]))
    unseen = [(said, true) for said, true in zip(captions, firsts, strict=True) if read_facts(true) not in seen]
    of_unseen = share_of_exact(*zip(*unseen, strict=True)) if unseen else None
    return measured | exact | ({"exact_unseen": of_unseen["exact"]} if of_unseen else {})


def _lower(texts: Sequence[str]) -> list[str]:
    return [text.lower() for text in texts]


def baselines(config: Config, data: Data) -> dict[str, Metrics]:
    """The most frequent caption for all, and the first caption of the training image whose pixels are nearest."""
    from sklearn.neighbors import NearestNeighbors

    known, asked = captions_of(data.train.raw).iloc[:MOST_FOR_NEAREST], captions_of(data.test.raw)
    pixels, asked_pixels = (flat_pixels(config, data.spec, part.index.to_frame()) for part in (known, asked))
    nearest = NearestNeighbors(n_neighbors=1).fit(pixels).kneighbors(asked_pixels, return_distance=False)[:, 0]
    texts = {
        "most_frequent": [data.train.raw[CAPTION].mode()[0]] * len(asked),
        "nearest": [captions[0] for captions in known.iloc[nearest]],
    }
    return {name: scores(captions, config, data) for name, captions in texts.items()}


def test(run: Run, measured: Metrics) -> Metrics:
    """Scores of the test images' captions, by beam search and by greedy decoding."""
    config: Any = run.config
    references, translator = captions_of(run.data.test.raw), Translator.of(run.trained, network)
    written = {how: [answer.text for answer in translator.write(references.index, how)] for how in ("beam", "greedy")}
    rows = zip(references, written["beam"], written["greedy"], strict=True)
    run.table("captions", [{"references": known, "beam": beam, "greedy": greedy} for known, beam, greedy in rows])
    greedy = scores(written["greedy"], config, run.data)
    return scores(written["beam"], config, run.data) | {f"greedy_{name}": value for name, value in greedy.items()}


def predict(trained: Trained, frame: pd.DataFrame) -> Sequence[Answer]:
    """A caption of each image, and its score."""
    written = Translator.of(trained, network).write(list(frame[IMAGE]))
    return [{"caption": answer.text, "score": answer.score} for answer in written]


def report(run: Run) -> None:
    """Test images with their captions, and where the decoder looks for each word."""
    from loom.figures_attention import attention_over_images
    from loom.figures_images import image_grid

    config: Any = run.config
    translator, column = Translator.of(run.trained, network), run.data.spec.input(IMAGE)
    known = captions_of(run.data.test.raw).head(SHOWN)
    captions = [answer.text for answer in translator.write(known.index)]
    pixels = np.asarray(run.trained.encode(known.index.to_frame())[IMAGE])
    titles = [
        f"{fill(caption, 30)}\n({fill(references[0], 30)})" for caption, references in zip(captions, known, strict=True)
    ]
    title = "Captions of test images (and the first of their own)"
    run.figure("captions", image_grid(pixels, titles, title, columns=4, width=2.2))
    if config.model == "transformer" or config.attention != "none":
        rows = []
        for file, image, caption in list(zip(known.index, pixels, captions, strict=True))[:SHOWN_WITH_ATTENTION]:
            weights, words = translator.attention(file, caption)
            rows.append((image, weights.reshape(-1, *sides(config, column)[-1]), words))
        run.figure("attention", attention_over_images(rows))


APP = App(
    "captioning",
    Config,
    load,
    preprocess,
    build,
    space,
    baselines,
    report,
    predict,
    loss=loss,
    metrics=metrics,
    objective="val_loss",
    augment=augmentation,
    start=start,
    test=test,
    no_export="its answers are decoded word by word, which the other formats do not hold; use loom predict or serve",
)

if __name__ == "__main__":
    main(APP)
