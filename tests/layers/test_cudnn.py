"""How the layers call cuDNN, on machines without a GPU: what stands in for cuDNN computes what its manual says.

Whether a GPU gives the same numbers, only a GPU can show.
"""

from importlib import import_module

import keras
import numpy as np
import pytest

from layers import GRU, LSTM, Bidirectional, EchoState, Elman, cudnn, kernels, recurrent

BACKEND = keras.backend.backend()
if BACKEND == "tensorflow":
    import tensorflow as tf

    keras_rnn = import_module("keras.src.backend.tensorflow.rnn")
    HAS_GPU = bool(tf.config.list_physical_devices("GPU"))
else:
    import jax
    from jax.experimental import rnn

    HAS_GPU = jax.default_backend() == "gpu"

B, T, D, U = 3, 6, 5, 4
LAYERS = {"rnn_tanh": (Elman, {}), "rnn_relu": (Elman, {"activation": "relu"}), "lstm": (LSTM, {}), "gru": (GRU, {})}
MODES = LAYERS if BACKEND == "tensorflow" else ["lstm"]
LENGTHS = {
    "whole": None,
    "padded_at_the_end": [T, 2, 1],
    "padded_at_the_start": [-2, T, -1],
    "nothing_valid": [T, 0, 3],
}
CUDNN_TAKES = {"whole", "padded_at_the_end"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lets the layers find cuDNN, and returns the modes in which it was run."""
    ran: list[str] = []
    monkeypatch.setattr(recurrent, "has_cudnn", lambda mode, dtype, training: mode in MODES)
    if BACKEND == "tensorflow":
        monkeypatch.setattr(tf.raw_ops, "CudnnRNNV3", lambda **arguments: _cudnn(ran, **arguments))
    else:
        monkeypatch.setattr(rnn, "lstm", lambda *arguments: _jax_lstm(ran, *arguments))
    return ran


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("return_sequences", [True, False], ids=["sequence", "last"])
@pytest.mark.parametrize("go_backwards", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("mode", MODES)
def test_values_and_gradients_are_those_of_the_loop(
    mode, go_backwards, return_sequences, lengths, calls, randomize, run_with_gradients, rng
):
    kind, options = LAYERS[mode]
    options = {**options, "go_backwards": go_backwards, "return_sequences": return_sequences, "return_state": True}
    looped, fused = kind(U, use_cudnn=False, **options), kind(U, **options)
    randomize((B, T, D), looped, fused)
    mask = _mask(LENGTHS[lengths])
    sequence = rng.normal(size=(B, T, D)).astype("float32")
    sequence[~mask] = np.nan
    inputs = [sequence, *(rng.normal(size=(B, U)).astype("float32") for _ in range(fused.state_count))]
    shapes = [(B, T, U) if return_sequences else (B, U), *[(B, U)] * fused.state_count]
    upstream = [rng.normal(size=shape).astype("float32") for shape in shapes]
    mask = None if lengths == "whole" else mask

    expected, expected_gradients = run_with_gradients(looped, inputs, upstream, mask, training=True)
    assert not calls
    outputs, gradients = run_with_gradients(fused, inputs, upstream, mask, training=True)

    # JAX traces both branches.
    assert calls == ([mode] if lengths in CUDNN_TAKES or BACKEND == "jax" else [])
    for actual, wanted in zip([*outputs, *gradients], [*expected, *expected_gradients], strict=True):
        np.testing.assert_allclose(actual, wanted, atol=2e-5)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_in_a_compiled_graph_the_mask_decides(lengths, calls, in_graph, randomize, rng):
    layer, looped = Bidirectional(LSTM(U)), Bidirectional(LSTM(U, use_cudnn=False))
    randomize((B, T, D), layer, looped)
    sequence, mask = rng.normal(size=(B, T, D)).astype("float32"), _mask(LENGTHS[lengths])
    run = in_graph(lambda sequence, mask: layer(sequence, mask=mask))
    np.testing.assert_allclose(run(sequence, mask), looped(sequence, mask=mask), atol=1e-6)
    assert calls == ["lstm", "lstm"]  # both branches are traced


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Elman, {"activation": "elu"}),
        (LSTM, {"use_bias": False}),
        (LSTM, {"layer_norm": True}),
        (LSTM, {"peepholes": True}),
        (LSTM, {"zoneout": 0.1}),
        (LSTM, {"recurrent_activation": "hard_sigmoid"}),
        (LSTM, {"use_cudnn": False}),
        (GRU, {"reset_after": False}),
        (GRU, {"update_gate": "take"}),
        (EchoState, {}),
    ],
)
def test_other_configurations_are_left_to_the_loop(kind, options, calls, rng):
    kind(U, **options)(rng.normal(size=(B, T, D)))
    assert not calls


def test_dropout_on_the_input_is_for_cudnn_and_recurrent_dropout_is_not(calls, rng):
    sequence = rng.normal(size=(B, T, D))
    LSTM(U, recurrent_dropout=0.5)(sequence, training=True)
    assert not calls
    layer = LSTM(U, dropout=0.5, seed=1)
    dropped = layer(sequence, training=True)
    assert calls == ["lstm"]
    looped = LSTM(U, dropout=0.5, seed=1, use_cudnn=False)
    looped.build(sequence.shape)
    looped.set_weights(layer.get_weights())
    looped.seed_generator.state.assign([1, 0])
    np.testing.assert_allclose(dropped, looped(sequence, training=True), atol=1e-6)


def test_a_layer_for_cudnn_keeps_out_of_xla_programs_of_tensorflow(monkeypatch):
    monkeypatch.setattr(recurrent, "cudnn_excludes_jit", lambda: True)
    assert not LSTM(U).supports_jit
    assert LSTM(U, layer_norm=True).supports_jit
    assert LSTM(U, use_cudnn=False).supports_jit


@pytest.mark.tensorflow_only
@pytest.mark.parametrize("mode", ["lstm", "gru"])
def test_weights_are_packed_as_keras_packs_them(mode, randomize, monkeypatch, rng):
    kind, _ = LAYERS[mode]
    layer = kind(U)
    weights = [tf.constant(each, "float32") for each in randomize((B, T, D), layer)]
    packed = []

    def keep(params, **_):
        packed.append(params)
        raise NotImplementedError

    monkeypatch.setattr(tf.raw_ops, "CudnnRNNV3", keep)
    monkeypatch.setitem(tf.sysconfig.get_build_info(), "is_cuda_build", True)
    states = [tf.zeros((B, U))] * layer.state_count
    run = {"lstm": keras_rnn._cudnn_lstm, "gru": keras_rnn._cudnn_gru}[mode]
    with pytest.raises(NotImplementedError):
        run(tf.zeros((B, T, D)), *states, *weights, None, False, False, True)
    ours, theirs = cudnn.parameters(layer.cell, mode).numpy(), packed[0].numpy()
    bias = 2 * weights[1].shape[-1]
    np.testing.assert_array_equal(ours[:-bias], theirs[:-bias])
    # An LSTM has one bias, which may be added to the input product or to the recurrent one.
    ours, theirs = ours[-bias:].reshape(2, -1), theirs[-bias:].reshape(2, -1)
    np.testing.assert_array_equal(ours, theirs[::-1] if mode == "lstm" else theirs)


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
@pytest.mark.parametrize("mode", MODES)
def test_on_a_gpu_cudnn_agrees_with_the_loop(mode, randomize, run_with_gradients, rng):
    kind, options = LAYERS[mode]
    looped, fused = kind(U, use_cudnn=False, **options), kind(U, **options)
    randomize((B, T, D), looped, fused)
    assert kernels.has_cudnn(mode, "float32", training=True)
    inputs, upstream = [rng.normal(size=(B, T, D)).astype("float32")], [rng.normal(size=(B, U)).astype("float32")]
    expected, expected_gradients = run_with_gradients(looped, inputs, upstream, training=True)
    outputs, gradients = run_with_gradients(fused, inputs, upstream, training=True)
    for actual, wanted in zip([*outputs, *gradients], [*expected, *expected_gradients], strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-2, atol=1e-2)  # TF32


def _mask(lengths: list[int] | None) -> np.ndarray:
    """Valid are so many steps at the start, or where negative, at the end."""
    mask = np.ones((B, T), bool)
    for row, length in zip(mask, lengths or [], strict=False):
        row[:] = np.arange(T) < length if length >= 0 else np.arange(T) >= T + length
    return mask


def _cudnn(ran, input_h, input_c, params, sequence_lengths, rnn_mode, is_training, time_major, **others):
    """cuDNN's networks from the equations and the order of weights in NVIDIA's manual of `cudnnRNNMode_t`."""
    ran.append(rnn_mode)
    assert is_training
    assert not time_major
    count = {"lstm": 4, "gru": 3}.get(rnn_mode, 1)
    sizes = [*[U * D] * count, *[U * U] * count, *[U] * (2 * count)]
    parts = tf.split(params, sizes)
    w = [tf.transpose(tf.reshape(each, (U, D))) for each in parts[:count]]
    r = [tf.transpose(tf.reshape(each, (U, U))) for each in parts[count : 2 * count]]
    b_w, b_r = parts[2 * count : 3 * count], parts[3 * count :]
    h = tf.squeeze(input_h, 1)
    c = tf.squeeze(input_c, 1) if rnn_mode == "lstm" else tf.zeros_like(h)
    outputs = []
    for time in range(T):
        x = others["input"][:, time]
        from_x = [x @ w[gate] + b_w[gate] for gate in range(count)]
        from_h = [h @ r[gate] + b_r[gate] for gate in range(count)]
        new_c = c
        if rnn_mode == "lstm":
            i, f, _, o = (tf.sigmoid(a + b) for a, b in zip(from_x, from_h, strict=True))
            new_c = f * c + i * tf.tanh(from_x[2] + from_h[2])
            new_h = o * tf.tanh(new_c)
        elif rnn_mode == "gru":
            reset, update = (tf.sigmoid(from_x[gate] + from_h[gate]) for gate in (0, 1))
            candidate = tf.tanh(from_x[2] + reset * from_h[2])
            new_h = (1 - update) * candidate + update * h
        else:
            new_h = {"rnn_tanh": tf.tanh, "rnn_relu": tf.nn.relu}[rnn_mode](from_x[0] + from_h[0])
        valid = (time < sequence_lengths)[:, None]
        h, c = tf.where(valid, new_h, h), tf.where(valid, new_c, c)
        outputs.append(tf.where(valid, new_h, 0.0))
    return tf.stack(outputs, axis=1), h[:, None], c[:, None], None, None


def _jax_lstm(ran, sequence, h, c, weights, lengths, features, units, layers, dropout, bidirectional):
    """JAX's own reference of its call to cuDNN."""
    ran.append("lstm")
    parts = rnn.unpack_lstm_weights(weights, features, units, layers, bidirectional)
    return rnn.lstm_ref(sequence, h, c, *parts, lengths, features, units, layers, dropout, bidirectional)
