"""Rate, distortion and bounds on the mutual information: against Gaussian closed forms, by hand;
collapse; refusals.
"""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae import zoo
from pyroae.autoencoder import Autoencoder
from pyroae.errors import ConfigError, ProgramError, UndefinedLikelihoodError
from pyroae.evaluation import blocks
from pyroae.evaluation import mutual_information as module
from pyroae.evaluation.diagnostics import diagnose
from pyroae.evaluation.mutual_information import Information, information
from pyroae.programs.traces import prior_of, run
from tests.evaluation.importance import test_proposals
from tests.objectives.test_objectives import DATA, hierarchical
from tests.systems import system_and_data

pytestmark = pytest.mark.usefixtures("float64")


def ppca(num_data: int, seed: int = 1, scale: float = 1.0) -> tuple[Autoencoder, Tensor, float]:
    """A system with its exact posterior, data of its own, and I(x; z) = ½ log det(I + WᵀW/σ²)."""
    torch.manual_seed(0)
    system = zoo.ppca(10, latent=2, exact=True)
    with torch.no_grad():
        next(p for p in system.parameters() if p.shape == (10, 2)).mul_(scale)
    weight, _, sigma = (part.detach() for part in system.linear_gaussian())
    torch.manual_seed(seed)
    truth = 0.5 * torch.logdet(torch.eye(2) + weight.T @ weight / sigma**2)
    return system, system.sample(num_data, noise=True), truth.item()


def test_the_exact_posterior_has_the_information_of_the_closed_form() -> None:
    """Data from the model: q(z) is the prior, so R = I, and both bounds and their intervals hold
    it.
    """
    system, x, truth = ppca(800)
    found = information(system.model, system.guide, x, seed=0)
    assert 0.9 < truth < 1.1
    assert found.lower.value < found.upper.value
    for estimate in (found.lower, found.upper, found.rate):
        assert abs(estimate.value - truth) < 4 * estimate.se
        assert estimate.se < 0.06
    for bound in found.marginal_kl:
        assert abs(bound.value) < 4 * bound.se + 0.005
        assert bound.se < 0.2 * found.rate.se  # R and I are of the same draws
    assert not found.is_saturated
    assert found.active_units == 2


def test_bounds_bracket_in_expectation_and_their_errors_are_honest() -> None:
    """Over 40 samples of 60 data: lower ≤ I ≤ upper, and the spread of each is its standard
    error.
    """
    found = []
    for seed in range(40):
        system, x, truth = ppca(60, seed)
        found.append(
            information(system.model, system.guide, x, seed=1000 + seed)
        )  # not the noise that made x
    for name, side in (("lower", -1), ("upper", 1)):
        values = torch.tensor([getattr(f, name).value for f in found])
        errors = torch.tensor([getattr(f, name).se for f in found])
        assert side * (values.mean() - truth) > -3 * values.std() / math.sqrt(40)
        assert 0.7 < errors.mean() / values.std() < 1.4


def test_the_lower_bound_saturates_at_log_n() -> None:
    system, x, truth = ppca(40, scale=300.0)
    found = information(system.model, system.guide, x, seed=0)
    assert truth > math.log(40) + 3
    assert found.lower.value <= math.log(40) + 1e-12
    assert found.is_saturated
    assert found.upper.value > truth - 5


def test_bounds_are_those_written_by_hand() -> None:
    """A diagonal guide: all pairs with plain torch, at the very draws."""
    system, x = system_and_data("vae-normal", num_data=7)
    found = information(system.model, system.guide, x, num_particles=1, seed=4)
    system.eval()
    torch.manual_seed(4)
    with torch.no_grad():
        q, z = (
            system.q_z(x),
            run(system.model, system.guide, (x,), {}, 1, 1).guide.nodes["z"]["value"],
        )
        log_q = q.log_prob(z[:, None])
        own = log_q.diagonal()
        lower = (own - log_q.logsumexp(1) + math.log(7)).mean()
        others = log_q.masked_fill(torch.eye(7, dtype=torch.bool), -math.inf).logsumexp(1)
        upper = (own - others + math.log(6)).mean()
        rate = own - system.p_z().log_prob(z)
        distortion = -system.p_x(z).log_prob(x)
    assert found.lower.value == pytest.approx(lower.item(), abs=1e-10)
    assert found.upper.value == pytest.approx(upper.item(), abs=1e-10)
    assert found.rate.value == pytest.approx(rate.mean().item(), abs=1e-10)
    assert found.distortion.value == pytest.approx(distortion.mean().item(), abs=1e-10)
    assert found.elbo == pytest.approx(-(rate + distortion).mean().item(), abs=1e-10)
    assert found.marginal_kl[0].value == pytest.approx((rate.mean() - upper).item(), abs=1e-10)
    assert found.marginal_kl[1].value == pytest.approx((rate.mean() - lower).item(), abs=1e-10)


def collapsed(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))


def test_a_guide_that_is_the_prior_knows_nothing() -> None:
    """I = 0 without any error, R = 0 in each draw, and every unit has collapsed."""
    system, x = system_and_data("vae", num_data=20)
    found = information(system.model, collapsed, x, num_particles=3, seed=0)
    assert (found.lower.value, found.upper.value) == (0.0, 0.0)
    assert max(found.lower.se, found.upper.se) < 1e-12
    assert found.rate.value == pytest.approx(0, abs=1e-12)
    assert [unit.collapsed for unit in found.units] == [True] * 3
    assert found.active_units == 0


