"""Compute a gradient of transposed convolutions in two threads of a compiled step, and print its
error and the number of threads that torch has afterwards.

    python tests/compilation/team_convolutions.py
"""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyroae.compilation.codegen import inductor
from pyroae.compilation.step_loop import Call, StepLoop, callable_from_c
from pyroae.compilation.tracing import one_mode

aten = torch.ops.aten


def gradient(*inputs: torch.Tensor) -> tuple[torch.Tensor]:
    """The gradient of the weights, of the gradient of the output, the input and the weights."""
    sizes = [2, 2], [1, 1], [1, 1]
    transposed, output_padding, groups = True, [0, 0], 1
    wanted = [False, True, False]
    return (
        aten.convolution_backward(
            *inputs, None, *sizes, transposed, output_padding, groups, wanted
        )[1],
    )


def main() -> None:
    """Take a step of two calls, one in each thread."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    shapes = (50, 16, 28, 28), (50, 32, 14, 14), (32, 16, 4, 4)
    parts = [[torch.randn(shape) for shape in shapes] for _ in range(2)]
    expected = [gradient(*inputs)[0] for inputs in parts]
    with torch.no_grad(), one_mode():
        graph = make_fx(gradient)(*parts[0])
    with torch.no_grad(), callable_from_c():
        code = inductor(graph, parts[0], same_draws=False, one_core=True)
        results = [torch.zeros(1, *shapes[2]) for _ in parts]
        calls = [Call(0, i, code, parts[i], results[i]) for i in range(2)]
        StepLoop(2, calls, [])([[]])
    error = max((a[0] - b).abs().max().item() for a, b in zip(results, expected, strict=True))
    print(f"{error / expected[0].abs().max().item():.1e}", torch.get_num_threads())


if __name__ == "__main__":
    main()
