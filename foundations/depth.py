"""Initializers and activations against depth: how signals fade or grow forwards, and gradients backwards.

python foundations/depth.py [--seeds N] [--figure FILE] [--json FILE]

A network of thirty dense layers, before any training. Random examples with mean 0 and variance 1 go in, random
gradients of that size come back from the end. Measured after every layer: the standard deviation of a unit's output
over the examples, which is what is left of how they differ, and the size of the gradient by that output. Where the
gradient vanishes on its way back, the first layers do not learn, and where it explodes, they jump. The second table:
what helps bad starts; the third: what each activation is like.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from foundations.comparison import Result, markdown, run
from loom.lazy import keras, tf
from loom.report import new_figure
from loom.runtime import make_activation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTH, UNITS, EXAMPLES = 30, 128, 128
VANISHED, EXPLODED = 1e-3, 1e3
"""Gradients at the first layer, in terms of that at the last."""
INITIALIZERS: dict[str, Callable[[int], Any]] = {
    "zeros": lambda seed: keras.initializers.Zeros(),
    "constant": lambda seed: keras.initializers.Constant(0.1),
    "small": lambda seed: keras.initializers.RandomNormal(stddev=0.01, seed=seed),
    "large": lambda seed: keras.initializers.RandomNormal(stddev=1.0, seed=seed),
    "Glorot": lambda seed: keras.initializers.GlorotNormal(seed=seed),
    "He": lambda seed: keras.initializers.HeNormal(seed=seed),
    "LeCun": lambda seed: keras.initializers.LecunNormal(seed=seed),
}
ACTIVATIONS = ("sigmoid", "tanh", "relu", "selu")
REMEDIES = (("small", "relu"), ("large", "relu"), ("large", "tanh"), ("Glorot", "sigmoid"))
"""Starts that go wrong, to be helped."""
PROPERTIES = ("sigmoid", "tanh", "relu", "leaky_relu", "elu", "selu")


def network(function: str, batch_norm: bool = False, residual: bool = False) -> keras.Model:
    """Dense layers of one width, as a model of what each of them puts out."""
    vector = first = keras.Input((UNITS,))
    outputs = []
    for number in range(DEPTH):
        before = vector
        vector = keras.layers.Dense(UNITS, name=f"dense_{number}")(vector)
        if batch_norm:
            vector = keras.layers.BatchNormalization()(vector)
        vector = make_activation(function)(vector)
        if residual:
            vector = keras.layers.Add()([before, vector])
        outputs.append(vector)
    return keras.Model(first, outputs)


def start(model: keras.Model, initializer: str, seed: int) -> None:
    """Draw all kernels anew."""
    for number in range(DEPTH):
        kernel = model.get_layer(f"dense_{number}").kernel
        kernel.assign(INITIALIZERS[initializer](1000 * seed + number)(kernel.shape))


def sizes(model: keras.Model, seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Standard deviation of each layer's units over examples, root mean square of the gradient by its output, units.

    Units are those of the last layer that put out something of their own.
    """
    generator = np.random.default_rng(seed)
    examples = generator.normal(size=(EXAMPLES, UNITS)).astype("float32")
    upstream = generator.normal(size=(EXAMPLES, UNITS)).astype("float32")
    with tf.GradientTape() as tape:
        outputs = model(examples, training=True)
    gradients = tape.gradient(outputs[-1], outputs, output_gradients=tf.constant(upstream))
    with np.errstate(over="ignore", invalid="ignore"):  # what explodes is infinite, and then no number
        signal = [np.sqrt(np.var(np.asarray(output, "float64"), axis=0).mean()) for output in outputs]
        gradient = [np.sqrt(np.mean(np.square(np.asarray(each, "float64")))) for each in gradients]
    return np.array(signal), np.array(gradient), len(np.unique(outputs[-1].numpy(), axis=1).T)


def measure(seeds: int) -> Result:
    """Sizes for every initializer and activation, for what helps, and properties of activations."""
    rows, curves = [], {}
    for function in ACTIVATIONS:
        model = network(function)
        for initializer in INITIALIZERS:
            row, curves[function, initializer] = _measured(model, initializer, seeds)
            rows.append({"activation": function, **row})
    remedies = [
        {"activation": function, "remedy": remedy.replace("_", " "), **_measured(model, initializer, seeds)[0]}
        for remedy in ("batch_norm", "residual")
        for initializer, function in REMEDIES
        for model in [network(function, **{remedy: True})]
    ]
    properties = [_properties(name) for name in PROPERTIES]
    return {"rows": rows, "remedies": remedies, "properties": properties, "seeds": seeds, "curves": curves}


