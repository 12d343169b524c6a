"""Training: `fit(system, data, objective, config)`, on Lightning Fabric."""

import csv
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import pyro
import torch
from lightning_fabric import Fabric
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pyroae.autoencoder import Autoencoder
from pyroae.compiler import Compiled
from pyroae.config import TrainConfig
from pyroae.data import Arguments, Dataset, Splits, resident, served
from pyroae.errors import ConfigError, NonFiniteLossError
from pyroae.losses import Losses
from pyroae.objectives import Bound, TraceELBO
from pyroae.optimizers import optimizer_of, schedule
from pyroae.program import System, bound_of, full_size, like_parameters, rehearse, system_of
from pyroae.progress import Progress
from pyroae.weights import Program, evaluating, fork_random, reduce_log_weights, run

COMPILE_FROM_STEPS, COMPILE_FROM_SECONDS = 5000, 120
"""A training of so many steps of one shape, or of so much time, earns back what its graph takes to make."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: a row of metrics.csv. In nats per datum; nan where there is no validation data."""

    epoch: int
    step: int
    seconds: float
    train_nelbo: float
    valid_nelbo: float = math.nan
    distortion: float = math.nan
    rate: float = math.nan


@dataclass
class State:
    """All that decides how a training goes on after an epoch: a resumed one takes the same steps."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    random: dict[str, Tensor]
    history: list[Epoch] = field(default_factory=list)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0


@dataclass(frozen=True)
class FitResult:
    """A trained system. best_epoch: of the best validation bound (of the last one, without validation data).

    compile_seconds: what `seconds` holds of making graphs of the step.
    """

    system: nn.Module
    history: tuple[Epoch, ...]
    best_epoch: int
    stopped_early: bool
    compile_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Time spent in training, validation not counted."""
        return self.history[-1].seconds

    def to_csv(self, path: str | Path) -> None:
        """Write the history, a row an epoch."""
        write_csv(path, self.history)


def write_csv(path: str | Path, history: tuple[Epoch, ...] | list[Epoch]) -> None:
    """Write epochs as a table with their names in the first row."""
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Epoch)])
        writer.writeheader()
        writer.writerows({k: "" if math.isnan(v) else v for k, v in asdict(epoch).items()} for epoch in history)


def fit(
    system: nn.Module | tuple[Program, Program],
    data: Splits | Dataset | Tensor | tuple[Tensor, ...],
    objective: ELBO | None = None,
    config: TrainConfig | None = None,
    *,
    valid: Dataset | Tensor | tuple[Tensor, ...] | None = None,
    state: State | None = None,
    on_epoch: Callable[[State], None] | None = None,
    compile: bool | str | None = None,
    progress: bool = True,
) -> FitResult:
    """Train in place, minimizing the negative bound in nats per datum.

        loss = −surrogate(minibatch) / B,  z drawn from torch's generator, seeded with `config.seed`

    system: an Autoencoder, any module with a `model` and a `guide`, or a pair (model, guide) of Pyro programs, whose
    parameters are found as `pyro.infer.SVI` finds them. A program is given minibatches, of all its arguments where `data` is
    a tuple of tensors `[N, ...]`; one that subsamples its plate itself is given all data by a `batch_size` of N. Where its
    plate is subsampled, the bound is divided by the plate's full size.
    data: Splits give validation bounds and early stopping, as `valid` does; a Dataset or tensors are trained on whole.
    objective: an Objective or one of Pyro's own ELBOs that has a `differentiable_loss`; by default TraceELBO().
    state: to go on from; on_epoch: receives the state after each epoch. The caller's random generators stay as they were.
    compile: the step as one graph, as of `pyroae.compile`; by default as the configuration says, which is to compile where
    the training is long enough to earn it back. On a CPU the draws are the same, and the results equal but for rounding.
    The corruption of a denoising system acts in training only, not in validation; the system is left in `eval()` mode.
    Raises ConfigError, DataError, ProgramError before any step; NonFiniteLossError where the loss becomes NaN or
    infinite: the weights of the last good epoch are then put back.

    >>> from pyroae import load, zoo
    >>> digits = load("digits", binarize="dynamic")
    >>> vae = zoo.vae(digits.train, latent=2)
    >>> result = fit(vae, digits, config=TrainConfig(epochs=2), progress=False)
    >>> result.history[1].valid_nelbo < result.history[0].valid_nelbo
    True
    """
    config = config or TrainConfig()
    config = config if compile is None else replace(config, compile=compile)
    objective = TraceELBO() if objective is None else objective
    module = system_of(system)
    train, held_out = train_and_valid(module, data, valid)
    size = check(module, train, held_out, objective, config)
    fabric = fabric_of(config)
    with fork_random(fabric.device), default_dtype(config):
        step = Step(module, objective, size)
        trainer = Trainer(step, config, fabric, resident(train, fabric.device), held_out)
        return trainer.run(state, on_epoch, progress)


