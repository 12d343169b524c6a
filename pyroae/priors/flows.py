"""Normalizing flows of zuko as priors."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyroae.distributions import zuko
from pyroae.errors import ConfigError, unknown_name
from pyroae.priors.base import PRIORS, Prior

KINDS: dict[str, tuple[str, dict[str, int]]] = {
    "maf": ("MAF", {}),
    "nsf": ("NSF", {}),
    "coupling": ("MAF", {"passes": 2}),
}
"""The class of zuko.flows and its settings, by kind of flow."""
NEAR_IDENTITY = 0.01
"""The factor of the last layers' parameters at the start."""


class FlowDistribution(dist.TorchDistribution):
    """A flow of zuko as a distribution of Pyro over real vectors.

        log p(z) = log N(f(z); 0, I) + log |det ∂f/∂z|

    Args:
        flow: The distribution that a flow of zuko returns, with an empty batch shape and the event
            shape `[m]`.

    >>> flow = Flow(transforms=1, hidden=4).learned(latent=2, features=5)
    >>> FlowDistribution(flow()).log_prob(torch.zeros(3, 2)).shape
    torch.Size([3])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, flow: torch.distributions.Distribution) -> None:
        self.flow = flow
        super().__init__(flow.batch_shape, flow.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z) in nats, shape `[...]`, for z `[..., m]`."""
        return self.flow.log_prob(value)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Return reparameterized draws, shape `[*sample_shape, m]`."""
        return self.flow.rsample(sample_shape)


@PRIORS.register("flow")
@dataclass(frozen=True)
class Flow(Prior):
    """A normalizing flow: z is an invertible, learned function of Gaussian noise.

        z = f⁻¹(ε),  ε ~ N(0, I),   log p(z) = log N(f(z); 0, I) + log |det ∂f/∂z|

    f is a chain of transforms, each by a network with two hidden layers, and starts near the
    identity. `maf` is affine and autoregressive: one pass for a density, m passes for a draw. `nsf`
    is autoregressive with rational-quadratic splines on [−5, 5], and the identity outside.
    `coupling` is affine: it scales and shifts one half of z by constants and the other half given
    the first; the halves take turns, and a draw needs two passes. A single latent unit is
    transformed without a network. The KL to it has no closed form.

    Attributes:
        kind: `maf`, `nsf` or `coupling`.
        transforms: The number of transforms, at least 1.
        hidden: The width of the hidden layers, at least 1.

    Raises:
        ConfigError: `kind` is unknown, or a number is too small.

    References:
        Papamakarios, Pavlakou & Murray 2017, Masked Autoregressive Flow for Density Estimation.
        Durkan et al. 2019, Neural Spline Flows.
        Dinh, Sohl-Dickstein & Bengio 2017, Density Estimation Using Real NVP (`coupling`).

    >>> prior = Flow(kind="coupling", transforms=2, hidden=8)
    >>> p_z = prior.distribution(torch.zeros(2), prior.learned(latent=2, features=5))
    >>> p_z.sample((3,)).shape
    torch.Size([3, 2])
    """

    kind: str = "maf"
    transforms: int = 3
    hidden: int = 64

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("kind of flow", self.kind, KINDS)
        for name in ("transforms", "hidden"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} of a flow prior must be at least 1, not {getattr(self, name)}"
                )

    def learned(self, latent: int, features: int) -> nn.Module:
        """Return the flow of zuko, near the identity."""
        name, settings = KINDS[self.kind]
        flow: Any = getattr(zuko().flows, name)(
            latent,
            transforms=self.transforms,
            hidden_features=(self.hidden, self.hidden),
            activation=nn.SiLU,
            **settings,
        )
        with torch.no_grad():
            for transform in flow.transform.transforms:
                last = transform.hyper[-1] if hasattr(transform, "hyper") else transform
                for parameter in last.parameters():
                    parameter.mul_(NEAR_IDENTITY)
        return flow

    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return the flow's distribution, event shape `[m]`."""
        return FlowDistribution(learned())
