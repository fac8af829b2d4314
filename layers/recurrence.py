"""The recurrence over time that all recurrent layers share.

`differentiable_recurrence` leaves the gradient to the backend. `closed_form_recurrence` computes the same values and
carries its own gradient, backpropagation through time (Werbos, 1990, "Backpropagation through time: what it does and
how to do it"): the forward loop saves what the derivatives need, a second loop runs from the last step to the first,
and the gradients of the weights are matrix products over all `time * batch` rows after that loop instead of one small
product in every step. It consists of differentiable operations itself, so second derivatives are right as well.

All tensors here are time-major. A step that the mask leaves out hands the state on unchanged and puts out zero.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from keras import ops

from layers.kernels import scan

Tensor = Any
Tensors = tuple[Tensor, ...]


class Cell(Protocol):
    """One time step of a recurrent layer and its derivative.

    Attributes:
        units: Width U of every state.
        saved_count: How many `(batch, units)` tensors `step` saves for `step_gradient` and `weight_gradients`.
    """

    units: int
    saved_count: int

    def step(
        self, states: Tensors, projected: Tensor, weights: Tensors, dropout_mask: Tensor | None
    ) -> tuple[Tensors, Tensors]:
        """Returns the new states, the hidden state first, and what to save."""
        ...

    def step_gradient(
        self, state_gradients: Tensors, saved: Tensors, transposed_kernel: Tensor, dropout_mask: Tensor | None
    ) -> tuple[Tensor, Tensors]:
        """Returns the gradients of the projected input and of the previous states."""
        ...

    def weight_gradients(self, projected_gradient: Tensor, saved: Tensors, dropout_mask: Tensor | None) -> Tensors:
        """Returns the gradients of `weights`, given the gradients and saved tensors of all steps."""
        ...


class Recurrence(NamedTuple):
    """What a recurrence starts from.

    Attributes:
        projected: Input of every step times the input kernel, plus the bias, `(time, batch, gates * units)`.
        weights: The recurrent kernel, `(units, gates * units)`, and the recurrent bias where the cell has one.
        initial_states: One `(batch, units)` tensor per state, the hidden state first.
        mask: `(time, batch, 1)` booleans, true where a step is valid, or None.
        dropout_mask: `(batch, units)` factors on the hidden state that enters the recurrent product, or None.
    """

    projected: Tensor
    weights: Tensors
    initial_states: Tensors
    mask: Tensor | None
    dropout_mask: Tensor | None


def differentiable_recurrence(cell: Cell, start: Recurrence, return_sequences: bool) -> tuple[Tensor | None, Tensors]:
    """Returns the hidden states of all steps, if wanted, and the final states."""

    def step(states: Tensors, slices: Tensors) -> tuple[Tensors, Tensors]:
        new_states, _ = cell.step(states, slices[0], start.weights, start.dropout_mask)
        new_states = _where_valid(slices[1:], new_states, states)
        return new_states, new_states[:1] if return_sequences else ()

    widths = [cell.units] if return_sequences else []
    final_states, outputs = scan(step, start.initial_states, (start.projected, *_as_tuple(start.mask)), widths)
    return (_zero_invalid(start.mask, outputs[0]) if return_sequences else None), final_states


def closed_form_recurrence(cell: Cell, start: Recurrence, return_sequences: bool) -> tuple[Tensor | None, Tensors]:
    """Returns the same as `differentiable_recurrence`, with the gradient in closed form."""
    weight_count = len(start.weights)

    # The mask and the dropout factors have no gradient, so they enter by closure and not as arguments.
    @ops.custom_gradient
    def recurrence(projected: Tensor, *tensors: Tensor) -> tuple[Tensors, Any]:
        weights, initial_states = tensors[:weight_count], tensors[weight_count:]
        inner_start = Recurrence(projected, weights, initial_states, start.mask, start.dropout_mask)
        outputs, saved, final_states = _forward(cell, inner_start, return_sequences)

        def gradient(*upstream: Any) -> Tensors:
            output_gradient, state_gradients = _split_upstream(upstream, return_sequences)
            return _backward(cell, inner_start, saved, output_gradient, state_gradients)

        return (*outputs, *final_states), gradient

    results = recurrence(start.projected, *start.weights, *start.initial_states)
    return (results[0], tuple(results[1:])) if return_sequences else (None, tuple(results))


def _forward(cell: Cell, start: Recurrence, return_sequences: bool) -> tuple[Tensors, Tensors, Tensors]:
    def step(states: Tensors, slices: Tensors) -> tuple[Tensors, Tensors]:
        new_states, saved = cell.step(states, slices[0], start.weights, start.dropout_mask)
        new_states = _where_valid(slices[1:], new_states, states)
        return new_states, (*(new_states[:1] if return_sequences else ()), *saved)

    widths = [cell.units] * (cell.saved_count + return_sequences)
    final_states, stacked = scan(step, start.initial_states, (start.projected, *_as_tuple(start.mask)), widths)
    if not return_sequences:
        return (), stacked, final_states
    return (_zero_invalid(start.mask, stacked[0]),), stacked[1:], final_states


def _backward(
    cell: Cell, start: Recurrence, saved: Tensors, output_gradient: Tensors, state_gradients: Tensors
) -> Tensors:
    transposed_kernel = ops.transpose(start.weights[0])
    mask = _as_tuple(start.mask)
    output_gradient = tuple(_zero_invalid(start.mask, gradient) for gradient in output_gradient)

    def step(gradients: Tensors, slices: Tensors) -> tuple[Tensors, Tensors]:
        valid, outputs = slices[: len(mask)], slices[len(mask) : -cell.saved_count]
        gradients = (gradients[0] + outputs[0], *gradients[1:]) if outputs else gradients
        projected_gradient, previous_gradients = cell.step_gradient(
            gradients, slices[-cell.saved_count :], transposed_kernel, start.dropout_mask
        )
        if valid:
            projected_gradient = ops.where(valid[0], projected_gradient, ops.zeros_like(projected_gradient))
        return _where_valid(valid, previous_gradients, gradients), (projected_gradient,)

    initial_gradients, (projected_gradient,) = scan(
        step,
        state_gradients,
        (*mask, *output_gradient, *saved),
        [start.projected.shape[-1]],
        reverse=True,
    )
    weight_gradients = cell.weight_gradients(projected_gradient, saved, start.dropout_mask)
    return (projected_gradient, *weight_gradients, *initial_gradients)


def _split_upstream(upstream: Sequence[Any], return_sequences: bool) -> tuple[Tensors, Tensors]:
    # TensorFlow passes one gradient per output, JAX one tuple of them.
    gradients = tuple(upstream[0]) if isinstance(upstream[0], (tuple, list)) else tuple(upstream)
    return (gradients[:1], gradients[1:]) if return_sequences else ((), gradients)


def _as_tuple(mask: Tensor | None) -> Tensors:
    return () if mask is None else (mask,)


def _where_valid(mask: Tensors, new: Tensors, old: Tensors) -> Tensors:
    if not mask:
        return new
    return tuple(ops.where(mask[0], *pair) for pair in zip(new, old, strict=True))


def _zero_invalid(mask: Tensor | None, sequence: Tensor) -> Tensor:
    return sequence if mask is None else ops.where(mask, sequence, ops.zeros_like(sequence))
