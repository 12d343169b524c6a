"""Every estimator of the registry under its name, as a function or a class.

Names have underscores in place of the registry's hyphens.

>>> from pyroae.objectives.named import beta_elbo, dreg, iwae, trace_elbo
>>> dreg(num_particles=4).bound_function
IWAE(num_particles=4)
"""

from pyroae.config import pair_of
from pyroae.objectives.analytic_kl import AnalyticKL
from pyroae.objectives.annealed import DAIS
from pyroae.objectives.base import OBJECTIVES, ObjectiveBase
from pyroae.objectives.beta_elbo import BetaELBO
from pyroae.objectives.bounds import BOUNDS, CIWAE, ELBO, IWAE, JVI, MIWAE, TVO, Renyi
from pyroae.objectives.disarm import arm, disarm
from pyroae.objectives.enumerated import MOST, Enumerate
from pyroae.objectives.gdreg import gdreg
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
from pyroae.objectives.multilevel import mlmc
from pyroae.objectives.nvil import nvil
from pyroae.objectives.ovis import ovis, ovis_mc
from pyroae.objectives.pair import Objective
from pyroae.objectives.rebar import rebar, relax
from pyroae.objectives.relaxations import gumbel_softmax, straight_through
from pyroae.objectives.stratified import SELBO, SIWAE
from pyroae.objectives.trace_elbo import TraceELBO

__all__ = [
    "analytic_kl",
    "arm",
    "beta_elbo",
    "ciwae",
    "dais",
    "disarm",
    "dreg",
    "enumerate",
    "gdreg",
    "gumbel_softmax",
    "iwae",
    "iwae_stl",
    "jvi",
    "miwae",
    "mlmc",
    "nvil",
    "ovis",
    "ovis_mc",
    "parse_objective",
    "piwae",
    "rebar",
    "relax",
    "renyi",
    "rws",
    "rws_dreg",
    "score",
    "selbo",
    "siwae",
    "stl",
    "straight_through",
    "trace_elbo",
    "tvo",
    "vargrad",
    "vimco",
]

trace_elbo = TraceELBO
"""ELBO × Pathwise: the class `TraceELBO` under its name in the registry."""

analytic_kl = AnalyticKL
"""The ELBO with the KL in closed form: the class `AnalyticKL` under its name in the registry."""

beta_elbo = BetaELBO
"""The ELBO with a weight on the KL: the class `BetaELBO` under its name in the registry."""

dais = DAIS
"""Differentiable annealed importance sampling: the class `DAIS` under its name in the registry."""


def parse_objective(text: str, num_particles: int | None = None) -> ObjectiveBase:
    """Return the objective that a text names.

    Args:
        text: A name of the registry, `name:key=value,key=value`, or a pair `BOUND+GRADIENT` with
            settings in the same form.
        num_particles: K where the text does not give it; None for the objective's default.

    Returns:
        The objective.

    Raises:
        ConfigError: A name or setting is unknown, or the pair is not defined.

    >>> parse_objective("jvi:order=2+doubly-reparameterized", num_particles=8).bound_function
    JVI(num_particles=8, order=2)
    """
    arguments = {} if num_particles is None else {"num_particles": num_particles}
    pair = pair_of(text)
    if pair is None:
        return OBJECTIVES.parse(text, **arguments)
    return Objective(BOUNDS.parse(pair[0], **arguments), GRADIENTS.parse(pair[1]))


@OBJECTIVES.register("stl")
def stl(num_particles: int = 1) -> Objective:
    """Sticking the landing: the ELBO's path derivative without the score of q.

    Args:
        num_particles: K, the number of draws of z per datum.

    Returns:
        ELBO × StickingTheLanding.

    References:
        Roeder, Wu & Duvenaud 2017, Sticking the Landing: Simple, Lower-Variance Gradient Estimators
            for Variational Inference.
    """
    return Objective(ELBO(num_particles), StickingTheLanding())


@OBJECTIVES.register("iwae")
def iwae(num_particles: int = 8) -> Objective:
    """The importance-weighted bound log (1/K) Σ_k w_k, differentiated along the paths.

    Args:
        num_particles: K, the number of draws of z per datum.

    Returns:
        IWAE × Pathwise.

    References:
        Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders.
    """
    return Objective(IWAE(num_particles), Pathwise())


@OBJECTIVES.register("iwae-stl")
def iwae_stl(num_particles: int = 8) -> Objective:
    """IWAE without the score of q: biased for K > 1.

    Args:
        num_particles: K, the number of draws of z per datum.

    Returns:
        IWAE × StickingTheLanding.

    References:
        Roeder, Wu & Duvenaud 2017, Sticking the Landing: Simple, Lower-Variance Gradient Estimators
            for Variational Inference.
        Tucker et al. 2019, Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives.
    """
    return Objective(IWAE(num_particles), StickingTheLanding())


