"""Interpolations and traversals show what the decoder gives along the paths that are claimed."""

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from torch import Tensor

from pyroae import plots, priors, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.autoencoder.hierarchies import TopDown
from pyroae.errors import ConfigError, DataError
from pyroae.evaluation.diagnostics import diagnose
from pyroae.nn import MLP
from pyroae.plots.latent_paths import lerp, slerp, switched, units_by_kl
from pyroae.posteriors import POSTERIORS

SHAPE = (4, 5)
SMALL = MLP((7,))


def data(num_data: int = 6, features: int = 20) -> Tensor:
    return (torch.rand(num_data, features) < 0.4).float()


def cells(axes: Axes, rows: int, columns: int) -> Tensor:
    """The images of a grid whose images are one pixel apart, `[rows, columns, d]`."""
    pixels = np.asarray(axes.images[0].get_array(), dtype=np.float32)
    padded = np.pad(pixels, ((0, 1), (0, 1)))
    grid = padded.reshape(rows, SHAPE[0] + 1, columns, SHAPE[1] + 1)[:, :-1, :, :-1]
    return torch.from_numpy(grid.transpose(0, 2, 1, 3).reshape(rows, columns, -1).copy())


@pytest.mark.parametrize("spherical", [False, True])
def test_an_interpolation_has_data_at_its_ends_and_the_path_between(spherical: bool) -> None:
    torch.manual_seed(0)
    system, x = zoo.vae(SHAPE, 3, encoder=SMALL), data()
    figure = plots.interpolation(system, x[:2], x[2:4], num=5, spherical=spherical)
    shown = cells(figure.axes[0], 2, 7)
    assert torch.equal(shown[:, 0], x[:2])
    assert torch.equal(shown[:, -1], x[2:4])
    z = (slerp if spherical else lerp)(system.encode(x[:2]), system.encode(x[2:4]), 5)
    torch.testing.assert_close(shown[:, 1:-1], system.decode(z))
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["data", "0", "0.25", "0.5", "0.75", "1", "data"]


def test_paths_in_closed_form() -> None:
    a, b = torch.randn(40, 6).double(), torch.randn(40, 6).double()
    middle = lerp(a, b, 3)[:, 1]
    torch.testing.assert_close(middle, (a + b) / 2)
    b = b * a.norm(dim=-1, keepdim=True) / b.norm(dim=-1, keepdim=True)
    arc = slerp(a, b, 7)
    torch.testing.assert_close(arc[:, 0], a)
    torch.testing.assert_close(arc[:, -1], b)
    torch.testing.assert_close(arc.norm(dim=-1), a.norm(dim=-1, keepdim=True).expand(-1, 7))
    steps = torch.nn.functional.cosine_similarity(arc[:, 1:], arc[:, :-1], -1)
    torch.testing.assert_close(steps, steps[:, :1].expand(-1, 6))  # equal angles
    torch.testing.assert_close(slerp(a, 2 * a, 3), lerp(a, 2 * a, 3))  # no angle
    assert slerp(a, -a, 3).isfinite().all()


def test_bits_and_categories_are_switched_whole() -> None:
    a, b = torch.tensor([[1.0, 0, 0, 1, 0, 0]]), torch.tensor([[0.0, 1, 0, 0, 0, 1]])
    path = switched(a, b, 3, 3)[0].int().tolist()
    assert path == [[1, 0, 0, 1, 0, 0], [0, 1, 0, 1, 0, 0], [0, 1, 0, 0, 0, 1]]


@pytest.mark.parametrize("categories", [None, 3])
def test_discrete_units_take_all_their_states(categories: int | None) -> None:
    torch.manual_seed(0)
    system, x = zoo.discrete_vae(SHAPE, 6, categories=categories, encoder=SMALL), data()
    columns = categories or 2
    figure = plots.traversals(system, x, units=[1, 0])
    shown = cells(figure.axes[0], 2, columns)
    means = system.encode(x[:1])[0]
    z = means.round() if categories is None else None
    for row, unit in enumerate((1, 0)):
        for state in range(columns):
            if z is not None:
                point = z.clone()
                point[unit] = state
            else:
                point = torch.nn.functional.one_hot(means.view(2, 3).argmax(-1), 3).float()
                point[unit] = torch.eye(3)[state]
            torch.testing.assert_close(shown[row, state], system.decode(point.flatten()))
    path = plots.interpolation(system, x[:1], x[1:2], num=4)
    assert path.axes[0].get_title() == "Switching units of z between data"
    with pytest.raises(ConfigError, match="there is no spherical path of"):
        plots.interpolation(system, x[:1], x[1:2], spherical=True)


