"""SELBO and SIWAE against quadrature: values, gradients of shares and components, variances."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor

from pyroae import zoo
from pyroae.compilation.svi import Compiled
from pyroae.config import TrainConfig
from pyroae.errors import ConfigError, ProgramError
from pyroae.nn import MLP
from pyroae.objectives import (
    ELBO,
    IWAE,
    JVI,
    OBJECTIVES,
    BoundFunction,
    DoublyReparameterized,
    Objective,
    Pathwise,
    Score,
    StickingTheLanding,
    TwoBounds,
)
from pyroae.objectives.apply import KLWeight, bound_of
from pyroae.objectives.strata import Strata
from pyroae.objectives.stratified import SELBO, SIWAE
from pyroae.posteriors import Mixture
from pyroae.posteriors.mixture import GaussianMixture
from pyroae.training.fitting import fit
from tests.caught import assert_caught
from tests.conftest import sample_of

pytestmark = pytest.mark.usefixtures("float64")

LOG_P = dist.Normal(0.0, math.sqrt(2)).log_prob(torch.tensor(1.0)).item()
OF_ELBO = [Objective(SELBO(4)), Objective(SELBO(4), StickingTheLanding())]


class Toy:
    """z ~ N(0, 1), x|z ~ N(z + b, 1), x = 1; q a mixture of two Gaussians with their parameters for
    each of `num` copies of the datum.

    Args:
        num: The number of copies.
        kind: The class of the mixture: `torch`, `implicit` (GaussianMixture), or `pyro`
            (MixtureOfDiagNormals, which has two features, of which the model ignores the second).
        logits: The logits of the shares.
        looped: Whether the program has to run particle by particle.
    """

    def __init__(
        self,
        num: int,
        kind: str = "torch",
        logits: tuple[float, float] = (0.2, -0.5),
        looped: bool = False,
    ) -> None:
        self.num, self.kind, self.looped = num, kind, looped
        values = {"loc": (-0.5, 1.2), "log_scale": (-0.3, -0.6), "logits": logits, "b": (0.1,)}
        self.parameters = {
            name: torch.tensor(v).repeat(num, 1).requires_grad_() for name, v in values.items()
        }

    def model(self) -> None:
        zeros, plain = torch.zeros(self.num), self.kind == "torch"
        with pyro.plate("data", self.num):
            features = {"implicit": 1, "pyro": 2}.get(self.kind, 1)
            prior = dist.Normal(torch.zeros(self.num, features), 1.0).to_event(1)
            z = pyro.sample("z", dist.Normal(zeros, 1.0) if plain else prior)
            z = z if plain else z[..., 0]
            z = z.reshape(self.num) if self.looped else z
            pyro.sample("x", dist.Normal(z + self.parameters["b"][:, 0], 1.0), obs=zeros + 1)

    def guide(self) -> None:
        loc, scale = self.parameters["loc"], self.parameters["log_scale"].exp()
        logits = self.parameters["logits"]
        mixture = dist.Categorical(logits=logits)
        with pyro.plate("data", self.num):
            if self.kind == "torch":
                q = dist.MixtureSameFamily(mixture, dist.Normal(loc, scale))
            elif self.kind == "implicit":
                parts = dist.Normal(loc[..., None], scale[..., None]).to_event(1)
                q = GaussianMixture(mixture, parts)
            else:
                ones = torch.ones(self.num, 2)
                q = dist.MixtureOfDiagNormals(
                    torch.stack([loc, 0 * ones], -1), torch.stack([scale, ones], -1), logits
                )
            pyro.sample("z", q)

    def gradients(self) -> Tensor:
        """The gradients of the bound for each copy, `[num, 7]`."""
        grads = [p.grad for p in self.parameters.values()]
        return -torch.cat([g for g in grads if g is not None], 1)

    def log_weight(self, z: Tensor) -> Tensor:
        """log w of the first copy at z, of the shape of z."""
        p = {name: value[0] for name, value in self.parameters.items()}
        parts = dist.Normal(p["loc"], p["log_scale"].exp()).log_prob(z[..., None])
        log_q = torch.logsumexp(p["logits"].log_softmax(-1) + parts, -1)
        log_lik = dist.Normal(z + p["b"], 1.0).log_prob(torch.tensor(1.0))
        return log_lik + dist.Normal(0.0, 1.0).log_prob(z) - log_q

    def densities(self, z: Tensor) -> Tensor:
        """The densities of the components at z, `[2, *z.shape]`."""
        loc, scale = self.parameters["loc"][0], self.parameters["log_scale"][0].exp()
        return torch.stack([dist.Normal(m, s).log_prob(z) for m, s in zip(loc, scale, strict=True)])

    def exact(self, quantity: Tensor) -> tuple[float, Tensor]:
        """A quantity and its gradient, `[7]`."""
        grads = torch.autograd.grad(quantity, list(self.parameters.values()))
        return quantity.item(), torch.cat([g.flatten() for g in grads])


def elbo(toy: Toy) -> tuple[float, Tensor]:
    z = torch.linspace(-9, 9, 4001)
    shares = toy.parameters["logits"][0].softmax(-1)
    density = (shares[:, None] * toy.densities(z).exp()).sum(0)
    return toy.exact((density * toy.log_weight(z)).sum() * (z[1] - z[0]))


def siwae_of_two(toy: Toy) -> tuple[float, Tensor]:
    """E log (π₀ w₀ + π₁ w₁) by the trapezoid rule in both draws."""
    z = torch.linspace(-8, 8, 801)
    shares = toy.parameters["logits"][0].log_softmax(-1)
    one, other = (shares[:, None] + toy.log_weight(z)).unbind()
    density = toy.densities(z).exp()
    grid = torch.logaddexp(one[:, None], other[None]) * density[0][:, None] * density[1][None]
    return toy.exact(grid.sum() * (z[1] - z[0]) ** 2)


def ran(objective: Objective, toy: Toy) -> tuple[float, Tensor]:
    """The bound per copy, and the gradients of the copies."""
    loss = objective.loss_and_grads(toy.model, toy.guide)
    return -loss / toy.num, toy.gradients()


def standardized(found: Tensor, expected: Tensor) -> float:
    """The largest deviation of a mean over copies, in standard errors."""
    errors = found.std(0) / len(found) ** 0.5
    return ((found.mean(0) - expected).abs() / (errors + 1e-12)).max().item()


# Values and gradients.


@pytest.mark.parametrize("objective", OF_ELBO, ids=["pathwise", "stl"])
@pytest.mark.parametrize("kind", ["torch", "implicit", "pyro"])
def test_selbo_has_the_mean_of_the_mixtures_elbo(kind: str, objective: Objective) -> None:
    value, gradient = elbo(Toy(1))
    found, gradients = ran(objective, Toy(40_000, kind))
    assert found == pytest.approx(value, abs=0.02)
    assert standardized(gradients, gradient) < 5


def test_siwae_has_the_mean_of_its_integral() -> None:
    value, gradient = siwae_of_two(Toy(1))
    found, gradients = ran(Objective(SIWAE(2)), Toy(60_000))
    assert found == pytest.approx(value, abs=0.02)
    assert standardized(gradients, gradient) < 5


def test_the_mean_weight_is_p() -> None:
    """E exp F = p(x), for shares that are not equal."""
    toy = Toy(1, logits=(1.5, 0.0))
    toy.parameters["b"].data.zero_()
    objective = Objective(SIWAE(4))
    bounds = [-objective.loss(toy.model, toy.guide) for _ in range(400)]
    weights = (torch.tensor(bounds) - LOG_P).exp()
    assert weights.mean().item() == pytest.approx(1.0, abs=5 * weights.std().item() / 400**0.5)


def means(bound: BoundFunction, logits: tuple[float, float], num: int = 100_000) -> float:
    """E F of a symmetric guide."""
    toy = Toy(num, "implicit", logits)
    toy.parameters["b"].data.zero_()
    toy.parameters["log_scale"].data.fill_(-0.3)
    with torch.no_grad():
        return -Objective(bound).loss(toy.model, toy.guide) / num


def test_where_the_strata_tighten_the_bound_and_where_they_do_not() -> None:
    """IWAE ≤ SIWAE ≤ log p with equal shares; with a share of 0.02 half the draws are wasted."""
    assert means(IWAE(2), (0.0, 0.0)) + 0.005 < means(SIWAE(2), (0.0, 0.0)) < LOG_P
    assert means(SIWAE(2), (4.0, 0.0)) + 0.03 < means(IWAE(2), (4.0, 0.0))


def test_variances() -> None:
    """Of torch's mixture, whose shares follow a score under the ELBO, and of every gradient."""
    found = {}
    for objective in (Objective(ELBO(4), Pathwise()), *OF_ELBO):
        toy = Toy(20_000)
        name = f"{type(objective.bound_function).__name__} {type(objective.gradient).__name__}"
        found[name] = ran(objective, toy)[1].var(0)
    assert (1.5 * found["SELBO Pathwise"] < found["ELBO Pathwise"]).all()
    # The shares are those of the explicit weights, whose variance the missing score lowers too.
    assert (found["SELBO StickingTheLanding"][:6] < found["SELBO Pathwise"][:6]).all()