def train_and_valid(
    system: nn.Module,
    data: Splits | Dataset | Tensor | tuple[Tensor, ...],
    valid: Dataset | Tensor | tuple[Tensor, ...] | None,
) -> tuple[Dataset | Arguments, Dataset | Arguments | None]:
    """The training and validation data of that system. Raises ConfigError where the latter are given twice."""
    if isinstance(data, Splits) and valid is not None:
        raise ConfigError("the data have a validation part already: give the whole as Splits, or the parts one by one")
    valid = data.valid if isinstance(data, Splits) else valid
    train = data_for(system, data.train if isinstance(data, Splits) else data)
    return train, None if valid is None else data_for(system, valid)


def check(
    system: nn.Module, train: Dataset | Arguments, valid: Dataset | Arguments | None, objective: ELBO, config: TrainConfig
) -> int | None:
    """Refuse, before any work, what cannot be trained. Raises ConfigError, DataError or ProgramError.

    Returns the full size of the data plate where it is subsampled.
    """
    if config.batch_size > len(train):
        raise ConfigError(f"batch_size of {config.batch_size} is larger than the {len(train)} training data")
    if not hasattr(objective, "differentiable_loss"):
        raise ConfigError(
            f"{type(objective).__name__} has no differentiable_loss, so it cannot be used in fit: use one of pyroae's "
            "objectives, or pyro.infer.SVI"
        )
    steps = config.kl_warmup * math.ceil(len(train) / config.batch_size)
    if config.max_steps is not None and steps > config.max_steps:
        raise ConfigError(
            f"kl_warmup of {config.kl_warmup} epochs, {steps} steps, is longer than the training of {config.max_steps}: "
            "the KL weight would never reach 1"
        )
    if isinstance(system, Autoencoder):
        for part, dataset in (("training", train), ("validation", valid)):
            if isinstance(dataset, Dataset):
                check_data(system, dataset, f"{dataset.name} ({part} data)")
    fabric_of(config)
    size = rehearse(system, objective, _sample_of(train, config), config.seed, double=config.precision == "64-true")
    optimizer_of(config, system)
    return size


def check_data(autoencoder: Autoencoder, dataset: Dataset, what: str) -> None:
    """Raises DataError where the system's width or likelihood does not suit the data."""
    autoencoder.flat(dataset.x[:1])
    autoencoder.likelihood.check(dataset.x.round() if dataset.dynamic else dataset.x, what)


def steps_of(config: TrainConfig, num_data: int) -> int:
    """The steps of a training that neither early stopping nor a clock ends.

    >>> steps_of(TrainConfig(epochs=3, batch_size=10), num_data=25)
    9
    """
    steps = config.epochs * math.ceil(num_data / config.batch_size)
    return steps if config.max_steps is None else min(steps, config.max_steps)


