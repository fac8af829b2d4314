"""Layers and their weights to and from Keras' own layers and PyTorch. PyTorch need not be installed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

import keras
import numpy as np
from keras.layers import Layer
from numpy.typing import ArrayLike

from layers.attention import MultiHeadAttention
from layers.attention_conversion import (
    from_keras_attention,
    from_torch_attention_weights,
    to_keras_attention,
    to_torch_attention_weights,
)
from layers.composed import Bidirectional, Stacked
from layers.recurrent import GRU, LSTM, Elman

_KERAS_CLASSES = {Elman: keras.layers.SimpleRNN, LSTM: keras.layers.LSTM, GRU: keras.layers.GRU}
_OUR_CLASSES = {theirs: ours for ours, theirs in _KERAS_CLASSES.items()}
_GATE_COUNTS = {Elman: 1, LSTM: 4, GRU: 3}
_WEIGHTS = ("kernel", "recurrent_kernel", "bias")
_GENERAL = {"name", "trainable", "dtype", "activity_regularizer"}
_INITIAL_BIAS = {"unit_forget_bias", "forget_bias", "longest_lag"}  # of no account once a layer is built
_HOW_COMPUTED = {"unroll", "use_cudnn"}
_NOT_IN_TORCH_WEIGHTS = {
    *_GENERAL,
    *_INITIAL_BIAS,
    *_HOW_COMPUTED,
    *(f"{weight}_initializer" for weight in ("kernel", "recurrent", "bias")),
    *(f"{weight}_regularizer" for weight in ("kernel", "recurrent", "bias")),
    *(f"{weight}_constraint" for weight in ("kernel", "recurrent", "bias")),
    *("units", "use_bias", "dropout", "recurrent_dropout", "seed", "return_sequences", "return_state", "stateful"),
}
_CHECKED_FOR_TORCH = {"activation", "recurrent_activation", "go_backwards", "reset_after", "update_gate"}


def from_keras(layer: Layer) -> Layer:
    """Returns the layer of this package that computes what a recurrent or attention layer of Keras computes.

    Options are kept, and the weights, where the layer has some. Left behind are `unroll` and `use_cudnn`, which change
    no value, and what Keras puts out at masked steps; the layers here put out zero. The states that a stateful layer
    holds stay with it.

    Args:
        layer: A `keras.layers.SimpleRNN`, `LSTM`, `GRU`, a `Bidirectional` over one of them, or `MultiHeadAttention`.
            It is left as it is.

    Returns:
        An `Elman`, `LSTM`, `GRU`, `Bidirectional` or `MultiHeadAttention` with weights of its own.

    Raises:
        ValueError: If it is another layer, or has an option that has no counterpart here.

    Example:
        >>> layer = from_keras(keras.layers.SimpleRNN(3, return_sequences=True))
        >>> type(layer).__name__, layer.units, layer.return_sequences
        ('Elman', 3, True)
    """
    if type(layer) is keras.layers.MultiHeadAttention:
        return from_keras_attention(layer)
    if type(layer) is keras.layers.Bidirectional:
        _check_directions(layer)
        if layer.forward_layer.go_backwards:
            raise ValueError(
                f"The forward layer of {layer.name} has go_backwards=True, which Bidirectional cannot express here: "
                "give Keras' Bidirectional the layer that reads forwards first."
            )
        forward = _from_keras(layer.forward_layer)
        return _with_weights_of(layer, Bidirectional(forward, merge_mode=layer.merge_mode, **_general_options(layer)))
    return _with_weights_of(layer, _from_keras(layer))


def to_keras(layer: Layer) -> Layer:
    """Returns the layer of Keras that computes what a recurrent or attention layer of this package computes.

    Options are kept, except `use_cudnn`, and the weights, where the layer has some. A GRU whose update gate is the
    share of the candidate gets the update gate's weights negated, which makes it the share of the old state, as Keras
    has it. The states that a stateful layer holds stay with it.

    Args:
        layer: An `Elman`, `LSTM`, `GRU`, `Bidirectional` or `MultiHeadAttention`. It is left as it is. The layers of a
            `Stacked` are converted one by one.

    Returns:
        A `keras.layers.SimpleRNN`, `LSTM`, `GRU`, `Bidirectional` or `MultiHeadAttention` with weights of its own.

    Raises:
        ValueError: If it is another layer, or has an option that Keras cannot express, such as layer normalization.

    Example:
        >>> layer = to_keras(Bidirectional(GRU(3, reset_after=False)))
        >>> type(layer) is keras.layers.Bidirectional, layer.forward_layer.reset_after
        (True, False)
    """
    if type(layer) is MultiHeadAttention:
        return to_keras_attention(layer)
    if type(layer) is Bidirectional:
        _check_directions(layer)
        forward = _to_keras(layer.forward_layer, name=type(layer.forward_layer).__name__.lower())
        theirs = keras.layers.Bidirectional(forward, merge_mode=layer.merge_mode, **_general_options(layer))
        return _with_weights_of(layer, theirs)
    return _with_weights_of(layer, _to_keras(layer))


def to_torch_weights(layer: Layer) -> dict[str, np.ndarray]:
    """Returns the weights of a layer under PyTorch's names and in its shapes and gate order.

    They fit `torch.nn.RNN` (from an `Elman`), `torch.nn.LSTM` or `torch.nn.GRU` with `hidden_size=units`,
    `num_layers` the number of layers in the stack, `bidirectional=True` for a `Bidirectional`, `bias=use_bias`, and
    for an `Elman` `nonlinearity` its activation:

        module = torch.nn.LSTM(5, 3, batch_first=True)
        module.load_state_dict({name: torch.from_numpy(values) for name, values in to_torch_weights(layer).items()})

    Those of a `MultiHeadAttention` fit `torch.nn.MultiheadAttention(features, num_heads, batch_first=True)`. Where a
    recurrent layer of PyTorch has two biases for the one here, all of it goes into `bias_ih` and `bias_hh` is zero.
    Dropout is no weight, and not part of it.

    Args:
        layer: An `Elman`, `LSTM` or `GRU`, a `Bidirectional` over one of them, or a `Stacked` of layers of one kind and
            width, or a `MultiHeadAttention`. It has weights: it was called or built.

    Returns:
        New arrays `weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0` and `bias_hh_l0`, the latter two with `use_bias` only,
        and the same with `_l1` and so on for further layers and with `_reverse` for the backward direction.

    Raises:
        ValueError: If PyTorch cannot express the layer, or the layer has no weights yet.

    Example:
        >>> layer = LSTM(3)
        >>> layer.build((None, None, 5))
        >>> {name: values.shape for name, values in to_torch_weights(layer).items()}
        {'weight_ih_l0': (12, 5), 'weight_hh_l0': (12, 3), 'bias_ih_l0': (12,), 'bias_hh_l0': (12,)}
    """
    if type(layer) is MultiHeadAttention:
        return to_torch_attention_weights(layer)
    state: dict[str, np.ndarray] = {}
    for suffix, part in _torch_parts(layer).items():
        if not part.built:
            raise ValueError(f"{layer.name} has no weights yet: call or build it before its weights are converted.")
        weights = {name: keras.ops.convert_to_numpy(each) for name, each in _variables(part).items()}
        weights = {name: _torch_gate_order(part, _with_keeping_gate(part, each)) for name, each in weights.items()}
        state[f"weight_ih{suffix}"] = weights["kernel"].T
        state[f"weight_hh{suffix}"] = weights["recurrent_kernel"].T
        if "bias" in weights:
            bias = weights["bias"]
            state[f"bias_ih{suffix}"], state[f"bias_hh{suffix}"] = (
                bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
            )
    # Copies: PyTorch shares memory with arrays, and warns of those that may not be written to.
    return {name: np.array(values, order="C") for name, values in state.items()}


def from_torch_weights(state: Mapping[str, ArrayLike], layer: Layer) -> None:
    """Gives a layer the weights of a recurrent or attention module of PyTorch.

    Args:
        state: `module.state_dict()` of a `torch.nn.RNN`, `LSTM`, `GRU` or `MultiheadAttention`; arrays as well as
            PyTorch's tensors. Of a larger model, the part of the module, without the module's name in front.
        layer: An `Elman` with the module's `nonlinearity` as its activation, an `LSTM` or a `GRU`, with
            `units=hidden_size` and `use_bias=bias`; for a module with `bidirectional=True` a `Bidirectional` over one
            of them, with `num_layers` above one a `Stacked` of as many. It is built, where it is not. Where PyTorch has
            two biases for the one here, it gets their sum. For attention a `MultiHeadAttention` of as many heads.

    Raises:
        ValueError: If PyTorch cannot express the layer, or names or shapes differ from those the layer needs. The layer
            is then as it was.

    Example:
        >>> layer = Elman(2)
        >>> state = {"weight_ih_l0": [[1, 2, 3], [4, 5, 6]], "weight_hh_l0": [[7, 8], [9, 0]]}
        >>> from_torch_weights(state | {"bias_ih_l0": [1, 2], "bias_hh_l0": [1, 1]}, layer)
        >>> [weight.tolist() for weight in layer.get_weights()]
        [[[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]], [[7.0, 9.0], [8.0, 0.0]], [2.0, 3.0]]
    """
    if type(layer) is MultiHeadAttention:
        from_torch_attention_weights({name: _array(name, values) for name, values in state.items()}, layer)
        return
    parts = _torch_parts(layer)
    arrays = _fitting_arrays(state, layer, parts)
    if not layer.built:
        layer.build((None, None, arrays["weight_ih_l0"].shape[-1]))
    for suffix, part in parts.items():
        weights = {"kernel": arrays[f"weight_ih{suffix}"].T, "recurrent_kernel": arrays[f"weight_hh{suffix}"].T}
        if f"bias_ih{suffix}" in arrays:
            biases = arrays[f"bias_ih{suffix}"], arrays[f"bias_hh{suffix}"]
            weights["bias"] = np.stack(biases) if type(part) is GRU else biases[0] + biases[1]
        variables = _variables(part)
        for name, values in weights.items():
            variables[name].assign(_with_keeping_gate(part, _torch_gate_order(part, values)))


def _from_keras(layer: Layer) -> Layer:
    """Returns the counterpart of one layer, without weights."""
    ours = _OUR_CLASSES.get(type(layer))
    if ours is None:
        raise ValueError(
            f"{layer!r} is no keras.layers.SimpleRNN, LSTM, GRU, Bidirectional over one of them or MultiHeadAttention: "
            "only these have a counterpart here."
        )
    known = {*_defaults(ours), *_GENERAL}
    _refuse_unknown_options(
        layer, known | _INITIAL_BIAS | _HOW_COMPUTED | {"zero_output_for_mask"}, f"layers.{ours.__name__}"
    )
    config = layer.get_config()
    options = {option: value for option, value in config.items() if option in known}
    options["seed"] = layer.cell.seed  # missing in the configuration of SimpleRNN
    if "forget_bias" in known and "unit_forget_bias" in config:
        options["forget_bias"] = 1.0 if config["unit_forget_bias"] else None
    return ours(**options)


def _to_keras(layer: Layer, **changes: Any) -> Layer:
    """Returns the counterpart of one layer, without weights."""
    theirs = _KERAS_CLASSES.get(type(layer))
    if theirs is None:
        advice = ": convert its layers one by one" if isinstance(layer, Stacked) else ""
        raise ValueError(
            f"{layer!r} is no Elman, LSTM, GRU, Bidirectional or MultiHeadAttention, and has no counterpart in "
            f"Keras{advice}."
        )
    known = {*_defaults(theirs), *_GENERAL, "seed"}
    initial = _INITIAL_BIAS if layer.built else {"forget_bias"}
    _refuse_unknown_options(layer, known | initial | _HOW_COMPUTED | {"update_gate"}, "Keras")
    config = layer.get_config()
    options = {option: value for option, value in config.items() if option in known}
    if "forget_bias" in config:
        if config["forget_bias"] not in (None, 1.0) and not layer.built:
            raise ValueError(
                f"Keras cannot start a forget gate at forget_bias={config['forget_bias']!r} as {layer.name} does: "
                "build the layer first, then its weights are copied."
            )
        options["unit_forget_bias"] = config["forget_bias"] is not None
    if config.get("update_gate", "keep") != "keep":
        _check_negatable(layer)
    # The layers here put out zero at masked steps.
    converted = theirs(**options | {"zero_output_for_mask": layer.return_sequences} | changes)
    converted.activity_regularizer = layer.activity_regularizer  # SimpleRNN takes the argument, and forgets it
    return converted


def _check_negatable(layer: Layer) -> None:
    """Negated weights turn a gate round only where activation(-a) = 1 - activation(a)."""
    config = layer.get_config()
    if config.get("recurrent_activation", "sigmoid") not in ("sigmoid", "hard_sigmoid"):
        raise ValueError(
            f"Keras cannot express update_gate={config['update_gate']!r} of {layer.name} with a recurrent_activation "
            "other than 'sigmoid' and 'hard_sigmoid': use one of these, or update_gate='keep'."
        )
    for option in ("kernel_constraint", "recurrent_constraint", "bias_constraint"):
        if config.get(option) is not None:
            raise ValueError(
                f"Keras would apply {option} of {layer.name} to negated weights, because of update_gate="
                f"{config['update_gate']!r}: use update_gate='keep', or no constraint."
            )


def _check_directions(layer: Layer) -> None:
    forward, backward = layer.forward_layer.get_config(), layer.backward_layer.get_config()
    if type(layer.forward_layer) is not type(layer.backward_layer):
        raise ValueError(f"The directions of {layer.name} are layers of two kinds: convert them one by one.")
    for option in forward:
        if option not in ("name", "go_backwards", "seed") and forward[option] != backward.get(option):
            raise ValueError(
                f"The directions of {layer.name} differ in {option} ({forward[option]!r} and "
                f"{backward.get(option)!r}), and only directions with the same options have a counterpart: convert "
                "them one by one."
            )


def _refuse_unknown_options(layer: Layer, known: Collection[str], target: str) -> None:
    """Options that the target does not have are no obstacle as long as they are at their defaults."""
    layer_class: Any = type(layer)
    defaults = _defaults(layer_class)
    for option, value in layer.get_config().items():
        if option not in known and value != defaults.get(option):
            raise ValueError(
                f"{target} cannot express {option}={value!r} of {layer.name}: only layers with "
                f"{option}={defaults.get(option)!r} can be converted."
            )


@cache
def _defaults(layer_class: Any) -> dict[str, Any]:
    return dict(layer_class(1, name="defaults").get_config())


def _general_options(layer: Layer) -> dict[str, Any]:
    return {option: value for option, value in layer.get_config().items() if option in _GENERAL}


def _with_weights_of(source: Layer, target: Layer) -> Layer:
    if not source.built:
        return target
    shapes = source.get_build_config()
    # With initial states, Keras remembers the shapes of all inputs.
    shape = shapes["input_shape"] if "input_shape" in shapes else next(iter(shapes["shapes_dict"].values()))
    target.build(tuple(shape))
    for from_layer, to_layer in zip(_single_layers(source), _single_layers(target), strict=True):
        variables = _variables(to_layer)
        for name, variable in _variables(from_layer).items():
            variables[name].assign(_with_keeping_gate(from_layer, keras.ops.convert_to_numpy(variable)))
    return target


def _single_layers(layer: Layer) -> list[Layer]:
    return [layer.forward_layer, layer.backward_layer] if hasattr(layer, "forward_layer") else [layer]


def _variables(layer: Layer) -> dict[str, Any]:
    return {variable.name: variable for variable in layer.weights if variable.name in _WEIGHTS}


def _with_keeping_gate(layer: Layer, values: np.ndarray) -> np.ndarray:
    """Changes a GRU's weights between update_gate="keep" and "take", if it has the latter; its own inverse."""
    if layer.get_config().get("update_gate", "keep") == "keep":
        return values
    update, others = values[..., : layer.units], values[..., layer.units :]
    return np.concatenate([-update, others], axis=-1)


