"""The second choice: the amortized posterior q(z|x), a function of the encoder's output."""

from pyroae.posteriors.base import POSTERIORS, Encoding, Posterior
from pyroae.posteriors.discrete import Bernoulli, Categorical
from pyroae.posteriors.flows import IAF, NSF, Flow
from pyroae.posteriors.gaussian import Diagonal, ExactLinear, FullRank, LowRank, Point
from pyroae.posteriors.mixture import GaussianMixture, Mixture
from pyroae.posteriors.sparse import SoftThreshold, TopK

__all__ = [
    "IAF",
    "NSF",
    "POSTERIORS",
    "Bernoulli",
    "Categorical",
    "Diagonal",
    "Encoding",
    "ExactLinear",
    "Flow",
    "FullRank",
    "GaussianMixture",
    "LowRank",
    "Mixture",
    "Point",
    "Posterior",
    "SoftThreshold",
    "TopK",
]
