"""A block of data taken along an annealing path; what is left of it at any move can be kept, to go on from."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyroae.errors import ConfigError, ProgramError
from pyroae.evaluation.annealing import hmc
from pyroae.evaluation.annealing.compiled import Given, PathGraphs
from pyroae.evaluation.annealing.hmc import (
    Chains,
    Densities,
    Path,
    Pilot,
    Point,
    run_chains,
    run_pilot,
    segments,
)
from pyroae.evaluation.checks import is_one
from pyroae.evaluation.latents import Latents
from pyroae.programs.context import owner_of
from pyroae.programs.masks import where_unmasked
from pyroae.programs.sites import Program, base_distribution
from pyroae.programs.traces import Traces, prior_of, run
from pyroae.runtime.randomness import random_state, set_random_state

PILOT_CHAINS = 4
"""The most chains of a pilot."""


GRADIENT = 200_000
"""Numbers of x that can be gone through in the time that a gradient takes beside them."""


COMPILE_FROM = 3_000_000_000
"""The work from which on compiled graphs earn back what they take to make."""


@dataclass(frozen=True)
class Plan:
    """What is done with every block. betas: β_0 = 0 to β_T = 1. guide: None for a path from the prior. simulated: whether x
    is drawn from the model and the way back taken too."""

    model: Program
    guide: Program | None
    num_chains: int
    betas: list[float]
    leapfrog_steps: int
    target_acceptance: float
    nesting: int
    simulated: bool = False

    @property
    def pilot_chains(self) -> int:
        """Chains of the pilot."""
        return max(2, min(PILOT_CHAINS, self.num_chains))

    @property
    def pilot_moves(self) -> int:
        """Transitions of the pilot."""
        distributions = len(self.betas) - 1
        return hmc.WARM_UP + distributions - 1 if distributions > 1 else 0

    @property
    def moves(self) -> int:
        """Calls of `after` that a block makes."""
        return self.pilot_moves + (len(self.betas) - 1) * (1 + self.simulated)

    def work(self, numbers: int) -> int:
        """What the gradients of a block take, in numbers of x that are gone through; `numbers` are in the data of the block."""
        transitions = (len(self.betas) - 2) * (1 + self.simulated)
        chains = transitions * (GRADIENT + self.num_chains * numbers)
        return self.leapfrog_steps * (
            self.pilot_moves * (GRADIENT + self.pilot_chains * numbers) + chains
        )


class Placeholders(Messenger):
    """Zeros for a flat prior's site, which cannot be drawn, so that it can be refused by name."""

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and isinstance(
            base_distribution(msg["fn"]), dist.ImproperUniform
        ):
            msg["value"], msg["done"] = torch.zeros(msg["fn"].shape()), True


