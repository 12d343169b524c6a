"""What the figures show is what the systems and results hold: arrays, heights, labels, and nothing
left behind.
"""

import importlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyroae import corruptions, likelihoods, plots, posteriors, priors, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.comparison.results import Cell, Comparison, Outcome
from pyroae.comparison.scores import Score
from pyroae.errors import ConfigError, DataError, RunError, UndefinedLikelihoodError
from pyroae.evaluation.diagnostics import Diagnostics, diagnose
from pyroae.evaluation.summary import EvaluationSettings, evaluate
from pyroae.nn import MLP, Conv, Linear
from pyroae.plots import drawing
from pyroae.training.state import Epoch

DRAWN = True

SHAPE = (4, 5)
SMALL = MLP((7,))
HISTORY = [Epoch(i, 10 * i, 0.1 * i, 9.0 / i, 10.0 / i, 8.0 / i, 2.0 / i) for i in (1, 2, 3)]
WITHOUT = [
    replace(epoch, valid_nelbo=math.nan, distortion=math.nan, rate=math.nan) for epoch in HISTORY
]


def vae(shape: int | tuple[int, ...] = SHAPE, latent: int = 2, **choices: Any) -> Autoencoder:
    return zoo.vae(shape, latent, **{"encoder": SMALL, **choices})


def data(num_data: int = 6, features: int = 20) -> Tensor:
    return (torch.rand(num_data, features) < 0.4).float()


def pixels(axes: Axes) -> np.ndarray:
    """The one image of these axes, nan where nothing is drawn."""
    (image,) = axes.images
    array = image.get_array()
    assert array is not None
    return np.ma.filled(np.ma.asarray(array, dtype=float), np.nan)


def cell(axes: Axes, row: int, column: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """One image of a grid whose images are one pixel apart."""
    height, width = shape[-2:]
    top, left = row * (height + 1), column * (width + 1)
    return pixels(axes)[top : top + height, left : left + width]


def first_weight(module: nn.Module) -> Tensor:
    """Of its first linear layer."""
    return next(m for m in module.modules() if isinstance(m, nn.Linear)).weight.detach()


def legend_texts(legend: Any) -> list[str]:
    return [text.get_text() for text in legend.get_texts()]


def bars(figure: Figure) -> tuple[list[float], list[str], list[str]]:
    """Heights, colours and names of the bars."""
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_xticklabels()]
    patches: list[Any] = list(axes.patches)
    colours = [to_hex(p.get_facecolor()).upper() for p in patches]
    return [p.get_height() for p in patches], colours, names


# Training curves


def test_training_curves_hold_the_history() -> None:
    bound, parts = plots.training_curves(HISTORY).axes
    for axes, solid, broken in (
        (bound, "valid_nelbo", "train_nelbo"),
        (parts, "distortion", "rate"),
    ):
        drawn = {line.get_linestyle() == "-": line for line in axes.get_lines()}
        for is_solid, field in ((True, solid), (False, broken)):
            assert np.asarray(drawn[is_solid].get_xydata()).tolist() == [
                [e.epoch, getattr(e, field)] for e in HISTORY
            ]
        assert axes.get_ylabel() == "nats per datum"


def test_each_run_has_its_colour_and_name() -> None:
    figure = plots.training_curves({"one": HISTORY, "other": WITHOUT})
    lines = figure.axes[0].get_lines()
    assert [line.get_color() for line in lines] == [
        drawing.RUNS[0],
        drawing.RUNS[0],
        drawing.RUNS[1],
    ]
    assert legend_texts(figure.legends[0]) == ["one", "other"]
    assert legend_texts(figure.axes[0].get_legend()) == ["training", "validation"]


def test_without_validation_data_there_is_one_panel() -> None:
    (axes,) = plots.training_curves(WITHOUT).axes
    assert len(axes.get_lines()) == 1
    assert legend_texts(axes.get_legend()) == ["training"]


def test_a_single_epoch_is_a_point() -> None:
    axes = plots.training_curves(WITHOUT[:1]).axes[0]
    assert axes.get_lines()[0].get_marker() == "."
    assert all(tick == round(tick) for tick in axes.get_xticks())


