"""Every public plot draws into Axes of the caller, and by itself into a figure of its own."""

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from pyroae import plots, zoo
from pyroae.comparison.results import Cell, Comparison, Outcome, Point
from pyroae.comparison.scores import Interval, Score
from pyroae.comparison.tuning import Trial, Tuning
from pyroae.config import CalibrationSettings
from pyroae.errors import ConfigError
from pyroae.evaluation.calibration import measure_calibration
from pyroae.evaluation.diagnostics import diagnose
from pyroae.evaluation.gradient_lab.measure import measure_slopes
from pyroae.evaluation.importance.likelihood import log_likelihood
from pyroae.evaluation.predictive_checks import predictive_check
from pyroae.evaluation.site_draws import predictive_draws
from pyroae.evaluation.statistics_of_data import mean, sd
from pyroae.evaluation.summary import EvaluationSettings, evaluate
from pyroae.nn import MLP
from pyroae.objectives.named import iwae
from pyroae.plots.canvas import canvas
from pyroae.priors import Vamp
from pyroae.training.state import Epoch
from tests.conftest import sample_of

HISTORY = [Epoch(i, 10 * i, 0.1 * i, 9.0 / i, 10.0 / i, 8.0 / i, 2.0 / i) for i in (1, 2, 3)]


@cache
def examples() -> dict[str, tuple[int, Callable[..., Figure]]]:
    """The number of panels of each plot, and the plot with all other arguments."""
    torch.manual_seed(0)
    vae, linear = zoo.vae((4, 5), 2, encoder=MLP((7,))), zoo.ppca(6, 2)
    vamp = zoo.vae((4, 5), 2, encoder=MLP((7,)), prior=Vamp(5))
    of_class = zoo.conditional_vae((4, 5), 2, encoder=MLP((7,)), condition=2)
    x, y = (torch.rand(6, 20) < 0.4).float(), torch.randn(8, 6)
    estimate = log_likelihood(linear.model, linear.guide, y, num_particles=300, seed=0)
    parameters = dict(linear.named_parameters())
    curves = measure_slopes(
        linear.model, linear.guide, y, {"iwae": iwae}, ks=(1, 4), parameters=parameters,
        replicates=20,
    )  # fmt: skip
    ranks = measure_calibration(
        linear.model, linear.guide, y, settings=CalibrationSettings("guide", 40, 20)
    )
    units = diagnose(vae.model, vae.guide, x, seed=0)
    check = predictive_check(linear.model, None, y, {"mean": mean, "sd": sd}, num_draws=9, seed=0)
    draws = predictive_draws(linear.model, linear.guide, y, num_draws=9, seed=0)["x"]
    points = (Point(1, 1, 0.1, 8, 3.0), Point(2, 2, 0.2, 16, 2.0))
    comparison = Comparison(
        tuple(
            Outcome(
                Cell(name, 1, seed),
                Score(-torch.rand(5), torch.zeros(5)),
                {},
                2,
                2,
                16,
                0.2,
                points,
            )
            for name in ("trace-elbo", "iwae")
            for seed in (0, 1)
        )
    )
    groups = {g: [n for n in parameters if n.startswith(g)] for g in ("decoder", "encoder")}
    by_group = measure_slopes(
        linear.model, linear.guide, y, {"iwae": iwae}, ks=(1, 4), parameters=parameters,
        groups=groups, replicates=20,
    )  # fmt: skip
    along = {0: by_group, 10: by_group}
    evaluation = evaluate(linear, y, EvaluationSettings(num_particles=10))
    evaluations = {0: evaluation, 10: evaluation}
    sparse = zoo.sparse_autoencoder(6, 2)
    sweep = {rate: evaluate(sparse, y, EvaluationSettings(num_particles=10)) for rate in (0.1, 1)}
    grid = {"lr": (0.1, 0.01), "kl_warmup": (0, 5)}
    trials = [
        Trial("iwae@8", {"lr": lr, "kl_warmup": warmup}, Interval(nll, nll - 1, nll + 1), 10, 1.0)
        for lr, warmup, nll in ((0.1, 0, 95.0), (0.1, 5, 92.0), (0.01, 0, 91.0), (0.01, 5, 90.0))
    ]
    tuning = Tuning(grid, tuple(trials))
    return {
        "along_training": (2, lambda ax=None: plots.along_training(evaluations, 10, ax=ax)),
        "bound_curve": (1, lambda ax=None: plots.bound_curve({"guide": estimate}, ax=ax)),
        "calibration_histograms": (
            2,
            lambda ax=None: plots.calibration_histograms(ranks, 2, ax=ax),
        ),
        "calibration_summary": (3, lambda ax=None: plots.calibration_summary(ranks, ax=ax)),
        "class_samples": (1, lambda ax=None: plots.class_samples(of_class, "ab", 3, ax=ax)),
        "column_errors": (2, lambda ax=None: plots.column_errors(linear, y, ax=ax)),
        "sequences": (3, lambda ax=None: plots.sequences(draws, 3, ax=ax)),
        "differences": (1, lambda ax=None: plots.differences(comparison, ax=ax)),
        "examples": (1, lambda ax=None: plots.examples(x, (4, 5), ax=ax)),
        "extremes": (6, lambda ax=None: plots.extremes(x, torch.arange(6), (4, 5), 3, ax=ax)),
        "filters": (1, lambda ax=None: plots.filters(vae, ax=ax)),
        "fitted": (6, lambda ax=None: plots.fitted(draws, ax=ax)),
        "gradient_curves": (3, lambda ax=None: plots.gradient_curves(curves, ax=ax)),
        "gradients_along_training": (
            2,
            lambda ax=None: plots.gradients_along_training(along, ax=ax),
        ),
        "interpolation": (1, lambda ax=None: plots.interpolation(vae, x[:2], x[2:4], 3, ax=ax)),
        "khat": (1, lambda ax=None: plots.khat(estimate, ax=ax)),
        "kl_per_unit": (1, lambda ax=None: plots.kl_per_unit(units, ax=ax)),
        "latent_scatter": (1, lambda ax=None: plots.latent_scatter(vae, x, list("aabbcc"), ax=ax)),
        "learning_curves": (3, lambda ax=None: plots.learning_curves(comparison, ax=ax)),
        "likelihood_per_datum": (2, lambda ax=None: plots.likelihood_per_datum(estimate, ax=ax)),
        "manifold": (1, lambda ax=None: plots.manifold(vae, num=3, ax=ax)),
        "pseudo_inputs": (1, lambda ax=None: plots.pseudo_inputs(vamp, num=4, ax=ax)),
        "marginals": (6, lambda ax=None: plots.marginals(draws, ax=ax)),
        "pairs": (4, lambda ax=None: plots.pairs(draws, (0, 5), ax=ax)),
        "posterior": (1, lambda ax=None: plots.posterior(vae, x, ax=ax)),
        "predictive_check": (2, lambda ax=None: plots.predictive_check(check, ax=ax)),
        "rate_distortion": (1, lambda ax=None: plots.rate_distortion({"a": (1.0, 8.0)}, ax=ax)),
        "reconstructions": (6, lambda ax=None: plots.reconstructions(vae, x, num=3, ax=ax)),
        "sample_grids": (2, lambda ax=None: plots.sample_grids({"a": vae, "b": vae}, 4, ax=ax)),
        "samples": (1, lambda ax=None: plots.samples(vae, num=4, ax=ax)),
        "sandwich": (1, lambda ax=None: plots.sandwich({"ELBO": (-9.0, 0.1)}, ax=ax)),
        "sparsity_sweep": (2, lambda ax=None: plots.sparsity_sweep(sweep, 4.0, ax=ax)),
        "training_curves": (2, lambda ax=None: plots.training_curves({"a": HISTORY}, ax=ax)),
        "traversals": (1, lambda ax=None: plots.traversals(vae, x, num=3, ax=ax)),
        "tuning_curves": (2, lambda ax=None: plots.tuning_curves(tuning, ax=ax)),
    }


