"""The contract of every layer that reads sequences, over the table of cases in `sequence_contract`."""

import doctest
import functools
import importlib
import importlib.util
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import sequence_contract as contract
from sequence_contract import CASES, CELL_OPTIONS, B, D, T, U, call, outputs_and_gradients

import layers
from layers import (
    GRU,
    LSTM,
    Bidirectional,
    EchoState,
    Elman,
    GRUCell,
    LSTMCell,
    Stacked,
    attention,
    cells,
    composed,
    normalization,
    positions,
    recurrent,
    transformer,
)
from layers.cells import RecurrentCell, SparseReservoir

REPOSITORY = Path(__file__).parents[2]
EXEMPT = {
    **dict.fromkeys(("RecurrentCell", "GatedCell", "Recurrent"), "base classes; their subclasses are tested"),
    **dict.fromkeys(
        ("BagOfWordPairs", "MaskedPooling1D", "PairRows", "Segmented", "Shorten", "WordDropout"),
        "text layers, tested in test_text.py",
    ),
    "Attention": "base class",
    "TransformerBlock": "base class",
    **dict.fromkeys(("TokenEmbedding", "RepeatedContext", "ScheduledSampling"), "tested in test_tokens.py"),
    **dict.fromkeys(("CRF", "Viterbi"), "put out no sequences of vectors, tested in test_crf.py"),
    **dict.fromkeys(
        ("AffixRows", "KnownLetters", "LetterIds", "MaxOverLetters", "NormalizeWords", "SplitWords", "WordShapes"),
        "read words and letters as strings, tested in test_words.py",
    ),
    **dict.fromkeys(("CellBoxes", "Gallery"), "read no sequences, tested in test_boxes.py"),
    **dict.fromkeys(("DecodeImages", "RandomElastic"), "read no sequences, tested in test_images.py"),
    **dict.fromkeys(("GaussianSample", "GaussianDivergence", "SeededNormal"), "read no sequences, test_latent.py"),
    **dict.fromkeys(("Patches", "QuantileShift", "ReversibleInstanceNorm"), "tested in test_series.py"),
    "DateFeatures": "reads no sequences, tested in test_dates.py",
}


def case_param(name, *others):
    """One case of each way of computing runs every time, the others in the slow suite."""
    return pytest.param(name, *others, marks=() if CASES[name].own_graph else pytest.mark.slow)


FEW = ("LSTM/peepholes_layer_norm", "TransformerDecoderBlock/memory", "BatchNorm/plain")
"""Cases of what takes long to compile; the slow suite has the others."""


def few_params(condition, few=FEW):
    return [
        pytest.param(name, marks=() if name in few else pytest.mark.slow)
        for name, case in CASES.items()
        if condition(case)
    ]


def cases(condition=lambda case: True):
    return pytest.mark.parametrize("name", [case_param(name) for name, case in CASES.items() if condition(case)])


def deterministic_paths(condition):
    """Cases at prediction, and in training unless they draw at random then."""
    pairs = [(name, training) for name, case in CASES.items() if condition(case) for training in (False, True)]
    return pytest.mark.parametrize(
        ("name", "training"),
        [case_param(*pair) for pair in pairs if not (pair[1] and CASES[pair[0]].draws)],
        ids=lambda value: value if isinstance(value, str) else ("training" if value else "prediction"),
    )


def assert_close(actual, wanted, tolerance):
    for each, expected in zip(keras.tree.flatten(actual), keras.tree.flatten(wanted), strict=True):
        np.testing.assert_allclose(each, expected, atol=tolerance, rtol=tolerance)


@functools.cache
def whole(name, training):
    """Outputs and gradients of a case over whole sequences."""
    layer = CASES[name].built(name, dtype="float64")
    return outputs_and_gradients(layer, lambda x, *states: call(layer, x, states, None, training), inputs(name))


@functools.cache
def masked(name, training):
    """Outputs and gradients of a case over a batch with gaps."""
    return contract.masked(name, training)


def inputs(name):
    return contract.inputs_of(name)


# The table is complete.


