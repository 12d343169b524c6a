"""Names of packages that are imported at their first use."""

import pickle
import subprocess
import sys
from importlib import import_module
from inspect import signature

import pytest

LAZY = (
    "pyroae",
    "pyroae.evaluation",
    "pyroae.evaluation.calibration",
    "pyroae.plots",
    "pyroae.runs",
)


def run(code: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize("name", LAZY)
def test_exported_names(name: str) -> None:
    package = import_module(name)
    assert set(package.__all__) <= set(dir(package))
    for exported in package.__all__:
        value = getattr(package, exported)
        if isinstance(value, type) or callable(value):
            assert pickle.loads(pickle.dumps(value)) is value
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nowhere'"):
        _ = package.nowhere
    assert not hasattr(package, "__wrapped__")
    assert not hasattr(package, "a.b")


def test_functions_are_those_of_their_modules() -> None:
    package = import_module("pyroae")
    assert "progress" in signature(package.fit).parameters
    assert package.fit.__module__ == "pyroae.training.fitting"
    assert package.evaluation.log_likelihood is package.log_likelihood


def test_all_names_and_modules_of_a_fresh_process() -> None:
    """Modules of a package are its attributes before anything else has imported them."""
    run(
        "import sys, pyroae\n"
        "pyroae.errors.PyroaeError, pyroae.config.TrainConfig\n"
        "assert 'torch' not in sys.modules\n"
        "assert pyroae.evaluation.log_likelihood is pyroae.log_likelihood\n"
        "from pyroae import *\n"
        "assert log_likelihood is pyroae.log_likelihood and zoo is pyroae.zoo"
    )
