"""Detect a model that mixes the data of a batch, so that a datum has no log-density of its own."""

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyroae.programs.execution import paired, run_pair, trace_program
from pyroae.programs.paired_traces import Traces, log_density
from pyroae.programs.sites import ANY_SIZE, Program, samples
from pyroae.programs.trial_runs import FixedSeed, is_close, trial
from pyroae.runtime.memory import is_out_of_memory

OTHER = 4_611_685_975_477_714_963
"""A seed from which noise of a model's own differs from that of any seed a caller may have set."""


def mixed_site(
    model: Program,
    guide: Program,
    args: tuple[Tensor, ...],
    *,
    training: bool = False,
    first: Traces | None = None,
) -> str | None:
    """Find the first site of a model whose log-density of a datum depends on the rest of its batch.

    The model runs on the batch and on its second half in the reverse order, at the same draws;
    the guide, which may have parameters for each datum, runs on the batch only. Where log-densities
    differ, the model runs on the batch again: noise of its own differs too. Random generators and
    buffers of modules are afterwards unchanged.

    Args:
        model: A Pyro program with a data plate.
        guide: A program over the same latent sites.
        args: Their arguments, tensors `[N, …]` with a datum in each row.
        training: Whether modules keep their modes, except dropout, which is always disabled.
        first: The result of `trial_run` for the same arguments; None runs both programs.

    Returns:
        The name of the site. None if no site mixes data, and where this cannot be determined: for
        one datum, without a data plate, for a model that cannot run on a part of the batch, or
        that draws noise of its own.

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    ...         centred = (z - z.mean(-2, keepdim=True)).sum(-1)
    ...         pyro.sample("x", dist.Normal(centred, 1.0), obs=x)
    >>> mixed_site(model, poutine.block(model, hide=["x"]), (torch.zeros(4),))
    'x'
    """
    count = len(args[0])
    if count < 2:
        return None
    rows = torch.arange(count - 1, count // 2 - 1, -1, device=args[0].device)
    with trial(model, guide, args, training=training):
        batch = first or run_pair(model, guide, args, {})
        if batch.plate is None or batch.plate.size not in (count, ANY_SIZE):
            return None
        try:
            part = _terms(_run_at(model, tuple(a[rows] for a in args), _rows_of(batch, rows)))
            terms = _terms(batch)
            mixed = next((n for n in terms if not is_close(terms[n][:, rows], part[n])), None)
            if mixed is None:
                return None
            again = _terms(_run_at(FixedSeed(OTHER)(model), args, batch.drawn))
            before = list(terms)[: list(terms).index(mixed) + 1]
            return mixed if all(is_close(terms[n], again[n]) for n in before) else None
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return None


def _run_at(model: Program, args: tuple[Tensor, ...], drawn: poutine.Trace) -> Traces:
    """Run the model alone, at given draws."""
    trace = trace_program(model, args, {}, 1, 0, drawn)
    return paired(trace, trace)


def _rows_of(traces: Traces, rows: Tensor) -> poutine.Trace:
    """Select the draws of some of the data."""
    assert traces.plate is not None
    drawn = prune_subsample_sites(traces.drawn)
    for name, site in drawn.nodes.items():
        if site["type"] == "sample" and not site["is_observed"] and traces.is_local(site):
            dim = len(site["fn"].batch_shape) + traces.plate.dim
            drawn.nodes[name] = {**site, "value": site["value"].index_select(dim, rows)}
    return drawn


def _terms(traces: Traces) -> dict[str, Tensor]:
    """Log-densities `[1, N]`, in nats, of the model's sites in the data plate."""
    sites = [site for site in samples(traces.model) if traces.is_local(site)]
    return {site["name"]: traces.reduce(site, log_density(site["name"], site)) for site in sites}
