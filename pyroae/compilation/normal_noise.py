"""Standard normal noise of torch's CPU generator, made by vector instructions.

    n = √(−2 log(1 − u)) cos 2πv,  n' = √(−2 log(1 − u)) sin 2πv

u and v are the uniform numbers of torch's Mersenne twister in torch's order, so that the noise of a
seed is torch's but for rounding: log, cos and sin are other polynomials.
"""

from math import prod
from pathlib import Path

import torch

from pyroae.compilation.noise_inputs import Draw

SOURCE = Path(__file__).with_name("normal_noise.cpp")
"""The code of the generator."""


ENTRY = "normal_noise_fill"
"""Its function, of a seed, addresses of tensors, their numbers of elements, and their number."""


LEAST = 16
"""The fewest elements of a tensor: torch makes smaller ones otherwise."""


def is_standard_normal(draw: object) -> bool:
    """Tell whether a draw is standard normal noise that the code can make.

    Args:
        draw: A draw of a graph.

    Returns:
        True for contiguous noise in single precision on a CPU.
    """
    return (
        isinstance(draw, Draw)
        and draw.method == "normal_"
        and draw.parameters in ((), (0.0, 1.0))
        and draw.dtype == torch.float32
        and draw.device.type == "cpu"
        and prod(draw.shape) >= LEAST
        and draw.is_contiguous
    )
