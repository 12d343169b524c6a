"""The first choice: the prior p(z) over the m latent features."""

from pyroae.priors.base import PRIORS, Amortized, Prior
from pyroae.priors.continuous import Flat, Laplace, Normal, Student
from pyroae.priors.decoder_weights import GaussianWeights
from pyroae.priors.discrete import Bernoulli, Categorical
from pyroae.priors.flows import Flow, FlowDistribution
from pyroae.priors.mixtures import GaussianMixture, MixtureDistribution
from pyroae.priors.vamp import PseudoInputs, Vamp

__all__ = [
    "PRIORS",
    "Amortized",
    "Bernoulli",
    "Categorical",
    "Flat",
    "Flow",
    "FlowDistribution",
    "GaussianMixture",
    "GaussianWeights",
    "Laplace",
    "MixtureDistribution",
    "Normal",
    "Prior",
    "PseudoInputs",
    "Student",
    "Vamp",
]
