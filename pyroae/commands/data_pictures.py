"""Figures of the data of any program: its observed sites beside what the model draws there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from pyroae import plots
from pyroae.autoencoder import Autoencoder
from pyroae.data.dataset import Dataset
from pyroae.errors import PyroaeError
from pyroae.evaluation.site_draws import PredictiveDraws, predictive_draws
from pyroae.plots.drawing import is_image
from pyroae.plots.predictive_choice import FIGURES, DataKind, data_kind
from pyroae.programs.arguments import Arguments

NUM_DATA, NUM_DRAWS = 300, 20
"""The data that are drawn, and the draws of each."""
MOST_SITES = 6
"""The largest number of observed sites with figures of their own."""


@dataclass(frozen=True)
class DataPictures:
    """What there is to draw of the data of a program.

    Attributes:
        args: The arguments of the data that are drawn, `[N, ...]` each.
        draws: Draws of the observed sites by site; none of an Autoencoder of images.
        kinds: What the data of each site are drawn as.
        columns: The names of the columns of the data set; empty where it is no table.
        notes: Sentences on what is not drawn.
    """

    args: tuple[Tensor, ...]
    draws: Mapping[str, PredictiveDraws] = field(default_factory=dict)
    kinds: Mapping[str, DataKind] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def has_order(self) -> bool:
        """Whether some data are images or sequences, or nothing is known of them."""
        return not self.kinds or bool({"image", "sequence"} & set(self.kinds.values()))

    def makers(self) -> dict[str, Callable[[], Figure]]:
        """Return the functions that draw the figures, by the names of their files."""
        return {
            self.file_name(name, site): partial(make, self.draws[site], **self._named(site))
            for site, kind in self.kinds.items()
            for name, make in FIGURES[kind].items()
        }

    def file_name(self, name: str, site: str) -> str:
        """Return the name of a figure of a site, which names the site where there are several.

        Args:
            name: The figure.
            site: The observed site.

        Returns:
            The name of its file without a suffix.
        """
        return name if len(self.kinds) == 1 else f"{name}_{site}"

    def table(self, *names: str) -> Figure | None:
        """Draw the first of some figures that the first observed site has, if it is a table.

        Args:
            names: Figures, keys of the rows of `FIGURES`, the preferred one first.

        Returns:
            The figure; None for images and sequences.
        """
        if self.has_order:
            return None
        site, kind = next(iter(self.kinds.items()))
        known = (FIGURES[kind][name] for name in names if name in FIGURES[kind])
        return next((make(self.draws[site], **self._named(site)) for make in known), None)

    def _named(self, site: str) -> dict[str, tuple[str, ...]]:
        """The argument `names` of the figures of a site that is the table of the data set."""
        is_table = self.kinds[site] in ("table", "column")
        is_whole = len(self.columns) == self.draws[site].data.shape[1]
        return {"names": self.columns} if is_table and is_whole else {}

    def scatter(self, system: Any) -> Figure:
        """Draw the latent means, coloured by what is fitted best.

        That is a column of a table, or the mean of each sequence or image.

        Args:
            system: The system, or a program with a model and a guide.

        Returns:
            The figure, without colours where no column has all its values.
        """
        candidates = [one for site in self.draws for one in self._colours(site)]
        if not candidates:
            return plots.latent_scatter(system, self.args)
        _, name, labels = max(candidates, key=lambda one: one[0])
        return plots.latent_scatter(system, self.args, labels.numpy(), label_name=name)

    def _colours(self, site: str) -> list[tuple[float, str, Tensor]]:
        """Columns of a table, or the means of sequences: R², name, and values without NaN."""
        draws, kind = self.draws[site], self.kinds[site]
        data, means, names = draws.data, draws.means, [site]
        if kind in ("image", "sequence"):
            data, means = data.mean(1, keepdim=True), means.mean(1, keepdim=True)
            names = [f"mean of {site}"]
        elif data.shape[1] > 1:
            names = [f"{site}[{j}]" for j in range(data.shape[1])]
        names = list(self._named(site).get("names", names))
        columns = zip(explained(data, means), names, data.T, strict=True)
        return [one for one in columns if np.isfinite(one[0]) and bool(one[2].isfinite().all())]


def data_pictures(
    system: Any, x: tuple[Tensor, ...], dataset: Dataset | Arguments | None = None
) -> DataPictures:
    """Run a program and choose what is drawn of its observed sites.

    Args:
        system: The system, or a program with a model and a guide.
        x: Its arguments, `[N, ...]` each.
        dataset: The data set, for its names of columns and its shape, which may be an image.

    Returns:
        The pictures, of at most 300 data and 6 observed sites; without any, and with a sentence
        that says why, where the program cannot be run for them.
    """
    step = -(-len(x[0]) // NUM_DATA)
    args = tuple(t[::step] for t in x)  # data that are in an order may begin with unusual ones
    if isinstance(system, Autoencoder) and is_image(system.shape):
        return DataPictures(args, kinds={"x": "image"})
    try:
        draws = predictive_draws(system.model, system.guide, args, num_draws=NUM_DRAWS, seed=0)
    except PyroaeError as error:
        return DataPictures(args, notes=(f"no pictures of data beside draws: {error}",))
    names = list(draws)
    notes: tuple[str, ...] = ()
    if len(names) > MOST_SITES:
        left = ", ".join(names[MOST_SITES:])
        notes = (f"pictures are of {MOST_SITES} observed sites; there are none of {left}",)
    few = {name: draws[name] for name in names[:MOST_SITES]}
    kinds = {
        name: data_kind(one, None if dataset is None else dataset.shape)
        for name, one in few.items()
    }
    return DataPictures(args, few, kinds, tuple(getattr(dataset, "columns", ())), notes)


def explained(data: Tensor, means: Tensor) -> list[float]:
    """Return R², the share of the variance of each column that means explain.

    Args:
        data: `[N, d]`.
        means: `[N, d]`.

    Returns:
        d numbers; NaN where a mean is missing or a column is constant.

    >>> import torch
    >>> explained(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [2.0]]))
    [1.0]
    """
    found: list[float] = (1 - (data - means).square().mean(0) / data.var(0, correction=0)).tolist()
    return found
