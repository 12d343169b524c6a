"""Rewrites of a graph for CPUs, before inductor generates code.

Import this module only where something is compiled: it imports the compiler.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import torch
from torch._inductor.cpu_vec_isa import pick_vec_isa
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from pyroae.compilation import onednn
from pyroae.compilation.onednn import LAYER, is_available, is_faster

aten = torch.ops.aten


MOST_FACTORS = 120
"""Most factors, each from 1 to 2, of a product: single precision holds 2¹²⁷."""


LEAST_PRODUCT = 2**24
"""Multiplications of a product from which oneDNN is used: a call of it takes 20 µs more."""


FEWEST = 4
"""Largest inner size, or number of columns, of a product that is computed by a loop."""


SMALL_PRODUCT = 2**15
"""Most multiplications of a product that is computed by a loop."""


TANH_LIMIT = 7.90531110763549805
"""Arguments of tanh beyond it are clamped to it."""


TANH_ABOVE = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
"""Coefficients of P, the highest power first."""


TANH_BELOW = (
    1.19825839466702e-06,
    1.18534705686654e-04,
    2.26843463243900e-03,
    4.89352518554385e-03,
)
"""Coefficients of Q, the highest power first."""


EXP_LIMIT = 17.5
"""Arguments of exp below minus this are set to it: 1 + exp(−17.5) rounds to 1."""


EXP_SQUARINGS = 3
"""The polynomial is that of expm1(y / 2³)."""


EXP_COEFFICIENTS = (
    5.65668092e-13,
    7.24444942e-11,
    4.9897416e-09,
    2.51826515e-07,
    1.01613305e-05,
    3.25495504e-04,
    7.81247763e-03,
    0.124999997,
)
"""Coefficients of expm1(y / 2³) / y, the highest power first."""


class CPURewrites(CustomGraphPass):
    """The rewrites for CPUs.

    They are `split_bias`, `sum_small_products`, `multiply_before_log` and `divide_polynomials`.

    Args:
        one_core: Whether the code runs on one core and is called from Python; small products are
            then loops, and layers use oneDNN, where it is available and faster than MKL.
        shared: For each input of the graph the first input that has the same memory.
    """

    def __init__(self, one_core: bool = False, shared: tuple[int, ...] = ()) -> None:
        self.one_core, self.shared = one_core, shared

    def __call__(self, graph: Graph) -> None:
        """Rewrite a graph in place.

        Args:
            graph: The graph, after the passes of inductor.
        """
        if self.one_core and is_available() and is_faster():
            use_onednn(graph)
        split_bias(graph)
        if self.one_core:
            sum_small_products(graph)
        multiply_before_log(graph)
        divide_polynomials(graph)

    def uuid(self) -> bytes:
        """Identify the rewrites in torch's cache of compiled graphs.

        Returns:
            A hash of the files of the rewrites and of their operator, of the arguments, and of the
            vector instructions and the maker of the processor, on which the code depends.
        """
        settings = f"{self.one_core}, {self.shared}, {pick_vec_isa()}, {is_faster()}"
        return get_hash_for_files((__file__, onednn.__file__), settings)


def split_bias(graph: Graph) -> None:
    """Compute b + x W as a product and a sum, which becomes part of the next loop.

    `addmm` first copies the bias into every row of the result, on one core, which is a third of the
    time of a likelihood.

    Args:
        graph: The graph, changed in place.
    """
    for node in graph.find_nodes(op="call_function", target=aten.addmm.default):
        if node.kwargs:
            continue
        bias, left, right = node.args
        with graph.inserting_before(node):
            product = graph.call_function(aten.mm.default, (left, right))
            total = graph.call_function(aten.add.Tensor, (product, bias))
        product.meta["val"] = total.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(total)
        graph.erase_node(node)


def sum_small_products(graph: Graph) -> None:
    """Compute a small product of few columns, or of a small inner size, as sums in a loop.

        (A B)_mn = Σ_k A_mk B_kn

    The loop includes what is computed from the product, or what A is computed from. A call of a
    product takes 1 µs without its arithmetic, which is as much as a loop takes for 80 rows, 64
    columns and an inner size of 2.

    Args:
        graph: The graph, changed in place.
    """
    for node in graph.find_nodes(op="call_function", target=aten.mm.default):
        left, right = node.args
        a, b = left.meta["val"], right.meta["val"]
        count, columns = b.shape
        if a.dtype not in (torch.float32, torch.float64):
            continue
        if not 0 < a.numel() * columns <= SMALL_PRODUCT:
            continue
        call = partial(_call, graph)
        with graph.inserting_before(node), a.fake_mode:
            if count <= FEWEST:
                terms = [
                    call(
                        aten.mul.Tensor,
                        call(aten.slice.Tensor, left, 1, k, k + 1),
                        call(aten.slice.Tensor, right, 0, k, k + 1),
                    )
                    for k in range(count)
                ]
                product = reduce(partial(call, aten.add.Tensor), terms)
            elif columns <= FEWEST and a.stride(1) == 1:
                sums = [
                    call(
                        aten.sum.dim_IntList,
                        call(aten.mul.Tensor, left, call(aten.select.int, right, 1, n)),
                        [1],
                        True,
                    )
                    for n in range(columns)
                ]
                product = call(aten.cat.default, sums, 1)
            else:
                continue
        node.replace_all_uses_with(product)
        graph.erase_node(node)


def use_onednn(graph: Graph) -> None:
    """Compute b + x W in single precision by oneDNN, which adds the bias in the product's loop.

    Small products are MKL's.

    Args:
        graph: The graph, changed in place.
    """
    for node in graph.find_nodes(op="call_function", target=aten.addmm.default):
        bias, left, right = node.args
        sizes = [n.meta["val"].ndim for n in (bias, left, right)]
        if node.kwargs or sizes != [1, 2, 2] or node.meta["val"].dtype != torch.float32:
            continue
        if left.meta["val"].numel() * right.meta["val"].shape[1] < LEAST_PRODUCT:
            continue
        with graph.inserting_before(node), node.meta["val"].fake_mode:
            layer = graph.call_function(
                LAYER, (left, _call(graph, aten.permute.default, right, [1, 0]), bias)
            )
        layer.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(layer)
        graph.erase_node(node)


def multiply_before_log(graph: Graph) -> None:
    """Take one logarithm of up to 120 pixels in the sum of a Bernoulli log-likelihood.

        Σ_d log(1 + e_d) = Σ_g log Π_{d in g} (1 + e_d),   e_d = exp(−|l_d|)

    A product has no larger rounding error than the sum of the logarithms. The loop over the logits
    l needs 0.4 of its former time, which was mostly that of log1p. In single precision 1 + e_d is
    computed by a polynomial.

    Args:
        graph: The graph, changed in place.
    """
    for total in graph.find_nodes(op="call_function", target=aten.sum.dim_IntList):
        if total.kwargs or len(total.args) != 2:
            continue
        terms, dims = total.args
        log_term = _log_term(terms, 1)
        if log_term is None or terms.meta["val"].shape != log_term[0].meta["val"].shape:
            continue
        # A product in half precision overflows.
        if terms.meta["val"].dtype not in (torch.float32, torch.float64):
            continue
        shape = terms.meta["val"].shape
        group = _group(shape[-1]) if [d % len(shape) for d in dims] == [len(shape) - 1] else None
        if group is not None:
            _sum_of_products(graph, total, *log_term, [*shape[:-1], shape[-1] // group, group])


def divide_polynomials(graph: Graph) -> None:
    """Compute tanh in single precision as a quotient of polynomials.

        tanh(x) = x P(x²) / Q(x²),   |x| clamped to 7.9

    The relative error is 3 · 10⁻⁷, as of the function that it replaces, in a third of the time.

    Args:
        graph: The graph, changed in place.

    References:
        Guennebaud et al. 2010, Eigen (its minimax quotient).
    """
    for node in graph.find_nodes(op="call_function", target=aten.tanh.default):
        if node.meta["val"].dtype != torch.float32:
            continue
        call, cpu = partial(_call, graph), torch.device("cpu")
        with graph.inserting_before(node), node.meta["val"].fake_mode:
            low, high = (
                call(aten.full.default, [], n, dtype=torch.float32, device=cpu)
                for n in (-TANH_LIMIT, TANH_LIMIT)
            )
            x = call(aten.minimum.default, call(aten.maximum.default, node.args[0], low), high)
            square = call(aten.mul.Tensor, x, x)
            above, below = (
                _polynomial(call, square, coefficients) for coefficients in (TANH_ABOVE, TANH_BELOW)
            )
            quotient = call(aten.div.Tensor, call(aten.mul.Tensor, x, above), below)
        node.replace_all_uses_with(quotient)
        graph.erase_node(node)


def _one_plus(call: Callable[..., Node], exponential: Node) -> Node:
    """1 + exp(y) for y ≤ 0, without a call of exp unless exp(y) has another use.

    a = exp(y / 2³) − 1 is a polynomial, and (1 + a)² − 1 = a (a + 2), thrice, gives exp(y) − 1; its
    error does not grow. That of 1 + exp(y) is 2.0 · 10⁻⁷ at most, instead of 1.8 · 10⁻⁷.
    """
    if exponential.meta["val"].dtype != torch.float32 or len(exponential.users) > 1:
        return call(aten.add.Tensor, exponential, 1)
    y = exponential.args[0]
    low = call(aten.full.default, [], -EXP_LIMIT, dtype=torch.float32, device=torch.device("cpu"))
    y = call(aten.where.self, call(aten.lt.Scalar, y, -EXP_LIMIT), low, y)  # nan stays
    a = call(aten.mul.Tensor, _polynomial(call, y, EXP_COEFFICIENTS), y)
    for _ in range(EXP_SQUARINGS):
        a = call(aten.mul.Tensor, call(aten.add.Tensor, a, 2), a)
    return call(aten.add.Tensor, a, 2)


def _polynomial(call: Callable[..., Node], x: Node, coefficients: tuple[float, ...]) -> Node:
    """A polynomial by Horner's rule, the highest power first."""
    total = call(aten.mul.Tensor, x, coefficients[0])
    for coefficient in coefficients[1:-1]:
        total = call(aten.mul.Tensor, call(aten.add.Tensor, total, coefficient), x)
    return call(aten.add.Tensor, total, coefficients[-1])


