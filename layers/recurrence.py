"""The recurrence over time that all recurrent layers share.

`Recurrence.differentiable` leaves the gradient to the backend. `Recurrence.closed_form` computes the same values and
carries its own gradient, backpropagation through time (Werbos, 1990, "Backpropagation through time: what it does and
how to do it"). With a_t what enters the product of step t and p_t = a_t R, for every recurrent matrix R:

- The forward loop saves the states and the products, nothing else.
- The backward loop runs from the last step to the first. It takes each step's element-wise functions again, on the
  saved products, and their derivatives with them, which costs less than storing and reading every activation. The
  derivative of the product is in closed form, dL/da_t = dL/dp_t R^T.
- dL/dR = sum over t of a_t^T dL/dp_t is one product over all `time * batch` rows after the loop instead of a small one
  in every step.

So a cell says only what one step computes. Second derivatives, as a gradient penalty needs them, are those of the
backend. A step that the mask leaves out hands the state on unchanged and puts out zero.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Protocol

from keras import ops

from layers.derivatives import Tensor, Tensors, with_gradient
from layers.kernels import compiled, projects_in_loop, pulled_back, scan
from layers.masking import precise_dtype, valid_only


class Cell(Protocol):
    """One time step of a recurrent layer.

    Attributes:
        units: Width U of every state.
        zoneout: For every state the share of units that keep their old value.
        summed: For every recurrent matrix in turn, how many columns of the projected input are added to the first
            columns of its product. A step sees the sums, and of the projected input the columns that are in none.
    """

    units: int
    zoneout: tuple[float, ...]
    summed: tuple[int, ...]

    def project(self, inputs: Tensor, projection: Tensors) -> Tensor:
        """Returns what a step reads of its input, for the inputs of any number of steps."""
        ...

    def step(self, now: "Step") -> Tensors:
        """Returns the new states."""
        ...


class Step(NamedTuple):
    """What a cell reads in one time step.

    Attributes:
        states: The old states, `(batch, units)` each, the hidden state first.
        sums: The recurrent input times the first matrix, with projected input added as `summed` says.
        projected: The columns of the projected input that are in no sum, `(batch, columns)`.
        recurrent_input: The hidden state, thinned out by recurrent dropout, `(batch, units)`.
        product: Multiplies by the other recurrent matrices, see `Product`.
        vectors: The other weights of the step.
    """

    states: Tensors
    sums: Tensor
    projected: Tensor
    recurrent_input: Tensor
    product: "Product"
    vectors: Tensors


class Product(Protocol):
    """Product with one of the recurrent matrices; a step takes those after the first once each, in order."""

    def __call__(self, index: int, factor: Tensor) -> Tensor:
        """Returns `factor @ matrices[index]`, with the projected input added that the cell wants in this sum."""
        ...


class Weights(NamedTuple):
    """The weights of a cell, as tensors in the dtype of the computation.

    Attributes:
        projection: What projects the input of all steps.
        matrices: The recurrent matrices, from `(batch, units)` to what a cell makes of it.
        vectors: The other weights of a step: small, one-dimensional.
    """

    projection: Tensors
    matrices: Tensors
    vectors: Tensors


class Batch(NamedTuple):
    """What a recurrence reads. The batch is the first axis of all tensors, so that it can be cut into parts.

    Attributes:
        sequence: `(batch, time, features)`.
        initial_states: One `(batch, units)` tensor per state, the hidden state first.
        mask: `(batch, time)` booleans, true where a step is valid, or None.
        input_factors: `(batch, 1, features)` factors of dropout on the input, or None.
        recurrent_factors: `(batch, units)` factors of dropout on the hidden state that enters the product, or None.
        zoned_out: In training, for every state that has zoneout, `(batch, time, units)` booleans, true where the old
            value is kept; otherwise nothing, and the expectation is computed.
    """

    sequence: Tensor
    initial_states: Tensors
    mask: Tensor | None = None
    input_factors: Tensor | None = None
    recurrent_factors: Tensor | None = None
    zoned_out: Tensors = ()

    def cut(self, part: "Span", place: "Span", states: Tensors | None = None) -> "Batch":
        """Returns some steps of some of the examples, which may start from other states."""

        def part_of(tensor: Tensor | None, *spans: Span) -> Tensor | None:
            return None if tensor is None else _cut(tensor, *spans)

        return Batch(
            _cut(self.sequence, part, place),
            tuple(_cut(each, part) for each in self.initial_states) if states is None else states,
            part_of(self.mask, part, place),
            part_of(self.input_factors, part),
            part_of(self.recurrent_factors, part),
            tuple(_cut(each, part, place) for each in self.zoned_out),
        )


Span = slice
"""Entries of an axis, `ALL` of them or some that follow each other."""

ALL = slice(None)


class Recurrence:
    """Runs a cell over the sequences of a batch.

    Args:
        cell: The cell.
        go_backwards: Whether to read from the end.
        return_sequences: Whether the hidden states of all steps are wanted, or only the last ones.
        parts: Sizes of the parts of the batch, whose loops run side by side.
        chunks: Numbers of steps of the loops that, with a gradient in closed form, follow each other.
        steps: How many steps to run, where the sequences are padded beyond that, or None.
    """

    def __init__(
        self,
        cell: Cell,
        go_backwards: bool,
        return_sequences: bool,
        parts: Sequence[Any] = (None,),
        chunks: Sequence[int | None] = (None,),
        steps: Tensor | None = None,
    ):
        self.cell = cell
        self.go_backwards = go_backwards
        self.return_sequences = return_sequences
        self.steps = steps
        self._parts = _spans(parts)
        self._chunks = _spans(chunks)
        self._plain = compiled(self._plain_loop, training=False)
        self._forward = compiled(self._forward_loop, training=True)
        self._backward = compiled(self._backward_loop, training=True)

    def differentiable(self, batch: Batch, weights: Weights) -> Tensors:
        """Returns the output and the final states."""
        return _joined([self._plain(batch.cut(part, ALL), weights, self.steps) for part in self._parts])

    def closed_form(self, batch: Batch, weights: Weights) -> Tensors:
        """Returns the same, with the gradient in closed form."""
        sizes = [1, len(batch.initial_states), *map(len, weights)]

        # Masks and factors have no gradient, so they enter by closure and not as arguments.
        def filled(tensors: Tensors) -> tuple[Batch, Weights]:
            (sequence,), initial_states, *parts = _grouped(tensors, sizes)
            return batch._replace(sequence=sequence, initial_states=initial_states), Weights(*parts)

        def plain(tensors: Tensors) -> Tensors:
            return self.differentiable(*filled(tensors))

        def forward(tensors: Tensors) -> tuple[Tensors, Any]:
            of_parts = [self._run_forward(*filled(tensors), part) for part in self._parts]
            results, saved = zip(*of_parts, strict=True)
            return _joined(results), saved

        def backward(tensors: Tensors, saved: Any, upstream: Tensors) -> Tensors:
            of_parts = [
                self._run_backward(*filled(tensors), each, upstream, part)
                for each, part in zip(saved, self._parts, strict=True)
            ]
            of_examples, of_weights = zip(*of_parts, strict=True)
            return (*_joined(of_examples), *_summed(of_weights))

        tensors = (batch.sequence, *batch.initial_states, *(each for part in weights for each in part))
        return with_gradient(plain, forward, backward)(tensors)

    def _run_forward(self, batch: Batch, weights: Weights, part: Span) -> tuple[Tensors, Sequence["_Saved"]]:
        """Returns the results for a part of the batch, and what the chunks of time saved."""
        of_chunks: list[tuple[Tensors, _Saved]] = []
        for _, place in self._places():
            states = of_chunks[-1][0][1:] if of_chunks else None
            of_chunks.append(self._forward(batch.cut(part, place, states), weights, self.steps))
        results, saved = zip(*of_chunks, strict=True)
        output, *states = results[-1]
        if self.return_sequences:
            output = _side_by_side([each[0] for each in results], axis=1)
        return (output, *states), saved

    def _run_backward(
        self, batch: Batch, weights: Weights, saved: Sequence["_Saved"], upstream: Tensors, part: Span
    ) -> tuple[Tensors, Tensors]:
        """Returns the gradients by the examples of a part of the batch, and by the weights."""
        output_gradient, state_gradients = upstream[0], tuple(_cut(each, part) for each in upstream[1:])
        if not self.return_sequences:
            state_gradients = (state_gradients[0] + _cut(output_gradient, part), *state_gradients[1:])
        sequence_gradients, of_weights = [], []
        for (chunk, place), of_chunk in reversed(list(zip(self._places(), saved, strict=True))):
            output_gradients = (_cut(output_gradient, part, chunk),) if self.return_sequences else ()
            gradients = self._backward(
                batch.cut(part, place), weights, of_chunk, output_gradients, state_gradients, self.steps
            )
            (sequence_gradient,), state_gradients, weight_gradients = _grouped(
                gradients, [1, len(state_gradients), sum(map(len, weights))]
            )
            sequence_gradients.append(sequence_gradient)
            of_weights.append(weight_gradients)
        if not self.go_backwards:
            sequence_gradients.reverse()
        return (_side_by_side(sequence_gradients, axis=1), *state_gradients), _summed(of_weights)

    def _places(self) -> list[tuple[Span, Span]]:
        """Returns the chunks of time in the order of reading, and for each where it stands in the sequence."""
        return list(zip(self._chunks, self._chunks[::-1] if self.go_backwards else self._chunks, strict=True))

    def _plain_loop(self, batch: Batch, weights: Weights, steps: Tensor | None) -> Tensors:
        read, inputs = self._reader(batch, weights)

        def step(states: Tensors, slices: Tensors) -> tuple[Tensors, Tensors]:
            product, projected = entering(self.cell, read(slices[0]), weights)
            new_states = advance(self.cell, batch, states, projected, product, weights.vectors, slices[1:])
            return new_states, new_states[:1] if self.return_sequences else ()

        widths = [self.cell.units] if self.return_sequences else []
        final_states, outputs, _ = scan(
            step, batch.initial_states, (inputs, *self._constraints(batch)), widths, steps=steps
        )
        return (self._output(batch, outputs[0]) if self.return_sequences else final_states[0], *final_states)

    def _forward_loop(self, batch: Batch, weights: Weights, steps: Tensor | None) -> tuple[Tensors, "_Saved"]:
        read, inputs = self._reader(batch, weights)

        def step(states: Tensors, slices: Tensors) -> tuple[Tensors, Tensors]:
            product, projected = entering(self.cell, read(slices[0]), weights)
            products: list[Tensor] = []

            def recorded_product(index: int, factor: Tensor) -> Tensor:
                products.append(product(index, factor))
                return products[-1]

            new_states = advance(self.cell, batch, states, projected, recorded_product, weights.vectors, slices[1:])
            return new_states, (*products, *([projected] if rest else []))

        rest = weights.projection[0].shape[-1] - sum(self.cell.summed)
        widths = [*(matrix.shape[-1] for matrix in weights.matrices), *([rest] if rest else [])]
        final_states, saved, histories = scan(
            step, batch.initial_states, (inputs, *self._constraints(batch)), widths, history=True, steps=steps
        )
        output = self._output(batch, histories[0][1:]) if self.return_sequences else final_states[0]
        count = len(weights.matrices)
        return (output, *final_states), _Saved(histories, saved[:count], saved[count:])

    def _backward_loop(
        self,
        batch: Batch,
        weights: Weights,
        saved: "_Saved",
        output_gradients: Tensors,
        state_gradients: Tensors,
        steps: Tensor | None,
    ) -> Tensors:
        cell, state_count = self.cell, len(state_gradients)
        transposed = [ops.transpose(matrix) for matrix in weights.matrices]
        output_gradients = tuple(
            _time_and_batch_swapped(valid_only(each, self._valid(batch))) for each in output_gradients
        )
        sequences = [saved.products, saved.histories, self._constraints(batch), output_gradients, saved.projected]

        def step(carry: Tensors, slices: Tensors) -> tuple[Tensors, Tensors]:
            products, states, constraints, output_gradients, projected = _grouped(slices, map(len, sequences))
            gradients, totals = carry[:state_count], carry[state_count:]
            for output_gradient in output_gradients:
                gradients = (gradients[0] + output_gradient, *gradients[1:])

            def again(states: Tensors, nudges: Tensors, inputs: Tensors, vectors: Tensors) -> tuple[Tensors, Tensors]:
                factors: list[Tensor] = []

                def product(index: int, factor: Tensor) -> Tensor:
                    factors.append(factor)
                    # A nudge has the product's shape and is added to it, to take the derivative by.
                    return _remembered(products[index], transposed[index], factor, nudges[index])

                rest = inputs[0] if inputs else products[0][:, :0]
                return advance(cell, batch, states, rest, product, vectors, constraints), tuple(factors[1:])

            arguments = (states, products, projected, weights.vectors)
            (previous, nudges, inputs, vectors), factors = pulled_back(again, arguments, gradients)
            totals = tuple(total + ops.cast(each, total.dtype) for total, each in zip(totals, vectors, strict=True))
            return (*previous, *totals), (*nudges, *inputs, *factors)

        widths = [each.shape[-1] for each in (*saved.products, *saved.projected)]
        widths += [matrix.shape[0] for matrix in weights.matrices[1:]]
        carry, outputs, _ = scan(
            step,
            (*state_gradients, *(ops.zeros_like(each, dtype=precise_dtype(each)) for each in weights.vectors)),
            [each for group in sequences for each in group],
            widths,
            reverse=True,
            steps=steps,
        )
        states_and_totals = _grouped(carry, [state_count, len(weights.vectors)])
        of_steps = _grouped(outputs, [len(saved.products), len(saved.projected), len(saved.products) - 1])
        return self._gathered(batch, weights, saved.histories[0], *states_and_totals, *of_steps)

    def _gathered(
        self,
        batch: Batch,
        weights: Weights,
        hidden_states: Tensor,
        state_gradients: Tensors,
        totals: Tensors,
        product_gradients: Tensors,
        rest: Tensors,
        later_factors: Tensors,
    ) -> Tensors:
        """Returns the gradients by sequence, states and weights, from those of all steps."""
        summed = [
            _columns(each, 0, width) for each, width in zip(product_gradients, self.cell.summed, strict=True) if width
        ]
        input_gradient = _side_by_side([*summed, *rest], axis=-1)
        factors = [_dropped(hidden_states[:-1], batch.recurrent_factors), *later_factors]
        matrix_gradients = [_summed_product(*pair) for pair in zip(factors, product_gradients, strict=True)]

        def project(sequences: Tensors, projection: Tensors) -> tuple[Tensors, Tensors]:
            return (self.cell.project(self._inputs(batch, sequences[0]), projection),), ()

        arguments = ((batch.sequence,), weights.projection)
        (sequence_gradients, projection_gradients), _ = pulled_back(project, arguments, (input_gradient,))
        vector_gradients = (ops.cast(each, like.dtype) for each, like in zip(totals, weights.vectors, strict=True))
        return (*sequence_gradients, *state_gradients, *projection_gradients, *matrix_gradients, *vector_gradients)

    def _reader(self, batch: Batch, weights: Weights) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Returns what makes projected input of a step's slice, and the sequence to slice."""

        def project(inputs: Tensor) -> Tensor:
            return self.cell.project(inputs, weights.projection)

        inputs = self._inputs(batch, batch.sequence)
        return (project, inputs) if projects_in_loop() else (lambda projected: projected, project(inputs))

    def _inputs(self, batch: Batch, sequence: Tensor) -> Tensor:
        """Returns the input of all steps, `(time, batch, features)`."""
        if batch.input_factors is not None:
            sequence = sequence * batch.input_factors
        # Zero times NaN is NaN: padding has to be replaced before the product, not after it.
        sequence = valid_only(self._in_order(sequence), self._valid(batch))
        return _time_and_batch_swapped(sequence)

    def _constraints(self, batch: Batch) -> Tensors:
        """Returns what keeps old states: the mask, `(time, batch, 1)`, and zoneout's, `(time, batch, units)`."""
        valid = self._valid(batch)
        masks = (() if valid is None else (valid,), map(self._in_order, batch.zoned_out))
        return tuple(_time_and_batch_swapped(mask) for group in masks for mask in group)

    def _output(self, batch: Batch, hidden_states: Tensor) -> Tensor:
        """Returns the hidden states of all steps, `(batch, time, units)`."""
        return valid_only(_time_and_batch_swapped(hidden_states), self._valid(batch))

    def _valid(self, batch: Batch) -> Tensor | None:
        return None if batch.mask is None else self._in_order(ops.expand_dims(batch.mask, -1))

    def _in_order(self, sequence: Tensor) -> Tensor:
        """Returns a sequence in the order of reading."""
        # Not left to the loop: converters to ONNX take every loop for one that counts upwards.
        return ops.flip(sequence, axis=1) if self.go_backwards else sequence


