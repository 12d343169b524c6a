"""pyroae: a laboratory for amortized variational inference in Pyro.

Every system is one Pyro model p(z) p(x|z) and one amortized guide q(z|x). Four choices (prior,
posterior, likelihood, corruption) make it a PCA, an autoencoder, a sparse or denoising autoencoder,
a probabilistic PCA or a VAE. Names are loaded at their first use, so that the command line starts
without importing torch.
"""

import os
from typing import TYPE_CHECKING

from pyroae._exports import lazy_exports
from pyroae._version import __version__

# Threads of GNU OpenMP spin for milliseconds while they wait. On cores shared with other work this
# makes a training step ten times as long; on an idle machine a shorter spin costs nothing. The
# setting has an effect only if torch is not loaded yet.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

if TYPE_CHECKING:
    from pyroae import (
        corruptions,
        likelihoods,
        nn,
        objectives,
        plots,
        posteriors,
        priors,
        testing,
        zoo,
    )
    from pyroae.autoencoder import Autoencoder
    from pyroae.comparison.budget import Budget
    from pyroae.comparison.results import Comparison
    from pyroae.compilation.svi import Compiled, compile
    from pyroae.config import RunConfig, Scoring, TrainConfig
    from pyroae.data import Dataset, Splits, load
    from pyroae.elpd import to_elpd
    from pyroae.errors import PyroaeError
    from pyroae.evaluation import (
        BDMC,
        AISEstimate,
        AISSettings,
        Calibration,
        CalibrationSettings,
        Diagnostics,
        Evaluation,
        EvaluationSettings,
        Gaps,
        Imputation,
        Information,
        LikelihoodEstimate,
        Local,
        Mixture,
        PredictiveCheck,
        PredictiveDraws,
        QuadratureEstimate,
        RateDistortion,
        ais,
        bdmc,
        calibration_to_datatree,
        diagnose,
        enumerated_log_likelihood,
        evaluate,
        exact_log_likelihood,
        gaps,
        heavy_tailed,
        impute,
        information,
        log_likelihood,
        measure_calibration,
        measure_gradients,
        measure_slopes,
        parameter_groups,
        predictive_check,
        predictive_draws,
        quadrature,
        widened,
    )
    from pyroae.inference_data import to_datatree
    from pyroae.objectives import AnalyticKL, Bound, Objective, TraceELBO
    from pyroae.programs.traces import prior_of
    from pyroae.runs.loading import LoadedRun, load_run
    from pyroae.runtime.processes import Share
    from pyroae.studies.comparison_tree import comparison_to_datatree
    from pyroae.studies.loading import LoadedStudy, load_study
    from pyroae.studies.trainings import Variant, compare_training
    from pyroae.training import FitResult, Keeper, State, fit, fit_ensemble
    from pyroae.weights import LogWeights, log_weights

__all__ = [
    "BDMC",
    "AISEstimate",
    "AISSettings",
    "AnalyticKL",
    "Autoencoder",
    "Bound",
    "Budget",
    "Calibration",
    "CalibrationSettings",
    "Comparison",
    "Compiled",
    "Dataset",
    "Diagnostics",
    "Evaluation",
    "EvaluationSettings",
    "FitResult",
    "Gaps",
    "Imputation",
    "Information",
    "Keeper",
    "LikelihoodEstimate",
    "LoadedRun",
    "LoadedStudy",
    "Local",
    "LogWeights",
    "Mixture",
    "Objective",
    "PredictiveCheck",
    "PredictiveDraws",
    "PyroaeError",
    "QuadratureEstimate",
    "RateDistortion",
    "RunConfig",
    "Scoring",
    "Share",
    "Splits",
    "State",
    "TraceELBO",
    "TrainConfig",
    "Variant",
    "__version__",
    "ais",
    "bdmc",
    "calibration_to_datatree",
    "compare_training",
    "comparison_to_datatree",
    "compile",
    "corruptions",
    "diagnose",
    "enumerated_log_likelihood",
    "evaluate",
    "exact_log_likelihood",
    "fit",
    "fit_ensemble",
    "gaps",
    "heavy_tailed",
    "impute",
    "information",
    "likelihoods",
    "load",
    "load_run",
    "load_study",
    "log_likelihood",
    "log_weights",
    "measure_calibration",
    "measure_gradients",
    "measure_slopes",
    "nn",
    "objectives",
    "parameter_groups",
    "plots",
    "posteriors",
    "predictive_check",
    "predictive_draws",
    "prior_of",
    "priors",
    "quadrature",
    "testing",
    "to_datatree",
    "to_elpd",
    "widened",
    "zoo",
]

__getattr__, __dir__ = lazy_exports(__name__)