@dataclass
class Block:
    """One block: x is drawn where it is to be, then a pilot finds step sizes, then chains go forward, and back if x was drawn.

    found: the tensors that are finished: x/SITE, z/SITE, u, step_sizes `[S, N]`, accept `[S, N]`, log_weights `[C, N]`, and
    reverse `[C, N]`, log-weights of the way back. state: of the stage that is not. random: of torch's generator, where a
    stage was left. graphs: of densities and gradients, where they are compiled.
    """

    plan: Plan
    args: tuple[Tensor, ...]
    found: dict[str, Tensor] = field(default_factory=dict)
    state: Pilot | Chains | None = None
    random: Tensor | None = None
    graphs: PathGraphs | None = None

    def run(self, after: Callable[[], None]) -> dict[str, Tensor]:
        """Everything that is left to do."""
        plan = self.plan
        if self.state is None:
            self._go_on()
        if plan.simulated and "u" not in self.found:
            self.found |= simulate(plan, self.args)
        if "step_sizes" not in self.found:
            self.found["step_sizes"] = self._pilot(after)
        if "log_weights" not in self.found:
            chains = self._chains(after, reverse=False)
            self.found |= {"log_weights": chains.log_weight, "accept": chains.accept}
        if plan.simulated and "reverse" not in self.found:
            self.found["reverse"] = self._chains(after, reverse=True).log_weight
        return self.found

    def left(self) -> dict[str, Any]:
        """What is needed to go on with the block, between two moves; nothing where no stage has begun."""
        if self.state is None:
            return {}
        numbers = {
            f.name: v
            for f in fields(self.state)
            if isinstance(v := getattr(self.state, f.name), Tensor)
        }
        return {
            "num_data": len(self.args[0]),
            "random": random_state(self.args[0].device),
            "found": dict(self.found),
            "done": self.state.done,
            "point": {f.name: getattr(self.state.point, f.name) for f in fields(Point)},
            "state": numbers,
        }

    def go_on_from(self, left: dict[str, Any]) -> None:
        """The inverse of `left`."""

        def here(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.to(self.args[0].device) for name, value in tensors.items()}

        self.found, self.random = here(left["found"]), left["random"]
        kind = Pilot if "log_step" in left["state"] else Chains
        self.state = kind(Point(**here(left["point"])), done=left["done"], **here(left["state"]))

    def _pilot(self, after: Callable[[], None]) -> Tensor:
        plan = self.plan
        if len(plan.betas) == 2:
            return torch.zeros(
                0, len(self.args[0]), dtype=torch.float64, device=self.args[0].device
            )
        path, start = self._densities(plan.pilot_chains)
        if self.state is None:
            point = path.at(start)
            log_step = point.log_start.new_full(
                (point.u.shape[1],), point.u.shape[2] ** -0.25, dtype=torch.float64
            ).log()
            pieces = segments(len(plan.betas) - 1)[-1] + 1
            self.state = Pilot(point, log_step, log_step.new_zeros(pieces, len(log_step)))
        self._go_on()
        assert isinstance(self.state, Pilot)
        steps = run_pilot(
            path, self.state, plan.betas, plan.leapfrog_steps, plan.target_acceptance, after
        )
        self.state = None
        return steps

    def _chains(self, after: Callable[[], None], *, reverse: bool) -> Chains:
        (path, start), steps = self._densities(self.plan.num_chains), self.found["step_sizes"]
        if self.state is None:
            point = path.at(self.found["u"].expand(start.shape).contiguous() if reverse else start)
            weight = torch.zeros_like(point.log_start, dtype=torch.float64)
            self.state = Chains(point, weight, torch.zeros_like(steps))
        self._go_on()
        chains = self.state
        assert isinstance(chains, Chains)
        run_chains(
            path, chains, self.plan.betas, steps, self.plan.leapfrog_steps, after, reverse=reverse
        )
        self.state = None
        return chains

    def _go_on(self) -> None:
        if self.random is not None:
            set_random_state(self.random, self.args[0].device)
            self.random = None

    def _densities(self, num_chains: int) -> tuple[Densities, Tensor]:
        """Of the path, and where chains start that are drawn anew."""
        path = self._path(num_chains)
        densities = path if self.graphs is None else self.graphs.of(path, self._given, num_chains)
        return densities, path.latents.start

    def _path(self, num_chains: int) -> Path:
        path = self._given.path(self.plan.model, self.plan.guide, num_chains, self.plan.nesting)
        found, given = path.latents.num_data, len(self.args[0])
        if found != given:
            raise ProgramError(
                f"the program has {found} data where its arguments have {given}: it has no plate of them"
            )
        _check_guide(path.latents._traces)
        return path

    @property
    def _given(self) -> Given:
        if not self.plan.simulated:
            return Given(self.args)
        data = {name[2:]: value for name, value in self.found.items() if name.startswith("x/")}
        traces = self._traces
        first = 0 if traces.plate is None else traces.plate.dim
        dims = {name: first - traces.model.nodes[name]["fn"].event_dim for name in data}
        return Given(
            self.args,
            None if self.plan.guide is None else replaced(self.args, traces, data),
            data,
            dims,
        )

    @cached_property
    def _traces(self) -> Traces:
        return run(self.plan.model, prior_of(self.plan.model), self.args, {}, 1, self.plan.nesting)


def _check_guide(traces: Traces) -> None:
    """Raises ProgramError for a site of the guide that the path cannot move."""
    latent = {name for name, _ in traces.sites(traces.model, observed=False)}
    for name, _ in traces.sites(traces.guide, observed=False):
        if name not in latent:
            raise ProgramError(
                f"the guide's site '{name}' is no latent site of the model: its density at other z is not known"
            )


