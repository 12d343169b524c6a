"""DisARM and ARM: means and variances of one bit in closed form, enumerated gradients of programs
with several bits, broken copies, refusals.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
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
    Gradient,
    Objective,
    Score,
    TraceELBO,
    antithetic_bits,
)
from pyroae.objectives.apply import KLWeight, bound_of
from pyroae.objectives.disarm import ARM, AntitheticGradient, DisARM
from pyroae.training.fitting import fit
from tests.caught import assert_caught
from tests.conftest import sample_of

pytestmark = pytest.mark.usefixtures("float64")

BOTH = pytest.mark.parametrize("gradient", [DisARM(), ARM()], ids=["disarm", "arm"])


# One bit.


def of_one_bit(gradient: Gradient, logit: float, num: int, pairs: int = 1) -> Tensor:
    """Gradients with respect to the logit, `[num]`; f(1) − f(0) is 1 − logit."""
    logits = torch.full((num,), logit, requires_grad=True)

    def model() -> None:
        with pyro.plate("data", num):
            z = pyro.sample("z", dist.Bernoulli(torch.full((num,), 0.5)))
            pyro.factor("f", 0.3 + z)

    def guide() -> None:
        with pyro.plate("data", num):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    Objective(ELBO(2 * pairs), gradient).loss_and_grads(model, guide)
    assert logits.grad is not None
    return -logits.grad


def variances(logit: float) -> dict[type, float]:
    """Of one pair: Δ² q² (1 − q)(q − ½) of DisARM, and that of ARM by the integral over u."""
    q, change = torch.sigmoid(torch.tensor(abs(logit))).item(), 1 - logit
    second = 1 / 12 - 2 / 3 * (q - 0.5) ** 3  # 2 ∫ t² dt from q − ½ to ½
    return {
        DisARM: change**2 * q**2 * (1 - q) * (q - 0.5),
        ARM: change**2 * (second - q**2 * (1 - q) ** 2),
    }


@BOTH
@pytest.mark.parametrize(
    ("logit", "pairs"), sample_of([(0.0, 3), (0.0, 1), (0.7, 1), (0.7, 3), (-1.5, 3), (-1.5, 1)], 2)
)
def test_mean_and_variance_of_one_bit(
    gradient: AntitheticGradient, logit: float, pairs: int
) -> None:
    num = 100_000
    found = of_one_bit(gradient, logit, num, pairs)
    p = torch.sigmoid(torch.tensor(logit)).item()
    mean, variance = (1 - logit) * p * (1 - p), variances(logit)[type(gradient)] / pairs
    if variance == 0:
        torch.testing.assert_close(found, torch.full((num,), mean), rtol=1e-12, atol=0)
        return
    assert found.mean().item() == pytest.approx(mean, abs=5 * (variance / num) ** 0.5)
    spread = (found - mean).square()
    assert spread.mean().item() == pytest.approx(variance, abs=5 * spread.std().item() / num**0.5)


@pytest.mark.parametrize("logit", [0.0, 1.7])
def test_variance_of_leave_one_out(logit: float) -> None:
    """Δ² p (1 − p) (½ − p (1 − p)) with two draws, 1/16 at logit 0: above that of DisARM."""
    found = of_one_bit(Score("leave-one-out"), logit, 200_000)
    p = torch.sigmoid(torch.tensor(logit)).item()
    variance = (1 - logit) ** 2 * p * (1 - p) * (0.5 - p * (1 - p))
    assert found.var().item() == pytest.approx(variance, rel=0.03)
    assert variances(logit)[DisARM] < variances(logit)[ARM] < variance


def test_the_variance_of_arm_is_never_smaller() -> None:
    for logit in torch.linspace(-6, 6, 41).tolist():
        if abs(1 - logit) > 1e-9:
            assert variances(logit)[ARM] > variances(logit)[DisARM]
    assert variances(0.0) == {DisARM: 0.0, ARM: pytest.approx(1 / 12 - 1 / 16)}


# Several bits: two sites, one of them in a plate nested in the data plate.

X = torch.tensor([0.4, 1.7])


@dataclass
class Several:
    """Three bits of an event and two in a nested plate, for `num` copies of one datum.

    Attributes:
        num: The number of copies, each with its own parameters.
        by_probs: Whether the event's bits have probabilities rather than logits.
        looped: Whether the program has to run particle by particle.
    """

    num: int
    by_probs: bool = False
    looped: bool = False

    def __post_init__(self) -> None:
        values = {"a": [0.3, -0.8, 1.1], "b": [-0.4, 0.6], "slope": [0.7, -0.5, 0.2]}
        self.parameters = {
            name: torch.tensor(value).repeat(self.num, 1).requires_grad_()
            for name, value in values.items()
        }

    def model(self) -> None:
        keep = torch.tensor([True, False])
        with pyro.plate("data", self.num, dim=-2):
            g = pyro.sample("g", dist.Bernoulli(torch.full((3,), 0.4)).to_event(1))
            if self.looped:
                g = g.reshape(self.num, 1, 3)
            tilt = (g * self.parameters["slope"].unsqueeze(1)).sum(-1)
            with pyro.plate("features", 2, dim=-1):
                b = pyro.sample("b", dist.Bernoulli(logits=tilt - 0.2))
                with poutine.mask(mask=keep):
                    pyro.sample("x", dist.Normal(b + tilt, 0.6), obs=X)
                pyro.sample("y", dist.Normal(2 * b - tilt, 0.9), obs=X)

    def guide(self) -> None:
        logits = self.parameters["a"].unsqueeze(1)
        bits = dist.Bernoulli(probs=logits.sigmoid()) if self.by_probs else None
        with pyro.plate("data", self.num, dim=-2):
            pyro.sample("g", (bits or dist.Bernoulli(logits=logits)).to_event(1))
            with pyro.plate("features", 2, dim=-1):
                pyro.sample("b", dist.Bernoulli(logits=self.parameters["b"]))

    def gradients(self) -> Tensor:
        """The gradients of the bound for each copy, `[num, 8]`."""
        grads = [p.grad for p in self.parameters.values()]
        return -torch.cat([g for g in grads if g is not None], 1)


def plain(program: Any) -> Any:
    return program


def scaled(program: Any) -> Any:
    return poutine.scale(program, scale=0.3)


def warmed(program: Any) -> Any:
    return KLWeight(0.4)(program)


def masked(program: Any) -> Any:
    return poutine.mask(program, mask=torch.tensor([True, False]))


class Given(poutine.messenger.Messenger):
    """Give latent sites their values; they stay latent, for handlers that act on latent sites."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]


