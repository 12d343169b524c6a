"""Draws of the guide, the prior and the posterior as arrays, the data in the dimension after them.

Shapes: S draws, N data; C chains of the posterior.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import numpy as np
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor

from pyroae.errors import (
    BrokenProgramError,
    ConfigError,
    UndefinedLikelihoodError,
)
from pyroae.evaluation.blocks import CHUNK, blocks
from pyroae.evaluation.checks import filled, is_one
from pyroae.programs.datum_values import by_datum, in_program
from pyroae.programs.execution import trace_program
from pyroae.programs.model_sums import MAY_BE_SUMMED
from pyroae.programs.paired_traces import Traces, log_density
from pyroae.programs.particles import is_draw
from pyroae.programs.sites import Program, Site, base_distribution
from pyroae.programs.traces import at_values, prior_of, run
from pyroae.weights import reduce_log_weights

Arrays = dict[str, np.ndarray]
"""Arrays by name."""


MOST_DRAWS = 1000
"""The largest number of draws of a datum in one run of the model."""


@dataclass
class Group:
    """Values by site.

    Attributes:
        arrays: `[S, N, *nested plates, *event]` each.
        plates: The names of the nested plates of each site.
    """

    arrays: Arrays = field(default_factory=dict)
    plates: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, traces: Traces, site: Site) -> None:
        """Add the value of a site.

        Args:
            name: The name of the site.
            traces: The run that it is of.
            site: The site.
        """
        value, self.plates[name] = by_datum(traces, site)
        kept = value.detach().float().cpu().numpy()
        self.arrays[name] = np.broadcast_to(kept, (traces.num_particles, *kept.shape[1:]))

    @classmethod
    def joined(cls, parts: Sequence[Self], axis: int) -> Self:
        """Concatenate groups of the same sites.

        Args:
            parts: The groups, at least one.
            axis: 0 for the draws, 1 for the data.

        Returns:
            One group.
        """
        names = parts[0].arrays
        arrays = {n: np.concatenate([part.arrays[n] for part in parts], axis) for n in names}
        return cls(arrays, parts[0].plates)


def guide_groups(
    model: Program, guide: Program, args: tuple[Tensor, ...], num_draws: int
) -> tuple[Group, Arrays, Group]:
    """Draw from the guide, z ~ q(z|x).

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The Pyro program q(z|x).
        args: Their arguments, `[N, ...]` each.
        num_draws: S.

    Returns:
        The draws, of sites in the data plate; `log_weight` = `log_lik` + `log_prior` − `log_q`,
        `[S, N]` each, in nats; and the observed values, with S = 1, of the sites that can be drawn.
    """
    parts = [
        _of_guide(filled(run(model, guide, part, {}, num_draws)))
        for part in blocks(args, _rows(args, num_draws))
    ]
    draws, densities, observed = (Group.joined([part[i] for part in parts], 1) for i in range(3))
    return draws, densities.arrays, observed


def _of_guide(traces: Traces) -> tuple[Group, Group, Group]:
    draws, observed, weights = Group(), Group(), reduce_log_weights(traces)
    for name, site in traces.sites(traces.guide, observed=False):
        if traces.is_local(site):
            draws.add(name, traces, site)
    parts = {
        "log_lik": weights.log_lik,
        "log_prior": weights.log_prior,
        "log_q": weights.log_post,
        "log_weight": weights.log_weight,
    }
    densities = Group({name: value.detach().cpu().numpy() for name, value in parts.items()})
    for name in drawable(traces):
        observed.add(name, traces, traces.model.nodes[name])
        observed.arrays[name] = observed.arrays[name][:1]
    return draws, densities, observed


def drawable(traces: Traces) -> list[str]:
    """List the observed sites of which x can be drawn.

    Args:
        traces: A run of model and guide.

    Returns:
        Names of the observed sites in the data plate, but for factors, scaled sites, and counts
        whose density is given their observed total.
    """
    names = []
    for name, site in traces.sites(traces.model, observed=True):
        base = base_distribution(site["fn"])
        if (
            traces.is_local(site)
            and not site["infer"].get("_deterministic")
            and not isinstance(base, dist.Unit)
            and not getattr(base, "is_given_value", False)
            and is_one(traces.exponent(site))
        ):
            names.append(name)
    return names


def prior_groups(
    model: Program, args: tuple[Tensor, ...], num_draws: int
) -> tuple[Group, Group] | None:
    """Simulate from the model, (z, x) ~ p(z) p(x|z).

    Args:
        model: The Pyro program.
        args: Its arguments, `[N, ...]` each. Of what is observed only the number of data matters.
        num_draws: S.

    Returns:
        z and x; None for a prior that cannot be sampled, such as a flat one.
    """
    try:
        return _by_blocks(partial(_of_prior, model), args, num_draws)
    except UndefinedLikelihoodError:
        return None
    except BrokenProgramError as error:
        if isinstance(error.__cause__, NotImplementedError):
            return None
        raise


def _of_prior(
    model: Program, args: tuple[Tensor, ...], draws: slice, data: slice
) -> tuple[Group, Group]:
    traces = run(model, prior_of(model), args, {}, draws.stop - draws.start)
    latent = [
        name for name, site in traces.sites(traces.model, observed=False) if traces.is_local(site)
    ]
    nodes = _simulated(model, traces, args, None)
    z, x = Group(), Group()
    for group, names in ((z, latent), (x, drawable(traces))):
        for name in names:
            group.add(name, traces, nodes[name])
    return z, x


def posterior_groups(
    model: Program,
    guide: Program,
    args: tuple[Tensor, ...],
    posterior: Mapping[str, Tensor],
    kept: tuple[np.ndarray, np.ndarray],
) -> tuple[Arrays, Group]:
    """Evaluate the prior at draws of p(z|x), and draw x from some of them.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: A program over the same latent sites.
        args: Their arguments, `[N, ...]` each.
        posterior: Draws by site, `[C, S, N, *nested plates, *event]`.
        kept: Indices of the chains and of the draws from which x is drawn.

    Returns:
        log p(z) of each site given those before it, `[C, S, N]`, in nats; and x, with one draw for
        each of the kept draws of z. The second is empty for a model of which sites are summed out:
        given z, they are not those of the prior.

    Raises:
        ConfigError: For draws of other sites than the latent sites of the model, or other data.
    """
    shape = next(iter(posterior.values())).shape[:3] if posterior else torch.Size((0, 0, 0))
    _check_sites(model, guide, args, posterior, shape)
    chains, draws = (torch.as_tensor(index) for index in kept)
    every = {name: value.flatten(0, 1) for name, value in posterior.items()}
    some = {name: value[chains][:, draws].flatten(0, 1) for name, value in posterior.items()}
    log_prior, _ = _by_blocks(
        partial(_at_draws, model, guide, every, _log_prior), args, shape[0] * shape[1]
    )
    x = Group()
    if chains.numel() and draws.numel():
        work = partial(_at_draws, model, guide, some, partial(_predictive, model))
        _, x = _by_blocks(work, args, len(chains) * len(draws))
    log_priors = {n: v.reshape(*shape[:2], -1) for n, v in log_prior.arrays.items()}
    return log_priors, x


def _check_sites(
    model: Program,
    guide: Program,
    args: tuple[Tensor, ...],
    posterior: Mapping[str, Tensor],
    shape: Sequence[int],
) -> None:
    traces = run(model, guide, tuple(a[:1] for a in args), {})
    latent = {name for name, _ in traces.sites(traces.model, observed=False)}
    if set(posterior) != latent:
        raise ConfigError(
            f"the posterior draws are of the sites {sorted(posterior)}, but the latent sites of "
            f"the model are {sorted(latent)}"
        )
    if any(v.shape[:3] != shape for v in posterior.values()) or shape[2] != len(args[0]):
        raise ConfigError(
            f"posterior draws of {len(args[0])} data need the shape [chains, draws, data, ...], "
            f"not {[tuple(v.shape) for v in posterior.values()]}"
        )


def _at_draws(
    model: Program,
    guide: Program,
    posterior: Mapping[str, Tensor],
    read: Callable[[Traces, tuple[Tensor, ...]], Group],
    args: tuple[Tensor, ...],
    draws: slice,
    data: slice,
) -> tuple[Group, Group]:
    """Run the model at draws of the posterior; twice what is read from the run."""
    base = run(model, guide, args, {}, draws.stop - draws.start)
    values = {}
    for name, value in posterior.items():
        site = base.guide.nodes[name]
        at = in_program(base, site, value[draws, data].to(site["value"]))
        values[name] = torch.where(at.isnan(), site["value"], at)  # elements that are masked
    found = read(at_values(base, model, args, {}, values), args)
    return found, found


def _log_prior(traces: Traces, args: tuple[Tensor, ...]) -> Group:
    terms = {
        name: traces.reduce(site, log_density(name, site)).detach().cpu().numpy()
        for name, site in traces.sites(traces.model, observed=False)
    }
    return Group(terms)


def _predictive(model: Program, traces: Traces, args: tuple[Tensor, ...]) -> Group:
    """Draws of x; none where sites are summed out, which the draws of z tell something of."""
    nodes, x = _simulated(model, traces, args, traces.drawn), Group()
    summed = [n for n, site in nodes.items() if is_draw(site) and n not in traces.drawn.nodes]
    names = drawable(traces)
    for name in [] if set(summed) - set(names) else names:
        x.add(name, traces, nodes[name])
    return x


class _Drawn(UnconditionMessenger):
    """Draw some of the observed sites."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            super()._pyro_sample(msg)


