"""Annealing of one block of data, in stages that can be saved after any move and resumed."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyroae.errors import ProgramError
from pyroae.evaluation.annealing.chain_summaries import COLUMNS, summarized_steps
from pyroae.evaluation.annealing.compiled import BlockArguments, PathGraphs
from pyroae.evaluation.annealing.hmc import (
    AfterMove,
    Chains,
    Mover,
    Pilot,
    Stepwise,
    run_chains,
    run_pilot,
    segments,
)
from pyroae.evaluation.annealing.plan import Plan
from pyroae.evaluation.annealing.posterior import Draws, run_draws, site_values
from pyroae.evaluation.annealing.results import BlockResult
from pyroae.evaluation.annealing.simulation import simulate
from pyroae.evaluation.simulated_data import replaced
from pyroae.programs.annealing_path import Path, Point
from pyroae.programs.paired_traces import Traces
from pyroae.programs.traces import prior_of, run
from pyroae.runtime.randomness import random_state, set_random_state


@dataclass
class Block:
    """One block of N data, in stages.

    The stages are simulation (where planned), pilot, forward chains, posterior draws (where asked
    for) and reverse chains (where planned).

    Attributes:
        plan: The operations.
        args: Arguments of the programs, `[N, ...]` each.
        result: The tensors of the stages that have finished.
        state: State of the stage that has not finished; None between stages.
        random: State of torch's generator at the snapshot that the block resumes from.
        graphs: Compiled densities and gradients; None for eager code.
        moves: The number of transitions that were made, of all stages.
    """

    plan: Plan
    args: tuple[Tensor, ...]
    result: BlockResult = field(default_factory=BlockResult)
    state: Pilot | Chains | Draws | None = None
    random: Tensor | None = None
    graphs: PathGraphs | None = None
    moves: int = 0

    def run(self, after_move: AfterMove) -> BlockResult:
        """Run all stages that have not finished.

        Args:
            after_move: Called after transitions; `snapshot` may be called there.

        Returns:
            The result of the block, with all tensors that the plan asks for.
        """
        if self.plan.simulated and self.result.u is None:
            self.result = simulate(self.plan, self.args)
        if self.result.step_sizes is None:
            self.result.step_sizes = self._pilot(after_move)
        steps = self.result.step_sizes
        if self.result.log_weights is None:
            chains = self._chains(steps, after_move)
            self.result.log_weights, self.result.accept = chains.log_weight, chains.accept
            self.result.curve = chains.curve
            if self.plan.posterior_moves:
                self.state = Draws.of(chains, self.plan.settings.posterior_draws)
        if isinstance(self.state, Draws):
            self._posterior(self.state, steps[-1], after_move)
        if self.plan.simulated and self.result.reverse is None:
            self.result.reverse = self._chains(steps, after_move, start=self.result.u).log_weight
        return self.result

    def snapshot(self) -> dict[str, Any]:
        """Return what `restore` needs to resume the block between two moves.

        Returns:
            A nest of dicts, numbers and tensors; empty where no stage has begun.
        """
        if self.state is None:
            return {}
        tensors = {n: v for n, v in vars(self.state).items() if isinstance(v, Tensor)}
        return {
            "num_data": len(self.args[0]),
            "random": random_state(self.args[0].device),
            "found": self.result.tensors(),
            "done": self.state.done,
            "moves": self.moves,
            "point": {f.name: getattr(self.state.point, f.name) for f in fields(Point)},
            "state": tensors,
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Resume from a snapshot of a block of the same data.

        Args:
            snapshot: What `snapshot` returned, on any device.
        """

        def on_device(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.to(self.args[0].device) for name, value in tensors.items()}

        self.result = BlockResult.from_tensors(on_device(snapshot["found"]))
        self.random, self.moves = snapshot["random"], snapshot.get("moves", 0)
        stages: dict[str, Callable[..., Pilot | Chains | Draws]]
        stages = {"log_step": Pilot, "log_weight": Chains, "kept": Draws}
        stage = next(stages[name] for name in snapshot["state"] if name in stages)
        point = Point(**on_device(snapshot["point"]))
        self.state = stage(point, done=snapshot["done"], **on_device(snapshot["state"]))

    def _pilot(self, after_move: AfterMove) -> Tensor:
        """Step sizes, `[S, N]`; S = 0 for a path without moves."""
        settings, device = self.plan.settings, self.args[0].device
        if settings.num_distributions == 1:
            return torch.zeros(0, len(self.args[0]), dtype=torch.float64, device=device)
        mover, path = self._mover(self.plan.pilot_chains)
        if self.state is None:
            point = path.at(path.latents.start)
            log_step = point.log_start.new_full(
                (point.u.shape[1],), point.u.shape[2] ** -0.25, dtype=torch.float64
            ).log()
            num_segments = segments(settings.num_distributions)[-1] + 1
            self.state = Pilot(point, log_step, log_step.new_zeros(num_segments, len(log_step)))
        self._restore_random_state()
        assert isinstance(self.state, Pilot)
        step_sizes = run_pilot(mover, self.state, settings, after_move)
        self.state = None
        return step_sizes

    def _chains(
        self, step_sizes: Tensor, after_move: AfterMove, start: Tensor | None = None
    ) -> Chains:
        """Chains at the end of the path; in reverse from `start` `[1, N, D]`, where it is given."""
        mover, path = self._mover(self.plan.settings.num_chains)
        if self.state is None:
            drawn = path.latents.start
            point = path.at(drawn if start is None else start.expand(drawn.shape).contiguous())
            weight = torch.zeros_like(point.log_start, dtype=torch.float64)
            self.state = Chains(point, weight, torch.zeros_like(step_sizes))
            if start is None and self.plan.guide is None:
                rows = len(summarized_steps(self.plan.settings.num_distributions))
                self.state.curve = weight.new_zeros(rows, weight.shape[1], len(COLUMNS))
        self._restore_random_state()
        chains = self.state
        assert isinstance(chains, Chains)
        run_chains(
            mover, chains, self.plan.settings, step_sizes, after_move, reverse=start is not None
        )
        self.state = None
        return chains

    def _posterior(self, draws: Draws, step_size: Tensor, after_move: AfterMove) -> None:
        """Move the resampled chains at β = 1, and keep their values by site."""
        mover, path = self._mover(self.plan.settings.num_chains)
        self._restore_random_state()
        run_draws(mover, draws, self.plan.settings, step_size, after_move)
        self.result.posterior = site_values(path.latents, draws.kept)
        self.result.posterior_accept, self.state = draws.accept, None

    def _restore_random_state(self) -> None:
        if self.random is not None:
            set_random_state(self.random, self.args[0].device)
            self.random = None

    def _mover(self, num_chains: int) -> tuple[Mover, Path]:
        """What runs the transitions, and the path, whose latents have draws from f_0."""
        path = self._path(num_chains)
        if self.graphs is None or self.plan.settings.num_distributions == 1:  # no transitions
            return Stepwise(path, self.plan.settings), path
        return self.graphs.mover(path, self._arguments, num_chains), path

    def _path(self, num_chains: int) -> Path:
        path = self._arguments.path(self.plan, num_chains)
        found, expected = path.latents.num_data, len(self.args[0])
        if found != expected:
            raise ProgramError(
                f"the program has {found} data where its arguments have {expected}: "
                "it has no data plate"
            )
        _check_guide(path.latents._traces)
        return path

    @property
    def _arguments(self) -> BlockArguments:
        if not self.plan.simulated:
            return BlockArguments(self.args)
        data, traces = self.result.x, self._traces
        plate = 0 if traces.plate is None else traces.plate.dim
        dims = {name: plate - traces.model.nodes[name]["fn"].event_dim for name in data}
        guide_args = None
        if self.plan.guide is not None:
            hints = {"use": 'start="guide"', "instead": 'use start="prior"'}
            guide_args = replaced(self.args, traces, data, **hints)
        return BlockArguments(self.args, guide_args, data, dims)

    @cached_property
    def _traces(self) -> Traces:
        return run(self.plan.model, prior_of(self.plan.model), self.args, {}, 1, self.plan.nesting)


def _check_guide(traces: Traces) -> None:
    """Raise ProgramError for a site of the guide that the path cannot move."""
    latent = {name for name, _ in traces.sites(traces.model, observed=False)}
    for name, _ in traces.sites(traces.guide, observed=False):
        if name not in latent:
            raise ProgramError(
                f"the guide's site '{name}' is no latent site of the model: "
                "its density at other z is not known"
            )
