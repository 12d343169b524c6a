"""One run of a guide and a model as a pair of traces, with K particles."""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyroae.errors import BrokenProgramError, ProgramError, PyroaeError, own_error
from pyroae.programs.context import evaluating, forget_plates, fork_random, owner_of
from pyroae.programs.masks import observed_value
from pyroae.programs.particles import (
    LOOP,
    LastSite,
    OneSeed,
    Shared,
    agree,
    enough_to_tell,
    like_single_runs,
    looped,
    told_apart,
    undisturbed,
)
from pyroae.programs.sites import (
    PARTICLES,
    Program,
    Site,
    check_declared,
    check_event_shapes,
    check_match,
    check_plate,
    check_whole,
    common_scale,
    data_plate,
    is_delta,
    plates_of,
    samples,
    undeclared,
    warn_of_plates,
)
from pyroae.runtime.memory import is_out_of_memory


@dataclass(frozen=True)
class Traces:
    """One run of the guide and, replayed against it, the model; `plate` is the data plate, None for a program without.

    The log-density of a site is reduced to `[K, N]`: dimensions of plates nested in the data plate are summed. A program
    without a data plate is one datum. scale: as of LogWeights. drawn: the guide's run with the indices of subsampled plates,
    which the other two leave out. nesting: as it was given to `run`.
    """

    model: poutine.Trace
    guide: poutine.Trace
    num_particles: int
    plate: CondIndepStackFrame | None
    scale: Tensor | float
    drawn: poutine.Trace
    nesting: int = 0

    def sites(self, trace: poutine.Trace, *, observed: bool) -> Iterator[tuple[str, Site]]:
        """Names and sites of one kind, in the order of the program."""
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and bool(site["is_observed"]) == observed:
                yield name, site

    def draws(self) -> Iterator[tuple[str, Site]]:
        """Names and sites of what the guide draws: its latent sites without the Deltas."""
        return (
            (name, site)
            for name, site in self.sites(self.guide, observed=False)
            if not is_delta(site)
        )

    def deltas(self) -> Iterator[tuple[str, Site]]:
        """Names and sites of the Deltas of the guide."""
        return (
            (name, site) for name, site in self.sites(self.guide, observed=False) if is_delta(site)
        )

    @property
    def is_plain(self) -> bool:
        """Whether every site of the guide is a draw."""
        return not any(True for _ in terms_of(self))

    def is_local(self, site: Site) -> bool:
        """Whether the site lies in the data plate (every site does, where there is none)."""
        return self.plate is None or self.plate in site["cond_indep_stack"]

    def exponent(self, site: Site) -> Tensor | float:
        """What is left of the site's scale when the common one is divided out."""
        if not self.is_local(site):
            return site["scale"]
        common = self.scale
        if isinstance(common, Tensor) and common.dim() and self.plate is not None:
            common = common.reshape(-1, *[1] * (-1 - self.plate.dim))
        return site["scale"] / common

    def reduce(self, site: Site, term: Tensor, exponent: Tensor | float | None = None) -> Tensor:
        """A term of the site's batch shape, under its exponent and mask, as `[K, N]`, or `[K]` for a global site."""
        exponent = self.exponent(site) if exponent is None else exponent
        return self.summed(site, scale_and_mask(term, scale=exponent, mask=site["mask"]))

    def summed(self, site: Site, term: Tensor) -> Tensor:
        """A term of the site's batch shape as `[K, N]`, or `[K]` for a global site."""
        particles = (
            self.num_particles if any(f.name == PARTICLES for f in site["cond_indep_stack"]) else 1
        )
        first = particles > 1
        local = self.is_local(site)
        data_dim = self.plate.dim if local and self.plate is not None else 0
        summed = [d for d in range(-term.dim() + first, 0) if d != data_dim]
        term = term.sum(summed) if summed else term
        term = term.reshape(particles, -1) if local else term.reshape(particles)
        return term.expand(self.num_particles, *term.shape[1:])

    def total(self, site: Site, term: Tensor) -> Tensor:
        """A reduced term over all data: its mean over the particles, scaled, and summed over the data."""
        return (self.scale * term.mean(0)).sum() if self.is_local(site) else term.mean()

    def expand_to(self, site: Site, values: Tensor) -> Tensor:
        """`[K, N]` in a shape that broadcasts with the value of a site in the data plate."""
        shape = [1] * len(site["fn"].batch_shape)
        if self.plate is not None:
            shape[self.plate.dim] = values.shape[1]
        if self.num_particles > 1:
            shape[0] = self.num_particles
        return values.reshape([*shape, *[1] * len(site["fn"].event_shape)])


