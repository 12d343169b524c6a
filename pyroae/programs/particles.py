"""K runs of a program, one per particle, as one trace with a particle dimension.

The fast way to K particles is one run with one more plate on the left. A program that fails
there, or gives other log-densities than K single runs, is run K times; the sites of these runs
are stacked along a new first dimension.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

import torch
from pyro import poutine
from pyro.distributions import Independent
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import kl_divergence, register_kl

from pyroae.errors import ProgramError
from pyroae.programs.sites import PARTICLES, Site

LOOP = 1_000_000
"""Added to the number of plate dimensions of a program that is run particle by particle.

It is larger than any such number, so that the maximum over several programs says that particles
are run sequentially if one of the programs needs it.
"""


class Stacked(TorchDistribution):
    """The distributions of one site in K runs as one distribution.

    Its batch shape is [K, 1, …, 1, *batch shape of a run].

    Args:
        parts: A distribution for each particle, all of the same shapes.
        dims: The number of batch dimensions without the particle dimension; ones stand between the
            two where a run has fewer.

    Attributes:
        parts: The K distributions.
        dims: The number of batch dimensions without the particle dimension.
        pad: The number of ones after the particle dimension.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, parts: Sequence[Any], dims: int) -> None:
        self.parts, self.dims = tuple(parts), dims
        own = parts[0].batch_shape
        self.pad = max(0, dims - len(own))
        self._drawn: tuple[Tensor, Sequence[Tensor]] | None = None
        super().__init__(
            torch.Size((len(parts), *[1] * self.pad, *own)),
            parts[0].event_shape,
            validate_args=False,
        )

    def remember(self, value: Tensor, rows: Sequence[Tensor]) -> None:
        """Store the draws of the runs, so that `log_prob` evaluates the same tensors.

        Flows without an inverse and some rejection samplers know the density of their own draws
        only, which they recognize by identity.

        Args:
            value: The stacked draws, of the batch and event shape.
            rows: The K draws, each of the batch and event shape of a run.
        """
        self._drawn = value, rows

    def rows(self, value: Tensor) -> Sequence[Tensor]:
        """Split a value into those of the runs.

        Args:
            value: A tensor of the batch and event shape.

        Returns:
            K tensors of the batch and event shape of a run.
        """
        if self._drawn is not None and value is self._drawn[0]:
            return self._drawn[1]
        return value.flatten(0, self.pad).unbind()

    @property
    def base_dist(self) -> Any:
        """The distribution of the first run, which determines the kind of distribution."""
        return self.parts[0]

    @property
    def has_rsample(self) -> bool:
        """Whether the distributions of all runs are reparameterized."""
        return all(part.has_rsample for part in self.parts)

    @property
    def support(self) -> Any:
        """The support of the distribution of the first run."""
        return self.parts[0].support

    @property
    def mean(self) -> Tensor:
        """The means of the runs, of the batch and event shape."""
        return torch.stack([part.mean for part in self.parts]).unflatten(0, (-1, *[1] * self.pad))

    def log_prob(self, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the log-density of each run at its own value.

        Args:
            value: A tensor of the batch and event shape.
            *args: Further arguments of each run's `log_prob`.
            **kwargs: Further keyword arguments of each run's `log_prob`.

        Returns:
            Log-densities of the batch shape, in nats.
        """
        pairs = zip(self.parts, self.rows(value), strict=True)
        return self.stacked([part.log_prob(v, *args, **kwargs) for part, v in pairs])

    def entropy(self) -> Tensor:
        """Compute the entropy of each run.

        Returns:
            Entropies of the batch shape, in nats.
        """
        return self.stacked([part.entropy() for part in self.parts])

    def stacked(self, terms: Sequence[Tensor]) -> Tensor:
        """Stack a term of each particle.

        Args:
            terms: K tensors of the batch shape of a run.

        Returns:
            A tensor of this batch shape.
        """
        return _stacked_rows(terms, self.dims)


@register_kl(Stacked, Stacked)
def _kl_stacked(q: Stacked, p: Stacked) -> Tensor:
    return q.stacked(
        [kl_divergence(one, other) for one, other in zip(q.parts, p.parts, strict=True)]
    )


def run_in_loop(
    trace_of: Callable[[poutine.Trace], poutine.Trace],
    count: int,
    dims: int,
    seen: poutine.Trace | None,
    shared: Collection[str] = (),
) -> poutine.Trace:
    """Run a program K times and stack the traces.

    Args:
        trace_of: Runs the program once, replayed against a trace.
        count: The number K of particles.
        dims: The number of batch dimensions of all sites without the particle dimension.
        seen: A stacked trace, whose draws each run repeats for its own particle; None to draw.
        shared: Names of sites whose draw in the first run is used for all particles.

    Returns:
        A trace whose sample sites have K as the first batch dimension. All runs share the
        subsample of the first one.
    """
    traces: list[poutine.Trace] = []
    for k in range(count):
        against = poutine.Trace() if seen is None else particle_draws(seen, k)
        if traces:
            for name, site in traces[0].nodes.items():
                is_shared = name in shared or (site["type"] == "sample" and site_is_subsample(site))
                if is_shared and name not in against:
                    against.add_node(name, **site)
        traces.append(trace_of(against))
    return stack_traces(traces, dims)


def particle_draws(trace: poutine.Trace, k: int) -> poutine.Trace:
    """Select the draws of one particle, for a run to be replayed against.

    Args:
        trace: A stacked trace.
        k: Index of the particle.

    Returns:
        A copy of the trace, in which the draws are those of particle k.
    """
    one = trace.copy()
    for name, site in trace.nodes.items():
        if is_draw(site) and has_particles(site):
            one.nodes[name] = {**site, "value": site["value"].flatten(0, site["pad"])[k]}
    return one


def stack_traces(traces: Sequence[poutine.Trace], dims: int) -> poutine.Trace:
    """Stack the traces of K runs.

    Args:
        traces: The traces of K runs of one program.
        dims: The number of batch dimensions of all sites without the particle dimension.

    Returns:
        A trace whose sample sites have K as the first batch dimension.

    Raises:
        ProgramError: Names a site that some runs lack.
    """
    result = traces[0].copy()
    for other in traces[1:]:
        for name in set(result.nodes) ^ set(other.nodes):
            raise ProgramError(
                f"the site '{name}' is in the runs of some particles only: all need the same sites"
            )
    for name, site in traces[0].nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site):
            result.nodes[name] = _stacked_site([trace.nodes[name] for trace in traces], dims)
    return result


def is_draw(site: Site) -> bool:
    """Tell whether a site is a latent sample, other than the subsample of a plate.

    Args:
        site: A site of a trace.

    Returns:
        True for a latent sample site.
    """
    return site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)


def has_particles(site: Site) -> bool:
    """Tell whether a site lies in the plate of the particles.

    Args:
        site: A sample site of a trace.

    Returns:
        True if its first batch dimension is the particle dimension.
    """
    return any(frame.name == PARTICLES for frame in site["cond_indep_stack"])


def _stacked_site(sites: Sequence[Site], dims: int) -> Site:
    """One site of K runs; its "pad" is the number of ones after the particle dimension."""
    first, count = sites[0], len(sites)
    fn = _stacked_distribution([site["fn"] for site in sites], dims)
    rows = [site["value"] for site in sites]
    value = _stacked_rows(rows, len(fn.batch_shape) - 1 + len(fn.event_shape))
    inner = fn
    while isinstance(inner, Independent):
        inner = inner.base_dist
    inner.remember(value, rows)
    frame = CondIndepStackFrame(PARTICLES, -len(fn.batch_shape), count, 0)
    return {
        **first,
        "fn": fn,
        "value": value,
        "mask": _stacked_mask([site["mask"] for site in sites], len(fn.batch_shape) - 1),
        "cond_indep_stack": (frame, *first["cond_indep_stack"]),
        "pad": len(fn.batch_shape) - 1 - len(first["fn"].batch_shape),
    }


def _stacked_distribution(parts: Sequence[Any], dims: int) -> Any:
    """Stack inside of Independent, so that elements of an event stay separate as in one run."""
    events = {
        part.reinterpreted_batch_ndims if isinstance(part, Independent) else 0 for part in parts
    }
    if events == {0} or len(events) > 1:
        return Stacked(parts, dims)
    count = events.pop()
    return Independent(
        _stacked_distribution([part.base_dist for part in parts], dims + count), count
    )


def _stacked_rows(rows: Sequence[Tensor], dims: int) -> Tensor:
    """Stack tensors of K particles, with ones after K for at least `dims` other dimensions."""
    shape = [*[1] * max(0, dims - rows[0].dim()), *rows[0].shape]
    if all(row is rows[0] for row in rows):
        return rows[0].reshape(shape).expand(len(rows), *shape)
    return torch.stack(list(rows)).reshape(len(rows), *shape)


def _stacked_mask(masks: Sequence[Any], dims: int) -> Any:
    if all(mask is masks[0] for mask in masks):
        return masks[0]
    return _stacked_rows([torch.as_tensor(True if mask is None else mask) for mask in masks], dims)


class SharedDraws(Messenger):
    """Give all particles of a run the first particle's draw of some sites.

    The sites lie in no plate except the plate of the particles.

    Args:
        names: Names of the sites.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.names and has_particles(msg):
            msg["value"] = msg["value"][:1].expand_as(msg["value"])
