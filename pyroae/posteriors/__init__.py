"""The second choice: the amortized posterior q(z|x), a function of the encoder's output."""

from pyroae.posteriors.base import POSTERIORS, Encoding, Posterior
from pyroae.posteriors.discrete import Bernoulli, Categorical
from pyroae.posteriors.gaussian import Diagonal, ExactLinear, Point
from pyroae.posteriors.sparse import SoftThreshold, TopK

__all__ = [
    "POSTERIORS",
    "Bernoulli",
    "Categorical",
    "Diagonal",
    "Encoding",
    "ExactLinear",
    "Point",
    "Posterior",
    "SoftThreshold",
    "TopK",
]
