"""A linear-Gaussian program, for which everything has a closed form."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyroae import linear_gaussian
from pyroae.testing.fixed_draws import FixedNormal
from pyroae.testing.toy_program import NOISE, ToyProgram, log_normal


class Toy(ToyProgram):
    """A linear-Gaussian program with two latent and three observed features.

        z ~ N(W₀, I),   x|z ~ N(W z + b, σ²I),   q(z|x) = N(V x + c, diag s²)

    Attributes:
        prior: W₀, shape `[2]`.
        weight: W, shape `[3, 2]`.
        bias: b, shape `[3]`.
        encode: V, shape `[2, 3]`.
        shift: c, shape `[2]`.
        log_scale: log s, shape `[2]`.
        noise: The standardized draws of the guide, shape `[K, N, 2]`; None for random ones.
        size: The size of the data plate, of which the data are a subsample; None for their number.

    >>> Toy().plate(torch.zeros(4, 3)).size
    4
    """

    theta = ("prior", "weight", "bias")
    noise_size = 2

    def __init__(self) -> None:
        super().__init__()
        self.prior = nn.Parameter(torch.tensor([0.2, -0.1]))
        self.weight = nn.Parameter(torch.tensor([[0.9, 0.1], [-0.3, 0.8], [0.5, 0.4]]))
        self.bias = nn.Parameter(torch.tensor([0.1, 0.0, -0.2]))
        self.encode = nn.Parameter(torch.tensor([[0.4, -0.2, 0.3], [0.1, 0.5, 0.2]]))
        self.shift = nn.Parameter(torch.tensor([0.3, -0.2]))
        self.log_scale = nn.Parameter(torch.tensor([-0.5, -0.4]))

    def model(self, x: Tensor) -> None:
        """Run p(z) p(x|z) as a Pyro program on x `[N, 3]`."""
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(self.prior, 1.0).to_event(1))
            self.observe(z @ self.weight.T + self.bias, x)

    def guide(self, x: Tensor) -> None:
        """Run q(z|x) as a Pyro program on x `[N, 3]`."""
        with self.plate(x):
            loc, scale = x @ self.encode.T + self.shift, self.log_scale.exp()
            pyro.sample("z", FixedNormal(loc, scale.expand_as(loc), self).to_event(1))

    def elbo(self, x: Tensor) -> Tensor:
        """Return the ELBO in closed form.

        Args:
            x: Data, shape `[N, 3]` or `[3]`.

        Returns:
            The ELBO of each datum, in nats, shape `[N]` or `[]`.

        >>> Toy().elbo(torch.zeros(4, 3)).shape
        torch.Size([4])
        """
        loc, variance = x @ self.encode.T + self.shift, (2 * self.log_scale).exp()
        spread = (self.weight.square() @ variance).sum() / (2 * NOISE**2)
        rate = 0.5 * ((loc - self.prior).square() + variance - 1 - 2 * self.log_scale).sum(-1)
        return log_normal(x, loc @ self.weight.T + self.bias) - spread - rate

    def log_weights(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return the log-weights, computed from torch's densities without Pyro.

        Args:
            x: Data, shape `[N, 3]`.
            noise: Standardized draws of the guide, shape `[K, N, 2]`.

        Returns:
            The log-weights, in nats, shape `[K, N]`.
        """
        normal = torch.distributions.Normal
        loc, scale = x @ self.encode.T + self.shift, self.log_scale.exp()
        z = loc + scale * noise
        log_p = normal(self.prior, 1.0).log_prob(z).sum(-1)
        log_p = log_p + log_normal(x, z @ self.weight.T + self.bias)
        return log_p - normal(loc, scale).log_prob(z).sum(-1)

    def linear_gaussian(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return W, b and σ of the same p(x) under z ~ N(0, I).

        Returns:
            W, shape `[3, 2]`, b, shape `[3]`, and σ, shape `[]`.

        >>> [part.shape for part in Toy().linear_gaussian()]
        [torch.Size([3, 2]), torch.Size([3]), torch.Size([])]
        """
        return self.weight, self.bias + self.weight @ self.prior, torch.tensor(NOISE)

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x) of each datum, shape `[N]`."""
        return linear_gaussian.marginal(*self.linear_gaussian()).log_prob(x)

    def at_posterior(self) -> "AtPosterior":
        """Return `AtPosterior`."""
        return AtPosterior()


class AtPosterior(Toy):
    """The model of `Toy` with the guide q = N(A x + c, L Lᵀ), initially the exact posterior.

    Attributes:
        matrix: A, shape `[2, 3]`.
        offset: c, shape `[2]`.
        tril: L, shape `[2, 2]`.

    >>> AtPosterior().num_theta
    11
    """

    def __init__(self) -> None:
        super().__init__()
        del self.encode, self.shift, self.log_scale
        with torch.no_grad():
            ends = torch.cat([torch.zeros(1, 3), torch.eye(3)])
            loc, tril = linear_gaussian.posterior(ends, *self.linear_gaussian())
        loc = loc + self.prior.detach()
        self.matrix = nn.Parameter((loc[1:] - loc[0]).T.clone())
        self.offset = nn.Parameter(loc[0].clone())
        self.tril = nn.Parameter(tril.clone())

    def guide(self, x: Tensor) -> None:
        """Run q(z|x) as a Pyro program on x `[N, 3]`."""
        with self.plate(x):
            pyro.sample(
                "z", dist.MultivariateNormal(x @ self.matrix.T + self.offset, scale_tril=self.tril)
            )
