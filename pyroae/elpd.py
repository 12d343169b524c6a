"""Convert log p(x) of held-out data to ELPD data of ArviZ, which `arviz.compare` compares."""

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyroae.errors import ConfigError, DataError
from pyroae.evaluation.adaptive_quadrature import QuadratureEstimate
from pyroae.evaluation.annealing.estimates import AISEstimate
from pyroae.evaluation.importance.likelihood import LikelihoodEstimate

if TYPE_CHECKING:
    from arviz_stats import ELPDData

GOOD_K = 0.7
"""The largest k̂ of a reliable estimate where K is not known (Vehtari et al. 2024)."""


def to_elpd(
    log_px: Tensor | LikelihoodEstimate | AISEstimate | QuadratureEstimate,
    *,
    khat: Tensor | None = None,
    num_particles: int = 0,
) -> "ELPDData":
    """Convert log p(x) of each held-out datum to ELPD data of ArviZ.

        elpd = Σ_n log p̂(x_n),   se = √(N Var_n log p̂(x_n))

    The variance has the factor 1/N, as in ArviZ. `arviz.compare` takes a dict of the results, by
    the names of the models, which must be of the same data in the same order; it ranks them and
    pairs their differences by datum. The parameters are fixed and the data held-out: there is no
    leave-one-out correction and no effective number of parameters, and `p` is nan. Where log p(x)
    of a datum is below −700 nats, give `arviz.compare` method="BB-pseudo-BMA": the weights of its
    default, stacking, underflow.

    A `LikelihoodEstimate` brings its k̂, and the limit for its K as `good_k`. The data above the
    limit, which `arviz.compare` counts, are those of `LikelihoodEstimate.unreliable`: where they
    have another reason, such as a low ESS or K < 25, their k̂ becomes ∞; reliable data whose weights
    differ by rounding only, so that their k̂ means nothing, have −∞. Other methods have no k̂.
    `warning` is set where any datum is unreliable, and where quadrature has not converged.

    Args:
        log_px: log p(x) of each datum, `[N]`, nats: a tensor, or an estimate of `log_likelihood`,
            `ais` or `quadrature`.
        khat: Pareto k̂ of each datum, `[N]`, for a tensor only.
        num_particles: K, for a tensor only; 0 if nothing was drawn.

    Returns:
        The ELPD data, with the dimension datum.

    Raises:
        DataError: For fewer than two data, values that are not finite, another number of k̂, or an
            object that is neither a tensor nor an estimate.
        ConfigError: For `khat` or `num_particles` beside an estimate, which has its own.

    References:
        Vehtari, Simpson, Gelman, Yao & Gabry 2024, Pareto smoothed importance sampling.

    >>> import arviz
    >>> good, bad = torch.linspace(-3.0, -1.0, 200), torch.linspace(-4.0, -1.0, 200)
    >>> table = arviz.compare({"elbo": to_elpd(bad), "dreg": to_elpd(good)})
    >>> table.index.tolist(), float(table.elpd_diff["elbo"])
    (['dreg', 'elbo'], -100.0)
    """
    import arviz_stats

    if isinstance(log_px, Tensor):
        values = _checked(log_px)
        diagnosis = _diagnosis_of_tensor(values, khat, num_particles)
    elif not isinstance(log_px, LikelihoodEstimate | AISEstimate | QuadratureEstimate):
        raise DataError(
            "an ELPD is of a tensor of log p(x), or of an estimate of it, not of a "
            f"{type(log_px).__name__}"
        )
    elif khat is not None or num_particles:
        raise ConfigError("khat and num_particles belong to a tensor; an estimate has its own")
    else:
        values, diagnosis = _checked(log_px.log_px), _diagnosis(log_px)
    # up to arviz_stats 1.0 the kind is a field, later a property of the class
    kind = {"kind": "held-out"} if "kind" in {f.name for f in fields(arviz_stats.ELPDData)} else {}
    return arviz_stats.ELPDData(
        **kind,
        elpd=float(values.sum()),
        se=math.sqrt(len(values) * values.var()),
        p=math.nan,
        n_data_points=len(values),
        scale="log",
        elpd_i=_per_datum(values),
        **diagnosis,
    )


def _diagnosis(log_px: Any) -> dict[str, Any]:
    """The fields of ELPD data that say how reliable an estimate is."""
    if isinstance(log_px, QuadratureEstimate):
        return _fields(0, not log_px.converged.all())
    unreliable = len(log_px.unreliable) > 0
    if isinstance(log_px, AISEstimate):
        return _fields(len(log_px.log_weights), unreliable)
    limit, bad = float(log_px.khat_limit.max()), np.zeros(len(log_px.log_px), dtype=bool)
    bad[_array(log_px.unreliable).astype(int)] = True
    tails = _array(log_px.smoothed.khat)
    tails = np.where(bad & ~(tails > limit), np.inf, tails)
    tails = np.where(~bad & ~(tails < limit), -np.inf, tails)
    return _fields(log_px.num_particles, unreliable, tails, limit)


def _diagnosis_of_tensor(
    values: np.ndarray, khat: Tensor | None, num_particles: int
) -> dict[str, Any]:
    if khat is None:
        return _fields(num_particles, False)
    if khat.shape != values.shape:
        raise DataError(f"there are {len(values)} data, but k̂ is of shape {list(khat.shape)}")
    tails = np.where(np.isnan(_array(khat)), np.inf, _array(khat))
    return _fields(num_particles, bool((tails > GOOD_K).any()), tails, GOOD_K)


def _fields(
    draws: int, warning: bool, khat: np.ndarray | None = None, limit: float | None = None
) -> dict[str, Any]:
    pareto_k = None if khat is None else _per_datum(khat)
    return {"n_samples": draws, "warning": warning, "pareto_k": pareto_k, "good_k": limit}


def _checked(log_px: Tensor) -> np.ndarray:
    """Values `[N]`, which are finite."""
    if log_px.dim() != 1 or len(log_px) < 2:
        raise DataError(
            "an ELPD is of log p(x) of two data or more, a tensor [N], not of shape "
            f"{list(log_px.shape)}"
        )
    bad = (~torch.isfinite(log_px)).nonzero().flatten()
    if len(bad):
        raise DataError(f"log p(x) of datum {int(bad[0])} is {log_px[bad[0]].item()}")
    return _array(log_px)


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()


def _per_datum(values: np.ndarray) -> Any:
    """Values `[N]` as a DataArray with the dimension datum."""
    from xarray import DataArray

    return DataArray(values, dims="datum", coords={"datum": np.arange(len(values))})
