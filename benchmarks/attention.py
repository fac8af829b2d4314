"""Attention and norms beside `keras.layers` and PyTorch: training steps, long sequences, and decoding with a cache.

python benchmarks/attention.py [--quick] [--json FILE] [--only TEXT]

A training step is the output, and the gradients of its weighted sum by the input and all weights; attention is that of
a sequence over itself, 256 wide, in 8 heads. Ours and Keras' are each taken with `jit_compile` on or off, whichever was
faster in a first round. Then they run in turn, and medians are compared: a ratio above 1 means that ours is faster.
Long sequences are measured in a fresh process each: the median of three causal training steps after the first, and the
peak of memory above the process before (Linux only). Decoding is greedy, in a loop within one graph, with four decoder
blocks of width 256, 8 examples, 256 tokens: with the cache, and running the prefix, padded to 256, again for every
token. `--torch` adds PyTorch, where it is installed, in a process of its own, on one core or all of them, whichever is
faster.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
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

WIDTH, HEADS = 256, 8


class Size(NamedTuple):
    """B examples of T steps."""

    batch: int
    time: int

    def __str__(self) -> str:
        return f"{self.batch} x {self.time}"


GRID = [Size(*each) for each in itertools.product((1, 16, 64), (32, 128, 512))]
QUICK = [Size(1, 32), Size(16, 128)]
OPTION_SIZES = [Size(16, 128), Size(64, 32), Size(4, 512)]
LONG = 8192
LONGEST = 32768
DECODED, BLOCKS, EXAMPLES, VOCABULARY = 256, 4, 8, 1000


class Layer(NamedTuple):
    """A layer of ours, the one it is compared with, and how both are called."""

    ours: Callable[[], keras.layers.Layer]
    baseline: Callable[[], keras.layers.Layer]
    call: Callable[[keras.layers.Layer, tf.Tensor], tf.Tensor]
    inputs: int = 2


def _over_itself(layer: keras.layers.Layer, sequence: tf.Tensor, **options: Any) -> tf.Tensor:
    return layer(sequence, sequence, training=True, **options)


def _padded(layer: keras.layers.Layer, sequence: tf.Tensor) -> tf.Tensor:
    steps = tf.shape(sequence)[1]
    lengths = steps // 2 + tf.range(tf.shape(sequence)[0]) % (steps // 2 + 1)
    mask = tf.sequence_mask(lengths, steps)
    return _over_itself(layer, sequence, query_mask=mask, value_mask=mask)


def _heads(**options: Any) -> dict[str, Callable[[], keras.layers.Layer]]:
    return {
        "ours": lambda: layers.MultiHeadAttention(HEADS, WIDTH // HEADS, **options),
        "baseline": lambda: keras.layers.MultiHeadAttention(HEADS, WIDTH // HEADS, **options),
    }


def _norm(ours: type, baseline: type) -> Layer:
    return Layer(ours, baseline, lambda layer, sequence: layer(sequence, training=True), inputs=1)


LAYERS = {"MultiHeadAttention": Layer(**_heads(), call=_over_itself)}
OPTIONS = {
    "causal": Layer(**_heads(), call=lambda *inputs: _over_itself(*inputs, use_causal_mask=True)),
    "padded": Layer(**_heads(), call=_padded),
    "dropout": Layer(**_heads(dropout=0.1), call=_over_itself),
    "LayerNorm": _norm(layers.LayerNorm, keras.layers.LayerNormalization),
    "RMSNorm": _norm(layers.RMSNorm, keras.layers.RMSNormalization),
    "BatchNorm": _norm(layers.BatchNorm, keras.layers.BatchNormalization),
}


def main() -> None:
    """Run the cases and print the tables."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--long-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.long_of:
        print(json.dumps(_long_in_this_process(options.long_of[0], int(options.long_of[1]))))
        return
    if options.torch:
        if torch is None or options.json is None or not options.json.exists():
            parser.error("--torch needs PyTorch, and --json with a file of earlier results")
        _add_torch(options.json)
        return
    result = json.loads(options.json.read_text("utf-8")) if options.json and options.json.exists() else {}
    rate = measuring.product_rate()
    print(f"large matrix product: {rate / 1e9:.0f} GFLOP/s\n")
    result |= {"versions": measuring.versions(), "machine": measuring.machine(rate)}
    found = {(row["group"], row["layer"], row["case"]): row for row in result.get("rows", [])}
    groups = {
        "training": (LAYERS, QUICK if options.quick else GRID),
        "training, options": (OPTIONS, QUICK[1:] if options.quick else OPTION_SIZES),
    }
    print("| case | ours, ms | Keras, ms | ratio | compiling: ours, Keras, s |\n|---|---|---|---|---|")
    for group, (table, sizes) in groups.items():
        for (name, layer), size in itertools.product(table.items(), sizes):
            if options.only in f"{group}: {name} {size}":
                row = {"group": group, "layer": name, "case": str(size), **_compare(layer, size)}
                print(_line(row), flush=True)
                found[group, name, str(size)] = row
                result |= {"rows": [*found.values()], "summary": measuring.summary([*found.values()])}
                _write(options.json, result)
                keras.backend.clear_session()
    if not options.quick and options.only in "long":
        result["long"] = _long()
        _write(options.json, result)
    if options.only in "decoding":
        result["decoding"] = _decoding(64 if options.quick else DECODED)
        _write(options.json, result)
    measuring.print_summary([*found.values()])


