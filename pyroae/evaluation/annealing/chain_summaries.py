"""Rate and distortion at one temperature of an annealing path, with their errors over chains.

    π_β = p(z) p(x|z)^β / Z_β
    D_β = −E_{π_β} log p(x|z),   R_β = KL(π_β ‖ p(z)) = −β D_β − log Z_β

The rate follows from log π_β / p(z) = β log p(x|z) − log Z_β. Nothing in this module synchronizes
with the device. Shapes: C chains, N data. All values are in nats.
"""

import math

import torch
from torch import Tensor

LEAST_ESS = 2.0
"""Smallest effective sample size of the chains of a datum that is reliable."""


MOST_STEPS = 50
"""Largest number of intervals between the temperatures at which chains are summarized."""


COLUMNS = (
    "rate",
    "rate_se",
    "rate_low",
    "rate_high",
    "distortion",
    "distortion_se",
    "distortion_low",
    "distortion_high",
    "log_z_se",
    "ess",
)
"""What `summarize` returns, in this order."""


def summarized_steps(num_distributions: int) -> list[int]:
    """Choose the steps of a path after which the chains are summarized.

    Args:
        num_distributions: T, the number of steps from β = 0 to β = 1.

    Returns:
        All steps from 0 to T where T is at most `MOST_STEPS`, otherwise `MOST_STEPS` + 1 of them,
        equally spaced, with both ends.

    >>> summarized_steps(3), len(summarized_steps(1000)), summarized_steps(1000)[-2:]
    ([0, 1, 2, 3], 51, [980, 1000])
    """
    pieces = min(num_distributions, MOST_STEPS)
    return [round(i * num_distributions / pieces) for i in range(pieces + 1)]


def summarize(log_weight: Tensor, log_lik: Tensor, beta: float) -> Tensor:
    """Estimate rate and distortion at β from weighted chains.

        log Ẑ = log (1/C) Σ_c w_c,   D̂ = −Σ_c w_c log p(x|z_c) / Σ_c w_c,   R̂ = −β D̂ − log Ẑ

    Standard errors follow from the delta method: the error of log Ẑ is the mean over chains of
    w_c/Ẑ − 1, that of D̂ the mean of (w_c/Ẑ)(d_c − D̂), where d = −log p(x|z), and that of R̂ the mean
    of −β times the latter minus the former. The intervals correct for the skewness of these terms.

    Args:
        log_weight: log w up to β, `[C, N]`, float64.
        log_lik: log p(x|z) of the chains that the weights belong to, `[C, N]`.
        beta: β.

    Returns:
        The columns `COLUMNS` of each datum, `[N, 10]`, float64; errors are NaN for C = 1.

    References:
        Huang, Makhzani, Cao & Grosse 2020, Evaluating lossy compression rates of deep generative
        models.

    >>> log_lik = torch.tensor([[-1.0], [-3.0]])
    >>> summarize(torch.zeros(2, 1).double(), log_lik, 0.0)[0, [0, 4]].tolist()  # R and D
    [0.0, 2.0]
    """
    log_z = log_weight.logsumexp(0) - math.log(len(log_weight))
    share = (log_weight - log_z).exp()
    cost = torch.where(share > 0, -log_lik.double(), 0.0)
    distortion = (share * cost).mean(0)
    of_z, of_distortion = share - 1, share * (cost - distortion)
    rate, of_rate = -beta * distortion - log_z, -beta * of_distortion - of_z
    if beta == 0:  # where D may be infinite
        rate, of_rate = torch.zeros_like(rate), torch.zeros_like(of_rate)
    columns = [
        *_with_interval(rate, of_rate),
        *_with_interval(distortion, of_distortion),
        _standard_error(of_z),
        len(share) / share.square().mean(0),
    ]
    return torch.stack(columns, -1)


def student_quantile(num_chains: int) -> float:
    """Return the 97.5 % quantile of Student's t with C − 1 degrees of freedom.

    Args:
        num_chains: C.

    Returns:
        The quantile; NaN for C = 1.

    >>> round(student_quantile(16), 3)
    2.131
    """
    from scipy.special import stdtrit

    return float(stdtrit(num_chains - 1, 0.975)) if num_chains > 1 else math.nan


def _with_interval(value: Tensor, terms: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A value, its standard error and its 95 % interval by Hall's transformation, `[N]` each.

    terms: What each chain contributes to the error of the value, `[C, N]`, with mean 0.

        t = (value − truth) / se,   g(t) = t + γ t²/3 + γ² t³/27 + γ/6,   γ = skewness / √C
    """
    count, se = len(terms), _standard_error(terms)
    spread = terms.square().mean(0).sqrt()
    skewness = (terms / spread).pow(3).mean(0).nan_to_num(0.0)
    gamma = skewness / math.sqrt(count)
    gamma = torch.where(gamma.abs() < 1e-6, 1e-6, gamma)
    ends = []
    for quantile in (student_quantile(count), -student_quantile(count)):
        inside = 1 + gamma * (quantile - gamma / 6)
        ends.append(value - se * 3 / gamma * (inside.sign() * inside.abs() ** (1 / 3) - 1))
    return value, se, ends[0], ends[1]


def _standard_error(terms: Tensor) -> Tensor:
    """The standard error of the mean of `[C, N]` with mean 0; NaN for C = 1."""
    count = len(terms)
    scale = 1 / (count * (count - 1)) if count > 1 else math.nan
    return (terms.square().sum(0) * scale).sqrt()
