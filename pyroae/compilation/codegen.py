"""Code generation for traced graphs, CUDA graphs, and the fallback where compilation fails."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import pyro
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyroae.compilation.cpu_settings import cpu_options, for_vectors
from pyroae.compilation.noise_inputs import Draw, NotLiftedError, is_random, lift_draws
from pyroae.compilation.tracing import UntraceableError, reason_of
from pyroae.errors import ConfigError, is_refusal
from pyroae.runtime.memory import is_out_of_memory, keep_memory
from pyroae.runtime.randomness import fork_random

Outputs = tuple[Tensor, ...]
"""The outputs of a graph."""


Graph = Callable[..., Outputs]
"""A function of tensors: a traced graph, or code for it."""


def try_compile[T](make: Callable[[], T], device: torch.device) -> T | None:
    """Call a function that compiles programs, and warn if they cannot be compiled.

    The random generators are afterwards unchanged.

    Args:
        make: Traces and compiles; without arguments.
        device: The device of the programs.

    Returns:
        The result of `make`; None, after a warning with the reason, if it fails.

    Raises:
        PyroaeError: If `make` refuses the programs.
        RuntimeError: If memory runs out.
    """
    try:
        with fork_random(device), pyro.validation_enabled(False):
            return make()
    except Exception as error:  # any error of the programs or of the compiler
        if is_refusal(error) or is_out_of_memory(error):
            raise
        reason = str(error) if isinstance(error, UntraceableError) else reason_of(error)
        warnings.warn(f"model and guide run eagerly, not compiled: {reason}", stacklevel=5)
        return None


def inductor(
    graph: torch.fx.GraphModule,
    inputs: Sequence[Tensor],
    same_draws: bool,
    one_core: bool = False,
    cpp: bool = False,
) -> Graph:
    """Compile a graph by torch's inductor.

    On a CPU the draws are torch's own, equal to those of eager code and no slower, and torch keeps
    the code on disk for other processes. Draws that equal those of eager code are made in its
    order.

    Args:
        graph: The traced graph.
        inputs: Examples of its inputs; their values do not change.
        same_draws: Whether draws on a GPU equal those of eager code from the same seed.
        one_core: Whether loops are not parallel and the code is called without Python's global
            lock, so that threads can run it concurrently.
        cpp: Whether the code can be called from C++. Layers are then never oneDNN's, which
            takes 20 µs more for a call.

    Returns:
        A function of tensors with the shapes of `inputs`.
    """
    # This logger reports that there is no GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # Warnings of torch about its own code, where warnings are errors.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        # Single precision is intended.
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
        import torch._inductor.config as settings

        from pyroae.compilation.cpu_rewrites import CPURewrites
        from pyroae.compilation.gradient_fusion import fuse_gradients

        fuse_gradients(graph)
        keep_memory()
        on_cpu = all(t.device.type == "cpu" for t in inputs)
        options: dict[str, Any] = {"cpp_wrapper": True} if one_core or cpp else {}
        if one_core:
            options["cpp.threads"] = 1
        same_draws |= on_cpu
        graph, draws = _in_order(graph) if same_draws else (graph, [])
        if same_draws and not _chains_draws():
            options |= {"reorder_for_locality": False, "reorder_for_peak_memory": False}
        examples = [*inputs, *(draw.sample() for draw in draws)]
        if on_cpu:
            options |= cpu_options()
            storages = [t.untyped_storage()._cdata for t in examples]
            shared = tuple(storages.index(storage) for storage in storages)
            options["post_grad_custom_post_pass"] = CPURewrites(one_core and not cpp, shared)
        with settings.patch(fallback_random=same_draws, **options), torch.no_grad():
            generate = partial(_generated, graph, examples)
            code = for_vectors(generate) if on_cpu else generate()
    if not draws:
        return code
    return lambda *tensors: code(*tensors, *[draw.sample() for draw in draws])


def _generated(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Graph:
    from torch._inductor.compile_fx import compile_fx

    with _cached(graph, inputs):
        compiled: Any = compile_fx(graph, list(inputs))
    # A first call that generates code must not take a step of the optimizer.
    compiled(*[copy_of(t) for t in inputs])
    return cast(Graph, compiled)


def _in_order(graph: torch.fx.GraphModule) -> tuple[torch.fx.GraphModule, list[Draw]]:
    """Make the draws of a graph inputs, where the compiler may make them otherwise than eager code.

    It fills memory in the order of the dimensions, and eager code in that of the strides. It chains
    several draws from torch 2.15 on; before, they are independent operations, which it moves to
    where they are used. Where draws cannot be inputs, as of a gamma distribution, all stay; their
    order is then not certain before torch 2.15.
    """
    draws = [node for node in graph.graph.nodes if is_random(node)]
    is_plain = all(
        value.is_contiguous()
        for node in draws
        for value in tree_leaves(node.meta["val"])
        if isinstance(value, Tensor)
    )
    if is_plain and (len(draws) < 2 or _chains_draws()):
        return graph, []
    try:
        return lift_draws(graph)
    except NotLiftedError:
        return graph, []


def _chains_draws() -> bool:
    """Whether torch's compiler keeps the order of draws that equal those of eager code."""
    from torch._inductor.fx_passes import post_grad

    return hasattr(post_grad, "_chain_random_ops_for_ordering")


LARGEST_CONSTANT = 2**16
"""The most numbers of a graph's constants that are compared with those of torch's cache."""