def _write(path: Path | None, result: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _line(row: dict[str, Any]) -> str:
    return (
        "| {group}: {layer} {case} | {ours_ms:.2f} | {baseline_ms:.2f} | {ratio:.2f} | "
        "{ours_compile_seconds:.1f}, {baseline_compile_seconds:.1f} |"
    ).format(**row)


def _arrays(size: Size) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    sequence, upstream = (random.normal(size=(*size, WIDTH)).astype("float32") for _ in range(2))
    return sequence, upstream


def _compare(layer: Layer, size: Size) -> dict[str, Any]:
    arrays = _arrays(size)
    return measuring.compare(
        *(
            lambda jit, make=make: measuring.repeated(_training_step(make(), layer, *arrays, jit), arrays[0])
            for make in (layer.ours, layer.baseline)
        )
    )


def _training_step(
    built: keras.layers.Layer, layer: Layer, sequence: np.ndarray, upstream: np.ndarray, jit: bool
) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    built.build(*[(None, None, WIDTH)] * layer.inputs)
    signature = [measuring.unknown_batch(each) for each in (sequence, upstream)]

    @tf.function(jit_compile=jit, input_signature=signature)
    def step(sequence: tf.Tensor, upstream: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(sequence)
            loss = tf.reduce_sum(layer.call(built, sequence) * upstream)
        return tape.gradient(loss, [sequence, *[weight.value for weight in built.trainable_weights]])

    return lambda sequence: step(sequence, upstream)


def _long() -> list[dict[str, Any]]:
    """Returns time and memory of training steps over long sequences, one example."""
    print("\n| causal training step | seconds | peak memory, MB |\n|---|---|---|")
    rows = []
    for side, steps in (("ours", LONG), ("baseline", LONG), ("ours", LONGEST)):
        row = {"side": side, "steps": steps, **measuring.in_fresh_process(__file__, "--long-of", side, str(steps))}
        rows.append(row)
        print(f"| {'ours' if side == 'ours' else 'Keras'}, {steps} steps | {row['seconds']:.2f} | {row['mb']:.0f} |")
    return rows


def _long_in_this_process(side: str, steps: int) -> dict[str, float]:
    """Returns the median of three steps after the first, and the peak of memory above the process before, in MB."""
    layer = OPTIONS["causal"]
    sequence, upstream = _arrays(Size(1, steps))
    step = _training_step(getattr(layer, side)(), layer, sequence, upstream, jit=False)
    before = measuring.memory_of_this_process("VmRSS")
    measuring.start_peak_here()
    times = []
    for _ in range(4):
        start = time.perf_counter()
        for gradient in step(tf.constant(sequence)):
            gradient.numpy()
        times.append(time.perf_counter() - start)
    peak = measuring.memory_of_this_process("VmHWM") - before
    return {"seconds": statistics.median(times[1:]), "first_seconds": times[0], "mb": peak}


def _decoding(tokens: int) -> dict[str, Any]:
    """Returns the seconds that greedy decoding takes with and without the cache, and what a token costs early and late.

    Both ways decode the same tokens, or the comparison would be of two different things.
    """
    keras.utils.set_random_seed(1)
    model = _LanguageModel()
    first = tf.constant(np.random.default_rng(0).integers(0, VOCABULARY, EXAMPLES), "int32")
    results: dict[str, Any] = {"tokens": tokens}
    decoded = {}
    for name, decode in (("cached", model.decode), ("again", model.decode_again)):
        ways = {jit: tf.function(decode, jit_compile=jit, autograph=False) for jit in (False, True)}
        for jit, way in ways.items():
            decoded[name, jit] = way(first, tokens).numpy()
        fastest = {jit: _timed(way, first, tokens) for jit, way in ways.items()}
        results[f"{name}_jit"] = min(fastest, key=fastest.__getitem__)
        fast = ways[results[f"{name}_jit"]]
        times = [min(fastest.values()), *(_timed(fast, first, tokens) for _ in range(2))]
        results[f"{name}_seconds"] = statistics.median(times)
    assert len({tuple(each.ravel()) for each in decoded.values()}) == 1, "the two ways decode different tokens"
    jit = results["cached_jit"]
    pieces = tf.function(model.decode_piece, jit_compile=jit, autograph=False)
    for name, start in (("early", 0), ("late", tokens - tokens // 4)):
        count = tokens // 4
        pieces(first, start, count, tokens)
        times = [_timed(pieces, first, start, count, tokens) for _ in range(9)]
        results[f"{name}_token_ms"] = 1e3 * statistics.median(times) / count
    results["ratio"] = results["again_seconds"] / results["cached_seconds"]
    print(
        "\n| decoding {tokens} tokens | seconds |\n|---|---|\n| with the cache | {cached_seconds:.3f} |\n"
        "| the prefix again for each | {again_seconds:.3f} |\n\n{ratio:.0f} times faster; a token costs "
        "{early_token_ms:.2f} ms in the first quarter and {late_token_ms:.2f} ms in the last.".format(**results)
    )
    return results


def _timed(function: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    function(*arguments).numpy()
    return time.perf_counter() - start


class _LanguageModel:
    """Four decoder blocks between an embedding and a projection to the words."""

    def __init__(self) -> None:
        self.embedding = keras.layers.Embedding(VOCABULARY, WIDTH)
        self.blocks = [
            layers.TransformerDecoderBlock(HEADS, 4 * WIDTH, rotary=True, cross_attention=False) for _ in range(BLOCKS)
        ]
        self.projection = keras.layers.Dense(VOCABULARY)
        vectors = self.embedding(tf.zeros((1, 1), "int32"))
        for block in self.blocks:
            vectors = block(vectors)
        self.projection(vectors)

    def decode(self, first: tf.Tensor, count: int) -> tf.Tensor:
        return self.decode_piece(first, 0, count, count)

    def decode_piece(self, first: tf.Tensor, start: int, count: int, room: int) -> tf.Tensor:
        """Decodes `count` tokens, the first of which has `start` others before it."""
        caches = []
        for block in self.blocks:
            cache = block.empty_cache(EXAMPLES, room)
            caches.append(cache._replace(own=cache.own._replace(length=tf.constant(start))))

        def body(index: tf.Tensor, words: tf.Tensor, caches: Any, written: Any) -> Any:
            vectors, new_caches = self.embedding(words), []
            for block, cache in zip(self.blocks, caches, strict=True):
                vectors, cache = block.step(vectors, cache)
                new_caches.append(cache)
            words = tf.argmax(self.projection(vectors), axis=-1, output_type="int32")
            return index + 1, words, new_caches, written.write(index, words)

        written = tf.TensorArray("int32", count, element_shape=(EXAMPLES,))
        loop = (tf.constant(0), first, caches, written)
        return tf.while_loop(lambda index, *_: index < count, body, loop, maximum_iterations=count)[-1].stack()

    def decode_again(self, first: tf.Tensor, count: int) -> tf.Tensor:
        """Decodes by running everything so far, padded to the whole length, for every token."""

        def body(index: tf.Tensor, words: tf.Tensor, written: Any) -> Any:
            vectors = self.embedding(words)
            for block in self.blocks:
                vectors = block(vectors)
            last = tf.gather(vectors, index, axis=1)
            new = tf.argmax(self.projection(last), axis=-1, output_type="int32")
            places = tf.range(count)[None] == index + 1
            return index + 1, tf.where(places, new[:, None], words), written.write(index, new)

        words = tf.where(tf.range(count)[None] == 0, first[:, None], tf.zeros((EXAMPLES, count), "int32"))
        written = tf.TensorArray("int32", count, element_shape=(EXAMPLES,))
        loop = (tf.constant(0), words, written)
        return tf.while_loop(lambda index, *_: index < count, body, loop, maximum_iterations=count)[-1].stack()


def _add_torch(path: Path) -> None:
    """Measures PyTorch by itself, because the idle threads of one library slow down the other."""
    result = json.loads(path.read_text("utf-8"))
    for row in result["rows"]:
        if row["layer"] in LAYERS:
            size = Size(*map(int, row["case"].split(" x ")))
            row |= measuring.with_torch(torch, _torch_step(*_arrays(size)))
            print(f"| {row['layer']} {size} | {row['ours_ms']:.2f} | {row['torch_ms']:.2f} |", flush=True)
    result["summary"] = measuring.summary(result["rows"])
    result["versions"] = measuring.versions()
    _write(path, result)


def _torch_step(sequence: np.ndarray, upstream: np.ndarray) -> Step:
    layer = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    inputs, weights = torch.tensor(sequence, requires_grad=True), torch.tensor(upstream)

    def train(count: int) -> None:
        for _ in range(count):
            for tensor in (inputs, *layer.parameters()):
                tensor.grad = None
            (layer(inputs, inputs, inputs, need_weights=False)[0] * weights).sum().backward()

    return train


if __name__ == "__main__":
    main()