def public_layers():
    modules = [importlib.import_module(f"layers.{each.name}") for each in pkgutil.iter_modules(layers.__path__)]
    return {
        member
        for module in modules
        for name, member in vars(module).items()
        if inspect.isclass(member) and issubclass(member, keras.layers.Layer)
        if member.__module__ == module.__name__ and not name.startswith("_")
    }


def test_every_public_layer_has_cases():
    with_cases = {each for case in CASES.values() for each in case.stands_for}
    without = {each.__name__ for each in public_layers() - with_cases}
    assert without == set(EXEMPT), "a new layer needs cases in sequence_contract.CASES"


@pytest.mark.parametrize("layer_class", {each: None for case in CASES.values() for each in case.stands_for})
def test_every_option_is_set_in_some_case(layer_class):
    layers_of_class = [case.layer() for case in CASES.values() if layer_class in case.stands_for]
    configs = [
        getattr(layer, "cell" if "Cell" in layer_class.__name__ else "layer", layer) for layer in layers_of_class
    ]
    configs = [each.get_config() for each in configs]
    always_set = {
        "name",
        "trainable",
        "dtype",
        "units",
        "num_heads",
        "feed_forward_units",
        "return_sequences",
        "return_state",
        "layers",
    }
    for option in set().union(*configs) - always_set:
        assert len({json.dumps(config.get(option), default=str) for config in configs}) > 1, option


@pytest.mark.parametrize(
    "module",
    [cells, recurrent, composed, attention, transformer, normalization, positions],
    ids=lambda module: module.__name__,
)
def test_docstring_examples_run(module):
    classes = [each for each in public_layers() if each.__module__ == module.__name__ and each.__name__ not in EXEMPT]
    # The examples use the names that the package exports.
    results = doctest.testmod(module, extraglobs={name: getattr(layers, name) for name in layers.__all__})
    assert results.attempted >= len(classes)
    assert results.failed == 0


# Whole sequences, steps and halves.


@cases(lambda case: case.steppable)
def test_step_by_step_equals_the_whole_sequence(name):
    layer = CASES[name].built(name, dtype="float64")
    steps = outputs_and_gradients(layer, lambda x, *states: contract.steps(layer, x, list(states)), inputs(name))
    for training in (False, True):
        if not (training and CASES[name].draws):
            assert_close(steps, whole(name, training), 1e-11)


@cases(lambda case: case.steppable)
def test_stream_starts_like_a_sequence(name):
    layer, sequence = CASES[name].built(name, dtype="float64"), inputs(name)[0][:, :2]
    assert_close(contract.steps(layer, sequence), call(layer, sequence), 1e-11)


@deterministic_paths(lambda case: case.state_widths and case.reads != "both" and not case.in_keras_loop)
def test_two_halves_joined_by_the_states_equal_the_whole(name, training):
    case, mask = CASES[name], np.ones((B, T), bool)
    layer = case.built(name, dtype="float64")
    joined = outputs_and_gradients(
        layer, lambda x, *states: contract.halves(case, layer, x, states, mask, training), inputs(name)
    )
    assert_close(joined, whole(name, training), 1e-11)


@cases(lambda case: case.reads != "forward" and case.state_widths and hasattr(case.layer(), "step"))
def test_layer_that_starts_at_the_end_refuses_to_be_stepped(name):
    layer = CASES[name].built(name)
    with pytest.raises(ValueError, match="cannot be stepped"):
        layer.step(np.zeros((B, D)))


@cases(lambda case: "return_sequences" in case.choices and case.reads != "both" and not case.in_keras_loop)
def test_last_output_is_that_of_the_last_valid_step(name):
    every, last = (CASES[name].built(name, return_sequences=each, dtype="float64") for each in (True, False))
    mask, (sequence, *states) = contract.gap_mask(), inputs(name)
    outputs, lasts = (call(layer, sequence, states, mask) for layer in (every, last))
    last_valid = [np.flatnonzero(row)[-1] for row in masked_outputs(name, False)[1]]
    np.testing.assert_allclose(lasts[0], np.asarray(outputs[0])[np.arange(B), last_valid], atol=1e-12)
    assert_close(lasts[1:], outputs[1:], 1e-12)


