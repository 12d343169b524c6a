"""The traces of a guide and a model as a pair, and the log-densities of their sites."""

from collections.abc import Iterator
from dataclasses import dataclass

from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyroae.errors import ProgramError
from pyroae.programs.masks import observed_value
from pyroae.programs.particles import has_particles
from pyroae.programs.sites import Site, holds, is_delta


@dataclass(frozen=True)
class Traces:
    """One run of the guide and, replayed against it, the model, with K particles and N data.

    The log-density of a site is reduced to `[K, N]`: dimensions of plates nested in the data plate
    are summed. A program without a data plate is one datum.

    Attributes:
        model: The model's run, without the subsample sites of plates.
        guide: The guide's run, without the subsample sites of plates.
        num_particles: The number K of particles.
        plate: The data plate; None for a program without one.
        scale: Of each datum's bound, a number or `[N]`, as in `LogWeights`.
        drawn: The guide's run with the indices of subsampled plates.
        nesting: The number of plate dimensions, as given to `run`.
    """

    model: poutine.Trace
    guide: poutine.Trace
    num_particles: int
    plate: CondIndepStackFrame | None
    scale: Tensor | float
    drawn: poutine.Trace
    nesting: int = 0

    def sites(self, trace: poutine.Trace, *, observed: bool) -> Iterator[tuple[str, Site]]:
        """Iterate over the observed or the latent sample sites.

        Args:
            trace: `self.model` or `self.guide`.
            observed: Whether to select the observed sites, or the latent ones.

        Yields:
            Names and sites in the order of the program.
        """
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and bool(site["is_observed"]) == observed:
                yield name, site

    def draws(self) -> Iterator[tuple[str, Site]]:
        """Iterate over the draws of the guide.

        Returns:
            Names and sites: its latent sites without the Deltas.
        """
        return (
            (name, site)
            for name, site in self.sites(self.guide, observed=False)
            if not is_delta(site)
        )

    def deltas(self) -> Iterator[tuple[str, Site]]:
        """Iterate over the Deltas of the guide.

        Returns:
            Names and sites: its latent sites that are functions of the draws.
        """
        return (
            (name, site) for name, site in self.sites(self.guide, observed=False) if is_delta(site)
        )

    @property
    def is_plain(self) -> bool:
        """Whether every site of the guide is a draw."""
        return not any(True for _ in terms_of(self))

    def is_local(self, site: Site) -> bool:
        """Tell whether a site lies in the data plate.

        Args:
            site: A sample site of model or guide.

        Returns:
            True in the data plate, and for every site without one.
        """
        return self.plate is None or holds(site["cond_indep_stack"], self.plate)

    def exponent(self, site: Site) -> Tensor | float:
        """Divide the common scale out of a site's scale.

        Args:
            site: A sample site of model or guide.

        Returns:
            The exponent of the site's density, a number or a tensor that broadcasts with the
            batch shape; the whole scale for a global site.
        """
        if not self.is_local(site):
            return site["scale"]
        common = self.scale
        if isinstance(common, Tensor) and common.dim() and self.plate is not None:
            common = common.reshape(-1, *[1] * (-1 - self.plate.dim))
        return site["scale"] / common

    def reduce(self, site: Site, term: Tensor, exponent: Tensor | float | None = None) -> Tensor:
        """Apply exponent and mask of a site to a term and sum it for each particle and datum.

        Args:
            site: A sample site of model or guide.
            term: A tensor of the site's batch shape, such as a log-density in nats.
            exponent: The factor of the term; by default `self.exponent(site)`.

        Returns:
            A tensor `[K, N]`, or `[K]` for a global site, in the unit of the term.
        """
        exponent = self.exponent(site) if exponent is None else exponent
        return self.summed(site, scale_and_mask(term, scale=exponent, mask=site["mask"]))

    def summed(self, site: Site, term: Tensor) -> Tensor:
        """Sum a term of a site over all dimensions but those of particles and data.

        Args:
            site: A sample site of model or guide.
            term: A tensor of the site's batch shape.

        Returns:
            A tensor `[K, N]`, or `[K]` for a global site; a site without particles is repeated.
        """
        particles = self.num_particles if has_particles(site) else 1
        first = particles > 1
        local = self.is_local(site)
        data_dim = self.plate.dim if local and self.plate is not None else 0
        dims = [d for d in range(-term.dim() + first, 0) if d != data_dim]
        term = term.sum(dims) if dims else term
        term = term.reshape(particles, -1) if local else term.reshape(particles)
        return term.expand(self.num_particles, *term.shape[1:])

    def total(self, site: Site, term: Tensor) -> Tensor:
        """Reduce a term to a scalar over all data.

        Args:
            site: A sample site of model or guide.
            term: A reduced term, `[K, N]`, or `[K]` for a global site.

        Returns:
            The mean over the particles, scaled and summed over the data: a scalar.
        """
        return (self.scale * term.mean(0)).sum() if self.is_local(site) else term.mean()

    def expand_to(self, site: Site, values: Tensor) -> Tensor:
        """Reshape values for each particle and datum to broadcast with the value of a site.

        Args:
            site: A site in the data plate.
            values: A tensor `[K, N]`.

        Returns:
            The same values, with as many dimensions as the site's value.
        """
        shape = [1] * len(site["fn"].batch_shape)
        if self.plate is not None:
            shape[self.plate.dim] = values.shape[1]
        if self.num_particles > 1:
            shape[0] = self.num_particles
        return values.reshape([*shape, *[1] * len(site["fn"].event_shape)])


def log_density(name: str, site: Site, value: Tensor | None = None) -> Tensor:
    """Compute the log-density of a site.

    An observed value under the site's mask does not matter: a value in the support replaces it.

    Args:
        name: Name of the site, for the error.
        site: A sample site of a trace.
        value: The point, of the batch and event shape; by default the site's own value.

    Returns:
        The log-density, of the site's batch shape, in nats, without scale and mask.

    Raises:
        ProgramError: Names the site, where shapes disagree, and where a transform without an
            inverse, such as a planar flow, has not just drawn the value.
    """
    if value is None:
        value = observed_value(site) if site["is_observed"] else site["value"]
    try:
        return site["fn"].log_prob(value, *site["args"], **site["kwargs"])
    except KeyError as error:  # Pyro's transforms that only know the inverse of their last output
        raise ProgramError(
            f"site '{name}' has a transform without an inverse: its density is known at its own "
            "draws only, as trace-elbo, iwae and every other pathwise objective takes it"
        ) from error
    except Exception as error:
        raise ProgramError(
            f"the log-density of site '{name}' failed: {' '.join(str(error).split())}"
        ) from error


def terms_of(traces: Traces) -> list[tuple[str, Site]]:
    """List the sites of the guide that are no draws.

    Args:
        traces: One run of model and guide.

    Returns:
        Names and sites of factors and observed sites, then of Deltas.
    """
    return [*traces.sites(traces.guide, observed=True), *traces.deltas()]
