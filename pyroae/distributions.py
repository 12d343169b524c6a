"""Distributions that Pyro lacks: one-hot vectors, continuous Bernoulli by logits, flat density."""

import math
from importlib import import_module
from types import ModuleType
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    constraints,
    kl_divergence,
    register_kl,
)
from torch.distributions import Normal as _Normal

from pyroae.errors import ConfigError, UndefinedLikelihoodError

BINARY = "binary"
"""The support of z made of zeros and ones."""

REAL = "real"
"""The support of real z."""


def zuko() -> ModuleType:
    """Import zuko, the library of normalizing flows, without its effect on other distributions.

    Its import turns off the validation of all distributions of torch and Pyro, which is restored
    here.

    Returns:
        The package `zuko`.

    >>> zuko().flows.MAF(features=2).transform is not None
    True
    """
    validates = torch.distributions.Distribution._validate_args
    zuko = import_module("zuko")
    torch.distributions.Distribution.set_default_validate_args(validates)
    return zuko


class OneHots(dist.TorchDistribution):
    """V categorical variables of C states each, as one vector of V·C zeros and ones.

        log p(z) = Σ_v Σ_c z_vc log p_vc

    The event shape is `[V C]`.

    Args:
        logits: Unnormalized log-probabilities, shape `[..., V, C]`.
        validate_args: Whether to check arguments and values; None for torch's default.

    >>> q = OneHots(torch.zeros(2, 3, 4))
    >>> q.batch_shape, q.event_shape, q.sample().sum(-1).tolist()
    (torch.Size([2]), torch.Size([12]), [3.0, 3.0])
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 1)}  # noqa: RUF012
    has_rsample = False

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        self.variables = torch.distributions.OneHotCategorical(logits=logits, validate_args=False)
        super().__init__(
            logits.shape[:-2],
            torch.Size([math.prod(logits.shape[-2:])]),
            validate_args=validate_args,
        )

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """The set of vectors of zeros and ones."""
        return constraints.independent(constraints.boolean, 1)

    @property
    def mean(self) -> Tensor:
        """The probabilities of the states, shape `[..., V C]`."""
        return self.variables.probs.flatten(-2)

    @property
    def variance(self) -> Tensor:
        """The variance p(1 − p), shape `[..., V C]`."""
        return self.variables.variance.flatten(-2)

    def expand(self, batch_shape: tuple[int, ...], _instance: object = None) -> "OneHots":
        """Return the same distribution with another batch shape."""
        return OneHots(
            self.logits.expand(*batch_shape, *self.logits.shape[-2:]), validate_args=False
        )

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Return draws of z, shape `[*sample_shape, ..., V C]`."""
        return self.variables.sample(sample_shape).flatten(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z) in nats, shape `[...]`, for z `[..., V C]`."""
        return self.variables.log_prob(value.unflatten(-1, self.logits.shape[-2:])).sum(-1)

    def entropy(self) -> Tensor:
        """Return the entropy in nats, summed over the V variables, shape `[...]`."""
        return self.variables.entropy().sum(-1)


@register_kl(OneHots, OneHots)
def _kl(one: OneHots, other: OneHots) -> Tensor:
    return kl_divergence(one.variables, other.variables).sum(-1)


def marginals(fn: Any) -> Any:
    """Return the product of the marginal distributions of the elements of z.

    Args:
        fn: A distribution q(z) with event shape `[m]`: a Gaussian with a covariance matrix, or a
            mixture of diagonal Gaussians.

    Returns:
        Π_j q(z_j), with the same batch and event shapes; None for any other distribution.

    >>> q = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[4.0, 1.0], [1.0, 1.0]]))
    >>> marginals(q).stddev
    tensor([2., 1.])
    """
    if isinstance(fn, MultivariateNormal | LowRankMultivariateNormal):
        return dist.Normal(fn.mean, fn.variance.sqrt()).to_event(1)
    if not isinstance(fn, MixtureSameFamily):
        return None
    parts, shares = fn.component_distribution, fn.mixture_distribution
    if not isinstance(parts, Independent) or not isinstance(parts.base_dist, _Normal):
        return None
    if len(parts.event_shape) != 1:
        return None
    loc, scale = parts.base_dist.loc.mT, parts.base_dist.scale.mT
    logits = shares.logits.unsqueeze(-2).expand(loc.shape)
    mixture = dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(loc, scale))
    return mixture.to_event(1)


def states_of(latent: int, categories: int | None) -> int:
    """Return the number of states of each categorical variable in z.

    Args:
        latent: m, the size of z.
        categories: The number of states; None for one variable with m states.

    Returns:
        The number of states C, with m = V·C.

    Raises:
        ConfigError: C is below 2, or does not divide m.

    >>> states_of(12, 4), states_of(12, None)
    (4, 12)
    """
    states = latent if categories is None else categories
    if states < 2 or latent % states:
        raise ConfigError(
            f"z of size {latent} does not hold whole variables of {states} categories: latent must "
            "be a multiple of categories, which are at least 2"
        )
    return states


def one_hot(states: int) -> str:
    """Return the name of the support of concatenated one-hot vectors.

    Args:
        states: The number of states of each variable.

    Returns:
        A text that two choices share where their supports agree.

    >>> one_hot(4)
    'one-hot of 4'
    """
    return f"one-hot of {states}"


class ContinuousBernoulliLogits(dist.TorchDistribution):
    """The continuous Bernoulli on [0, 1] from logits λ, accurate for logits of any size.

        log p(x) = λ(x − ½) − log(sinh(λ/2) / (λ/2))

    torch's own distribution clamps the probabilities that it computes with; at λ = −30 its density
    integrates to a half.

    Args:
        logits: λ, shape `[...]`, which is the batch shape.
        validate_args: Whether to check arguments and values; None for torch's default.

    References:
        Loaiza-Ganem & Cunningham 2019, The Continuous Bernoulli: Fixing a Pervasive Error in
            Variational Autoencoders.

    >>> ContinuousBernoulliLogits(torch.tensor(0.0)).mean  # λ = 0: the uniform distribution
    tensor(0.5000)
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(
        self, batch_shape: tuple[int, ...], _instance: object = None
    ) -> "ContinuousBernoulliLogits":
        """Return the same distribution with another batch shape."""
        return ContinuousBernoulliLogits(self.logits.expand(batch_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) in nats, shape `[...]`."""
        small, half = self._halves()
        series = half**2 / 6 - half**4 / 180 + half**6 / 2835 - half**8 / 37800
        size = torch.where(small, torch.ones_like(half), half).abs()
        closed = size + torch.log1p(-torch.exp(-2 * size)) - torch.log(2 * size)
        return self.logits * (value - 0.5) - torch.where(small, series, closed)

    @property
    def mean(self) -> Tensor:
        """The mean ½ + ½ coth(λ/2) − 1/λ, shape `[...]`."""
        small, half = self._halves()
        series = half / 6 - half**3 / 90 + half**5 / 945 - half**7 / 9450
        safe = torch.where(small, torch.ones_like(half), half)
        return 0.5 + torch.where(small, series, 0.5 / torch.tanh(safe) - 0.5 / safe)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Return reparameterized draws by inversion of the distribution function.

            x = log(1 − u + u e^λ) / λ,   u ~ Uniform(0, 1)

        The formula is evaluated at the logit −|λ|, where the exponential does not overflow.

        Args:
            sample_shape: The shape of independent draws.

        Returns:
            Draws in [0, 1], shape `[*sample_shape, ...]`.
        """
        shape = self._extended_shape(sample_shape)
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        small = self.logits.abs() < 1e-3
        size = torch.where(small, torch.ones_like(self.logits), self.logits).abs()
        x = -torch.log(1 - u + u * torch.exp(-size)) / size  # of the logit −|λ|
        x = torch.where(self.logits > 0, 1 - x, x)
        return torch.where(small, u, x).clamp(0, 1)

    def _halves(self) -> tuple[Tensor, Tensor]:
        """Whether λ/2 is so small that the closed form loses its digits, and λ/2."""
        half = self.logits / 2
        return half.abs() < 0.15, half


class _Improper(dist.ImproperUniform):
    """Pyro's ImproperUniform with log-densities in the dtype and on the device of z."""

    def __init__(self, zeros: Tensor, batch_shape: tuple[int, ...] = ()) -> None:
        self._zeros = zeros
        super().__init__(constraints.real_vector, batch_shape, zeros.shape)

    def expand(self, batch_shape: tuple[int, ...], _instance: object = None) -> "_Improper":
        return _Improper(self._zeros, tuple(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return (value.sum(-1) * 0).expand(value.shape[:-1])

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        raise UndefinedLikelihoodError(
            "a Flat prior cannot be sampled: it is not a probability distribution; "
            "train with a Normal prior (ppca, vae) to draw samples"
        )