def simulate(plan: Plan, args: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """z and x drawn from the model given the arguments: z/SITE, x/SITE as the program has them, and z as u `[1, N, D]`.

    Raises ProgramError, naming it, for a site that cannot be drawn: a factor, or one that is scaled.
    """
    traces = run(plan.model, prior_of(plan.model), args, {}, 1, plan.nesting)
    observed = dict(traces.sites(traces.model, observed=True))
    drawn = [
        name
        for name, site in observed.items()
        if traces.is_local(site) and not site["infer"].get("_deterministic")
    ]
    for name in drawn:
        if isinstance(base_distribution(observed[name]["fn"]), dist.Unit):
            raise ProgramError(f"the site '{name}' is a factor: no x can be drawn from the model")
        if not is_one(traces.exponent(observed[name])):
            raise ProgramError(
                f"the site '{name}' is scaled: what is drawn from the model is not from its density"
            )
    fixed = {name: site["value"] for name, site in observed.items() if not traces.is_local(site)}
    program = poutine.condition(poutine.uncondition(plan.model), data=fixed)
    nodes = poutine.trace(program).get_trace(*args).nodes
    given = {name: observed[name]["value"] for name in drawn}  # stays where it is masked
    x = {
        name: where_unmasked(name, observed[name], nodes[name]["value"].detach(), given[name])
        for name in drawn
    }
    z = {
        name: nodes[name]["value"].detach()
        for name, _ in traces.sites(traces.model, observed=False)
    }
    model = poutine.condition(plan.model, data=x)
    u = Latents(model, prior_of(model), args, 1, plan.nesting).flatten(z)
    return {"u": u, **{f"x/{n}": v for n, v in x.items()}, **{f"z/{n}": v for n, v in z.items()}}


def replaced(
    args: tuple[Tensor, ...], traces: Traces, data: dict[str, Tensor]
) -> tuple[Tensor, ...]:
    """The arguments with what was drawn in place of what was observed. Raises ConfigError where no one argument is that."""
    seen = list(args)
    for name, value in data.items():
        given = traces.model.nodes[name]["value"]
        same = [
            i
            for i, a in enumerate(args)
            if a.numel() == given.numel() and _equal(a.reshape(given.shape).to(given), given)
        ]
        if len(same) != 1:
            raise ConfigError(
                f"start=\"guide\" needs the guide to see what is drawn for the site '{name}', but its observed value is "
                f'{len(same) or "none"} of the arguments; use start="prior"'
            )
        seen[same[0]] = value.reshape(args[same[0]].shape).to(args[same[0]])
    return tuple(seen)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether all values are the same, NaN included."""
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def fingerprint(traces: Traces, programs: tuple[Program, ...], args: tuple[Tensor, ...]) -> str:
    """SHA-256, shortened, of the arguments and of the parameters and buffers of the programs."""
    tensors = [("", arg) for arg in args]
    for program in programs:
        owner = owner_of(program)
        tensors += (
            []
            if owner is None
            else [(n, v) for n, v in owner.state_dict().items() if isinstance(v, Tensor)]
        )
    for trace in (traces.model, traces.guide):
        tensors += [
            (name, site["value"]) for name, site in trace.nodes.items() if site["type"] == "param"
        ]
    digest = hashlib.sha256()
    for name, value in tensors:
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(
            value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]


@contextmanager
def in_double(programs: tuple[Program, ...]) -> Iterator[None]:
    """A context in which the parameters and buffers of the programs, and the default type, are double precision."""
    tensors: dict[int, Tensor] = {id(t): t for t in pyro.get_param_store()._params.values()}
    for owner in filter(None, map(owner_of, programs)):
        tensors |= {id(t): t for t in [*owner.parameters(), *owner.buffers()]}
    single = [(t, t.data) for t in tensors.values() if t.is_floating_point()]
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        for tensor, data in single:
            tensor.data = data.double()
        yield
    finally:
        torch.set_default_dtype(default)
        for tensor, data in single:
            tensor.data = data