def test_last_outputs_of_both_directions_are_those_of_the_last_and_of_the_first_valid_step():
    name, mask = "Bidirectional/concat", contract.gap_mask()
    outputs, lasts = (
        np.asarray(call(CASES[name].built(name, return_sequences=each, dtype="float64"), inputs(name)[0], (), mask)[0])
        for each in (True, False)
    )
    for row, valid in enumerate(map(np.flatnonzero, mask)):
        np.testing.assert_allclose(lasts[row, :U], outputs[row, valid[-1], :U], atol=1e-12)
        np.testing.assert_allclose(lasts[row, U:], outputs[row, valid[0], U:], atol=1e-12)


# Padding.


@cases(lambda case: not case.in_keras_loop)
@pytest.mark.parametrize("training", [False, True], ids=["prediction", "training"])
def test_padding_changes_no_value_and_no_gradient(name, training):
    clean, padded = masked(name, training), contract.masked(name, training, np.nan)
    for actual, wanted in zip(padded[0] + padded[1], clean[0] + clean[1], strict=True):
        np.testing.assert_array_equal(actual, wanted)
    assert not padded[1][0][~contract.gap_mask()].any(), "padding gets no gradient"
    outputs, output_mask = masked_outputs(name, training)
    assert not any(output[~output_mask].any() for output in outputs), "padding puts out zero"


@deterministic_paths(lambda case: not case.in_keras_loop and not case.by_place)
def test_padded_batch_equals_the_shorter_one(name, training):
    layer, mask, (sequence, *states) = CASES[name].built(name, dtype="float64"), contract.gap_mask(), inputs(name)
    short = call(layer, sequence[mask].reshape(B, -1, D), states, None, training)
    outputs, output_mask = masked_outputs(name, training)
    compact = [output[output_mask].reshape(B, -1, output.shape[-1]) for output in outputs]
    assert_close([*compact, *masked(name, training)[0][len(outputs) :]], short, 1e-11)


def masked_outputs(name, training):
    """The output sequences of a case over a batch with gaps, and the mask of them all."""
    layer, mask = CASES[name].built(name), keras.ops.convert_to_tensor(contract.gap_mask())
    masks = [each for each in contract.flat(layer.compute_mask(None, mask)) if each is not None]
    return masked(name, training)[0][: len(masks)], np.asarray(masks[0])


@cases(lambda case: case.state_widths and case.reads != "both" and not case.in_keras_loop)
def test_row_without_valid_steps_keeps_its_states(name):
    layer, (sequence, *states) = CASES[name].built(name, return_sequences=False), inputs(name)
    output, *final_states = call(layer, sequence.astype("float32"), states, np.zeros((B, T), bool))
    for actual, wanted in zip([*final_states, output], [*states, states[0]], strict=True):
        if tuple(actual.shape) == wanted.shape:
            np.testing.assert_array_equal(actual, wanted.astype("float32"))


# Shapes, dtypes, graphs.


@cases(lambda case: not case.fixed_batch and not case.in_keras_loop)
@pytest.mark.parametrize("everything", [True, False], ids=["sequence_and_states", "last_output"])
def test_symbolic_shapes_are_those_of_the_values(name, everything):
    layer = CASES[name].layer(return_sequences=everything, return_state=everything)
    symbolic = layer.compute_output_shape((None, None, D))
    symbolic = list(symbolic) if isinstance(symbolic[0], tuple) else [symbolic]
    values = call(layer, np.zeros((B, 1, D), "float32"))
    for shape, value in zip(symbolic, values, strict=True):
        assert tuple((B, 1)[axis] if size is None else size for axis, size in enumerate(shape)) == tuple(value.shape)


JOINT = [name for name, case in CASES.items() if not case.fixed_batch]


