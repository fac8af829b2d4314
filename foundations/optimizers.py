"""Optimizers in a ravine and at a saddle: SGD, momentum, Nesterov, Adagrad, RMSprop, Adam.

python foundations/optimizers.py [--seeds N] [--figure FILE] [--json FILE]

Three functions of two numbers: a ravine a hundred times as steep across as along; the same ravine turned by 30 degrees;
and a ravine whose floor has a saddle, from where it falls away on both sides. Every optimizer starts from the same
points, one for each seed, and gets the learning rate with which it needs the fewest steps, out of 21. Counted are the
steps until only a thousandth of the way down is left, for good.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from foundations.comparison import Result, markdown, run
from loom.lazy import keras, tf
from loom.report import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEEP, TURN = 100.0, math.radians(30)
STEPS = 1000
RATES = np.geomspace(1e-3, 10, 21)
NEAR = 1e-3
"""The bottom is reached where the height above it is this share of that at the start."""
LOWEST = {"ravine": 0.0, "turned ravine": 0.0, "saddle": -0.25}
OPTIMIZERS = {
    "SGD": ("SGD", {}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "Nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "Adagrad": ("Adagrad", {}),
    "RMSprop": ("RMSprop", {}),
    "Adam": ("Adam", {}),
}


def ravine(points: Any) -> Any:
    """½ (x² + 100 y²), for points `(..., 2)`."""
    x, y = points[..., 0], points[..., 1]
    return 0.5 * (x**2 + STEEP * y**2)


def turned_ravine(points: Any) -> Any:
    """The ravine, turned: its floor runs along no axis."""
    x, y = points[..., 0], points[..., 1]
    cosine, sine = math.cos(TURN), math.sin(TURN)
    along, across = cosine * x + sine * y, cosine * y - sine * x
    return 0.5 * (along**2 + STEEP * across**2)


def saddle(points: Any) -> Any:
    """½ (100 x² - y²) + ¼ y⁴: up along x, down along y, with its lowest points at y = -1 and y = 1."""
    x, y = points[..., 0], points[..., 1]
    return 0.5 * (STEEP * x**2 - y**2) + 0.25 * y**4


SURFACES = {"ravine": ravine, "turned ravine": turned_ravine, "saddle": saddle}


def starts(surface: str, count: int) -> np.ndarray:
    """Points to start from, `(count, 2)`: far out in the ravines; beside the saddle, very near to its ridge."""
    generator = np.random.default_rng(0)
    if surface == "saddle":
        signs = generator.choice([-1.0, 1.0], count)
        return np.stack([generator.uniform(0.3, 0.6, count), signs * 1e-3], axis=1)
    points = np.stack([generator.uniform(-5, -4, count), generator.uniform(0.6, 1.0, count)], axis=1)
    cosine, sine = math.cos(TURN), math.sin(TURN)
    return points if surface == "ravine" else points @ np.array([[cosine, sine], [-sine, cosine]])


def descend(name: str, surface: str, begin: np.ndarray) -> np.ndarray:
    """Paths of an optimizer for every rate, `(rates, STEPS + 1, starts, 2)`."""
    kind, options = OPTIMIZERS[name]
    optimizer = getattr(keras.optimizers, kind)(**options)
    points = keras.Variable(begin)
    optimizer.build([points])

    @tf.function(jit_compile=True)
    def path() -> tf.Tensor:
        visited = tf.TensorArray("float32", STEPS)
        for step in tf.range(STEPS):
            with tf.GradientTape() as tape:
                height = tf.reduce_sum(SURFACES[surface](tf.convert_to_tensor(points)))
            # Each point has its own slope, and optimizers treat all numbers apart: the starts do not meet.
            optimizer.apply(tape.gradient(height, [points.value]))
            visited = visited.write(step, points.value)
        return visited.stack()

    paths, fresh = [], [variable.numpy() for variable in optimizer.variables]
    for rate in RATES:
        for variable, value in zip(optimizer.variables, fresh, strict=True):
            variable.assign(value)
        optimizer.learning_rate = rate
        points.assign(begin)
        paths.append(np.concatenate([[begin], path().numpy()]))
    return np.array(paths)


def steps_needed(surface: str, paths: np.ndarray) -> np.ndarray:
    """For paths `(..., STEPS + 1, starts, 2)` the mean number of steps to the bottom, `(...)`."""
    with np.errstate(over="ignore", invalid="ignore"):  # too high a rate
        height = SURFACES[surface](paths) - LOWEST[surface]
        there = height < NEAR * height[..., :1, :]
    stays = np.logical_and.accumulate(there[..., ::-1, :], axis=-2)[..., ::-1, :]
    steps = np.where(stays.any(axis=-2), stays.argmax(axis=-2), STEPS)
    return steps.mean(axis=-1)


def measure(seeds: int) -> Result:
    """Steps that each optimizer needs on each surface with its best rate, and its path from the first start."""
    rows, curves = [], {}
    for name in OPTIMIZERS:
        row: Result = {"optimizer": name}
        for surface in SURFACES:
            paths = descend(name, surface, starts(surface, seeds).astype("float32"))
            needed = steps_needed(surface, paths)
            best = int(np.argmin(needed))
            row[surface] = {"steps": float(needed[best]), "rate": float(RATES[best])}
            curves[name, surface] = paths[best, :, 0]
        rows.append(row)
    return {"rows": rows, "seeds": seeds, "curves": curves}


def table(result: Result) -> list[str]:
    """Steps and, in brackets, the rate."""
    cells = [
        [row["optimizer"], *(f"{row[name]['steps']:.0f} ({row[name]['rate']:.3f})" for name in SURFACES)]
        for row in result["rows"]
    ]
    return markdown(["optimizer", *SURFACES], cells)


def draw(result: Result) -> Figure:
    """Paths over the surfaces' contours, and how much of the way down is left after each step."""
    figure, axes = new_figure(len(SURFACES), 5.0, 3.8, rows=2)
    windows = {
        "ravine": (-5.5, 1.5, -1.4, 1.4),
        "turned ravine": (-5.5, 1.5, -3.6, 1.6),
        "saddle": (-0.5, 0.5, -0.4, 1.4),
    }
    for above, below, (surface, (left, right, low, high)) in zip(axes[:3], axes[3:], windows.items(), strict=True):
        x, y = np.meshgrid(np.linspace(left, right, 200), np.linspace(low, high, 200))
        heights = SURFACES[surface](np.stack([x, y], axis=-1))
        levels = np.quantile(heights, np.linspace(0.02, 0.95, 14))
        above.contour(x, y, heights, levels=levels, colors="0.8", linewidths=0.8)
        for number, row in enumerate(result["rows"]):
            path = result["curves"][row["optimizer"], surface]
            path = path[: math.ceil(1.1 * row[surface]["steps"]) + 1]
            above.plot(path[:, 0], path[:, 1], f"C{number}.-", linewidth=1, markersize=2.5)
            left_over = SURFACES[surface](path) - LOWEST[surface]
            label = f"{row['optimizer']}, rate {row[surface]['rate']:.3f}"
            below.semilogy(np.maximum(left_over / left_over[0], NEAR / 5), f"C{number}", linewidth=1, label=label)
        above.plot(*path[0], "k*", markersize=9)
        above.set(xlim=(left, right), ylim=(low, high), title=surface, xlabel="x", ylabel="y")
        below.axhline(NEAR, color="black", linewidth=0.8)
        below.set(xlabel="step", ylabel="share of the way down that is left")
        below.legend(fontsize=7, frameon=False)
    return figure


if __name__ == "__main__":
    run(__file__, __doc__, measure, table, draw, seeds=5)
