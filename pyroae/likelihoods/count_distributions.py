"""Distributions over counts, by the logarithm of their mean."""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import log_softmax, softplus

SERIES_FROM = 30.0
"""The argument from which Stirling's series has an error below 10⁻¹³."""


class LogPoisson(dist.TorchDistribution):
    """The Poisson distribution with mean exp(l).

        log p(x) = x l − exp(l) − log x!

    Args:
        log_mean: l, shape `[...]`, which is the batch shape.
        validate_args: Whether to check values; None for torch's default.

    >>> round(LogPoisson(torch.tensor(0.0)).log_prob(torch.tensor(0.0)).item(), 4)
    -1.0
    """

    arg_constraints = {"log_mean": constraints.real}  # noqa: RUF012
    support = constraints.nonnegative_integer
    has_rsample = False

    def __init__(self, log_mean: Tensor, validate_args: bool | None = None) -> None:
        self.log_mean = log_mean
        super().__init__(log_mean.shape, validate_args=validate_args)

    def expand(self, batch_shape: tuple[int, ...], _instance: object = None) -> "LogPoisson":
        """Return the same distribution with another batch shape."""
        return LogPoisson(self.log_mean.expand(batch_shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The mean exp(l), shape `[...]`."""
        return self.log_mean.exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) in nats, shape `[...]`."""
        return value * self.log_mean - self.log_mean.exp() - torch.lgamma(value + 1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Return draws of x, shape `[*sample_shape, ...]`."""
        with torch.no_grad():
            return torch.poisson(self.mean.expand(self._extended_shape(sample_shape)))


class MeanNegativeBinomial(dist.TorchDistribution):
    """The negative binomial with mean μ = exp(l) and dispersion θ, with additional zeros or none.

        NB(x) = Γ(x + θ) / (Γ(θ) x!) (θ / (θ + μ))^θ (μ / (θ + μ))^x
        p(x) = π [x = 0] + (1 − π) NB(x)

    The variance of NB is μ + μ²/θ; for large θ it is a Poisson. The ratio of gamma functions is
    evaluated by a series for large θ, where a difference of their logarithms loses its digits.

    Args:
        log_mean: l, shape `[...]`, which is the batch shape.
        log_dispersion: log θ, of a shape that broadcasts to the batch shape.
        gate: The logit of π, of such a shape; None for π = 0.
        validate_args: Whether to check values; None for torch's default.

    References:
        Lambert 1992, Zero-Inflated Poisson Regression.
        Hilbe 2011, Negative Binomial Regression.

    >>> nb = MeanNegativeBinomial(torch.tensor(0.0), torch.tensor(0.0))  # geometric, p = 1/2
    >>> nb.log_prob(torch.tensor([0.0, 1.0])).exp()
    tensor([0.5000, 0.2500])
    """

    arg_constraints = {"log_mean": constraints.real, "log_dispersion": constraints.real}  # noqa: RUF012
    support = constraints.nonnegative_integer
    has_rsample = False

    def __init__(
        self,
        log_mean: Tensor,
        log_dispersion: Tensor,
        gate: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.log_mean, self.log_dispersion, self.gate = log_mean, log_dispersion, gate
        super().__init__(log_mean.shape, validate_args=validate_args)

    def expand(
        self, batch_shape: tuple[int, ...], _instance: object = None
    ) -> "MeanNegativeBinomial":
        """Return the same distribution with another batch shape."""
        return MeanNegativeBinomial(
            self.log_mean.expand(batch_shape), self.log_dispersion, self.gate, validate_args=False
        )

    @property
    def mean(self) -> Tensor:
        """The mean (1 − π) μ, shape `[...]`."""
        mean = self.log_mean.exp()
        return mean if self.gate is None else mean * torch.sigmoid(-self.gate)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) in nats, shape `[...]`."""
        theta, log_odds = self.log_dispersion.exp(), self.log_mean - self.log_dispersion
        none = -theta * softplus(log_odds)  # log NB(0)
        some = log_rising(theta, value) - torch.lgamma(value + 1) - value * softplus(-log_odds)
        if self.gate is None:
            return none + some
        inflated = torch.logaddexp(-softplus(-self.gate), none - softplus(self.gate))
        return torch.where(value == 0, inflated, none + some - softplus(self.gate))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Return draws of x, shape `[*sample_shape, ...]`: a Poisson with a Gamma rate."""
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            theta = self.log_dispersion.exp().expand(shape)
            rate = torch._standard_gamma(theta) * (self.log_mean - self.log_dispersion).exp()
            x = torch.poisson(rate)
            if self.gate is None:
                return x
            return x * torch.bernoulli(torch.sigmoid(-self.gate).expand(shape))


class GivenTotal(dist.TorchDistribution):
    """Counts whose mean is a share of their observed total: the density of x given ℓ = Σ_j x_j.

        p(x | ℓ) = Π_j p(x_j; mean ℓ ρ_j),   ρ = softmax(logits)

    The product is a distribution over x for each fixed ℓ. Here ℓ is a covariate that is read from
    x; that the x_j add up to ℓ is not used. Draws and means are those at `log_total`.

    Args:
        logits: The logits of ρ, shape `[..., d]`.
        log_total: The logarithm of the ℓ of draws and means, shape `[]`.
        make: From log means `[..., d]` to the distribution of each count.

    References:
        Lopez et al. 2018, Deep Generative Modeling for Single-Cell Transcriptomics: the library
            size.

    >>> GivenTotal(torch.zeros(3, 4), torch.tensor(8.0).log(), LogPoisson).mean[0]
    tensor([2., 2., 2., 2.])
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012
    support = constraints.independent(constraints.nonnegative_integer, 1)
    has_rsample = False
    is_given_value = True

    def __init__(
        self,
        logits: Tensor,
        log_total: Tensor,
        make: Callable[[Tensor], dist.TorchDistribution],
    ) -> None:
        self.logits, self.log_total, self.make = logits, log_total, make
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=False)

    def expand(self, batch_shape: tuple[int, ...], _instance: object = None) -> "GivenTotal":
        """Return the same distribution with another batch shape."""
        logits = self.logits.expand(*batch_shape, *self.event_shape)
        return GivenTotal(logits, self.log_total, self.make)

    def counts(self, log_total: Tensor) -> dist.TorchDistribution:
        """Return the distribution of the counts at given totals.

        Args:
            log_total: log ℓ, of a shape that broadcasts with `[..., d]`.

        Returns:
            A distribution with event shape `[d]`.
        """
        return self.make(log_softmax(self.logits, -1) + log_total).to_event(1)

    @property
    def mean(self) -> Tensor:
        """The means at the total of draws, shape `[..., d]`."""
        return self.counts(self.log_total).mean

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x given its total) in nats, shape `[...]`."""
        total = value.sum(-1, keepdim=True).clamp_min(1e-8)  # without counts: log p(0) → 0
        return self.counts(total.log()).log_prob(value)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Return draws of x at the total of draws, shape `[*sample_shape, ..., d]`."""
        return self.counts(self.log_total).sample(sample_shape)


def log_rising(theta: Tensor, count: Tensor) -> Tensor:
    """Return log Γ(θ + x) − log Γ(θ), accurate for θ of any size.

    Args:
        theta: θ, positive.
        count: x, not negative, of a shape that broadcasts with θ.

    Returns:
        The difference, of the common shape.

    >>> log_rising(torch.tensor(1e7), torch.tensor(2.0)).item() / torch.tensor(1e7).log().item()
    2.0
    """
    large = theta.clamp_min(SERIES_FROM)
    series = (large - 0.5) * torch.log1p(count / large) + count * torch.log(large + count) - count
    series = series + _remainder(large + count) - _remainder(large)
    small = theta.clamp_max(SERIES_FROM)
    closed = torch.lgamma(small + count) - torch.lgamma(small)
    return torch.where(theta > SERIES_FROM, series, closed)


def _remainder(x: Tensor) -> Tensor:
    """What Stirling's formula leaves of log Γ(x)."""
    inverse = 1 / x
    square = inverse * inverse
    return inverse * (1 / 12 - square * (1 / 360 - square / 1260))
