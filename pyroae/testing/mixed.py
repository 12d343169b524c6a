"""A toy with a discrete site and a continuous one that depends on it."""

import pyro
import pyro.distributions as dist
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor, nn

from pyroae.testing.fixed_draws import FixedNormal, bits, category, largest, log_categorical
from pyroae.testing.toy_program import NOISE, EnumerableToy, States, log_normal

NODES = 10
"""The number of nodes of the Gauss–Hermite quadrature over the continuous site."""


class MixedToy(EnumerableToy):
    """A mixture of linear-Gaussian programs, whose posterior has a closed form.

        y ~ Cat(a),   z|y ~ N(A y, 1),   x|y,z ~ N(w z + D y + b, σ²I)
        q(y|x) = Cat(V x + c),   q(z|y,x) = N(v x + B y, s²)

    y is a one-hot vector of two, or one bit. The parameters in Cat are logits.

    Args:
        binary: Whether y is a Bernoulli site, or a OneHotCategorical one.

    Attributes:
        prior: a, shape `[2]`.
        level: A, shape `[2]`.
        weight: w, shape `[3]`.
        direct: D, shape `[3, 2]`.
        bias: b, shape `[3]`.
        encode: V, shape `[2, 3]`.
        shift: c, shape `[2]`.
        encode_z: v, shape `[3]`.
        shift_z: B, shape `[2]`.
        log_scale: log s, shape `[1]`.

    >>> MixedToy().states(torch.zeros(3)).log_prob.shape
    torch.Size([20])
    """

    theta = ("prior", "level", "weight", "direct", "bias")
    noise_size = 3

    def __init__(self, binary: bool = True) -> None:
        super().__init__()
        self.binary = binary
        self.prior = nn.Parameter(torch.tensor([0.3, -0.4]))
        self.level = nn.Parameter(torch.tensor([-0.6, 0.7]))
        self.weight = nn.Parameter(torch.tensor([0.9, -0.3, 0.5]))
        self.direct = nn.Parameter(torch.tensor([[0.2, -0.1], [-0.4, 0.5], [0.1, 0.3]]))
        self.bias = nn.Parameter(torch.tensor([0.1, 0.0, -0.2]))
        self.encode = nn.Parameter(torch.tensor([[0.4, -0.2, 0.3], [0.1, 0.5, 0.2]]))
        self.shift = nn.Parameter(torch.tensor([0.3, -0.2]))
        self.encode_z = nn.Parameter(torch.tensor([0.5, -0.1, 0.2]))
        self.shift_z = nn.Parameter(torch.tensor([-0.4, 0.5]))
        self.log_scale = nn.Parameter(torch.tensor([-0.4]))

    def model(self, x: Tensor) -> None:
        """Run p(y) p(z|y) p(x|y, z) as a Pyro program on x `[N, 3]`."""
        with self.plate(x):
            y = self._draw(self.prior, fixed=False)
            loc = (y @ self.level)[..., None]
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            self.observe(z * self.weight + y @ self.direct.T + self.bias, x)

    def guide(self, x: Tensor) -> None:
        """Run q(y|x) q(z|y, x) as a Pyro program on x `[N, 3]`."""
        with self.plate(x):
            y = self._draw(x @ self.encode.T + self.shift, fixed=True)
            loc = (x @ self.encode_z + y @ self.shift_z)[..., None]
            scale = self.log_scale.exp().expand_as(loc)
            pyro.sample("z", FixedNormal(loc, scale, self).to_event(1))

    def _draw(self, logits: Tensor, *, fixed: bool) -> Tensor:
        """The site y as a one-hot vector."""
        if not self.binary:
            q = category(logits, self) if fixed else dist.OneHotCategorical(logits=logits)
            return pyro.sample("y", q)
        logit = logits[..., 1:] - logits[..., :1]
        q = bits(logit, self) if fixed else dist.Bernoulli(logits=logit)
        bit = pyro.sample("y", q.to_event(1))
        return torch.cat([1 - bit, bit], -1)

    def at_posterior(self) -> "MixedToy":
        """Return a toy whose guide is the exact posterior, which is of the guide's family."""
        toy = MixedToy(self.binary)
        with torch.no_grad():
            precision = 1 + toy.weight.square().sum() / NOISE**2
            loc = torch.outer(toy.weight, toy.level) + toy.direct + toy.bias[:, None]
            rotated = torch.linalg.solve(toy._covariance(), loc)
            toy.encode.copy_(rotated.T)
            toy.shift.copy_(toy.prior - (rotated * loc).sum(0) / 2)
            toy.encode_z.copy_(toy.weight / NOISE**2 / precision)
            of_data = toy.weight @ (toy.direct + toy.bias[:, None]) / NOISE**2
            toy.shift_z.copy_((toy.level - of_data) / precision)
            toy.log_scale.fill_(-0.5 * precision.log())
        return toy

    def _covariance(self) -> Tensor:
        """The covariance of x given y."""
        return torch.outer(self.weight, self.weight) + NOISE**2 * torch.eye(3)

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x) of each datum in closed form, shape `[N]`."""
        loc = torch.outer(self.level, self.weight) + self.direct.T + self.bias
        given = torch.distributions.MultivariateNormal(loc, self._covariance())
        return (self.prior.log_softmax(0) + given.log_prob(x[:, None])).logsumexp(1)

    def states(self, x: Tensor, *, stopped: bool = False) -> States:
        """Return the two values of y times the nodes of a quadrature over z."""
        nodes, weights = (torch.tensor(v) for v in hermegauss(NODES))
        y = torch.eye(2).repeat_interleave(NODES, 0)
        loc, scale = x @ self.encode_z + y @ self.shift_z, self.log_scale.exp()
        z = loc + scale * nodes.repeat(2)
        z = z.detach() if stopped else z
        log_q, log_p = self._densities(x, y, z)
        log_y = log_categorical(x @ self.encode.T + self.shift, y)
        log_prob = log_y + (weights / weights.sum()).log().repeat(2)
        return States(log_prob, log_q, log_p, exact=False)

    def log_weights(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return the log-weights, shape `[K, N]`."""
        bit = (noise[..., :1] > 0).to(noise)
        y = torch.cat([1 - bit, bit], -1) if self.binary else largest(noise[..., :2])
        loc = x @ self.encode_z + y @ self.shift_z
        log_q, log_p = self._densities(x, y, loc + self.log_scale.exp() * noise[..., 2])
        return log_p - log_q

    def _densities(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log q(y, z|x) and log p(x, y, z) of one-hot values y and numbers z."""
        normal = torch.distributions.Normal
        log_q = log_categorical(x @ self.encode.T + self.shift, y)
        loc = x @ self.encode_z + y @ self.shift_z
        log_q = log_q + normal(loc, self.log_scale.exp()).log_prob(z)
        log_prior = log_categorical(self.prior, y) + normal(y @ self.level, 1.0).log_prob(z)
        loc = z[..., None] * self.weight + y @ self.direct.T + self.bias
        return log_q, log_prior + log_normal(x, loc)
