"""Hamiltonian Monte Carlo along an annealing path, over chains and data in parallel.

The pilot adapts the step sizes; the chains that are weighted use them frozen.

    log f_β(u) = log f_0(u) + β log (f_1/f_0)(u)
    f_1 = p(x, z) |dz/du|,   f_0 = p(z) |dz/du|  or  q(z|x) |dz/du|

Shapes: C chains, N data, D elements of u per datum, S segments of the path. Densities are in nats.
Nothing in this module synchronizes with the device.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyroae.config import AISSettings
from pyroae.evaluation.annealing.chain_summaries import summarize, summarized_steps
from pyroae.programs.annealing_path import Densities, Point

SEGMENTS = 50
"""Largest number of segments of a path; each segment has its own step size."""


SEGMENT_STEPS = 10
"""Smallest number of transitions in a segment, where a path has more than one."""


WARM_UP = 30
"""Transitions of the pilot at β_1 before it follows the path."""


JITTER = 0.2
"""Half-width of the uniform factor 1 ± JITTER on the step size of each trajectory.

Trajectories of a fixed length can return to their starting point.
"""


AfterMove = Callable[[], None]
"""Callback after each transition."""


def transition(
    path: Densities, point: Point, beta: float, step_size: Tensor, leapfrog_steps: int
) -> tuple[Point, Tensor]:
    """Run one Hamiltonian move of all chains, which leaves f_β invariant.

        Pr(accept) = min(1, exp(H(u, r) − H(u', r'))),   H = −log f_β(u) + ½ ‖r‖²,   r ~ N(0, I)

    Momenta are drawn afresh. A proposal without finite densities and gradients is rejected. The
    move evaluates one gradient per leapfrog step: the gradient at the start comes with the point.

    Args:
        path: Densities and gradients of the path.
        point: Current positions of the chains.
        beta: β, the distribution to leave invariant.
        step_size: Leapfrog step size per datum, `[N]`.
        leapfrog_steps: Leapfrog steps of the move.

    Returns:
        The next point and Pr(accept), `[C, N]`.

    References:
        Neal (2011), MCMC using Hamiltonian dynamics.
    """
    spread = 1 + JITTER * (2 * torch.rand_like(point.log_start) - 1)
    step = (step_size.to(point.u.dtype) * spread)[..., None]
    momentum = torch.randn_like(point.u)
    before = point.log_density(beta) - 0.5 * momentum.square().sum(-1)
    momentum = momentum + 0.5 * step * point.gradient(beta)
    u = point.u + step * momentum
    for _ in range(leapfrog_steps - 1):
        momentum = momentum + step * path.gradient(u, beta)
        u = u + step * momentum
    proposal = path.at(u)
    momentum = momentum + 0.5 * step * proposal.gradient(beta)
    after = proposal.log_density(beta) - 0.5 * momentum.square().sum(-1)
    usable = after.isfinite() & momentum.isfinite().all(-1)
    log_accept = torch.where(usable, after - before, -math.inf).nan_to_num(
        nan=-math.inf, posinf=0.0, neginf=-math.inf
    )
    accepted = torch.rand_like(log_accept).log() < log_accept
    return proposal.or_else(point, accepted), log_accept.clamp_max(0).exp()


def segments(num_distributions: int) -> list[int]:
    """Assign each transition, from β_1 to β_{T−1}, to a segment of the path.

    Args:
        num_distributions: T, the number of steps from β = 0 to β = 1.

    Returns:
        The index of the segment of each of the T − 1 transitions, in order.

    >>> segments(4), len(set(segments(101))), len(set(segments(1000)))
    ([0, 0, 0], 10, 50)
    """
    count = num_distributions - 1
    pieces = max(1, min(SEGMENTS, count // SEGMENT_STEPS))
    return [i * pieces // count for i in range(count)]


@dataclass
class Pilot:
    """Chains whose step sizes follow their acceptance along the path; only these sizes are used.

        log ε ← log ε + r (Pr(accept) − target),   r = max(0.1, (1 + i)^−½)

    where i is the number of transitions so far.

    Attributes:
        point: Current positions of the chains.
        log_step: log ε, the current log step size, `[N]`.
        total: Sum of log ε over the transitions of each segment, `[S, N]`.
        done: i, the number of transitions so far.
    """

    point: Point
    log_step: Tensor
    total: Tensor
    done: int = 0

    def move(
        self, path: Densities, beta: float, segment: int | None, settings: AISSettings
    ) -> None:
        """Run one transition and adapt the step sizes.

        Args:
            path: Densities and gradients of the path.
            beta: β, the distribution of the transition.
            segment: Index of its segment; None in the warm-up.
            settings: Leapfrog steps and target acceptance.
        """
        steps, target = settings.leapfrog_steps, settings.target_acceptance
        self.point, accept = transition(path, self.point, beta, self.log_step.exp(), steps)
        rate = max(0.1, (1 + self.done) ** -0.5)
        self.log_step = self.log_step + rate * (accept.mean(0).to(self.log_step.dtype) - target)
        if segment is not None:
            self.total[segment] += self.log_step
        self.done += 1


@dataclass
class Chains:
    """Weighted chains along a path, with step sizes that do not change.

        log w = Σ_t (β_t − β_{t−1}) log (f_1/f_0)(u_{t−1})

    Attributes:
        point: Current positions of the chains.
        log_weight: log w so far, `[C, N]`, float64, in nats.
        accept: Sum over the transitions of each segment of the mean Pr(accept) over chains,
            `[S, N]`, float64.
        done: The number of steps in β so far.
        curve: Rate and distortion at B temperatures, `[B, N, 10]` (`summarize`); None where they
            are not defined: on the reverse path, and on a path from the guide.
    """

    point: Point
    log_weight: Tensor
    accept: Tensor
    done: int = 0
    curve: Tensor | None = None

    def weigh(self, difference: float) -> None:
        """Add (β_t − β_{t−1}) log (f_1/f_0)(u_{t−1}) to the log-weights.

        Args:
            difference: β_t − β_{t−1}; negative on the reverse path.
        """
        self.log_weight = self.log_weight + difference * self.point.log_ratio.double()

    def summarize(self, row: int, beta: float) -> None:
        """Write rate and distortion at the current distribution into `curve`.

        Args:
            row: The row of `curve`.
            beta: β, up to which the chains are weighted.
        """
        assert self.curve is not None
        self.curve[row] = summarize(self.log_weight, self.point.log_ratio, beta)

    def move(
        self, path: Densities, beta: float, segment: int, step_size: Tensor, leapfrog_steps: int
    ) -> None:
        """Run one transition at the current distribution.

        Args:
            path: Densities and gradients of the path.
            beta: β, the distribution of the transition.
            segment: Index of its segment.
            step_size: Leapfrog step size per datum, `[N]`.
            leapfrog_steps: Leapfrog steps of the move.
        """
        self.point, accept = transition(path, self.point, beta, step_size, leapfrog_steps)
        self.accept[segment] += accept.mean(0).double()


def run_pilot(
    path: Densities, pilot: Pilot, settings: AISSettings, after_move: AfterMove
) -> Tensor:
    """Run a pilot from its current state to the end of the path.

    Args:
        path: Densities and gradients of the path.
        pilot: The pilot, which is updated in place.
        settings: The path and the moves.
        after_move: Called after each transition.

    Returns:
        The step sizes, `[S, N]`: exp of the mean of log ε over each segment.
    """
    betas = settings.betas
    segment_of = segments(settings.num_distributions)
    steps: list[tuple[float, int | None]] = [(betas[1], None)] * WARM_UP
    steps += zip(betas[1:-1], segment_of, strict=True)
    for beta, segment in steps[pilot.done :]:
        pilot.move(path, beta, segment, settings)
        after_move()
    counts = torch.tensor(
        [segment_of.count(s) for s in range(max(segment_of) + 1)], device=pilot.total.device
    )
    return (pilot.total / counts[:, None]).exp()


def run_chains(
    path: Densities,
    chains: Chains,
    settings: AISSettings,
    step_sizes: Tensor,
    after_move: AfterMove,
    *,
    reverse: bool = False,
) -> None:
    """Run chains from their current state to the other end of the path.

    Args:
        path: Densities and gradients of the path.
        chains: The chains, which are updated in place.
        settings: The path and the moves.
        step_sizes: Leapfrog step sizes, `[S, N]`.
        after_move: Called after each step in β.
        reverse: Go from f_1 to f_0 instead of from f_0 to f_1.
    """
    betas, last = settings.betas, settings.num_distributions
    segment_of = segments(last) if last > 1 else []
    order = range(last, -1, -1) if reverse else range(last + 1)
    row_of = {step: row for row, step in enumerate(summarized_steps(last))}
    for i, j in list(itertools.pairwise(order))[chains.done :]:
        if chains.curve is not None and i == 0:
            chains.summarize(0, betas[0])
        chains.weigh(betas[j] - betas[i])
        if chains.curve is not None and j in row_of:  # before the move, which adds noise
            chains.summarize(row_of[j], betas[j])
        chains.done += 1
        if 0 < j < last:
            segment = segment_of[j - 1]
            chains.move(path, betas[j], segment, step_sizes[segment], settings.leapfrog_steps)
        after_move()
