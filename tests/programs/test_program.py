"""Programs of one's own: a study of people measured again and again, with gaps, as a user of Pyro
would write it.
"""

import itertools
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from pyroae import TrainConfig, fit
from pyroae.data.batching import served
from pyroae.errors import ConfigError, DataError, ProgramError
from pyroae.objectives import OBJECTIVES, ObjectiveBase
from pyroae.objectives.apply import KLWeight
from pyroae.programs.arguments import Arguments
from pyroae.programs.traces import run
from pyroae.runtime.randomness import fork_random
from pyroae.training.trainer import FitResult
from pyroae.weights import LogWeights, log_weights, reduce_log_weights
from tests.systems import FOR_GAUSSIANS

PEOPLE, REPEATS, KINDS = 60, 4, 3
Programs = tuple[Callable[..., Any], Callable[..., Any]]
float64 = pytest.mark.usefixtures("float64")


class Recognition(PyroModule):
    """The guide: `habit` hangs on `level`; entries that are missing are not looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.summary = nn.Linear(REPEATS, 3)
        self.spread = PyroParam(torch.tensor(1.0), constraint=dist.constraints.positive)

    def forward(self, y: Tensor, present: Tensor, kind: Tensor, **settings: Any) -> None:
        with people(len(y), **settings) as index:
            means = self.summary(torch.where(present, y, 0.0)[index])[:, None]
            level = pyro.sample("level", dist.Normal(means[..., 0], self.spread))
            pyro.sample(
                "habit", dist.Normal(means[..., 1:] + 0.3 * level[..., None], 0.7).to_event(1)
            )


def people(count: int, total: int | None = None, size: int | None = None) -> Any:
    """The data plate: those given, as a part of `total`; or `size` of them, drawn by the plate."""
    return pyro.plate(
        "people", total or count, size, subsample=None if size else torch.arange(count), dim=-2
    )


def study(**settings: Any) -> Programs:
    """A function over a network and parameters in the store, and a PyroModule, as at the start."""
    pyro.clear_param_store()
    with fork_random(torch.device("cpu"), 0):
        curve, guide = (
            nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, REPEATS)),
            cast(Any, Recognition()),
        )

    def model(y: Tensor, present: Tensor, kind: Tensor, **settings: Any) -> None:
        pyro.module("curve", curve)
        noise = pyro.param("noise", lambda: torch.tensor(1.0), constraint=dist.constraints.positive)
        offset = pyro.param("offset", lambda: torch.zeros(KINDS))
        with people(len(y), **settings) as index:
            level = pyro.sample("level", dist.Normal(offset[kind[index]][:, None], 1.0))
            habit = pyro.sample("habit", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = level + curve(habit).squeeze(-2)
            with pyro.plate("repeats", REPEATS, dim=-1), poutine.mask(mask=present[index]):
                pyro.sample("y", dist.Normal(mean, noise), obs=y[index])

    return (partial(model, **settings), partial(guide, **settings)) if settings else (model, guide)


def measured(count: int = PEOPLE, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Measurements `[N, 4]` that rise or fall along the repeats, a quarter of them missing, and the
    kind of each person.
    """
    with fork_random(torch.device("cpu"), seed):
        kind = torch.randint(KINDS, (count,))
        level, slope = 2.0 * kind[:, None] + torch.randn(count, 1), 1.5 * torch.randn(count, 1)
        y = level + slope * torch.linspace(-1, 1, REPEATS) + 0.3 * torch.randn(count, REPEATS)
        present = torch.rand(count, REPEATS) < 0.75
    return y.masked_fill(~present, 0.0), present, kind


def held_out(programs: Programs, count: int = 100) -> Tensor:
    """log p̂ of other people by importance sampling, with the same draws each time."""
    with fork_random(torch.device("cpu"), 5), torch.no_grad():
        return log_weights(
            *programs, *measured(count, seed=2), num_particles=200
        ).log_weight.logsumexp(0) - math.log(200)


def announce(programs: Programs) -> None:
    """Run both once, so that their parameters are in the store."""
    for program in programs:
        program(*measured())


def parameters() -> dict[str, Tensor]:
    """What an optimizer moves of the programs, by its name in Pyro's store."""
    return {
        name: value.detach().clone()
        for name, value in pyro.get_param_store().named_parameters()
        if not name.startswith("objective_")
    }


