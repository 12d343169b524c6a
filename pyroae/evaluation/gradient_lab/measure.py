"""The gradient laboratory: mean, variance, signal-to-noise ratio and bias of gradient estimators at fixed θ and φ, streamed."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import pyro
import torch
from torch import Tensor

from pyroae.errors import ConfigError, ProgramError, unknown_name
from pyroae.evaluation.blocks import Data
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
from pyroae.programs.context import fork_random
from pyroae.programs.sites import Program
from pyroae.runtime.progress import Progress
from pyroae.runtime.randomness import start_random

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


Found = dict[str, dict[str, GradientStatistics]]


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
    progress: bool = False,
    **kwargs: Any,
) -> dict[str, dict[str, GradientStatistics]]:
    """Statistics of each objective's gradient over draws of z, by objective and group: (θ, φ) and the data are held.

        Δ_r = (1/N) ∇ surrogate(x; noise r),   SNR = mean_p |E Δ_p| / σ(Δ_p),   DSNR = E ‖Δ∥‖ / ‖Δ − Δ∥‖,   Δ∥ = (Δ·u) u

    x, kwargs: the arguments as of `log_likelihood`, passed whole to both programs.
    parameters: leaves by name, as of `dict(system.named_parameters())`;
    one that the bound does not reach has the gradient 0. groups: names of parameters, by group, as `parameter_groups`
    finds them; all in one, "all", where there are none. Replicate r of every objective starts from the same seed: at
    equal K the noise is paired. reference: the objective whose mean gradient the bias is measured from, in paired
    differences.

    Replicates are not stored. They come in 20 batches with a mean and a variance each (Welford 1962): 40 P numbers an
    objective, of two at a time, also for 10,000 replicates and however groups overlap. Intervals are bootstrapped over the
    batches; the bias has its error from their spread.
    u is the direction of the mean, of the reference's where there is one, over the first half of the replicates; the
    DSNR is a mean over the second half, which has no part in u.
    Torch's generators stay as they were. Raises ConfigError for fewer than 20 replicates, unknown names, empty groups
    and parameters that are no leaves with a gradient; ProgramError where the surrogate reaches no parameter at all, or a
    gradient is not finite.
    Rainforth et al. 2018, Tighter variational bounds are not necessarily better.

    >>> from pyroae import zoo
    >>> from pyroae.objectives.named import iwae, iwae_stl
    >>> system, x = zoo.ppca(4, latent=2), torch.ones(3, 4)
    >>> estimators, phi = {"iwae": iwae(4), "stl": iwae_stl(4)}, dict(system.encoder.named_parameters())
    >>> found = measure_gradients(system.model, system.guide, x, estimators, parameters=phi, replicates=100, reference="iwae")
    >>> found["stl"]["all"].mean.shape, found["stl"]["all"].bias > 3 * found["stl"]["all"].bias_se
    (torch.Size([20]), True)
    """
    groups = {"all": tuple(parameters)} if groups is None else groups
    _check(objectives, parameters, groups, replicates, reference)
    structure = structure_of(x, kwargs, model)
    place = _Place(structure(model), structure(guide), structure.tensors, parameters, groups)
    with (
        fork_random(place.args[0].device),
        Progress("gradients", len(objectives) * replicates, progress) as bar,
    ):
        for objective in objectives.values():
            place.gradient(objective, seed)  # a look before any work, with Pyro's checks
        return place.measure(objectives, replicates, seed, reference, _Counter(bar))


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
    progress: bool = False,
    **kwargs: Any,
) -> dict[str, dict[str, SNRCurve]]:
    """SNR against K, the number of particles, with its log-log slope, by objective and group.

    make: by name, a function from K to an objective. Where that raises ConfigError, as VIMCO does at K = 1, the objective is
    left out at that K; with fewer than two K left, its slope is nan. reference: one of `make`; the bias is measured at
    each K where it is defined. The others are those of `measure_gradients`. The largest K comes first.
    Raises what that raises, and ConfigError for values of K that are repeated or below 1, and for an objective that is
    defined at none of them.
    Rainforth et al. 2018: IWAE's slope is +1/2 for θ and −1/2 for φ; Tucker et al. 2019: DReG's is +1/2 for φ.

    >>> from pyro.distributions import Normal
    >>> from pyroae.objectives.named import dreg
    >>> phi = torch.full((20,), 0.8, requires_grad=True)  # the posterior mean is 0.5
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", Normal(pyro.sample("z", Normal(0.0, 1.0)), 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", Normal(phi, 0.8))
    >>> found = measure_slopes(
    ...     model, guide, torch.ones(20), {"dreg": dreg}, ks=(8, 64), parameters={"phi": phi}, replicates=100
    ... )
    >>> round(found["dreg"]["all"].slope.slope, 1)
    0.5
    """
    groups = {"all": tuple(parameters)} if groups is None else groups
    _check(make, parameters, groups, replicates, reference)
    at_k = defined_at(make, ks)
    structure = structure_of(x, kwargs, model)
    place = _Place(structure(model), structure(guide), structure.tensors, parameters, groups)
    total = replicates * sum(map(len, at_k.values()))
    found: dict[int, Found] = {}
    with fork_random(place.args[0].device), Progress("gradients", total, progress) as bar:
        for name in make:
            least = min(k for k in at_k if name in at_k[k])
            place.gradient(at_k[least][name], seed)  # a look before any work, with Pyro's checks
        count = _Counter(bar)
        for k in sorted(at_k, reverse=True):
            count.place = f", K = {k}"
            found[k] = place.measure(
                at_k[k], replicates, seed, reference if reference in at_k[k] else None, count
            )
    curves: dict[str, dict[str, SNRCurve]] = {}
    for name in make:
        defined = [k for k in ks if name in at_k[k]]
        curves[name] = {
            group: curve(defined, [found[k][name][group] for k in defined]) for group in groups
        }
    return curves


def defined_at(
    make: Mapping[str, Callable[[int], ObjectiveBase]], ks: Sequence[int]
) -> dict[int, dict[str, ObjectiveBase]]:
    """The objectives at each K, one that raises ConfigError at some K left out there. Raises ConfigError for one that is
    defined at none, and for values of K that are repeated or below 1.

    >>> from pyroae.objectives.named import iwae, vimco
    >>> {k: list(found) for k, found in defined_at({"iwae": iwae, "vimco": vimco}, (1, 2)).items()}
    {1: ['iwae'], 2: ['iwae', 'vimco']}
    """
    if not ks or len(set(ks)) < len(ks) or any(not isinstance(k, int) or k < 1 for k in ks):
        raise ConfigError(f"K takes different whole numbers of at least 1, not {list(ks)}")
    at_k: dict[int, dict[str, ObjectiveBase]] = {k: {} for k in ks}
    for name, function in make.items():
        refused = None
        for k in ks:
            try:
                at_k[k][name] = function(k)
            except ConfigError as error:
                refused = error
        if not any(name in objectives for objectives in at_k.values()):
            raise ConfigError(
                f"the objective '{name}' is defined at none of K = {', '.join(map(str, ks))}: {refused}"
            )
    return at_k


@dataclass
class _Counter:
    """How many gradients of the whole work are done."""

    bar: Progress
    place: str = ""
    done: int = 0

    def add(self, name: str) -> None:
        """One more, of an objective."""
        self.done += 1
        self.bar.update(self.done, name + self.place)


class _Place:
    """Gradients of objectives at one place: programs, data, parameters and their groups."""

    def __init__(
        self,
        model: Program,
        guide: Program,
        args: tuple[Tensor, ...],
        parameters: Mapping[str, Tensor],
        groups: Mapping[str, Sequence[str]],
    ) -> None:
        self.model, self.guide, self.args, self.parameters = model, guide, args, parameters
        used = {name for names in groups.values() for name in names}
        self.kept = [name for name in parameters if name in used]
        self.groups = _parts({name: parameters[name].numel() for name in self.kept}, groups)

    def measure(
        self,
        objectives: Mapping[str, ObjectiveBase],
        replicates: int,
        seed: int,
        reference: str | None,
        count: _Counter,
    ) -> Found:
        """The statistics of each objective, by group."""
        known: Stream | None = None
        found = {}
        for name in sorted(objectives, key=lambda name: name != reference):  # the reference first
            self.gradient(objectives[name], seed)  # what is done once is not timed
            stream = Stream(self.groups, known)
            seconds = self._collect(
                stream, objectives[name], replicates, seed, partial(count.add, name)
            )
            if not bool(stream.means.isfinite().all()):
                raise ProgramError(
                    f"the gradient of the objective '{name}' is not finite in some of {replicates} replicates"
                )
            known = stream if name == reference else known
            evaluations = objectives[name].num_particles * len(self.args[0])
            found[name] = stream.statistics(known, seed, seconds, evaluations)
        return {name: found[name] for name in objectives}

    def gradient(self, objective: ObjectiveBase, seed: int) -> Tensor:
        """Of the bound per datum, `[P]`, the parameters of all groups one after the other, with the noise of a seed."""
        start_random(self.args[0].device, seed)
        surrogate = objective.bound(self.model, self.guide, *self.args).surrogate
        if not surrogate.requires_grad:
            raise ProgramError(
                f"the surrogate of {type(objective).__name__} depends on no parameter of model and guide"
            )
        leaves = list(self.parameters.values())
        found = torch.autograd.grad(
            surrogate / len(self.args[0]), leaves, allow_unused=True, materialize_grads=True
        )
        gradients = dict(zip(self.parameters, found, strict=True))
        return torch.cat([gradients[name].flatten() for name in self.kept])

    def _collect(
        self,
        stream: Stream,
        objective: ObjectiveBase,
        replicates: int,
        seed: int,
        tick: Callable[[], None],
    ) -> float:
        """Add every replicate to the stream; the seconds of one gradient, median of the batches."""
        spent = [0.0] * BATCHES
        for r in range(replicates):
            batch = r * BATCHES // replicates
            _synchronize(self.args[0])
            started = time.perf_counter()
            with pyro.validation_enabled(False):
                gradient = self.gradient(objective, seed * 1_000_003 + r)
            _synchronize(self.args[0])
            spent[batch] += time.perf_counter() - started
            stream.add(batch, gradient)
            tick()
        return median(seconds / count for seconds, count in zip(spent, stream.counts, strict=True))


def _parts(sizes: Mapping[str, int], groups: Mapping[str, Sequence[str]]) -> dict[str, Part]:
    """Where each group lies when the parameters of these sizes stand one after the other."""
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
