"""The VampPrior: a mixture of the posterior at learned pseudo-inputs."""

from dataclasses import dataclass
from typing import cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyroae.errors import ConfigError
from pyroae.priors.base import PRIORS, Amortized, Prior
from pyroae.priors.mixtures import MixtureDistribution, check_components
from pyroae.programs.context import evaluation_mode
from pyroae.programs.sites import base_distribution

MARGIN = 0.01
"""The distance of pseudo-inputs from the ends of [0, 1] at their start."""


class PseudoInputs(nn.Module):
    """C learned inputs u_c of the encoder, and the log-weights of their posteriors.

    Where the data that they start at lie in [0, 1], so do they, as a sigmoid of free parameters;
    otherwise they are the free parameters themselves.

    Args:
        components: C, the number of pseudo-inputs.
        features: d, the number of features.
        learn: Whether the weights are parameters.

    >>> PseudoInputs(components=3, features=5, learn=False)().shape
    torch.Size([3, 5])
    """

    bounded: Tensor
    logits: Tensor

    def __init__(self, components: int, features: int, learn: bool) -> None:
        super().__init__()
        self.free = nn.Parameter(torch.rand(components, features))
        self.register_buffer("bounded", torch.tensor(False))
        if learn:
            self.logits = nn.Parameter(torch.zeros(components))
        else:
            self.register_buffer("logits", torch.zeros(components), persistent=False)

    def forward(self) -> Tensor:
        """Return the pseudo-inputs u, shape `[C, d]`."""
        return torch.where(self.bounded, self.free.sigmoid(), self.free)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Set the pseudo-inputs to C data, chosen at random without replacement.

        Values in [0, 1] start at least 0.01 from its ends, where the sigmoid has a slope.

        Args:
            x: Data, shape `[n, d]`.

        Raises:
            ConfigError: There are fewer data than pseudo-inputs.
        """
        count = len(self.free)
        if len(x) < count:
            raise ConfigError(
                f"{count} pseudo-inputs start at {count} training data, of which there are "
                f"{len(x)}: use a VampPrior with fewer components"
            )
        chosen = x[torch.randperm(len(x))[:count].to(x.device)].to(self.free)
        bounded = bool((x >= 0).all() and (x <= 1).all())
        self.bounded.fill_(bounded)
        self.free.copy_(chosen.clamp(MARGIN, 1 - MARGIN).logit() if bounded else chosen)


@PRIORS.register("vamp")
@dataclass(frozen=True)
class Vamp(Prior):
    """The VampPrior: a mixture of the posterior at C learned pseudo-inputs u_c.

        p(z) = (1/C) Σ_c q(z|u_c)

    It approximates the aggregate posterior (1/N) Σ_n q(z|x_n), the prior at which the ELBO is
    largest. The parameters of the encoder are then parameters of the model too: the gradient of
    log p(z) at fixed z reaches them as it does θ. p(z) does not depend on the batch: its posteriors
    are computed in evaluation mode (the running statistics of BatchNorm, no dropout), and the
    corruption is not applied.

    The pseudo-inputs start at training data, chosen at random. Those of data on [0, 1] stay there:
    they are a sigmoid of free parameters, where the paper cuts off at 0 and 1 (Hardtanh), which
    has no gradient at binary values. Without data to start at they are uniform on [0, 1] and free.

    Attributes:
        components: C, the number of pseudo-inputs, at least 1 and at most the number of data.
        learn: Whether the weights are parameters, in place of 1/C, at which they start.

    Raises:
        ConfigError: `components` is below 1.

    References:
        Tomczak & Welling 2018, VAE with a VampPrior.

    >>> from pyroae import zoo
    >>> system = zoo.vae(4, latent=2, prior=Vamp(components=3))
    >>> each = system.q_z(system.learned_prior()).log_prob(torch.zeros(2))
    >>> torch.allclose(system.p_z().log_prob(torch.zeros(2)).exp(), each.exp().mean())
    True
    """

    components: int = 500
    learn: bool = False

    def __post_init__(self) -> None:
        check_components(self.components, "a VampPrior")

    def learned(self, latent: int, features: int) -> nn.Module:
        """Return the pseudo-inputs, shape `[C, d]`, and their log-weights, shape `[C]`."""
        return PseudoInputs(self.components, features, self.learn)

    def start(self, learned: nn.Module, x: Tensor) -> None:
        """Set the pseudo-inputs to random data; refuse fewer data than pseudo-inputs."""
        cast(PseudoInputs, learned).start(x)

    def check(self, system: Amortized) -> None:
        """Refuse a posterior that has no density or does not depend on x."""
        if system.posterior.outputs(len(system.zeros)) == 0:
            raise ConfigError(
                f"a VampPrior is a mixture of posteriors at pseudo-inputs: {system.posterior} has "
                "no encoder to read them"
            )
        with torch.no_grad(), evaluation_mode(system):
            q_z = system.q_z(system.zeros.new_zeros(1, system.features))
        if isinstance(base_distribution(q_z), dist.Delta):
            raise ConfigError(
                f"a VampPrior is a mixture of densities q(z|u): {system.posterior} has none; use "
                "the posterior diagonal"
            )

    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Refuse: the posterior is missing here."""
        raise ConfigError("a VampPrior is made of the posterior: use `of(system)`")

    def of(self, system: Amortized) -> dist.TorchDistribution:
        """Return the mixture of q(z|u_c), event shape `[m]`."""
        pseudo = cast(PseudoInputs, system.learned_prior)
        inputs = pseudo()

        def at(index: Tensor) -> dist.TorchDistribution:
            with evaluation_mode(system):
                return system.q_z(inputs[index])

        with evaluation_mode(system):
            components = system.q_z(inputs)
        return MixtureDistribution(pseudo.logits, components, at)
