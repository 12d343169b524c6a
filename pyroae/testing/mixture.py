"""A toy whose prior and guide are mixtures, for bounds that draw from each component."""

import pyro
import pyro.distributions as dist
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor, nn

from pyroae.testing.toy_program import NOISE, EnumerableToy, States, log_normal

NODES = 10
"""The number of nodes of the Gauss–Hermite quadrature in each component."""


class MixtureToy(EnumerableToy):
    """A mixture as prior, whose posterior is a mixture in closed form.

        z ~ Σ_c softmax(a)_c N(A_c, 1),   x|z ~ N(w z + b, σ²I)
        q(z|x) = Σ_c softmax(V x + c)_c N(v x + B_c, s²)

    Attributes:
        prior: a, shape `[2]`.
        level: A, shape `[2]`.
        weight: w, shape `[3]`.
        bias: b, shape `[3]`.
        encode: V, shape `[2, 3]`.
        shift: c, shape `[2]`.
        encode_z: v, shape `[3]`.
        shift_z: B, shape `[2]`.
        log_scale: log s, shape `[1]`.

    >>> MixtureToy().states(torch.zeros(3)).log_share.shape
    torch.Size([20])
    """

    theta = ("prior", "level", "weight", "bias")
    noise_size = 2

    def __init__(self) -> None:
        super().__init__()
        self.prior = nn.Parameter(torch.tensor([0.3, -0.4]))
        self.level = nn.Parameter(torch.tensor([-0.6, 0.7]))
        self.weight = nn.Parameter(torch.tensor([0.9, -0.3, 0.5]))
        self.bias = nn.Parameter(torch.tensor([0.1, 0.0, -0.2]))
        self.encode = nn.Parameter(torch.tensor([[0.4, -0.2, 0.3], [0.1, 0.5, 0.2]]))
        self.shift = nn.Parameter(torch.tensor([0.3, -0.2]))
        self.encode_z = nn.Parameter(torch.tensor([0.5, -0.1, 0.2]))
        self.shift_z = nn.Parameter(torch.tensor([-0.4, 0.5]))
        self.log_scale = nn.Parameter(torch.tensor([-0.4]))

    def model(self, x: Tensor) -> None:
        """Run p(z) p(x|z) as a Pyro program on x `[N, 3]`."""
        with self.plate(x):
            z = pyro.sample("z", _mixture(self.prior, self.level, torch.ones(1)))
            self.observe(z * self.weight + self.bias, x)

    def guide(self, x: Tensor) -> None:
        """Run q(z|x) as a Pyro program on x `[N, 3]`."""
        with self.plate(x):
            loc = (x @ self.encode_z)[..., None] + self.shift_z
            logits = x @ self.encode.T + self.shift
            pyro.sample("z", _mixture(logits, loc, self.log_scale.exp()))

    def at_posterior(self) -> "MixtureToy":
        """Return a toy whose guide is the exact posterior, which is of the guide's family."""
        toy = MixtureToy()
        with torch.no_grad():
            precision = 1 + toy.weight.square().sum() / NOISE**2
            loc = torch.outer(toy.weight, toy.level) + toy.bias[:, None]
            rotated = torch.linalg.solve(toy._covariance(), loc)
            toy.encode.copy_(rotated.T)
            toy.shift.copy_(toy.prior - (rotated * loc).sum(0) / 2)
            toy.encode_z.copy_(toy.weight / NOISE**2 / precision)
            toy.shift_z.copy_((toy.level - toy.weight @ toy.bias / NOISE**2) / precision)
            toy.log_scale.fill_(-0.5 * precision.log())
        return toy

    def _covariance(self) -> Tensor:
        """The covariance of x given the component of the prior."""
        return torch.outer(self.weight, self.weight) + NOISE**2 * torch.eye(3)

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x) of each datum in closed form, shape `[N]`."""
        loc = torch.outer(self.level, self.weight) + self.bias
        given = torch.distributions.MultivariateNormal(loc, self._covariance())
        return (self.prior.log_softmax(0) + given.log_prob(x[:, None])).logsumexp(1)

    def states(self, x: Tensor, *, stopped: bool = False) -> States:
        """Return the nodes of a quadrature in each of the two components."""
        nodes, weights = (torch.tensor(v) for v in hermegauss(NODES))
        loc = x @ self.encode_z + self.shift_z
        z = (loc[:, None] + self.log_scale.exp() * nodes).flatten()
        z = z.detach() if stopped else z
        log_share = (x @ self.encode.T + self.shift).log_softmax(-1).repeat_interleave(NODES)
        log_q, log_p = self._densities(x, z)
        log_prob = log_share + (weights / weights.sum()).log().repeat(2)
        return States(log_prob, log_q, log_p, log_share, 2, exact=False)

    def log_weights(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return the log-weights at draws of components by the sign of noise, shape `[K, N]`."""
        component = (noise[..., 0] > 0).long()
        loc = x @ self.encode_z + self.shift_z[component]
        log_q, log_p = self._densities(x, loc + self.log_scale.exp() * noise[..., 1])
        return log_p - log_q

    def _densities(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log q(z|x) and log p(x, z) of numbers z."""
        loc, logits = (x @ self.encode_z)[..., None] + self.shift_z, x @ self.encode.T + self.shift
        log_q = _mixture(logits, loc, self.log_scale.exp()).log_prob(z[..., None])
        log_prior = _mixture(self.prior, self.level, torch.ones(1)).log_prob(z[..., None])
        return log_q, log_prior + log_normal(x, z[..., None] * self.weight + self.bias)


def _mixture(logits: Tensor, loc: Tensor, scale: Tensor) -> dist.MixtureSameFamily:
    """A mixture of Normals over vectors of one number."""
    parts = dist.Normal(loc[..., None], scale).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)
