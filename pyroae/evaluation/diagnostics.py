"""Split the bound into distortion, rate and the KL of each latent unit; count the active units."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.distributions import Delta, MaskedDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import Categorical, Independent, TransformedDistribution, kl_divergence

from pyroae.distributions import OneHots, marginals
from pyroae.errors import DataError
from pyroae.evaluation.blocks import Data, blocks, rows_of
from pyroae.evaluation.checks import check_terms, filled
from pyroae.programs.arguments import structure_of
from pyroae.programs.context import evaluating
from pyroae.programs.masks import mask_of
from pyroae.programs.paired_traces import Traces, log_density
from pyroae.programs.sites import Program, Site, base_distribution
from pyroae.programs.traces import run
from pyroae.runtime.randomness import fork_random
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import number, text_of, with_error
from pyroae.weights import reduce_log_weights

DRAWS_OF_MEAN = 64
"""The number of draws from each particle's q for a mean without closed form."""


@dataclass(frozen=True, repr=False)
class Diagnostics(Shown):
    """The parts of the bound, float64, in nats; U is the number of latent units.

    A unit is one element of z, those of nested plates included, or one categorical variable.

    Attributes:
        distortion: −E_q log p(x|z) of each datum, `[N]`, nats.
        rate: E_q[log q(z|x) − log p(z)] of each datum, `[N]`, nats; for a Delta guide −log p(z),
            the MAP penalty.
        kl_per_unit: The mean over the data of KL(q(z_j|x) ‖ p(z_j)) of each unit, `[U]`, nats. With
            the total correlation the sum is the mean rate. NaN for the units of a site for which
            it is unknown; `undefined` says why.
        activity: Var_x(E_q[z_j|x]) of each unit, `[U]`, summed over the states of a categorical
            variable. The variance is over the data for which the unit is not masked.
        threshold: The activity above which a unit is active.
        total_correlation: KL(q(z|x) ‖ Π_j q(z_j|x)), the mean over the data and the sum over the
            sites, `[]`, nats: 0 where q is a product over its units; NaN where it is unknown.
        undefined: For each site without a KL per unit, a sentence that says why.
        site: The name of the site of each unit, `[U]`.
        rate_per_site: E_q[log q − log p] of each site, nats; in expectation they add up to the
            rate. Where the guide draws a site's parents after it, this is no divergence and may be
            negative.

    References:
        Watanabe 1960, Information theoretical analysis of multivariate correlation, for the total
            correlation.
        Alemi et al. 2018, Fixing a broken ELBO, for rate and distortion.
        Burda, Grosse & Salakhutdinov 2016, Importance weighted autoencoders, for active units.
    """

    distortion: Tensor
    rate: Tensor
    kl_per_unit: Tensor
    activity: Tensor
    threshold: float
    total_correlation: Tensor | None = None
    undefined: tuple[str, ...] = ()
    site: tuple[str, ...] = ()
    rate_per_site: Mapping[str, float] = field(default_factory=dict)

    def _overview(self) -> Overview:
        count, units = len(self.rate), len(self.activity)
        active = f"{self.active_units} of {units}"
        rows = [
            ("rate R", f"{_average(self.rate)} per datum, E_q[log q(z|x) − log p(z)]"),
            ("distortion D", f"{_average(self.distortion)} per datum, −E_q log p(x|z)"),
            ("−ELBO", f"{_average(self.nelbo)} per datum, R + D"),
            ("active units", f"{active}, activity above {self.threshold:g}"),
            ("KL per unit", f"largest {_largest(self.kl_per_unit)} nats"),
        ]
        if len(self.rate_per_site) > 1:
            rows.append(("rate per site", f"{text_of(dict(self.rate_per_site))} nats"))
        rows += [("undefined", reason) for reason in self.undefined[:3]]
        return Overview(
            [f"N={count}", f"−ELBO {_average(self.nelbo)}", f"{active} units active"], rows
        )

    @property
    def nelbo(self) -> Tensor:
        """The negative ELBO of each datum, distortion + rate, `[N]`, nats."""
        return self.distortion + self.rate

    @property
    def active_units(self) -> int:
        """The number of units with Var_x(E_q[z_j|x]) above the threshold."""
        return int((self.activity > self.threshold).sum())

    @property
    def active_per_site(self) -> dict[str, int]:
        """The number of active units of each site, in the guide's order."""
        active = (self.activity > self.threshold).tolist()
        return {
            name: sum(a for a, site in zip(active, self.site, strict=True) if site == name)
            for name in dict.fromkeys(self.site)
        }


def _average(values: Tensor) -> str:
    """The mean of `[N]` with its error as that of a sample of N data."""
    count = len(values)
    error = (values.std() / count**0.5).item() if count > 1 else None
    return with_error(values.mean().item(), error, "nats")