def entering(cell: Cell, projected: Tensor, weights: Weights) -> tuple[Product, Tensor]:
    """Returns the product that a step takes, which adds projected input, and the input that is in no sum."""
    ends = list(accumulate(cell.summed, initial=0))

    def product(index: int, factor: Tensor) -> Tensor:
        result, width = ops.matmul(factor, weights.matrices[index]), cell.summed[index]
        if not width:
            return result
        first = _columns(projected, *ends[index : index + 2]) + _columns(result, 0, width)
        return first if width == result.shape[-1] else ops.concatenate([first, result[:, width:]], axis=-1)

    return product, _columns(projected, ends[-1], projected.shape[-1])


def advance(
    cell: Cell,
    batch: Batch,
    states: Tensors,
    projected: Tensor,
    product: Product,
    vectors: Tensors,
    constraints: Sequence[Tensor] = (),
) -> Tensors:
    """Returns the states after one step: the cell's, except where zoneout or the mask keeps the old ones."""
    constraints = list(constraints)
    valid = constraints.pop(0) if batch.mask is not None else None
    recurrent_input = _dropped(states[0], batch.recurrent_factors)
    sums = product(0, recurrent_input)
    new_states = cell.step(Step(states, sums, projected, recurrent_input, product, vectors))
    if any(cell.zoneout):
        new_states = tuple(
            _zoned_out(old, new, rate, constraints)
            for old, new, rate in zip(states, new_states, cell.zoneout, strict=True)
        )
    if valid is None:
        return new_states
    return tuple(ops.where(valid, new, old) for new, old in zip(new_states, states, strict=True))


