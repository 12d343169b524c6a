"""Pictures of an evaluation that draw from the model: predictive checks and latent paths."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from pyroae import plots
from pyroae.autoencoder import Autoencoder
from pyroae.autoencoder.hierarchies import site_of
from pyroae.commands.data_pictures import DataPictures
from pyroae.errors import UndefinedLikelihoodError
from pyroae.evaluation.diagnostics import Diagnostics
from pyroae.evaluation.predictive_checks import predictive_check
from pyroae.plots.drawing import is_image
from pyroae.plots.latent_paths import MOST_UNITS, units_by_kl

NUM_DATA, NUM_DRAWS = 200, 40
"""The data and the replicates of a predictive check."""
PAIRS = 5
"""The pairs of data between which z is interpolated."""


def pictures(
    system: Any, data: DataPictures, x: tuple[Tensor, ...], diagnostics: Diagnostics
) -> dict[str, Callable[[], Figure]]:
    """Return functions that draw predictive checks and, of images, interpolations and traversals.

    Args:
        system: The system, or a program with a model and a guide.
        data: The draws of its observed sites.
        x: Its arguments, `[N, ...]` each.
        diagnostics: The result of `diagnose` on these data.

    Returns:
        Functions by the name of the figure; one may raise a PyroaeError where a system does not
        have the figure.
    """
    makers: dict[str, Callable[[], Figure]] = {
        data.file_name("predictive_check", site): partial(_check, system, x, site)
        for site in data.kinds
    }
    if isinstance(system, Autoencoder) and is_image(system.shape):
        layer, pairs = len(system.layers), min(PAIRS, len(x[0]) // 2)
        a, b = (tuple(t[i * pairs : (i + 1) * pairs] for t in x) for i in (0, 1))
        units = units_by_kl(diagnostics, site_of(layer))[:MOST_UNITS]
        makers["interpolation"] = partial(plots.interpolation, system, a, b)
        makers["traversals"] = partial(plots.traversals, system, x, units, layer=layer)
    return makers


def _check(system: Any, x: tuple[Tensor, ...], site: str) -> Figure:
    """Checks by draws from the prior, where it can be sampled, and from the guide."""
    step = -(-len(x[0]) // NUM_DATA)
    args = tuple(t[::step] for t in x)  # data that are in an order may begin with unusual ones
    settings: dict[str, Any] = {"num_draws": NUM_DRAWS, "seed": 0, "site": site}
    checks = [predictive_check(system.model, system.guide, args, **settings)]
    with suppress(UndefinedLikelihoodError):  # a Flat prior
        checks.insert(0, predictive_check(system.model, None, args, **settings))
    return plots.predictive_check(*checks)
