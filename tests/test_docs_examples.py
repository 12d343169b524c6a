"""The tutorials run as they are written, with fewer epochs and particles; so does the example of
snapshots.
"""

import re
from pathlib import Path

import matplotlib as mpl
import pyro
import pytest

TUTORIALS = sorted((Path(__file__).parents[1] / "docs" / "tutorials").glob("*.md"))
SMALLER = (
    (r"epochs=\d+", "epochs=1"),
    (r'"epochs", \d+', '"epochs", 1'),
    (r"num_particles=\d\d+", "num_particles=30"),
    (r"replicates=\d+", "replicates=40"),
)


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda path: path.stem)
def test_tutorials_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mpl.use("Agg")
    pyro.clear_param_store()
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    code = "\n".join(blocks)
    for pattern, short in SMALLER:
        code = re.sub(pattern, short, code)
    exec(compile(code, page.name, "exec"), {"__name__": "__main__"})


def test_the_example_of_snapshots_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (TUTORIALS[0].parents[1] / "runs.md").read_text()
    section = text[text.index("## Snapshots along a training") :]
    (code, *_) = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    exec(compile(code, "runs.md", "exec"), {"__name__": "__main__"})
    assert (tmp_path / "along_training.png").is_file()
