"""Check that log p(x) of each datum exists and is what an evaluator will compute.

Every evaluator uses these checks before it starts.
"""

import warnings
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.distributions import ImproperUniform, MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyroae.errors import ProgramError, UndefinedLikelihoodError
from pyroae.evaluation.blocks import part_of, rows_of
from pyroae.programs.context import evaluating
from pyroae.programs.global_sites import globals_of
from pyroae.programs.latents import stand_ins
from pyroae.programs.masks import mask_of, where_unmasked
from pyroae.programs.paired_traces import Traces, log_density
from pyroae.programs.sites import Program, Site, base_distribution, is_delta, samples
from pyroae.programs.traces import at_values, run
from pyroae.programs.trial_runs import is_close
from pyroae.runtime.memory import ChunkSize
from pyroae.runtime.randomness import fork_random

Role = Literal["proposal", "path", "start", "parts"]
"""The use of the guide.

"proposal": its draws are weighted. "path": annealing starts at its density. "start": a search
starts at its draws, and its density is not used. "parts": the terms of its bound are reported,
including those of a Delta or a flat prior.
"""


REDRAWN = 2
"""The number of new values that are tried for a masked site that is not discrete."""


MOST_STATES = 16
"""The largest number of states that are tried for a masked discrete site."""


def check_program(
    model: Program, guide: Program, args: tuple[Tensor, ...], role: Role = "proposal"
) -> None:
    """Refuse a program whose terms do not give a log p(x) for each datum.

    Plates, prior and guide are checked with the first datum (`check_evidence`, `check_proposal`),
    scales and masks with one draw of all data (`check_terms`). The state of torch's generators is
    restored.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The Pyro program that z is drawn from.
        args: Arguments of both, `[N, ...]` each.
        role: The use of the guide.

    Raises:
        UndefinedLikelihoodError: For an improper prior, or a Delta guide as a proposal.
        ProgramError: For plates, scales or masks under which log p(x) does not exist, with the
            name of the site.
    """
    with evaluating(model, guide), fork_random(args[0].device), pyro.validation_enabled(False):
        if role != "parts":
            first = part_of(args, range(1))
            traces = run(model, guide, first, {})
            if role == "start":
                check_evidence(traces)
            else:
                check_proposal(traces, guide, first)
        check_terms(model, guide, args, role)


def check_evidence(traces: Traces, *, held_out: bool = False) -> None:
    """Refuse a model under which a single datum has no log p(x), whatever the guide.

    A model without an observed site, whose log p(x) is 0, is warned of.

    Args:
        traces: One run of model and guide.
        held_out: Whether latent sites outside the data plate are accepted. log p(x) is then that of
            new data, given the draws of these sites.

    Raises:
        UndefinedLikelihoodError: For an improper prior, with the name of the site.
        ProgramError: For a latent site outside the data plate, or one without a common or whole
            plate.
    """
    if not any(True for _ in traces.sites(traces.model, observed=True)):
        warnings.warn(
            "the model has no observed site, so that log p(x) is 0 for all data: give one obs=x, "
            "and hide none by poutine.block",
            stacklevel=2,
        )
    for name, site in traces.sites(traces.model, observed=False):
        if held_out and not traces.is_local(site):
            continue
        if isinstance(base_distribution(site["fn"]), ImproperUniform):
            raise UndefinedLikelihoodError(
                f"log p(x) is undefined: the prior of '{name}' is flat, so the model has no "
                "evidence; use a proper prior (ppca, vae, or a Normal or Laplace prior)"
            )
        if not traces.is_local(site):
            raise ProgramError(
                f"the latent site '{name}' lies outside the data plate: single data have no "
                "log p(x)"
            )
    plate = traces.plate
    if plate is None:
        if any(
            f.vectorized
            for _, s in traces.sites(traces.model, observed=True)
            for f in s["cond_indep_stack"]
        ):
            raise ProgramError("no one plate holds all the sites: single data have no log p(x)")
    elif plate.full_size not in (None, plate.size):
        raise ProgramError(
            f"the plate '{plate.name}' is subsampled: evaluate with all {plate.full_size} data"
        )


