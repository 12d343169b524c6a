"""The run directory, the data of a run and its report."""

from pyroae.runs.report import write_report
from pyroae.runs.run import Run

__all__ = ["Run", "write_report"]
