"""A likelihood drawn by several threads: the same figures as by one, whatever their number, and as
by programs that are run.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae.errors import DataError
from pyroae.evaluation.importance import sampler as sampling
from pyroae.evaluation.importance.compiled import CompiledDraws
from pyroae.evaluation.importance.likelihood import LikelihoodEstimate, log_likelihood
from pyroae.programs.context import evaluating
from pyroae.runtime.threads import AHEAD, Threads, one_core_each
from tests.systems import PROPER, system_and_data

pytestmark = pytest.mark.usefixtures("float64")
FEW = ((5, None), (64, None), (200, 0.05))
"""Numbers of particles and tolerances for `make test`: fewer than a chunk, one chunk, and more."""
SOME = ("ppca-exact", "vae-conv", "vae-laplace", "vae-ladder")
"""Systems for `make test`: draws of each kind, a layer of each kind, several sites."""


@pytest.fixture
def cores() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads that torch has, which is afterwards as it was."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def as_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs stay as they are, without code; blocks have three data, chunks 64 particles."""
    monkeypatch.setattr(
        "pyroae.evaluation.importance.compiled.inductor", lambda graph, inputs, **settings: graph
    )
    monkeypatch.setattr(sampling, "rows_of", lambda args, compiled=False: 3 * 64)
    monkeypatch.setattr(sampling, "LEAST_OF_GRAPH", 64)


# Threads.


def test_results_come_in_order_and_no_more_are_begun_than_asked_for(
    cores: Callable[[int], None],
) -> None:
    cores(3)
    begun: list[int] = []

    def task(n: int) -> int:
        begun.append(n)
        time.sleep(0.01 * (n % 3))
        return n

    with one_core_each() as threads:
        results = threads.in_order(partial(task, n) for n in range(40))
        for n, result in enumerate(results):
            assert result == n
            assert len(begun) <= n + 1 + AHEAD * 3
    assert sorted(begun) == list(range(40))


def test_operations_of_threads_take_one_core_each(cores: Callable[[int], None]) -> None:
    cores(2)
    both = threading.Barrier(2, timeout=20)

    def task() -> tuple[int, str]:
        both.wait()  # of two threads
        return torch.get_num_threads(), threading.current_thread().name

    with one_core_each() as threads:
        found = list(threads.in_order([task, task]))
        assert torch.get_num_threads() == 1
    assert [count for count, _ in found] == [1, 1]
    assert len({name for _, name in found}) == 2
    assert torch.get_num_threads() == 2


def test_an_error_comes_where_its_result_would_and_ends_what_waits(
    cores: Callable[[int], None],
) -> None:
    cores(2)
    done: list[int] = []

    def task(n: int) -> int:
        if n == 3:
            raise ValueError("the third")
        done.append(n)
        return n

    with one_core_each() as threads:
        results = threads.in_order(partial(task, n) for n in range(1000))
        assert [next(results), next(results), next(results)] == [0, 1, 2]
        with pytest.raises(ValueError, match="the third"):
            next(results)
    assert max(done) <= 3 + 2 * AHEAD
    assert torch.get_num_threads() == 2


def test_nothing_goes_on_when_the_results_are_left(cores: Callable[[int], None]) -> None:
    cores(2)
    running = 0

    def task() -> None:
        nonlocal running
        running += 1
        time.sleep(0.02)
        running -= 1

    with one_core_each() as threads:
        results = threads.in_order([task] * 100)
        next(results)
        results.close()
        assert running == 0


def test_one_core_has_no_threads(cores: Callable[[int], None]) -> None:
    cores(1)
    with one_core_each() as threads:
        (found,) = threads.in_order([threading.current_thread])
    assert found is threading.current_thread()
    assert list(Threads().in_order([partial(pow, 2, 3)])) == [8]


# Likelihoods.


def estimate(x: Tensor, system: Any, compile: bool, **settings: Any) -> LikelihoodEstimate:
    return log_likelihood(
        system.model,
        system.guide,
        x,
        **{"num_particles": 200, "seed": 5, **settings},
        compile=compile,
    )


