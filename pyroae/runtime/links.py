"""Lines that say where a report is."""

import sys
from pathlib import Path


def report_line(path: Path) -> str:
    """Say where a report is: its path, and on a terminal also a link that can be clicked.

    Args:
        path: The file.

    Returns:
        The last line of a command.

    >>> report_line(Path("runs/vae/report.html"))
    'report: runs/vae/report.html'
    """
    link = f"  {path.resolve().as_uri()}" if sys.stdout.isatty() else ""
    return f"report: {path}{link}"
