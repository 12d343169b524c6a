"""Toys with discrete latent sites, whose expectations are sums over their states."""

from itertools import product

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyroae.testing.fixed_draws import bits, category, largest, log_categorical
from pyroae.testing.toy_program import NOISE, EnumerableToy, States, log_normal

BITS = 3


class BernoulliToy(EnumerableToy):
    """Three bits as one event, with an amortized guide.

        z ~ Bernoulli(logits = a),   x|z ~ N(W z + b, σ²I),   q(z|x) = Bernoulli(logits = V x + c)

    Attributes:
        prior: a, shape `[3]`.
        weight: W, shape `[3, 3]`.
        bias: b, shape `[3]`.
        encode: V, shape `[3, 3]`.
        shift: c, shape `[3]`.

    >>> BernoulliToy().states(torch.zeros(3)).log_prob.shape
    torch.Size([8])
    """

    theta = ("prior", "weight", "bias")
    noise_size = BITS

    def __init__(self) -> None:
        super().__init__()
        self.prior = nn.Parameter(torch.tensor([0.3, -0.4, 0.1]))
        weight = [[0.9, 0.3, -0.4], [-0.3, 0.8, 0.5], [0.5, 0.4, 0.7]]
        self.weight = nn.Parameter(torch.tensor(weight))
        self.bias = nn.Parameter(torch.tensor([0.1, 0.0, -0.2]))
        encode = [[0.4, -0.2, 0.3], [0.1, 0.5, 0.2], [-0.3, 0.2, 0.6]]
        self.encode = nn.Parameter(torch.tensor(encode))
        self.shift = nn.Parameter(torch.tensor([0.3, -0.2, 0.1]))

    def model(self, x: Tensor) -> None:
        """Run p(z) p(x|z) as a Pyro program on x `[N, 3]`."""
        with self.plate(x):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior).to_event(1))
            self.observe(z @ self.weight.T + self.bias, x)

    def guide(self, x: Tensor) -> None:
        """Run q(z|x) as a Pyro program on x `[N, 3]`."""
        with self.plate(x):
            pyro.sample("z", bits(x @ self.encode.T + self.shift, self).to_event(1))

    def at_posterior(self) -> "BernoulliToy":
        """Return a toy with orthogonal columns of W, whose posterior has independent bits."""
        toy = BernoulliToy()
        with torch.no_grad():
            toy.weight.copy_(torch.tensor([[0.9, -0.4, 0.2], [0.4, 0.9, 0.0], [-0.2, 0.1, 0.97]]))
            toy.weight.copy_(torch.linalg.qr(toy.weight).Q * torch.tensor([1.0, 0.8, 1.2]))
            offset = toy.weight.T @ toy.bias + toy.weight.square().sum(0) / 2
            toy.encode.copy_(toy.weight.T / NOISE**2)
            toy.shift.copy_(toy.prior - offset / NOISE**2)
        return toy

    def states(self, x: Tensor, *, stopped: bool = False) -> States:
        """Return the eight states."""
        z = torch.tensor(list(product((0.0, 1.0), repeat=BITS)))
        log_q, log_p = self._densities(x, z)
        return States(log_q, log_q, log_p)

    def log_weights(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return the log-weights, shape `[K, N]`."""
        log_q, log_p = self._densities(x, (noise > 0).to(noise))
        return log_p - log_q

    def _densities(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log q(z|x) and log p(x, z) of values `[..., 3]`."""
        bernoulli = torch.distributions.Bernoulli
        log_q = bernoulli(logits=x @ self.encode.T + self.shift).log_prob(z).sum(-1)
        log_prior = bernoulli(logits=self.prior).log_prob(z).sum(-1)
        return log_q, log_prior + log_normal(x, z @ self.weight.T + self.bias)


class CategoricalToy(EnumerableToy):
    """A category of three, and one of two that depends on it in model and guide.

        y ~ Cat(a),   u|y ~ Cat(A y),   x|y,u ~ N(W y + U u + b, σ²I)
        q(y|x) = Cat(V x + c),   q(u|y,x) = Cat(B x + D y)

    Both are one-hot vectors, and the parameters in Cat are logits.

    Args:
        dependent: Whether u depends on y in the guide; otherwise D y is the mean of D's columns.

    Attributes:
        prior: a, shape `[3]`.
        prior_second: A, shape `[2, 3]`.
        weight: W, shape `[3, 3]`.
        weight_second: U, shape `[3, 2]`.
        bias: b, shape `[3]`.
        encode: V, shape `[3, 3]`.
        shift: c, shape `[3]`.
        encode_second: B, shape `[2, 3]`.
        shift_second: D, shape `[2, 3]`.

    >>> CategoricalToy().states(torch.zeros(3)).log_prob.shape
    torch.Size([6])
    """

    theta = ("prior", "prior_second", "weight", "weight_second", "bias")
    noise_size = 5

    def __init__(self, *, dependent: bool = True) -> None:
        super().__init__()
        self.dependent = dependent
        self.prior = nn.Parameter(torch.tensor([0.3, -0.4, 0.1]))
        self.prior_second = nn.Parameter(torch.tensor([[0.2, -0.3, 0.5], [-0.1, 0.4, 0.0]]))
        weight = [[0.9, 0.1, -0.4], [-0.3, 0.8, 0.5], [0.5, 0.4, -0.3]]
        self.weight = nn.Parameter(torch.tensor(weight))
        self.weight_second = nn.Parameter(torch.tensor([[0.6, -0.2], [0.1, -0.5], [-0.4, 0.3]]))
        self.bias = nn.Parameter(torch.tensor([0.1, 0.0, -0.2]))
        encode = [[0.4, -0.2, 0.3], [0.1, 0.5, 0.2], [-0.3, 0.2, 0.6]]
        self.encode = nn.Parameter(torch.tensor(encode))
        self.shift = nn.Parameter(torch.tensor([0.3, -0.2, 0.1]))
        self.encode_second = nn.Parameter(torch.tensor([[0.3, -0.1, 0.2], [-0.2, 0.4, 0.1]]))
        self.shift_second = nn.Parameter(torch.tensor([[0.5, -0.2, 0.1], [-0.3, 0.2, 0.4]]))

    def model(self, x: Tensor) -> None:
        """Run p(y) p(u|y) p(x|y, u) as a Pyro program on x `[N, 3]`."""
        with self.plate(x):
            y = pyro.sample("y", dist.OneHotCategorical(logits=self.prior))
            u = pyro.sample("u", dist.OneHotCategorical(logits=y @ self.prior_second.T))
            self.observe(y @ self.weight.T + u @ self.weight_second.T + self.bias, x)

    def guide(self, x: Tensor) -> None:
        """Run q(y|x) q(u|y, x) as a Pyro program on x `[N, 3]`."""
        with self.plate(x):
            y = pyro.sample("y", category(x @ self.encode.T + self.shift, self, 0))
            logits = x @ self.encode_second.T + self._shift(y)
            pyro.sample("u", category(logits, self, 3))

    def at_posterior(self) -> "CategoricalToy":
        """Return a toy in which y and u are independent, and act on different features."""
        toy = CategoricalToy(dependent=self.dependent)
        with torch.no_grad():
            toy.prior_second.copy_(toy.prior_second[:, :1].expand(2, 3))
            toy.weight[2] = 0.0
            toy.weight_second[:2] = 0.0
            toy.encode.copy_(toy.weight.T / NOISE**2)
            toy.encode_second.copy_(toy.weight_second.T / NOISE**2)
            first = toy.weight.T @ toy.bias + toy.weight.square().sum(0) / 2
            second = toy.weight_second.T @ toy.bias + toy.weight_second.square().sum(0) / 2
            toy.shift.copy_(toy.prior - first / NOISE**2)
            toy.shift_second.copy_(toy.prior_second - second[:, None] / NOISE**2)
        return toy

    def states(self, x: Tensor, *, stopped: bool = False) -> States:
        """Return the six states."""
        y = torch.eye(3).repeat_interleave(2, 0)
        log_q, log_p = self._densities(x, y, torch.eye(2).repeat(3, 1))
        return States(log_q, log_q, log_p)

    def log_weights(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return the log-weights, shape `[K, N]`."""
        log_q, log_p = self._densities(x, largest(noise[..., :3]), largest(noise[..., 3:]))
        return log_p - log_q

    def _shift(self, y: Tensor) -> Tensor:
        """D y, or the mean of D's columns."""
        return y @ self.shift_second.T if self.dependent else self.shift_second.mean(1)

    def _densities(self, x: Tensor, y: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log q(y, u|x) and log p(x, y, u) of one-hot values."""
        log_q = log_categorical(x @ self.encode.T + self.shift, y)
        logits = x @ self.encode_second.T + self._shift(y)
        log_q = log_q + log_categorical(logits, u)
        log_prior = log_categorical(self.prior, y) + log_categorical(y @ self.prior_second.T, u)
        loc = y @ self.weight.T + u @ self.weight_second.T + self.bias
        return log_q, log_prior + log_normal(x, loc)
