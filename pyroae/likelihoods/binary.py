"""Likelihoods of features that are binary, or lie in [0, 1]."""

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyroae.distributions import ContinuousBernoulliLogits
from pyroae.errors import DataError
from pyroae.likelihoods.base import LIKELIHOODS, Likelihood


@LIKELIHOODS.register("bernoulli")
@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Independent binary features, with the decoder's output as logits; x is 0 or 1.

        log p(x|z) = Σ_j x_j log p_j + (1 − x_j) log(1 − p_j)

    Grey values have no density under it: `check` refuses them.

    >>> p_x = Bernoulli().distribution(torch.zeros(3, 4), nn.ParameterDict())
    >>> p_x.log_prob(torch.ones(4)).shape
    torch.Size([3])
    """

    def distribution(self, output: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return Bernoulli(p_j) for each feature, event shape `[d]`."""
        return dist.Bernoulli(logits=output).to_event(1)

    def bias(self, mean: Tensor) -> Tensor:
        """Return the logit of the mean, clamped to [0.001, 0.999], shape `[d]`."""
        return torch.logit(mean.clamp(1e-3, 1 - 1e-3))

    def check(self, x: Tensor, what: str) -> None:
        """Refuse data with values other than 0 and 1."""
        _check_unit_interval(x, what, "Bernoulli")
        if not ((x == 0) | (x == 1)).all():
            raise DataError(
                f"{what} holds grey values, for which a Bernoulli has no density: binarize them "
                "(threshold, static or dynamic), or use a continuous-bernoulli or normal likelihood"
            )


@LIKELIHOODS.register("continuous-bernoulli")
@dataclass(frozen=True)
class ContinuousBernoulli(Likelihood):
    """Independent features on [0, 1], with the decoder's output as logits.

        log p(x|z) = Σ_j x_j log p_j + (1 − x_j) log(1 − p_j) + log C(p_j)

    References:
        Loaiza-Ganem & Cunningham 2019, The Continuous Bernoulli: Fixing a Pervasive Error in
            Variational Autoencoders.

    >>> p_x = ContinuousBernoulli().distribution(torch.zeros(3, 4), nn.ParameterDict())
    >>> p_x.mean[0]
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """

    def distribution(self, output: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return a continuous Bernoulli for each feature, event shape `[d]`."""
        return ContinuousBernoulliLogits(output).to_event(1)

    def bias(self, mean: Tensor) -> Tensor:
        """Return the logit whose mean is `mean` clamped to [0.001, 0.999], by bisection."""
        low, high = torch.full_like(mean, -1e3), torch.full_like(mean, 1e3)
        for _ in range(60):  # the mean rises with the logit, without an inverse in closed form
            middle = (low + high) / 2
            above = ContinuousBernoulliLogits(middle).mean > mean.clamp(1e-3, 1 - 1e-3)
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2

    def check(self, x: Tensor, what: str) -> None:
        """Refuse data outside [0, 1]."""
        _check_unit_interval(x, what, "continuous Bernoulli")


def _check_unit_interval(x: Tensor, what: str, name: str) -> None:
    low, high = x.min().item(), x.max().item()
    if low < 0 or high > 1:
        raise DataError(
            f"{what} has values from {low:g} to {high:g}; a {name} likelihood needs values in "
            "[0, 1]: give the data's value_range, or use a normal likelihood"
        )