def learned(objective: ObjectiveBase) -> dict[str, Tensor]:
    """What an optimizer moves of the objective itself."""
    return {} if objective.controls is None else dict(objective.controls.state_dict())


def trained(
    programs: Programs,
    data: tuple[Tensor, ...],
    chosen: str | ObjectiveBase = "trace-elbo",
    **settings: Any,
) -> FitResult:
    given: dict[str, Any] = {"epochs": 2, "batch_size": 30, "lr": 0.02, "seed": 3, **settings}
    return fit(
        programs,
        data,
        OBJECTIVES[chosen](num_particles=given.pop("k", 4)) if isinstance(chosen, str) else chosen,
        TrainConfig(**given),
        progress=False,
    )


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], rtol: float = 1e-9) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            value, other[name], rtol=rtol, atol=rtol, msg=f"{name}: {value} and {other[name]}"
        )


# Training.


@pytest.mark.parametrize(
    "name",
    ["dreg", "vimco", *(pytest.param(n, marks=pytest.mark.slow) for n in ("trace-elbo", "iwae"))],
)
def test_training_raises_the_likelihood_of_other_people(name: str) -> None:
    start, programs = held_out(study()), study()
    trained(programs, measured(200), name, epochs=15, batch_size=50, lr=0.03)
    gain = held_out(programs) - start
    assert gain.mean() > 1.0
    assert gain.mean() > 5 * gain.std() / math.sqrt(len(gain))


def by_svi(programs: Programs, data: tuple[Tensor, ...], objective: Any) -> None:
    svi = SVI(
        *(poutine.scale(p, scale=1 / 30) for p in programs),
        pyro.optim.Adam({"lr": 0.02}),
        objective,
    )
    for epoch in (1, 2):
        for args in served(Arguments(data), 30, seed=3, epoch=epoch):
            assert math.isfinite(svi.step(*args))


def by_hand(programs: Programs, data: tuple[Tensor, ...], objective: Any) -> None:
    loss = objective(*programs)
    with fork_random(torch.device("cpu")):
        announce(programs)
    own = [] if objective.controls is None else list(objective.controls.parameters())
    stored = [p for _, p in pyro.get_param_store().named_parameters()]
    optimizer = torch.optim.Adam([*stored, *own], lr=0.02)
    for epoch in (1, 2):
        for args in served(Arguments(data), 30, seed=3, epoch=epoch):
            optimizer.zero_grad()
            (loss(*args) / 30).backward()
            optimizer.step()


@float64
@pytest.mark.parametrize("name", FOR_GAUSSIANS)
def test_fit_svi_and_a_loop_by_hand_take_the_same_steps(name: str) -> None:
    data = measured()
    announce(study())
    start = parameters()
    objective = OBJECTIVES[name](num_particles=4)
    history = trained(study(), data, objective, precision="64-true").history
    by_fit, learned_by_fit = parameters(), learned(objective)
    assert bool(learned_by_fit) == objective.learns
    assert all(math.isfinite(epoch.train_nelbo) for epoch in history)
    assert all(not by_fit[n].equal(start[n]) for n in start), "every parameter has moved"
    for path in (by_svi, by_hand):
        programs = study()
        pyro.set_rng_seed(3)
        objective = OBJECTIVES[name](num_particles=4)
        with fork_random(torch.device("cpu")):  # as in the trial run of fit
            announce(programs)
            objective.prepare(*programs, tuple(t[:30] for t in data), {})
        path(programs, data, objective)
        assert_same(by_fit, parameters(), rtol=1e-7)
        assert_same(learned_by_fit, learned(objective), rtol=1e-7)


def test_the_seed_decides_a_training() -> None:
    found = []
    for seed in (3, 3, 4):
        history = trained(study(), measured(), "iwae", seed=seed).history
        found.append(([e.train_nelbo for e in history], parameters()))
    assert found[0][0] == found[1][0] != found[2][0]
    assert all(value.equal(found[1][1][name]) for name, value in found[0][1].items())
    assert not found[0][1]["noise"].equal(found[2][1]["noise"])


