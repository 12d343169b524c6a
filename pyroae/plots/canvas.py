"""Where a plot is drawn: into a figure of its own, or into Axes or a SubFigure of the caller."""

from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase, SubFigure

from pyroae.errors import ConfigError

Target = Axes | Iterable[Axes] | SubFigure | Figure
"""What `ax=` of a plot accepts: as many Axes as it has panels, or a figure without Axes."""


BESIDE: dict[str, dict[str, Any]] = {
    "outside lower center": {"loc": "best", "fontsize": "small"},
    "outside right center": {"loc": "center left", "bbox_to_anchor": (1, 0.5)},
}
"""Where a legend of the figure is in Axes of the caller."""


class Picture(Figure):
    """A figure that a notebook shows, whether or not pyplot has been imported there.

    >>> Picture((1, 1))._repr_png_()[1:4]
    b'PNG'
    """

    def _repr_png_(self) -> bytes:
        file = BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


@dataclass(frozen=True)
class Canvas:
    """The panels of a plot.

    Attributes:
        panels: The Axes, row by row, `[P]`.
        parent: The figure that holds only these panels; None where the Axes are the caller's.
    """

    panels: np.ndarray
    parent: FigureBase | None

    @property
    def figure(self) -> Figure:
        """The whole figure, which contains the panels."""
        return self.panels[0].figure.figure

    def legend(self, handles: list[Any], loc: str, **style: Any) -> None:
        """Add a legend of all panels: to the figure, or to the last of the caller's Axes.

        Args:
            handles: The entries.
            loc: The place in the figure, a key of `BESIDE`.
            style: Other arguments of `legend`; `ncols` has no effect in Axes of the caller.
        """
        if self.parent is not None:
            self.parent.legend(handles=handles, loc=loc, frameon=False, **style)
            return
        axes, own = self.panels[-1], self.panels[-1].get_legend()
        style.pop("ncols", None)
        axes.legend(handles=handles, frameon=False, **{**style, **BESIDE[loc]})
        if own is not None:
            axes.add_artist(own)  # the second legend would replace the first

    def hide_inner_labels(self) -> None:
        """Remove labels between panels; Axes of the caller keep theirs."""
        if self.parent is not None:
            for axes in self.panels:
                axes.label_outer()

    def share_y(self) -> None:
        """Give all panels the same y-limits, which contain the data of each."""
        bottoms, tops = zip(*(axes.get_ylim() for axes in self.panels), strict=True)
        for axes in self.panels:
            axes.set_ylim(min(bottoms), max(tops))


def canvas(
    ax: Target | None,
    size: tuple[float, float],
    rows: int = 1,
    columns: int = 1,
    *,
    count: int | None = None,
    dpi: int = 150,
    **grid: Any,
) -> Canvas:
    """Make the panels of a plot, or take those of the caller.

    Args:
        ax: None for a new figure; one Axes; Axes in any sequence or array, row by row; or a
            SubFigure or Figure without Axes, in which the panels are made.
        size: Width and height of a new figure, in inches.
        rows: The number of rows of panels.
        columns: The number of columns of panels.
        count: The number of panels, where the last row has fewer than `columns`.
        dpi: Pixels per inch of a new figure.
        grid: Other arguments of `Figure.subplots`; they have no effect on Axes of the caller.

    Returns:
        The panels.

    Raises:
        ConfigError: For another number of Axes, a figure that has Axes already, or other objects.

    >>> canvas(None, (4, 3), 1, 2).panels.shape
    (2,)
    """
    count = rows * columns if count is None else count
    if ax is None or isinstance(ax, FigureBase):
        parent = Picture(size, dpi=dpi, layout="constrained") if ax is None else ax
        if parent.axes:
            raise ConfigError(
                f"this figure has {len(parent.axes)} Axes already: give those as ax=, or a "
                "SubFigure without any"
            )
        every = parent.subplots(rows, columns, squeeze=False, **grid).ravel()
        for axes in every[count:]:
            axes.set_axis_off()
        return Canvas(every[:count], parent)
    given = [ax] if isinstance(ax, Axes) else _flat(ax)
    if len(given) != count:
        panels = "1 panel" if count == 1 else f"{count} panels"
        raise ConfigError(
            f"this plot has {panels}: ax= takes as many Axes, or a SubFigure, not {len(given)} Axes"
        )
    return Canvas(_array(given), None)


def _flat(ax: Any) -> list[Axes]:
    """The Axes of a sequence, or of an array of any shape."""
    every = list(ax.flat if isinstance(ax, np.ndarray) else ax) if isinstance(ax, Iterable) else []
    if not every or not all(isinstance(one, Axes) for one in every):
        raise ConfigError(
            f"ax= takes matplotlib Axes, a sequence of Axes or a SubFigure, not {type(ax).__name__}"
        )
    return every


def _array(axes: list[Axes]) -> np.ndarray:
    """Axes as an array of objects, `[P]`."""
    array = np.empty(len(axes), dtype=object)
    array[:] = axes
    return array
