"""What posteriors are calibrated against, and how: settings of `calibrate`."""

from dataclasses import dataclass

from pyroae.config.checks import at_least, check_types, one_of, option
from pyroae.errors import ConfigError
from pyroae.runtime.short_repr import Settings

DRAWS = ("guide", "importance")
"""The draws among which true values are ranked."""


LEAST_SIMULATIONS = 20
"""The smallest number of simulations with which a latent is tested."""


@dataclass(frozen=True, repr=False)
class CalibrationSettings(Settings):
    """How the calibration of a posterior is measured.

    Attributes:
        draws: `guide` for draws of q(z|x), `importance` for the same draws with importance weights.
        num_simulations: R, the simulated pairs (z, x).
        num_draws: L, draws from q(z|x) for each of them.
        level: The probability of rejecting anything where all is calibrated.
        seed: Seed of simulations and draws.

    Raises:
        ConfigError: For an unknown name, and for numbers that are out of range.

    >>> CalibrationSettings(draws="gide")
    Traceback (most recent call last):
    pyroae.errors.ConfigError: unknown draws 'gide': did you mean 'guide'? Known: guide, importance
    """

    draws: str = option("guide", "draws of q(z|x), or these with importance weights", DRAWS)
    num_simulations: int = option(500, "simulated pairs of z and x")
    num_draws: int = option(500, "draws from q(z|x) for each of them")
    level: float = option(0.05, "probability of a false alarm, over all latents together")
    seed: int = option(0, "of simulations and draws")

    def __post_init__(self) -> None:
        check_types(self)
        one_of("draws", self.draws, DRAWS)
        at_least("num_simulations", self.num_simulations, LEAST_SIMULATIONS)
        at_least("num_draws", self.num_draws, 10)
        at_least("seed", self.seed, 0)
        if not 0 < self.level < 1:
            raise ConfigError(f"level must lie between 0 and 1, not {self.level}")
