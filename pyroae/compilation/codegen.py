"""What every compiled thing shares: a traced graph made into code, and a way back where that cannot be done."""

import logging
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import pyro
import torch
from torch import Tensor

from pyroae.compilation.tracing import Untraceable, reason_of
from pyroae.errors import ConfigError, is_refusal
from pyroae.programs.context import fork_random
from pyroae.runtime.memory import is_out_of_memory

Outputs = tuple[Tensor, ...]


Graph = Callable[..., Outputs]


def made[T](make: Callable[[], T], device: torch.device) -> T | None:
    """What `make` gives; None, with a warning, where it cannot be compiled. The generators stay as they were.

    Raises what it raises where memory ran out.
    """
    try:
        with fork_random(device), pyro.validation_enabled(False):
            return make()
    except Exception as error:  # whatever the programs or the compiler have to say
        if is_refusal(error) or is_out_of_memory(error):
            raise
        words = str(error) if isinstance(error, Untraceable) else reason_of(error)
        warnings.warn(f"model and guide are run as they are, not compiled: {words}", stacklevel=5)
        return None


def inductor(
    graph: torch.fx.GraphModule, inputs: Sequence[Tensor], same_draws: bool, one_core: bool = False
) -> Graph:
    """Code for a graph. On a CPU the draws stay torch's own: they are the same as in eager code, and no slower.

    one_core: its loops are not divided, and it is called without Python's lock, so that threads may run it side by side.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(
        logging.ERROR
    )  # it says that there is no GPU
    with warnings.catch_warnings():  # of torch's own use of torch, where warnings are errors
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings(
            "ignore", message="TensorFloat32 tensor cores"
        )  # single precision is what was asked for
        import torch._inductor.config as settings
        from torch._inductor.compile_fx import compile_fx

        from pyroae.compilation.cpu_rewrites import ForProcessor

        _keep_memory()
        on_cpu = all(t.device.type == "cpu" for t in inputs)
        chosen: dict[str, Any] = (
            {"post_grad_custom_post_pass": ForProcessor(one_core)} if on_cpu else {}
        )
        chosen |= {"cpp_wrapper": True, "cpp.threads": 1} if one_core else {}
        with settings.patch(fallback_random=same_draws or on_cpu, **chosen), torch.no_grad():
            compiled: Any = compile_fx(graph, list(inputs))
            compiled(
                *[t.clone() for t in inputs]
            )  # code is made when it is first called, and a step must not be taken
    return cast(Graph, compiled)


@cache
def _keep_memory() -> None:
    """Let the allocator of a Linux process keep the blocks that a graph frees, for its next call.

    glibc gives blocks above a limit back to the system at once, and every page of the next one costs a fault: up to a third of
    a likelihood's time. The limit rises, to 32 MiB at most, with the largest such block that was ever freed.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


Record = Callable[
    [Callable[[], Outputs], Sequence[torch.Generator]], tuple[Callable[[], None], Outputs]
]
"""From a function, and the generators that it draws from, to a function that replays it, and its outputs."""


class Recorded:
    """Code recorded as CUDA graphs, each of one or several calls, and replayed: a replay is one launch, whatever it holds.

    run: from tensors that stay where they are (parameters, and what is changed in place) and those that are given anew at each
    call. What stays is recorded again where it was replaced. generators: those of its draws, beside torch's own.
    """

    def __init__(
        self, run: Graph, record: Record, generators: Sequence[torch.Generator] = ()
    ) -> None:
        self._run, self._record, self._generators = run, record, generators
        self._kept: list[Tensor] = []
        self._recordings: dict[int, tuple[list[list[Tensor]], Callable[[], None], Outputs]] = {}

    def __call__(self, kept: Sequence[Tensor], given: Sequence[Tensor]) -> Outputs:
        """As many calls as each of the given tensors has rows `[S, ...]`; their outputs, `[S, ...]`, are copies.

        The rows are copied to their places before the replay, which overwrites the outputs of the one before.
        """
        count = len(given[0])
        if len(kept) != len(self._kept) or any(
            a is not b for a, b in zip(kept, self._kept, strict=True)
        ):
            self._kept, self._recordings = list(kept), {}
        if count not in self._recordings:
            self._recordings[count] = self._recorded(
                [[row.to(kept[0].device).clone() for row in t] for t in given], count
            )
        places, replay, outputs = self._recordings[count]
        for rows, tensor in zip(places, given, strict=True):
            torch._foreach_copy_(rows, list(tensor.to(rows[0].device, non_blocking=True).unbind()))
        replay()
        return tuple(output.clone() for output in outputs)

    def _recorded(
        self, places: list[list[Tensor]], count: int
    ) -> tuple[list[list[Tensor]], Callable[[], None], Outputs]:
        def calls() -> Outputs:
            found = [self._run(*self._kept, *(rows[i] for rows in places)) for i in range(count)]
            return tuple(torch.stack(outputs) for outputs in zip(*found, strict=True))

        return places, *self._record(calls, self._generators)


def cuda_graph(
    run: Callable[[], Outputs], generators: Sequence[torch.Generator] = ()
) -> tuple[Callable[[], None], Outputs]:
    """Record what `run` launches, without doing it; what replays it, and the tensors that it then fills."""
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        outputs = run()
    return graph.replay, outputs


def on_device(numbers: float | list[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
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