def test_double_precision_of_single_programs_and_data() -> None:
    """Numbers become double, a mask and an index stay what they are; the steps are those of SVI in
    double precision.
    """
    seen = set()
    model, guide = study()

    def spied(*args: Tensor) -> None:
        seen.add(tuple(a.dtype for a in args))
        model(*args)

    y, present, kind = measured()
    trained((spied, guide), (y, present, kind.int()), precision="64-true")
    by_fit = parameters()
    assert (torch.float64, torch.bool, torch.int32) in seen
    assert torch.get_default_dtype() == torch.float32
    programs = study()
    announce(programs)
    for _, value in pyro.get_param_store().named_parameters():
        value.data = value.data.double()
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(3)
    by_svi(programs, (y.double(), present, kind), OBJECTIVES["trace-elbo"](num_particles=4))
    assert_same(by_fit, parameters(), rtol=1e-7)


# Weights.


def only(traces: Any, index: slice) -> poutine.Trace:
    """The latent values of some people, for `poutine.replay`."""
    drawn = poutine.Trace()
    for name, site in traces.sites(traces.guide, observed=False):
        drawn.add_node(name, **{**site, "value": site["value"][:, index]})
    return drawn


@float64
@pytest.mark.parametrize("total", [None, 600])
def test_weights_are_those_of_a_loop_over_people(total: int | None) -> None:
    model, guide = study(total=total)
    data = measured()
    traces = run(model, guide, data, {}, num_particles=3)
    together = reduce_log_weights(traces)
    assert together.log_weight.shape == (3, PEOPLE)
    assert together.scale == (total or PEOPLE) / PEOPLE
    for n in range(0, PEOPLE, 7):
        one = slice(n, n + 1)
        fixed = poutine.replay(guide, trace=only(traces, one))
        alone = reduce_log_weights(
            run(model, fixed, tuple(t[one] for t in data), {}, num_particles=3, nesting=2)
        )
        for part in ("log_lik", "log_prior", "log_post"):
            torch.testing.assert_close(
                getattr(alone, part)[:, 0], getattr(together, part)[:, n], rtol=1e-10, atol=1e-10
            )
        assert alone.scale == (total or 1)


@float64
@pytest.mark.parametrize("name", ["iwae", "renyi", "ciwae", "jvi", "tvo"])
def test_a_bound_is_taken_a_person_and_scaled_afterwards(name: str) -> None:
    traces = run(*study(total=600), measured(), {}, num_particles=4)
    weights, objective = reduce_log_weights(traces), OBJECTIVES[name](num_particles=4)
    expected = 10 * sum(
        objective.bound_function.value(weights.log_weight[:, n : n + 1]).item()
        for n in range(PEOPLE)
    )
    assert objective.estimate(traces).value.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dims", [(-2, -1), (-1, -2), (None, None)])
def test_the_data_plate_is_the_outer_one_wherever_its_dimension(
    dims: tuple[int | None, int | None],
) -> None:
    """Pyro gives the outer plate −1 and the inner one −2 where the program gives none."""
    x = torch.zeros(5, 3) if dims[0] == -2 else torch.zeros(3, 5)

    def program(*, observed: bool) -> None:
        with pyro.plate("people", 5, dim=dims[0]), pyro.plate("repeats", 3, dim=dims[1]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if observed:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    traces = run(*both(program), (), {}, num_particles=2)
    assert traces.plate is not None
    assert traces.plate.name == "people"
    assert reduce_log_weights(traces).log_weight.shape == (2, 5)


# Handlers.


@float64
def test_a_scale_on_both_programs_is_one_on_the_learning_rate() -> None:
    first = trained(study(), measured(), "dreg", optimizer="SGD", precision="64-true").history
    plain = parameters()
    model, guide = (poutine.scale(p, scale=0.5) for p in study())
    second = trained(
        (model, guide), measured(), "dreg", optimizer="SGD", lr=0.04, precision="64-true"
    ).history
    assert_same(plain, parameters())
    assert [e.train_nelbo for e in second] == pytest.approx(
        [e.train_nelbo / 2 for e in first], rel=1e-9
    )


@float64
@pytest.mark.parametrize("name", ["trace-elbo", "iwae", "dreg", "vimco"])
def test_a_person_who_counts_twice(name: str) -> None:
    """A scale for each person, on both programs: the bound and its gradient are those of each
    weighted so.
    """
    times = torch.arange(1.0, 4.0)
    data = tuple(t[:3] for t in measured())

    def weighted(scale: Tensor) -> Programs:
        model, guide = study()
        return poutine.scale(model, scale=scale[:, None]), poutine.scale(
            guide, scale=scale[:, None]
        )

    def gradient(programs: Programs) -> tuple[float, Tensor]:
        announce(programs)
        leaves = [p for _, p in pyro.get_param_store().named_parameters()]
        pyro.set_rng_seed(1)
        loss = OBJECTIVES[name](num_particles=4)(*programs)(*data)
        return loss.item(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves)])

    scales = (times, torch.ones(3), torch.tensor([1.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 1.0]))
    of_all, plain, third, second = (gradient(weighted(scale)) for scale in scales)
    scale = log_weights(*weighted(times), *data).scale
    assert isinstance(scale, Tensor)
    assert scale.equal(times)
    assert of_all[0] == pytest.approx(
        plain[0] + 2 * (third[0] - plain[0]) + second[0] - plain[0], rel=1e-12
    )
    torch.testing.assert_close(
        of_all[1], plain[1] + 2 * (third[1] - plain[1]) + second[1] - plain[1]
    )


