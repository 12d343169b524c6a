"""The pictures of an evaluation."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from pyroae import plots
from pyroae.autoencoder import Autoencoder
from pyroae.autoencoder.hierarchies import site_of
from pyroae.commands.data_pictures import data_pictures
from pyroae.commands.pictures import pictures
from pyroae.data.dataset import Dataset
from pyroae.errors import PyroaeError
from pyroae.evaluation.annealing.rate_distortion import RateDistortion
from pyroae.evaluation.summary import Evaluation
from pyroae.plots import likelihood as likelihood_plots
from pyroae.programs.arguments import Arguments
from pyroae.programs.pair import like_parameters
from pyroae.runs.data_of_run import arguments_in
from pyroae.runtime.processes import say


def figures(
    system: Any,
    dataset: Dataset | Arguments,
    found: Evaluation,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    curve: RateDistortion | None = None,
) -> dict[str, Figure]:
    """Draw every picture that the system has, and say which data have none.

    Args:
        system: The system, or a program.
        dataset: The data that it was evaluated on.
        found: The evaluation.
        bounds: The bounds of log p(x); None for those of the evaluation.
        curve: The rate–distortion curve; None for that of the evaluation, if it has one.

    Returns:
        Figures by name; one that the system does not have, such as samples from a flat prior, is
        left out.
    """
    x = like_parameters(system, arguments_in(dataset))
    labels, names = getattr(dataset, "labels", None), getattr(dataset, "columns", ())
    data = data_pictures(system, x, dataset)
    for note in data.notes:
        say(note)
    makers: dict[str, Callable[[], Figure]] = {
        "reconstructions": lambda: plots.reconstructions(
            system, x, labels=labels, shape=dataset.shape
        ),
        "columns": lambda: plots.column_errors(system, x, names or None),
        "samples": lambda: _samples(system, dataset, x),
        "manifold": lambda: plots.manifold(system),
        "latent_scatter": lambda: (
            data.scatter(system) if labels is None else plots.latent_scatter(system, x, labels)
        ),
        **_scatters_above(system, x, labels),
        "kl_per_unit": lambda: plots.kl_per_unit(found.diagnostics),
        "filters": lambda: plots.filters(system, x=x),
        "pseudo_inputs": lambda: plots.pseudo_inputs(system),
        **data.makers(),
        **pictures(system, data, x, found.diagnostics),
        **_likelihood_figures(dataset, found, found.sandwich() if bounds is None else bounds),
        **_rate_distortion(dataset, found, curve),
    }
    if not data.has_order and not getattr(dataset, "condition_names", ()):
        del makers["reconstructions"], makers["samples"], makers["manifold"]
    figures = {}
    for name, make in makers.items():
        try:
            figures[name] = make()
        except PyroaeError:
            continue
    return figures


def _samples(system: Any, dataset: Dataset | Arguments, x: tuple[Tensor, ...]) -> Figure:
    """Samples; of a system that is conditioned on one-hot labels, a row per label."""
    names = getattr(dataset, "condition_names", ())
    is_conditional = isinstance(system, Autoencoder) and len(names) > 0
    if is_conditional and (len(x) == 1 or bool((x[1].square().sum(1) == 1).all())):
        return plots.class_samples(system, names)
    return plots.samples(system, x=x, shape=dataset.shape)


def _scatters_above(system: Any, x: Any, labels: Any) -> dict[str, Callable[[], Figure]]:
    """The scatter plots of the layers above z, where the system has such layers."""
    num_layers = len(system.layers) if isinstance(system, Autoencoder) else 1
    return {
        f"latent_scatter_{site_of(n)}": partial(plots.latent_scatter, system, x, labels, layer=n)
        for n in range(2, num_layers + 1)
    }


def _likelihood_figures(
    dataset: Dataset | Arguments, found: Evaluation, bounds: Mapping[str, tuple[float, float]]
) -> dict[str, Callable[[], Figure]]:
    makers: dict[str, Callable[[], Figure]] = {}
    if len(bounds) > 1:
        makers["sandwich"] = lambda: likelihood_plots.sandwich(
            bounds, f"{len(dataset)} data of {dataset.name}"
        )
    if found.likelihood is not None:
        estimate = found.likelihood
        levels: dict[str, float] = {
            name: bounds[name][0] for name in ("AIS", "exact", "quadrature") if name in bounds
        }
        makers["likelihood_per_datum"] = lambda: likelihood_plots.likelihood_per_datum(estimate)
        makers["bound_curve"] = lambda: likelihood_plots.bound_curve({"IWAE": estimate}, levels)
        makers["khat"] = lambda: likelihood_plots.khat(estimate)
        bad = estimate.unreliable.tolist()
        if isinstance(dataset, Dataset):
            makers["extremes"] = lambda: likelihood_plots.extremes(
                dataset.x, estimate.log_px, dataset.shape, marked=bad
            )
    return makers


def _rate_distortion(
    dataset: Dataset | Arguments, found: Evaluation, curve: RateDistortion | None
) -> dict[str, Callable[[], Figure]]:
    """The curve by annealing with the point of the guide; none without a curve."""
    if curve is None and found.annealed is not None:
        curve = found.annealed.rate_distortion
    if curve is None:
        return {}
    point = tuple(found.results[name].estimate for name in ("rate", "distortion"))
    title = f"{len(dataset)} data of {dataset.name}"
    return {"rate_distortion": lambda: plots.rate_distortion({"": curve}, {"": point}, title)}