def _torch_gate_order(layer: Layer, values: np.ndarray) -> np.ndarray:
    """Changes weights, gates side by side, between the two orders; its own inverse."""
    if type(layer) is not GRU:
        return values  # i, f, c, o in both
    first, second, candidate = np.split(values, 3, axis=-1)
    return np.concatenate([second, first, candidate], axis=-1)


def _torch_parts(layer: Layer) -> dict[str, Layer]:
    """Returns the layers for one direction under the ends of PyTorch's names for them, such as `_l0_reverse`."""
    parts: dict[str, Layer] = {}
    levels = list(layer.layers) if isinstance(layer, Stacked) else [layer]
    for index, level in enumerate(levels):
        if isinstance(level, Bidirectional) != isinstance(levels[0], Bidirectional):
            raise ValueError(
                f"PyTorch cannot express {layer.name}: either all of its layers are Bidirectional or none."
            )
        if not isinstance(level, Bidirectional):
            parts[f"_l{index}"] = level
            continue
        if level.merge_mode not in ("concat", None):
            raise ValueError(
                f"PyTorch cannot express merge_mode={level.merge_mode!r} of {level.name}: use 'concat', and merge the "
                "two halves of the output afterwards."
            )
        parts[f"_l{index}"], parts[f"_l{index}_reverse"] = level.forward_layer, level.backward_layer
    for suffix, part in parts.items():
        if type(part) not in _GATE_COUNTS:
            raise ValueError(f"{part!r} has no counterpart in PyTorch: only Elman, LSTM, GRU and layers of them have.")
        _check_fits_torch(part, backward=suffix.endswith("_reverse"))
    _check_alike(layer, list(parts.values()))
    return parts


