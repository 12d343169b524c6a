"""How a model is trained: the settings that `fit` takes."""

from dataclasses import dataclass, field
from typing import Any

from pyroae.config.checks import at_least, check_compile, check_types, one_of, option
from pyroae.errors import ConfigError
from pyroae.runtime.short_repr import Settings

SCHEDULES = ("constant", "cosine", "linear", "burda")
"""Learning rates over the epochs."""


@dataclass(frozen=True, repr=False)
class TrainConfig(Settings):
    """How a model is trained; every figure is checked when it is given.

    Attributes:
        epochs: Passes over the training data.
        max_steps: Steps after which training stops, in the middle of an epoch too.
        max_seconds: Seconds of training, validation not counted, after which it stops.
        batch_size: Data in one step.
        optimizer: An optimizer of `torch.optim`, by name.
        lr: Learning rate, for a loss in nats per datum.
        optimizer_args: Further arguments of the optimizer.
        schedule: Learning rate over the epochs: constant, cosine, linear or burda.
        grad_clip: Largest gradient norm, in nats per datum.
        kl_warmup: Epochs over which the weight of the KL grows from 0 to 1.
        patience: Epochs without a better validation bound after which training stops.
        keep: The weights at the end: of the `best` validation bound, or the `last`.
        snapshots: Epochs after which the weights are kept, beside those of `keep`; 0 for the
            initial weights. Epochs that a training with another limit does not complete have none.
        seed: Seed of the order of the data and of every draw.
        accelerator: Device, in Lightning Fabric's names: auto, cpu, cuda, mps.
        compile: Whether the step is compiled code; `auto` in a long training.
        precision: In Lightning Fabric's names: 32-true, 64-true, bf16-mixed.
        devices: Processes of a machine, each with a device of its own; -1 for all devices.
        num_nodes: Machines.
        strategy: How processes share the work: ddp, fsdp or another of Lightning Fabric's names.
        nonfinite: On a loss or gradient that is NaN or infinite: `stop`, or `skip` the step.
        save_minutes: Minutes between checkpoints within an epoch.

    Raises:
        ConfigError: For a value of another type, out of range, or without effect.

    >>> TrainConfig(epochs=5, kl_warmup=10)
    Traceback (most recent call last):
    pyroae.errors.ConfigError: kl_warmup of 10 epochs is longer than the training of 5: the KL ...
    """

    epochs: int = option(50, "passes over the training data")
    max_steps: int | None = option(None, "stop after this number of steps, within an epoch too")
    max_seconds: float | None = option(
        None, "stop after these seconds of training, validation not counted"
    )
    batch_size: int = option(100, "data in one step")
    optimizer: str = option("Adam", "an optimizer of torch.optim")
    lr: float = option(1e-3, "learning rate, for a loss in nats per datum")
    optimizer_args: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "further arguments of the optimizer"}
    )
    schedule: str = option("constant", "learning rate over the epochs", SCHEDULES)
    grad_clip: float | None = option(None, "largest gradient norm, in nats per datum")
    kl_warmup: int = option(0, "epochs over which the weight of the KL grows from 0 to 1")
    patience: int | None = option(
        None, "stop after this number of epochs without a better validation bound"
    )
    keep: str = option(
        "best",
        "the weights at the end: of the best validation bound, or the last",
        ("best", "last"),
    )
    snapshots: tuple[int, ...] = option(
        (), "epochs after which the weights are kept too, as 0,1,3,10; 0: the initial weights"
    )
    seed: int = option(
        0, "of the order of the data, every draw and, on the command line, the initial weights"
    )
    accelerator: str = option("auto", "device, in Lightning Fabric's names: auto, cpu, cuda, mps")
    compile: bool | str = option(
        "auto", "the step as compiled code; auto: in a long training", ("auto", "true", "false")
    )
    precision: str = option("32-true", "in Lightning Fabric's names: 32-true, 64-true, bf16-mixed")
    devices: int = option(
        1, "processes of a machine, each with a device of its own; -1 for all devices"
    )
    num_nodes: int = option(1, "machines")
    strategy: str = option(
        "auto", "how processes share the work: ddp, fsdp or another of Lightning Fabric's names"
    )
    nonfinite: str = option(
        "stop", "on a loss or gradient that is NaN or infinite", ("stop", "skip")
    )
    save_minutes: float = option(5.0, "minutes between checkpoints within an epoch")

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("epochs", "batch_size"):
            at_least(name, getattr(self, name), 1)
        for name in ("kl_warmup", "seed"):
            at_least(name, getattr(self, name), 0)
        at_least("num_nodes", self.num_nodes, 1)
        if self.devices != -1:
            at_least("devices", self.devices, 1)
        for name in ("lr", "grad_clip", "patience", "max_steps", "max_seconds", "save_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be positive, not {value}")
        check_compile(self.compile)
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("keep", self.keep, ("best", "last"))
        one_of("nonfinite", self.nonfinite, ("stop", "skip"))
        if self.nonfinite == "skip" and self.optimizer.lower() == "lbfgs":
            raise ConfigError(
                "nonfinite='skip' needs an optimizer that takes one gradient a step, not LBFGS"
            )
        if self.kl_warmup > self.epochs:
            raise ConfigError(
                f"kl_warmup of {self.kl_warmup} epochs is longer than the training of "
                f"{self.epochs}: the KL weight would never reach 1"
            )
        self._check_snapshots()

    def _check_snapshots(self) -> None:
        if min(self.snapshots, default=0) < 0 or len(set(self.snapshots)) < len(self.snapshots):
            raise ConfigError(
                f"snapshots are different epochs of at least 0, not {list(self.snapshots)}"
            )
        if self.max_steps is None and max(self.snapshots, default=0) > self.epochs:
            raise ConfigError(
                f"a snapshot after epoch {max(self.snapshots)} lies beyond the training of "
                f"{self.epochs} epochs: give more epochs, or leave it out"
            )

    @property
    def is_distributed(self) -> bool:
        """Whether there may be more than one process, on one machine or several."""
        return self.devices != 1 or self.num_nodes != 1
