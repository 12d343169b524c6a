"""Figures of systems, likelihoods, gradients and comparisons (matplotlib)."""

from typing import TYPE_CHECKING

from pyroae._exports import lazy_exports

if TYPE_CHECKING:
    from pyroae.plots.calibration import calibration_histograms, calibration_summary
    from pyroae.plots.columns import column_errors
    from pyroae.plots.comparison import differences, learning_curves, tuning_curves
    from pyroae.plots.conditional import class_samples
    from pyroae.plots.data import examples
    from pyroae.plots.gradients import gradient_curves
    from pyroae.plots.latent_paths import interpolation, traversals
    from pyroae.plots.latent_space import kl_per_unit, latent_scatter, manifold
    from pyroae.plots.likelihood import (
        bound_curve,
        extremes,
        khat,
        likelihood_per_datum,
        sandwich,
    )
    from pyroae.plots.posteriors import posterior
    from pyroae.plots.predictive import predictive_check
    from pyroae.plots.predictive_draws import fitted, marginals, pairs, sequences
    from pyroae.plots.prior import pseudo_inputs
    from pyroae.plots.rate_distortion_curves import rate_distortion
    from pyroae.plots.snapshots import along_training, gradients_along_training
    from pyroae.plots.sparsity import filters, sparsity_sweep
    from pyroae.plots.systems import reconstructions, sample_grids, samples, training_curves

__all__ = [
    "along_training",
    "bound_curve",
    "calibration_histograms",
    "calibration_summary",
    "class_samples",
    "column_errors",
    "differences",
    "examples",
    "extremes",
    "filters",
    "fitted",
    "gradient_curves",
    "gradients_along_training",
    "interpolation",
    "khat",
    "kl_per_unit",
    "latent_scatter",
    "learning_curves",
    "likelihood_per_datum",
    "manifold",
    "marginals",
    "pairs",
    "posterior",
    "predictive_check",
    "pseudo_inputs",
    "rate_distortion",
    "reconstructions",
    "sample_grids",
    "samples",
    "sandwich",
    "sequences",
    "sparsity_sweep",
    "training_curves",
    "traversals",
    "tuning_curves",
]

__getattr__, __dir__ = lazy_exports(__name__)