@pytest.mark.parametrize("what", ["entries", "people"])
def test_what_is_masked_does_not_matter(what: str) -> None:
    """In whole batches, so that a mask over all people fits."""
    y, present, kind = measured()
    keep = torch.arange(PEOPLE)[:, None] < 40
    gone = ~present if what == "entries" else (~keep).expand_as(y)
    found = []
    for values in (y, y.masked_fill(gone, 7.0)):
        programs: Any = study()
        if what == "people":
            programs = tuple(poutine.mask(p, mask=keep) for p in programs)
        trained(programs, (values, present, kind), "iwae", batch_size=PEOPLE)
        found.append(parameters())
    assert_same(found[0], found[1], rtol=0)


@float64
def test_the_weight_of_the_kl_leaves_the_choice_of_people_alone() -> None:
    """Under KL warm-up the sites of a program that subsamples its plate keep its scale, latent ones
    in part.
    """
    model, guide = study(size=20)

    def weights(weight: float) -> LogWeights:
        with fork_random(torch.device("cpu"), 1), KLWeight(weight):
            return log_weights(model, guide, *measured(), num_particles=3)

    full, part = weights(1.0), weights(0.25)
    assert full.scale == part.scale == 3.0
    torch.testing.assert_close(part.log_lik, full.log_lik)
    torch.testing.assert_close(part.log_prior, 0.25 * full.log_prior)
    torch.testing.assert_close(part.log_post, 0.25 * full.log_post)


# What fit is given.


def test_validation_data_of_several_arguments() -> None:
    programs = study()
    valid = measured(40, seed=2)
    result = fit(
        programs,
        measured(),
        OBJECTIVES["trace-elbo"](),
        TrainConfig(epochs=3, seed=3, batch_size=60),
        valid=valid,
        progress=False,
    )
    first, last = result.history[0], result.history[-1]
    assert last.valid_nelbo < first.valid_nelbo
    with fork_random(torch.device("cpu"), 3):
        weights = log_weights(*programs, *valid)
        nelbo = OBJECTIVES["trace-elbo"]().loss(*programs, *valid) / 40
    assert last.valid_nelbo == pytest.approx(nelbo, rel=1e-6)
    assert last.distortion == pytest.approx(-weights.log_lik.mean().item(), rel=1e-6)
    assert last.rate == pytest.approx(
        (weights.log_post - weights.log_prior).mean().item(), rel=1e-6
    )


def test_limits_of_steps_and_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [
        e.step for e in trained(study(), measured(), epochs=50, max_steps=7, batch_size=25).history
    ] == [3, 6, 7]
    clock = itertools.count()
    monkeypatch.setattr("pyroae.training.trainer.time.monotonic", lambda: next(clock) / 10)
    result = trained(study(), measured(), epochs=10**6, max_seconds=2.0)
    assert 2.0 <= result.seconds < 2.4
    assert 5 < result.history[-1].step < 20


def test_a_program_that_draws_its_own_people() -> None:
    """Given all of them at once: a step an epoch, the bound per person, and as good a model as one
    of all people.
    """
    data = measured(200)
    start = held_out(study())
    result = trained(study(size=50), data, "iwae", epochs=60, batch_size=200, lr=0.03)
    assert result.history[-1].step == 60
    gain = held_out(study_at(parameters())) - start
    trained(study(), data, "iwae", epochs=15, batch_size=50, lr=0.03)
    usual = held_out(study_at(parameters())) - start
    assert gain.mean() > 1.0
    assert gain.mean().item() == pytest.approx(usual.mean().item(), abs=0.25)
    assert result.history[-1].train_nelbo == pytest.approx(
        -held_out(study_at(parameters())).mean().item(), rel=0.3
    )