def check_proposal(
    traces: Traces,
    guide: Program | None = None,
    args: tuple[Any, ...] = (),
    *,
    held_out: bool = False,
) -> None:
    """Refuse a model without log p(x), and a guide that cannot be its proposal.

    A Delta that is a function of the guide's draws, as in AutoNormal and EasyGuide, is accepted.

    Args:
        traces: One run of model and guide.
        guide: The guide of the run. None accepts a Delta if the guide has an auxiliary draw.
        args: The arguments of the run.
        held_out: Whether latent sites outside the data plate are accepted, as in `check_evidence`.

    Raises:
        UndefinedLikelihoodError: For an improper prior, or a Delta that depends on no draw, with
            the name of the site.
        ProgramError: For plates under which log p(x) does not exist, with the name of the site.
    """
    check_evidence(traces, held_out=held_out)
    for name in points_of(traces, guide, args):
        raise UndefinedLikelihoodError(
            f"log p(x) cannot be estimated with this guide: its site '{name}' is a Delta, "
            "which has no density as a proposal; give another guide over the same sites as "
            "the proposal"
        )


def points_of(
    traces: Traces, guide: Program | None, args: tuple[Any, ...], *, all_sites: bool = False
) -> list[str]:
    """List the Deltas of a guide that depend on none of its draws.

    Args:
        traces: One run of model and guide.
        guide: The guide of the run. None accepts all Deltas if the guide has an auxiliary draw.
        args: The arguments of the run.
        all_sites: Whether sites outside the data plate are listed too.

    Returns:
        Names of these sites, in the order of the guide.
    """
    deltas = [name for name, site in traces.deltas() if all_sites or traces.is_local(site)]
    if not deltas:
        return []
    if guide is not None:
        accepted = _functions_of_draws(guide, args)
    else:
        auxiliary = any(name not in traces.model.nodes for name, _ in traces.draws())
        accepted = set(deltas) if auxiliary else set()
    return [name for name in deltas if name not in accepted]


def check_globals(
    model: Program, guide: Program, args: tuple[Tensor, ...], first: Traces | None = None
) -> bool:
    """Tell whether a guide has latent sites θ outside the data plate, and check them.

    If it has, each datum has a held-out log p(x) under q(θ).

    Args:
        model: The Pyro program p(θ) p(z|θ) p(x|z, θ).
        guide: The Pyro program q(θ) q(z|x, θ).
        args: Arguments of both, a few data, `[n, ...]` each.
        first: The result of `trial_run` for the same arguments; None runs it.

    Returns:
        Whether there are such sites.

    Raises:
        ProgramError: For a θ whose distribution depends on draws inside the plate or on the data,
            since q(θ | x) of new data is not the posterior given the training data; with the name
            of the site.
    """
    names = globals_of(model, guide, args, {}, first).names
    if not names:
        return False
    trace = poutine.trace(guide).get_trace(*part_of(args, range(1)))
    more = args if len(args[0]) > 1 else tuple(torch.cat([a, a]) for a in args)
    again = poutine.trace(poutine.replay(guide, trace=_draws_of(trace, names))).get_trace(*more)
    for name in names:
        if not _equal_sites(trace.nodes[name], again.nodes[name]):
            raise ProgramError(
                f"the guide's site '{name}' lies outside the data plate and depends on the data: "
                "held-out log p(x) needs one q for the latent sites outside the plate, the same "
                "for all new data"
            )
    return True


def _draws_of(trace: poutine.Trace, names: Collection[str]) -> poutine.Trace:
    """The draws of some sites, without Deltas."""
    other = poutine.Trace()
    for name in names:
        if not is_delta(trace.nodes[name]):
            other.add_node(name, **trace.nodes[name])
    return other


def _equal_sites(site: Site, other: Site) -> bool:
    """Whether a site has the same value and log-density in two runs."""
    one, two = log_density(site["name"], site), log_density(site["name"], other)
    return is_close(site["value"], other["value"]) and is_close(one, two)