def log_density(name: str, site: Site, value: Tensor | None = None) -> Tensor:
    """The log-density of a site at its value, or at another one, of the site's batch shape.

    What is observed where the site is masked has no say: a value in the support stands in for it.
    Raises ProgramError, naming the site, where shapes disagree, and where a transform that has no inverse, such as a planar
    flow, is asked for the density of a value that it has not just drawn.
    """
    if value is None:
        value = observed_value(site) if site["is_observed"] else site["value"]
    try:
        return site["fn"].log_prob(value, *site["args"], **site["kwargs"])
    except (
        KeyError
    ) as error:  # of Pyro's transforms that only know the inverse of their last output
        raise ProgramError(
            f"site '{name}' has a transform without an inverse: its density is known at its own draws only, "
            "as trace-elbo, iwae and every other pathwise objective takes it"
        ) from error
    except Exception as error:
        raise ProgramError(
            f"the log-density of site '{name}' failed: {' '.join(str(error).split())}"
        ) from error


def run(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    num_particles: int = 1,
    nesting: int | None = None,
    *,
    handler: Messenger | None = None,
    drawn: poutine.Trace | None = None,
    through: Callable[[Site], Tensor] | None = None,
    shared: Collection[str] = (),
    joint: bool = False,
) -> Traces:
    """Run guide and model with K particles: once, with one more plate to the left of all others, or K times.

    nesting: the number of plate dimensions, plus LOOP for K runs, found by `plate_nesting` where it is not given.
    handler: acts on the guide's run. drawn: of an earlier run, whose draws are repeated. through: what the model sees of a
    site that the guide has drawn. shared: names of global sites, of which one draw is that of all particles. joint: takes
    all data as one datum.
    Raises ProgramError, naming the site, where model and guide do not match, for joint data of which only a part is here and,
    under `pyro.enable_validation()`, which is Pyro's default, for batch dimensions that are those of no plate.
    """
    if num_particles == 1:
        nesting = 0
    elif nesting is None:
        nesting = plate_nesting(model, guide, args, kwargs)
    with (
        handler or nullcontext(),
        Shared(shared) if shared and num_particles > 1 and nesting < LOOP else nullcontext(),
    ):
        guide_trace = _traced(
            guide, args, kwargs, num_particles, nesting, drawn, shared, what="guide"
        )
    model_trace = _traced(model, args, kwargs, num_particles, nesting, _seen(guide_trace, through))
    drawn, model_run = guide_trace, model_trace
    guide_trace, model_trace = (
        prune_subsample_sites(guide_trace),
        prune_subsample_sites(model_trace),
    )
    check_match(model_trace, guide_trace)
    sites = samples(model_trace, guide_trace)
    if joint:
        check_whole(sites)
    plate = None if joint else data_plate(sites)
    if plate is not None:
        check_plate(model_trace, guide_trace, plate)
    if is_validation_enabled():
        check_declared(model_trace, guide_trace)
        warn_of_plates(model_run, drawn)
    local = [s for s in sites if plate is None or plate in s["cond_indep_stack"]]
    return Traces(
        model_trace, guide_trace, num_particles, plate, common_scale(local, plate), drawn, nesting
    )


