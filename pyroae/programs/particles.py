"""K runs of a program, one per particle, as one trace with a particle dimension; and whether a program needs that.

The fast way to K particles is one run with one more plate on the left. A program that fails there, or gives other
log-densities than K single runs, is run K times: the sites of these runs are stacked along a new first dimension.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pyro import poutine
from pyro.distributions import Independent
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import kl_divergence, register_kl
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import register_module_forward_pre_hook

from pyroae.errors import ProgramError
from pyroae.programs.sites import PARTICLES, Site, base_distribution, is_discrete

LOOP = 1_000_000
"""Added to the number of plate dimensions of a program that is run particle by particle. Larger than any such number, so that
the maximum over several programs says that particles are run one by one where one of them needs it."""


REDRAWN = 16
"""How often a discrete draw that two particles share is drawn again in a trial run."""


FEW = 4
"""Particles of a trial run with discrete draws."""


class Stacked(TorchDistribution):
    """The distributions of one site in K runs as one distribution.

    Args:
        parts: a distribution for each particle, all of the same shapes.
        dims: the number of batch dimensions beside that of the particles; ones stand between the two where a run has fewer.
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
        """The draws of the runs, and the one tensor that they are stacked in.

        Flows without an inverse and some rejection samplers know the density of their own draws only, by their identity.
        """
        self._drawn = value, rows

    def rows(self, value: Tensor) -> Sequence[Tensor]:
        """The value of each run."""
        if self._drawn is not None and value is self._drawn[0]:
            return self._drawn[1]
        return value.flatten(0, self.pad).unbind()

    @property
    def base_dist(self) -> Any:
        """The distribution of the first run, for questions about the kind of distribution."""
        return self.parts[0]

    @property
    def has_rsample(self) -> bool:
        return all(part.has_rsample for part in self.parts)

    @property
    def support(self) -> Any:
        return self.parts[0].support

    @property
    def mean(self) -> Tensor:
        return torch.stack([part.mean for part in self.parts]).unflatten(0, (-1, *[1] * self.pad))

    def log_prob(self, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        pairs = zip(self.parts, self.rows(value), strict=True)
        return self.stacked([part.log_prob(v, *args, **kwargs) for part, v in pairs])

    def entropy(self) -> Tensor:
        return self.stacked([part.entropy() for part in self.parts])

    def stacked(self, terms: Sequence[Tensor]) -> Tensor:
        """A term of each particle's batch shape as one term of this batch shape."""
        return _stacked_rows(terms, self.dims)


@register_kl(Stacked, Stacked)
def _kl_stacked(q: Stacked, p: Stacked) -> Tensor:
    return q.stacked(
        [kl_divergence(one, other) for one, other in zip(q.parts, p.parts, strict=True)]
    )


def looped(
    trace_of: Callable[[poutine.Trace], poutine.Trace],
    count: int,
    dims: int,
    seen: poutine.Trace | None,
    shared: Collection[str] = (),
) -> poutine.Trace:
    """K runs of a program as one stacked trace.

    Args:
        trace_of: runs the program once, replayed against a trace.
        count: K.
        dims: the number of batch dimensions that all sites have beside that of the particles.
        seen: a stacked trace, whose draws the runs repeat, each those of its own particle.
        shared: names of sites whose draw in the first run is that of all particles.

    Returns:
        A trace whose sample sites have K as the first batch dimension. All runs share the subsample of the first one.
    """
    found: list[poutine.Trace] = []
    for k in range(count):
        against = poutine.Trace() if seen is None else particle(seen, k)
        if found:
            for name, site in found[0].nodes.items():
                is_shared = name in shared or (site["type"] == "sample" and site_is_subsample(site))
                if is_shared and name not in against:
                    against.add_node(name, **site)
        found.append(trace_of(against))
    return stacked(found, dims)


def particle(trace: poutine.Trace, k: int) -> poutine.Trace:
    """The draws of particle k of a stacked trace, for one run to be replayed against."""
    one = trace.copy()
    for name, site in trace.nodes.items():
        if _is_drawn(site) and _has_particles(site):
            one.nodes[name] = {**site, "value": site["value"].flatten(0, site["pad"])[k]}
    return one


def stacked(traces: Sequence[poutine.Trace], dims: int) -> poutine.Trace:
    """The traces of K runs as one. Raises ProgramError, naming the site, where the runs do not have the same sites."""
    whole = traces[0].copy()
    for other in traces[1:]:
        for name in set(whole.nodes) ^ set(other.nodes):
            raise ProgramError(
                f"the site '{name}' is in the runs of some particles only: all need the same sites"
            )
    for name, site in traces[0].nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site):
            whole.nodes[name] = _stacked_site([trace.nodes[name] for trace in traces], dims)
    return whole


def like_single_runs(trace: poutine.Trace, single: poutine.Trace) -> poutine.Trace:
    """A trace with the particles as a plate, as one that single runs can repeat. Raises ValueError where shapes differ."""
    other = trace.copy()
    for name, site in trace.nodes.items():
        if _is_drawn(site) and _has_particles(site):
            alone = single.nodes[name]
            pad = len(site["fn"].batch_shape) - 1 - len(alone["fn"].batch_shape)
            if site["value"].flatten(0, pad).shape[1:] != alone["value"].shape:
                raise ValueError(f"site '{name}' has the shape {tuple(site['value'].shape)}")
            other.nodes[name] = {**site, "pad": pad}
    return other


