"""What PyTorch's recurrent modules compute, for tests on machines without PyTorch.

    python tests/helpers/torch_goldens.py [output.npz [weights.npz output_with_these_weights.npz]]

writes `tests/layers/data/torch_recurrent.npz` or another file: weights, inputs, outputs and gradients of every case,
under `kind/arrangement/group/name`; and the same with weights from a second file. PyTorch computes in float64, and
what is stored is float32.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

BATCH, TIME, FEATURES, UNITS = 4, 6, 5, 3
GOLDENS = Path(__file__).resolve().parent.parent / "layers" / "data" / "torch_recurrent.npz"
KINDS = ("rnn_tanh", "rnn_relu", "lstm", "gru", "lstm_no_bias", "gru_no_bias")
# Number of layers, both directions
ARRANGEMENTS = {"single": (1, False), "bidirectional": (1, True), "stack": (2, False), "bidirectional_stack": (2, True)}
CASES = [
    *(f"{kind}/{arrangement}" for kind in KINDS[:4] for arrangement in ARRANGEMENTS),
    *(f"{kind}/bidirectional" for kind in KINDS[4:]),
]


def module_of(case: str) -> Any:
    """The module of a case, in float64."""
    import torch

    kind, _, arrangement = case.partition("/")
    name, _, option = kind.partition("_")
    layers, bidirectional = ARRANGEMENTS[arrangement]
    module_class = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[name]
    options: dict[str, Any] = {"nonlinearity": option} if name == "rnn" else {"bias": option != "no_bias"}
    shape = {"num_layers": layers, "bidirectional": bidirectional, "batch_first": True}
    return module_class(FEATURES, UNITS, **shape, **options).double()


def inputs_of(case: str) -> dict[str, np.ndarray]:
    """Random sequences, lengths, states, and gradients of a loss by the outputs; the same for a case every time."""
    rng = np.random.default_rng(zlib.crc32(case.encode()))
    layers, bidirectional = ARRANGEMENTS[case.partition("/")[2]]
    directions = 2 if bidirectional else 1
    states = ("h", "c") if case.startswith("lstm") else ("h",)
    state_shape = (layers * directions, BATCH, UNITS)
    arrays = {
        "sequence": rng.normal(size=(BATCH, TIME, FEATURES)),
        "upstream_output": rng.normal(size=(BATCH, TIME, directions * UNITS)),
        **{f"initial_{state}": rng.normal(size=state_shape) for state in states},
        **{f"upstream_{state}": rng.normal(size=state_shape) for state in states},
    }
    lengths = rng.permuted([TIME, 1, *rng.integers(1, TIME + 1, size=BATCH - 2)])
    return {"lengths": lengths, **{name: values.astype("float32") for name, values in arrays.items()}}


def random_weights(case: str) -> dict[str, np.ndarray]:
    """Weights under PyTorch's names, distinct everywhere."""
    rng = np.random.default_rng(zlib.crc32(f"{case}/weights".encode()))
    shapes = {name: tuple(values.shape) for name, values in module_of(case).state_dict().items()}
    return {name: rng.normal(scale=0.5, size=shape).astype("float32") for name, shape in shapes.items()}


def run(case: str, inputs: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The outputs, and the gradients of sum(output * upstream) by weights, sequence and initial states."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    torch.set_num_threads(1)  # everything here is tiny
    module = module_of(case)
    module.load_state_dict({name: torch.from_numpy(values).double() for name, values in weights.items()})
    tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
    lengths = tensors.pop("lengths")
    names = [name for name in tensors if not name.startswith("upstream")]
    tensors = {name: values.double().requires_grad_(name in names) for name, values in tensors.items()}
    packed = pack_padded_sequence(tensors["sequence"], lengths, batch_first=True, enforce_sorted=False)
    has_cell = "initial_c" in tensors
    initial = (tensors["initial_h"], tensors["initial_c"]) if has_cell else tensors["initial_h"]
    packed, final = module(packed, initial)
    outputs = {"output": pad_packed_sequence(packed, batch_first=True, total_length=TIME)[0]}
    outputs |= {"h": final[0], "c": final[1]} if has_cell else {"h": final}
    torch.stack([(values * tensors[f"upstream_{name}"]).sum() for name, values in outputs.items()]).sum().backward()
    gradients = {name: tensors[name].grad for name in names}
    gradients |= {name: parameter.grad for name, parameter in module.named_parameters()}
    groups: dict[str, dict[str, Any]] = {"output": outputs, "gradient": gradients}
    return {group: {name: values.detach().numpy() for name, values in each.items()} for group, each in groups.items()}


def write(path: Path, weights: dict[str, dict[str, np.ndarray]] | None = None) -> None:
    """Write all cases, or those that weights are given for."""
    arrays: dict[str, Any] = {}
    for case in CASES if weights is None else weights:
        groups = {"input": inputs_of(case), "weight": random_weights(case) if weights is None else weights[case]}
        groups |= run(case, groups["input"], groups["weight"])
        for group, members in groups.items():
            for name, values in members.items():
                compact = "int32" if name == "lengths" else "float32"
                arrays[f"{case}/{group}/{name}"] = np.asarray(values, dtype=compact)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def read(path: Path) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """The cases in a file: groups of arrays."""
    cases: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            kind, arrangement, group, name = key.split("/")
            cases.setdefault(f"{kind}/{arrangement}", {}).setdefault(group, {})[name] = file[key]
    return cases


if __name__ == "__main__":
    write(Path(sys.argv[1]) if sys.argv[1:] else GOLDENS)
    if sys.argv[2:]:
        write(Path(sys.argv[3]), {case: groups["weight"] for case, groups in read(Path(sys.argv[2])).items()})
