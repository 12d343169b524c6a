"""Bernoulli and one-hot sites by their logits: relaxed draws, and densities between the states."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask, sum_rightmost
from torch import Tensor
from torch.distributions import Bernoulli, Independent, OneHotCategorical
from torch.nn.functional import softplus

from pyroae.distributions import OneHots
from pyroae.programs.particles import Stacked


def _uniform(like: Tensor) -> Tensor:
    """Uniform draws in the open interval (0, 1)."""
    eps = torch.finfo(like.dtype).eps
    return torch.rand_like(like).clamp(eps / 4, 1 - eps)


@dataclass(frozen=True)
class Variables(ABC):
    """Discrete variables that are functions of their logits l and noise.

        z = l + noise,   state b = H(z),   relaxed state σ_τ(z),   σ_τ(z) → b for τ → 0

    Attributes:
        logits: l, shape `[...]` for binary variables and `[..., C]` for C states.
    """

    logits: Tensor

    @abstractmethod
    def noise(self) -> Tensor:
        """Return independent noise of the shape of the logits, for which H(l + noise) ~ q."""

    @abstractmethod
    def ends(self) -> tuple[Tensor, Tensor]:
        """Return the first and the last state of all variables, of the shape of the logits."""

    @abstractmethod
    def hard(self, z: Tensor) -> Tensor:
        """Return the states H(z)."""

    @abstractmethod
    def soft(self, z: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """Return the relaxed states σ_τ(z); at z = l and τ = 1 they are the probabilities."""

    @abstractmethod
    def given(self, states: Tensor, noise: Tensor) -> Tensor:
        """Return z given its states, as a differentiable function of the logits.

        Args:
            states: b, of the shape of the logits.
            noise: Noise of `noise`, independent of the states.
        """

    def score(self, states: Tensor) -> Tensor:
        """Return ∂ log q(b) / ∂l = b − E b, of the shape of the logits."""
        return states - self.soft(self.logits)

    @abstractmethod
    def linear(self, value: Tensor) -> Tensor:
        """Return log q of each variable, extended linearly between the states, in nats."""

    @abstractmethod
    def concrete(self, z: Tensor, temperature: Tensor | float) -> Tensor:
        """Return the log-density of each variable z / τ, normalized over states, in nats."""


class Binary(Variables):
    """Binary variables: z = l + logistic noise, b = [z > 0], σ_τ(z) = 1 / (1 + exp(−z/τ)).

    >>> import torch
    >>> q = Binary(torch.tensor([0.0, 2.0]))
    >>> q.linear(torch.tensor([0.5, 1.0])).exp()
    tensor([0.5000, 0.8808])
    >>> q.given(torch.tensor([0.0, 1.0]), torch.zeros(2)).sign()
    tensor([-1.,  1.])
    """

    def noise(self) -> Tensor:
        """Return logistic noise."""
        u = _uniform(self.logits)
        return u.log() - (-u).log1p()

    def ends(self) -> tuple[Tensor, Tensor]:
        """Return 0 and 1."""
        return torch.zeros_like(self.logits), torch.ones_like(self.logits)

    def hard(self, z: Tensor) -> Tensor:
        """Return 1 where z > 0, else 0."""
        return (z > 0).to(z.dtype)

    def soft(self, z: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """Return the sigmoid of z / τ."""
        return torch.sigmoid(z / temperature)

    def given(self, states: Tensor, noise: Tensor) -> Tensor:
        """Return s · softplus(noise + softplus(s l)), s = 2 b − 1 (Tucker 2017, appendix)."""
        sign = 2 * states - 1
        return sign * softplus(noise + softplus(sign * self.logits))

    def linear(self, value: Tensor) -> Tensor:
        """Return b l − log(1 + exp l)."""
        return value * self.logits - softplus(self.logits)

    def concrete(self, z: Tensor, temperature: Tensor | float) -> Tensor:
        """Return log τ + (l − z) − 2 softplus(l − z)."""
        distance = self.logits - z
        return distance - 2 * softplus(distance) + _log(temperature)


class OneOf(Variables):
    """Variables of C states as one-hot vectors: z = log p + Gumbel noise, b = argmax.

    >>> import torch
    >>> q = OneOf(torch.tensor([0.25, 0.25, 0.5]).log())
    >>> q.linear(torch.tensor([0.0, 0.0, 1.0])).exp()
    tensor(0.5000)
    >>> q.hard(q.given(torch.tensor([0.0, 1.0, 0.0]), q.noise()))
    tensor([0., 1., 0.])
    """

    @property
    def log_probs(self) -> Tensor:
        """The normalized log-probabilities, shape `[..., C]`."""
        return self.logits.log_softmax(-1)

    def noise(self) -> Tensor:
        """Return standard Gumbel noise."""
        return -(-_uniform(self.logits).log()).log()

    def ends(self) -> tuple[Tensor, Tensor]:
        """Return the one-hot vectors of the first and the last state."""
        order = torch.arange(self.logits.shape[-1], device=self.logits.device)
        order = order.to(self.logits).expand_as(self.logits)
        return self.hard(-order), self.hard(order)

    def hard(self, z: Tensor) -> Tensor:
        """Return the one-hot vector of the largest element."""
        states = torch.arange(z.shape[-1], device=z.device)
        return (z.argmax(-1, keepdim=True) == states).to(z.dtype)

    def soft(self, z: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
        """Return the softmax of z / τ."""
        return torch.softmax(z / temperature, -1)

    def given(self, states: Tensor, noise: Tensor) -> Tensor:
        """Return truncated Gumbel variables (Tucker 2017, appendix).

        The state's own z_b is the maximum, Gumbel(0); the others are
        z_i = −log(exp(−noise_i) / p_i + exp(−z_b)).
        """
        largest = (states * noise).sum(-1, keepdim=True)
        below = -torch.logaddexp(-noise - self.log_probs, -largest)
        return torch.where(states > 0.5, largest, below)

    def linear(self, value: Tensor) -> Tensor:
        """Return Σ_c b_c log p_c."""
        return (value * self.log_probs).sum(-1)

    def concrete(self, z: Tensor, temperature: Tensor | float) -> Tensor:
        """Return the ExpConcrete log-density (Maddison 2017), in which shifts of z cancel."""
        distance, count = self.logits - z, z.shape[-1]
        constant = math.lgamma(count) + (count - 1) * _log(temperature)
        return distance.sum(-1) - count * distance.logsumexp(-1) + constant


def _log(number: Tensor | float) -> Tensor | float:
    return number.log() if isinstance(number, Tensor) else math.log(number)


@dataclass(frozen=True)
class DiscreteSite:
    """The variables of one site.

    Attributes:
        variables: The variables, by their logits.
        reduce: Reduces a term of each variable to the batch shape of the site, as the
            distribution's `log_prob` does.
        is_flat: Whether the site's value has the variables and their states in one dimension.
    """

    variables: Variables
    reduce: Callable[[Tensor], Tensor]
    is_flat: bool = False

    def pack(self, states: Tensor) -> Tensor:
        """Return states of the shape of the logits as a value of the site."""
        return states.flatten(-2) if self.is_flat else states

    def unpack(self, value: Tensor) -> Tensor:
        """Return a value of the site in the shape of the logits."""
        shape = self.variables.logits.shape[-2:]
        return value.unflatten(-1, shape) if self.is_flat else value

    def at(self, logits: Tensor) -> Variables:
        """Return the same variables with other logits."""
        return type(self.variables)(logits)


def discrete_site(fn: object) -> DiscreteSite | None:
    """Return the variables of a distribution over binary or one-hot states.

    Args:
        fn: A distribution of Pyro or torch, also inside Independent, an expansion or a mask.

    Returns:
        Its variables; None for every other distribution.

    >>> site = discrete_site(dist.Bernoulli(logits=torch.zeros(3, 4)).to_event(1))
    >>> site.reduce(site.variables.linear(torch.ones(3, 4))).shape
    torch.Size([3])
    >>> discrete_site(dist.Categorical(logits=torch.zeros(3))) is None
    True
    """
    if isinstance(fn, Stacked):
        return _stacked(fn)
    for kind, make in _KINDS.items():
        if isinstance(fn, kind):
            return make(fn)
    inner = discrete_site(fn.base_dist) if hasattr(fn, "base_dist") else None
    return None if inner is None else _wrapped(fn, inner)


_KINDS: dict[type, Callable[[Any], DiscreteSite]] = {
    Bernoulli: lambda fn: DiscreteSite(Binary(fn.logits), lambda term: term),
    OneHots: lambda fn: DiscreteSite(OneOf(fn.logits), lambda term: term.sum(-1), is_flat=True),
    OneHotCategorical: lambda fn: DiscreteSite(OneOf(fn.logits), lambda term: term),
}


def _wrapped(fn: Any, inner: DiscreteSite) -> DiscreteSite | None:
    """The variables of a distribution around another one; None where they are no longer these."""
    reduce = inner.reduce
    if isinstance(fn, Independent):
        events = fn.reinterpreted_batch_ndims
        return replace(inner, reduce=lambda term: sum_rightmost(reduce(term), events))
    if isinstance(fn, dist.MaskedDistribution):
        mask = fn._mask
        return replace(inner, reduce=lambda term: scale_and_mask(reduce(term), mask=mask))
    if isinstance(fn, dist.ExpandedDistribution):
        logits = inner.variables.logits
        own = logits.shape[len(fn.base_dist.batch_shape) :]
        return replace(inner, variables=inner.at(logits.expand(*fn.batch_shape, *own)))
    return None


def _stacked(fn: Stacked) -> DiscreteSite | None:
    """The variables of a site in K runs."""
    parts = [discrete_site(part) for part in fn.parts]
    sites = [part for part in parts if part is not None]
    if len(sites) < len(parts):
        return None
    logits = torch.stack([site.variables.logits for site in sites])
    logits = logits.unflatten(0, (-1, *[1] * fn.pad))

    def reduce(term: Tensor) -> Tensor:
        rows = zip(sites, term.flatten(0, fn.pad), strict=True)
        return fn.stacked([site.reduce(row) for site, row in rows])

    return DiscreteSite(sites[0].at(logits), reduce, sites[0].is_flat)


def binary_logits(fn: Any) -> Tensor | None:
    """Return the logits of a Bernoulli distribution.

    Args:
        fn: A distribution of Pyro or torch, or that of a site in several runs.

    Returns:
        Its logits, of the batch and event shape; None where it is no Bernoulli.

    >>> binary_logits(dist.Bernoulli(torch.full((2,), 0.5)).to_event(1))
    tensor([0., 0.])
    >>> binary_logits(dist.Normal(0.0, 1.0)) is None
    True
    """
    site = discrete_site(fn)
    if site is None or not isinstance(site.variables, Binary):
        return None
    return site.variables.logits.expand(fn.batch_shape + fn.event_shape)
