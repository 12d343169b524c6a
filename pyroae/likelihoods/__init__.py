"""The third choice: the likelihood p(x|z), a function of the decoder's output."""

from pyroae.likelihoods.base import LIKELIHOODS, Likelihood
from pyroae.likelihoods.binary import Bernoulli, ContinuousBernoulli
from pyroae.likelihoods.categorical import Categorical
from pyroae.likelihoods.continuous import Laplace, Normal, Student
from pyroae.likelihoods.counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from pyroae.likelihoods.images import DiscretizedLogistic
from pyroae.likelihoods.mixed import Mixed
from pyroae.likelihoods.observed import Observed
from pyroae.likelihoods.scales import LocationScale, OptimalScale

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Laplace",
    "Likelihood",
    "LocationScale",
    "Mixed",
    "NegativeBinomial",
    "Normal",
    "Observed",
    "OptimalScale",
    "Poisson",
    "Student",
    "ZeroInflatedNegativeBinomial",
]
