"""Gradients by central differences, in float64."""

from collections.abc import Callable

import numpy as np


def numeric_gradients(
    function: Callable[..., float], arrays: list[np.ndarray], nudge: float = 1e-5
) -> list[np.ndarray]:
    """Returns the gradients of a function of float64 arrays by each of them, with an error of about `nudge**2`."""
    gradients = []
    for place, array in enumerate(arrays):
        gradient = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            values = []
            for sign in (1, -1):
                nudged = array.copy()
                nudged[index] += sign * nudge
                values.append(float(function(*arrays[:place], nudged, *arrays[place + 1 :])))
            gradient[index] = (values[0] - values[1]) / (2 * nudge)
        gradients.append(gradient)
    return gradients
