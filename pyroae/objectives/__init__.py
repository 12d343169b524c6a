"""ELBO estimators: each is a `pyro.infer.ELBO`, and most are a bound times a gradient.

The registry `OBJECTIVES` and the module `pyroae.objectives.named` list them by name.
"""

from pyroae.objectives.analytic_kl import AnalyticKL
from pyroae.objectives.annealed import DAIS
from pyroae.objectives.base import OBJECTIVES, Bound, ObjectiveBase
from pyroae.objectives.beta_elbo import BetaELBO
from pyroae.objectives.bounds import (
    BOUNDS,
    CIWAE,
    ELBO,
    IWAE,
    JVI,
    MIWAE,
    TVO,
    BoundFunction,
    Renyi,
)
from pyroae.objectives.disarm import ARM, DisARM
from pyroae.objectives.enumerated import Enumerate
from pyroae.objectives.gradients import (
    GRADIENTS,
    Coefficients,
    Covariance,
    DoublyReparameterized,
    DoublyReparameterizedWakeSleep,
    Gradient,
    Pathwise,
    Score,
    StickingTheLanding,
    TwoBounds,
    WakeSleep,
)
from pyroae.objectives.multilevel import MLMC, BaseBound
from pyroae.objectives.nvil import NVIL
from pyroae.objectives.pair import Objective
from pyroae.objectives.program_gradient import ProgramGradient
from pyroae.objectives.rebar import Rebar, Relax
from pyroae.objectives.relaxations import GumbelSoftmax, StraightThrough
from pyroae.objectives.stratified import SELBO, SIWAE
from pyroae.objectives.trace_elbo import TraceELBO

# The module of the named pairs registers them, with what is imported above.
from pyroae.objectives.named import parse_objective  # isort: skip

__all__ = [
    "ARM",
    "BOUNDS",
    "CIWAE",
    "DAIS",
    "ELBO",
    "GRADIENTS",
    "IWAE",
    "JVI",
    "MIWAE",
    "MLMC",
    "NVIL",
    "OBJECTIVES",
    "SELBO",
    "SIWAE",
    "TVO",
    "AnalyticKL",
    "BaseBound",
    "BetaELBO",
    "Bound",
    "BoundFunction",
    "Coefficients",
    "Covariance",
    "DisARM",
    "DoublyReparameterized",
    "DoublyReparameterizedWakeSleep",
    "Enumerate",
    "Gradient",
    "GumbelSoftmax",
    "Objective",
    "ObjectiveBase",
    "Pathwise",
    "ProgramGradient",
    "Rebar",
    "Relax",
    "Renyi",
    "Score",
    "StickingTheLanding",
    "StraightThrough",
    "TraceELBO",
    "TwoBounds",
    "WakeSleep",
    "parse_objective",
]
