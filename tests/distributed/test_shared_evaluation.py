"""Evaluation by several processes: the bits of one process, whatever their number; errors that come
up on all of them.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae import zoo
from pyroae.autoencoder import Autoencoder
from pyroae.config import AISSettings
from pyroae.config.evaluation import EvaluationSettings
from pyroae.distributed import work_sharing as dealing
from pyroae.errors import DataError, RunError
from pyroae.evaluation import blocks, checks
from pyroae.evaluation.annealing import bounds as ais_module
from pyroae.evaluation.annealing import checkpoint, hmc
from pyroae.evaluation.annealing.bounds import ais, bdmc
from pyroae.evaluation.annealing.results import BlockResult
from pyroae.evaluation.importance import sampler as sampling
from pyroae.evaluation.importance.likelihood import log_likelihood
from pyroae.evaluation.importance.proposals import Local, Mixture, widened
from pyroae.evaluation.summary import evaluate
from pyroae.programs.annealing_path import Path as AnnealingPath
from pyroae.programs.traces import prior_of
from pyroae.runtime.processes import WHOLE, Share
from tests.shares import in_processes, played

pytestmark = pytest.mark.usefixtures("float64")
TINY = AISSettings(num_chains=3, num_distributions=5, leapfrog_steps=2)


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of three data for importance sampling (7 data: 3, 3, 1), and of two for annealing (2,
    2, 2, 1).
    """
    set_blocks(monkeypatch)


def set_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of `in_blocks`."""
    monkeypatch.setattr(sampling, "rows_of", lambda args, compiled=False: 3 * 64)
    monkeypatch.setattr(ais_module, "rows_of", lambda args, compiled=False: 2 * TINY.num_chains)
    monkeypatch.setattr(hmc, "WARM_UP", 3)


def program() -> tuple[Autoencoder, Tensor]:
    torch.manual_seed(0)
    return zoo.ppca(6, 2).double(), torch.randn(7, 6, dtype=torch.float64)


def tensors_of(found: Any) -> dict[str, Tensor]:
    """Every tensor of a result, those of results in it too."""
    values: dict[str, Tensor] = {}
    for name, value in (found if isinstance(found, dict) else vars(found)).items():
        if isinstance(value, Tensor):
            values[name] = value
        elif isinstance(value, dict) or (
            hasattr(value, "__dict__") and not isinstance(value, type)
        ):
            values |= {f"{name}.{inner}": v for inner, v in tensors_of(value).items()}
    return values


def assert_same(one: Any, other: Any) -> None:
    ours, theirs = tensors_of(one), tensors_of(other)
    assert ours
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value.nan_to_num(), theirs[name].nan_to_num()), name


WORK: dict[str, Callable[[Share], Any]] = {}


def work(function: Callable[[Share], Any]) -> Callable[[Share], Any]:
    WORK[function.__name__] = function
    return function


@work
def sampled(share: Share) -> Any:
    system, x = program()
    return log_likelihood(system.model, system.guide, x, num_particles=200, seed=1, share=share)


@work
def with_a_tolerance(share: Share) -> Any:
    system, x = program()
    return log_likelihood(
        system.model, system.guide, x, num_particles=5000, tolerance=0.08, seed=1, share=share
    )


@work
def tried_again(share: Share) -> Any:
    system, x = program()
    bad, better = (
        widened(system.guide, 0.1),
        Mixture((system.guide, prior_of(system.model)), (0.5, 0.5)),
    )
    return log_likelihood(
        system.model, bad, x, num_particles=200, retry=better, seed=1, share=share
    )


@work
def locally(share: Share) -> Any:
    system, x = program()
    return log_likelihood(
        system.model, Local(system.guide, steps=20), x, num_particles=100, seed=1, share=share
    )


@work
def annealed(share: Share) -> Any:
    system, x = program()
    return ais(system.model, None, x, settings=TINY, seed=1, share=share)


@work
def both_ways(share: Share) -> Any:
    system, x = program()
    return bdmc(system.model, None, x, settings=TINY, seed=1, share=share)


@pytest.mark.usefixtures("in_blocks")
@pytest.mark.parametrize(
    ("world", "name"),
    [
        *(pytest.param(2, name, marks=pytest.mark.slow) for name in WORK),
        pytest.param(3, "annealed", marks=pytest.mark.slow),  # it is part of both ways
        *((3, name) for name in WORK if name != "annealed"),
    ],
)
def test_every_process_finds_what_one_finds(world: int, name: str) -> None:
    """Two processes of gloo are below."""
    whole = WORK[name](WHOLE)
    for found in played(world, WORK[name]):
        assert_same(whole, found)


@pytest.mark.usefixtures("in_blocks")
def test_each_process_does_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of seven data in blocks of 3, 3, 1 the first of two processes has 4, the second 3; of 2, 2,
    2, 1 4 and 3.
    """
    sizes: dict[int, set[int]] = {0: set(), 1: set()}
    rank = 0
    real = blocks.block_seed

    def watched(seed: int, first: int, *stage: int) -> int:
        sizes[rank].add(first)
        return real(seed, first, *stage)

    monkeypatch.setattr(blocks, "block_seed", watched)
    monkeypatch.setattr("pyroae.evaluation.annealing.driver.block_seed", watched)
    for function, firsts in ((sampled, ({0, 6}, {3})), (annealed, ({0, 4}, {2, 6}))):
        for one in sizes.values():
            one.clear()

        def turn(share: Share, function: Callable[[Share], Any] = function) -> Any:
            nonlocal rank
            rank = share.rank
            return function(share)

        played(2, turn)
        assert (sizes[0], sizes[1]) == firsts