def test_sticking_the_landing_is_noiseless_at_the_posterior() -> None:
    """Prior and guide are the same mixture and x tells nothing: the weight is constant."""
    loc = torch.tensor([-1.0, 0.5]).expand(5, 2).clone().requires_grad_()
    logits = torch.tensor([0.3, -0.2]).expand(5, 2).clone().requires_grad_()

    def program(loc: Tensor, logits: Tensor) -> None:
        with pyro.plate("data", 5):
            parts = dist.Normal(loc, 0.8)
            pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(logits=logits), parts))

    OF_ELBO[1].loss_and_grads(
        lambda: program(loc.detach(), logits.detach()), lambda: program(loc, logits)
    )
    assert loc.grad is not None
    assert logits.grad is not None
    assert loc.grad.abs().max() < 1e-12
    assert logits.grad.abs().max() < 1e-12


@pytest.mark.parametrize("objective", [*OF_ELBO, Objective(SIWAE(4))])
def test_scales_subsampling_and_warm_up(objective: Objective) -> None:
    def run(handled: Any) -> tuple[float, Tensor]:
        toy = Toy(5)
        pyro.set_rng_seed(4)
        loss = objective.loss_and_grads(handled(toy.model), handled(toy.guide))
        return loss, toy.gradients()

    loss, gradients = run(lambda program: program)
    scaled = run(lambda program: poutine.scale(program, scale=0.25))
    assert scaled[0] == pytest.approx(0.25 * loss)
    torch.testing.assert_close(scaled[1], 0.25 * gradients)
    masked = run(lambda program: poutine.mask(program, mask=torch.arange(5) > 1))
    assert masked[1][:2].abs().max() < 1e-12
    torch.testing.assert_close(masked[1][2:], gradients[2:])
    assert abs(run(KLWeight(0.5))[0] - loss) > 0.01


