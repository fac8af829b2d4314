"""Transformer blocks: against their equations, what reaches what, generation with a cache, and refusals."""

import keras
import numpy as np
import pytest
from sequence_contract import outputs_and_gradients

from layers import TransformerDecoderBlock, TransformerEncoderBlock

B, T, S, D, M = 2, 5, 4, 6, 3  # batch, time, memory time, features, memory features
BACKEND = keras.backend.backend()
array = keras.ops.convert_to_numpy

OPTIONS = {
    "norm_first": {},
    "norm_last": {"norm_first": False, "activation": "tanh", "norm_epsilon": 1e-3},
    "gated": {"gated": True, "activation": "silu", "norm": "rms", "use_bias": False, "num_key_value_heads": 1},
    "rotary": {"rotary": True, "key_dim": 4},
}


def built(make, rng, *shapes, **options):
    block = make(2, 7, dtype="float64", **options)
    block.build(*shapes)
    block.set_weights([rng.normal(scale=0.6, size=tuple(weight.shape)) for weight in block.weights])
    return block


ACTIVATIONS = {"relu": lambda x: np.maximum(x, 0), "silu": lambda x: x / (1 + np.exp(-x)), "tanh": np.tanh}


def normalized(block, norm, x):
    weights = {weight.name: array(weight) for weight in norm.weights}
    if block.norm == "rms":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + block.norm_epsilon) * weights["gamma"]
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + block.norm_epsilon)
    return scaled * weights["gamma"] + weights["beta"]


# On JAX, what Keras' activations put out is good to float32 only.
TOLERANCE = 1e-11 if keras.backend.backend() == "tensorflow" else 1e-6


def dense(layer, x):
    return x @ array(layer.kernel) + (array(layer.bias) if layer.use_bias else 0)


def oracle(block, sequence, memory=None, memory_mask=None):
    """The equations, on valid steps only; attention itself is tested by itself."""
    activation = ACTIVATIONS[keras.activations.serialize(block.activation)]

    def feed_forward(x):
        hidden = activation(dense(block.hidden, x))
        return dense(block.projection, hidden * dense(block.gate, x) if block.gated else hidden)

    causal = memory is not None or isinstance(block, TransformerDecoderBlock)
    parts = [(block.self_attention_norm, lambda x: array(block.self_attention(x, x, use_causal_mask=causal)))]
    if memory is not None:
        read = lambda x: array(block.memory_attention(x, memory, value_mask=memory_mask))  # noqa: E731
        parts.append((block.memory_attention_norm, read))
    for norm, part in [*parts, (block.feed_forward_norm, feed_forward)]:
        if block.norm_first:
            sequence = sequence + part(normalized(block, norm, sequence))
        else:
            sequence = normalized(block, norm, sequence + part(sequence))
    return sequence


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_encoder_block_equals_its_equations(options, rng):
    block = built(TransformerEncoderBlock, rng, (B, T, D), **options)
    sequence = rng.normal(size=(B, T, D))
    for training in (False, True):
        np.testing.assert_allclose(block(sequence, training=training), oracle(block, sequence), atol=TOLERANCE)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_decoder_block_equals_its_equations(options, rng):
    block = built(TransformerDecoderBlock, rng, (B, T, D), (B, S, M), **options)
    sequence, memory, mask = rng.normal(size=(B, T, D)), rng.normal(size=(B, S, M)), rng.random((B, S)) < 0.7
    for training in (False, True):
        output = block(sequence, memory, memory_mask=mask, training=training)
        np.testing.assert_allclose(output, oracle(block, sequence, memory, mask), atol=TOLERANCE)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_decoder_never_looks_ahead_and_reads_all_of_the_memory(options, rng):
    block = built(TransformerDecoderBlock, rng, (B, T, D), (B, S, M), **options)
    arrays = [rng.normal(size=(B, T, D)), rng.normal(size=(B, S, M))]
    for step in range(T):
        _, (by_sequence, by_memory, *_) = outputs_and_gradients(
            block, lambda x, m, t=step: [block(x, m, training=True)[:, t]], arrays
        )
        reached = np.abs(by_sequence).max(axis=-1) > 0
        np.testing.assert_array_equal(reached, np.broadcast_to(np.arange(T) <= step, (B, T)))
        assert (np.abs(by_memory).max(axis=-1) > 0).all()


