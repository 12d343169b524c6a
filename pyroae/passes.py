"""What is changed in a graph before inductor makes code of it. Imported where something is compiled: it needs the compiler."""

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph


class BiasApart(CustomGraphPass):
    """bias + x W as a product and a sum: on a CPU the sum is then part of the loop that follows.

    `addmm` first copies the bias into every row of the result, on one core: a third of the time of a likelihood.
    """

    def __call__(self, graph: Graph) -> None:
        """Replace every `addmm` without factors."""
        aten = torch.ops.aten
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

    def uuid(self) -> bytes:
        """What torch's cache of compiled graphs tells this pass by."""
        return get_hash_for_files((__file__,))
