"""One HTML page per run, with its settings, results and figures."""

import base64
from pathlib import Path

from jinja2 import Environment

from pyroae.objectives import parse_objective
from pyroae.runs.run import Run
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
 figcaption { font-weight: 600 } figure { margin: 0 }
</style>
<h1>{{ run.config.program or run.config.system }} on {{ run.config.data }}</h1>
<p>Trained with <b>{{ run.config.estimator }}</b>, K = {{ num_particles }}, {{ epochs }} epochs,
data fingerprint {{ run.fingerprint }}.</p>
{% if results %}<table><tr><th>nats per datum</th><th>estimate</th><th>± SE</th><th>data</th>
<th>particles</th></tr>
{% for r in results %}<tr><td>{{ r.name.replace("_", " ") }}</td>
<td class="n">{{ "%.3f" | format(r.estimate) }}</td>
<td class="n">{{ "" if r.se != r.se else "%.3f" | format(r.se) }}</td>
<td class="n">{{ r.num_data }}</td>
<td class="n">{{ r.num_particles or "" }}</td></tr>{% endfor %}</table>{% endif %}
{% for name, image in figures %}<figure><figcaption>{{ name.replace("_", " ") }}</figcaption>
<img alt="{{ name }}" src="data:image/png;base64,{{ image }}"></figure>
{% endfor %}
<details><summary>Settings</summary><table>
{% for name, value in settings %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}</table></details>
</html>
"""


def write_report(run: Run) -> Path:
    """Write RUN/report.html, a single file that contains its figures and refers to no other file.

    Args:
        run: The run, with at least one saved state.

    Returns:
        The path of the report.

    Raises:
        RunError: If the state or the results cannot be read, or the report cannot be written.
    """
    figures = [
        (p.stem, base64.b64encode(p.read_bytes()).decode())
        for p in sorted((run.path / "figures").glob("*.png"))
    ]
    page = Environment(autoescape=True).from_string(_PAGE)
    text = page.render(
        run=run,
        epochs=len(run.history()),
        num_particles=parse_objective(run.config.estimator, run.config.num_particles).num_particles,
        results=run.results(),
        figures=figures,
        settings=list(run.config.to_dict().items()),
    )
    path = run.path / "report.html"
    guarded(path, lambda file: file.write_text(text, encoding="utf-8"))
    return path
