"""The continuous latent sites of any program as one unconstrained vector per datum.

Annealing, quadrature and local Gaussian fits work in these coordinates.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import Transform

from pyroae.errors import ProgramError
from pyroae.programs.masks import in_support, mask_of, where_unmasked
from pyroae.programs.paired_traces import Traces, log_density
from pyroae.programs.sites import Program, Site, base_distribution
from pyroae.programs.traces import at_values, run
from pyroae.runtime.short_repr import Shown


@dataclass(frozen=True)
class _Part:
    """The elements of a site in the vector.

    shape: of the unconstrained value, without the dimensions of particles and data.
    """

    name: str
    transform: Transform
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, repr=False)
class LogJoint(Shown):
    """Log-densities at u.

    Attributes:
        log_prior: log p(z) |dz/du|, the prior in unconstrained coordinates, `[K, N]`, in nats.
        log_lik: log p(x|z), `[K, N]`, in nats.
    """

    log_prior: Tensor
    log_lik: Tensor

    @property
    def total(self) -> Tensor:
        """The joint density, log p(x, z) |dz/du|, `[K, N]`, in nats."""
        return self.log_prior + self.log_lik


class Latents:
    """The latent sites of K particles and N data as u `[K, N, D]`, every element a real number.

        z = f(u),   f = biject_to(support of the prior)

    D counts all elements of a datum, including those of nested plates. Model and guide are run
    once; afterwards only the model is run again.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: A Pyro program over the same sites.
        args: Arguments of both, `[N, ...]` each.
        num_particles: K.
        nesting: The number of plate dimensions of the programs; None determines it by a run.
        like: Latents of the same programs with arguments of the same shapes, whose draws are
            used in place of new ones.

    Attributes:
        draws: The draws of the guide in that run, as u `[K, N, D]`, differentiable.
        start: The same, detached.
        active: `[N, D]`, False for elements that a mask of the model leaves out; None without such
            masks. Inactive elements have no density and are no coordinates: they stay at 0 for any
            u, and the gradient there is 0.

    Raises:
        ProgramError: Naming the site, for discrete latents, for sites outside the data plate, and
            for a support that differs between data or depends on other sites.

    >>> from pyroae import zoo
    >>> system, x = zoo.ppca(4, latent=2), torch.zeros(3, 4)
    >>> latents = Latents(system.model, system.guide, (x,), num_particles=5)
    >>> latents.start.shape, latents.log_joint(latents.start).total.shape
    (torch.Size([5, 3, 2]), torch.Size([5, 3]))
    """

    _stand_ins: dict[str, Tensor]

    def __init__(
        self,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        num_particles: int = 1,
        nesting: int | None = None,
        *,
        like: "Latents | None" = None,
    ) -> None:
        drawn = None if like is None else like._traces.drawn
        traces = run(model, guide, args, {}, num_particles, nesting, drawn=drawn)
        self._read(model, traces, args, {}, like is not None)
        if like is not None:
            self._stand_ins = like._stand_ins

    @classmethod
    def of_run(
        cls,
        model: Program,
        traces: Traces,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        known: bool = False,
    ) -> "Latents":
        """Arrange the latent sites of a run, whose draws `draws` keeps differentiable.

        Args:
            model: The Pyro program p(z) p(x|z).
            traces: A run of a guide and this model.
            args: Positional arguments of the model.
            kwargs: Keyword arguments of the model.
            known: The supports are known to be the same for all data, and are not checked again.

        Returns:
            The latents.

        Raises:
            ProgramError: As of the class.
        """
        latents = cls.__new__(cls)
        latents._read(model, traces, args, kwargs, known)
        return latents

    def _read(
        self,
        model: Program,
        traces: Traces,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        known: bool,
    ) -> None:
        self._model, self._args, self._kwargs, self._traces = model, args, kwargs, traces
        self._parts = [
            _Part(name, transform_of(name, site, known=known), ())
            for name, site in self._traces.sites(self._traces.model, observed=False)
        ]
        if not self._parts:
            raise ProgramError("the program has no latent site")
        for name, site in self._traces.sites(self._traces.model, observed=False):
            if not self._traces.is_local(site):
                raise ProgramError(
                    f"the latent site '{name}' lies outside the data plate: "
                    "log p(x) of a single datum does not exist"
                )
        values = {part.name: self._traces.guide.nodes[part.name]["value"] for part in self._parts}
        unconstrained = {
            part.name: self._arranged(part.name, part.transform.inv(values[part.name]))
            for part in self._parts
        }
        self._parts = [
            _Part(p.name, p.transform, tuple(unconstrained[p.name].shape[2:])) for p in self._parts
        ]
        self.draws = torch.cat([_rows(u) for u in unconstrained.values()], 2)
        self.start = self.draws.detach()
        self.active = self._unmasked(unconstrained)
        self._stand_ins = stand_ins(self._traces)

    @property
    def num_data(self) -> int:
        """N, the number of data."""
        return self.start.shape[1]

    @property
    def size(self) -> int:
        """D, the number of elements of u per datum."""
        return self.start.shape[2]

    def values(self, u: Tensor) -> dict[str, Tensor]:
        """Return the value of each site.

        Args:
            u: Unconstrained coordinates, `[K, N, D]`.

        Returns:
            Constrained values by site, in the shape that the program gives them.
        """
        return {name: value for name, (value, _) in self._transformed(u).items()}

    def log_joint(self, u: Tensor) -> LogJoint:
        """Run the model at u and evaluate its densities, differentiably.

        Args:
            u: Unconstrained coordinates, `[K, N, D]`.

        Returns:
            log p(z) |dz/du| and log p(x|z), `[K, N]` each, in nats.
        """
        transformed = self._transformed(u)
        values = {name: value for name, (value, _) in transformed.items()}
        traces = at_values(self._traces, self._model, self._args, self._kwargs, values)
        observed = {
            n: s for n, s in traces.sites(traces.model, observed=True) if traces.is_local(s)
        }
        for name, stand_in in self._stand_ins.items():
            site = observed[name]  # a NaN under its mask would reach the other gradients
            observed[name] = {**site, "value": where_unmasked(name, site, site["value"], stand_in)}
        log_lik = _sum([traces.reduce(s, log_density(name, s)) for name, s in observed.items()])
        terms = [
            traces.reduce(s, log_density(name, s))
            for name, s in traces.sites(traces.model, observed=False)
        ]
        terms += self.jacobians(transformed)
        log_prior = _sum(terms)
        assert log_prior is not None  # there is at least one latent site
        return LogJoint(log_prior, torch.zeros_like(log_prior) if log_lik is None else log_lik)

    def jacobians(self, transformed: Mapping[str, tuple[Tensor, Tensor | None]]) -> list[Tensor]:
        """Sum the log-determinants of the transforms over the elements that are not masked.

        Args:
            transformed: The value and the log-determinant of each site; None for the identity.

        Returns:
            log |dz/du|, `[K, N]`, in nats, for each site whose transform is not the identity.
        """
        terms = []
        for name, (_, log_det) in transformed.items():
            if log_det is not None:
                site = self._traces.model.nodes[name]
                masked = {**site, "mask": mask_of(name, site)}
                terms.append(self._traces.reduce(masked, log_det, 1.0))
        return terms

    def flatten(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the inverse of `values`.

        Args:
            values: Constrained values by site, in the shape that the program gives them.

        Returns:
            u, `[K, N, D]`.
        """
        parts = [
            _rows(self._arranged(part.name, part.transform.inv(values[part.name])))
            for part in self._parts
        ]
        return torch.cat(parts, 2)

    def _transformed(self, u: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
        """The value and the log-determinant (None for the identity) of each site."""
        transformed: dict[str, tuple[Tensor, Tensor | None]] = {}
        if self.active is not None:
            u = torch.where(self.active, u, 0.0)
        for part, piece in zip(self._parts, u.split([p.size for p in self._parts], 2), strict=True):
            free = self._as_in_program(
                part, piece.unflatten(2, part.shape) if part.shape else piece.squeeze(2)
            )
            value = part.transform(free)
            site = self._traces.model.nodes[part.name]
            log_det = None
            if part.transform.bijective and not _is_identity(part.transform):
                log_det = part.transform.log_abs_det_jacobian(free, value)
                log_det = (
                    log_det.flatten(len(site["fn"].batch_shape)).sum(-1)
                    if log_det.dim() > len(site["fn"].batch_shape)
                    else log_det
                )
            transformed[part.name] = (value, log_det)
        return transformed

    def _unmasked(self, unconstrained: Mapping[str, Tensor]) -> Tensor | None:
        """Whether no mask of the model leaves out an element, `[N, D]`; None without masks."""
        masks = {
            part.name: mask_of(part.name, self._traces.model.nodes[part.name])
            for part in self._parts
        }
        if all(mask is None for mask in masks.values()):
            return None
        columns = []
        for name, value in unconstrained.items():
            mask = masks[name]
            if mask is None:
                columns.append(torch.ones_like(_rows(value)[0], dtype=torch.bool))
            else:
                of_data = self._arranged(name, mask)
                of_elements = of_data.reshape(*of_data.shape, *[1] * (value.dim() - of_data.dim()))
                columns.append(_rows(of_elements.expand(value.shape))[0])
        return torch.cat(columns, 1)

    def _frame(self, name: str) -> tuple[int, int | None]:
        """The number of batch dimensions of a site, and the index of the data among them."""
        batch = len(self._traces.guide.nodes[name]["fn"].batch_shape)
        return batch, None if self._traces.plate is None else batch + self._traces.plate.dim

    def _arranged(self, name: str, value: Tensor) -> Tensor:
        """Move the dimensions of a value of the program to `[K, N, …]`."""
        _, data = self._frame(name)
        many = self._traces.num_particles > 1
        value = value.unsqueeze(0) if data is None else value.movedim(data, 0)
        return value.movedim(1, 0) if many else value.unsqueeze(0)

    def _as_in_program(self, part: _Part, value: Tensor) -> Tensor:
        """The inverse of `_arranged`."""
        _, data = self._frame(part.name)
        value = value.movedim(0, 1) if self._traces.num_particles > 1 else value.squeeze(0)
        return value.squeeze(0) if data is None else value.movedim(0, data)


def stand_ins(traces: Traces) -> dict[str, Tensor]:
    """Choose a value in the support of each observed site that has a mask.

    Args:
        traces: One run of model and guide.

    Returns:
        The values, by the name of the site.
    """
    return {
        name: in_support(site)
        for name, site in traces.sites(traces.model, observed=True)
        if traces.is_local(site) and site["value"].numel() and mask_of(name, site) is not None
    }


def transform_of(name: str, site: Site, *, known: bool = False) -> Transform:
    """Return the map from the reals to the support of a site.

    Args:
        name: The name of the site, for error messages.
        site: The site.
        known: The support is known to be the same for all data, and is not checked again.

    Returns:
        The transform of `torch.distributions.biject_to`.

    Raises:
        ProgramError: For a discrete support, or one that differs between data.
    """
    support = site["fn"].support
    if support.is_discrete:
        kind = type(base_distribution(site["fn"])).__name__
        raise ProgramError(
            f"the latent site '{name}' is discrete ({kind}): "
            "this method needs latents that are all continuous; mark it for enumeration in the "
            "model and leave it out of the guide, so that it is summed out of p(x, z)"
        )
    inner: Any = support
    while isinstance(inner, constraints.independent):
        inner = inner.base_constraint
    for bound in ("lower_bound", "upper_bound"):
        limit = getattr(inner, bound, None)
        if (
            isinstance(limit, Tensor)
            and not known
            and not bool((limit == limit.flatten()[0]).all())
        ):
            raise ProgramError(
                f"the support of the latent site '{name}' is not the same everywhere: "
                f"its bounds are {limit}"
            )
    return biject_to(_fixed(support))


def _fixed(support: Any) -> Any:
    """The same support with numbers as bounds, in place of constant tensors."""
    if isinstance(support, constraints.independent):
        return constraints.independent(
            _fixed(support.base_constraint), support.reinterpreted_batch_ndims
        )
    limits = [getattr(support, bound, None) for bound in ("lower_bound", "upper_bound")]
    if any(isinstance(limit, Tensor) for limit in limits):
        return type(support)(
            *(
                limit.flatten()[0] if isinstance(limit, Tensor) else limit
                for limit in limits
                if limit is not None
            )
        )
    return support


def _rows(value: Tensor) -> Tensor:
    """Flatten `[K, N, …]` to `[K, N, D]`; a scalar is one element."""
    return value.reshape(*value.shape[:2], -1)


def _is_identity(transform: Any) -> bool:
    while hasattr(transform, "base_transform"):
        transform = transform.base_transform
    return (
        isinstance(transform, torch.distributions.transforms.ComposeTransform)
        and not transform.parts
    )


def _sum(terms: list[Tensor]) -> Tensor | None:
    return sum(terms[1:], terms[0]) if terms else None
