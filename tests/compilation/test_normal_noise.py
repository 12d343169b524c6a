"""Normal noise made by vector instructions is torch's, for any seed and number of elements."""

import pytest
import torch

from pyroae.compilation import core_kernels
from pyroae.compilation.core_kernels import can_fill_normals, fill_normals
from pyroae.compilation.noise_inputs import Draw
from pyroae.compilation.normal_noise import is_standard_normal


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 1, 2**63 - 1])
def test_the_noise_is_that_of_torch(seed: int) -> None:
    """Several tensors in turn, whose last group is drawn again where it is not whole."""
    assert can_fill_normals()
    sizes = [16, 17, 40, 623, 624, 10_000, 31, 2**20]
    found = [torch.empty(size) for size in sizes]
    fill_normals(found, seed)
    generator = torch.Generator().manual_seed(seed)
    for tensor in found:
        wanted = torch.empty(len(tensor)).normal_(generator=generator)
        torch.testing.assert_close(tensor, wanted, rtol=1e-6, atol=3e-6)


def test_moments() -> None:
    """Those of a standard normal distribution, and values as rare as they should be."""
    (noise,) = found = [torch.empty(4_000_000)]
    fill_normals(found, 3)
    noise = noise.double()
    moments = [noise.mean(), noise.square().mean() - 1, (noise**3).mean(), (noise**4).mean() - 3]
    for moment, variance in zip(moments, (1, 2, 15, 96), strict=True):
        assert abs(moment) < 4 * (variance / len(noise)) ** 0.5
    assert 4.8 < noise.abs().max() < 6


def test_which_draws_are_made() -> None:
    cpu = torch.device("cpu")
    assert is_standard_normal(Draw("normal_", (), (4, 5), (5, 1), torch.float32, cpu))
    assert is_standard_normal(Draw("normal_", (0.0, 1.0), (16,), (1,), torch.float32, cpu))
    for other in (
        Draw("normal_", (0.0, 2.0), (4, 5), (5, 1), torch.float32, cpu),
        Draw("uniform_", (), (4, 5), (5, 1), torch.float32, cpu),
        Draw("normal_", (), (4, 5), (1, 4), torch.float32, cpu),
        Draw("normal_", (), (3, 5), (5, 1), torch.float32, cpu),
        Draw("normal_", (), (4, 5), (5, 1), torch.float64, cpu),
        None,
    ):
        assert not is_standard_normal(other)


def test_without_a_compiler_torch_draws_and_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_kernels, "have_kernels", lambda: False)
    assert not can_fill_normals.__wrapped__()
    assert not core_kernels.can_sum_rows.__wrapped__()


def test_noise_that_is_not_that_of_torch_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        core_kernels, "fill_normals", lambda tensors, _: [t.zero_() for t in tensors]
    )
    assert not can_fill_normals.__wrapped__()
