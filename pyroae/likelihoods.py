"""The third choice: the likelihood p(x|z), a function of the decoder's output."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyroae.distributions import ContinuousBernoulliLogits
from pyroae.errors import ConfigError, DataError
from pyroae.registry import Registry

LIKELIHOODS: "Registry[Likelihood]" = Registry("likelihood")
"""The table of likelihoods by name."""


class Likelihood(ABC):
    """A distribution over x given z.

    To add one, write a frozen dataclass with `distribution`, `bias` and `check`, and register it
    with `@LIKELIHOODS.register("name")`.

    Attributes:
        outputs: The number of outputs of the decoder for each feature.

    >>> Normal().outputs
    1
    """

    outputs: int = 1

    def learned(self, features: int) -> nn.Module:
        """Return a new module with the likelihood's own parameters; empty by default.

        Args:
            features: d, the number of observed features.

        Returns:
            A module that the autoencoder registers and passes to `distribution`.

        >>> Normal(scale=1.0, learn=True).learned(features=4)["log_scale"].item()
        0.0
        """
        return nn.ParameterDict()

    @abstractmethod
    def distribution(self, output: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return the distribution p(x|z).

        Args:
            output: The decoder's output, shape `[..., outputs * d]`.
            learned: The module that `learned` returned.

        Returns:
            p(x|z), with batch shape `[...]` and event shape `[d]`.
        """

    @abstractmethod
    def bias(self, mean: Tensor) -> Tensor:
        """Return the decoder's last bias at which the mean of p(x|z) is the mean of the data.

        Args:
            mean: The mean of the data, shape `[d]`.

        Returns:
            The bias, shape `[outputs * d]`.

        >>> Bernoulli().bias(torch.tensor([0.5]))
        tensor([0.])
        """

    def start(self, learned: nn.Module, mean: Tensor, x: Tensor) -> Tensor:
        """Set the learned parameters to their start for a data set; unchanged by default.

        Args:
            learned: The module that `learned` returned, which is changed in place.
            mean: The mean of the data, shape `[d]`.
            x: Some of the data, shape `[n, d]`.

        Returns:
            The decoder's last bias, shape `[outputs * d]`; by default `bias(mean)`.
        """
        return self.bias(mean)

    def layout(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        """Return what the decoder is built for.

        Args:
            shape: The shape of one datum, with d features in all.

        Returns:
            The shape and the number of outputs per feature that `Map.decoder` takes; by default
                `shape` and `outputs`. A likelihood whose features need different numbers of
                outputs gives their total, as a shape with one output each.

        >>> Normal().layout((8, 8))
        ((8, 8), 1)
        """
        return shape, self.outputs

    @abstractmethod
    def check(self, x: Tensor, what: str) -> None:
        """Refuse data for which the likelihood has no density.

        Args:
            x: Data, shape `[N, d]`.
            what: A name of the data, for the message.

        Raises:
            DataError: The likelihood has no density at x; the message says what to do.
        """


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


@LIKELIHOODS.register("normal")
@dataclass(frozen=True)
class Normal(Likelihood):
    """A Gaussian with the decoder's output g(z) as mean and one variance for all features.

        x|z ~ N(g(z), σ²I)
        −log p(x|z) = ‖x − g(z)‖² / (2σ²) + d log σ + (d/2) log 2π

    Attributes:
        scale: σ, positive and finite, in units of x.
        learn: Whether σ is a parameter that starts at `scale`.

    Raises:
        ConfigError: `scale` is not positive and finite.

    >>> p_x = Normal(scale=0.5).distribution(torch.zeros(3, 4), nn.ParameterDict())
    >>> p_x.batch_shape, p_x.event_shape
    (torch.Size([3]), torch.Size([4]))
    """

    scale: float = 1.0
    learn: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ConfigError(
                f"the scale of a Normal likelihood must be positive and finite, not {self.scale}"
            )

    def learned(self, features: int) -> nn.Module:
        """Return log σ, shape `[]`, if it is learned."""
        return nn.ParameterDict(
            {"log_scale": torch.tensor(math.log(self.scale))} if self.learn else {}
        )

    def sigma(self, like: Tensor, learned: nn.Module) -> Tensor:
        """Return σ.

        Args:
            like: A tensor that gives dtype and device.
            learned: The module that `learned` returned.

        Returns:
            σ, shape `[]`.
        """
        return (
            cast(nn.ParameterDict, learned)["log_scale"].exp()
            if self.learn
            else like.new_full((), self.scale)
        )

    def distribution(self, output: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return N(output, σ²I), event shape `[d]`."""
        return dist.Normal(output, self.sigma(output, learned)).to_event(1)

    def bias(self, mean: Tensor) -> Tensor:
        """Return the mean itself, shape `[d]`."""
        return mean

    def check(self, x: Tensor, what: str) -> None:
        """Accept all data: every finite value has a density."""


def _check_unit_interval(x: Tensor, what: str, name: str) -> None:
    low, high = x.min().item(), x.max().item()
    if low < 0 or high > 1:
        raise DataError(
            f"{what} has values from {low:g} to {high:g}; a {name} likelihood needs values in "
            "[0, 1]: give the data's value_range, or use a normal likelihood"
        )
