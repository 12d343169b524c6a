"""Where memory runs out: halves of what was done at once, with one warning; a sentence where
nothing is left to halve.
"""

import multiprocessing
import resource
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae.compilation.codegen import try_compile
from pyroae.config import AISSettings
from pyroae.errors import BrokenProgramError, ConfigError, ProgramError
from pyroae.evaluation.annealing import bounds as ais_module
from pyroae.evaluation.annealing import chunks, hmc
from pyroae.evaluation.annealing.bounds import ais, bdmc
from pyroae.evaluation.annealing.results import BlockResult
from pyroae.evaluation.importance import sampler as sampling
from pyroae.evaluation.importance.compiled import CompiledDraws
from pyroae.evaluation.importance.likelihood import log_likelihood
from pyroae.runtime.memory import ChunkSize, is_out_of_memory
from tests.conftest import sample_of

pytestmark = pytest.mark.usefixtures("float64")
TINY = AISSettings(num_chains=4, num_distributions=6, leapfrog_steps=2)
RAN_OUT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. "
        "DefaultCPUAllocator: can't allocate memory: you tried"
    ),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:80] data. "
        "DefaultCPUAllocator: not enough memory: you tried to allocate"
    ),
    MemoryError(),
]


NAMES = ["device", "Linux", "Windows", "Python"]


@pytest.fixture(params=sample_of(RAN_OUT, 4), ids=NAMES)
def error(request: pytest.FixtureRequest) -> Exception:
    return request.param


def each_once(values: list[Any]) -> pytest.MarkDecorator:
    """Each value with each error; in `make test` each of the first two values, with one error
    each.
    """
    pairs = [(value, i) for value in values for i in range(len(RAN_OUT))]
    run = {(i, i) for i in range(min(2, len(values)))}
    marks = [() if (values.index(value), i) in run else pytest.mark.slow for value, i in pairs]
    names = [f"{getattr(value, '__name__', value)}-{NAMES[i]}" for value, i in pairs]
    params = [
        pytest.param(v, RAN_OUT[i], marks=m, id=name)
        for (v, i), m, name in zip(pairs, marks, names, strict=True)
    ]
    return pytest.mark.parametrize(("given", "error"), params)


@pytest.fixture
def said() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


class Small:
    """A program whose likelihood is taken of no more than so many pairs of a particle and a
    datum.
    """

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error, self.most, self.calls = room, error, 0, 0

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            self.calls += 1
            if z.numel() > self.room:
                raise self.error
            self.most = max(self.most, z.numel())
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, 0.5))


def exact(x: Tensor) -> Tensor:
    return dist.Normal(0.0, 1.25**0.5).log_prob(x)


