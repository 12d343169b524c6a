"""Trace programs to tensor operations, and describe those that cannot be traced."""

import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode

from pyroae.errors import own_error
from pyroae.programs.sites import Program

LIBRARIES = (
    Path(__file__).parent,
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")),
)
"""Folders of code that is not the user's."""


class UntraceableError(Exception):
    """A program that cannot be one graph; the message says where and why."""


def trace_to_graph(
    function: Callable[..., Any], inputs: Sequence[Tensor], model: Program, guide: Program
) -> torch.fx.GraphModule:
    """Trace a function that runs a model and a guide to its tensor operations.

    Args:
        function: A function of tensors; the programs have run eagerly before.
        inputs: Its arguments.
        model: The model, for the error.
        guide: The guide, for the error.

    Returns:
        The graph, with an input for each of `inputs`.

    Raises:
        UntraceableError: Names the site and the program's own line, where the operations depend on
            values of tensors.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    sites = _Sites(model, guide)
    try:
        with one_mode(), lazy_code(), sites, _OneHotByComparison():
            return make_fx(function)(*inputs)
    except UntraceableError:
        raise
    except Exception as error:  # an error of pyroae too: the eager run had none
        raise UntraceableError(
            ": ".join(filter(None, [sites.where(error), reason_of(error)]))
        ) from error


def one_mode() -> AbstractContextManager[Any]:
    """Return a context in which a function is traced in one mode of torch.

    Without it `make_fx` makes a mode for each number.

    Returns:
        The context.
    """
    return tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True)))


def lazy_code() -> AbstractContextManager[Any]:
    """Return a context in which traced graphs get Python code when they are called.

    Most are rewritten before, or compiled and never called.

    Returns:
        The context; one without effect where torch has no such setting.
    """
    try:
        from torch.fx._lazy_graph_module import _use_lazy_graph_module
    except ImportError:
        return nullcontext()
    return _use_lazy_graph_module(True)


def fixed_shapes() -> AbstractContextManager[Any]:
    """Return a context in which graphs with loops, whose shapes are fixed, can be compiled.

    Returns:
        The context.
    """
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)))


def reason_of(error: BaseException) -> str:
    """Describe an error in one line.

    Args:
        error: Any error; a BrokenProgramError is replaced by its cause.

    Returns:
        At most 200 characters of its message, or its type if that is empty. Torch's message about
        a value that is read out of a traced tensor is shortened.

    >>> reason_of(StopIteration())
    'StopIteration'
    """
    read = r"It appears that you're trying to get value out of a tracing tensor.*"
    error = own_error(error)
    words = " ".join(str(error).split()) or type(error).__name__
    return re.sub(
        read,
        "a number is read out of a tensor, as by .item() or data-dependent control flow",
        words,
    )[:200]


class _OneHotByComparison(TorchFunctionMode):
    """Compute `one_hot`, as in OneHotCategorical, by comparison: torch's own reads the classes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        classes = args[1] if len(args) > 1 else kwargs.get("num_classes", -1)
        if func is not torch.nn.functional.one_hot or not args or classes < 1:
            return func(*args, **kwargs)
        return (args[0].unsqueeze(-1) == torch.arange(classes, device=args[0].device)).long()


class _Sites(Messenger):
    """Record the last sample site of a run, for the text of a warning."""

    def __init__(self, model: Program, guide: Program) -> None:
        super().__init__()
        self.programs = {
            _code(program): name for name, program in (("model", model), ("guide", guide))
        }
        self.program: str | None = None
        self.site: str | None = None
        self.inside = False

    def _pyro_sample(self, msg: Any) -> None:
        if type(msg["fn"]).__name__ != "_Subsample":
            frames = (frame for frame, _ in traceback.walk_stack(sys._getframe()))
            self.program = next(
                (self.programs[f.f_code] for f in frames if f.f_code in self.programs), None
            )
            self.site, self.inside = msg["name"], True

    def _pyro_post_sample(self, msg: Any) -> None:
        self.inside = False

    def where(self, error: BaseException) -> str:
        """The site at or after which an error came, and the program's own line; '' if unknown."""
        frames = list(_frames(error))
        starts = [i for i, (frame, _) in enumerate(frames) if frame.f_code in self.programs]
        if not starts:
            return (
                f"after the last site, '{self.site}' of the {self.program}" if self.program else ""
            )
        program = self.programs[frames[starts[-1]][0].f_code]
        own = [
            (f, line) for f, line in frames[starts[-1] :] if not _is_library(f.f_code.co_filename)
        ]
        frame, line = (own or [frames[starts[-1]]])[-1]
        place = f"({Path(frame.f_code.co_filename).name}, line {line})"
        if self.program != program:
            return f"before the first site of the {program} {place}"
        return f"{'at' if self.inside else 'after'} the site '{self.site}' of the {program} {place}"


def _frames(error: BaseException | None) -> Iterator[tuple[FrameType, int]]:
    """Frames and lines of an error and of its causes, each from the outermost to the innermost."""
    while error is not None:
        yield from traceback.walk_tb(error.__traceback__)
        error = error.__cause__


def _code(program: Program) -> CodeType | None:
    """The code of a function, of a method, or of a module's `forward`."""
    program = getattr(program, "forward", program)
    return getattr(getattr(program, "__func__", program), "__code__", None)


def _is_library(filename: str) -> bool:
    return any(Path(filename).is_relative_to(folder) for folder in LIBRARIES)
