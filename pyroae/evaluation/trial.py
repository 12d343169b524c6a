"""Trial runs of a program before an evaluation.

They find its number of plate dimensions, and refuse a program that mixes the data of a batch.
"""

from typing import NamedTuple

from torch import Tensor

from pyroae.errors import ProgramError
from pyroae.programs.mixing import mixed_site
from pyroae.programs.paired_traces import Traces
from pyroae.programs.particle_check import plate_nesting
from pyroae.programs.sites import Program
from pyroae.programs.trial_runs import trial_run
from pyroae.runtime.memory import is_out_of_memory

FEW = 4
"""The number of data of a trial run."""


class FirstRun(NamedTuple):
    """The trial run with which several checks begin.

    Attributes:
        args: A few data, `[n, ...]` each.
        traces: The run of model and guide on them.
    """

    args: tuple[Tensor, ...]
    traces: Traces


def first_run(model: Program, guide: Program, args: tuple[Tensor, ...], count: int) -> FirstRun:
    """Run model and guide on the first data; generators and buffers are afterwards unchanged.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The Pyro program q(z|x).
        args: Arguments of both, `[N, ...]` each.
        count: The number of data.

    Returns:
        The run.

    Raises:
        ProgramError: As of `run`.
    """
    few = tuple(a[:count] for a in args)
    return FirstRun(few, trial_run(model, guide, few, {}))


def nesting_of(
    model: Program, guide: Program, args: tuple[Tensor, ...], first: FirstRun | None = None
) -> int:
    """Find the number of plate dimensions from trial runs on a few data.

    The number of data is halved where memory runs out.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The Pyro program q(z|x).
        args: Arguments of both, `[N, ...]` each.
        first: The first run, if there is one; None runs both programs on `FEW` data.

    Returns:
        The number of plate dimensions, plus `LOOP` for a program whose particles are run in a loop.

    Raises:
        ProgramError: For a model that mixes the data of a batch, with the name of the site.
    """
    count = FEW if first is None else len(first.args[0])
    while True:
        try:
            return _nesting_of(model, guide, first or first_run(model, guide, args, count))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if count == 1:  # draws one at a time need no particle dimension
            return plate_nesting(model, guide, tuple(a[:1] for a in args), {}, compared=False)
        first, count = None, (count + 1) // 2


def _nesting_of(model: Program, guide: Program, first: FirstRun) -> int:
    few, traces = first
    site = mixed_site(model, guide, few, first=traces)
    if site is not None:
        raise ProgramError(
            f"the log-density of the site '{site}' of one datum depends on the other data of its "
            "batch: single data have no log p(x)"
        )
    return plate_nesting(model, guide, few, {}, first=traces)
