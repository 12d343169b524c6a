"""Measure mean, variance, signal-to-noise ratio and bias of gradient estimators at fixed θ and φ.

Gradients are streamed: statistics are updated with each replicate, and replicates are not stored.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor

from pyroae.config.checks import as_list, different_numbers
from pyroae.errors import ConfigError, ProgramError, unknown_name
from pyroae.evaluation.blocks import Data
from pyroae.evaluation.gradient_lab.control_training import train_controls
from pyroae.evaluation.gradient_lab.groups import check_leaves
from pyroae.evaluation.gradient_lab.slopes import Slope, SNRCurve, curve, slope
from pyroae.evaluation.gradient_lab.statistics import (
    BATCHES,
    Bias,
    GradientStatistics,
    Part,
    Stream,
)
from pyroae.objectives.base import ObjectiveBase
from pyroae.programs.arguments import structure_of
from pyroae.programs.sites import Program
from pyroae.runtime.progress import Progress
from pyroae.runtime.randomness import fork_random, start_random
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import duration, number

__all__ = [
    "BATCHES",
    "Bias",
    "GradientStatistics",
    "SNRCurve",
    "Slope",
    "curve",
    "measure_gradients",
    "measure_slopes",
    "slope",
]


SEEDS = 1_000_003
"""The distance between the seeds of the replicates of two measurements."""


COLUMNS = ("objective", "group", "SNR", "95 % interval", "bias, nats", "noise", "time")
"""Columns of a table of gradient statistics."""


class OfGroups(Shown, dict[str, GradientStatistics]):
    """Gradient statistics of one objective, by group."""

    def _overview(self) -> Overview:
        rows = [(group, *_cells(one)) for group, one in self.items()]
        return Overview([f"{len(rows)} groups"], rows, COLUMNS[1:])


class Results(Shown, dict[str, OfGroups]):
    """Gradient statistics by objective and group."""

    def _overview(self) -> Overview:
        rows = [
            (name, group, *_cells(one)) for name, of in self.items() for group, one in of.items()
        ]
        return Overview([f"{len(self)} objectives"], rows, COLUMNS)


class Curves(Shown, dict[str, dict[str, SNRCurve]]):
    """Curves of the SNR against K, by objective and group."""

    def _overview(self) -> Overview:
        rows = [
            (name, group, f"{one.slope.slope:.2f}", f"{one.slope.low:.2f} to {one.slope.high:.2f}")
            for name, of in self.items()
            for group, one in of.items()
        ]
        columns = ("objective", "group", "slope of log SNR in log K", "95 % interval")
        return Overview([f"{len(self)} objectives"], rows, columns)


def _cells(one: GradientStatistics) -> tuple[str, ...]:
    """The figures of an objective and a group in a table."""
    low, high = one.snr_interval
    bias = (number(one.bias, 3), number(one.bias_se, 2))
    return (number(one.snr, 3), f"{low:.3g} to {high:.3g}", *bias, duration(one.seconds))


def measure_gradients(
    model: Program,
    guide: Program,
    x: Data,
    objectives: Mapping[str, ObjectiveBase],
    *,
    parameters: Mapping[str, Tensor],
    groups: Mapping[str, Sequence[str]] | None = None,
    replicates: int = 1000,
    seed: int = 0,
    reference: str | None = None,
    control_steps: int = 0,
    progress: bool = False,
    **kwargs: Any,
) -> Results:
    """Measure the distribution of each objective's gradient over draws of z.

    Parameters and data are fixed. Gradients are those of model and guide, not of what an objective
    itself learns.

        Δ_r = (1/N) ∇ surrogate(x; noise r)
        SNR = mean_p |E Δ_p| / σ(Δ_p)
        DSNR = E ‖Δ∥‖ / ‖Δ − Δ∥‖,   Δ∥ = (Δ·u) u

    Replicates are not stored. They are divided into 20 batches, with a mean and a variance each:
    40 P numbers per objective, of at most two objectives at a time, for any number of replicates
    and for overlapping groups. Intervals come from the bootstrap over the batches, the error of the
    bias from the spread between them. u is the direction of the mean gradient over the first half
    of the replicates, that of the reference if there is one. The DSNR is a mean over the second
    half, which is independent of u. The state of torch's generators is restored.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The Pyro program q(z|x).
        x: The data `[N, ...]`, or the arguments of model and guide as in `log_likelihood`. All data
            are passed to both programs at once.
        objectives: Objectives by name. Replicate r of each starts from the same seed, so that the
            noise is paired at equal K. One that draws on the host draws for each replicate.
        parameters: Leaf tensors by name, such as `dict(system.named_parameters())`. A parameter
            that the bound does not depend on has the gradient 0.
        groups: Names of parameters by group, as of `parameter_groups`. None for one group, "all".
        replicates: The number of gradients per objective, at least 20.
        seed: The seed of the draws and of the bootstrap.
        reference: The name of the objective whose mean gradient the bias is measured from, in
            paired differences. None for no bias.
        control_steps: Steps of Adam on what an objective learns, such as a baseline, before its
            gradients are measured. By default it is used as the objective holds it: as it was
            trained, or as `prepare` makes it.
        progress: Whether a progress bar is shown.
        kwargs: Keyword arguments of the programs: tensors `[N, ...]` and constants.

    Returns:
        Statistics by objective and group: gradients of the bound for ascent, in nats per datum. An
        objective without noise, as `enumerate` of all-discrete programs, is evaluated twice; as the
        reference it makes the bias known up to the noise of the other objective alone.

    Raises:
        ConfigError: For fewer than 20 replicates, unknown names, empty groups, and parameters that
            are not leaves that require a gradient.
        ProgramError: If the surrogate depends on no parameter, or a gradient is not finite.

    References:
        Rainforth et al. 2018, Tighter variational bounds are not necessarily better.
        Welford 1962, Note on a method for calculating corrected sums of squares and products.

    >>> from pyroae import zoo
    >>> from pyroae.objectives.named import iwae, iwae_stl
    >>> system, x = zoo.ppca(4, latent=2), torch.ones(3, 4)
    >>> objectives = {"iwae": iwae(4), "stl": iwae_stl(4)}
    >>> settings = {"parameters": dict(system.encoder.named_parameters()), "replicates": 100}
    >>> results = measure_gradients(
    ...     system.model, system.guide, x, objectives, reference="iwae", **settings
    ... )
    >>> stl = results["stl"]["all"]
    >>> stl.mean.shape, stl.bias > 3 * stl.bias_se
    (torch.Size([20]), True)
    """
    groups = {"all": tuple(parameters)} if groups is None else groups
    _check(objectives, parameters, groups, replicates, reference)
    _check_steps(control_steps)
    structure = structure_of(x, kwargs, model)
    laboratory = _Laboratory(
        structure(model), structure(guide), structure.tensors, parameters, groups, control_steps
    )
    with (
        fork_random(laboratory.args[0].device),
        Progress("gradients", len(objectives) * replicates, progress) as bar,
    ):
        for objective in objectives.values():
            laboratory.gradient(objective, seed)  # a trial run with Pyro's checks
        return laboratory.measure(objectives, replicates, seed, reference, _Counter(bar))


def measure_slopes(
    model: Program,
    guide: Program,
    x: Data,
    make: Mapping[str, Callable[[int], ObjectiveBase]],
    *,
    ks: Sequence[int],
    parameters: Mapping[str, Tensor],
    groups: Mapping[str, Sequence[str]] | None = None,
    replicates: int = 1000,
    seed: int = 0,
    reference: str | None = None,
    control_steps: int = 0,
    progress: bool = False,
    **kwargs: Any,
) -> Curves:
    """Measure the SNR against K, the number of particles, and its log-log slope.

        SNR(K) ∝ K^slope;   IWAE: +1/2 for θ, −1/2 for φ;   DReG: +1/2 for φ

    The largest K is measured first.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The Pyro program q(z|x).
        x: The data `[N, ...]`, or the arguments of model and guide as in `log_likelihood`.
        make: By name, a function from K to an objective. If it raises ConfigError, as VIMCO does at
            K = 1, the objective is left out at that K.
        ks: The numbers of particles.
        parameters: Leaf tensors by name, as in `measure_gradients`.
        groups: Names of parameters by group. None for one group, "all".
        replicates: The number of gradients per objective and K, at least 20.
        seed: The seed of the draws and of the bootstrap.
        reference: A name in `make`; the bias is measured at each K at which it is defined.
        control_steps: Steps of Adam on what an objective learns, such as a baseline, before its
            gradients are measured. By default it is used as the objective holds it: as it was
            trained, or as `prepare` makes it.
        progress: Whether a progress bar is shown.
        kwargs: Keyword arguments of the programs: tensors `[N, ...]` and constants.

    Returns:
        Curves by objective and group; a slope is nan with fewer than two K.

    Raises:
        ConfigError: As in `measure_gradients`, for values of K that are repeated or below 1, and
            for an objective that is defined at none of them.
        ProgramError: As in `measure_gradients`.

    References:
        Rainforth et al. 2018, Tighter variational bounds are not necessarily better.
        Tucker et al. 2019, Doubly reparameterized gradient estimators for Monte Carlo objectives.

    >>> from pyro.distributions import Normal
    >>> from pyroae.objectives.named import dreg
    >>> phi = torch.full((20,), 0.8, requires_grad=True)  # the posterior mean is 0.5
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", Normal(pyro.sample("z", Normal(0.0, 1.0)), 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", Normal(phi, 0.8))
    >>> settings = {"parameters": {"phi": phi}, "replicates": 100}
    >>> x = torch.ones(20)
    >>> curves = measure_slopes(model, guide, x, {"dreg": dreg}, ks=(8, 64), **settings)
    >>> round(curves["dreg"]["all"].slope.slope, 1)
    0.5
    """
    groups = {"all": tuple(parameters)} if groups is None else groups
    _check(make, parameters, groups, replicates, reference)
    _check_steps(control_steps)
    at_k = defined_at(make, ks)
    structure = structure_of(x, kwargs, model)
    laboratory = _Laboratory(
        structure(model), structure(guide), structure.tensors, parameters, groups, control_steps
    )
    total = replicates * sum(map(len, at_k.values()))
    results: dict[int, Results] = {}
    with fork_random(laboratory.args[0].device), Progress("gradients", total, progress) as bar:
        for name in make:
            least = min(k for k in at_k if name in at_k[k])
            laboratory.gradient(at_k[least][name], seed)  # a trial run with Pyro's checks
        counter = _Counter(bar)
        for k in sorted(at_k, reverse=True):
            counter.suffix = f", K = {k}"
            results[k] = laboratory.measure(
                at_k[k], replicates, seed, reference if reference in at_k[k] else None, counter
            )
    curves = Curves()
    for name in make:
        defined = [k for k in ks if name in at_k[k]]
        curves[name] = {
            group: curve(defined, [results[k][name][group] for k in defined]) for group in groups
        }
    return curves


def defined_at(
    make: Mapping[str, Callable[[int], ObjectiveBase]], ks: Sequence[int]
) -> dict[int, dict[str, ObjectiveBase]]:
    """Make the objectives at each K at which they are defined.

    Args:
        make: By name, a function from K to an objective, which raises ConfigError where the
            objective is not defined.
        ks: The numbers of particles.

    Returns:
        For each K, the objectives by name.

    Raises:
        ConfigError: For an objective that is defined at none of the K, and for values of K that are
            repeated or below 1.

    >>> from pyroae.objectives.named import iwae, vimco
    >>> at_k = defined_at({"iwae": iwae, "vimco": vimco}, (1, 2))
    >>> {k: list(objectives) for k, objectives in at_k.items()}
    {1: ['iwae'], 2: ['iwae', 'vimco']}
    """
    if not different_numbers(ks, 1):
        raise ConfigError(f"K takes different whole numbers of at least 1, not {as_list(ks)}")
    for name, function in make.items():
        if not callable(function) or isinstance(function, ELBO):
            raise ConfigError(
                f"the objective '{name}' is given by a function from K, such as iwae or "
                f"lambda k: Objective(IWAE(k)), not {type(function).__name__}"
            )
    at_k: dict[int, dict[str, ObjectiveBase]] = {k: {} for k in ks}
    for name, function in make.items():
        refused = None
        for k in ks:
            try:
                at_k[k][name] = function(k)
            except ConfigError as error:
                refused = error
        if not any(name in objectives for objectives in at_k.values()):
            tried = ", ".join(map(str, ks))
            raise ConfigError(
                f"the objective '{name}' is defined at none of K = {tried}: {refused}"
            )
    return at_k


@dataclass
class _Counter:
    """Counts the gradients that are done, and shows the count."""

    bar: Progress
    suffix: str = ""
    done: int = 0

    def add(self, name: str) -> None:
        """Count one gradient of an objective."""
        self.done += 1
        self.bar.update(self.done, name + self.suffix)


class _Laboratory:
    """Measures gradients of objectives, for fixed programs, data, parameters and groups."""

    def __init__(
        self,
        model: Program,
        guide: Program,
        args: tuple[Tensor, ...],
        parameters: Mapping[str, Tensor],
        groups: Mapping[str, Sequence[str]],
        control_steps: int,
    ) -> None:
        self.control_steps = control_steps
        self.model, self.guide, self.args, self.parameters = model, guide, args, parameters
        used = {name for names in groups.values() for name in names}
        self.names = [name for name in parameters if name in used]
        self.groups = _parts({name: parameters[name].numel() for name in self.names}, groups)

    def measure(
        self,
        objectives: Mapping[str, ObjectiveBase],
        replicates: int,
        seed: int,
        reference: str | None,
        counter: _Counter,
    ) -> Results:
        """The statistics of each objective, by group."""
        of_reference: Stream | None = None
        results = {}
        for name in sorted(objectives, key=lambda name: name != reference):  # the reference first
            self._train_controls(objectives[name], seed * SEEDS + replicates)
            self.gradient(objectives[name], seed)  # work that is done once is not timed
            stream = Stream(self.groups, of_reference)
            seconds = self._collect(
                stream, objectives[name], replicates, seed, partial(counter.add, name)
            )
            if not bool(stream.means.isfinite().all()):
                raise ProgramError(
                    f"the gradient of the objective '{name}' is not finite in some of "
                    f"{replicates} replicates"
                )
            of_reference = stream if name == reference else of_reference
            evaluations = round(objectives[name].evaluations * len(self.args[0]))
            statistics = stream.statistics(of_reference, seed, seconds, evaluations)
            results[name] = OfGroups(statistics)
        return Results((name, results[name]) for name in objectives)

    def _train_controls(self, objective: ObjectiveBase, seed: int) -> None:
        """Train what an objective learns, with draws of a seed that no replicate has."""
        steps = self.control_steps
        train_controls(objective, self.model, self.guide, self.args, steps=steps, seed=seed)

    def gradient(self, objective: ObjectiveBase, seed: int) -> Tensor:
        """The gradient of the bound per datum, `[P]`, with the noise of a seed."""
        start_random(self.args[0].device, seed)
        objective.next_step()
        surrogate = objective.bound(self.model, self.guide, *self.args).surrogate
        if not surrogate.requires_grad:
            raise ProgramError(
                f"the surrogate of {type(objective).__name__} depends on no parameter of model "
                "and guide"
            )
        leaves = list(self.parameters.values())
        gradients = torch.autograd.grad(
            surrogate / len(self.args[0]), leaves, allow_unused=True, materialize_grads=True
        )
        by_name = dict(zip(self.parameters, gradients, strict=True))
        return torch.cat([by_name[name].flatten() for name in self.names])

    def _noiseless(self, objective: ObjectiveBase, seed: int) -> tuple[Tensor, float] | None:
        """The gradient of an objective without noise, and its seconds; None where there is noise.

        Modules such as dropout may add noise, so that two gradients are compared.
        """
        if not objective.is_noiseless:
            return None
        started = time.perf_counter()
        one, other = (self.gradient(objective, seed + r) for r in range(2))
        _synchronize(self.args[0])
        return (one, (time.perf_counter() - started) / 2) if torch.equal(one, other) else None

    def _collect(
        self,
        stream: Stream,
        objective: ObjectiveBase,
        replicates: int,
        seed: int,
        tick: Callable[[], None],
    ) -> float:
        """Add all replicates to a stream; return the seconds per gradient, median over batches."""
        spent, known = [0.0] * BATCHES, self._noiseless(objective, seed)
        for r in range(replicates):
            batch = r * BATCHES // replicates
            _synchronize(self.args[0])
            started = time.perf_counter()
            with pyro.validation_enabled(False):
                gradient = self.gradient(objective, seed * SEEDS + r) if known is None else known[0]
            _synchronize(self.args[0])
            spent[batch] += time.perf_counter() - started
            stream.add(batch, gradient)
            tick()
        if known is not None:
            return known[1]
        return median(seconds / count for seconds, count in zip(spent, stream.counts, strict=True))


def _parts(sizes: Mapping[str, int], groups: Mapping[str, Sequence[str]]) -> dict[str, Part]:
    """The slices of each group in the concatenation of parameters of these sizes."""
    starts, start = {}, 0
    for name, size in sizes.items():
        starts[name], start = start, start + size
    parts = {}
    for group, names in groups.items():
        slices: list[slice] = []
        for name in names:
            first, last = starts[name], starts[name] + sizes[name]
            if slices and slices[-1].stop == first:
                first = slices.pop().start
            slices.append(slice(first, last))
        parts[group] = tuple(slices)
    return parts


def _synchronize(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def _check_steps(control_steps: int) -> None:
    if not isinstance(control_steps, int) or control_steps < 0:
        raise ConfigError(
            f"control_steps must be a whole number of at least 0, not {control_steps!r}"
        )


def _check(
    objectives: Mapping[str, object],
    parameters: Mapping[str, Tensor],
    groups: Mapping[str, Sequence[str]],
    replicates: int,
    reference: str | None,
) -> None:
    if not isinstance(replicates, int) or replicates < BATCHES:
        raise ConfigError(
            f"replicates must be a whole number of at least {BATCHES}, not {replicates!r}"
        )
    if reference is not None and reference not in objectives:
        raise unknown_name("reference", reference, objectives)
    check_leaves(parameters)
    for group, names in groups.items():
        if not names:
            raise ConfigError(f"the group '{group}' has no parameters")
        for name in names:
            if name not in parameters:
                raise unknown_name("parameter", name, parameters)
