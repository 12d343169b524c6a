"""The likelihood of a table whose columns have different likelihoods."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyroae.errors import ConfigError
from pyroae.likelihoods.base import LIKELIHOODS, Likelihood

GROUP = re.compile(r"([A-Za-z][\w-]*)(?:\((.*)\))?(?:\*(\d+))?")
"""A group of columns as text: a name, settings in parentheses, the number of columns."""


class _Columns(constraints.Constraint):
    """The rows whose columns are in the supports of their parts."""

    event_dim = 1

    def __init__(self, supports: Sequence[constraints.Constraint], sizes: Sequence[int]) -> None:
        self.supports, self.sizes = supports, list(sizes)
        self.is_discrete = all(support.is_discrete for support in supports)
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        parts = zip(self.supports, value.split(self.sizes, -1), strict=True)
        return torch.stack([support.check(part) for support, part in parts]).all(0)


class Columns(dist.TorchDistribution):
    """Independent groups of columns, side by side.

        log p(x) = Σ_g log p_g(x_g)

    Args:
        parts: The distribution of each group, of one batch shape, with event shape `[d_g]`; d is
            the sum of the d_g.

    >>> p = Columns([dist.Normal(torch.zeros(5, n), 1.0).to_event(1) for n in (2, 3)])
    >>> p.batch_shape, p.event_shape, p.sample().shape
    (torch.Size([5]), torch.Size([5]), torch.Size([5, 5]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False

    def __init__(self, parts: Sequence[dist.TorchDistribution]) -> None:
        self.parts = list(parts)
        self.sizes = [part.event_shape[0] for part in parts]
        self.is_given_value = any(getattr(part, "is_given_value", False) for part in parts)
        super().__init__(parts[0].batch_shape, torch.Size([sum(self.sizes)]), validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """The rows whose columns are in the supports of their groups."""
        return _Columns([part.support for part in self.parts], self.sizes)

    def expand(self, batch_shape: tuple[int, ...], _instance: object = None) -> "Columns":
        """Return the same distribution with another batch shape."""
        return Columns([part.expand(batch_shape) for part in self.parts])

    @property
    def mean(self) -> Tensor:
        """The means, shape `[..., d]`; NaN for categories."""
        return torch.cat([part.mean for part in self.parts], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) in nats, shape `[...]`."""
        values = zip(self.parts, value.split(self.sizes, -1), strict=True)
        return cast(Tensor, sum(part.log_prob(columns) for part, columns in values))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Return draws of x, shape `[*sample_shape, ..., d]`."""
        with torch.no_grad():
            return torch.cat([part.sample(sample_shape) for part in self.parts], -1)


@dataclass(frozen=True)
class Mixed(Likelihood):
    """A table whose columns have different likelihoods, side by side.

        log p(x|z) = Σ_g log p_g(x_g|z),   g over groups of neighboring columns

    As text, groups are joined by `+`. A group is the name of a likelihood, with settings in
    parentheses and `*` and the number of its columns where there is more than one:

        mixed:columns=normal(feature)*3+categorical(5)+bernoulli*2

    A value without its key in parentheses is that of the first setting. The data are not
    standardized: `normal(feature)` starts at the mean and the spread of each column.

    Attributes:
        groups: The likelihood and the number of columns of each group, from the left.

    Raises:
        ConfigError: There are no groups, or one has no columns.

    References:
        Nazábal et al. 2020, Handling Incomplete Heterogeneous Data using VAEs.

    >>> from pyroae.likelihoods import Bernoulli, Normal
    >>> Mixed(((Normal(), 3), (Bernoulli(), 1))) == LIKELIHOODS.parse(
    ...     "mixed:columns=normal*3+bernoulli"
    ... )
    True
    """

    groups: tuple[tuple[Likelihood, int], ...]
    is_unscaled = True

    def __post_init__(self) -> None:
        if not self.groups or any(count < 1 for _, count in self.groups):
            raise ConfigError(
                "a mixed likelihood needs groups of one or more columns, not "
                f"{[count for _, count in self.groups]}"
            )

    @property
    def features(self) -> int:
        """The number of columns of the table."""
        return sum(count for _, count in self.groups)

    def layout(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        """Return the total number of outputs of the decoder, as a shape with one output each.

        Args:
            shape: The shape of one datum, with d features in all.

        Returns:
            The total, as a shape of one dimension, and 1.

        Raises:
            ConfigError: The groups do not have d columns in all.
        """
        if torch.Size(shape).numel() != self.features:
            raise ConfigError(
                f"the groups of the mixed likelihood have {self.features} columns, the data "
                f"{torch.Size(shape).numel()}: give a likelihood for every column (one that is "
                "named as labels is no feature)"
            )
        return (sum(self._outputs()),), 1

    def learned(self, features: int) -> nn.Module:
        """Return the learned modules of the groups, in a ModuleList."""
        return nn.ModuleList(part.learned(count) for part, count in self.groups)

    def distribution(self, output: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return the groups side by side, event shape `[d]`."""
        outputs = output.split(self._outputs(), -1)
        modules = cast(nn.ModuleList, learned)
        return Columns(
            [
                part.distribution(columns, module)
                for (part, _), columns, module in zip(self.groups, outputs, modules, strict=True)
            ]
        )

    def bias(self, mean: Tensor) -> Tensor:
        """Return the biases of the groups, one after the other."""
        return torch.cat([part.bias(own) for part, own in self._each(mean)])

    def start(self, learned: nn.Module, mean: Tensor, x: Tensor) -> Tensor:
        """Start each group at its columns.

        Args:
            learned: The module that `learned` returned, which is changed in place.
            mean: The mean of the data, shape `[d]`.
            x: Some of the data, shape `[n, d]`.

        Returns:
            The decoder's last bias, one group after the other.
        """
        groups = zip(cast(nn.ModuleList, learned), self._each(mean), self._each(x), strict=True)
        return torch.cat(
            [part.start(module, own, columns) for module, (part, own), (_, columns) in groups]
        )

    def check_missing(self) -> None:
        """Refuse missing values where one of the likelihoods does."""
        for part, _ in self.groups:
            part.check_missing()

    def point(self, p_x: dist.TorchDistribution) -> Tensor:
        """Return the mean of each column, or its most probable code, shape `[..., d]`."""
        parts = zip(self.groups, cast(Columns, p_x).parts, strict=True)
        return torch.cat([part.point(own) for (part, _), own in parts], -1)

    def codes(self, features: int) -> Tensor:
        """Return which columns are codes, shape `[d]`."""
        return torch.cat([part.codes(count) for part, count in self.groups])

    def encoded(self, x: Tensor) -> Tensor:
        """Return each group as its likelihood encodes it, shape `[..., d]`."""
        return torch.cat([part.encoded(columns) for part, columns in self._each(x)], -1)

    def check(self, x: Tensor, what: str) -> None:
        """Refuse data that do not suit the likelihood of their column."""
        self.check_columns(x, what, 0)

    def check_columns(self, x: Tensor, what: str, first: int) -> None:
        """Refuse data that do not suit the likelihood of their column."""
        for part, columns in self._each(x):
            last = first + columns.shape[-1] - 1
            place = f"column {first}" if last == first else f"columns {first} to {last}"
            part.check_columns(columns, f"{what}, {place},", first)
            first = last + 1

    def _outputs(self) -> list[int]:
        return [part.layout((count,))[1] * count for part, count in self.groups]

    def _each(self, x: Tensor) -> Iterator[tuple[Likelihood, Tensor]]:
        """Each likelihood, with its columns of x."""
        sizes = [count for _, count in self.groups]
        return zip((part for part, _ in self.groups), x.split(sizes, -1), strict=True)


@LIKELIHOODS.register("mixed")
def mixed(columns: str) -> Mixed:
    """A table whose columns have different likelihoods, written as a text.

    Args:
        columns: Groups of columns, as in `normal*3+categorical(5)+bernoulli*2`.

    Returns:
        The likelihood.

    Raises:
        ConfigError: The text is not of this form, or a likelihood in it is not known.

    References:
        Nazábal et al. 2020, Handling Incomplete Heterogeneous Data using VAEs.

    >>> mixed("student(freedom=3,scale=learned)*2").groups
    ((Student(freedom=3, scale='learned'), 2),)
    """
    return Mixed(tuple(_group(text) for text in re.split(r"\+(?![^(]*\))", columns)))


def _group(text: str) -> tuple[Likelihood, int]:
    found = GROUP.fullmatch(text.strip())
    if found is None or found[1] == "mixed":
        raise ConfigError(
            f"the columns {text.strip()!r} of a mixed likelihood are not of the form NAME, "
            "NAME(SETTINGS) or NAME(SETTINGS)*COUNT"
        )
    name, settings, count = found[1], found[2] or "", int(found[3] or 1)
    if settings and "=" not in settings.partition(",")[0]:
        choice: Callable[..., Any] = LIKELIHOODS[name]
        settings = f"{next(iter(signature(choice).parameters), 'value')}={settings}"
    return LIKELIHOODS.parse(f"{name}:{settings}"), count
