"""Keras layers for the applications. Nothing here imports another part of this repository."""

from layers.cells import EchoStateCell, ElmanCell, GRUCell, LSTMCell
from layers.composed import Bidirectional, Stacked
from layers.conversion import from_keras, from_torch_weights, to_keras, to_torch_weights
from layers.dates import DateFeatures
from layers.losses import PerceptronLoss
from layers.recurrent import GRU, LSTM, EchoState, Elman
from layers.text import BagOfWordPairs, MaskedPooling1D, PairRows, Segmented, Shorten, standardize_text

__all__ = [
    "GRU",
    "LSTM",
    "BagOfWordPairs",
    "Bidirectional",
    "DateFeatures",
    "EchoState",
    "EchoStateCell",
    "Elman",
    "ElmanCell",
    "GRUCell",
    "LSTMCell",
    "MaskedPooling1D",
    "PairRows",
    "PerceptronLoss",
    "Segmented",
    "Shorten",
    "Stacked",
    "from_keras",
    "from_torch_weights",
    "standardize_text",
    "to_keras",
    "to_torch_weights",
]
