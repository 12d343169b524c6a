"""Sums over discrete latents with one decoder evaluation per joint value, shared by all data.

Where the distributions of a model at given latents do not depend on the data, they are computed for
one datum and all joint values z_s, and their densities at all data. For a Bernoulli likelihood with
logits l_s, and for a Normal one, these are matrix products:

    log p(x_n | z_s) = Σ_d x_nd l_sd − Σ_d softplus(l_sd)
    log p(x_n | z_s) = Σ_d x_nd μ_sd/σ²_sd − ½ Σ_d x²_nd/σ²_sd − ½ Σ_d [μ²_sd/σ²_sd + log 2πσ²_sd]

The Bernoulli's products are in the precision of the program, relative to the mean logits, whose
term is in double precision; those of the Normal, and all sums over values, are in double precision.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal
from torch.nn.functional import softplus

from pyroae.evaluation import blocks
from pyroae.evaluation.blocks import part_of, rows_of
from pyroae.evaluation.joint_values import JointValues, log_densities
from pyroae.programs.masks import mask_of, observed_value
from pyroae.programs.paired_traces import Traces
from pyroae.programs.particles import LOOP
from pyroae.programs.sites import Program, Site
from pyroae.programs.traces import at_values, run
from pyroae.runtime.memory import ChunkSize
from pyroae.runtime.progress import Progress

TRIED = 4
"""The number of joint values at which the shared form is compared, for all data."""


ROUNDING = 50
"""The relative difference that is due to rounding, in machine precisions."""


@dataclass(frozen=True)
class Term:
    """The log-likelihood of all pairs: log p(x_n | z_s) = dense_ns + row_s + column_n.

    Attributes:
        dense: Computes the part `[n, S]` for a slice of the data.
        row: The part that all data share, `[S]`, float64.
        column: The part that all joint values share, `[N]`, float64.
    """

    dense: Callable[[slice], Tensor]
    row: Tensor
    column: Tensor


class ObservedSite:
    """An observed site at all data.

    Args:
        name: The name of the site.
        traces: A run with all data and one particle.

    Raises:
        ValueError: Its scale differs between elements.
    """

    def __init__(self, name: str, traces: Traces) -> None:
        site = traces.model.nodes[name]
        assert traces.plate is not None
        self._exponent = float(torch.as_tensor(traces.exponent(site)))
        self._mask = mask_of(name, site)
        shape = (*site["fn"].batch_shape, *site["fn"].event_shape)
        self._value = observed_value(site).expand(shape)
        self._dim = traces.plate.dim
        self._rows = _rows(self._value, len(site["fn"].event_shape) - self._dim)
        self._mask_rows = None
        if self._mask is not None:
            events = [1] * len(site["fn"].event_shape)
            spread = self._mask.reshape(*self._mask.shape, *events).expand(shape)
            self._mask_rows = _rows(spread, len(events) - self._dim)
        self._reference: Tensor | None = None

    def term(self, site: Site) -> Term:
        """Return the log-likelihood of all data.

        Args:
            site: The site in a run with one datum and S particles.
        """
        fn = site["fn"]
        while isinstance(fn, Independent):
            fn = fn.base_dist
        if type(fn).__mro__[1] is Bernoulli or type(fn) is Bernoulli:
            return self._scaled(self._bernoulli(fn))
        if type(fn).__mro__[1] is Normal or type(fn) is Normal:
            return self._scaled(self._normal(fn))
        return self._scaled(self._broadcast(site))

    def _bernoulli(self, fn: Bernoulli) -> Term:
        logits = _flat(fn.logits, fn)
        if self._reference is None:
            self._reference = logits.double().mean(0)
        relative = (logits - self._reference.to(logits.dtype)).t()
        value = self._unmasked(logits.dtype)
        column = value.double() @ self._reference
        if self._mask_rows is None:
            row = -softplus(logits).sum(-1, dtype=torch.float64)
            return Term(lambda span: value[span] @ relative, row, column)
        mask, cost = self._mask_rows.double(), softplus(logits.double()).t()
        row = cost.new_zeros(len(logits))
        return Term(lambda s: (value[s] @ relative).double() - mask[s] @ cost, row, column)

    def _normal(self, fn: Normal) -> Term:
        mean, precision = _flat(fn.loc, fn).double(), _flat(fn.scale, fn).double() ** -2
        value = self._unmasked(torch.float64)
        square, linear, half = value.square(), (mean * precision).t(), -0.5 * precision.t()
        cost = 0.5 * (mean.square() * precision - precision.log() + _LOG_TWO_PI)
        column = value.new_zeros(len(value))
        if self._mask_rows is None:
            dense = lambda s: torch.addmm(value[s] @ linear, square[s], half)  # noqa: E731
            return Term(dense, -cost.sum(-1), column)
        mask, cost = self._mask_rows.double(), cost.t()
        return Term(
            lambda s: value[s] @ linear + square[s] @ half - mask[s] @ cost,
            cost.new_zeros(len(mean)),
            column,
        )

    def _broadcast(self, site: Site) -> Term:
        """The density of each pair, for every other likelihood."""
        at = len(site["fn"].event_shape) - self._dim
        num_states, num_data = site["fn"].batch_shape[0], len(self._rows)

        def dense(span: slice) -> Tensor:
            value = self._value.movedim(-at, 0)[span].movedim(0, -at)
            density = site["fn"].log_prob(value, *site["args"], **site["kwargs"])
            mask = self._mask
            mask = None if mask is None else mask.movedim(self._dim, 0)[span].movedim(0, self._dim)
            density = scale_and_mask(density, mask=mask).movedim((0, self._dim), (1, 0))
            return density.reshape(*density.shape[:2], -1).sum(-1)

        zeros = torch.zeros(max(num_states, num_data), dtype=torch.float64).to(self._value.device)
        return Term(dense, zeros[:num_states], zeros[:num_data])

    def _unmasked(self, dtype: torch.dtype) -> Tensor:
        """The values `[N, D]`, 0 where they are masked."""
        rows = self._rows.to(dtype)
        return rows if self._mask_rows is None else rows * self._mask_rows

    def _scaled(self, term: Term) -> Term:
        exponent = self._exponent
        if exponent == 1.0:
            return term
        return Term(
            lambda span: exponent * term.dense(span), exponent * term.row, exponent * term.column
        )


_LOG_TWO_PI = 1.8378770664093453


class SharedStates:
    """The sum over all joint values, with distributions that all data share.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: A program over the same sites.
        args: Arguments of both, `[N, ...]` each.
        values: The joint values of a datum.
        nesting: The number of plate dimensions of the programs.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        args: tuple[Tensor, ...],
        values: JointValues,
        nesting: int,
    ) -> None:
        self._programs, self._args, self._values = (model, guide), args, values
        self._nesting, self._first = nesting, part_of(args, range(1))
        self._sites: dict[str, ObservedSite] = {}

    def is_valid(self) -> bool:
        """Tell whether the shared form gives the density of every datum at a few joint values."""
        if self._nesting >= LOOP:
            return False
        total = self._values.total
        index = torch.linspace(0, total - 1, min(TRIED, total), dtype=torch.float64).long()
        try:
            traces = run(*self._programs, self._args, {})
            if traces.plate is None:
                return False
            sites = traces.sites(traces.model, observed=True)
            self._sites = {n: ObservedSite(n, traces) for n, s in sites if traces.is_local(s)}
            log_prior, terms = self._terms(index)
            found = log_prior[:, None] + _pairs(terms, slice(None)).t()
        except (RuntimeError, ValueError, NotImplementedError):  # shapes that do not broadcast
            return False
        start, rows = 0, max(1, rows_of(self._args) // len(index))
        while start < len(self._args[0]):
            block = part_of(self._args, range(start, min(start + rows, len(self._args[0]))))
            prior, joint = log_densities(self._run(block, index))
            same_prior = _is_close(log_prior[:, None].expand_as(prior), prior, self._dtype)
            if not same_prior or not _is_close(found[:, start : start + rows], joint, self._dtype):
                return False
            start += rows
        return True

    def log_sums(self, bar: Progress) -> tuple[Tensor, Tensor]:
        """Return log Σ_z p(z), shape `[]`, and log Σ_z p(x_n, z), shape `[N]`, float64, in nats.

        Args:
            bar: Shows how many joint values are done.
        """
        total, first = self._values.total, 0
        size = ChunkSize(min(total, rows_of(self._args)), "values", "one value for all data")
        log_pz = torch.full((), -torch.inf, dtype=torch.float64, device=self._args[0].device)
        log_px = log_pz.expand(len(self._args[0]))
        while first < total:
            prior, joint, count = size.fitted(partial(self._of_values, first))
            log_pz, log_px = torch.logaddexp(log_pz, prior), torch.logaddexp(log_px, joint)
            first += count
            bar.update(first)
        return log_pz, log_px

    @property
    def _dtype(self) -> torch.dtype:
        first = self._args[0]
        return first.dtype if first.is_floating_point() else torch.get_default_dtype()

    def _of_values(self, first: int, size: int) -> tuple[Tensor, Tensor, int]:
        """The sums over `size` joint values from a number on, and how many they are."""
        index = torch.arange(first, min(first + size, self._values.total))
        log_prior, terms = self._terms(index)
        num_data, elements = len(self._args[0]), max(len(index), 1)
        rows = max(1, blocks.CHUNK // elements)
        sums = [
            _log_sum(terms, log_prior, slice(start, min(start + rows, num_data)))
            for start in range(0, num_data, rows)
        ]
        return log_prior.logsumexp(0), torch.cat(sums), len(index)

    def _terms(self, index: Tensor) -> tuple[Tensor, list[Term]]:
        """Log p(z_s), `[S]`, float64, and the terms of log p(x_n | z_s)."""
        traces = self._run(self._first, index)
        log_prior, _ = log_densities(traces)
        nodes = traces.model.nodes
        return log_prior[:, 0], [site.term(nodes[name]) for name, site in self._sites.items()]

    def _run(self, args: tuple[Tensor, ...], index: Tensor) -> Traces:
        model, guide = self._programs
        traces = run(model, guide, args, {}, len(index), self._nesting)
        return at_values(traces, model, args, {}, self._values.at(traces, index))


def _log_sum(terms: list[Term], log_prior: Tensor, span: slice) -> Tensor:
    """Log Σ_s p(z_s) p(x_n | z_s) of some data, float64."""
    row = sum((term.row for term in terms), log_prior)
    top = row.max()
    if top == -torch.inf:
        return row.new_full((span.stop - span.start,), -torch.inf)
    dense = [term.dense(span) for term in terms]
    total = sum(dense[1:], dense[0])
    total += (row - top).to(total.dtype)
    largest = total.amax(1, keepdim=True)
    sums = total.sub_(largest.clamp(min=torch.finfo(total.dtype).min)).exp_()
    column = sum(term.column[span] for term in terms)
    return sums.sum(1, dtype=torch.float64).log() + largest[:, 0].double() + top + column


def _pairs(terms: list[Term], span: slice) -> Tensor:
    """Log p(x_n | z_s) of some data, `[n, S]`, float64."""
    total: Any = 0.0
    for term in terms:
        total = total + term.dense(span).double() + term.row + term.column[span, None]
    return total


def _is_close(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    tolerance = ROUNDING * torch.finfo(dtype).eps
    return torch.allclose(one, other, tolerance, tolerance)


def _rows(values: Tensor, dim: int) -> Tensor:
    """Values as `[N, D]`, the data in the dimension `-dim`."""
    return values.movedim(-dim, 0).flatten(1) if values.dim() > 1 else values[:, None]


def _flat(parameter: Tensor, fn: Any) -> Tensor:
    """A parameter of a distribution of one datum as `[S, D]`."""
    return parameter.expand(fn.batch_shape).reshape(fn.batch_shape[0], -1)
