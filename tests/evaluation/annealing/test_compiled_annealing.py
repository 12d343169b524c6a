"""Annealing by graphs: the numbers of eager code, block after block; resumed bit for bit; what
cannot be one graph.
"""

import warnings
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae import zoo
from pyroae.config import AISSettings
from pyroae.errors import ConfigError
from pyroae.evaluation.annealing import bounds as ais_module
from pyroae.evaluation.annealing import checkpoint, chunks, hmc, plan
from pyroae.evaluation.annealing.bounds import ais, bdmc
from pyroae.evaluation.annealing.plan import GRADIENT_COST
from pyroae.nn import MLP
from tests.evaluation.annealing.test_ais import counts, ppca, scales, scales_guide
from tests.evaluation.annealing.test_annealing import Interruption, finished
from tests.systems import system_and_data

SETTINGS = AISSettings(5, 8, leapfrog_steps=3)
pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """Graphs run as they are traced; a list of them."""
    graphs: list[torch.fx.GraphModule] = []

    def kept(
        graph: torch.fx.GraphModule, inputs: list[Tensor], same_draws: bool, one_core: bool
    ) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    monkeypatch.setattr(chunks, "inductor", kept)
    monkeypatch.setattr(hmc, "WARM_UP", 5)
    return graphs


def either(one: Iterable[Any], other: Iterable[Any]) -> list[Any]:
    """All pairs; those of one diagonal, with each value of both, for `make test`."""
    return [
        pytest.param(a, b, marks=pytest.mark.slow if (i + j) % 2 else ())
        for (i, a), (j, b) in product(enumerate(one), enumerate(other))
    ]


bdmc_from_the_guide = [
    pytest.param(*pair, marks=() if pair == (bdmc, "guide") else pytest.mark.slow)
    for pair in product((ais, bdmc), ("prior", "guide"))
]
"""Chains of both directions for `make test`; those of the other cases are a part of them."""


def in_blocks(monkeypatch: pytest.MonkeyPatch, size: int, num_chains: int = 5) -> None:
    monkeypatch.setattr(ais_module, "rows_of", lambda args: size * num_chains)