@pytest.mark.tensorflow_only
@pytest.mark.parametrize(
    "names",
    [[name for name in JOINT if name in FEW], pytest.param(JOINT, marks=pytest.mark.slow)],
    ids=["few", "all"],
)
def test_batch_and_time_may_be_unknown(names):
    import tensorflow as tf

    model = contract.joint_model(names)
    signature = [tf.TensorSpec([None, None, D]), tf.TensorSpec([None, None], "bool")]
    graph = tf.function(lambda sequence, mask: model([sequence, mask]), input_signature=signature)
    for batch, time in [(3, 4), (1, 1), (40, 2)]:
        rng = np.random.default_rng(batch)
        sequence, mask = rng.normal(size=(batch, time, D)).astype("float32"), rng.random((batch, time)) < 0.7
        outputs = graph(sequence, mask)
        for key, wanted in model([sequence, mask]).items():
            np.testing.assert_allclose(outputs[key], wanted, atol=1e-5, rtol=1e-5, err_msg=key)


def trained_step(layer):
    import tensorflow as tf

    def run(sequence, mask):
        with tf.GradientTape() as tape:
            tape.watch(sequence)
            outputs = call(layer, sequence, (), mask, training=True)
            loss = sum(tf.reduce_sum(tf.sin(output)) for output in outputs)
        weights = [variable.value for variable in layer.trainable_weights]
        gradients = tape.gradient(loss, [sequence, *weights], unconnected_gradients="zero")
        return [*outputs, *map(tf.convert_to_tensor, gradients)]

    return run


def graph_inputs(batch, time):
    import tensorflow as tf

    rng = np.random.default_rng(batch)
    return tf.constant(rng.normal(size=(batch, time, D))), tf.constant(rng.random((batch, time)) < 0.7)


@pytest.mark.tensorflow_only
@pytest.mark.parametrize("name", few_params(lambda case: case.own_graph, FEW[2:]))
def test_training_in_a_plain_graph_of_unknown_sizes_equals_eager_mode(name):
    import tensorflow as tf

    run = trained_step(CASES[name].built(name, dtype="float64"))
    signature = [tf.TensorSpec([None, None, D], "float64"), tf.TensorSpec([None, None], "bool")]
    graph = tf.function(run, input_signature=signature)
    # From 32 examples on the batch is cut into parts, and lengths are rounded up: each shape is compiled.
    for shape in [(1, 1), (40, 3)] if name == "LSTM/peepholes_layer_norm" else [(40, 3)]:
        assert_close(graph(*graph_inputs(*shape)), run(*graph_inputs(*shape)), 1e-11)


@pytest.mark.tensorflow_only
@pytest.mark.parametrize("name", few_params(lambda case: not case.draws and not case.fixed_batch))
def test_training_in_chunks_of_time_equals_eager_mode(name, monkeypatch):
    import tensorflow as tf

    from layers.kernels import tensorflow as kernels

    monkeypatch.setattr(kernels, "LONG", 1)
    assert len(kernels.time_chunks(9, 4, training=True)) == 1, "in eager mode there is one chunk"
    run, inputs = trained_step(CASES[name].built(name, dtype="float64")), graph_inputs(40, 9)
    assert_close(tf.function(run)(*inputs), run(*inputs), 1e-11)


def assert_jit_equals_eager_mode(names):
    import tensorflow as tf

    steps = {name: trained_step(CASES[name].built(name, dtype="float64")) for name in names}
    compiled = tf.function(lambda *inputs: {name: run(*inputs) for name, run in steps.items()}, jit_compile=True)
    inputs = graph_inputs(B, T)
    actual = compiled(*inputs)
    for name, run in steps.items():
        assert_close(actual[name], run(*inputs), 1e-11)


@pytest.mark.tensorflow_only
def test_training_compiled_as_a_whole_equals_eager_mode():
    assert_jit_equals_eager_mode(FEW)


@pytest.mark.slow
@pytest.mark.tensorflow_only
@pytest.mark.parametrize("kind", sorted({name.split("/")[0] for name in CASES}))
def test_training_compiled_as_a_whole_equals_eager_mode_in_every_case(kind):
    assert_jit_equals_eager_mode(
        name for name, case in CASES.items() if name.startswith(kind + "/") and not case.draws and not case.fixed_batch
    )


