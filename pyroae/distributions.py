"""Distributions that Pyro lacks: the continuous Bernoulli by its logits, one-hot features, an improper flat density."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints, kl_divergence, register_kl

from pyroae.errors import ConfigError

BINARY = "binary"


REAL = "real"


class OneHots(dist.TorchDistribution):
    """V categorical variables of C states each as one vector of V·C zeros and ones.

        log p(z) = Σ_v Σ_c z_vc log p_vc

    logits: `[..., V, C]`; z has the event shape `[V C]`.

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
        """Vectors of zeros and ones."""
        return constraints.independent(constraints.boolean, 1)

    @property
    def mean(self) -> Tensor:
        """The probabilities, `[..., V C]`."""
        return self.variables.probs.flatten(-2)

    @property
    def variance(self) -> Tensor:
        """p(1 − p), `[..., V C]`."""
        return self.variables.variance.flatten(-2)

    def expand(self, batch_shape: tuple[int, ...], _instance: object = None) -> "OneHots":
        return OneHots(
            self.logits.expand(*batch_shape, *self.logits.shape[-2:]), validate_args=False
        )

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.variables.sample(sample_shape).flatten(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.variables.log_prob(value.unflatten(-1, self.logits.shape[-2:])).sum(-1)

    def entropy(self) -> Tensor:
        return self.variables.entropy().sum(-1)


@register_kl(OneHots, OneHots)
def _kl(one: OneHots, other: OneHots) -> Tensor:
    return kl_divergence(one.variables, other.variables).sum(-1)


def states_of(latent: int, categories: int | None) -> int:
    """The number of states of each variable in a z of size `latent`. Raises ConfigError where they do not fit."""
    states = latent if categories is None else categories
    if states < 2 or latent % states:
        raise ConfigError(
            f"z of size {latent} does not hold whole variables of {states} categories: latent must be a multiple of "
            "categories, which are at least 2"
        )
    return states


def one_hot(states: int) -> str:
    """The name of that support."""
    return f"one-hot of {states}"


class ContinuousBernoulliLogits(dist.TorchDistribution):
    """The continuous Bernoulli on [0, 1] from logits λ, exact however large they are.

    log p(x) = λ(x − ½) − log(sinh(λ/2) / (λ/2)); torch's own works from probabilities that it clamps, and its density then
    integrates to a half at λ = −30.
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
        return ContinuousBernoulliLogits(self.logits.expand(batch_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        small, half = self._halves()
        series = half**2 / 6 - half**4 / 180 + half**6 / 2835 - half**8 / 37800
        size = torch.where(small, torch.ones_like(half), half).abs()
        closed = size + torch.log1p(-torch.exp(-2 * size)) - torch.log(2 * size)
        return self.logits * (value - 0.5) - torch.where(small, series, closed)

    @property
    def mean(self) -> Tensor:
        """½ + ½ coth(λ/2) − 1/λ."""
        small, half = self._halves()
        series = half / 6 - half**3 / 90 + half**5 / 945 - half**7 / 9450
        safe = torch.where(small, torch.ones_like(half), half)
        return 0.5 + torch.where(small, series, 0.5 / torch.tanh(safe) - 0.5 / safe)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """By inversion: x = log(1 − u + u e^λ) / λ, from the side on which the exponential is small."""
        shape = self._extended_shape(sample_shape)
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        small = self.logits.abs() < 1e-3
        size = torch.where(small, torch.ones_like(self.logits), self.logits).abs()
        x = -torch.log(1 - u + u * torch.exp(-size)) / size  # of the logit −|λ|
        x = torch.where(self.logits > 0, 1 - x, x)
        return torch.where(small, u, x).clamp(0, 1)

    def _halves(self) -> tuple[Tensor, Tensor]:
        """Where λ/2 is so small that the closed form cancels, and λ/2."""
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
