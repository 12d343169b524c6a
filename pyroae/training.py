"""Training: `fit(autoencoder, data, objective, config)`, on Lightning Fabric."""

import csv
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import pyro
import torch
from lightning_fabric import Fabric
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyroae.autoencoder import Autoencoder
from pyroae.config import TrainConfig
from pyroae.data import Dataset, Splits, batches, resident
from pyroae.errors import ConfigError, NonFiniteLossError, unknown_name
from pyroae.objectives import Bound, ObjectiveBase, TraceELBO
from pyroae.progress import Progress
from pyroae.weights import evaluating, fork_random, log_weights


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
    """A trained system. best_epoch: of the best validation bound (of the last one, without validation data)."""

    autoencoder: Autoencoder
    history: tuple[Epoch, ...]
    best_epoch: int
    stopped_early: bool

    @property
    def seconds(self) -> float:
        """Time spent in training, validation included."""
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
    autoencoder: Autoencoder,
    data: Splits | Dataset | Tensor,
    objective: ELBO | None = None,
    config: TrainConfig | None = None,
    *,
    state: State | None = None,
    on_epoch: Callable[[State], None] | None = None,
    progress: bool = True,
) -> FitResult:
    """Train in place, minimizing the negative bound in nats per datum.

        loss = −surrogate(minibatch) / B,  z drawn from torch's generator, seeded with `config.seed`

    data: Splits give validation bounds and early stopping; a Dataset or a tensor `[N, d]` is trained on whole.
    objective: an Objective or one of Pyro's own ELBOs that has a `differentiable_loss`; by default TraceELBO().
    state: to go on from; on_epoch: receives the state after each epoch. The caller's random generators stay as they were.
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
    objective = TraceELBO() if objective is None else objective
    train, valid = (data.train, data.valid) if isinstance(data, Splits) else (_dataset(data), None)
    check(autoencoder, train, valid, objective, config)
    fabric = fabric_of(config)
    with fork_random(fabric.device), _default_dtype(config):
        trainer = _Trainer(autoencoder, objective, config, fabric, resident(train, fabric.device), valid)
        return trainer.run(state, on_epoch, progress)


def check(autoencoder: Autoencoder, train: Dataset, valid: Dataset | None, objective: ELBO, config: TrainConfig) -> None:
    """Refuse, before any work, what cannot be trained. Raises ConfigError or DataError."""
    if config.batch_size > len(train):
        raise ConfigError(f"batch_size of {config.batch_size} is larger than the {len(train)} training data")
    if not hasattr(objective, "differentiable_loss"):
        raise ConfigError(
            f"{type(objective).__name__} has no differentiable_loss, so it cannot be used in fit: use one of pyroae's "
            "objectives, or pyro.infer.SVI"
        )
    for part, dataset in (("training", train), ("validation", valid)):
        if dataset is not None:
            check_data(autoencoder, dataset, f"{dataset.name} ({part} data)")
    optimizer_of(config, autoencoder)
    fabric_of(config)


def check_data(autoencoder: Autoencoder, dataset: Dataset, what: str) -> None:
    """Raises DataError where the system's width or likelihood does not suit the data."""
    autoencoder.flat(dataset.x[:1])
    autoencoder.likelihood.check(dataset.x.round() if dataset.dynamic else dataset.x, what)


class _Step(nn.Module):
    """The one forward pass that eager, mixed-precision and distributed training share."""

    def __init__(self, autoencoder: Autoencoder, objective: ELBO) -> None:
        super().__init__()
        self.autoencoder, self.objective = autoencoder, objective

    def forward(self, x: Tensor, kl_weight: float = 1.0) -> Bound:
        model, guide = self.autoencoder.model, self.autoencoder.guide
        with KLWeight(kl_weight) if kl_weight < 1 else nullcontext():
            if isinstance(self.objective, ObjectiveBase):
                return self.objective.bound(model, guide, x)
            bound = -cast(Any, self.objective).differentiable_loss(model, guide, x)
            return Bound(bound.detach(), bound)


