"""An objective on a toy: runs with given random numbers, values and gradients as vectors."""

import copy
from typing import Any

import torch
from torch import Tensor

from pyroae.objectives.base import ObjectiveBase
from pyroae.objectives.pair import Objective
from pyroae.objectives.program_gradient import ProgramGradient
from pyroae.programs.sites import Program
from pyroae.testing.toy_program import ToyProgram

REPLICATES, DATA = 64, 160
"""Sizes of a mean over draws: the number of runs, and of copies of one datum in each run."""


class Case:
    """A copy of an objective, a toy and data.

    Each run first takes the objective to its next step, so that what it draws on the host is drawn
    as in training.

    Args:
        objective: The objective; the copy has no controls yet.
        toy: The toy.
        x: Data, shape `[N, 3]`.

    Attributes:
        noise: Noise for K particles and the data, shape `[K, N, D]`.
        is_random: Whether the objective draws on the host, such as a number of particles.

    >>> from pyroae.objectives import IWAE
    >>> from pyroae.testing.gaussian import Toy
    >>> loss, gradient = Case(Objective(IWAE(2)), Toy(), torch.zeros(1, 3)).run()
    >>> gradient.shape
    torch.Size([21])
    """

    def __init__(self, objective: ObjectiveBase, toy: ToyProgram, x: Tensor) -> None:
        self.objective = fresh(objective)
        self.toy, self.x, self.is_random = toy, x, _is_random(self.objective)
        self.noise = torch.randn(objective.num_particles, len(x), toy.noise_size)
        # The first run also runs the programs to find their plates.
        with torch.random.fork_rng([]):
            self.run()

    @property
    def name(self) -> str:
        """The name of the toy."""
        return type(self.toy).__name__

    def run(
        self,
        x: Tensor | None = None,
        *,
        model: Program | None = None,
        guide: Program | None = None,
        seed: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient.

        Args:
            x: Data, shape `[N, 3]`; None for those of the case.
            model: The model; None for the toy's.
            guide: The guide; None for the toy's.
            seed: The seed of all draws, those on the host included; None to draw on.

        Returns:
            The negative bound over all data, in nats, shape `[]`, and its gradient with respect to
                the toy's parameters, shape `[P]`.
        """
        self.toy.zero_grad()
        if seed is not None:
            torch.manual_seed(seed)
        self.objective.next_step()
        loss = self.objective.loss_and_grads(
            model or self.toy.model, guide or self.toy.guide, self.x if x is None else x
        )
        return torch.tensor(loss), self.gradient()

    def gradient(self) -> Tensor:
        """Return the gradient that the toy's parameters hold, shape `[P]`."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.toy.parameters()]
        return torch.cat([g.flatten() for g in grads])

    def fix_draws(self) -> bool:
        """Fix the draws of all further runs by the noise, if they are nothing but draws of K rows.

        Returns:
            Whether that is so: not for gradients that draw in their own way, such as coupled or
                auxiliary draws, not where no draw enters, and not where runs with different seeds
                differ all the same.
        """
        pair = self.objective if isinstance(self.objective, Objective) else None
        if self.is_random or self.objective.is_noiseless:
            return False
        if pair and isinstance(pair.gradient, ProgramGradient):
            return False
        self.toy.noise = self.noise
        runs = [torch.cat([g.reshape(-1) for g in self.run(seed=seed)]) for seed in range(4)]
        if all(torch.equal(runs[0], other) for other in runs[1:]):
            return True
        self.toy.noise = None
        return False

    def replicates(self, count: int = REPLICATES) -> tuple[Tensor, Tensor]:
        """Return independent losses and gradients per datum, for data that are copies of one.

        All data of a run share what the objective draws on the host: where it does, four times as
        many runs have a quarter of the data each.

        Args:
            count: R, the number of runs.

        Returns:
            The losses, shape `[R]`, and their gradients, shape `[R, P]`, divided by the number of
                data.
        """
        x = self.x
        if self.is_random:
            count, x = 4 * count, x[: max(1, len(x) // 4)]
        rows = [self.run(x) for _ in range(count)]
        losses, gradients = (torch.stack(part) / len(x) for part in zip(*rows, strict=True))
        return losses, gradients


def fresh(objective: ObjectiveBase) -> Any:
    """Return a copy of an objective that has seen no program.

    Args:
        objective: The objective.

    Returns:
        The copy, without the controls that fit the programs of the original.
    """
    other = copy.copy(objective)
    other._controls = None
    return other


def _is_random(objective: ObjectiveBase) -> bool:
    """Whether an objective's steps differ in what it draws on the host."""
    before, variants = torch.get_rng_state(), set()
    for _ in range(30):
        objective.next_step()
        variants.add(objective.variant)
    torch.set_rng_state(before)
    return len(variants) > 1
