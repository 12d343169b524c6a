"""The plan of one annealing run: programs, settings and the cost of a block of data."""

import math
from dataclasses import dataclass

from pyroae.config import AISSettings
from pyroae.evaluation.annealing import hmc
from pyroae.programs.sites import Program

PILOT_CHAINS = 4
"""Largest number of chains of a pilot."""


GRADIENT_COST = 200_000
"""Fixed cost of one gradient, expressed as a number of elements of x that are processed."""


COMPILE_FROM = 3_000_000_000
"""Work of a run, in the unit of `Plan.work`, from which compilation costs less than it saves."""


LEAST_ROWS, MOST_ROWS = 64, 256
"""Rows of a chunk of compiled code: fewer are dominated by calls, more leave the cache."""


MOST_ELEMENTS = 2**19
"""Elements of x in a chunk of more than `LEAST_ROWS`."""


NUM_CHUNKS = 8
"""Chunks of a block at least, where they have `LEAST_ROWS`; otherwise a multiple of half of it."""


MOST_MOVES = 20
"""Largest number of transitions of one call of compiled code."""


WORK_AT_ONCE = 2**26
"""Elements of x, times leapfrog steps, that one call processes for all chunks together."""


@dataclass(frozen=True)
class Plan:
    """The operations applied to every block of data.

    Attributes:
        model: The Pyro program p(z) p(x|z).
        guide: The program q(z|x) at which the path starts; None for a path from the prior.
        settings: The path and the moves.
        nesting: The number of plate dimensions of the programs (`max_plate_nesting`).
        simulated: Draw x from the model and run the chains in reverse too (`bdmc`).
    """

    model: Program
    guide: Program | None
    settings: AISSettings
    nesting: int
    simulated: bool = False

    @property
    def pilot_chains(self) -> int:
        """The number of chains of the pilot, from 2 to `PILOT_CHAINS`."""
        return max(2, min(PILOT_CHAINS, self.settings.num_chains))

    @property
    def pilot_moves(self) -> int:
        """The number of transitions of the pilot; 0 for T = 1, a path without moves."""
        steps = self.settings.num_distributions
        return hmc.WARM_UP + steps - 1 if steps > 1 else 0

    @property
    def moves(self) -> int:
        """The number of times that a block calls its `after_move` callback."""
        steps = self.settings.num_distributions * (1 + self.simulated)
        return self.pilot_moves + steps + self.posterior_moves

    @property
    def posterior_moves(self) -> int:
        """The number of moves for posterior draws; 0 for simulated data, which have none."""
        return 0 if self.simulated else self.settings.posterior_moves

    def chunk_rows(self, num_data: int, num_elements: int) -> int:
        """Choose the number of rows in a chunk; a row is one chain of one datum.

        It depends on the configuration only, never on the number of cores.

        Args:
            num_data: N of the largest block.
            num_elements: Elements of x in a datum.

        Returns:
            A number of at least `pilot_chains`.
        """
        total = num_data * self.settings.num_chains
        most = min(MOST_ROWS, max(LEAST_ROWS, MOST_ELEMENTS // max(1, num_elements)))
        half = NUM_CHUNKS // 2
        count = max(NUM_CHUNKS, math.ceil(total / most / half) * half)
        rows = max(math.ceil(total / count), min(total, LEAST_ROWS))
        return max(rows, self.pilot_chains)

    def moves_at_once(self, num_data: int, num_elements: int) -> int:
        """Choose the number of transitions of one call of compiled code.

        Args:
            num_data: N of the largest block.
            num_elements: Elements of x in a datum.

        Returns:
            A number from 1 to `MOST_MOVES`.
        """
        settings = self.settings
        work = num_data * settings.num_chains * num_elements * settings.leapfrog_steps
        return max(1, min(MOST_MOVES, WORK_AT_ONCE // max(1, work)))

    def work(self, num_elements: int) -> int:
        """Estimate the cost of the gradients of a block, in elements of x that are processed.

        Posterior draws are left out: whether they are asked for must not change log p̂, which has
        other bits in compiled code.

        Args:
            num_elements: Elements of x in the data of the block.

        Returns:
            The cost; `COMPILE_FROM` is in the same unit.
        """
        settings = self.settings
        transitions = (settings.num_distributions - 1) * (1 + self.simulated)
        chains = transitions * (GRADIENT_COST + settings.num_chains * num_elements)
        pilot = self.pilot_moves * (GRADIENT_COST + self.pilot_chains * num_elements)
        return settings.leapfrog_steps * (pilot + chains)
