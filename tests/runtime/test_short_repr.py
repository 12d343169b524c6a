"""The `repr` of every public result fits a screen, whatever the number of data."""

import dataclasses
import importlib
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyroae import Information, zoo
from pyroae.comparison.results import Cell, Comparison, Outcome, Point
from pyroae.comparison.scores import Correction, Score
from pyroae.data.dataset import Dataset
from pyroae.evaluation.importance.likelihood import log_likelihood
from pyroae.evaluation.mutual_information import Estimate
from pyroae.runtime.short_repr import FEW, WIDTH, short_repr

LINES = 25
DOCS = Path(__file__).parents[2] / "docs" / "reference"
PACKAGES = ("", ".evaluation", ".training", ".data", ".comparison", ".runs", ".studies")


def parts(hint: Any) -> Iterator[Any]:
    """An annotation and the types in it."""
    yield hint
    for inner in typing.get_args(hint):
        yield from parts(inner)


def holds_tensors(cls: Any) -> bool:
    hints = typing.get_type_hints(cls)
    types_of = [t for f in dataclasses.fields(cls) for t in parts(hints[f.name])]
    return any(
        isinstance(t, type)
        and (
            issubclass(t, Tensor | np.ndarray | nn.Module)
            or (dataclasses.is_dataclass(t) and t is not cls and holds_tensors(t))
        )
        for t in types_of
    )


@cache
def public_results() -> dict[str, Any]:
    """Dataclasses that hold tensors, of what packages export and of modules of the reference."""
    text = "\n".join(path.read_text() for path in DOCS.glob("*.md"))
    modules = {f"pyroae{name}" for name in PACKAGES} | set(
        re.findall(r"automodule:: ([\w.]+)", text)
    )
    found = {}
    for name in sorted(modules):
        module = importlib.import_module(name)
        own = [n for n, o in vars(module).items() if getattr(o, "__module__", "") == name]
        for one in getattr(module, "__all__", own):
            cls = getattr(module, one)
            public = dataclasses.is_dataclass(cls) and isinstance(cls, type) and one[0] != "_"
            if public and (holds_tensors(cls) or cls is Information):
                found[one] = cls
    return found


RESULTS = public_results()
TENSORS = ("LikelihoodEstimate", "AISEstimate", "BDMC", "Gaps", "Information", "Diagnostics")
OTHERS = ("Evaluation", "FitResult", "LocalGaussian", "Outcome", "Comparison", "Dataset", "Splits")
STUDIES = ("Score", "Correction", "Snapshots", "Variant", "TrainedCell", "LoadedStudy")


def correction() -> Correction:
    """Of every second of 1000 data."""
    found = torch.rand(500).double()
    return Correction("local", torch.arange(0, 1000, 2), found - 79.5, 0.01 * found, found < 2)


def score() -> Score:
    """Of 1000 data, corrected on half of them."""
    found = torch.rand(1000).double()
    return Score(found - 80, 0.1 * found, found, 99 * found, found < 0.9, correction())


def outcomes() -> tuple[Outcome, ...]:
    """Of ten objectives with three K and five seeds, with learning curves."""
    curve = tuple(Point(i, i, i / 3, i, 80 + i / 7) for i in range(40))
    return tuple(
        Outcome(
            Cell(f"objective-{i}", k, seed),
            Score(-80 - torch.rand(1000), torch.rand(1000)),
            {"nelbo": 1 / 3, "rate": 1 / 3, "distortion": 1 / 3, "active_units": 1 / 3},
            20, 1000, 10**9, 1 / 3, curve,
        )
        for i in range(10) for k in (1, 8, 64) for seed in range(5)
    )  # fmt: skip


VALUES: dict[Any, Callable[[], Any]] = {
    Tensor: lambda: torch.rand(1000).double() - 80,
    np.ndarray: lambda: np.zeros(1000),
    int: lambda: 123_456_789,
    float: lambda: 1000 / 3,
    bool: lambda: True,
    str: lambda: "word " * 60,
    nn.Module: lambda: nn.Sequential(*(nn.Linear(3, 3) for _ in range(60))),
    Correction: correction,
    Score: score,
    Outcome: lambda: outcomes()[0],
    Comparison: lambda: Comparison(outcomes()),
}


