"""Conformance checks of ELBO estimators against oracles, for user-defined objectives as well."""

from collections.abc import Collection, Iterator

import torch

from pyroae.objectives.base import ObjectiveBase
from pyroae.objectives.pair import Objective
from pyroae.runtime.randomness import fork_random
from pyroae.testing.checks import Check, Checks, ConformanceError
from pyroae.testing.discrete import BernoulliToy, CategoricalToy
from pyroae.testing.enumerated_means import (
    enumerated_means,
    exact_posterior,
    gradient_at_exact_posterior,
)
from pyroae.testing.gaussian import Toy
from pyroae.testing.gaussian_means import gradient_means, stated_means, trend, value_means
from pyroae.testing.mixed import MixedToy
from pyroae.testing.mixture import MixtureToy
from pyroae.testing.structure import structure
from pyroae.testing.toy_program import EnumerableToy, ToyProgram


def check_objective(
    objective: ObjectiveBase,
    *,
    unbiased: bool | None = None,
    seed: int = 0,
    kinds: Collection[str] | None = None,
) -> Checks:
    """Check an objective against every oracle that applies, in float64.

    The oracles use up to four toy programs, selected by `objective.kinds`: a linear-Gaussian one,
    for which closed forms exist, and one each with Bernoulli, with categorical, and with a discrete
    and a continuous latent site, for which expectations are sums over all states. Bounds of
    stratified draws run on one with a mixture as guide instead:

    - Value: it is F of hand-computed log-weights (for a pair) and log p(x) at the exact posterior.
      Its mean is that of the bound, by the sum over all K-tuples of states; the ELBO, or below
      log p(x); log p(x) for an unbiased one; for IWAE E exp F = p(x). It changes with K as claimed
      (K against 2K, paired).
    - Gradient: it reaches every parameter. Its mean is the gradient of the sum over all K-tuples of
      states, of the closed-form ELBO, or the mean of the pathwise estimator of the same bound, or
      of the estimators that a biased one names (`Gradient.same_mean`). At the exact posterior its
      mean is ∂ log p(x) for θ and 0 for φ.
    - Structure: subsampling and scales multiply the bound and do not enter it. A batch is the sum
      of its parts in any order. The order of the particles has no effect. SVI, the differentiable
      loss and the bound agree. The stated number of decoder evaluations is the true mean.

    A mean over draws may deviate by 5 standard errors. The claims of the objective (`is_evidence`,
    `is_elbo`, `is_unbiased`, `is_per_datum`, `is_symmetric`), of its bound (`is_lower`, `trend`)
    and of its gradient (`unbiased`, `same_mean`) select the oracles: what is not claimed is not
    checked. Where K draws per datum do not determine the estimate, as with coupled or auxiliary
    draws or a random K, checks at given draws are left out or use equal seeds.

    Args:
        objective: The objective.
        unbiased: Whether the mean gradient is the gradient of the bound's mean; None for the claim
            of the pair's gradient, or for `is_elbo` where the objective is not a pair.
        seed: The seed of all draws.
        kinds: The kinds of latent sites of the toys; None for all that the objective takes.

    Returns:
        The results of the oracles, all passed, which print as a table.

    Raises:
        ConformanceError: Oracles failed; the message names each of them, `checks` of the error has
            all results.

    >>> from pyroae.objectives import IWAE, DoublyReparameterized
    >>> all(check.passed for check in check_objective(Objective(IWAE(4), DoublyReparameterized())))
    True
    """
    if unbiased is None and isinstance(objective, Objective):
        unbiased = objective.gradient.unbiased(objective.bound_function)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with fork_random(torch.device("cpu"), seed):
            checks = Checks(_checks(objective, unbiased, toys_of(objective, kinds)))
    finally:
        torch.set_default_dtype(before)
    failed = [f"{check.name}: {check.detail}" for check in checks if not check.passed]
    if failed:
        raise ConformanceError("; ".join(failed), checks)
    return checks


def toys_of(objective: ObjectiveBase, kinds: Collection[str] | None = None) -> list[ToyProgram]:
    """Return the toys whose latent sites are of the kinds that an objective takes.

    Args:
        objective: The objective.
        kinds: A part of its kinds; None for all.

    Returns:
        The toys; the mixed one where continuous sites and a kind of discrete ones are taken.

    >>> from pyroae.objectives import AnalyticKL, TraceELBO
    >>> [type(toy).__name__ for toy in toys_of(TraceELBO())]
    ['Toy', 'BernoulliToy', 'CategoricalToy', 'MixedToy']
    >>> [type(toy).__name__ for toy in toys_of(AnalyticKL())]
    ['Toy']
    """
    kinds = objective.kinds if kinds is None else objective.kinds & set(kinds)
    toys: list[ToyProgram] = [Toy()] if "continuous" in kinds else []
    toys += [BernoulliToy()] if "binary" in kinds else []
    if "categorical" in kinds:
        pair = objective if isinstance(objective, Objective) else None
        toys.append(CategoricalToy(dependent=pair is None or pair.gradient.takes_dependent))
    toys += [MixtureToy()] if "mixture" in kinds else []
    if "continuous" in kinds and len(kinds) > 1:
        toys.append(MixedToy(binary="binary" in kinds))
    return toys


def _checks(
    objective: ObjectiveBase, unbiased: bool | None, toys: list[ToyProgram]
) -> Iterator[Check]:
    """The checks that apply to an objective by its claims."""
    pair = objective if isinstance(objective, Objective) else None
    for toy in toys:
        if objective.is_evidence:
            yield from exact_posterior(objective, toy)
        # The slopes of a bound that is not smooth are discontinuous where all weights are equal.
        if objective.is_evidence and (
            pair is None or (pair.bound_function.smooth and pair.gradient.exact_at_posterior)
        ):
            yield from gradient_at_exact_posterior(objective, toy)
        yield from structure(objective, toy)
        if isinstance(toy, EnumerableToy):
            yield from enumerated_means(objective, toy, unbiased)
    if "continuous" in objective.kinds:
        yield from value_means(objective)
        if unbiased or (unbiased is None and (objective.is_elbo or objective.is_unbiased)):
            yield from gradient_means(objective, unbiased)
        elif pair is not None and pair.gradient.same_mean(pair.bound_function):
            yield from stated_means(pair)
    if pair is not None and pair.bound_function.trend is not None:
        yield from trend(pair)
