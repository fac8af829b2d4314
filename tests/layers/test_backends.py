"""On a backend without kernels the layers can be imported, and say so when they are to compute."""

from __future__ import annotations

import subprocess
import sys

from support import clean_environment

CODE = """
import numpy as np, layers
try:
    layers.GRU(2)(np.ones((1, 3, 2), "float32"))
except ImportError as error:
    print(error)
"""


def test_layers_refuse_to_compute_without_kernels() -> None:
    environment = clean_environment() | {"KERAS_BACKEND": "numpy"}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    assert "layers run on the backends ('tensorflow', 'jax'), got KERAS_BACKEND='numpy'" in done.stdout
