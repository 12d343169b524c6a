"""Small programs of discrete latents whose ELBO is a sum over all states."""

import itertools
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyroae.distributions import OneHots
from pyroae.objectives import ObjectiveBase

X = torch.tensor([[0.5, -1.0], [1.2, 0.3], [-0.4, 0.8]], dtype=torch.float64)


class TwoSites(nn.Module):
    """Two bits in a plate of their own and one variable of three states, with a scale and a mask.

    The scale multiplies the bits' densities in model and guide; the mask hides the last datum.
    """

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        start = torch.Generator().manual_seed(1)

        def draws(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=start, dtype=torch.float64))

        self.flat = flat
        self.bits, self.state = draws(2, 2), draws(2, 3)
        self.prior_bits, self.prior_state = draws(2), draws(3)
        self.inner, self.offset, self.outer = draws(5, 3), draws(3), draws(3, 2)

    @property
    def of_guide(self) -> list[nn.Parameter]:
        """φ."""
        return [self.bits, self.state]

    def one_of(self, logits: Tensor) -> Any:
        """One variable of three states."""
        return OneHots(logits.unsqueeze(-2)) if self.flat else dist.OneHotCategorical(logits=logits)

    def decode(self, bits: Tensor, state: Tensor) -> Tensor:
        """The mean of x, nonlinear in the states; bits have the shape `[..., 2, N]`."""
        one, two = (2 * bits[..., i : i + 1, :, None] - 1 for i in (0, 1))
        hidden = one * self.inner[0] + two * self.inner[1] + (3 * state - 1) @ self.inner[2:]
        return 2 * torch.tanh(hidden + self.offset) @ self.outer

    def latents(self, bits: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The latent sites."""
        with poutine.scale(scale=0.7), pyro.plate("bits", 2, dim=-2):
            a = pyro.sample("a", dist.Bernoulli(logits=bits.mT))
        return a, pyro.sample("c", self.one_of(state))

    def plates(self, x: Tensor) -> Any:
        """The data plate, a common scale, and the mask."""
        return pyro.plate("data", 6, subsample=torch.arange(len(x)), dim=-1)

    def model(self, x: Tensor) -> None:
        """p(a) p(c) p(x | a, c)."""
        with poutine.scale(scale=0.5), self.plates(x), poutine.mask(mask=_mask(x)):
            bits = self.prior_bits.expand(len(x), 2)
            a, c = self.latents(bits, self.prior_state.expand(len(x), 3))
            normal = dist.Normal(self.decode(a, c), 1.0).to_event(1)
            pyro.sample("x", normal, obs=x)

    def guide(self, x: Tensor) -> None:
        """q(a | x) q(c | x)."""
        with poutine.scale(scale=0.5), self.plates(x), poutine.mask(mask=_mask(x)):
            self.latents(x @ self.bits, x @ self.state)

    def exact(self, x: Tensor) -> Tensor:
        """The ELBO, by its sum over the 12 states of each datum."""
        total = torch.zeros(len(x), dtype=x.dtype)
        for one, two, three in itertools.product((0.0, 1.0), (0.0, 1.0), range(3)):
            a = torch.tensor([one, two], dtype=x.dtype).expand(len(x), 2)
            c = torch.eye(3, dtype=x.dtype)[three].expand(len(x), 3)
            log_q = [_bits(x @ self.bits, a), (c * (x @ self.state).log_softmax(-1)).sum(-1)]
            log_p = [_bits(self.prior_bits, a), (c * self.prior_state.log_softmax(-1)).sum(-1)]
            log_lik = dist.Normal(self.decode(a.mT, c), 1.0).log_prob(x).sum(-1)[0]
            log_weight = log_lik + 0.7 * (log_p[0] - log_q[0]) + log_p[1] - log_q[1]
            total = total + (log_q[0] + log_q[1]).exp() * log_weight
        return 0.5 * 6 / len(x) * (_mask(x) * total).sum()


def _bits(logits: Tensor, states: Tensor) -> Tensor:
    return dist.Bernoulli(logits=logits).log_prob(states).sum(-1)


def _mask(x: Tensor) -> Tensor:
    return torch.arange(len(x)) < len(x) - 1


def gradients(value: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """The gradient of a number as one vector."""
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def estimates(
    objective: ObjectiveBase, toy: TwoSites, repeats: int, parameters: list[nn.Parameter]
) -> tuple[Tensor, Tensor]:
    """Values, and gradients of the surrogate, of several calls."""
    values, rows = [], []
    for _ in range(repeats):
        value, surrogate = objective.bound(toy.model, toy.guide, X)
        values.append(value.detach())
        rows.append(gradients(surrogate, parameters))
    return torch.stack(values), torch.stack(rows)


def deviation(values: Tensor, mean: Tensor) -> float:
    """The largest distance of a mean over the first dimension from `mean`, in standard errors."""
    error = values.std(0) / len(values) ** 0.5
    distance = (values.mean(0) - mean).abs()
    return float((distance / error.clamp(min=1e-10)).max())
