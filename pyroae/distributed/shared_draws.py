"""The random draws of a batch that several processes share: each makes those of the whole batch, and keeps its part.

So a training by many processes takes the steps of one process on the same batches, whatever the program draws.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyroae.programs.sites import plates_of
from pyroae.runtime.processes import Share

aten = torch.ops.aten


SIZED = (aten.randn.default, aten.rand.default)


BY_VALUE = ("_standard_gamma", "_sample_dirichlet", "poisson", "binomial")
"""Draws that take as many random numbers as their parameters make them: they have a generator of their own in each process."""


@contextmanager
def shared_draws(share: Share, size: int) -> Iterator[None]:
    """A context in which draws for this process's share of a batch of `size` data are a part of those for the whole batch.

    Normal, uniform, Bernoulli, categorical draws and what is made of them are the very ones of one process. Gamma, Dirichlet,
    Poisson and binomial draws are this process's own. A draw that has no dimension of the data is the same in all.
    """
    if share.world == 1:
        yield
        return
    mode = _Mode(share, size)
    with mode, _Sites(mode):
        yield


class _Sites(Messenger):
    """Tells of each site where its data are."""

    def __init__(self, mode: "_Mode") -> None:
        super().__init__()
        self.mode = mode

    def _pyro_sample(self, msg: Any) -> None:
        frame = next((f for f in plates_of(msg) if f.size == self.mode.local), None)
        if frame is not None and hasattr(msg["fn"], "event_dim"):
            fn = msg["fn"]
            self.mode.inside(
                (*fn.batch_shape, *fn.event_shape), len(fn.batch_shape), frame.dim - fn.event_dim
            )

    def _pyro_post_sample(self, msg: Any) -> None:
        self.mode.outside()


class _Mode(TorchDispatchMode):
    def __init__(self, share: Share, size: int) -> None:
        super().__init__()
        self.share, self.size, self.part = share, size, share.of(size)
        self.local = self.part.stop - self.part.start
        self.outside()

    def inside(self, shape: tuple[int, ...], batch_dims: int, axis: int) -> None:
        """The draws that follow are of a site with values of that shape, whose data lie along `axis`, from the right."""
        self.shape: tuple[int, ...] | None = shape
        self.batch_dims, self.at = batch_dims, axis

    def outside(self) -> None:
        """The draws that follow are of no site of the data."""
        self.shape = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        own = given.get("generator") is not None
        if own or torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **given)
        if func._schema.name.removeprefix("aten::") in BY_VALUE:
            return self._by_value(func, args, given)
        if func is aten.multinomial.default:
            return self._multinomial(func, args, given)
        tensors = [a for a in args if isinstance(a, Tensor)]
        if (not tensors and func not in SIZED) or len(func._schema.returns) != 1:
            return func(*args, **given)
        shape = args[0] if func in SIZED else torch.broadcast_shapes(*(t.shape for t in tensors))
        axis = self._axis(shape)
        if axis is None:
            return self._otherwise(func, args, given)
        found = func(*self._for_all(func, args, shape, axis), **given).narrow(*self._narrow(axis))
        return args[0].copy_(found) if func._schema.is_mutable else found

    def _for_all(self, func: Any, args: Any, shape: Sequence[int], axis: int) -> list[Any]:
        """The arguments of the draw for the whole batch."""
        if func in SIZED:
            return [self._grown(args[0], axis), *args[1:]]
        if func._schema.is_mutable:
            return [args[0].new_empty(self._grown(args[0].shape, axis)), *args[1:]]
        return [self._whole(a, axis - len(shape)) if isinstance(a, Tensor) else a for a in args]

    def _axis(self, shape: Sequence[int]) -> int | None:
        """Where the data are in a tensor of noise; None where it has none of them."""
        if self.shape is not None:
            at = (
                min(len(self.shape), len(shape)) + self.at
            )  # what a site's noise has beside its value comes last
            if at >= 0 and shape[at] == self.local:
                return at
        return next((i for i, length in enumerate(shape) if length == self.local), None)

    def _grown(self, shape: Sequence[int], axis: int) -> list[int]:
        return [*shape[:axis], self.size, *shape[axis + 1 :]]

    def _narrow(self, axis: int) -> tuple[int, int, int]:
        return axis, self.part.start, self.local

    def _whole(self, tensor: Tensor, axis: int) -> Tensor:
        """A parameter of the whole batch: in its place that of this process, elsewhere any that is valid."""
        if tensor.dim() < -axis or tensor.shape[axis] == 1 != self.local:
            return tensor
        rows = (torch.arange(self.size, device=tensor.device) - self.part.start) % self.local
        return tensor.index_select(tensor.dim() + axis, rows)

    def _multinomial(self, func: Any, args: Any, given: Any) -> Any:
        """`torch.multinomial` takes its rows as one dimension: of a site, its batch shape and what is in each of it."""
        probs, *rest = args
        batch = (self.local,) if self.shape is None else self.shape[: self.batch_dims]
        axis = 0 if self.shape is None else len(self.shape) + self.at
        if probs.dim() != 2 or not prod(batch) or len(probs) % prod(batch):
            return self._otherwise(func, args, given)
        lead = (*batch, len(probs) // prod(batch))
        whole = self._whole(probs.reshape(*lead, -1), axis - len(lead) - 1)
        found = func(whole.reshape(-1, whole.shape[-1]), *rest, **given)
        return (
            found.reshape(*self._grown(lead, axis), -1)
            .narrow(*self._narrow(axis))
            .reshape(len(probs), -1)
        )

    def _otherwise(self, func: Any, args: Any, given: Any) -> Any:
        """A draw that has no dimension of the data: in a site of the data one for each process, elsewhere one for all."""
        if self.shape is None:
            return func(*args, **given)
        draws = []
        for _ in range(self.share.world):
            found = func(*args, **given)
            draws.append(found.clone())
        kept = draws[self.share.rank]
        return args[0].copy_(kept) if func._schema.is_mutable else kept

    def _by_value(self, func: Any, args: Any, given: Any) -> Any:
        seed = int(torch.randint(2**31, (1,)))
        device = next(a.device for a in args if isinstance(a, Tensor))
        generator = torch.Generator(device).manual_seed(
            seed + self.share.rank * (self.shape is not None)
        )
        return func(*args, **{**given, "generator": generator})