def study_at(values: dict[str, Tensor]) -> Programs:
    """The study with given parameters, over any people."""
    programs = study()
    announce(programs)
    with torch.no_grad():
        for name, value in pyro.get_param_store().named_parameters():
            value.copy_(values[name])
    return programs


class Line(nn.Module):
    """x ~ N(slope z, 1), q = N(mean x, 1), as methods of one module."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.mean = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(0.1))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.slope * z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.mean * x, 1.0))


class Called(PyroModule):
    """The guide of a Line, with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = PyroParam(torch.tensor(0.1))

    def forward(self, x: Tensor) -> None:
        guide(x, self.mean)


def model(x: Tensor, spread: float = 1.0) -> None:
    slope = pyro.param("slope", torch.tensor(1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(slope * z, spread), obs=x)


def guide(x: Tensor, mean: Tensor | None = None) -> None:
    mean = pyro.param("mean", torch.tensor(0.1)) if mean is None else mean
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(mean * x, 1.0))


def methods(line: Line) -> Programs:
    return line.model, line.guide


def announced(line: Line) -> Programs:
    def registered(program: Callable[..., Any]) -> Callable[..., Any]:
        def run_it(x: Tensor) -> None:
            pyro.module("line", line)
            program(x)

        return run_it

    return registered(line.model), registered(line.guide)


FORMS: dict[str, Callable[[], Any]] = {
    "functions": lambda: (model, guide),
    "partial": lambda: (partial(model, spread=1.0), partial(guide, mean=None)),
    "a module": Line,
    "its methods": lambda: methods(Line()),
    "its methods, handled": lambda: tuple(
        poutine.scale(partial(method), scale=1.0) for method in methods(Line())
    ),
    "a module in pyro.module": lambda: announced(Line()),
    "a PyroModule": lambda: (model, Called()),
}


@pytest.mark.parametrize("form", [name for name in FORMS if name != "functions"])
@pytest.mark.parametrize("name", ["iwae", "dreg", "vimco"])
def test_the_form_of_a_program_does_not_matter(form: str, name: str) -> None:
    x = 2 * torch.randn(PEOPLE)
    histories = []
    for which in ("functions", form):
        pyro.clear_param_store()
        history = trained(FORMS[which](), (x,), name, epochs=4).history
        histories.append([e.train_nelbo for e in history])
    assert histories[0] == pytest.approx(histories[1], rel=1e-6)
    assert histories[0][-1] < histories[0][0] - 0.01


@pytest.mark.parametrize("name", ["trace-elbo", "iwae", "dreg"])
def test_a_guide_of_pyros_own(name: str) -> None:
    """AutoNormal makes its parameters, some a person, in its first run."""
    programs = study()
    history = trained(
        (programs[0], AutoNormal(programs[0])),
        measured(),
        name,
        epochs=40,
        batch_size=PEOPLE,
        lr=0.05,
    ).history
    assert history[-1].train_nelbo < history[0].train_nelbo - 1.0


# Refusals.


DATA = partial(pyro.plate, "data")


def guiding(
    make: Callable[[Tensor], Any], plate: Callable[[int], Any] = DATA
) -> Callable[..., None]:
    """A guide that draws z of `model` from what `make` makes of mean · x."""

    def program(x: Tensor) -> None:
        location = pyro.param("mean", torch.tensor(0.1)) * x
        with plate(len(x)):
            pyro.sample("z", make(location))

    return program


def with_more(x: Tensor) -> None:
    guide(x)
    pyro.sample("more", dist.Normal(0.0, 1.0))


def part_of_600(count: int) -> Any:
    return pyro.plate("data", 600, subsample=torch.arange(count))


def without_a_plate(x: Tensor, *, observed: bool) -> None:
    z = pyro.sample("z", dist.Normal(pyro.param("mean", torch.zeros(len(x))), 1.0))
    if observed:
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def without_an_event(x: Tensor, *, observed: bool) -> None:
    """A square of batch dimensions, one of which should be the event's: of them only the last is
    the plate's.
    """
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(pyro.param("mean", torch.zeros(len(x), len(x))), 1.0))
        if observed:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.expand(len(x), -1))


