"""VarGrad: the log-variance loss, which is the leave-one-out score estimator of the ELBO."""

from pyroae.objectives.base import OBJECTIVES
from pyroae.objectives.bounds import ELBO
from pyroae.objectives.gradients import Score
from pyroae.objectives.pair import Objective


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
