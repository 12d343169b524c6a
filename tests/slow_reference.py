"""Log-weights, bounds and gradients straight from their definitions: a loop over data and
particles, no shape to get wrong.

Each datum of each particle is one run of the guide and one of the model, on a batch of that datum,
at recorded draws.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.transforms import Planar
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import kl_divergence

from tests.random_programs import FULL_SIZE, Programs

PARTICLES = "num_particles_vectorized"


class Recorder(Messenger):
    """Records what is drawn, run after run; trial runs, which are blocked, are not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, list[tuple[Tensor, bool]]] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and type(msg["fn"]).__name__ != "_Subsample":
            many = any(frame.name == PARTICLES for frame in msg["cond_indep_stack"])
            self.values.setdefault(msg["name"], []).append((msg["value"].detach(), many))

    def draws(self, num_particles: int) -> list[dict[str, Tensor]]:
        """The values of each particle in the last run of all."""
        found: list[dict[str, Tensor]] = [{} for _ in range(num_particles)]
        for name, values in self.values.items():
            last, many = values[-1]
            rows = list(last) if many else [value for value, _ in values[-num_particles:]]
            assert len(rows) == num_particles
            for of_particle, row in zip(found, rows, strict=True):
                of_particle[name] = row
        return found


class Fixed(Messenger):
    """Gives the latent sites of a run on one datum the values that they have in a run on all
    data.
    """

    def __init__(self, values: dict[str, Tensor], datum: int | None, data_dim: int) -> None:
        super().__init__()
        self.values, self.datum, self.data_dim = values, datum, data_dim

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["name"] not in self.values or _is_delta(msg["fn"]):
            return
        value, dims = self.values[msg["name"]], len(msg["fn"].batch_shape) + msg["fn"].event_dim
        while value.dim() > dims:
            assert value.shape[0] == 1
            value = value[0]
        if self.datum is not None and any(
            frame.name == "data" for frame in msg["cond_indep_stack"]
        ):
            value = value.narrow(len(msg["fn"].batch_shape) + self.data_dim, self.datum, 1)
        msg["value"], msg["done"] = value, True


@dataclass
class Terms:
    """Sums of log-densities of one datum and particle (or of the sites outside the plate), under
    masks and exponents.

    extra: factors and Deltas of the guide; observed: the factors alone. draws: log q of the guide's
    draws without masks and scales. divergence: the KL terms of the latent sites, in closed form
    where there is one. exponents: of the sites. exponent: of the draws, where they all have the
    same.
    """

    likelihood: Tensor
    prior: Tensor
    posterior: Tensor
    extra: Tensor
    observed: Tensor
    draws: Tensor
    divergence: Tensor
    exponents: list[float] = field(default_factory=list)

    @property
    def log_weight(self) -> Tensor:
        """log p(x, z) − log q(z|x), `[]`."""
        return self.likelihood + self.prior - self.posterior - self.extra


@dataclass
class Reference:
    """terms[k][n], and shared[k] of the sites outside the plate. scale: of each datum's bound."""

    terms: list[list[Terms]]
    shared: list[Terms]
    scale: list[float]

    @property
    def log_weight(self) -> Tensor:
        """`[K, N]`."""
        return self.of("log_weight")

    def of(self, name: str) -> Tensor:
        """One of the terms, `[K, N]`."""
        return torch.stack(
            [torch.stack([getattr(term, name) for term in row]) for row in self.terms]
        )

    @property
    def scales(self) -> Tensor:
        """`[N]`."""
        return torch.tensor(self.scale, dtype=torch.float64)

    def total(self, bound: Tensor) -> Tensor:
        """Σ_n scale_n F_n, with the mean of the terms outside the plate."""
        return (self.scales * bound).sum() + torch.stack(
            [term.log_weight for term in self.shared]
        ).mean()


