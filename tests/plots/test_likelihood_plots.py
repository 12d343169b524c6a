"""Pictures of likelihoods: what they show is what was found."""

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import AxLine
from torch import Tensor

from pyroae import zoo
from pyroae.errors import DataError
from pyroae.evaluation.annealing.rate_distortion import RateDistortion
from pyroae.evaluation.importance.above import UpperBound
from pyroae.evaluation.importance.likelihood import LikelihoodEstimate, log_likelihood
from pyroae.evaluation.importance.streams import BoundCurve, Smoothed
from pyroae.plots import likelihood as plots


def estimate_of(
    log_px: list[float], khat: list[float], num_particles: int = 1000
) -> LikelihoodEstimate:
    values = torch.tensor(log_px).double()
    half = torch.full_like(values, 0.2)
    interval = torch.stack([values - half, values + 2 * half])
    smoothed = Smoothed(values, interval, torch.tensor(khat).double())
    curve = BoundCurve(
        torch.tensor([1, 10, 1000]),
        torch.tensor([-5.0, -3.0, -2.0]),
        torch.tensor([0.1, 0.05, math.nan]),
    )
    draws = torch.full((len(values),), num_particles)
    above = UpperBound(values + 1, half / 2, interval + 1, half * 0, values > 0)
    figures = (values, half / 2, interval, draws / 2.0, values + 0.5, smoothed, draws, curve)
    return LikelihoodEstimate(*figures, None, 0.1, above, above)


def test_likelihoods_are_sorted_with_their_intervals_and_flags() -> None:
    left, right = plots.likelihood_per_datum(estimate_of([-3.0, -1.0, -2.0], [0.1, 0.9, 0.2])).axes
    good, bad = left.containers
    points, _, (ranges,) = good.lines  # type: ignore[attr-defined]
    assert points.get_ydata().tolist() == [-3.0, -2.0]
    ends = [segment[:, 1].tolist() for segment in ranges.get_segments()]
    np.testing.assert_allclose(ends, [[-3.2, -2.6], [-2.2, -1.6]])
    assert bad.lines[0].get_xydata().tolist() == [[2.0, -1.0]]  # type: ignore[attr-defined]
    assert "k̂ too high: 1" in [text.get_text() for text in left.get_legend().get_texts()]  # type: ignore[union-attr]
    patches: list[Any] = [p for p in right.patches if p.get_height()]  # type: ignore[attr-defined]
    full = {round(p.get_x() + p.get_width(), 3): p.get_height() for p in patches}
    assert list(full.values()) == [3]


@pytest.mark.parametrize("num_particles", [1, 5])
def test_every_datum_is_in_the_histogram(num_particles: int, tmp_path: Path) -> None:
    """With the exact posterior ESS = K but for rounding; with K = 1 there is no standard error."""
    system = zoo.ppca(6, 2, exact=True)
    estimate = log_likelihood(
        system.model, system.guide, torch.randn(8, 6), num_particles=num_particles, seed=0
    )
    figure = plots.likelihood_per_datum(estimate)
    assert sum(patch.get_height() for patch in figure.axes[1].patches) == 8  # type: ignore[attr-defined]
    figure.savefig(tmp_path / "likelihood.png")


def test_the_curve_with_its_band_and_levels() -> None:
    (axes,) = plots.bound_curve({"guide": estimate_of([-2.0], [0.1])}, {"exact": -1.9}).axes
    curve, jackknife, _, level = axes.get_lines()
    np.testing.assert_allclose(
        np.asarray(curve.get_xydata(), dtype=float), [[1, -5], [10, -3], [1000, -2]]
    )
    np.testing.assert_allclose(np.asarray(jackknife.get_xydata(), dtype=float), [[1000, -1.5]])
    assert np.asarray(level.get_ydata()).tolist() == [-1.9, -1.9]
    (band,) = axes.collections
    assert band.get_paths()[0].get_extents().y0 == pytest.approx(-5 - 1.96 * 0.1)
    assert {"guide", "exact, −1.90"} <= {text.get_text() for text in axes.get_legend().get_texts()}  # type: ignore[union-attr]


def test_khat_of_every_datum_with_the_limit() -> None:
    figure = plots.khat(estimate_of([-3.0, -1.0, -2.0], [0.1, 0.9, -math.inf]))
    (axes,) = figure.axes
    points = np.concatenate([np.asarray(c.get_offsets()) for c in axes.collections])
    np.testing.assert_allclose(np.sort(points[:, 1]), [-1.0, 0.1, 0.9], rtol=1e-6)
    assert "limit 0.67" in axes.get_title()
    with pytest.raises(DataError, match="K = 5 is too few for a tail"):
        plots.khat(estimate_of([-3.0], [math.nan], num_particles=5))


def test_the_sandwich_has_a_row_a_bound() -> None:
    (axes,) = plots.sandwich(
        {"ELBO": (-90.0, 0.1), "exact": (-86.0, math.nan), "BDMC, upper": (-85.0, 0.2)}
    ).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "ELBO",
        "exact",
        "BDMC, upper",
    ]
    values = [float(c.lines[0].get_xdata()[0]) for c in axes.containers]  # type: ignore[attr-defined]
    assert values == [-90.0, -86.0, -85.0]


