"""Point masses at sparse codes: most of the m features are exactly zero."""

import math
from dataclasses import dataclass
from typing import cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyroae.errors import ConfigError
from pyroae.posteriors.base import POSTERIORS, Encoding, Posterior
from pyroae.programs.sites import base_distribution
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import percent


@POSTERIORS.register("soft-threshold")
@dataclass(frozen=True)
class SoftThreshold(Posterior):
    """A point mass at the soft-thresholded output a = f(x) of the encoder.

        z_j = sign(a_j) max(|a_j| − θ, 0) = argmin_z ½(z − a_j)² + θ|z|

    With θ = λσ² this is the proximal map of the prior Laplace(1/λ) under a likelihood N(D z + b,
    σ²I) with atoms D_j of length 1: the MAP code satisfies it, where a_j = D_jᵀ(x − b − Σ_{i≠j}
    D_i z_i), and with orthonormal atoms a = Dᵀ(x − b). Codes with |a_j| ≤ θ are exactly 0, and pass
    no gradient to the encoder.

    Attributes:
        threshold: θ, positive and finite, in units of z.
        learn: Whether each θ_j is a parameter that starts at `threshold`.

    Raises:
        ConfigError: `threshold` is not positive and finite.

    References:
        Gregor & LeCun 2010, Learning Fast Approximations of Sparse Coding, of whose encoder this is
            one step.

    >>> soft_threshold(torch.tensor([-0.75, -0.25, 0.25, 1.5]), 0.5).tolist()
    [-0.25, 0.0, 0.0, 1.0]
    """

    threshold: float = 0.1
    learn: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.threshold < math.inf:
            raise ConfigError(
                "the threshold of a soft-threshold posterior must be positive and finite, not "
                f"{self.threshold}"
            )

    def learned(self, latent: int) -> nn.Module:
        """Return log θ_j, shape `[m]`, if it is learned."""
        start = torch.full((latent,), math.log(self.threshold))
        return nn.ParameterDict({"log_threshold": start} if self.learn else {})

    def distribution(self, x: Tensor, system: Encoding) -> dist.TorchDistribution:
        """Return a Delta at the soft-thresholded output of the encoder, event shape `[m]`."""
        threshold: Tensor | float = self.threshold
        if self.learn:
            threshold = cast(nn.ParameterDict, system.learned_posterior)["log_threshold"].exp()
        return dist.Delta(soft_threshold(system.encoder(x), threshold)).to_event(1)


@POSTERIORS.register("top-k")
@dataclass(frozen=True)
class TopK(Posterior):
    """A point mass at the k outputs of the encoder with the largest |a_j|; the others become 0.

        z_j = a_j if |a_j| is among the k largest, else 0

    Under a Flat prior this is a k-sparse autoencoder; under a Laplace prior the k codes pay their
    L1 penalty too. Only the k codes pass a gradient to the encoder.

    Attributes:
        k: The number of codes per datum that are kept, from 1 to m.

    Raises:
        ConfigError: `k` is below 1.

    References:
        Makhzani & Frey 2013, k-Sparse Autoencoders, which keeps the largest a_j.

    >>> keep_largest(torch.tensor([-3.0, 1.0, 2.0, 0.0]), 2).tolist()
    [-3.0, 0.0, 2.0, 0.0]
    """

    k: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise ConfigError(f"k of a top-k posterior must be at least 1, not {self.k}")

    def support(self, latent: int) -> str:
        """Return `real`; refuse a k that exceeds m."""
        if self.k > latent:
            raise ConfigError(
                f"a top-k posterior cannot keep k = {self.k} of {latent} latent features"
            )
        return super().support(latent)

    def distribution(self, x: Tensor, system: Encoding) -> dist.TorchDistribution:
        """Return a Delta at the k outputs of the encoder, event shape `[m]`."""
        return dist.Delta(keep_largest(system.encoder(x), self.k)).to_event(1)


def soft_threshold(a: Tensor, threshold: Tensor | float) -> Tensor:
    """Return sign(a) max(|a| − θ, 0), exactly 0 where |a| ≤ θ.

    Args:
        a: Values, shape `[..., m]`.
        threshold: θ, positive, a number or of shape `[m]`.

    Returns:
        The values, moved towards 0 by θ, shape `[..., m]`.

    >>> soft_threshold(torch.tensor([-2.0, 2.0]), torch.tensor([1.0, 3.0])).tolist()
    [-1.0, 0.0]
    """
    return a - a.clamp(-threshold, threshold)  # type: ignore[arg-type]


def keep_largest(a: Tensor, k: int) -> Tensor:
    """Return the k values of the largest magnitude in each row, and 0 for the others.

    Args:
        a: Values, shape `[..., m]`.
        k: The number of values that are kept, from 1 to m.

    Returns:
        Values of which m − k are 0, shape `[..., m]`.
    """
    kept = a.abs().topk(k, -1).indices
    return torch.zeros_like(a).scatter(-1, kept, a.gather(-1, kept))


@dataclass(frozen=True, repr=False)
class Sparsity(Shown):
    """How sparse the codes of N data are.

    Attributes:
        zeros: The share of the m codes of each datum that are exactly 0, `[N]`.
        uses: The share of the data for which each unit is not 0, `[m]`; 0 for a dead unit.
    """

    zeros: Tensor
    uses: Tensor

    def _overview(self) -> Overview:
        count, units = len(self.zeros), len(self.uses)
        zeros = f"{percent(self.zeros.mean().item())} of codes are 0"
        return Overview(
            [f"N={count}", f"m={units}", zeros, f"live units {percent(self.live_share)}"]
        )

    @property
    def live_share(self) -> float:
        """The share of the m units that are not 0 for at least one datum."""
        return (self.uses > 0).double().mean().item()


def sparsity(codes: Tensor) -> Sparsity:
    """Measure the sparsity of codes.

    Args:
        codes: Codes of N data, shape `[N, m]`.

    Returns:
        The share of zeros of each datum, `[N]`, and how often each unit is used, `[m]`, float64.

    >>> found = sparsity(torch.tensor([[0.0, 0.0, 2.0], [0.0, -1.0, 3.0]]))
    >>> found.uses.tolist(), round(found.live_share, 3), found.zeros.mean().item()
    ([0.0, 0.5, 1.0], 0.667, 0.5)
    """
    is_zero = (codes == 0).double()
    return Sparsity(is_zero.mean(1), 1 - is_zero.mean(0))


def is_point(q_z: dist.TorchDistribution) -> bool:
    """Tell whether a posterior is a point mass, whose codes can be exactly 0.

    Args:
        q_z: The distribution q(z|x).

    Returns:
        Whether it is a Delta.

    >>> is_point(dist.Delta(torch.zeros(3, 2)).to_event(1)), is_point(dist.Normal(0.0, 1.0))
    (True, False)
    """
    return isinstance(base_distribution(q_z), dist.Delta)
