"""Batches of one epoch, in an order that the seed fixes."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyroae.data.dataset import Dataset
from pyroae.data.streaming import Windows, streamed
from pyroae.programs.arguments import Arguments
from pyroae.runtime.processes import WHOLE, Share


def batches(
    dataset: Dataset,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    device: torch.device | str | None = None,
) -> Iterator[Tensor]:
    """The batches `[B, d]` of one epoch; order and Bernoulli draws are a function of `seed` and `epoch` alone.

    Data that live on `device` are gathered there by index; others are brought by a DataLoader.

    >>> data = Dataset.from_array(np.arange(5.0)[:, None])
    >>> served = list(batches(data, 2, seed=0, epoch=0))
    >>> [len(batch) for batch in served], sorted(torch.cat(served).flatten().tolist())
    ([2, 2, 1], [0.0, 1.0, 2.0, 3.0, 4.0])
    """
    return (x for (x,) in served(dataset, batch_size, seed=seed, epoch=epoch, device=device))


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
    """The batches of one epoch as the arguments of model and guide, in the order of `batches`; Arguments whole in their own.

    start: batches that are left out, as they were served before. share: the part of every batch that is served here.
    """
    tensors = data.tensors if isinstance(data, Arguments) else (data.x,)
    dynamic = isinstance(data, Dataset) and data.dynamic
    target = torch.device(device or tensors[0].device)
    noise = Noise(seed, epoch, target)
    if isinstance(data, Dataset) and data.stream is not None:
        for number, size, rows in streamed(
            data.stream, batch_size, epoch_seed(seed, epoch), start, share
        ):
            x = rows.to(target, non_blocking=True)
            yield (noise.binary(x, number, [size], share) if dynamic else x,)
        return
    index = _order(data, batch_size, seed, epoch)[start:]
    here = all(
        t.device == target or (t.device.type == target.type and target.index is None)
        for t in tensors
    )
    own, sizes = [i[share.of(len(i))] for i in index], [len(i) for i in index]
    if not here:
        for number, batch in enumerate(_loaded(tensors, own, target), start):
            yield (
                tuple(noise.binary(t, number, [sizes[number - start]], share) for t in batch)
                if dynamic
                else batch
            )
        return
    rows = _sent(own, target)
    for first, last in _chunks(own, target, sum(t[:1].numel() for t in tensors)):
        parts = [len(i) for i in own[first:last]]
        chunk, rows = rows[: sum(parts)], rows[sum(parts) :]
        columns = [t.index_select(0, chunk) for t in tensors]
        if dynamic:
            columns = [noise.binary(t, start + first, sizes[first:last], share) for t in columns]
        yield from zip(*(t.split(parts) for t in columns), strict=True)


CHUNK = 2**22
"""Numbers that are gathered at once on a GPU, where a launch costs more than a small batch takes."""


def _chunks(index: Sequence[Tensor], device: torch.device, width: int) -> Iterator[tuple[int, int]]:
    """Bounds of the batches that are gathered at once: one on a CPU, and about `CHUNK` numbers on a GPU."""
    many = (
        1
        if device.type != "cuda" or not index
        else max(1, CHUNK // (width * max(1, len(index[0]))))
    )
    return ((first, min(first + many, len(index))) for first in range(0, len(index), many))


def _sent(index: Sequence[Tensor], device: torch.device) -> Tensor:
    """The indices of all batches on the device, one after the other, by one copy that nothing waits for."""
    rows = torch.cat(list(index)) if index else torch.zeros(0, dtype=torch.long)
    return rows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows


def rows_of_batch(
    data: Dataset | Arguments, batch_size: int, seed: int, epoch: int, number: int
) -> list[int]:
    """Which of the data are in one batch of an epoch, that of `number` counted from 0; none where there is no such batch."""
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
    """The data of each batch, by their numbers."""
    order = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    whole = isinstance(data, Arguments) and batch_size >= len(data)
    return (torch.arange(len(data)) if whole else torch.randperm(len(data), generator=order)).split(
        batch_size
    )


class Noise:
    """Bernoulli draws of the batches of one epoch, each from a seed of its own: batch i needs none of those before it."""

    def __init__(self, seed: int, epoch: int, device: torch.device) -> None:
        self._seed, self._generator = epoch_seed(seed, epoch) + 1, torch.Generator(device)

    def binary(self, probability: Tensor, first: int, sizes: Sequence[int], share: Share) -> Tensor:
        """A share of the draws for batches that follow each other from number `first`, of so many data each.

        `torch.bernoulli` takes twice as long on a CPU.
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
    pin = target.type == "cuda"
    chunks: Any = list(index)
    own = torch.Generator()  # else the loader draws a seed from torch's global generator

    def gather(i: Any) -> tuple[Tensor, ...]:
        return tuple(t[i] for t in tensors)

    loader: Any = torch.utils.data.DataLoader(
        chunks, batch_size=None, collate_fn=gather, pin_memory=pin, generator=own
    )
    return (tuple(t.to(target, non_blocking=True) for t in batch) for batch in loader)


def resident(data: Dataset | Arguments, device: torch.device) -> Dataset | Arguments:
    """The data on `device` where they take at most half of the memory that is free there, else as they are."""
    size = sum(t.nbytes for t in (data.tensors if isinstance(data, Arguments) else (data.x,)))
    if device.type == "cuda" and size > torch.cuda.mem_get_info(device)[0] / 2:
        return data
    return data.to(device)


def epoch_seed(seed: int, epoch: int) -> int:
    """What the order of an epoch is drawn from."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