@pytest.mark.parametrize("cross_attention", [True, False], ids=["with_memory", "language_model"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_generating_with_a_cache_equals_the_whole_sequence(options, cross_attention, rng):
    shapes = [(B, T, D), (B, S, M)] if cross_attention else [(B, T, D)]
    block = built(TransformerDecoderBlock, rng, *shapes, cross_attention=cross_attention, **options)
    sequence, mask, memory_mask = rng.normal(size=(B, T, D)), rng.random((B, T)) < 0.7, rng.random((B, S)) < 0.7
    memory = {"memory": rng.normal(size=(B, S, M)), "memory_mask": memory_mask} if cross_attention else {}
    whole = array(block(sequence, mask=mask, **memory))
    cache = block.empty_cache(B, max_length=T, **memory)
    start, cache = block.extend(sequence[:, :2], cache, mask[:, :2])
    outputs = [array(start)]
    for time in range(2, T):
        output, cache = block.extend(sequence[:, time : time + 1], cache, mask[:, time : time + 1])
        outputs.append(array(output))
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), whole, atol=1e-11)

    whole, cache = array(block(sequence, **memory)), block.empty_cache(B, max_length=T, **memory)
    for time in range(T):
        output, cache = block.step(sequence[:, time], cache)
        np.testing.assert_allclose(output, whole[:, time], atol=1e-11)


@pytest.mark.tensorflow_only
@pytest.mark.parametrize("jit_compile", [False, True], ids=["plain", "jit"])
def test_generating_in_a_compiled_loop_equals_the_whole_sequence(jit_compile, rng):
    import tensorflow as tf

    block = built(TransformerDecoderBlock, rng, (B, T, D), cross_attention=False, rotary=True, key_dim=4)
    sequence = tf.constant(rng.normal(size=(B, T, D)))

    @tf.function(jit_compile=jit_compile)
    def generate(sequence):
        def body(time, cache, outputs):
            output, cache = block.step(sequence[:, time], cache)
            return time + 1, cache, outputs.write(time, output)

        start = (0, block.empty_cache(B, max_length=T), tf.TensorArray(sequence.dtype, T, element_shape=(B, D)))
        return tf.while_loop(lambda time, *_: time < T, body, start, maximum_iterations=T)[2].stack()

    np.testing.assert_allclose(tf.transpose(generate(sequence), (1, 0, 2)), block(sequence), atol=1e-11)


def test_masks_arrive_from_embeddings_on_both_sides(rng):
    words, others = keras.Input((None,), dtype="int32"), keras.Input((None,), dtype="int32")
    vectors, memory = (keras.layers.Embedding(9, D, mask_zero=True)(each) for each in (words, others))
    model = keras.Model([words, others], TransformerDecoderBlock(2, 7)(vectors, memory))
    padded = model([np.array([[3, 4, 0]]), np.array([[5, 0, 0, 0]])])
    alone = model([np.array([[3, 4]]), np.array([[5]])])
    np.testing.assert_allclose(np.array(padded)[:, :2], alone, atol=1e-6)
    assert not np.array(padded)[:, 2].any()


@pytest.mark.parametrize(
    "options", [{"dropout": 0.5}, {"attention_dropout": 0.5}], ids=["dropout", "attention_dropout"]
)
def test_dropout_is_for_training_and_repeats_with_its_seed(options, rng):
    sequence = rng.normal(size=(B, T, D))
    blocks = [built(TransformerEncoderBlock, np.random.default_rng(1), (B, T, D), seed=3, **options) for _ in range(2)]
    plain = built(TransformerEncoderBlock, np.random.default_rng(1), (B, T, D))
    np.testing.assert_array_equal(blocks[0](sequence), plain(sequence))
    first, second = (array(block(sequence, training=True)) for block in blocks)
    np.testing.assert_array_equal(first, second)
    assert (first != array(plain(sequence))).any()
    assert (first != array(blocks[0](sequence, training=True))).any(), "every batch drops other places"


