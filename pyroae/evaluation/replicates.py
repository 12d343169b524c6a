"""Replicates of data: draws of the observed sites of any program, one row per datum."""

from collections.abc import Sequence

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyroae.errors import BrokenProgramError, ProgramError, PyroaeError
from pyroae.evaluation.blocks import blocks, rows_of
from pyroae.evaluation.simulated_data import simulated
from pyroae.likelihoods.observed import observed_features
from pyroae.programs.masks import where_unmasked
from pyroae.programs.paired_traces import Traces
from pyroae.programs.sites import Program, Site, plates_of
from pyroae.programs.traces import prior_of, run


class Replicates:
    """Draws of the observed sites for all data, in blocks where nothing is shared between data.

        guide: z ~ q(z|x), x̃ ~ p(x|z)      None: z ~ p(z), x̃ ~ p(x|z)

    Args:
        model: The Pyro program p(z) p(x|z), of flat tensors.
        guide: The Pyro program q(z|x); None to draw z from the model's prior.
        args: The arguments of both, `[N, ...]` each.

    Attributes:
        names: The names of the observed sites that can be drawn.

    Raises:
        ProgramError: If nothing is observed, an observed site cannot be drawn, or the guide lacks
            a latent site of the model.

    >>> from pyroae import zoo
    >>> system = zoo.ppca(4, latent=2)
    >>> replicates = Replicates(system.model, system.guide, (torch.zeros(3, 4),))
    >>> replicates.names, replicates.draw()["x"].shape
    (['x'], torch.Size([3, 4]))
    """

    def __init__(self, model: Program, guide: Program | None, args: tuple[Tensor, ...]) -> None:
        self.model, self.guide = model, guide
        source = prior_of(model) if guide is None else guide
        whole = run(model, source, args, {})
        is_shared = any(
            not whole.is_local(one) for _, one in whole.sites(whole.guide, observed=False)
        )
        self.parts = list(blocks(args, len(args[0]) if is_shared else rows_of(args)))
        self.traces = [run(model, source, part, {}) for part in self.parts]
        if guide is not None:
            _check_guide(model, self.traces[0], self.parts[0])
        self.names = list(self._values(self.parts[0], self.traces[0]))
        if not self.names:
            raise ProgramError("the program observes nothing: it has no data to be drawn")

    def site(self, name: str) -> Site:
        """Return an observed site of the first block.

        Args:
            name: One of `names`.

        Returns:
            The site, with its distribution at a draw of z.
        """
        site: Site = self.traces[0].model.nodes[name]
        return site

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one datum at a site: its nested plates, then its event.

        Args:
            name: One of `names`.

        Returns:
            The sizes, without dimensions of one element.
        """
        value = _by_datum(self.traces[0], name, self.site(name)["value"])
        return tuple(size for size in value.shape[1:] if size != 1)

    def in_plates(self, name: str) -> bool:
        """Tell whether a datum has a plate of its own at a site, such as times.

        Args:
            name: One of `names`.

        Returns:
            Whether a nested plate has more than one element.
        """
        own = self.traces[0].plate
        return any(plate != own and plate.size != 1 for plate in plates_of(self.site(name)))

    def data(self, name: str) -> Tensor:
        """Return the observed values of a site.

        Args:
            name: One of `names`.

        Returns:
            The values `[N, d]`, float64, NaN where they are masked or missing.
        """
        return self._joined([_observed(traces, name) for traces in self.traces])

    def draw(self) -> dict[str, Tensor]:
        """Draw all observed sites of all data anew.

        Returns:
            By site a replicate `[N, d]`, float64.
        """
        drawn = [self._values(part, one) for part, one in zip(self.parts, self.traces, strict=True)]
        return {
            name: self._joined(
                [
                    _rows(traces, name, values[name])
                    for traces, values in zip(self.traces, drawn, strict=True)
                ]
            )
            for name in self.names
        }

    def means(self) -> dict[str, Tensor]:
        """Draw z, and return the means of p(x|z).

        Returns:
            By site the means `[N, d]`, float64; NaN where p(x|z) has none, as categories.
        """
        parts = [
            self._means(part, traces) for part, traces in zip(self.parts, self.traces, strict=True)
        ]
        return {name: self._joined([part[name] for part in parts]) for name in self.names}

    def _means(self, part: tuple[Tensor, ...], traces: Traces) -> dict[str, Tensor]:
        source = prior_of(self.model) if self.guide is None else self.guide
        drawn = run(self.model, source, part, {})
        return {name: _rows(traces, name, _mean(drawn.model.nodes[name])) for name in self.names}

    def _values(self, part: tuple[Tensor, ...], traces: Traces) -> dict[str, Tensor]:
        """Draws of the observed sites of a block, in the shape of the program."""
        try:
            if self.guide is None:
                return simulated(self.model, part, traces)[0]
            drawn = poutine.trace(self.guide).get_trace(*part)
            return simulated(poutine.replay(self.model, trace=drawn), part, traces)[0]
        except PyroaeError:
            raise
        except Exception as error:  # whatever a distribution of the user's program raises
            words = " ".join(str(error).split())[:300]
            raise BrokenProgramError(
                f"the observed sites cannot be drawn: {type(error).__name__}: {words}"
            ) from error

    @staticmethod
    def _joined(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts)).double().cpu()


def _mean(site: Site) -> Tensor:
    """The mean of a site's distribution, in the shape of its value; NaN where there is none."""
    value: Tensor = site["value"]
    try:
        mean: Tensor = site["fn"].mean
        return mean.detach().expand(value.shape)
    except (NotImplementedError, AttributeError, RuntimeError):
        return value.new_full(value.shape, torch.nan, dtype=torch.float64)


def _check_guide(model: Program, traces: Traces, args: tuple[Tensor, ...]) -> None:
    """Refuse a guide without draws of all latent sites, which would come from the prior."""
    drawn = {name for name, _ in traces.sites(traces.guide, observed=False)}
    nodes = poutine.trace(poutine.replay(model, trace=traces.guide)).get_trace(*args).nodes
    for name, one in nodes.items():
        is_latent = one["type"] == "sample" and not (one["is_observed"] or site_is_subsample(one))
        if is_latent and name not in drawn:
            raise ProgramError(
                f"the guide does not draw the latent site '{name}': posterior predictive draws "
                "need it; give guide=None for new data"
            )


def _observed(traces: Traces, name: str) -> Tensor:
    """The observed values of a site, `[N, d]`, NaN where they are masked or missing."""
    one = traces.model.nodes[name]
    missing = one["value"].new_full((), torch.nan, dtype=torch.float64)
    value = where_unmasked(name, one, one["value"].double(), missing)
    features = observed_features(one["fn"])
    return _rows(traces, name, value if features is None else value.where(features, missing))


def _rows(traces: Traces, name: str, value: Tensor) -> Tensor:
    """A value of a site as `[N, d]`, the data first, then nested plates and the event."""
    value = _by_datum(traces, name, value)
    return value.reshape(value.shape[0] if value.dim() else 1, -1)


def _by_datum(traces: Traces, name: str, value: Tensor) -> Tensor:
    """A value of a site with the data plate as its first dimension."""
    fn = traces.model.nodes[name]["fn"]
    value = value.expand(fn.batch_shape + fn.event_shape)
    if traces.plate is None:
        return value
    return value.movedim(traces.plate.dim - len(fn.event_shape), 0)
