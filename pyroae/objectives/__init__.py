"""ELBO estimators: each a `pyro.infer.ELBO`, each a row of the registry `OBJECTIVES`."""

from pyroae.objectives.analytic_kl import AnalyticKL
from pyroae.objectives.base import OBJECTIVES, Bound, Objective
from pyroae.objectives.trace_elbo import TraceELBO

__all__ = ["OBJECTIVES", "AnalyticKL", "Bound", "Objective", "TraceELBO"]
