"""Priors of binary and categorical variables."""

import math
from dataclasses import dataclass
from typing import cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyroae.distributions import BINARY, OneHots, one_hot, states_of
from pyroae.errors import ConfigError
from pyroae.priors.base import PRIORS, Prior


@PRIORS.register("bernoulli")
@dataclass(frozen=True)
class Bernoulli(Prior):
    """Independent binary variables z_j ~ Bernoulli(p_j).

    Attributes:
        probability: The probability of a one, strictly between 0 and 1.
        learn: Whether each p_j is a parameter that starts at `probability`.

    Raises:
        ConfigError: `probability` is not strictly between 0 and 1.

    >>> Bernoulli(0.25).distribution(torch.zeros(2), nn.ParameterDict()).mean
    tensor([0.2500, 0.2500])
    """

    probability: float = 0.5
    learn: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1:
            raise ConfigError(
                "the probability of a Bernoulli prior must be between 0 and 1, "
                f"not {self.probability}"
            )

    def support(self, latent: int) -> str:
        """Return `binary`."""
        return BINARY

    def learned(self, latent: int, features: int) -> nn.Module:
        """Return the logits of p_j, shape `[m]`, if they are learned."""
        return nn.ParameterDict(
            {"logits": torch.full((latent,), self._logit)} if self.learn else {}
        )

    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return Bernoulli(p_j) for each feature, event shape `[m]`."""
        logits = cast(nn.ParameterDict, learned)["logits"] if self.learn else zeros + self._logit
        return dist.Bernoulli(logits=logits).to_event(1)

    @property
    def _logit(self) -> float:
        return math.log(self.probability) - math.log1p(-self.probability)


@PRIORS.register("categorical")
@dataclass(frozen=True)
class Categorical(Prior):
    """Independent categorical variables, concatenated in z as one-hot vectors.

    Attributes:
        categories: C, the number of states of each variable; z holds m / C variables. None for one
            variable with m states.
        learn: Whether the probabilities of the states are parameters. They start equal; without
            `learn` they stay equal.

    >>> Categorical(2).distribution(torch.zeros(4), nn.ParameterDict()).mean
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """

    categories: int | None = None
    learn: bool = False

    def support(self, latent: int) -> str:
        """Return the name of one-hot vectors of C states; refuse a C that does not divide m."""
        return one_hot(states_of(latent, self.categories))

    def learned(self, latent: int, features: int) -> nn.Module:
        """Return the logits of the states, shape `[m]`, if they are learned."""
        return nn.ParameterDict({"logits": torch.zeros(latent)} if self.learn else {})

    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return the concatenated one-hot variables, event shape `[m]`."""
        logits = cast(nn.ParameterDict, learned)["logits"] if self.learn else zeros
        return OneHots(logits.unflatten(-1, (-1, states_of(len(zeros), self.categories))))