def _check_fits_torch(layer: Layer, backward: bool) -> None:
    _refuse_unknown_options(layer, _NOT_IN_TORCH_WEIGHTS | _CHECKED_FOR_TORCH, "PyTorch")
    config = layer.get_config()
    if config["go_backwards"] and not backward:
        raise ValueError(
            f"PyTorch cannot express go_backwards=True of {layer.name}: use False, and flip the sequences yourself."
        )
    if not config.get("reset_after", True):
        raise ValueError(f"PyTorch cannot express reset_after=False of {layer.name}: it has reset_after=True only.")
    allowed = {
        "activation": ("tanh", "relu") if type(layer) is Elman else ("tanh",),
        "recurrent_activation": ("sigmoid",),
    }
    for option, names in allowed.items():
        if option in config and config[option] not in names:
            raise ValueError(
                f"PyTorch cannot express {option}={config[option]!r} of {layer.name}: use {' or '.join(names)}."
            )


def _check_alike(layer: Layer, parts: list[Layer]) -> None:
    configs = [part.get_config() for part in parts]
    for option in ("units", "use_bias", "activation"):
        if any(config.get(option) != configs[0].get(option) for config in configs):
            raise ValueError(f"PyTorch cannot express {layer.name}: all of its layers must have the same {option}.")
    if any(type(part) is not type(parts[0]) for part in parts):
        raise ValueError(f"PyTorch cannot express {layer.name}: all of its layers must be of one kind.")