class _Saved(NamedTuple):
    """What the forward loop saves: states before and after every step, sums, and the input that is in none of them."""

    histories: Tensors
    products: Tensors
    projected: Tensors


def _remembered(value: Tensor, transposed_matrix: Tensor, factor: Tensor, plus: Tensor) -> Tensor:
    """Returns the value that `factor @ matrix + plus` had, with its gradient by both."""

    @ops.custom_gradient
    def product(factor: Tensor, plus: Tensor) -> tuple[Tensor, Any]:
        del factor, plus

        def gradient(*upstream: Tensor) -> Tensors:
            return ops.matmul(upstream[-1], transposed_matrix), upstream[-1]

        return ops.copy(value), gradient

    return product(factor, plus)


def _spans(sizes: Sequence[Any]) -> list[Span]:
    if len(sizes) == 1:
        return [ALL]
    ends = [sum(sizes[:index]) for index in range(len(sizes) + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


def _cut(tensor: Tensor, *spans: Span) -> Tensor:
    return tensor if all(span == ALL for span in spans) else tensor[spans]


def _columns(tensor: Tensor, start: int, end: int) -> Tensor:
    return tensor if end - start == tensor.shape[-1] else tensor[..., start:end]


def _side_by_side(tensors: Sequence[Tensor], axis: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else ops.concatenate(tensors, axis=axis)


def _joined(of_parts: Sequence[Tensors]) -> Tensors:
    return tuple(_side_by_side(each, axis=0) for each in zip(*of_parts, strict=True))


def _summed(of_parts: Sequence[Tensors]) -> Tensors:
    return tuple(sum(each[1:], start=each[0]) for each in zip(*of_parts, strict=True))


def _grouped(tensors: Tensors, sizes: Iterable[int]) -> list[Tensors]:
    remaining = iter(tensors)
    return [tuple(next(remaining) for _ in range(size)) for size in sizes]


def _zoned_out(old: Tensor, new: Tensor, rate: float, masks: list[Tensor]) -> Tensor:
    if not rate:
        return new
    return ops.where(masks.pop(0), old, new) if masks else new + rate * (old - new)


def _dropped(hidden_state: Tensor, dropout_mask: Tensor | None) -> Tensor:
    return hidden_state if dropout_mask is None else hidden_state * dropout_mask


def _time_and_batch_swapped(sequence: Tensor) -> Tensor:
    return ops.transpose(sequence, (1, 0, 2))


def _summed_product(left: Tensor, right: Tensor) -> Tensor:
    """Returns the product of two time-major sequences, summed over time and batch: `(left width, right width)`."""
    left_rows = ops.reshape(left, (-1, left.shape[-1]))
    right_rows = ops.reshape(right, (-1, right.shape[-1]))
    return ops.matmul(ops.transpose(left_rows), right_rows)
