"""Sections of pages run as they are written, with fewer epochs."""

import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pyro
import pytest

DOCS = Path(__file__).parents[1] / "docs"
SECTIONS = [
    ("results.md", "Compare models in ArviZ"),
    ("results.md", "Figures for a paper"),
    pytest.param("comparison.md", "In Python", marks=pytest.mark.slow),
    ("posteriors.md", "Posteriors"),
    ("hierarchies.md", "In Python"),
    ("sparse.md", "In Python"),
    ("calibration.md", "In Python"),
    ("own-data.md", "Tables"),
    ("own-data.md", "Images"),
    ("scikit-learn.md", "Pipelines and searches"),
    ("runs.md", "Loggers"),
    ("ais.md", "Rate and distortion"),
    ("own-choice.md", "Objectives that learn"),
    ("own-choice.md", "Pictures"),
]
SMALLER = (
    (r"epochs=\d+", "epochs=1"),
    (r'"epochs", \d+', '"epochs", 1'),
    (r"num_particles=\d\d+", "num_particles=30"),
    (r"num_draws=\d+", "num_draws=12"),
    (r"replicates=\d+", "replicates=40"),
    (r"ks=\(1, 8\)", "ks=(2,)"),
    (r"seeds=\(0, 1(, 2)?\)", "seeds=(0,)"),
    (r'Budget\("epochs", 1\),\n\)', 'Budget("epochs", 1), scoring=pyroae.Scoring(100, 30)\n)'),
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


def test_the_page_of_predictive_checks_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks((DOCS / "predictive.md").read_text(), "predictive.md", 3)


@pytest.mark.parametrize(("page", "heading"), SECTIONS, ids=lambda name: name)
def test_sections_run(
    page: str, heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, found, rest = (DOCS / page).read_text().partition(f"# {heading}\n")
    assert found
    run_blocks(re.split(r"^#+ .*$", rest, maxsplit=1, flags=re.MULTILINE)[0], page, 1)
    plt.close("all")


@pytest.mark.slow
def test_the_example_of_snapshots_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "runs.md").read_text()
    section = text[text.index("## Snapshots along a training") :]
    (code, *_) = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    exec(compile(code, "runs.md", "exec"), {"__name__": "__main__"})
    assert (tmp_path / "along_training.png").is_file()


def test_the_page_of_conditions_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks((DOCS / "conditions.md").read_text(), "conditions.md", 3)
