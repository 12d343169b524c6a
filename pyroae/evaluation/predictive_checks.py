"""Predictive checks: test statistics of the data beside those of data that the model draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyroae.errors import ConfigError, ProgramError
from pyroae.evaluation.blocks import Data
from pyroae.evaluation.replicates import Replicates
from pyroae.evaluation.statistics_of_data import STATISTICS, Statistic, applied, views_of
from pyroae.programs.arguments import structure_of
from pyroae.programs.context import evaluating
from pyroae.programs.sites import Program
from pyroae.runtime.randomness import fork_random
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import number

if TYPE_CHECKING:
    from xarray import DataTree

EXTREME = 0.025
"""A p-value below it, or above 1 minus it, is called extreme."""


@dataclass(frozen=True, repr=False)
class CheckedStatistic(Shown):
    """A statistic T of the data and of replicated data.

    A p-value is P(T(x̃) > T(x)) + ½ P(T(x̃) = T(x)), with the data themselves among the S + 1 draws:

        p = (½ + #{s: T(x̃^s) > T(x)} + ½ #{s: T(x̃^s) = T(x)}) / (S + 1)

    Attributes:
        observed: T(x) of all data.
        draws: T(x̃) of all data of each replicate, `[S]`.
        p_per_datum: p of each datum, with T of its elements, `[N]`; NaN where T is.
        p_per_feature: p of each feature, with T of its values in all data, `[d]`; NaN where T is.
    """

    observed: float
    draws: Tensor
    p_per_datum: Tensor
    p_per_feature: Tensor

    def _overview(self) -> Overview:
        mean = number(self.draws.mean().item())
        of_model = (
            f"{number(self.draws.std().item(), 2)} around {mean} in {len(self.draws)} replicates"
        )
        head = [f"T(x) {number(self.observed)}", of_model, f"p {self.p:.3f}"]
        return Overview(head)

    @property
    def p(self) -> float:
        """The p-value of all data, between 0 and 1."""
        return float(_p(self.draws, torch.tensor(self.observed).double()))

    @property
    def p_se(self) -> float:
        """An upper limit of the Monte-Carlo error of `p`, √(p (1 − p) / (S + 1))."""
        return float((self.p * (1 - self.p) / (len(self.draws) + 1)) ** 0.5)

    @property
    def is_constant(self) -> bool:
        """Whether the data and all replicates have the same T, which then says nothing."""
        return bool((self.draws == self.observed).all())


@dataclass(frozen=True, repr=False)
class PredictiveCheck(Shown):
    """Statistics of the data beside those of replicates, by name.

    Attributes:
        group: The group of ArviZ that the replicates belong to: "prior_predictive" or
            "posterior_predictive".
        site: The observed site that was replicated.
        statistics: The statistics by name.
    """

    group: str
    site: str
    statistics: Mapping[str, CheckedStatistic]

    def _overview(self) -> Overview:
        rows = [
            (
                f"{name}{' *' if name in self.extreme else ''}",
                number(one.observed),
                number(one.draws.mean().item()),
                number(one.draws.std().item(), 2),
                f"{one.p:.3f}",
            )
            for name, one in self.statistics.items()
        ]
        head = [f"{self.group} of {self.site}", f"{len(self.extreme)} of {len(rows)} extreme (*)"]
        return Overview(head, rows, ("statistic", "data", "model", "± sd", "p-value"))

    @property
    def extreme(self) -> tuple[str, ...]:
        """Names of statistics whose p-value is below 0.025 or above 0.975."""
        return tuple(
            name for name, found in self.statistics.items() if not EXTREME <= found.p <= 1 - EXTREME
        )

    def to_datatree(self) -> "DataTree":
        """Return the statistics as an ArviZ DataTree.

        Returns:
            Groups `prior_predictive` or `posterior_predictive` with T(x̃), dimensions chain and
            draw; `observed_data` with T(x); `per_datum` and `per_feature` with p-values.
        """
        import arviz_base

        items = self.statistics.items()
        tree = arviz_base.from_dict(
            {
                self.group: {name: found.draws.numpy()[None] for name, found in items},
                "observed_data": {name: np.asarray(found.observed) for name, found in items},
            }
        )
        for group, dim in (("per_datum", "datum"), ("per_feature", "feature")):
            columns = {f"{name}_p": getattr(found, f"p_{group}").numpy() for name, found in items}
            tree[group] = arviz_base.dict_to_dataset(
                columns, sample_dims=[], dims={name: [dim] for name in columns}
            )
        return tree


def predictive_check(
    model: Program,
    guide: Program | None,
    x: Data,
    statistics: Mapping[str, Statistic] | None = None,
    *,
    num_draws: int = 200,
    site: str | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> PredictiveCheck:
    """Compare statistics of the data with those of replicates that the model draws.

        guide=None: z̃ ~ p(z), x̃ ~ p(x|z̃)      guide: z̃ ~ q(z|x), x̃ ~ p(x|z̃)

    Without a guide x̃ are new data (the prior predictive, at the trained parameters): if the model
    is right, the p-values of data that it was not trained on are uniform. With a guide x̃ are
    replicates of the same data (the posterior predictive): z̃ has seen x, so that x is used twice
    and p-values crowd around ½. They are too optimistic, and a model that merely reconstructs
    passes. With `poutine.mask` or missing values, replicates are compared where x is observed.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The Pyro program q(z|x); None to draw z from the model's prior.
        x: The data `[N, ...]`, or the arguments of model and guide as in `log_likelihood`;
            covariates stay as they are.
        statistics: By name a function T from data `[..., N, d]`, float64 and NaN where missing, to
            `[...]`; default `STATISTICS`. T is applied to all data, to each datum (N = 1) and to
            each feature (d = 1).
        num_draws: S, the number of replicates of all data.
        site: The observed site, where the model has several.
        seed: The seed of the draws. The state of the caller's generators is restored.
        kwargs: Keyword arguments of the programs: tensors `[N, ...]` and constants.

    Returns:
        The statistics with their p-values, float64, on the CPU.

    Raises:
        ConfigError: There are no draws, or T does not return one number for each data set.
        ProgramError: The site is not one of the model, or cannot be drawn; or the guide lacks a
            latent site of the model.
        UndefinedLikelihoodError: A Flat prior is to be sampled.

    References:
        Box 1980, Sampling and Bayes' Inference in Scientific Modelling, for prior predictive
            checks.
        Gelman, Meng & Stern 1996, Posterior Predictive Assessment of Model Fitness via Realized
            Discrepancies.
        Bayarri & Berger 2000, P Values for Composite Null Models, for the double use of the data.

    >>> from pyroae import zoo
    >>> system, x = zoo.ppca(4, latent=2), torch.full((3, 4), 9.0)
    >>> check = predictive_check(system.model, None, x, num_draws=99, seed=0)
    >>> check.statistics["mean"].p  # no replicate has so large a mean
    0.005
    """
    if num_draws < 1:
        raise ConfigError(f"a predictive check takes at least 1 draw, not {num_draws}")
    structure = structure_of(x, kwargs, model)
    args, device = structure.tensors, structure.tensors[0].device
    programs = structure(model), None if guide is None else structure(guide)
    with evaluating(model, *([] if guide is None else [guide])), fork_random(device, seed):
        replicates = Replicates(*programs, args)
        site = _chosen(site, replicates.names)
        data = replicates.data(site)
        tallies = {
            name: _Tally(name, statistic, views_of(data))
            for name, statistic in (STATISTICS if statistics is None else statistics).items()
        }
        for _ in range(num_draws):
            views = views_of(torch.where(data.isnan(), data, replicates.draw()[site]))
            for tally in tallies.values():
                tally.add(views)
    group = "prior_predictive" if guide is None else "posterior_predictive"
    found = {name: tally.result() for name, tally in tallies.items()}
    return PredictiveCheck(group, site, found)


class _Tally:
    """Counts how often a statistic of replicates exceeds, or equals, that of the data."""

    def __init__(self, name: str, statistic: Statistic, data: tuple[Tensor, ...]) -> None:
        self.of = partial(applied, name, statistic)
        self.observed, *self.each = self.of(data)
        self.ranks = [torch.full_like(one, 0.5) for one in self.each]
        self.draws: list[Tensor] = []

    def add(self, drawn: tuple[Tensor, ...]) -> None:
        """Compare one replicate, given as views."""
        whole, *each = self.of(drawn)
        self.draws.append(whole)
        exceeds = [_exceeds(*pair) for pair in zip(each, self.each, strict=True)]
        self.ranks = [rank + one for rank, one in zip(self.ranks, exceeds, strict=True)]

    def result(self) -> CheckedStatistic:
        """The p-values."""
        per_datum, per_feature = (rank / (len(self.draws) + 1) for rank in self.ranks)
        draws = torch.stack(self.draws)
        return CheckedStatistic(float(self.observed), draws, per_datum, per_feature)


def _exceeds(drawn: Tensor, observed: Tensor) -> Tensor:
    """1 where the replicate's T is larger, ½ where it is equal, NaN where one has no value."""
    larger = (drawn > observed).double() + 0.5 * (drawn == observed).double()
    return torch.where(drawn.isnan() | observed.isnan(), torch.nan, larger)


def _p(draws: Tensor, observed: Tensor) -> Tensor:
    """The p-value of T(x) among draws `[S]`."""
    return (0.5 + _exceeds(draws, observed).sum()) / (len(draws) + 1)


def _chosen(site: str | None, values: Sequence[str]) -> str:
    """The observed site to be replicated."""
    names = ", ".join(values)
    if site is None and len(values) > 1:
        raise ProgramError(f"the program observes {names}: give one of them as site=")
    if site is not None and site not in values:
        raise ProgramError(f"the program does not observe a site '{site}', but {names}")
    return site or names
