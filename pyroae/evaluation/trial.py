"""What evaluators ask of a program before they start: its plate dimensions, and that it does not mix data."""

from torch import Tensor

from pyroae.errors import ProgramError
from pyroae.programs.mixing import mixed_site
from pyroae.programs.sites import Program
from pyroae.programs.traces import plate_nesting
from pyroae.runtime.memory import is_out_of_memory

FEW = 4
"""Data of a trial run."""


def nesting_of(model: Program, guide: Program, args: tuple[Tensor, ...]) -> int:
    """The number of plate dimensions, plus `LOOP` for particles one by one, from trial runs on a few of the data.

    Fewer data are taken where memory does not hold these. Raises ProgramError, naming the site, for a model that mixes the data
    of a batch.
    """
    count = FEW
    while True:
        try:
            return _nesting_of(model, guide, tuple(a[:count] for a in args))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if count == 1:  # what is drawn one by one has no particle dimension
            return plate_nesting(model, guide, tuple(a[:1] for a in args), {}, compared=False)
        count //= 2


def _nesting_of(model: Program, guide: Program, few: tuple[Tensor, ...]) -> int:
    site = mixed_site(model, guide, few)
    if site is not None:
        raise ProgramError(
            f"the log-density of the site '{site}' of one datum depends on the other data of its batch: the data have no "
            "log p(x) one by one"
        )
    return plate_nesting(model, guide, few, {})