def enumerated(handled: Callable[[Any], Any]) -> tuple[Tensor, Tensor]:
    """The ELBO and its gradient, by a sum over all 32 values of the bits of one datum."""
    one = Several(1)
    total = torch.tensor(0.0)
    for bits in product((0.0, 1.0), repeat=5):
        g, b = torch.tensor(bits[:3]).reshape(1, 1, 3), torch.tensor(bits[3:]).reshape(1, 2)
        given = {"g": g, "b": b}
        log_q = dist.Bernoulli(logits=one.parameters["a"]).log_prob(g).sum()
        log_q = log_q + dist.Bernoulli(logits=one.parameters["b"]).log_prob(b).sum()
        guide = poutine.trace(handled(Given(given)(one.guide))).get_trace()
        model = poutine.trace(handled(poutine.replay(one.model, trace=guide))).get_trace()
        total = total + log_q.exp() * (model.log_prob_sum() - guide.log_prob_sum())
    total.backward()
    return total.detach(), -one.gradients()[0]


def standardized(found: Tensor, expected: Tensor) -> float:
    """The largest deviation of a mean over copies, in standard errors."""
    errors = found.std(0) / len(found) ** 0.5
    return ((found.mean(0) - expected).abs() / (errors + 1e-12)).max().item()


@pytest.mark.parametrize(
    ("gradient", "handled"),
    [
        *((DisARM(), plain), (ARM(), scaled), (DisARM(), warmed), (ARM(), masked)),
        pytest.param(ARM(), plain, marks=pytest.mark.slow),
        pytest.param(DisARM(), scaled, marks=pytest.mark.slow),
        pytest.param(ARM(), warmed, marks=pytest.mark.slow),
        pytest.param(DisARM(), masked, marks=pytest.mark.slow),
    ],
)
def test_mean_of_several_bits_is_the_enumerated_gradient(
    gradient: AntitheticGradient, handled: Callable[[Any], Any]
) -> None:
    toy = Several(20_000, by_probs=handled is plain)
    loss = Objective(ELBO(4), gradient).loss_and_grads(handled(toy.model), handled(toy.guide))
    value, expected = enumerated(handled)
    assert -loss / toy.num == pytest.approx(value.item(), abs=0.02)
    assert standardized(toy.gradients(), expected) < 5


