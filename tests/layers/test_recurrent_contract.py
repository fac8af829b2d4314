"""What every recurrent layer owes Keras: configuration, shapes, dtypes, compiling, saving, exporting, clear errors."""

import doctest
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import layers
from layers import GRU, LSTM, Bidirectional, Elman, Stacked, recurrent

B, T, D, U = 4, 6, 5, 3  # batch, time, features, units
REPOSITORY = Path(__file__).parents[2]

LAYERS = {
    "Elman": lambda **options: Elman(U, activation="relu", kernel_regularizer=keras.regularizers.L2(0.01), **options),
    "LSTM": lambda **options: LSTM(U, unit_forget_bias=False, recurrent_dropout=0.2, seed=3, **options),
    "GRU": lambda **options: GRU(U, reset_after=False, bias_initializer="ones", **options),
    "Bidirectional": lambda **options: Bidirectional(LSTM(U, **options), merge_mode="ave"),
    "Stacked": lambda **options: Stacked([GRU(4, **options | {"return_sequences": True}), Elman(U, **options)]),
}
all_layers = pytest.mark.parametrize("name", LAYERS)


def all_in_one(**options):
    """A functional model with every layer in it."""
    sequence = keras.Input((None, D))
    hidden = Elman(U, activation="relu", bias_initializer="ones", return_sequences=True, **options)(sequence)
    hidden, *states = Stacked(
        [
            Bidirectional(LSTM(U, return_sequences=True, return_state=True, **options)),
            GRU(U, return_sequences=True, return_state=True, reset_after=False, **options),
        ]
    )(hidden)
    hidden = GRU(U)(hidden, initial_state=states[0])
    return keras.Model(sequence, keras.layers.Dense(1)(hidden))


def test_every_public_layer_is_tested_here():
    public = {
        name
        for name, member in vars(recurrent).items()
        if inspect.isclass(member) and issubclass(member, keras.layers.Layer) and member is not recurrent.Recurrent
    }
    assert public == set(LAYERS)
    assert public <= set(layers.__all__)


@all_layers
def test_configuration_survives_a_round_trip(rng, randomize, name):
    layer = LAYERS[name](return_sequences=True)
    config = json.loads(json.dumps(layer.get_config()))
    copy = type(layer).from_config(config)
    assert copy.get_config() == layer.get_config()
    for each in (layer, copy):
        each.build((None, None, D))
    copy.set_weights(layer.get_weights())
    sequence = rng.normal(size=(B, T, D)).astype("float32")
    np.testing.assert_array_equal(copy(sequence), layer(sequence))


@all_layers
@pytest.mark.parametrize("return_sequences", [True, False], ids=["sequence", "last"])
@pytest.mark.parametrize("return_state", [True, False], ids=["state", "no_state"])
def test_symbolic_shapes_and_dtypes_are_those_of_the_values(rng, name, return_sequences, return_state):
    layer = LAYERS[name](return_sequences=return_sequences, return_state=return_state)
    symbolic = keras.tree.flatten(layer(keras.Input((None, D))))
    actual = keras.tree.flatten(layer(rng.normal(size=(B, T, D)).astype("float32")))
    assert len(symbolic) == len(actual)
    for spec, value in zip(symbolic, actual, strict=True):
        assert len(spec.shape) == len(value.shape)
        assert all(wanted in (None, size) for wanted, size in zip(spec.shape, value.shape, strict=True))
        assert spec.dtype == keras.backend.standardize_dtype(value.dtype)


@all_layers
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_precision_follows_the_dtype_policy(rng, run_with_gradients, name, policy, training):
    layer = LAYERS[name](dtype=policy)
    reference = LAYERS[name](recurrent_dropout=0.0) if name in ("Elman", "GRU") else None
    layer.build((None, None, D))
    sequence, upstream = rng.normal(size=(B, T, D)).astype("float32"), [np.ones((B, U))]
    mask = np.arange(T) < np.array([6, 1, 3, 4])[:, None]
    outputs, gradients = run_with_gradients(layer, [sequence], upstream, mask, training)
    compute_dtype = keras.DTypePolicy(policy).compute_dtype
    assert keras.backend.standardize_dtype(outputs[0].dtype) == compute_dtype
    variable_dtype = keras.DTypePolicy(policy).variable_dtype
    assert {each.dtype for each in layer.trainable_weights} == {variable_dtype}
    assert all(np.isfinite(gradient.astype("float32")).all() for gradient in gradients)
    if reference:
        reference.build((None, None, D))
        reference.set_weights(layer.get_weights())
        wanted = reference(sequence, mask=mask)
        np.testing.assert_allclose(outputs[0].astype("float32"), wanted, atol=0.1, rtol=0.1)


def test_batch_and_time_may_be_unknown(rng):
    model = all_in_one()
    for batch, time in [(1, 1), (3, 8), (5, 2)]:
        sequence = rng.normal(size=(batch, time, D)).astype("float32")
        np.testing.assert_allclose(model.predict(sequence, verbose=0), model(sequence), atol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["plain", "jit"])
