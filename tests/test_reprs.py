"""What is printed of every public class fits a screen and costs little; so does its HTML."""

import importlib
import inspect
import pkgutil
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import pyroae
from pyroae.runtime.short_repr import Settings, Shown
from pyroae.runtime.short_text import width_of
from tests.instances import INSTANCES, dataset, likelihood

LINES, COLUMNS, CHARACTERS, SECONDS, LARGE = 24, 100, 20_000, 0.05, 100_000

WITHOUT = {
    "abstract, a base of choices or programs": (
        "BoundFunction", "Corruption", "EnumerableToy", "Gradient", "Hierarchy", "LatentModel",
        "Likelihood", "LocationScale", "Map", "ObjectiveBase", "Posterior", "Prior",
        "ProgramGradient", "ToyProgram",
    ),
    "a protocol": ("Amortized", "Encoding", "KnownLikelihood"),
    "an error, which shows its message": (
        "BrokenProgramError", "ConfigError", "ConformanceError", "DataError",
        "InterruptedRunError", "NonFiniteLossError", "ProgramError", "PyroaeError", "RunError",
        "UndefinedLikelihoodError",
    ),
    "a distribution, with the repr of torch": (
        "ContinuousBernoulliLogits", "Flow", "FlowDistribution", "GaussianMixture",
        "MixtureDistribution", "Observed", "OneHots",
    ),
    "a layer of a network, with the repr of torch": (
        "Atoms", "ChannelsFirst", "ChannelsLast", "Images", "Layer", "Offset", "OptimalScale",
        "Planes", "PseudoInputs", "Tied",
    ),
    "the parser of the command line": ("Parser",),
    "a tuple of tensors of a toy with a few states": ("States",),
    "a toy at its exact posterior, made of a toy": ("AtPosterior",),
    "the options of a command, which are made of names": ("Choices", "MapChoices"),
}  # fmt: skip
"""Public classes without an instance in these tests, by the reason."""


def packages() -> Iterator[ModuleType]:
    """The package, its modules, and the packages in these."""
    yield pyroae
    for one in pkgutil.iter_modules(pyroae.__path__):
        if one.name.startswith("_"):
            continue
        module = importlib.import_module(f"pyroae.{one.name}")
        yield module
        for inner in pkgutil.iter_modules(getattr(module, "__path__", ())):
            if inner.ispkg:
                yield importlib.import_module(f"{module.__name__}.{inner.name}")


@cache
def public_classes() -> dict[str, Any]:
    """Classes that packages export, and those of modules without `__all__`, by their path."""
    found: dict[Any, str] = {}
    for module in packages():
        name = module.__name__
        own = [n for n, o in vars(module).items() if getattr(o, "__module__", "") == name]
        for name in getattr(module, "__all__", own):
            one = getattr(module, name)
            if inspect.isclass(one) and not name.startswith("_"):
                found.setdefault(one, f"{one.__module__}.{one.__qualname__}")
    return {path: one for one, path in found.items()}


@cache
def made(cls: Any) -> Any:
    return INSTANCES[cls]() if cls in INSTANCES else cls()


def has_instance(cls: Any) -> bool:
    """Whether there is a maker, or the class can be made without arguments."""
    if cls in INSTANCES:
        return True
    try:
        return cls() is not None
    except TypeError:
        return False


EXEMPT = {name for names in WITHOUT.values() for name in names}
SHOWN = {
    **{path: cls for path, cls in public_classes().items() if cls.__name__ not in EXEMPT},
    **{f"{cls.__module__}.{cls.__qualname__}": cls for cls in INSTANCES},
}


def test_every_public_class_has_an_instance_or_a_reason() -> None:
    classes = public_classes()
    assert len(classes) > 150
    missing = [path for path, cls in SHOWN.items() if not has_instance(cls)]
    assert not missing, f"add an instance to tests/instances.py, or a reason here: {missing}"
    assert {cls.__name__ for cls in classes.values()} >= EXEMPT, "a reason for no class"


@pytest.mark.parametrize("path", SHOWN)
def test_fits_a_screen(path: str) -> None:
    text = repr(made(SHOWN[path]))
    lines = text.splitlines()
    assert len(lines) <= LINES, text
    assert max(map(width_of, lines)) <= COLUMNS, text
    assert " object at 0x" not in text
    assert " at 0x" not in text


WITH_HTML: dict[str, Any] = {path: cls for path, cls in SHOWN.items() if issubclass(cls, Shown)}


def test_what_has_several_lines_has_html() -> None:
    several = [
        path
        for path, cls in SHOWN.items()
        if path not in WITH_HTML and "\n" in repr(one := made(cls)) and not plain(one)
    ]
    assert not several
    assert len(WITH_HTML) > 60


def plain(one: Any) -> bool:
    """A module of torch or a choice with such a module: both print as torch does."""
    return isinstance(one, nn.Module)


@pytest.mark.parametrize("path", WITH_HTML)
def test_html(path: str) -> None:
    """It parses, is short, and leaves all colours to the page."""
    text = made(WITH_HTML[path])._repr_html_()
    assert len(text) < CHARACTERS
    root = ET.fromstring(text)  # with &lt; for <: XML refuses what is not escaped
    assert WITH_HTML[path].__name__ in "".join(root.itertext())
    assert not any(word in text for word in ("color", "background", "<style", "<script"))


class LargeOperations(TorchDispatchMode):
    """The names of operations that read a tensor of many elements."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        sizes = [one.numel() for one in args if isinstance(one, torch.Tensor)]
        if max(sizes, default=0) > LARGE:
            self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("path", WITH_HTML)
def test_is_cheap(path: str) -> None:
    """Of large tensors only means and counts are taken, and nothing is copied."""
    one = made(WITH_HTML[path])
    with LargeOperations() as used:
        repr(one)
    assert used.names <= {"mean", "sum", "any", "slice", "select", "detach"}
    times = []
    for _ in range(5):
        started = time.thread_time()
        repr(one)
        times.append(time.thread_time() - started)
    assert min(times) < SECONDS


RESULTS: dict[str, Any] = {
    path: cls
    for path, cls in WITH_HTML.items()
    if cls._overview not in (Shown._overview, Settings._overview) and is_dataclass(cls)
}


@pytest.mark.parametrize("path", RESULTS)
def test_names_its_attributes(path: str) -> None:
    """A result with rows names all its fields below them, or in the rows."""
    one = made(RESULTS[path])
    text = repr(one)
    if one._overview().rows:
        assert all(field.name in text for field in fields(one))


def test_the_likelihood_comes_first() -> None:
    estimate = likelihood()
    first, second, *_ = repr(estimate).splitlines()
    share = len(estimate.unreliable) / 2000
    nll = f"NLL {estimate.nll:.3f} ± {estimate.nll_se:.3f} nats"
    assert first == f"LikelihoodEstimate(N=2000, K=5000, {nll}, unreliable {100 * share:.0f} %)"
    assert second.split("  ")[1:2] == ["NLL"]


def test_text_is_escaped() -> None:
    name = "<b>bold</b> & <script>"
    text = replace(dataset(), name=name)._repr_html_()
    assert name in "".join(ET.fromstring(text).itertext())
    assert "<script>" not in text


def test_the_tree_of_modules_is_available() -> None:
    system = pyroae.zoo.vae(4, latent=2)
    assert system.modules_text() == nn.Module.__repr__(system)
    assert "(encoder): Sequential(" in system.modules_text()