def test_warm_up_has_the_mean_of_the_weighted_elbo() -> None:
    """log p(x|z) + β (log p(z) − log q(z)) under the mixture, by quadrature."""
    one, z, beta = Toy(1), torch.linspace(-9, 9, 4001), 0.3
    shares = one.parameters["logits"][0].softmax(-1)
    density = (shares[:, None] * one.densities(z).exp()).sum(0)
    log_lik = dist.Normal(z + one.parameters["b"][0], 1.0).log_prob(torch.tensor(1.0))
    log_w = (1 - beta) * log_lik + beta * one.log_weight(z)
    _, gradient = one.exact((density * log_w).sum() * (z[1] - z[0]))
    for objective in OF_ELBO:
        toy = Toy(40_000)
        with KLWeight(beta):
            objective.loss_and_grads(toy.model, toy.guide)
        assert standardized(toy.gradients(), gradient) < 5


def test_particles_one_after_another_are_stratified_too() -> None:
    toy, looped = Toy(20_000), Toy(20_000, looped=True)
    with pytest.warns(UserWarning, match="the particles are run sequentially"):
        found, gradients = ran(Objective(SELBO(4)), looped)
    value, gradient = elbo(Toy(1))
    assert found == pytest.approx(value, abs=0.03)
    assert standardized(gradients, gradient) < 5
    expected = ran(Objective(SELBO(4)), toy)[1].var(0)
    torch.testing.assert_close(gradients.var(0), expected, rtol=0.2, atol=0)


# Broken copies.


@pytest.mark.parametrize("broken", ["no share", "detached share", "component", "same component"])
def test_broken_copies_are_caught(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log_ratio = Strata.log_ratio
    if broken == "no share":
        monkeypatch.setattr(
            Strata, "log_ratio", lambda self, t: torch.zeros_like(log_ratio(self, t))
        )
    elif broken == "detached share":
        monkeypatch.setattr(Strata, "log_ratio", lambda self, t: log_ratio(self, t).detach())
    elif broken == "component":  # the share twice
        monkeypatch.setattr(Strata, "log_ratio", lambda self, t: 2 * log_ratio(self, t))
    else:  # every particle from the first component
        first = lambda self, values, dim: values.select(dim, 0)  # noqa: E731
        monkeypatch.setattr(Strata, "_diagonal", first)
    _, gradient = elbo(Toy(1))
    assert standardized(ran(Objective(SELBO(4)), Toy(20_000))[1], gradient) > 10


@pytest.mark.parametrize("bound", [SELBO(4), SIWAE(4)])
def test_broken_copies_do_not_conform(
    bound: BoundFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_ratio = Strata.log_ratio
    monkeypatch.setattr(Strata, "log_ratio", lambda self, t: log_ratio(self, t).detach())
    by = ("enumerated_means",)
    assert_caught(Objective(bound), "the mean gradient is that of the sum over all", by)
    monkeypatch.setattr(Strata, "log_ratio", lambda self, t: torch.zeros_like(log_ratio(self, t)))
    assert_caught(Objective(bound), "the mean value is the sum over all states", by)


# Refusals.


def test_pairs_that_are_refused() -> None:
    for gradient in (DoublyReparameterized(), Score("leave-one-out"), TwoBounds()):
        with pytest.raises(ConfigError, match="needs independent, identically distributed draws"):
            Objective(SIWAE(4), gradient)
    with pytest.raises(ConfigError, match=r"StickingTheLanding is not an estimator of .* SIWAE"):
        Objective(SIWAE(4), StickingTheLanding())
    assert JVI.independent
    assert not IWAE.independent


def site(q: Any) -> Any:
    def program() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", q)

    return program


def mixture(components: int, *shape: int) -> Any:
    parts = dist.Normal(torch.zeros(*shape, components), 1.0)
    return dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(*shape, components)), parts)


