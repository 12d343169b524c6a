"""The rate–distortion curve of a model on each datum, from one annealing run."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyroae.config import AISSettings
from pyroae.evaluation.annealing.chain_summaries import COLUMNS, LEAST_ESS, summarized_steps
from pyroae.runtime.short_repr import Overview, Shown


@dataclass(frozen=True, repr=False)
class RateDistortion(Shown):
    """Rate and distortion along π_β ∝ p(z) p(x|z)^β for each datum, float64, in nats.

        D_β = −E_{π_β} log p(x|z),   R_β = KL(π_β ‖ p(z)) = −β D_β − log Z_β

    At β = 0 the rate is 0; at β = 1, π_1 is the posterior and −(R + D) is the estimate of log p(x)
    by annealing. B temperatures; errors are those of the chains, NaN for a single chain.

    In expectation the estimates (R̂, D̂) lie on or above the curve: the weighted chains are draws of
    some q(z|x) whose distortion is E D̂ and whose rate KL(q ‖ p(z)) is at most E R̂. At a given β,
    log Ẑ_β is too low and D̂ too high in expectation; both biases fall as 1/C.

    Attributes:
        betas: β, `[B]`, from 0 to 1: every temperature of the path, or 51 of them, equally spaced
            in the steps of the path.
        rate: R, `[B, N]`.
        distortion: D, `[B, N]`.
        rate_se: Standard error of the rate, `[B, N]`.
        distortion_se: Standard error of the distortion, `[B, N]`.
        log_z_se: Standard error of log Z_β, `[B, N]`; the error of the curve itself, as an error of
            the rate at a fixed distortion.
        rate_interval: 95 % interval of the rate, corrected for skewness, `[2, B, N]`.
        distortion_interval: 95 % interval of the distortion, `[2, B, N]`.
        ess: Effective sample size of the chains, (Σw)²/Σw², `[B, N]`, from 1 to C.

    References:
        Huang, Makhzani, Cao & Grosse 2020, Evaluating lossy compression rates of deep generative
        models.
        Alemi, Poole, Fischer, Dillon, Saurous & Murphy 2018, Fixing a broken ELBO.

    >>> from pyroae import AISSettings, ais, zoo
    >>> system, x = zoo.ppca(4, latent=2), torch.zeros(3, 4)
    >>> estimate = ais(system.model, None, x, settings=AISSettings(num_distributions=20), seed=0)
    >>> curve = estimate.rate_distortion
    >>> curve.rate.shape, curve.rate[0].tolist()
    (torch.Size([21, 3]), [0.0, 0.0, 0.0])
    >>> torch.testing.assert_close(-(curve.rate + curve.distortion)[-1], estimate.log_px)
    """

    betas: Tensor
    rate: Tensor
    distortion: Tensor
    rate_se: Tensor
    distortion_se: Tensor
    log_z_se: Tensor
    rate_interval: Tensor
    distortion_interval: Tensor
    ess: Tensor

    def _overview(self) -> Overview:
        temperatures, count = self.rate.shape
        rates, distortions = self.mean_rate, self.mean_distortion
        shown = sorted({round(i * (temperatures - 1) / 5) for i in range(6)})
        rows = [(f"{self.betas[i]:.3f}", f"{rates[i]:.2f}", f"{distortions[i]:.2f}") for i in shown]
        nll = f"R + D at β = 1: {(rates[-1] + distortions[-1]).item():.2f} nats"
        head = [f"N={count}", f"{temperatures} temperatures", nll]
        return Overview(head, rows, ("β", "rate R, nats", "distortion D, nats"), temperatures)

    @property
    def mean_rate(self) -> Tensor:
        """Mean of the rate over data, `[B]`, in nats per datum."""
        return self.rate.mean(1)

    @property
    def mean_distortion(self) -> Tensor:
        """Mean of the distortion over data, `[B]`, in nats per datum."""
        return self.distortion.mean(1)

    @property
    def mean_rate_se(self) -> Tensor:
        """Standard error of `mean_rate` as the mean of a sample of N data, `[B]`; NaN for N = 1.

        It includes the Monte-Carlo error.
        """
        return _of_sample(self.rate)

    @property
    def mean_distortion_se(self) -> Tensor:
        """Standard error of `mean_distortion` as the mean of a sample of N data, `[B]`."""
        return _of_sample(self.distortion)

    @property
    def mean_rate_error(self) -> Tensor:
        """Error of `mean_rate` for these N data, √(se² + bias²), `[B]`, from the chains alone.

        The bias of R̂ is β Cov(log Ẑ, D̂) + ½ Var(log Ẑ) to first order in 1/C.
        """
        bias = self._beta * self._covariance + 0.5 * self.log_z_se.square()
        return _of_chains(self.rate_se, bias)

    @property
    def mean_distortion_error(self) -> Tensor:
        """Error of `mean_distortion` for these N data, √(se² + bias²), `[B]`.

        The bias of D̂ is −Cov(log Ẑ, D̂) to first order in 1/C.
        """
        return _of_chains(self.distortion_se, -self._covariance)

    @property
    def curve_error(self) -> Tensor:
        """Error of the mean curve for these N data, `[B]`, as an error of R at a fixed D.

        As dR = −β dD along the curve, this is the error of mean log Ẑ_β, √(se² + bias²), where the
        bias of log Ẑ is −½ Var(log Ẑ) to first order.
        """
        return _of_chains(self.log_z_se, -0.5 * self.log_z_se.square())

    @property
    def unreliable(self) -> Tensor:
        """Where one chain has all the weight: an ESS below 2, `[B, N]`, boolean."""
        return ~(self.ess >= LEAST_ESS)

    @property
    def _beta(self) -> Tensor:
        return self.betas[:, None]

    @property
    def _covariance(self) -> Tensor:
        """Cov(log Ẑ, D̂) over chains: Var R̂ = β² Var D̂ + Var log Ẑ + 2β Cov(log Ẑ, D̂)."""
        known = (self._beta * self.distortion_se).square() + self.log_z_se.square()
        twice = (self.rate_se.square() - known) / (2 * self._beta)
        return torch.where(self._beta > 0, twice, 0.0)


def curve_of(summaries: Tensor, settings: AISSettings) -> RateDistortion:
    """Make the curve of the summaries that the chains of all data left along the path.

    Args:
        summaries: The columns of `summarize`, `[B, N, 10]`.
        settings: The path.

    Returns:
        The curve of each datum.
    """
    betas = settings.betas
    steps = summarized_steps(settings.num_distributions)
    of = dict(zip(COLUMNS, summaries.unbind(-1), strict=True))
    return RateDistortion(
        betas=torch.tensor([betas[step] for step in steps], dtype=torch.float64),
        rate_interval=torch.stack([of.pop("rate_low"), of.pop("rate_high")]),
        distortion_interval=torch.stack([of.pop("distortion_low"), of.pop("distortion_high")]),
        **of,
    )


def _of_sample(values: Tensor) -> Tensor:
    """The standard error of the mean of a sample of data, of `[B, N]`."""
    count = values.shape[1]
    return values.std(1) / count**0.5 if count > 1 else torch.full_like(values[:, 0], torch.nan)


def _of_chains(se: Tensor, bias: Tensor) -> Tensor:
    """√(se² + bias²) of a mean over data, of standard errors and biases `[B, N]` of each datum."""
    return torch.hypot(se.square().sum(1).sqrt() / se.shape[1], bias.mean(1))
