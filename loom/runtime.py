"""Threads, devices, arithmetic and XLA: set once at the start of a run, from its config."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loom.config import TrainingConfig, available_cores
from loom.errors import UserError
from loom.lazy import keras, silenced_stderr, tf

if TYPE_CHECKING:
    from loom.data.spec import Spec

BFLOAT16_CAPABILITY = (8, 0)
FLOAT16_CAPABILITY = (7, 0)
"""NVIDIA compute capabilities from which tensor cores take these types."""
ONE_CYCLE_START, ONE_CYCLE_RISING = 0.04, 0.3
"""Learning rate of the first step, in terms of the highest, and the share of the steps in which it rises."""


@dataclass(frozen=True)
class Runtime:
    """What the settings `auto` came to on this machine."""

    device: str
    devices: int
    threads: int
    precision: str
    jit: bool
    strategy: Any = None

    def tags(self) -> dict[str, str]:
        """What a resumed run should find again to end with the same bits."""
        names = ("device", "devices", "threads", "precision", "jit")
        return {name: str(getattr(self, name)) for name in names}

    def scope(self) -> AbstractContextManager[Any]:
        """Context in which models and optimizers are made."""
        return self.strategy.scope() if self.strategy else nullcontext()


def start(config: TrainingConfig) -> Runtime:
    """Set up TensorFlow and Keras for a run.

    Raises:
        UserError: More devices asked for than there are, or TensorFlow is in use already with other settings.
    """
    with silenced_stderr():
        gpus = tf.config.list_physical_devices("GPU")
        _set_threads(config)
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
    strategy = _strategy(config, gpus) if config.devices > 1 else None
    if config.deterministic and gpus:
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)
    precision = _precision(config, gpus)
    keras.config.set_dtype_policy(precision)
    may_compile = config.devices == 1 and not config.deterministic
    jit = config.jit == "on" or (config.jit == "auto" and may_compile)
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else platform.machine()
    return Runtime(name, config.devices, config.cores, precision, jit, strategy)


@contextmanager
def full_precision() -> Iterator[None]:
    """Make layers that compute in float32, whatever the run's precision: preprocessing and measuring must not round."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


def synchronize_batch_norm(model: keras.Model) -> None:
    """Let every batch normalization see the whole batch, not one device's part of it."""
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True


def make_optimizer(config: TrainingConfig, learning_rate: float, steps: int) -> keras.optimizers.Optimizer:
    """The optimizer that the config names, with its schedule over `steps`, clipping and weight decay."""
    muon: dict[str, Any] = {
        "momentum": config.momentum,
        "adam_beta_1": config.momentum,
        "exclude_layers": ["(^|/)output/"],
        "weight_decay": None,  # Keras' own defaults are not zero
        "adam_weight_decay": config.weight_decay,
    }
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "sgd": ("SGD", {}),
        "momentum": ("SGD", {"momentum": config.momentum}),
        "nesterov": ("SGD", {"momentum": config.momentum, "nesterov": True}),
        "adagrad": ("Adagrad", {}),
        "rmsprop": ("RMSprop", {}),
        "adam": ("Adam", {"beta_1": config.momentum}),
        "adamw": ("AdamW", {"beta_1": config.momentum}),
        "lion": ("Lion", {"beta_1": config.momentum}),
        "muon": ("Muon", muon),
    }
    name, options = kinds[config.optimizer]
    if config.weight_decay:
        options = {**options, "weight_decay": config.weight_decay}
    schedule = _schedule(config, learning_rate, steps)
    clip = config.clip_norm or None
    return getattr(keras.optimizers, name)(learning_rate=schedule, global_clipnorm=clip, **options)


def make_regularizer(config: TrainingConfig) -> keras.regularizers.Regularizer | None:
    """The penalty that the config names, for the kernels of dense and convolutional layers."""
    kinds = {"l1": keras.regularizers.L1, "l2": keras.regularizers.L2}
    kind = kinds.get(config.regularization)
    return kind(config.regularization_strength) if kind else None


