"""Run compiled graphs in phases, several steps a call, each thread on a core of its own.

In a phase every thread runs its own graphs, whose operations are not divided among cores, or one
graph uses all cores; phases end with a barrier. One call of C++ code takes all steps, without
Python's global lock.
"""

import ctypes
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.fx.graph_module import GraphModule

from pyroae.compilation import adam_rows, bernoulli_rows, normal_noise
from pyroae.compilation.adam_rows import AdamRows
from pyroae.compilation.bernoulli_rows import RowSums
from pyroae.compilation.codegen import Graph
from pyroae.compilation.cpu_settings import forget_vectors, untested_vectors

SOURCE = Path(__file__).with_name("step_loop.cpp")
"""The code of the loop."""


VECTORS = Path(__file__).with_name("vectors.cpp")
"""What the code of all kernels begins with."""


ALL = -1
"""The thread of a call that uses all cores."""


ENTRY = "inductor_entry_impl"
"""The function of inductor's C++ wrapper: from handles of inputs to handles of outputs."""


LOCK = "py::gil_scoped_release_simple release;"
"""The statement of inductor's wrapper by which it releases Python's lock, which it must hold."""


class NoEntryError(Exception):
    """Generated code that cannot be called from C++; the message says why."""


@dataclass(frozen=True)
class Call:
    """One graph in a phase of a step.

    Attributes:
        phase: Number of the phase.
        thread: Number of the thread; `ALL` for a graph that uses all cores, alone in its phase.
        graph: Code made within `callable_from_c`, or a kernel.
        inputs: Its inputs.
        result: Where its first output is copied to in step i: row i of a tensor; None for a graph
            without an output.
        sums: What is computed from the second output, contiguous rows, and added to the result.
    """

    phase: int
    thread: int
    graph: Graph | AdamRows
    inputs: Sequence[Tensor]
    result: Tensor | None = None
    sums: RowSums | None = None


@dataclass(frozen=True)
class Copy:
    """A part of a step's source, which a thread copies before the first phase.

    Attributes:
        thread: Number of the thread.
        source: Index of the source among those of a step.
        target: A contiguous tensor of the part's shape.
        shape: The shape of the source, which is contiguous.
        dim: The dimension along which the source is divided; None to copy all of it.
        start: The part's first index in this dimension.
    """

    thread: int
    source: int
    target: Tensor
    shape: torch.Size
    dim: int | None = None
    start: int = 0

    def numbers(self) -> list[int]:
        """Describe the copy for the C++ code.

        Returns:
            Thread, source, offset, target, and the number, distance and size of blocks of bytes.
        """
        size, dim = self.target.element_size(), self.dim
        if dim is None:
            return [self.thread, self.source, 0, self.target.data_ptr(), 1, 0, self.target.nbytes]
        count, inner = self.shape[:dim].numel(), self.shape[dim + 1 :].numel() * size
        block = self.target.shape[dim] * inner
        place = [self.thread, self.source, self.start * inner, self.target.data_ptr()]
        return [*place, count, self.shape[dim] * inner, block]

    def run(self, source: Tensor) -> None:
        """Copy in Python.

        Args:
            source: The source.
        """
        rows = self.target.shape[self.dim] if self.dim is not None else 0
        part = source if self.dim is None else source.narrow(self.dim, self.start, rows)
        self.target.copy_(part)


