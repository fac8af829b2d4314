"""Recurrent layers beside `keras.layers` and PyTorch: a training step and a prediction, over a grid of sizes.

python benchmarks/recurrent.py [--quick] [--json FILE] [--only TEXT]

A training step is the output sequence, and the gradients of its weighted sum by the input and all weights. A prediction
is `predict_step` of a model of one layer. Short steps are repeated in a loop inside the graph, as Keras does with
`steps_per_execution`, so that layers are measured and not calls from Python. Ours and Keras' are each taken with
`jit_compile` on or off, whichever was faster in a first round. Then they run in turn, and medians are compared: a ratio
above 1 means that ours is faster. The options stand beside what Keras has for them; where it has nothing, beside
`keras.layers.RNN` over a cell of the same mathematics. The floor is the time of the matrix products alone, at the rate
of one large product. Peak memory is that of a fresh process above its memory after a step of two examples, in the first
step, which compiles, and in later ones (Linux only). `--torch` adds PyTorch, where it is installed, in a process of its
own, on one core or all of them, whichever is faster.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import measuring
import numpy as np
import tensorflow as tf
from measuring import Step

import layers

try:
    import torch
except ModuleNotFoundError:
    torch = None


class Size(NamedTuple):
    """B examples of T steps with D features, U units."""

    batch: int
    time: int
    features: int
    units: int

    def __str__(self) -> str:
        return " x ".join(map(str, self))


GRID = [
    Size(b, t, *w)
    for b, t, w in itertools.product((1, 8, 32, 64, 128), (20, 100, 200), ((32, 64), (64, 128), (256, 256)))
]
QUICK = [Size(1, 20, 32, 64), Size(64, 100, 32, 64)]
OPTION_SIZES = [Size(b, t, *w) for b, t, w in itertools.product((8, 32, 128), (100,), ((64, 128),))]
MEMORY_SIZES = [Size(64, 100, 64, 128), Size(128, 200, 256, 256)]

Make = Callable[[int], keras.layers.Layer]


class Layer(NamedTuple):
    """A layer of ours, the one it is compared with, its matrix rows per unit, and the one in PyTorch, if any."""

    ours: Make
    baseline: Make
    gates: int
    torch_name: str | None = None


def _of(kind: type, **options: Any) -> Make:
    return lambda units: kind(units, return_sequences=True, **options)


def _cell(kind: type, **options: Any) -> Make:
    return lambda units: keras.layers.RNN(kind(units, **options), return_sequences=True)


LAYERS = {
    "LSTM": Layer(_of(layers.LSTM), _of(keras.layers.LSTM), 4, "LSTM"),
    "GRU": Layer(_of(layers.GRU), _of(keras.layers.GRU), 3, "GRU"),
    "Elman": Layer(_of(layers.Elman), _of(keras.layers.SimpleRNN), 1, "RNN"),
}
OPTIONS = {
    "LSTM, recurrent dropout": Layer(
        _of(layers.LSTM, recurrent_dropout=0.2), _of(keras.layers.LSTM, recurrent_dropout=0.2), 4
    ),
    "GRU, recurrent dropout": Layer(
        _of(layers.GRU, recurrent_dropout=0.2), _of(keras.layers.GRU, recurrent_dropout=0.2), 3
    ),
    "GRU, reset before": Layer(_of(layers.GRU, reset_after=False), _of(keras.layers.GRU, reset_after=False), 3),
    "LSTM, both directions": Layer(
        lambda units: layers.Bidirectional(layers.LSTM(units, return_sequences=True)),
        lambda units: keras.layers.Bidirectional(keras.layers.LSTM(units, return_sequences=True)),
        8,
    ),
    "GRU, both directions": Layer(
        lambda units: layers.Bidirectional(layers.GRU(units, return_sequences=True)),
        lambda units: keras.layers.Bidirectional(keras.layers.GRU(units, return_sequences=True)),
        6,
    ),
    "LSTM, layer norm": Layer(_of(layers.LSTM, layer_norm=True), _cell(layers.LSTMCell, layer_norm=True), 4),
    "GRU, layer norm": Layer(_of(layers.GRU, layer_norm=True), _cell(layers.GRUCell, layer_norm=True), 3),
}


def main() -> None:
    """Run the cases and print the tables."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(_peaks_of_this_process(*options.memory_of))
        return
    if options.torch:
        if torch is None or options.json is None or not options.json.exists():
            parser.error("--torch needs PyTorch, and --json with a file of earlier results")
        _add_torch(options.json)
        return
    rate = measuring.product_rate()
    print(f"large matrix product: {rate / 1e9:.0f} GFLOP/s\n")
    earlier = json.loads(options.json.read_text("utf-8")) if options.json and options.json.exists() else {}
    found = {(row["group"], row["layer"], row["case"]): row for row in earlier.get("rows", [])}
    grid = QUICK if options.quick else GRID
    groups = {
        "training": (LAYERS, grid),
        "prediction": (LAYERS, grid),
        "training, options": (OPTIONS, QUICK[1:] if options.quick else OPTION_SIZES),
    }
    print("| case | ours, ms | Keras, ms | ratio | floor, ms | compiling: ours, Keras, s |")
    print("|---|---|---|---|---|---|")
    for group, (table, sizes) in groups.items():
        for (name, layer), size in itertools.product(table.items(), sizes):
            if options.only in f"{group}: {name} {size}":
                row = {"group": group, "layer": name, **_compare(group, layer, size, rate)}
                _print(row)
                found[group, name, row["case"]] = row
                _write(options.json, [*found.values()], earlier.get("memory", []), rate)
                keras.backend.clear_session()
    if not options.quick and options.only in "memory":
        memory = [_memory(name, size) for name in LAYERS for size in MEMORY_SIZES]
        _write(options.json, [*found.values()], memory, rate)
    measuring.print_summary([*found.values()])


