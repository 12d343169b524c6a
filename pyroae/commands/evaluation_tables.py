"""The tables that `pyroae evaluate` prints."""

import math
from collections.abc import Iterable

from rich import box
from rich.table import Table

from pyroae.evaluation.labels import is_count, label_of
from pyroae.evaluation.results import Result, shown
from pyroae.evaluation.sandwich import sandwich_of

WIDTH_OF_METHOD = 18  # so that words are not broken: "300 distributions"


def results_table(rows: Iterable[Result]) -> Table:
    """Return the results of one part of the data.

    Args:
        rows: Results of one or several evaluations, with the same weights.

    Returns:
        A row per figure and method, of that with the most draws.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("in nats per datum")
    for column in ("estimate", "± SE", "± MC", "K"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("method", min_width=WIDTH_OF_METHOD)
    for row in shown(rows):
        estimate = f"{row.estimate:.{0 if is_count(row.name) else 3}f}"
        count = f"{row.num_particles:,}" if row.num_particles else ""
        errors = _or_empty(row.se, 3), _or_empty(row.monte_carlo_se, 4)
        table.add_row(label_of(row.name), estimate, *errors, count, row.method)
    return table


def sandwich_table(rows: Iterable[Result]) -> Table:
    """Return the bounds and estimates of log p(x) on one part of the data, the loosest first.

    Args:
        rows: Results of one or several evaluations, with the same weights.

    Returns:
        The table.
    """
    table = Table(
        "log p(x), nats per datum", "estimate", "± 95 %, Monte Carlo", box=box.SIMPLE_HEAD
    )
    for name, (value, half) in sandwich_of(rows).items():
        table.add_row(name, f"{value:.3f}", _or_empty(half, 4))
    return table


def _or_empty(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"
