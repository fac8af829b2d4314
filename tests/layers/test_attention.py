"""Attention layers: against NumPy, Keras and PyTorch, masks, blocks, caches, and refusals."""

import importlib.util
import itertools

import keras
import numpy as np
import pytest
import torch_attention_goldens
from support import ROOT

from layers import AdditiveAttention, MultiHeadAttention, MultiplicativeAttention, blockwise, from_keras, to_keras
from layers.blockwise import Blockwise, Constraints
from layers.conversion import from_torch_weights, to_torch_weights
from layers.derivatives import with_gradient
from layers.dot_product import attend, attend_with_weights

B, R, S, D, E, U = 3, 5, 7, 4, 6, 5  # batch, query time, key time, query features, value features, units
BACKEND = keras.backend.backend()
tensor, array = keras.ops.convert_to_tensor, keras.ops.convert_to_numpy


def softmax(scores, allowed):
    """Weights of one row; zeros where nothing is allowed."""
    weights = np.zeros(len(scores))
    if allowed.any():
        exponentials = np.exp(scores[allowed] - scores[allowed].max())
        weights[allowed] = exponentials / exponentials.sum()
    return weights


class Masks:
    """Random masks of every kind, with a query that may read nothing and an example without valid keys."""

    def __init__(self, rng, causal, heads=None):
        self.query = rng.random((B, R)) < 0.8
        self.value = rng.random((B, S)) < 0.7
        self.key = rng.random((B, S)) < 0.9
        self.value[-1] = False
        self.attention = rng.random((B, R, S) if heads is None else (B, heads, R, S)) < 0.7
        self.attention[0, ..., 1, :] = False
        self.causal = causal

    def arguments(self):
        named = {"query_mask": self.query, "value_mask": self.value, "key_mask": self.key}
        named["attention_mask"] = self.attention
        return {name: tensor(mask) for name, mask in named.items()} | {"use_causal_mask": self.causal}

    def allowed(self, example, head, row):
        allowed = self.value[example] & self.key[example]
        mask = self.attention[example]
        allowed = allowed & (mask[row] if mask.ndim == 2 else mask[head, row])
        return allowed & (np.arange(S) <= row) if self.causal else allowed


def inputs(rng):
    return [rng.normal(size=shape) for shape in ((B, R, D), (B, S, E), (B, S, D))]


def built(layer, rng, query, value, key):
    layer.build(query.shape, value.shape, key.shape)
    layer.set_weights([rng.normal(scale=0.7, size=tuple(weight.shape)) for weight in layer.weights])
    return layer, {weight.name: array(weight) for weight in layer.weights}


def single_headed_oracle(score, masks, query, value, key):
    output, weights = np.zeros((B, R, value.shape[-1])), np.zeros((B, R, S))
    for example in range(B):
        for row in range(R):
            scores = np.array([score(query[example, row], key[example, column]) for column in range(S)])
            weights[example, row] = softmax(scores, masks.allowed(example, 0, row))
            if masks.query[example, row]:
                output[example, row] = weights[example, row] @ value[example]
    return output, weights


SINGLE_HEADED = {
    "dot": (lambda: MultiplicativeAttention("dot", dtype="float64"), lambda w: lambda q, k: q @ k),
    "scaled": (lambda: MultiplicativeAttention("dot", scaled=True, dtype="float64"), lambda w: lambda q, k: q @ k / 2),
    "general": (lambda: MultiplicativeAttention(dtype="float64"), lambda w: lambda q, k: q @ w["kernel"] @ k),
    "additive": (
        lambda: AdditiveAttention(U, dtype="float64"),
        lambda w: (
            lambda q, k: np.tanh(q @ w["query_kernel"] + k @ w["key_kernel"] + w["bias"]) @ w["score_vector"][:, 0]
        ),
    ),
}


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("kind", SINGLE_HEADED)
def test_single_headed_attention_equals_its_definition(kind, causal, rng):
    make, score = SINGLE_HEADED[kind]
    query, value, key = inputs(rng)
    masks = Masks(rng, causal)
    layer, weights = built(make(), rng, query, value, key)
    output, scores = layer(query, value, key, return_attention_scores=True, **masks.arguments())
    wanted_output, wanted_scores = single_headed_oracle(score(weights), masks, query, value, key)
    np.testing.assert_allclose(output, wanted_output, atol=1e-12)
    # The weights of masked queries are of no account.
    np.testing.assert_allclose(np.array(scores)[masks.query], wanted_scores[masks.query], atol=1e-12)
    for training in (False, True):
        again = layer(query, value, key, training=training, **masks.arguments())
        np.testing.assert_allclose(again, wanted_output, atol=1e-12)