def test_a_traversal_moves_one_unit_by_three_standard_deviations() -> None:
    torch.manual_seed(0)
    system, x = zoo.vae(SHAPE, 4, encoder=SMALL), data()
    figure = plots.traversals(system, x, num=5)
    found = diagnose(system.model, system.guide, x, seed=0)
    order = found.kl_per_unit.argsort(descending=True).tolist()
    assert units_by_kl(found) == order
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [str(unit) for unit in order]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["-3", "-1.5", "0", "1.5", "3"]
    z = system.encode(x[:1]).repeat(5, 1)
    z[:, order[1]] = torch.linspace(-3, 3, 5)
    torch.testing.assert_close(cells(axes, 4, 5)[1], system.decode(z))


def test_units_without_a_normal_prior_move_between_quantiles() -> None:
    torch.manual_seed(0)
    laplace = zoo.vae(SHAPE, 2, encoder=SMALL, prior=priors.Laplace(2.0))
    title = plots.traversals(laplace, data(), num=3).axes[0].get_title()
    assert title == "One unit at a time\nquantiles 0.01 to 0.99 of the prior"
    shown = cells(plots.traversals(laplace, data(), [0], num=2).axes[0], 1, 2)
    assert not torch.equal(shown[0, 0], shown[0, 1])
    flat, x = zoo.autoencoder(SHAPE, 2, encoder=SMALL), data(9)
    figure = plots.traversals(flat, x, [1], num=2)
    assert figure.axes[0].get_title().endswith("of the codes")
    z = flat.encode(x)[:1].repeat(2, 1)
    z[:, 1] = flat.encode(x)[:, 1].quantile(torch.tensor([0.01, 0.99]))
    torch.testing.assert_close(cells(figure.axes[0], 1, 2)[0], flat.decode(z))


SYSTEMS = {
    "hierarchy": lambda: zoo.hierarchical_vae(SHAPE, (4, 2), TopDown((4,)), encoder=SMALL),
    "conditional": lambda: zoo.conditional_vae(SHAPE, 2, encoder=SMALL, condition=3),
    "m2": lambda: zoo.m2(SHAPE, 2, encoder=SMALL, condition=3),
    "missing": lambda: zoo.vae(SHAPE, 2, encoder=SMALL, missing=True),
    "table": lambda: zoo.ppca(20, 2),
    "sparse": lambda: zoo.sparse_autoencoder(SHAPE, 12, encoder=SMALL),
    "flow": lambda: zoo.vae(SHAPE, 2, encoder=SMALL, posterior=POSTERIORS.parse("iaf")),
    "colours": lambda: zoo.vae((3, 2, 3), 2, encoder=SMALL),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_kind_of_system(name: str) -> None:
    torch.manual_seed(0)
    system: Autoencoder = SYSTEMS[name]()
    x = data(features=system.features)
    args = (x, torch.eye(3)[torch.arange(6) % 3]) if name == "conditional" else (x,)
    layer = len(system.layers)
    a, b = tuple(t[:2] for t in args), tuple(t[2:4] for t in args)
    path = plots.interpolation(system, a, b, num=3, layer=layer).axes[0]
    units = plots.traversals(system, args, num=3, layer=layer).axes[0]
    for axes in (path, units):
        assert axes.images or axes.collections
    assert len(units.get_yticklabels()) == min(10, system.layers[-1])
    if name == "conditional":  # the condition moves too
        shown = cells(path, 2, 5)
        c = lerp(a[1], b[1], 3)
        z = lerp(system.encode(*a), system.encode(*b), 3)
        torch.testing.assert_close(shown[:, 1:-1], system.decode(z, c))
    if name == "hierarchy":
        assert "of z2" in path.get_title()


def test_bad_input_is_refused() -> None:
    system, x = zoo.vae(SHAPE, 2, encoder=SMALL), data()
    with pytest.raises(DataError, match="pairs need equally many data, not 2 and 3"):
        plots.interpolation(system, x[:2], x[:3])
    with pytest.raises(DataError, match="at least its two ends, not 1 points"):
        plots.interpolation(system, x[:2], x[:2], num=1)
    with pytest.raises(ConfigError, match="there is no unit 2 of z; there are 0 to 1"):
        plots.traversals(system, x, [0, 2])
    with pytest.raises(DataError, match="there are no units to draw"):
        plots.traversals(system, x, [])
    with pytest.raises(ConfigError, match="there is no layer 2 of z"):
        plots.traversals(system, x, [0], layer=2)
    with pytest.raises(ConfigError, match="this figure is of an Autoencoder"):
        plots.interpolation(torch.nn.Linear(2, 2), x, x)  # type: ignore[arg-type]
