"""Processes of one evaluation: those that are played one after another, without any, and those of
gloo.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing

from pyroae.runtime.processes import Share


@dataclass(frozen=True)
class Played(Share):
    """A process whose others are known by what they told the last time: told[rank][i] is what the
    i-th gathering had of it.
    """

    told: dict[int, list[Any]] = field(default_factory=dict)
    now: list[Any] = field(default_factory=list)

    def gather(self, value: Any) -> list[Any]:
        i = len(self.now)
        self.now.append(pickle.loads(pickle.dumps(value)))
        others = {rank: values[i] for rank, values in self.told.items() if i < len(values)}
        return [
            value if rank == self.rank else others.get(rank, value) for rank in range(self.world)
        ]


def played(world: int, work: Callable[[Share], Any]) -> list[Any]:
    """What `work` gives or raises on each process.

    Each play makes one more gathering right, as its values depend on the gatherings before it: a
    play after as many as there are gatherings is right to its end.
    """
    told: dict[int, list[Any]] = {}
    for plays in range(20):
        results, shares = [], [Played(rank, world, told) for rank in range(world)]
        for share in shares:
            try:
                results.append(work(share))
            except Exception as error:
                results.append(error)
        told = {share.rank: share.now for share in shares}
        if plays >= max(map(len, told.values())):
            return results
    raise AssertionError("more than 20 gatherings")


def _started(rank: int, world: int, folder: str, work: Callable[[Share, Path], Any]) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    where = Path(folder)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{where}/meet{world}", rank=rank, world_size=world
    )
    torch.save(work(Share(rank, world), where), where / f"found{rank}.pt")
    torch.distributed.destroy_process_group()


def in_processes(world: int, work: Callable[[Share, Path], Any], folder: Path) -> list[Any]:
    """What `work` gives in each of so many processes of gloo."""
    context = torch.multiprocessing.spawn(
        _started, (world, str(folder), work), nprocs=world, join=False
    )
    while not context.join(timeout=120):
        pass
    return results_in(world, folder)


def results_in(world: int, folder: Path) -> list[Any]:
    """What each process has saved."""
    return [torch.load(folder / f"found{rank}.pt", weights_only=False) for rank in range(world)]