def with_a_level(x: Tensor, *, observed: bool) -> None:
    level = pyro.sample("level", dist.Normal(pyro.param("mean", torch.tensor(0.1)), 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(level, 1.0))
        if observed:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def without_parameters(x: Tensor, *, observed: bool) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        if observed:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def both(program: Callable[..., Any]) -> Programs:
    return partial(program, observed=True), partial(program, observed=False)


def normal(location: Tensor) -> Any:
    return dist.Normal(location, 1.0)


PAIR = guiding(lambda location: normal(location[:, None].expand(-1, 2)).to_event(1))
BERNOULLI, DELTA = guiding(lambda location: dist.Bernoulli(logits=location)), guiding(dist.Delta)
DISCRETE, NO_DENSITY = (
    r"site 'z' is continuous in the model \(Normal\) and discrete in the guide \(Bernoulli\)",
    "site 'z' is a Delta, which has none",
)
FAULTS: dict[str, tuple[Any, str, str]] = {
    "a site less": (
        (model, lambda x: None),
        "iwae",
        r"latent site 'z' has no counterpart in the guide, which has \[\]",
    ),
    "a site more": (
        (model, with_more),
        "dreg",
        r"guide's site 'more' is no latent site of the model, which has \['z'\]; .*is_auxiliary",
    ),
    "event shapes": (
        (model, PAIR),
        "iwae",
        r"'z' has the event shape \(\) in the model and \(2,\) in the guide",
    ),
    "a plate in the model only": (
        (model, guiding(normal, lambda _: nullcontext())),
        *("trace-elbo", "'z' lies in the plate 'data' in the model, but not in the guide"),
    ),
    "a plate of two sizes": (
        (model, guiding(normal, part_of_600)),
        *("iwae", "'z' lies in the plate 'data' of 30 data in the model, of 600 in the guide"),
    ),
    "plates of two names": (
        (model, guiding(normal, partial(pyro.plate, "points"))),
        *("iwae", "no one plate holds all the sites: .*the guide's site 'z' in 'points'"),
    ),
    "a global site": (
        both(with_a_level),
        "rws",
        "the latent site 'level' lies outside the data plate",
    ),
    "no plate": (
        both(without_a_plate),
        "dreg",
        r"the site 'x' has the batch shape \(30,\), but lies in no plate",
    ),
    "no event": (
        both(without_an_event),
        "vimco",
        r"'x' has the batch shape \(30, 30\), whose dimension -2 no",
    ),
    "Bernoulli under IWAE": ((model, BERNOULLI), "iwae", DISCRETE),
    "Bernoulli under DReG": ((model, BERNOULLI), "dreg", DISCRETE),
    "Delta under VIMCO": ((model, DELTA), "vimco", NO_DENSITY),
    "Delta under RWS": ((model, DELTA), "rws", NO_DENSITY),
}


@pytest.mark.filterwarnings("ignore:Found plate statements in guide but not model")
@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_fault_of_a_program_is_named_before_any_step(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs, name, message = FAULTS[fault]
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(ProgramError, match=message) as raised:
        trained(programs, (torch.ones(PEOPLE),), name)
    assert "\n" not in str(raised.value)


def test_what_is_no_program_or_no_data_of_one() -> None:
    x = torch.ones(PEOPLE)
    with pytest.raises(ConfigError, match="model and guide have no parameters to train"):
        trained(both(without_parameters), (x,))
    with pytest.raises(
        ConfigError, match=r"such as an Autoencoder, or a pair \(model, guide\), not function"
    ):
        trained(model, (x,))  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match="the guide must be a Pyro program, something that can be called, not 3"
    ):
        trained((model, 3), (x,))  # type: ignore[arg-type]
    with pytest.raises(
        DataError,
        match=r"tensors of one length N, with a row per datum, not of shapes \[\(60,\), \(59,\)\]",
    ):
        trained((model, guide), (x, x[1:]))
    with pytest.raises(DataError, match="the arguments of a program are tensors, not int"):
        trained((model, guide), (x, 3))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="batch_size of 61 is larger than the 60 training data"):
        trained((model, guide), (x,), batch_size=61)
    with pytest.raises(
        ConfigError, match="kl_warmup of 3 epochs, 6 steps, is longer than the training of 5"
    ):
        trained((model, guide), (x,), epochs=3, max_steps=5, kl_warmup=3)
    line = Line()
    line.guide = guide  # type: ignore[method-assign]
    with pytest.raises(
        ConfigError,
        match=r"'mean' is in Pyro's store and none of the module's: .* the pair \(system.model",
    ):
        trained(line, (x,))  # type: ignore[arg-type]
