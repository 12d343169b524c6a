"""The likelihood of categories, written as codes."""

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyroae.errors import ConfigError
from pyroae.likelihoods.base import LIKELIHOODS, Likelihood, refuse_where


class Codes(dist.TorchDistribution):
    """Codes 0, …, C − 1 in floating point, the type of data.

        log p(x) = logits_x − log Σ_c exp(logits_c)

    Args:
        logits: Unnormalized log-probabilities, shape `[..., C]`; `[...]` is the batch shape.
        validate_args: Whether to check values; None for torch's default.

    >>> Codes(torch.zeros(3, 4)).log_prob(torch.tensor([0.0, 1.0, 3.0])).exp()
    tensor([0.2500, 0.2500, 0.2500])
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012
    has_rsample = False

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The codes."""
        return constraints.integer_interval(0, self.logits.shape[-1] - 1)

    def expand(self, batch_shape: tuple[int, ...], _instance: object = None) -> "Codes":
        """Return the same distribution with another batch shape."""
        return Codes(self.logits.expand(*batch_shape, self.logits.shape[-1]), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """NaN, as codes have no mean; `mode` is the most probable code."""
        return self.logits.new_full(self.batch_shape, torch.nan)

    @property
    def mode(self) -> Tensor:
        """The most probable code, shape `[...]`."""
        return self.logits.argmax(-1).to(self.logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) in nats, shape `[...]`."""
        index, log_p = value.long().unsqueeze(-1), self.logits.log_softmax(-1)
        shape = torch.broadcast_shapes(index.shape[:-1], log_p.shape[:-1])
        return log_p.expand(*shape, log_p.shape[-1]).gather(-1, index.expand(*shape, 1)).squeeze(-1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Return draws of x, shape `[*sample_shape, ...]`."""
        with torch.no_grad():
            shape, probs = self._extended_shape(sample_shape), self.logits.softmax(-1)
            flat = probs.expand(*shape, probs.shape[-1]).reshape(-1, probs.shape[-1])
            return torch.multinomial(flat, 1).reshape(shape).to(probs.dtype)


@LIKELIHOODS.register("categorical")
@dataclass(frozen=True)
class Categorical(Likelihood):
    """Independent categories, with C outputs of the decoder per feature as logits.

        log p(x|z) = Σ_j log softmax(g_j(z))_{x_j},   x_j in 0, …, C − 1

    A reconstruction is the most probable code of each feature: codes have no mean. The encoder sees
    x / (C − 1).

    Attributes:
        categories: C, at least 2; the same for all features.

    Raises:
        ConfigError: `categories` is below 2.

    References:
        Nazábal et al. 2020, Handling Incomplete Heterogeneous Data using VAEs.

    >>> p_x = Categorical(3).distribution(torch.zeros(5, 3 * 4), nn.ParameterDict())
    >>> p_x.batch_shape, p_x.event_shape
    (torch.Size([5]), torch.Size([4]))
    """

    categories: int = 2
    is_unscaled = True

    def __post_init__(self) -> None:
        if self.categories < 2:
            raise ConfigError(
                f"a categorical likelihood needs at least 2 categories, not {self.categories}"
            )

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """The number of outputs of the decoder for each feature, C."""
        return self.categories

    def distribution(self, output: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return the categories of each feature, event shape `[d]`."""
        logits = output.unflatten(-1, (self.categories, -1)).transpose(-1, -2)
        return Codes(logits).to_event(1)

    def bias(self, mean: Tensor) -> Tensor:
        """Return zeros, equal probabilities: a mean of codes says nothing, shape `[C * d]`."""
        return mean.new_zeros(self.categories * len(mean))

    def start(self, learned: nn.Module, mean: Tensor, x: Tensor) -> Tensor:
        """Start at the frequencies of the data, with one more datum of each category.

        Args:
            learned: The module that `learned` returned; it has no parameters.
            mean: The mean of the data, which is not used, shape `[d]`.
            x: Some of the data, shape `[n, d]`.

        Returns:
            The decoder's last bias, shape `[C * d]`.
        """
        counts = torch.stack([(x == code).sum(0) for code in range(self.categories)])
        return ((counts + 1) / (len(x) + self.categories)).to(mean.dtype).log().flatten()

    def point(self, p_x: dist.TorchDistribution) -> Tensor:
        """Return the most probable code of each feature, shape `[..., d]`."""
        return p_x.base_dist.mode

    def codes(self, features: int) -> Tensor:
        """Return that all features are codes, shape `[d]`."""
        return torch.ones(features, dtype=torch.bool)

    def encoded(self, x: Tensor) -> Tensor:
        """Return x / (C − 1), which the encoder sees."""
        return x / (self.categories - 1)

    def check(self, x: Tensor, what: str) -> None:
        """Refuse data other than codes 0, …, C − 1."""
        self.check_columns(x, what, 0)

    def check_columns(self, x: Tensor, what: str, first: int) -> None:
        """Refuse data other than codes, with the row and the column of the first one."""
        refuse_where(
            (x < 0) | (x >= self.categories) | (x != x.round()),
            x,
            what,
            first,
            f"a categorical likelihood of {self.categories} categories needs codes 0, 1, …, "
            f"{self.categories - 1} (load with value_range=(0, 1) leaves values as stored)",
        )
