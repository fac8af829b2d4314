"""What an application's own functions see of the run they are part of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loom import fonts
from loom.app import App, Metrics, Phase
from loom.config import TrainingConfig
from loom.data.pipeline import Batches, Buckets, Data, Ragged, Split
from loom.lazy import keras
from loom.runtime import compile_model, full_precision, make_optimizer
from loom.trained import Trained

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from loom.app import Evaluate
    from loom.runtime import Runtime

TEST_BATCH = 4096


@dataclass
class Run:
    """A run in progress: `fit` functions train `model`, `report` functions draw what came of it."""

    app: App
    config: TrainingConfig
    data: Data
    runtime: Runtime
    model: keras.Model
    folder: Path
    """Where figures and tables wait to be recorded."""
    callbacks: list[keras.callbacks.Callback] = field(default_factory=list)
    """What `fit` has to pass to Keras: order of the data, early stopping, progress, tracking, checkpoint."""
    initial_epoch: int = 0
    """The first epoch that `fit` has to train."""
    phase: int = 0
    """The phase that this epoch belongs to, an index into `phases`."""
    last_epoch: int = 0
    """The first epoch that no longer belongs to it."""
    is_over: bool = False
    """Whether training ends with the phase, whatever was to follow."""
    history: list[Metrics] = field(default_factory=list)
    """Metrics of each epoch."""
    test_metrics: Metrics = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Choose the lengths that sequences are padded to."""
        self.buckets = Buckets.fit(self.data.train.inputs, self.data.train.targets, self.config.buckets)
        make = self.app.train_batches
        self.train_batches = make(self) if make else self.batches(self.data.train, shuffle=True)

    def batches(self, split: Split, shuffle: bool = False) -> Batches:
        """Batches of one part of the data, padded to one more shape where it has longer sequences than training.

        Those that are shuffled are training batches: they are augmented too.
        """
        seed = self.config.seed if shuffle else None
        augment = self.app.augment(self.config, self.data.spec) if shuffle and self.app.augment else None
        buckets = self.buckets.extended(split.inputs, split.targets, len(split))
        return Batches(split.inputs, split.targets, self.config.batch_size, buckets, seed, augment)

    @cached_property
    def phases(self) -> Sequence[Phase]:
        """What training consists of."""
        whole = Phase("training", self.config.epochs, self.config.learning_rate)
        return self.app.phases(self.config, self.data.spec) if self.app.phases else (whole,)

    @cached_property
    def trained(self) -> Trained:
        """The model, from raw examples to answers; it goes on learning while `model` does."""
        return Trained(self.app, self.config, self.data.spec, self.model)

    def asked(self, count: int) -> pd.DataFrame:
        """Raw examples that a saved model has to answer as this one does: so many, or what the application asks."""
        return self.app.ask(self) if self.app.ask else self.data.test.raw.head(count)

    def test_outputs(self) -> dict[str, np.ndarray]:
        """The model's outputs for the test examples, in their order; computed once."""
        return self._test_outputs

    @cached_property
    def _test_outputs(self) -> dict[str, np.ndarray]:
        return self.trained.outputs_of(self.data.test.inputs)

    def evaluate(self, split: Split, outputs: dict[str, np.ndarray] | None = None) -> Metrics:
        """The application's own metrics of a whole part of the data; none where it has none."""
        if self._evaluate is None:
            return {}
        return self._evaluate(split, self.trained.outputs_of(split.inputs) if outputs is None else outputs)

    @cached_property
    def _evaluate(self) -> Evaluate | None:
        return self.app.evaluate(self.config, self.data) if self.app.evaluate else None

    def figure(self, name: str, figure: Figure) -> None:
        """Keep a figure for the run's report; `name` may be in a folder."""
        path = self.folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        fonts.save(figure, path)

    def table(self, name: str, value: Any) -> None:
        """Keep a JSON value for the run's report."""
        text = json.dumps(value, indent=2, ensure_ascii=False, default=float)
        (self.folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def measure(run: Run) -> Metrics:
    """Loss and metrics on the test examples, and what the application itself measures of its answers."""
    measured = _measure_outputs(run)
    return {**measured, **(run.app.test(run, measured) if run.app.test else {})}


def _measure_outputs(run: Run) -> Metrics:
    """Loss and metrics on the test examples, from the outputs that the report shows: one pass serves both.

    The loss is the data's alone, without the penalties of regularizers. Outputs with values for each step have masks,
    which only the model itself knows: those are tested by the model, as is what has no loss of its outputs. An
    application that measures whole parts says all that there is to say of outputs with a loss, which may depend on what
    meets in a batch.
    """
    of_whole_part = run.evaluate(run.data.test, run.test_outputs()) if run.app.evaluate else {}
    if of_whole_part and run.app.loss is not None:
        return of_whole_part
    if run.app.loss is None or any(None in output.shape[1:] for output in run.model.output.values()):
        losses = run.model.evaluate(run.batches(run.data.test).dataset(), return_dict=True, verbose=0)
        return {**losses, **of_whole_part}
    outputs, resolve = run.test_outputs(), partial(run.app.resolve, config=run.config, spec=run.data.spec)
    with full_precision():
        inputs = {name: keras.Input(values.shape[1:], name=name) for name, values in outputs.items()}
        judge = keras.Model(inputs, {name: keras.layers.Identity()(tensor) for name, tensor in inputs.items()})
        judge.compile(loss=resolve("loss"), metrics=resolve("metrics"), loss_weights=resolve("loss_weights"))
    targets = {name: np.asarray(target) for name, target in run.data.test.targets.items()}
    return dict(judge.evaluate(outputs, targets, batch_size=TEST_BATCH, return_dict=True, verbose=0))


def begin_phase(run: Run, number: int) -> None:
    """Choose what is trained from the next epoch on, and give the model loss, metrics and a new optimizer."""
    phase = run.phases[number]
    run.phase, run.last_epoch = number, run.initial_epoch + phase.epochs
    if phase.set_trainable is not None:
        phase.set_trainable(run.model)
    with run.runtime.scope():
        steps = phase.epochs * len(run.train_batches)
        optimizer = (run.app.optimizer or make_optimizer)(run.config, phase.learning_rate, steps)
        compile_model(run.model, run.app, run.config, run.data.spec, run.runtime, optimizer)
        if not run.model.optimizer.built:
            run.model.optimizer.build(run.model.trainable_variables)
    if run.runtime.strategy is None and run.app.loss is not None:
        _build_metrics(run)


def _build_metrics(run: Run) -> None:
    """Make the variables of losses and metrics: a first step that has to make them is traced twice."""
    outputs = {
        name: keras.ops.zeros([size or 1 for size in tensor.shape], tensor.dtype)
        for name, tensor in run.model.output.items()
    }
    targets = {}
    for name, target in run.data.train.targets.items():
        first = target.padded(np.array([0]), 1) if isinstance(target, Ragged) else target[:1]
        steps = name in outputs and None in run.model.output[name].shape[1:2]
        targets[name] = keras.ops.convert_to_tensor(first[:, :1] if steps else first)
    run.model.compute_loss(None, targets, outputs)
    run.model.compute_metrics(None, targets, outputs)
    run.model.reset_metrics()


def fit(run: Run) -> None:
    """Train with `keras.Model.fit`, phase after phase: the default of every application."""
    while True:
        history = run.model.fit(
            run.train_batches.dataset(),
            validation_data=run.batches(run.data.validation).dataset(),
            epochs=run.last_epoch,
            initial_epoch=run.initial_epoch,
            callbacks=run.callbacks,
            shuffle=False,  # Batches has shuffled
            verbose=0,
        )
        run.initial_epoch += len(history.epoch)
        if run.is_over or run.phase == len(run.phases) - 1:
            return
        begin_phase(run, run.phase + 1)
