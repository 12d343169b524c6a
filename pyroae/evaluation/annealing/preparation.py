"""Checks before an annealing run, its plan, and the fingerprint of its programs and data."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyroae.config import AISSettings
from pyroae.errors import BrokenProgramError, ConfigError
from pyroae.evaluation.annealing.plan import Plan
from pyroae.evaluation.annealing.posterior import refuse_too_large
from pyroae.evaluation.checks import check_evidence, check_proposal, check_terms
from pyroae.evaluation.importance.sampler import LEAST
from pyroae.evaluation.trial import nesting_of
from pyroae.programs.context import owner_of
from pyroae.programs.paired_traces import Traces
from pyroae.programs.sites import Program, base_distribution
from pyroae.programs.traces import prior_of, run
from pyroae.runtime.memory import once
from pyroae.runtime.randomness import fork_random


@dataclass(frozen=True)
class Preparation:
    """What is known of an annealing run before its first block.

    Attributes:
        plan: The operations on every block.
        data_dims: The dimension of the data of each site, counted from the right.
        fingerprint: A hash of the arguments, parameters and buffers.
    """

    plan: Plan
    data_dims: dict[str, int]
    fingerprint: str


def prepare(
    model: Program,
    guide: Program | None,
    args: tuple[Tensor, ...],
    settings: AISSettings,
    simulated: bool,
) -> Preparation:
    """Check the programs and plan the run.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The program at which the path starts; None for a path from the prior.
        args: Arguments of the programs, `[N, ...]` each.
        settings: The path and the moves.
        simulated: Whether x is drawn from the model.

    Returns:
        The plan, the dimensions of the data and the fingerprint.

    Raises:
        UndefinedLikelihoodError: For an improper prior, or a Delta guide to start from.
        ProgramError: Naming the site, for terms under which log p(x) does not exist.
        ConfigError: Where the programs do not run in double precision, or memory does not hold one
            datum, or all posterior draws.
    """
    first = tuple(a[:1] for a in args)
    program = prior_of(model) if guide is None else guide
    with fork_random(first[0].device), Placeholders():
        try:
            traces = once(lambda: run(model, program, first, {}), LEAST)
        except (RuntimeError, BrokenProgramError) as error:
            if settings.double and "dtype" in str(error):
                raise ConfigError(
                    f"double=True: the program does not run in double precision: {error}"
                ) from error
            raise
        (check_evidence if guide is None else check_proposal)(traces)
        if not simulated:
            refuse_too_large(traces, len(args[0]), settings)
        check_terms(model, program, args, "path")
        nesting = nesting_of(model, program, args)
    programs = (model,) if guide is None else (model, guide)
    plate = traces.plate.dim if traces.plate is not None else 0
    dims = {
        name: plate - site["fn"].event_dim
        for name, site in traces.model.nodes.items()
        if site["type"] == "sample"
    }
    plan = Plan(model, guide, settings, nesting, simulated)
    return Preparation(plan, dims, fingerprint(traces, programs, args))


class Placeholders(Messenger):
    """Set sites of flat priors, which cannot be sampled, to zeros, so that checks can name them."""

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and isinstance(
            base_distribution(msg["fn"]), dist.ImproperUniform
        ):
            msg["value"], msg["done"] = torch.zeros(msg["fn"].shape()), True


def fingerprint(traces: Traces, programs: tuple[Program, ...], args: tuple[Tensor, ...]) -> str:
    """Hash the arguments, parameters and buffers of programs.

    Args:
        traces: A run of the programs, for their `pyro.param` sites.
        programs: Model and guide.
        args: Their arguments, `[N, ...]` each.

    Returns:
        The first 16 hexadecimal digits of a SHA-256 hash.
    """
    tensors = [("", arg) for arg in args]
    for owner in filter(None, map(owner_of, programs)):
        tensors += [(n, v) for n, v in owner.state_dict().items() if isinstance(v, Tensor)]
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
    """Run programs in double precision within a context.

    Their parameters and buffers, Pyro's parameter store and torch's default dtype are converted,
    and restored at the end.

    Args:
        programs: Model and guide.

    Yields:
        Nothing.
    """
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
