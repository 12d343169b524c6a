"""An objective whose number of particles is drawn on the host before each step, for tests."""

import torch

from pyroae.objectives import Bound, ObjectiveBase
from pyroae.programs.sites import Program
from pyroae.weights import reduce_log_weights


class RandomParticles(ObjectiveBase):
    """The mean log-weight of 1 to `most` particles: the ELBO.

    Args:
        cycle: Take 1, 1, 2, 3 particles in turn in place of a draw.
        most: The largest number of particles.
    """

    def __init__(self, cycle: bool = False, most: int = 3) -> None:
        super().__init__(num_particles=most)
        self.cycle, self.most, self.count = cycle, most, 2
        self.drawn: list[int] = []

    @property
    def evaluations(self) -> float:
        """The mean of 1 to `most`."""
        return (1 + self.most) / 2

    @property
    def is_elbo(self) -> bool:
        """The mean of log-weights has the ELBO as its mean."""
        return True

    @property
    def variant(self) -> tuple[str, int]:
        """The number of particles."""
        return "particles", self.count

    def next_step(self) -> None:
        """Draw the number of particles."""
        turn = (1, 1, 2, 3)[len(self.drawn) % 4]
        self.count = turn if self.cycle else int(torch.randint(1, self.most + 1, ()))
        self.drawn.append(self.count)

    def estimate(self, traces: object) -> Bound:
        """Not of one run of K particles."""
        raise NotImplementedError

    def estimate_on(self, model: Program, guide: Program, args: tuple, kwargs: dict) -> Bound:
        """Return the mean log-weight."""
        traces = self.run(model, guide, args, kwargs, self.count)
        assert traces.num_particles == self.count
        weights = reduce_log_weights(traces)
        value = weights.total(weights.log_weight.mean(0))
        return Bound(value, value)