def _measured(model: keras.Model, initializer: str, seeds: int) -> tuple[Result, np.ndarray]:
    """Medians over the seeds: a row of the table, and signal and gradient by layer."""
    found = []
    for seed in range(seeds):
        start(model, initializer, seed)
        found.append(sizes(model, seed))
    signal, gradient, units = (np.median([each[part] for each in found], axis=0) for part in range(3))
    row = {
        "initializer": initializer,
        "signal": float(signal[-1]),
        "gradient": float(gradient[0]),
        "units": float(units),
    }
    return row, np.array([signal, gradient])


def _properties(name: str) -> Result:
    """Of an activation, for normal inputs: mean output, slope far out on both sides, and time beside that of ReLU."""
    function, points = make_activation(name), tf.constant([-5.0, 5.0])
    with tf.GradientTape() as tape:
        tape.watch(points)
        values = function(points)
    low, high = tape.gradient(values, points).numpy()
    normal = np.random.default_rng(0).normal(size=1_000_000).astype("float32")
    mean = float(np.mean(function(normal)))
    return {"activation": name, "mean": mean, "slope_low": float(low), "slope_high": float(high), "time": _time(name)}


def _time(name: str) -> float:
    """Time of a million values, forwards and backwards, in terms of ReLU's; the median of 40 runs in turn."""
    values = tf.random.stateless_normal((1000, 1000), seed=(0, 0))

    def timed(function: keras.layers.Layer) -> Callable[[], float]:
        @tf.function
        def gradient() -> tf.Tensor:
            with tf.GradientTape() as tape:
                tape.watch(values)
                total = tf.reduce_sum(function(values))
            return tape.gradient(total, values)

        def seconds() -> float:
            start = time.process_time()  # of this process alone, whatever else the machine does
            gradient()
            return time.process_time() - start

        seconds()
        return seconds

    own, relu = timed(make_activation(name)), timed(make_activation("relu"))
    return float(np.median([own() / relu() for _ in range(40)]))


def verdict(row: Result) -> str:
    """What the gradient does."""
    if row["units"] <= 1:
        return "all units alike"
    if row["gradient"] < VANISHED:
        return "vanishes"
    return "keeps its size" if row["gradient"] < EXPLODED else "explodes"


def table(result: Result) -> list[str]:
    """Signal at the end and gradient at the beginning, where 1 goes in at either side; then the other tables."""
    lines = []
    for function in ACTIVATIONS:
        rows = [row for row in result["rows"] if row["activation"] == function]
        lines += [_line(row) for row in rows]
    properties = [
        [
            row["activation"],
            f"{row['mean']:.2f}",
            f"{row['slope_low']:.3f}",
            f"{row['slope_high']:.3f}",
            f"{row['time']:.1f}",
        ]
        for row in result["properties"]
    ]
    return [
        *markdown(["activation", "initializer", "signal", "gradient", "so the gradient"], lines),
        "",
        *markdown(
            ["start", "remedy", "signal", "gradient", "so the gradient"], [_remedy(row) for row in result["remedies"]]
        ),
        "",
        *markdown(["activation", "mean output", "slope at -5", "slope at 5", "cost, ReLU = 1"], properties),
    ]


def _line(row: Result) -> list[str]:
    return [row["activation"], row["initializer"], _short(row["signal"]), _short(row["gradient"]), verdict(row)]


def _short(value: float) -> str:
    return f"{value:.2f}" if 0.01 <= value < 100 else f"{value:.0e}" if value else "0"


def _remedy(row: Result) -> list[str]:
    name, initializer, *others = _line(row)
    return [f"{initializer}, {name}", row["remedy"], *others]


def draw(result: Result) -> Figure:
    """Signal and gradient against depth, one column for each activation."""
    figure, axes = new_figure(len(ACTIVATIONS), 3.9, 3.4, rows=2)
    layers = np.arange(1, DEPTH + 1)
    for number, function in enumerate(ACTIVATIONS):
        for part, axis in enumerate((axes[number], axes[number + len(ACTIVATIONS)])):
            for color, initializer in enumerate(INITIALIZERS):
                values = result["curves"][function, initializer][part]
                style = f"C{color}{'--' if initializer == 'LeCun' else '-'}"  # over Glorot's, which is the same here
                axis.semilogy(layers, np.clip(values, 1e-12, 1e12), style, label=initializer, linewidth=1.4)
            axis.set(ylim=(3e-13, 3e12), xlabel="layer")
        axes[number].set_title(function)
    axes[0].set_ylabel("standard deviation of the output")
    axes[len(ACTIVATIONS)].set_ylabel("gradient by the output")
    axes[0].legend(fontsize=7, frameon=False, ncols=2)
    return figure


if __name__ == "__main__":
    run(__file__, __doc__, measure, table, draw, seeds=3)
