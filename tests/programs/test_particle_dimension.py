"""Programs that do not take a particle dimension, and models that mix the data of a batch.

z ~ N(0, 1), x ~ N(z, 1), the exact posterior as guide: every log-weight is log p(x) = log N(x; 0,
2), whatever is drawn.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import SVI
from torch import Tensor, nn

from pyroae import (
    AISSettings,
    TrainConfig,
    ais,
    fit,
    gaps,
    information,
    log_likelihood,
    measure_gradients,
    quadrature,
)
from pyroae.compilation.svi import Compiled
from pyroae.errors import ProgramError
from pyroae.evaluation.importance.likelihood import trial_of
from pyroae.evaluation.importance.proposals import Local, Mixture
from pyroae.evaluation.trial import nesting_of
from pyroae.objectives import OBJECTIVES
from pyroae.programs.mixing import mixed_site
from pyroae.programs.pair import system_of
from pyroae.programs.particle_check import plate_nesting
from pyroae.programs.particles import LOOP
from pyroae.programs.traces import prior_of, run
from pyroae.programs.trial_runs import as_stacked_draws
from pyroae.weights import log_weights, reduce_log_weights
from tests.systems import FOR_GAUSSIANS

pytestmark = pytest.mark.usefixtures("float64")
Programs = tuple[Callable[..., Any], Callable[..., Any]]
X = (0.5, -1.0, 2.0)
LOG_PX = (-1.3280, -1.5155, -2.2655)
LOOPED = "the particles are run sequentially"
SETTINGS: dict[str, dict[str, float]] = {
    "dais": {"step_size": 1e-3},  # exact at the exact posterior in the limit of small steps
    "ovis-mc": {"auxiliary": 1},  # of 16 numbers and more at once, torch draws others than singly
}
"""Settings of objectives beside K."""

READS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "z[:, 0]": lambda z, x: z[:, 0],
    "z.mean(1)": lambda z, x: z.mean(1),
    "z.squeeze(1)": lambda z, x: z.squeeze(1),
    "z.reshape(len(x), -1)": lambda z, x: z.reshape(len(x), -1)[..., 0],
    "z.view(x.shape)": lambda z, x: z.view(x.shape),
    "torch.cat([z, y], -1)": lambda z, x: torch.cat([z, torch.zeros(len(x), 1)], -1).sum(-1),
    "torch.cat([z, x[:, None]], 1)": lambda z, x: torch.cat([z, 0 * x[:, None]], 1).sum(1),
}


def programs(read: Callable[[Tensor, Tensor], Tensor], scale: float = 0.5**0.5) -> Programs:
    """The model that reads z so, and a guide: the exact posterior at the default scale."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(read(z, x), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope, width = (
            pyro.param("slope", torch.tensor(0.5)),
            pyro.param("width", torch.tensor(scale)),
        )
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x[:, None], width).to_event(1))

    return model, guide


def x_data() -> Tensor:
    return torch.tensor(X)