def test_programs_that_are_refused() -> None:
    objective = Objective(SIWAE(4))
    normal = site(dist.Normal(torch.zeros(3), 1.0))
    with pytest.raises(ProgramError, match=r"the guide has none, only 'z' \(Normal\): use iwae"):
        objective.bound(normal, normal)
    three = site(mixture(3, 3))
    with pytest.raises(
        ProgramError, match="site 'z': num_particles must be a multiple of 3, not 4"
    ):
        objective.bound(three, three)
    several = site(mixture(2, 3, 5).to_event(1))
    with pytest.raises(
        ProgramError, match=r"site 'z' is not in .*holds several mixtures per datum"
    ):
        objective.bound(several, several)
    counts = dist.Poisson(torch.ones(3, 2))
    discrete = site(dist.MixtureSameFamily(dist.Categorical(torch.ones(3, 2)), counts))
    with pytest.raises(ProgramError, match=r"site 'z' \(Poisson\) carry none"):
        objective.bound(discrete, discrete)


def test_second_sites_that_are_refused() -> None:
    def program(second: Any) -> Any:
        def sites() -> None:
            with pyro.plate("data", 3):
                pyro.sample("z", mixture(2, 3))
                pyro.sample("y", second)

        return sites

    two, bits = program(mixture(2, 3)), program(dist.Bernoulli(torch.full((3,), 0.5)))
    with pytest.raises(ProgramError, match="the guide has two, the sites 'z' and 'y'"):
        Objective(SIWAE(4)).bound(two, two)
    with pytest.raises(ProgramError, match=r"beside the mixture; .* 'y' \(Bernoulli\) has none"):
        Objective(SIWAE(4)).bound(bits, bits)


def test_a_mixture_outside_the_data_plate_is_refused() -> None:
    def program(observed: bool) -> Any:
        def sites() -> None:
            w = pyro.sample("w", mixture(2))
            with pyro.plate("data", 3):
                z = pyro.sample("z", dist.Normal(w, 1.0))
                if observed:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(3))

        return sites

    with pytest.raises(ProgramError, match="the latent site 'w' lies outside the data plate"):
        Objective(SIWAE(4)).bound(program(True), program(False))


# Training.


def vae() -> Any:
    torch.manual_seed(0)
    return zoo.vae(6, 2, encoder=MLP((7,)), posterior=Mixture(components=2)).double()


def binary(num: int = 6) -> Tensor:
    return (torch.rand(num, 6, generator=torch.Generator().manual_seed(0)) < 0.4).double()


@pytest.mark.parametrize("objective", sample_of([Objective(SIWAE(4)), *OF_ELBO], 3))
def test_every_trainer_takes_it(objective: Objective) -> None:
    system, x = vae(), binary(40)
    config = TrainConfig(epochs=40, batch_size=20, lr=0.02, precision="64-true", keep="last")
    history = fit(system, x, objective, config, progress=False).history
    assert history[-1].train_nelbo < history[0].train_nelbo - 0.2
    ordinary = (IWAE if isinstance(objective.bound_function, SIWAE) else ELBO)(4)
    steps = SVI(system.model, system.guide, pyro.optim.SGD({"lr": 0.0}), objective)
    many = x.repeat(200, 1)  # as many draws as of 400 steps, in two
    value = sum(steps.step(many) for _ in range(2)) / 400
    expected = sum(Objective(ordinary).loss(system.model, system.guide, many) for _ in "12") / 400
    assert value == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("objective", [*OF_ELBO, Objective(SIWAE(4))])
def test_compiled_code_has_the_numbers_of_eager_code(objective: Objective) -> None:
    graphs = Compiled(vae(), objective, backend="eager")
    torch.manual_seed(5)
    value, grads = graphs.value_and_grads(binary())
    assert graphs.is_compiled
    system = vae()
    torch.manual_seed(5)
    expected, surrogate = bound_of(system, objective, (binary(),))
    torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=0)
    wanted = torch.autograd.grad(-surrogate, list(system.parameters()))
    for one, other in zip(grads, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_claims() -> None:
    for name in ("selbo", "siwae"):
        objective = OBJECTIVES[name](num_particles=4)
        assert objective.kinds == {"mixture"}
        assert not objective.is_symmetric
        assert objective.is_elbo == (name == "selbo")
