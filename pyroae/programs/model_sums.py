"""Discrete sites of a model that the guide lacks, summed out of the model's trace.

With y the marked discrete sites that no draw is given for, the trace of the model becomes one of

    p(x, z) = Σ_y p(x, y, z)

The model runs once with all states of each site as one more dimension, to the left of all plates.
The factors that depend on y are contracted as `pyro.infer.TraceEnum_ELBO` does it: element by
element within the plates that hold y, so that the cost is additive in independent elements. In the
resulting trace y is missing, and a site that depends on it has the density after the sum.

References:
    Obermeyer et al. 2019, Tensor Variable Elimination for Plated Factor Graphs.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from opt_einsum import get_symbol  # type: ignore[import-untyped]
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.util import broadcast_shape, scale_and_mask
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyroae.errors import ProgramError
from pyroae.programs.paired_traces import log_density
from pyroae.programs.sites import Site, base_distribution, equal_scale
from pyroae.programs.supports import elements_of, joint_values, states_of

MOST = 2**12
"""The largest number of states of an element with its events."""

SUMMED, OF_PRIOR, MAY_BE_SUMMED = "_is_summed_out", "_is_of_prior", "_may_be_summed_out"
"""Entries of `infer`: a marked site of a prior, any site of a prior, and a mark of `SumMissing`."""


def is_summed(site: Site, seen: poutine.Trace | None, of_model: bool) -> bool:
    """Tell whether a site of a run is to be summed out.

    Args:
        site: A sample site of the run.
        seen: The trace whose draws the run repeats; None where all sites were drawn.
        of_model: Whether the run is that of a model; False for a guide, such as a prior.

    Returns:
        True for a latent site of a model or a prior that is marked for enumeration and has no draw
            in `seen`, and for a site of a prior that the program itself marks.
    """
    if site["type"] != "sample" or site["is_observed"] or site_is_subsample(site):
        return False
    infer = site["infer"]
    is_missing = seen is not None and site["name"] not in seen
    can_be_missing = of_model or infer.get(OF_PRIOR)
    is_marked = infer.get("enumerate") or infer.get(MAY_BE_SUMMED)
    return bool(infer.get(SUMMED) or (is_missing and can_be_missing and is_marked))


def with_sums(
    trace: poutine.Trace,
    names: list[str],
    retrace: Callable[[poutine.Trace, Messenger], poutine.Trace],
) -> poutine.Trace:
    """Sum sites out of the trace of a run.

    Args:
        trace: A run in which the sites are drawn.
        names: The sites.
        retrace: Runs the same program again, given the draws of a trace, under a handler.

    Returns:
        The trace without these sites; a site that depends on them has the distribution `Summed`.

    Raises:
        ProgramError: Names a site that cannot be summed out.
    """
    for name in names:
        _check(name, trace.nodes[name])
    others = trace.copy()
    for name in names:
        others.remove_node(name)
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    depth = max(len(site["fn"].batch_shape) for site in sites if not site_is_subsample(site))
    depth = max([depth, *(-f.dim for site in sites for f in _plates(site))])
    states = States(names, depth)
    return _Sums(retrace(others, states), trace, names, depth).trace()


class States(Messenger):
    """Give sites all their states, each site in a dimension of its own to the left of all plates.

    Args:
        names: The sites.
        depth: The number of batch dimensions of the program.
    """

    def __init__(self, names: Iterable[str], depth: int) -> None:
        super().__init__()
        self.names, self.depth = set(names), depth
        self.count = 0

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.names or msg["done"]:
            return
        fn = msg["fn"]
        part, states = elements_of(msg["name"], fn, fn.batch_shape.numel()), states_of(fn)
        assert part is not None
        assert states is not None
        index = torch.arange(part.size, device=states.device)
        values = states[joint_values((part,), index)[msg["name"]]]
        self.count += 1
        ones = [1] * (self.depth + self.count - 1)
        msg["value"] = values.reshape(-1, *ones, *fn.event_shape)
        msg["done"] = True


class SumMissing(Messenger):
    """Mark every discrete site with finitely many values, so that those without a draw are summed.

    Acts on all programs that run in its context.
    """

    def _pyro_sample(self, msg: Any) -> None:
        is_latent = not msg["is_observed"] and not site_is_subsample(msg)
        if is_latent and states_of(msg["fn"]) is not None:
            msg["infer"] = {MAY_BE_SUMMED: True, **msg["infer"]}


class Summed(TorchDistribution):
    """The distribution of a site whose parents were summed out, known at the site's own value.

    Args:
        base: The distribution given the parents, for its support and event shape.
        batch_shape: The batch shape, without the dimensions of states.
        log_density: The log-density after the sum in nats, which broadcasts to the batch shape.
        parent: The name of a parent.
        plates: The names of the plates that hold all parents.

    Attributes:
        base_dist: The distribution given the parents.
        parent: The name of a parent.
        plates: The names of the plates that hold all parents.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        base: Any,
        batch_shape: tuple[int, ...],
        log_density: Tensor,
        parent: str,
        plates: Iterable[str],
    ) -> None:
        self.parent, self.plates = parent, frozenset(plates)
        self.base_dist, self._log_density = base_distribution(base), log_density
        self.has_rsample = False
        self._support = base.support
        super().__init__(torch.Size(batch_shape), base.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """The support given the parents."""
        return self._support

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density at the site's own value, in nats."""
        return self._log_density


@dataclass(frozen=True)
class _Component:
    """Sites that share dimensions of states: the summed ones, and those that depend on them."""

    dims: frozenset[int]
    summed: tuple[str, ...]
    latent: tuple[str, ...]
    observed: tuple[str, ...]


class _Sums:
    """The sums over all dimensions of states in a trace."""

    def __init__(
        self, trace: poutine.Trace, drawn: poutine.Trace, names: list[str], depth: int
    ) -> None:
        self._trace, self._drawn, self._names, self._depth = trace, drawn, names, depth
        self._terms: dict[str, Tensor] = {}
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or site_is_subsample(site):
                continue
            if name in names or _state_dims(_batch_shape(site), depth):
                mask = None if name in names else site["mask"]
                self._terms[name] = scale_and_mask(log_density(name, site), mask=mask)

    def trace(self) -> poutine.Trace:
        """The trace without the summed sites; the others have their densities after the sum."""
        result = self._trace.copy()
        for component in self._components():
            densities, target = self._densities(component), self._target(component)
            for name in (*component.latent, *component.observed):
                site, shape = self._trace.nodes[name], self._drawn.nodes[name]["fn"].batch_shape
                density = densities.get(name, self._terms[name].new_zeros(()))
                excess = max(0, density.dim() - len(shape))
                in_target = [n if d - len(shape) in target else 1 for d, n in enumerate(shape)]
                density = density.reshape(density.shape[excess:]).expand(in_target)
                fn = Summed(site["fn"], shape, density, component.summed[0], target.values())
                result.nodes[name] = {**site, "fn": fn, "mask": None}
        for name, site in self._trace.nodes.items():
            if name in self._names or (name in self._terms and site["infer"].get("_deterministic")):
                result.remove_node(name)
        return result

    def _components(self) -> list[_Component]:
        """Group the sites by shared dimensions of states."""
        groups: list[tuple[set[int], list[str]]] = []
        for name, term in self._terms.items():
            dims, members = _state_dims(term.shape, self._depth), [name]
            for group in [g for g in groups if g[0] & dims]:
                groups.remove(group)
                dims, members = dims | group[0], group[1] + members
            groups.append((dims, members))
        return [self._component(frozenset(dims), members) for dims, members in groups if dims]

    def _component(self, dims: frozenset[int], members: list[str]) -> _Component:
        nodes = self._trace.nodes
        others = [
            n
            for n in members
            if n not in self._names and not nodes[n]["infer"].get("_deterministic")
        ]
        component = _Component(
            dims,
            tuple(n for n in members if n in self._names),
            tuple(n for n in others if not nodes[n]["is_observed"]),
            tuple(n for n in others if nodes[n]["is_observed"]),
        )
        self._check(component)
        return component

    def _check(self, component: _Component) -> None:
        """Refuse scales and masks under which the sum does not exist."""
        nodes, first = self._trace.nodes, component.summed[0]
        scale, target = nodes[first]["scale"], self._target(component)
        varying = isinstance(scale, Tensor) and any(
            scale.shape[d] > 1 and d not in target for d in range(-scale.dim(), 0)
        )
        for name in (*component.summed, *component.latent, *component.observed):
            if varying or not equal_scale(nodes[name]["scale"], scale):
                raise ProgramError(
                    f"the sum over the site '{first}' needs one scale for all sites that depend on "
                    f"it: '{name}' has another one, and the power of a term within a sum is no "
                    f"part of a density; give the guide a site '{first}'"
                )
            if not target.keys() <= {f.dim for f in _plates(nodes[name])}:
                raise ProgramError(
                    f"the site '{name}' lies outside the plate of the site '{first}' that is "
                    f"summed out, and depends on it: give the guide a site '{first}'"
                )
        for name in component.latent:
            if nodes[name]["mask"] is not None and nodes[name]["mask"] is not True:
                raise ProgramError(
                    f"the latent site '{name}' has a mask and depends on the site '{first}' that "
                    f"is summed out: give the guide a site '{first}'"
                )

    def _target(self, component: _Component) -> dict[int, str]:
        """The plates that hold all summed sites: each of their elements has a sum of its own."""
        stacks = [_plates(self._trace.nodes[name]) for name in component.summed]
        return {f.dim: f.name for f in stacks[0] if all(f in stack for stack in stacks)}

    def _densities(self, component: _Component) -> dict[str, Tensor]:
        """The log-density of the first latent and the first observed site; the others have 0."""
        found, prior = {}, None
        if component.latent:
            prior = self._contracted(component, (*component.summed, *component.latent))
            found[component.latent[0]] = prior
        if component.observed:
            joint = self._contracted(
                component, (*component.summed, *component.latent, *component.observed)
            )
            found[component.observed[0]] = joint if prior is None else joint - prior
        return found

    def _contracted(self, component: _Component, names: Iterable[str]) -> Tensor:
        """Log Σ_y Π of the densities of some sites; dimensions of inner plates have size 1."""
        names = list(names)
        sizes: dict[int, int] = {}
        for name in names:
            for i, size in enumerate(reversed(self._terms[name].shape)):
                sizes[-1 - i] = max(size, sizes.get(-1 - i, 1))
        symbols = {dim: get_symbol(i) for i, dim in enumerate(sorted(sizes))}
        ring = LogRing(dim_to_size={symbols[dim]: size for dim, size in sizes.items()})
        tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
        for name in names:
            term = self._terms[name]
            plates = {f.dim for f in _plates(self._trace.nodes[name])}
            plates |= {d for d in range(-min(term.dim(), self._depth), 0) if term.shape[d] > 1}
            ordinal = frozenset(symbols[d] for d in plates if d in symbols)
            tree.setdefault(ordinal, []).append(packed.pack(term, symbols))
        sums = {symbols[d] for d in component.dims if d in symbols}
        target = frozenset(symbols[d] for d in self._target(component) if d in symbols)
        try:
            result = contract_to_tensor(tree, sums, target_ordinal=target, ring=ring)
        except (NotImplementedError, ValueError) as error:
            words = " ".join(str(error).split())
            raise ProgramError(
                f"the site '{component.summed[0]}' cannot be summed out: {words}"
            ) from error
        return packed.unpack(result, {symbol: dim for dim, symbol in symbols.items()})


def _check(name: str, site: Site) -> None:
    """Refuse a site whose states are not finitely many, or too many."""
    fn = site["fn"]
    part = elements_of(name, fn, max(1, fn.batch_shape.numel()))
    kind = type(base_distribution(fn)).__name__
    if part is None:
        raise ProgramError(
            f"the model's site '{name}' is marked for enumeration, but its values are not known to "
            f"be finite ({kind})"
        )
    if part.size > MOST:
        raise ProgramError(
            f"the model's site '{name}' has {part.num_states}^{part.count} states per element, "
            f"more than the {MOST:,} that are summed out: put independent elements into a plate, "
            "or give the guide this site"
        )


def _plates(site: Site) -> list[Any]:
    return [f for f in site["cond_indep_stack"] if f.vectorized]


def _batch_shape(site: Site) -> tuple[int, ...]:
    """The shape of the log-density of a site at its value."""
    fn, value = site["fn"], site["value"]
    shape: tuple[int, ...] = broadcast_shape(
        fn.batch_shape, value.shape[: value.dim() - len(fn.event_shape)]
    )
    return shape


def _state_dims(shape: tuple[int, ...], depth: int) -> set[int]:
    return {d for d in range(-len(shape), -depth) if shape[d] > 1}
