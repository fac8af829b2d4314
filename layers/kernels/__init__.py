"""The inner loops that differ between backends: one module per backend, each with the same functions."""

from importlib import import_module

import keras

SUPPORTED_BACKENDS = ("tensorflow", "jax")

if keras.backend.backend() not in SUPPORTED_BACKENDS:
    raise ImportError(f"layers run on the backends {SUPPORTED_BACKENDS}, got KERAS_BACKEND={keras.backend.backend()!r}")

_kernels = import_module(f"{__name__}.{keras.backend.backend()}")
scan, tanh = _kernels.scan, _kernels.tanh

__all__ = ["scan", "tanh"]
