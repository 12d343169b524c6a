"""The tutorials: what they store is complete and clean; `make study` runs them."""

import ast
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.scripts import script

nbformat = pytest.importorskip(
    "nbformat", reason="nbformat is not installed: pip install 'pyroae[docs]'"
)

DOCS = Path(__file__).parents[1] / "docs"
TUTORIALS = sorted((DOCS / "tutorials").glob("*.ipynb"))


@pytest.fixture(scope="module")
def notebooks() -> ModuleType:
    """docs/_notebooks.py, which runs and checks notebooks."""
    return script("docs/_notebooks.py")


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def test_there_are_six_tutorials_in_the_table_of_contents() -> None:
    index = (DOCS / "index.md").read_text()
    assert len(TUTORIALS) == 6
    assert all(f"\ntutorials/{path.stem}\n" in index for path in TUTORIALS)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_stored_outputs_are_complete_and_clean(path: Path, notebooks: ModuleType) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebooks.faults(notebook) == []
    assert path.stat().st_size < notebooks.LIMIT * 1000


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_code_parses_and_its_names_of_pyroae_exist(path: Path, notebooks: ModuleType) -> None:
    code = notebooks.code_of(read(path))
    ast.parse(code)
    names = set(notebooks.names_of_pyroae(code))
    assert len(names) >= 5
    for module, name in names:
        assert hasattr(import_module(module), name), f"{module}.{name}"


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_claims_are_asserted_and_mathematics_is_plain_latex(
    path: Path, notebooks: ModuleType
) -> None:
    """Outside of the docs nobody defines the macros of the docs."""
    notebook = read(path)
    assert notebooks.code_of(notebook).count("assert ") >= 3
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert re.findall(r"\\(?:E|KL)\b", prose) == []


def broken(**change: Any) -> Any:
    """A notebook of one cell with a picture, with a change of its output or its count."""
    picture = nbformat.v4.new_output("display_data", {"image/png": "", "text/plain": "<Figure>"})
    text = nbformat.v4.new_output("stream", name=change.get("name", "stdout"))
    text["text"] = change.get("text", "fine")
    cell = nbformat.v4.new_code_cell("1", outputs=[picture, text])
    cell.execution_count = change.get("count", 1)
    return nbformat.v4.new_notebook(cells=[cell])


def test_faults_are_found(notebooks: ModuleType) -> None:
    assert notebooks.faults(broken()) == []
    for change, words in (
        ({"count": None}, "not executed"),
        ({"name": "stderr"}, "stderr"),
        ({"text": "saved to /home/someone/runs"}, "an absolute path"),
        ({"text": "<object at 0x7f00aa11bb22>"}, "a memory address"),
        ({"text": "started 2026-11-28 05:07"}, "a time stamp"),
        ({"text": "UserWarning: no"}, "a warning"),
    ):
        (found,) = notebooks.faults(broken(**change))
        assert words in found


def test_names_of_pyroae_are_found(notebooks: ModuleType) -> None:
    code = "import pyroae\nfrom pyroae import plots\nx = pyroae.fit\nplots.khat(x)\nplots.no(1)"
    assert set(notebooks.names_of_pyroae(code)) == {
        ("pyroae", "plots"),
        ("pyroae", "fit"),
        ("pyroae.plots", "khat"),
        ("pyroae.plots", "no"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorials_run(path: Path, notebooks: ModuleType) -> None:
    """Each in a fresh kernel; what its text claims is asserted in its cells."""
    assert notebooks.faults(notebooks.execute(path)) == []
