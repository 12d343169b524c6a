"""Values of sites with the particles first, then the data, then nested plates and the event."""

import torch
from torch import Tensor

from pyroae.programs.paired_traces import Traces
from pyroae.programs.particles import has_particles
from pyroae.programs.sites import Site, plates_of


def by_datum(traces: Traces, site: Site) -> tuple[Tensor, list[str]]:
    """Arrange the value of a site by particle and datum.

    Args:
        traces: The run that the site is of.
        site: A site in the data plate, or of a program without one, which is one datum.

    Returns:
        The value, `[K, N, *nested plates, *event]`, with 1 in place of K for a site without
        particles, and the names of the nested plates.

    >>> from pyroae import zoo
    >>> from pyroae.programs.traces import run
    >>> system = zoo.ppca(4, latent=2)
    >>> traces = run(system.model, system.guide, (torch.zeros(3, 4),), {}, num_particles=5)
    >>> value, plates = by_datum(traces, traces.model.nodes["z"])
    >>> value.shape, plates
    (torch.Size([5, 3, 2]), [])
    """
    batch, event = site["fn"].batch_shape, site["fn"].event_shape
    dims, rest, plates = _order(traces, site)
    first, has_data = traces.num_particles > 1 and has_particles(site), traces.plate is not None
    value = site["value"].expand(*batch, *event)
    value = (
        value.permute(*dims, *rest, *range(len(batch), value.dim()))
        .reshape(*(batch[dim] for dim in dims), -1, *event)
        .squeeze(len(dims))
    )
    value = value if has_data else value.unsqueeze(int(first))
    return value if first else value.unsqueeze(0), plates


def in_program(traces: Traces, site: Site, value: Tensor) -> Tensor:
    """Return the inverse of `by_datum`.

    Args:
        traces: A run of the program with as many particles and data as the value.
        site: The site in that run.
        value: `[K, N, *nested plates, *event]`.

    Returns:
        The same elements in the batch and event shape of the site.
    """
    batch, event = site["fn"].batch_shape, site["fn"].event_shape
    dims, rest, _ = _order(traces, site)
    order = [*dims, *rest]
    value = value.reshape(*(batch[dim] for dim in order), *event)
    back = torch.tensor(order, dtype=torch.int64).argsort().tolist()
    return value.permute(*back, *range(len(batch), value.dim()))


def _order(traces: Traces, site: Site) -> tuple[list[int], list[int], list[str]]:
    """Batch dimensions of particles, data and nested plates; the others; names of the plates.

    The others have one element: they are of plates that the site is not in.
    """
    count = len(site["fn"].batch_shape)
    frames = {frame.dim + count: frame.name for frame in plates_of(site)}
    data = None if traces.plate is None else traces.plate.dim + count
    nested = [dim for dim in range(count) if dim in frames and dim != data]
    first = [0] if traces.num_particles > 1 and has_particles(site) else []
    dims = [*first, *([] if data is None else [data]), *nested]
    return dims, [dim for dim in range(count) if dim not in dims], [frames[d] for d in nested]