@each_once([400, 70, 3, 1])
def test_sampling_goes_on_with_halves(
    given: int,
    error: Exception,
    said: list[warnings.WarningMessage],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blocks of 10 data with 64 draws each; with 3 at once a block goes in parts."""
    room = given
    monkeypatch.setattr(sampling, "rows_of", lambda args, compiled=False: 640)
    small, x = Small(room, error), torch.linspace(-1, 1, 12)
    found = log_likelihood(small.model, small.guide, x, num_particles=100, seed=0)
    assert room / 2 < small.most <= room
    assert (found.draws == 100).all()
    assert ((found.log_px - exact(x)).abs() < 5 * found.se + 1e-6).all()
    (warned,) = said
    assert warned.category is UserWarning
    size = {400: 320, 70: 40, 3: 3, 1: 1}[room]
    assert str(warned.message) == f"memory ran out with 640 draws at once: continuing with {size}"
    again = log_likelihood(small.model, small.guide, x, num_particles=100, seed=0)
    assert torch.equal(again.log_px, found.log_px)


@each_once([ais, bdmc])
def test_annealing_goes_on_with_halves(
    given: Callable[..., Any],
    error: Exception,
    tmp_path: Path,
    said: list[warnings.WarningMessage],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blocks of 7 data by 4 chains, of which two at a time fit; a checkpoint resumes with as
    many.
    """
    function = given
    monkeypatch.setattr(ais_module, "rows_of", lambda args, compiled=False: 28)
    monkeypatch.setattr(hmc, "WARM_UP", 5)
    small, x = Small(8, error), torch.linspace(-1, 1, 17)
    found = function(small.model, None, x, settings=TINY, seed=0)
    assert small.most == 8
    (warned,) = said
    assert str(warned.message) == "memory ran out with 7 data at once: continuing with 2"
    lower = found.log_px if function is ais else found.lower
    assert lower.shape == (17,)
    if function is ais:
        assert ((lower - exact(x)).abs() < 6 * found.se + 0.2).all()
    finish, blocks = ais_module.Checkpoint.finish, []

    def stopping(kept: ais_module.Checkpoint, first: int, part: BlockResult) -> None:
        finish(kept, first, part)
        blocks.append(first)
        if len(blocks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(ais_module.Checkpoint, "finish", stopping)
    arguments: dict[str, Any] = {
        "settings": TINY,
        "seed": 0,
        "checkpoint": tmp_path / "work.safetensors",
    }
    with pytest.raises(KeyboardInterrupt):
        function(small.model, None, x, **arguments)
    resumed = function(small.model, None, x, **arguments)
    assert blocks == [0, 2, 4, 6, 7, 9, 11, 13, 14, 16]
    assert torch.equal(resumed.log_px if function is ais else resumed.lower, lower)
    assert len(said) == 1  # the file knows the size


def test_where_the_smallest_does_not_fit(error: Exception) -> None:
    small, x = Small(0, error), torch.zeros(3)
    words = "use a smaller program or a device with more memory"
    with pytest.raises(ConfigError, match=f"memory does not hold one draw for one datum: {words}"):
        log_likelihood(small.model, small.guide, x, num_particles=10)
    with pytest.raises(ConfigError, match=f"memory does not hold one draw for one datum: {words}"):
        ais(small.model, None, x, settings=TINY)
    small.room = 1
    with pytest.raises(
        ConfigError, match=f"memory does not hold the 4 chains of one datum: {words}"
    ):
        ais(small.model, None, x, settings=TINY)


def test_what_is_no_lack_of_memory_comes_up(said: list[warnings.WarningMessage]) -> None:
    small = Small(0, RuntimeError("a matrix is singular"))
    with pytest.raises(
        BrokenProgramError, match=r"after the site 'z': RuntimeError: a matrix is singular$"
    ):
        log_likelihood(small.model, small.guide, torch.zeros(3))
    assert not said


def test_an_error_that_a_lack_of_memory_led_to(error: Exception) -> None:
    def wrapped() -> None:
        try:
            raise error
        except Exception as cause:
            raise ProgramError("the log-density of site 'x' failed") from cause

    with pytest.raises(ProgramError) as caught:
        wrapped()
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(ProgramError("the log-density of site 'x' failed"))


def test_a_portion_keeps_its_size(said: list[warnings.WarningMessage]) -> None:
    def work(size: int) -> int:
        if size > 5:
            raise MemoryError
        return size

    portion = ChunkSize(37, "data", "one datum")
    assert [portion.fitted(work), portion.fitted(work)] == [5, 5]
    assert [str(warned.message) for warned in said] == [
        "memory ran out with 37 data at once: continuing with 5"
    ]


def test_graphs_are_made_again_for_the_smaller_shape(
    said: list[warnings.WarningMessage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph whose code takes too much for its shape: one of half of it is made, which does all
    that is left.
    """
    shapes: list[tuple[int, int]] = []

    def compiled(
        graph: torch.fx.GraphModule, inputs: list[Tensor], **settings: bool
    ) -> Callable[..., Any]:
        def code(*flat: Tensor) -> Any:
            found = graph(*flat)
            if found[0].numel() > 100:
                raise torch.OutOfMemoryError("out of memory")
            return found

        return code

    monkeypatch.setattr("pyroae.evaluation.importance.compiled.inductor", compiled)
    make = CompiledDraws.__init__

    def watched(self: CompiledDraws, *args: Any) -> None:
        make(self, *args)
        shapes.append((self.num_particles, self.num_data))

    monkeypatch.setattr(CompiledDraws, "__init__", watched)
    monkeypatch.setattr(sampling, "rows_of", lambda args, compiled=False: 320)
    small, x = Small(10**9, MemoryError()), torch.linspace(-1, 1, 12)
    found = log_likelihood(small.model, small.guide, x, num_particles=200, seed=0, compile=True)
    assert shapes == [(53, 6), (26, 6), (13, 6)]
    assert (found.draws == 200).all()
    assert ((found.log_px - exact(x)).abs() < 5 * found.se + 1e-6).all()
    assert len(said) == 1


def test_paths_have_graphs_for_the_smaller_shape(
    said: list[warnings.WarningMessage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a graph is traced memory may run out too: that is no reason to do without one."""
    monkeypatch.setattr(chunks, "inductor", lambda graph, inputs, same_draws, one_core: graph)
    monkeypatch.setattr(ais_module, "rows_of", lambda args, compiled=False: 28)
    monkeypatch.setattr(hmc, "WARM_UP", 5)
    small, x = Small(16, MemoryError()), torch.linspace(-1, 1, 17)
    longer = replace(TINY, leapfrog_steps=4)
    found = ais(small.model, None, x, settings=longer, seed=0, compile=True)
    calls = small.calls
    assert torch.allclose(
        found.log_px,
        ais(small.model, None, x, settings=longer, seed=0, compile=False).log_px,
        rtol=1e-9,
    )
    assert calls < (small.calls - calls) / 4  # graphs do not run the program
    assert [str(w.message) for w in said] == [
        "memory ran out with 7 data at once: continuing with 4"
    ] * 2


def test_a_lack_of_memory_is_no_reason_to_run_without_a_graph() -> None:
    def make() -> None:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        try_compile(make, torch.device("cpu"))


# A real limit.


def _limited(pipe: Any) -> None:
    """64 MiB for a chunk's largest tensor, and room for less than two of them."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weights = torch.randn(2048) / 50

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) * weights, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x @ weights) / 2, 0.8))

    x = torch.randn(8, 2048)
    sampling.rows_of = lambda args, compiled=False: 8192
    log_likelihood(model, guide, x, num_particles=30, seed=0)  # whatever is imported is there
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 100 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = log_likelihood(model, guide, x, num_particles=1024, seed=0)
    pipe.send(
        (
            [str(warned.message) for warned in said],
            found.draws.tolist(),
            found.log_px.isfinite().all().item(),
        )
    )


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_a_process_of_little_memory() -> None:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_limited, args=(there,))
    process.start()
    there.close()
    process.join(120)
    assert process.exitcode == 0
    said, draws, is_finite = here.recv()
    (words,) = said
    assert words.startswith("memory ran out with 8,192 draws at once: continuing with ")
    assert int(words.split()[-1].replace(",", "")) in (2048, 1024, 512, 256, 4096)
    assert draws == [1024] * 8
    assert is_finite
