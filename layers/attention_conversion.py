"""Multi-head attention and its weights to and from Keras and PyTorch, for `layers.conversion`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras.layers import Layer

from layers.attention import MultiHeadAttention

_SHARED = {
    *("name", "trainable", "dtype", "num_heads", "key_dim", "value_dim", "dropout", "use_bias", "seed"),
    *(f"{weight}_{what}" for weight in ("kernel", "bias") for what in ("initializer", "regularizer", "constraint")),
    "activity_regularizer",
}
_PROJECTIONS = ("query", "key", "value")


def from_keras_attention(layer: Layer) -> MultiHeadAttention:
    """Returns the counterpart of a `keras.layers.MultiHeadAttention`, with its weights, where it has some."""
    config = layer.get_config()
    _refuse(layer, config, {"use_gate": (False,), "attention_axes": (None, [1], (1,)), "sliding_window": (None,)})
    units = config["output_shape"]
    if units is not None and not isinstance(units, int):
        if len(units) != 1:
            raise ValueError(f"layers.MultiHeadAttention cannot express output_shape={units!r} of {layer.name}.")
        units = units[0]
    activity_regularizer = config.pop("activity_regularizer")
    ours = MultiHeadAttention(**{name: value for name, value in config.items() if name in _SHARED}, output_dim=units)
    ours.activity_regularizer = keras.regularizers.get(activity_regularizer)
    if layer.built:
        ours.build(*_shapes(layer))
        _copy_weights(layer, ours)
    return ours


def to_keras_attention(layer: MultiHeadAttention) -> Layer:
    """Returns the counterpart in Keras of multi-head attention, with its weights, where it has some."""
    config = layer.get_config()
    # Keras' attention with shared heads, GroupQueryAttention, takes no widths of its own for values and output.
    _refuse(layer, config, {"rotary": (False,), "num_key_value_heads": (layer.num_heads,)})
    theirs = keras.layers.MultiHeadAttention(
        **{name: value for name, value in config.items() if name in _SHARED}, output_shape=layer.output_dim
    )
    theirs.activity_regularizer = layer.activity_regularizer
    if layer.built:
        theirs.build(*_shapes(layer))
        _copy_weights(layer, theirs)
    return theirs


def to_torch_attention_weights(layer: MultiHeadAttention) -> dict[str, np.ndarray]:
    """Returns the weights under the names of `torch.nn.MultiheadAttention`."""
    _check_fits_torch(layer)
    weights = _arrays(layer)
    kernels = [weights[f"{name}_kernel"].T for name in _PROJECTIONS]
    if len({kernel.shape for kernel in kernels}) == 1:
        state = {"in_proj_weight": np.concatenate(kernels)}
    else:
        state = {f"{name[0]}_proj_weight": kernel for name, kernel in zip(_PROJECTIONS, kernels, strict=True)}
    state["out_proj.weight"] = weights["output_kernel"].T
    if layer.use_bias:
        state["in_proj_bias"] = np.concatenate([weights[f"{name}_bias"] for name in _PROJECTIONS])
        state["out_proj.bias"] = weights["output_bias"]
    return state


def from_torch_attention_weights(state: Mapping[str, np.ndarray], layer: MultiHeadAttention) -> None:
    """Sets the weights of a layer to those of a `torch.nn.MultiheadAttention`."""
    arrays = dict(state)
    if any(f"{name[0]}_proj_weight" in arrays for name in _PROJECTIONS):
        kernels = {name: _taken(arrays, f"{name[0]}_proj_weight", 2) for name in _PROJECTIONS}
    else:
        kernels = dict(zip(_PROJECTIONS, _thirds(arrays, "in_proj_weight", 2), strict=True))
    kernels["output"] = _taken(arrays, "out_proj.weight", 2)
    shapes = [(None, None, kernels[name].shape[1]) for name in ("query", "value", "key")]
    # What does not fit must leave the layer as it was, unbuilt if it was that.
    built = layer if layer.built else MultiHeadAttention.from_config(layer.get_config())
    if not built.built:
        built.build(*shapes)
    _check_fits_torch(built)
    values = {f"{name}_kernel": kernel.T for name, kernel in kernels.items()}
    if layer.use_bias:
        biases = _thirds(arrays, "in_proj_bias", 1)
        values |= {f"{name}_bias": bias for name, bias in zip(_PROJECTIONS, biases, strict=True)}
        values["output_bias"] = _taken(arrays, "out_proj.bias", 1)
    if arrays:
        raise ValueError(f"{layer.name} has no place for {', '.join(sorted(arrays))}.")
    for name, array in values.items():
        shape = tuple(getattr(built, name).shape)
        if array.shape != shape:
            raise ValueError(f"{name} of {layer.name} has shape {shape}, got {array.shape}.")
    if not layer.built:
        layer.build(*shapes)
    for name, array in values.items():
        getattr(layer, name).assign(array)


def _refuse(layer: Layer, config: dict[str, Any], expressible: dict[str, tuple[Any, ...]]) -> None:
    for option, values in expressible.items():
        if config[option] not in values:
            raise ValueError(
                f"{option}={config[option]!r} of {layer.name} has no counterpart: only layers with "
                f"{option}={values[0]!r} can be converted."
            )


def _shapes(layer: Layer) -> list[tuple[int | None, ...]]:
    shapes = layer.get_build_config()["shapes_dict"]
    return [tuple(shapes[name]) for name in ("query_shape", "value_shape", "key_shape") if shapes.get(name)]


def _copy_weights(source: Layer, target: Layer) -> None:
    # Both have query, key, value and output projections in this order; Keras' kernels have an axis for the heads.
    for weight, other in zip(source.weights, target.weights, strict=True):
        other.assign(keras.ops.reshape(weight, other.shape))


def _arrays(layer: MultiHeadAttention) -> dict[str, np.ndarray]:
    return {weight.name: keras.ops.convert_to_numpy(weight) for weight in layer.weights}


def _check_fits_torch(layer: MultiHeadAttention) -> None:
    if not layer.built:
        raise ValueError(f"{layer.name} has no weights yet: call or build it before its weights are converted.")
    _refuse(layer, layer.get_config(), {"rotary": (False,), "num_key_value_heads": (layer.num_heads,)})
    features = layer.query_kernel.shape[0]
    if (
        not layer.num_heads * layer.key_dim
        == layer.num_heads * layer.value_dim
        == features
        == layer.output_kernel.shape[1]
    ):
        raise ValueError(
            f"torch.nn.MultiheadAttention has heads as wide together as the query and the output, {layer.name} has "
            f"{layer.num_heads} of {layer.key_dim} (values {layer.value_dim}) for {features} features."
        )


def _taken(arrays: dict[str, np.ndarray], name: str, axes: int) -> np.ndarray:
    if name not in arrays:
        raise ValueError(f"{name} is missing in the weights of PyTorch.")
    if arrays[name].ndim != axes:
        raise ValueError(f"{name} must have {axes} axes, got shape {arrays[name].shape}.")
    return arrays.pop(name)


def _thirds(arrays: dict[str, np.ndarray], name: str, axes: int) -> list[np.ndarray]:
    """Returns the parts for query, key and value."""
    array = _taken(arrays, name, axes)
    if len(array) % 3:
        raise ValueError(f"{name} must have as many rows for query, key and value, got shape {array.shape}.")
    return np.split(array, 3)