def test_one_epoch_moves_every_parameter(rng, jit_compile):
    model = all_in_one(recurrent_dropout=0.2)
    model.compile("adam", "mse", jit_compile=jit_compile)
    before = [np.array(variable) for variable in model.trainable_variables]
    model.fit(rng.normal(size=(16, T, D)), rng.normal(size=(16, 1)), batch_size=4, verbose=0)
    for variable, old in zip(model.trainable_variables, before, strict=True):
        # A whole row of the kernels may stand still where a unit is dead or dropped, so the tensor is the unit here.
        assert (np.array(variable) != old).any(), variable.path


@all_layers
def test_layers_never_switch_xla_off(name):
    assert LAYERS[name]().supports_jit


def test_elman_network_with_five_inputs_three_units_and_one_output_has_31_parameters():
    model = keras.Sequential([keras.Input((None, 5)), Elman(3), keras.layers.Dense(1)])
    assert model.count_params() == 31


def test_lstm_forget_gate_bias_starts_at_one():
    layer = LSTM(U)
    layer.build((None, None, D))
    np.testing.assert_array_equal(layer.bias, [*[0] * U, *[1] * U, *[0] * 2 * U])


def test_directions_do_not_share_dropout_masks():
    layer = Bidirectional(LSTM(U, recurrent_dropout=0.5, seed=3))
    assert layer.forward_layer.seed != layer.backward_layer.seed
    assert Bidirectional.from_config(layer.get_config()).backward_layer.seed == layer.backward_layer.seed


def test_saved_model_gives_the_same_outputs_in_a_fresh_process(rng, tmp_path):
    model = all_in_one(recurrent_dropout=0.2)
    sequence = rng.normal(size=(B, T, D)).astype("float32")
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "sequence.npy", sequence)
    script = (
        "import sys, keras, numpy, layers; folder = sys.argv[1];"
        "model = keras.models.load_model(folder + '/model.keras');"
        "numpy.save(folder + '/outputs.npy', model.predict(numpy.load(folder + '/sequence.npy'), verbose=0))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    subprocess.run(command, check=True, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npy"), model.predict(sequence, verbose=0), atol=1e-6)


@pytest.mark.tensorflow_only
def test_exported_graph_gives_the_same_outputs_and_holds_only_numbers(rng, tmp_path):
    import tensorflow as tf

    model = all_in_one(recurrent_dropout=0.2)
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    sequence = rng.normal(size=(B, T, D)).astype("float32")
    np.testing.assert_allclose(exported.serve(sequence), model(sequence), atol=1e-6)

    graph = tf.function(model, input_signature=[tf.TensorSpec((None, None, D))]).get_concrete_function().graph
    assert not [op.name for op in graph.get_operations() for output in op.outputs if output.dtype == tf.string]


@pytest.mark.tensorflow_only
def test_distributed_training_equals_training_on_one_device(rng):
    import tensorflow as tf

    inputs, targets = rng.normal(size=(8, T, D)), rng.normal(size=(8, 1))
    weights = []
    for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["/cpu:0"])):
        keras.utils.set_random_seed(1)
        with strategy.scope():
            model = all_in_one()
            model.compile("sgd", "mse", jit_compile=False)
        model.fit(inputs, targets, batch_size=4, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for alone, distributed in zip(*weights, strict=True):
        np.testing.assert_allclose(distributed, alone, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Elman(0), "units"),
        (lambda: LSTM(2.5), "units"),
        (lambda: Elman(3, activation="sigmoid"), "activation"),
        (lambda: GRU(3, recurrent_dropout=1.0), "recurrent_dropout"),
        (lambda: GRU(3)(np.zeros((2, 5), "float32")), "sequence"),
        (lambda: GRU(3)(np.zeros((2, 5, 4), "float32"), initial_state=[np.zeros((2, 3))] * 2), "initial_state"),
        (lambda: LSTM(3)(np.zeros((2, 5, 4), "float32"), initial_state=[np.zeros((2, 4))] * 2), "initial_state"),
        (lambda: Bidirectional(keras.layers.Dense(3)), "layer"),
        (lambda: Bidirectional(GRU(3, go_backwards=True)), "layer"),
        (lambda: Bidirectional(GRU(3), merge_mode="max"), "merge_mode"),
        (
            lambda: Bidirectional(GRU(3))(np.zeros((2, 5, 4), "float32"), initial_state=[np.zeros((2, 3))]),
            "initial_state",
        ),
        (lambda: Stacked([]), "layers"),
        (lambda: Stacked([keras.layers.Dense(3)]), "layers"),
        (lambda: Stacked([GRU(3), GRU(3)]), "layers"),
        (lambda: Stacked([GRU(3, return_sequences=True, return_state=True), GRU(3)]), "layers"),
        (lambda: Stacked([Bidirectional(GRU(3), merge_mode=None)]), "layers"),
        (
            lambda: Stacked([GRU(3)])(np.zeros((2, 5, 4), "float32"), initial_state=[np.zeros((2, 3))] * 2),
            "initial_state",
        ),
    ],
)
def test_wrong_argument_is_refused_by_name(make, named):
    with pytest.raises(ValueError, match=rf"\b{named}\b"):
        make()


def test_docstring_examples_run():
    results = doctest.testmod(recurrent)
    assert results.attempted >= len(LAYERS)
    assert results.failed == 0