def rotated(vector, position):
    """Pairs half the width apart as complex numbers, turned by an angle that grows with the position."""
    half = len(vector) // 2
    turned = (vector[:half] + 1j * vector[half:]) * np.exp(1j * position * 10_000.0 ** (-np.arange(half) / half))
    return np.concatenate([turned.real, turned.imag])


def multi_headed_oracle(layer, weights, masks, query, value, key):
    bias = (lambda name: weights[f"{name}_bias"]) if layer.use_bias else (lambda name: 0.0)
    heads, key_heads = layer.num_heads, layer.num_key_value_heads
    queries = (query @ weights["query_kernel"] + bias("query")).reshape(B, R, heads, layer.key_dim)
    keys = (key @ weights["key_kernel"] + bias("key")).reshape(B, S, key_heads, layer.key_dim)
    values = (value @ weights["value_kernel"] + bias("value")).reshape(B, S, key_heads, layer.value_dim)
    output = np.zeros((B, R, weights["output_kernel"].shape[1]))
    scores = np.zeros((B, heads, R, S))
    for example in range(B):
        for row in range(R):
            context = np.zeros((heads, layer.value_dim))
            for head in range(heads):
                shared = head * key_heads // heads
                one, others = queries[example, row, head], keys[example, :, shared]
                if layer.rotary:
                    one, others = rotated(one, row), np.array([rotated(each, at) for at, each in enumerate(others)])
                allowed = masks.allowed(example, head, row)
                scores[example, head, row] = softmax(others @ one / np.sqrt(layer.key_dim), allowed)
                context[head] = scores[example, head, row] @ values[example, :, shared]
            readable = any(masks.allowed(example, head, row).any() for head in range(heads))
            if masks.query[example, row] and readable:
                output[example, row] = context.ravel() @ weights["output_kernel"] + bias("output")
    return output, scores


MULTI_HEADED = {
    "plain": {"num_heads": 2, "key_dim": 3},
    "narrow_values": {"num_heads": 2, "key_dim": 3, "value_dim": 2, "output_dim": 5},
    "no_bias": {"num_heads": 2, "key_dim": 3, "use_bias": False},
    "shared_keys": {"num_heads": 4, "key_dim": 2, "num_key_value_heads": 2},
    "one_key": {"num_heads": 3, "key_dim": 2, "num_key_value_heads": 1},
    "rotary": {"num_heads": 4, "key_dim": 4, "num_key_value_heads": 2, "rotary": True},
}


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("kind", MULTI_HEADED)
def test_multi_head_attention_equals_its_definition(kind, causal, rng):
    query, value, key = inputs(rng)
    masks = Masks(rng, causal, heads=MULTI_HEADED[kind]["num_heads"] if causal else None)
    layer, weights = built(MultiHeadAttention(**MULTI_HEADED[kind], dtype="float64"), rng, query, value, key)
    output, scores = layer(query, value, key, return_attention_scores=True, **masks.arguments())
    wanted_output, wanted_scores = multi_headed_oracle(layer, weights, masks, query, value, key)
    np.testing.assert_allclose(output, wanted_output, atol=1e-12)
    np.testing.assert_allclose(
        np.moveaxis(np.array(scores), 1, 2)[masks.query], np.moveaxis(wanted_scores, 1, 2)[masks.query], atol=1e-12
    )
    for training in (False, True):
        again = layer(query, value, key, training=training, **masks.arguments())
        np.testing.assert_allclose(again, wanted_output, atol=1e-12)