def test_worst_and_best_are_in_order() -> None:
    x, log_px = torch.rand(6, 4), torch.tensor([-3.0, -1.0, -2.0, -6.0, -5.0, -4.0])
    figure = plots.extremes(x, log_px, (2, 2), num=2, marked=[4])
    labels = [axes.get_xlabel() for axes in figure.axes if axes.get_xlabel()]
    assert labels == ["3: −6.0", "4: −5.0", "1: −1.0", "2: −2.0", "4: −5.0"]
    shown = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(np.asarray(shown), x[3].reshape(2, 2).numpy())
    with pytest.raises(DataError, match="there are 6 data and 5 log-likelihoods"):
        plots.extremes(x, log_px[:5], (2, 2))


def test_rate_and_distortion_on_lines_of_equal_elbo() -> None:
    (axes,) = plots.rate_distortion({"a": (10.0, 80.0), "b": (20.0, 75.0)}).axes
    points = [line.get_xydata().tolist() for line in axes.get_lines() if line.get_marker() == "o"]  # type: ignore[union-attr]
    assert points == [[[10.0, 80.0]], [[20.0, 75.0]]]
    assert legend_of(axes)[:2] == ["a: ELBO −90.00", "b: ELBO −95.00"]
    sums = sums_of(axes)
    assert sums[:2] == [90, 95]  # a line of equal ELBO through each point
    assert len(sums) > 5


def sums_of(axes: Axes) -> list[float]:
    """R + D of each line of slope −1, from its point at R = 0."""
    starts = [line.get_xy1() for line in axes.get_lines() if isinstance(line, AxLine)]
    return [start[1] for start in starts if start is not None]


def legend_of(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def curve_of(rates: list[float], distortions: list[float]) -> RateDistortion:
    """Of two equal data, with an error of log Z of 0.2 each."""
    rate, distortion = (
        torch.tensor([v], dtype=torch.float64).mT.repeat(1, 2) for v in (rates, distortions)
    )
    error, ends = torch.full_like(rate, 0.2), torch.stack([rate, rate])
    betas = torch.linspace(0, 1, len(rates), dtype=torch.float64)
    return RateDistortion(betas, rate, distortion, error, error, error, ends, ends, 9 * error)


def test_a_curve_with_its_band_its_tangent_and_the_point_of_the_guide() -> None:
    """Temperatures whose errors exchange them are drawn in order, up to the posterior."""
    curve = curve_of([0.0, 9.0, 4.0, 13.0, 12.0], [math.inf, 60.0, 80.0, 51.0, 52.0])
    (axes,) = plots.rate_distortion({"a": curve}, {"a": (11.0, 55.0)}, "12 data").axes
    line = next(line for line in axes.get_lines() if line.get_marker() == "D")
    assert np.asarray(line.get_xydata()).tolist() == [[4, 80], [9, 60], [12, 52]]
    assert legend_of(axes)[:2] == ["a: log p(x) −64.00", "a: ELBO −66.00"]
    sums = sums_of(axes)
    assert sums[:2] == [64, 66]
    (band,) = axes.collections
    half = 1.96 * math.hypot(0.2 / math.sqrt(2), 0.5 * 0.2**2)
    assert band.get_paths()[0].get_extents().x0 == pytest.approx(4 - half)
    assert band.get_paths()[0].get_extents().x1 == pytest.approx(12 + half)
    assert axes.get_title() == "12 data"
    low, high = axes.get_xlim()
    assert low == 0
    assert high > 12


def test_nothing_of_a_rate_distortion_figure_is_cut_off() -> None:
    """Every text lies within the figure, the labels of the lines beside the axes too."""
    curve = curve_of([0.0, 9.0, 12.0], [500.0, 60.0, 52.0])
    for curves in ({"a": curve}, {"a run with a long name": (10.0, 80.0)}):
        figure = plots.rate_distortion(curves)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        (axes,) = figure.axes
        assert len(axes.texts) >= 2
        for text in (*axes.texts, axes.xaxis.label, axes.yaxis.label):
            box = text.get_window_extent(canvas.get_renderer())
            assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, text.get_text()
            assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, text.get_text()


def every_figure() -> dict[str, Figure]:
    estimate, x = estimate_of([-3.0, -1.0, -2.0], [0.1, 0.9, 0.2]), torch.rand(3, 4)
    return {
        "likelihood": plots.likelihood_per_datum(estimate),
        "curve": plots.bound_curve({"guide": estimate}),
        "khat": plots.khat(estimate),
        "sandwich": plots.sandwich({"ELBO": (-90.0, 0.1)}),
        "extremes": plots.extremes(x, estimate.log_px, (2, 2)),
        "curves": plots.extremes(x, estimate.log_px, (4,)),
        "rate_distortion": plots.rate_distortion({"a": (10.0, 80.0)}),
    }


@pytest.mark.slow
def test_every_figure_is_written_and_none_is_left_open(tmp_path: Path) -> None:
    pyplot = importlib.import_module("matplotlib.pyplot")
    before = pyplot.get_fignums()
    for name, figure in every_figure().items():
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert pyplot.get_fignums() == before


@pytest.mark.slow
def test_the_pictures_of_a_real_estimate(tmp_path: Path) -> None:
    """Of a guide whose weights have heavy tails."""
    system = zoo.ppca(9, 2)
    x: Tensor = torch.randn(20, 9)
    estimate = log_likelihood(system.model, system.guide, x, num_particles=300, seed=0)
    plots.likelihood_per_datum(estimate).savefig(tmp_path / "a.png")
    plots.bound_curve({"guide": estimate}).savefig(tmp_path / "b.png")
    plots.khat(estimate).savefig(tmp_path / "c.png")
    plots.extremes(x, estimate.log_px, (3, 3), marked=estimate.unreliable.tolist()).savefig(
        tmp_path / "d.png"
    )
    assert estimate.curve.bound[-1].item() == pytest.approx(-estimate.nll)
