"""What made a loss NaN or infinite: the first site, in the order of the programs, and the data that it is of."""

from dataclasses import dataclass
from typing import Any, cast

import pyro
import torch
from torch import Tensor, nn

from pyroae.errors import NonFiniteLossError
from pyroae.programs.pair import System
from pyroae.programs.paired_traces import Traces, log_density
from pyroae.programs.sites import Site
from pyroae.programs.traces import run


@dataclass(frozen=True)
class Blame:
    """Where the first number is that is not finite. site: None where no site alone is to blame. rows: of the batch."""

    text: str
    site: str | None = None
    rows: tuple[int, ...] = ()


def blame(system: nn.Module, args: tuple[Any, ...], num_particles: int) -> Blame:
    """The first thing that is not finite in a run of guide and model: a weight, a value, or a log-density."""
    for name, parameter in system.named_parameters():
        if not torch.isfinite(parameter).all():
            return Blame(
                f"the weights '{name}' were no longer finite, made so by the gradient of the step before"
            )
    programs = cast(System, system)
    with torch.no_grad(), pyro.validation_enabled(False):
        try:
            traces = run(programs.model, programs.guide, args, {}, num_particles)
        except (ValueError, RuntimeError) as error:
            return Blame(f"the programs fail there: {' '.join(str(error).split())[:200]}")
        return _first(traces) or Blame("no single site is, but their sum or its gradient")


def error_at(
    step: int, epoch: int, batch: tuple[int, ...], found: Blame | None, kept: str
) -> NonFiniteLossError:
    """The error that says so. batch: the rows of the training data. found: what is to blame, where that is known."""
    at = tuple(batch[i] for i in found.rows if i < len(batch)) if found is not None else ()
    why = (
        ""
        if found is None
        else f": {found.text}" + (f", for {_named(at)} of the training data" if at else "")
    )
    return NonFiniteLossError(
        f"the loss became NaN or infinite at step {step}, in epoch {epoch}, on a batch of {_named(batch)}{why}; {kept}: try a "
        "lower learning rate, gradient clipping (grad_clip), KL warm-up (kl_warmup), or to leave such steps out "
        '(nonfinite="skip")',
        step,
        batch,
        None if found is None else found.site,
    )


def _named(rows: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, rows[:8]))
    return f"the rows {shown}{f' and {len(rows) - 8} more' if len(rows) > 8 else ''}"


def _first(traces: Traces) -> Blame | None:
    for program, trace in (("guide", traces.guide), ("model", traces.model)):
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or not isinstance(site["value"], Tensor):
                continue
            value = site["value"]
            if (
                value.is_floating_point()
                and (program == "guide" or site["is_observed"])
                and not torch.isfinite(value).all()
            ):
                bad = ~torch.isfinite(value)
                for _ in range(site["fn"].event_dim):
                    bad = bad.any(-1)
                return Blame(
                    f"the site '{name}' of the {program} is not finite",
                    name,
                    _rows(traces, site, bad),
                )
            bad = ~torch.isfinite(log_density(name, site))
            if bad.any():
                return Blame(
                    f"the site '{name}' of the {program} has no finite log-density",
                    name,
                    _rows(traces, site, bad),
                )
    return None


def _rows(traces: Traces, site: Site, bad: Tensor) -> tuple[int, ...]:
    """The data for which a site is bad, told for its batch shape; none for a site outside the data plate."""
    if not traces.is_local(site):
        return ()
    whole = bad.expand(site["fn"].batch_shape).to(torch.float64)
    return tuple(traces.reduce(site, whole, 1.0).sum(0).nonzero().flatten().tolist())