def gradients(layer, function, tensors):
    """Outputs, and gradients of the sum of their squares by tensors and weights."""
    tensors = [tensor(each) for each in tensors]
    if BACKEND == "jax":
        import jax

        def loss(tensors, weights):
            with keras.StatelessScope(state_mapping=list(zip(layer.trainable_variables, weights, strict=True))):
                output = function(*tensors)
            return keras.ops.sum(keras.ops.square(output)), output

        weights = [variable.value for variable in layer.trainable_variables]
        (_, output), found = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(tensors, weights)
        return [array(each) for each in (output, *found[0], *found[1])]
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(tensors)
        output = function(*tensors)
        loss = tf.reduce_sum(output**2)
    return [array(each) for each in (output, *tape.gradient(loss, [*tensors, *[w.value for w in layer.weights]]))]


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
def test_values_and_gradients_agree_with_keras(causal, rng):
    query, value, key = (each.astype("float32") for each in inputs(rng))
    # On JAX, Keras' own layer fails where values are wider than keys.
    theirs = keras.layers.MultiHeadAttention(2, 3, value_dim=4 if BACKEND == "tensorflow" else 3, output_shape=5)
    theirs.build(query.shape, value.shape, key.shape)
    theirs.set_weights([rng.normal(scale=0.5, size=tuple(weight.shape)) for weight in theirs.weights])
    ours = from_keras(theirs)
    mask = {"attention_mask": np.array(rng.random((B, R, S)) < 0.7) | (np.arange(S) == 0)}
    results = [
        gradients(
            layer, lambda *x, layer=layer: layer(*x, use_causal_mask=causal, training=True, **mask), [query, value, key]
        )
        for layer in (ours, theirs)
    ]
    for ours_array, theirs_array in zip(*results, strict=True):
        np.testing.assert_allclose(ours_array.ravel(), theirs_array.ravel(), atol=1e-5, rtol=1e-5)


def test_conversion_to_keras_and_back_keeps_weights_and_options(rng):
    query, value, key = (each.astype("float32") for each in inputs(rng))
    options = {"use_bias": False, "dropout": 0.2, "kernel_regularizer": keras.regularizers.L2(0.1), "name": "reader"}
    layer, _ = built(MultiHeadAttention(2, 3, **options), rng, query, value, key)
    theirs = to_keras(layer)
    back = from_keras(theirs)
    assert back.get_config() == layer.get_config()
    for one, other in zip(back.get_weights(), layer.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(theirs(query, value, key), layer(query, value, key), atol=1e-6)


@pytest.mark.parametrize("case", torch_attention_goldens.CASES)
def test_values_and_gradients_agree_with_pytorch(case):
    recorded = torch_attention_goldens.read(case)
    features, heads = torch_attention_goldens.FEATURES, torch_attention_goldens.HEADS
    weights = {name.partition(".")[2]: each for name, each in recorded.items() if name.startswith("weight.")}
    layer = MultiHeadAttention(heads, features // heads, use_bias=case != "no_bias", dtype="float64")
    from_torch_weights(weights, layer)
    back = to_torch_weights(layer)
    assert back.keys() == weights.keys()
    for name, wanted in weights.items():
        np.testing.assert_array_equal(back[name], wanted)
    output, by_query, by_value, *by_weights = gradients(
        layer,
        lambda query, value: layer(query, value, value_mask=recorded["valid"], training=True),
        [recorded["query"], recorded["value"]],
    )
    layer.set_weights(by_weights)
    found = {"query": by_query, "value": by_value, **to_torch_weights(layer)}
    np.testing.assert_allclose(output, recorded["output"], atol=1e-12)
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, recorded[f"gradient.{name}"], atol=1e-12, err_msg=name)


@pytest.mark.parametrize("case", torch_attention_goldens.CASES)
@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs PyTorch")
def test_pytorch_computes_what_was_recorded(case):
    for name, wanted in torch_attention_goldens.compute(case).items():
        np.testing.assert_allclose(torch_attention_goldens.read(case)[name], wanted, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "out_proj.bias is missing"),
        ({"in_proj_weight": np.zeros(18)}, "in_proj_weight must have 2 axes"),
        ({"in_proj_weight": np.zeros((17, 6))}, "in_proj_weight must have as many rows"),
        ({"in_proj_weight": "none"}, "in_proj_weight must be an array"),
        ({"k_proj_weight": np.zeros((6, 6))}, "q_proj_weight is missing"),
        ({"out_proj.bias": np.zeros(6), "more": np.zeros(1)}, "no place for more"),
        ({"out_proj.bias": np.zeros(5)}, "output_bias"),
    ],
)
def test_wrong_weights_of_pytorch_leave_the_layer_as_it_was(changed, message):
    state = {"in_proj_weight": np.zeros((18, 6)), "out_proj.weight": np.zeros((6, 6)), "in_proj_bias": np.zeros(18)}
    layer = MultiHeadAttention(3, 2)
    with pytest.raises(ValueError, match=message):
        from_torch_weights(state | changed, layer)
    assert not layer.built