@pytest.mark.usefixtures("in_blocks")
def test_blocks_have_draws_of_their_own_wherever_they_stand() -> None:
    """A block's draws hang on the seed and on its first datum: not on the blocks before it, not on
    the caller's generator.
    """
    system, x = program()
    whole = sampled(WHOLE)
    torch.randn(3)
    assert_same(whole, sampled(WHOLE))
    changed = x.clone()
    changed[:3] += 1
    other = log_likelihood(system.model, system.guide, changed, num_particles=200, seed=1)
    assert torch.equal(other.log_px[3:], whole.log_px[3:])
    assert not torch.equal(other.log_px[:3], whole.log_px[:3])
    assert not torch.equal(
        log_likelihood(system.model, system.guide, x, num_particles=200, seed=2).log_px,
        whole.log_px,
    )
    same = x[:3].repeat(2, 1)
    found = log_likelihood(system.model, system.guide, same, num_particles=200, seed=1).log_px
    assert not torch.equal(found[:3], found[3:])


def test_without_a_seed_it_is_one_draw_of_the_callers_generator() -> None:
    system, x = program()

    def found() -> Tensor:
        return log_likelihood(system.model, system.guide, x, num_particles=50).log_px

    torch.manual_seed(3)
    first, second = found(), found()
    torch.manual_seed(3)
    assert torch.equal(found(), first)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    torch.randint(2**63 - 1, ())
    after = torch.randn(4)
    torch.manual_seed(3)
    found()
    assert torch.equal(torch.randn(4), after)


def test_without_a_seed_all_processes_take_the_first_ones() -> None:
    system, x = program()

    def work(share: Share) -> Any:
        torch.manual_seed(10 + share.rank)
        return log_likelihood(system.model, system.guide, x, num_particles=50, share=share)

    one, other = played(2, work)
    assert_same(one, other)


def choosy(x: Tensor) -> None:
    if (x == 99).any():
        raise ValueError("ninety-nine")
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def of_choosy(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.8))


@pytest.mark.usefixtures("in_blocks")
@pytest.mark.parametrize("function", [log_likelihood, ais, bdmc])
def test_an_error_on_one_process_comes_up_on_all(function: Callable[..., Any]) -> None:
    x = torch.tensor([0.0, 0.0, 0.0, 99.0, 0.0, 0.0, 0.0])  # in the second block
    settings: dict[str, Any] = (
        {"num_particles": 20} if function is log_likelihood else {"settings": TINY}
    )
    for error in played(
        2, lambda share: function(choosy, of_choosy, x, seed=0, share=share, **settings)
    ):
        assert isinstance(error, ValueError)
        assert "ninety-nine" in str(error)


@pytest.mark.usefixtures("in_blocks")
def test_a_datum_without_a_finite_estimate_is_named_by_all() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample(
                "x", dist.Normal(torch.where(x == 5, torch.inf, z), 1.0, validate_args=False), obs=x
            )

    with pyro.validation_enabled(False):
        errors = played(
            2,
            lambda share: log_likelihood(model, of_choosy, torch.arange(7.0), seed=0, share=share),
        )
    assert [type(error) for error in errors] == [DataError, DataError]
    assert all("datum 5" in str(error) and "'x'" in str(error) for error in errors)


class Unportable(Exception):
    """An error that cannot be made again from its words."""

    def __init__(self, *, told: str) -> None:
        super().__init__(told)


def test_what_is_dealt_comes_back_in_order_and_errors_are_the_first_ones() -> None:
    for world in (2, 3, 4):
        assert (
            played(world, lambda share: dealing.distribute(share, range(5), lambda i: i**2))
            == [[0, 1, 4, 9, 16]] * world
        )

    def failing(share: Share) -> int:
        if share.rank == 0:
            return 0
        raise Unportable(told=f"rank {share.rank}")

    errors = played(3, lambda share: dealing.gather_results(share, lambda: failing(share)))
    assert [type(error) for error in errors] == [RuntimeError, Unportable, RuntimeError]
    assert [str(error) for error in errors] == [
        "Unportable: rank 1",
        "rank 1",
        "Unportable: rank 1",
    ]
    assert played(2, lambda share: dealing.run_on_all(share, lambda: share.rank)) == [0, 1]
    assert played(2, lambda share: dealing.first_result(share, lambda: share.rank)) == [0, 0]


