"""Impute missing values by self-normalized importance sampling of p(x_m | x_o)."""

from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor

from pyroae.autoencoder import Autoencoder
from pyroae.errors import ConfigError, DataError
from pyroae.evaluation.blocks import CHUNK, Data, arguments_of, blocks
from pyroae.evaluation.checks import check_program
from pyroae.likelihoods import Observed
from pyroae.programs.context import evaluating
from pyroae.programs.traces import run
from pyroae.runtime.progress import Progress
from pyroae.runtime.randomness import fork_random
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import number, percent
from pyroae.weights import reduce_log_weights


@dataclass(frozen=True, repr=False)
class Imputation(Shown):
    """Data whose missing values are filled.

    Attributes:
        x: The data, `[N, d]`: observed values as they were, missing ones at E[x_m | x_o], or of
            codes of categories at the most probable code.
        se: The standard error of an imputed mean by importance sampling, `[N, d]`, in units of x; 0
            at observed values, NaN at codes.
        low: The 2.5 % quantile of p(x_m | x_o) `[N, d]`; the value itself where it is observed, NaN
            at codes.
        high: The 97.5 % quantile, likewise.
        draws: Multiple imputations `[M, N, d]`: each is a draw from p(x_m | x_o).
        is_missing: Which values were missing, `[N, d]`.
        ess: The effective number of draws of z of each datum, `[N]`.

    References:
        Mattei & Frellsen 2019, MIWAE: Deep Generative Modelling and Imputation of Incomplete Data
            Sets.
        Rubin 1987, Multiple Imputation for Nonresponse in Surveys.
    """

    x: Tensor
    se: Tensor
    low: Tensor
    high: Tensor
    draws: Tensor
    is_missing: Tensor
    ess: Tensor

    def _overview(self) -> Overview:
        (count, features), missing = self.x.shape, int(self.is_missing.sum())
        bad = len(self.unreliable)
        share = f"{percent(missing, count * features)} missing"
        rows = [
            ("missing", f"{missing} of {count * features} values"),
            ("unreliable", f"{bad} of {count} data, with an ESS below 10"),
            ("ESS", f"median {number(self.ess.nanmedian().item(), 3)}"),
            ("imputations", f"{len(self.draws)} draws of each missing value"),
        ]
        return Overview([f"N={count}", f"d={features}", share, f"{bad} data unreliable"], rows)

    @property
    def unreliable(self) -> Tensor:
        """Numbers of data with fewer than 10 effective draws: do not trust their imputation."""
        return (self.is_missing.any(-1) & ~(self.ess >= 10)).nonzero().flatten()


