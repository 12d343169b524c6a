"""Tutorials and sections of other pages run as they are written, with fewer epochs."""

import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pyro
import pytest

DOCS = Path(__file__).parents[1] / "docs"
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
SECTIONS = [("results.md", "Compare models in ArviZ"), ("results.md", "Figures for a paper")]
SMALLER = (
    (r"epochs=\d+", "epochs=1"),
    (r'"epochs", \d+', '"epochs", 1'),
    (r"num_particles=\d\d+", "num_particles=30"),
    (r"replicates=\d+", "replicates=40"),
)


def run_blocks(text: str, name: str, least: int) -> None:
    """Run the Python blocks of a text one after the other; there are `least` or more."""
    mpl.use("Agg")
    pyro.clear_param_store()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= least
    code = "\n".join(blocks)
    for pattern, short in SMALLER:
        code = re.sub(pattern, short, code)
    exec(compile(code, name, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda path: path.stem)
def test_tutorials_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks(page.read_text(), page.name, 3)


@pytest.mark.parametrize(("page", "heading"), SECTIONS, ids=lambda name: name)
def test_sections_run(
    page: str, heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, found, rest = (DOCS / page).read_text().partition(f"# {heading}\n")
    assert found
    run_blocks(re.split(r"^#+ .*$", rest, maxsplit=1, flags=re.MULTILINE)[0], page, 1)
    plt.close("all")