def test_collapse_is_told_unit_by_unit() -> None:
    """Of three units one follows the data, one is the prior, one costs nats and says nothing."""
    system, x = system_and_data("vae", num_data=20)

    def guide(x: Tensor) -> None:
        mean = torch.stack([x[:, 0] + x[:, 1], 0 * x[:, 0], 0 * x[:, 0] + 2], -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, torch.tensor([0.2, 1.0, 1.0])).to_event(1))

    found = information(system.model, guide, x, seed=0)
    assert [unit.collapsed for unit in found.units] == [False, True, False]
    assert found.units[2].kl == pytest.approx(2.0)
    assert found.units[2].activity == 0
    by_diagnose = diagnose(system.model, guide, x)
    assert [unit.kl for unit in found.units] == by_diagnose.kl_per_unit.tolist()
    assert [unit.activity for unit in found.units] == by_diagnose.activity.tolist()


def test_a_permutation_of_the_data_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the noise of each datum an argument of its own, that the draws are replaced by."""
    system, x = system_and_data("vae-normal", num_data=9)
    noise = torch.randn(9, 3)

    def model(x: Tensor, _noise: Tensor) -> None:
        system.model(x)

    def guide(x: Tensor, _noise: Tensor) -> None:
        system.guide(x)

    plain = module.run

    def fixed(
        model: Any, guide: Any, args: Any, kwargs: Any, k: int, nesting: int | None = None
    ) -> Any:
        if k > 1 or nesting is None:
            return plain(model, guide, args, kwargs, k, nesting)

        def drawn(x: Tensor, noise: Tensor) -> None:
            with pyro.plate("data", len(x)):
                q = system.q_z(x)
                pyro.sample("z", q, infer={"value": q.mean + noise * q.stddev})

        class At(pyro.poutine.messenger.Messenger):
            def _pyro_sample(self, msg: Any) -> None:
                if "value" in msg["infer"]:
                    msg["value"], msg["done"] = msg["infer"]["value"], True

        return plain(model, At()(drawn), args, kwargs, k, nesting)

    monkeypatch.setattr(module, "run", lambda m, g, a, kw, k=1, n=None: fixed(m, g, a, kw, k, n))
    order = torch.randperm(9)
    one = information(model, guide, (x, noise), seed=0)
    other = information(model, guide, (x[order], noise[order]), seed=1)
    for name in ("rate", "distortion", "lower", "upper"):
        assert getattr(one, name).value == pytest.approx(getattr(other, name).value, abs=1e-12)
        assert getattr(one, name).se == pytest.approx(getattr(other, name).se, abs=1e-12)
    for unit, same in zip(one.units, other.units, strict=True):
        assert unit.kl == pytest.approx(same.kl, abs=1e-12)
        assert unit.activity == pytest.approx(same.activity, abs=1e-12)


def test_blocks_of_any_size_weigh_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guide of fixed draws: the same bounds in one block and in many, none above the budget."""
    system, x = system_and_data("ppca-exact", num_data=37)
    once = information(system.model, system.guide, x, seed=0)
    sizes: list[int] = []
    pairs = module.log_post_of

    def watched(*args: Any) -> Tensor:
        found = pairs(*args)
        sizes.append(found.numel())
        return found

    monkeypatch.setattr(module, "log_post_of", watched)
    monkeypatch.setattr(module, "CHUNK", 37 * 8)
    monkeypatch.setattr(blocks, "CHUNK", 2**10)
    again = information(system.model, system.guide, x, seed=0)
    assert sum(sizes) == 37 * 37
    assert max(sizes) <= 64
    assert abs(again.lower.value - once.lower.value) < 5 * once.lower.se
    before: Information = information(system.model, system.guide, x, seed=0)
    assert before.lower == again.lower


def test_programs_with_several_sites_and_arguments() -> None:
    """Scalar sites, a nested plate and a mask: bounds against pairs by hand; the units add up to
    the rate.
    """
    data = test_proposals.program_data()
    found = information(test_proposals.model, test_proposals.guide, data, num_particles=2, seed=0)
    assert found.lower.value <= math.log(7)
    assert found.lower.value <= found.upper.value
    assert sum(unit.kl for unit in found.units) == pytest.approx(
        found.rate.value, abs=6 * found.rate.se
    )
    nothing = information(test_proposals.model, prior_of(test_proposals.model), data, seed=0)
    assert nothing.lower.value == 0
    assert nothing.rate.value == pytest.approx(0, abs=1e-12)


def test_the_generator_stays_as_it_was() -> None:
    system, x = system_and_data("vae")
    torch.manual_seed(5)
    information(system.model, system.guide, x)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)


def test_refusals() -> None:
    system, x = system_and_data("vae")
    with pytest.raises(ConfigError, match="at least 1 particle and 2 data, not 0 and 6"):
        information(system.model, system.guide, x, num_particles=0)
    with pytest.raises(ConfigError, match="at least 1 particle and 2 data, not 1 and 1"):
        information(system.model, system.guide, x[:1])
    sparse, x = system_and_data("sparse-ae")
    with pytest.raises(
        UndefinedLikelihoodError, match="'z' is a Delta: its rate and its mutual information"
    ):
        information(sparse.model, sparse.guide, x)
    linear, x = system_and_data("linear-ae")
    with pytest.raises(UndefinedLikelihoodError, match="prior of 'z' is flat"):
        information(linear.model, linear.guide, x)
    model, guide, _ = hierarchical()
    with pytest.raises(ProgramError, match="'level' lies outside the data plate"):
        information(model, guide, DATA.double())
