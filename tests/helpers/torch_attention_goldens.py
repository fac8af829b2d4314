"""What PyTorch's multi-head attention computes, for tests on machines without PyTorch.

    python tests/helpers/torch_attention_goldens.py

writes `tests/layers/data/torch_attention.npz`: for every case, under `case/name`, inputs, weights (`weight.NAME`),
output, and gradients of the sum of the output's squares (`gradient.NAME`). PyTorch computes in float64.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

BATCH, QUERY_STEPS, KEY_STEPS, FEATURES, HEADS = 3, 5, 7, 6, 3
CASES = {"one_width": {}, "other_memory": {"kdim": 4, "vdim": 4}, "no_bias": {"bias": False}}
GOLDENS = Path(__file__).resolve().parent.parent / "layers" / "data" / "torch_attention.npz"


def compute(case: str) -> dict[str, np.ndarray]:
    """Runs PyTorch on random inputs and weights, the same ones every time."""
    import torch

    rng = np.random.default_rng(list(CASES).index(case))
    module = torch.nn.MultiheadAttention(FEATURES, HEADS, batch_first=True, **CASES[case]).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(scale=0.5, size=tuple(parameter.shape))))
    arrays = {
        "query": rng.normal(size=(BATCH, QUERY_STEPS, FEATURES)),
        "value": rng.normal(size=(BATCH, KEY_STEPS, CASES[case].get("vdim", FEATURES))),
    }
    valid = np.arange(KEY_STEPS) < np.array([KEY_STEPS, 3, 5])[:, None]
    query, value = (torch.from_numpy(each).requires_grad_() for each in arrays.values())
    output, _ = module(query, value, value, key_padding_mask=torch.from_numpy(~valid))
    (output**2).sum().backward()
    parameters = dict(module.named_parameters())
    return {
        **arrays,
        "valid": valid,
        "output": output.detach().numpy(),
        "gradient.query": query.grad.numpy(),
        "gradient.value": value.grad.numpy(),
        **{f"weight.{name}": each.detach().numpy() for name, each in parameters.items()},
        **{f"gradient.{name}": each.grad.numpy() for name, each in parameters.items()},
    }


def read(case: str) -> dict[str, np.ndarray]:
    """Returns what was recorded for a case."""
    with np.load(GOLDENS) as stored:
        return {key.partition("/")[2]: stored[key] for key in stored if key.startswith(f"{case}/")}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    np.savez_compressed(GOLDENS, **{f"{case}/{name}": each for case in CASES for name, each in compute(case).items()})
