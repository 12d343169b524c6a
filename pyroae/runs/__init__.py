"""The run directory, the data of a run and its report."""

from pyroae.runs.loading import LoadedRun, load_run
from pyroae.runs.report import write_report
from pyroae.runs.run import Run

__all__ = ["LoadedRun", "Run", "load_run", "write_report"]