def _call(graph: Graph, target: Any, *args: Any, **kwargs: Any) -> Node:
    """A new operation, with the shape and type of its result."""
    node = graph.call_function(target, args, kwargs)
    node.meta["val"] = target(*map_arg(args, lambda a: a.meta["val"]), **kwargs)
    return node


def _log_term(node: object, sign: int) -> tuple[Node, int] | None:
    """The term log1p(exp(−|l|)) of a sum, which has no other use, and its sign there."""
    if not isinstance(node, Node) or len(node.users) != 1 or node.kwargs:
        return None
    if node.target is aten.log1p.default:
        below: object = node
        for target in (aten.log1p.default, aten.exp.default, aten.neg.default, aten.abs.default):
            if not isinstance(below, Node) or below.target is not target:
                return None
            below = below.args[0]
        return node, sign
    all_signs: dict[Any, tuple[int, ...]] = {
        aten.neg.default: (-1,),
        aten.sub.Tensor: (1, -1),
        aten.add.Tensor: (1, 1),
    }
    signs = all_signs.get(node.target, ())
    terms = (_log_term(operand, sign * own) for operand, own in zip(node.args, signs, strict=False))
    return next((term for term in terms if term is not None), None)


def _group(size: int) -> int | None:
    """The largest number of factors, from 8 to 120, that divides `size`; None without one."""
    return next((n for n in range(min(size, MOST_FACTORS), 7, -1) if size % n == 0), None)


def _sum_of_products(graph: Graph, total: Node, log: Node, sign: int, shape: list[int]) -> None:
    """Replace the logarithms by zero, and add the sum of logarithms of products to the total."""
    exponential: Any = log.args[0]
    like, call = log.meta["val"], partial(_call, graph)
    with like.fake_mode:
        with graph.inserting_before(log):
            zero = call(
                aten.full.default, list(like.shape), 0, dtype=like.dtype, device=like.device
            )
        with graph.inserting_before(total):
            factors = call(aten.reshape.default, _one_plus(call, exponential), shape)
            logs = call(
                aten.sum.dim_IntList,
                call(aten.log.default, call(aten.prod.dim_int, factors, -1)),
                [-1],
            )
        next(iter(log.users)).replace_input_with(log, zero)
        with graph.inserting_after(total):
            whole = graph.call_function(
                aten.add.Tensor if sign > 0 else aten.sub.Tensor, (total, logs)
            )
    whole.meta["val"] = total.meta["val"]
    total.replace_all_uses_with(whole, delete_user_cb=lambda user: user is not whole)
    graph.erase_node(log)
    if not exponential.users:
        graph.erase_node(exponential)