class Step(nn.Module):
    """The one forward pass that eager, mixed-precision and distributed training share."""

    def __init__(self, system: nn.Module, objective: ELBO, full_size: int | None) -> None:
        super().__init__()
        self.system, self.objective, self.full_size = system, objective, full_size
        self.graphs: Compiled | None = None

    def forward(self, *args: Tensor, kl_weight: float | None = None) -> Bound:
        if self.graphs is not None and torch.is_grad_enabled():
            return self.graphs.bound(*args, kl_weight=kl_weight)
        return bound_of(self.system, self.objective, args, kl_weight)

    def num_data(self, args: tuple[Tensor, ...]) -> int:
        """What the bound of a batch is divided by: its size, or that of the plate which the batch stands for."""
        return self.full_size or len(args[0])


class Trainer:
    """One training: `fit` runs it; an ensemble takes the steps of several at once and leaves all else to each."""

    def __init__(
        self, step: Step, config: TrainConfig, fabric: Fabric, train: Dataset | Arguments, valid: Dataset | Arguments | None
    ) -> None:
        self.system, self.config, self.fabric = step.system, config, fabric
        self.train, self.valid = train, valid
        torch.manual_seed(config.seed)
        self.raw = step
        self.step, self.optimizer = fabric.setup(step, optimizer_of(config, step.system))
        self.steps_per_epoch = math.ceil(len(train) / config.batch_size)
        self.total_steps = steps_of(config, len(train))
        self.seconds = self.compile_seconds = 0.0
        self.graphs: Compiled | None = None

    def compiler(self) -> Compiled | None:
        """The whole step as graphs; where gradients are scaled or shared by processes, these alone, in the forward pass."""
        optimizer = cast(Any, self.optimizer).optimizer
        objective, precision = self.raw.objective, self.fabric.autocast
        if self.fabric.world_size == 1 and self.config.precision != "16-mixed":
            clip = self.config.grad_clip
            return Compiled(self.system, objective, lambda _: optimizer, grad_clip=clip, precision=precision)
        self.raw.graphs = Compiled(self.system, objective, precision=precision)
        return None

    def is_worth_compiling(self, size: int, members: int = 1) -> bool:
        """Whether batches of that size are given to a graph: a rule of the configuration, so that runs are the same again.

        members: so many trainings share the graph, and what it takes to make.
        """
        config, whole = self.config, size == self.config.batch_size
        if config.compile == "auto":
            if config.max_seconds is not None:
                return whole and config.max_seconds >= COMPILE_FROM_SECONDS
            steps = self.total_steps if whole else self.total_steps // self.steps_per_epoch
            return steps * members >= COMPILE_FROM_STEPS
        epochs = math.inf if config.max_seconds is not None else self.total_steps // self.steps_per_epoch
        return bool(config.compile) and (whole or epochs * members >= COMPILE_FROM_STEPS)

    def run(self, state: State | None, on_epoch: Callable[[State], None] | None, progress: bool) -> FitResult:
        self.graphs = self.compiler() if self.is_worth_compiling(self.config.batch_size) else None
        state = self._restore(state) if state is not None else self.state([], {}, 0)
        config, stopped = self.config, False
        last = state.history[-1] if state.history else None
        step, self.seconds = (last.step, last.seconds) if last else (0, 0.0)
        total = int(self.total_steps if config.max_seconds is None else config.max_seconds)
        with Progress("training", total, progress) as self.progress:
            for epoch in range(len(state.history) + 1, config.epochs + 1):
                if self._is_over(step):
                    break
                step, nelbo = self._epoch(epoch, step, state)
                state = self.after(Epoch(epoch, step, self.seconds, nelbo, *self.validate()), state)
                if on_epoch is not None:
                    on_epoch(state)
                if config.patience is not None and self.valid and epoch - state.best_epoch >= config.patience:
                    stopped = True
                    break
        return self.finish(state, stopped)

    def finish(self, state: State, stopped: bool) -> FitResult:
        """The system with the weights that it keeps."""
        if self.config.keep == "best" and state.best_weights:
            self.system.load_state_dict(state.best_weights)
        self.system.eval()
        best = state.best_epoch or len(state.history)
        return FitResult(self.system, tuple(state.history), best, stopped, self.compile_seconds)

    def _is_over(self, step: int) -> bool:
        limit = self.config.max_seconds
        return step >= self.total_steps or (limit is not None and self.seconds >= limit)

    def _epoch(self, epoch: int, step: int, good: State) -> tuple[int, float]:
        """One pass over the training data, or what is left of the steps and seconds; the mean negative bound along it."""
        self.system.train()
        config = self.config
        losses = Losses(step)
        begun, before = time.monotonic(), self.seconds
        shown = begun
        for args in served(self.train, config.batch_size, seed=config.seed, epoch=epoch, device=self.fabric.device):
            losses.add(self._take_step(step, like_parameters(self.system, args)), len(args[0]))
            step += 1
            now = time.monotonic()
            self.seconds = before + now - begun
            if now - shown > 0.5:
                shown = now
                losses.look()
                self.refuse_bad(losses, epoch, good)
                self._show(step, f"epoch {epoch}, bound {-losses.mean:.3f} nats")
            if self._is_over(step):
                break
        losses.look(wait=True)
        self.refuse_bad(losses, epoch, good)
        self.seconds = before + time.monotonic() - begun
        return step, losses.mean

    def _show(self, step: int, text: str) -> None:
        self.progress.update(step if self.config.max_seconds is None else int(self.seconds), text)

    def _take_step(self, step: int, args: tuple[Tensor, ...]) -> Tensor:
        """The negative bound before it, in nats per datum."""
        kl_weight, num_data = self.begin(step), self.raw.num_data(args)
        if self.graphs is not None and self.is_worth_compiling(len(args[0])):
            return self._compiled_step(step, args, kl_weight, num_data)
        with pyro.validation_enabled(step == 0):
            return self._eager_step(args, kl_weight, num_data)

    def begin(self, step: int) -> float | None:
        """Set the learning rate of a step; the weight of the KL in it, while that grows."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * schedule(config.schedule, self._done(step))
        warmup = config.kl_warmup * self.steps_per_epoch
        return min(1.0, (step + 1) / warmup) if warmup else None

    def _compiled_step(self, step: int, args: tuple[Tensor, ...], kl_weight: float | None, num_data: int) -> Tensor:
        assert self.graphs is not None
        if not self.graphs.is_new(*args, kl_weight=kl_weight, divisor=num_data):
            return self.graphs.step(*args, kl_weight=kl_weight, divisor=num_data)
        self._show(step, "compiling the step")
        begun = time.monotonic()
        loss = self.graphs.step(*args, kl_weight=kl_weight, divisor=num_data)
        self.compile_seconds += time.monotonic() - begun
        return loss

    def _eager_step(self, args: tuple[Tensor, ...], kl_weight: float | None, num_data: int) -> Tensor:
        config, values = self.config, []

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            value, surrogate = self.step(*args, kl_weight=kl_weight)
            values.append(-value.detach() / num_data)
            loss = -surrogate / num_data
            self.fabric.backward(loss)
            if config.grad_clip is not None:
                self.fabric.clip_gradients(self.step, self.optimizer, max_norm=config.grad_clip, error_if_nonfinite=False)
            return loss.detach()

        self.optimizer.step(closure)
        return values[0]

    def _done(self, step: int) -> float:
        """The share of the training that is done, in [0, 1)."""
        if self.config.max_seconds is None:
            return step / self.total_steps
        return min(self.seconds / self.config.max_seconds, 1 - 1e-9)

    def validate(self) -> tuple[float, float, float]:
        """nelbo, distortion −E log p(x|z) and rate E[log q(z|x) − log p(z)] of the validation data, at full KL weight."""
        if self.valid is None:
            return math.nan, math.nan, math.nan
        model, guide = cast(System, self.system).model, cast(System, self.system).guide
        sums = torch.zeros(3, dtype=torch.float64)
        device, quiet = self.fabric.device, pyro.validation_enabled(False)
        with evaluating(self.system), fork_random(device, self.config.seed), quiet, self.fabric.autocast():
            tensors = self.valid.tensors if isinstance(self.valid, Arguments) else (self.valid.x,)
            for part in zip(*(t.split(1000) for t in tensors), strict=True):
                args = like_parameters(self.system, part)
                traces = run(model, guide, args, {})
                weights = reduce_log_weights(traces)
                rate = (weights.scale * (weights.log_post - weights.log_prior)).sum() - weights.log_global.mean()
                values = (-self.raw(*args).value, -(weights.scale * weights.log_lik).sum(), rate)
                share = len(args[0]) / (full_size(traces) or len(args[0]))
                sums += share * torch.stack([v.detach().double().cpu() for v in values])
        nelbo, distortion, rate_mean = (sums / len(self.valid)).tolist()
        return nelbo, distortion, rate_mean

    def state(self, history: list[Epoch], best_weights: dict[str, Tensor], best_epoch: int) -> State:
        """What it is now, in tensors of its own."""
        random = {"cpu": torch.get_rng_state()}
        if self.fabric.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        weights = {k: v.detach().clone() for k, v in self.system.state_dict().items()}
        kept = tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, self.optimizer.state_dict())
        return State(weights, kept, random, history, best_weights, best_epoch)

    def after(self, row: Epoch, before: State) -> State:
        """The state after one more epoch."""
        state = self.state([*before.history, row], before.best_weights, before.best_epoch)
        best = min((e.valid_nelbo for e in before.history if math.isfinite(e.valid_nelbo)), default=math.inf)
        if row.valid_nelbo < best:
            state.best_weights, state.best_epoch = state.weights, row.epoch
        return state

    def _restore(self, state: State) -> State:
        self.system.load_state_dict(state.weights)
        self.optimizer.load_state_dict(state.optimizer)
        if self.graphs is not None:
            self.graphs.has_stepped = bool(state.history)
        torch.set_rng_state(state.random["cpu"])
        if "cuda" in state.random and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(state.random["cuda"], self.fabric.device)
        return state

    def refuse_bad(self, losses: Losses, epoch: int, good: State) -> None:
        """Raises NonFiniteLossError where one of them is not finite; the last good weights are put back."""
        if losses.bad is None:
            return
        self.system.load_state_dict(good.weights)
        kept = f"the weights of epoch {len(good.history)}" if good.history else "the initial weights"
        raise NonFiniteLossError(
            f"the loss became NaN or infinite at step {losses.bad + 1}, in epoch {epoch}; {kept} were kept: "
            "try a lower learning rate, gradient clipping (grad_clip), or KL warm-up (kl_warmup)"
        )


@contextmanager
def default_dtype(config: TrainConfig) -> Iterator[None]:
    """Double precision as the default where it is asked for: Fabric converts what a module returns to the default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if config.precision == "64-true" else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def data_for(system: nn.Module, given: Dataset | Tensor | tuple[Tensor, ...]) -> Dataset | Arguments:
    """What is given to `fit` as the data of that system: a Dataset, or the arguments of a program."""
    if isinstance(given, Dataset):
        return given
    if isinstance(system, Autoencoder):
        return Dataset.from_array(given)
    return Arguments(given if isinstance(given, tuple) else (given,))


def _sample_of(train: Dataset | Arguments, config: TrainConfig) -> tuple[Tensor, ...]:
    """A batch to look at before the start: dynamic data, which are probabilities, as black and white."""
    if isinstance(train, Arguments):
        return tuple(t[: config.batch_size] for t in train.tensors)
    x = train.x[: config.batch_size]
    return (x.round() if train.dynamic else x,)


def fabric_of(config: TrainConfig) -> Fabric:
    """Lightning Fabric on the device and in the precision of a configuration. Raises ConfigError where it has none."""
    try:
        return Fabric(accelerator=config.accelerator, devices=1, precision=cast(Any, config.precision))
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"accelerator '{config.accelerator}' with precision '{config.precision}': {' '.join(str(error).split())}"
        ) from None
