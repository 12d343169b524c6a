"""The run directory, the data of a run and its report."""

from typing import TYPE_CHECKING

from pyroae._exports import lazy_exports

if TYPE_CHECKING:
    from pyroae.runs.loading import LoadedRun, load_run
    from pyroae.runs.report import write_report
    from pyroae.runs.run import Run
    from pyroae.runs.snapshots import Snapshots

__all__ = ["LoadedRun", "Run", "Snapshots", "load_run", "write_report"]

__getattr__, __dir__ = lazy_exports(__name__)
