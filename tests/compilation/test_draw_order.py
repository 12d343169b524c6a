"""Compiled code makes several independent draws in the order of eager code."""

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyroae.compilation import codegen


def of_different_sizes(x: Tensor) -> tuple[Tensor, ...]:
    """Large draws first and last; the use of each is near the end, in another order."""
    first, second = torch.randn(200, 30), torch.randn(3)
    third = torch.empty(40, 50).uniform_()
    unused = torch.randn(7)
    fourth, last = torch.bernoulli(x.sigmoid()), torch.randn(100, 60)
    inner = (third @ third.mT).sum() + second.sum()
    del unused
    return 2 * x + last.sum(0)[:3], fourth * inner, first.sum(0)[:3] * x


def of_a_permuted_tensor(x: Tensor) -> tuple[Tensor, ...]:
    """Noise like a tensor whose memory is not in the order of its dimensions."""
    moved = x.expand(4, 3).mT.contiguous().mT.exp()
    noise = torch.randn_like(moved), torch.rand_like(moved + 1)
    return (x * 3 + noise[1], noise[0].cumsum(0))


@pytest.mark.parametrize("chained", [True, False])
def test_draws_have_the_order_of_eager_code(chained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch's compiler chains draws, and where they are inputs of its code."""
    if chained and not codegen._chains_draws():
        pytest.skip("this torch does not chain draws")
    monkeypatch.setattr(codegen, "_chains_draws", lambda: chained)

    def function(x: Tensor) -> tuple[Tensor, ...]:
        return of_different_sizes(x) + of_a_permuted_tensor(x)

    x = torch.tensor([0.3, -0.2, 1.5])
    code = codegen.inductor(make_fx(function)(x), [x], same_draws=False)
    for seed in range(2):
        torch.manual_seed(seed)
        expected, after = function(x), torch.randn(())
        torch.manual_seed(seed)
        torch.testing.assert_close(tuple(code(x)), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(torch.randn(()), after)
