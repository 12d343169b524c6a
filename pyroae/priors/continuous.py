"""Priors of independent real units without learned parts."""

import math
from dataclasses import dataclass

import pyro.distributions as dist
from torch import Tensor, nn

from pyroae.distributions import _Improper
from pyroae.errors import ConfigError
from pyroae.priors.base import PRIORS, Prior


@PRIORS.register("flat")
@dataclass(frozen=True)
class Flat(Prior):
    """The improper prior p(z) ∝ 1 of PCA and plain autoencoders.

    Its log-density is 0. It cannot be sampled, and log p(x) is undefined under it. With a point
    posterior the ELBO is then the log-likelihood of the reconstruction.

    >>> import torch
    >>> p_z = Flat().distribution(torch.zeros(3), nn.ParameterDict())
    >>> p_z.log_prob(torch.randn(5, 3)).abs()
    tensor([0., 0., 0., 0., 0.])
    """

    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return an improper distribution with log-density 0, event shape `[m]`."""
        return _Improper(zeros)


@PRIORS.register("normal")
@dataclass(frozen=True)
class Normal(Prior):
    """The standard Gaussian prior.

        z ~ N(0, I),   −log p(z) = ½‖z‖² + (m/2) log 2π

    >>> import torch
    >>> p_z = Normal().distribution(torch.zeros(2), nn.ParameterDict())
    >>> p_z.log_prob(torch.zeros(2))  # −log 2π
    tensor(-1.8379)
    """

    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return N(0, I), event shape `[m]`."""
        return dist.Normal(zeros, zeros + 1).to_event(1)


@PRIORS.register("laplace")
@dataclass(frozen=True)
class Laplace(Prior):
    """Independent Laplace variables: the L1 penalty of sparse coding under MAP.

        z_j ~ Laplace(0, 1/λ),   −log p(z) = λ‖z‖₁ + m log(2/λ)

    Attributes:
        rate: λ, positive and finite.

    Raises:
        ConfigError: `rate` is not positive and finite.

    References:
        Olshausen & Field 1996, Emergence of Simple-Cell Receptive Field Properties by Learning a
            Sparse Code for Natural Images.

    >>> import torch
    >>> p_z = Laplace(rate=2.0).distribution(torch.zeros(3), nn.ParameterDict())
    >>> p_z.log_prob(torch.zeros(3))  # m log(λ/2) = 0
    tensor(0.)
    """

    rate: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf:
            raise ConfigError(
                f"the rate of a Laplace prior must be positive and finite, not {self.rate}"
            )

    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return Laplace(0, 1/λ) for each feature, event shape `[m]`."""
        return dist.Laplace(zeros, zeros + 1 / self.rate).to_event(1)


@PRIORS.register("student")
@dataclass(frozen=True)
class Student(Prior):
    """Independent Student variables, with heavier tails than N(0, 1).

        z_j ~ t(ν),   p(z_j) = Γ((ν + 1)/2) / (Γ(ν/2) √(νπ)) · (1 + z_j²/ν)^(−(ν + 1)/2)

    The scale is 1: the variance is ν/(ν − 2) for ν > 2, and infinite or undefined below. The KL to
    it has no closed form.

    Attributes:
        freedom: ν, the degrees of freedom, positive and finite; 1 is the Cauchy distribution.

    Raises:
        ConfigError: `freedom` is not positive and finite.

    References:
        Student 1908, The Probable Error of a Mean.

    >>> import torch
    >>> p_z = Student(freedom=1.0).distribution(torch.zeros(2), nn.ParameterDict())
    >>> p_z.log_prob(torch.zeros(2))  # −2 log π
    tensor(-2.2895)
    """

    freedom: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.freedom < math.inf:
            raise ConfigError(
                "the degrees of freedom of a Student prior must be positive and finite, "
                f"not {self.freedom}"
            )

    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return t(ν) for each feature, event shape `[m]`."""
        return dist.StudentT(zeros + self.freedom, zeros, zeros + 1).to_event(1)
