"""How often the cells of a study were run by workers that were lost, and which could not be run."""

from pyroae.comparison.results import Cell
from pyroae.errors import RunError
from pyroae.runtime.processes import say

RETRIES = 3
"""How often a cell is run again after its worker was lost, by default."""


class Attempts:
    """The attempts to run the cells of a study in other processes.

    Args:
        retries: how often a cell is run again after its worker was lost.

    Attributes:
        refused: the cells that could not be run, with the reason.

    >>> attempts, cell = Attempts(retries=1), Cell("iwae", 8, 0)
    >>> attempts.is_run_again(cell, "it was killed by SIGKILL")
    the worker of iwae, K = 8, seed 0 was lost: it is run again, from its last checkpoint, if any
    True
    >>> attempts.is_run_again(cell, "it was killed by SIGKILL")
    False
    >>> attempts.refused[cell]
    'its worker was lost 2 times: it was killed by SIGKILL'
    """

    def __init__(self, retries: int) -> None:
        self.refused: dict[Cell, str] = {}
        self._retries = retries
        self._lost: dict[Cell, int] = {}

    def is_run_again(self, cell: Cell, reason: str) -> bool:
        """Return whether a cell is run again after its worker was lost, and tell the user.

        Args:
            cell: the cell.
            reason: how the worker was lost.

        Returns:
            Whether it was lost at most `retries` times; if not, the cell is among the refused.
        """
        lost = self._lost[cell] = self._lost.get(cell, 0) + 1
        if lost > self._retries:
            self.refused[cell] = f"its worker was lost {lost} times: {reason}"
            return False
        say(f"the worker of {cell} was lost: it is run again, from its last checkpoint, if any")
        return True

    def check(self) -> None:
        """Raise an error if cells could not be run.

        Raises:
            RunError: names the first cell and the reason.
        """
        if self.refused:
            (cell, reason), *others = self.refused.items()
            more = f"; {len(others)} more could not be run" if others else ""
            raise RunError(
                f"{cell}: {reason}{more}; finished work is saved, and --resume continues with the "
                "rest"
            )
