"""What objectives check under Pyro's validation, which is on by default: the shapes, plates and
marks of sites.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae.errors import ProgramError
from pyroae.objectives import (
    AnalyticKL,
    Objective,
    ObjectiveBase,
    Renyi,
    TraceELBO,
    parse_objective,
)

pytestmark = pytest.mark.usefixtures("float64")
X = torch.tensor([0.5, -1.0, 2.0])


def column(x: Tensor) -> None:
    """Observations of the shape [3, 1] in a plate of 3, which makes them [3, 3]."""
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z[:, None], 1.0), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", 3):
        pyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    "objective", [TraceELBO(), TraceELBO(3), AnalyticKL(), Objective(Renyi(2))]
)
def test_a_dimension_of_no_plate_is_refused(objective: ObjectiveBase) -> None:
    with pytest.raises(
        ProgramError,
        match=r"the site 'x' has the batch shape \(3, 3\), whose dimension -2 no plate declares",
    ):
        objective.loss(column, guide, X.double())


def test_a_dimension_of_no_plate_without_validation() -> None:
    """Nine terms: −log N(x_j; z_i, 1), and log q = log p."""
    x = X.double()
    pyro.set_rng_seed(1)
    z = torch.randn(3)
    pyro.set_rng_seed(1)
    with pyro.validation_enabled(False):
        loss = TraceELBO().loss(column, guide, x)
    by_hand = 9 * 0.5 * math.log(2 * math.pi) + 0.5 * ((x[None] - z[:, None]) ** 2).sum()
    assert loss == pytest.approx(by_hand.item(), rel=1e-12)


def test_a_dimension_between_plates_is_accepted() -> None:
    """A Bernoulli(½) in a plate at −2, with two elements at −1: 2 · 3 · log 2."""

    def model() -> None:
        with pyro.plate("data", 3, dim=-2):
            pyro.sample("x", dist.Bernoulli(torch.full((2,), 0.5)), obs=torch.ones(3, 2))

    assert TraceELBO().loss(model, lambda: None) == pytest.approx(6 * math.log(2), rel=1e-12)


def test_a_plate_of_the_guide_alone() -> None:
    def with_plate(x: Tensor) -> None:
        guide(x)
        with pyro.plate("date", 3):
            pass

    def model(x: Tensor) -> None:
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    with pytest.warns(UserWarning, match="Found plate statements in guide but not model: date"):
        TraceELBO().loss(model, with_plate, X.double())
    with pyro.validation_enabled(False):
        TraceELBO().loss(model, with_plate, X.double())


def coin(infer: dict[str, Any]) -> Callable[[], Any]:
    return lambda: pyro.sample("z", dist.Bernoulli(0.5), infer=infer)


def test_sites_marked_for_enumeration_are_drawn_with_a_warning() -> None:
    with pytest.warns(
        UserWarning, match="the sites z of the guide are marked for enumeration, but drawn"
    ):
        loss = parse_objective("score", 2).loss(coin({}), coin({"enumerate": "parallel"}))
    assert loss == 0
