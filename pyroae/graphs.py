"""What every compiled thing shares: a traced graph made into code, and a way back where that cannot be done."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import pyro
import torch
from torch import Tensor

from pyroae.errors import PyroaeError
from pyroae.weights import fork_random

Graph = Callable[..., tuple[Tensor, ...]]


def made(make: Callable[[], Graph], device: torch.device) -> Graph | None:
    """What `make` gives; None, with a warning, where it cannot be compiled. The generators stay as they were."""
    try:
        with fork_random(device), pyro.validation_enabled(False):
            return make()
    except PyroaeError:
        raise
    except Exception as error:  # whatever the programs or the compiler have to say
        reason = " ".join(str(error).split())[:200]
        warnings.warn(f"model and guide are run as they are, not compiled: {reason}", stacklevel=5)
        return None


def inductor(graph: torch.fx.GraphModule, inputs: Sequence[Tensor], same_draws: bool) -> Graph:
    """Code for a graph. On a CPU the draws stay torch's own: they are the same as in eager code, and no slower."""
    import torch._inductor.config as settings
    from torch._inductor.compile_fx import compile_fx

    from pyroae.passes import BiasApart

    on_cpu = all(t.device.type == "cpu" for t in inputs)
    passes: dict[str, Any] = {"post_grad_custom_post_pass": BiasApart()} if on_cpu else {}
    with settings.patch(fallback_random=same_draws or on_cpu, **passes), torch.no_grad():
        compiled: Any = compile_fx(graph, list(inputs))
        compiled(*[t.clone() for t in inputs])  # code is made when it is first called, and a step must not be taken
    return cast(Graph, compiled)


def device_of(args: tuple[Any, ...]) -> torch.device:
    """Of the first tensor among the arguments."""
    return next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu"))