@cases()
def test_layer_never_switches_xla_off(name, monkeypatch):
    monkeypatch.setattr(recurrent, "cudnn_excludes_jit", lambda: False)
    assert CASES[name].layer().supports_jit


@cases(lambda case: not case.in_keras_loop)
@pytest.mark.parametrize(
    ("policy", "training"),
    [("mixed_float16", True), ("mixed_bfloat16", False)],
    ids=["float16_training", "bfloat16_prediction"],
)
def test_half_precision_follows_the_policy_and_stays_close(name, policy, training):
    layer, reference = (CASES[name].built(name, 0.4, dtype=each) for each in (policy, "float32"))
    (sequence, *states), mask = contract.inputs_of(name, dtype="float32"), contract.gap_mask()
    outputs, gradients = outputs_and_gradients(
        layer, lambda x, *states: call(layer, x, states, mask, training), [sequence, *states]
    )
    compute_dtype = keras.DTypePolicy(policy).compute_dtype
    assert {keras.backend.standardize_dtype(each.dtype) for each in outputs} == {compute_dtype}
    assert {each.dtype for each in layer.trainable_weights} <= {"float32"}
    assert all(np.isfinite(each.astype("float32")).all() for each in gradients)
    if not (training and CASES[name].draws):
        wanted = call(reference, sequence, states, mask, training)
        for actual, expected in zip(outputs, wanted, strict=True):
            np.testing.assert_allclose(actual.astype("float32"), expected, atol=0.05, rtol=0.05)


@pytest.mark.slow
def test_gradients_of_long_sequences_stay_close_in_half_precision(rng):
    sequence, gradients = rng.normal(size=(2, 300, D)).astype("float32"), []
    for policy in ("mixed_bfloat16", "float32"):
        layer = GRU(8, return_sequences=True, dtype=policy)
        layer.build((None, None, D))
        layer.set_weights([np.random.default_rng(1).normal(scale=0.3, size=each.shape) for each in layer.weights])

        def summed(sequence, layer=layer):
            outputs = layer(sequence, training=True)
            return [keras.ops.sum(keras.ops.cast(outputs, "float32"), keepdims=True)]

        gradients.append(outputs_and_gradients(layer, summed, [sequence])[1])
    for actual, wanted in zip(*gradients, strict=True):
        assert np.linalg.norm(actual.astype("float32") - wanted) < 0.01 * np.linalg.norm(wanted)


@cases(lambda case: not case.in_keras_loop)
def test_double_precision_follows_the_policy(name):
    outputs, gradients = masked(name, False)
    assert {each.dtype for each in (*outputs, *gradients)} == {np.dtype("float64")}


# Configuration, other processes, the other backend.


@cases()
def test_configuration_survives_a_round_trip(name):
    layer = CASES[name].layer()
    config = json.loads(json.dumps(layer.get_config()))
    copy = type(layer).from_config(config)
    assert copy.get_config() == layer.get_config()
    copy.build((B, None, D))
    built = CASES[name].built(name)
    assert [each.shape for each in copy.weights] == [each.shape for each in built.weights]
    copy.set_weights(built.get_weights())
    sequence, *states = contract.inputs_of(name, dtype="float32")
    for actual, wanted in zip(call(copy, sequence, states), call(built, sequence, states), strict=True):
        np.testing.assert_array_equal(actual, wanted)


