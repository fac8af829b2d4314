"""One frozen dataclass per application holds every setting: a flag, a part of the run's record, searchable."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from loom.errors import UserError

Optimizer = Literal["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "lion", "muon"]
Schedule = Literal["constant", "cosine", "linear", "exponential", "onecycle"]
Regularization = Literal["none", "dropout", "batchnorm", "both", "l1", "l2"]
C = TypeVar("C", bound="TrainingConfig")


@dataclass(frozen=True)
class TrainingConfig:
    """What every application can be told. Subclasses add fields; each field's docstring is its `--help` line."""

    data: str = "sample"
    """Examples: `sample` (built in), `tfds:NAME[:VERSION]`, or the path of a file or folder of your own."""
    data_dir: str = ""
    """Folder with prepared TFDS data sets (only for `tfds:`)."""
    test_fraction: float = 0.2
    """Share of the examples held out for the test where the data has no test part of its own."""
    validation_fraction: float = 0.1
    """Share of the training examples held out to validate each epoch."""
    train_fraction: float = 1.0
    """Share of the training examples that is used; validation and test stay whole."""
    max_train: int = 0
    """Train on this many examples (0: all): the first ones, or of a folder per class the first of each in turn."""
    max_bad: float = 0.01
    """Share of unreadable rows or files that is tolerated; they are listed in data.json."""
    seed: int = 0
    """Picks the splits, the initial weights, the order of the examples and the dropout masks."""
    split_seed: int = -1
    """Picks the splits alone, so that runs with other seeds share them (-1: --seed picks them)."""
    epochs: int = 10
    """Passes over the training examples."""
    batch_size: int = 32
    """Examples per step (over all devices together)."""
    steps_per_execution: int = 1
    """Steps taken in one go: small steps lose less time between two of them, and progress is shown less often."""
    buckets: int = 4
    """Number of sequence lengths that batches are padded to; more means less padding and more compilations."""
    optimizer: Optimizer = "adam"
    """Update rule; `muon` makes steps of matrices orthogonal, and is adam for embeddings, outputs and all else."""
    momentum: float = 0.9
    """Share of the past in the running mean of gradients; of adam, adamw and lion β₁."""
    learning_rate: float = 0.001
    """Learning rate of the first step, of `onecycle` the highest one."""
    schedule: Schedule = "constant"
    """How the learning rate changes: `exponential` ends at a hundredth, `onecycle` first rises (30 % of the steps)."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip_norm: float = 0.0
    """Gradients are scaled down to this global norm (0: never)."""
    regularization: Regularization = "none"
    """Dropout, batch normalization or both after hidden layers, or a penalty on dense and convolution kernels."""
    regularization_strength: float = 0.0001
    """Factor of that penalty."""
    patience: int = 0
    """Stop after this many epochs without a better objective, keep the best (0: all epochs, the last weights)."""
    precision: Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"] = "auto"
    """Arithmetic; `auto` is float32 on a CPU and mixed on a GPU that has the units for it."""
    jit: Literal["auto", "on", "off"] = "auto"
    """Compile the whole step with XLA, not only the loops of recurrent layers; `auto` where the devices allow it."""
    deterministic: bool = False
    """Bit-for-bit repeatable on a GPU too (on a CPU it always is); switches XLA off and costs time."""
    threads: int = 0
    """CPU threads per operation (0: all cores this process may use)."""
    devices: int = 1
    """Data parallelism over this many GPUs, or logical CPU devices where there is no GPU."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, by name."""
        _check_choices(self)
        for name in ("epochs", "batch_size", "devices", "buckets", "steps_per_execution"):
            self.require(name, getattr(self, name) >= 1, "must be at least 1")
        for name in (
            "threads",
            "patience",
            "clip_norm",
            "weight_decay",
            "regularization_strength",
            "seed",
            "max_train",
        ):
            self.require(name, getattr(self, name) >= 0, "must not be negative")
        for name in ("test_fraction", "validation_fraction"):
            self.require(name, 0 < getattr(self, name) < 1, "must lie between 0 and 1")
        self.require("train_fraction", 0 < self.train_fraction <= 1, "must be above 0 and at most 1")
        self.require("max_train", not self.max_train or self.train_fraction == 1, "give this or --train-fraction")
        self.require("split_seed", self.split_seed >= -1, "must be at least 0, or -1 for that of --seed")
        self.require("max_bad", 0 <= self.max_bad <= 1, "must lie between 0 and 1")
        self.require("momentum", 0 <= self.momentum < 1, "must be at least 0 and below 1")
        self.require("learning_rate", self.learning_rate > 0, "must be greater than 0")
        self.require("devices", self.batch_size >= self.devices, f"must not exceed --batch-size {self.batch_size}")
        if self.devices > 1:
            self.require("jit", self.jit != "on", "cannot be on with --devices above 1: XLA fails under tf.distribute")
        if self.deterministic:
            self.require("jit", self.jit != "on", "cannot be on with --deterministic: op determinism switches XLA off")

    def require(self, field: str, holds: bool, sentence: str) -> None:
        """Raise the one-line error for a field unless `holds`."""
        if not holds:
            raise UserError(f"{flag(field)} {getattr(self, field)}: {sentence}")

    @property
    def drops(self) -> bool:
        """Whether hidden layers are followed by dropout."""
        return self.regularization in ("dropout", "both")

    @property
    def normalizes(self) -> bool:
        """Whether hidden layers are followed by batch normalization."""
        return self.regularization in ("batchnorm", "both")

    @property
    def seed_of_splits(self) -> int:
        """What picks the splits."""
        return self.seed if self.split_seed == -1 else self.split_seed

    @property
    def cores(self) -> int:
        """Threads per operation, with 0 resolved."""
        return self.threads or available_cores()


def flag(field: str) -> str:
    """Name of the command-line flag of a config field."""
    return "--" + field.replace("_", "-")


def split_names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(filter(None, map(str.strip, text.split(","))))


def to_dict(config: TrainingConfig) -> dict[str, Any]:
    """Every field, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(kind: type[C], values: Mapping[str, Any]) -> C:
    """Build a config from recorded values; fields added since keep their defaults, removed ones are an error."""
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(kind)})
    if unknown:
        raise UserError(f"the recorded settings {', '.join(unknown)} are unknown to this version of the application")
    hints = get_type_hints(kind)  # JSON knows no tuples
    settings: dict[str, Any] = dict(values)
    settings |= {name: tuple(value) for name, value in values.items() if get_origin(hints[name]) is tuple}
    return kind(**settings)


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def changed_fields(config: TrainingConfig, base: TrainingConfig) -> dict[str, Any]:
    """Fields of `config` whose values differ from `base`."""
    return {name: value for name, value in to_dict(config).items() if getattr(base, name) != value}


def _check_choices(config: TrainingConfig) -> None:
    """Literal fields are checked here too, because searches and recorded runs do not pass through the command line."""
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal and getattr(config, name) not in get_args(hint):
            choices = ", ".join(map(str, get_args(hint)))
            raise UserError(f"{flag(name)} {getattr(config, name)}: must be one of {choices}")
