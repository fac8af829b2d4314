"""Forecasting: how do series go on? Many-to-many: the next steps of one or many series from the last ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loom import App, Data, Metrics, Spec, main
from loom import forecasts as measuring
from loom.config import Schedule, split_names
from loom.data import series
from loom.data.series import CALENDAR, FORECAST, HISTORY, SeriesConfig, load_series
from loom.data.tables import column_kind
from loom.forecasts import NORM, SHIFT, Scores
from loom.lazy import keras, layers
from loom.run import fit as train

if TYPE_CHECKING:
    import pandas as pd
    from keras_tuner import HyperParameters

    from loom.app import Answer
    from loom.run import Run
    from loom.trained import Trained

ASKED = 4
"""Series whose forecasts a saved model has to repeat."""


@dataclass(frozen=True)
class Config(SeriesConfig):
    """Settings of `loom train forecasting`."""

    model: Literal["linear", "elman", "lstm", "gru", "echo_state", "encoder_decoder", "transformer"] = "linear"
    """What reads the past: one matrix, recurrent layers, a reservoir, a decoder with attention, or blocks."""
    mixed: bool = False
    """Forecast all targets together from all, instead of each from its own past with the same weights for all."""
    instance_norm: bool = True
    """Take level and spread out of each window, and put them back into the forecast."""
    loss: Literal["mse", "mae", "huber"] = "mse"
    """Loss of forecasts of one number."""
    quantiles: str = ""
    """Forecast these quantiles, 0.5 among them: `0.1,0.5,0.9` (default: one number)."""
    calibrate: bool = True
    """Shift quantiles after training so that each has its share of the validation part below it."""
    patch_length: int = 16
    """Steps that all models but the linear one read at a time (1: one by one)."""
    patch_stride: int = 8
    """Steps from the beginning of such a patch to the next."""
    units: int = 64
    """Width of the layers, or of the reservoir."""
    depth: int = 1
    """Recurrent layers or transformer blocks on top of each other."""
    heads: int = 4
    """Heads of a transformer's attention."""
    feed_forward_units: int = 128
    """Width of a transformer block's hidden layer."""
    dropout: float = 0.1
    """Share of the values that is dropped in training (not of linear)."""
    spectral_radius: float = 0.95
    """Of the reservoir (echo_state)."""
    leak: float = 0.5
    """Share of the reservoir's state that a step replaces (echo_state)."""
    epochs: int = 15
    batch_size: int = 32
    learning_rate: float = 0.003
    schedule: Schedule = "cosine"
    jit: Literal["auto", "on", "off"] = "off"

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        super().__post_init__()
        self.require("regularization", self.regularization == "none", "is not used here; --dropout is")
        for name in ("patch_length", "patch_stride", "units", "depth", "heads", "feed_forward_units"):
            self.require(name, getattr(self, name) >= 1, "must be at least 1")
        self.require("patch_stride", self.patch_stride <= self.patch_length, "must be at most --patch-length")
        self.require("dropout", 0 <= self.dropout < 1, "must be at least 0 and below 1")
        self.require("spectral_radius", self.spectral_radius > 0, "must be greater than 0")
        self.require("leak", 0 < self.leak <= 1, "must be above 0 and at most 1")
        if self.model == "transformer":
            self.require("units", self.units % self.heads == 0, f"must be a multiple of --heads {self.heads}")
        numbers = split_names(self.quantiles)
        usable = not numbers or (column_kind(numbers) == "number" and 0 < min(self.levels) <= max(self.levels) < 1)
        usable = usable and (not numbers or 0.5 in self.levels) and len(set(self.levels)) == len(numbers)
        self.require("quantiles", usable, "must be different numbers between 0 and 1, 0.5 among them")

    @property
    def levels(self) -> tuple[float, ...]:
        """The quantiles, ascending; none for a forecast of one number."""
        return tuple(sorted(map(float, split_names(self.quantiles))))


def load(config: Config) -> Data:
    """Windows of the series, in three parts one after the other, as standard scores."""
    return load_series(config)


def preprocess(config: Config, spec: Spec) -> keras.Model:
    """The windows, as they are: `loom.data.series` makes them of many rows."""
    history = keras.Input((config.look_back, _columns(spec)), name=HISTORY)
    return keras.Model({HISTORY: history}, {HISTORY: keras.layers.Identity()(history)})


def _columns(spec: Spec) -> int:
    return sum(field.kind == "number" for field in spec.inputs)