def reference(
    programs: Programs, draws: list[dict[str, Tensor]], only: int | None = None
) -> Reference:
    """All terms of all data and particles, differentiable in the programs' parameters at fixed
    draws.

    only: of this datum, whose draws come from a run on it alone.
    """
    d = programs.description
    data: list[int | None] = [None] if d.plate == "none" else list(range(d.num_data))
    if only is not None:
        data = [only]
    with pyro.validation_enabled(False):
        runs = [
            [_runs(programs, values, n, alone=only is not None) for n in data] for values in draws
        ]
    plate = (
        float(FULL_SIZE) if d.plate == "subsampled" else 1.0
    )  # the scale of the plate in a run on one datum
    outside = {"shared"} if d.plate != "none" else set()
    exponents = [
        sorted({_exponent(site, plate) for site in _local(runs[0][i], outside)})
        for i in range(len(data))
    ]
    is_common = all(len(of_datum) == 1 for of_datum in exponents)
    common = [of_datum[0] if is_common else 1.0 for of_datum in exponents]
    base = FULL_SIZE / d.num_data if d.plate == "subsampled" else 1.0
    terms = [
        [
            _terms(run, plate * common[i], lambda name: name not in outside)
            for i, run in enumerate(row)
        ]
        for row in runs
    ]
    shared = [_terms(row[0], 1.0, lambda name: name in outside) for row in runs]
    return Reference(terms, shared, [base * c for c in common])


Runs = tuple[Any, Any]


def _runs(
    programs: Programs, values: dict[str, Tensor], datum: int | None, *, alone: bool = False
) -> Runs:
    dim = programs.description.data_dim
    args = programs.args if datum is None else tuple(a[datum : datum + 1] for a in programs.args)
    guide = poutine.trace(Fixed(values, None if alone else datum, dim)(programs.guide)).get_trace(
        *args
    )
    seen = {name: site["value"] for name, site in _samples(guide) if not site["is_observed"]}
    model = poutine.trace(Fixed(seen, None, dim)(programs.model)).get_trace(*args)
    return guide, model


def _samples(trace: Any) -> list[tuple[str, dict[str, Any]]]:
    return [
        (name, site)
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample"
    ]


def _local(run: Runs, outside: set[str]) -> list[dict[str, Any]]:
    return [site for trace in run for name, site in _samples(trace) if name not in outside]


def _exponent(site: dict[str, Any], plate: float) -> float:
    return float(torch.as_tensor(site["scale"]).reshape(())) / plate


def _is_delta(fn: Any) -> bool:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, Delta)


def _log_prob(site: dict[str, Any]) -> Tensor:
    fn, value = site["fn"], site["value"]
    if (
        site["is_observed"] and value.is_floating_point()
    ):  # missing: masked, so any value that has a density will do
        value = torch.where(value.isnan(), 1.0, value)
    inner = fn.base_dist if type(fn).__name__ == "MaskedDistribution" else fn
    found = planar_log_prob(inner, value) if _is_planar(inner) else inner.log_prob(value)
    if inner is not fn:  # the distribution's own mask
        found = torch.where(torch.as_tensor(fn._mask), found, 0.0)
    return found


def _is_planar(fn: Any) -> bool:
    return any(isinstance(transform, Planar) for transform in getattr(fn, "transforms", []))


def planar_log_prob(fn: Any, value: Tensor) -> Tensor:
    """Of a planar flow z = x + û tanh(w·x + b): x is found by bisection, as Pyro's transform has no
    inverse.
    """
    (flow,) = fn.transforms
    bias, u, w = flow.bias, flow.u.detach(), flow.w.detach()
    inner = u @ w
    u_hat = u + (-1 + torch.nn.functional.softplus(inner) - inner) * w / w.square().sum()
    low, high = (torch.full(value.shape[:-1], edge, dtype=value.dtype) for edge in (-1e3, 1e3))
    for _ in range(200):
        middle = (low + high) / 2
        over = middle + (w @ u_hat) * torch.tanh(middle + bias.detach()) > value @ w
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    slope = torch.tanh(low + bias.detach())
    x = value - u_hat * slope[..., None]
    return fn.base_dist.log_prob(x) - torch.log1p((1 - slope**2) * (w @ u_hat))


def _masked(site: dict[str, Any], term: Tensor) -> Tensor:
    mask = site["mask"]
    return (
        term if mask is None else torch.where(torch.as_tensor(mask).expand(term.shape), term, 0.0)
    )


