"""The linear-Gaussian toy of Rainforth et al. 2018, near its optimum."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

VARIANCE = 2 / 3
"""The variance of every latent feature under the guide."""


class RainforthToy(nn.Module):
    """A model with two parameters, of which the guide cannot reach the posterior.

        p(z) = N(μ, I),   p(x|z) = N(z, I),   q(z|x) = N(A x + b, (2/3) I)

    The optimum for data x is μ = x̄, A = I/2, b = μ/2; the posterior variance is 1/2.

    Args:
        mu: μ, shape `[D]`.
        a: A, shape `[D, D]`.
        b: b, shape `[D]`, or `[N, D]` where each datum has its own guide.

    References:
        Rainforth et al. 2018, Tighter Variational Bounds are Not Necessarily Better.

    >>> toy = RainforthToy.near_optimum(torch.zeros(3, 2), 0.0)
    >>> toy.a.tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """

    def __init__(self, mu: Tensor, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.mu, self.a, self.b = nn.Parameter(mu), nn.Parameter(a), nn.Parameter(b)

    @classmethod
    def near_optimum(cls, x: Tensor, offset: float) -> "RainforthToy":
        """Return the toy at its optimum for data, with every parameter perturbed.

        Args:
            x: Data, shape `[N, D]`.
            offset: The standard deviation of the perturbations, which torch's generator draws.

        Returns:
            The toy.
        """
        mean, identity = x.mean(0), torch.eye(x.shape[1], dtype=x.dtype)
        optimum = (mean, identity / 2, mean / 2)
        return cls(*(value + offset * torch.randn_like(value) for value in optimum))

    def model(self, x: Tensor) -> None:
        """Run p(z) p(x|z) as a Pyro program on x `[N, D]`."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.mu, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Run q(z|x) as a Pyro program on x `[N, D]`."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ self.a.T + self.b, VARIANCE**0.5).to_event(1))


def toy_data(count: int, size: int) -> Tensor:
    """Draw data from the toy, with μ ~ N(0, I).

    Args:
        count: N, the number of data.
        size: D, the number of features.

    Returns:
        Data, shape `[N, D]`.

    >>> toy_data(5, 3).shape
    torch.Size([5, 3])
    """
    return torch.randn(size) + 2**0.5 * torch.randn(count, size)
