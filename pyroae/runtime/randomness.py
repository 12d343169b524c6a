"""Start, save and restore the random generators of torch, Python and NumPy.

Functions that take a device act on the generator of the CPU and, for a CUDA device, on its own.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def start_random(device: torch.device, seed: int) -> None:
    """Start torch's generators of the CPU and of a device from a seed.

    `torch.manual_seed` does the same, but for devices that are not in use it stores the seed and
    the stack of the call: that takes half the time of a small step, and memory that grows with
    every call.

    Args:
        device: the device; a CUDA device stands for all of them.
        seed: the seed, as in `torch.manual_seed`.

    >>> start_random(torch.device("cpu"), 0)
    >>> torch.rand(2)
    tensor([0.4963, 0.7682])
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)


@contextmanager
def fork_random(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Return a context after which torch's generators have the state that they had before.

    Args:
        device: the generators are those of the CPU and of this device.
        seed: where they start within the context; None continues from the present state.

    Yields:
        None.

    >>> with fork_random(torch.device("cpu"), 0):
    ...     torch.rand(2)
    tensor([0.4963, 0.7682])
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if seed is not None:
            start_random(device, seed)
        yield


@contextmanager
def fork_all_random(device: torch.device, seed: int) -> Iterator[None]:
    """Return a context in which the generators of torch, Python and NumPy start from a seed.

    All have their previous states after it. A program may draw from any of them.

    Args:
        device: torch's generators are those of the CPU and of this device.
        seed: the seed; NumPy's is its remainder modulo 2³².

    Yields:
        None.

    >>> with fork_all_random(torch.device("cpu"), 0):
    ...     round(random.random(), 4), round(np.random.random(), 4)
    (0.8444, 0.5488)
    """
    before = all_random_states(torch.device("cpu"))
    with fork_random(device, seed):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # the generator that programs share  # noqa: NPY002
        try:
            yield
        finally:
            set_all_random_states(before, torch.device("cpu"))


def random_state(device: torch.device) -> Tensor:
    """Return the state of the torch generator that draws on a device come from.

    Args:
        device: the CPU or a CUDA device.

    Returns:
        The state, bytes on the CPU, shape [S].
    """
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Restore what `random_state` returned.

    Args:
        state: the state, bytes on any device, shape [S].
        device: the device whose generator it is for.

    >>> cpu = torch.device("cpu")
    >>> state, draws = random_state(cpu), torch.rand(3)
    >>> set_random_state(state, cpu)
    >>> torch.equal(torch.rand(3), draws)
    True
    """
    if device.type == "cuda":
        torch.cuda.set_rng_state(state.cpu(), device)
    else:
        torch.set_rng_state(state.cpu())


def all_random_states(device: torch.device) -> dict[str, Any]:
    """Return the states of all generators that a program may draw from.

    Args:
        device: the state of a CUDA device is added to those of the CPU.

    Returns:
        States by generator, in numbers, texts and tensors, as `write_tensors` accepts them:
        `python`, `numpy`, `cpu` and, for a CUDA device, `cuda`.
    """
    kind, keys, *rest = np.random.get_state(legacy=True)  # programs share it  # noqa: NPY002
    states = {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "cpu": random_state(torch.device("cpu")),
    }
    return states if device.type != "cuda" else {**states, "cuda": random_state(device)}


def set_all_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Restore what `all_random_states` returned.

    Args:
        states: states by generator; a generator without one is left unchanged.
        device: where it is a CUDA device, its state is restored too.

    >>> cpu = torch.device("cpu")
    >>> states, draws = all_random_states(cpu), (random.random(), np.random.random())
    >>> set_all_random_states(states, cpu)
    >>> (random.random(), np.random.random()) == draws
    True
    """
    if "python" in states:
        version, numbers, gauss = states["python"]
        random.setstate((version, tuple(numbers), gauss))
    if "numpy" in states:
        kind, keys, *rest = states["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    set_random_state(states["cpu"], torch.device("cpu"))
    if "cuda" in states and device.type == "cuda":
        set_random_state(states["cuda"], device)
