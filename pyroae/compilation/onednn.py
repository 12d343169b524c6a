"""b + x Wᵀ by oneDNN in inductor's code, with weights that are inputs. Imported where something is compiled.

Inductor has oneDNN's layers for frozen weights alone, which are part of the code; those of a model that is trained on are not.
"""

from typing import Any

import torch
from torch import Tensor
from torch._inductor import ir, mkldnn_ir
from torch._inductor.lowering import register_lowering

LIBRARY = torch.library.Library("pyroae", "DEF")


LIBRARY.define("layer(Tensor x, Tensor weight, Tensor bias) -> Tensor")


LAYER = torch.ops.pyroae.layer.default


def is_available() -> bool:
    """Whether torch was built with oneDNN, and its compiler has what a layer is made of here."""
    return torch.backends.mkldnn.is_available() and hasattr(mkldnn_ir, "_create_output_node")


@torch.library.impl(LIBRARY, "layer", "CPU")
def _run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@torch.library.register_fake("pyroae::layer", lib=LIBRARY)
def _shape(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(len(x), len(weight))


@register_lowering(LAYER, type_promotion_kind=None)
def _lowered(x: Any, weight: Any, bias: Any) -> Any:
    """As inductor's own for a frozen weight; the weight may lie in memory either way."""
    x, bias = (
        ir.ExternKernel.require_contiguous(ir.ExternKernel.realize_input(each))
        for each in (x, bias)
    )
    weight = ir.ExternKernel.realize_input(weight)
    size = [x.get_size()[0], weight.get_size()[0]]
    layout = ir.FixedLayout(device=x.get_device(), dtype=x.get_dtype(), size=size)
    layer = mkldnn_ir.LinearUnary(
        layout=layout, inputs=[x, weight, bias], constant_args=["none", [-1], ""]
    )
    return ir.TensorBox.create(mkldnn_ir._create_output_node(layer))