def _functions_of_draws(guide: Program, args: tuple[Any, ...]) -> set[str]:
    """The Deltas of a guide whose values depend on its draws; all if it has discrete draws."""
    with torch.enable_grad(), _Leaves() as drawn:
        trace = poutine.trace(guide).get_trace(*args)
        values = {
            site["name"]: site["value"]
            for site in samples(trace)
            if not site["is_observed"] and is_delta(site)
        }
        totals = {name: value.sum() for name, value in values.items()}
    if not drawn.leaves:
        return set(values) if drawn.discrete else set()
    names = {
        name for name, value in values.items() if not value.is_floating_point() or drawn.discrete
    }
    for name, total in totals.items():
        if total.requires_grad:
            slopes = torch.autograd.grad(total, drawn.leaves, allow_unused=True, retain_graph=True)
            if any(slope is not None for slope in slopes):
                names.add(name)
    return names


class _Leaves(Messenger):
    """Makes every draw of a guide a leaf of the autograd graph."""

    def __init__(self) -> None:
        super().__init__()
        self.leaves: list[Tensor] = []
        self.discrete = False

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] or is_delta(msg) or type(msg["fn"]).__name__ == "_Subsample":
            return
        if msg["fn"].has_rsample:
            msg["value"] = msg["value"].detach().requires_grad_()
            self.leaves.append(msg["value"])
        else:
            self.discrete = True


