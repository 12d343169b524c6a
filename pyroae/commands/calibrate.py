"""The command `calibrate`: whether the posterior of a run is calibrated on simulated data."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from pyroae.config import CalibrationSettings, Part
from pyroae.errors import RunError
from pyroae.evaluation.calibration import (
    Calibration,
    Quantity,
    calibration_to_datatree,
    measure_calibration,
)
from pyroae.evaluation.calibration.results import PROBABILITIES
from pyroae.plots.calibration import calibration_histograms, calibration_summary
from pyroae.plots.drawing import save
from pyroae.runs.data_of_run import part_of
from pyroae.runs.loading import own_parameters, placed, trained
from pyroae.runs.run import Run, device_of
from pyroae.runtime.files import guarded
from pyroae.runtime.processes import say

SHOWN = 40
"""The largest number of rows of the printed table."""


class Files(NamedTuple):
    """The files that the command writes.

    Attributes:
        record: Settings, verdicts and tests, .json.
        tree: The DataTree with all p-values, .nc.
        summary: The figure of all quantities, .png.
        histograms: The figure of the worst quantities, .png.
    """

    record: Path
    tree: Path
    summary: Path
    histograms: Path


@own_parameters()
def calibrate(
    run_directory: str, part: Part, settings: CalibrationSettings, overwrite: bool = False
) -> None:
    """Test the calibration of a run's posterior; print a table, and write files and figures.

    The files are RUN/calibration.json and .nc and two figures in RUN/figures; those of importance
    weights have names of their own. The data give the shape of what is simulated, the missing
    values and the covariates.

    Args:
        run_directory: The run.
        part: The data and the weights.
        settings: How the calibration is measured.
        overwrite: Whether to replace a calibration with other settings.

    Raises:
        PyroaeError: For what cannot be calibrated, and where other settings were used before.
    """
    run = Run(run_directory)
    files = _files(run, settings)
    given = {"settings": asdict(settings), "part": asdict(part)}
    if not overwrite:
        _refuse_other(files.record, given)
    dataset = part_of(run, part)
    device = device_of(run.config.accelerator)
    system: Any = trained(run, part.checkpoint, dataset).to(device)
    x = placed(system, dataset, device)
    found = measure_calibration(system.model, system.guide, x, settings=settings, progress=True)
    _write(found, files, given)
    say(f"{run.path}: {found.verdict}")
    Console().print(_table(found))
    for line in _notes(found):
        say(line)
    say(", ".join(map(str, files)))


def _files(run: Run, settings: CalibrationSettings) -> Files:
    name = "calibration" if settings.draws == "guide" else f"calibration_{settings.draws}"
    figures = run.path / "figures"
    return Files(
        run.path / f"{name}.json",
        run.path / f"{name}.nc",
        figures / f"{name}.png",
        figures / f"{name}_histograms.png",
    )


def _refuse_other(file: Path, given: dict[str, Any]) -> None:
    """Refuse to replace a calibration with other settings."""
    if not file.is_file():
        return
    try:
        before = json.loads(file.read_text())
        different = [
            f"{name} {before[kind].get(name)!r}"
            for kind, values in given.items()
            for name, value in values.items()
            if before[kind].get(name) != value
        ]
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise RunError(f"'{file}' cannot be read: give --overwrite to replace it") from None
    if different:
        raise RunError(
            f"'{file}' holds a calibration with other settings ({', '.join(different)}): give "
            "--overwrite to replace it"
        )


def _write(found: Calibration, files: Files, given: dict[str, Any]) -> None:
    record = {
        **given,
        "verdict": found.verdict,
        "is_calibrated": found.is_calibrated,
        "num_unreliable": found.num_unreliable,
        "probabilities": list(PROBABILITIES),
        "quantities": [_without_nan(asdict(quantity)) for quantity in found.quantities],
        "seconds": found.seconds,
    }
    tree = calibration_to_datatree(found)
    guarded(files.tree, lambda file: tree.to_netcdf(file, engine="h5netcdf"))
    save(calibration_summary(found), files.summary)
    save(calibration_histograms(found), files.histograms)
    text = json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False)
    guarded(files.record, lambda file: file.write_text(text))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(found: Calibration) -> Table:
    """A row for each quantity, at most `SHOWN`, those with the smallest p-values."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    intervals = " ".join(f"{100 * p:3.0f}" for p in PROBABILITIES)
    for column in ("shift", "spread, 95 %", f"{intervals} %", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict")
    quantities = list(found.quantities)
    if len(quantities) > SHOWN:
        worst = sorted(quantities, key=_least)[:SHOWN]
        quantities = [quantity for quantity in quantities if quantity in worst]
    for each in quantities:
        table.add_row(
            each.name,
            f"{each.shift.value:+.2f}",
            f"{each.spread.value:.2f} ({each.spread.low:.2f}, {each.spread.high:.2f})",
            " ".join(f"{100 * covered.value:3.0f}" for covered in each.coverage) + "  ",
            f"{_least(each):.2g}",
            each.verdict.removesuffix(" within noise"),
        )
    return table


def _least(quantity: Quantity) -> float:
    """The smallest adjusted p-value; 1 without tests."""
    return min((p for p in vars(quantity.adjusted).values() if not math.isnan(p)), default=1.0)


def _notes(found: Calibration) -> list[str]:
    """Sentences on what the table says and does not say."""
    settings, rows = found.settings, len(found.quantities)
    notes = [
        "shift, spread: mean and sd of Φ⁻¹(p), 0 and 1 where q is the posterior; spread above 1: q "
        "is too narrow; 50, 80, 95 %: how often central intervals of q hold the truth; p: the "
        "smallest of three tests, adjusted for all tests of all rows",
        "this is about data that the model simulates, and says nothing about other data",
    ]
    if rows > SHOWN:
        notes.insert(0, f"the {SHOWN} of {rows} rows with the smallest p; all are in the files")
    if settings.draws == "importance" and found.num_unreliable:
        notes.append(
            f"{found.num_unreliable} of {settings.num_simulations} simulations have fewer than 10 "
            "effective draws: their weighted draws are a poor posterior; give more --num-draws"
        )
    return notes