def test_disarm_has_the_smaller_variance() -> None:
    found = []
    for gradient in (DisARM(), ARM()):
        toy = Several(20_000)
        Objective(ELBO(2), gradient).loss_and_grads(toy.model, toy.guide)
        found.append(toy.gradients()[:, :5].var(0))
    assert (found[0] < found[1]).all()


def test_signals_leave_out_the_terms_of_other_plates() -> None:
    """A factor of the second feature does not enter the gradient of the first feature's bit."""
    found = []
    for shift in (0.0, 50.0):
        pyro.set_rng_seed(1)
        logits = torch.zeros(3, 2, requires_grad=True)

        def model(shift: float = shift) -> None:
            with pyro.plate("data", 3, dim=-2), pyro.plate("features", 2, dim=-1):
                b = pyro.sample("b", dist.Bernoulli(torch.tensor([0.3, 0.6])))
                pyro.factor("f", torch.tensor([0.0, shift]) * b)

        def guide(logits: Tensor = logits) -> None:
            with pyro.plate("data", 3, dim=-2), pyro.plate("features", 2, dim=-1):
                pyro.sample("b", dist.Bernoulli(logits=logits))

        OBJECTIVES["disarm"](num_particles=2).loss_and_grads(model, guide)
        assert logits.grad is not None
        found.append(logits.grad)
    assert found[0][:, 0].equal(found[1][:, 0])
    assert not found[0][:, 1].equal(found[1][:, 1])


