"""What differs between backends: one module per backend, each with the same functions."""

from importlib import import_module
from typing import Any

import keras

SUPPORTED_BACKENDS = ("tensorflow", "jax")


class _Unsupported:
    """Lets the layers be imported on another backend, where nothing is computed; what needs a backend fails."""

    def __getattr__(self, name: str) -> Any:
        def fail(*args: Any, **options: Any) -> None:
            backend = keras.backend.backend()
            raise ImportError(f"layers run on the backends {SUPPORTED_BACKENDS}, got KERAS_BACKEND={backend!r}")

        return fail


_kernels: Any = _Unsupported()
if keras.backend.backend() in SUPPORTED_BACKENDS:
    _kernels = import_module(f"{__name__}.{keras.backend.backend()}")
compiled, parts = _kernels.compiled, _kernels.parts
fused_attention = _kernels.fused_attention
padded_length, prefers_blocks, uniform = _kernels.padded_length, _kernels.prefers_blocks, _kernels.uniform
projects_in_loop, scan = _kernels.projects_in_loop, _kernels.scan
pulled_back, tanh, time_chunks = _kernels.pulled_back, _kernels.tanh, _kernels.time_chunks
cos, required, sin, softmax = _kernels.cos, _kernels.required, _kernels.sin, _kernels.softmax
cudnn, cudnn_excludes_jit, has_cudnn = _kernels.cudnn, _kernels.cudnn_excludes_jit, _kernels.has_cudnn

__all__ = [
    "compiled",
    "cos",
    "cudnn",
    "cudnn_excludes_jit",
    "fused_attention",
    "has_cudnn",
    "padded_length",
    "parts",
    "prefers_blocks",
    "projects_in_loop",
    "pulled_back",
    "required",
    "scan",
    "sin",
    "softmax",
    "tanh",
    "time_chunks",
    "uniform",
]
