"""Quantities of each datum with their Monte Carlo errors, and the gaps between bounds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from pyroae.evaluation.importance.streams import Z
from pyroae.evaluation.local import Family
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import percent, with_error

COLUMNS = ("nats per datum", "mean", "± sample", "± Monte Carlo")
"""Columns of a table of quantities: their mean and its two standard errors."""


class KnownLikelihood(Protocol):
    """Any estimate of log p(x); its error is `se` or `error`, `[N]`, where it has one."""

    @property
    def log_px(self) -> Tensor:
        """The log-likelihood log p(x) of each datum, `[N]`, in nats."""


@dataclass(frozen=True, repr=False)
class PerDatum(Shown):
    """A quantity of each of N data, in nats, with its Monte Carlo error.

    Attributes:
        values: The quantity, `[N]`, float64.
        se: Its Monte Carlo standard error, independent between data, `[N]`, float64.
    """

    values: Tensor
    se: Tensor

    def _overview(self) -> Overview:
        mean = with_error(self.mean, self.sample_se, "nats per datum")
        return Overview([f"N={len(self.values)}", mean, f"Monte Carlo {self.monte_carlo_se:.2g}"])

    @property
    def mean(self) -> float:
        """The mean over the data, in nats per datum."""
        return self.values.mean().item()

    @property
    def monte_carlo_se(self) -> float:
        """Standard error of `mean` for these very data, in nats; more particles reduce it."""
        return self.se.square().sum().sqrt().item() / len(self.se)

    @property
    def sample_se(self) -> float:
        """Standard error of `mean` over a sample of N data, in nats; NaN for one datum.

        It includes the Monte Carlo error.
        """
        count = len(self.values)
        return (self.values.std() / math.sqrt(count)).item() if count > 1 else math.nan

    @property
    def monte_carlo_interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the mean of these very data, in nats."""
        return self.mean - Z * self.monte_carlo_se, self.mean + Z * self.monte_carlo_se

    @property
    def sample_interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the mean of the population of the data, in nats."""
        return self.mean - Z * self.sample_se, self.mean + Z * self.sample_se

    @classmethod
    def over_draws(cls, values: Tensor) -> Self:
        """Average over independent draws.

        Args:
            values: One value per draw and datum, `[K, N]`.

        Returns:
            The mean over draws and its standard error.
        """
        return cls(values.mean(0), values.std(0) / math.sqrt(len(values)))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Concatenate the quantities of blocks of data.

        Args:
            parts: The quantity of each block, in the order of the data.

        Returns:
            The quantity of all data.
        """
        return cls(torch.cat([part.values for part in parts]), torch.cat([p.se for p in parts]))

    def minus(self, other: Self) -> "PerDatum":
        """Subtract an independent estimate of another quantity of the same data.

        Args:
            other: The estimate that is subtracted.

        Returns:
            The difference, with the standard error √(se² + se'²).
        """
        se = (self.se.square() + other.se.square()).sqrt()
        return PerDatum(self.values - other.values, se)


@dataclass(frozen=True, repr=False)
class FamilyGaps(Shown):
    """The gaps of a family: q* is its Gaussian with the largest ELBO for each datum.

    Attributes:
        elbo: L[q*].
        approximation: log p(x) − L[q*].
        amortization: L[q*] − L[q]; negative where the guide is better than q*, because its family
            is richer or because the fit of q* did not converge.
        gain: The gain in ELBO in the last step of the fit.
    """

    elbo: PerDatum
    approximation: PerDatum
    amortization: PerDatum
    gain: PerDatum

    def _overview(self) -> Overview:
        named = ("elbo", "approximation", "amortization", "gain")
        rows = [(name, *_row(getattr(self, name))) for name in named]
        return Overview([f"N={len(self.elbo.values)}"], rows, COLUMNS)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Concatenate the gaps of blocks of data.

        Args:
            parts: The gaps of each block, in the order of the data.

        Returns:
            The gaps of all data.
        """
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(PerDatum.joined(column) for column in columns))


@dataclass(frozen=True, repr=False)
class Gaps(Shown):
    """The quantities from the ELBO to log p(x) of N data, in nats.

    Attributes:
        elbo: L[q] of the guide.
        log_px: log p(x).
        inference: log p(x) − L[q], the sum of the two gaps of each family.
        families: The gaps of each family, by its name.
        khat: Pareto k̂ of the weights behind `log_px`, `[N]` (Vehtari et al. 2024); None where
            log p(x) was given.
        seconds: Wall-clock time.
        unreliable: Indices of the data whose `log_px` is not reliable, int64: by the rule of
            `LikelihoodEstimate.unreliable` where it comes from weights; otherwise, data whose
            given log p(x) is not finite or, where the estimate says so, has not converged.
    """

    elbo: PerDatum
    log_px: PerDatum
    inference: PerDatum
    families: dict[Family, FamilyGaps]
    khat: Tensor | None
    seconds: float
    unreliable: Tensor

    def _overview(self) -> Overview:
        rows = [(name, *_row(quantity)) for name, quantity in self.rows()]
        count, bad = len(self.elbo.values), len(self.unreliable)
        gap = f"inference gap {with_error(self.inference.mean, self.inference.sample_se, 'nats')}"
        head = [f"N={count}", gap, f"unreliable {percent(bad, count)}"]
        return Overview(head, rows, COLUMNS)

    def rows(self) -> list[tuple[str, PerDatum]]:
        """List every quantity with a label.

        Returns:
            Pairs of label and quantity, from the ELBO of the guide up to log p(x).
        """
        rows = [("ELBO of the guide", self.elbo)]
        for name, family in self.families.items():
            rows += [
                (f"amortization gap, {name}", family.amortization),
                (f"ELBO of q*, {name}", family.elbo),
                (f"approximation gap, {name}", family.approximation),
            ]
        return [*rows, ("inference gap", self.inference), ("log p(x)", self.log_px)]


def _row(quantity: PerDatum) -> tuple[str, str, str]:
    """The cells of a quantity behind its label."""
    errors = (f"{quantity.sample_se:.2g}", f"{quantity.monte_carlo_se:.2g}")
    return (f"{quantity.mean:.3f}", *errors)
