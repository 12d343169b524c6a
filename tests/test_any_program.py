"""Any program: what comes back is right, by a slow reference, or it is refused in one sentence that
names a site.

`PYROAE_PROGRAMS` is the number of programs: 50, and 5,000 in `make study`.
"""

import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable
from itertools import product
from typing import Any
from zlib import crc32

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from pyroae.config import AISSettings
from pyroae.errors import ProgramError, PyroaeError
from pyroae.evaluation.adaptive_quadrature import quadrature
from pyroae.evaluation.annealing.bounds import ais
from pyroae.evaluation.diagnostics import diagnose
from pyroae.evaluation.importance.likelihood import log_likelihood
from pyroae.evaluation.importance.proposals import Local
from pyroae.evaluation.inference_gaps import gaps
from pyroae.evaluation.mutual_information import information
from pyroae.inference_data import to_datatree
from pyroae.objectives import parse_objective
from pyroae.weights import log_weights
from tests.random_gaussians import Gaussian, GaussianPrograms, gaussians
from tests.random_programs import Description, Latent, Programs, descriptions
from tests.slow_reference import Recorder, Reference, bound_of, log_mean_exp, reference

pytestmark = pytest.mark.usefixtures("float64")

COUNT = int(os.environ.get("PYROAE_PROGRAMS", "50"))
LOOPED = "the particles are run sequentially"
MANY = settings(
    max_examples=COUNT,
    deadline=None,
    report_multiple_bugs=False,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
FEW = settings(MANY, max_examples=max(3, COUNT // 25))
BOUNDS: dict[str, tuple[str, dict[str, Any]]] = {
    "trace-elbo": ("elbo", {}),
    "stl": ("elbo", {}),
    "score": ("elbo", {}),
    "iwae": ("iwae", {}),
    "iwae-stl": ("iwae", {}),
    "dreg": ("iwae", {}),
    "rws": ("iwae", {}),
    "rws-dreg": ("iwae", {}),
    "vimco": ("iwae", {}),
    "renyi": ("renyi", {}),
    "renyi:alpha=2": ("renyi", {"alpha": 2.0}),
    "renyi:alpha=-.inf": ("renyi", {"alpha": -math.inf}),
    "renyi:alpha=-1+doubly-reparameterized": ("renyi", {"alpha": -1.0}),
    "miwae": ("miwae", {}),
    "ciwae": ("ciwae", {}),
    "ciwae+doubly-reparameterized": ("ciwae", {}),
    "piwae": ("miwae", {}),
    "jvi": ("jvi", {}),
    "jvi:order=2": ("jvi", {"order": 2}),
    "tvo": ("tvo", {}),
    "analytic-kl": ("kl", {"beta": 1.0}),
    "beta-elbo:beta=0.3": ("kl", {"beta": 0.3}),
}
"""Objectives, with the bound of each."""
PATHWISE = {
    *(
        "trace-elbo",
        "iwae",
        "renyi",
        "renyi:alpha=2",
        "renyi:alpha=-.inf",
        "miwae",
        "ciwae",
        "jvi",
        "jvi:order=2",
    ),
    *("analytic-kl", "beta-elbo:beta=0.3"),
}
"""Those whose gradient is the derivative of their value at the same random numbers, for
reparameterized guides.
"""
NEED_PATHS = [
    "stl",
    "iwae-stl",
    "dreg",
    "rws-dreg",
    "ciwae+doubly-reparameterized",
    "renyi:alpha=-1+doubly-reparameterized",
]
"""Those that refuse discrete draws."""
STEP = 1e-5


def answer[T](work: Callable[[], T]) -> T | None:
    """What it gives; None where it is refused, in one sentence that names a site, a plate or the
    latents.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", LOOPED)
        try:
            return work()
        except PyroaeError as refusal:
            words = str(refusal)
            assert re.search(r"'[^']+'|plate|latent", words), words
            assert "\n" not in words
    return None


def seeded[T](work: Callable[[], T], seed: int) -> tuple[T, Recorder]:
    """What it gives with these random numbers, and what it draws."""
    recorder = Recorder()
    torch.manual_seed(seed)
    with recorder:
        return work(), recorder


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Up to rounding, of the larger of 1 and the value."""
    torch.testing.assert_close(
        found.detach(), expected.detach(), rtol=tolerance, atol=tolerance, equal_nan=True
    )


def value_of(name: str, of: Reference) -> Tensor:
    """The value of an objective over all data."""
    bound, options = BOUNDS[name]
    if bound != "kl":
        return of.total(bound_of(bound, of.log_weight, options))
    rate = (of.of("divergence") + of.of("observed")).mean(0)
    shared = torch.stack(
        [t.likelihood - options["beta"] * (t.divergence + t.observed) for t in of.shared]
    ).mean()
    return (of.scales * (of.of("likelihood").mean(0) - options["beta"] * rate)).sum() + shared


def test_objectives() -> None:
    compared: Counter[str] = Counter()

    @MANY
    @given(d=descriptions())
    def check(d: Description) -> None:
        programs, turn = Programs(d), crc32(repr(d).encode())
        names = sorted(BOUNDS) + (3 * NEED_PATHS if d.has_fixed_noise else [])
        for i in (turn, turn + 7, turn + 14):  # all in turn, the same ones for the same program
            one_objective(names[i % len(names)], programs, compared)

    check()
    assert all(compared[name] >= COUNT / 200 for name in BOUNDS), compared


def one_objective(name: str, programs: Programs, compared: Counter[str]) -> None:
    """Its value and, where there is a way, its gradient."""
    objective, seed = parse_objective(name, num_particles=4), programs.description.seed

    def bound() -> Any:
        return answer(lambda: objective.bound(programs.model, programs.guide, *programs.args))

    if bound() is None:  # a first run, which looks at the program
        compared[f"{name} refused"] += 1
        return
    found, recorder = seeded(bound, seed)
    of = reference(programs, recorder.draws(4))
    close(found.value, value_of(name, of))
    compared[name] += 1
    if check_gradient(name, programs, bound, found.surrogate, of):
        compared[f"{name} gradient"] += 1


def slopes(surrogate: Tensor, programs: Programs) -> Tensor:
    """The gradient of θ and φ as one vector; 0 where nothing depends on them."""
    leaves = [programs.theta, programs.phi]
    grads = (
        torch.autograd.grad(surrogate, leaves, allow_unused=True)
        if surrogate.requires_grad
        else [None, None]
    )
    return torch.cat(
        [torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)]
    )


def check_gradient(
    name: str, programs: Programs, bound: Callable[[], Any], surrogate: Tensor, of: Reference
) -> bool:
    """The surrogate's gradient against finite differences of the value, or against the estimator
    written by hand.
    """
    d = programs.description
    if name in PATHWISE and d.has_fixed_noise:
        found = slopes(surrogate, programs)
        direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(d.seed))
        parts = direction.split([len(programs.theta), len(programs.phi)])
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                _moved(programs, parts, sign * STEP)
                values.append(seeded(bound, d.seed)[0].value)
                _moved(programs, parts, -sign * STEP)
        close(found @ direction, (values[0] - values[1]) / (2 * STEP), 2e-5)
        return True
    return False


def _moved(programs: Programs, parts: tuple[Tensor, ...], step: float) -> None:
    programs.theta.add_(parts[0], alpha=step)
    programs.phi.add_(parts[1], alpha=step)


def test_log_weights_and_importance_sampling() -> None:
    compared: Counter[str] = Counter()

    @MANY
    @given(d=descriptions())
    def check(d: Description) -> None:
        one_estimate(Programs(d), compared)

    check()
    assert compared["log-weights"] > 0.8 * COUNT
    assert compared["importance sampling"] > 0.2 * COUNT


def one_estimate(programs: Programs, compared: Counter[str]) -> None:
    """Log-weights, their parts, and importance sampling."""
    seed, pair = programs.description.seed, (programs.model, programs.guide)
    found, recorder = seeded(
        lambda: answer(lambda: log_weights(*pair, *programs.args, num_particles=3)), seed
    )
    if found is not None:
        of = reference(programs, recorder.draws(3))
        close(found.log_weight, of.log_weight)
        close(found.log_lik, of.of("likelihood"))
        close(found.log_prior, of.of("prior"))
        close(torch.as_tensor(found.scale, dtype=torch.float64).expand(len(of.scale)), of.scales)
        close(found.log_global, torch.stack([term.log_weight for term in of.shared]))
        compared["log-weights"] += 1
    estimate, recorder = seeded(
        lambda: answer(lambda: log_likelihood(*pair, programs.args, num_particles=5, seed=seed)),
        seed,
    )
    if estimate is not None:
        d = programs.description
        last = (
            d.num_data - 1 if d.shared and d.plate != "none" else None
        )  # each datum then has a run of its own
        of = reference(programs, recorder.draws(5), last)
        found_px, found_ess = (
            part[-1:] if last is not None else part for part in (estimate.log_px, estimate.ess)
        )
        close(found_px, log_mean_exp(of.log_weight))
        weight = of.log_weight.detach().softmax(0)
        close(found_ess, 1 / weight.square().sum(0), 1e-7)
        compared["importance sampling"] += 1


@FEW
@given(d=gaussians)
def test_evaluators_of_linear_gaussian_programs(d: Gaussian) -> None:
    """To 5 standard errors of the closed form; quadrature, and densities at known z, to
    rounding.
    """
    programs = GaussianPrograms(d)
    pair, args = (programs.model, programs.guide), programs.args
    log_px, posteriors = programs.exact()
    q, prior = programs.q(), programs.prior()
    kl = torch.stack(
        [
            kl_divergence(MultivariateNormal(q.loc[n], q.covariance_matrix[n]), p)
            for n, p in enumerate(posteriors)
        ]
    )
    rate = kl_divergence(q, prior.expand(q.batch_shape))
    elbo = log_px - kl

    close(quadrature(*pair, args).log_px, log_px, 1e-5)
    for proposal in (programs.guide, Local(programs.guide, steps=60)):
        sampled = log_likelihood(programs.model, proposal, args, num_particles=1000, seed=d.seed)
        within(sampled.log_px, log_px, sampled.se, sampled.unreliable)
    annealed = ais(*pair, args, settings=AISSettings(32, 25, leapfrog_steps=3), seed=d.seed)
    within(annealed.log_px, log_px, annealed.se)

    split = gaps(
        *pair,
        args,
        log_px=log_px,
        num_particles=500,
        families=["full-rank"],
        steps=100,
        seed=d.seed,
    )
    within(split.elbo.values, elbo, split.elbo.se)
    full = split.families["full-rank"]
    within(
        full.elbo.values, elbo.maximum(full.elbo.values), full.elbo.se
    )  # a few steps make it no worse than the guide,
    within(
        full.elbo.values, log_px.minimum(full.elbo.values), full.elbo.se
    )  # and it is below log p(x)

    found = diagnose(*pair, args, num_particles=2000, seed=d.seed)
    weights = log_weights(*pair, *args, num_particles=2000)
    scores = (weights.log_post - weights.log_prior).std(0) / math.sqrt(2000)
    within(found.rate, rate, scores)
    within(found.distortion, -elbo - rate, weights.log_lik.std(0) / math.sqrt(2000))
    within(found.kl_per_unit.sum(), rate.mean(), scores.square().sum().sqrt() / d.num_data)

    told = information(*pair, args, num_particles=50, seed=d.seed)
    own = math.sqrt(2000 / 50 / d.num_data)  # of so many draws of the same data
    within(torch.tensor(told.rate.value), rate.mean(), told.rate.se + own * scores.max())
    within(
        torch.tensor(told.elbo),
        elbo.mean(),
        told.rate.se + told.distortion.se + own * weights.log_weight.std(0).max() / 44,
    )
    assert told.lower.value <= min(
        math.log(d.num_data) + 1e-9, told.upper.value + 5 * told.upper.se
    )

    tree: Any = to_datatree(*pair, args, num_draws=5, seed=d.seed)
    names = [f"z{i}" for i in range(len(d.sizes))]
    z = torch.cat(
        [torch.as_tensor(tree["guide"][n].values).reshape(5, d.num_data, -1) for n in names],
        -1,
    )
    ratio = torch.stack([p.log_prob(z[:, n]) for n, p in enumerate(posteriors)], 1) - q.log_prob(z)
    close(
        torch.as_tensor(tree["sample_stats_guide"]["log_weight"].values), log_px + ratio, 1e-5
    )  # z is kept in single precision
    close(torch.as_tensor(tree["sample_stats_guide"]["log_prior"].values), prior.log_prob(z), 1e-5)


@FEW
@given(d=descriptions(("bits", "class", "one-hot"), plain=True))
def test_evaluators_of_discrete_programs(d: Description) -> None:
    """All states are summed; what needs continuous latents refuses."""
    programs = Programs(d)
    pair, args = (programs.model, programs.guide), programs.args
    states = [of_states(latent, d.num_data) for latent in d.latents]
    draws = [{f"z{i}": value for i, value in enumerate(values)} for values in product(*states)]
    of = reference(programs, draws)
    exact = (of.of("likelihood") + of.of("prior")).logsumexp(0)
    sampled = answer(lambda: log_likelihood(*pair, args, num_particles=1000, seed=d.seed))
    assert sampled is not None
    within(sampled.log_px, exact, sampled.se, sampled.unreliable)
    for work in (
        lambda: quadrature(*pair, args),
        lambda: ais(*pair, args, settings=AISSettings(4, 4)),
        lambda: gaps(*pair, args, num_particles=10, steps=5),
        lambda: log_likelihood(programs.model, Local(programs.guide), args),
    ):
        with pytest.raises(ProgramError, match=r"latent site 'z\d' is discrete"):
            work()
    found = diagnose(*pair, args, num_particles=1000, seed=d.seed)
    weights = log_weights(*pair, *args, num_particles=1000)
    log_q, log_p = of.of("posterior"), of.of("prior")
    within(
        found.rate,
        (log_q.exp() * (log_q - log_p)).sum(0),
        (weights.log_post - weights.log_prior).std(0) / math.sqrt(1000),
    )


def of_states(latent: Latent, num_data: int) -> list[Tensor]:
    """Every value of a discrete site, the same for all data."""
    if latent.prior == "bernoulli":
        count = math.prod(latent.event)
        values = [
            torch.tensor(bits, dtype=torch.float64).reshape(latent.event)
            for bits in product((0.0, 1.0), repeat=count)
        ]
    elif latent.prior == "categorical":
        values = list(torch.arange(3))
    else:
        values = list(torch.eye(3, dtype=torch.float64))
    return [value.expand(num_data, *value.shape) for value in values]


def within(found: Tensor, expected: Tensor, se: Tensor, unreliable: Tensor | None = None) -> None:
    """To 5 standard errors, of the data that are reliable."""
    kept = torch.ones(found.shape, dtype=torch.bool)
    if unreliable is not None:
        kept[unreliable] = False
    far = (found - expected).detach().abs() > 5 * se.detach() + 1e-9
    assert not (far & kept).any(), (found, expected, se)
