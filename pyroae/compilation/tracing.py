"""Programs traced to the tensor operations they are made of, and the words for those that cannot be."""

import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyroae.errors import own_error
from pyroae.programs.sites import Program

LIBRARIES = (
    Path(__file__).parent,
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")),
)
"""Where code lies that is none of the user's."""


class Untraceable(Exception):
    """A program that cannot be one graph; the message says where and why."""


def traced(
    function: Callable[..., Any], inputs: Sequence[Tensor], model: Program, guide: Program
) -> torch.fx.GraphModule:
    """The tensor operations of a function that runs these programs, which have been run as they are before.

    Raises Untraceable, which names the site and the program's own line, where they depend on values.
    """
    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    one_mode = tracing(
        TracingContext(FakeTensorMode(allow_fallback_kernels=True))
    )  # else make_fx makes one for each number
    sites = _Sites(model, guide)
    try:
        with one_mode, sites, _Comparing():
            return make_fx(function)(*inputs)
    except Untraceable:
        raise
    except Exception as error:  # an error of pyroae too: without the tracer there was none
        raise Untraceable(
            ": ".join(filter(None, [sites.where(error), reason_of(error)]))
        ) from error


def reason_of(error: BaseException) -> str:
    """The words of an error, in one line."""
    read = r"It appears that you're trying to get value out of a tracing tensor.*"
    error = own_error(error)
    words = " ".join(str(error).split()) or type(error).__name__
    return re.sub(
        read,
        "a number is read out of a tensor, as by .item() or data-dependent control flow",
        words,
    )[:200]


class _Comparing(TorchFunctionMode):
    """`one_hot`, as in OneHotCategorical, by comparison: torch's own reads the classes back to check them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        classes = args[1] if len(args) > 1 else given.get("num_classes", -1)
        if func is not torch.nn.functional.one_hot or not args or classes < 1:
            return func(*args, **given)
        return (args[0].unsqueeze(-1) == torch.arange(classes, device=args[0].device)).long()


class _Sites(Messenger):
    """Remembers the last sample site of a run, for the words of a warning."""

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
        """The site at which, or after which, an error came, and the program's own line; '' where no site is known."""
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
    """The frames of an error and of its causes, from the outermost to the innermost, with their lines."""
    while error is not None:
        yield from traceback.walk_tb(error.__traceback__)
        error = error.__cause__


def _code(program: Program) -> CodeType | None:
    """The code of a function, of a method, or of a module's `forward`."""
    program = getattr(program, "forward", program)
    return getattr(getattr(program, "__func__", program), "__code__", None)


def _is_library(filename: str) -> bool:
    return any(Path(filename).is_relative_to(folder) for folder in LIBRARIES)
