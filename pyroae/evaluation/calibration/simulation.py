"""Simulate pairs (z, x) of a program, and rank z among draws of q(z|x)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyroae.config.calibration import CalibrationSettings
from pyroae.errors import ProgramError
from pyroae.evaluation.calibration.ranks import (
    DENSITIES,
    densities,
    element_names,
    is_masked,
    latent_values,
    normalized,
    p_values,
)
from pyroae.evaluation.simulated_data import replaced, simulated
from pyroae.programs.paired_traces import Traces, log_density
from pyroae.programs.sites import Program, is_delta
from pyroae.programs.traces import at_values, run
from pyroae.runtime.randomness import fork_random
from pyroae.weights import reduce_log_weights

HINTS = {
    "use": "calibration",
    "instead": "give x as an argument whose values the model observes as they are",
}
"""Words of the error where the guide cannot be given simulated data."""


EQUAL = 100
"""Log-densities that differ by less than this many units of rounding count as equal."""


@dataclass(frozen=True)
class Plan:
    """What is done in each repetition.

    Attributes:
        model: The Pyro program p(z) p(x|z).
        guide: The program q(z|x).
        nesting: The number of plate dimensions of the programs.
        joint: Whether all data together are one repetition, because latents lie outside the data
            plate; otherwise each datum is one.
        settings: How many simulations and draws, and which weights.
    """

    model: Program
    guide: Program
    nesting: int
    joint: bool
    settings: CalibrationSettings


@dataclass(frozen=True)
class Pair:
    """One simulation of (z, x), and the programs given x.

    Attributes:
        model: The model, which observes the simulated x.
        guide: The guide, which sees the simulated x.
        args: The arguments of the model.
        guide_args: The arguments of the guide.
        true: A run of model and guide at the true z, with one particle.
    """

    model: Program
    guide: Program
    args: tuple[Tensor, ...]
    guide_args: tuple[Tensor, ...]
    true: Traces


@dataclass(frozen=True)
class Ranks:
    """p-values of some repetitions.

    Attributes:
        names: The names of the U quantities: elements of latent sites, then `DENSITIES`.
        p: p-values `[R, U]`, float64; NaN where an element is masked.
        varies: Whether draws of the quantity ever differ from its true value, `[U]`.
        ess: The effective number of draws, `[R]`.
    """

    names: list[str]
    p: Tensor
    varies: Tensor
    ess: Tensor

    @classmethod
    def joined(cls, parts: list["Ranks"]) -> "Ranks":
        """Concatenate repetitions; leave out quantities that never vary.

        Args:
            parts: Ranks with the same quantities.

        Returns:
            All repetitions.
        """
        varies = torch.stack([part.varies for part in parts]).any(0)
        names = [name for name, kept in zip(parts[0].names, varies.tolist(), strict=True) if kept]
        p = torch.cat([part.p for part in parts])[:, varies]
        return cls(names, p, varies[varies], torch.cat([part.ess for part in parts]))


def simulate(plan: Plan, args: tuple[Tensor, ...]) -> Pair:
    """Draw (z, x) from the model, and give x to model and guide.

    Args:
        plan: What is done.
        args: Arguments of both programs, `[N, ...]` each; their observed values are not used.

    Returns:
        The programs given x, and a run at the true z.

    Raises:
        ProgramError: As of `simulated`.
        ConfigError: As of `replaced`.
    """
    traces = run(plan.model, plan.guide, args, {})
    traces = replace(traces, plate=None) if plan.joint else traces
    x, z = simulated(plan.model, args, traces)
    model, guide_args = poutine.condition(plan.model, data=x), replaced(args, traces, x, **HINTS)
    guide = partial(_with_own, plan.guide, guide_args)
    true = at_values(run(model, guide, args, {}), model, args, {}, z)
    return Pair(model, guide, args, guide_args, true)


def _with_own(guide: Program, own: tuple[Tensor, ...], *_: Any) -> Any:
    return guide(*own)


def rank(plan: Plan, pair: Pair, datum: int = 0) -> Ranks:
    """Rank the true z among draws of q(z|x).

    Args:
        plan: What is done.
        pair: Simulated z and x.
        datum: For `plan.joint`, the datum whose local latents are ranked.

    Returns:
        One repetition for each datum, or one for all data.

    Raises:
        ProgramError: For draws that are not finite.
        DataError: For importance weights that are all zero, or not a number.
    """
    draws = run(pair.model, pair.guide, pair.args, {}, plan.settings.num_draws, plan.nesting)
    whole, true = (replace(t, plate=None) if plan.joint else t for t in (draws, pair.true))
    weights = None
    if plan.settings.draws == "importance":
        weights = normalized(reduce_log_weights(whole).log_weight)
    names, columns, varies = [], [], []
    for name, _ in draws.sites(draws.model, observed=False):
        truth, value, masked = (_one(plan, t, datum) for t in _values(draws, pair.true, name))
        p = p_values(truth[0], value, torch.rand_like(truth[0].double()), weights)
        columns.append(torch.where(masked[0], torch.nan, p).reshape(len(p), -1))
        varies.append((value != truth).any(0).any(0).flatten())
        names += element_names(name, tuple(truth.shape[2:]))
    at_true, at_draws = densities(true)[0], densities(whole)
    slack = EQUAL * torch.finfo(at_true.dtype).eps
    columns.append(p_values(at_true, at_draws, torch.rand_like(at_true.double()), weights, slack))
    width = slack * at_true.abs().clamp(min=1)
    varies.append(((at_draws - at_true).abs() > width).any(0).any(0))
    p = torch.cat(columns, 1).cpu()
    ess = torch.full((len(p),), float(plan.settings.num_draws), dtype=torch.float64)
    ess = ess if weights is None else (1 / weights.square().sum(0)).cpu()
    return Ranks([*names, *DENSITIES], p, torch.cat(varies).cpu(), ess)


def _values(draws: Traces, true: Traces, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """The true value and the draws of a site, and where it is masked."""
    truth, value = latent_values(true, name), latent_values(draws, name)
    masked = is_masked(true, name)
    return truth, value, torch.zeros_like(truth, dtype=torch.bool) if masked is None else masked


def _one(plan: Plan, value: Tensor, datum: int) -> Tensor:
    """One datum of a local latent where all data are one repetition."""
    return value[:, datum : datum + 1] if plan.joint and value.shape[1] > 1 else value


def check_reads_data(plan: Plan, pair: Pair) -> None:
    """Refuse a guide that is not amortized, and a model that uses observed values twice.

    Args:
        plan: What is done.
        pair: Simulated z and x.

    Raises:
        ProgramError: Naming the site.
    """
    again = at_values(pair.true, plan.model, pair.guide_args, {}, _latents(pair.true))
    for name, site in pair.true.sites(pair.true.model, observed=True):
        one, other = (log_density(name, s) for s in (site, again.model.nodes[name]))
        if one.shape != other.shape or not torch.allclose(one, other, rtol=1e-4, atol=1e-4):
            raise ProgramError(
                f"the density of the site '{name}' depends on observed values other than its own, "
                "as in an autoregressive model: x drawn from this model is not x of its density"
            )
    pairs = zip(pair.args, pair.guide_args, strict=True)
    unchanged = all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)
    if plan.settings.draws != "guide" or unchanged:
        return  # weights correct any guide; where all is masked, nothing can be seen
    blind = _blind_sites(plan, pair)
    outside = [name for name in blind if not pair.true.is_local(pair.true.guide.nodes[name])]
    draws = dict(pair.true.sites(pair.true.guide, observed=False))
    if outside or len(blind) == len(draws):
        where = "lies outside the data plate and " if outside else ""
        raise ProgramError(
            f"the guide's site '{(outside or blind)[0]}' {where}has the same distribution for any "
            "data: it was fitted to one data set, and its calibration would need a fit to each "
            "simulated one; give a guide that reads its parameters from the data"
        )


def _latents(traces: Traces) -> Mapping[str, Tensor]:
    return {n: s["value"] for n, s in traces.sites(traces.model, observed=False)}


def _blind_sites(plan: Plan, pair: Pair) -> list[str]:
    """Latent sites of the guide with the same draws, of the same density, for other data."""

    def run_with(args: tuple[Tensor, ...], drawn: poutine.Trace | None = None) -> Traces:
        with fork_random(args[0].device, 0):
            return run(plan.model, plan.guide, args, {}, drawn=drawn)

    given, seen = run_with(pair.args), run_with(pair.guide_args)
    again = run_with(pair.guide_args, given.drawn)
    blind = []
    for name, site in given.sites(given.guide, observed=False):
        other = again.guide.nodes[name]
        same_density = is_delta(site) or torch.equal(
            log_density(name, site), log_density(name, other)
        )
        if same_density and torch.equal(site["value"], seen.guide.nodes[name]["value"]):
            blind.append(name)
    return blind