def assert_equal(one: LikelihoodEstimate, other: LikelihoodEstimate) -> None:
    for field in ("log_px", "se", "ess", "draws", "jackknife", "interval"):
        torch.testing.assert_close(
            getattr(one, field), getattr(other, field), rtol=0, atol=0, equal_nan=True
        )
    torch.testing.assert_close(
        one.smoothed.khat, other.smoothed.khat, rtol=0, atol=0, equal_nan=True
    )
    torch.testing.assert_close(vars(one.curve), vars(other.curve), rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("as_graph")
@pytest.mark.parametrize(
    "name", [one if one in SOME else pytest.param(one, marks=pytest.mark.slow) for one in PROPER]
)
def test_a_graph_draws_what_the_programs_draw(name: str) -> None:
    """Log-weights from the same seed, for all and for fewer particles of a full block."""
    system, x = system_and_data(name, 3)
    with evaluating(system.model, system.guide):
        draws = CompiledDraws(system.model, system.guide, (x,), 40, 2)
        assert draws.is_for_threads
        plain = CompiledDraws(system.model, system.guide, (x,), 40, 2)
        plain._graphs = None
        draw = draws.prepare((x,))
        for seed in (1, 2**62):
            found = draw(40, seed)
            torch.testing.assert_close(found, plain.prepare((x,))(40, seed), rtol=1e-10, atol=1e-10)
            assert torch.equal(found[:7], draw(7, seed))
            assert torch.equal(found, draw(40, seed))
        assert not torch.equal(draw(40, 1), draw(40, 2))
        assert draws.prepare((x[:2],))(40, 1).shape == (40, 2)


@pytest.mark.usefixtures("as_graph")
@pytest.mark.parametrize(
    ("num_particles", "tolerance"),
    [
        pytest.param(count, tolerance, marks=() if (count, tolerance) in FEW else pytest.mark.slow)
        for count in (5, 64, 200, 640)
        for tolerance in (None, 0.05)
    ],
)
def test_figures_are_the_same_for_any_number_of_threads(
    num_particles: int, tolerance: float | None, cores: Callable[[int], None]
) -> None:
    """By threads, by one, and by the programs: blocks of three data (K = 5: 38) and a last one of
    two, chunks of 64.

    What does not fill a graph has draws of its own.
    """
    system, x = system_and_data("vae", 26)
    settings: dict[str, Any] = {"num_particles": num_particles, "tolerance": tolerance}
    found = []
    for count in (1, 2, 5):
        cores(count)
        found.append(estimate(x, system, True, **settings))
        assert torch.get_num_threads() == count
    for other in found[1:]:
        assert_equal(found[0], other)
    plain = estimate(x, system, False, **settings)
    if tolerance is None and num_particles % 64 == 0:
        torch.testing.assert_close(found[0].log_px[:24], plain.log_px[:24], rtol=1e-10, atol=1e-10)
    apart = (found[0].log_px - plain.log_px) / (found[0].se ** 2 + plain.se**2).sqrt()
    assert (apart.abs() < 6).all()


@pytest.mark.usefixtures("as_graph")
def test_threads_have_nothing_of_the_callers_generator(cores: Callable[[int], None]) -> None:
    cores(2)
    system, x = system_and_data("vae", 8)
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    first = estimate(x, system, True)
    assert torch.equal(torch.randn(2), expected)
    assert_equal(first, estimate(x, system, True))


@pytest.mark.usefixtures("as_graph")
def test_a_draw_that_depends_on_the_graph_has_threads(cores: Callable[[int], None]) -> None:
    """A gamma variable is drawn between two graphs: the figures are those of closed forms."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(pyro.sample("z", dist.Gamma(2.0, 1.0))), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(x + 2.5, 2.0))

    x = torch.tensor([0.0, 2.0, 1.0, 5.0, 3.0, 1.0])
    assert CompiledDraws(model, guide, (x[:3],), 4, 1).is_for_threads
    cores(2)
    found = [
        log_likelihood(model, guide, x, num_particles=500, seed=0, compile=compile)
        for compile in (True, False)
    ]
    torch.testing.assert_close(found[0].log_px, found[1].log_px, rtol=1e-10, atol=1e-10)
    exact = (x + 1).log() - (x + 2) * math.log(2)  # ∫ z^(x+1) e^(−2z) / x! dz
    assert ((found[0].log_px - exact).abs() < 5 * found[0].se + 1e-6).all()


@pytest.mark.usefixtures("as_graph")
def test_a_datum_without_density_is_blamed_through_threads(cores: Callable[[int], None]) -> None:
    """Datum 17 lies where the likelihood has no density."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Uniform(torch.zeros_like(z), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 2.0))

    cores(2)
    x = torch.full((26,), 0.5)
    x[17] = 3.0
    with pytest.raises(
        DataError, match=r"datum 17 give log p.* its site 'x' has no finite log-density"
    ):
        log_likelihood(model, guide, x, num_particles=200, seed=0, compile=True)
    assert torch.get_num_threads() == 2


@pytest.mark.slow
def test_code_of_inductor_is_run_by_threads(
    cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real compiler: 13 blocks, the last filled up, in double precision as the programs."""
    cores(2)
    monkeypatch.setattr(sampling, "rows_of", lambda args, compiled=False: 2 * 64)
    monkeypatch.setattr(sampling, "LEAST_OF_GRAPH", 64)
    system, x = system_and_data("vae", 25)
    torch.testing.assert_close(
        estimate(x, system, True).log_px[:24],
        estimate(x, system, False).log_px[:24],
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", PROPER)
def test_code_of_inductor_for_every_system(name: str, cores: Callable[[int], None]) -> None:
    cores(2)
    system, x = system_and_data(name, 6)
    torch.testing.assert_close(
        estimate(x, system, True).log_px, estimate(x, system, False).log_px, rtol=1e-9, atol=1e-9
    )
