"""The closed-form gradients: against finite differences and against automatic differentiation."""

from functools import partial

import keras
import numpy as np
import pytest

from layers import GRU, LSTM, EchoState, Elman
from layers.kernels import pulled_back
from layers.recurrence import Batch, Recurrence, Weights

B, T, D, U = 3, 5, 4, 3  # batch, time, features, units

CASES = {
    "elman": lambda **options: Elman(U, **options),
    "elman_relu": lambda **options: Elman(U, activation="relu", **options),
    "lstm": lambda **options: LSTM(U, **options),
    "lstm_no_bias": lambda **options: LSTM(U, use_bias=False, **options),
    "gru": lambda **options: GRU(U, **options),
    "gru_no_bias": lambda **options: GRU(U, use_bias=False, **options),
    "gru_reset_before": lambda **options: GRU(U, reset_after=False, **options),
    "elman_normalized": lambda **options: Elman(U, layer_norm=True, **options),
    "lstm_full": lambda **options: LSTM(U, layer_norm=True, peepholes=True, zoneout=(0.3, 0.2), **options),
    "gru_normalized": lambda **options: GRU(U, layer_norm=True, zoneout=0.3, **options),
    "gru_full": lambda **options: GRU(U, reset_after=False, layer_norm=True, update_gate="take", **options),
    "echo_state": lambda **options: EchoState(U, leak=0.5, seed=1, **options),
}
FACTORS = [(B, 1, D), (B, U)]  # of dropout on the input and on the hidden state
all_cases = pytest.mark.parametrize("case", CASES)
both_ends = pytest.mark.parametrize("go_backwards", [False, True], ids=["forward", "backward"])


@pytest.fixture
def problem(rng, randomize, monkeypatch):
    """Makes a float64 layer with fixed noise, and inputs, upstream gradients and a mask for it."""

    def make(case, return_sequences, go_backwards, dropout=True):
        layer = CASES[case](
            dtype="float64", return_state=True, return_sequences=return_sequences, go_backwards=go_backwards
        )
        randomize((B, T, D), layer)
        states = [rng.normal(size=(B, U)) for _ in range(layer.state_count)]
        if dropout:
            factors = {shape: keras.ops.convert_to_tensor(rng.choice([0.0, 2.0], size=shape)) for shape in FACTORS}
            monkeypatch.setattr(layer, "_factors", lambda shape, rate: factors[tuple(shape)])
        kept = [keras.ops.convert_to_tensor(rng.random((B, T, U)) < rate) for rate in layer.cell.zoneout if rate]
        monkeypatch.setattr(layer.cell, "draw_zoneout", lambda shape: tuple(kept))
        output_shape = (B, T, U) if return_sequences else (B, U)
        upstream = [rng.normal(size=output_shape), *(rng.normal(size=(B, U)) for _ in states)]
        return layer, [rng.normal(size=(B, T, D)), *states], upstream, rng.random((B, T)) < 0.7

    return make


@all_cases
@both_ends
@pytest.mark.parametrize(
    ("return_sequences", "masked", "dropout"),
    [(True, True, True), (False, True, False)],
    ids=["sequence-mask-dropout", "last-mask"],
)
def test_closed_form_equals_automatic_differentiation(
    problem, run_with_gradients, monkeypatch, case, go_backwards, return_sequences, masked, dropout
):
    layer, inputs, upstream, mask = problem(case, return_sequences, go_backwards, dropout)
    mask = mask if masked else None
    closed_form = run_with_gradients(layer, inputs, upstream, mask, training=True)
    monkeypatch.setattr(Recurrence, "closed_form", Recurrence.differentiable)
    automatic = run_with_gradients(layer, inputs, upstream, mask, training=True)
    for actual, wanted in zip(closed_form[0] + closed_form[1], automatic[0] + automatic[1], strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-11)


@all_cases
def test_gradients_equal_finite_differences(rng, problem, run_with_gradients, case):
    layer, inputs, upstream, mask = problem(case, True, case.startswith("gru"))
    weights = layer.get_weights()
    _, gradients = run_with_gradients(layer, inputs, upstream, mask, training=True)

    def loss_at(arrays):
        layer.set_weights(arrays[len(inputs) :])
        tensors = [keras.ops.convert_to_tensor(array) for array in arrays[: len(inputs)]]
        outputs = layer(tensors[0], initial_state=tensors[1:], mask=mask, training=True)
        return sum(float(np.sum(np.asarray(output) * up)) for output, up in zip(outputs, upstream, strict=True))

    step, point = 1e-6, [*inputs, *weights]
    for index, gradient in enumerate(gradients):
        direction = rng.normal(size=gradient.shape)
        moved = [[*point], [*point]]
        for arrays, sign in zip(moved, (1, -1), strict=True):
            arrays[index] = point[index] + sign * step * direction
        slope = (loss_at(moved[0]) - loss_at(moved[1])) / (2 * step)
        np.testing.assert_allclose(np.sum(gradient * direction), slope, atol=1e-7, rtol=1e-7)


@all_cases
def test_a_step_depends_on_earlier_inputs_only(rng, problem, run_with_gradients, case):
    layer, inputs, upstream, _ = problem(case, True, False, dropout=False)
    upstream = [np.zeros_like(each) for each in upstream]
    upstream[0][:, 2] = rng.normal(size=(B, U))
    sequence_gradient = run_with_gradients(layer, inputs, upstream, training=True)[1][0]
    assert not sequence_gradient[:, 3:].any()
    assert (np.abs(sequence_gradient[:, :3]).sum(axis=(0, 2)) > 0).all()


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case == "lstm_full" else ()) for case in CASES]
)
def test_second_derivatives_of_the_closed_form_are_those_of_the_equations(rng, problem, in_graph, case):
    layer, (sequence, *states), upstream, mask = problem(case, True, False)
    recurrence = Recurrence(layer.cell, go_backwards=False, return_sequences=True)
    factors = [layer._factors(shape, 0.5) for shape in FACTORS]
    constants = [keras.ops.convert_to_tensor(mask), *factors, layer.cell.draw_zoneout(None)]
    to_tensors = partial(map, keras.ops.convert_to_tensor)
    arguments = (tuple(to_tensors([sequence])), tuple(to_tensors(states)), *layer.cell.tensors())
    directions = tuple(to_tensors(rng.normal(size=each.shape) for group in arguments for each in group))
    upstream = tuple(to_tensors(upstream))

    def second_derivatives(run):
        def results(sequence, states, *weights):
            return run(Batch(*sequence, states, *constants), Weights(*weights)), ()

        def gradients(*arguments):
            return tuple(each for group in pulled_back(results, arguments, upstream)[0] for each in group), ()

        return [each for group in pulled_back(gradients, arguments, directions)[0] for each in group]

    wanted = second_derivatives(recurrence.differentiable)
    assert all(np.abs(each).max() > 1e-3 for each in wanted if each.shape[0])
    # In a graph the loops are programs of their own; one that has everything is enough for that.
    for mode in (lambda function: function, in_graph) if case == "lstm_full" else (lambda function: function,):
        actual = mode(lambda: second_derivatives(Recurrence(layer.cell, False, True).closed_form))()
        for ours, theirs in zip(actual, wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-10)
