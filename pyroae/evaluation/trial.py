"""Trial runs of a program before an evaluation.

They find its number of plate dimensions, and refuse a program that mixes the data of a batch.
"""

from torch import Tensor

from pyroae.errors import ProgramError
from pyroae.programs.mixing import mixed_site
from pyroae.programs.particle_check import plate_nesting
from pyroae.programs.sites import Program
from pyroae.runtime.memory import is_out_of_memory

FEW = 4
"""The number of data of a trial run."""


def nesting_of(model: Program, guide: Program, args: tuple[Tensor, ...]) -> int:
    """Find the number of plate dimensions from trial runs on a few data.

    The number of data is halved where memory runs out.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The Pyro program q(z|x).
        args: Arguments of both, `[N, ...]` each.

    Returns:
        The number of plate dimensions, plus `LOOP` for a program whose particles are run in a loop.

    Raises:
        ProgramError: For a model that mixes the data of a batch, with the name of the site.
    """
    count = FEW
    while True:
        try:
            return _nesting_of(model, guide, tuple(a[:count] for a in args))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if count == 1:  # draws one at a time need no particle dimension
            return plate_nesting(model, guide, tuple(a[:1] for a in args), {}, compared=False)
        count //= 2


def _nesting_of(model: Program, guide: Program, few: tuple[Tensor, ...]) -> int:
    site = mixed_site(model, guide, few)
    if site is not None:
        raise ProgramError(
            f"the log-density of the site '{site}' of one datum depends on the other data of its "
            "batch: single data have no log p(x)"
        )
    return plate_nesting(model, guide, few, {})