@OBJECTIVES.register("dreg")
def dreg(num_particles: int = 8, alpha: float = 0.0) -> Objective:
    """Doubly reparameterized IWAE, or DReG(α).

    Args:
        num_particles: K, the number of draws of z per datum.
        alpha: The share α of RWS-DReG in [0, 1]; 0 gives the unbiased DReG.

    Returns:
        IWAE × DoublyReparameterized.

    Raises:
        ConfigError: `alpha` lies outside [0, 1].

    References:
        Tucker et al. 2019, Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives.
        Bauer & Mnih 2021, Generalized Doubly Reparameterized Gradient Estimators (DReG(α)).
    """
    return Objective(IWAE(num_particles), DoublyReparameterized(alpha))


@OBJECTIVES.register("rws")
def rws(num_particles: int = 8) -> Objective:
    """Reweighted wake-sleep with the wake-φ update: θ ascends IWAE, φ descends KL(p ‖ q).

    Args:
        num_particles: K, the number of draws of z per datum.

    Returns:
        IWAE × WakeSleep.

    References:
        Bornschein & Bengio 2015, Reweighted Wake-Sleep.
    """
    return Objective(IWAE(num_particles), WakeSleep())


@OBJECTIVES.register("rws-dreg")
def rws_dreg(num_particles: int = 8) -> Objective:
    """Reweighted wake-sleep with the doubly reparameterized wake-φ update.

    Args:
        num_particles: K, the number of draws of z per datum.

    Returns:
        IWAE × DoublyReparameterizedWakeSleep.

    References:
        Tucker et al. 2019, Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives.
    """
    return Objective(IWAE(num_particles), DoublyReparameterizedWakeSleep())


@OBJECTIVES.register("renyi")
def renyi(num_particles: int = 8, alpha: float = 0.5) -> Objective:
    """The variational Rényi bound (1/(1−α)) log (1/K) Σ_k w_k^{1−α}.

    Args:
        num_particles: K, the number of draws of z per datum.
        alpha: The order α, below infinity; −∞ (`-.inf` on the command line) gives the maximum.

    Returns:
        Renyi × Pathwise.

    Raises:
        ConfigError: `alpha` is +∞ or NaN.

    References:
        Li & Turner 2016, Rényi Divergence Variational Inference.
    """
    return Objective(Renyi(num_particles, alpha), Pathwise())


@OBJECTIVES.register("miwae")
def miwae(num_particles: int = 8, groups: int = 2) -> Objective:
    """The mean of the IWAE bounds of several groups of particles.

    Args:
        num_particles: K, the number of draws of z per datum, a multiple of `groups`.
        groups: M, the number of groups.

    Returns:
        MIWAE × Pathwise.

    Raises:
        ConfigError: `groups` does not divide `num_particles`.

    References:
        Rainforth et al. 2018, Tighter Variational Bounds are Not Necessarily Better.
    """
    return Objective(MIWAE(num_particles, groups), Pathwise())


@OBJECTIVES.register("ciwae")
def ciwae(num_particles: int = 8, beta: float = 0.5) -> Objective:
    """The convex combination β ELBO + (1 − β) IWAE.

    Args:
        num_particles: K, the number of draws of z per datum.
        beta: The weight β of the ELBO, in [0, 1].

    Returns:
        CIWAE × Pathwise.

    Raises:
        ConfigError: `beta` lies outside [0, 1].

    References:
        Rainforth et al. 2018, Tighter Variational Bounds are Not Necessarily Better.
    """
    return Objective(CIWAE(num_particles, beta), Pathwise())


@OBJECTIVES.register("piwae")
def piwae(num_particles: int = 8, groups: int = 2) -> Objective:
    """PIWAE: θ follows IWAE over all particles, φ follows MIWAE; its value is the MIWAE bound.

    Args:
        num_particles: K, the number of draws of z per datum, a multiple of `groups`.
        groups: M, the number of groups of the MIWAE bound.

    Returns:
        MIWAE × TwoBounds.

    Raises:
        ConfigError: `groups` does not divide `num_particles`.

    References:
        Rainforth et al. 2018, Tighter Variational Bounds are Not Necessarily Better.
    """
    return Objective(MIWAE(num_particles, groups), TwoBounds())


@OBJECTIVES.register("jvi")
def jvi(num_particles: int = 8, order: int = 1) -> Objective:
    """Jackknife variational inference: IWAE with its bias reduced; not a bound.

    Args:
        num_particles: K, the number of draws of z per datum, at least `order` + 1.
        order: The order of the jackknife, 1 or 2.

    Returns:
        JVI × Pathwise.

    Raises:
        ConfigError: `order` is neither 1 nor 2, or `num_particles` is too small for it.

    References:
        Nowozin 2018, Debiasing Evidence Approximations: On Importance-weighted Autoencoders and
            Jackknife Variational Inference.
    """
    return Objective(JVI(num_particles, order), Pathwise())


