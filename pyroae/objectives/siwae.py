"""The stratified bounds of mixture posteriors by the names of their papers."""

from pyroae.objectives.base import OBJECTIVES
from pyroae.objectives.gradients import Pathwise
from pyroae.objectives.pair import Objective
from pyroae.objectives.stratified import SELBO, SIWAE


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
