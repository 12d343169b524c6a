"""Latent sites outside the data plate under bounds of several particles.

w ~ N(0, 1), z_n ~ N(w, 1), x_n ~ N(z_n, 1): x_n given w is N(w, 2), and x is N(0, 2 I + 1 1ᵀ).
"""

import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae import log_likelihood
from pyroae.errors import ProgramError
from pyroae.evaluation.importance.proposals import Local, Mixture
from pyroae.objectives import (
    ELBO,
    IWAE,
    OBJECTIVES,
    DoublyReparameterized,
    Objective,
    ObjectiveBase,
    Pathwise,
    Score,
    StickingTheLanding,
    WakeSleep,
)
from pyroae.programs.global_sites import globals_of

pytestmark = pytest.mark.usefixtures("float64")
Programs = tuple[Callable[..., Any], Callable[..., Any]]
SUPPORTED = ("iwae", "renyi", "miwae", "ciwae", "jvi", "stl", "iwae-stl", "dreg", "vimco", "score")
REFUSED = ("rws", "rws-dreg", "tvo", "piwae")


def data(count: int = 6) -> Tensor:
    return 1 + 2**0.5 * torch.randn(
        count, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )


def log_px(x: Tensor) -> Tensor:
    covariance = 2 * torch.eye(len(x)) + torch.ones(len(x), len(x))
    return dist.MultivariateNormal(torch.zeros(len(x)), covariance).log_prob(x)


def programs(
    x: Tensor, *, wider: float = 1.0, total: int | None = None, seen: list[Tensor] | None = None
) -> Programs:
    """The model of all data x, and a guide: the exact posterior, with scales times `wider`.

    total: the whole plate, of which the argument is a part. seen: where the draws of w are put.
    """
    precision = 1 + len(x) / 2
    start = {
        "loc": x.sum() / 2 / precision,
        "log_scale": torch.tensor(wider / precision**0.5).log(),
        "slope": torch.tensor(0.5),
        "log_width": torch.tensor(wider * 0.5**0.5).log(),
    }

    def plate(x: Tensor) -> Any:
        return pyro.plate("data", total or len(x), subsample=torch.arange(len(x)))

    def model(x: Tensor) -> None:
        shift = pyro.param("shift", torch.tensor(0.0))
        w = pyro.sample("w", dist.Normal(shift, 1.0))
        if seen is not None:
            seen.append(w)
        with plate(x):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        loc, log_scale, slope, log_width = (
            pyro.param(name, value) for name, value in start.items()
        )
        w = pyro.sample("w", dist.Normal(loc, log_scale.exp()))
        with plate(x):
            pyro.sample("z", dist.Normal(slope * (w + x), log_width.exp()))

    return model, guide


def leaves_of_store() -> list[Tensor]:
    """The parameters of φ, then of θ."""
    store: Any = pyro.get_param_store()._params
    return [store[name] for name in ("loc", "log_scale", "slope", "log_width", "shift")]


def gradients(objective: ObjectiveBase, guided: Programs, x: Tensor, draws: int) -> Tensor:
    """`[draws, P]`, of the surrogate for φ: loc, log_scale, slope, log_width; and for θ: shift."""
    guided[1](x)
    guided[0](x)
    leaves = leaves_of_store()
    rows = [
        torch.autograd.grad(objective.bound(*guided, x).surrogate, leaves, allow_unused=True)
        for _ in range(draws)
    ]
    return torch.stack(
        [torch.stack([torch.zeros(()) if g is None else g for g in row]) for row in rows]
    )


@cache
def of_the_bound(name: str, wider: float, draws: int) -> Tensor:
    """Pathwise gradients, `[draws, P]`, for several estimators that they are compared with."""
    pyro.set_rng_seed(1)
    joint = Objective(IWAE(3), Pathwise(), joint=True)
    objective = joint if name == "joint" else OBJECTIVES[name](num_particles=3)
    x = data(3)
    return gradients(objective, programs(x, wider=wider), x, draws)


