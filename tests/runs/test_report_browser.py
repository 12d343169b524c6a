"""The reports of a run and of a study in a browser without a network."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from pyroae import plots
from pyroae.cli import main
from pyroae.commands import evaluate as command
from pyroae.objectives import BOUNDS, OBJECTIVES
from pyroae.runs.equations import equations_of, formulas_of
from pyroae.runs.page import Terms, glossary

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DOCS = Path(__file__).parents[2] / "docs"
SMALL = ["--hidden", "8", "--latent", "2", "--accelerator", "cpu"]
PROBE = """
<script>
addEventListener("load", () => {
  const high = (e) => e.getBoundingClientRect().height > 8
  const seen = {
    images: [...document.images].filter((i) => i.complete && i.naturalWidth > 50).length,
    math: [...document.querySelectorAll("math")].filter(high).length,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  }
  document.documentElement.dataset.seen = JSON.stringify(seen)
})
</script>
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of an evaluated run, with a few pictures, and that of a study."""
    folder = tmp_path_factory.mktemp("reports")
    run, study = folder / "run", folder / "study"

    def few(system: Any, data: Any, found: Any, bounds: Any, curve: Any) -> dict[str, Figure]:
        return {"sandwich": plots.sandwich(bounds), "khat": plots.khat(found.likelihood)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "figures", few)
        assert main(["train", "--epochs", "1", *SMALL, "--out", str(run)]) == 0
        few_data = ["--num-data", "8", "--num-particles", "30"]
        assert main(["evaluate", str(run), *few_data]) == 0
    compared = ["--objectives", "trace-elbo,dreg", "--num-particles", "2", "--seeds", "1"]
    scored = ["--score-particles", "30", "--score-data", "8", "--budget", "epochs:1"]
    assert main(["compare", *compared, *scored, *SMALL, "--out", str(study)]) == 0
    return {"run": run / "report.html", "study": study / "report.html"}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
@pytest.mark.parametrize(("kind", "images", "math"), [("run", 4, 1), ("study", 2, 2)])
def test_figures_and_formulas_are_visible_without_a_network(
    pages: dict[str, Path], kind: str, images: int, math: int, tmp_path: Path
) -> None:
    html = pages[kind].read_text()
    page = tmp_path / "page.html"
    page.write_text(html.replace("</body>", f"{PROBE}</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    options += ["--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"]
    options += ["--window-size=600,900", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [str(CHROMIUM), *options, "--enable-logging=stderr", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=180,
    )
    found = re.search(r'data-seen="{&quot;images&quot;:(\d+).*?:(\d+).*?:(-?\d+)}"', done.stdout)
    assert found is not None
    assert [int(number) for number in found.groups()] == [html.count("<img"), math, 0]
    assert html.count("<img") == images
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert console == []


@pytest.mark.parametrize("kind", ["run", "study"])
def test_a_page_needs_no_other_file(pages: dict[str, Path], kind: str) -> None:
    html, folder = pages[kind].read_text(), pages[kind].parent
    assert "<script" not in html
    assert "<link" not in html
    assert re.findall(r'src="(?!data:image/png;base64,)', html) == []
    links = re.findall(r'href="([^"]*)"', html)
    assert len(links) >= 4
    assert all((folder / link).exists() for link in links)  # nothing on the network either
    assert all(re.findall(r'<img alt="([^"]*)"', html))


def test_the_report_of_a_run_says_what_was_found(pages: dict[str, Path]) -> None:
    html = pages["run"].read_text()
    text = re.sub(r"<[^>]*>", "", html)
    assert re.search(r"NLL of 8 test data, .* with 30 draws per datum: \d+\.\d+ ± \d", text)
    assert "Negative ELBO:" in text
    places = [text.index(f"Figure {n}.") for n in (1, 2, 3, 4)]
    assert places == sorted(places)
    assert "Figure 1. Training curves." in text
    assert "Figure 2. Examples of the training data." in text
    assert "train 1,455, valid 162, test 180" in text
    assert "pyroae evaluate run-again --num-particles 30 --num-data 8" in text
    assert '<abbr title="Evidence lower bound, E_q[log p(x, z) − log q(z|x)].">ELBO</abbr>' in html


def test_the_report_of_a_study_is_written_again_from_its_files(pages: dict[str, Path]) -> None:
    before = pages["study"].read_text()
    pages["study"].unlink()
    assert main(["report", str(pages["study"].parent)]) == 0
    assert pages["study"].read_text() == before
    assert "trace-elbo-k2-seed0" in before
    assert "less trace-elbo@2" in before
    assert "Lowest" in before


def test_the_last_line_says_where_the_report_is(
    pages: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(pages["run"].parent)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {pages['run']}"


def test_equations_are_those_of_the_pages_of_the_estimators() -> None:
    for name in OBJECTIVES:
        objective = OBJECTIVES[name](num_particles=4)
        page = (DOCS / "estimators" / f"{name}.md").read_text()
        if name in BOUNDS or name in ("trace-elbo", "analytic-kl", "beta-elbo", "dais"):
            shown = " ".join(page.replace("&", " ").replace(r"\\", " ").split())
            for formula in formulas_of(objective, name):
                assert formula in shown, name
        assert equations_of(objective, name), name


def test_terms_have_the_definitions_of_the_glossary() -> None:
    assert len(glossary()) > 50
    assert not [text for text in glossary().values() if "[page]" in text or "$" in text]
    terms = Terms()
    assert "<abbr" not in terms.tips("NLLs of a corrective <b>")
    assert terms.tips("Rate & active units").count("<abbr") == 2
    assert list(terms.used) == ["Rate", "Active unit"]
