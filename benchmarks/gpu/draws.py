"""The random numbers of a CPU on any device."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


class HostDraws(TorchDispatchMode):
    """A context in which every random operation runs on the CPU, from the CPU's generator; its
    result goes to the device.

    Two runs from one seed, one on a CPU and one on a GPU, then differ by rounding alone. A
    generator of another device stands for a generator of the CPU with the same seed, which starts
    again whenever that seed is set.

    >>> torch.manual_seed(0).initial_seed()
    0
    >>> with HostDraws():
    ...     drawn = torch.randn(2)
    >>> torch.manual_seed(0).initial_seed(), torch.equal(drawn, torch.randn(2))
    (0, True)
    """

    def __init__(self) -> None:
        super().__init__()
        self._generators: dict[int, tuple[int, torch.Generator]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **given)
        device = _device_of([*args, *given.values()])
        if device.type == "cpu":
            return func(*args, **given)
        found = func(
            *tree_map(self._on_cpu, args),
            **{name: tree_map(self._on_cpu, v) for name, v in given.items()},
        )
        if func._schema.is_mutable:
            return args[0].copy_(found)
        return tree_map(
            lambda value: value.to(device) if isinstance(value, Tensor) else value, found
        )

    def _on_cpu(self, value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device("cpu")
        if isinstance(value, torch.Generator):
            return self._generator(value)
        return value.cpu() if isinstance(value, Tensor) else value

    def _generator(self, there: torch.Generator) -> torch.Generator:
        if there.device.type == "cpu":
            return there
        seed = there.initial_seed()
        if self._generators.get(id(there), (None,))[0] != seed:
            self._generators[id(there)] = seed, torch.Generator().manual_seed(seed)
        return self._generators[id(there)][1]


def _device_of(values: list[Any]) -> torch.device:
    """Where an operation works: the device that it is given, or that of its first tensor."""

    def find(kind: type) -> Any:
        return next((v for v in values if isinstance(v, kind)), None)

    device, tensor = find(torch.device), find(Tensor)
    return (
        device if device is not None else torch.device("cpu") if tensor is None else tensor.device
    )
