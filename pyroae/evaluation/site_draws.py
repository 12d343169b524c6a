"""`predictive_draws`: data of each observed site beside draws and means of the model."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro.distributions import Bernoulli, Binomial, Categorical, OneHotCategorical
from torch import Tensor

from pyroae.errors import ConfigError, UndefinedLikelihoodError
from pyroae.evaluation.blocks import Data
from pyroae.evaluation.replicates import Replicates
from pyroae.likelihoods.categorical import Codes
from pyroae.likelihoods.mixed import Columns
from pyroae.likelihoods.observed import Observed
from pyroae.programs.arguments import structure_of
from pyroae.programs.context import evaluating
from pyroae.programs.sites import Program, base_distribution
from pyroae.runtime.randomness import fork_random
from pyroae.runtime.short_repr import Shown

ColumnKind = Literal["continuous", "count", "category"]
"""Real values; integers with an order, as of a Poisson; codes, bits included."""


MOST_CODES = 30
"""The largest number of distinct codes of a category; more are drawn as counts."""


@dataclass(frozen=True, repr=False)
class PredictiveDraws(Shown):
    """The data of one observed site, beside what the model draws there.

        new: z ~ p(z), x̃ ~ p(x|z)      replicates: z ~ q(z|x), x̃ ~ p(x|z)

    Attributes:
        site: The name of the site.
        shape: The shape of one datum, without dimensions of one element.
        kinds: The kind of each of the d columns: "continuous", "count" or "category".
        data: The observed values, `[N, d]`, float64; NaN where missing.
        means: E[x|z] at z ~ q(z|x), averaged over the draws, `[N, d]`; NaN where p(x|z) has none.
        replicates: Draws of the same data, `[S, N, d]`.
        new: Draws of new data, `[S, N, d]`; None under a Flat prior.
        in_plates: Whether one datum has a plate of its own, such as times of a sequence.
    """

    site: str
    shape: tuple[int, ...]
    kinds: tuple[ColumnKind, ...]
    data: Tensor
    means: Tensor
    replicates: Tensor
    new: Tensor | None
    in_plates: bool

    @property
    def misfit(self) -> Tensor:
        """The largest difference of the distribution functions of data and draws, `[d]`.

        The draws are of new data, or replicates under a Flat prior. NaN is 0: nothing is observed.
        """
        drawn = self.replicates if self.new is None else self.new
        pairs = zip(self.data.T, drawn.flatten(0, 1).T, strict=True)
        return torch.tensor([_largest_difference(*pair) for pair in pairs])


def predictive_draws(
    model: Program,
    guide: Program,
    x: Data,
    *,
    num_draws: int = 20,
    seed: int | None = None,
    **kwargs: Any,
) -> dict[str, PredictiveDraws]:
    """Draw all observed sites of a program, as replicates of the data and as new data.

        replicates: z ~ q(z|x), x̃ ~ p(x|z)      new: z ~ p(z), x̃ ~ p(x|z)

    Latent sites that all data share are drawn once for each of the S draws.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The Pyro program q(z|x).
        x: The data `[N, ...]`, or the arguments of model and guide as in `log_likelihood`;
            covariates stay as they are.
        num_draws: S.
        seed: The seed of the draws. The state of the caller's generators is restored.
        kwargs: Keyword arguments of the programs: tensors `[N, ...]` and constants.

    Returns:
        The draws by observed site, on the CPU, in the order of the model.

    Raises:
        ConfigError: There are no draws.
        ProgramError: Nothing is observed, an observed site cannot be drawn, or the guide lacks a
            latent site of the model.

    >>> from pyroae import zoo
    >>> system = zoo.ppca(4, latent=2)
    >>> draws = predictive_draws(system.model, system.guide, torch.randn(9, 4), num_draws=5)["x"]
    >>> draws.replicates.shape, draws.kinds[0], draws.means.shape
    (torch.Size([5, 9, 4]), 'continuous', torch.Size([9, 4]))
    """
    if num_draws < 1:
        raise ConfigError(f"predictive draws are at least 1, not {num_draws}")
    structure = structure_of(x, kwargs, model)
    args, device = structure.tensors, structure.tensors[0].device
    programs = structure(model), structure(guide)
    with evaluating(model, guide), fork_random(device, seed), torch.no_grad():
        source = Replicates(*programs, args)
        replicates = [source.draw() for _ in range(num_draws)]
        means = [source.means() for _ in range(num_draws)]
        new = []
        with suppress(UndefinedLikelihoodError):  # a Flat prior
            prior = Replicates(programs[0], None, args)
            new = [prior.draw() for _ in range(num_draws)]
    return {
        name: PredictiveDraws(
            name,
            source.shape(name),
            _kinds(source, name),
            source.data(name),
            torch.stack([one[name] for one in means]).mean(0),
            torch.stack([one[name] for one in replicates]),
            torch.stack([one[name] for one in new]) if new else None,
            source.in_plates(name),
        )
        for name in source.names
    }


def _largest_difference(data: Tensor, drawn: Tensor) -> float:
    """The Kolmogorov distance of two samples; 0 where one is empty."""
    data, drawn = (values[values.isfinite()].sort().values for values in (data, drawn))
    if not len(data) or not len(drawn):
        return 0.0
    places = torch.cat([data, drawn])
    shares = [torch.searchsorted(one, places, right=True) / len(one) for one in (data, drawn)]
    return float((shares[0] - shares[1]).abs().max())


def _kinds(source: Replicates, name: str) -> tuple[ColumnKind, ...]:
    """The kind of each column of a site, by its distribution and the values."""
    fn, values = source.site(name)["fn"], source.data(name)
    base = base_distribution(fn)
    while isinstance(base, Observed):
        base = base_distribution(base.whole)
    parts = [base] * values.shape[1]
    if isinstance(base, Columns):
        groups = zip(base.parts, base.sizes, strict=True)
        parts = [base_distribution(part) for part, size in groups for _ in range(size)]
    kinds = [_kind(part) for part in parts]
    return tuple(_checked(kind, column) for kind, column in zip(kinds, values.T, strict=True))


def _kind(base: Any) -> ColumnKind:
    """The kind that a distribution without wrappers says."""
    if isinstance(base, Bernoulli | Categorical | OneHotCategorical | Codes):
        return "category"
    support = base.support
    is_discrete = bool(support.is_discrete) or isinstance(base, Binomial)
    return "count" if is_discrete else "continuous"


def _checked(kind: ColumnKind, values: Tensor) -> ColumnKind:
    """The kind that a column is drawn as: codes are few whole numbers, counts whole numbers."""
    known = values[values.isfinite()]
    if kind == "continuous" or not bool((known == known.round()).all()):
        return "continuous"
    return "count" if len(known.unique()) > MOST_CODES else kind
