"""Chunks that are computed part by part have the log-weights of whole ones."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyro
import pytest
import torch
from torch import Tensor

from pyroae import zoo
from pyroae.compilation import core_kernels
from pyroae.compilation.noise_inputs import Draw
from pyroae.compilation.step_loop import NoEntryError
from pyroae.evaluation.importance import cache_parts
from pyroae.evaluation.importance.cache_parts import PartByPart, are_parts
from pyroae.evaluation.importance.compiled import CompiledDraws
from pyroae.programs.context import evaluating
from tests.evaluation.importance.test_threaded_draws import gamma, gamma_guide

K, N = 10, 5


def compiled(
    system: object,
    x: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    largest: int,
    backend: str = "inductor",
) -> CompiledDraws:
    monkeypatch.setattr(cache_parts, "LARGEST", largest)
    monkeypatch.setattr(core_kernels, "can_sum_rows", lambda: False)
    model, guide = system.model, system.guide  # type: ignore[attr-defined]
    with evaluating(model, guide), pyro.validation_enabled(False):
        return CompiledDraws(model, guide, (x,), K, 1, backend)


@pytest.mark.parametrize(
    ("largest", "parts"),
    [pytest.param(12 * N * K // 2, 2, marks=pytest.mark.slow), (12 * N * K // 4, 5)],
)
def test_parts_have_the_log_weights_of_the_whole(
    largest: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For several blocks in several threads, which have buffers of their own; a smaller block too.

    The number of parts with the fewest surplus particles is taken.
    """
    system, x = zoo.vae(12, latent=2, hidden=(7,)), (torch.rand(N, 12) < 0.5).float()
    whole = compiled(system, x, monkeypatch, 2**20, "eager")
    divided = compiled(system, x, monkeypatch, largest)
    assert whole._graphs is not None
    assert divided._graphs is not None
    code = divided._graphs[1]
    assert isinstance(code, PartByPart)
    assert len(code._result_like) == parts
    blocks = (x, x.flip(0), x[:3])
    with ThreadPoolExecutor(2) as pool:
        tasks = [(divided.prepare((b,)), whole.prepare((b,)), s) for s in (0, 1) for b in blocks]
        found = list(pool.map(lambda task: task[0](K, task[2]), tasks))
    for log_weight, (_, expected, seed) in zip(found, tasks, strict=True):
        torch.testing.assert_close(log_weight, expected(K, seed))
    assert divided.prepare((x,))(4, 3).shape == (4, N)


def test_surplus_particles_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_parts, "num_parts", lambda *_: 3)
    system, x = zoo.vae(12, latent=2, hidden=(7,)), (torch.rand(N, 12) < 0.5).float()
    divided = compiled(system, x, monkeypatch, 1)
    whole = compiled(system, x, monkeypatch, 1, "eager")
    torch.testing.assert_close(divided.prepare((x,))(K, 0), whole.prepare((x,))(K, 0))


def test_code_that_cannot_be_called_from_c_is_not_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NoEntryError("the generated code has another form")

    monkeypatch.setattr(cache_parts, "StepLoop", refuse)
    system, x = zoo.vae(12, latent=2, hidden=(7,)), (torch.rand(N, 12) < 0.5).float()
    draws = compiled(system, x, monkeypatch, 1)
    assert draws._graphs is not None
    assert not isinstance(draws._graphs[1], PartByPart)
    assert draws.prepare((x,))(K, 0).isfinite().all()


def test_draws_with_parameters_are_not_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_parts, "LARGEST", 1)
    with pyro.validation_enabled(False), torch.no_grad():
        draws = CompiledDraws(gamma, gamma_guide, (torch.ones(N),), K, 1, "eager")
        graph, found = draws._traced([torch.ones(N)], K)
        assert found
        *_, sums, parts = draws._divided(graph, found, [torch.ones(N)])
    assert sums is None
    assert parts == 1


def test_draws_of_parts() -> None:
    """Particles first, in one memory layout; the other parameters agree."""
    whole = Draw("normal_", (), (6, 3), (3, 1), torch.float32, torch.device("cpu"))
    part = replace(whole, shape=(2, 3))
    assert are_parts([whole], [part], 2)
    for other in (
        whole,
        replace(part, shape=(2, 4), stride=(4, 1)),
        replace(part, method="uniform_"),
        replace(part, stride=(1, 2)),
        replace(part, dtype=torch.float64),
    ):
        assert not are_parts([whole], [other], 2)
    assert not are_parts([whole], None, 2)
    assert not are_parts([whole], [], 2)