@pytest.mark.parametrize(
    "histories", [[], {}, {"one": HISTORY, "other": []}], ids=["sequence", "mapping", "one of two"]
)
def test_no_epochs_are_refused(histories: Any) -> None:
    with pytest.raises(DataError, match="no epochs to draw"):
        plots.training_curves(histories)


# Reconstructions


def test_reconstructions_are_those_of_the_system() -> None:
    system, x = vae(), data()
    figure = plots.reconstructions(system, x, num=4, labels=np.array([3, 1, 4, 1, 5, 9]))
    assert len(figure.axes) == 2 * 4
    expected = system.reconstruct(x).reshape(-1, *SHAPE)
    for n in range(4):
        np.testing.assert_array_equal(pixels(figure.axes[n]), x[n].reshape(SHAPE))
        np.testing.assert_array_equal(pixels(figure.axes[4 + n]), expected[n])
    assert [axes.get_title() for axes in figure.axes[:4]] == ["3", "1", "4", "1"]
    assert [figure.axes[i].get_ylabel() for i in (0, 4)] == ["input", "reconstruction"]


def test_all_rows_share_the_limits_of_the_input() -> None:
    system, x = zoo.linear_autoencoder(SHAPE, 2), 5 * torch.randn(6, 20)
    figure = plots.reconstructions(system, x)
    assert {axes.images[0].get_clim() for axes in figure.axes} == {(x.min().item(), x.max().item())}
    assert plots.reconstructions(vae(), data()).axes[0].images[0].get_clim() == (0, 1)


def test_a_denoising_system_reconstructs_what_is_corrupted() -> None:
    system = zoo.denoising_autoencoder(SHAPE, 3, corruptions.Masking(0.5), encoder=SMALL)
    x, state = torch.rand(5, 20) + 0.1, torch.get_rng_state()
    figure = plots.reconstructions(system, x)
    assert [figure.axes[i].get_ylabel() for i in (0, 5, 10)] == [
        "input",
        "corrupted",
        "reconstruction",
    ]
    corrupted = np.stack([pixels(axes) for axes in figure.axes[5:10]])
    masked = corrupted != x.reshape(5, *SHAPE).numpy()
    assert 0.3 < masked.mean() < 0.7
    assert (corrupted[masked] == 0).all()
    expected = system.reconstruct(torch.from_numpy(corrupted).float().flatten(1))
    np.testing.assert_array_equal(
        [pixels(axes) for axes in figure.axes[10:]], expected.reshape(5, *SHAPE)
    )
    assert torch.equal(torch.get_rng_state(), state)


def test_data_that_are_no_images_are_curves() -> None:
    system, x = vae(6), data(features=6)
    figure = plots.reconstructions(system, x, num=3)
    lines = [np.asarray(axes.get_lines()[0].get_ydata()) for axes in figure.axes]
    np.testing.assert_array_equal(lines[:3], x[:3])
    np.testing.assert_array_equal(lines[3:], system.reconstruct(x[:3]))
    assert figure.axes[3].get_xlabel() == "feature"


def test_images_in_colour_and_with_one_channel() -> None:
    x = torch.rand(2, 3, 4, 5)
    figure = plots.reconstructions(vae((3, 4, 5)), x)
    np.testing.assert_allclose(pixels(figure.axes[1]), x[1].permute(1, 2, 0))
    figure = plots.reconstructions(vae((1, 4, 5)), x[:, :1])
    np.testing.assert_array_equal(pixels(figure.axes[1]), x[1, 0])


def test_images_with_channels_last() -> None:
    """`[h, w, c]` is drawn as `[c, h, w]` is, in colour and with one channel."""
    for channels in (1, 3):
        values = np.random.default_rng(0).random((5, 4, 6, channels))
        first = np.moveaxis(values, -1, 1)
        assert drawing.is_image(values.shape[1:])
        tiled = drawing.tile(values.reshape(5, -1), values.shape[1:], 3)
        np.testing.assert_array_equal(tiled, drawing.tile(first.reshape(5, -1), first.shape[1:], 3))
    assert not drawing.is_image((4, 6, 2))


def test_data_in_another_precision_are_taken() -> None:
    x = data().double()
    np.testing.assert_array_equal(
        pixels(plots.reconstructions(vae(), x).axes[0]), x[0].reshape(SHAPE)
    )