def public_plots() -> list[str]:
    """Public functions of the modules of `pyroae.plots` that return a figure."""
    names = []
    for found in pkgutil.iter_modules(plots.__path__):
        module = importlib.import_module(f"pyroae.plots.{found.name}")
        names += [
            name
            for name, function in inspect.getmembers(module, inspect.isfunction)
            if not name.startswith("_")
            and function.__module__ == module.__name__
            and get_type_hints(function).get("return") is Figure
        ]
    return sorted(names)


PLOTS = public_plots()


def axes_of(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with `count` Axes and one more, which no plot may touch."""
    figure = Figure(layout="constrained")
    return figure, list(figure.subplots(1, count + 1))


def holds_something(axes: Axes) -> bool:
    return axes.has_data() or bool(axes.images or axes.collections or axes.lines or axes.patches)


def drawn(axes: Axes) -> list[Any]:
    """Positions of lines, and sizes of images, collections and bars."""
    lines = [np.asarray(line.get_xydata(), dtype=float).round(9).tolist() for line in axes.lines]
    images = [np.asarray(image.get_array()).shape for image in axes.images]
    return [lines, images, len(axes.collections), len(axes.patches), axes.get_title()]


def test_every_public_plot_is_exported_and_tested() -> None:
    assert sorted(plots.__all__) == PLOTS
    assert sorted(examples()) == PLOTS


@pytest.mark.parametrize("name", PLOTS)
def test_signature(name: str) -> None:
    parameter = inspect.signature(getattr(plots, name)).parameters["ax"]
    assert parameter.default is None
    assert parameter.kind == inspect.Parameter.KEYWORD_ONLY
    assert "\n    ax: " in (inspect.getdoc(getattr(plots, name)) or "")


@pytest.mark.parametrize("name", PLOTS)
def test_draws_into_the_axes_that_are_given(name: str) -> None:
    """The same marks as in a figure of its own; other Axes of the figure stay empty."""
    count, plot = examples()[name]
    figure, (*given, other) = axes_of(count)
    assert not any(map(holds_something, given))
    assert plot(given[0] if count == 1 else given) is figure
    own = plot().axes
    assert [drawn(axes) for axes in given] == [drawn(axes) for axes in own[:count]]
    assert any(map(holds_something, given))
    assert not holds_something(other)
    assert not figure.legends
    figure.draw_without_rendering()


@pytest.mark.parametrize("name", sample_of(PLOTS, 4))
def test_draws_into_a_subfigure(name: str) -> None:
    count, plot = examples()[name]
    figure = Figure(figsize=(12, 5), layout="constrained")
    halves: Any = figure.subfigures(1, 2)
    left, right = halves
    assert plot(left) is figure
    assert len(left.axes) >= count
    assert not right.axes
    assert [drawn(axes) for axes in left.axes] == [drawn(axes) for axes in plot().axes]
    figure.draw_without_rendering()


@pytest.mark.parametrize("name", PLOTS)
def test_another_number_of_axes_is_refused(name: str) -> None:
    count, plot = examples()[name]
    panels = "1 panel" if count == 1 else f"{count} panels"
    _, given = axes_of(count)
    with pytest.raises(ConfigError, match=rf"this plot has {panels}: .* not {count + 1} Axes"):
        plot(given)
    assert not any(map(holds_something, given))


def test_an_array_of_axes_is_taken_row_by_row() -> None:
    figure = Figure()
    grid = figure.subplots(2, 3)
    assert canvas(grid, (1, 1), 2, 3).panels.tolist() == grid.ravel().tolist()
    mosaic = Figure().subplot_mosaic("AB")
    assert canvas(mosaic["B"], (1, 1)).panels.tolist() == [mosaic["B"]]


@pytest.mark.parametrize("wrong", [3, "A", [], [1, 2], {"A": 1}], ids=repr)
def test_other_objects_are_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"ax= takes matplotlib Axes.* not (int|str|list|dict)$"):
        canvas(wrong, (1, 1))


def test_a_figure_with_axes_is_refused() -> None:
    figure, _ = axes_of(1)
    with pytest.raises(ConfigError, match="this figure has 2 Axes already"):
        plots.rate_distortion({"a": (1.0, 8.0)}, ax=figure)


def test_the_legend_of_the_figure_keeps_that_of_the_axes() -> None:
    _, given = axes_of(2)
    plots.training_curves({"one": HISTORY, "other": HISTORY}, ax=given[:2])
    legends = [child for child in given[1].get_children() if isinstance(child, Legend)]
    texts = [[text.get_text() for text in one.get_texts()] for one in legends]
    assert sorted(texts) == [["distortion", "rate"], ["one", "other"]]


@pytest.mark.parametrize("name", ["gradients_along_training", "learning_curves", "tuning_curves"])
def test_panels_of_one_quantity_share_limits_in_axes_of_the_caller(name: str) -> None:
    """The same limits as in a figure of its own."""
    count, plot = examples()[name]
    _, (*given, other) = axes_of(count)
    plot(given)
    (limits,) = {axes.get_ylim() for axes in given}
    assert limits == pytest.approx(plot().axes[0].get_ylim())
    assert limits != other.get_ylim()


def test_panels_that_share_limits_have_them_in_axes_of_the_caller() -> None:
    _, given = axes_of(3)
    examples()["learning_curves"][1](given[:3])
    assert len({axes.get_ylim() for axes in given[:3]}) == 1
    assert given[0].get_ylim()[0] < 2.0 < given[0].get_ylim()[1]
    assert not math.isclose(given[3].get_ylim()[1], given[0].get_ylim()[1])
