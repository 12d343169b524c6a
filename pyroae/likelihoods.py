"""The third choice: the likelihood p(x|z), given by what the decoder puts out."""

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


class Likelihood(ABC):
    """A distribution over x given z. To add one: a frozen dataclass, and `@LIKELIHOODS.register("name")`."""

    outputs: int = 1
    """Numbers that the decoder puts out for each feature."""

    def learned(self, features: int) -> nn.Module:
        """What the likelihood learns beside the decoder; none by default."""
        return nn.ParameterDict()

    @abstractmethod
    def distribution(self, output: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """p(x|z) for the decoder's output `[..., outputs * d]`: batch shape `[...]`, event shape `[d]`."""

    @abstractmethod
    def bias(self, mean: Tensor) -> Tensor:
        """The decoder's last bias at which the mean of p(x|z) is the mean of the data `[d]`."""

    @abstractmethod
    def check(self, x: Tensor, what: str) -> None:
        """Raises DataError where the likelihood has no density at x `[N, d]`, and says what to do."""


@LIKELIHOODS.register("bernoulli")
@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """log p(x|z) = Σ_j x_j log p_j + (1 − x_j) log(1 − p_j), from logits; x is 0 or 1."""

    def distribution(self, output: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=output).to_event(1)

    def bias(self, mean: Tensor) -> Tensor:
        return torch.logit(mean.clamp(1e-3, 1 - 1e-3))

    def check(self, x: Tensor, what: str) -> None:
        _check_unit_interval(x, what, "Bernoulli")
        if not ((x == 0) | (x == 1)).all():
            raise DataError(
                f"{what} holds grey values, for which a Bernoulli has no density: binarize them (threshold, static or "
                "dynamic), or use a continuous-bernoulli or normal likelihood"
            )


@LIKELIHOODS.register("continuous-bernoulli")
@dataclass(frozen=True)
class ContinuousBernoulli(Likelihood):
    """log p(x|z) = Σ_j x_j log p_j + (1 − x_j) log(1 − p_j) + log C(p_j) on [0, 1] (Loaiza-Ganem & Cunningham 2019)."""

    def distribution(self, output: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        return ContinuousBernoulliLogits(output).to_event(1)

    def bias(self, mean: Tensor) -> Tensor:
        low, high = torch.full_like(mean, -1e3), torch.full_like(mean, 1e3)
        for _ in range(
            60
        ):  # its mean rises with the logit but has no inverse in closed form: bisection
            middle = (low + high) / 2
            above = ContinuousBernoulliLogits(middle).mean > mean.clamp(1e-3, 1 - 1e-3)
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2

    def check(self, x: Tensor, what: str) -> None:
        _check_unit_interval(x, what, "continuous Bernoulli")


@LIKELIHOODS.register("normal")
@dataclass(frozen=True)
class Normal(Likelihood):
    """x|z ~ N(g(z), σ²I); with `learn`, σ is a parameter that starts at `scale`, one for all features.

    −log p(x|z) = ‖x − g(z)‖² / (2σ²) + d log σ + (d/2) log 2π.
    """

    scale: float = 1.0
    learn: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ConfigError(
                f"the scale of a Normal likelihood must be positive and finite, not {self.scale}"
            )

    def learned(self, features: int) -> nn.Module:
        return nn.ParameterDict(
            {"log_scale": torch.tensor(math.log(self.scale))} if self.learn else {}
        )

    def sigma(self, like: Tensor, learned: nn.Module) -> Tensor:
        """σ as a tensor without dimensions, in the dtype and on the device of `like`."""
        return (
            cast(nn.ParameterDict, learned)["log_scale"].exp()
            if self.learn
            else like.new_full((), self.scale)
        )

    def distribution(self, output: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        return dist.Normal(output, self.sigma(output, learned)).to_event(1)

    def bias(self, mean: Tensor) -> Tensor:
        return mean

    def check(self, x: Tensor, what: str) -> None:
        """Every finite value has a density."""


def _check_unit_interval(x: Tensor, what: str, name: str) -> None:
    low, high = x.min().item(), x.max().item()
    if low < 0 or high > 1:
        raise DataError(
            f"{what} has values from {low:g} to {high:g}; a {name} likelihood needs values in [0, 1]: "
            "give the data's value_range, or use a normal likelihood"
        )
