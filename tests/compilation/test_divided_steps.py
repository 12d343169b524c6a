"""Steps in parts of one core each: the numbers of eager code, in any grouping."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyroae
from pyroae import TraceELBO, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.compilation import divided_steps, step_graphs
from pyroae.compilation.divided_steps import DividedStep
from pyroae.compilation.graph_calls import GraphCall
from pyroae.compilation.svi import Compiled
from pyroae.config import TrainConfig
from pyroae.nn import MLP
from pyroae.objectives import OBJECTIVES
from pyroae.objectives.apply import next_step, variant_of
from pyroae.objectives.named import mlmc

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def is_divided(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the batches of these tests are divided."""
    value = bool(getattr(request, "param", True))
    monkeypatch.setattr(divided_steps, "LEAST_ROWS", 4 if value else 10**6)
    return value


def vae(features: int = 7) -> Autoencoder:
    """Sizes that two threads do not divide."""
    torch.manual_seed(0)
    return zoo.vae(features, latent=3, encoder=MLP((5,)))


def data(count: int = 12, features: int = 7) -> Tensor:
    x = torch.rand(count, features, generator=torch.Generator().manual_seed(1))
    return (x < 0.4).to(torch.get_default_dtype())


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.02)


def graph_of(svi: Compiled) -> Any:
    return svi._graphs[svi._last]


def eager(svi: Compiled, x: Tensor, kl_weight: float | None = None) -> Tensor:
    """The step as Pyro and torch take it."""
    args = svi.eager.flat((x,), {})
    if not svi.eager.parameters:
        svi.eager.find_parameters(args)
    next_step(svi.objective)
    return svi.eager.step(args, kl_weight, float(len(x)))


def compare(make: Callable[[], nn.Module], objective: Any, optimizer: Make, **settings: Any) -> Any:
    """Train compiled and eagerly from one seed; returns the graph of the compiled step."""
    x, weight = data(), settings.pop("kl_weight", None)
    svis = [Compiled(make(), objective(), optimizer, backend="eager", **settings) for _ in range(2)]
    losses: list[list[float]] = []
    for i, svi in enumerate(svis):
        torch.manual_seed(3)
        for step in range(5):
            batch = x.roll(step, 0)
            loss = (
                eager(svi, batch, weight)
                if i
                else svi.step(batch, divisor=float(len(x)), kl_weight=weight)
            )
            losses.append([loss.item()])
    half = len(losses) // 2
    torch.testing.assert_close(losses[:half], losses[half:], rtol=1e-9, atol=1e-9)
    for found, wanted in zip(*(svi.parameters().values() for svi in svis), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)
    return graph_of(svis[0])


OPTIMIZERS: dict[str, Make] = {
    "Adam": adam,
    "Adam, decay": lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.01),
    "two groups": lambda p: torch.optim.Adam(
        [{"params": p[:3], "lr": 0.1}, {"params": p[3:], "lr": 0.01}]
    ),
}


def test_convolutions_in_two_threads() -> None:
    """In a process of its own: threads of oneDNN that wait for each other cannot be stopped."""
    script = Path(__file__).with_name("team_convolutions.py")
    found = subprocess.run(
        [sys.executable, script], check=True, capture_output=True, text=True, timeout=300
    )
    error, threads = found.stdout.split()
    assert float(error) < 1e-4
    assert threads == "2"


@pytest.mark.usefixtures("float64", "two_threads")
@pytest.mark.parametrize(
    ("name", "clip", "is_divided"),
    [
        pytest.param(
            name,
            clip,
            is_divided,
            marks=()
            if (i + is_divided) % 2 == (clip is None) and (is_divided or name in ("Adam", "SGD"))
            else pytest.mark.slow,
        )
        for i, name in enumerate(OPTIMIZERS)
        for clip in (None, 0.3)
        for is_divided in (True, False)
    ],
    indirect=["is_divided"],
)
def test_a_divided_step_is_that_of_eager_code(
    name: str, clip: float | None, is_divided: bool
) -> None:
    graph = compare(vae, TraceELBO, OPTIMIZERS[name], grad_clip=clip)
    assert isinstance(graph, DividedStep)
    assert graph.parts == 1 + is_divided