# Blocks.

WAYS = ["eager", "graph", "unknown_sizes", "jit"] if BACKEND == "tensorflow" else ["jit"]
BLOCKED = {  # heads, key heads, query steps, key steps, valid, allowed by head, causal
    "plain": (2, 2, 8, 8, False, None, False),
    "causal": (4, 2, 9, 9, False, None, True),
    "everything": (4, 4, 9, 7, True, True, True),
    "shared_keys": (4, 1, 5, 10, True, False, False),
    "one_example": (2, 2, 9, 9, True, None, True),
}


# The slow suite has the rest.
QUICKLY = {("shared_keys", "graph")}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(name, way, marks=() if (name, way) in QUICKLY else pytest.mark.slow)
        for name in BLOCKED
        for way in WAYS
    ],
)
def test_attention_in_blocks_equals_attention_at_once(name, way, rng, monkeypatch):
    heads, key_heads, query_steps, key_steps, has_valid, by_head, causal = BLOCKED[name]
    batch = 1 if name == "one_example" else 3
    shapes = [(batch, heads, query_steps, 3), (batch, key_heads, key_steps, 3), (batch, key_heads, key_steps, 2)]
    shapes.append((batch, heads, query_steps, 2))
    arrays = [rng.normal(size=shape) for shape in shapes]
    if has_valid:
        arrays.append(rng.random((batch, key_steps)) < 0.6)
    if by_head is not None:
        arrays.append(rng.random((batch if by_head else 1, heads if by_head else 1, query_steps, key_steps)) < 0.6)
        arrays[-1][0, 0, 1] = False
    monkeypatch.setattr(blockwise, "BLOCK", 4)
    monkeypatch.setattr(blockwise, "LARGEST_BLOCK", 4)

    def run(in_blocks, query, key, value, upstream, *masks):
        masks = list(masks)
        constraints = Constraints(
            masks.pop(0) if has_valid else None, masks.pop(0) if by_head is not None else None, causal
        )

        def function(tensors):
            if not in_blocks:
                return attend_with_weights(*tensors, constraints)[:1]
            attention = Blockwise(heads, key_heads, constraints, training=True)

            def plain(tensors):
                return attend_with_weights(*tensors, constraints)[:1]

            return with_gradient(plain, attention.forward, attention.backward)(tensors)

        return _with_gradients(function, (query, key, value), upstream)

    tensors = [tensor(each) for each in arrays]
    actual = _in_a_way(way, lambda *arguments: run(True, *arguments), tensors)
    for one, other in zip(actual, run(False, *tensors), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def _with_gradients(function, tensors, upstream):
    if BACKEND == "jax":
        import jax

        (output,), pull_back = jax.vjp(function, tensors)
        return output, *pull_back((upstream,))[0]
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(tensors)
        (output,) = function(tensors)
    return output, *tape.gradient(output, tensors, upstream)


def _in_a_way(way, function, tensors):
    if BACKEND == "jax":
        import jax

        return jax.jit(function)(*tensors)
    import tensorflow as tf

    if way == "eager":
        return function(*tensors)
    signature = None
    if way == "unknown_sizes":
        # The numbers of heads and features are known to every layer, the others are not.
        shapes = [(None, *x.shape[1:2], None, x.shape[3]) if x.dtype == tf.float64 else x.shape for x in tensors]
        signature = [tf.TensorSpec(shape, x.dtype) for shape, x in zip(shapes, tensors, strict=True)]
    return tf.function(function, input_signature=signature, jit_compile=way == "jit")(*tensors)


def test_blocks_know_where_half_precision_is_too_coarse(rng, monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 16)
    monkeypatch.setattr(blockwise, "LARGEST_BLOCK", 16)
    tensors = [tensor(rng.normal(scale=s, size=(1, 2, 60, 8)).astype("float32")) for s in (8**-0.5, 1, 1)]
    attention = Blockwise(2, 2, Constraints(), training=True)
    (wanted,), _ = attention.forward(tuple(tensors))
    (actual,), _ = attention.forward(tuple(keras.ops.cast(each, "bfloat16") for each in tensors))
    assert keras.backend.standardize_dtype(actual.dtype) == "bfloat16"
    np.testing.assert_allclose(array(keras.ops.cast(actual, "float32")), wanted, atol=0.02)


LAYER_MASKS = {
    "none": lambda rng, batch, steps: {},
    "causal": lambda rng, batch, steps: {"use_causal_mask": True},
    "steps": lambda rng, batch, steps: {"query_mask": rng.random((batch, steps)) < 0.7} | _valid(rng, batch, steps),
    "keys": lambda rng, batch, steps: {"attention_mask": rng.random((batch, 1, steps)) < 0.7},
    "queries": lambda rng, batch, steps: {"attention_mask": rng.random((batch, steps, 1)) < 0.7},
    "all_examples": lambda rng, batch, steps: {"attention_mask": rng.random((steps, steps)) < 0.7},
    "heads": lambda rng, batch, steps: (
        {"attention_mask": rng.random((batch, 2, steps, steps)) < 0.7, "use_causal_mask": True}
        | _valid(rng, batch, steps)
    ),
}


def _valid(rng, batch, steps):
    return {"value_mask": rng.random((batch, steps)) < 0.7}


@pytest.mark.tensorflow_only
@pytest.mark.parametrize(
    ("masks", "known", "cores"),
    [pytest.param(*case, marks=pytest.mark.slow) for case in itertools.product(LAYER_MASKS, (True, False), (1, 5))],
)
def test_a_layer_in_blocks_equals_the_layer_at_once(masks, known, cores, rng, monkeypatch):
    """Plain graphs, as in `fit` without XLA; with one or five cores for two heads of three examples, and of none."""
    import tensorflow as tf

    from layers.kernels import tensorflow as kernels

    monkeypatch.setattr(kernels, "_cores", lambda: cores)
    monkeypatch.setattr(tf.config.threading, "get_inter_op_parallelism_threads", lambda: 0)
    monkeypatch.setattr(blockwise, "BLOCK", 4)
    monkeypatch.setattr(blockwise, "LARGEST_BLOCK", 4)
    layer = MultiHeadAttention(2, 3, num_key_value_heads=1, dtype="float64")
    layer.build((None, None, D), (None, None, D))
    for batch in (3, 0):
        sequence = rng.normal(size=(batch, 9, D))
        named = {
            name: mask if isinstance(mask, bool) else tensor(mask)
            for name, mask in LAYER_MASKS[masks](rng, batch, 9).items()
        }

        def step(sequence, layer=layer, named=named):
            with tf.GradientTape() as tape:
                tape.watch(sequence)
                output = layer(sequence, sequence, training=True, **named)
                total = tf.reduce_sum(output**2)
            return output, *tape.gradient(total, [sequence, *layer.trainable_variables])

        results = []
        for short in (10**6, 1):
            monkeypatch.setattr(kernels, "SHORT", short)
            signature = [tf.TensorSpec(sequence.shape if known else (None, None, D), "float64")]
            results.append(tf.function(step, input_signature=signature, autograph=False)(sequence))
        for at_once, in_blocks in zip(*results, strict=True):
            np.testing.assert_allclose(in_blocks, at_once, atol=1e-12)


@pytest.mark.slow
@pytest.mark.tensorflow_only
def test_long_sequences_never_hold_all_scores():
    """12,000 steps, there and back: the scores of one head alone would be 0.6 GB, and all of them 2.3 GB."""
    import subprocess
    import sys

    script = """
import resource
import numpy as np, tensorflow as tf
from layers import MultiHeadAttention
layer = MultiHeadAttention(4, 8)
layer.build((1, 12_000, 16), (1, 12_000, 16))

@tf.function(input_signature=[tf.TensorSpec((None, None, 16))])
def step(sequence):
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(sequence, sequence, training=True, use_causal_mask=True) ** 2)
    return tape.gradient(total, layer.trainable_variables)

memory = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(np.ones((1, 100, 16), "float32"))
before = memory()
assert all(np.isfinite(each).all() for each in step(np.ones((1, 12_000, 16), "float32")))
assert memory() - before < 600_000, memory() - before  # KB
cache = layer.empty_cache(1, 6000)
before = memory()
layer.extend(np.ones((1, 6000, 16), "float32"), cache)  # scores of one head: 144 MB; with masks and softmax 1 GB
assert memory() - before < 400_000, memory() - before
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


@pytest.mark.tensorflow_only
def test_mask_from_outside_the_graph(rng):
    import tensorflow as tf

    layer = MultiHeadAttention(2, 2)
    sequence, mask = rng.normal(size=(B, R, D)).astype("float32"), rng.random((B, R)) < 0.6
    layer.build(sequence.shape, sequence.shape)

    def gradient(sequence, mask):
        with tf.GradientTape() as tape:
            tape.watch(sequence)
            total = tf.reduce_sum(layer(sequence, sequence, value_mask=mask) ** 2)
        return tape.gradient(total, sequence)

    @tf.function(input_signature=[tf.TensorSpec((None, None, D))], jit_compile=True)
    def in_graph(sequence):
        return gradient(sequence, outside)

    outside = tf.constant(mask)
    expected = gradient(tf.constant(sequence), mask)
    np.testing.assert_allclose(in_graph(sequence), expected, atol=1e-5)


@pytest.mark.parametrize("in_blocks", [False, True], ids=["at_once", "in_blocks"])
def test_dropout_drops_weights_and_keeps_their_mean(in_blocks, rng, monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 20)
    monkeypatch.setattr(blockwise, "LARGEST_BLOCK", 20)
    steps = 40
    query, key = (tensor(rng.normal(scale=0.1, size=(2, 2, steps, 4))) for _ in range(2))
    value = tensor(np.broadcast_to(np.eye(steps), (2, 2, steps, steps)))

    def attended(tensors, seed):
        constraints = Constraints(dropout=0.25, seed=tensor(np.array([seed, 7], "uint32")))
        if not in_blocks:
            return attend(*tensors, constraints, training=True)
        attention = Blockwise(2, 2, constraints, training=True)

        def plain(tensors):
            return attend_with_weights(*tensors, constraints)[:1]

        return with_gradient(plain, attention.forward, attention.backward)(tensors)[0]

    weights = array(attended((query, key, value), 1))  # the values are unit vectors
    full = array(attend_with_weights(query, key, value, Constraints())[1])
    kept = weights != 0
    np.testing.assert_allclose(weights[kept], (full / 0.75)[kept], rtol=1e-10)
    assert 0.72 < kept.mean() < 0.78
    for axis in (0, 1, 2, 3):
        halves = np.array_split(kept, 2, axis=axis)
        assert not all((halves[0] == halves[1]).ravel()), "other places of the same size drop the same weights"
    np.testing.assert_array_equal(weights, array(attended((query, key, value), 1)))
    assert (weights != array(attended((query, key, value), 2))).any()

    # The gradient knows what was dropped: a central difference along a random direction.
    upstream, directions = rng.normal(size=full.shape), [rng.normal(size=(2, 2, steps, 4)) for _ in range(2)]
    _, by_query, by_key, _ = _with_gradients(
        lambda tensors: (attended(tensors, 1),), (query, key, value), tensor(upstream)
    )
    slope = sum((array(g) * d).sum() for g, d in zip((by_query, by_key), directions, strict=True))
    ends = []
    for sign in (-1, 1):
        moved = [tensor(array(x) + sign * 1e-5 * d) for x, d in zip((query, key), directions, strict=True)]
        ends.append((array(attended((*moved, value), 1)) * upstream).sum())
    np.testing.assert_allclose((ends[1] - ends[0]) / 2e-5, slope, rtol=1e-6)


def test_fused_kernel_of_jax_gets_what_it_documents(rng, monkeypatch):
    """On a CPU, with JAX's reference in place of cuDNN."""
    jax = pytest.importorskip("jax")
    from layers.kernels import jax as kernels

    reference = jax.nn.dot_product_attention

    def on_cpu(*arrays, implementation, **options):
        assert implementation == "cudnn"
        return reference(*arrays, implementation="xla", **options)

    shapes = ((B, 4, R, 8), (B, 2, R, 8), (B, 2, R, 8))
    query, key, value = (rng.normal(size=shape).astype("float16") for shape in shapes)
    arrays = [jax.numpy.asarray(each) for each in (query, key, value)]
    assert kernels.fused_attention(*arrays, causal=True) is None, "there is no GPU"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", on_cpu)
    assert kernels.fused_attention(*[each.astype("float32") for each in arrays], causal=True) is None
    for causal in (False, True):
        tensors = [tensor(each.astype("float32")) for each in (query, key, value)]
        wanted, _ = attend_with_weights(*tensors, Constraints(causal=causal))
        actual = np.asarray(kernels.fused_attention(*arrays, causal=causal), "float32")
        np.testing.assert_allclose(actual, wanted, atol=0.02)


# What may be read.

SELF_ATTENTION = {
    "dot": lambda: MultiplicativeAttention("dot", dtype="float64"),
    "additive": lambda: AdditiveAttention(U, dtype="float64"),
    "heads": lambda: MultiHeadAttention(2, 2, dtype="float64"),
    "rotary": lambda: MultiHeadAttention(2, 2, num_key_value_heads=1, rotary=True, dtype="float64"),
}


@pytest.mark.parametrize("training", [False, True], ids=["prediction", "training"])
@pytest.mark.parametrize("kind", SELF_ATTENTION)
def test_gradient_reaches_back_and_never_ahead(kind, training, rng):
    sequence = rng.normal(size=(1, R, D))
    layer, _ = built(SELF_ATTENTION[kind](), rng, sequence, sequence, sequence)
    for step in range(R):
        _, gradient, *_ = gradients(
            layer, lambda x, t=step: layer(x, x, use_causal_mask=True, training=training)[:, t], [sequence]
        )
        reached = np.abs(gradient[0]).max(axis=-1) > 0
        np.testing.assert_array_equal(reached, np.arange(R) <= step)


@pytest.mark.parametrize("training", [False, True], ids=["prediction", "training"])
@pytest.mark.parametrize("kind", SELF_ATTENTION)
def test_step_that_may_read_nothing_puts_out_zeros_and_gets_no_gradient(kind, training, rng):
    sequence = rng.normal(size=(B, R, D))
    layer, _ = built(SELF_ATTENTION[kind](), rng, sequence, sequence, sequence)
    allowed = rng.random((B, R, R)) < 0.8
    allowed[0, 2] = False
    output, gradient, *of_weights = gradients(
        layer, lambda x: layer(x, x, attention_mask=tensor(allowed), training=training), [sequence]
    )
    assert not output[0, 2].any()
    assert output[1:].all()
    assert all(np.isfinite(each).all() for each in (output, gradient, *of_weights))
    nothing = layer(sequence, sequence, value_mask=np.zeros((B, R), bool), training=training)
    assert not np.any(nothing)


def test_masks_of_embeddings_arrive(rng):
    words = keras.Input((None,), dtype="int32")
    vectors = keras.layers.Embedding(9, D, mask_zero=True)(words)
    model = keras.Model(words, MultiHeadAttention(2, 2)(vectors, vectors))
    padded, alone = np.array([[3, 4, 0, 0], [5, 6, 7, 8]]), np.array([[3, 4]])
    np.testing.assert_allclose(np.array(model(padded))[0, :2], np.array(model(alone))[0], atol=1e-6)
    assert not np.array(model(padded))[0, 2:].any()


# Step by step.


def test_steps_with_a_cache_equal_the_whole_sequence(rng):
    sequence, mask = rng.normal(size=(B, R, D)), rng.random((B, R)) < 0.7
    layer, _ = built(SELF_ATTENTION["rotary"](), rng, sequence, sequence, sequence)
    whole = layer(sequence, sequence, query_mask=mask, value_mask=mask, use_causal_mask=True)
    cache, outputs = layer.empty_cache(B, max_length=R + 3), []
    for piece in (slice(0, 2), slice(2, 3), slice(3, R)):
        output, cache = layer.extend(sequence[:, piece], cache, mask[:, piece])
        outputs.append(array(output))
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), whole, atol=1e-12)
    assert int(cache.length) == R


