"""Results of a calibration: one verdict for each latent, and one for all."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pyroae.config.calibration import LEAST_SIMULATIONS, CalibrationSettings
from pyroae.evaluation.calibration.ranks import DENSITIES
from pyroae.evaluation.calibration.uniformity import (
    coverage,
    dispersion_test,
    holm,
    normal_scores,
    symmetry_test,
    uniformity_test,
)
from pyroae.evaluation.importance.streams import LEAST_ESS
from pyroae.runtime.short_repr import Overview, Shown

CALIBRATED = "calibrated within noise"
"""The verdict where no test rejects."""


TOO_FEW = "too few simulations"
"""The verdict of a latent that masks leave out of almost all simulations."""


PROBABILITIES = (0.5, 0.8, 0.95)
"""The probabilities of the central intervals whose coverage is reported."""


@dataclass(frozen=True, repr=False)
class Interval(Shown):
    """An estimate with its 95 % interval.

    Attributes:
        value: The estimate.
        low: The lower end.
        high: The upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, repr=False)
class Tests(Shown):
    """p-values of the three tests of one quantity, single or adjusted for all.

    Attributes:
        symmetry: Of `symmetry_test`.
        dispersion: Of `dispersion_test`.
        uniformity: Of `uniformity_test`.
    """

    symmetry: float
    dispersion: float
    uniformity: float


@dataclass(frozen=True, repr=False)
class Quantity(Shown):
    """The calibration of one scalar latent, or of a log-density.

    Attributes:
        name: Its name, such as `z[0]` or `log p(x|z)`.
        num_simulations: The simulations in which it is not masked.
        shift: The mean of Φ⁻¹(p): how far the truth lies above q, in standard deviations of q.
        spread: The standard deviation of Φ⁻¹(p): that of the posterior over that of q, where both
            are Gaussian; above 1 where q is too narrow.
        coverage: How often central intervals of `PROBABILITIES` hold the truth.
        tests: p-values of each test alone.
        adjusted: The same, adjusted for all tests of all quantities (Holm).
        verdict: "calibrated within noise", or what is wrong.
    """

    name: str
    num_simulations: int
    shift: Interval
    spread: Interval
    coverage: tuple[Interval, ...]
    tests: Tests
    adjusted: Tests
    verdict: str

    def _overview(self) -> Overview:
        shift, spread = (f"{one.value:.2f}" for one in (self.shift, self.spread))
        return Overview([self.name, f"shift {shift}", f"spread {spread}", self.verdict])

    @property
    def is_density(self) -> bool:
        """Whether it is a log-density, not a latent."""
        return self.name in DENSITIES


@dataclass(frozen=True, repr=False)
class Calibration(Shown):
    """How well draws of q(z|x) are calibrated on data simulated by the model.

    Attributes:
        quantities: Scalar latents, then log-densities; U in all.
        p_values: p-values of the true values, `[R, U]`, float64; NaN where masked.
        ess: The effective number of draws in each simulation, `[R]`; L without weights.
        settings: The settings.
        seconds: Wall-clock time.
    """

    quantities: tuple[Quantity, ...]
    p_values: Tensor
    ess: Tensor
    settings: CalibrationSettings
    seconds: float

    def _overview(self) -> Overview:
        rows = [
            (one.name, _ends(one.shift), _ends(one.spread), _ends(one.coverage[-1]), one.verdict)
            for one in self.quantities
        ]
        columns = ("latent", "shift (0)", "spread (1)", "coverage of 95 %", "verdict")
        return Overview([self.verdict], rows, columns)

    @property
    def is_calibrated(self) -> bool:
        """Whether no test of any quantity rejects at the level, and there were tests."""
        found = {quantity.verdict for quantity in self.quantities}
        return CALIBRATED in found and found <= {CALIBRATED, TOO_FEW}

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        count, settings = len(self.quantities), self.settings
        scope = f"level {settings.level:g}, {settings.num_simulations} simulations"
        if self.is_calibrated:
            return f"{CALIBRATED} ({count} quantities, {scope})"
        wrong = Counter(q.verdict for q in self.quantities if q.verdict != CALIBRATED)
        words = ", ".join(f"{verdict}: {number}" for verdict, number in wrong.most_common())
        return f"not calibrated ({words}; of {count} quantities, {scope})"

    @property
    def num_unreliable(self) -> int:
        """The number of simulations with fewer than 10 effective draws."""
        return int((self.ess < LEAST_ESS).sum())

    @property
    def ranks(self) -> Tensor:
        """The rank of the truth among L draws, 0 to L, ties broken at random, `[R, U]`.

        It is that of draws without weights; with weights it is the p-value in this scale.
        """
        return (self.p_values * (self.settings.num_draws + 1)).floor()


def judged(
    names: Sequence[str], p_values: Tensor, settings: CalibrationSettings
) -> tuple[Quantity, ...]:
    """Test the p-values of each quantity.

    Args:
        names: Names of the quantities, U.
        p_values: `[R, U]`, NaN where masked.
        settings: The level of all tests together.

    Returns:
        One result for each quantity.
    """
    columns = [column[~np.isnan(column)] for column in p_values.double().numpy().T]
    tests = [_tests(column) for column in columns]
    adjusted = holm([p for one in tests for p in vars(one).values()]).reshape(-1, 3)
    return tuple(
        _quantity(name, column, one, Tests(*map(float, of_all)), settings.level)
        for name, column, one, of_all in zip(names, columns, tests, adjusted, strict=True)
    )


def _tests(p: np.ndarray) -> Tests:
    if len(p) < LEAST_SIMULATIONS:
        return Tests(math.nan, math.nan, math.nan)
    return Tests(symmetry_test(p), dispersion_test(p), uniformity_test(p))


def _quantity(name: str, p: np.ndarray, tests: Tests, adjusted: Tests, level: float) -> Quantity:
    if len(p) < LEAST_SIMULATIONS:
        none = Interval(math.nan, math.nan, math.nan)
        covered = (none,) * len(PROBABILITIES)
        return Quantity(name, len(p), none, none, covered, tests, adjusted, TOO_FEW)
    from scipy.special import chdtri, stdtrit

    scores, degrees = normal_scores(p), len(p) - 1
    mean, deviation = float(scores.mean()), float(scores.std(ddof=1))
    half = float(stdtrit(degrees, 0.975)) * deviation / len(p) ** 0.5
    ends = (deviation * (degrees / chdtri(degrees, tail)) ** 0.5 for tail in (0.025, 0.975))
    return Quantity(
        name,
        len(p),
        Interval(mean, mean - half, mean + half),
        Interval(deviation, *map(float, ends)),
        tuple(Interval(*coverage(p, probability)) for probability in PROBABILITIES),
        tests,
        adjusted,
        _verdict(name, mean, deviation, adjusted, level),
    )


def _verdict(name: str, shift: float, spread: float, adjusted: Tests, level: float) -> str:
    """What the tests reject, in words."""
    low, high = ("shifted low", "shifted high")
    if name in DENSITIES:
        low, high = ("draws too improbable", "draws too probable")
    found = []
    if adjusted.symmetry < level:
        found.append(low if shift > 0 else high)
    if adjusted.dispersion < level:
        found.append("too narrow" if spread > 1 else "too wide")
    if not found and adjusted.uniformity < level:
        found.append("of another shape")
    return " and ".join(found) or CALIBRATED


def _ends(interval: Interval) -> str:
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
