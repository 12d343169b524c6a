"""Pyro's own tests with pyroae's objectives, where PYROAE_PYRO_TESTS names the folder `tests` of a
checkout of Pyro.
"""

import math
import os
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, ReweightedWakeSleep, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from benchmarks.pyro_objectives import REPLACED
from benchmarks.pyro_tests import FILES, both, outcome, run, tables
from pyroae.errors import ConfigError
from pyroae.objectives import IWAE, Objective, Renyi


@pytest.fixture
def pyro_tests() -> Path:
    if not (given := os.environ.get("PYROAE_PYRO_TESTS")):
        pytest.skip(
            "Pyro's tests are not here: set PYROAE_PYRO_TESTS to "
            "the folder 'tests' of a checkout of Pyro"
        )
    return Path(given)


@pytest.mark.parametrize(
    "file",
    [pytest.param(name, marks=pytest.mark.slow) for name in FILES if name != "multi_sample_elbos"],
)
def test_pyros_tests(pyro_tests: Path, file: str) -> None:
    ours, pyros = both(pyro_tests, [file])
    assert not [
        node for node, test in ours.items() if outcome(node, test, pyros.get(node)) == "other"
    ], tables(ours, pyros)
    assert any(test["outcome"] == "passed" for test in ours.values())


def test_pyros_tests_of_several_particles(pyro_tests: Path) -> None:
    ours, pyros = both(pyro_tests, ["multi_sample_elbos"])
    assert {test["outcome"] for test in ours.values()} == {"passed"}, tables(ours, pyros)


def test_a_folder_without_pyros_tests(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not the folder 'tests' of a checkout of Pyro"):
        run(tmp_path, ["tests/infer/test_gradient.py"], replace=True)


def model(x: Tensor) -> None:
    with pyro.plate("data", 1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", 1):
        pyro.sample("z", dist.Normal(0.5, 2.0))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("name", "pyros", "settings"),
    [
        ("Trace_ELBO", Trace_ELBO, {"num_particles": 4, "max_plate_nesting": 1}),
        ("TraceMeanField_ELBO", TraceMeanField_ELBO, {"num_particles": 4}),
        ("RenyiELBO", RenyiELBO, {"num_particles": 4}),
        (
            "RenyiELBO",
            RenyiELBO,
            {"alpha": 0.3, "num_particles": 4, "strict_enumeration_warning": False},
        ),
        ("ReweightedWakeSleep", ReweightedWakeSleep, {"num_particles": 4}),
    ],
)
def test_a_replaced_objective_has_the_loss_of_pyros(
    name: str, pyros: Any, settings: dict[str, Any]
) -> None:
    """On the same draws, for one datum, where bounds of a datum and of all data agree."""
    ours, x = REPLACED[name](**settings), torch.tensor([0.7])
    assert ours is not None
    ours.loss(model, guide, x)  # the trial runs
    losses = []
    for objective in (
        ours,
        pyros(**{"vectorize_particles": True, "max_plate_nesting": 1, **settings}),
    ):
        pyro.set_rng_seed(1)
        loss = objective.loss(model, guide, x)
        losses.append(float(loss[0] if isinstance(loss, tuple) else loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    assert math.isfinite(losses[0])


def test_what_is_not_replaced() -> None:
    assert REPLACED["RenyiELBO"](alpha=1) is None
    assert REPLACED["ReweightedWakeSleep"](insomnia=0.5) is None
    assert REPLACED["ReweightedWakeSleep"](model_has_params=False) is None
    assert REPLACED["Trace_ELBO"](jit_options={}) is None
    assert "TraceEnum_ELBO" not in REPLACED


def test_defaults_of_pyros_objectives() -> None:
    renyi, rws = REPLACED["RenyiELBO"](), REPLACED["ReweightedWakeSleep"]()
    assert isinstance(renyi, Objective)
    assert renyi.bound_function == Renyi(RenyiELBO().num_particles, RenyiELBO().alpha)
    assert isinstance(rws, Objective)
    assert rws.bound_function == IWAE(ReweightedWakeSleep().num_particles)


def result(outcome: str, refusal: str | None = None, error: str | None = None) -> dict[str, Any]:
    return {"outcome": outcome, "refusal": refusal, "error": error or refusal}


def test_outcomes() -> None:
    failed, passed = result("failed"), result("passed")
    other_words = result(
        "failed", "the site 'x' ...", "AssertionError: Regex pattern did not match."
    )
    assert outcome("a.py::test_a", passed, None) == "passed"
    assert outcome("a.py::test_a", other_words, passed) == "refused, as by Pyro"
    assert (
        outcome("a.py::test_a", result("failed", "the site 'x' ..."), result("xfailed"))
        == "refused, as by Pyro"
    )
    assert outcome("a.py::test_a", result("failed", "the site 'x' ..."), passed) == "refused"
    assert outcome("a.py::test_a", failed, result("failed")) == "not by Pyro either"
    assert outcome("a.py::test_mean_field_warn", failed, passed) == "on purpose"
    assert outcome("a.py::test_a[x]", failed, passed) == "other"