def at_values(
    traces: Traces,
    model: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    values: Mapping[str, Tensor],
) -> Traces:
    """The model run again with other values of the latent sites, each of the shape that its site has in `traces`.

    The guide is not run: of what comes back, its densities are those of the first run.
    """
    seen = _with_values(traces.drawn, values)
    model_trace = prune_subsample_sites(
        _traced(model, args, kwargs, traces.num_particles, traces.nesting, seen)
    )
    return replace(traces, model=model_trace, guide=prune_subsample_sites(seen.copy()), drawn=seen)


def log_post_of(
    traces: Traces, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """log q(z|x) `[K, N]` under another guide with the same sites, at the draws of a run.

    Raises ProgramError for an auxiliary draw of that guide that the run does not have.
    """
    again = _traced(
        guide, args, kwargs, traces.num_particles, traces.nesting, traces.drawn, what="guide"
    )
    other = replace(traces, guide=prune_subsample_sites(again))
    check_match(traces.model, other.guide)
    for name, _ in other.draws():
        if name not in traces.drawn.nodes:
            raise ProgramError(
                f"the density of another guide is not known here: its auxiliary site '{name}' was not drawn"
            )
    sites = samples(other.guide)
    terms = [
        other.reduce(site, log_density(site["name"], site))
        for site in sites
        if other.is_local(site)
    ]
    return sum(terms[1:], terms[0])


def guide_at(
    traces: Traces,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    values: Mapping[str, Tensor],
) -> Traces:
    """The guide run again at given values of its draws; its Deltas are computed from them. The model is not run."""
    seen = _with_values(traces.drawn, values)
    for name, _ in traces.deltas():
        seen.remove_node(name)
    again = _traced(guide, args, kwargs, traces.num_particles, traces.nesting, seen, what="guide")
    return replace(traces, guide=prune_subsample_sites(again), drawn=again)


def terms_of(traces: Traces) -> list[tuple[str, Site]]:
    """Names and sites of the guide that are no draws: factors, observed sites and Deltas."""
    return [*traces.sites(traces.guide, observed=True), *traces.deltas()]


def _traced(
    program: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    num_particles: int,
    nesting: int,
    seen: poutine.Trace | None,
    shared: Collection[str] = (),
    what: str = "model",
) -> poutine.Trace:
    """One run of a program with all its particles, or K runs as one trace; replayed against the draws of `seen`.

    Raises BrokenProgramError, naming the last site, for an error of the program's own; a lack of memory comes up as it is.
    """
    if num_particles > 1 and nesting >= LOOP:
        one_run = partial(_traced, program, args, kwargs, 1, 0, what=what)
        return looped(one_run, num_particles, nesting - LOOP, seen, shared)
    owner = owner_of(program)
    if num_particles > 1:
        program = pyro.plate(PARTICLES, num_particles, dim=-1 - nesting)(program)
    tracer = poutine.trace(program if seen is None else poutine.replay(program, trace=seen))
    try:
        return tracer.get_trace(*args, **kwargs)
    except (
        Exception
    ) as raised:  # the program's own: often because a site is of another shape in the guide
        forget_plates(owner)
        if is_out_of_memory(raised):
            raise
        error = _as_raised(raised)
    if isinstance(error, PyroaeError):
        raise error
    done = prune_subsample_sites(tracer.trace)
    if seen is not None:
        check_event_shapes(done, seen)
    raise BrokenProgramError(f"the {what} fails {_place(done)}: {_words(error)}") from error


def _place(done: poutine.Trace) -> str:
    """After which site a run ended."""
    names = [name for name, site in done.nodes.items() if site["type"] == "sample"]
    return f"after the site '{names[-1]}'" if names else "before its first site has a value"


def _as_raised(error: Exception) -> Exception:
    """An error as it was before Pyro's tracer added the shapes of all sites to its words."""
    cause = error.__cause__
    return cause if "Trace Shapes:" in str(error) and isinstance(cause, type(error)) else error


def _words(error: BaseException) -> str:
    """An error in one line of at most 300 characters."""
    words = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _with_values(trace: poutine.Trace, values: Mapping[str, Tensor]) -> poutine.Trace:
    other = trace.copy()
    for name, value in values.items():
        other.nodes[name] = {**other.nodes[name], "value": value}
    return other


def plate_nesting(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    compared: bool = True,
) -> int:
    """The number of batch dimensions of a program, those of plates and any that no plate declares; plus LOOP.

    From trial runs in evaluation mode, after which generators and buffers are as they were. A few particles are drawn in one
    run and weighed in one run and one by one: where the former fails or the log-densities differ, for any site and datum,
    the program is to be run particle by particle, and a warning names the site. compared: False leaves that out.
    """
    device = next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu"))
    exact = (
        torch.autocast(device.type, enabled=False)
        if torch.amp.is_autocast_available(device.type)
        else nullcontext()
    )
    with fork_random(device), evaluating(model, guide), poutine.block(), undisturbed(), exact:
        traces = run(model, guide, args, kwargs)
        sites = samples(traces.model, traces.guide)
        dims = (
            dim for site in sites for dim in [*(f.dim for f in plates_of(site)), *undeclared(site)]
        )
        nesting = -min(dims, default=0)
        reason = _why_loop(model, guide, args, kwargs, nesting, traces) if compared else None
    if reason is None:
        return nesting
    warnings.warn(
        f"the particles are run one after the other, which is slow: {reason}; to be fast, let the program take particles as "
        "one more dimension on the left: index from the right, as in z[..., 0], and keep the leading dimensions in "
        "reductions, reshapes and concatenations",
        stacklevel=2,
    )
    return LOOP + nesting


def _seen(guide: poutine.Trace, through: Callable[[Site], Tensor] | None) -> poutine.Trace:
    if through is None:
        return guide
    seen = guide.copy()
    for name, site in guide.nodes.items():
        if (
            site["type"] == "sample"
            and not site["is_observed"]
            and isinstance(site["value"], Tensor)
        ):
            seen.nodes[name] = (
                {**site, "value": through(site)} if site["value"].requires_grad else site
            )
    return seen


def prior_of(model: Program) -> Program:
    """The prior p(z) of a model as a guide: the model with its observed sites hidden.

    >>> from pyroae import zoo
    >>> system = zoo.ppca(4, latent=2)
    >>> weights = log_weights(system.model, prior_of(system.model), torch.zeros(3, 4))
    >>> torch.equal(weights.log_prior, weights.log_post)
    True
    """
    return poutine.block(
        model, hide_fn=lambda site: site["type"] == "sample" and site["is_observed"]
    )


def _why_loop(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    nesting: int,
    single: Traces,
) -> str | None:
    """Why particles cannot be one more dimension of a program; None where they can."""
    last, model, guide, count = (
        LastSite(),
        OneSeed()(model),
        OneSeed()(guide),
        enough_to_tell(single.drawn),
    )
    try:
        with last:
            drawn = told_apart(run(model, guide, args, kwargs, count, nesting).drawn)
            many = run(model, guide, args, kwargs, count, nesting, drawn=drawn)
            alone = like_single_runs(drawn, single.drawn)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        words = " ".join(str(own_error(error)).split())[:200]
        return f"with one more dimension on the left it fails at or after the site '{last.name}' ({words})"
    one_by_one = run(model, guide, args, kwargs, count, LOOP + nesting, drawn=alone)
    for what, trace, other in (
        ("guide", many.guide, one_by_one.guide),
        ("model", many.model, one_by_one.model),
    ):
        for name, site in other.nodes.items():
            if site["type"] == "sample" and not _agree(
                many, trace.nodes.get(name), one_by_one, site, name
            ):
                return f"with one more dimension on the left the site '{name}' of the {what} has another log-density"
    return None


def _agree(many: Traces, site: Site | None, one_by_one: Traces, other: Site, name: str) -> bool:
    """Whether a site has the same log-densities in one run and one by one; a site that has none is refused elsewhere."""
    try:
        expected = one_by_one.reduce(other, log_density(name, other))
    except ProgramError:
        return True
    try:
        return site is not None and agree(expected, many.reduce(site, log_density(name, site)))
    except (ProgramError, RuntimeError):
        return False
