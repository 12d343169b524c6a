"""What every compiled thing shares: a traced graph made into code, and a way back where that cannot be done."""

import logging
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import pyro
import torch
from torch import Tensor

from pyroae.errors import ConfigError, PyroaeError
from pyroae.memory import is_out_of_memory
from pyroae.tracing import Untraceable, reason_of
from pyroae.weights import fork_random

Outputs = tuple[Tensor, ...]
Graph = Callable[..., Outputs]


def made[T](make: Callable[[], T], device: torch.device) -> T | None:
    """What `make` gives; None, with a warning, where it cannot be compiled. The generators stay as they were.

    Raises what it raises where memory ran out.
    """
    try:
        with fork_random(device), pyro.validation_enabled(False):
            return make()
    except PyroaeError:
        raise
    except Exception as error:  # whatever the programs or the compiler have to say
        if is_out_of_memory(error):
            raise
        words = str(error) if isinstance(error, Untraceable) else reason_of(error)
        warnings.warn(f"model and guide are run as they are, not compiled: {words}", stacklevel=5)
        return None


def inductor(graph: torch.fx.GraphModule, inputs: Sequence[Tensor], same_draws: bool, one_core: bool = False) -> Graph:
    """Code for a graph. On a CPU the draws stay torch's own: they are the same as in eager code, and no slower.

    one_core: its loops are not divided, and it is called without Python's lock, so that threads may run it side by side.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it says that there is no GPU
    with warnings.catch_warnings():  # of torch's own use of torch, where warnings are errors
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        import torch._inductor.config as settings
        from torch._inductor.compile_fx import compile_fx

        from pyroae.passes import ForProcessor

        _keep_memory()
        on_cpu = all(t.device.type == "cpu" for t in inputs)
        chosen: dict[str, Any] = {"post_grad_custom_post_pass": ForProcessor(one_core)} if on_cpu else {}
        chosen |= {"cpp_wrapper": True, "cpp.threads": 1} if one_core else {}
        with settings.patch(fallback_random=same_draws or on_cpu, **chosen), torch.no_grad():
            compiled: Any = compile_fx(graph, list(inputs))
            compiled(*[t.clone() for t in inputs])  # code is made when it is first called, and a step must not be taken
    return cast(Graph, compiled)


@cache
def _keep_memory() -> None:
    """Let the allocator of a Linux process keep the blocks that a graph frees, for its next call.

    glibc gives blocks above a limit back to the system at once, and every page of the next one costs a fault: up to a third of
    a likelihood's time. The limit rises, to 32 MiB at most, with the largest such block that was ever freed.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


class Recorded:
    """Code recorded as one CUDA graph, and replayed: a step is then one launch, whatever kernels it has.

    run: from tensors that stay where they are (parameters, and what is changed in place) and those that are given anew at each
    call. Outputs are copies: the next call overwrites its own. What stays is recorded again where it was replaced. record: from
    a function to one that replays it, and its outputs.
    """

    def __init__(self, run: Graph, record: Callable[[Callable[[], Outputs]], tuple[Callable[[], None], Outputs]]) -> None:
        self._run, self._record = run, record
        self._kept: list[Tensor] = []
        self._places: list[Tensor] = []

    def __call__(self, kept: Sequence[Tensor], given: Sequence[Tensor]) -> Outputs:
        """Copy what is given to its places, and replay."""
        if len(kept) != len(self._kept) or any(a is not b for a, b in zip(kept, self._kept, strict=True)):
            self._kept, self._places = list(kept), [t.to(kept[0].device).clone() for t in given]
            self._replay, self._outputs = self._record(lambda: self._run(*self._kept, *self._places))
        for place, tensor in zip(self._places, given, strict=True):
            place.copy_(tensor, non_blocking=True)
        self._replay()
        return tuple(output.clone() for output in self._outputs)


def cuda_graph(run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
    """Record what `run` launches, without doing it; what replays it, and the tensors that it then fills."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return graph.replay, outputs


def on_device(numbers: float | list[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of numbers that are known here; nothing waits for the copy."""
    tensor = torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda")
    return tensor.to(device, non_blocking=True)


def is_wanted(compile: bool | str, is_long: bool) -> bool:
    """What an argument `compile` asks for, where "auto" is for long work. Raises ConfigError for other words."""
    check_word(compile)
    return is_long if compile == "auto" else bool(compile)


def check_word(compile: bool | str) -> None:
    """Raises ConfigError for what an argument `compile` does not take."""
    if not isinstance(compile, bool) and compile != "auto":
        raise ConfigError(f"compile takes auto, true or false, not '{compile}'")


def device_of(args: tuple[Any, ...]) -> torch.device:
    """Of the first tensor among the arguments."""
    return next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu"))