@contextmanager
def _cached(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Iterator[bool]:
    """Let torch look for the code of a graph on a CPU in its cache on disk.

    Torch does so for graphs in a shape environment, as `torch.compile` makes them, and generates
    others in each process. Its key holds the constants' values, and `CPURewrites` which inputs
    share memory.

    Yields:
        Whether the graph is looked for.
    """
    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensor
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    examples = [node.meta.get("val") for node in graph.graph.find_nodes(op="placeholder")]
    modes = {example.fake_mode for example in examples if isinstance(example, FakeTensor)}
    constants = sum(t.numel() for t in (*graph.buffers(), *graph.parameters()))
    on_cpu = all(t.device.type == "cpu" for t in inputs)
    if not on_cpu or constants > LARGEST_CONSTANT or len(modes) != 1:
        yield False
        return
    mode = modes.pop()
    if mode.shape_env is None:  # its tensors have fixed shapes
        mode.shape_env = ShapeEnv()
    with tracing(TracingContext(mode)):
        yield True


def copy_of(tensor: Tensor) -> Tensor:
    """Copy a tensor with its strides, also those of a part of a larger one.

    Args:
        tensor: A tensor without overlapping elements.

    Returns:
        A tensor in memory of its own.
    """
    return torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    ).copy_(tensor)


Record = Callable[
    [Callable[[], Outputs], Sequence[torch.Generator]], tuple[Callable[[], None], Outputs]
]
"""From a function and the generators that it draws from to a replay function and the outputs."""


class Recorded:
    """Graph code recorded as CUDA graphs and replayed by one launch.

    Each recording holds one or several calls.

    Args:
        run: A function of static tensors, which keep their memory (parameters, and tensors that
            are changed in place), and of inputs that are passed in each call.
        record: `cuda_graph`, or a function like it.
        generators: Generators of its draws, in addition to torch's own.
    """

    def __init__(
        self, run: Graph, record: Record, generators: Sequence[torch.Generator] = ()
    ) -> None:
        self._run, self._record, self._generators = run, record, generators
        self._static: list[Tensor] = []
        self._recordings: dict[int, tuple[list[list[Tensor]], Callable[[], None], Outputs]] = {}

    def __call__(self, static: Sequence[Tensor], inputs: Sequence[Tensor]) -> Outputs:
        """Make S calls, one for each row of the inputs.

        The rows are copied to buffers before the replay, which overwrites the outputs of the
        previous one. New static tensors are recorded again.

        Args:
            static: The tensors that keep their memory.
            inputs: Tensors `[S, ...]`.

        Returns:
            Copies of the outputs, each `[S, ...]`.
        """
        count = len(inputs[0])
        if len(static) != len(self._static) or any(
            a is not b for a, b in zip(static, self._static, strict=True)
        ):
            self._static, self._recordings = list(static), {}
        if count not in self._recordings:
            device = static[0].device
            self._recordings[count] = self._recorded(
                [[row.to(device).clone() for row in t] for t in inputs], count
            )
        buffers, replay, outputs = self._recordings[count]
        for rows, tensor in zip(buffers, inputs, strict=True):
            torch._foreach_copy_(rows, list(tensor.to(rows[0].device, non_blocking=True).unbind()))
        replay()
        return tuple(output.clone() for output in outputs)

    def _recorded(
        self, buffers: list[list[Tensor]], count: int
    ) -> tuple[list[list[Tensor]], Callable[[], None], Outputs]:
        def calls() -> Outputs:
            results = [self._run(*self._static, *(r[i] for r in buffers)) for i in range(count)]
            return tuple(torch.stack(outputs) for outputs in zip(*results, strict=True))

        return buffers, *self._record(calls, self._generators)


def cuda_graph(
    run: Callable[[], Outputs], generators: Sequence[torch.Generator] = ()
) -> tuple[Callable[[], None], Outputs]:
    """Record the kernels that a function launches, without executing them.

    Args:
        run: The function; it must not wait for the device.
        generators: Generators of its draws, in addition to torch's own.

    Returns:
        A function that replays the kernels, and the tensors that a replay fills.
    """
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        outputs = run()
    return graph.replay, outputs


def on_device(numbers: float | list[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copy numbers to a device asynchronously.

    Args:
        numbers: A number, or nested lists of numbers.
        dtype: Type of the tensor.
        device: Device of the tensor.

    Returns:
        A tensor of the shape of `numbers`.
    """
    tensor = torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda")
    return tensor.to(device, non_blocking=True)


def should_compile(compile: bool | str, is_long: bool) -> bool:
    """Interpret an argument `compile`.

    Args:
        compile: True, False, or "auto" to compile long work only.
        is_long: Whether the work is long.

    Returns:
        Whether to compile.

    Raises:
        ConfigError: For other strings.

    >>> should_compile("auto", is_long=True), should_compile(False, is_long=True)
    (True, False)
    """
    check_compile_option(compile)
    return is_long if compile == "auto" else bool(compile)


def check_compile_option(compile: bool | str) -> None:
    """Refuse values that an argument `compile` does not take.

    Args:
        compile: True, False or "auto".

    Raises:
        ConfigError: For other values.
    """
    if not isinstance(compile, bool) and compile != "auto":
        raise ConfigError(f"compile takes auto, true or false, not '{compile}'")


def device_of(args: tuple[Any, ...]) -> torch.device:
    """Find the device of the first tensor among arguments.

    Args:
        args: Tensors and other values.

    Returns:
        The device; the CPU without a tensor.
    """
    return next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu"))