def in_fresh_process(folder, *arguments, **environment):
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests" / "helpers")])
    command = [sys.executable, str(Path(contract.__file__)), arguments[0], str(folder), *arguments[1:]]
    environment = {**os.environ, "PYTHONPATH": paths, **environment}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    "names",
    [[name for name, case in CASES.items() if case.own_graph], pytest.param(list(CASES), marks=pytest.mark.slow)],
    ids=["each-way", "all"],
)
def test_saved_layers_give_the_same_outputs_in_a_fresh_process(names, tmp_path):
    model = contract.joint_model(names, batch=B)
    sequence, mask = np.random.default_rng(3).normal(size=(B, T, D)).astype("float32"), contract.gap_mask()
    np.savez(tmp_path / "inputs.npz", sequence=sequence, mask=mask)
    model.save(tmp_path / "model.keras")
    expected = model([sequence, mask])
    in_fresh_process(tmp_path, "load")
    with np.load(tmp_path / "loaded.npz") as loaded:
        for key, actual in zip(sorted(expected), loaded.values(), strict=True):
            np.testing.assert_allclose(actual, expected[key], atol=1e-6, err_msg=key)


def assert_jax_agrees(names, folder):
    if not importlib.util.find_spec("jax"):
        pytest.skip("JAX is not installed")
    # Unoptimized programs compile faster, and run long enough for nothing here.
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    in_fresh_process(folder, "compute", *names, KERAS_BACKEND="jax", XLA_FLAGS=flags)
    for name in names:
        with np.load(folder / f"{name.replace('/', '-')}.npz") as results:
            for training in (False,) if CASES[name].draws else (False, True):
                for kind, wanted in zip(("output", "gradient"), masked(name, training), strict=True):
                    for index, array in enumerate(wanted):
                        actual = results[f"{training}_{kind}_{index}"]
                        np.testing.assert_allclose(actual, array, atol=1e-5, rtol=1e-5, err_msg=f"{name} {kind}")


@pytest.mark.slow
@pytest.mark.tensorflow_only
def test_jax_agrees_with_tensorflow(tmp_path):
    assert_jax_agrees(FEW, tmp_path)


@pytest.mark.slow
@pytest.mark.tensorflow_only
def test_jax_agrees_with_tensorflow_in_every_case(tmp_path):
    assert_jax_agrees(list(CASES), tmp_path)


# Models.