def test_seeds_of_blocks_do_not_meet() -> None:
    seeds = [
        blocks.block_seed(s, n, *stage)
        for s in (-1, 0, 1, 2**40)
        for n in range(200)
        for stage in ((), (1,))
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.usefixtures("in_blocks")
def test_an_evaluation_is_the_same_on_all() -> None:
    system, x = program()
    x = x[:5]
    asked = EvaluationSettings(("is", "ais", "exact"), num_particles=50, annealing=TINY)
    whole = evaluate(system, x, asked)
    for one in played(2, lambda share: evaluate(system, x, asked, share=share)):
        assert_same(whole, one)
        assert {n: r.estimate for n, r in one.results.items()} == {
            n: r.estimate for n, r in whole.results.items()
        }


# Real processes.

broken = False


def breaking(x: Tensor) -> None:
    if broken and (x == 99).any() and len(x) > 1:
        raise ValueError("broken off")
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


X = torch.tensor(
    [0.0, 1.0, 0.5, 2.0, -1.0, 0.3, 99.0, 0.1, 0.7], dtype=torch.float64
)  # annealed in 2, 2, 2, 2, 1


def everything(share: Share, folder: Path) -> Any:
    """In each process: importance sampling and annealing; then an error on one; then an annealing
    that is broken off.
    """
    global broken  # of this process  # noqa: PLW0603
    sampling.rows_of = lambda args, compiled=False: 3 * 64
    ais_module.rows_of = lambda args, compiled=False: 2 * TINY.num_chains
    checks.rows_of = lambda args, compiled=False: 8  # a datum at a time, which breaks nothing
    hmc.WARM_UP = 3
    found: dict[str, Any] = {
        name: WORK[name](share) for name in ("sampled", "tried_again", "annealed", "both_ways")
    }
    broken = True
    with pytest.raises(ValueError, match="broken off"):
        ais(
            breaking,
            None,
            X,
            settings=TINY,
            seed=0,
            share=share,
            checkpoint=folder / f"of{share.world}.safetensors",
        )
    broken = False
    return found


@pytest.mark.slow
def test_processes_of_gloo_find_what_one_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four processes; two are in test_processes.py."""
    compare_evaluations(4, in_processes(4, everything, tmp_path), tmp_path, monkeypatch)


def compare_evaluations(
    world: int, results: list[Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results of `everything` with those of one process, which then goes on with what the
    processes had finished when they were broken off.
    """
    set_blocks(monkeypatch)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = {
            name: WORK[name](WHOLE) for name in ("sampled", "tried_again", "annealed", "both_ways")
        }
        for found in results:
            for name, result in found.items():
                assert_same(whole[name], result)
        assert (folder / f"of{world}.rank1.safetensors").is_file()
        expected = ais(breaking, None, X, settings=TINY, seed=0)
        moves: list[float] = []
        transition = hmc.transition

        def watched(
            path: AnnealingPath, point: hmc.Point, beta: float, step: Tensor, steps: int
        ) -> tuple[hmc.Point, Tensor]:
            moves.append(beta)
            return transition(path, point, beta, step, steps)

        monkeypatch.setattr(hmc, "transition", watched)
        resumed = ais(
            breaking, None, X, settings=TINY, seed=0, checkpoint=folder / f"of{world}.safetensors"
        )
        assert_same(expected, resumed)
        a_block = hmc.WARM_UP + 2 * (TINY.num_distributions - 1)
        assert len(moves) <= (3 if world == 2 else 2) * a_block
    finally:
        torch.set_num_threads(threads)


@pytest.mark.usefixtures("in_blocks")
def test_processes_take_up_what_one_had_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of one process with two of four blocks; two processes do the others, one each."""
    system, x = program()
    file = tmp_path / "work.safetensors"
    real, done, stops = checkpoint.Checkpoint.finish, [], True

    def stopping(kept: checkpoint.Checkpoint, first: int, found: BlockResult) -> None:
        real(kept, first, found)
        done.append(first)
        if stops and len(done) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpoint, "finish", stopping)
    with pytest.raises(KeyboardInterrupt):
        ais(system.model, None, x, settings=TINY, seed=1, checkpoint=file)
    stops, before = False, file.read_bytes()

    def two(share: Share) -> Any:
        for old in tmp_path.iterdir():
            old.unlink()
        file.write_bytes(before)
        done.clear()
        found = ais(system.model, None, x, settings=TINY, seed=1, checkpoint=file, share=share)
        return found, list(done)

    whole = annealed(WHOLE)
    for rank, (found, blocks_done) in enumerate(played(2, two)):
        assert_same(whole, found)
        assert blocks_done == [4 + 2 * rank]


def test_a_file_that_one_process_cannot_read_is_refused_by_all(tmp_path: Path) -> None:
    system, x = program()
    (tmp_path / "work.rank1.safetensors").write_bytes(b"nothing of the kind")

    def work(share: Share) -> Any:
        return ais(
            system.model,
            None,
            x,
            settings=TINY,
            seed=1,
            checkpoint=tmp_path / "work.safetensors",
            share=share,
        )

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for error in played(2, work):
            assert isinstance(error, RunError)
            assert "work.rank1.safetensors" in str(error)
