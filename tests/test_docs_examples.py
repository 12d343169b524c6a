"""Tutorials and sections of other pages run as they are written, with fewer epochs."""

import re
import shlex
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pyro
import pytest

from pyroae.cli import main

DOCS = Path(__file__).parents[1] / "docs"
WITH_COMMANDS = DOCS / "tutorials" / "paper.md"
TUTORIALS = sorted(set((DOCS / "tutorials").glob("*.md")) - {WITH_COMMANDS})
SECTIONS = [
    ("results.md", "Compare models in ArviZ"),
    ("results.md", "Figures for a paper"),
    ("comparison.md", "In Python"),
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


@pytest.mark.parametrize("page", [*TUTORIALS, DOCS / "predictive.md"], ids=lambda path: path.stem)
def test_tutorials_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks(page.read_text(), page.name, 3)


SMALLER_COMMANDS = (
    ("evaluations:1e6", "evaluations:2e4"),
    ("--lr 1e-3,3e-3,1e-2", "--lr 1e-3,1e-2 --score-particles 50 --score-data 30"),
    ("--hidden 50", "--hidden 8 --accelerator cpu"),
    ("--seeds 3", "--seeds 1"),
    ("--seeds 5", "--seeds 2"),
    ("--num-data 50", "--num-data 4 --num-particles 30 --num-chains 2"),
    ("--num-distributions 200", "--num-distributions 5"),
    ("--replicates 200", "--replicates 20"),
)


def test_commands_of_the_paper_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands and the Python of the page in their order, with smaller numbers."""
    monkeypatch.chdir(tmp_path)
    text = WITH_COMMANDS.read_text()
    for words_of_page, smaller in SMALLER_COMMANDS:
        assert words_of_page in text
        text = text.replace(words_of_page, smaller)
    blocks = re.findall(r"^```(python)?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert [kind for kind, _ in blocks] == ["", "", "", "python", ""]
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, "paper.md", "exec"), {"__name__": "__main__"})
            continue
        for command in block.replace("\\\n", " ").strip().splitlines():
            program, *words = shlex.split(command)
            assert program == "pyroae"
            words = [str(*tmp_path.glob(word)) if "*" in word else word for word in words]
            assert main(words) == 0, command
    table = (tmp_path / "runs" / "question" / "table.tex").read_text()
    assert table.count(r"\textbf") >= 1


@pytest.mark.parametrize(("page", "heading"), SECTIONS, ids=lambda name: name)
def test_sections_run(
    page: str, heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, found, rest = (DOCS / page).read_text().partition(f"# {heading}\n")
    assert found
    run_blocks(re.split(r"^#+ .*$", rest, maxsplit=1, flags=re.MULTILINE)[0], page, 1)
    plt.close("all")


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
