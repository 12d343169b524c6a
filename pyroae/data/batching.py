"""Batches of one epoch, in an order that depends on the seed only."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyroae.data.dataset import Dataset
from pyroae.data.missing import keep_missing
from pyroae.data.shuffling import Windows, streamed
from pyroae.programs.arguments import Arguments
from pyroae.runtime.processes import WHOLE, Share

CHUNK = 2**22
"""Values gathered by one call on a GPU, where a kernel launch takes longer than a small batch."""


def batches(
    dataset: Dataset,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    device: torch.device | str | None = None,
) -> Iterator[Tensor]:
    """Iterate over the batches of one epoch.

    The order of the data and the Bernoulli draws of dynamic binarization depend on `seed` and
    `epoch` only; torch's global generator is not used. If the data are on `device`, the batches are
    gathered there by index; otherwise a DataLoader transfers them.

    Args:
        dataset: N data of d features each.
        batch_size: The number of data in a batch, B; the last batch may be smaller.
        seed: The seed of the order and of the draws.
        epoch: The number of the epoch, counted from 0; each epoch has its own order and draws.
        device: The device of the batches; by default that of the data.

    Returns:
        An iterator over tensors `[B, d]`, without conditions. Each datum is in one batch of the
        epoch.

    Raises:
        DataError: If the data are streamed from a file which has changed or cannot be read.

    >>> data = Dataset.from_array(np.arange(5.0)[:, None])
    >>> epoch = list(batches(data, 2, seed=0, epoch=0))
    >>> [len(batch) for batch in epoch], sorted(torch.cat(epoch).flatten().tolist())
    ([2, 2, 1], [0.0, 1.0, 2.0, 3.0, 4.0])
    """
    return (x for x, *_ in served(dataset, batch_size, seed=seed, epoch=epoch, device=device))


def served(
    data: Dataset | Arguments,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    device: torch.device | str | None = None,
    start: int = 0,
    share: Share = WHOLE,
) -> Iterator[tuple[Tensor, ...]]:
    """Iterate over the batches of one epoch as positional arguments of model and guide.

    The order of the data is that of `batches`. `Arguments` that fit into one batch keep their own
    order.

    Args:
        data: A data set `[N, d]`, or arguments of a program, tensors `[N, ...]`.
        batch_size: The number of data in a batch over all processes, B.
        seed: The seed of the order and of the draws.
        epoch: The number of the epoch, counted from 0.
        device: The device of the batches; by default that of the data.
        start: The number of batches to skip; a resumed epoch skips those it has used already.
        share: The part of every batch that this process receives; by default all of it.

    Returns:
        An iterator over tuples of tensors `[b, ...]`, where b is this process's part of B. A
        `Dataset` gives x `[b, d]`, and with a condition (x, c), of which only x is drawn anew by
        dynamic binarization.

    Raises:
        DataError: If the data are streamed from a file which has changed or cannot be read.
    """
    tensors = data.tensors
    target = torch.device(device or tensors[0].device)
    binarize: _Binarize = _unchanged
    if isinstance(data, Dataset) and data.dynamic:
        binarize = partial(DynamicBinarization(seed, epoch, target).draw, share=share)
        if data.missing:
            binarize = partial(_binarize_observed, binarize)
    if isinstance(data, Dataset) and data.stream is not None:
        parts = streamed(data.stream, batch_size, epoch_seed(seed, epoch), start, share)
        return (
            (binarize(x.to(target, non_blocking=True), number, [size]),)
            for number, size, x in parts
        )
    index = _order(data, batch_size, seed, epoch)[start:]
    serve = _indexed if all(_is_on(t, target) for t in tensors) else _transferred
    return serve(tensors, index, start, share, target, binarize)


type _Binarize = Callable[[Tensor, int, Sequence[int]], Tensor]
"""Maps rows of successive batches, the number of the first one and the size of each to rows."""


def _binarize_observed(binarize: _Binarize, x: Tensor, first: int, sizes: Sequence[int]) -> Tensor:
    return keep_missing(x, binarize(x, first, sizes))


def _unchanged(x: Tensor, first: int, sizes: Sequence[int]) -> Tensor:
    return x


def _is_on(x: Tensor, device: torch.device) -> bool:
    return x.device == device or (x.device.type == device.type and device.index is None)


def _indexed(
    tensors: tuple[Tensor, ...],
    index: Sequence[Tensor],
    start: int,
    share: Share,
    device: torch.device,
    binarize: _Binarize,
) -> Iterator[tuple[Tensor, ...]]:
    """Gather batches by index from tensors that are on the device."""
    own, sizes = [i[share.of(len(i))] for i in index], [len(i) for i in index]
    rows = _sent(own, device)
    for first, last in _chunks(own, device, sum(t[:1].numel() for t in tensors)):
        parts = [len(i) for i in own[first:last]]
        chunk, rows = rows[: sum(parts)], rows[sum(parts) :]
        x, *others = (t.index_select(0, chunk) for t in tensors)
        columns = [binarize(x, start + first, sizes[first:last]), *others]
        yield from zip(*(t.split(parts) for t in columns), strict=True)


def _transferred(
    tensors: tuple[Tensor, ...],
    index: Sequence[Tensor],
    start: int,
    share: Share,
    device: torch.device,
    binarize: _Binarize,
) -> Iterator[tuple[Tensor, ...]]:
    """Transfer batches to the device by a DataLoader."""
    loaded = _loaded(tensors, [i[share.of(len(i))] for i in index], device)
    for number, (i, batch) in enumerate(zip(index, loaded, strict=True), start):
        yield (binarize(batch[0], number, [len(i)]), *batch[1:])


def _chunks(index: Sequence[Tensor], device: torch.device, width: int) -> Iterator[tuple[int, int]]:
    """Bounds of the batches gathered by one call: one on a CPU, about `CHUNK` values on a GPU."""
    many = (
        1
        if device.type != "cuda" or not index
        else max(1, CHUNK // (width * max(1, len(index[0]))))
    )
    return ((first, min(first + many, len(index))) for first in range(0, len(index), many))


def _sent(index: Sequence[Tensor], device: torch.device) -> Tensor:
    """The concatenated indices of all batches on the device, by one asynchronous copy."""
    rows = torch.cat(list(index)) if index else torch.zeros(0, dtype=torch.long)
    return rows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows


def rows_of_batch(
    data: Dataset | Arguments, batch_size: int, seed: int, epoch: int, number: int
) -> list[int]:
    """Return the rows of the data that one batch of an epoch consists of.

    Args:
        data: The data, as in `served`.
        batch_size: The number of data in a batch.
        seed: The seed of the order.
        epoch: The number of the epoch, counted from 0.
        number: The number of the batch, counted from 0.

    Returns:
        The row numbers of the batch, in its order; an empty list if the epoch has no such batch.

    >>> rows_of_batch(Dataset.from_array(np.arange(8.0)[:, None]), 5, seed=3, epoch=2, number=1)
    [4, 7, 0]
    """
    if isinstance(data, Dataset) and data.stream is not None:
        first, stop = number * batch_size, min((number + 1) * batch_size, len(data))
        return (
            Windows(data.stream, epoch_seed(seed, epoch)).rows(first, stop).tolist()
            if first < stop
            else []
        )
    parts = _order(data, batch_size, seed, epoch)
    return parts[number].tolist() if number < len(parts) else []


def _order(data: Dataset | Arguments, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """The row numbers of each batch."""
    order = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    whole = isinstance(data, Arguments) and batch_size >= len(data)
    return (torch.arange(len(data)) if whole else torch.randperm(len(data), generator=order)).split(
        batch_size
    )


class DynamicBinarization:
    """Bernoulli draws for the batches of one epoch.

    Each batch has its own seed, so that a batch can be drawn without those before it.

    Args:
        seed: The seed of the training.
        epoch: The number of the epoch, counted from 0.
        device: The device of the batches.
    """

    def __init__(self, seed: int, epoch: int, device: torch.device) -> None:
        self._seed, self._generator = epoch_seed(seed, epoch) + 1, torch.Generator(device)

    def draw(self, probability: Tensor, first: int, sizes: Sequence[int], share: Share) -> Tensor:
        """Draw the values of successive batches, or of this process's part of each.

        The draws are uniform numbers compared with the probabilities; `torch.bernoulli` takes twice
        as long on a CPU.

        Args:
            probability: The probabilities `[n, ...]` of this process's rows of all the batches.
            first: The number of the first batch within the epoch.
            sizes: The number of data of each batch over all processes.
            share: The part of every batch that this process has.

        Returns:
            Zeros and ones `[n, ...]`, in the type of `probability`.
        """
        noise = [
            self._uniform(probability, first + i, size)[share.of(size)]
            for i, size in enumerate(sizes)
        ]
        return ((noise[0] if len(noise) == 1 else torch.cat(noise)) < probability).to(
            probability.dtype
        )

    def _uniform(self, like: Tensor, number: int, size: int) -> Tensor:
        self._generator.manual_seed((self._seed + number) % 2**32)
        return torch.rand(
            (size, *like.shape[1:]), generator=self._generator, dtype=like.dtype, device=like.device
        )


def _loaded(
    tensors: tuple[Tensor, ...], index: Sequence[Tensor], target: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    chunks: Any = list(index)
    own = torch.Generator()  # otherwise the loader draws a seed from torch's global generator

    def gather(i: Any) -> tuple[Tensor, ...]:
        return tuple(t[i] for t in tensors)

    loader: Any = torch.utils.data.DataLoader(
        chunks,
        batch_size=None,
        collate_fn=gather,
        pin_memory=target.type == "cuda",
        generator=own,
    )
    return (tuple(t.to(target, non_blocking=True) for t in batch) for batch in loader)


def resident(data: Dataset | Arguments, device: torch.device) -> Dataset | Arguments:
    """Transfer data to a device if they fit into half of its free memory.

    Args:
        data: A data set or arguments of a program.
        device: The device. The memory of a CPU is not checked.

    Returns:
        The data on `device`; or `data` unchanged if `device` is a GPU and they take more than half
        of its free memory.
    """
    size = sum(t.nbytes for t in data.tensors)
    if device.type == "cuda" and size > torch.cuda.mem_get_info(device)[0] / 2:
        return data
    return data.to(device)


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed from which the order of one epoch is drawn.

    Args:
        seed: The seed of the training.
        epoch: The number of the epoch, counted from 0.

    Returns:
        A 32-bit integer; the pair (seed, epoch) determines it.
    """
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