def _fitting_arrays(state: Mapping[str, ArrayLike], layer: Layer, parts: dict[str, Layer]) -> dict[str, np.ndarray]:
    """Returns the arrays of a state dict, if their names and shapes are those that the layers need."""
    arrays = {name: _array(name, values) for name, values in state.items()}
    shapes = _torch_shapes(parts, _feature_count(parts["_l0"], arrays))
    missing, extra = [name for name in shapes if name not in arrays], [name for name in arrays if name not in shapes]
    if missing or extra:
        raise ValueError(
            f"The weights for {layer.name} must be named {list(shapes)}: missing are {missing}, and there is no place "
            f"for {extra}."
        )
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            wanted = str(shape).replace("None", "features")
            raise ValueError(f"{name} must have shape {wanted} for {layer.name}, got {arrays[name].shape}.")
    return arrays


def _feature_count(bottom: Layer, arrays: dict[str, np.ndarray]) -> int | None:
    """Any number of features fits a layer that is not built yet, if it is the same one in both directions."""
    if bottom.built:
        return int(_variables(bottom)["kernel"].shape[0])
    shape = arrays["weight_ih_l0"].shape if "weight_ih_l0" in arrays else ()
    return shape[1] if len(shape) == 2 else None


def _torch_shapes(parts: dict[str, Layer], features: int | None) -> dict[str, tuple[int | None, ...]]:
    shapes: dict[str, tuple[int | None, ...]] = {}
    direction_count = 2 if "_l0_reverse" in parts else 1
    for suffix, part in parts.items():
        rows = _GATE_COUNTS[type(part)] * part.units
        shapes[f"weight_ih{suffix}"] = (rows, features if suffix.startswith("_l0") else direction_count * part.units)
        shapes[f"weight_hh{suffix}"] = (rows, part.units)
        if part.get_config()["use_bias"]:
            shapes[f"bias_ih{suffix}"] = shapes[f"bias_hh{suffix}"] = (rows,)
    return shapes


def _array(name: str, value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor of PyTorch; NumPy has no bfloat16
        value = value.detach().cpu().double()
    try:
        return np.asarray(value, dtype="float64")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers, got {value!r}.") from error