class StepLoop:
    """Steps of graphs in one call.

    Graphs that are not compiled are run by Python, thread by thread.

    Args:
        threads: The number of threads.
        calls: The graphs, in the order in which a thread runs them within a phase.
        copies: What is copied before a step.

    Raises:
        NoEntryError: If compiled code cannot be called from C++.
    """

    def __init__(self, threads: int, calls: Sequence[Call], copies: Sequence[Copy]) -> None:
        self.threads, self.calls, self.copies = threads, calls, copies
        self._phases = 1 + max(call.phase for call in calls)
        self._is_python = any(isinstance(call.graph, GraphModule) for call in calls)
        if self._is_python:
            return
        self._loop, self._functions = _library().take_steps, _functions()
        self._handles: list[Any] = []
        self._kernels: list[Any] = []
        rows = [self._numbers_of(call) for call in calls]
        weakref.finalize(self, _drop, self._handles, self._functions[1].value)
        self._calls = _array(rows)
        self._copies = _array([copy.numbers() for copy in copies])

    def _numbers_of(self, call: Call) -> list[int]:
        """Describe a call for the C++ code."""
        if isinstance(call.graph, AdamRows):
            arguments = call.graph.arguments(call.inputs)
            self._kernels.append(arguments)
            entry, inputs, count = kernel_address(adam_rows.ENTRY), ctypes.addressof(arguments), -1
        else:
            entry, count = entry_of(call.graph, len(call.inputs)), len(call.inputs)
            self._handles.append(_handles(call.inputs))
            inputs = ctypes.addressof(self._handles[-1])
        place = [call.phase, call.thread, entry, inputs, count, *_place(call.result)]
        if call.sums is None or call.result is None:
            return [*place, 0, 0]
        place[5] = 2
        address = ctypes.addressof(call.sums.arguments)
        return [*place, kernel_address(bernoulli_rows.ENTRY), address]

    def __call__(self, sources: Sequence[Sequence[Tensor]]) -> None:
        """Take S steps.

        Args:
            sources: The sources of each step, contiguous.

        Raises:
            RuntimeError: If a graph fails.
        """
        if self._is_python:
            for step, tensors in enumerate(sources):
                self._run(step, tensors)
            return
        addresses = _array([[t.data_ptr() for t in tensors] for tensors in sources])
        message = ctypes.create_string_buffer(512)
        failed = self._loop(
            *self._functions,
            self.threads,
            len(sources),
            self._phases,
            self._calls,
            len(self.calls),
            self._copies,
            len(self.copies),
            addresses,
            len(sources[0]),
            message,
        )
        if failed:
            raise RuntimeError(message.value.decode(errors="replace"))

    def _run(self, step: int, sources: Sequence[Tensor]) -> None:
        for copy in self.copies:
            copy.run(sources[copy.source])
        for phase in range(self._phases):
            for call in self.calls:
                if call.phase == phase:
                    outputs = call.graph(*call.inputs)
                    if call.result is not None:
                        call.result[step] = outputs[0]
                        if call.sums is not None:
                            sums = call.sums(outputs[1])
                            call.result[step] += sums.view_as(outputs[0])


def _place(result: Tensor | None) -> list[int]:
    """The number of outputs, the address and size of a result, and the distance of rows."""
    if result is None:
        return [0, 0, 0, 0]
    return [1, result.data_ptr(), result[0].nbytes, result.stride(0) * result.itemsize]


@contextmanager
def callable_from_c() -> Iterator[None]:
    """Generate code that a thread without Python's lock can call.

    Returns:
        A context in which inductor generates such code.
    """
    from torch._inductor.codecache import CppWrapperCodeCache

    load = CppWrapperCodeCache.load_pybinding.__func__

    def without_lock(cls: Any, argtypes: Any, main_code: str, *args: Any, **kwargs: Any) -> Any:
        return load(cls, argtypes, main_code.replace(LOCK, ""), *args, **kwargs)

    with mock.patch.object(CppWrapperCodeCache, "load_pybinding", classmethod(without_lock)):
        yield


def entry_of(graph: Graph, num_inputs: int) -> int:
    """Find the address of a graph's code.

    Args:
        graph: What `inductor` returned within `callable_from_c`.
        num_inputs: The number of its inputs.

    Returns:
        The address of a C++ function.

    Raises:
        NoEntryError: If there is none, or if it needs Python's lock or other inputs.
    """
    for function in _within(graph):
        binding = getattr(function, "__globals__", {}).get("inductor_entry")
        path = getattr(getattr(binding, "__self__", None), "__file__", None)
        if path is None:
            continue
        source = Path(path).with_suffix(".cpp").read_text()
        if LOCK in source or f"handles(input_handles, {num_inputs})" not in source:
            raise NoEntryError("the generated code has another form")
        library = ctypes.CDLL(path)
        name = f"_Z{len(ENTRY)}{ENTRY}PP16AtenTensorOpaqueS1_"
        for symbol in (name, ENTRY):
            if hasattr(library, symbol):
                address = ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value
                return address or 0
    raise NoEntryError("the generated code has no entry for C++")


