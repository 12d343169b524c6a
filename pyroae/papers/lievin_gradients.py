"""Score-function gradients of the IWAE bound on a Gaussian and a Bernoulli latent."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyroae.evaluation.gradient_lab.measure import measure_slopes
from pyroae.objectives.base import ObjectiveBase
from pyroae.objectives.named import ovis, vimco
from pyroae.papers.moments import Moments, at_each_k
from pyroae.papers.rainforth_toy import RainforthToy
from pyroae.papers.tucker_moments import DATUM, MEAN

KS = (8, 16, 32, 64)

Estimators = Mapping[str, Callable[[int], ObjectiveBase]]

ESTIMATORS: Estimators = {"OVIS": ovis, "OVIS, γ = 1": partial(ovis, gamma=1.0), "VIMCO": vimco}


@dataclass(frozen=True)
class Sizes:
    """How many gradients are measured.

    Attributes:
        num_data: Equal data, each with its own parameter and independent gradients.
        replicates: Gradients of each of these data, at each K.
        seed: The seed of the draws.
    """

    num_data: int
    replicates: int
    seed: int = 0


class BernoulliLatent(nn.Module):
    """A program with one bit, and a guide of its own for each of N equal data.

        z ~ Bernoulli(½),   x|z ~ N(2 z, 1),   x = 2,   q = Bernoulli(logits = 0)

    The weights are w = p(x|z), and the posterior's logit is 2.

    Args:
        count: N.

    >>> BernoulliLatent(3).logit.shape
    torch.Size([3])
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(count, dtype=torch.float64))

    def model(self, x: Tensor) -> None:
        """Run p(z) p(x|z) as a Pyro program on x `[N]`."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full_like(x, 0.5)))
            pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        """Run q(z) as a Pyro program on x `[N]`."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.logit))


def exact_bernoulli(ks: Sequence[int]) -> Moments:
    """Return mean and variance of the gradient of the bit's logit, as sums over the number of ones.

        Σ_k (d_k − c_k) s_k,   s_k = z_k − ½,   Pr(n ones) = C(K, n) 2^−K,   S = Σ_j w_j
        OVIS:   d_k − c_k = −log(1 − ŵ_k) − (1 − γ) ŵ_k
        VIMCO:  d_k − c_k = log S − log(S − w_k + exp mean_{j≠k} log w_j) − ŵ_k

    Args:
        ks: The numbers of particles.

    Returns:
        Mean in nats and variance in nats², shape `[len(ks)]` each, by the names of `ESTIMATORS`.

    >>> mean, variance = exact_bernoulli((8,))["OVIS"]
    >>> f"{mean.item():.4f} {(mean / variance.sqrt()).item():.2f}"
    '0.0580 4.03'
    """
    columns: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in ESTIMATORS}
    for k in ks:
        ones = torch.arange(k + 1, dtype=torch.float64)
        log_choose = torch.lgamma(torch.tensor(k + 1.0, dtype=torch.float64))
        log_choose = log_choose - torch.lgamma(ones + 1) - torch.lgamma(k - ones + 1)
        share = (log_choose - k * math.log(2)).exp()
        for name, gradient in _gradients_of_bits(k, ones).items():
            mean = share @ gradient
            columns[name].append((mean, share @ (gradient - mean).square()))
    return {
        name: (torch.stack([mean for mean, _ in of_k]), torch.stack([v for _, v in of_k]))
        for name, of_k in columns.items()
    }


def _gradients_of_bits(k: int, ones: Tensor) -> dict[str, Tensor]:
    """Each gradient where `ones` of the K bits are 1: the log-weights are 0 for them and −2 else.

    Factors of the weights that are common to all cancel.
    """
    zeros, low = k - ones, -2.0
    total = ones + zeros * math.exp(low)
    gradients = {name: torch.zeros_like(ones) for name in ESTIMATORS}
    for count, log_w, score, mean in (
        (ones, 0.0, 0.5, zeros * low / (k - 1)),
        (zeros, low, -0.5, (zeros - 1) * low / (k - 1)),
    ):
        weight = math.exp(log_w) / total
        rest = (total - math.exp(log_w)).clamp_min(math.exp(low) * (k - 1))
        ovis_signal = -(rest / total).log()
        vimco_signal = total.log() - (rest + mean.exp()).log()
        gradients["OVIS"] += count * score * (ovis_signal - weight)
        gradients["OVIS, γ = 1"] += count * score * ovis_signal
        gradients["VIMCO"] += count * score * (vimco_signal - weight)
    return gradients


def measure_gaussian(
    sizes: Sizes, estimators: Estimators = ESTIMATORS, *, progress: bool = False
) -> Moments:
    """Measure the gradient of q's mean, in the model of `exact_moments`.

    Args:
        sizes: The numbers of data and gradients.
        estimators: The estimators.
        progress: Whether progress is shown.

    Returns:
        Mean and variance of each datum's gradient by estimator, `[N, len(KS)]`.
    """
    start = torch.full((sizes.num_data, 1), MEAN - DATUM / 2)
    toy = RainforthToy(torch.zeros(1), torch.full((1, 1), 0.5), start)
    x = torch.full((sizes.num_data, 1), DATUM)
    return _measure(toy, x, {"b": toy.b}, sizes, estimators, progress)


def measure_bernoulli(
    sizes: Sizes, estimators: Estimators = ESTIMATORS, *, progress: bool = False
) -> Moments:
    """Measure the gradient of the bit's logit.

    Args:
        sizes: The numbers of data and gradients.
        estimators: The estimators.
        progress: Whether progress is shown.

    Returns:
        Mean and variance of each datum's gradient by estimator, `[N, len(KS)]`.
    """
    toy = BernoulliLatent(sizes.num_data)
    x = torch.full((sizes.num_data,), 2.0, dtype=torch.float64)
    return _measure(toy, x, {"logit": toy.logit}, sizes, estimators, progress)


def _measure(
    toy: RainforthToy | BernoulliLatent,
    x: Tensor,
    parameters: Mapping[str, Tensor],
    sizes: Sizes,
    estimators: Estimators,
    progress: bool,
) -> Moments:
    curves = measure_slopes(
        toy.model,
        toy.guide,
        x,
        estimators,
        ks=KS,
        parameters=parameters,
        replicates=sizes.replicates,
        seed=sizes.seed,
        progress=progress,
    )
    return {name: at_each_k(groups["all"].statistics) for name, groups in curves.items()}
