"""Whole sequences on a GPU by cuDNN, for the configurations of a cell that it knows.

cuDNN runs forward and backward pass in a few kernels of its own, and wants sequences padded at the end, with at least
one valid step each. For other masks the loop of `layers.recurrence` runs; which of the two is decided batch by batch.
"""

from collections.abc import Callable

from keras import ops

from layers.cells import RecurrentCell
from layers.derivatives import Tensor, Tensors
from layers.kernels import cudnn
from layers.recurrence import Batch

GATE_ORDER = {"lstm": (0, 1, 2, 3), "gru": (1, 0, 2), "rnn_tanh": (0,), "rnn_relu": (0,)}
"""Where cuDNN's gates stand in the weights of a cell: i, f, c, o for an LSTM; r, z, h for a GRU."""


def run(
    cell: RecurrentCell,
    mode: str,
    batch: Batch,
    go_backwards: bool,
    return_sequences: bool,
    otherwise: Callable[[], Tensors],
) -> Tensors:
    """Runs a cell over the sequences of a batch.

    Args:
        cell: The cell.
        mode: cuDNN's name of it, a key of `GATE_ORDER`.
        batch: What it reads, without factors on the hidden state and without zoneout.
        go_backwards: Whether to read from the end.
        return_sequences: Whether the hidden states of all steps are wanted, or only the last ones.
        otherwise: Computes the same without cuDNN, for masks that it cannot take.

    Returns:
        The output and the final states.
    """

    size, steps = ops.shape(batch.sequence)[:2]
    if batch.mask is None:
        lengths = ops.full((size,), steps, dtype="int32")
    else:
        lengths = ops.cast(ops.sum(batch.mask, axis=1), "int32")
    # Read from the end, what is padded at the end comes first; cuDNN wants it last.
    padding = steps - lengths if go_backwards and batch.mask is not None else None

    def with_cudnn() -> Tensors:
        sequence = batch.sequence if batch.input_factors is None else batch.sequence * batch.input_factors
        if batch.mask is not None:
            sequence = ops.where(batch.mask[..., None], sequence, ops.zeros_like(sequence))
        sequence = ops.flip(sequence, axis=1) if go_backwards else sequence
        sequence = sequence if padding is None else _rolled(sequence, -padding)
        outputs, states = cudnn(mode, sequence, batch.initial_states, parameters(cell, mode), lengths)
        if not return_sequences:
            return (states[0], *states)
        return (outputs if padding is None else _rolled(outputs, padding), *states)

    if batch.mask is None:
        return with_cudnn()
    in_front = ops.less(ops.arange(steps, dtype="int32"), lengths[:, None])
    takes_mask = ops.all(ops.equal(batch.mask, in_front)) & ops.all(lengths > 0)
    return tuple(ops.cond(takes_mask, with_cudnn, otherwise))


def parameters(cell: RecurrentCell, mode: str) -> Tensor:
    """Returns the weights of a cell in cuDNN's order: input matrices, recurrent matrices, and both biases of each."""
    weights = cell.tensors()
    kernel, bias = weights.projection
    recurrent_bias = weights.vectors[-1] if weights.vectors else ops.zeros_like(bias)

    def gates(weight: Tensor) -> Tensor:
        in_order = [ops.split(weight, len(order), axis=-1)[place] for place in order]
        return ops.concatenate([ops.reshape(ops.transpose(gate), (-1,)) for gate in in_order])

    order = GATE_ORDER[mode]
    return ops.concatenate([gates(each) for each in (kernel, weights.matrices[0], bias, recurrent_bias)])


def _rolled(sequence: Tensor, shifts: Tensor) -> Tensor:
    """Returns sequences with every step moved so many places to the end, and those beyond the end to the start."""
    steps = ops.shape(sequence)[1]
    places = ops.mod(ops.arange(steps, dtype="int32") - shifts[:, None], steps)
    return ops.take_along_axis(sequence, ops.broadcast_to(places[..., None], ops.shape(sequence)), axis=1)