def all_in_one(**options):
    """A functional model with every kind of layer in it."""
    sequence = keras.Input((None, D))
    hidden = Elman(U, activation="relu", bias_initializer="ones", return_sequences=True, **options)(sequence)
    hidden, *states = Stacked(
        [
            Bidirectional(LSTM(U, return_sequences=True, return_state=True, peepholes=True, **options)),
            GRU(U, return_sequences=True, return_state=True, reset_after=False, **options),
        ]
    )(hidden)
    hidden = GRU(U)(hidden, initial_state=states[0])
    return keras.Model(sequence, keras.layers.Dense(1)(hidden))


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True], ids=["plain", "jit"])
def test_one_epoch_moves_every_parameter(rng, jit_compile):
    model = all_in_one(recurrent_dropout=0.2, dropout=0.1, zoneout=0.1)
    model.compile("adam", "mse", jit_compile=jit_compile)
    before = [np.array(variable) for variable in model.trainable_variables]
    model.fit(rng.normal(size=(16, T, D)), rng.normal(size=(16, 1)), batch_size=8, verbose=0)
    for variable, old in zip(model.trainable_variables, before, strict=True):
        # A whole row of the kernels may stand still where a unit is dead or dropped, so the tensor is the unit here.
        assert (np.array(variable) != old).any(), variable.path


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
def test_only_what_keras_runs_is_compiled_at_prediction():
    import tensorflow as tf

    def programs(graph):
        functions = graph.as_graph_def().library.function
        return [each.signature.name for each in functions if "_XlaMustCompile" in each.attr]

    class Tracing(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            signature = [tf.TensorSpec((None, None, D))]
            traced.append(tf.function(self.model, input_signature=signature).get_concrete_function().graph)

    class Model(keras.Sequential):
        def predict_step(self, data):
            outputs = super().predict_step(data)
            ran.append(tf.compat.v1.get_default_graph())
            return outputs

    traced, ran = [], []
    model = Model([keras.Input((None, D)), GRU(U), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(np.zeros((B, T, D)), np.zeros((B, 1)), callbacks=[Tracing()], verbose=0)
    model.predict(np.zeros((B, T, D)), verbose=0)
    assert programs(ran[0])
    assert not programs(traced[0])


@pytest.mark.tensorflow_only
def test_batch_without_examples_is_trained_on():
    import tensorflow as tf

    run = trained_step(CASES["GRU/layer_norm"].built("empty", dtype="float64"))
    outputs = tf.function(run)(tf.zeros((0, T, D), "float64"), tf.zeros((0, T), "bool"))
    assert tuple(outputs[0].shape) == (0, T, U)
    assert not any(np.any(gradient) for gradient in outputs[2:])


@pytest.mark.slow
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


# Cells.


@pytest.mark.parametrize(
    ("layer_class", "variant"),
    [(layer, variant) for layer, cell in contract.CELL_OF.items() for variant in CELL_OPTIONS[cell]],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_cell_in_keras_own_loop_equals_our_layer(layer_class, variant):
    ours, theirs = f"{layer_class.__name__}/{variant}", f"{contract.CELL_OF[layer_class].__name__}/{variant}"
    training = not CASES[ours].draws
    layer, loop = (CASES[name].built(ours, dtype="float64") for name in (ours, theirs))
    results = outputs_and_gradients(loop, lambda x, *states: call(loop, x, states, None, training), inputs(ours))
    assert_close(results, whole(ours, training), 1e-11)
    assert [each.shape for each in layer.weights] == [each.shape for each in loop.weights]


@pytest.mark.parametrize("cell_class", CELL_OPTIONS)
def test_cell_takes_its_shapes_and_dtype_from_its_configuration(cell_class):
    cell = cell_class(U, dtype="mixed_float16")
    assert cell.state_size == [U] * cell.state_count
    assert cell.output_size == U
    output, states = cell(np.ones((B, D), "float32"), cell.get_initial_state(B))
    shapes = cell.compute_output_shape((B, D))
    assert tuple(output.shape) == shapes[0] == (B, U)
    assert [tuple(each.shape) for each in states] == shapes[1]
    assert {keras.backend.standardize_dtype(each.dtype) for each in (output, *states)} == {"float16"}


# Refusals.


def twice(layer, first, second):
    layer(first)
    layer(second)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Elman(0), "units"),
        (lambda: LSTM(2.5), "units"),
        (lambda: Elman(True), "units"),
        (lambda: GRU(3, recurrent_dropout=1.0), "recurrent_dropout"),
        (lambda: GRU(3, dropout=-0.1), "dropout"),
        (lambda: GRU(3, zoneout=1.0), "zoneout"),
        (lambda: LSTM(3, zoneout=(0.1, 0.1, 0.1)), "zoneout"),
        (lambda: GRU(3, update_gate="other"), "update_gate"),
        (lambda: LSTMCell(3, longest_lag=2), "longest_lag"),
        (lambda: GRUCell(3, longest_lag=0), "longest_lag"),
        (lambda: LSTM(3, longest_lag=9, use_bias=False), "longest_lag"),
        (lambda: EchoState(3, layer_norm=True), "layer_norm"),
        (lambda: EchoState(3, kernel_initializer="zeros"), "kernel_initializer"),
        (lambda: RecurrentCell(3, layer_norm=True), "layer_norm"),
        (lambda: EchoState(3, leak=0.0), "leak"),
        (lambda: EchoState(3, connectivity=1.5), "connectivity"),
        (lambda: EchoState(3, spectral_radius=0.0), "spectral_radius"),
        (lambda: SparseReservoir(0.9, 0.5)((3, 4)), "shape"),
        (lambda: GRU(3, stateful=True, learned_initial_state=True), "stateful"),
        (lambda: GRU(3, stateful=True)(keras.Input((None, 4))), "stateful"),
        (lambda: GRU(3, stateful=True)(np.zeros((2, 5, 4)), mask=np.ones((2, 5, 1), bool)), "mask"),
        (lambda: GRU(3)(np.zeros((2, 5, 4)), mask=np.ones((2, 4), bool)), "mask"),
        (lambda: twice(GRU(3, stateful=True), np.zeros((2, 5, 4)), np.zeros((3, 5, 4))), "stateful"),
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
