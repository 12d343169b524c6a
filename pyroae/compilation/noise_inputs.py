"""Random draws lifted out of a traced graph: they become inputs, filled from a given generator.

A draw whose parameters are numbers is an input itself. A draw whose parameters are computed by the
graph is a function of noise without parameters, as torch computes it on a CPU:

    normal = std ε + mean,   bernoulli = [u < p],   one draw of a multinomial = argmax p / e

so that a generator gives the same numbers that the graph would have drawn from it. Other draws, of
gamma, Dirichlet or Poisson distributions, are inputs too where a graph of their parameters is run
before (`ParametricDraw`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.graph_module import GraphModule

aten = torch.ops.aten


IN_PLACE = (
    aten.normal_.default,
    aten.uniform_.default,
    aten.exponential_.default,
    aten.bernoulli_.float,
    aten.cauchy_.default,
    aten.log_normal_.default,
    aten.geometric_.default,
)
"""Draws that fill a tensor, with numbers as parameters."""


FRESH = {
    **dict.fromkeys((aten.randn.default, aten.randn_like.default), "normal_"),
    **dict.fromkeys((aten.rand.default, aten.rand_like.default), "uniform_"),
}
"""Draws that make a tensor, with the method of tensors that fills one in the same way."""


OF_TENSORS = (aten.normal.Tensor_Tensor, aten.normal.Tensor_float, aten.normal.float_Tensor)
"""Normal draws with tensors as parameters."""


EMPTY = (
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.zeros.default,
    aten.zeros_like.default,
    aten.new_zeros.default,
    aten.new_empty_strided.default,
)
"""Operations that make the tensors which draws of IN_PLACE may fill."""


class NotLiftedError(Exception):
    """A draw that cannot be an input of its graph; the message names it."""


@dataclass(frozen=True)
class Draw:
    """Noise that is an input of a graph.

    Attributes:
        method: Name of the method of tensors that fills one.
        parameters: Its arguments.
        shape: Shape of the tensor.
        stride: Strides of the tensor.
        dtype: Type of the tensor.
        device: Device of the tensor.
    """

    method: str
    parameters: tuple[float, ...]
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def is_contiguous(self) -> bool:
        """Whether elements are stored in their order."""
        return torch.empty_strided(self.shape, self.stride, device="meta").is_contiguous()

    def empty(self, members: int) -> Tensor:
        """Allocate the noise of several members.

        Args:
            members: The number M of members.

        Returns:
            An empty tensor `[M, *shape]`, in which each member's part has the draw's strides.
        """
        between = max(
            (size * stride for size, stride in zip(self.shape, self.stride, strict=True)), default=1
        )
        return torch.empty_strided(
            (members, *self.shape),
            (between, *self.stride),
            dtype=self.dtype,
            device=self.device,
        )

    def sample(self) -> Tensor:
        """Draw from torch's own generator.

        Returns:
            A new tensor of `shape`, with the draw's strides.
        """
        tensor = self.empty(1)[0]
        self.fill(tensor, None)
        return tensor

    def fill(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        """Draw into a tensor, in place.

        Args:
            tensor: A tensor of `shape`, with the draw's strides.
            generator: A generator on the tensor's device; None for torch's own.
        """
        getattr(tensor, self.method)(*self.parameters, generator=generator)


@dataclass(frozen=True)
class ParametricDraw:
    """A draw with parameters that a graph computes; it is an input of another graph.

    Attributes:
        target: The operation, which takes a generator.
        parameters: From the inputs of the graph and the draws before this one to the arguments of
            the operation that are tensors.
        arguments: All arguments, each a value, or the index of a result of `parameters`.
        is_tensor: Whether each argument is such an index.
    """

    target: Callable[..., Tensor]
    parameters: GraphModule
    arguments: dict[str, Any]
    is_tensor: dict[str, bool]

    def draw(self, tensors: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """Draw.

        Args:
            tensors: The results of `parameters`.
            generator: A generator on the CPU.

        Returns:
            The value of the draw.
        """
        values = {
            name: tensors[value] if self.is_tensor[name] else value
            for name, value in self.arguments.items()
        }
        return self.target(**{**values, "generator": generator})


def lift_draws(module: GraphModule) -> tuple[GraphModule, list[Draw]]:
    """Replace the random draws of a graph by further inputs.

    Args:
        module: The traced graph; it does not change.

    Returns:
        The graph with a last input for each draw, and the draws, in the order of the inputs.

    Raises:
        NotLiftedError: For a draw that is no function of noise without parameters, such as a draw
            of a gamma distribution.

    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> graph = make_fx(lambda mean: mean + torch.randn(3))(torch.zeros(3))
    >>> without_draws, (draw,) = lift_draws(graph)
    >>> draw.method, draw.shape, without_draws(torch.ones(3), torch.ones(3))
    ('normal_', (3,), tensor([2., 2., 2.]))
    """
    lifted, draws = _lifted(module, parametric=False)
    return lifted, [draw for draw in draws if isinstance(draw, Draw)]


def lift_all_draws(module: GraphModule) -> tuple[GraphModule, list[Draw | ParametricDraw]]:
    """Replace the random draws of a graph by further inputs, those with parameters too.

    Args:
        module: The traced graph; it does not change.

    Returns:
        The graph with a last input for each draw, and the draws, in the order of the inputs.

    Raises:
        NotLiftedError: For a draw into a tensor that is used elsewhere, or without a generator.

    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> graph = make_fx(lambda rate: torch.poisson(2 * rate) + 1)(torch.ones(3))
    >>> without_draws, (draw,) = lift_all_draws(graph)
    >>> without_draws(torch.ones(3), torch.zeros(3)), draw.parameters(torch.ones(3))
    (tensor([1., 1., 1.]), (tensor([2., 2., 2.]),))
    """
    return _lifted(module, parametric=True)


def _lifted(
    module: GraphModule, parametric: bool
) -> tuple[GraphModule, list[Draw | ParametricDraw]]:
    module = GraphModule(module, _copy(module.graph))
    graph: fx.Graph = module.graph
    draws: list[Draw | ParametricDraw] = []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in [n for n in graph.nodes if is_random(n)]:
        with graph.inserting_after(last):
            last = noise = graph.placeholder(f"draw_{len(draws)}")
        draw: Draw | ParametricDraw
        with graph.inserting_before(node):
            if parametric and _has_parameters(node):
                draw, value = _parametric(module, node, noise)
            else:
                draw, value = _replaced(graph, node, noise)
        with node.meta["val"].fake_mode:
            example = draw.empty(1)[0] if isinstance(draw, Draw) else node.meta["val"].contiguous()
        noise.meta["val"] = value.meta["val"] = example
        draws.append(draw)
        node.replace_all_uses_with(value)
        graph.erase_node(node)
    module.recompile()
    return module, draws


def _has_parameters(node: fx.Node) -> bool:
    """Whether a draw is no function of noise, but can be made outside of its graph."""
    target: Any = node.target
    if target in (*IN_PLACE, *FRESH, *OF_TENSORS, aten.bernoulli.default):
        return False
    arguments = _arguments(node)
    if target is aten.multinomial.default and arguments["num_samples"] == 1:
        return False
    return not target._schema.is_mutable and arguments.get("generator", node) is None


def _parametric(
    module: GraphModule, node: fx.Node, noise: fx.Node
) -> tuple[ParametricDraw, fx.Node]:
    """The draw, and a copy of its value, which later operations may change in place."""
    arguments = _arguments(node)
    is_tensor = {name: isinstance(value, fx.Node) for name, value in arguments.items()}
    nodes = [value for value in arguments.values() if isinstance(value, fx.Node)]
    copied = fx.Graph()
    into: dict[fx.Node, fx.Node] = {}
    for other in module.graph.nodes:
        if other is noise:  # the draws after this one are no inputs of its parameters
            continue
        if other is node:
            break
        into[other] = copied.node_copy(other, into.__getitem__)
    copied.output(tuple(into[n] for n in nodes))
    copied.eliminate_dead_code()
    indices = iter(range(len(nodes)))
    values = {n: next(indices) if is_tensor[n] else value for n, value in arguments.items()}
    target: Any = node.target
    draw = ParametricDraw(target, GraphModule(module, copied), values, is_tensor)
    return draw, module.graph.call_function(aten.clone.default, (noise,))


def _replaced(graph: fx.Graph, node: fx.Node, noise: fx.Node) -> tuple[Draw, fx.Node]:
    """The noise behind a draw, and the node that computes the draw's value from it."""
    target, arguments = node.target, _arguments(node)
    call: Callable[..., fx.Node] = graph.call_function
    if arguments.get("generator") is not None:
        raise NotLiftedError(f"the draw '{target}' has a generator of its own")
    if target in IN_PLACE:
        tensor, *parameters = arguments.values()
        if tensor.target not in EMPTY or len(tensor.users) > 1:
            raise NotLiftedError(
                f"the draw '{target}' is made into a tensor that is used elsewhere"
            )
        name = str(target).split(".")[1]
        return _draw(node, name, *parameters[:-1]), noise
    if target in FRESH:
        return _draw(node, FRESH[target]), noise
    if target in OF_TENSORS:
        scaled = call(aten.mul.Tensor, (noise, arguments["std"]))
        return _draw(node, "normal_"), call(aten.add.Tensor, (scaled, arguments["mean"]))
    if target is aten.bernoulli.default:
        below = call(aten.lt.Tensor, (noise, arguments["self"]))
        return _draw(node, "uniform_"), call(
            aten._to_copy.default, (below,), {"dtype": node.meta["val"].dtype}
        )
    if target is aten.multinomial.default and arguments["num_samples"] == 1:
        ratio = call(aten.div.Tensor, (arguments["self"], noise))
        argmax = call(aten.argmax.default, (ratio, -1, True))
        return _draw(arguments["self"], "exponential_"), argmax
    raise NotLiftedError(f"the draw '{target}' cannot be made outside of the graph")


def _draw(like: fx.Node, method: str, *parameters: float) -> Draw:
    # Dense, also where the parameters of the draw are expanded.
    value: Tensor = torch.empty_like(like.meta["val"])
    return Draw(
        method, parameters, tuple(value.shape), tuple(value.stride()), value.dtype, value.device
    )


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Names and values of a call's arguments, in the order of its schema, with defaults."""
    schema: Any = node.target._schema  # type: ignore[union-attr]
    defaults = {a.name: a.default_value for a in schema.arguments}
    return {**defaults, **dict(zip(defaults, node.args, strict=False)), **node.kwargs}


def _copy(graph: fx.Graph) -> fx.Graph:
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    return copied


def is_random(node: fx.Node) -> bool:
    """Tell whether an operation draws from a generator.

    Args:
        node: A node of a graph.

    Returns:
        True for a random operation of torch.
    """
    return node.op == "call_function" and torch.Tag.nondeterministic_seeded in getattr(
        node.target, "tags", ()
    )
