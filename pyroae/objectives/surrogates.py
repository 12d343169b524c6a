"""Surrogates: gradients through the draws of the guide, with the parameters of q stopped."""

from collections.abc import Collection
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyroae.programs.paired_traces import Traces, log_density
from pyroae.programs.sites import Program, Site, is_delta
from pyroae.programs.traces import guide_at

TINY = 1e-20
"""Coefficients below this size are set to 0: in a sum in single precision they have no effect.

For θ, whose coefficient is a divisor, they are set to this size.
"""


def without_tiny(coefficient: Tensor) -> Tensor:
    """Return coefficients, with 0 in the place of those below `TINY`.

    In the backward pass through the networks they would become subnormal numbers, whose products
    take many processors a hundred times as long: a step of IWAE with K = 64 took four times as
    long.

    Args:
        coefficient: Coefficients, any shape.

    Returns:
        The coefficients, of the same shape.
    """
    return torch.where(coefficient.abs() < TINY, 0.0, coefficient)


def with_cut_gradient(log_weight: Tensor) -> Tensor:
    """Return log-weights whose gradient is set to 0 where it is below `TINY`.

    Args:
        log_weight: Log-weights, any shape.

    Returns:
        The same log-weights, with a hook on their gradient.
    """
    if log_weight.requires_grad:
        log_weight = log_weight.clone()
        log_weight.register_hook(without_tiny)
    return log_weight


class Detached(Messenger):
    """Stop the gradient of the values that the guide draws, for score-function estimators.

    The value of a Delta is not a draw and keeps its gradient, so that a Delta that depends on
    parameters at fixed draws can be recognized.

    Args:
        attached: Names of sites whose values keep their gradient; none by default.
    """

    def __init__(self, attached: Collection[str] = ()) -> None:
        super().__init__()
        self.attached = attached

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.attached:
            return
        if not msg["is_observed"] and isinstance(msg["value"], Tensor) and not is_delta(msg):
            msg["value"] = msg["value"].detach()


class Scaled:
    """Multiply the gradient that flows from the model into a draw by a ratio set after the run.

    θ follows c_k ∂_θ log p and φ follows d_k ∂ log p / ∂z_k. With the ratio d_k / c_k one backward
    pass computes both. Draws outside the data plate are not scaled: each datum's bound is
    conditional on them, as it is on θ.

    The ratios are kept for each site, without the traces: these hold the values, whose graph holds
    this object, a cycle through C++ that Python cannot collect.
    """

    def __init__(self) -> None:
        self._ratios: dict[str, Tensor] = {}

    def __call__(self, site: Site) -> Tensor:
        """Return the value of a site of the guide with its gradient scaled."""
        return _ScaleGradient.apply(site["value"], self._ratios, site["name"])

    def set_ratio(self, traces: Traces, ratio: Tensor) -> None:
        """Set the ratio, before the backward pass.

        Args:
            traces: The traces of the run.
            ratio: d_k / c_k, shape `[K, N]`, detached.
        """
        for name, site in traces.sites(traces.guide, observed=False):
            if traces.is_local(site):
                self._ratios[name] = traces.expand_to(site, ratio)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, ratios: dict[str, Tensor], name: str) -> Tensor:
        ctx.ratios, ctx.name = ratios, name
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ratio = ctx.ratios.get(ctx.name)
        return gradients[0] if ratio is None else gradients[0] * ratio, None, None


def path_through_log_post(
    traces: Traces,
    guide: Program,
    args: Any,
    kwargs: Any,
    coefficient: Tensor,
    *,
    local: bool = True,
) -> Tensor:
    """Return a number whose gradient is the path derivative of log q with q's parameters stopped.

        Σ_kn a_kn (∂ log q(z_kn) / ∂z_kn) (∂z_kn / ∂φ)

    It is the gradient of log q with respect to the draws, detached, times the draws. Where no site
    of the guide depends on another the distributions of the first run give log q; otherwise the
    guide is run again.

    Args:
        traces: The traces of guide and model, with K particles.
        guide: The guide.
        args: Positional arguments of the guide.
        kwargs: Keyword arguments of the guide.
        coefficient: a, shape `[K, N]`, or `[K]` for sites outside the data plate.
        local: Sum over the sites in the data plate; False for those outside it.

    Returns:
        The surrogate, shape `[]`; 0 where no draw carries a gradient.
    """
    draws = [(name, site) for name, site in traces.draws() if traces.is_local(site) == local]
    sites = [(name, site) for name, site in draws if site["value"].requires_grad]
    if not sites:
        return coefficient.new_zeros(())
    leaves = {name: site["value"].detach().requires_grad_() for name, site in sites}
    with torch.enable_grad():
        log_posts = [
            traces.reduce(site, log_density(name, site, leaves[name])) for name, site in sites
        ]
        if len(sites) > 1 and _depends(log_posts, [site["value"] for _, site in sites]):
            log_posts = _rerun(traces, guide, args, kwargs, leaves, draws)
    parts = [(coefficient * log_post).sum() for log_post in log_posts if log_post.requires_grad]
    if not parts:
        return coefficient.new_zeros(())
    gradients = torch.autograd.grad(parts, list(leaves.values()), allow_unused=True)
    pairs = zip(gradients, sites, strict=True)
    terms = [
        (gradient * site["value"]).sum() for gradient, (_, site) in pairs if gradient is not None
    ]
    return sum(terms[1:], terms[0])


def _depends(log_posts: list[Tensor], values: list[Tensor]) -> bool:
    """Whether a log-density, evaluated at a leaf, still depends on the draw of some site."""
    draws = {value.grad_fn for value in values}
    return any(node in draws for log_post in log_posts for node in graph_of(log_post))


def graph_of(tensor: Tensor) -> set[Any]:
    """Return the nodes of a tensor's autograd graph.

    Args:
        tensor: Any tensor.

    Returns:
        The nodes; none where the tensor requires no gradient.
    """
    seen: set[Any] = set()
    todo = [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return seen


def _rerun(
    traces: Traces,
    guide: Program,
    args: Any,
    kwargs: Any,
    leaves: dict[str, Tensor],
    draws: list[tuple[str, Site]],
) -> list[Tensor]:
    """The log q of each site from a second run of the guide, given the leaves as all draws."""
    sites = guide_at(traces, guide, args, kwargs, leaves).guide.nodes
    return [traces.reduce(site, log_density(name, sites[name])) for name, site in draws]


def at_fixed_draws(traces: Traces, guide: Program, args: Any, kwargs: Any) -> Traces:
    """Run the guide again with its draws in the data plate stopped.

    Values that still carry a gradient depend directly on parameters, or on draws outside the plate,
    on which each datum's bound is conditional as it is on parameters.

    Args:
        traces: The traces of guide and model.
        guide: The guide.
        args: Positional arguments of the guide.
        kwargs: Keyword arguments of the guide.

    Returns:
        The traces with the guide's second run in place of its first.
    """
    stopped = {
        name: site["value"].detach() for name, site in traces.draws() if traces.is_local(site)
    }
    return guide_at(traces, guide, args, kwargs, stopped)