@pytest.mark.usefixtures("float64", "two_threads")
@pytest.mark.parametrize(
    ("name", "is_divided"),
    [
        pytest.param(
            name,
            is_divided,
            marks=pytest.mark.slow if i % 2 == is_divided or name == "stl" else (),
        )
        for i, name in enumerate(["iwae", "dreg", "vimco", "rws", "stl", "analytic-kl", "mlmc"])
        for is_divided in (True, False)
    ],
    indirect=["is_divided"],
)
def test_objectives(name: str, is_divided: bool) -> None:
    weight = 0.4 if name == "iwae" else None
    settings = {"max_level": 1} if name == "mlmc" else {}
    objective = partial(OBJECTIVES[name], num_particles=4, **settings)
    graph = compare(vae, objective, adam, kl_weight=weight)
    assert graph.parts == 1 + is_divided


@pytest.mark.usefixtures("float64", "two_threads")
def test_learned_scale_of_a_likelihood(is_divided: bool) -> None:
    """Its gradient is added, not a product; its parameter has one row."""

    def ppca() -> Autoencoder:
        torch.manual_seed(0)
        return zoo.ppca(7, latent=2)

    graph = compare(ppca, TraceELBO, adam)
    assert graph.parts == 1 + is_divided


class Coupled(nn.Module):
    """A prior over the decoder's weight, or a mean over the batch: not a sum over its parts."""

    def __init__(self, what: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.what, self.decoder, self.encoder = what, nn.Linear(2, 7), nn.Linear(7, 2)

    def model(self, x: Tensor) -> None:
        if self.what == "prior":
            # small beside the gradient of the likelihood
            pyro.factor("prior", -1e-6 * self.decoder.weight.square().sum())
        if self.what == "global":
            pyro.sample("theta", dist.Normal(torch.zeros(7), 1.0).to_event(1))
        if self.what == "gamma":
            pyro.sample("theta", dist.Gamma(torch.ones(7), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = self.decoder(z)
            if self.what == "mean":
                logits = logits - logits.mean(0)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        if self.what in ("global", "gamma"):
            made = dist.Normal if self.what == "global" else dist.Gamma
            pyro.sample("theta", made(torch.ones(7), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


def steps_of(system: Any, monkeypatch: pytest.MonkeyPatch, count: int = 12) -> Any:
    """The graph of a step, where enough rows for four data a part would be divided."""
    monkeypatch.setattr(divided_steps, "LEAST_ROWS", 4)
    svi = Compiled(system, TraceELBO(), adam, backend="eager")
    for _ in range(3):
        svi.step(data(count))
    assert svi.is_compiled
    return graph_of(svi)


@pytest.mark.usefixtures("float64", "two_threads")
@pytest.mark.parametrize("what", ["prior", "global", "mean"])
def test_a_loss_that_is_no_sum_over_parts_is_not_divided(what: str, is_divided: bool) -> None:
    assert is_divided
    found = compare(lambda: Coupled(what), TraceELBO, adam)
    assert found.parts == 1


@pytest.mark.usefixtures("float64", "two_threads")
def test_draws_that_cannot_be_made_before_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not isinstance(steps_of(Coupled("gamma"), monkeypatch), DividedStep)


@pytest.mark.usefixtures("float64", "two_threads")
def test_it_is_divided_without_what_couples_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps_of(Coupled(""), monkeypatch).parts == 2


@pytest.mark.usefixtures("float64", "two_threads")
@pytest.mark.parametrize(("count", "parts"), [(13, 1), (6, 1), (8, 2)])
def test_odd_and_small_batches_are_not_divided(
    count: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert steps_of(vae(), monkeypatch, count).parts == parts


def in_groups(
    groupings: list[list[int]], threads: int, backend: str, objective: Any
) -> tuple[list[list[Tensor]], Compiled]:
    """Losses, weights and random state after steps in calls of the given sizes.

    Each grouping starts from the same state. The first one meets steps that are not yet compiled.
    """
    torch.set_num_threads(threads)
    svi = Compiled(vae(), objective, adam, backend=backend)
    for _ in range(2):
        torch.manual_seed(2)
        svi.step(data(), kl_weight=0.1, divisor=12.0)
    assert svi.optimizer is not None
    optimizer = svi.optimizer
    start = [p.detach().clone() for p in svi.parameters().values()]
    state, results = deepcopy(optimizer.state_dict()), list[list[Tensor]]()
    for sizes in groupings:
        optimizer.load_state_dict(deepcopy(state))
        for parameter, first in zip(svi.parameters().values(), start, strict=True):
            parameter.data.copy_(first)
        torch.manual_seed(3)
        losses, done = [], 0
        for size in sizes:

            def before(i: int, first: int = done) -> float:
                optimizer.param_groups[0]["lr"] = 0.05 / (1 + first + i)
                return 0.1 * (1 + first + i)

            batches = [data().roll(done + i, 0) for i in range(size)]
            losses.append(svi.steps(batches, before=before, divisor=12.0))
            done += size
            optimizer.load_state_dict(optimizer.state_dict())  # as a resumed training does
        weights = torch.cat([p.detach().flatten() for p in svi.parameters().values()])
        results.append([torch.cat(losses), weights, torch.get_rng_state()])
    return results, svi


@pytest.mark.usefixtures("float64", "two_threads", "is_divided")
@pytest.mark.parametrize(
    ("objective", "is_divided"),
    [
        (OBJECTIVES["trace-elbo"](num_particles=2), False),
        (mlmc(2, max_level=1), True),
    ],
    ids=["trace-elbo", "mlmc"],
    indirect=["is_divided"],
)
def test_groups_do_not_change_results(objective: Any) -> None:
    """With a graph for each level of MLMC, between which the steps of a call change."""
    (first, *others), svi = in_groups([[3, 4], [1] * 7, [7]], 2, "eager", objective)
    assert len(svi._graphs) == (2 if variant_of(objective) else 1)
    assert len(set(first[0].tolist())) == 7
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(other, first, strict=True))


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("threads", "rows"), [(2, 4), pytest.param(1, 32, marks=pytest.mark.slow)])
def test_the_loop_of_compiled_code(
    threads: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of inductor, called from C++: the numbers of the traced graphs, in any grouping."""
    monkeypatch.setattr(divided_steps, "LEAST_ROWS", rows)
    (traced,), _ = in_groups([[7]], threads, "eager", TraceELBO())
    (one, several), svi = in_groups([[1, 2, 4], [7]], threads, "inductor", TraceELBO())
    graph = graph_of(svi)
    assert graph.parts == (2 if rows == 4 else 1)
    assert isinstance(graph, DividedStep)
    assert graph._loop is not None
    assert not graph._loop._is_python
    assert torch.equal(one[0], several[0])
    assert torch.equal(one[1], several[1])
    torch.testing.assert_close(several[0], traced[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(several[1], traced[1], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("float64", "two_threads", "is_divided")
@pytest.mark.parametrize("is_missing", [False, True])
def test_one_warning_where_the_compiler_fails(
    is_missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the code of the loop only, which leaves one graph; or in all code, which leaves none."""

    def inductor(graph: Any, inputs: Any, same_draws: bool, cpp: bool = False, **_: Any) -> Any:
        if cpp or is_missing:
            raise RuntimeError("C++ compile error")
        return graph

    monkeypatch.setattr(step_graphs, "inductor", inductor)
    step_graphs._warn_of_one_graph.cache_clear()
    svi, other = Compiled(vae(), TraceELBO(), adam), Compiled(vae(), TraceELBO(), adam)
    batches = [data(), data(), data() if is_missing else data(8)]  # graphs of two sizes
    torch.manual_seed(3)
    text = "model and guide run eagerly" if is_missing else "not as a loop in C"
    with pytest.warns(UserWarning, match=rf"{text}.*: C\+\+ compile error") as said:
        losses = [svi.step(x, divisor=float(len(x))).item() for x in batches]
    assert len(said) == 1
    assert isinstance(graph_of(svi), type(None) if is_missing else GraphCall)
    torch.manual_seed(3)
    assert losses == pytest.approx([eager(other, x).item() for x in batches], rel=1e-9)


@pytest.mark.usefixtures("two_threads", "is_divided")
def test_fit_takes_groups_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pyroae.compilation.step_graphs.inductor",
        lambda graph, inputs, same_draws, **settings: graph,
    )
    sizes: list[int] = []
    run = Compiled.steps

    def steps(self: Compiled, *args: Any, **settings: Any) -> Tensor:
        sizes.append(len(args[0]))
        return run(self, *args, **settings)

    monkeypatch.setattr(Compiled, "steps", steps)
    config = TrainConfig(epochs=3, batch_size=8, lr=0.02, kl_warmup=2, precision="64-true")
    histories, weights = [], []
    for compile in (True, False):
        system = vae().double()
        result = pyroae.fit(
            system, data(84).double(), config=config, compile=compile, progress=False
        )
        histories.append([row.train_nelbo for row in result.history])
        weights.append(torch.cat([p.detach().flatten() for p in system.parameters()]))
    assert max(sizes) > 2
    assert histories[0] == pytest.approx(histories[1], rel=1e-9)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-7, atol=1e-9)