def assert_same(one: Any, other: Any, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Every tensor of two results, those of a result in it too."""
    for name, value in vars(one).items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(
                value, getattr(other, name), rtol=rtol, atol=atol, equal_nan=True, msg=name
            )
        if name == "forward":
            assert_same(value, other.forward, rtol, atol)
        if name in ("x", "z"):
            assert all(torch.equal(v, getattr(other, name)[site]) for site, v in value.items())


def assert_graphs_agree(
    function: Callable[..., Any], *args: Any, settings: AISSettings = SETTINGS
) -> Any:
    """A result by graphs, which is that of a run as it is."""
    found, expected = (function(*args, settings=settings, seed=3, compile=c) for c in (True, False))
    assert_same(found, expected, rtol=1e-8, atol=1e-9)
    return found


@pytest.mark.parametrize(
    ("name", "start"),
    either(("vae", "vae-conv", "vae-normal"), ("prior", "guide")),
)
def test_systems_of_the_zoo(name: str, start: str, made: list[torch.fx.GraphModule]) -> None:
    system, x = system_and_data(name)
    found = assert_graphs_agree(
        ais, system.model, system.guide, x, settings=AISSettings(5, 8, start, leapfrog_steps=3)
    )
    assert found.acceptance.mean() > 0.2
    assert len(made) == 1


def test_inputs_of_large_networks_stay_separate(
    made: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "MOST_JOINED", 0)
    system, x = system_and_data("vae")
    settings = AISSettings(5, 8, leapfrog_steps=3)
    assert_graphs_agree(ais, system.model, system.guide, x, settings=settings)
    assert len(made) == 1


def test_joined_inputs_are_separated_again() -> None:
    tensors = [torch.randn(3, 5), torch.tensor(7), torch.randn(()), torch.arange(20).reshape(4, 5)]
    tensors += [torch.randn(2, 0), torch.randn(16, 2), torch.rand(3) < 0.5]
    joined = chunks._Joined(tensors, is_small=True)
    whole = joined.join(tensors)
    assert len(whole) == 3
    for found, expected in zip(joined.split(whole), tensors, strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    assert all(t.storage_offset() % chunks.ALIGNED == 0 for t in joined.split(whole))


@pytest.mark.parametrize(("function", "start"), bdmc_from_the_guide)
def test_blocks_share_the_graphs_and_not_their_data(
    function: Callable[..., Any],
    start: str,
    made: list[torch.fx.GraphModule],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blocks of 2, 2 and 1, the last of which is filled up; what is drawn for one is not that of
    another.
    """
    in_blocks(monkeypatch, 2)
    system, x = ppca()
    found = assert_graphs_agree(
        function, system.model, system.guide, x, settings=AISSettings(5, 8, start, leapfrog_steps=3)
    )
    assert len(made) == 1
    lower = found.log_px if function is ais else found.lower
    assert len({round(v, 6) for v in lower.tolist()}) == 5


@pytest.mark.parametrize(("function", "start"), bdmc_from_the_guide)
def test_nested_plates_and_constrained_latents(
    function: Callable[..., Any],
    start: str,
    made: list[torch.fx.GraphModule],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_blocks(monkeypatch, 3)
    assert_graphs_agree(
        function,
        scales,
        scales_guide,
        torch.randn(4, 3),
        settings=AISSettings(5, 8, start, leapfrog_steps=3),
    )
    assert len(made) == 1


def bounded(x: Tensor, known: Tensor, width: Tensor) -> None:
    """A support with bounds that are tensors, a mask, and a parameter of the store."""
    noise = pyro.param("noise", torch.tensor(0.4), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Uniform(-width, width))
        with pyro.poutine.mask(mask=known):
            pyro.sample("x", dist.Normal(z, noise), obs=x)


def test_several_arguments_masks_bounds_and_parameters_of_the_store(
    made: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bounds differ between blocks: they are inputs of the graphs, not constants."""
    in_blocks(monkeypatch, 2)
    x, known = torch.randn(4), torch.tensor([True, False, True, True])
    width = torch.tensor([1.0, 1.0, 3.0, 3.0])
    found = assert_graphs_agree(ais, bounded, None, (x, known, width))
    torch.testing.assert_close(found.log_px[~known], torch.zeros(1), rtol=0, atol=1e-9)
    assert len(made) == 1
    pyro.get_param_store()["noise"] = torch.tensor(0.8)
    other = assert_graphs_agree(ais, bounded, None, (x, known, width))
    assert (other.log_px - found.log_px)[known].abs().min() > 1e-3
    seen, alpha = (
        torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 2.0]]),
        torch.tensor([[1.0, 2.0, 3.0], [0.5, 1.0, 1.0]]),
    )
    assert_graphs_agree(ais, counts, None, (seen, alpha))


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(
    "settings",
    [AISSettings(1, 8, leapfrog_steps=1), AISSettings(5, 1), AISSettings(2, 2, double=True)],
)
def test_few_chains_steps_and_distributions(settings: AISSettings) -> None:
    torch.set_default_dtype(torch.float32 if settings.double else torch.float64)
    system, x = ppca()
    assert (
        assert_graphs_agree(ais, system.model, None, x, settings=settings).log_px.dtype
        == torch.float64
    )
    assert next(system.parameters()).dtype == torch.get_default_dtype()


def test_data_that_are_not_contiguous(
    made: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_blocks(monkeypatch, 2)
    system, x = ppca()
    assert_graphs_agree(ais, system.model, None, x.T.contiguous().T)
    assert len(made) == 1


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("function", [pytest.param(ais, marks=pytest.mark.slow), bdmc])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    function: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in every block, the last and smaller one too, which then is the first that the
    graphs are made for.
    """
    in_blocks(monkeypatch, 3)
    monkeypatch.setattr(checkpoint, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(plan, "MOST_MOVES", 3)
    system, x = ppca()
    settings = AISSettings(5, 60, leapfrog_steps=3)  # summarized at some steps only
    arguments: dict[str, Any] = {"settings": settings, "seed": 5, "compile": True}
    counted = Interruption(monkeypatch, [], chunks.ChunkedMover, "move")
    whole = function(system.model, None, x, **arguments)
    calls, moves = counted.count, 2 * (64 + 59 * (1 if function is ais else 2))
    assert moves / 3 < calls < moves / 1.3
    moments = [20, calls // 2, calls - 1]
    Interruption(monkeypatch, moments, chunks.ChunkedMover, "move")
    file = tmp_path / "work.safetensors"
    found, breaks = finished(lambda: function(system.model, None, x, checkpoint=file, **arguments))
    assert breaks == 3
    assert counted.count == 2 * calls
    assert_same(whole, found)
    assert_same(
        whole, function(system.model, None, x, checkpoint=file, **{**arguments, "compile": False})
    )


def test_an_eager_run_goes_on_in_compiled_code(
    made: list[torch.fx.GraphModule], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted between two moves that compiled code runs by one call."""
    monkeypatch.setattr(checkpoint, "SAVE_EVERY", 0.0)
    system, x = ppca()
    settings = AISSettings(5, 60, leapfrog_steps=3, posterior_draws=2, thinning=4)
    arguments: dict[str, Any] = {"settings": settings, "seed": 5}
    whole = ais(system.model, None, x, compile=False, **arguments)
    file = tmp_path / "work.safetensors"
    Interruption(monkeypatch, [32])
    with pytest.raises(KeyboardInterrupt):
        ais(system.model, None, x, compile=False, checkpoint=file, **arguments)
    assert not made
    found = ais(system.model, None, x, compile=True, checkpoint=file, **arguments)
    assert len(made) == 1
    assert_same(whole, found, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(found.posterior["z"], whole.posterior["z"], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("function", [ais, pytest.param(bdmc, marks=pytest.mark.slow)])
def test_code_of_inductor_in_any_number_of_threads(
    function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers of eager code, and the same bits; with chunks that divide the chains of a datum,
    in blocks of which the last is smaller.
    """
    monkeypatch.setattr(hmc, "WARM_UP", 5)
    monkeypatch.setattr(plan, "LEAST_ROWS", 6)
    in_blocks(monkeypatch, 4, num_chains=8)
    system, x = zoo.vae(6, latent=2, encoder=MLP((5,))), (torch.rand(7, 6) < 0.4).double()
    settings = AISSettings(8, 8, leapfrog_steps=2, posterior_draws=2, thinning=2)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(function(system.model, None, x, settings=settings, seed=1, compile=True))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert_same(*found)
    eager = function(system.model, None, x, settings=settings, seed=1, compile=False)
    assert_same(found[0], eager, rtol=1e-8, atol=1e-9)
    if function is ais:
        draws = [each.posterior["z"] for each in (*found, eager)]
        assert torch.equal(draws[0], draws[1])
        torch.testing.assert_close(draws[0], draws[2], rtol=1e-8, atol=1e-9)


def test_chunks_follow_from_the_configuration() -> None:
    """Their rows stay in a cache, and there are at least eight where they are not too small."""

    def of(num_chains: int, num_distributions: int = 100) -> plan.Plan:
        settings = AISSettings(num_chains, num_distributions)
        return plan.Plan(lambda x: None, None, settings, 1)

    assert of(16).chunk_rows(100, 784) == 200
    assert of(16).chunk_rows(40, 64) == 80
    assert of(16).chunk_rows(167, 784) == 223
    assert of(16).chunk_rows(100, 12_288) == 64
    assert of(1).chunk_rows(1, 784) == 2  # the pilot has two chains
    assert of(1000).chunk_rows(1, 784) == 125
    assert [of(16).moves_at_once(n, 784) for n in (1, 100, 10_000)] == [20, 5, 1]


def branching(x: Tensor) -> None:
    """Its control flow depends on what is drawn."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z if z.sum() < 1e6 else -z, 1.0), obs=x)


class Strict(dist.Normal):
    """A distribution that looks at its values."""

    def log_prob(self, value: Tensor) -> Tensor:
        if not bool(value.isfinite().all()):
            raise RuntimeError("a value is not finite")
        return super().log_prob(value)


def looking(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", Strict(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("model", [branching, looking])
def test_what_is_no_graph_is_run_as_it_is_with_one_warning(model: Callable[[Tensor], None]) -> None:
    x = torch.randn(4)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = ais(model, None, x, settings=SETTINGS, seed=0, compile=True)
    assert ["model and guide run eagerly, not compiled: " in str(w.message) for w in said] == [True]
    assert_same(found, ais(model, None, x, settings=SETTINGS, seed=0, compile=False))


def test_auto_compiles_long_paths_only(
    made: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    system, x = ppca()
    ais(system.model, None, x, settings=SETTINGS, seed=0)
    assert not made
    transitions = (5 + 7) * (GRADIENT_COST + 4 * x.numel()) + 7 * (GRADIENT_COST + 5 * x.numel())
    monkeypatch.setattr(ais_module, "COMPILE_FROM", 3 * transitions + 1)
    ais(system.model, None, x, settings=SETTINGS, seed=0)
    assert not made
    monkeypatch.setattr(ais_module, "COMPILE_FROM", 3 * transitions)
    ais(system.model, None, x, settings=SETTINGS, seed=0)
    assert len(made) == 1


@pytest.mark.parametrize("compile", ["yes", 1, None])
def test_other_words_are_refused(compile: Any) -> None:
    system, x = ppca()
    for function in (ais, bdmc):
        with pytest.raises(ConfigError, match="compile takes auto, true or false, not"):
            function(system.model, None, x, settings=SETTINGS, compile=compile)
