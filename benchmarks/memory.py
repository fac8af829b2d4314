"""Long memory: the adding problem over 200 steps, the copying problem over 50, and Mackey-Glass 84 steps ahead.

python benchmarks/memory.py [--quick] [--json FILE] [--figure FILE] [--only TEXT]

Adding and copying: fresh random sequences in every step, until a validation batch says that the problem is solved; then
tested on other sequences. Mackey-Glass: an echo state network with a linear readout, which goes on by itself from where
it heard the series last. `--only` trains the networks of adding and copying whose names contain a text again, and takes
everything else from the file. `--quick` adds over 50 steps with one network, and takes one reservoir as given.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from layers.recurrent import GRU, LSTM, EchoState, Elman
from loom.data.sample_series import mackey_glass

TESTED, CHECK_EVERY = 2000, 100

RESERVOIR = {"units": 400, "connectivity": 0.05, "bias_scale": 0.2}
CHOICES = {"spectral_radius": (0.8, 0.95, 1.1), "leak": (0.3, 0.5, 1.0), "input_scale": (0.5, 1.0)}
GIVEN = {"spectral_radius": 0.95, "leak": 0.5, "input_scale": 1.0}
RIDGES = (1e-12, 1e-10, 1e-8, 1e-6)
RESERVOIRS = 5
AHEAD = 84
WASHOUT, TRAIN_END, VALIDATION_END, SERIES = 400, 3000, 4500, 10000
"""Steps of the series: what is fitted lies before `TRAIN_END`, what is chosen by before `VALIDATION_END`."""


@dataclass(frozen=True)
class Training:
    """How a problem is trained.

    Attributes:
        units: Of the networks.
        batch_size: Sequences in a step.
        half_life: Steps in which the learning rate falls to a half.
        limit: Most steps.
    """

    units: int
    batch_size: int
    half_life: int
    limit: int


class Adding:
    """The sum of the two marked numbers of a sequence (Hochreiter and Schmidhuber, 1997).

    Args:
        steps: Length of a sequence. One marker is in its first half and one in the second.
    """

    measure, baseline = "mean squared error", 1 / 6  # the variance of a sum of two uniform numbers
    loss, training = "mean_squared_error", Training(units=64, batch_size=64, half_life=1500, limit=5000)

    def __init__(self, steps: int):
        self.steps = steps
        self.name = f"adding, T = {steps}"

    def batch(self, generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Sequences `(count, steps, 2)` of numbers and markers, and sums `(count, 1)`."""
        numbers, markers = generator.random((count, self.steps)), np.zeros((count, self.steps))
        half = self.steps // 2
        markers[np.arange(count), generator.integers(0, half, count)] = 1
        markers[np.arange(count), generator.integers(half, self.steps, count)] = 1
        sums = np.sum(numbers * markers, axis=1, keepdims=True)
        return np.stack([numbers, markers], axis=-1).astype("float32"), sums.astype("float32")

    def model(self, layer: type, options: dict[str, Any]) -> keras.Model:
        """The layer with a linear readout of its last state."""
        sequence = keras.Input((self.steps, 2))
        return keras.Model(sequence, keras.layers.Dense(1)(layer(self.training.units, **options)(sequence)))

    def score(self, predictions: np.ndarray, targets: np.ndarray) -> float:
        """Mean squared error."""
        return float(np.mean((predictions - targets) ** 2))

    def solved(self, score: float, margin: float = 0.0) -> bool:
        """Whether a score says that the problem is solved, by a margin of this share of the limit."""
        return score < 0.01 * (1 - margin)

    def last_losses(self, predictions: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        """Losses of the last step, one per sequence."""
        return tf.square(predictions - targets)[:, 0]


class Copying:
    """The first ten symbols of a sequence, at its end (Hochreiter and Schmidhuber, 1997).

    Args:
        delay: Steps between the last of the symbols and the first of their recall; the last of them gives the signal.
    """

    measure, baseline = "recall", 1 / 8
    symbols, length = 8, 10
    training = Training(units=128, batch_size=128, half_life=2500, limit=10000)

    def __init__(self, delay: int):
        self.delay = delay
        self.steps = delay + 2 * self.length
        self.name = f"copying, delay {delay}"
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def batch(self, generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Sequences `(count, steps, 10)` of symbols, blanks and the signal, one-hot, and symbols `(count, 10)`."""
        symbols = generator.integers(0, self.symbols, (count, self.length))
        sequence = np.full((count, self.steps), self.symbols)
        sequence[:, : self.length] = symbols
        sequence[:, self.length + self.delay - 1] = self.symbols + 1
        return np.eye(self.symbols + 2, dtype="float32")[sequence], symbols

    def model(self, layer: type, options: dict[str, Any]) -> keras.Model:
        """The layer with a linear readout of its last ten states."""
        sequence = keras.Input((self.steps, self.symbols + 2))
        states = layer(self.training.units, return_sequences=True, **options)(sequence)
        return keras.Model(sequence, keras.layers.Dense(self.symbols)(states[:, -self.length :]))

    def score(self, predictions: np.ndarray, targets: np.ndarray) -> float:
        """Share of the symbols that are right."""
        return float(np.mean(np.argmax(predictions, axis=-1) == targets))

    def solved(self, score: float, margin: float = 0.0) -> bool:
        """Whether a score says that the problem is solved, by a margin of this share of the limit."""
        return score >= 1 - 0.01 * (1 - margin)

    def last_losses(self, predictions: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        """Losses of the last step, one per sequence."""
        return tf.nn.sparse_softmax_cross_entropy_with_logits(targets[:, -1], predictions[:, -1])


@dataclass(frozen=True)
class Network:
    """A recurrent layer and its options.

    Attributes:
        learning_rates: To try one after the other until the problem is solved.
        bounded: Whether training ends after as many steps as the slowest network before needed to solve the problem.
    """

    name: str
    layer: type
    options: dict[str, Any] = field(default_factory=dict)
    learning_rates: Sequence[float] = ()
    bounded: bool = False


def main() -> None:
    """Measure, print Markdown tables, and write JSON and the figure."""
    options = _options()
    earlier = json.loads(options.json.read_text("utf-8")) if options.only else {"rows": []}
    rows: list[dict[str, Any]] = []
    print("| problem | network | learning rate | steps | seconds | test | baseline |\n|---|---|---|---|---|---|---|")
    for problem, networks in _experiments(options.quick):
        for row in long_memory(problem, networks, options.only, earlier["rows"]):
            rows.append(row)
            print(line(row), flush=True)
    print("\n| Mackey-Glass, 84 steps ahead | NRMSE, test |\n|---|---|")
    forecast = earlier["mackey_glass"] if options.only else forecasts(options.quick)
    print(*map(forecast_line, forecast["rows"]), sep="\n")
    print(f"\nTwo initial states are within 1e-6 of each other after {forecast['steps_to_forget']} steps.")
    result = {
        "rows": rows,
        "mackey_glass": forecast,
        "versions": {package: version(package) for package in ("keras", "tensorflow", "numpy")},
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.figure:
        draw(rows, options.figure)


def line(row: dict[str, Any]) -> str:
    """A row of the table of adding and copying."""
    steps = f"{row['steps']}" if row["solved"] else f"not in {row['steps']}"
    cells = (row["problem"], row["case"], f"{row['learning_rate']:g}", steps, f"{row['seconds']:.0f}")
    return f"| {' | '.join(cells)} | {row['test']:.4f} | {row['baseline']:.4f} |"


def forecast_line(row: dict[str, Any]) -> str:
    """A row of the table of Mackey-Glass."""
    return f"| {row['case']} | {row['error']:.5f} |"


def long_memory(
    problem: Adding | Copying, networks: Sequence[Network], only: str = "", earlier: Sequence[dict[str, Any]] = ()
) -> Iterator[dict[str, Any]]:
    """Trains the networks on a problem, one after the other, and yields the best try of each."""
    slowest = 0
    known = {row["case"]: row for row in earlier if row["problem"] == problem.name}
    for network in networks:
        if network.name in known and only not in network.name:
            yield known[network.name]
            slowest = max(slowest, known[network.name]["steps"]) if known[network.name]["solved"] else slowest
            continue
        limit = slowest if network.bounded and slowest else problem.training.limit
        tries: list[dict[str, Any]] = []
        for learning_rate in network.learning_rates:
            tries.append(train(problem, network, learning_rate, limit))
            if tries[-1]["solved"]:
                slowest = max(slowest, tries[-1]["steps"])
                break
        best = sorted(tries, key=lambda each: each["test"], reverse=problem.measure == "recall")[0]
        tried = [{name: each[name] for name in ("learning_rate", "steps", "seconds", "test")} for each in tries]
        yield {**best, "tried": tried}


def train(problem: Adding | Copying, network: Network, learning_rate: float, limit: int) -> dict[str, Any]:
    """Trains one network until a validation batch is solved with something to spare, and tests it."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    generator, *others = (np.random.default_rng(seed) for seed in range(3))
    validation, test = (problem.batch(each, TESTED) for each in others)
    model = problem.model(network.layer, network.options)
    rates = keras.optimizers.schedules.ExponentialDecay(learning_rate, problem.training.half_life, 0.5)
    optimizer = keras.optimizers.Adam(rates, global_clipnorm=1.0)
    model.compile(optimizer, problem.loss, jit_compile=False)  # a plain graph; the layers compile their loops
    gradients = {"initial": gradient_norms(problem, model)}
    start, cpu_start, step = time.perf_counter(), time.process_time(), 0
    while step < limit:
        step += 1
        model.train_on_batch(*problem.batch(generator, problem.training.batch_size))
        if step % CHECK_EVERY == 0 and problem.solved(_score(problem, model, validation), margin=0.1):
            break
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    score = _score(problem, model, test)
    gradients["trained"] = gradient_norms(problem, model)
    return {
        "problem": problem.name,
        "case": network.name,
        "units": problem.training.units,
        "learning_rate": learning_rate,
        "steps": step,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "solved": problem.solved(score),
        "measure": problem.measure,
        "test": score,
        "baseline": problem.baseline,
        "gradients": gradients,
    }


def gradient_norms(problem: Adding | Copying, model: keras.Model) -> dict[str, list[float]]:
    """Norm of the gradient of the last step's loss by the input some steps before it, averaged over sequences."""

    @tf.function
    def norms(sequence: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(sequence)
            losses = problem.last_losses(model(sequence, training=True), targets)
        return tf.reduce_mean(tf.norm(tape.gradient(losses, sequence), axis=-1), axis=0)

    sequence, targets = problem.batch(np.random.default_rng(3), 128)
    by_distance = norms(tf.constant(sequence), tf.constant(targets)).numpy()[::-1]
    distances = sorted({*range(0, problem.steps, 5), problem.steps - 1})
    return {"distance": distances, "norm": [float(by_distance[distance]) for distance in distances]}


class EchoForecast:
    """An echo state network that heard a series, with a linear readout of state and value.

    Args:
        series: What it hears.
        choice: Options of the reservoir beside `RESERVOIR`.
        seed: Seed of the reservoir.
    """

    def __init__(self, series: np.ndarray, choice: dict[str, float], seed: int):
        self.layer = EchoState(**RESERVOIR, **choice, seed=seed, return_sequences=True, dtype="float64")
        self.states = tf.function(self.layer)(tf.constant(series[None, :, None]))[0].numpy()
        self.features = self._features(self.states, series)
        self.series = series

    def ahead(self, weights: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """The values `AHEAD` steps after some, where each is read off the state that heard the one before."""
        state, values = self.states[starts], self.series[starts]
        for _ in range(AHEAD):
            values = self._features(state, values) @ weights
            state, _ = self.layer.step(values[:, None], state)
        return values

    def steps_to_forget(self, within: float = 1e-6) -> int:
        """Steps until two random initial states, driven by the same series, are and remain close to each other."""
        first = np.random.default_rng(0).uniform(-1, 1, (2, self.layer.units))
        series = np.repeat(self.series[None, :, None], 2, axis=0)
        states = tf.function(self.layer)(tf.constant(series), initial_state=tf.constant(first)).numpy()
        distances = np.linalg.norm(states[0] - states[1], axis=-1)
        return int(np.flatnonzero(np.append(np.inf, distances) >= within)[-1]) + 1

    @staticmethod
    def _features(states: Any, values: np.ndarray) -> np.ndarray:
        return np.column_stack([states, values, np.ones(len(values))])


class LinearForecast:
    """The next value as a linear function of the last ones.

    Args:
        series: What it reads.
        lags: How many of the last values it looks at.
    """

    def __init__(self, series: np.ndarray, lags: int):
        before = np.append(np.zeros(lags - 1), series)
        self.features = self._features(np.lib.stride_tricks.sliding_window_view(before, lags))

    def ahead(self, weights: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """The values `AHEAD` steps after some, where each follows from those before it, own ones included."""
        features = self.features[starts]
        for _ in range(AHEAD):
            values = features @ weights
            features = self._features(np.column_stack([features[:, 1:-1], values]))
        return values

    @staticmethod
    def _features(values: np.ndarray) -> np.ndarray:
        return np.column_stack([values, np.ones(len(values))])


def forecasts(quick: bool = False) -> dict[str, Any]:
    """Errors of the forecasts of Mackey-Glass in free run, and what was chosen on its validation part."""
    start = time.perf_counter()
    series = mackey_glass(SERIES) - 1
    validation = np.linspace(TRAIN_END, VALIDATION_END - AHEAD - 1, 50).astype(int)
    test = np.arange(VALIDATION_END, SERIES - AHEAD, AHEAD)
    choices = [GIVEN] if quick else [dict(zip(CHOICES, each, strict=True)) for each in product(*CHOICES.values())]
    tried = [
        {**choice, "ridge": ridge, "error": _error(forecast.ahead(weights, validation), series, validation)}
        for choice in choices
        for forecast in [EchoForecast(series, choice, seed=0)]
        for ridge, weights in _readouts(forecast.features, series).items()
    ]
    best = min(tried, key=lambda each: each["error"])
    choice = {name: best[name] for name in CHOICES}
    networks = [EchoForecast(series, choice, seed) for seed in range(1 if quick else RESERVOIRS)]
    errors = [
        _error(network.ahead(_readouts(network.features, series)[best["ridge"]], test), series, test)
        for network in networks
    ]
    linear = LinearForecast(series, RESERVOIR["units"])
    readouts = _readouts(linear.features, series).values()
    weights = min(readouts, key=lambda each: _error(linear.ahead(each, validation), series, validation))
    of_linear, of_last_value = linear.ahead(weights, test), series[test]
    rows = [
        {"case": f"echo state network, mean of {len(errors)}", "error": float(np.mean(errors))},
        {"case": f"echo state network, worst of {len(errors)}", "error": max(errors)},
        {"case": f"linear, {RESERVOIR['units']} lags", "error": _error(of_linear, series, test)},
        {"case": "last value", "error": _error(of_last_value, series, test)},
    ]
    return {
        "rows": rows,
        "chosen": {**RESERVOIR, **choice, "ridge": best["ridge"]},
        "validation_error": best["error"],
        "tried": len(tried),
        "windows": len(test),
        "steps_to_forget": max(network.steps_to_forget() for network in networks),
        "seconds": time.perf_counter() - start,
    }


def _readouts(features: np.ndarray, series: np.ndarray) -> dict[float, np.ndarray]:
    """Ridge regressions of the next value, one for each of `RIDGES`."""
    left, singular, right = np.linalg.svd(features[WASHOUT : TRAIN_END - 1], full_matrices=False)
    targets = left.T @ series[WASHOUT + 1 : TRAIN_END]
    return {ridge: right.T @ (targets * singular / (singular**2 + ridge)) for ridge in RIDGES}


def _error(forecast: np.ndarray, series: np.ndarray, starts: np.ndarray) -> float:
    """Root mean squared error, over the standard deviation of the series."""
    return float(np.sqrt(np.mean((forecast - series[starts + AHEAD]) ** 2)) / np.std(series))


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws how the gradient changes with the distance, before and after training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    problems = list(dict.fromkeys(row["problem"] for row in rows))
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, grid = pyplot.subplots(
        len(problems), 2, figsize=(11, 4 * len(problems)), sharex="row", sharey="row", squeeze=False
    )
    for axes, (problem, state) in zip(grid.flat, product(problems, ("initial", "trained")), strict=True):
        for row in rows:
            if row["problem"] == problem:
                measured = row["gradients"][state]
                color = f"C{cases.index(row['case'])}"
                axes.semilogy(measured["distance"], measured["norm"], label=row["case"], color=color)
        axes.set_title(f"{problem}: {'before' if state == 'initial' else 'after'} training")
        axes.set_xlabel("distance from the last step (steps)")
        axes.set_ylabel("norm of d loss of the last step / d input")
        axes.grid(alpha=0.3)
    for axes in grid[:, 1]:
        axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _experiments(quick: bool) -> list[tuple[Adding | Copying, list[Network]]]:
    if quick:
        return [(Adding(50), [Network("LSTM, chrono", LSTM, {"longest_lag": 50}, (0.01,))])]
    identity = {
        "activation": "relu",
        "recurrent_initializer": "identity",
        "kernel_initializer": keras.initializers.RandomNormal(stddev=0.03, seed=0),
    }
    irnn = Network("Elman, ReLU, identity", Elman, identity, (0.0003,))
    # A matrix whose singular values are one keeps gradients alive for a while; most others do not.
    elmans = [
        Network(f"Elman, tanh, {initializer}", Elman, {"recurrent_initializer": name}, (0.01, 0.001), bounded=True)
        for initializer, name in (("Glorot", "glorot_uniform"), ("orthogonal", "orthogonal"))
    ]
    return [
        (Adding(200), [*_gated(0.01, longest_lag=200), irnn, *_gated(0.01, bounded=True), *elmans]),
        (Copying(50), [*_gated(0.01, longest_lag=60), *_gated(0.01, bounded=True), *elmans]),
    ]


def _gated(learning_rate: float, bounded: bool = False, **options: int) -> list[Network]:
    suffix = ", chrono" if options else ""
    return [
        Network(f"{kind.__name__}{suffix}", kind, options, (learning_rate,), bounded=bounded) for kind in (LSTM, GRU)
    ]


def _score(problem: Adding | Copying, model: keras.Model, batch: tuple[np.ndarray, np.ndarray]) -> float:
    sequence, targets = batch
    return problem.score(model.predict_on_batch(sequence), targets)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one network over 50 steps, and one reservoir")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--figure", type=Path, help="file to draw the gradients to")
    parser.add_argument("--only", default="", help="train only networks whose name contains this; needs --json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
