"""Keras layers for the applications. Nothing here imports another part of this repository."""

from layers.dates import DateFeatures
from layers.losses import PerceptronLoss
from layers.recurrent import GRU, LSTM, Bidirectional, Elman, Stacked
from layers.text import BagOfWordPairs, MaskedPooling1D, Shorten, standardize_text

__all__ = [
    "GRU",
    "LSTM",
    "BagOfWordPairs",
    "Bidirectional",
    "DateFeatures",
    "Elman",
    "MaskedPooling1D",
    "PerceptronLoss",
    "Shorten",
    "Stacked",
    "standardize_text",
]
