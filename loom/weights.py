"""Weights that a new model takes over from the model of another run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loom.errors import UserError
from loom.lazy import load

if TYPE_CHECKING:
    import keras


def model_of_run(run_id: str) -> keras.Model:
    """The core model of a finished run: numbers in, numbers out.

    Raises:
        UserError: There is no such run, or it has no model.
    """
    from loom.saving import local_model, trained_files
    from loom.tracking import Store
    from loom.trained import CORE

    files = trained_files(local_model(Store(), run_id))
    load("layers")  # Keras finds registered layers only once they are imported
    keras = load("keras")
    return keras.saving.load_model(files / CORE, compile=False)


def copy_from_run(run_id: str, model: keras.Model) -> str:
    """Copy the weights of a run's model where they fit; returns a sentence that says which.

    Raises:
        UserError: There is no such run, it has no model, or nothing of it fits.
    """
    return copy_weights(model, model_of_run(run_id), f"--weights {run_id}")


def copy_weights(model: keras.Model, other: keras.Model, source: str) -> str:
    """Give the layers of a model the weights of the layers with the same name and shapes of another one.

    Args:
        model: Takes the weights; layers that find none keep theirs.
        other: Gives them.
        source: What messages call `other`.

    Returns:
        A sentence that names the layers that were copied and those that did not fit.

    Raises:
        UserError: No layer fits.
    """
    theirs, copied, missing = _layers(other), [], []
    for name, layer in _layers(model).items():
        if name in theirs and _shapes(layer) == _shapes(theirs[name]):
            layer.set_weights(theirs[name].get_weights())
            copied.append(name)
        else:
            there = _shapes(theirs[name]) if name in theirs else "not there"
            missing.append(f"{name} ({_shapes(layer)} here, {there})")
    if not copied:
        raise UserError(f"{source}: none of its layers ({', '.join(theirs)}) fits: {'; '.join(missing[:4])}")
    sentence = f"{source}: weights of {', '.join(copied)} are taken over"
    return f"{sentence}; {'; '.join(missing)} start anew" if missing else sentence


def _layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Layers with weights, those inside nested models too, by name."""
    found = model._flatten_layers(include_self=False)
    return {layer.name: layer for layer in found if layer.weights and not hasattr(layer, "layers")}


def _shapes(layer: keras.layers.Layer) -> str:
    return " and ".join(" x ".join(map(str, weight.shape)) for weight in layer.get_weights())
