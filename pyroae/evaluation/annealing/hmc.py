"""Hamiltonian Monte Carlo along an annealing path, over chains and data in parallel.

The pilot adapts the step sizes; the chains that are weighted use them frozen.

    log f_β(u) = log f_0(u) + β log (f_1/f_0)(u)
    f_1 = p(x, z) |dz/du|,   f_0 = p(z) |dz/du|  or  q(z|x) |dz/du|

Shapes: C chains, N data, D elements of u per datum, S segments of the path. Densities are in nats.
Nothing in this module synchronizes with the device.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

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


AfterMove = Callable[[int], None]
"""Callback after one or several transitions, with their number."""


Leapfrog = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From position, momentum and step size to position and momentum after further leapfrog steps."""


@dataclass(frozen=True)
class Noise:
    """The random numbers of one transition.

    Attributes:
        jitter: Uniform numbers for the step size of each trajectory, `[C, N]`.
        momentum: Standard normal numbers, `[C, N, D]`.
        uniform: Uniform numbers for the acceptance, `[C, N]`.
    """

    jitter: Tensor
    momentum: Tensor
    uniform: Tensor

    @classmethod
    def like(cls, point: Point) -> Self:
        """Draw the numbers for a transition from a point.

        Args:
            point: Current positions of the chains.

        Returns:
            New numbers, from torch's generator.
        """
        log_start = point.log_start
        return cls(
            torch.rand_like(log_start), torch.randn_like(point.u), torch.rand_like(log_start)
        )


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

    def further(u: Tensor, momentum: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        for _ in range(leapfrog_steps - 1):
            momentum = momentum + step * path.gradient(u, beta)
            u = u + step * momentum
        return u, momentum

    return moved(path.at, point, beta, step_size, Noise.like(point), further)


def moved(
    at: Callable[[Tensor], Point],
    point: Point,
    beta: float | Tensor,
    step_size: Tensor,
    noise: Noise,
    further: Leapfrog,
) -> tuple[Point, Tensor]:
    """Run a transition whose random numbers are given; see `transition`.

    Args:
        at: Densities and gradients at the end of a trajectory.
        point: Current positions of the chains.
        beta: β, the distribution to leave invariant.
        step_size: Leapfrog step size per datum, `[N]`.
        noise: The random numbers.
        further: All leapfrog steps after the first.

    Returns:
        The next point and Pr(accept), `[C, N]`.
    """
    spread = 1 + JITTER * (2 * noise.jitter - 1)
    step = (step_size.to(point.u.dtype) * spread)[..., None]
    before = point.log_density(beta) - 0.5 * noise.momentum.square().sum(-1)
    momentum = noise.momentum + 0.5 * step * point.gradient(beta)
    u, momentum = further(point.u + step * momentum, momentum, step)
    proposal = at(u)
    momentum = momentum + 0.5 * step * proposal.gradient(beta)
    after = proposal.log_density(beta) - 0.5 * momentum.square().sum(-1)
    usable = after.isfinite() & momentum.isfinite().all(-1)
    log_accept = torch.where(usable, after - before, -math.inf).nan_to_num(
        nan=-math.inf, posinf=0.0, neginf=-math.inf
    )
    accepted = noise.uniform.log() < log_accept
    return proposal.or_else(point, accepted), log_accept.clamp_max(0).exp()


@dataclass(frozen=True)
class Moves:
    """Consecutive transitions that are run together.

    Attributes:
        betas: β of each.
        differences: What the log-ratio is multiplied by before each, and added to the log-weight.
        rates: The rate r at which each adapts the step sizes; 0 for those that do not change.
    """

    betas: Sequence[float]
    differences: Sequence[float]
    rates: Sequence[float]

    @classmethod
    def at(cls, beta: float, count: int) -> Self:
        """Return transitions at one β that change neither log-weights nor step sizes.

        Args:
            beta: β.
            count: The number of transitions.

        Returns:
            The transitions.
        """
        return cls([beta] * count, [0.0] * count, [0.0] * count)


@dataclass(frozen=True)
class Moved:
    """Chains after several transitions.

    Attributes:
        point: Positions of the chains.
        log_weight: log w, `[C, N]`, float64, in nats.
        accept: Sum over the transitions of the mean Pr(accept) over chains, `[N]`, float64.
        log_step: log ε after the transitions, `[N]`, float64.
        total: Sum of log ε over the transitions, `[N]`, float64.
    """

    point: Point
    log_weight: Tensor
    accept: Tensor
    log_step: Tensor
    total: Tensor


class Mover(Protocol):
    """Runs transitions: one by one (`Stepwise`), or several in chunks of chains."""

    @property
    def longest(self) -> int:
        """The largest number of transitions that it runs together."""

    def move(self, point: Point, log_weight: Tensor, log_step: Tensor, moves: Moves) -> Moved:
        """Run transitions.

        Args:
            point: Current positions of the chains.
            log_weight: log w, `[C, N]`, float64, in nats.
            log_step: log ε, log of the leapfrog step size per datum, `[N]`, float64.
            moves: The transitions, at most `longest`.

        Returns:
            The chains after them.
        """


@dataclass(frozen=True)
class Stepwise:
    """Runs one transition at a time, all chains at once.

    Attributes:
        path: Densities and gradients of the path.
        settings: Leapfrog steps and target acceptance.
        longest: 1.
    """

    path: Densities
    settings: AISSettings
    longest: int = 1

    def move(self, point: Point, log_weight: Tensor, log_step: Tensor, moves: Moves) -> Moved:
        """Run one transition; see `Mover.move`."""
        ((beta,), (difference,), (rate,)) = moves.betas, moves.differences, moves.rates
        if difference:
            log_weight = log_weight + difference * point.log_ratio.double()
        steps = self.settings.leapfrog_steps
        point, accept = transition(self.path, point, beta, log_step.exp(), steps)
        mean = accept.mean(0).double()
        log_step = log_step + rate * (mean - self.settings.target_acceptance)
        return Moved(point, log_weight, mean, log_step, log_step)


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
    # Segments begin where a long path is summarized: there the code has to return anyway.
    return [i * pieces // num_distributions for i in range(1, num_distributions)]


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

    def move(self, mover: Mover, betas: Sequence[float], segment: int | None) -> None:
        """Run transitions of one segment and adapt the step sizes.

        Args:
            mover: Runs them.
            betas: β of each.
            segment: Index of the segment; None in the warm-up.
        """
        count = len(betas)
        rates = [max(0.1, (1 + self.done + i) ** -0.5) for i in range(count)]
        weight = torch.zeros_like(self.point.log_start, dtype=torch.float64)
        moves = Moves(betas, [0.0] * count, rates)
        found = mover.move(self.point, weight, self.log_step, moves)
        self.point, self.log_step = found.point, found.log_step
        if segment is not None:
            self.total[segment] += found.total
        self.done += count


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

    def move(self, mover: Mover, moves: Moves, segment: int, step_size: Tensor) -> None:
        """Run transitions of one segment.

        Args:
            mover: Runs them.
            moves: The transitions; the log-weights are those before the first.
            segment: Index of the segment.
            step_size: Leapfrog step size per datum, `[N]`.
        """
        found = mover.move(self.point, self.log_weight, step_size.log(), moves)
        self.point, self.log_weight = found.point, found.log_weight
        self.accept[segment] += found.accept


def in_runs[T](
    items: Sequence[T], longest: int, begins: Callable[[T, T], bool]
) -> Iterator[list[T]]:
    """Divide a sequence into runs of at most `longest` items.

    Args:
        items: The items.
        longest: The largest length of a run.
        begins: Whether an item, given the one before it, begins a run.

    Yields:
        The items of each run.

    >>> list(in_runs([1, 1, 1, 2, 2], 2, lambda before, item: item != before))
    [[1, 1], [1], [2, 2]]
    """
    run: list[T] = []
    for item in items:
        if run and (len(run) == longest or begins(run[-1], item)):
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def run_pilot(mover: Mover, pilot: Pilot, settings: AISSettings, after_move: AfterMove) -> Tensor:
    """Run a pilot from its current state to the end of the path.

    Args:
        mover: Runs the transitions.
        pilot: The pilot, which is updated in place.
        settings: The path and the moves.
        after_move: Called after transitions.

    Returns:
        The step sizes, `[S, N]`: exp of the mean of log ε over each segment.
    """
    betas = settings.betas
    segment_of = segments(settings.num_distributions)
    steps: list[tuple[float, int | None]] = [(betas[1], None)] * WARM_UP
    steps += zip(betas[1:-1], segment_of, strict=True)
    runs = in_runs(steps, mover.longest, lambda before, step: before[1] != step[1])
    for run in _remaining(runs, pilot.done):
        pilot.move(mover, [beta for beta, _ in run], run[0][1])
        after_move(len(run))
    counts = torch.tensor(
        [segment_of.count(s) for s in range(max(segment_of) + 1)], device=pilot.total.device
    )
    return (pilot.total / counts[:, None]).exp()


def run_chains(
    mover: Mover,
    chains: Chains,
    settings: AISSettings,
    step_sizes: Tensor,
    after_move: AfterMove,
    *,
    reverse: bool = False,
) -> None:
    """Run chains from their current state to the other end of the path.

    Args:
        mover: Runs the transitions.
        chains: The chains, which are updated in place.
        settings: The path and the moves.
        step_sizes: Leapfrog step sizes, `[S, N]`.
        after_move: Called after steps in β.
        reverse: Go from f_1 to f_0 instead of from f_0 to f_1.
    """
    betas, last = settings.betas, settings.num_distributions
    segment_of = dict(enumerate(segments(last), 1)) if last > 1 else {}
    order = range(last, -1, -1) if reverse else range(last + 1)
    row_of = {step: row for row, step in enumerate(summarized_steps(last))}
    summarized = row_of if chains.curve is not None else {}

    def begins(before: tuple[int, int], step: tuple[int, int]) -> bool:
        return step[1] in summarized or segment_of.get(before[1]) != segment_of.get(step[1])

    runs = in_runs(list(itertools.pairwise(order)), mover.longest, begins)
    for run in _remaining(runs, chains.done):
        differences = [betas[j] - betas[i] for i, j in run]
        i, j = run[0]
        if chains.curve is not None and i == 0:
            chains.summarize(0, betas[0])
        chains.weigh(differences[0])
        if chains.curve is not None and j in row_of:  # before the move, which adds noise
            chains.summarize(row_of[j], betas[j])
        chains.done += len(run)
        if j in segment_of:
            moves = Moves([betas[j] for _, j in run], [0.0, *differences[1:]], [0.0] * len(run))
            chains.move(mover, moves, segment_of[j], step_sizes[segment_of[j]])
        after_move(len(run))


def _remaining[T](runs: Iterator[list[T]], done: int) -> Iterator[list[T]]:
    """The runs without the first items."""
    for run in runs:
        skipped = min(done, len(run))
        done -= skipped
        if skipped < len(run):
            yield run[skipped:]
