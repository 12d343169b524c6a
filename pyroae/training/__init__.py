"""Training: `fit` for one system, `fit_ensemble` for several seeds at once."""

from pyroae.training.checkpointing import Keeper
from pyroae.training.fitting import fit
from pyroae.training.lockstep import fit_ensemble
from pyroae.training.state import State
from pyroae.training.trainer import FitResult

__all__ = ["FitResult", "Keeper", "State", "fit", "fit_ensemble"]
