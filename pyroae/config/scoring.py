"""How every training of a comparison is scored."""

from dataclasses import dataclass

from pyroae.config.checks import one_of, option
from pyroae.errors import ConfigError
from pyroae.runtime.short_repr import Settings

SCORE_METHODS = ("auto", "is", "local", "ais", "exact", "enumeration")
"""What corrects the scores of importance sampling; `is` leaves them uncorrected."""


SUBSET = 200
"""The number of held-out data of the correction, where there are more."""


@dataclass(frozen=True, repr=False)
class Scoring(Settings):
    """How every training is scored: importance sampling for all data, corrected on a subset.

        NLL = −mean_n log p̂_IS(x_n) − mean_{m ∈ S} [log p̂_strong(x_m) − log p̂_IS(x_m)]

    The draws of importance sampling come from the trained guide, so that its estimate favours
    guides that are good proposals. The correction on a random subset S, the same for all
    trainings, removes this. The stronger estimate is by

    - `exact`: the closed form of a linear-Gaussian system, or a sum over discrete latents;
    - `enumeration`: a sum over discrete latents of up to 2^22 joint values, for all data;
    - `local`: importance sampling from a Gaussian fitted to the posterior of each datum;
    - `ais`: annealing from the guide;
    - `auto`: `exact` where it is defined, else `local`, or `is` where some latent is discrete;
    - `is`: none; the scores are not corrected.

    Attributes:
        num_particles: importance samples per datum, K.
        num_data: the number N of held-out data; None for all.
        method: the stronger estimate.
        subset: the number M of data of S; None for 200, or N if that is less.
        seed: where the draws start.

    Raises:
        ConfigError: for numbers below 1, an unknown method, or a subset larger than N.

    >>> Scoring(num_particles=100, num_data=50).subset_of(50)
    50
    """

    num_particles: int = option(
        5000, "draws of importance sampling per held-out datum", flag="--score-particles"
    )
    num_data: int | None = option(1000, "score the first N held-out data", flag="--score-data")
    method: str = option(
        "auto", "the estimate that corrects the scores", SCORE_METHODS, flag="--score-method"
    )
    subset: int | None = option(
        None,
        "held-out data of the correction, chosen at random (default: 200, or all)",
        flag="--score-subset",
    )
    seed: int = option(0, "of the draws of the scores", flag="--score-seed")

    def __post_init__(self) -> None:
        for name in ("num_particles", "num_data", "subset"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} of the scoring must be at least 1, not {value}")
        one_of("score method", self.method, SCORE_METHODS)
        if self.num_data is not None:
            self.subset_of(self.num_data)

    def subset_of(self, num_data: int) -> int:
        """Return the number of data of the correction.

        Args:
            num_data: N, the number of held-out data that are scored.

        Returns:
            M, at most N.

        Raises:
            ConfigError: for a subset larger than N.
        """
        if self.subset is not None and self.subset > num_data:
            raise ConfigError(
                f"the subset of the correction has {self.subset} data, more than the {num_data} "
                "held-out data that are scored: give a smaller --score-subset"
            )
        return min(num_data, SUBSET) if self.subset is None else self.subset