def close(found: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(found, torch.tensor(LOG_PX).expand(found.shape), atol=atol, rtol=0)


@pytest.mark.parametrize("read", list(READS))
def test_log_weights_of_programs_that_count_dimensions_from_the_left(read: str) -> None:
    model, guide = programs(READS[read])
    with pytest.warns(
        UserWarning,
        match=f"{LOOPED}, which is slow: .*'[xz]'.*; to be fast, .* index from the right",
    ):
        found = log_weights(model, guide, x_data(), num_particles=5)
    assert found.log_weight.shape == (5, 3)
    close(found.log_weight)


@pytest.mark.parametrize("name", FOR_GAUSSIANS)
@pytest.mark.parametrize("read", ["z[:, 0]", "torch.cat([z, y], -1)"])
def test_every_objective_has_the_exact_value(read: str, name: str) -> None:
    model, guide = programs(READS[read])
    objective = OBJECTIVES[name](num_particles=4, **SETTINGS.get(name, {}))
    with pytest.warns(UserWarning, match=LOOPED):
        value = objective.bound(model, guide, x_data()).value
    if objective.is_elbo and name in ("analytic-kl", "beta-elbo"):
        return  # the closed KL beside a Monte-Carlo likelihood: of no constant value
    assert value.item() == pytest.approx(sum(LOG_PX), abs=2e-4)


@pytest.mark.parametrize("name", FOR_GAUSSIANS)
def test_every_objective_has_the_gradient_of_the_program_that_takes_particles(name: str) -> None:
    """The same random numbers are drawn in the same order, in one run and in many."""
    found = []
    for read in (lambda z, x: z[..., 0], READS["z[:, 0]"]):
        pyro.clear_param_store()
        model, guide = programs(read, scale=0.9)
        objective = OBJECTIVES[name](num_particles=4, **SETTINGS.get(name, {}))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", LOOPED)
            plate_nesting(model, guide, (x_data(),), {})
            pyro.set_rng_seed(1)
            value = objective.loss_and_grads(model, guide, x_data())
        store = pyro.get_param_store()
        found.append([torch.as_tensor(value), *(store[name].grad for name in ("slope", "width"))])
    for one, other in zip(*found, strict=True):
        assert other is not None
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def left_indexing_guide(x: Tensor) -> None:
    """u depends on z, both read from the left."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x[:, None] / 2, 0.8).to_event(1))
        pyro.sample("u", dist.Normal(0.5 * z[:, 0], 0.9))


def two_levels(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        u = pyro.sample("u", dist.Normal(z[..., 0], 1.0))
        pyro.sample("x", dist.Normal(u, 1.0), obs=x)


def test_a_guide_that_counts_from_the_left_is_seen_too() -> None:
    """x ~ N(0, 3): the weights average to the evidence, and DReG reruns the guide particle by
    particle.
    """
    with pytest.warns(UserWarning, match="the site 'u' of the guide has another log-density"):
        found = log_likelihood(two_levels, left_indexing_guide, x_data(), num_particles=800, seed=0)
    exact = dist.Normal(0.0, 3.0**0.5).log_prob(x_data())
    assert ((found.log_px - exact).abs() < 5 * found.se).all()
    with pytest.warns(UserWarning, match="'u' of the guide"):
        OBJECTIVES["dreg"](num_particles=3).loss_and_grads(
            two_levels, left_indexing_guide, x_data()
        )


def vector(read: Callable[[Tensor], Tensor], sd: float) -> tuple[Programs, float]:
    """A program without a plate: one datum, z of 3 elements; the prior as guide; sd of what it
    reads.
    """

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(read(z), 1.0), obs=x)

    return (model, prior_of(model)), (1 + sd**2) ** 0.5


@pytest.mark.parametrize(("read", "sd"), [(lambda z: z[0], 1.0), (lambda z: z.mean(0), 3**-0.5)])
def test_one_datum_in_no_plate(read: Callable[[Tensor], Tensor], sd: float) -> None:
    (model, guide), scale = vector(read, sd)
    x = torch.tensor(0.5)
    with pytest.warns(UserWarning, match=LOOPED):
        log_weight = log_weights(model, guide, x, num_particles=1000).log_weight
    found, spread = (
        log_weight.logsumexp(0) - torch.tensor(1000.0).log(),
        log_weight.exp().std() / log_weight.exp().mean(),
    )
    exact = dist.Normal(0.0, scale).log_prob(x)
    assert abs(found.item() - exact.item()) < 5 * spread.item() / 1000**0.5


@pytest.mark.filterwarnings(f"ignore:{LOOPED}")
def test_evaluators_are_exact_where_particles_are_run_one_by_one() -> None:
    model, guide = programs(READS["z[:, 0]"])
    close(log_likelihood(model, guide, x_data(), num_particles=50, seed=0).log_px)
    close(log_likelihood(model, Mixture((guide, guide)), x_data(), num_particles=50, seed=0).log_px)
    close(quadrature(model, guide, x_data()).log_px)
    close(
        ais(
            model,
            guide,
            x_data(),
            settings=AISSettings(4, 5, start="guide", leapfrog_steps=2),
            seed=0,
        ).log_px
    )
    local = log_likelihood(
        model, Local(prior_of(model), steps=50), x_data(), num_particles=50, seed=0
    )
    from_prior = ais(model, None, x_data(), settings=AISSettings(4, 10, leapfrog_steps=3), seed=0)
    for found in (local, from_prior):
        assert ((found.log_px - torch.tensor(LOG_PX)).abs() < 5 * found.se + 1e-4).all()
    inference = gaps(model, guide, x_data(), num_particles=50, steps=40, seed=0).inference
    assert (inference.values.abs() < 5 * inference.se).all()
    good = information(
        programs(lambda z, x: z[..., 0])[0], guide, x_data(), num_particles=1, seed=0
    )
    assert information(model, guide, x_data(), num_particles=1, seed=0).rate == good.rate


def test_the_gradient_laboratory_and_the_compiler_run_such_a_program() -> None:
    model, guide = programs(READS["z[:, 0]"])
    guide(x_data())
    slope = pyro.get_param_store()._params["slope"]
    with pytest.warns(UserWarning, match=LOOPED):
        found = measure_gradients(
            model,
            guide,
            x_data(),
            {"iwae": OBJECTIVES["iwae"](num_particles=3)},
            parameters={"slope": slope},
            replicates=20,
        )
    assert list(found) == ["iwae"]
    compiled = Compiled(
        system_of(programs(READS["z[:, 0]"])), OBJECTIVES["iwae"](num_particles=4), backend="eager"
    )
    with pytest.warns(UserWarning, match=LOOPED):
        loss = compiled.loss_and_grads(x_data())
    assert compiled.is_compiled
    assert loss.item() == pytest.approx(-sum(LOG_PX), abs=2e-4)


def test_one_warning_for_a_program_and_none_for_one_that_takes_particles() -> None:
    for read, count in (("z[:, 0]", 1), (None, 0)):
        pyro.clear_param_store()
        model, guide = programs(READS[read] if read else lambda z, x: z[..., 0])
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), OBJECTIVES["iwae"](num_particles=3))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for size in (3, 3, 2, 3, 2):
                svi.step(x_data()[:size])
        assert len([w for w in told if LOOPED in str(w.message)]) == count


def test_a_trial_run_leaves_generators_and_buffers_as_they_were() -> None:
    norm = nn.BatchNorm1d(1)

    def model(x: Tensor) -> None:
        pyro.module("norm", norm)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(norm(z)[:, 0], 1.0), obs=x)

    guide = programs(READS["z[:, 0]"])[1]
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match=LOOPED):
        assert plate_nesting(model, guide, (x_data(),), {}) == LOOP + 1
    assert torch.equal(torch.get_rng_state(), before)
    assert norm.training
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(1))  # type: ignore[arg-type]


def test_dropout_is_no_difference() -> None:
    drop = nn.Dropout(0.5)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(drop(z)[..., 0], 1.0), obs=x)

    assert plate_nesting(model, programs(READS["z[:, 0]"])[1], (x_data(),), {}) == 1
    assert drop.training


def whole_study(y: Tensor, weight: Tensor, present: Tensor) -> None:
    """A subsampled plate, a scale per datum, a nested plate, masks: of the arguments and of a
    draw.
    """
    with poutine.scale(scale=weight), pyro.plate("people", 10, subsample_size=len(y), dim=-2):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with poutine.mask(mask=a > 0):
            pyro.sample("b", dist.Gamma(2.0, 1.0))
        with pyro.plate("times", 2, dim=-1), poutine.mask(mask=present):
            pyro.sample("y", dist.Normal(a, 1.0), obs=y)


def test_scales_masks_and_plates_are_the_same_one_by_one() -> None:
    args = torch.randn(4, 2), torch.rand(4, 1), torch.rand(4, 2) < 0.7
    model, guide = whole_study, prior_of(whole_study)
    single = run(model, guide, args, {})
    together = run(model, guide, args, {}, 3, 2)
    drawn = as_stacked_draws(together.drawn, single.drawn)
    apart = run(model, guide, args, {}, 3, LOOP + 2, drawn=drawn)
    for one, other in zip(
        vars(reduce_log_weights(together)).values(),
        vars(reduce_log_weights(apart)).values(),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_all_particles_have_the_same_subsample() -> None:
    seen: list[list[int]] = []

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=2) as index:
            seen.append(index.tolist())
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[:, 0], 1.0), obs=x[index])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=2) as index:
            pyro.sample("z", dist.Normal(x[index, None] / 2, 0.5**0.5).to_event(1))

    with pytest.warns(UserWarning, match=LOOPED):
        plate_nesting(model, guide, (x_data(),), {})
    seen.clear()
    weights = reduce_log_weights(run(model, guide, (x_data(),), {}, 4, LOOP + 1))
    assert len({tuple(index) for index in seen}) == 1
    torch.testing.assert_close(
        weights.log_weight[0], torch.tensor(LOG_PX)[seen[0]], atol=1e-4, rtol=0
    )


def test_runs_with_other_sites_are_refused_by_name() -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        if z > 0:
            pyro.sample("more", dist.Normal(0.0, 1.0))

    pyro.set_rng_seed(0)
    with pytest.raises(ProgramError, match="the site 'more' is in the runs of some particles only"):
        run(model, model, (x_data(),), {}, 30, LOOP)


MIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "z[0]": lambda z: z[0, 0].expand(len(z)),
    "z[-1]": lambda z: z[-1, 0].expand(len(z)),
    "z.mean(0)": lambda z: z.mean(0).expand(len(z)),
    "z less its mean": lambda z: (z - z.mean(-2, keepdim=True))[..., 0],
    "z over its size": lambda z: (z / (1 + z.abs().mean(-2, keepdim=True)))[..., 0],
    "a cumulative sum": lambda z: z.cumsum(-2)[..., 0],
}


@pytest.mark.parametrize("read", list(MIXED))
def test_models_that_mix_data_have_no_log_px_one_by_one(read: str) -> None:
    model, guide = programs(lambda z, x: MIXED[read](z))
    evaluators: list[Callable[..., Any]] = [log_likelihood, ais, gaps, quadrature, information]
    for evaluate in evaluators:
        with pytest.raises(
            ProgramError, match="site 'x' of one datum depends on the other data of its batch"
        ):
            evaluate(model, guide, x_data())


def test_statistics_of_the_batch_in_the_guide_are_no_mixing() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - x.mean())[:, None] / 2, 1.0).to_event(1))

    model = programs(lambda z, x: z[..., 0])[0]
    found = log_likelihood(model, guide, x_data(), num_particles=2000, seed=0)
    assert ((found.log_px - torch.tensor(LOG_PX)).abs() < 5 * found.se).all()


class Normed(nn.Module):
    """A decoder with batch normalization and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(
            nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 1)
        )

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            loc = self.decoder(z.reshape(-1, 1)).reshape(z.shape[:-1])
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, None] / 2, 1.0).to_event(1))