def test_no_data_and_other_widths_are_refused() -> None:
    with pytest.raises(DataError, match="no data to draw"):
        plots.reconstructions(vae(), data(0))
    with pytest.raises(DataError, match="no data to draw"):
        plots.reconstructions(vae(), data(), num=0)
    with pytest.raises(DataError, match=r"takes \[N, 20\]"):
        plots.reconstructions(vae(), data(features=7))


# Samples


def test_samples_are_the_systems_own_and_leave_the_generator() -> None:
    system, state = vae(), torch.get_rng_state()
    axes = plots.samples(system, num=7, seed=3).axes[0]
    assert torch.equal(torch.get_rng_state(), state)
    expected = system.sample(7)
    assert not torch.equal(system.sample(7), expected)
    torch.manual_seed(3)
    expected = system.sample(7).reshape(-1, *SHAPE)
    for n in range(7):
        np.testing.assert_array_equal(cell(axes, *divmod(n, 3)), expected[n])
    assert np.isnan(cell(axes, 2, 1)).all()
    assert np.isnan(pixels(axes)[4]).all()  # between two rows


def test_sample_grids_have_a_panel_a_system() -> None:
    systems = {f"{m}-D": vae(latent=m) for m in (1, 2, 3, 4, 5)}
    figure = plots.sample_grids(systems, num=4, seed=1)
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in shown] == list(systems)
    for axes, system in zip(shown, systems.values(), strict=True):
        np.testing.assert_array_equal(
            pixels(axes), pixels(plots.samples(system, num=4, seed=1).axes[0])
        )


def test_samples_that_are_no_images_are_curves() -> None:
    (curves,) = plots.samples(zoo.ppca(6, 2), num=5).axes[0].collections
    assert isinstance(curves, LineCollection)
    segments = np.stack(curves.get_segments())
    assert segments.shape == (5, 6, 2)
    cells = [(column, row) for row in (0, -1) for column in (0, 1, 2)][:5]
    for curve, corner in zip(segments, cells, strict=True):
        assert ((curve >= corner) & (curve <= np.array(corner) + 1)).all()


def test_samples_of_a_flat_prior_are_refused() -> None:
    with pytest.raises(UndefinedLikelihoodError, match="a Flat prior cannot be sampled"):
        plots.samples(zoo.autoencoder(SHAPE, 2, encoder=SMALL))
    with pytest.raises(DataError, match="no samples to draw"):
        plots.samples(vae(), num=0)
    with pytest.raises(DataError, match="no samples to draw"):
        plots.sample_grids({})


def test_figures_are_of_the_system_in_evaluation() -> None:
    """Dropout in a map is off while the figure is drawn, and the system stays in training mode."""
    system, x = vae(), data()
    assert isinstance(system.encoder, nn.Sequential)
    system.encoder.insert(1, nn.Dropout(0.9))
    system.train()
    figure = plots.reconstructions(system, x)
    assert all(module.training for module in system.modules())
    np.testing.assert_array_equal(
        pixels(figure.axes[6]), system.eval().reconstruct(x)[0].reshape(SHAPE)
    )


# Latent space


def offsets(axes: Axes) -> np.ndarray:
    return np.ma.filled(np.ma.asarray(axes.collections[0].get_offsets()), np.nan)


def test_scatter_of_two_units_has_the_posterior_means() -> None:
    system, x = vae(), data(9)
    figure = plots.latent_scatter(system, x, list("abcabcabc"))
    axes = figure.axes[0]
    np.testing.assert_allclose(offsets(axes), system.encode(x), rtol=1e-6)
    assert [axes.get_xlabel(), axes.get_ylabel()] == [
        "z[0], posterior mean",
        "z[1], posterior mean",
    ]
    assert legend_texts(figure.legends[0]) == ["a", "b", "c"]
    colours = [to_hex(colour) for colour in np.asarray(axes.collections[0].get_facecolor())]
    assert colours == 3 * list(drawing.LABELS[:3])


