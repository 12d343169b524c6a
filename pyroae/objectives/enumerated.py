"""Exact sums over discrete sites of a guide that are marked with `infer={"enumerate": "parallel"}`.

With y_1, …, y_S the joint values of the marked sites, and draws z_ks of all other sites given y_s,

    L = (1/K) Σ_k Σ_s q(y_s | ·) log w_ks,   w_ks = p(x, y_s, z_ks) / (q(y_s | ·) q(z_ks | y_s, ·))

which is run as S·K particles. The gradient follows the paths of z and every q(y_s | ·): no score
term is needed.

For the importance-weighted bound the sum would be within the weight, w̄_k = Σ_s q(y_s | ·) w_ks, in
which q(y_s | ·) cancels: it would not be trained. Therefore only the ELBO sums; the other
estimators draw y.

References:
    Kingma, Rezende, Mohamed & Welling 2014, Semi-Supervised Learning with Deep Generative Models.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyroae.errors import ProgramError
from pyroae.objectives.scores import has_path
from pyroae.programs.paired_traces import Traces
from pyroae.programs.particles import Stacked, has_particles
from pyroae.programs.sites import Site, base_distribution
from pyroae.weights import LogWeights

MOST = 2**12
"""The largest number of joint values that are summed; more sites are drawn, with a warning."""


@dataclass(frozen=True)
class Enumeration:
    """The marked sites of a guide whose values are summed.

    Attributes:
        sizes: The number of values of each site, by name; empty if nothing is summed.
    """

    sizes: dict[str, int]

    @property
    def total(self) -> int:
        """S, the number of joint values."""
        return math.prod(self.sizes.values())

    def handler(self, num_particles: int) -> "Values":
        """Return a handler that gives the guide the joint values in place of draws.

        Args:
            num_particles: K, the draws of all other sites for each joint value.

        Returns:
            A handler for one run with S·K particles.
        """
        return Values(self.sizes, num_particles)


def enumeration_in(traces: Traces) -> Enumeration:
    """Find the marked sites of a guide that can be summed.

    A site is summed if it has one value for each datum, from finitely many that are known, and no
    mask. If one of the marked sites is not like that, none is summed.

    Args:
        traces: A run of model and guide in which the sites are drawn.

    Returns:
        The sites.
    """
    sizes = {
        name: _size(traces, site)
        for name, site in traces.sites(traces.guide, observed=False)
        if site["infer"].get("enumerate")
    }
    is_possible = all(sizes.values()) and math.prod(sizes.values()) <= MOST
    return Enumeration(sizes if is_possible else {})


def _size(traces: Traces, site: Site) -> int:
    """The number of values of a site; 0 where they cannot be summed."""
    fn, num_values = site["fn"], 1 if traces.plate is None else traces.plate.size
    if isinstance(fn, Stacked):
        fn = fn.parts[0]
    elif has_particles(site):
        num_values *= traces.num_particles
    if not traces.is_local(site) or site["mask"] is not None:
        return 0
    if fn.batch_shape.numel() != num_values or not getattr(fn, "has_enumerate_support", False):
        return 0
    try:
        return len(fn.enumerate_support(expand=False))
    except NotImplementedError:
        return 0


class Values(Messenger):
    """Give particle s·K + k of a guide the s-th joint value of the marked sites.

    Args:
        sizes: The number of values of each site, by name.
        num_particles: K.
    """

    def __init__(self, sizes: dict[str, int], num_particles: int) -> None:
        super().__init__()
        self.sizes, self._strides, stride = sizes, {}, num_particles
        for name, size in sizes.items():
            self._strides[name], stride = stride, stride * size
        self.num_particles = stride
        self._runs: Counter[str] = Counter()

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name not in self.sizes or msg["value"] is not None:
            return
        fn = msg["fn"]
        states = fn.enumerate_support(expand=False)
        first = 0 if has_particles(msg) else self._runs[name]
        count = self.num_particles if has_particles(msg) else 1
        self._runs[name] += 1
        particles = torch.arange(first, first + count, device=states.device)
        chosen = states[particles // self._strides[name] % self.sizes[name]]
        ones = [1] * max(0, len(fn.batch_shape) - 1)
        leading = [count, *ones] if fn.batch_shape else []
        shape = (*fn.batch_shape, *fn.event_shape)
        msg["value"] = chosen.reshape(*leading, *fn.event_shape).expand(shape)


def check_others(traces: Traces, enumeration: Enumeration, objective: str) -> None:
    """Refuse draws beside the summed sites that carry no path gradient.

    Args:
        traces: A run of model and guide.
        enumeration: The sites that are summed.
        objective: The name of the objective, for the message.

    Raises:
        ProgramError: The guide has such a draw.
    """
    for name, site in traces.draws():
        if name not in enumeration.sizes and not has_path(site["fn"]):
            summed = " and ".join(f"'{one}'" for one in enumeration.sizes)
            raise ProgramError(
                f"{objective} sums over the site {summed} exactly, and needs a path gradient at "
                f"every other draw; the guide's site '{name}' "
                f"({type(base_distribution(site['fn'])).__name__}) has none: mark it with "
                'infer={"enumerate": "parallel"} too, or leave the marks out'
            )


def log_probabilities(traces: Traces, weights: LogWeights, enumeration: Enumeration) -> Tensor:
    """Return log q(y_s | ·) of the joint values.

    Args:
        traces: A run with S·K particles.
        weights: Its log-weights.
        enumeration: The sites that are summed.

    Returns:
        Log-probabilities in nats, without scales, shape `[S, K, N]`.
    """
    terms = [
        traces.reduce(traces.guide.nodes[name], weights.densities[name], exponent=1.0)
        for name in enumeration.sizes
    ]
    return sum(terms[1:], terms[0]).unflatten(0, (enumeration.total, -1))


def expected(log_weight: Tensor, log_q: Tensor) -> Tensor:
    """Return the expectation of the log-weights under q(y | ·).

        Σ_s q(y_s) log w_ks,   without the values of probability 0

    Args:
        log_weight: log w_ks, shape `[S, K, N]`.
        log_q: log q(y_s | ·), shape `[S, K, N]`.

    Returns:
        The expectations in nats, shape `[K, N]`.

    >>> half = torch.tensor([0.5, 0.5]).log().reshape(2, 1, 1)
    >>> expected(torch.tensor([1.0, 3.0]).reshape(2, 1, 1), half)
    tensor([[2.]])
    """
    return (log_q.exp() * torch.where(log_q == -math.inf, 0.0, log_weight)).sum(0)