def large(hint: Any) -> Any:
    """A large value of a type: 1000 numbers, 60 elements, 300 characters."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in VALUES:
        return VALUES[hint]()
    if origin in (typing.Union, types.UnionType):
        return large(inner[0])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {f"name of entry {i}": large(inner[1]) for i in range(60)}
    if origin in (tuple, list):
        many = origin is list or Ellipsis in inner
        return origin(map(large, inner[:1] * 60 if many else inner))
    return filled(hint) if dataclasses.is_dataclass(hint) else "something else " * 20


def filled(cls: Any) -> Any:
    """A dataclass with large values in every field; its own checks are not run."""
    if cls in VALUES:
        return VALUES[cls]()
    hints, result = typing.get_type_hints(cls), object.__new__(cls)
    for field in dataclasses.fields(cls):
        object.__setattr__(result, field.name, large(hints[field.name]))
    return result


def test_the_results_are_found() -> None:
    assert {*TENSORS, *OTHERS, *STUDIES} <= set(RESULTS)
    assert len(RESULTS) > 25


@pytest.mark.parametrize("name", RESULTS)
def test_fits_a_screen(name: str) -> None:
    text = repr(filled(RESULTS[name]))
    lines = text.splitlines()
    assert len(lines) <= LINES, text
    assert max(map(len, lines)) <= WIDTH, text
    assert "tensor(" not in text


@pytest.mark.parametrize("name", [name for name in RESULTS if name != "Comparison"])
def test_names_its_fields(name: str) -> None:
    text = repr(filled(RESULTS[name]))
    assert text.startswith(f"{name}(")
    fields = dataclasses.fields(RESULTS[name])
    assert all(f"{field.name}=" in text for field in fields if field.repr)


def test_the_headline_has_the_likelihood_and_its_error() -> None:
    torch.manual_seed(0)
    system, x = zoo.ppca(4, 2), torch.randn(1000, 4)
    estimate = log_likelihood(system.model, system.guide, x, num_particles=50, seed=0)
    text = repr(estimate)
    assert f"\n    nll={estimate.nll:.6g} ± {estimate.nll_se:.4g},\n" in text
    assert "\n    num_particles=50,\n" in text
    assert "\n    log_px=Tensor[1000] float64,\n" in text
    assert "\n    interval=Tensor[2, 1000] float64,\n" in text
    assert "\n    smoothed=Smoothed(log_px=Tensor[1000] float64" in text


def test_the_headline_of_a_score_is_the_corrected_nll() -> None:
    one = score()
    assert f"\n    nll={one.nll:.6g},\n    error={one.error:.6g},\n" in repr(one)
    assert one.nll != pytest.approx(one.nll_uncorrected, abs=0.1)


def test_a_comparison_shows_its_ranking() -> None:
    """The 20 best of 30 entries, in 22 lines."""
    comparison = Comparison(outcomes())
    ranking = comparison.ranking()
    title, *rows, more = repr(comparison).splitlines()
    assert title == "Comparison of 150 trainings, held-out NLL, nats per datum"
    assert [row.split("  ")[-1] for row in rows] == [str(row.entry) for row in ranking[:20]]
    best = ranking[0].nll
    assert rows[0].startswith(f"  {best.value:.3f} ± {best.high - best.value:.3f}  objective-")
    assert more == "  … and 10 more"


def test_a_comparison_of_few_shows_all_and_cuts_long_names() -> None:
    """Also where entries have no seed in common, so that there are no differences."""
    one, other = Cell("iwae", 1, 0, "layers=" + "200," * 60), Cell("dreg", 8, 1)
    found = [dataclasses.replace(outcomes()[0], cell=cell) for cell in (one, other)]
    lines = repr(Comparison(tuple(found))).splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) == WIDTH
    assert sum("  dreg, K = 8" in line for line in lines) == 1


def test_a_comparison_within_a_result_is_one_line() -> None:
    text = repr(Example(Comparison(outcomes())))
    assert text == ("Example(value=Comparison of 150 trainings, held-out NLL, nats per datum …)")


def test_few_numbers_are_shown_and_many_are_not() -> None:
    data = Dataset("x", torch.tensor([[0.5, 1.0]]), (2,), np.array([3]))
    assert repr(data) == (
        "Dataset(\n    name='x',\n    x=Tensor[1, 2] float32 (0.5, 1),\n    shape=(2,),\n"
        "    labels=ndarray[1] int64 (3),\n    dynamic=False,\n)"
    )
    assert "(" not in repr(dataclasses.replace(data, x=torch.zeros(FEW + 1))).split("x=")[1][:20]


@dataclasses.dataclass
class Example:
    value: Any
    hidden: int = dataclasses.field(default=0, repr=False)

    __repr__ = short_repr()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.pi, "3.14159"),
        (math.nan, "nan"),
        (True, "True"),
        (None, "None"),
        ([], "[]"),
        ((1, 2.0), "(1, 2)"),
        ((1,), "(1,)"),
        ({}, "{}"),
        ({"a": 1.5}, "{a: 1.5}"),
        ([Estimate(1.0, 0.1)] * 3, "3 × Estimate"),
        (Cell("iwae", 8, 0), "iwae, K = 8, seed 0"),
        (torch.empty(3, device="meta"), "Tensor[3] float32 on meta"),
        (nn.Linear(3, 2), "Linear with 8 parameters"),
        (list(range(1000)), f"[{', '.join(map(str, range(18)))}, … 1000 in all]"),
        ({f"key{i}": "x" * 99 for i in range(3)}, "{key0, key1, key2}"),
        (["x" * 99] * 7, "7 × str"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values(value: Any, text: str) -> None:
    assert repr(Example(value)) == f"Example(value={text})"


def test_a_long_text_is_cut() -> None:
    name, last, closing = repr(Example("x" * 500)).splitlines()
    assert (name, closing) == ("Example(", ")")
    assert len(last) == WIDTH
    assert last.endswith("x…,")


def test_it_is_a_method_of_the_class_itself() -> None:
    methods = {name: cls.__repr__.__qualname__ for name, cls in RESULTS.items()}
    assert methods.pop("Comparison") == "Comparison.__repr__"
    assert all(method.startswith("short_repr") for method in methods.values())