def test_scatter_picks_the_two_units_of_the_largest_variance() -> None:
    system, x = vae(latent=5, encoder=Linear()), data(50)
    first_weight(system.encoder)[:5] *= torch.tensor([0.1, 3.0, 0.2, 9.0, 0.3])[:, None]
    means = system.encode(x)
    assert means.var(0).argsort(descending=True)[:2].tolist() == [3, 1]
    axes = plots.latent_scatter(system, x).axes[0]
    np.testing.assert_allclose(offsets(axes), means[:, [3, 1]], rtol=1e-6)
    assert [axes.get_xlabel(), axes.get_ylabel()] == [
        "z[3], posterior mean",
        "z[1], posterior mean",
    ]


def test_one_latent_unit_is_a_histogram_by_label() -> None:
    figure = plots.latent_scatter(vae(latent=1), data(12), torch.tensor(4 * [0, 1, 1]))
    axes = figure.axes[0]
    ink = {to_hex(patch.get_facecolor()): 0.0 for patch in axes.patches}
    for patch in axes.patches:
        ink[to_hex(patch.get_facecolor())] += patch.get_height()  # type: ignore[attr-defined]
    assert ink == {drawing.LABELS[0]: 4, drawing.LABELS[1]: 8}
    assert legend_texts(figure.legends[0]) == ["0", "1"]


def test_many_labels_get_a_colour_bar_and_none_get_neither() -> None:
    system, x = vae(), data(25)
    assert len(plots.latent_scatter(system, x, range(20 + 5)).axes) == 2
    assert not plots.latent_scatter(system, x, range(25)).legends
    assert len(legend_texts(plots.latent_scatter(system, x[:20], range(20)).legends[0])) == 20
    plain = plots.latent_scatter(system, x)
    assert len(plain.axes) == 1
    assert not plain.legends


def test_labels_of_another_number_are_refused() -> None:
    with pytest.raises(DataError, match="there are 6 data and 5 labels"):
        plots.latent_scatter(vae(), data(), range(5))


def test_the_manifold_is_decoded_on_quantiles() -> None:
    """Corners: z[0] grows to the right, z[1] upwards; the normal quantiles of 0.02 and 0.98 are
    ∓2.0537489.
    """
    system, q = vae(), 2.0537489
    axes = plots.manifold(system, num=3).axes[0]
    for row, column, z in (
        (0, 0, (-q, q)),
        (0, 2, (q, q)),
        (2, 0, (-q, -q)),
        (1, 1, (0.0, 0.0)),
        (1, 2, (q, 0.0)),
    ):
        expected = system.decode(torch.tensor(z)).reshape(SHAPE)
        np.testing.assert_allclose(cell(axes, row, column), expected, rtol=1e-5)


def test_a_manifold_needs_two_dimensions_and_a_normal_prior() -> None:
    with pytest.raises(ConfigError, match="2 dimensions; this one has 3"):
        plots.manifold(vae(latent=3))
    with pytest.raises(ConfigError, match=r"this prior is Laplace\(rate=1.5\)"):
        plots.manifold(vae(prior=priors.Laplace(1.5)))
    with pytest.raises(ConfigError, match=r"this prior is Flat\(\)"):
        plots.manifold(zoo.autoencoder(SHAPE, 2, encoder=SMALL))


# Bars


def found(kl: list[float], activity: list[float], threshold: float = 0.01) -> Diagnostics:
    nothing = torch.zeros(3, dtype=torch.float64)
    return Diagnostics(
        nothing,
        nothing,
        torch.tensor(kl, dtype=torch.float64),
        torch.tensor(activity).double(),
        threshold,
    )


def test_bars_are_the_kl_sorted_and_the_inactive_grey() -> None:
    figure = plots.kl_per_unit(found([0.1, 2.0, 0.7, 0.0], [0.3, 0.005, 0.5, 0.0]))
    heights, colours, names = bars(figure)
    assert heights == [2.0, 0.7, 0.1, 0.0]
    assert names == ["1", "2", "0", "3"]
    assert colours == [drawing.GREY, drawing.BLUE, drawing.BLUE, drawing.GREY]
    assert figure.axes[0].get_ylabel() == "KL(q ‖ p), nats"
    assert figure.axes[0].get_title() == "2 of 4 units active"