@pytest.mark.parametrize("name", SUPPORTED)
def test_with_the_exact_posterior_every_bound_is_the_evidence(name: str) -> None:
    x = data()
    objective = OBJECTIVES[name](num_particles=4)
    for _ in range(3):
        assert objective.bound(*programs(x), x).value.item() == pytest.approx(
            log_px(x).item(), abs=1e-9
        )


def test_all_particles_have_one_draw_of_the_globals_and_their_own_of_the_rest() -> None:
    seen: list[Tensor] = []
    x = data()
    model, guide = programs(x, wider=1.5, seen=seen)
    assert globals_of(model, guide, (x,), {}).names == {"w"}
    objective = OBJECTIVES["iwae"](num_particles=5)
    traces = objective.run(model, guide, (x,), {})
    w, z = (traces.guide.nodes[name]["value"] for name in "wz")
    assert w.shape == (5, 1)
    assert (w == w[0]).all()
    assert (z.std(0) > 0).all()
    assert torch.equal(seen[-1], w)


def test_a_program_without_a_plate_is_one_datum_and_has_no_globals() -> None:
    def model(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(pyro.sample("w", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("w", dist.Normal(x / 2, 1.0))

    assert not globals_of(model, guide, (torch.tensor(0.5),), {}).names
    w = (
        OBJECTIVES["iwae"](num_particles=5)
        .run(model, guide, (torch.tensor(0.5),), {})
        .guide.nodes["w"]["value"]
    )
    assert w.std() > 0


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_part_of_the_data_stands_for_all_given_the_draw(name: str) -> None:
    """With the exact conditional of z: log p(w)/q(w) + (N / B) Σ_batch log p(x_n | w), at the w
    that was drawn.
    """
    seen: list[Tensor] = []
    x = data(12)
    model, guide = programs(x, total=12, seen=seen)
    value = OBJECTIVES[name](num_particles=4).bound(model, guide, x[:3]).value
    w, precision = seen[-1].flatten()[0], torch.tensor(7.0)
    ratio = dist.Normal(0.0, 1.0).log_prob(w) - dist.Normal(
        x.sum() / 2 / precision, precision**-0.5
    ).log_prob(w)
    expected = ratio + 4 * dist.Normal(w, 2**0.5).log_prob(x[:3]).sum()
    assert value.item() == pytest.approx(expected.item(), abs=1e-9)


def test_the_bound_of_each_datum_is_tighter_than_that_of_all_data_as_one() -> None:
    """N = 200: the gap of locally enhanced bounds falls as 1/K (Geffner & Domke 2022); that of all
    data as one hardly does.
    """
    x = data(200)
    model, guide = programs(x, wider=1.3)
    exact, gap = log_px(x), {}
    for k in (1, 8, 64):
        objective = OBJECTIVES["iwae"](num_particles=k)
        with torch.no_grad():
            gap[k] = (
                exact
                - torch.stack([objective.bound(model, guide, x).value for _ in range(100)]).mean()
            ).item()
    joint = OBJECTIVES["trace-elbo"](num_particles=64)
    with torch.no_grad():
        traces = joint.run(model, guide, (x,), {})
        weights = joint_log_weights(traces)
    assert 0 < gap[64] < gap[8] / 3 < gap[1] / 9
    assert gap[64] < exact.item() - weights.logsumexp(0).item() + torch.tensor(64.0).log().item()


@pytest.mark.parametrize(
    "gradient", [Pathwise(), WakeSleep(), Score(), DoublyReparameterized(), StickingTheLanding()]
)
def test_all_data_are_one_datum_on_request(gradient: Any) -> None:
    """Every gradient takes them: its value is the IWAE bound of p(w, z, x) / q(w, z | x)."""
    x = data()
    guided = programs(x, wider=1.3)
    objective = Objective(IWAE(4), gradient, joint=True)
    torch.manual_seed(1)
    value = objective.bound(*guided, x).value.item()
    torch.manual_seed(1)
    weights = joint_log_weights(OBJECTIVES["trace-elbo"](num_particles=4).run(*guided, (x,), {}))
    assert value == pytest.approx(weights.logsumexp(0).item() - math.log(4), abs=1e-9)
    assert not objective.is_per_datum


@pytest.mark.parametrize(
    "gradient",
    [
        DoublyReparameterized(),
        *(pytest.param(gradient, marks=pytest.mark.slow) for gradient in (WakeSleep(), Score())),
    ],
)
def test_the_gradients_of_joint_data_have_their_means(gradient: Any) -> None:
    """θ follows the IWAE bound of all data as one datum; φ too, but for wake-sleep."""
    x = data(3)
    guided = programs(x, wider=1.5)
    one = gradients(Objective(IWAE(3), gradient, joint=True), guided, x, 150)
    other = of_the_bound("joint", 1.5, 300)
    if isinstance(gradient, WakeSleep):
        one, other = one[:, 4:], other[:, 4:]
    error = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
    assert ((one.mean(0) - other.mean(0)).abs() < 4.5 * error).all()


def test_joint_data_are_all_data() -> None:
    x = data(12)
    with pytest.raises(ProgramError, match="the plate 'data' holds 3 of 12"):
        Objective(IWAE(4), joint=True).bound(*programs(x, total=12), x[:3])


def joint_log_weights(traces: Any) -> Tensor:
    """`[K]`, of all data as one datum."""
    from pyroae.weights import reduce_log_weights

    weights = reduce_log_weights(traces)
    return weights.log_weight.sum(1) + weights.log_global


@pytest.mark.parametrize("gradient", [StickingTheLanding(), DoublyReparameterized()])
def test_at_the_exact_posterior_the_path_gradients_of_local_parameters_are_zero_draw_by_draw(
    gradient: Any,
) -> None:
    """Those of q(z | w, x); q(w) follows log p(z | w) at the draws of z, as θ does."""
    x = data()
    found = gradients(Objective(IWAE(4), gradient), programs(x), x, 5)
    assert found[:, 2:4].abs().max() < 1e-9
    assert found[:, 4].abs().max() > 0.1  # θ


@pytest.mark.parametrize("name", ["dreg", pytest.param("vimco", marks=pytest.mark.slow)])
def test_gradients_have_the_mean_of_the_bound_s_own(name: str) -> None:
    x = data(3)
    one = gradients(OBJECTIVES[name](num_particles=3), programs(x, wider=1.8), x, 600)
    other = of_the_bound("iwae", 1.8, 1200)
    error = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
    assert ((one.mean(0) - other.mean(0)).abs() < 4.5 * error).all()
    assert (one.mean(0).abs() > 5 * error).sum() >= 3  # or nothing were shown


def gradient_of_the_elbo(x: Tensor) -> Tensor:
    """`[P]`, in closed form, at the present parameters."""
    leaves = leaves_of_store()
    loc, log_scale, slope, log_width, shift = leaves
    of_w, of_z = (2 * log_scale).exp(), (2 * log_width).exp()
    step = ((slope - 1) * loc + slope * x).square() + (slope - 1).square() * of_w + of_z
    error = (x - slope * (loc + x)).square() + slope.square() * of_w + of_z
    prior = (loc - shift).square() + of_w
    elbo = log_scale + len(x) * log_width - (prior + step.sum() + error.sum()) / 2
    return torch.stack(torch.autograd.grad(elbo, leaves))


@pytest.mark.parametrize(
    ("objective", "draws"),
    [
        (OBJECTIVES["stl"](num_particles=3), 170),
        (OBJECTIVES["score"](num_particles=3), 170),
        (Objective(ELBO(1), Score("none")), 400),  # the globals keep their path
    ],
    ids=["stl", "score", "score of one particle"],
)
def test_gradients_have_the_mean_of_the_elbo_s_own(objective: Objective, draws: int) -> None:
    x = data(3)
    found = gradients(objective, programs(x, wider=1.8), x, draws)
    error, exact = (found.var(0) / len(found)).sqrt(), gradient_of_the_elbo(x)
    assert ((found.mean(0) - exact).abs() < 4.5 * error).all()
    assert exact[1].abs() > 5 * error[1]  # the scale of q(w)


def test_the_pathwise_gradient_is_the_derivative_at_fixed_noise() -> None:
    x, eps = data(3), 1e-6
    guided = programs(x, wider=1.4)
    objective = Objective(IWAE(3), Pathwise())
    gradients(objective, guided, x, 1)
    for name in ("loc", "log_scale", "slope", "log_width", "shift"):
        leaf, values = pyro.get_param_store()._params[name], []
        for shift in (eps, -eps):
            with torch.no_grad():
                leaf.add_(shift)
            pyro.set_rng_seed(1)
            values.append(objective.bound(*guided, x).value.detach())
            with torch.no_grad():
                leaf.sub_(shift)
        (found,) = torch.autograd.grad(objective_at(objective, guided, x), leaf)
        torch.testing.assert_close(found, (values[0] - values[1]) / (2 * eps), atol=1e-6, rtol=1e-6)


def objective_at(objective: ObjectiveBase, guided: Programs, x: Tensor) -> Tensor:
    pyro.set_rng_seed(1)
    return objective.bound(*guided, x).surrogate


def test_programs_that_do_not_take_particles_share_the_draw_too() -> None:
    x = data()

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(w, 1.0).expand([1]).to_event(1))
            pyro.sample("x", dist.Normal(z[:, 0], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        precision = 1 + len(x) / 2
        w = pyro.sample("w", dist.Normal(x.sum() / 2 / precision, precision**-0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((w + x[:, None]) / 2, 0.5**0.5).to_event(1))

    for name in ("iwae", "dreg"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the particles are run sequentially")
            value = OBJECTIVES[name](num_particles=4).bound(model, guide, x).value
        assert value.item() == pytest.approx(log_px(x).item(), abs=1e-9)


@pytest.mark.parametrize("name", REFUSED)
def test_gradients_that_are_not_defined_given_the_globals_are_refused(name: str) -> None:
    x = data()
    with pytest.raises(
        ProgramError, match="the latent site 'w' lies outside the data plate: use trace-elbo, or"
    ):
        OBJECTIVES[name](num_particles=4).bound(*programs(x), x)


def with_terms(*, auxiliary: bool, shift: float = 0.0) -> Programs:
    """The model, and a guide with its draws as sites, or as auxiliary sites below Deltas, where z
    has shift · w added.
    """
    x, model = data(), programs(data())[0]

    def drawn(name: str, fn: Any, factor: float = 1.0, plus: Any = 0.0) -> Tensor:
        if not auxiliary:
            return pyro.sample(name, dist.Normal(factor * fn.loc, factor * fn.scale))
        u = pyro.sample(f"{name}_auxiliary", fn, infer={"is_auxiliary": True})
        density = -torch.tensor(factor).log().expand(u.shape)
        return pyro.sample(name, dist.Delta(factor * u + plus, log_density=density))

    def guide(x: Tensor) -> None:
        loc, log_scale, slope, log_width = (
            pyro.param(name, torch.tensor(0.3))
            for name in ("loc", "log_scale", "slope", "log_width")
        )
        w = drawn("w", dist.Normal(loc, log_scale.exp()), 2.0)
        with pyro.plate("data", len(x), subsample=torch.arange(len(x))):
            drawn(
                "z", dist.Normal(slope * (w + x), log_width.exp()), 1.0, shift * w if shift else 0.0
            )

    guide(x)
    return model, guide


@pytest.mark.parametrize("name", ["iwae", "stl", "iwae-stl", "dreg"])
def test_deltas_of_auxiliary_draws_have_the_gradient_of_the_draws_themselves(name: str) -> None:
    rows = []
    for auxiliary in (False, True):
        pyro.clear_param_store()
        guided = with_terms(auxiliary=auxiliary)
        torch.manual_seed(1)
        rows.append(gradients(OBJECTIVES[name](num_particles=3), guided, data(), 5))
    torch.testing.assert_close(rows[0], rows[1])


def test_dreg_refuses_a_delta_in_the_plate_that_moves_with_a_global_draw() -> None:
    model, guide = with_terms(auxiliary=True, shift=0.4)
    with pytest.raises(ProgramError, match="its site 'z' is a Delta"):
        OBJECTIVES["dreg"](num_particles=3).bound(model, guide, data())


def with_weights(x: Tensor, seen: list[Tensor], *, part: int | None = None) -> Programs:
    """Two weights in a plate of their own, z_n ~ N(w_1 + w_2, 1), x_n ~ N(z_n, 1); a guide with the
    exact q(z | w, x).

    part: the number of data in a batch. seen: where the draws of w are put.
    """

    total = len(x)

    def plate() -> Any:
        return pyro.plate("data", total, subsample=torch.arange(part or total))

    def model(x: Tensor) -> None:
        with pyro.plate("weights", 2):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
        seen.append(w)
        with plate():
            z = pyro.sample("z", dist.Normal(w.sum(-1, keepdim=True), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([0.3, 0.5]))
        with pyro.plate("weights", 2):
            w = pyro.sample("w", dist.Normal(loc, 0.7))
        with plate():
            pyro.sample("z", dist.Normal((w.sum(-1, keepdim=True) + x) / 2, 0.5**0.5))

    return model, guide


@pytest.mark.parametrize("name", SUPPORTED)
@pytest.mark.parametrize("part", [None, 2])
def test_globals_in_plates_of_their_own(name: str, part: int | None) -> None:
    """With the exact conditional of z: Σ_j log p(w_j)/q(w_j) + (N / B) Σ_batch log N(x_n; w_1 +
    w_2, 2), at the w drawn.
    """
    x = data()
    seen: list[Tensor] = []
    model, guide = with_weights(x, seen, part=part)
    value = OBJECTIVES[name](num_particles=4).bound(model, guide, x[:part]).value
    w = seen[-1]
    assert w.shape == (4, 2)
    ratio = (
        dist.Normal(0.0, 1.0).log_prob(w[0])
        - dist.Normal(torch.tensor([0.3, 0.5]), 0.7).log_prob(w[0])
    ).sum()
    expected = (
        ratio + len(x) / len(x[:part]) * dist.Normal(w[0].sum(), 2**0.5).log_prob(x[:part]).sum()
    )
    assert value.item() == pytest.approx(expected.item(), abs=1e-9)


def test_of_two_plates_that_cross_neither_is_the_data_plate() -> None:
    def program(x: Tensor | None) -> None:
        rows, columns = pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 3, dim=-1)
        with rows:
            row = pyro.sample("row", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
        with columns:
            column = pyro.sample("column", dist.Normal(0.0, 1.0))
        if x is not None:
            with rows, columns:
                pyro.sample("x", dist.Normal(row + column, 1.0), obs=x)

    with pytest.raises(
        ProgramError, match="no one plate holds all the sites: the site 'x' in 'rows' and 'columns'"
    ):
        OBJECTIVES["iwae"](num_particles=3).bound(
            program, lambda x: program(None), torch.zeros(3, 3)
        )


def test_a_global_draw_that_depends_on_local_ones_is_refused() -> None:
    """IWAE with K = 8 would be above log p(x), by 0.2 nats at these data: particles would share a w
    drawn from one z.
    """
    x = data()
    model, _ = programs(x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.7 * x, 0.9))
        pyro.sample("w", dist.Normal(z.sum(-1, keepdim=z.dim() > 1) / 7, (1 / 7) ** 0.5))

    for name in SUPPORTED:
        with pytest.raises(
            ProgramError,
            match="site 'w' of the guide lies outside the data plate and depends on draws inside",
        ):
            OBJECTIVES[name](num_particles=8).bound(model, guide, x)
    assert OBJECTIVES["trace-elbo"](num_particles=8).bound(model, guide, x).value < 0


def test_an_observation_of_all_data_together_is_refused() -> None:
    """log p(y | z_1 … z_N) belongs to no datum: its mean beside bounds of each datum would bound
    nothing.
    """
    x = data()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.sample("y", dist.Normal(z.sum(-1, keepdim=z.dim() > 1), 1.0), obs=torch.tensor(2.0))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    with pytest.raises(
        ProgramError,
        match="site 'y' of the model lies outside the data plate and depends on draws inside it",
    ):
        OBJECTIVES["iwae"](num_particles=4).bound(model, guide, x)


def test_particles_that_are_all_the_same_are_pointed_out() -> None:
    x = data()

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    objective = OBJECTIVES["iwae"](num_particles=8)
    with pytest.warns(
        UserWarning, match=r"the guide draws \['w'\] outside the data plate and nothing inside it"
    ):
        objective.bound(model, lambda x: pyro.sample("w", dist.Normal(0.3, 1.0)), x)


def trained(*, of_data: bool = False, point: bool = False) -> Programs:
    """The model, and a guide after training on other data: q(w) = N(0.4, 0.3²), or a point;
    q(z | x, w) is nearly exact.

    of_data: q(w) depends on the data instead.
    """
    model = programs(data())[0]

    def guide(x: Tensor) -> None:
        loc = x.mean() if of_data else torch.tensor(0.4)
        w = pyro.sample("w", dist.Delta(loc) if point else dist.Normal(loc, 0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((w + x) / 2, 0.8))

    return model, guide


@pytest.mark.parametrize("point", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_log_likelihood_is_held_out_with_errors_of_both_draws(point: bool) -> None:
    """x_n is N(0.4, 2 + 0.3²); errors of the mean over data are those of repetitions, as no two
    data share a draw.
    """
    x, guided = data(5), trained(point=point)
    exact = dist.Normal(0.4, (2 if point else 2.09) ** 0.5).log_prob(x)
    found = [log_likelihood(*guided, x, num_particles=100, seed=seed) for seed in range(40)]
    errors = torch.stack([(one.log_px - exact) / one.se for one in found])
    means = torch.tensor(
        [(one.nll - one.bias + exact.mean().item()) / one.monte_carlo_se for one in found]
    )
    assert errors.square().mean().sqrt() == pytest.approx(1.0, abs=0.15)
    assert means.mean().abs() < 5 * 40**-0.5
    assert means.std() == pytest.approx(1.0, abs=0.35)


def test_held_out_data_take_one_q_of_the_globals() -> None:
    for x in (data(5), data(1)):
        with pytest.raises(
            ProgramError,
            match="the guide's site 'w' lies outside the data plate and depends on the data",
        ):
            log_likelihood(*trained(of_data=True), torch.cat([x, x + 1]), num_particles=10)


def test_proposals_that_weigh_draws_of_several_programs_refuse_globals() -> None:
    model, guide = trained()
    for proposal in (Mixture((guide, guide)), Local(guide)):
        with pytest.raises(ProgramError, match="the latent site 'w' lies outside the data plate"):
            log_likelihood(model, proposal, data(), num_particles=10)


def test_held_out_data_refuse_globals_that_depend_on_draws_of_the_data() -> None:
    """w ~ N(Σ z_n, 1) has no value before the data."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.sample("w", dist.Normal(z.sum(-1, keepdim=True), 1.0))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))
        pyro.sample("w", dist.Normal(torch.zeros(1), 1.0))

    with pytest.raises(
        ProgramError,
        match="the site 'w' of the model lies outside the data plate and depends on draws inside",
    ):
        log_likelihood(model, guide, data(), num_particles=10)
