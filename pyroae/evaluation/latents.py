"""The continuous latent sites of any program as one vector a datum: what annealing, quadrature and local guides move in."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import Transform

from pyroae.errors import ProgramError
from pyroae.evaluation.checks import stand_ins
from pyroae.programs.masks import mask_of, where_unmasked
from pyroae.programs.sites import Program, Site, base_distribution
from pyroae.programs.traces import Traces, at_values, log_density, run


@dataclass(frozen=True)
class _Part:
    """Where a site's elements stand in the vector. shape: of the unconstrained value without particles and data."""

    name: str
    transform: Transform
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class LogJoint:
    """Densities at u, each `[K, N]`, in nats: of the prior, in the unconstrained coordinates (Jacobian included), and of x."""

    log_prior: Tensor
    log_lik: Tensor

    @property
    def total(self) -> Tensor:
        """log p(x, z), with the Jacobian."""
        return self.log_prior + self.log_lik


class Latents:
    """The latent sites of K particles and N data as u `[K, N, D]`, every element a real number.

    Constrained sites are taken through `torch.distributions.biject_to` of the prior's support; D counts all elements of a
    datum, those of nested plates included. model, guide, args: any Pyro programs over the same sites and their arguments, run
    once; only the model is run again afterwards. What is drawn in that run is `start`. like: latents of the same programs with
    arguments of the same shapes, whose draws are taken in place of new ones.
    active: `[N, D]`, False for the elements that a mask of the model leaves out, None where there are no such masks. Those have
    no density and are no coordinates: whatever u says of them, they stay at 0, and the gradient there is 0.
    Raises ProgramError, naming the site, for discrete latents, for sites outside the data plate, and for a support that
    differs between data or depends on other sites.

    >>> from pyroae import zoo
    >>> system, x = zoo.ppca(4, latent=2), torch.zeros(3, 4)
    >>> latents = Latents(system.model, system.guide, (x,), num_particles=5)
    >>> latents.start.shape, latents.log_joint(latents.start).total.shape
    (torch.Size([5, 3, 2]), torch.Size([5, 3]))
    """

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
        self._model, self._args = model, args
        drawn = None if like is None else like._traces.drawn
        self._traces: Traces = run(model, guide, args, {}, num_particles, nesting, drawn=drawn)
        self._parts = [
            _Part(name, transform_of(name, site, known=like is not None), ())
            for name, site in self._traces.sites(self._traces.model, observed=False)
        ]
        if not self._parts:
            raise ProgramError("the program has no latent site")
        for name, site in self._traces.sites(self._traces.model, observed=False):
            if not self._traces.is_local(site):
                raise ProgramError(
                    f"the latent site '{name}' lies outside the data plate: its data have no log p(x) one by one"
                )
        values = {part.name: self._traces.guide.nodes[part.name]["value"] for part in self._parts}
        unconstrained = {
            part.name: self._arranged(part.name, part.transform.inv(values[part.name]))
            for part in self._parts
        }
        self._parts = [
            _Part(p.name, p.transform, tuple(unconstrained[p.name].shape[2:])) for p in self._parts
        ]
        self.start = torch.cat([_rows(u) for u in unconstrained.values()], 2).detach()
        self.active = self._unmasked(unconstrained)
        self._stand_ins: dict[str, Tensor] = (
            stand_ins(self._traces) if like is None else like._stand_ins
        )

    @property
    def num_data(self) -> int:
        """N."""
        return self.start.shape[1]

    @property
    def size(self) -> int:
        """D, the number of elements of a datum."""
        return self.start.shape[2]

    def values(self, u: Tensor) -> dict[str, Tensor]:
        """The value of each site, in the shape that the program has it, at u `[K, N, D]`."""
        return {name: value for name, (value, _) in self._transformed(u).items()}

    def log_joint(self, u: Tensor) -> LogJoint:
        """log p(z) |dz/du| and log p(x|z) at u `[K, N, D]`, differentiable."""
        transformed = self._transformed(u)
        values = {name: value for name, (value, _) in transformed.items()}
        traces = at_values(self._traces, self._model, self._args, {}, values)
        observed = {
            n: s for n, s in traces.sites(traces.model, observed=True) if traces.is_local(s)
        }
        for name, stand_in in self._stand_ins.items():
            site = observed[name]  # a NaN under its mask would reach the gradients of the rest
            observed[name] = {**site, "value": where_unmasked(name, site, site["value"], stand_in)}
        log_lik = _sum([traces.reduce(s, log_density(name, s)) for name, s in observed.items()])
        terms = [
            traces.reduce(s, log_density(name, s))
            for name, s in traces.sites(traces.model, observed=False)
        ]
        terms += self.jacobians(transformed)
        log_prior = _sum(terms)
        return LogJoint(log_prior, torch.zeros_like(log_prior) if log_lik is None else log_lik)  # type: ignore[arg-type]

    def jacobians(self, transformed: Mapping[str, tuple[Tensor, Tensor | None]]) -> list[Tensor]:
        """log |dz/du| of the sites, `[K, N]` each, where they are not masked; none of the identity."""
        found = []
        for name, (_, log_det) in transformed.items():
            if log_det is not None:
                site = self._traces.model.nodes[name]
                found.append(
                    self._traces.reduce({**site, "mask": mask_of(name, site)}, log_det, 1.0)
                )
        return found

    def flatten(self, values: Mapping[str, Tensor]) -> Tensor:
        """u `[K, N, D]` of the values of the sites."""
        parts = [
            _rows(self._arranged(part.name, part.transform.inv(values[part.name])))
            for part in self._parts
        ]
        return torch.cat(parts, 2)

    def _transformed(self, u: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
        """By site, its value and the log-determinant, of the site's batch shape (None for the identity)."""
        found: dict[str, tuple[Tensor, Tensor | None]] = {}
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
            found[part.name] = (value, log_det)
        return found

    def _unmasked(self, unconstrained: Mapping[str, Tensor]) -> Tensor | None:
        """Which elements no mask of the model leaves out, `[N, D]`; None where there are no masks."""
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
        """The number of batch dimensions of a site, and which of them is that of the data."""
        batch = len(self._traces.guide.nodes[name]["fn"].batch_shape)
        return batch, None if self._traces.plate is None else batch + self._traces.plate.dim

    def _arranged(self, name: str, value: Tensor) -> Tensor:
        """`[K, N, …]` of a value as it is in the program."""
        _, data = self._frame(name)
        many = self._traces.num_particles > 1
        value = value.unsqueeze(0) if data is None else value.movedim(data, 0)
        return value.movedim(1, 0) if many else value.unsqueeze(0)

    def _as_in_program(self, part: _Part, value: Tensor) -> Tensor:
        """The inverse of `_arranged`."""
        _, data = self._frame(part.name)
        value = value.movedim(0, 1) if self._traces.num_particles > 1 else value.squeeze(0)
        return value.squeeze(0) if data is None else value.movedim(0, data)


def transform_of(name: str, site: Site, *, known: bool = False) -> Transform:
    """The map from the reals to the support of a site. Raises ProgramError for a discrete or, if not known, a varying one."""
    support = site["fn"].support
    if support.is_discrete:
        kind = type(base_distribution(site["fn"])).__name__
        raise ProgramError(
            f"the latent site '{name}' is discrete ({kind}): this needs latents that are all continuous"
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
                f"the support of the latent site '{name}' is not the same everywhere: its bounds are {limit}"
            )
    return biject_to(_fixed(support))


def _fixed(support: Any) -> Any:
    """A support whose bounds are numbers."""
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
    """`[K, N, …]` as `[K, N, D]`; a scalar is one element."""
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