def test_parts_start_with_different_weights():
    initializer = keras.initializers.GlorotUniform(seed=1)
    block = TransformerDecoderBlock(2, D, gated=True, kernel_initializer=initializer)
    block.build((None, None, D), (None, None, D))
    kernels = [array(weight) for weight in block.weights if "kernel" in weight.name]
    assert len(kernels) == 11
    assert all((one != other).any() for index, one in enumerate(kernels) for other in kernels[:index])


@pytest.mark.slow
def test_two_blocks_learn_to_repeat_what_stood_a_few_steps_before(rng):
    """No position can be told without attention: a model without it stays at chance, 1/8."""
    words = rng.integers(0, 8, size=(512, 12))
    targets = np.roll(words, 3, axis=1)
    keras.utils.set_random_seed(1)
    sequence = keras.Input((12,), dtype="int32")
    vectors = keras.layers.Embedding(8, 16)(sequence)
    for _ in range(2):
        vectors = TransformerDecoderBlock(2, 32, rotary=True, cross_attention=False)(vectors)
    model = keras.Model(sequence, keras.layers.Dense(8, "softmax")(vectors))
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(words, targets, batch_size=64, epochs=25, verbose=0)
    fresh = rng.integers(0, 8, size=(64, 12))
    right = array(model(fresh)).argmax(-1)[:, 3:] == fresh[:, :-3]
    assert right.mean() > 0.95


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: TransformerEncoderBlock(0, 4), "num_heads"),
        (lambda: TransformerEncoderBlock(2, 0), "feed_forward_units"),
        (lambda: TransformerEncoderBlock(2, 4, key_dim=0), "key_dim"),
        (lambda: TransformerEncoderBlock(4, 4, num_key_value_heads=3), "num_key_value_heads"),
        (lambda: TransformerDecoderBlock(2, 4).empty_cache(1, 2), "no weights yet"),
        (lambda: TransformerEncoderBlock(2, 4, norm="batch"), "norm"),
        (lambda: TransformerEncoderBlock(2, 4, dropout=1.0), "dropout"),
        (lambda: TransformerEncoderBlock(2, 4, attention_dropout=-1), "attention_dropout"),
        (lambda: TransformerEncoderBlock(4, 4)(np.zeros((1, 2, 6))), "num_heads"),
        (lambda: TransformerEncoderBlock(2, 4)(np.zeros((2, 6))), "sequence"),
        (lambda: TransformerDecoderBlock(2, 4)(np.zeros((1, 2, 6))), "memory"),
        (lambda: TransformerDecoderBlock(2, 4, cross_attention=False)(*[np.zeros((1, 2, 6))] * 2), "memory"),
    ],
)
def test_wrong_argument_is_refused_by_name(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_memory_scores_are_what_the_block_reads(rng):
    block = built(TransformerDecoderBlock, rng, (B, T, D), (B, S, M))
    sequence, memory = rng.normal(size=(B, T, D)), rng.normal(size=(B, S, M))
    mask = np.array([[True] * S, [True] * (S - 2) + [False] * 2])
    output, scores = block.memory_scores(sequence, memory, memory_mask=mask)
    np.testing.assert_allclose(array(output), array(block(sequence, memory, memory_mask=mask)), rtol=1e-6)
    assert tuple(scores.shape) == (B, 2, T, S)
    np.testing.assert_allclose(array(scores).sum(axis=-1), 1, rtol=1e-6)
    assert not array(scores)[1, :, :, -2:].any()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="other backends know all lengths")
def test_a_known_greatest_length_leaves_one_way_and_changes_nothing(rng):
    import tensorflow as tf

    block = built(TransformerEncoderBlock, rng, (None, None, D))
    short = TransformerEncoderBlock.from_config({**block.get_config(), "max_length": 32})
    short.build((None, None, D))
    short.set_weights(block.get_weights())
    signature = [tf.TensorSpec((None, None, D), "float64")]
    functions = [
        tf.function(lambda x, layer=layer: layer(x, training=True), input_signature=signature, jit_compile=True)
        for layer in (block, short)
    ]
    branches = [
        {node.type for node in function.get_concrete_function().graph.get_operations()} & {"If", "StatelessIf"}
        for function in functions
    ]
    assert [bool(found) for found in branches] == [True, False]
    sequence = rng.normal(size=(B, T, D))
    np.testing.assert_allclose(*(function(sequence) for function in functions), rtol=1e-9)