def enough_to_tell(trace: poutine.Trace) -> int:
    """How many particles a trial run takes: more where draws are discrete, and may be equal by chance."""
    return (
        FEW
        if any(_is_drawn(site) and is_discrete(site["fn"]) for site in trace.nodes.values())
        else 2
    )


def told_apart(trace: poutine.Trace) -> poutine.Trace:
    """A trace of some particles whose discrete draws differ from those of the first, where another value is found.

    Draws that are equal by chance would not show that a program reads the particle of another.
    """
    other = trace.copy()
    for name, site in trace.nodes.items():
        if _is_drawn(site) and _has_particles(site) and is_discrete(site["fn"]):
            other.nodes[name] = {**site, "value": _unlike_first(site["fn"], site["value"])}
    return other


def _unlike_first(fn: Any, value: Tensor) -> Tensor:
    """The values of a discrete site: the states after the first particle's, or draws that are not the same."""
    base = base_distribution(fn)
    if base.has_enumerate_support and len(base.event_shape) < 2:
        if base.event_shape:  # one-hot
            return torch.stack([value[0].roll(k, -1) for k in range(len(value))])
        states = base.enumerate_support(expand=False).flatten().to(value.dtype)
        at = torch.searchsorted(states, value[0].contiguous())
        return torch.stack([states[(at + k) % len(states)] for k in range(len(value))])
    for _ in range(REDRAWN):
        same = value == value[:1]
        for _ in range(len(base.event_shape)):
            same = same.all(-1, keepdim=True)
        again = torch.where(same, fn.sample().to(value.dtype), value)
        value = torch.cat([value[:1], again[1:]])
    return value


def _is_drawn(site: Site) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)


def _has_particles(site: Site) -> bool:
    return any(frame.name == PARTICLES for frame in site["cond_indep_stack"])


def _stacked_site(sites: Sequence[Site], dims: int) -> Site:
    """One site of K runs. pad: the number of ones after the particle dimension."""
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
    """Stacked inside of Independent, so that the elements of an event are told apart as in one run."""
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
    """Tensors of K particles as one, with ones after the particle dimension for at least so many others."""
    shape = [*[1] * max(0, dims - rows[0].dim()), *rows[0].shape]
    if all(row is rows[0] for row in rows):
        return rows[0].reshape(shape).expand(len(rows), *shape)
    return torch.stack(list(rows)).reshape(len(rows), *shape)


def _stacked_mask(masks: Sequence[Any], dims: int) -> Any:
    if all(mask is masks[0] for mask in masks):
        return masks[0]
    return _stacked_rows([torch.as_tensor(True if mask is None else mask) for mask in masks], dims)


class Shared(Messenger):
    """Gives all particles of a run the first one's draw of some sites, which lie in no plate but that of the particles."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.names and _has_particles(msg):
            msg["value"] = msg["value"][:1].expand_as(msg["value"])


class LastSite(Messenger):
    """Remembers the last sample site of a run, for the words of a warning."""

    name: str | None = None

    def _pyro_sample(self, msg: Any) -> None:
        self.name = msg["name"]


def agree(one: Tensor, other: Tensor) -> bool:
    """Whether log-densities are the same but for rounding, NaN and infinities included; on "meta" shapes are all there is."""
    if one.shape != other.shape or one.is_meta:
        return one.shape == other.shape
    tolerance = min(1000 * torch.finfo(one.dtype).eps, 0.05)
    return torch.allclose(one, other.to(one.dtype), tolerance, tolerance, equal_nan=True)


class OneSeed(Messenger):
    """Gives a program the same random numbers in every run."""

    def __enter__(self) -> "OneSeed":
        torch.manual_seed(0)
        return super().__enter__()


def _unlike(norm: _BatchNorm) -> None:
    """Give each channel other statistics."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    step = torch.linspace(0, 1, mean.numel(), dtype=mean.dtype, device=mean.device)
    mean.add_(step)
    variance.mul_(1 + step)


@contextmanager
def undisturbed(*, training: bool = False) -> Iterator[None]:
    """A context for trial runs: gradients are off, and modules that are called keep their buffers and modes.

    Fresh batch normalization is the identity in evaluation mode, whichever dimension it takes for that of the channels. It
    is given other statistics for each channel here, so that trial runs tell these dimensions apart.

    Args:
        training: with False they run in evaluation mode; with True in the mode they are in, but without dropout.
    """
    modes: dict[nn.Module, bool] = {}
    buffers: dict[Tensor, Tensor] = {}

    def before(module: nn.Module, _: Any) -> None:
        if module not in modes:
            modes[module] = module.training
            buffers.update({b: b.clone() for b in module.buffers(recurse=False)})
            if not training or isinstance(module, _DropoutNd):
                module.training = False
            if (
                isinstance(module, _BatchNorm)
                and not module.training
                and module.running_mean is not None
            ):
                _unlike(module)

    hook = register_module_forward_pre_hook(before)
    try:
        with torch.no_grad():
            yield
    finally:
        hook.remove()
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for (
                buffer,
                value,
            ) in buffers.items():  # all: batch normalization does not count its changes as versions
                buffer.copy_(value)
