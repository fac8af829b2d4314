"""Keras layers for the applications. Nothing here imports another part of this repository."""

from layers.recurrent import GRU, LSTM, Bidirectional, Elman, Stacked
from layers.text import BagOfWordPairs, Shorten, standardize_text

__all__ = ["GRU", "LSTM", "BagOfWordPairs", "Bidirectional", "Elman", "Shorten", "Stacked", "standardize_text"]