def _write(path: Path | None, rows: list[dict[str, Any]], memory: list[dict[str, Any]], rate: float) -> None:
    if path is None:
        return
    result = {"rows": rows, "memory": memory, "summary": measuring.summary(rows), "versions": measuring.versions()}
    path.write_text(json.dumps({**result, "machine": measuring.machine(rate)}, indent=1) + "\n", encoding="utf-8")


def _compare(group: str, layer: Layer, size: Size, rate: float) -> dict[str, Any]:
    training = group != "prediction"
    make_step = _training_step if training else _prediction
    sequence, upstream = _arrays(size)
    sides = [
        lambda jit, make=make: make_step(make, size, sequence, upstream, jit) for make in (layer.ours, layer.baseline)
    ]
    flops = (
        2 * size.batch * size.time * (size.features + size.units) * layer.gates * size.units * (3 if training else 1)
    )
    return {"case": str(size), **measuring.compare(*sides), "floor_ms": 1e3 * flops / rate}


def _arrays(size: Size) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = (size.batch, size.time, size.features), (size.batch, size.time, size.units)
    sequence, upstream = (random.normal(size=shape).astype("float32") for shape in shapes)
    return sequence, upstream


def _training_step(make: Make, size: Size, sequence: np.ndarray, upstream: np.ndarray, jit: bool) -> Step:
    layer = make(size.units)
    layer.build((None, None, size.features))

    # As in Keras' own `fit` on arrays, the batch size is not known when the graph is made.
    @tf.function(
        jit_compile=jit, input_signature=[measuring.unknown_batch(sequence), measuring.unknown_batch(upstream)]
    )
    def step(sequence: tf.Tensor, upstream: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(sequence)
            output = layer(sequence, training=True)
            loss = tf.reduce_sum(output[..., : size.units] * upstream)
        return tape.gradient(loss, [sequence, *[weight.value for weight in layer.trainable_weights]])

    return measuring.repeated(lambda sequence: step(sequence, upstream), sequence)


def _prediction(make: Make, size: Size, sequence: np.ndarray, upstream: np.ndarray, jit: bool) -> Step:
    del upstream
    inputs = keras.Input((None, size.features))
    model = keras.Model(inputs, make(size.units)(inputs))

    @tf.function(jit_compile=jit, input_signature=[measuring.unknown_batch(sequence)])
    def step(sequence: tf.Tensor) -> Any:
        return [model.predict_step((sequence,))]

    return measuring.repeated(step, sequence)


def _add_torch(path: Path) -> None:
    """Measures PyTorch by itself, because the idle threads of one library slow down the other."""
    result = json.loads(path.read_text("utf-8"))
    for row in result["rows"]:
        name = LAYERS[row["layer"]].torch_name if row["layer"] in LAYERS else None
        if name:
            size = Size(*map(int, row["case"].split(" x ")))
            step = _torch_step(name, size, *_arrays(size), row["group"] == "training")
            row |= measuring.with_torch(torch, step)
            print(
                f"| {row['group']}: {row['layer']} {size} | {row['ours_ms']:.2f} | {row['torch_ms']:.2f} |", flush=True
            )
    _write(path, result["rows"], result["memory"], result["machine"]["gflops"] * 1e9)


def _torch_step(name: str, size: Size, sequence: np.ndarray, upstream: np.ndarray, training: bool) -> Step:
    layer = getattr(torch.nn, name)(size.features, size.units, batch_first=True)
    inputs, weights = torch.tensor(sequence, requires_grad=training), torch.tensor(upstream)

    def train(count: int) -> None:
        for _ in range(count):
            for tensor in (inputs, *layer.parameters()):
                tensor.grad = None
            (layer(inputs)[0] * weights).sum().backward()

    def predict(count: int) -> None:
        with torch.inference_mode():
            for _ in range(count):
                layer(inputs)

    return train if training else predict


def _memory(name: str, size: Size) -> dict[str, Any]:
    row: dict[str, Any] = {"layer": name, "case": str(size)}
    for side in ("ours", "baseline"):
        arguments = ("--memory-of", f"{side}:{name}", json.dumps(size))
        tries = [measuring.in_fresh_process(__file__, *arguments) for _ in range(3)]
        for which in tries[0]:
            row[f"{side}_{which}"] = statistics.median(each[which] for each in tries)
    print(memory_line(row), flush=True)
    return row


def memory_line(row: dict[str, Any]) -> str:
    """A row of the table of memory."""
    values = [row[f"{side}_{which}"] for which in ("mb", "first_mb") for side in ("ours", "baseline")]
    return f"| {row['layer']} {row['case']} | {' | '.join(f'{value:.0f}' for value in values)} |"


def _peaks_of_this_process(what: str, size_text: str) -> str:
    """Returns peaks of memory of training steps without jit, in MB above what a step of two examples left behind."""
    side, name = what.split(":")
    size = Size(*json.loads(size_text))
    make = getattr(LAYERS[name], side)
    _training_step(make, size, *_arrays(size._replace(batch=2)), jit=False)(1)  # what TensorFlow needs once
    arrays = _arrays(size)
    before = measuring.memory_of_this_process("VmRSS")
    step = _training_step(make, size, *arrays, jit=False)
    peaks = {}
    for which, count in (("first_mb", 1), ("mb", 3)):
        measuring.start_peak_here()
        for _ in range(count):
            step(1)
        peaks[which] = measuring.memory_of_this_process("VmHWM") - before
    return json.dumps(peaks)


def _print(row: dict[str, Any]) -> None:
    print(
        "| {group}: {layer} {case} | {ours_ms:.2f} | {baseline_ms:.2f} | {ratio:.2f} | {floor_ms:.2f} |".format(**row),
        "{ours_compile_seconds:.1f}, {baseline_compile_seconds:.1f} |".format(**row),
        flush=True,
    )


if __name__ == "__main__":
    main()
