"""Random draws of a batch that several processes share.

Each process makes the draws of the whole batch and keeps its part. A training by several
processes then takes the steps of one process on the same batches, for any program.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyroae.programs.sites import ANY_SIZE, Site, plates_of
from pyroae.runtime.processes import Share

aten = torch.ops.aten


SIZED = (aten.randn.default, aten.rand.default)
"""Draws whose first argument is the shape."""


BY_VALUE = ("_standard_gamma", "_sample_dirichlet", "poisson", "binomial")
"""Draws that consume a number of random numbers which depends on their parameters.

Each process has a generator of its own for them.
"""


@contextmanager
def shared_draws(share: Share, size: int, plate: str | None = None) -> Iterator[None]:
    """Make draws for a share of a batch a part of the draws for the whole batch.

    Normal, uniform, Bernoulli and categorical draws, and those derived from them, equal the draws
    of one process. Gamma, Dirichlet, Poisson and binomial draws are each process's own. A draw
    without a dimension of the data is the same in all processes.

    Args:
        share: Rank of this process, and the number of processes.
        size: The number of data in the whole batch.
        plate: Name of the data plate. The data of a site then lie along its dimension, also for a
            plate without a size, and a site outside of it has none. By default a site's data plate
            is the outermost plate as long as this process's part.

    Yields:
        None, in the context. A draw outside of sample sites, such as a mask of dropout, has its
        data along the first dimension that is as long as this process's part.
    """
    if share.world == 1:
        yield
        return
    mode = _DrawsOfBatch(share, size)
    with mode, _SiteAxes(mode, plate):
        yield


class _SiteAxis(NamedTuple):
    """The shape of a site's value and the axis of its data, counted from the right."""

    shape: tuple[int, ...]
    batch_dims: int
    axis: int


class _SiteAxes(Messenger):
    """Tell the mode where the data of the current site are."""

    def __init__(self, mode: "_DrawsOfBatch", plate: str | None) -> None:
        super().__init__()
        self.mode, self.plate = mode, plate

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if not hasattr(fn, "event_dim"):
            return
        frame = self._data_frame(msg)
        if frame is not None:
            shape = (*fn.batch_shape, *fn.event_shape)
            self.mode.site = _SiteAxis(shape, len(fn.batch_shape), frame.dim - fn.event_dim)
        self.mode.is_global = frame is None and self.plate is not None

    def _pyro_post_sample(self, msg: Any) -> None:
        self.mode.site, self.mode.is_global = None, False

    def _data_frame(self, site: Site) -> CondIndepStackFrame | None:
        frames = plates_of(site)
        if self.plate is not None:
            frames = [frame for frame in frames if frame.name == self.plate]
        return next((frame for frame in frames if self._has_data(site, frame)), None)

    def _has_data(self, site: Site, frame: CondIndepStackFrame) -> bool:
        """Whether the site has an element for each datum; a plate without a size adds none."""
        shape, size = site["fn"].batch_shape, frame.size
        if size == ANY_SIZE:
            size = shape[frame.dim] if len(shape) >= -frame.dim else 0
        return size == self.mode.local


class _DrawsOfBatch(TorchDispatchMode):
    """Replace random operations by the part of those for the whole batch.

    site: of the draws that follow, with its data; None outside of such sites. is_global: whether
    they are of a site that is known to lie outside the data plate.
    """

    def __init__(self, share: Share, size: int) -> None:
        super().__init__()
        self.share, self.size, self.part = share, size, share.of(size)
        self.local = self.part.stop - self.part.start
        self.site: _SiteAxis | None = None
        self.is_global = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        has_generator = kwargs.get("generator") is not None
        if has_generator or torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if func._schema.name.removeprefix("aten::") in BY_VALUE:
            return self._by_value(func, args, kwargs)
        if func is aten.multinomial.default:
            return self._multinomial(func, args, kwargs)
        tensors = [a for a in args if isinstance(a, Tensor)]
        if (not tensors and func not in SIZED) or len(func._schema.returns) != 1:
            return func(*args, **kwargs)
        shape = args[0] if func in SIZED else torch.broadcast_shapes(*(t.shape for t in tensors))
        axis = self._axis(shape)
        if axis is None:
            return self._without_data(func, args, kwargs)
        draws = func(*self._for_batch(func, args, shape, axis), **kwargs)
        own = draws.narrow(*self._narrow(axis))
        return args[0].copy_(own) if func._schema.is_mutable else own

    def _for_batch(self, func: Any, args: Any, shape: Sequence[int], axis: int) -> list[Any]:
        """The arguments of the draw for the whole batch."""
        if func in SIZED:
            return [self._extended(args[0], axis), *args[1:]]
        if func._schema.is_mutable:
            return [args[0].new_empty(self._extended(args[0].shape, axis)), *args[1:]]
        return [self._parameter(a, axis - len(shape)) if isinstance(a, Tensor) else a for a in args]

    def _axis(self, shape: Sequence[int]) -> int | None:
        """The dimension of the data in a tensor of noise; None without one.

        Noise that is not laid out like the value of its site is searched for an equal length.
        """
        if self.is_global:
            return None
        if self.site is not None:
            # Dimensions that a site's noise has beyond those of its value come last.
            axis = min(len(self.site.shape), len(shape)) + self.site.axis
            if axis >= 0 and shape[axis] == self.local:
                return axis
        return next((i for i, length in enumerate(shape) if length == self.local), None)

    def _extended(self, shape: Sequence[int], axis: int) -> list[int]:
        return [*shape[:axis], self.size, *shape[axis + 1 :]]

    def _narrow(self, axis: int) -> tuple[int, int, int]:
        return axis, self.part.start, self.local

    def _parameter(self, tensor: Tensor, axis: int) -> Tensor:
        """A parameter of the whole batch: this process's own rows, repeated for the others."""
        if tensor.dim() < -axis or tensor.shape[axis] == 1 != self.local:
            return tensor
        rows = (torch.arange(self.size, device=tensor.device) - self.part.start) % self.local
        return tensor.index_select(tensor.dim() + axis, rows)

    def _multinomial(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Draw from `torch.multinomial`, whose rows are the site's batch shape in one dimension."""
        probs, *rest = args
        batch = (self.local,) if self.site is None else self.site.shape[: self.site.batch_dims]
        axis = 0 if self.site is None else len(self.site.shape) + self.site.axis
        no_data = self.is_global or probs.dim() != 2
        if no_data or not prod(batch) or len(probs) % prod(batch):
            return self._without_data(func, args, kwargs)
        lead = (*batch, len(probs) // prod(batch))
        parameters = self._parameter(probs.reshape(*lead, -1), axis - len(lead) - 1)
        draws = func(parameters.reshape(-1, parameters.shape[-1]), *rest, **kwargs)
        draws = draws.reshape(*self._extended(lead, axis), -1).narrow(*self._narrow(axis))
        return draws.reshape(len(probs), -1)

    def _without_data(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A draw without a dimension of the data: in a site of the data one for each process."""
        if self.site is None:
            return func(*args, **kwargs)
        draws = [func(*args, **kwargs).clone() for _ in range(self.share.world)]
        own = draws[self.share.rank]
        return args[0].copy_(own) if func._schema.is_mutable else own

    def _by_value(self, func: Any, args: Any, kwargs: Any) -> Any:
        seed = int(torch.randint(2**31, (1,)))
        device = next(a.device for a in args if isinstance(a, Tensor))
        generator = torch.Generator(device).manual_seed(
            seed + self.share.rank * (self.site is not None)
        )
        return func(*args, **{**kwargs, "generator": generator})
