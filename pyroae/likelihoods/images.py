"""The likelihood of 8-bit images: a logistic distribution of which each grey value takes a bin."""

from dataclasses import dataclass
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from pyroae.errors import DataError
from pyroae.likelihoods.base import LIKELIHOODS, refuse_where
from pyroae.likelihoods.scales import LocationScale

LEVELS = 256
"""The grey values of an 8-bit image, k / 255."""


class BinnedLogistic(dist.TorchDistribution):
    """The probability of the bin of each grey value x = k / 255 under a logistic distribution.

        p(x) = F((x + h − μ) / s) − F((x − h − μ) / s),   F(a) = 1 / (1 + exp(−a)),   h = 1 / 510

    The bin of 0 extends to −∞ and that of 1 to ∞, so that the 256 probabilities sum to 1. The
    logarithm of the difference is computed without cancellation.

    Args:
        location: μ, shape `[...]`, which is the batch shape.
        scale: s, positive, of a shape that broadcasts to it.
        validate_args: Whether to check values; None for torch's default.

    References:
        Salimans et al. 2017, PixelCNN++.

    >>> p = BinnedLogistic(torch.tensor(0.5), torch.tensor(0.1))
    >>> round(p.log_prob(torch.arange(256) / 255).exp().sum().item(), 4)
    1.0
    """

    arg_constraints = {"location": constraints.real, "scale": constraints.positive}  # noqa: RUF012
    support = constraints.unit_interval
    has_rsample = False

    def __init__(self, location: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.location, self.scale = location, scale
        super().__init__(location.shape, validate_args=validate_args)

    def expand(self, batch_shape: tuple[int, ...], _instance: object = None) -> "BinnedLogistic":
        """Return the same distribution with another batch shape."""
        return BinnedLogistic(self.location.expand(batch_shape), self.scale, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) in nats, shape `[...]`."""
        half, residual = 0.5 / (LEVELS - 1), value - self.location
        upper, lower = (residual + half) / self.scale, (residual - half) / self.scale
        width = 2 * half / self.scale
        inside = -softplus(-upper) - softplus(lower) + torch.log(-torch.expm1(-width))
        ends = torch.where(value < half, -softplus(-upper), -softplus(lower))
        return torch.where((value < half) | (value > 1 - half), ends, inside)

    @property
    def mean(self) -> Tensor:
        """The mean of the grey values, Σ_k P(X ≥ k / 255) / 255, shape `[...]`."""
        total = torch.zeros_like(self.location)
        for k in range(1, LEVELS):
            total = total + torch.sigmoid((self.location - (k - 0.5) / (LEVELS - 1)) / self.scale)
        return total / (LEVELS - 1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Return draws of x, multiples of 1 / 255, shape `[*sample_shape, ...]`."""
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            u = torch.rand(shape, dtype=self.location.dtype, device=self.location.device)
            u = u.clamp(torch.finfo(u.dtype).tiny, 1 - torch.finfo(u.dtype).eps)
            x = self.location + self.scale * (u.log() - torch.log1p(-u))
            return (x * (LEVELS - 1)).round().clamp(0, LEVELS - 1) / (LEVELS - 1)


@LIKELIHOODS.register("discretized-logistic")
@dataclass(frozen=True)
class DiscretizedLogistic(LocationScale):
    """8-bit images: the probability of each of the 256 grey values, k / 255 in [0, 1].

        p(x|z) = Π_j F((x_j + h − g_j(z)) / s_j) − F((x_j − h − g_j(z)) / s_j),   h = 1 / 510

    The bins of 0 and 1 are open. As x is discrete, −log₂ p(x) / d is the number of bits per
    dimension of a lossless code, which `evaluate` reports.

    Attributes:
        scale: s; or `learned`, one s that starts at the spread of the data; `feature`, a learned s
            per feature; `decoder`, a second output of the decoder.

    Raises:
        ConfigError: `scale` is neither positive and finite nor one of the words.

    References:
        Kingma et al. 2016, Improving Variational Inference with Inverse Autoregressive Flow.
        Salimans et al. 2017, PixelCNN++.

    >>> likelihood = DiscretizedLogistic(scale=0.1)
    >>> p_x = likelihood.distribution(torch.full((3, 4), 0.5), nn.ParameterDict())
    >>> p_x.mean[0]
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """

    scale: float | str = "learned"
    words: ClassVar[tuple[str, ...]] = ("learned", "feature", "decoder")
    has_bits = True

    def distribution(self, output: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return the grey values, event shape `[d]`."""
        return BinnedLogistic(*self.location_and_scale(output, learned)).to_event(1)

    def spread(self, residual: Tensor) -> Tensor:
        """Return the scale of a logistic with the variance of the data, shape `[d]`."""
        return residual.square().mean(0).sqrt() * (3**0.5 / torch.pi)

    def check(self, x: Tensor, what: str) -> None:
        """Refuse values other than k / 255 in [0, 1]."""
        self.check_columns(x, what, 0)

    def check_columns(self, x: Tensor, what: str, first: int) -> None:
        """Refuse values other than k / 255, with the row and the column of the first one."""
        if x.max() > 1 and bool((x == x.round()).all()):
            raise DataError(
                f"{what} has values from {x.min():g} to {x.max():g}; a discretized-logistic "
                "likelihood needs grey values k / 255: give value_range=(0, 255)"
            )
        grey = x * (LEVELS - 1)
        refuse_where(
            (x < 0) | (x > 1) | ((grey - grey.round()).abs() > 0.01),
            x,
            what,
            first,
            "a discretized-logistic likelihood needs 8-bit images, grey values k / 255 in [0, 1]",
        )