def make_batch_norm(name: str | None = None) -> keras.layers.BatchNormalization:
    """Batch normalization with averages over some 10 batches.

    Keras' default, some 100, lags behind in runs of a few hundred steps: the model is tested with statistics of weights
    that it no longer has.
    """
    return keras.layers.BatchNormalization(momentum=0.9, name=name)


def make_activation(name: str) -> keras.layers.Layer:
    """An activation; the slope of `leaky_relu` is 0.01 on the negative side, where Keras' default is 0.3 or 0.2."""
    return keras.layers.LeakyReLU(0.01) if name == "leaky_relu" else keras.layers.Activation(name)


def compile_model(
    model: keras.Model,
    app: Any,
    config: TrainingConfig,
    spec: Spec,
    runtime: Runtime,
    optimizer: keras.optimizers.Optimizer,
) -> None:
    """Give the model its loss, metrics and optimizer."""
    model.compile(
        optimizer=optimizer,
        loss=app.resolve("loss", config, spec),
        metrics=app.resolve("metrics", config, spec),
        loss_weights=app.resolve("loss_weights", config, spec),
        jit_compile=runtime.jit,
        steps_per_execution=config.steps_per_execution,
    )


def _schedule(config: TrainingConfig, rate: float, steps: int) -> Any:
    schedules = keras.optimizers.schedules
    if config.schedule == "cosine":
        return schedules.CosineDecay(rate, steps)
    if config.schedule == "linear":
        return schedules.PolynomialDecay(rate, steps, end_learning_rate=0.0)
    if config.schedule == "exponential":
        return schedules.ExponentialDecay(rate, steps, 0.01)
    if config.schedule == "onecycle":
        # Smith and Topin 2018: linearly up to the highest rate, then down to nothing along a cosine.
        rising = max(1, round(ONE_CYCLE_RISING * steps))
        return schedules.CosineDecay(
            ONE_CYCLE_START * rate, max(1, steps - rising), warmup_target=rate, warmup_steps=rising
        )
    return rate


def _set_threads(config: TrainingConfig) -> None:
    """TensorFlow cannot change its threads once it is in use (in a notebook, or after another run of this process)."""
    threading = tf.config.threading
    current = threading.get_intra_op_parallelism_threads() or available_cores()
    try:
        threading.set_intra_op_parallelism_threads(config.cores)
        threading.set_inter_op_parallelism_threads(config.cores)
    except RuntimeError:
        if current != config.cores:
            problem = f"TensorFlow is already running with {current} threads in this process"
            raise UserError(f"--threads {config.cores}: {problem}; start a new one") from None


def _strategy(config: TrainingConfig, gpus: list[Any]) -> tf.distribute.Strategy:
    if gpus:
        if config.devices > len(gpus):
            raise UserError(f"--devices {config.devices}: this machine has {len(gpus)} GPUs")
        return tf.distribute.MirroredStrategy([f"GPU:{index}" for index in range(config.devices)])
    cpu = tf.config.list_physical_devices("CPU")[0]
    parts = [tf.config.LogicalDeviceConfiguration()] * config.devices
    if len(tf.config.get_logical_device_configuration(cpu) or []) != config.devices:
        try:
            tf.config.set_logical_device_configuration(cpu, parts)
        except RuntimeError:
            raise UserError(f"--devices {config.devices}: TensorFlow is already in use; start a new process") from None
    return tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(config.devices)])


def _precision(config: TrainingConfig, gpus: list[Any]) -> str:
    if config.precision != "auto":
        return config.precision
    if not gpus:
        return "float32"
    capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))
    if capability >= BFLOAT16_CAPABILITY:
        return "mixed_bfloat16"
    return "mixed_float16" if capability >= FLOAT16_CAPABILITY else "float32"