def _simulated(
    model: Program, traces: Traces, args: tuple[Tensor, ...], seen: poutine.Trace | None
) -> Mapping[str, Any]:
    """The sites of a run of the model that draws x, and z where it is not given; none is summed."""
    whole = poutine.infer_config(model, lambda site: {"enumerate": None, MAY_BE_SUMMED: False})
    program = _Drawn(drawable(traces))(whole)
    return trace_program(program, args, {}, traces.num_particles, traces.nesting, seen).nodes


def _by_blocks(
    work: Callable[[tuple[Tensor, ...], slice, slice], tuple[Group, Group]],
    args: tuple[Tensor, ...],
    num_draws: int,
) -> tuple[Group, Group]:
    """Run work for blocks of draws and of data, and join its groups."""
    firsts = range(0, num_draws, MOST_DRAWS)
    draws = [slice(first, min(first + MOST_DRAWS, num_draws)) for first in firsts]
    columns, first = [], 0
    for part in blocks(args, _rows(args, min(num_draws, MOST_DRAWS))):
        data = slice(first, first + len(part[0]))
        found = [work(part, one, data) for one in draws]
        columns.append([Group.joined([pair[i] for pair in found], 0) for i in range(2)])
        first = data.stop
    one, other = (Group.joined([column[i] for column in columns], 1) for i in range(2))
    return one, other


def _rows(args: tuple[Tensor, ...], num_draws: int) -> int:
    """The number of data of a block."""
    return max(1, CHUNK // max(256, args[0][0].numel()) // num_draws)
