"""Compute log p(x) of programs whose latents are all discrete, as a sum over all their values."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor

from pyroae.errors import DataError, ProgramError, UndefinedLikelihoodError
from pyroae.evaluation.blocks import Data, part_of, rows_of
from pyroae.evaluation.checks import check_program
from pyroae.evaluation.joint_values import JointValues, log_densities
from pyroae.evaluation.shared_states import SharedStates
from pyroae.evaluation.trial import nesting_of
from pyroae.programs.arguments import structure_of
from pyroae.programs.context import evaluating
from pyroae.programs.sites import Program
from pyroae.programs.traces import at_values, prior_of, run
from pyroae.runtime.memory import ChunkSize
from pyroae.runtime.progress import Progress
from pyroae.runtime.randomness import fork_random

LIMIT = 2**22
"""The largest number of joint values of the latents of a datum, by default."""


SHARED = 2**8
"""The number of joint values from which on it is tried whether all data share distributions."""


SLACK = 1e-3
"""The largest |log Σ p(z)| that is due to rounding, in nats."""


@torch.no_grad()
def enumerated_log_likelihood(
    model: Program,
    guide: Program | None,
    x: Data,
    *,
    limit: int = LIMIT,
    progress: bool = False,
    **kwargs: Any,
) -> Tensor:
    """Compute log p(x_n) of each datum as a sum over all values of its discrete latents.

        log p(x_n) = log Σ_z p(x_n, z),   z = (z_1, ..., z_E) in S_1 × ... × S_E

    E counts the elements of all latent sites of a datum, those of nested plates and of events
    included, and S_e are the states of an element. Sites may depend on each other. The values are
    run as particles, in chunks that fit into memory. An element under a mask adds no factor. The
    result is deterministic, with the rounding error of the program's own precision, and the
    caller's generators are left unchanged.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: A program over the same sites, of which no density is used; None for the prior.
        x: Data, `[N, ...]`, or a tuple of all arguments of model and guide, one row per datum.
        limit: The largest number of joint values, ∏ |S_e|.
        progress: Show a progress bar.
        **kwargs: Keyword arguments of model and guide.

    Returns:
        log p(x) of each datum, `[N]`, float64, in nats.

    Raises:
        UndefinedLikelihoodError: For a continuous latent site, one without a finite support, or one
            outside the data plate, with its name; for more than `limit` joint values; for several
            data without a plate.
        ProgramError: For scales and masks under which log p(x) does not exist, and for a support
            that depends on other sites.
        DataError: For a datum whose density is not finite, or zero for all values.

    >>> from pyroae import zoo
    >>> system, x = zoo.discrete_vae(4, latent=3), torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    >>> log_px = enumerated_log_likelihood(system.model, system.guide, x)
    >>> bool((log_px < 0).all()), log_px.dtype
    (True, torch.float64)
    >>> continuous = zoo.vae(4, latent=3)
    >>> enumerated_log_likelihood(continuous.model, continuous.guide, x)
    Traceback (most recent call last):
    pyroae.errors.UndefinedLikelihoodError: the latent site 'z' is continuous (Normal): a sum ...
    """
    structure = structure_of(x, kwargs, model)
    model, args = structure(model), structure.tensors
    guide = prior_of(model) if guide is None else structure(guide)
    with evaluating(model, guide), fork_random(args[0].device, 0), pyro.validation_enabled(False):
        traces = run(model, guide, part_of(args, range(1)), {})
        if traces.plate is None and len(args[0]) > 1:
            raise UndefinedLikelihoodError("no plate holds the data: single data have no log p(x)")
        values = JointValues(traces, limit)
        check_program(model, guide, args, "start")
        nesting = max(nesting_of(model, program, args) for program in (guide, prior_of(model)))
        shared = SharedStates(model, guide, args, values, nesting)
        if values.total >= SHARED and shared.is_valid():
            with Progress("enumeration", values.total, progress) as bar:
                log_pz, log_px = shared.log_sums(bar)
            _check_sum(log_pz[None], 0)
            _check_finite(log_px, 0)
            return log_px.cpu()
        total = _Sum(model, guide, args, values, nesting)
        with Progress("enumeration", len(args[0]), progress) as bar:
            parts = list(total.over_data(bar))
    return torch.cat(parts).cpu()


def check_enumerable(
    model: Program, guide: Program | None, x: Data, *, limit: int = LIMIT
) -> JointValues:
    """Refuse a program whose latents of one datum cannot be summed, without the sum.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: A program over the same sites; None for the prior.
        x: Data, `[N, ...]`, or a tuple of all arguments, of which the first datum is used.
        limit: The largest number of joint values.

    Returns:
        The joint values.

    Raises:
        UndefinedLikelihoodError: As of `enumerated_log_likelihood`.
    """
    structure = structure_of(x, {}, model)
    program, first = structure(model), part_of(structure.tensors, range(1))
    other = prior_of(program) if guide is None else structure(guide)
    silent = pyro.validation_enabled(False)
    with evaluating(program, other), fork_random(first[0].device, 0), silent:
        return JointValues(run(program, other, first, {}), limit)


class _Sum:
    """The sum over all values for all data, in blocks of data and chunks of values."""

    def __init__(
        self,
        model: Program,
        guide: Program,
        args: tuple[Tensor, ...],
        values: JointValues,
        nesting: int,
    ) -> None:
        self._programs, self._args = (model, guide), args
        self._values, self._nesting = values, nesting

    def over_data(self, bar: Progress) -> Iterator[Tensor]:
        """Yield log p(x) of one block after another, `[n]`."""
        size = ChunkSize(rows_of(self._args), "values", "one value for one datum")
        first, num_data = 0, len(self._args[0])
        while first < num_data:
            log_px = size.fitted(partial(self._of_block, first))
            _check_finite(log_px, first)
            first += len(log_px)
            bar.update(first)
            yield log_px

    def _of_block(self, first: int, size: int) -> Tensor:
        """Sum for the data from `first` on, with `size` pairs of a datum and a value at once."""
        num_data = len(self._args[0])
        block = part_of(self._args, range(first, min(first + size, num_data)))
        values, programs = self._values, self._programs
        count = min(values.total, max(1, size // len(block[0])))
        traces = run(*programs, block, {}, count, self._nesting)
        empty = torch.full((len(block[0]),), -math.inf, dtype=torch.float64)
        log_pz = log_px = empty.to(block[0].device)
        for start in range(0, values.total, count):
            index = torch.arange(start, start + count)
            at = at_values(traces, programs[0], block, {}, values.at(traces, index))
            log_prior, log_joint = (term[: values.total - start] for term in log_densities(at))
            log_pz = torch.logaddexp(log_pz, log_prior.logsumexp(0))
            log_px = torch.logaddexp(log_px, log_joint.logsumexp(0))
        masked = values.log_masked(run(*programs, block, {}))
        _check_sum(log_pz - masked, first)
        return log_px - masked


def _check_sum(log_pz: Tensor, first: int) -> None:
    """Refuse a prior whose probabilities do not sum to 1."""
    wrong = ~(log_pz.abs() < SLACK)
    if wrong.any():
        n = int(wrong.nonzero()[0])
        raise ProgramError(
            f"the probabilities of all values of the latent sites of datum {first + n} sum to "
            f"{log_pz[n].exp():.6g}, not 1: the values that a site takes depend on other sites"
        )


def _check_finite(log_px: Tensor, first: int) -> None:
    wrong = ~log_px.isfinite()
    if wrong.any():
        raise DataError(
            f"log p(x) of datum {first + int(wrong.nonzero()[0])} is not finite: its density is "
            "not a number for some value of the latents, or zero for all"
        )