def _within(graph: Any, depth: int = 8) -> Iterator[Any]:
    """The functions that a closure of torch's compiler holds, in breadth-first order."""
    level, seen = [graph], set[int]()
    for _ in range(depth):
        following: list[Any] = []
        for function in level:
            if id(function) in seen:
                continue
            seen.add(id(function))
            yield function
            for cell in getattr(function, "__closure__", None) or ():
                try:
                    following.append(cell.cell_contents)
                except ValueError:
                    continue
            following += [
                value
                for name in ("__wrapped__", "current_callable", "compiled_fn")
                if (value := getattr(function, name, None)) is not None
            ]
        level = following


@cache
def start_compiling() -> Future[Any]:
    """Compile the code of the loop and of the kernels in a thread, beside what is done meanwhile.

    Returns:
        The library, which torch keeps on disk.
    """
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    with untested_vectors():  # the thread would test the instructions
        pick_vec_isa()
    threads = ThreadPoolExecutor(1)
    library = threads.submit(copy_context().run, _compiled)
    threads.shutdown(wait=False)
    return library


def _compiled() -> Any:
    from torch._inductor.codecache import CppCodeCache

    kernels = (module.SOURCE for module in (adam_rows, bernoulli_rows, normal_noise))
    source = "".join(path.read_text() for path in (VECTORS, *kernels, SOURCE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library: Any = CppCodeCache.load(
            source, extra_flags=("-ffp-contract=fast", "-fno-math-errno")
        )
    p, n = ctypes.c_void_p, ctypes.c_int64
    library.take_steps.argtypes = [p, p, p, n, n, n, p, n, p, n, p, n, ctypes.c_char_p]
    library.take_steps.restype = ctypes.c_int
    return library


@cache
def _library() -> Any:
    try:
        return start_compiling().result()
    except Exception:  # a compiler that lacks instructions of the processor: torch tests them
        forget_vectors()
        return _compiled()


def have_kernels() -> bool:
    """Tell whether the code of the loop and of the kernels can be compiled.

    Returns:
        True if there is a library.
    """
    try:
        _library()
    except Exception:  # any error of the compiler
        return False
    return True


def kernel_address(entry: str) -> int:
    """Find the address of a kernel.

    Args:
        entry: Its function.

    Returns:
        The address.
    """
    return ctypes.cast(getattr(_library(), entry), ctypes.c_void_p).value or 0


@cache
def _functions() -> tuple[Any, ...]:
    """Torch's functions that copy and delete a handle, and return the address of its data."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / _name()))
    names = "new_tensor_handle", "delete_tensor_object", "get_data_ptr"
    return tuple(ctypes.cast(getattr(library, f"aoti_torch_{n}"), ctypes.c_void_p) for n in names)


def _name() -> str:
    import sys

    return "libtorch_cpu.dylib" if sys.platform == "darwin" else "libtorch_cpu.so"


def _handles(tensors: Sequence[Tensor]) -> Any:
    """Handles of tensors as an array of pointers."""
    address: Callable[..., Any] = ctypes.pythonapi.PyCapsule_GetPointer
    address.restype, address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]  # type: ignore[attr-defined]
    capsules = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(tensors))
    return (ctypes.c_void_p * len(tensors))(*[address(c, None) for c in capsules])


def _drop(arrays: Sequence[Any], function: int) -> None:
    delete = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(function)
    for array in arrays:
        for handle in array:
            delete(handle)


def _array(rows: Sequence[Sequence[int]]) -> Any:
    numbers = [number for row in rows for number in row]
    return (ctypes.c_int64 * len(numbers))(*numbers)