class KLWeight(Messenger):
    """Scales log p and log q of every latent site: E_q log p(x|z) − β KL(q ‖ p), for KL warm-up (Bowman et al. 2016)."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and type(msg["fn"]).__name__ != "_Subsample":
            msg["scale"] = msg["scale"] * self.weight


class _Trainer:
    def __init__(
        self,
        autoencoder: Autoencoder,
        objective: ELBO,
        config: TrainConfig,
        fabric: Fabric,
        train: Dataset,
        valid: Dataset | None,
    ) -> None:
        self.autoencoder, self.config, self.fabric = autoencoder, config, fabric
        self.train, self.valid = train, valid
        torch.manual_seed(config.seed)
        step = _Step(autoencoder, objective)
        self.raw = step
        self.step, self.optimizer = fabric.setup(step, optimizer_of(config, autoencoder))
        self.steps_per_epoch = math.ceil(len(train) / config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.started = time.monotonic()

    def run(self, state: State | None, on_epoch: Callable[[State], None] | None, progress: bool) -> FitResult:
        state = self._restore(state) if state is not None else self._state([], {}, 0)
        earlier = state.history[-1].seconds if state.history else 0.0
        config, stopped = self.config, False
        with Progress("training", self.total_steps, progress) as self.progress:
            for epoch in range(len(state.history) + 1, config.epochs + 1):
                nelbo = self._epoch(epoch, state)
                row = Epoch(epoch, epoch * self.steps_per_epoch, 0.0, nelbo, *self._validate())
                row = Epoch(**{**asdict(row), "seconds": earlier + time.monotonic() - self.started})
                state = self._after(row, state)
                if on_epoch is not None:
                    on_epoch(state)
                if config.patience is not None and self.valid and epoch - state.best_epoch >= config.patience:
                    stopped = True
                    break
        if config.keep == "best" and state.best_weights:
            self.autoencoder.load_state_dict(state.best_weights)
        self.autoencoder.eval()
        return FitResult(self.autoencoder, tuple(state.history), state.best_epoch or len(state.history), stopped)

    def _epoch(self, epoch: int, good: State) -> float:
        """One pass over the training data; the mean negative bound along it."""
        self.autoencoder.train()
        total = torch.zeros((), dtype=torch.float64 if self.fabric.device.type != "mps" else torch.float32)
        total = total.to(self.fabric.device)
        bad, step, seen = torch.full((), -1, device=self.fabric.device), (epoch - 1) * self.steps_per_epoch, 0
        shown = time.monotonic()
        for x in batches(self.train, self.config.batch_size, seed=self.config.seed, epoch=epoch, device=self.fabric.device):
            with pyro.validation_enabled(step == 0):
                value = self._take_step(step, x)
            step, seen = step + 1, seen + len(x)
            total += value
            bad = torch.where((bad < 0) & ~torch.isfinite(value), step, bad)
            if time.monotonic() - shown > 0.5:  # reading the bound waits for the device: now and then only
                shown = time.monotonic()
                self._raise_if_bad(bad, epoch, good)
                self.progress.update(step, f"epoch {epoch}, bound {total.item() / seen:.3f} nats")
        self._raise_if_bad(bad, epoch, good)
        return -total.item() / seen

    def _take_step(self, step: int, x: Tensor) -> Tensor:
        config, values = self.config, []
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * schedule(config.schedule, step / self.total_steps)
        warmup = config.kl_warmup * self.steps_per_epoch
        kl_weight = min(1.0, (step + 1) / warmup) if warmup else 1.0

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            value, surrogate = self.step(x, kl_weight)
            values.append(value.detach())
            loss = -surrogate / len(x)
            self.fabric.backward(loss)
            if config.grad_clip is not None:
                self.fabric.clip_gradients(self.step, self.optimizer, max_norm=config.grad_clip, error_if_nonfinite=False)
            return loss.detach()

        self.optimizer.step(closure)
        return values[0]

    def _validate(self) -> tuple[float, float, float]:
        """nelbo, distortion −E log p(x|z) and rate E[log q(z|x) − log p(z)] of the validation data, at full KL weight."""
        if self.valid is None:
            return math.nan, math.nan, math.nan
        model, guide = self.autoencoder.model, self.autoencoder.guide
        sums = torch.zeros(3, dtype=torch.float64)
        device, quiet = self.fabric.device, pyro.validation_enabled(False)
        with evaluating(model), fork_random(device, self.config.seed), quiet, self.fabric.autocast():
            dtype = next(self.autoencoder.parameters()).dtype
            for part in self.valid.x.split(1000):
                x = part.to(device, dtype)
                weights = log_weights(model, guide, x)
                rate = weights.log_post - weights.log_prior
                values = (-self.raw(x).value, -weights.log_lik.sum(), rate.sum())
                sums += torch.stack([v.detach().double().cpu() for v in values])
        nelbo, distortion, rate_mean = (sums / len(self.valid)).tolist()
        return nelbo, distortion, rate_mean

    def _state(self, history: list[Epoch], best_weights: dict[str, Tensor], best_epoch: int) -> State:
        random = {"cpu": torch.get_rng_state()}
        if self.fabric.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        weights = {k: v.detach().clone() for k, v in self.autoencoder.state_dict().items()}
        return State(weights, deepcopy(self.optimizer.state_dict()), random, history, best_weights, best_epoch)

    def _after(self, row: Epoch, before: State) -> State:
        state = self._state([*before.history, row], before.best_weights, before.best_epoch)
        best = min((e.valid_nelbo for e in before.history if math.isfinite(e.valid_nelbo)), default=math.inf)
        if row.valid_nelbo < best:
            state.best_weights, state.best_epoch = state.weights, row.epoch
        return state

    def _restore(self, state: State) -> State:
        self.autoencoder.load_state_dict(state.weights)
        self.optimizer.load_state_dict(state.optimizer)
        torch.set_rng_state(state.random["cpu"])
        if "cuda" in state.random and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(state.random["cuda"], self.fabric.device)
        return state

    def _raise_if_bad(self, bad: Tensor, epoch: int, good: State) -> None:
        step = int(bad.item())
        if step < 0:
            return
        self.autoencoder.load_state_dict(good.weights)
        kept = f"the weights of epoch {len(good.history)}" if good.history else "the initial weights"
        raise NonFiniteLossError(
            f"the loss became NaN or infinite at step {step}, in epoch {epoch}; {kept} were kept: "
            "try a lower learning rate, gradient clipping (grad_clip), or KL warm-up (kl_warmup)"
        )


def schedule(name: str, progress: float) -> float:
    """The learning rate's factor when a share `progress` in [0, 1) of the training is done.

    `burda`: 10^(−i/7) for 3^i of 3,280 parts, i = 0..7 (Burda 2016).

    >>> schedule("cosine", 0.0), schedule("linear", 0.25), schedule("burda", 0.0)
    (1.0, 0.75, 1.0)
    """
    if name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if name == "linear":
        return 1 - progress
    if name == "burda":
        stage = next(i for i in range(8) if progress * 3280 < (3 ** (i + 1) - 1) / 2)
        return 10 ** (-stage / 7)
    return 1.0


def optimizer_of(config: TrainConfig, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of torch.optim that a configuration names. Raises ConfigError for an unknown one or wrong arguments."""
    known: dict[str, Any] = {
        n: o for n, o in vars(torch.optim).items() if isinstance(o, type) and issubclass(o, torch.optim.Optimizer)
    }
    name = next((n for n in known if n.lower() == config.optimizer.lower()), None)
    if name is None or name == "Optimizer":
        raise unknown_name("optimizer", config.optimizer, sorted(set(known) - {"Optimizer"}))
    try:
        return known[name](module.parameters(), lr=config.lr, **config.optimizer_args)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the optimizer {name} does not accept {config.optimizer_args}: {error}") from None


@contextmanager
def _default_dtype(config: TrainConfig) -> Iterator[None]:
    """Double precision as the default where it is asked for: Fabric converts what a module returns to the default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if config.precision == "64-true" else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _dataset(data: Dataset | Tensor) -> Dataset:
    return data if isinstance(data, Dataset) else Dataset.from_array(data)


def fabric_of(config: TrainConfig) -> Fabric:
    """Lightning Fabric on the device and in the precision of a configuration. Raises ConfigError where it has none."""
    try:
        return Fabric(accelerator=config.accelerator, devices=1, precision=cast(Any, config.precision))
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"accelerator '{config.accelerator}' with precision '{config.precision}': {' '.join(str(error).split())}"
        ) from None