def impute(
    autoencoder: Autoencoder,
    x: Data,
    *,
    num_particles: int = 1000,
    num_imputations: int = 0,
    seed: int | None = None,
    progress: bool = False,
) -> Imputation:
    """Fill missing values by draws from the guide, weighted by what is observed.

        E[x_m | x_o] ≈ Σ_k ŵ_k E[x_m | z_k],   ŵ_k ∝ p(x_o, z_k) / q(z_k | x_o)

    Quantiles are those of draws x_m ~ p(x_m | z_k) with the weights ŵ_k. A multiple imputation
    draws z from z_1, …, z_K with these weights, then x_m.

    Args:
        autoencoder: A system that was made with `missing=True`.
        x: Data `[N, d]` or `[N, *shape]`, NaN where missing; with a condition the pair (x, c).
        num_particles: K, draws of z for each datum.
        num_imputations: M, the number of multiple imputations.
        seed: The seed of the draws. The state of the caller's generators is restored.
        progress: Whether to show the progress.

    Returns:
        The filled data on the CPU, float64, with errors, intervals and multiple imputations.

    Raises:
        ConfigError: The system was not made for missing values, or a number is too small.
        UndefinedLikelihoodError: The guide has no density, or the prior is improper.
        DataError: A value is infinite, or the weights of a datum are not finite.

    References:
        Mattei & Frellsen 2019, MIWAE: Deep Generative Modelling and Imputation of Incomplete Data
            Sets.

    >>> from pyroae import zoo
    >>> vae = zoo.vae(4, latent=2, missing=True)
    >>> found = impute(vae, torch.tensor([[0.0, torch.nan, 1.0, 1.0]]), seed=0)
    >>> found.x.shape, 0 < found.x[0, 1] < 1, found.x[0, 2:].tolist()
    (torch.Size([1, 4]), tensor(True), [1.0, 1.0])
    """
    if not isinstance(autoencoder, Autoencoder) or not autoencoder.missing:
        raise ConfigError(
            "impute takes an autoencoder that was made for missing values, with missing=True"
        )
    for name, count, least in (
        ("particles", num_particles, 2),
        ("imputations", num_imputations, 0),
    ):
        if count < least:
            raise ConfigError(f"the number of {name} must be at least {least}, not {count}")
    args = arguments_of(x)
    args = (autoencoder.flat(args[0]), *args[1:])
    if args[0].isinf().any():
        raise DataError("the data hold infinite values: a missing value is NaN")
    check_program(autoencoder.model, autoencoder.guide, tuple(a[:1] for a in args))
    size = max(1, CHUNK // (num_particles * autoencoder.features))
    parts = []
    with (
        evaluating(autoencoder),
        fork_random(args[0].device, seed),
        torch.no_grad(),
        Progress("imputing", len(args[0]), progress) as bar,
    ):
        for block in blocks(args, size):
            parts.append(_imputed(autoencoder, block, num_particles, num_imputations))
            bar.update(sum(len(part[0]) for part in parts))
    *columns, draws = zip(*parts, strict=True)
    filled, se, low, high, ess = (torch.cat(part).cpu() for part in columns)
    is_missing = args[0].isnan().cpu()
    return Imputation(filled, se, low, high, torch.cat(draws, 1).cpu(), is_missing, ess)


def _imputed(
    system: Autoencoder, block: tuple[Tensor, ...], num_particles: int, num_imputations: int
) -> tuple[Tensor, ...]:
    """Filled data, errors, quantiles, ESS and multiple imputations of one block."""
    traces = run(system.model, system.guide, block, {}, num_particles)
    log_weight = reduce_log_weights(traces).log_weight.double()
    if not log_weight.isfinite().any(0).all():
        raise DataError("the importance weights of a datum are not finite")
    weight = log_weight.softmax(0)
    p_x = _whole(traces.model.nodes["x"]["fn"]).expand(log_weight.shape)
    drawn, x = p_x.sample().double(), block[0].double()
    is_missing, is_code = x.isnan(), system.likelihood.codes(system.features).to(x.device)
    means = torch.where(is_code, drawn, p_x.mean.double())
    mean = (weight.unsqueeze(-1) * means).sum(0)
    mean[:, is_code] = _most_probable(drawn[..., is_code], weight)
    se = (weight.square().unsqueeze(-1) * (means - mean).square()).sum(0).sqrt()
    low, high = _quantiles(drawn, weight, (0.025, 0.975))
    filled = [torch.where(is_missing, value, x) for value in (mean, low, high)]
    se = torch.where(is_missing, se, 0.0)
    for values in (se, *filled[1:]):
        values[is_missing & is_code] = torch.nan
    draws = x.new_empty(0, *x.shape)
    if num_imputations:
        chosen = torch.multinomial(weight.t(), num_imputations, replacement=True)
        rows = torch.arange(len(x), device=x.device)
        draws = torch.where(is_missing, drawn[chosen.t(), rows], x)
    return filled[0], se, filled[1], filled[2], 1 / weight.square().sum(0), draws


def _whole(fn: Any) -> Any:
    """The distribution of all features of x."""
    while isinstance(fn, MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return fn.whole if isinstance(fn, Observed) else fn


def _most_probable(codes: Tensor, weight: Tensor) -> Tensor:
    """The code `[n, d]` with the largest total weight among codes `[K, n, d]`."""
    if not codes.shape[-1]:
        return codes[0]
    totals = torch.stack(
        [((codes == code) * weight.unsqueeze(-1)).sum(0) for code in range(int(codes.max()) + 1)]
    )
    return totals.argmax(0).to(codes.dtype)


def _quantiles(values: Tensor, weight: Tensor, levels: tuple[float, ...]) -> list[Tensor]:
    """Weighted quantiles over particles of values `[K, n, d]`, each `[n, d]`."""
    ordered, order = values.sort(0)
    weights = weight.unsqueeze(-1).expand_as(values).gather(0, order).cumsum(0)
    return [
        ordered.gather(0, (weights < level).sum(0, keepdim=True).clamp_max(len(values) - 1))[0]
        for level in levels
    ]