def _largest(values: Tensor, count: int = 5) -> str:
    """The largest of `[U]`, with dots where there are more."""
    found = values[~values.isnan()].sort(descending=True).values
    shown = ", ".join(number(value, 3) for value in found[:count].tolist()) or "unknown"
    return f"{shown}, …" if len(found) > count else shown


def diagnose(
    model: Program,
    guide: Program,
    x: Data,
    *,
    num_particles: int = 10,
    threshold: float = 0.01,
    seed: int | None = None,
    **kwargs: Any,
) -> Diagnostics:
    """Compute rate, distortion, KL per latent unit and active units of any program.

        −ELBO = distortion + rate = −E_q log p(x|z) + E_q[log q(z|x) − log p(z)]

    Distortion and rate are means over draws. The KL of a unit is in closed form if torch has one
    and the guide draws the site's parents before it; otherwise it is a mean over the draws. Where
    the elements of z are dependent under q(z|x), it is that of the marginals, known for Gaussians
    and mixtures of diagonal Gaussians; together with the total correlation they are the rate:

        E_q[log q(z|x) − log p(z)] = Σ_j KL(q(z_j|x) ‖ p(z_j)) + KL(q(z|x) ‖ Π_j q(z_j|x))

    E_q[z|x] is in closed form or a mean over draws, whose variance is subtracted from the activity.
    Units of several latent sites are concatenated in the guide's order.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The Pyro program q(z|x).
        x: The data `[N, ...]`, or the arguments of model and guide as in `log_likelihood`.
        num_particles: K, the number of draws per datum.
        threshold: The activity above which a unit is active.
        seed: The seed of the draws. The state of the caller's generators is restored.
        kwargs: Keyword arguments of the programs.

    Returns:
        The parts of the bound, `[N]` in nats, and the figures of each unit, `[U]`.

    Raises:
        ProgramError: For scales and masks under which the parts are not those of a bound, with the
            name of the site.
        DataError: For a datum whose bound is nan.

    References:
        Alemi et al. 2018, Fixing a broken ELBO.
        Burda, Grosse & Salakhutdinov 2016, Importance weighted autoencoders.

    >>> from pyroae import zoo
    >>> system = zoo.vae(4, latent=2)
    >>> result = diagnose(system.model, system.guide, torch.zeros(3, 4))
    >>> result.kl_per_unit.shape, result.active_units  # equal data activate no unit
    (torch.Size([2]), 0)
    """
    structure = structure_of(x, kwargs, model)
    model, guide, args = structure(model), structure(guide), structure.tensors
    distortion, rate, units = [], [], []
    check_terms(model, guide, args, "parts")
    with evaluating(model, guide), fork_random(args[0].device, seed):
        for block in blocks(args, max(1, rows_of(args) // num_particles)):
            traces = filled(run(model, guide, block, {}, num_particles))
            weights = reduce_log_weights(traces)
            distortion.append(-weights.log_lik.double().mean(0))
            rate.append((weights.log_post - weights.log_prior).double().mean(0))
            _check(distortion[-1] + rate[-1], sum(map(len, rate[:-1])))
            names = _common(traces)
            units.append([_units(traces, name, len(block[0])) for name in names])
    kl, activity, correlation, rates, undefined = zip(
        *map(_joined, zip(*units, strict=True)), strict=True
    )
    return Diagnostics(
        torch.cat(distortion).cpu(),
        torch.cat(rate).cpu(),
        torch.cat(kl).cpu(),
        torch.cat(activity).cpu(),
        threshold,
        torch.stack(correlation).sum().cpu(),
        tuple(filter(None, undefined)),
        tuple(name for name, part in zip(names, kl, strict=True) for _ in part),
        dict(zip(names, rates, strict=True)),
    )


def _check(nelbo: Tensor, first: int) -> None:
    """Refuse a bound that is nan; `first` is the index of the first of these data."""
    if nelbo.isnan().any():
        n = first + int(nelbo.isnan().nonzero()[0])
        raise DataError(
            f"the bound of datum {n} is nan: the model or the guide has no density for it"
        )


@dataclass(frozen=True)
class _Units:
    """The figures of the units of one site in one block.

    kl: `[N, U]`, the mean over particles, 0 where masked. mean: `[N, U, S]`, E_q of each state (S
    is the number of categories, else 1). noise: `[N, U, S]`, the Monte-Carlo variance of `mean`.
    unmasked: `[N, U]`. correlation: `[N]`, the total correlation. log_ratio: `[N]`, the mean over
    particles of log q − log p. undefined: why the KL is nan.
    """

    kl: Tensor
    mean: Tensor
    noise: Tensor
    unmasked: Tensor
    correlation: Tensor
    log_ratio: Tensor
    undefined: str | None


def _common(traces: Traces) -> list[str]:
    """Latent sites of both programs, in the guide's order."""
    of_model = {name for name, _ in traces.sites(traces.model, observed=False)}
    return [name for name, _ in traces.sites(traces.guide, observed=False) if name in of_model]


def _joined(parts: tuple[_Units, ...]) -> tuple[Tensor, Tensor, Tensor, float, str | None]:
    """KL and activity of a site's units over all data, `[U]` each, total correlation and rate."""
    kl, mean, noise, unmasked, correlation, log_ratio = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("kl", "mean", "noise", "unmasked", "correlation", "log_ratio")
    )
    rates = kl.sum(1) + correlation if parts[0].undefined is None else log_ratio
    weight = (unmasked / unmasked.sum(0).clamp_min(1)).unsqueeze(-1)
    mean, noise = (torch.where(unmasked.unsqueeze(-1), t, 0.0) for t in (mean, noise))
    spread = ((mean - (weight * mean).sum(0)).square() * weight).sum(0)
    count = unmasked.sum(0).clamp_min(1).unsqueeze(-1)
    activity = spread - (1 - 1 / count) * (weight * noise).sum(0)
    return (
        kl.mean(0),
        activity.clamp_min(0).sum(-1),
        correlation.mean(),
        float(rates.mean()),
        parts[0].undefined,
    )


def _units(traces: Traces, name: str, num_data: int) -> _Units:
    p, q = traces.model.nodes[name], traces.guide.nodes[name]
    kl, correlation, undefined = _kl(traces, name, p, q)
    mean, noise = _mean(q)
    mask = mask_of(name, q)
    kl = _rows(traces, q, kl)
    count, states = kl.shape[2], mean.shape[-1]
    mean, noise = (_rows(traces, q, t).unflatten(2, (-1, states)) for t in (mean, noise))
    if isinstance(q["fn"], OneHots):
        mean, noise = (t.reshape(*t.shape[:2], count, -1) for t in (mean, noise))
    unmasked = torch.ones(1, num_data, count, dtype=torch.bool, device=kl.device)
    if mask is not None:
        of_plates = _rows(traces, q, mask).unsqueeze(-1)
        unmasked = of_plates.expand(*of_plates.shape[:3], count // of_plates.shape[2]).reshape(
            *of_plates.shape[:2], count
        )
    between = mean.var(0) / len(mean) if len(mean) > 1 else noise[0]
    shape = (num_data, *kl.shape[2:])
    log_ratio = _masked((log_density(name, q) - log_density(name, p)).double(), mask)
    return _Units(
        kl.mean(0).expand(shape),
        mean.mean(0).expand(*shape, -1),
        between.expand(*shape, -1),
        unmasked[0].expand(shape),
        _rows(traces, q, correlation).sum(2).mean(0).expand(num_data),
        _rows(traces, q, log_ratio).sum(2).mean(0).expand(num_data),
        undefined,
    )


def _kl(traces: Traces, name: str, p: Site, q: Site) -> tuple[Tensor, Tensor, str | None]:
    """The KL of each unit in the shape of the site, the total correlation, and why they are nan.

    The total correlation has the batch shape of the site. Both are 0 where masked.
    """
    of_q, of_p, mask = _without_mask(q["fn"]), _without_mask(p["fn"]), mask_of(name, q)
    if isinstance(base_distribution(of_q), Delta):
        return *_unknown(q), f"the guide's site '{name}' is a Delta, which has no density"
    log_ratio = log_density(name, q) - log_density(name, p)
    product = of_q if _elementwise(of_q, q["value"]) is not None else marginals(of_q)
    if math.prod(of_q.event_shape) == 1:
        kl = _closed(of_q, of_p) if _in_order(traces, name) else None
        kl = log_ratio.reshape(*log_ratio.shape, *[1] * len(of_q.event_shape)) if kl is None else kl
        return _masked(kl.double(), mask), torch.zeros_like(log_ratio, dtype=torch.float64), None
    if product is None:
        return *_unknown(q), _dependent("guide", name, of_q, " and its marginals are unknown")
    other = _elementwise(of_p, q["value"])
    if other is None:
        return *_unknown(q), _dependent(
            "model", name, of_p, ", so that its units have no prior of their own"
        )
    kl = _closed(product, of_p) if _in_order(traces, name) else None
    if kl is None:
        one = _elementwise(product, q["value"])
        assert one is not None
        kl = one - other
    correlation = _correlation(of_q, product, q["value"])
    return _masked(kl.double(), mask), _masked(correlation.double(), mask), None


def _unknown(q: Site) -> tuple[Tensor, Tensor]:
    """A KL per unit and a total correlation that are nan."""
    nan = torch.full_like(q["value"], math.nan, dtype=torch.float64)
    return nan, nan.new_full(q["fn"].batch_shape, math.nan)


def _dependent(program: str, name: str, fn: Any, words: str) -> str:
    kind = type(base_distribution(fn)).__name__
    return f"the density of the {program}'s site '{name}' ({kind}) is no product over units{words}"


def _correlation(of_q: Any, product: Any, value: Tensor) -> Tensor:
    """KL(q ‖ Π_j q_j) in the batch shape of q: in closed form, or log q − Σ_j log q_j at draws."""
    if product is of_q:
        return value.new_zeros(of_q.batch_shape)
    try:
        return product.entropy() - of_q.entropy()
    except NotImplementedError:
        return of_q.log_prob(value) - product.log_prob(value)


def _in_order(traces: Traces, name: str) -> bool:
    """Whether the guide, like the model, draws the model's earlier sites before this one.

    Otherwise the parameters of p depend on draws which themselves depend on this site, and
    E_q[log q − log p] is not the mean of KL(q ‖ p) over these draws.
    """
    of_model = [other for other, _ in traces.sites(traces.model, observed=False)]
    of_guide = [other for other, _ in traces.sites(traces.guide, observed=False)]
    return set(of_model[: of_model.index(name)]) <= set(of_guide[: of_guide.index(name)])


def _closed(of_q: Any, of_p: Any) -> Tensor | None:
    """KL(q ‖ p) of each unit in the shape of the site; None where torch has none per unit."""
    if isinstance(of_q, OneHots) and isinstance(of_p, OneHots):
        return kl_divergence(of_q.variables, of_p.variables)
    while isinstance(of_q, Independent) and isinstance(of_p, Independent):
        of_q, of_p = of_q.base_dist, of_p.base_dist
    if of_q.event_shape or of_p.event_shape:
        return None
    try:
        return kl_divergence(of_q, of_p)
    except NotImplementedError:
        return None


def _elementwise(fn: Any, value: Tensor) -> Tensor | None:
    """Log-density of each unit in the shape of the value; None if it is not a sum over units."""
    if isinstance(fn, OneHots):
        return fn.variables.log_prob(value.unflatten(-1, fn.logits.shape[-2:]))
    if not fn.event_shape:
        return fn.log_prob(value)
    if isinstance(fn, Independent | ExpandedDistribution):
        return _elementwise(fn.base_dist, value)
    if isinstance(fn, TransformedDistribution) and all(
        t.domain.event_dim == t.codomain.event_dim == 0 for t in fn.transforms
    ):
        total: Tensor | float = 0.0
        for transform in reversed(fn.transforms):
            before = transform.inv(value)
            total = total - transform.log_abs_det_jacobian(before, value)
            value = before
        base = _elementwise(fn.base_dist, value)
        return None if base is None else base + total
    return None


def _mean(q: Site) -> tuple[Tensor, Tensor]:
    """E_q[z] of each particle and its Monte-Carlo variance, shaped as the site, plus states."""
    fn = _without_mask(q["fn"])
    if isinstance(fn, OneHots):
        mean = fn.mean.double()
    elif isinstance(fn, Categorical):
        mean = fn.probs.double()
        return mean, torch.zeros_like(mean)
    else:
        try:
            mean = fn.mean.double()
        except NotImplementedError:
            mean = torch.full((), math.nan)
        if not mean.isfinite().all():
            draws = fn.sample((DRAWS_OF_MEAN,)).double()
            return draws.mean(0).unsqueeze(-1), (draws.var(0) / DRAWS_OF_MEAN).unsqueeze(-1)
    return mean.unsqueeze(-1), torch.zeros_like(mean).unsqueeze(-1)


def _masked(values: Tensor, mask: Tensor | None) -> Tensor:
    """Values of a site's batch shape, and any dimensions to its right, 0 where masked."""
    return (
        values
        if mask is None
        else torch.where(mask.reshape(*mask.shape, *[1] * (values.dim() - mask.dim())), values, 0.0)
    )


def _without_mask(fn: Any) -> Any:
    return _without_mask(fn.base_dist) if isinstance(fn, MaskedDistribution) else fn


def _rows(traces: Traces, site: Site, values: Tensor) -> Tensor:
    """Values of a site's batch shape, and any dimensions to its right, as `[K, N, units]`."""
    batch = len(site["fn"].batch_shape)
    data = None if traces.plate is None else batch + traces.plate.dim
    values = values.unsqueeze(0) if data is None else values.movedim(data, 0)
    values = values.movedim(1, 0) if traces.num_particles > 1 else values.unsqueeze(0)
    return values.reshape(*values.shape[:2], -1)
