"""Figures of tables, columns and sequences: what is chosen, and that marks are at the data."""

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae import plots, zoo
from pyroae.commands.data_pictures import data_pictures
from pyroae.data import Dataset
from pyroae.errors import ConfigError, DataError
from pyroae.evaluation.site_draws import PredictiveDraws, predictive_draws
from pyroae.plots.predictive_choice import data_kind

N = 40


class Survey:
    """One latent z; scores, bits, a count, a choice and a sequence per datum."""

    def model(self, scores: Tensor, bits: Tensor, count: Tensor, choice: Tensor, y: Tensor) -> None:
        with pyro.plate("people", len(scores), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
            one = z.unsqueeze(-1)
            pyro.sample("scores", dist.Normal(one.expand(*z.shape, 3), 1.0).to_event(1), obs=scores)
            pyro.sample(
                "bits", dist.Bernoulli(logits=one.expand(*z.shape, 2)).to_event(1), obs=bits
            )
            pyro.sample("count", dist.Poisson(z.exp()), obs=count)
            pyro.sample("choice", dist.Categorical(logits=one * torch.arange(3.0)), obs=choice)
            with pyro.plate("times", 5, dim=-1):
                pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    def guide(self, scores: Tensor, *others: Tensor) -> None:
        with pyro.plate("people", len(scores), dim=-2):
            pyro.sample("z", dist.Normal(scores.mean(-1), 0.1))


def data() -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    z = torch.randn(N, 1)
    scores = z[:, None] + 0.3 * torch.randn(N, 1, 3)
    choice = torch.randint(3, (N, 1))
    return (
        scores,
        (scores[..., :2] > 0).float(),
        torch.poisson(z.exp()),
        choice,
        z.expand(N, 5) + 0.0,
    )


@pytest.fixture(scope="module")
def drawn() -> dict[str, PredictiveDraws]:
    survey = Survey()
    return predictive_draws(survey.model, survey.guide, data(), num_draws=30, seed=0)


def test_kinds_follow_the_distribution_and_the_plates(drawn: dict[str, PredictiveDraws]) -> None:
    kinds = {name: (data_kind(one), set(one.kinds)) for name, one in drawn.items()}
    assert kinds == {
        "scores": ("table", {"continuous"}),
        "bits": ("table", {"category"}),
        "count": ("column", {"count"}),
        "choice": ("column", {"category"}),
        "y": ("sequence", {"continuous"}),
    }


def test_draws_are_those_of_the_model(drawn: dict[str, PredictiveDraws]) -> None:
    """x̃ = z + ε, z ~ N(x̄, 0.1²) of replicates and N(0, 1) of new data; means are those of z."""
    one, mean = drawn["scores"], data()[0].mean(-1).double()
    assert torch.equal(one.data, data()[0].squeeze(1).double())
    assert torch.allclose(one.means, mean.expand(N, 3), atol=4.5 * 0.1 / 30**0.5)
    assert one.new is not None
    assert one.new.std().item() == pytest.approx(2**0.5, abs=0.08)
    spread = (one.replicates - mean).std().item()
    assert spread == pytest.approx(1.01**0.5, abs=0.06)
    assert drawn["choice"].means.isnan().all()


def test_misfit_is_the_kolmogorov_distance(drawn: dict[str, PredictiveDraws]) -> None:
    from scipy.stats import ks_2samp

    one: Any = drawn["scores"]
    expected = [ks_2samp(one.data[:, j], one.new[:, :, j].ravel()).statistic for j in range(3)]
    assert np.allclose(one.misfit, expected, atol=1e-6)


def test_vectors_that_are_smooth_or_long_are_sequences() -> None:
    def chosen(values: Tensor) -> str:
        one = values.double()
        kinds: Any = ("continuous",) * one.shape[1]
        return data_kind(
            PredictiveDraws("x", (one.shape[1],), kinds, one, one, one[None], None, False)
        )

    waves = torch.sin(torch.linspace(0, 6, 20) + torch.rand(9, 1))
    assert chosen(waves) == "sequence"
    assert chosen(torch.randn(9, 20)) == "table"
    assert chosen(torch.randn(9, 41)) == "sequence"
    assert chosen(waves[:, :7]) == "table"


def test_marks_are_at_the_data(drawn: dict[str, PredictiveDraws]) -> None:
    rows = [line.get_ydata() for line in plots.sequences(drawn["y"], 1).axes[0].lines]
    assert np.allclose(rows[1], drawn["y"].data[0])
    points = plots.fitted(drawn["scores"]).axes[1].collections[0].get_offsets()
    assert np.allclose(points, torch.stack([drawn["scores"].means, drawn["scores"].data], -1)[:, 1])
    patches: list[Any] = list(plots.marginals(drawn["bits"]).axes[0].patches)
    bars = [bar.get_height() for bar in patches]
    share = drawn["bits"].data[:, 0].mean().item()
    assert bars[:2] == pytest.approx([1 - share, share])
    plots.marginals(drawn["count"]).draw_without_rendering()
    plots.fitted(drawn["choice"]).draw_without_rendering()


def test_what_cannot_be_drawn(drawn: dict[str, PredictiveDraws]) -> None:
    with pytest.raises(DataError, match="the columns of 'scores' are 0 to 2"):
        plots.marginals(drawn["scores"], [3])
    with pytest.raises(DataError, match="'scores' has 3 columns, and 2 names"):
        plots.fitted(drawn["scores"], names=("a", "b"))
    with pytest.raises(DataError, match="pairs are of two columns or more"):
        plots.pairs(drawn["count"])
    with pytest.raises(DataError, match="sequences are data of two elements"):
        plots.sequences(drawn["count"])
    with pytest.raises(ConfigError, match="predictive draws are at least 1, not 0"):
        predictive_draws(Survey().model, Survey().guide, data(), num_draws=0)


def test_pictures_of_a_program(tmp_path: Path) -> None:
    """Each site has its figures; a program that cannot be drawn has a sentence."""
    pictures = data_pictures(Survey(), data())
    assert set(pictures.makers()) == {
        *("marginals_scores", "pairs_scores", "fitted_scores"),
        *("marginals_bits", "pairs_bits", "fitted_bits"),
        *("marginals_count", "fitted_count", "marginals_choice", "fitted_choice", "sequences_y"),
    }
    for make in pictures.makers().values():
        make().savefig(tmp_path / "figure.png", dpi=30)
    colour = pictures.scatter(Survey()).axes[0].get_ylabel()
    assert colour in ("scores[0]", "scores[1]", "scores[2]", "mean of y")
    assert pictures.notes == ()

    class Factor(Survey):
        def model(self, *args: Tensor) -> None:
            with pyro.plate("people", N, dim=-2):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
                pyro.factor("f", -z.square())

    (note,) = data_pictures(Factor(), data()).notes
    assert note.startswith("no pictures of data beside draws: the site 'f' is a factor")


def test_columns_of_a_data_set_have_their_names() -> None:
    names = ("height", "weight", "age")
    table = Dataset("people", torch.randn(30, 3), (3,), columns=names)
    makers = data_pictures(zoo.ppca(3, latent=1), (table.x,), table).makers()
    assert [axes.get_xlabel() for axes in makers["marginals"]().axes] == list(names)
    figure = plots.examples(table.x, (3,), columns=names, labels=["a", "b", "a"] * 10)
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == list(names)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
