"""Settings of annealed importance sampling: the path and the moves along it."""

import math
from dataclasses import dataclass

from pyroae.errors import ConfigError, unknown_name

STARTS = ("prior", "guide")


SCHEDULES = ("sigmoid", "linear")


@dataclass(frozen=True)
class AISSettings:
    """The annealing path and the Hamiltonian moves along it.

        f_β = f_0 (f_1/f_0)^β,   0 = β_0 < β_1 < … < β_T = 1

    Attributes:
        num_chains: C, the number of independent chains per datum.
        num_distributions: T, the number of steps from β = 0 to β = 1.
        start: f_0, where the path begins: at the `"prior"` or at the `"guide"`.
        schedule: `"sigmoid"`, σ(4(2t/T − 1)) rescaled to the interval from 0 to 1 and denser at
            both ends (Wu et al. 2017), or `"linear"`.
        leapfrog_steps: Leapfrog steps of each Hamiltonian move.
        target_acceptance: Mean acceptance probability that the pilot adapts its step sizes to.
        double: Run model and guide in double precision.

    Raises:
        ConfigError: For values out of range and unknown names.

    References:
        Wu, Burda, Salakhutdinov and Grosse (2017), On the quantitative analysis of decoder-based
        generative models.

    >>> AISSettings(num_distributions=4, schedule="linear").betas
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """

    num_chains: int = 16
    num_distributions: int = 1000
    start: str = "prior"
    schedule: str = "sigmoid"
    leapfrog_steps: int = 10
    target_acceptance: float = 0.65
    double: bool = False

    def __post_init__(self) -> None:
        for name in ("num_chains", "num_distributions", "leapfrog_steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1, not {value!r}")
        if not 0 < self.target_acceptance < 1:
            raise ConfigError(
                f"target_acceptance must lie between 0 and 1, not {self.target_acceptance!r}"
            )
        if self.start not in STARTS:
            raise unknown_name("start", str(self.start), STARTS)
        if self.schedule not in SCHEDULES:
            raise unknown_name("schedule", str(self.schedule), SCHEDULES)

    @property
    def betas(self) -> list[float]:
        """The inverse temperatures β_0 = 0 to β_T = 1, T + 1 numbers."""
        fractions = [t / self.num_distributions for t in range(self.num_distributions + 1)]
        if self.schedule == "linear":
            return fractions
        low, high = _sigmoid(-4.0), _sigmoid(4.0)
        inner = [(_sigmoid(4 * (2 * t - 1)) - low) / (high - low) for t in fractions[1:-1]]
        return [0.0, *inner, 1.0]


DEFAULTS = AISSettings()
"""The default path and moves."""


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))
