"""The likelihood of the features that are observed."""

from typing import ClassVar, cast

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import Independent, MixtureSameFamily, constraints

from pyroae.errors import ConfigError
from pyroae.likelihoods.mixed import Columns


class Observed(dist.TorchDistribution):
    """The distribution of some features of x, whose features are independent given z.

        log p(x_o|z) = Σ_{j observed} log p_j(x_j|z)

    A value at a missing feature has no influence. Draws are of all features.

    Args:
        whole: p(x|z) of all features, event shape `[d]`.
        is_observed: Which features are observed, shape `[..., d]`.

    References:
        Mattei & Frellsen 2019, MIWAE: Deep Generative Modelling and Imputation of Incomplete Data
            Sets.

    >>> whole = dist.Normal(torch.zeros(2, 3), 1.0).to_event(1)
    >>> part = Observed(whole, torch.tensor([True, False, False]))
    >>> torch.equal(part.log_prob(torch.ones(3)), dist.Normal(0.0, 1.0).log_prob(torch.ones(2)))
    True
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False

    def __init__(self, whole: dist.TorchDistribution, is_observed: Tensor) -> None:
        self.whole, self.is_observed = whole, is_observed
        super().__init__(whole.batch_shape, whole.event_shape, validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """The support of all features."""
        return self.whole.support

    @property
    def mean(self) -> Tensor:
        """The means of all features, shape `[..., d]`."""
        return self.whole.mean

    def expand(self, batch_shape: tuple[int, ...], _instance: object = None) -> "Observed":
        """Return the same distribution with another batch shape."""
        return Observed(self.whole.expand(batch_shape), self.is_observed)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x_o) in nats, shape `[...]`; missing features may have any value."""
        return observed_log_prob(self.whole, value, self.is_observed)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Return draws of all features, shape `[*sample_shape, ..., d]`."""
        return self.whole.sample(sample_shape)


def observed_features(fn: object) -> Tensor | None:
    """Return which features of a site are observed.

    Args:
        fn: The distribution of the site, expanded or masked by Pyro.

    Returns:
        Booleans, shape `[..., d]`; None for another distribution than `Observed`.
    """
    while isinstance(fn, dist.MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return fn.is_observed if isinstance(fn, Observed) else None


def observed_log_prob(whole: dist.TorchDistribution, value: Tensor, is_observed: Tensor) -> Tensor:
    """Return log p of some features of a distribution with independent features.

    Args:
        whole: The distribution, event shape `[d]`: independent features, groups of columns, or a
            mixture of these.
        value: x, shape `[..., d]`, in the support at missing features too.
        is_observed: Which features are observed, shape `[..., d]`.

    Returns:
        log p(x_o) in nats, of the batch shape.

    Raises:
        ConfigError: The features of the distribution are not known to be independent.
    """
    if isinstance(whole, ExpandedDistribution):
        shape = torch.broadcast_shapes(whole.batch_shape, value.shape[:-1])
        return observed_log_prob(whole.base_dist, value, is_observed).expand(shape)
    if isinstance(whole, Independent) and whole.reinterpreted_batch_ndims == 1:
        log_prob = cast(Tensor, whole.base_dist.log_prob(value))
        return torch.where(is_observed, log_prob, 0.0).sum(-1)
    if isinstance(whole, Columns):
        parts = zip(
            whole.parts,
            value.split(whole.sizes, -1),
            is_observed.split(whole.sizes, -1),
            strict=True,
        )
        return cast(Tensor, sum(observed_log_prob(*part) for part in parts))
    if isinstance(whole, MixtureSameFamily):
        log_weights = whole.mixture_distribution.logits.log_softmax(-1)
        each = observed_log_prob(
            whole.component_distribution, value.unsqueeze(-2), is_observed.unsqueeze(-2)
        )
        return (log_weights + each).logsumexp(-1)
    raise ConfigError(
        f"the likelihood {type(whole).__name__} does not say how its features factorize, so that "
        "missing values cannot be left out"
    )
