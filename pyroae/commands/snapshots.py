"""Tables, files and figures along a training: what `--checkpoint all` writes beside the rest."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyroae import plots
from pyroae.commands.evaluation_files import PartFiles
from pyroae.evaluation.gradient_lab.slopes import SNRCurve
from pyroae.evaluation.summary import Evaluation
from pyroae.plots.drawing import rendered
from pyroae.runs.report import write_report
from pyroae.runs.run import Run
from pyroae.runtime.files import guarded
from pyroae.runtime.processes import say

COLUMNS = {
    "nelbo": "−ELBO",
    "nll": "NLL, IS",
    "nll_ais": "NLL, AIS",
    "nll_exact": "NLL, exact",
    "nll_quadrature": "NLL, quadrature",
    "inference_gap": "infer. gap",
    "amortization_gap": "amort. gap",
    "approximation_gap": "approx. gap",
    "active_units": "active units",
    "rate": "rate",
    "distortion": "distortion",
}
"""Columns of the table of evaluations, by the names of results."""


def write_evaluations(
    run: Run, files: PartFiles, evaluations: Mapping[int, Evaluation], kept: int
) -> None:
    """Print a row per snapshot; write along_training.csv, the figure, and the report anew.

    Args:
        run: The run.
        files: The files of the data.
        evaluations: The evaluation of each snapshot, and of the kept weights, by epoch.
        kept: The epoch of the kept weights.

    Raises:
        RunError: If a file cannot be written.
    """
    Console().print(_evaluations(evaluations, kept))
    for epoch, found in evaluations.items():
        bad = found.results.get("unreliable")
        if epoch != kept and bad is not None and bad.estimate:
            say(
                f"epoch {epoch}: the log p(x) of {bad.estimate:.0f} of {bad.num_data} data by "
                "importance sampling is not to be trusted"
            )
    table, figure = files.table("along_training"), files.picture("along_training")
    part = files.part
    of = f"{part.num_data:,} data of {part.data}, {part.split} part, weights along the training"
    drawn = rendered(plots.along_training(evaluations, kept), caption=of, part=part.folder)
    guarded(table, lambda file: _write_evaluations(file, evaluations, kept))
    guarded(figure, lambda file: file.write_bytes(drawn))
    write_report(run)
    say(f"{table}, {figure}")


def _evaluations(evaluations: Mapping[int, Evaluation], kept: int) -> Table:
    names = {name for found in evaluations.values() for name in found.results}
    shown = {name: label for name, label in COLUMNS.items() if name in names}
    title = "in nats per datum; *: the weights that the training kept"
    table = Table(box=box.SIMPLE_HEAD, padding=0, title=title, title_justify="left")
    table.add_column("epoch", no_wrap=True)
    for label in shown.values():
        table.add_column(label, justify="right", no_wrap=" " not in label)
    for epoch, found in evaluations.items():
        cells = (
            f"{found.results[name].estimate:.{0 if name == 'active_units' else 3}f}"
            for name in shown
        )
        table.add_row(f"{epoch} *" if epoch == kept else str(epoch), *cells)
    return table


def _write_evaluations(path: Path, evaluations: Mapping[int, Evaluation], kept: int) -> None:
    names = list(dict.fromkeys(name for found in evaluations.values() for name in found.results))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "kept", *(n for name in names for n in (name, f"{name}_se"))])
        for epoch, found in evaluations.items():
            row: list[Any] = [epoch, str(epoch == kept).lower()]
            for name in names:
                result = found.results.get(name)
                row += ["", ""] if result is None else [result.estimate, _or_empty(result.se)]
            writer.writerow(row)


def _or_empty(value: float) -> float | str:
    return "" if math.isnan(value) else value


def gradients_table(curves: Mapping[int, Mapping[str, Mapping[str, SNRCurve]]]) -> Table:
    """Return the SNR of gradient estimators, with a column per snapshot.

    Args:
        curves: Results of `measure_slopes`, by epoch.

    Returns:
        A table with a section per group of parameters; in it a row per estimator and K.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=0, title="SNR at the weights after each epoch")
    table.add_column("", overflow="fold")
    for column in ("K", *(f"epoch {epoch}" for epoch in curves)):
        table.add_column(column, justify="right")
    first = next(iter(curves.values()))
    for group in next(iter(first.values())):
        table.add_row(Text(group, style="bold"))
        for name, of_group in first.items():
            for i, k in enumerate(of_group[group].ks):
                ratios = (each[name][group].snr[i] for each in curves.values())
                cells = ("–" if math.isnan(ratio) else f"{ratio:.3g}" for ratio in ratios)
                table.add_row(Text("" if i else name), str(k), *cells)
        table.add_section()
    return table
