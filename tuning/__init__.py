"""Hyperparameter search over the applications (see docs)."""
