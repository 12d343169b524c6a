"""Evaluate any Pyro model and guide: log p(x), bounds, gaps, information and gradients."""

from typing import TYPE_CHECKING

from pyroae._exports import lazy_exports

if TYPE_CHECKING:
    from pyroae.config import AISSettings, CalibrationSettings
    from pyroae.config.evaluation import EvaluationSettings
    from pyroae.evaluation.adaptive_quadrature import QuadratureEstimate, quadrature
    from pyroae.evaluation.annealing.bounds import ais, bdmc
    from pyroae.evaluation.annealing.estimates import BDMC, AISEstimate
    from pyroae.evaluation.annealing.rate_distortion import RateDistortion
    from pyroae.evaluation.calibration import (
        Calibration,
        calibration_to_datatree,
        measure_calibration,
    )
    from pyroae.evaluation.diagnostics import Diagnostics, diagnose
    from pyroae.evaluation.enumeration import enumerated_log_likelihood
    from pyroae.evaluation.exact import exact_log_likelihood
    from pyroae.evaluation.gradient_lab.groups import parameter_groups
    from pyroae.evaluation.gradient_lab.measure import measure_gradients, measure_slopes
    from pyroae.evaluation.importance.likelihood import LikelihoodEstimate, log_likelihood
    from pyroae.evaluation.importance.proposals import Local, Mixture, heavy_tailed, widened
    from pyroae.evaluation.imputation import Imputation, impute
    from pyroae.evaluation.inference_gaps import Gaps, gaps
    from pyroae.evaluation.mutual_information import Information, information
    from pyroae.evaluation.predictive_checks import PredictiveCheck, predictive_check
    from pyroae.evaluation.site_draws import PredictiveDraws, predictive_draws
    from pyroae.evaluation.summary import Evaluation, evaluate

__all__ = [
    "BDMC",
    "AISEstimate",
    "AISSettings",
    "Calibration",
    "CalibrationSettings",
    "Diagnostics",
    "Evaluation",
    "EvaluationSettings",
    "Gaps",
    "Imputation",
    "Information",
    "LikelihoodEstimate",
    "Local",
    "Mixture",
    "PredictiveCheck",
    "PredictiveDraws",
    "QuadratureEstimate",
    "RateDistortion",
    "ais",
    "bdmc",
    "calibration_to_datatree",
    "diagnose",
    "enumerated_log_likelihood",
    "evaluate",
    "exact_log_likelihood",
    "gaps",
    "heavy_tailed",
    "impute",
    "information",
    "log_likelihood",
    "measure_calibration",
    "measure_gradients",
    "measure_slopes",
    "parameter_groups",
    "predictive_check",
    "predictive_draws",
    "quadrature",
    "widened",
]

__getattr__, __dir__ = lazy_exports(__name__)
