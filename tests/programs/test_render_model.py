"""The relations that `pyro.render_model` draws, of the systems of the zoo and of other programs."""

from pathlib import Path

import pytest
import torch
from pyro.infer.inspect import get_model_relations

from pyroae.autoencoder import Autoencoder
from pyroae.autoencoder.hierarchies import site_of
from pyroae.errors import UndefinedLikelihoodError
from pyroae.priors import Flat
from tests.systems import DISCRETE, SYSTEMS, system_and_data
from tests.test_docs_examples import run_blocks

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", [*SYSTEMS, *DISCRETE])
def test_systems_of_the_zoo(name: str) -> None:
    system, x = system_and_data(name)
    assert isinstance(system, Autoencoder)
    layers = {site_of(n) for n in range(1, len(system.layers) + 1)}
    of_guide = get_model_relations(system.guide, model_args=(x,))
    assert layers <= set(of_guide["sample_sample"])
    if isinstance(system.prior, Flat):
        with pytest.raises(UndefinedLikelihoodError, match="a Flat prior cannot be sampled"):
            get_model_relations(system.model, model_args=(x,))
        return
    found = get_model_relations(system.model, model_args=(x,))
    assert "x" in found["observed"]
    assert "z" in found["sample_sample"]["x"]
    assert {"x", *layers} <= set(found["plate_sample"]["data"])


def test_parameters_are_listed() -> None:
    system, x = system_and_data("vae")
    found = get_model_relations(system.model, model_args=(x,))
    assert any("decoder" in name for name in found["param_constraint"])


@pytest.mark.parametrize("page", ["render-model.md", "autoguides.md", "from-pyro.md"])
def test_the_pages_run(page: str) -> None:
    torch.manual_seed(0)
    run_blocks((DOCS / page).read_text(), page, 1)