def test_batch_normalization_in_training_mode_is_named() -> None:
    system, x = Normed(), torch.randn(8)
    assert mixed_site(system.model, system.guide, (x,), training=True) == "x"
    assert mixed_site(system.model, system.guide, (x,)) is None
    assert system.decoder[1].num_batches_tracked == 0
    config = TrainConfig(epochs=1, batch_size=4, precision="64-true", compile=False)
    with pytest.warns(
        UserWarning,
        match="site 'x' of one datum depends on the other data of its batch, as with BatchNorm",
    ):
        fit(system, x, OBJECTIVES["iwae"](num_particles=2), config)
    assert log_likelihood(system.model, system.guide, x, num_particles=10, seed=0).log_px.shape == (
        8,
    )


def test_mixing_is_named_in_a_plate_without_a_size() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z - z.mean(-1, keepdim=True), 1.0), obs=x)

    assert mixed_site(model, prior_of(model), (x_data(),)) == "x"


def test_batch_normalization_takes_no_dimension_of_data_for_that_of_its_channels() -> None:
    """With as many data as channels, BatchNorm1d accepts `[K, N, C]` and normalizes each datum,
    over particles and channels.
    """
    decoder = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x[:, None])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, None] / 2, 1.0).to_event(1))

    objective = OBJECTIVES["iwae"](num_particles=4)
    with pytest.warns(
        UserWarning, match=f"{LOOPED}.* the site 'x' of the model has another log-density"
    ):
        objective.bound(model, guide, x_data())
    torch.manual_seed(0)
    value = objective.bound(model, guide, x_data()).value
    torch.manual_seed(0)
    one_by_one = reduce_log_weights(run(model, guide, (x_data(),), {}, 4, LOOP + 1)).log_weight
    assert value.item() == pytest.approx(
        (one_by_one.logsumexp(0) - torch.tensor(4.0).log()).sum().item(), abs=1e-9
    )
    assert decoder[1].num_batches_tracked == 12  # the trial left no trace in the statistics


