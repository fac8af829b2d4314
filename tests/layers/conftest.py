"""What the layer tests share: weights that differ everywhere, and gradients on either backend."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

BACKEND = keras.backend.backend()

if BACKEND == "jax":
    import jax

    jax.config.update("jax_enable_x64", True)
else:
    import tensorflow as tf


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("tensorflow_only") and BACKEND != "tensorflow":
            item.add_marker(pytest.mark.skip(reason="needs the TensorFlow backend"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "tensorflow_only: needs the TensorFlow backend")
    # Keras itself turns its variables into arrays this way, for example in `Model.save`.
    config.addinivalue_line(
        "filterwarnings", "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
    )


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def randomize(rng: np.random.Generator) -> Callable[..., list[np.ndarray]]:
    """Builds layers and gives all of them the same random weights, distinct in every gate."""

    def set_random_weights(sequence_shape: tuple[int, ...], *layers: keras.Layer) -> list[np.ndarray]:
        for layer in layers:
            layer.build(sequence_shape)
        weights = [rng.normal(scale=0.6, size=tuple(weight.shape)) for weight in layers[0].weights]
        for layer in layers:
            layer.set_weights(weights)
        return weights

    return set_random_weights


def flat(results: Any) -> list[Any]:
    return list(results) if isinstance(results, (list, tuple)) else [results]


@pytest.fixture
def run_with_gradients() -> Callable[..., tuple[list[np.ndarray], list[np.ndarray]]]:
    """Calls a layer; returns its outputs, and the gradients of sum(output * upstream) by inputs, then by weights.

    The inputs are the sequence and the initial states, if any.
    """

    def run(
        layer: keras.Layer,
        inputs: list[np.ndarray],
        upstream: list[np.ndarray],
        mask: np.ndarray | None = None,
        training: bool = False,
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        mask = None if mask is None else keras.ops.convert_to_tensor(mask)
        tensors = [keras.ops.convert_to_tensor(array) for array in inputs]

        def call(function: Callable[..., Any], tensors: list[Any]) -> Any:
            return function(tensors[0], initial_state=list(tensors[1:]) or None, mask=mask, training=training)

        def loss(outputs: list[Any]) -> Any:
            pairs = zip(outputs, upstream, strict=True)
            return sum(keras.ops.sum(output * keras.ops.cast(weight, output.dtype)) for output, weight in pairs)

        run_backend = _run_jax if BACKEND == "jax" else _run_tensorflow
        outputs, gradients = run_backend(layer, call, loss, tensors)
        return [keras.ops.convert_to_numpy(x) for x in outputs], [keras.ops.convert_to_numpy(x) for x in gradients]

    return run


@pytest.fixture
def in_graph() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns what compiles a function: on TensorFlow to a plain graph."""
    return jax.jit if BACKEND == "jax" else tf.function


def _run_tensorflow(layer: keras.Layer, call: Any, loss: Any, tensors: list[Any]) -> tuple[list[Any], list[Any]]:
    weights = [variable.value for variable in layer.trainable_weights]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        outputs = flat(call(layer, tensors))
        total = loss(outputs)
    return outputs, tape.gradient(total, [*tensors, *weights])


def _run_jax(layer: keras.Layer, call: Any, loss: Any, tensors: list[Any]) -> tuple[list[Any], list[Any]]:
    state = [variable.value for variable in layer.non_trainable_variables]

    def total(tensors: list[Any], weights: list[Any]) -> tuple[Any, list[Any]]:
        outputs = flat(call(lambda *args, **kwargs: layer.stateless_call(weights, state, *args, **kwargs)[0], tensors))
        return loss(outputs), outputs

    weights = [variable.value for variable in layer.trainable_variables]
    (_, outputs), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(tensors, weights)
    return outputs, [*gradients[0], *gradients[1]]
