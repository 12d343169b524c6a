"""Likelihoods of counts: Poisson and negative binomial, with a size of each datum or without."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from pyroae.errors import ConfigError
from pyroae.likelihoods.base import LIKELIHOODS, Likelihood, refuse_where
from pyroae.likelihoods.count_distributions import GivenTotal, LogPoisson, MeanNegativeBinomial

GATE = 0.1
"""The share of additional zeros at the start."""


class CountParts(nn.Module):
    """What a count likelihood has beside the decoder.

    Args:
        features: d.
        has_dispersion: Whether there is a parameter `log_dispersion`, shape `[d]`.

    Attributes:
        log_total: The logarithm of the mean total of a datum, shape `[]`, at which draws and means
            are, where the density is given the observed total.

    >>> CountParts(3, True).log_dispersion.shape
    torch.Size([3])
    """

    log_total: Tensor

    def __init__(self, features: int, has_dispersion: bool) -> None:
        super().__init__()
        self.register_buffer("log_total", torch.tensor(math.log(features)))
        if has_dispersion:
            self.log_dispersion = nn.Parameter(torch.zeros(features))


class Counts(Likelihood):
    """Independent counts with means from the decoder; a subclass says how they are distributed.

    The mean is μ_j = exp(g_j(z)), or a share ℓ softmax(g(z))_j of a size ℓ.

    Attributes:
        library: `none`; a number ℓ, the same for all data; or `observed`, ℓ = Σ_j x_j.
        title: The name of the likelihood in messages.
    """

    library: float | str
    title: ClassVar[str]
    is_unscaled = True

    def __post_init__(self) -> None:
        is_number = not isinstance(self.library, str) and 0 < self.library < math.inf
        if not is_number and self.library not in ("none", "observed"):
            raise ConfigError(
                f"the library of a {self.title} likelihood is none, observed or a positive number, "
                f"not {self.library}"
            )

    @abstractmethod
    def counts(
        self, log_mean: Tensor, others: tuple[Tensor, ...], learned: nn.Module
    ) -> dist.TorchDistribution:
        """Return the distribution of each count.

        Args:
            log_mean: The logarithm of the mean, shape `[..., d]`.
            others: The other outputs of the decoder, shape `[..., d]` each.
            learned: The module that `learned` returned.

        Returns:
            A distribution with batch shape `[..., d]`.
        """

    def distribution(self, output: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return the counts, event shape `[d]`."""
        first, *others = output.chunk(self.outputs, -1)
        if self.library == "observed":
            make = partial(self.counts, others=tuple(others), learned=learned)
            return GivenTotal(first, cast(CountParts, learned).log_total, make)
        if self.library != "none":
            first = log_softmax(first, -1) + math.log(cast(float, self.library))
        return self.counts(first, tuple(others), learned).to_event(1)

    def learned(self, features: int) -> nn.Module:
        """Return a module with the mean total of the data."""
        return CountParts(features, has_dispersion=False)

    def bias(self, mean: Tensor) -> Tensor:
        """Return log μ, with means below 10⁻⁶ raised to it, shape `[outputs * d]`."""
        return mean.clamp_min(1e-6).log()

    def start(self, learned: nn.Module, mean: Tensor, x: Tensor) -> Tensor:
        """Record the mean total of the data.

        Args:
            learned: The module that `learned` returned, which is changed in place.
            mean: The mean of the data, shape `[d]`.
            x: Some of the data, shape `[n, d]`.

        Returns:
            The decoder's last bias, shape `[outputs * d]`.
        """
        cast(CountParts, learned).log_total.copy_(mean.sum().clamp_min(1e-6).log())
        return self.bias(mean)

    def check_missing(self) -> None:
        """Refuse an observed library size, which is a sum over all features."""
        if self.library == "observed":
            raise ConfigError(
                "the total of a datum with missing values is not observed: use library=none"
            )

    def encoded(self, x: Tensor) -> Tensor:
        """Return log(1 + x), which the encoder sees in place of counts."""
        return torch.log1p(x.clamp_min(0))

    def check(self, x: Tensor, what: str) -> None:
        """Refuse data other than counts, and a datum without counts where its total is used."""
        self.check_columns(x, what, 0)

    def check_columns(self, x: Tensor, what: str, first: int) -> None:
        """Refuse data other than counts, with the row and the column of the first one."""
        refuse_where(
            (x < 0) | (x != x.round()),
            x,
            what,
            first,
            f"a {self.title} likelihood needs counts 0, 1, 2, … (load with value_range=(0, 1) "
            "leaves values as stored)",
        )
        if self.library == "observed":
            refuse_where(
                x.sum(-1, keepdim=True) == 0,
                x,
                what,
                first,
                "the datum has no counts, so that its total is no library size: leave it out, or "
                "use library=none",
            )


