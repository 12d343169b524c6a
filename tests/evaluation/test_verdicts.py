"""Verdicts of trust fail closed: weights that underflow, NaN, an ESS near 1 and too few draws are
never called reliable.
"""

import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae import exact_log_likelihood, zoo
from pyroae.commands.evaluation_notes import _of_likelihood, notes_of
from pyroae.config import AISSettings
from pyroae.config.evaluation import EvaluationSettings
from pyroae.evaluation.adaptive_quadrature import QuadratureEstimate
from pyroae.evaluation.annealing.bounds import ais
from pyroae.evaluation.importance.likelihood import LikelihoodEstimate, log_likelihood
from pyroae.evaluation.importance.per_datum import Columns
from pyroae.evaluation.importance.proposals import Local
from pyroae.evaluation.importance.streams import is_reliable
from pyroae.evaluation.inference_gaps import gaps
from pyroae.evaluation.summary import evaluate


def narrow() -> tuple[Any, Tensor]:
    """The system of the issue: pPCA as it starts, with log σ = log .003, on standard normal
    data.
    """
    torch.manual_seed(0)
    system = zoo.ppca(6, latent=2)
    with torch.no_grad():
        next(
            p for name, p in system.named_parameters() if "log_scale" in name or "scale" in name
        ).fill_(math.log(0.003))
    return system, torch.randn(30, 6)


def test_weights_that_underflow_are_flagged_and_tried_again() -> None:
    system, x = narrow()
    exact = exact_log_likelihood(system, x)
    plain = log_likelihood(system.model, system.guide, x, num_particles=5000, seed=0)
    assert plain.smoothed.khat.isnan().any()  # what counted as fine
    assert plain.ess.median() < 2
    assert (plain.log_px.mean() < exact.mean() - 1000).all()
    assert len(plain.unreliable) == 30
    again = log_likelihood(
        system.model, system.guide, x, num_particles=5000, seed=0, retry=Local(system.guide)
    )
    assert (again.log_px.mean() - exact.mean()).abs() < (
        plain.log_px.mean() - exact.mean()
    ).abs() / 10
    trusted = torch.ones(30, dtype=torch.bool)
    trusted[again.unreliable] = False
    assert (
        (again.log_px - exact)[trusted].abs() < 5 * again.se[trusted] + 1e-6 * exact[trusted].abs()
    ).all()


def test_the_command_line_does_not_call_it_trusted() -> None:
    system, x = narrow()
    found = log_likelihood(system.model, system.guide, x, num_particles=5000, seed=0)
    told = " ".join(_of_likelihood(found))
    assert "may be trusted" not in told
    assert "for 30 of 30 data: neither their log p(x) nor its error is to be trusted" in told
    assert "0, 1, 2" in told
    fine = log_likelihood(*exact_programs(), x, num_particles=100, seed=0)
    assert "for all 30 data: the errors may be trusted" in " ".join(_of_likelihood(fine))
    few = log_likelihood(*exact_programs(), x, num_particles=24, seed=0)
    assert "no error can be trusted" in " ".join(_of_likelihood(few))


def exact_programs() -> tuple[Any, Any]:
    system = zoo.ppca(6, latent=2, exact=True)
    return system.model, system.guide


def test_an_exact_posterior_is_reliable_and_too_few_draws_are_not() -> None:
    x = torch.randn(5, 6)
    assert len(log_likelihood(*exact_programs(), x, num_particles=25, seed=0).unreliable) == 0
    for count in (1, 2, 24):
        assert (
            len(log_likelihood(*exact_programs(), x, num_particles=count, seed=0).unreliable) == 5
        )


@pytest.mark.parametrize(
    "bad",
    ["khat nan", "khat inf", "khat at the limit", "ess 1", "ess nan", "se nan", "se inf", "few"],
)
def test_each_cause_alone(bad: str) -> None:
    khat, ess, se, draws = (
        torch.tensor([v], dtype=torch.float64) for v in (0.3, 200.0, 0.05, 1000.0)
    )
    assert is_reliable(khat, ess, se, draws).all()
    assert is_reliable(torch.full_like(khat, -math.inf), ess, se, draws).all()  # constant weights
    changed = {
        "khat nan": (khat * math.nan, ess, se, draws),
        "khat inf": (khat + math.inf, ess, se, draws),
        "khat at the limit": (khat * 0 + 1 - 1 / 3, ess, se, draws),
        "ess 1": (khat, ess * 0 + 1, se, draws),
        "ess nan": (khat, ess * math.nan, se, draws),
        "se nan": (khat, ess, se * math.nan, draws),
        "se inf": (khat, ess, se + math.inf, draws),
        "few": (khat, ess, se, draws * 0 + 9),
    }
    assert not is_reliable(*changed[bad]).any()


