"""pyroae: a laboratory for amortized variational inference in Pyro.

Every system is one Pyro model p(z) p(x|z) and one amortized guide q(z|x); four choices (prior, posterior, likelihood,
corruption) make it a PCA, an autoencoder, a sparse or denoising autoencoder, a probabilistic PCA or a VAE.
Names are loaded when first used, so that the command line answers before torch is imported.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# A thread of GNU OpenMP waits by spinning for milliseconds; where other work shares the cores, a training step then takes
# ten times as long. A shorter spin costs nothing on a quiet machine. It counts if torch is not loaded yet.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

if TYPE_CHECKING:
    from pyroae import corruptions, likelihoods, nn, objectives, plots, posteriors, priors, testing, zoo
    from pyroae.autoencoder import Autoencoder
    from pyroae.budget import Budget
    from pyroae.compiler import Compiled, compile
    from pyroae.config import RunConfig, TrainConfig
    from pyroae.data import Dataset, Splits, load
    from pyroae.ensemble_training import fit_ensemble
    from pyroae.errors import PyroaeError
    from pyroae.evaluation.ais import BDMC, AISEstimate, AISSettings, ais, bdmc
    from pyroae.evaluation.comparison import Comparison
    from pyroae.evaluation.diagnostics import Diagnostics, diagnose
    from pyroae.evaluation.exact import exact_log_likelihood
    from pyroae.evaluation.gaps import Gaps, gaps
    from pyroae.evaluation.gradients import measure_gradients, measure_slopes
    from pyroae.evaluation.groups import parameter_groups
    from pyroae.evaluation.information import Information, information
    from pyroae.evaluation.likelihood import LikelihoodEstimate, log_likelihood
    from pyroae.evaluation.proposals import Local, Mixture, heavy_tailed, widened
    from pyroae.evaluation.quadrature import QuadratureEstimate, quadrature
    from pyroae.evaluation.summary import Evaluation, EvaluationSettings, evaluate
    from pyroae.evaluation.trainings import Scoring, compare_training
    from pyroae.inference_data import to_datatree
    from pyroae.keeper import Keeper
    from pyroae.objectives import AnalyticKL, Bound, Objective, TraceELBO
    from pyroae.trainer import FitResult
    from pyroae.training import fit
    from pyroae.weights import LogWeights, log_weights, prior_of

_HOMES = {
    "pyroae.autoencoder": ["Autoencoder"],
    "pyroae.budget": ["Budget"],
    "pyroae.compiler": ["Compiled", "compile"],
    "pyroae.config": ["RunConfig", "TrainConfig"],
    "pyroae.data": ["Dataset", "Splits", "load"],
    "pyroae.ensemble_training": ["fit_ensemble"],
    "pyroae.errors": ["PyroaeError"],
    "pyroae.evaluation.ais": ["BDMC", "AISEstimate", "AISSettings", "ais", "bdmc"],
    "pyroae.evaluation.comparison": ["Comparison"],
    "pyroae.evaluation.diagnostics": ["Diagnostics", "diagnose"],
    "pyroae.evaluation.exact": ["exact_log_likelihood"],
    "pyroae.evaluation.gaps": ["Gaps", "gaps"],
    "pyroae.evaluation.gradients": ["measure_gradients", "measure_slopes"],
    "pyroae.evaluation.groups": ["parameter_groups"],
    "pyroae.evaluation.information": ["Information", "information"],
    "pyroae.evaluation.likelihood": ["LikelihoodEstimate", "log_likelihood"],
    "pyroae.evaluation.proposals": ["Local", "Mixture", "heavy_tailed", "widened"],
    "pyroae.evaluation.quadrature": ["QuadratureEstimate", "quadrature"],
    "pyroae.evaluation.summary": ["Evaluation", "EvaluationSettings", "evaluate"],
    "pyroae.evaluation.trainings": ["Scoring", "compare_training"],
    "pyroae.inference_data": ["to_datatree"],
    "pyroae.keeper": ["Keeper"],
    "pyroae.objectives": ["AnalyticKL", "Bound", "Objective", "TraceELBO"],
    "pyroae.trainer": ["FitResult"],
    "pyroae.training": ["fit"],
    "pyroae.weights": ["LogWeights", "log_weights", "prior_of"],
}
_MODULES = ["corruptions", "likelihoods", "nn", "objectives", "plots", "posteriors", "priors", "testing", "zoo"]
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BDMC",
    "AISEstimate",
    "AISSettings",
    "AnalyticKL",
    "Autoencoder",
    "Bound",
    "Budget",
    "Comparison",
    "Compiled",
    "Dataset",
    "Diagnostics",
    "Evaluation",
    "EvaluationSettings",
    "FitResult",
    "Gaps",
    "Information",
    "Keeper",
    "LikelihoodEstimate",
    "Local",
    "LogWeights",
    "Mixture",
    "Objective",
    "PyroaeError",
    "QuadratureEstimate",
    "RunConfig",
    "Scoring",
    "Splits",
    "TraceELBO",
    "TrainConfig",
    "ais",
    "bdmc",
    "compare_training",
    "compile",
    "corruptions",
    "diagnose",
    "evaluate",
    "exact_log_likelihood",
    "fit",
    "fit_ensemble",
    "gaps",
    "heavy_tailed",
    "information",
    "likelihoods",
    "load",
    "log_likelihood",
    "log_weights",
    "measure_gradients",
    "measure_slopes",
    "nn",
    "objectives",
    "parameter_groups",
    "plots",
    "posteriors",
    "prior_of",
    "priors",
    "quadrature",
    "testing",
    "to_datatree",
    "widened",
    "zoo",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"pyroae.{name}")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'pyroae' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
