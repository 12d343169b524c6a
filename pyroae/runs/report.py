"""One HTML page per run, with its settings, results and figures."""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment
from PIL import Image

from pyroae.evaluation.labels import PICTURES, is_count, label_of, picture_of, picture_rank
from pyroae.evaluation.results import Result, shown
from pyroae.evaluation.sandwich import sandwich_of
from pyroae.objectives import parse_objective
from pyroae.runs.parts import EvaluatedPart, by_part
from pyroae.runs.run import Run
from pyroae.runs.trees import first_part
from pyroae.runtime.files import guarded

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ run.path.name }}: pyroae</title>
<style>
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
        padding: 0 1rem; color: #1b1f24 }
 table { border-collapse: collapse; margin: 1rem 0 }
 td, th { padding: .25rem .9rem .25rem 0; text-align: left }
 th { border-bottom: 1px solid #888 } td.n { text-align: right; font-variant-numeric: tabular-nums }
 img { max-width: 100%; margin: .5rem 0 1.5rem } details { margin: 1rem 0 }
 figcaption { font-weight: 600 } figure { margin: 0 } td.l { white-space: pre }
 section { border-top: 2px solid #888; margin-top: 2rem } h2 { font-size: 1.15rem }
</style>
<h1>{{ run.config.program or run.config.system }} on {{ run.config.data }}</h1>
<p>Trained with <b>{{ run.config.estimator }}</b>, K = {{ num_particles }}, {{ epochs }} epochs,
data fingerprint {{ run.fingerprint }}.</p>
{% macro picture(p) %}<figure><figcaption>{{ p.title }}</figcaption>
<img alt="{{ p.caption or p.title }}" src="data:image/png;base64,{{ p.image }}"></figure>
{% endmacro %}
{% for p in general %}{{ picture(p) }}{% endfor %}
{% for section in sections %}<section><h2>{{ section.title }}</h2>
{% if section.rows %}<table><tr><th>nats per datum</th><th>estimate</th><th>± SE</th>
<th>± SE, Monte Carlo</th><th>K</th><th>method</th></tr>
{% for r in section.rows %}<tr><td class="l">{{ label(r.name) }}</td>
<td class="n">{{ ("%.0f" if is_count(r.name) else "%.3f") | format(r.estimate) }}</td>
<td class="n">{{ "" if r.se != r.se else "%.3f" | format(r.se) }}</td>
<td class="n">{{ "" if r.monte_carlo_se != r.monte_carlo_se else
                 "%.4f" | format(r.monte_carlo_se) }}</td>
<td class="n">{{ r.num_particles or "" }}</td><td>{{ r.method }}</td></tr>
{% endfor %}</table>{% endif %}
{% if section.bounds | length > 1 %}<table><tr><th>log p(x), nats per datum</th><th>estimate</th>
<th>± 95 %, Monte Carlo</th></tr>
{% for name, value in section.bounds.items() %}<tr><td>{{ name }}</td>
<td class="n">{{ "%.3f" | format(value[0]) }}</td>
<td class="n">{{ "" if value[1] != value[1] else "%.4f" | format(value[1]) }}</td></tr>
{% endfor %}</table>{% endif %}
{% for p in section.pictures %}{{ picture(p) }}{% endfor %}</section>
{% endfor %}
<details><summary>Settings</summary><table>
{% for name, value in settings %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}</table></details>
</html>
"""


@dataclass(frozen=True)
class Shown:
    """A picture of the report.

    Attributes:
        title: Its title.
        caption: What it is of: data, split, N, weights, method and K; empty if nothing says so.
        image: The PNG, in base64.
    """

    title: str
    caption: str
    image: str


@dataclass(frozen=True)
class Section:
    """What the report says of one part of the data, with the same weights.

    Attributes:
        title: The data and the weights.
        rows: The results.
        bounds: The bounds and estimates of log p(x), as of `sandwich_of`.
        pictures: The figures.
    """

    title: str
    rows: list[Result]
    bounds: Mapping[str, tuple[float, float]]
    pictures: list[Shown]


def write_report(run: Run) -> Path:
    """Write RUN/report.html, a single file that contains its figures and refers to no other file.

    It has a section for each part of the data that was evaluated, with its results and pictures.

    Args:
        run: The run, with at least one saved state.

    Returns:
        The path of the report.

    Raises:
        RunError: If the state or the results cannot be read, or the report cannot be written.
    """
    parts = by_part(run, run.results())
    first = first_part(run.path / "evaluation.nc")
    own = set() if first is None else pictures_of(run.path / "figures", first)
    if first is not None:
        parts.setdefault(first, [])
    page = Environment(autoescape=True).from_string(_PAGE)
    text = page.render(
        run=run,
        epochs=len(run.history()),
        num_particles=parse_objective(run.config.estimator, run.config.num_particles).num_particles,
        general=_pictures(file for file in _files(run.path / "figures") if file not in own),
        sections=[
            Section(
                part.title,
                shown(rows),
                sandwich_of(rows),
                _pictures(own if part == first else _files(run.path / "figures" / part.folder)),
            )
            for part, rows in parts.items()
        ],
        label=label_of,
        is_count=is_count,
        settings=list(run.config.to_dict().items()),
    )
    path = run.path / "report.html"
    guarded(path, lambda file: file.write_text(text, encoding="utf-8"))
    return path


def pictures_of(folder: Path, part: EvaluatedPart) -> set[Path]:
    """Return the pictures of a part that are in a folder with others.

    Args:
        folder: The folder.
        part: The part; for one that is not recorded, pictures that record nothing themselves and
            have the name of a picture of an evaluation.

    Returns:
        The files.
    """
    return {
        file
        for file in _files(folder)
        if texts_in(file).get("part", "" if file.stem in PICTURES else None)
        == (part.folder if part.data else "")
    }


def texts_in(file: Path) -> dict[str, str]:
    """Read the texts that a PNG records.

    Args:
        file: The picture.

    Returns:
        Texts by name; empty for a file that is no PNG.
    """
    try:
        with Image.open(file) as image:
            return {str(name): str(text) for name, text in image.info.items()}
    except (OSError, ValueError, SyntaxError):
        return {}


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def _pictures(files: Iterable[Path]) -> list[Shown]:
    """Pictures in the order of `PICTURES`, with what they record."""
    return [
        Shown(
            picture_of(file.stem).label,
            texts_in(file).get("Description", ""),
            base64.b64encode(file.read_bytes()).decode(),
        )
        for file in sorted(files, key=lambda file: picture_rank(file.stem))
    ]