def columns(khat: list[float], log_px: list[float], ess: list[float]) -> Columns:
    log, k, e = (torch.tensor(v, dtype=torch.float64) for v in (log_px, khat, ess))
    pair = torch.stack([log, log])
    draws, sums = torch.full(log.shape, 1000), log.expand(8, -1)
    return Columns(log, log * 0 + 0.1, pair, e, log, log, pair, k, draws, sums)


def test_what_is_better_of_two_tries() -> None:
    nan = math.nan
    before = columns(
        [nan, nan, 0.9, 0.2, nan, 0.9], [-9.0, -9.0, -9.0, -9.0, -9.0, -9.0], [1, 1, 50, 50, 1, 50]
    )
    after = columns(
        [0.3, nan, 0.8, 0.1, nan, nan], [-1.0, -1.0, -1.0, -1.0, -99.0, -1.0], [50, 1, 50, 1, 1, 1]
    )
    found = before.with_better(torch.arange(6), after)
    # reliable now; nearer; a lower k̂; still as reliable; further; a known k̂ is better than none
    assert found.log_px.tolist() == [-1.0, -1.0, -1.0, -9.0, -9.0, -9.0]


def test_a_tolerance_is_not_reached_by_an_error_that_means_nothing() -> None:
    """An ESS of 1 has a standard error of at most 1, however wrong the estimate is."""
    system, x = narrow()
    found = log_likelihood(
        system.model, system.guide, x, num_particles=2000, tolerance=10.0, seed=0
    )
    assert found.monte_carlo_se < 1
    assert not found.is_within_tolerance
    assert (found.draws == 2000).all()
    fine = log_likelihood(*exact_programs(), x, num_particles=2000, tolerance=10.0, seed=0)
    assert fine.is_within_tolerance
    assert (fine.draws < 2000).all()


def test_gaps_say_which_log_px_is_not_to_be_trusted() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.StudentT(1.1, torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Cauchy(z, torch.where(x > 0, 1.0, 1e5)), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))

    x = torch.tensor(
        [-1.0, -2.0], dtype=torch.float64
    )  # the posterior is the prior, whose tails no Gaussian covers
    found = gaps(model, guide, x, num_particles=5000, seed=0)
    assert found.unreliable.tolist() == [0, 1]
    system, data = zoo.ppca(6, latent=2), torch.randn(4, 6)
    assert len(gaps(system.model, system.guide, data, num_particles=500, seed=0).unreliable) == 0
    converged = torch.tensor([True, False, True, True])
    known = QuadratureEstimate(torch.zeros(4), torch.zeros(4), converged, torch.ones(4), 0.0)
    told = gaps(system.model, system.guide, data, log_px=known, num_particles=50, steps=10, seed=0)
    assert told.unreliable.tolist() == [1]


def test_annealing_says_where_one_chain_has_all_the_weight() -> None:
    system, x = narrow()
    short = ais(
        system.model, None, x[:5], settings=AISSettings(num_chains=8, num_distributions=2), seed=0
    )
    assert len(short.unreliable) == 5
    system, x = zoo.ppca(6, latent=2), torch.randn(5, 6)
    fine = ais(system.model, None, x, settings=AISSettings(16, 40, leapfrog_steps=4), seed=0)
    assert len(fine.unreliable) == 0
    one = ais(system.model, None, x, settings=AISSettings(1, 8, leapfrog_steps=2), seed=0)
    assert len(one.unreliable) == 5


def test_the_notes_of_an_evaluation(tmp_path: Path) -> None:
    system, x = narrow()
    along = AISSettings(num_chains=4, num_distributions=2)
    found = evaluate(
        system, x[:4], EvaluationSettings(("is", "ais", "gaps"), num_particles=100, annealing=along)
    )
    told = "\n".join(notes_of(found))
    assert "may be trusted" not in told
    assert "AIS: one chain has all the weight" in told
    assert found.results["unreliable"].estimate == 4
    assert isinstance(found.likelihood, LikelihoodEstimate)
