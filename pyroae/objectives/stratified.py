"""Bounds from stratified draws: T from each of the C components of a mixture posterior.

    q(z|x) = Σ_c π_c(x) q_c(z|x),   z_ct ~ q_c(z|x),   w_ct = p(x, z_ct) / q(z_ct|x)

The weight has the density of the whole mixture, and the shares π_c enter as explicit factors, from
which they receive their gradient. No draw is made of the component.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from pyroae.objectives.base import Bound
from pyroae.objectives.bounds import BOUNDS, BoundFunction, log_mean_exp
from pyroae.objectives.coefficient_surrogates import global_term
from pyroae.objectives.gradients import Pathwise
from pyroae.objectives.strata import Strata
from pyroae.objectives.surrogates import path_through_log_post, with_cut_gradient
from pyroae.programs.sites import Program
from pyroae.weights import reduce_log_weights

if TYPE_CHECKING:
    from pyroae.objectives.pair import Objective


class StratifiedBound(BoundFunction):
    """A bound of the log-weights of stratified draws and of the shares of their components."""

    stratified: ClassVar[bool] = True

    @property
    def is_symmetric(self) -> bool:
        """Whether the particles may change places: False, as each has its component."""
        return False

    @abstractmethod
    def weighted(self, log_weight: Tensor, log_ratio: Tensor) -> Tensor:
        """Return F, differentiable.

        Args:
            log_weight: Log-weights in nats, shape `[K, N]`.
            log_ratio: log (C π_c) for the component of each particle, shape `[K, N]`.

        Returns:
            The bound of each datum, in nats, shape `[N]`.
        """

    def estimate_on(
        self,
        pair: "Objective",
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Bound:
        """Return the bound of stratified draws, differentiated along the paths, shares included.

        Sticking the landing leaves out the score of q, whose mean under the shares is 0.

        Args:
            pair: This bound and its gradient.
            model: A Pyro program p(z) p(x|z).
            guide: A Pyro program q(z|x) with the same latent sites.
            args: Positional arguments of both programs.
            kwargs: Keyword arguments of both programs.

        Returns:
            The bound over all data, in nats, and its surrogate, both of shape `[]`.

        Raises:
            ProgramError: The guide has no mixture to stratify; the message names its sites.
        """
        strata = Strata(self.num_particles, type(self).__name__)
        traces = pair.run(model, guide, args, kwargs, handler=strata)
        pair.check(traces)
        log_ratio = strata.log_ratio(traces)
        weights = reduce_log_weights(traces)
        log_weight = with_cut_gradient(weights.log_weight)
        value = weights.total(self.weighted(log_weight, log_ratio))
        if isinstance(pair.gradient, Pathwise):
            return Bound(value, value)
        share, log_weight = log_ratio.exp() / self.num_particles, log_weight.detach()
        coefficient = weights.scale * share.detach()
        terms = coefficient * (weights.log_lik + weights.log_prior)
        if weights.log_terms is not None:
            terms = terms - coefficient * weights.log_terms
        through = path_through_log_post(traces, guide, args, kwargs, coefficient)
        surrogate = (terms + weights.scale * share * log_weight).sum() - through
        return Bound(value, surrogate + global_term(traces, weights, guide, args, kwargs))

    def value(self, log_weight: Tensor) -> Tensor:
        """Return F for a mixture with equal shares, in nats, shape `[N]`."""
        return self.weighted(log_weight, torch.zeros_like(log_weight))


@BOUNDS.register("selbo")
@dataclass(frozen=True)
class SELBO(StratifiedBound):
    """The stratified ELBO of a mixture posterior.

        F = Σ_c π_c (1/T) Σ_t log w_ct

    Its mean is the ELBO of the mixture. With π_c = 1/C and T = 1 it is MISELBO.

    Attributes:
        num_particles: K = C T, a multiple of the number of components.

    References:
        Morningstar, Vikram, Ham, Gallagher & Dillon 2021, Automatic Differentiation Variational
            Inference with Mixtures.
        Kviman, Melin, Koptagel, Elvira & Lagergren 2022, Multiple Importance Sampling ELBO and Deep
            Ensembles of Variational Approximations.

    >>> log_ratio = torch.tensor([[0.5], [1.5]]).log()  # π = (1/4, 3/4)
    >>> SELBO(2).weighted(torch.tensor([[0.0], [2.0]]), log_ratio)
    tensor([1.5000])
    """

    num_particles: int = 8
    is_lower = True
    trend = 0

    def weighted(self, log_weight: Tensor, log_ratio: Tensor) -> Tensor:
        """Return the mean of the log-weights under the shares, in nats, shape `[N]`."""
        return (log_ratio.exp() * log_weight).mean(0)


@BOUNDS.register("siwae")
@dataclass(frozen=True)
class SIWAE(StratifiedBound):
    """The stratified importance-weighted bound of a mixture posterior.

        F = log Σ_c π_c (1/T) Σ_t w_ct

    It is a lower bound of log p(x). With equal shares its mean is at least that of IWAE with as
    many draws of the mixture: log x = ∫ (e^{−s} − e^{−sx})/s ds, and the geometric mean of the
    components' Laplace transforms is below their arithmetic mean. Where a share is small, its T
    draws count little, and the mean can be below that of IWAE.

    Attributes:
        num_particles: K = C T, a multiple of the number of components.

    References:
        Morningstar, Vikram, Ham, Gallagher & Dillon 2021, Automatic Differentiation Variational
            Inference with Mixtures.

    >>> log_ratio = torch.tensor([[0.5], [1.5]]).log()  # π = (1/4, 3/4)
    >>> SIWAE(2).weighted(torch.tensor([[4.0], [0.0]]).log(), log_ratio)
    tensor([0.])
    """

    num_particles: int = 8
    is_lower = True
    trend = 1

    def weighted(self, log_weight: Tensor, log_ratio: Tensor) -> Tensor:
        """Return the log of the mean weight under the shares, in nats, shape `[N]`."""
        return log_mean_exp(log_weight + log_ratio)