def test_what_cannot_be_told_is_not_refused() -> None:
    """A plate of a fixed size cannot be run on a part of the data; noise of the model's own differs
    from run to run.
    """

    def fixed(x: Tensor) -> None:
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def noisy(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample(
                "x",
                dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)) + torch.randn(len(x)), 1.0),
                obs=x,
            )

    for model in (fixed, noisy):
        assert mixed_site(model, partial(prior_of(model)), (x_data(),)) is None


def test_an_evaluation_runs_each_program_a_few_times() -> None:
    """One run for sites outside the plate, mixed data and plates; one of one datum, one of all."""
    runs: list[int] = []
    model, guide = programs(lambda z, x: z[..., 0])

    def counted_model(x: Tensor) -> None:
        runs.append(len(x))
        model(x)

    def counted_guide(x: Tensor) -> None:
        runs.append(-len(x))
        guide(x)

    trial_of(counted_model, counted_guide, torch.randn(20))
    guides, models = [n for n in runs if n < 0], [n for n in runs if n > 0]
    assert guides == [-4, -1, -20, -4, -4, -4]  # few, one, all; particles, and each alone
    assert models == [4, 1, 20, 2, 4, 4, 4]  # a part of the few as well


@pytest.mark.parametrize("seed", range(4))
def test_noise_of_a_model_is_no_mixing_after_a_shared_run(seed: int) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + torch.randn(len(x)), 1.0), obs=x)

    def drawn(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    def point(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(x))

    for guide in (drawn, point):
        torch.manual_seed(seed)
        assert nesting_of(model, guide, (torch.randn(5),)) == 1
    torch.manual_seed(seed)
    assert (
        log_likelihood(model, drawn, torch.randn(5), num_particles=4, seed=0)
        .log_px.isfinite()
        .all()
    )


def test_discrete_observations_of_a_guide_stay_as_they_are() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(torch.tensor(0.3)), obs=torch.ones(len(x)))
            pyro.sample("z", dist.Normal(x, 1.0))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    assert plate_nesting(model, guide, (x_data(),), {}) == 1


