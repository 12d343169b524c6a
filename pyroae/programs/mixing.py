"""Detect a model that mixes the data of a batch, so that a datum has no log-density of its own."""

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyroae.programs.model_sums import SumMissing
from pyroae.programs.paired_traces import Traces, log_density
from pyroae.programs.sites import ANY_SIZE, Program, samples
from pyroae.programs.traces import prior_of, run
from pyroae.programs.trial_runs import is_close, trial_mode
from pyroae.runtime.memory import is_out_of_memory
from pyroae.runtime.randomness import fork_random


def mixed_site(
    model: Program, guide: Program, args: tuple[Tensor, ...], *, training: bool = False
) -> str | None:
    """Find the first site of a model whose log-density of a datum depends on the rest of its batch.

    The model runs on the batch and on its second half in the reverse order, at the same draws;
    the guide, which may have parameters for each datum, runs on the batch only. Random generators
    and buffers of modules are afterwards unchanged.

    Args:
        model: A Pyro program with a data plate.
        guide: A program over the same latent sites.
        args: Their arguments, tensors `[N, …]` with a datum in each row.
        training: Whether modules keep their modes, except dropout, which is always disabled.

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
    count, device = len(args[0]), args[0].device
    if count < 2:
        return None
    rows = torch.arange(count - 1, count // 2 - 1, -1, device=device)
    with (
        fork_random(device),
        torch.autocast(device.type, enabled=False),
        poutine.block(),
        SumMissing(),
        trial_mode(training=training),
    ):
        batch = run(model, guide, args, {})
        if batch.plate is None or batch.plate.size not in (count, ANY_SIZE):
            return None
        try:
            again = run(model, guide, args, {}, drawn=batch.drawn)
            part_args = tuple(a[rows] for a in args)
            part = run(model, prior_of(model), part_args, {}, drawn=_rows_of(batch, rows))
            return _first_difference(batch, again, part, rows)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return None


def _rows_of(traces: Traces, rows: Tensor) -> poutine.Trace:
    """Select the draws of some of the data."""
    assert traces.plate is not None
    drawn = prune_subsample_sites(traces.drawn)
    for name, site in drawn.nodes.items():
        if site["type"] == "sample" and not site["is_observed"] and traces.is_local(site):
            dim = len(site["fn"].batch_shape) + traces.plate.dim
            drawn.nodes[name] = {**site, "value": site["value"].index_select(dim, rows)}
    return drawn


def _first_difference(batch: Traces, again: Traces, part: Traces, rows: Tensor) -> str | None:
    repeated, of_part = _terms(again), _terms(part)
    for name, term in _terms(batch).items():
        if not is_close(term, repeated[name]):  # noise of the model's own
            return None
        if not is_close(term[:, rows], of_part[name]):
            return name
    return None


def _terms(traces: Traces) -> dict[str, Tensor]:
    """Log-densities `[1, N]`, in nats, of the model's sites in the data plate."""
    sites = [site for site in samples(traces.model) if traces.is_local(site)]
    return {site["name"]: traces.reduce(site, log_density(site["name"], site)) for site in sites}
