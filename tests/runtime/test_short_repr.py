"""How values, rows and tables are written in the `repr` of results."""

import dataclasses
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pyroae.comparison.results import Cell, Comparison
from pyroae.data.dataset import Dataset
from pyroae.evaluation.mutual_information import Estimate
from pyroae.runtime.short_repr import HTML_ROWS, ROWS, Overview, Settings, Shown
from pyroae.runtime.short_text import FEW, WIDTH, text_of, with_error
from tests.instances import outcomes


@dataclasses.dataclass(repr=False)
class Example(Shown):
    value: Any
    hidden: int = dataclasses.field(default=0, repr=False)


@dataclasses.dataclass(repr=False)
class Table(Shown):
    count: int

    def _overview(self) -> Overview:
        rows = [(f"k̂ of {i}", f"{i / 3:.2f}") for i in range(self.count)]
        return Overview(["of tests"], rows, ("name", "value"))


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
        (Estimate(1.0, 0.1), "Estimate(1.00 ± 0.10 nats)"),
        (Cell("iwae", 8, 0), "iwae, K = 8, seed 0"),
        (torch.tensor([0.5, 1.0]), "Tensor[2] float32 (0.5, 1)"),
        (torch.zeros(FEW + 1), f"Tensor[{FEW + 1}] float32"),
        (np.array([3]), "ndarray[1] int64 (3)"),
        (torch.empty(3, device="meta"), "Tensor[3] float32 on meta"),
        (nn.Linear(3, 2), "Linear with 8 parameters"),
        (list(range(1000)), f"[{', '.join(map(str, range(18)))}, … 1000 in all]"),
        ({f"key{i}": "x" * 99 for i in range(3)}, "{key0, key1, key2}"),
        (["x" * 99] * 7, "7 × str"),
        (with_error, "with_error"),
        (partial(with_error, 1.0, unit="nats"), "with_error(1, unit='nats')"),
        (Comparison(outcomes(10)), "Comparison(60 trainings, 30 entries, N=10)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values(value: Any, text: str) -> None:
    assert text_of(value) == text
    assert repr(Example(value)) == f"Example(value={text})"


def test_a_long_text_is_cut() -> None:
    name, row = repr(Example("x" * 500)).splitlines()
    assert name == "Example"
    assert row.startswith("  value  'xxx")
    assert len(row) == WIDTH
    assert row.endswith("x…")


def test_rows_are_aligned_and_cut() -> None:
    first, columns, *rows, rest = repr(Table(500)).splitlines()[:-1]
    assert first == "Table(of tests)"
    assert columns == "  name     value"
    assert rows[:2] == ["  k̂ of 0    0.00", "  k̂ of 1    0.33"]
    assert len(rows) == ROWS - 1
    assert rest == f"  ({ROWS - 1} of 500)"
    assert repr(Table(500)).splitlines()[-1] == "  attributes  count"


def test_html_has_more_rows() -> None:
    text = Table(40)._repr_html_()
    assert text.count("<tr>") == 41
    assert " of 40)" not in text
    assert Table(500)._repr_html_().count("<tr>") == HTML_ROWS
    assert f"({HTML_ROWS - 1} of 500)" in Table(500)._repr_html_()


def test_many_settings_are_in_two_columns() -> None:
    fields = [(f"setting_{i}", int, 0) for i in range(31)]
    made: Any = dataclasses.make_dataclass("Many", fields, bases=(Settings,), repr=False)
    values = {f"setting_{i}": i + 1 for i in range(31)}
    lines = repr(made(**values)).splitlines()
    assert repr(made(setting_3=5)) == "Many(setting_3=5)"
    assert len(lines) == 17
    assert lines[1].split() == ["setting_0", "1", "setting_16", "17"]
    assert lines[-1].split() == ["setting_15", "16"]


def test_a_comparison_shows_its_ranking() -> None:
    """The 17 best of 30 entries, with the differences that `ranking` tells."""
    comparison = Comparison(outcomes())
    title, columns, *rows, more, _ = repr(comparison).splitlines()
    assert title == "Comparison(60 trainings, 30 entries, N=1000)"
    assert "NLL, nats per datum" in columns
    assert more == "  (17 of 30)"
    for row, entry in zip(rows, comparison.ranking(), strict=False):
        assert f"  {entry.entry}  " in row
        assert f"  {entry.nll.value:.3f}  " in row
        is_best = entry.entry == comparison.ranking()[0].entry
        assert row.endswith("best" if is_best else entry.from_best.verdict)


def test_a_comparison_of_few_cuts_long_names() -> None:
    """Also where entries have no seed in common, so that there are no differences."""
    one, other = Cell("iwae", 1, 0, "layers=" + "200," * 60), Cell("dreg", 8, 1)
    found = [dataclasses.replace(outcomes(10)[0], cell=cell) for cell in (one, other)]
    lines = repr(Comparison(tuple(found))).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert sum("  dreg, K = 8  " in line for line in lines) == 1
    assert sum(line.endswith("no common seed") for line in lines) == 1


def test_a_data_set_is_not_looked_through() -> None:
    data = Dataset("x", torch.tensor([[0.5, 1.0]]), (2,), np.array([3]))
    assert repr(data).splitlines()[:4] == [
        "Dataset(x, N=1, d=2)",
        "  shape       2",
        "  x           float32, 8 bytes",
        "  labels      int64",
    ]
