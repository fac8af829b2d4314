"""Functions that carry a gradient of their own."""

from collections.abc import Callable
from typing import Any

from keras import ops, tree

from layers.kernels import pulled_back

Tensor = Any
Tensors = tuple[Tensor, ...]


def with_gradient(
    plain: Callable[[Tensors], Tensors],
    forward: Callable[[Tensors], tuple[Tensors, Any]],
    backward: Callable[[Tensors, Any, Tensors], Tensors],
) -> Callable[[Tensors], Tensors]:
    """Returns a function whose first derivatives are given, and whose second ones are those of the backend.

    What has no gradient, such as masks, enters the three functions by closure.

    Args:
        plain: The function, written such that the backend can take its second derivatives.
        forward: The same function; returns its results and what `backward` wants to know.
        backward: Takes the arguments, what `forward` saved and the gradients of the results; returns the gradients of
            all arguments.
    """

    def plain_gradients(tensors: Tensors, upstream: Tensors) -> tuple[Tensors, Tensors]:
        (gradients,), _ = pulled_back(lambda tensors: (plain(tensors), ()), (tensors,), upstream)
        return tuple(gradients), ()

    @ops.custom_gradient
    def function(*tensors: Tensor) -> tuple[Tensors, Any]:
        # What runs in here has no derivative but those given, and the backends want to be told.
        results, saved = forward(_constant(tensors))
        saved = _constant_all(saved)

        @ops.custom_gradient
        def gradients(*arguments: Tensor) -> tuple[Tensors, Any]:
            tensors, upstream = arguments[: -len(results)], arguments[-len(results) :]

            def second_gradients(*upstream_of_gradients: Any) -> Tensors:
                by_arguments, _ = pulled_back(plain_gradients, (tensors, upstream), _one(upstream_of_gradients))
                return tuple(each for group in by_arguments for each in group)

            # `saved` may be of another graph, that of a branch: here it becomes a tensor of this one.
            return backward(_constant(tensors), _constant_all(saved), _constant(upstream)), second_gradients

        return results, lambda *upstream: tuple(gradients(*tensors, *_one(upstream)))

    return lambda tensors: as_tuple(function(*tensors))


def as_tuple(tensors: Any) -> Tensors:
    """Returns one tensor or several as a tuple."""
    return tuple(tensors) if isinstance(tensors, (tuple, list)) else (tensors,)


def _constant(tensors: Tensors) -> Tensors:
    return tuple(map(ops.stop_gradient, tensors))


def _constant_all(saved: Any) -> Any:
    return tree.map_structure(ops.stop_gradient, saved)


def _one(upstream: tuple[Any, ...]) -> Tensors:
    """Returns the gradients of several results: TensorFlow passes one argument for each, JAX one tuple of them."""
    return as_tuple(upstream[0]) if len(upstream) == 1 else upstream