@BOTH
def test_particles_one_after_another_are_coupled_too(gradient: AntitheticGradient) -> None:
    """The same uniform numbers are drawn in the same order, in one run and in four."""
    found = []
    for looped in (False, True):
        toy = Several(3, looped=looped)
        objective = Objective(ELBO(4), gradient)
        if looped:
            with pytest.warns(UserWarning, match="the particles are run sequentially"):
                objective.bound(toy.model, toy.guide)
        else:
            objective.bound(toy.model, toy.guide)
        drawn = iter(torch.linspace(0.02, 0.97, 2 * 3 * 5).split([9, 6, 9, 6]))
        rows = [next(drawn) for _ in range(4)]
        found.append(_with_uniforms(objective, toy, rows, looped))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def _with_uniforms(objective: Any, toy: Several, rows: list[Tensor], looped: bool) -> Tensor:
    """Gradients with given uniform numbers: of sites g and b in pair 0, then in pair 1."""
    of_run = rows if looped else [torch.cat(rows[::2]), torch.cat(rows[1::2])]
    left = iter(of_run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand_like", lambda like: next(left).reshape(like.shape))
        objective.loss_and_grads(toy.model, toy.guide)
    assert next(left, None) is None
    return toy.gradients()


# Bits beside a continuous latent.


def mixed(num: int, bit_first: bool) -> tuple[Any, Any, list[Tensor]]:
    """A bit y and a z: z given y in the guide, or y given z."""
    p = [torch.full((num,), v, requires_grad=True) for v in (0.3, -0.4, 0.5, 0.7)]

    def model() -> None:
        with pyro.plate("data", num):
            z = pyro.sample("z", dist.Normal(torch.zeros(num), 1.0))
            y = pyro.sample("y", dist.Bernoulli(torch.full((num,), 0.4)))
            pyro.sample("x", dist.Normal(z + 1.5 * y, 1.0), obs=torch.ones(num))

    def guide() -> None:
        with pyro.plate("data", num):
            if bit_first:
                y = pyro.sample("y", dist.Bernoulli(logits=p[2]))
                pyro.sample("z", dist.Normal(p[0] + p[3] * y, p[1].exp()))
            else:
                z = pyro.sample("z", dist.Normal(p[0], p[1].exp()))
                pyro.sample("y", dist.Bernoulli(logits=p[2] + p[3] * z))

    return model, guide, p


@BOTH
def test_paths_beside_bits(gradient: AntitheticGradient) -> None:
    model, guide, p = mixed(100_000, bit_first=True)
    Objective(ELBO(2), gradient).loss_and_grads(model, guide)
    found = -torch.stack([v.grad for v in p if v.grad is not None], 1)
    one = [v.detach()[:1].clone().requires_grad_() for v in p]
    nodes = torch.linspace(-9, 9, 1801)
    normal = dist.Normal(0.0, 1.0).log_prob(nodes).exp()
    elbo = torch.tensor(0.0)
    for y in (0.0, 1.0):
        z = one[0] + one[3] * y + one[1].exp() * nodes
        log_q = dist.Bernoulli(logits=one[2]).log_prob(torch.tensor(y))
        log_p = dist.Bernoulli(0.4).log_prob(torch.tensor(y)) + dist.Normal(0.0, 1.0).log_prob(z)
        log_p = log_p + dist.Normal(z + 1.5 * y, 1.0).log_prob(torch.tensor(1.0))
        log_z = dist.Normal(one[0] + one[3] * y, one[1].exp()).log_prob(z)
        elbo = elbo + (log_q.exp() * normal * (log_p - log_q - log_z)).sum() / normal.sum()
    expected = torch.cat(torch.autograd.grad(elbo, one))
    assert standardized(found, expected) < 5


# Broken copies.


class WrongSign(DisARM):
    def per_logit(self, logits: Tensor, one: Tensor, other: Tensor, uniform: Tensor) -> Tensor:
        return -super().per_logit(logits, one, other, uniform)


class NoHalf(DisARM):
    def per_logit(self, logits: Tensor, one: Tensor, other: Tensor, uniform: Tensor) -> Tensor:
        return 2 * super().per_logit(logits, one, other, uniform)


class WrongSide(DisARM):
    """σ(a) for σ(|a|)."""

    def per_logit(self, logits: Tensor, one: Tensor, other: Tensor, uniform: Tensor) -> Tensor:
        return 0.5 * (one - other) * torch.sigmoid(logits)


class ScoreOfPairs(DisARM):
    """The score (z − p) with f(z̃) as a baseline, which depends on z."""

    def per_logit(self, logits: Tensor, one: Tensor, other: Tensor, uniform: Tensor) -> Tensor:
        return one - torch.sigmoid(logits)


@pytest.mark.parametrize("broken", [WrongSign(), NoHalf(), WrongSide(), ScoreOfPairs()])
def test_broken_copies_are_caught(broken: AntitheticGradient) -> None:
    toy = Several(20_000)
    Objective(ELBO(4), broken).loss_and_grads(toy.model, toy.guide)
    assert standardized(toy.gradients(), enumerated(plain)[1]) > 10


@pytest.mark.slow
@pytest.mark.parametrize("broken", [WrongSign(), NoHalf(), WrongSide(), ScoreOfPairs()])
def test_broken_copies_do_not_conform(broken: AntitheticGradient) -> None:
    words = "the mean gradient is that of the sum over all"
    assert_caught(Objective(ELBO(4), broken), words, by=("enumerated_means",))


class SameUniforms(antithetic_bits.AntitheticBits):
    """Both of a pair from the same u."""

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if msg["name"] in self._uniforms:
            msg["value"] = torch.cat([msg["value"][: self.num_pairs]] * 2)


class IndependentUniforms(antithetic_bits.AntitheticBits):
    """Each draw from its own u."""

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if msg["name"] in self._uniforms:
            msg["value"] = msg["fn"].sample()


@pytest.mark.parametrize("coupling", [SameUniforms, IndependentUniforms])
def test_other_couplings_are_caught(coupling: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyroae.objectives.disarm.AntitheticBits", coupling)
    toy = Several(20_000)
    Objective(ELBO(4), DisARM()).loss_and_grads(toy.model, toy.guide)
    assert standardized(toy.gradients(), enumerated(plain)[1]) > 10


# Refusals.


def one_site(q: Any, p: Any | None = None) -> tuple[Any, Any]:
    """A program with one latent site."""

    def model() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", p or q)

    def guide() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", q)

    return model, guide


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="DisARM is defined for the ELBO, not for IWAE"):
        Objective(IWAE(4), DisARM())
    with pytest.raises(ConfigError, match="ARM is defined for the ELBO, not for JVI"):
        Objective(JVI(4), ARM())
    for count in (1, 3):
        with pytest.raises(ConfigError, match=f"num_particles must be even, not {count}"):
            OBJECTIVES["disarm"](num_particles=count)
    with pytest.raises(ProgramError, match=r"takes Bernoulli sites.* none: its site 'z' is a Norm"):
        OBJECTIVES["disarm"](num_particles=2).bound(*one_site(dist.Normal(torch.zeros(3), 1.0)))
    with pytest.raises(ProgramError, match=r"takes Bernoulli sites.*site 'z' is a Categorical"):
        OBJECTIVES["arm"](num_particles=2).bound(*one_site(dist.Categorical(torch.ones(3, 4))))
    spread = dist.TransformedDistribution(
        dist.Bernoulli(torch.full((3,), 0.5)), [dist.transforms.AffineTransform(0.0, 2.0)]
    )
    with pytest.raises(ProgramError, match="takes Bernoulli sites"):
        OBJECTIVES["arm"](num_particles=2).bound(*one_site(spread))


def chained(parity: bool) -> Callable[[], None]:
    """Bits that depend on others: on one, or on the parity of two."""

    def program() -> None:
        with pyro.plate("data", 3):
            a = pyro.sample("a", dist.Bernoulli(torch.full((3,), 0.5)))
            b = pyro.sample("b", dist.Bernoulli(torch.full((3,), 0.5)))
            parent = (a + b) % 2 if parity else a
            pyro.sample("c", dist.Bernoulli(logits=0.1 * parent))

    return program


@pytest.mark.parametrize("parity", [False, True])
def test_bits_that_depend_on_bits_are_refused(parity: bool) -> None:
    program = chained(parity)
    with pytest.raises(
        ProgramError, match="the logits of the guide's site 'c' depend on other draws"
    ):
        OBJECTIVES["disarm"](num_particles=2).bound(program, program)


def test_bits_that_depend_on_a_continuous_draw_are_refused() -> None:
    model, guide, _ = mixed(3, bit_first=False)
    with pytest.raises(
        ProgramError, match="the logits of the guide's site 'y' depend on other draws"
    ):
        OBJECTIVES["disarm"](num_particles=2).bound(model, guide)


@BOTH
def test_a_dependence_with_weights_that_are_0_at_first_is_refused(
    gradient: AntitheticGradient,
) -> None:
    weight = torch.zeros((), requires_grad=True)

    def program() -> None:
        with pyro.plate("data", 3):
            a = pyro.sample("a", dist.Bernoulli(torch.full((3,), 0.5)))
            pyro.sample("c", dist.Bernoulli(logits=weight * a))

    with pytest.raises(ProgramError, match="the logits of the guide's site 'c' depend on other"):
        Objective(ELBO(2), gradient).bound(program, program)


# Training.


def binary(num: int = 6) -> Tensor:
    return (torch.rand(num, 16, generator=torch.Generator().manual_seed(0)) < 0.4).double()


@BOTH
def test_every_trainer_takes_it(gradient: AntitheticGradient) -> None:
    system, x = zoo.discrete_vae(16, 3, encoder=MLP((7,))).double(), binary(40)
    objective = Objective(ELBO(4), gradient)
    config = TrainConfig(epochs=24, batch_size=20, lr=0.05, precision="64-true", keep="last")
    history = fit(system, x, objective, config, progress=False).history
    assert history[-1].train_nelbo < history[0].train_nelbo - 0.5
    elbo = TraceELBO(num_particles=2000).loss(system.model, system.guide, x)
    many = Objective(ELBO(500), gradient)
    steps = SVI(system.model, system.guide, pyro.optim.SGD({"lr": 0.0}), many)
    value = sum(steps.step(x) for _ in range(4)) / 4
    assert value == pytest.approx(elbo, rel=5e-3)


@BOTH
def test_compiled_code_has_the_numbers_of_eager_code(gradient: AntitheticGradient) -> None:
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        system, objective = (
            zoo.discrete_vae(16, 3, encoder=MLP((7,))).double(),
            Objective(ELBO(4), gradient),
        )
        if compiled:
            graphs = Compiled(system, objective, backend="eager")
            torch.manual_seed(5)
            value, gradients = graphs.value_and_grads(binary())
            grads = list(gradients)
            assert graphs.is_compiled
        else:
            objective.bound(system.model, system.guide, binary())
            torch.manual_seed(5)
            value, surrogate = bound_of(system, objective, (binary(),))
            grads = list(torch.autograd.grad(-surrogate, list(system.parameters())))
        found.append([value.detach(), *grads])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_claims() -> None:
    objective = OBJECTIVES["disarm"](num_particles=4)
    assert objective.kinds == {"binary"}
    assert objective.is_elbo
    assert not objective.is_symmetric
    assert objective.evaluations == 4
