"""The command `plot`: several runs in one figure, from their evaluations."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from pyroae import plots
from pyroae.errors import ConfigError
from pyroae.plots.drawing import save
from pyroae.runs.evaluated_curves import curves_of_runs
from pyroae.runtime.processes import say

SUFFIXES = (".png", ".pdf", ".svg")
"""Formats of a figure."""


def plot(figure: str, runs: list[str], out: str | None) -> None:
    """Draw several runs in one figure.

    Args:
        figure: The name of the figure, a key of `FIGURES`.
        runs: The run directories.
        out: The file to write; by default the name of the figure with `.png`.

    Raises:
        ConfigError: For a file of another format, and for runs that cannot be compared.
        RunError: For runs without what is drawn, and a file that cannot be written.
    """
    file = Path(out or f"{figure}.png")
    if file.suffix not in SUFFIXES:
        raise ConfigError(f"--out takes a file that ends in {', '.join(SUFFIXES)}, not '{file}'")
    save(FIGURES[figure](runs), file)
    say(f"{file}: {figure} of {', '.join(runs)}")


def _rate_distortion(runs: list[str]) -> Figure:
    found = curves_of_runs(runs)
    curves = {name: each.curve for name, each in found.items()}
    num_data = next(iter(curves.values())).rate.shape[1]
    guides = {name: each.guide for name, each in found.items()}
    return plots.rate_distortion(curves, guides, f"{num_data} data, by annealing")


FIGURES: dict[str, Callable[[list[str]], Figure]] = {"rate-distortion": _rate_distortion}
"""The figures by name; `pyroae.cli.FIGURES` has their help texts."""
