"""The base class of the toy programs of the checks, and its states where they are enumerable."""

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

NOISE = 0.7
"""σ, the standard deviation of an observed feature of every toy."""


class ToyProgram(nn.Module):
    """A model and a guide for data of three features, with densities that are written by hand.

    Attributes:
        theta: Names of the model's parameters, which are registered before those of the guide.
        noise_size: D, the number of standard Normal numbers of one draw.
        noise: The noise of the guide's draws, shape `[K, N, D]`; None for draws from the guide. It
            is used by runs of K particles and N data alone. Continuous draws are then loc + scale ·
            noise, and discrete ones the sign or the largest of several numbers, and no longer
            distributed as the guide.
        size: The size of the data plate, of which the data are a subsample; None for their number.
        evaluations: The number of decoder evaluations per datum since it was last set to 0.
    """

    theta: ClassVar[tuple[str, ...]]
    noise_size: ClassVar[int]

    def __init__(self) -> None:
        super().__init__()
        self.noise: Tensor | None = None
        self.size: int | None = None
        self.evaluations = 0.0

    @property
    def num_theta(self) -> int:
        """The number of numbers in the model's parameters."""
        return sum(self.get_parameter(name).numel() for name in self.theta)

    def plate(self, x: Tensor) -> Any:
        """Return the data plate.

        Args:
            x: Data, shape `[N, 3]`.

        Returns:
            A Pyro plate of `size` data with a subsample of N.
        """
        return pyro.plate("data", self.size or len(x), subsample=torch.arange(len(x)))

    def observe(self, loc: Tensor, x: Tensor) -> None:
        """Observe x ~ N(loc, σ²I), and count the decoder evaluations.

        Args:
            loc: The means, shape `[..., N, 3]`.
            x: Data, shape `[N, 3]`.
        """
        self.evaluations += loc.numel() / x.numel()
        pyro.sample("x", dist.Normal(loc, NOISE).to_event(1), obs=x)

    def fixed(self, batch_shape: tuple[int, ...]) -> Tensor | None:
        """Return the noise of draws of a batch shape.

        Args:
            batch_shape: The shape of K particles and N data, which may have dimensions of size 1.

        Returns:
            The noise, shape `[*batch_shape, D]`; None where the draws are to be random.
        """
        if self.noise is None or self.noise[..., 0].numel() != torch.Size(batch_shape).numel():
            return None
        return self.noise.reshape(*batch_shape, self.noise_size)

    @abstractmethod
    def model(self, x: Tensor) -> None:
        """Run p(z) p(x|z) as a Pyro program on x `[N, 3]`."""

    @abstractmethod
    def guide(self, x: Tensor) -> None:
        """Run q(z|x) as a Pyro program on x `[N, 3]`."""

    @abstractmethod
    def log_weights(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return the log-weights, computed from torch's densities without Pyro.

        Args:
            x: Data, shape `[N, 3]`.
            noise: The noise of the draws, shape `[K, N, D]`.

        Returns:
            The log-weights, in nats, shape `[K, N]`.
        """

    @abstractmethod
    def at_posterior(self) -> "ToyProgram":
        """Return a toy of this kind whose guide is the exact posterior."""

    @abstractmethod
    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x) of each datum, differentiable with respect to θ, shape `[N]`."""


class States(NamedTuple):
    """The values of the latent sites of one datum, whose sum is an expectation under the guide.

    Attributes:
        log_prob: The logarithm of the probability of each state, or of the weight of a node of a
            quadrature, shape `[S]`.
        log_q: log q(z|x), shape `[S]`.
        log_p: log p(x, z), shape `[S]`.
        log_share: The logarithm of the share of the state's component, shape `[S]`, for a guide
            that is a mixture; the states are in the order of the components. None for others.
        components: C, the number of components, each with as many states.
        exact: Whether the sum is the expectation; False for a quadrature, which is accurate for
            smooth functions alone.
    """

    log_prob: Tensor
    log_q: Tensor
    log_p: Tensor
    log_share: Tensor | None = None
    components: int = 1
    exact: bool = True


class EnumerableToy(ToyProgram):
    """A toy whose expectations under the guide are finite sums."""

    @abstractmethod
    def states(self, x: Tensor, *, stopped: bool = False) -> States:
        """Return the states of one datum.

        Args:
            x: One datum, shape `[3]`.
            stopped: Stop the gradient of the values of continuous sites.

        Returns:
            The states, differentiable with respect to all parameters.
        """

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x) of each datum by the sum over the states, shape `[N]`."""
        return torch.stack([self.states(row).log_p.logsumexp(0) for row in x])


def log_normal(x: Tensor, loc: Tensor) -> Tensor:
    """Return log N(x; loc, σ²I).

    Args:
        x: Data, shape `[..., 3]`.
        loc: The means, shape `[..., 3]`.

    Returns:
        The log-densities, in nats, shape `[...]`.

    >>> log_normal(torch.zeros(2, 3), torch.zeros(3)).shape
    torch.Size([2])
    """
    return torch.distributions.Normal(loc, NOISE).log_prob(x).sum(-1)
