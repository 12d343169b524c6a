"""Every test starts from the same seed, with an empty parameter store and single precision, and
leaves them so.
"""

import atexit
import gc
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch

# Tests compile many graphs with the same headers.
os.environ.setdefault("TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS", "1")

gc.disable()  # until the tests are collected: what they import stays

MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist"


@pytest.fixture(scope="module", autouse=True)
def few_to_collect() -> None:
    """Leave out of collections of garbage what is there before a module's tests: otherwise an
    eighth of the time of all tests goes into searching torch.
    """
    gc.collect()
    gc.freeze()


atexit.register(gc.unfreeze)  # libraries report at exit what is never collected


@pytest.fixture(autouse=True)
def clean_slate() -> Iterator[None]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module", autouse=True)
def blank_pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Figures are made and not drawn, which would be a fifth of the time of all tests, but in
    modules that look at pixels: these have `DRAWN = True`.
    """
    from tests.pictures import blank

    with pytest.MonkeyPatch.context() as patch:
        if not getattr(request.module, "DRAWN", False):
            patch.setattr("pyroae.plots.drawing._drawn", blank)
        yield


@pytest.fixture(scope="module")
def few_pictures() -> Iterator[None]:
    """Leave out most pictures of evaluations, of a module whose tests do not look at them."""
    from tests.pictures import leave_out_pictures

    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        yield


@pytest.fixture(scope="module")
def short_pilot() -> Iterator[None]:
    """Tune step sizes of annealing little, in modules that test its files and not its estimates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyroae.evaluation.annealing.hmc.WARM_UP", 3)
        yield


@pytest.fixture
def no_study_figures() -> Iterator[None]:
    """Leave out the figures of studies, each a PNG and a PDF."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyroae.studies.study_files._draw", lambda *_: None)
        yield


@pytest.fixture
def default_signals() -> Iterator[None]:
    """The handlers of a process in the foreground; a background job of a shell ignores SIGINT."""
    handlers: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def mnist_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of torchvision's MNIST: PYROAE_DATA, or the files beside the project, unpacked."""
    import subprocess
    import sys

    given = os.environ.get("PYROAE_DATA")
    if given:
        return Path(given)
    if not (MNIST / "unpack").is_file():
        pytest.skip(
            "MNIST is not here: set PYROAE_DATA to the folder in which torchvision keeps it"
        )
    root = tmp_path_factory.mktemp("mnist")
    subprocess.run(
        [sys.executable, str(MNIST / "unpack"), str(root)], check=True, capture_output=True
    )
    return root


def sample_of[T](values: Iterable[T], every: int) -> list[Any]:
    """One of so many values for `make test`; the others are slow, for `make study`."""
    groups = [value if isinstance(value, tuple) else (value,) for value in values]
    return [
        pytest.param(*group, marks=pytest.mark.slow if i % every else ())
        for i, group in enumerate(groups)
    ]


def pytest_collection_finish() -> None:
    """Collect garbage a thirtieth as often as by default, which saves 7 % of the time of tests."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 10, 10)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))