def build(config: Config, spec: Spec) -> keras.Model:
    """Windows (batch, look-back, columns) to forecasts (batch, horizon, targets), quantiles in a fourth axis."""
    targets, outputs = len(spec.targets), max(1, len(config.levels))
    history = keras.Input((config.look_back, _columns(spec)), name=HISTORY)
    inputs, past, others, statistics = {HISTORY: history}, history[..., :targets], [], None
    if _columns(spec) > targets:
        others.append(history[..., targets:])
    if config.instance_norm:
        norm = layers.ReversibleInstanceNorm(name=NORM)
        past, statistics = norm(past)
    if config.calendar:
        features = series.Clock.of(spec.inputs[0]).calendar(np.zeros(1)).shape[1]
        calendar = inputs[CALENDAR] = keras.Input((config.look_back + config.horizon, features), name=CALENDAR)
        others.append(calendar[:, : config.look_back])
    if not config.mixed:  # each target becomes an example of its own
        past = keras.ops.reshape(keras.ops.transpose(past, (0, 2, 1)), (-1, config.look_back, 1))
        others = [keras.ops.repeat(each, targets, axis=0) for each in others]
    sequence = keras.layers.Concatenate()([past, *others]) if others else past
    forecast = _network(config, sequence, targets * outputs if config.mixed else outputs)
    if config.mixed:
        forecast = keras.ops.reshape(forecast, (-1, config.horizon, targets, outputs))
    else:
        forecast = keras.ops.reshape(forecast, (-1, targets, config.horizon, outputs))
        forecast = keras.ops.transpose(forecast, (0, 2, 1, 3))
    if config.calendar:
        hidden = keras.layers.Dense(config.units, "relu", name="calendar_hidden")(calendar[:, config.look_back :])
        effect = keras.layers.Dense(targets * outputs, dtype="float32", name="calendar_effect")(hidden)
        forecast = forecast + keras.ops.reshape(effect, (-1, config.horizon, targets, outputs))
    if not config.levels:
        forecast = forecast[..., 0]
    if statistics is not None:
        forecast = norm(forecast, statistics)
    if config.levels:
        forecast = layers.QuantileShift(name=SHIFT)(forecast, None if statistics is None else statistics[1])
    return keras.Model(inputs, {FORECAST: keras.layers.Activation("linear", dtype="float32", name=FORECAST)(forecast)})


def _network(config: Config, sequence: keras.KerasTensor, width: int) -> keras.KerasTensor:
    """A sequence (batch, time, features) to what follows it, (batch, horizon, width)."""
    if config.model == "linear":
        return _head(config, keras.layers.Flatten()(sequence), width)
    patches = layers.Patches(config.patch_length, config.patch_stride)(sequence)
    if config.model == "transformer":
        return _head(config, keras.layers.Flatten()(_transformed(config, patches)), width)
    if config.model == "encoder_decoder":
        return _decoded(config, patches, width)
    if config.model == "echo_state":
        state = layers.EchoState(
            config.units,
            spectral_radius=config.spectral_radius,
            leak=config.leak,
            input_scale=patches.shape[-1] ** -0.5,  # or wide patches would drive all units to their limits
            seed=config.seed,
            name="reservoir",
        )(patches)
        return _head(config, keras.layers.Concatenate()([state, patches[:, -1]]), width)
    kind = {"elman": layers.Elman, "lstm": layers.LSTM, "gru": layers.GRU}[config.model]
    for number in range(1, config.depth + 1):
        patches = kind(config.units, return_sequences=number < config.depth, name=f"recurrent_{number}")(patches)
        patches = keras.layers.Dropout(config.dropout)(patches)
    return _head(config, patches, width)


def _head(config: Config, vector: keras.KerasTensor, width: int) -> keras.KerasTensor:
    """All steps at once from one vector."""
    start = "zeros" if config.model == "linear" else "glorot_uniform"  # a linear model has no symmetry to break
    steps = keras.layers.Dense(config.horizon * width, kernel_initializer=start, dtype="float32", name="output")(vector)
    return keras.layers.Reshape((config.horizon, width))(steps)


def _transformed(config: Config, patches: keras.KerasTensor) -> keras.KerasTensor:
    """Patches as tokens of an encoder (Nie et al., 2023)."""
    tokens = keras.layers.Dense(config.units, name="embedding")(patches)
    tokens = layers.LearnedPositions(patches.shape[1], name="positions")(tokens)
    tokens = keras.layers.Dropout(config.dropout)(tokens)
    for number in range(1, config.depth + 1):
        tokens = layers.TransformerEncoderBlock(
            config.heads,
            config.feed_forward_units,
            activation="gelu",
            dropout=config.dropout,
            seed=config.seed + number,
            max_length=patches.shape[1],
            name=f"block_{number}",
        )(tokens)
    return keras.layers.Dropout(config.dropout)(layers.LayerNorm(name="norm")(tokens))