class OfEachDatum(EasyGuide):
    """A parameter for each datum. It takes neither a part of the data nor particles."""

    def guide(self, x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(3))
        with self.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(loc, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u.reshape(x.shape)))


@pytest.mark.parametrize("mixing", [False, True])
def test_a_guide_with_parameters_of_each_datum_stays_as_it_is(mixing: bool) -> None:
    """An EasyGuide keeps the plates of a run that has failed, of a part of the data or with
    particles, for its next run.
    """

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z - z.mean(-1, keepdim=True) if mixing else z, 1.0), obs=x)

    guide = OfEachDatum(model)
    assert mixed_site(model, guide, (x_data(),)) == ("x" if mixing else None)
    with pytest.raises(ProgramError, match="Shape mismatch inside plate"):
        run(model, guide, (x_data()[:2],), {})
    assert not guide.plates
    with pytest.warns(UserWarning, match=LOOPED):
        assert plate_nesting(model, guide, (x_data(),), {}) == LOOP + 1
    assert not guide.plates
    guide(x_data())


def test_discrete_draws_that_are_equal_by_chance_do_not_hide_what_a_program_reads() -> None:
    """k ~ Bernoulli(0.01): two draws are nearly always the same.

    All particles read the first one's with `reshape`.
    """

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(torch.full((1,), 0.01)).to_event(1))
            pyro.sample("x", dist.Normal(k.reshape(len(x), -1)[..., 0], 1.0), obs=x)

    x = torch.tensor([3.0])
    with pytest.warns(
        UserWarning, match=f"{LOOPED}, .* the site 'x' of the model has another log-density"
    ):
        found = log_likelihood(model, prior_of(model), x, num_particles=1_000, seed=0)
    normal = dist.Normal(torch.tensor([0.0, 1.0]), 1.0).log_prob(x)
    exact = (normal + torch.tensor([0.99, 0.01]).log()).logsumexp(0)
    assert (found.log_px[0] - exact).abs() < 5 * found.se[0]
