"""Keras layers for the applications. Nothing here imports another part of this repository."""

from layers.attention import AdditiveAttention, MultiHeadAttention, MultiplicativeAttention
from layers.boxes import CellBoxes, GIoULoss, generalized_iou
from layers.cells import EchoStateCell, ElmanCell, GRUCell, LSTMCell
from layers.composed import Bidirectional, Stacked
from layers.conversion import from_keras, from_torch_weights, to_keras, to_torch_weights
from layers.crf import CRF, CRFLoss, Viterbi, viterbi
from layers.dates import DateFeatures
from layers.decoding import Decoded, beam_search, draw, greedy, repeated, sample
from layers.gallery import Gallery
from layers.images import DecodeImages, RandomElastic, StepSeeds
from layers.latent import GaussianDivergence, GaussianSample, SeededNormal
from layers.losses import ForecastLoss, PerceptronLoss, SmoothedCrossentropy, TripletLoss
from layers.metrics import StepAccuracy
from layers.normalization import BatchNorm, LayerNorm, RMSNorm
from layers.positions import LearnedPositions, RotaryPositions, SinusoidalPositions, sinusoids
from layers.recurrent import GRU, LSTM, EchoState, Elman
from layers.series import Patches, QuantileShift, ReversibleInstanceNorm
from layers.text import (
    BagOfWordPairs,
    MaskedPooling1D,
    PairRows,
    Segmented,
    Shorten,
    WordDropout,
    standardize_text,
)
from layers.tokens import RepeatedContext, ScheduledSampling, TokenEmbedding
from layers.transformer import TransformerDecoderBlock, TransformerEncoderBlock
from layers.words import AffixRows, KnownLetters, LetterIds, MaxOverLetters, NormalizeWords, SplitWords, WordShapes

__all__ = [
    "CRF",
    "GRU",
    "LSTM",
    "AdditiveAttention",
    "AffixRows",
    "BagOfWordPairs",
    "BatchNorm",
    "Bidirectional",
    "CRFLoss",
    "CellBoxes",
    "DateFeatures",
    "DecodeImages",
    "Decoded",
    "EchoState",
    "EchoStateCell",
    "Elman",
    "ElmanCell",
    "ForecastLoss",
    "GIoULoss",
    "GRUCell",
    "Gallery",
    "GaussianDivergence",
    "GaussianSample",
    "KnownLetters",
    "LSTMCell",
    "LayerNorm",
    "LearnedPositions",
    "LetterIds",
    "MaskedPooling1D",
    "MaxOverLetters",
    "MultiHeadAttention",
    "MultiplicativeAttention",
    "NormalizeWords",
    "PairRows",
    "Patches",
    "PerceptronLoss",
    "QuantileShift",
    "RMSNorm",
    "RandomElastic",
    "RepeatedContext",
    "ReversibleInstanceNorm",
    "RotaryPositions",
    "ScheduledSampling",
    "SeededNormal",
    "Segmented",
    "Shorten",
    "SinusoidalPositions",
    "SmoothedCrossentropy",
    "SplitWords",
    "Stacked",
    "StepAccuracy",
    "StepSeeds",
    "TokenEmbedding",
    "TransformerDecoderBlock",
    "TransformerEncoderBlock",
    "TripletLoss",
    "Viterbi",
    "WordDropout",
    "WordShapes",
    "beam_search",
    "draw",
    "from_keras",
    "from_torch_weights",
    "generalized_iou",
    "greedy",
    "repeated",
    "sample",
    "sinusoids",
    "standardize_text",
    "to_keras",
    "to_torch_weights",
    "viterbi",
]
