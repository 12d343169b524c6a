"""The documentation in a browser without a network: formulas are typeset."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PAGES = {"objectives.md": 20, "estimators/tvo.md": 2, "tutorials/likelihood.ipynb": 10}
"""Pages, and the least number of their formulas."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some pages, built with the settings of the site but without the reference."""
    pytest.importorskip("sphinx", reason="Sphinx is not installed: pip install 'pyroae[docs]'")
    folder = tmp_path_factory.mktemp("site")
    only = ["-D", "master_doc=objectives", "-D", f"include_patterns={','.join(PAGES)}"]
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", *only, str(DOCS), str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-2000:]
    return folder


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in PAGES:
        html = (site / page).with_suffix(".html").read_text()
        assert re.findall(r'<(?:script|link)[^>]+(?:src|href)="(?:https?:)?//', html) == []
        assert "katex.min.js" in html
    notebook = (site / "tutorials" / "likelihood.html").read_text()
    pictures = re.findall(r'<img[^>]+src="([^"]+\.png)"', notebook)
    assert len(pictures) >= 4
    assert all((site / "tutorials" / picture).is_file() for picture in pictures)
    for name in ("katex.min.js", "katex.min.css", "auto-render.min.js", "LICENSE"):
        assert (site / "_static" / "katex" / name).is_file()
    styles = (site / "_static" / "katex" / "katex.min.css").read_text()
    fonts = set(re.findall(r"url\((fonts/[\w-]+\.woff2)\)", styles))
    assert fonts
    assert all((site / "_static" / "katex" / font).is_file() for font in fonts)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
@pytest.mark.parametrize("page", PAGES)
def test_formulas_are_typeset_without_a_network(site: Path, page: str, tmp_path: Path) -> None:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path}"]
    address = (site / page).with_suffix(".html").as_uri()
    shown = subprocess.run(
        [str(CHROMIUM), *options, "--dump-dom", address],
        capture_output=True,
        text=True,
        check=True,
        timeout=180,
    ).stdout
    formulas = len(re.findall(r'class="math"', shown))
    assert formulas >= PAGES[page]
    assert len(re.findall(r'class="katex"', shown)) >= formulas
    assert "katex-error" not in shown
