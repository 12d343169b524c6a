"""One HTML page per run: its summary, training, settings, data, results and figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pyroae._version import __version__
from pyroae.evaluation.labels import PICTURES
from pyroae.evaluation.results import Result
from pyroae.evaluation.results import shown as shown_results
from pyroae.evaluation.sandwich import sandwich_of
from pyroae.objectives import parse_objective
from pyroae.runs.descriptions import (
    commands_of,
    data_of,
    model_of,
    optimization_of,
    settings_of,
    summary_of,
    trained_of,
)
from pyroae.runs.equations import equations_of, explained
from pyroae.runs.page import Shown, shown, texts_in, write_page
from pyroae.runs.parts import EvaluatedPart, by_part
from pyroae.runs.run import Run
from pyroae.runs.trees import first_part

OF_TRAINING = ("training_curves", "along_training")
"""Pictures that stand in the section of the training."""


OF_DATA = ("data",)
"""Pictures that stand in the section of the data."""


FILES = {
    "config.yaml": "all settings, the fingerprint of the data and the versions",
    "metrics.csv": "bounds, rate and distortion after each epoch, in nats per datum",
    "along_training.csv": "estimates with the weights of the snapshots, in nats per datum",
    "results.json": "every figure of the tables above, with its errors, method and K",
    "evaluation.nc": "an ArviZ DataTree: log p(x), k̂ and ESS of each datum, draws of the posterior",
    "evaluation.yaml": "the options of all evaluations",
    "evaluations": "the DataTrees of further data or weights",
    "calibration.json": "the tests of the calibration of the posterior",
    "gradients.csv": "mean, variance and signal-to-noise ratio of each gradient",
    "figures": "the figures of this page, as PNG",
    "checkpoints": "the weights",
}
"""The files of a run that its report links to."""


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
    """Write RUN/report.html, a single file that contains its figures and needs no network.

    It says what was trained on what, and with which result; a section for each part of the data
    that was evaluated has the tables and pictures.

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
    history = run.history()
    general = [file for file in _files(run.path / "figures") if file not in own]
    other = [file for file in general if file.stem not in (*OF_TRAINING, *OF_DATA)]
    objective = parse_objective(run.config.estimator, run.config.num_particles)
    title = f"{run.config.program or run.config.system} on {Path(run.config.data).stem}"
    sections = [
        Section(
            f"Evaluation: {part.title}",
            shown_results(rows),
            sandwich_of(rows),
            shown(own if part == first else _files(run.path / "figures" / part.folder)),
        )
        for part, rows in parts.items()
    ]
    if other:
        sections.append(Section("Further figures", [], {}, shown(other)))
    return write_page(
        "run.html",
        run.path / "report.html",
        run=run,
        title=title,
        about=_about(run),
        summary=summary_of(run, parts, history),
        trained=trained_of(run, history),
        training=shown(file for file in general if file.stem in OF_TRAINING),
        examples=shown(file for file in general if file.stem in OF_DATA),
        model=model_of(run),
        equations=equations_of(objective, run.config.estimator),
        num_particles=objective.num_particles,
        gradient=explained(objective),
        data=data_of(run),
        optimization=optimization_of(run.config),
        sections=sections,
        commands=commands_of(run),
        versions=", ".join(f"{name} {version}" for name, version in run.versions.items()),
        contents=[(name, text) for name, text in FILES.items() if (run.path / name).exists()],
        settings=settings_of(run.config),
        version=__version__,
    )


def _about(run: Run) -> str:
    """The name of the run, and when it was trained."""
    files = [run.checkpoint(name) for name in ("last", "previous")]
    saved = max(file.stat().st_mtime for file in files if file.is_file())
    when = datetime.fromtimestamp(saved).strftime("%Y-%m-%d")
    version = run.versions.get("pyroae", "")
    return f"Run {run.path.resolve().name}, trained on {when} with pyroae {version}"


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


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))