@LIKELIHOODS.register("poisson")
@dataclass(frozen=True)
class Poisson(Counts):
    """Independent Poisson counts.

        log p(x|z) = Σ_j x_j log μ_j − μ_j − log x_j!

    Attributes:
        library: With `none`, log μ is the decoder's output. With a number ℓ it is
            log ℓ + log softmax of the output. With `observed`, ℓ is the total Σ_j x_j of each
            datum: the density is then that of x given ℓ, in which ℓ is a covariate like a size
            factor, and values of log p compare only with others given ℓ. Means and draws are at
            the mean total of the training data.

    Raises:
        ConfigError: `library` is not accepted.

    References:
        Poisson 1837, Recherches sur la probabilité des jugements.

    >>> Poisson().distribution(torch.zeros(3, 4), nn.Module()).mean[0]
    tensor([1., 1., 1., 1.])
    """

    library: float | str = "none"
    title: ClassVar[str] = "Poisson"

    def counts(
        self, log_mean: Tensor, others: tuple[Tensor, ...], learned: nn.Module
    ) -> dist.TorchDistribution:
        """Return a Poisson of each mean."""
        return LogPoisson(log_mean)


class Dispersed(Counts):
    """Counts with a dispersion θ of each feature, a parameter or an output of the decoder.

    Attributes:
        dispersion: `feature` or `decoder`.
        gates: The number of outputs after the dispersion: 1 with additional zeros.
    """

    dispersion: str
    gates: ClassVar[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dispersion not in ("feature", "decoder"):
            raise ConfigError(
                f"the dispersion of a {self.title} likelihood is feature or decoder, not "
                f"{self.dispersion!r}"
            )

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """The number of outputs of the decoder for each feature."""
        return 1 + (self.dispersion == "decoder") + self.gates

    def counts(
        self, log_mean: Tensor, others: tuple[Tensor, ...], learned: nn.Module
    ) -> dist.TorchDistribution:
        """Return a negative binomial of each mean, with additional zeros if there is a gate."""
        is_decoded = self.dispersion == "decoder"
        log_dispersion = others[0] if is_decoded else cast(CountParts, learned).log_dispersion
        return MeanNegativeBinomial(log_mean, log_dispersion, others[-1] if self.gates else None)

    def learned(self, features: int) -> nn.Module:
        """Return a module with the mean total of the data, and log θ `[d]` if it is a parameter."""
        return CountParts(features, has_dispersion=self.dispersion == "feature")

    def bias(self, mean: Tensor) -> Tensor:
        """Return log μ, log θ = 0 from a decoder, and the logit of π = 0.1 of a gate."""
        share = GATE if self.gates else 0.0
        parts = [super().bias(mean / (1 - share))]
        parts += [torch.zeros_like(mean)] * (self.dispersion == "decoder")
        parts += [torch.full_like(mean, math.log(GATE / (1 - GATE)))] * self.gates
        return torch.cat(parts)

    def start(self, learned: nn.Module, mean: Tensor, x: Tensor) -> Tensor:
        """Start θ at the moments of the data, θ = μ² / (var − μ), in [0.1, 1000].

        Args:
            learned: The module that `learned` returned, which is changed in place.
            mean: The mean of the data, shape `[d]`.
            x: Some of the data, shape `[n, d]`; a single row leaves θ = 1.

        Returns:
            The decoder's last bias, shape `[outputs * d]`.
        """
        bias = super().start(learned, mean, x)
        if len(x) < 2:
            return bias
        excess = (x.var(0) - mean).clamp_min(1e-6)
        log_dispersion = (mean.square() / excess).clamp(0.1, 1000).log()
        if self.dispersion == "decoder":
            bias[len(mean) : 2 * len(mean)] = log_dispersion
        else:
            with torch.no_grad():
                cast(CountParts, learned).log_dispersion.copy_(log_dispersion)
        return bias


@LIKELIHOODS.register("negative-binomial")
@dataclass(frozen=True)
class NegativeBinomial(Dispersed):
    """Independent negative-binomial counts with mean μ_j and variance μ_j + μ_j² / θ_j.

        log p(x|z) = Σ_j log Γ(x_j + θ_j) − log Γ(θ_j) − log x_j!
                     + θ_j log(θ_j / (θ_j + μ_j)) + x_j log(μ_j / (θ_j + μ_j))

    Attributes:
        library: As of `Poisson`: `none`, a number, or `observed` for the density given the total.
        dispersion: Where θ is from: `feature`, a learned θ per feature; `decoder`, a second output
            per feature.

    Raises:
        ConfigError: `library` or `dispersion` is not accepted.

    References:
        Lopez et al. 2018, Deep Generative Modeling for Single-Cell Transcriptomics.

    >>> NegativeBinomial(dispersion="decoder").outputs
    2
    """

    library: float | str = "none"
    dispersion: str = "feature"
    title: ClassVar[str] = "negative-binomial"


@LIKELIHOODS.register("zero-inflated-negative-binomial")
@dataclass(frozen=True)
class ZeroInflatedNegativeBinomial(Dispersed):
    """Independent negative-binomial counts with additional zeros; the last output is their logit.

        p(x|z) = Π_j π_j [x_j = 0] + (1 − π_j) NB(x_j; μ_j, θ_j)

    The mean is (1 − π_j) μ_j.

    Attributes:
        library: As of `Poisson`: `none`, a number, or `observed` for the density given the total.
        dispersion: As of `NegativeBinomial`.

    Raises:
        ConfigError: `library` or `dispersion` is not accepted.

    References:
        Lopez et al. 2018, Deep Generative Modeling for Single-Cell Transcriptomics.

    >>> ZeroInflatedNegativeBinomial().outputs
    2
    """

    library: float | str = "none"
    dispersion: str = "feature"
    title: ClassVar[str] = "zero-inflated negative-binomial"
    gates: ClassVar[int] = 1