@OBJECTIVES.register("vimco")
def vimco(num_particles: int = 8, baseline: str = "geometric") -> Objective:
    """VIMCO: IWAE by the score function with baselines from the other particles.

    It takes discrete latent variables as well.

    Args:
        num_particles: K, the number of draws of z per datum, at least 2 with a baseline.
        baseline: `geometric`, `arithmetic`, `leave-one-out` or `none`.

    Returns:
        IWAE × Score.

    Raises:
        ConfigError: `baseline` is none of these names, or `num_particles` is too small for it.

    References:
        Mnih & Rezende 2016, Variational Inference for Monte Carlo Objectives.
    """
    return Objective(IWAE(num_particles), Score(baseline))  # type: ignore[arg-type]


@OBJECTIVES.register("score")
def score(num_particles: int = 2) -> Objective:
    """The ELBO by the score function with a leave-one-out baseline.

    It takes discrete latent variables as well.

    Args:
        num_particles: K, the number of draws of z per datum, at least 2.

    Returns:
        ELBO × Score("leave-one-out").

    Raises:
        ConfigError: `num_particles` is below 2.
    """
    return Objective(ELBO(num_particles), Score("leave-one-out"))


@OBJECTIVES.register("tvo")
def tvo(num_particles: int = 8, partitions: int = 5, first: float = 0.01) -> Objective:
    """The thermodynamic variational objective with its covariance gradient.

    Args:
        num_particles: K, the number of draws of z per datum, at least 2.
        partitions: S, the number of steps of the schedule of β.
        first: β_1, in (0, 1).

    Returns:
        TVO × Covariance.

    Raises:
        ConfigError: `partitions` is below 1, or `first` lies outside (0, 1).

    References:
        Masrani, Le & Wood 2019, The Thermodynamic Variational Objective.
    """
    return Objective(TVO(num_particles, partitions, first), Covariance())


@OBJECTIVES.register("vargrad")
def vargrad(num_particles: int = 2) -> Objective:
    """The ELBO, whose φ-gradient is that of the log-variance loss.

        φ: −½ ∂_φ (1/(K−1)) Σ_k (log w_k − mean log w)² with the draws stopped
           = (1/(K−1)) Σ_k (log w_k − mean log w) s_k

    It is `score` under another name, equal draw by draw, and takes discrete latent variables.

    Args:
        num_particles: K, the number of draws of z per datum, at least 2.

    Returns:
        ELBO × Score("leave-one-out").

    Raises:
        ConfigError: `num_particles` is below 2.

    References:
        Richter, Boustati, Nüsken, Ruiz & Akyildiz 2020, VarGrad: A Low-Variance Gradient Estimator
            for Variational Inference.

    >>> vargrad(num_particles=4).gradient
    Score(baseline='leave-one-out')
    """
    return Objective(ELBO(num_particles), Score("leave-one-out"))


@OBJECTIVES.register("selbo")
def selbo(num_particles: int = 8) -> Objective:
    """The stratified ELBO of a mixture posterior: equally many draws from each component.

    Args:
        num_particles: K, the number of draws of z per datum, a multiple of the number of
            components.

    Returns:
        SELBO × Pathwise.

    References:
        Morningstar, Vikram, Ham, Gallagher & Dillon 2021, Automatic Differentiation Variational
            Inference with Mixtures.
    """
    return Objective(SELBO(num_particles), Pathwise())


@OBJECTIVES.register("siwae")
def siwae(num_particles: int = 8) -> Objective:
    """The stratified importance-weighted bound of a mixture posterior.

    Args:
        num_particles: K, the number of draws of z per datum, a multiple of the number of
            components.

    Returns:
        SIWAE × Pathwise.

    References:
        Morningstar, Vikram, Ham, Gallagher & Dillon 2021, Automatic Differentiation Variational
            Inference with Mixtures.
    """
    return Objective(SIWAE(num_particles), Pathwise())


@OBJECTIVES.register("enumerate")
def enumerate_(num_particles: int = 1, limit: int = MOST) -> Objective:
    """ELBO × Enumerate: the ELBO with every discrete site of the guide summed exactly.

        L = Σ_n (1/K) Σ_k Σ_s q(y_s | x_n) [log p(x_n, y_s, z_ks) − log q(y_s, z_ks | x_n)]

    The bound is in nats, over all data. y_1, …, y_S are the joint values of the discrete sites of a
    datum, marked or not; the model runs S·K times per datum. Where all latent sites are discrete,
    value and gradient have no noise.

    Args:
        num_particles: K, the number of draws of the continuous sites for each joint value.
        limit: The largest S; a guide with more joint values is refused.

    Returns:
        The objective.

    References:
        Kingma, Rezende, Mohamed & Welling 2014, Semi-Supervised Learning with Deep Generative
            Models.

    >>> import torch
    >>> from pyroae import zoo
    >>> system, x = zoo.discrete_vae(4, latent=3), torch.ones(2, 4)
    >>> losses = [enumerate_().loss(system.model, system.guide, x) for _ in range(2)]
    >>> losses[0] == losses[1]
    True
    """
    return Objective(ELBO(num_particles), Enumerate(limit))


enumerate = enumerate_
"""The ELBO with exact sums over discrete sites: `enumerate_` under its name in the registry."""