@pytest.mark.tensorflow_only
def test_full_cache_is_refused(rng):
    layer = MultiHeadAttention(2, 2)
    sequence = rng.normal(size=(B, R, D)).astype("float32")
    layer.build(sequence.shape, sequence.shape)
    with pytest.raises(ValueError, match="room for 4 steps"):
        layer.extend(sequence, layer.empty_cache(B, max_length=4))


def test_memory_is_read_from_any_step_on(rng):
    query, value, _ = inputs(rng)
    layer, _ = built(MultiHeadAttention(2, 4, rotary=True, dtype="float64"), rng, query, value, value)
    memory, whole = layer.keys_and_values(value), array(layer(query, value))
    for step in range(R):
        read = layer.read(query[:, step : step + 1], memory, start=step)
        np.testing.assert_allclose(array(read)[:, 0], whole[:, step], atol=1e-12)


def test_memory_is_projected_once_and_read_often(rng):
    query, value, _ = inputs(rng)
    mask = rng.random((B, S)) < 0.6
    layer, _ = built(MultiHeadAttention(2, 3, dtype="float64"), rng, query, value, value)
    memory = layer.keys_and_values(value, mask=mask)
    np.testing.assert_allclose(layer.read(query, memory), layer(query, value, value_mask=mask), atol=1e-12)


