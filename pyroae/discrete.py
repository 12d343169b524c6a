"""One-hot latent features: categorical variables side by side in one vector z."""

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
        super().__init__(logits.shape[:-2], torch.Size([math.prod(logits.shape[-2:])]), validate_args=validate_args)

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
        return OneHots(self.logits.expand(*batch_shape, *self.logits.shape[-2:]), validate_args=False)

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