def check_terms(
    model: Program, guide: Program, args: tuple[Tensor, ...], role: Role = "proposal"
) -> None:
    """Refuse scales and masks of latent sites under which the terms are not densities.

    A scale on a latent site raises its density to a power, which does not integrate to 1. A scale
    common to all sites of the plate is divided out and accepted, and a scale on an observed site is
    part of the likelihood. A masked latent element has no density. If nothing unmasked depends on
    it, it is not a coordinate and adds 0; otherwise log p(x) does not exist. All data are run once,
    in blocks, since masks differ between data.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The Pyro program that z is drawn from.
        args: Arguments of both, `[N, ...]` each.
        role: The use of the guide.

    Raises:
        ProgramError: For such a scale or mask, with the name of the site.
    """
    total, first = len(args[0]), 0
    chunk_size = ChunkSize(
        min(total, max(1, rows_of(args) // 8)), "data", "one draw for one datum", warns=False
    )

    def checked(size: int) -> int:
        block = part_of(args, range(first, min(first + size, total)))
        traces = run(model, guide, block, {})
        _check_scales(traces, role)
        _check_masks(traces, model, guide, block, role)
        return len(block[0])

    with evaluating(model, guide), fork_random(args[0].device), pyro.validation_enabled(False):
        while first < total:
            first += chunk_size.fitted(checked)


def filled(traces: Traces) -> Traces:
    """Replace masked observed elements by a value in the support, so that densities are finite.

    Masked elements do not contribute to the log-density.

    Args:
        traces: One run of model and guide.

    Returns:
        The run with the replaced values.
    """
    model = traces.model.copy()
    for name, stand_in in stand_ins(traces).items():
        site = model.nodes[name]
        model.nodes[name] = {**site, "value": where_unmasked(name, site, site["value"], stand_in)}
    return replace(traces, model=model)


def _check_scales(traces: Traces, role: Role) -> None:
    programs = (
        [("model", traces.model)]
        if role == "start"
        else [("model", traces.model), ("guide", traces.guide)]
    )
    for program, trace in programs:
        for name, site in traces.sites(trace, observed=False):
            if traces.is_local(site) and not is_one(traces.exponent(site)):
                raise ProgramError(
                    f"the latent site '{name}' is scaled in the {program}: a power of a density is "
                    "not a density, and log p(x) does not exist; evaluate without the scale, or "
                    "scale all sites of the data plate alike in model and guide"
                )


def is_one(scale: Tensor | float) -> bool:
    """Tell whether a scale is 1 for all elements, up to rounding.

    Args:
        scale: A number or a tensor of any shape.

    Returns:
        True if no element differs from 1 by 1e-6 or more; False if one is nan.

    >>> is_one(torch.tensor([1.0, 1.0 + 1e-7])), is_one(2.0)
    (True, False)
    """
    if isinstance(scale, Tensor):
        return bool(((scale - 1).abs() < 1e-6).all())
    return abs(scale - 1) < 1e-6


def _check_masks(
    traces: Traces, model: Program, guide: Program, args: tuple[Tensor, ...], role: Role
) -> None:
    of_model = _masks(traces, traces.model)
    if role != "start":
        of_guide = _masks(traces, traces.guide)
        latent = dict(traces.sites(traces.model, observed=False))
        for name in of_model | of_guide:
            if name in latent and not _equal_masks(of_model.get(name), of_guide.get(name)):
                raise ProgramError(
                    f"the latent site '{name}' is not masked alike in model and guide: log p(x) "
                    "needs the same elements in both"
                )
    if not of_model or all(bool(mask.all()) for mask in of_model.values()):
        return
    again = _masks(run(model, guide, args, {}), None)
    for name, mask in of_model.items():
        if not _equal_masks(mask, again.get(name)):
            raise ProgramError(
                f"the mask of the latent site '{name}' depends on what is drawn: give masks as "
                "arguments"
            )
        other = _dependent(traces, model, guide if role == "path" else None, args, name)
        if other is not None:
            raise ProgramError(
                f"the latent site '{name}' is masked, but the density of '{other}' depends on what "
                "is masked: log p(x) does not exist"
            )


def _masks(traces: Traces, trace: poutine.Trace | None) -> dict[str, Tensor]:
    """The masks of latent sites; those of observed sites are only checked for their shape."""
    trace = traces.model if trace is None else trace
    for name, site in traces.sites(trace, observed=True):
        mask_of(name, site)
    latent = {
        name: site for name, site in traces.sites(trace, observed=False) if traces.is_local(site)
    }
    for name, site in latent.items():
        if _is_masked_inside(site["fn"]):
            raise ProgramError(
                f"the latent site '{name}' is masked within its events: mask it outside of "
                "`to_event`"
            )
    masks = {name: mask_of(name, site) for name, site in latent.items()}
    return {name: mask for name, mask in masks.items() if mask is not None}


def _is_masked_inside(fn: Any) -> bool:
    """Whether a distribution has a mask below other wrappers."""
    while isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
        if isinstance(fn, MaskedDistribution):
            return True
    return False


def _equal_masks(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two masks are equal, where None masks nothing."""
    if one is None or other is None:
        mask = other if one is None else one
        return mask is None or bool(mask.all())
    return one.shape == other.shape and torch.equal(one, other)


def _dependent(
    traces: Traces, model: Program, guide: Program | None, args: tuple[Tensor, ...], name: str
) -> str | None:
    """The first site whose log-density changes with the values of the masked elements."""
    site = traces.guide.nodes[name]
    before = _densities(traces, traces.model)
    of_guide = {} if guide is None else _densities(traces, traces.guide)
    for value in _other_values(site):
        mixed = where_unmasked(name, traces.model.nodes[name], site["value"], value)
        moved = at_values(traces, model, args, {}, {name: mixed})
        dependent = _changed(before, _densities(moved, moved.model))
        if dependent is None and guide is not None:
            replayed = poutine.trace(poutine.replay(guide, trace=moved.drawn)).get_trace(*args)
            dependent = _changed(of_guide, _densities(moved, prune_subsample_sites(replayed)))
        if dependent is not None:
            return dependent
    return None


def _other_values(site: Site) -> Iterator[Tensor]:
    """Other values for all elements of a site: each state of a discrete site, else new draws."""
    fn, value = site["fn"], site["value"]
    if fn.has_enumerate_support:
        for state in fn.enumerate_support(expand=False)[:MOST_STATES]:
            yield state.to(value.dtype).expand(value.shape)
    else:
        for _ in range(REDRAWN):
            yield fn(*site["args"], **site["kwargs"]).expand(value.shape)


def _densities(traces: Traces, trace: poutine.Trace) -> dict[str, Tensor]:
    """The log-densities of all sites of a program, 0 where they are masked."""
    return {
        name: scale_and_mask(log_density(name, site), mask=site["mask"])
        for observed in (False, True)
        for name, site in traces.sites(trace, observed=observed)
        if isinstance(site["value"], Tensor)
    }


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> str | None:
    """The first site whose log-density differs in two runs, or is in one of them only."""
    for name, term in before.items():
        new = after.get(name)
        if new is None or new.shape != term.shape:
            return name
        slack = 100 * torch.finfo(term.dtype).eps
        if not torch.allclose(term, new, rtol=slack, atol=slack, equal_nan=True):
            return name
    return next((name for name in after if name not in before), None)