# Weights and refusals.


def test_weights_are_regularized_and_constrained(rng):
    options = {f"{what}_regularizer": keras.regularizers.L2(0.1) for what in ("kernel", "bias")}
    options |= {f"{what}_constraint": keras.constraints.NonNeg() for what in ("kernel", "bias")}
    query, value, key = inputs(rng)
    layer, weights = built(MultiHeadAttention(2, 3, **options), rng, query, value, key)
    wanted = 0.1 * sum((each**2).sum() for each in weights.values())
    np.testing.assert_allclose(sum(map(array, layer.losses)), wanted, rtol=1e-5)
    assert len(weights) == 8
    assert all(isinstance(weight.constraint, keras.constraints.NonNeg) for weight in layer.weights)


def test_projections_start_with_different_weights():
    for seed in (None, 3, keras.random.SeedGenerator(1)):
        layer = MultiHeadAttention(2, 2, kernel_initializer=keras.initializers.GlorotUniform(seed=seed))
        layer.build((None, None, 4), (None, None, 4))
        kernels = [array(getattr(layer, f"{name}_kernel")) for name in ("query", "key", "value", "output")]
        assert all((one != other).any() for index, one in enumerate(kernels) for other in kernels[:index])


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: MultiHeadAttention(0, 3), "num_heads"),
        (lambda: MultiHeadAttention(2, 2.5), "key_dim"),
        (lambda: MultiHeadAttention(4, 3, num_key_value_heads=3), "num_key_value_heads"),
        (lambda: MultiHeadAttention(4, 3, rotary=True), "key_dim"),
        (lambda: MultiHeadAttention(4, 3, dropout=1.0), "dropout"),
        (lambda: MultiHeadAttention(4, 3, output_dim=0), "output_dim"),
        (lambda: AdditiveAttention(0), "units"),
        (lambda: MultiplicativeAttention("cosine"), "score"),
        (lambda: MultiplicativeAttention("dot")(np.zeros((1, 2, 3)), np.zeros((1, 2, 4))), "score='general'"),
        (lambda: MultiHeadAttention(2, 3)(np.zeros((2, 3)), np.zeros((2, 3))), "query"),
        (
            lambda: MultiHeadAttention(2, 3)(*[np.zeros((1, 2, 3))] * 2, attention_mask=np.ones((1, 3, 2, 2))),
            "attention_mask",
        ),
        (lambda: MultiHeadAttention(2, 3)(*[np.zeros((1, 2, 3))] * 2, attention_mask=np.ones(2)), "attention_mask"),
        (
            lambda: MultiHeadAttention(2, 3)(*[np.zeros((1, 2, 3))] * 2, attention_mask=np.ones((1, 2, 3))),
            "attention_mask",
        ),
        (lambda: MultiHeadAttention(2, 3).keys_and_values(np.zeros((1, 2, 3))), "no weights yet"),
        (lambda: to_keras(MultiHeadAttention(2, 4, rotary=True)), "rotary"),
        (lambda: to_keras(MultiHeadAttention(2, 4, num_key_value_heads=1)), "num_key_value_heads"),
        (lambda: from_keras(keras.layers.MultiHeadAttention(2, 4, use_gate=True)), "use_gate"),
        (lambda: to_torch_weights(MultiHeadAttention(2, 4)), "weights"),
    ],
)
def test_wrong_argument_is_refused_by_name(make, named):
    with pytest.raises(ValueError, match=named):
        make()
