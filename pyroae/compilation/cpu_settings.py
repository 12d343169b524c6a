"""Settings of code for a CPU: fused multiply-add, vector instructions."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock


def cpu_options() -> dict[str, Any]:
    """Choose torch's settings of code for a CPU.

    The C++ compiler may round a b + c once, which it does not by default: polynomials and sums of
    products then take half of the instructions. Torch's headers are not compiled for themselves,
    unless its environment variable says so: this takes the time that it saves in four graphs, and
    150 MB.

    Returns:
        Names and values of torch's settings.
    """
    import torch._inductor.config as settings

    options: dict[str, Any] = {}
    name = "enable_floating_point_contract_flag"
    if hasattr(settings.cpp, name):
        options[f"cpp.{name}"] = "fast"
    name = "cpp_cache_precompile_headers"
    if hasattr(settings, name) and f"TORCHINDUCTOR_{name.upper()}" not in os.environ:
        options[name] = False
    return options


def for_vectors[T](generate: Callable[[], T]) -> T:
    """Generate code for the processor's vector instructions, without torch's tests of them.

    The tests compile a program for each set of instructions, which takes 5 s in a new cache. They
    are made where the compiler or torch lack the instructions: the code then has failed to compile
    or to load, and is generated again.

    Args:
        generate: Generates and loads code; without arguments.

    Returns:
        The result of `generate`.
    """
    try:
        with untested_vectors():
            return generate()
    except Exception as error:
        cause = getattr(error, "inner_exception", error)
        if not isinstance(cause, OSError | ImportError) and "C++ compile error" not in str(error):
            raise
    forget_vectors()
    return generate()


@contextmanager
def untested_vectors() -> Iterator[None]:
    """Let torch take every set of vector instructions of the processor to be usable.

    Torch keeps the answer for the process. A setting of torch that gives the answer stays.

    Returns:
        A context without torch's tests of the instructions.
    """
    import torch._inductor.config as settings
    from torch._inductor.cpu_vec_isa import VecISA

    with ExitStack() as stack:
        is_open = settings.cpp.vec_isa_ok is None
        if is_open:
            stack.enter_context(settings.patch({"cpp.vec_isa_ok": True}))
        if is_open and hasattr(VecISA, "check_build"):
            stack.enter_context(mock.patch.object(VecISA, "check_build", return_value=True))
        yield


def forget_vectors() -> None:
    """Let torch test the vector instructions, whose sets it has taken to be usable."""
    from torch._inductor import cpu_vec_isa

    for isa in cpu_vec_isa.supported_vec_isa_list:
        for name in [name for name in vars(isa) if name.startswith("_is_")]:
            delattr(isa, name)
    kinds = {kind for isa in cpu_vec_isa.supported_vec_isa_list for kind in type(isa).__mro__}
    for place in (cpu_vec_isa, *kinds):
        for function in vars(place).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()