def test_bars_of_a_system_are_its_diagnostics() -> None:
    system = vae(latent=6)
    diagnostics = diagnose(system.model, system.guide, data(30), seed=0)
    heights, _, names = bars(plots.kl_per_unit(diagnostics))
    assert heights == sorted(diagnostics.kl_per_unit.tolist(), reverse=True)
    assert heights == diagnostics.kl_per_unit[[int(name) for name in names]].tolist()


def test_a_delta_guide_shows_activity_and_threshold() -> None:
    system = zoo.sparse_autoencoder(SHAPE, 30, encoder=SMALL)
    diagnostics = diagnose(system.model, system.guide, data(30), num_particles=1, threshold=0.05)
    assert diagnostics.kl_per_unit.isnan().all()
    figure = plots.kl_per_unit(diagnostics)
    heights, colours, _ = bars(figure)
    axes = figure.axes[0]
    assert heights == sorted(diagnostics.activity.tolist(), reverse=True)
    assert 0 < diagnostics.active_units < 30
    assert colours == diagnostics.active_units * [drawing.BLUE] + (
        30 - diagnostics.active_units
    ) * [drawing.GREY]
    assert axes.get_yscale() == "log"
    assert "variance of the posterior mean" in axes.get_ylabel()
    assert axes.get_lines()[0].get_ydata() == [0.05, 0.05]


def test_units_without_activity_fit_a_logarithmic_axis(tmp_path: Path) -> None:
    figure = plots.kl_per_unit(found(3 * [math.nan], 3 * [0.0]))
    assert figure.axes[0].get_ylim()[0] == 0.005
    figure.savefig(tmp_path / "bars.png")


# Filters


def test_the_filters_of_a_linear_decoder_are_its_columns() -> None:
    for system in (zoo.linear_autoencoder(SHAPE, 4), zoo.ppca(SHAPE, 4, exact=True)):
        weight = first_weight(system.decoder)
        system.start_at(torch.ones(20))  # a bias, which is no part of a column
        axes = plots.filters(system).axes[0]
        for unit in range(4):
            np.testing.assert_allclose(
                cell(axes, *divmod(unit, 2)), weight[:, unit].reshape(SHAPE), atol=1e-6
            )


def test_atoms_are_drawn_with_length_one_around_zero() -> None:
    axes = plots.filters(zoo.sparse_autoencoder(SHAPE, 30, encoder=SMALL), num=9).axes[0]
    assert pixels(axes).shape == (3 * 5 - 1, 3 * 6 - 1)
    lengths = [np.square(cell(axes, *divmod(n, 3))).sum() for n in range(9)]
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    low, high = axes.images[0].get_clim()
    assert low == -high == -np.nanmax(np.abs(pixels(axes)))


def test_atoms_are_sorted_by_use_and_dead_ones_crossed_out() -> None:
    """Codes |f(x)| = 0, 2, 1, 1 of four units: one dead, one used by both data, two by one each."""
    x = torch.eye(20)[:2]
    system = zoo.sparse_autoencoder(SHAPE, 4, rate=0.5, encoder=Linear())
    with torch.no_grad():
        weight = system.encoder[0].weight.zero_()  # type: ignore[index]
        weight[1, :2], weight[2, 0], weight[3, 1] = 2.5, -1.5, 1.5
    axes = plots.filters(system, x=x).axes[0]
    atoms = system.decoder[0].atoms.detach().T.reshape(4, *SHAPE)  # type: ignore[index]
    for place, unit in enumerate((1, 2, 3, 0)):
        np.testing.assert_allclose(cell(axes, *divmod(place, 2)), atoms[unit], atol=1e-6)
    lines = [np.asarray(line.get_xydata()).tolist() for line in axes.get_lines()]
    assert lines == [[[0.5, 0.0], [1.0, 0.5]], [[0.5, 0.5], [1.0, 0.0]]]
    assert "3 of 4 units alive" in axes.get_title()