def _decoded(config: Config, patches: keras.KerasTensor, width: int) -> keras.KerasTensor:
    """A decoder that begins in the encoder's last state and attends to its states at every step of the forecast."""
    states, last = layers.GRU(config.units, return_sequences=True, return_state=True, name="encoder")(patches)
    steps = keras.ops.repeat(keras.ops.expand_dims(last, 1), config.horizon, axis=1)
    steps = layers.LearnedPositions(config.horizon, name="positions")(steps)
    decoded = layers.GRU(config.units, return_sequences=True, name="decoder")(steps, last)
    context = layers.MultiplicativeAttention(name="attention")(decoded, states)
    decoded = keras.layers.Dropout(config.dropout)(keras.layers.Concatenate()([decoded, context]))
    decoded = keras.layers.Dense(config.units, "tanh", name="hidden")(decoded)
    return keras.layers.Dense(width, dtype="float32", name="output")(decoded)


def space(hp: HyperParameters) -> dict[str, Any]:
    """What a search varies unless told otherwise."""
    return {
        "model": hp.Choice("model", ["linear", "gru", "lstm", "encoder_decoder", "transformer"]),
        "units": hp.Choice("units", [16, 32, 64, 128]),
        "depth": hp.Int("depth", 1, 3),
        "dropout": hp.Float("dropout", 0.0, 0.4, step=0.1),
        "look_back": hp.Choice("look_back", [96, 168, 336]),
        "learning_rate": hp.Float("learning_rate", 2e-4, 1e-2, sampling="log"),
    }


def loss(config: Config, spec: Spec) -> dict[str, Any]:
    """Keras' loss, or of quantiles the pinball loss; what is missing costs nothing."""
    return {FORECAST: layers.ForecastLoss(config.loss, config.levels)}


def fit(run: Run) -> None:
    """Train, and then calibrate quantiles."""
    train(run)
    config: Any = run.config
    if config.levels and config.calibrate:
        measuring.calibrate(run, config.levels)


def scores(run: Run) -> Scores:
    """Forecasts from every window of the test part."""
    config: Any = run.config
    return Scores.of(run.data.test, run.test_outputs()[FORECAST], config.levels)


def test(run: Run, measured: Metrics) -> Metrics:
    """Errors over all windows of the test part, and the coverage of quantiles."""
    config: Any = run.config
    return scores(run).metrics(run.data.spec, measuring.series_of(run.data.test, run.data.spec), config.levels)


def baselines(config: Config, data: Data) -> dict[str, Metrics]:
    """Last value, last season, drift, and ridge regression on the window."""
    names = measuring.series_of(data.test, data.spec)
    found = measuring.scores_of_simple_methods(config, data)
    return {name: each.metrics(data.spec, names) for name, each in found.items()}


def predict(trained: Trained, frame: pd.DataFrame) -> Sequence[Answer]:
    """The next steps after the last rows of a table, for each series in it."""
    config: Any = trained.config
    histories = series.latest(frame, trained.spec, config)
    outputs = trained.outputs_of(series.inputs_of(histories, trained.spec, config))[FORECAST]
    return measuring.answers(histories, outputs, trained.spec, config.levels)


def ask(run: Run) -> pd.DataFrame:
    """Rows of the last test windows of some series."""
    config: Any = run.config
    return series.rows_before(run.data.test, run.data.spec, config, ASKED)


def report(run: Run) -> None:
    """Forecasts beside what came, and errors by step, by target and by quantile."""
    from loom.figures_series import draw_error_by_step, draw_forecasts

    config: Any = run.config
    found, simple = scores(run), measuring.scores_of_simple_methods(config, run.data)
    run.figure("forecasts", draw_forecasts(run.data.test, run.data.spec, config, found, config.levels))
    errors = {config.model: found.by_step(), **{name: each.by_step() for name, each in simple.items()}}
    run.figure("error_by_horizon", draw_error_by_step(errors))
    table: dict[str, Any] = {"by_step": errors, "by_target": found.by_target(run.data.spec)}
    if config.levels:
        table["below_quantile"] = dict(zip(map(str, config.levels), found.below(), strict=True))
    run.table("errors", table)


APP = App(
    "forecasting",
    Config,
    load,
    preprocess,
    build,
    space,
    baselines,
    report,
    predict,
    loss=loss,
    objective="val_loss",
    fit=fit,
    test=test,
    ask=ask,
    no_export="a forecast is made from many rows of a table, which the other formats do not read together; use "
    "loom predict or serve",
)

if __name__ == "__main__":
    main(APP)
