"""Random draws lifted out of a traced graph: they become its inputs, made beside it from a generator of one's own.

A draw with parameters that are numbers is an input itself. One whose parameters the graph works out is made of noise that has
none, as torch makes it on a CPU:

    normal = std ε + mean,   bernoulli = [u < p],   one draw of a multinomial = argmax p / e

so that a generator gives the very numbers that the graph would have drawn from it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.graph_module import GraphModule

aten = torch.ops.aten


IN_PLACE = (
    *(
        aten.normal_.default,
        aten.uniform_.default,
        aten.exponential_.default,
        aten.bernoulli_.float,
    ),
    *(aten.cauchy_.default, aten.log_normal_.default, aten.geometric_.default),
)


FRESH = {
    **dict.fromkeys((aten.randn.default, aten.randn_like.default), "normal_"),
    **dict.fromkeys((aten.rand.default, aten.rand_like.default), "uniform_"),
}


OF_TENSORS = (aten.normal.Tensor_Tensor, aten.normal.Tensor_float, aten.normal.float_Tensor)


EMPTY = (
    *(
        aten.empty.memory_format,
        aten.empty_like.default,
        aten.empty_strided.default,
        aten.new_empty.default,
    ),
    *(
        aten.zeros.default,
        aten.zeros_like.default,
        aten.new_zeros.default,
        aten.new_empty_strided.default,
    ),
)


class NotLiftedError(Exception):
    """A draw that cannot be made beside its graph; the message names it."""


@dataclass(frozen=True)
class Draw:
    """Noise that a graph takes: the method of tensors that fills one, its parameters, and how the tensor lies in memory."""

    method: str
    parameters: tuple[float, ...]
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def room(self, members: int) -> Tensor:
        """An empty tensor `[members, *shape]`, in which each member's part lies as the draw did."""
        apart = max(
            (size * stride for size, stride in zip(self.shape, self.stride, strict=True)), default=1
        )
        return torch.empty_strided(
            (members, *self.shape), (apart, *self.stride), dtype=self.dtype, device=self.device
        )

    def fill(self, tensor: Tensor, generator: torch.Generator) -> None:
        """Draw, in place."""
        getattr(tensor, self.method)(*self.parameters, generator=generator)


def lifted(traced: GraphModule) -> tuple[GraphModule, list[Draw]]:
    """The graph with its draws as further inputs, after all others, in the order in which they are to be made.

    Raises NotLiftedError for a draw that has no such form, as that of a gamma distribution.
    """
    module = GraphModule(traced, _copy(traced.graph))
    graph: fx.Graph = module.graph
    draws: list[Draw] = []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in [n for n in graph.nodes if is_random(n)]:
        with graph.inserting_after(last):
            last = noise = graph.placeholder(f"draw_{len(draws)}")
        with graph.inserting_before(node):
            draw, value = _replaced(graph, node, noise)
        with node.meta["val"].fake_mode:
            noise.meta["val"] = draw.room(1)[0]
        draws.append(draw)
        node.replace_all_uses_with(value)
        graph.erase_node(node)
    module.recompile()
    return module, draws


def _replaced(graph: fx.Graph, node: fx.Node, noise: fx.Node) -> tuple[Draw, fx.Node]:
    """The noise that stands for a draw, and the node that has the draw's value."""
    target, given = node.target, _arguments(node)
    call: Callable[..., fx.Node] = graph.call_function
    if given.get("generator") is not None:
        raise NotLiftedError(f"the draw '{target}' has a generator of its own")
    if target in IN_PLACE:
        tensor, *parameters = given.values()
        if tensor.target not in EMPTY or len(tensor.users) > 1:
            raise NotLiftedError(
                f"the draw '{target}' is made into a tensor that is used elsewhere"
            )
        name = str(target).split(".")[1]
        return _draw(node, name, *parameters[:-1]), noise
    if target in FRESH:
        return _draw(node, FRESH[target]), noise
    if target in OF_TENSORS:
        scaled = call(aten.mul.Tensor, (noise, given["std"]))
        return _draw(node, "normal_"), call(aten.add.Tensor, (scaled, given["mean"]))
    if target is aten.bernoulli.default:
        below = call(aten.lt.Tensor, (noise, given["self"]))
        return _draw(node, "uniform_"), call(
            aten._to_copy.default, (below,), {"dtype": node.meta["val"].dtype}
        )
    if target is aten.multinomial.default and given["num_samples"] == 1:
        share = call(aten.div.Tensor, (given["self"], noise))
        return _draw(given["self"], "exponential_"), call(aten.argmax.default, (share, -1, True))
    raise NotLiftedError(f"the draw '{target}' cannot be made beside the graph")


def _draw(like: fx.Node, method: str, *parameters: float) -> Draw:
    value: Tensor = torch.empty_like(
        like.meta["val"]
    )  # dense, where the parameters of the draw are expanded
    return Draw(
        method, parameters, tuple(value.shape), tuple(value.stride()), value.dtype, value.device
    )


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by name, in their order, those that are left out too."""
    schema: Any = node.target._schema  # type: ignore[union-attr]
    given = {a.name: a.default_value for a in schema.arguments}
    return {**given, **dict(zip(given, node.args, strict=False)), **node.kwargs}


def _copy(graph: fx.Graph) -> fx.Graph:
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    return copied


def is_random(node: fx.Node) -> bool:
    """Whether an operation takes from a generator."""
    return node.op == "call_function" and torch.Tag.nondeterministic_seeded in getattr(
        node.target, "tags", ()
    )