def test_the_sweep_draws_the_results_of_each_rate() -> None:
    x, settings = torch.randn(5, 6), EvaluationSettings(num_particles=10)
    found = {
        rate: evaluate(zoo.sparse_autoencoder(6, 4, rate=rate), x, settings) for rate in (2.0, 0.1)
    }
    shares, error = plots.sparsity_sweep(found, mean_error=9.0).axes
    for axes, number, name in ((shares, 0, "zero_share"), (shares, 1, "live_share"),
                               (error, 0, "squared_error")):  # fmt: skip
        rates, values = map(np.asarray, axes.get_lines()[number].get_data())
        assert list(rates) == [0.1, 2.0]
        assert list(values) == [found[rate].results[name].estimate for rate in rates]
    assert set(np.asarray(error.get_lines()[1].get_ydata())) == {9.0}
    vae = evaluate(zoo.vae(6, 2), (x > 0).float(), settings)
    with pytest.raises(DataError, match="systems with a point posterior"):
        plots.sparsity_sweep({0.1: vae})


def test_tied_columns_are_the_encoders_rows() -> None:
    system = vae(
        latent=4, encoder=Linear(), tied=True
    )  # the means' rows, not those of the log-variances
    row = first_weight(system.encoder)[3]
    axes = plots.filters(system).axes[0]
    np.testing.assert_allclose(cell(axes, 1, 1), row.reshape(SHAPE), atol=1e-6)
    assert pixels(axes).shape == (2 * 5 - 1, 2 * 6 - 1)


@pytest.mark.parametrize("tied", [False, True])
def test_the_filters_of_an_mlp_are_the_encoders_first_rows(tied: bool) -> None:
    system = zoo.autoencoder(SHAPE, 3, encoder=SMALL, tied=tied)
    weight = first_weight(system.encoder)
    figure = plots.filters(system)
    for unit in range(7):
        np.testing.assert_array_equal(
            cell(figure.axes[0], *divmod(unit, 3)), weight[unit].reshape(SHAPE)
        )
    assert "encoder" in figure.axes[0].get_title()


def test_the_filters_of_convolutions_are_kernels() -> None:
    for shape, channels in (((8, 8), 1), ((3, 8, 8), 3)):
        system = vae(shape, encoder=Conv((4, 5), width=6))
        first = next(m for m in system.encoder.modules() if isinstance(m, nn.Conv2d))
        kernel = first.weight.detach()[3].permute(1, 2, 0)
        shown = cell(plots.filters(system).axes[0], 1, 1, (4, 4))
        if channels == 3:  # in colour: 0 in the middle of 0 to 1
            kernel = 0.5 + 0.5 * kernel / first.weight.detach().abs().max()
        np.testing.assert_allclose(shown, kernel.squeeze(-1), atol=1e-6)


def test_a_system_without_filters_is_refused() -> None:
    class Prior(posteriors.Diagonal):
        """q(z|x) = p(z): there is no encoder."""

        def outputs(self, latent: int) -> int:
            return 0

    with pytest.raises(ConfigError, match="no filters to draw"):
        plots.filters(vae(posterior=Prior()))


# All of them


def every_figure() -> dict[str, Figure]:
    system, x, labels = vae(), data(12), 6 * [0, 1]
    continuous = zoo.ppca(6, 2)
    return {
        "training_curves": plots.training_curves({"a run": HISTORY, "another": WITHOUT}),
        "reconstructions": plots.reconstructions(system, x, labels=labels),
        "curves": plots.reconstructions(continuous, torch.randn(3, 6)),
        "samples": plots.samples(system),
        "sample_grids": plots.sample_grids({"images": system, "curves": continuous}, num=9),
        "colours": plots.samples(vae((3, 4, 5), likelihood=likelihoods.Normal()), num=5),
        "latent_scatter": plots.latent_scatter(system, x, labels),
        "manifold": plots.manifold(system, num=4),
        "kl_per_unit": plots.kl_per_unit(diagnose(system.model, system.guide, x, seed=0)),
        "filters": plots.filters(system),
    }


@pytest.mark.slow
def test_every_figure_is_written_as_png(tmp_path: Path) -> None:
    for name, figure in every_figure().items():
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_no_figure_is_left_open() -> None:
    """Those that something else has opened stay as they are."""
    pyplot = importlib.import_module("matplotlib.pyplot")
    before = pyplot.get_fignums()
    every_figure()
    assert pyplot.get_fignums() == before


