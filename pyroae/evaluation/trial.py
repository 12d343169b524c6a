"""What evaluators ask of a program before they start: its plate dimensions, and that it does not mix data."""

from torch import Tensor

from pyroae.errors import ProgramError
from pyroae.mixing import mixed_site
from pyroae.weights import Program, plate_nesting

FEW = 4
"""Data of a trial run."""


def nesting_of(model: Program, guide: Program, args: tuple[Tensor, ...]) -> int:
    """The number of plate dimensions, plus `LOOP` for particles one by one, from trial runs on a few of the data.

    Raises ProgramError, naming the site, for a model that mixes the data of a batch.
    """
    few = tuple(a[:FEW] for a in args)
    site = mixed_site(model, guide, few)
    if site is not None:
        raise ProgramError(
            f"the log-density of the site '{site}' of one datum depends on the other data of its batch: the data have no "
            "log p(x) one by one"
        )
    return plate_nesting(model, guide, few, {})
