"""Likelihoods of real features: Normal, Laplace and Student."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyroae.errors import ConfigError
from pyroae.likelihoods.base import LIKELIHOODS
from pyroae.likelihoods.scales import LocationScale


@LIKELIHOODS.register("normal")
@dataclass(frozen=True)
class Normal(LocationScale):
    """Independent Gaussians with the decoder's output g(z) as mean.

        x_j|z ~ N(g_j(z), σ_j²)
        −log p(x|z) = Σ_j (x_j − g_j(z))² / (2σ_j²) + log σ_j + ½ log 2π

    Attributes:
        scale: σ in units of x, positive and finite; or `learned`, one σ that starts at the spread
            of the data; `feature`, a learned σ per feature; `decoder`, a second output of the
            decoder; `optimal`, where σ² is the running mean of the training's squared error
            (`OptimalScale`).
        learn: Whether a number is where a learned σ starts.

    Raises:
        ConfigError: `scale` is neither positive and finite nor one of these words, or a word is
            given beside `learn`.

    References:
        Rybkin, Daniilidis & Levine 2021, Simple and Effective VAE Training with Calibrated
            Decoders: `optimal`, the σ-VAE.

    >>> p_x = Normal(scale=0.5).distribution(torch.zeros(3, 4), nn.ParameterDict())
    >>> p_x.batch_shape, p_x.event_shape
    (torch.Size([3]), torch.Size([4]))
    >>> Normal("decoder").outputs
    2
    """

    scale: float | str = 1.0
    learn: bool = False
    words: ClassVar[tuple[str, ...]] = ("learned", "feature", "decoder", "optimal")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learn and isinstance(self.scale, str):
            raise ConfigError(
                f"learn=true starts from a number: leave it out with scale={self.scale}"
            )

    def learned(self, features: int) -> nn.Module:
        """Return a module with log σ, shape `[]`, `[1]` or `[d]`, if σ is learned or optimal."""
        if self.learn:
            return nn.ParameterDict({"log_scale": torch.tensor(math.log(float(self.scale)))})
        return super().learned(features)

    def distribution(self, output: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return the Gaussians, event shape `[d]`."""
        return dist.Normal(*self.location_and_scale(output, learned)).to_event(1)

    def spread(self, residual: Tensor) -> Tensor:
        """Return the root of the mean square, shape `[d]`."""
        return residual.square().mean(0).sqrt()


@LIKELIHOODS.register("laplace")
@dataclass(frozen=True)
class Laplace(LocationScale):
    """Independent Laplace distributions with the decoder's output g(z) as median.

        −log p(x|z) = Σ_j |x_j − g_j(z)| / b_j + log 2b_j

    The absolute error is less sensitive to outliers than the squared error of a Normal.

    Attributes:
        scale: b in units of x, positive and finite; or a word as of `Normal`, where `optimal` is
            the running mean of the training's absolute error.

    Raises:
        ConfigError: `scale` is neither positive and finite nor one of the words.

    References:
        Laplace 1774, Mémoire sur la probabilité des causes par les événements.

    >>> p_x = Laplace(scale=0.5).distribution(torch.zeros(4), nn.ParameterDict())
    >>> p_x.log_prob(torch.zeros(4)).item()  # −4 log 2b
    0.0
    """

    scale: float | str = 1.0
    words: ClassVar[tuple[str, ...]] = ("learned", "feature", "decoder", "optimal")
    power: ClassVar[int] = 1

    def distribution(self, output: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return the Laplace distributions, event shape `[d]`."""
        return dist.Laplace(*self.location_and_scale(output, learned)).to_event(1)

    def spread(self, residual: Tensor) -> Tensor:
        """Return the mean of the absolute values, shape `[d]`."""
        return residual.abs().mean(0)


@LIKELIHOODS.register("student")
@dataclass(frozen=True)
class Student(LocationScale):
    """Independent Student distributions with the decoder's output g(z) as center.

        log p(x|z) = Σ_j log Γ((ν+1)/2) − log Γ(ν/2) − ½ log(νπ) − log σ_j
                     − (ν+1)/2 log(1 + (x_j − g_j(z))² / (ν σ_j²))

    Single values far from the center change the fit little.

    Attributes:
        freedom: ν, the degrees of freedom, positive and finite. A reconstruction is the center,
            which is the mean for ν above 1.
        scale: σ in units of x, positive and finite; or `learned`, one σ that starts at the spread
            of the data; `feature`, a learned σ per feature; `decoder`, a second output of the
            decoder.

    Raises:
        ConfigError: `freedom` or `scale` is not accepted.

    References:
        Lange, Little & Taylor 1989, Robust Statistical Modeling Using the t Distribution.

    >>> p_x = Student(4.0, scale=1.0).distribution(torch.zeros(3, 4), nn.ParameterDict())
    >>> p_x.log_prob(torch.zeros(4)).shape
    torch.Size([3])
    """

    freedom: float = 4.0
    scale: float | str = "feature"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.freedom < math.inf:
            raise ConfigError(
                "the freedom of a Student likelihood must be positive and finite, not "
                f"{self.freedom}"
            )

    def distribution(self, output: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return the Student distributions, event shape `[d]`."""
        location, scale = self.location_and_scale(output, learned)
        return dist.StudentT(self.freedom, location, scale).to_event(1)

    def point(self, p_x: dist.TorchDistribution) -> Tensor:
        """Return the center, shape `[..., d]`."""
        return p_x.base_dist.loc

    def spread(self, residual: Tensor) -> Tensor:
        """Return the scale with the variance of the data, or their median size for ν up to 2."""
        if self.freedom > 2:
            return residual.square().mean(0).mul((self.freedom - 2) / self.freedom).sqrt()
        return residual.abs().median(0).values