def test_a_figure_as_png_and_as_pdf(tmp_path: Path) -> None:
    """Text of the PDF is text, in TrueType fonts, and there is no date in the file."""
    before = mpl.rcParams["pdf.fonttype"]
    files = []
    for copy in ("one", "other"):
        figure = plots.rate_distortion({"k̂ of a VAE": (10.0, 80.0)})
        files.append(drawing.save_both(figure, tmp_path / copy / "dreg-0.5"))
    assert [path.name for path in files[0]] == ["dreg-0.5.png", "dreg-0.5.pdf"]
    png, pdf = (path.read_bytes() for path in files[0])
    assert png.startswith(b"\x89PNG")
    assert pdf.startswith(b"%PDF")
    assert b"/Subtype /CIDFontType2" in pdf
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    assert [path.read_bytes() for path in files[1]] == [png, pdf]
    assert mpl.rcParams["pdf.fonttype"] == before


def test_a_figure_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        drawing.save_both(plots.rate_distortion({"a": (1.0, 8.0)}), tmp_path / "file" / "a")


# Posteriors


def test_contours_of_an_exact_posterior_are_those_of_the_true_one() -> None:
    """Both densities in the box of the picture; and of a diagonal they differ."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    x = torch.randn(3, 5)
    for system, equal in ((zoo.ppca(5, 2, exact=True), True), (zoo.ppca(5, 2), False)):
        figure = plots.posterior(system, x, 1)
        (axes,) = figure.axes
        of_p, of_q = axes.collections
        one, other = (
            np.concatenate([path.vertices for path in part.get_paths()]) for part in (of_p, of_q)
        )
        assert (one.shape == other.shape and np.allclose(one, other, atol=1e-6)) == equal
        assert axes.get_title() == "Posterior of datum 1"
    system = zoo.ppca(5, 2, exact=True)
    vertices = np.concatenate(
        [p.vertices for p in plots.posterior(system, x).axes[0].collections[0].get_paths()]
    )
    q_z = system.q_z(x[:1])
    standard = torch.linalg.solve_triangular(
        q_z.scale_tril[0], (torch.from_numpy(vertices) - q_z.mean).T, upper=False
    )
    radius = standard.norm(dim=0)  # χ with 2 degrees of freedom: √(−2 log(1 − share))
    expected = torch.tensor([(2 * math.log(20)) ** 0.5, (2 * math.log(2)) ** 0.5])
    distance = (radius[:, None] - expected).abs().amin(1)
    assert distance.max() < 0.05


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: vae(latent=3), "a latent space of 2 dimensions; this one has 3"),
        (lambda: zoo.autoencoder(SHAPE, 2, encoder=SMALL), "contours need a density of z given x"),
        (lambda: zoo.discrete_vae(SHAPE, 2, encoder=SMALL), "contours need a density of z given x"),
    ],
)
def test_contours_need_a_density_on_a_plane(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plots.posterior(make(), data(3))
    with pytest.raises(DataError, match="there is no datum 3: x has 3"):
        plots.posterior(vae(), data(3), 3)


def test_a_flow_says_why_it_has_no_kl_by_unit() -> None:
    system = vae(posterior=posteriors.IAF(hidden=4))
    diagnostics = diagnose(system.model, system.guide, data(30), num_particles=2, seed=0)
    axes = plots.kl_per_unit(diagnostics).axes[0]
    assert "its marginals are unknown" in axes.get_title().replace("\n", " ")
    system = vae(posterior=posteriors.FullRank())
    diagnostics = diagnose(system.model, system.guide, data(30), num_particles=2, seed=0)
    assert "total correlation" in plots.kl_per_unit(diagnostics).axes[0].get_title()


def test_names_of_variants_stand_for_entries_of_one_estimator() -> None:
    """In lines, so that the differences have room; with several estimators their names stay."""
    variants = ("posterior=diagonal", "system=hierarchical-vae,latent=100x50")

    def labels(*names: str) -> list[str]:
        outcomes = tuple(
            Outcome(
                Cell(name, 1, 0, variant), Score(torch.rand(5), torch.zeros(5)), {}, 1, 1, 1, 1.0
            )
            for name in names
            for variant in variants
        )
        (axes,) = plots.differences(Comparison(outcomes)).axes
        return [label.get_text() for label in axes.get_yticklabels()]

    assert labels("iwae") == ["system=hierarchical-vae,\nlatent=100x50"]
    assert sum(text.startswith("iwae, K = 1") for text in labels("iwae", "dreg")) == 1
