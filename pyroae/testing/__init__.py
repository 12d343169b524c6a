"""Conformance checks of ELBO estimators, for your own as well, and the toy programs they run on."""

from pyroae.testing.checks import Check, ConformanceError
from pyroae.testing.conformance import check_objective, toys_of
from pyroae.testing.discrete import BernoulliToy, CategoricalToy
from pyroae.testing.gaussian import AtPosterior, Toy
from pyroae.testing.mixed import MixedToy
from pyroae.testing.toy_program import EnumerableToy, States, ToyProgram

__all__ = [
    "AtPosterior",
    "BernoulliToy",
    "CategoricalToy",
    "Check",
    "ConformanceError",
    "EnumerableToy",
    "MixedToy",
    "States",
    "Toy",
    "ToyProgram",
    "check_objective",
    "toys_of",
]