def _terms(run: Runs, scale: float, belongs: Callable[[str], bool]) -> Terms:
    guide, model = run
    zero = torch.zeros((), dtype=torch.float64)
    found = Terms(zero, zero, zero, zero, zero, zero, zero)
    of_model = {name: site for name, site in _samples(model) if not site["is_observed"]}
    of_guide = [name for name, site in _samples(guide) if not site["is_observed"]]
    in_order = list(of_model) == [name for name in of_guide if name in of_model]
    for name, site in _samples(model):
        if belongs(name):
            term = _exponent(site, scale) * _masked(site, _log_prob(site)).sum()
            if site["is_observed"]:
                found.likelihood = found.likelihood + term
            else:
                found.prior = found.prior + term
    for name, site in _samples(guide):
        if not belongs(name):
            continue
        density, exponent = _log_prob(site), _exponent(site, scale)
        term = exponent * _masked(site, density).sum()
        if site["is_observed"] or _is_delta(site["fn"]):
            found.extra = found.extra + term
            found.observed = found.observed + term * site["is_observed"]
        else:
            found.posterior = found.posterior + term
            unmasked = (
                site["fn"].base_dist
                if type(site["fn"]).__name__ == "MaskedDistribution"
                else site["fn"]
            )
            found.draws = found.draws + _log_prob({**site, "fn": unmasked}).sum()
            found.exponents.append(exponent)
        if not site["is_observed"]:
            p = of_model.get(name)
            found.divergence = found.divergence + _divergence(site, p, scale, in_order)
    return found


def _divergence(
    q: dict[str, Any], p: dict[str, Any] | None, scale: float, in_order: bool
) -> Tensor:
    """E_q [s_q log q − s_p log p] of one site."""
    at_draw = _exponent(q, scale) * _masked(q, _log_prob(q)).sum()
    if p is None:
        return at_draw
    of_p, of_q = _exponent(p, scale), _exponent(q, scale)
    if in_order and not _is_delta(q["fn"]) and p["mask"] is q["mask"]:
        try:
            found = of_p * _masked(p, kl_divergence(q["fn"], p["fn"])).sum()
            return (
                found
                if of_p == of_q
                else found - (of_q - of_p) * _masked(q, q["fn"].entropy()).sum()
            )
        except NotImplementedError:
            pass
    return at_draw - of_p * _masked(p, _log_prob(p)).sum()


def log_mean_exp(values: Tensor) -> Tensor:
    """log (1/K) Σ exp, `[K, N]` -> `[N]`."""
    return values.logsumexp(0) - math.log(len(values))


def bound_of(name: str, log_weight: Tensor, options: dict[str, Any]) -> Tensor:
    """A bound `[N]` of log-weights `[K, N]`, as its paper has it."""
    return {
        "elbo": _elbo,
        "iwae": log_mean_exp,
        "renyi": _renyi,
        "miwae": _miwae,
        "ciwae": _ciwae,
        "jvi": _jvi,
        "tvo": _tvo,
    }[name](log_weight, **options)


def _elbo(log_weight: Tensor) -> Tensor:
    return torch.stack(list(log_weight)).sum(0) / len(log_weight)


def _renyi(log_weight: Tensor, alpha: float = 0.5) -> Tensor:
    if alpha == -math.inf:
        return torch.stack([max(column) for column in log_weight.T])
    return log_mean_exp((1 - alpha) * log_weight) / (1 - alpha)


def _miwae(log_weight: Tensor, groups: int = 2) -> Tensor:
    size = len(log_weight) // groups
    parts = [log_mean_exp(log_weight[g * size : (g + 1) * size]) for g in range(groups)]
    return torch.stack(parts).sum(0) / groups


def _ciwae(log_weight: Tensor, beta: float = 0.5) -> Tensor:
    return beta * _elbo(log_weight) + (1 - beta) * log_mean_exp(log_weight)


def _jvi(log_weight: Tensor, order: int = 1) -> Tensor:
    """Over all subsets of the particles."""
    count = len(log_weight)
    total = torch.zeros(log_weight.shape[1], dtype=torch.float64)
    for j in range(order + 1):
        subsets = [
            log_mean_exp(log_weight[list(kept)]) for kept in combinations(range(count), count - j)
        ]
        sign = (-1) ** j * (count - j) ** order / (math.factorial(order - j) * math.factorial(j))
        total = total + sign * torch.stack(subsets).mean(0)
    return total


def _tvo(log_weight: Tensor) -> Tensor:
    betas = [0.0, *(0.01 ** (1 - s / 4) for s in range(4)), 1.0]
    total = torch.zeros(log_weight.shape[1], dtype=torch.float64)
    for beta, after in pairwise(betas):
        total = total + (after - beta) * ((beta * log_weight).softmax(0) * log_weight).sum(0)
    return total
