"""How draws pass from the guide to the model, and the density of the guide with its parameters stopped."""

from collections.abc import Collection
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyroae.programs.sites import Program, Site, is_delta
from pyroae.programs.traces import Traces, guide_at, log_density


class Detached(Messenger):
    """Stops the gradient of the values that the guide draws, for score-function estimators.

    A Delta is no draw: what it does with the stopped draws can be seen from its gradient.
    kept: names of sites whose values keep their gradient.
    """

    def __init__(self, kept: Collection[str] = ()) -> None:
        super().__init__()
        self.kept = kept

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.kept:
            return
        if not msg["is_observed"] and isinstance(msg["value"], Tensor) and not is_delta(msg):
            msg["value"] = msg["value"].detach()


class Scaled:
    """Multiplies the gradient that the model sends back into a draw by a ratio that is known only later.

    θ follows c_k ∂ log p and φ another d_k ∂ log p / ∂z: with the ratio d_k / c_k one backward pass gives both. A global draw
    is a parameter of the model given which a datum has its bound, as θ is.
    """

    def __init__(self) -> None:
        self.ratio: Tensor | None = None
        self.traces: Traces | None = None

    def __call__(self, site: Site) -> Tensor:
        """The value of a site of the guide, as the model is to see it."""
        return _ScaleGradient.apply(site["value"], self, site)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, scaled: Scaled, site: Site) -> Tensor:
        ctx.scaled, ctx.site = scaled, site
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scaled, gradient = ctx.scaled, gradients[0]
        if scaled.ratio is not None and scaled.traces.is_local(ctx.site):
            gradient = gradient * scaled.traces.expand_to(ctx.site, scaled.ratio)
        return gradient, None, None


def path_through_log_post(
    traces: Traces,
    guide: Program,
    args: Any,
    kwargs: Any,
    coefficient: Tensor,
    *,
    local: bool = True,
) -> Tensor:
    """A number whose gradient is Σ_kn a_kn (∂ log q(z_kn) / ∂z_kn)(∂z_kn / ∂φ), the parameters of q stopped, for the draws.

    It is the gradient of log q at the draws, taken there with the draws as leaves, times the draws. Where no site of the
    guide depends on another the distributions of the first run serve for that; elsewhere the guide is run again.
    local: of the sites in the data plate, with coefficients `[K, N]`; False: of those outside, with `[K]`.
    """
    drawn = [(name, site) for name, site in traces.draws() if traces.is_local(site) == local]
    sites = [(name, site) for name, site in drawn if site["value"].requires_grad]
    if not sites:
        return coefficient.new_zeros(())
    leaves = {name: site["value"].detach().requires_grad_() for name, site in sites}
    with torch.enable_grad():
        log_posts = [
            traces.reduce(site, log_density(name, site, leaves[name])) for name, site in sites
        ]
        if len(sites) > 1 and _depends(log_posts, [site["value"] for _, site in sites]):
            log_posts = _rerun(traces, guide, args, kwargs, leaves, drawn)
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
    """Whether a log-density, taken at a leaf, still depends on the draw of some site."""
    draws = {value.grad_fn for value in values}
    return any(node in draws for log_post in log_posts for node in _graph(log_post))


def _graph(tensor: Tensor) -> set[Any]:
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
    drawn: list[tuple[str, Site]],
) -> list[Tensor]:
    """log q of each site from a second run of the guide, in which every site sees the leaves of the others."""
    again = guide_at(traces, guide, args, kwargs, leaves).guide.nodes
    return [traces.reduce(site, log_density(name, again[name])) for name, site in drawn]


def at_fixed_draws(traces: Traces, guide: Program, args: Any, kwargs: Any) -> Traces:
    """The guide run again with its draws in the data plate stopped.

    What still carries a gradient depends on parameters directly, or on draws outside the plate, which a datum takes as it
    takes parameters.
    """
    stopped = {
        name: site["value"].detach() for name, site in traces.draws() if traces.is_local(site)
    }
    return guide_at(traces, guide, args, kwargs, stopped)
