"""Whether a batch can be divided into parts whose gradients add up, and what each part computes.

A traced graph of the loss and its gradients is compared with one for a part of the batch: each
random draw must differ in one dimension, by the number of parts, and in double precision the loss
and the gradients of the parts must have the sum of the whole.

The gradient of a linear layer's weight is a product Dᵀ R whose rows are summed over the batch. A
part then computes its rows of D and R only; the thread that updates rows of the weight multiplies.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.graph_module import GraphModule

from pyroae.compilation.noise_inputs import Draw

aten = torch.ops.aten


TOLERANCE = 1e-9
"""Largest difference of a sum of gradients, in double precision, relative to the largest one."""


TRANSPOSES = (aten.t.default, aten.transpose.int, aten.permute.default)
"""Operations that exchange the two dimensions of a matrix."""


VIEWS = (aten.view.default, aten._unsafe_view.default, aten.detach.default, aten.alias.default)
"""Operations that do not change the order of the elements."""


@dataclass(frozen=True)
class Product:
    """A term Dᵀ R of a weight's gradient.

    Attributes:
        left: The node that is D, or Dᵀ.
        is_transposed: Whether `left` is Dᵀ and `right` is R; else they are D and Rᵀ.
        right: The node that is R, or Rᵀ.
        argument: Place of the input that R is a view of, all rows of the batch in order; None if R
            is computed.
    """

    left: fx.Node
    right: fx.Node
    is_transposed: bool
    argument: int | None


def products_of(node: fx.Node, inputs: Sequence[fx.Node | None]) -> list[Product] | None:
    """Write a weight's gradient as a sum of products.

    Args:
        node: The gradient, an output of the graph.
        inputs: The arguments that are divided, as inputs of the graph.

    Returns:
        The products; None for another form.
    """
    is_transposed = False
    while node.target in (*TRANSPOSES, aten.detach.default, aten.alias.default):
        if node.target in TRANSPOSES:
            if node.meta["val"].ndim != 2:
                return None
            identity = node.target is aten.permute.default and list(node.args[1]) == [0, 1]  # type: ignore[arg-type]
            is_transposed ^= not identity
        node = node.all_input_nodes[0]
    if node.target is aten.add.Tensor and not node.kwargs and not is_transposed:
        parts = [products_of(n, inputs) if isinstance(n, fx.Node) else None for n in node.args]
        return None if any(p is None for p in parts) else [p for part in parts for p in part or []]
    if node.target is not aten.mm.default:
        return None
    left, right = (
        node.all_input_nodes if len(node.all_input_nodes) == 2 else 2 * node.all_input_nodes
    )
    if is_transposed:
        return [Product(right, left, False, None)]
    source = right
    while source.target in VIEWS:
        source = source.all_input_nodes[0]
    return [Product(left, right, True, inputs.index(source) if source in inputs else None)]


def parts_of(whole: Sequence[Draw], part: Sequence[Draw], parts: int) -> list[int] | None:
    """Find the dimension of each draw that is divided among the parts.

    Args:
        whole: The draws of the whole batch.
        part: The draws of a part.
        parts: The number of parts.

    Returns:
        A dimension for each draw; None if a draw cannot be divided so.

    >>> one, half = (Draw("normal_", (), (3, n), (n, 1), torch.float32, torch.device("cpu"))
    ...              for n in (8, 4))
    >>> parts_of([one], [half], 2), parts_of([one], [one], 2)
    ([1], None)
    """
    if len(whole) != len(part):
        return None
    dims = []
    for one, other in zip(whole, part, strict=True):
        sizes = list(zip(one.shape, other.shape, strict=False))
        different = [i for i, (a, b) in enumerate(sizes) if a != b]
        is_alike = (one.method, one.parameters, one.dtype) == (
            other.method,
            other.parameters,
            other.dtype,
        )
        if len(one.shape) != len(other.shape) or len(different) != 1 or not is_alike:
            return None
        if sizes[different[0]][0] != parts * sizes[different[0]][1]:
            return None
        if not one.is_contiguous or not other.is_contiguous:
            return None
        dims.append(different[0])
    return dims


def adds_up(
    whole: GraphModule,
    part: GraphModule,
    inputs: Sequence[Tensor],
    dims: Sequence[int | None],
    parts: int,
) -> bool:
    """Compare the sum of the parts' outputs with those of the whole, in double precision.

    Args:
        whole: The graph of the whole batch.
        part: The graph of a part.
        inputs: The inputs of `whole`.
        dims: The dimension along which each input is divided; None if each part has all of it.
        parts: The number of parts.

    Returns:
        Whether each output of `whole` is the sum of those of `part`.
    """
    expected = _double(whole, inputs)
    total = [torch.zeros_like(t) for t in expected]
    for rows in divided(inputs, dims, parts):
        total = [a + b for a, b in zip(total, _double(part, rows), strict=True)]
    # A constant that each part has again is compared with the whole gradient, not with its own.
    scale = max((t.abs().max() for t in expected if t.numel()), default=torch.ones(()))
    return all(
        bool(((a - b).abs() <= TOLERANCE * torch.maximum(b.abs().max(), 1e-3 * scale)).all())
        for a, b in zip(total, expected, strict=True)
        if a.numel()
    )


def divided(
    inputs: Sequence[Tensor], dims: Sequence[int | None], parts: int
) -> Iterator[list[Tensor]]:
    """Iterate over the inputs of the parts.

    Args:
        inputs: The inputs of the whole batch.
        dims: The dimension along which each input is divided; None if each part has all of it.
        parts: The number of parts.

    Yields:
        The inputs of a part.
    """
    for i in range(parts):
        yield [
            t if dim is None else t.chunk(parts, dim)[i].contiguous()
            for t, dim in zip(inputs, dims, strict=True)
        ]


def _double(graph: GraphModule, inputs: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        outputs: Any = _Double(graph).run(*[_doubled(t) for t in inputs])
    return [_doubled(t) for t in outputs]


def _doubled(value: Any) -> Any:
    is_real = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().double() if is_real else value


class _Double(fx.Interpreter):
    """Run a graph with every number of reduced precision in double precision."""

    def run_node(self, n: fx.Node) -> Any:
        """Run an operation on numbers in double precision.

        Args:
            n: The node.

        Returns:
            Its value.
        """
        return _doubled(super().run_node(n))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call an operation that makes numbers in double precision, where it makes real ones.

        Args:
            target: The operation.
            args: Its arguments.
            kwargs: Its keyword arguments.

        Returns:
            Its result.
        """
        change = {
            name: torch.float64
            for name, value in kwargs.items()
            if isinstance(value, torch.dtype) and value.is_floating_point
        }
        args = tuple(
            torch.float64 if isinstance(a, torch.dtype) and a.is_floating_point else a for a in args
        )
        return super().call_function(target, args, {**kwargs, **change})
