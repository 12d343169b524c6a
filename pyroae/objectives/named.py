"""Estimators by the names of their papers: rows of a table of bounds and gradients."""

from pyroae.config import pair_of
from pyroae.objectives.base import OBJECTIVES, ObjectiveBase
from pyroae.objectives.bounds import BOUNDS, CIWAE, ELBO, IWAE, JVI, MIWAE, TVO, Renyi
from pyroae.objectives.gradients import (
    GRADIENTS,
    Covariance,
    DoublyReparameterized,
    DoublyReparameterizedWakeSleep,
    Pathwise,
    Score,
    StickingTheLanding,
    TwoBounds,
    WakeSleep,
)
from pyroae.objectives.pair import Objective


def parse_objective(text: str, num_particles: int | None = None) -> ObjectiveBase:
    """The objective that a text names: a row of the registry, `name:key=value`, or any pair, `BOUND+GRADIENT`.

    num_particles: where the text does not say. Raises ConfigError for unknown names and settings, and pairs that are not
    defined.

    >>> parse_objective("jvi:order=2+doubly-reparameterized", num_particles=8).bound_function
    JVI(num_particles=8, order=2)
    """
    given = {} if num_particles is None else {"num_particles": num_particles}
    pair = pair_of(text)
    if pair is None:
        return OBJECTIVES.parse(text, **given)
    return Objective(BOUNDS.parse(pair[0], **given), GRADIENTS.parse(pair[1]))


@OBJECTIVES.register("stl")
def stl(num_particles: int = 1) -> Objective:
    """Sticking the landing: the ELBO without the score of q (Roeder 2017)."""
    return Objective(ELBO(num_particles), StickingTheLanding())


@OBJECTIVES.register("iwae")
def iwae(num_particles: int = 8) -> Objective:
    """The importance-weighted bound (Burda 2016)."""
    return Objective(IWAE(num_particles), Pathwise())


@OBJECTIVES.register("iwae-stl")
def iwae_stl(num_particles: int = 8) -> Objective:
    """IWAE without the score of q: biased for K > 1 (Roeder 2017, Tucker 2019)."""
    return Objective(IWAE(num_particles), StickingTheLanding())


@OBJECTIVES.register("dreg")
def dreg(num_particles: int = 8, alpha: float = 0.0) -> Objective:
    """Doubly reparameterized IWAE (Tucker 2019); with alpha, DReG(α) (Bauer & Mnih 2021)."""
    return Objective(IWAE(num_particles), DoublyReparameterized(alpha))


@OBJECTIVES.register("rws")
def rws(num_particles: int = 8) -> Objective:
    """Reweighted wake-sleep, its wake-φ update (Bornschein & Bengio 2015)."""
    return Objective(IWAE(num_particles), WakeSleep())


@OBJECTIVES.register("rws-dreg")
def rws_dreg(num_particles: int = 8) -> Objective:
    """Doubly reparameterized wake-φ update (Tucker 2019)."""
    return Objective(IWAE(num_particles), DoublyReparameterizedWakeSleep())


@OBJECTIVES.register("renyi")
def renyi(num_particles: int = 8, alpha: float = 0.5) -> Objective:
    """The variational Rényi bound (Li & Turner 2016); alpha of −.inf is the maximum."""
    return Objective(Renyi(num_particles, alpha), Pathwise())


@OBJECTIVES.register("miwae")
def miwae(num_particles: int = 8, groups: int = 2) -> Objective:
    """The mean of several IWAE bounds (Rainforth 2018)."""
    return Objective(MIWAE(num_particles, groups), Pathwise())


@OBJECTIVES.register("ciwae")
def ciwae(num_particles: int = 8, beta: float = 0.5) -> Objective:
    """A convex combination of the ELBO and IWAE (Rainforth 2018)."""
    return Objective(CIWAE(num_particles, beta), Pathwise())


@OBJECTIVES.register("piwae")
def piwae(num_particles: int = 8, groups: int = 2) -> Objective:
    """θ by IWAE over all particles, φ by MIWAE (Rainforth 2018); its value is the MIWAE bound."""
    return Objective(MIWAE(num_particles, groups), TwoBounds())


@OBJECTIVES.register("jvi")
def jvi(num_particles: int = 8, order: int = 1) -> Objective:
    """Jackknife variational inference (Nowozin 2018)."""
    return Objective(JVI(num_particles, order), Pathwise())


@OBJECTIVES.register("vimco")
def vimco(num_particles: int = 8, baseline: str = "geometric") -> Objective:
    """IWAE by score function with leave-one-out baselines, for discrete latents too (Mnih & Rezende 2016)."""
    return Objective(IWAE(num_particles), Score(baseline))  # type: ignore[arg-type]


@OBJECTIVES.register("score")
def score(num_particles: int = 2) -> Objective:
    """The ELBO by score function with a leave-one-out baseline, for discrete latents too."""
    return Objective(ELBO(num_particles), Score("leave-one-out"))


@OBJECTIVES.register("tvo")
def tvo(num_particles: int = 8, partitions: int = 5, first: float = 0.01) -> Objective:
    """The thermodynamic variational objective with its covariance gradient (Masrani 2019)."""
    return Objective(TVO(num_particles, partitions, first), Covariance())
