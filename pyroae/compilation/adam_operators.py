"""Adam for many parameters as operators of torch, which a rewrite of the graph can recognize.

`ADAM` takes the gradients of the parameters. `DENSE_ADAM` takes the two factors of the gradient of
each dense layer instead, and computes products and updates by one kernel on a GPU.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

LIBRARY = torch.library.Library("pyroae", "FRAGMENT")
"""The operators of this module."""


_SETTINGS = "Tensor numbers, float beta1, float beta2, float eps, float decay, bool decoupled"


LIBRARY.define(
    "adam(Tensor(a!)[] parameters, Tensor(b!)[] means, Tensor(c!)[] squares, Tensor[] grads, "
    f"{_SETTINGS}) -> ()"
)


LIBRARY.define(
    "dense_adam(Tensor(a!)[] parameters, Tensor(b!)[] means, Tensor(c!)[] squares, Tensor[] lefts, "
    f"Tensor[] rights, float[] scales, bool tf32, {_SETTINGS}) -> ()",
    tags=(torch.Tag.flexible_layout,),
)


ADAM = torch.ops.pyroae.adam.default
"""Adam in place, of parameters, m and v, gradients, the numbers of the step, and β₁, β₂, ε, the
weight decay and whether it is decoupled."""


DENSE_ADAM = torch.ops.pyroae.dense_adam.default
"""Adam in place, with the gradients scale · left right of weights, then scale · Σ left of biases.

The shapes are `[m, n]`, left `[m, B]`, right `[B, n]`, and `[m]` of biases, or these after a
dimension of members; the first parameters, as many as there are `rights`, are the weights. `tf32`:
whether products on a GPU may have ten bits of mantissa.
"""


@torch.library.impl(LIBRARY, "adam", "CompositeExplicitAutograd")
def adam(
    parameters: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    grads: Sequence[Tensor],
    numbers: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    decoupled: bool,
) -> None:
    """Change all parameters by the same operations, which one kernel can compute.

    Args:
        parameters: The parameters.
        means: m of each.
        squares: v of each.
        grads: The gradient of each.
        numbers: The result of `Adam.numbers`, `[3]`.
        beta1: β₁.
        beta2: β₂.
        eps: ε.
        decay: The coefficient of the weight decay.
        decoupled: Whether the decay acts on the weights, not on the gradient.
    """
    weights, means, squares, slopes = map(list, (parameters, means, squares, grads))
    size, correction, factor = numbers.unbind()
    if decay and decoupled:
        torch._foreach_mul_(weights, factor)
    elif decay:
        slopes = list(torch._foreach_add(slopes, torch._foreach_mul(weights, decay)))
    torch._foreach_lerp_(means, slopes, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, slopes, slopes, 1 - beta2)
    roots = torch._foreach_add(torch._foreach_mul(torch._foreach_sqrt(squares), correction), eps)
    torch._foreach_add_(weights, torch._foreach_div(torch._foreach_mul(means, size), roots))


@torch.library.impl(LIBRARY, "dense_adam", "CompositeExplicitAutograd")
def dense_adam(
    parameters: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    lefts: Sequence[Tensor],
    rights: Sequence[Tensor],
    scales: Sequence[float],
    tf32: bool,
    numbers: Tensor,
    *settings: float,
) -> None:
    """Compute the gradients by torch's products and sums, then `adam`.

    Args:
        parameters: Weights, then biases.
        means: m of each.
        squares: v of each.
        lefts: The left factor of each gradient.
        rights: The right factor of each gradient of a weight.
        scales: The number that each gradient is multiplied by.
        tf32: Without effect here.
        numbers: The result of `Adam.numbers`, `[3]`.
        *settings: β₁, β₂, ε, the weight decay and whether it is decoupled, as of `adam`.
    """
    count = len(rights)
    grads = [left @ right for left, right in zip(lefts, rights, strict=False)]
    grads += [left.sum(-1) for left in lefts[count:]]
    grads = [grad * scale for grad, scale in zip(grads, scales, strict=True)]
    adam(parameters, means, squares, grads, numbers, *settings)  # type: ignore[arg-type]


@torch.library.impl(LIBRARY, "dense_adam", "CUDA")
def _on_gpu(
    parameters: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    lefts: Sequence[Tensor],
    rights: Sequence[Tensor],
    scales: Sequence[float],
    tf32: bool,
    numbers: Tensor,
    *settings: float,
) -> None:
    from pyroae.compilation.adam_kernel import launch

    with torch.cuda.device(parameters[0].device):
        launch(parameters, means, squares, lefts, rights, scales, tf32, numbers, settings)


@torch.library.register_fake("pyroae::adam", lib=LIBRARY)
@torch.library.register_fake("pyroae::dense_adam", lib=LIBRARY)
def _nothing(*args: object) -> None:
    """Neither operator has a result."""
