"""The box of each datum, and the lattices on which densities are evaluated.

Shapes: N data, D coordinates of u, P points.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Box:
    """The region of each datum that holds its mass: u = center + root v, low ≤ v ≤ high.

    Attributes:
        center: The mean over the modes, `[N, D]`.
        root: Cholesky factor of the covariance over the modes, `[N, D, D]`.
        low: Lower corner in v, `[N, D]`.
        high: Upper corner in v, `[N, D]`.
        narrowest: Standard deviation of the narrowest mode in v, `[N]`.
    """

    center: Tensor
    root: Tensor
    low: Tensor
    high: Tensor
    narrowest: Tensor

    def at(self, index: Tensor) -> "Box":
        """Select data.

        Args:
            index: Indices of data, `[M]`, int64.

        Returns:
            The boxes of these M data.
        """
        return Box(*(field[index] for field in vars(self).values()))

    def between(self, low: Tensor, high: Tensor) -> "Box":
        """Replace the corners.

        Args:
            low: Lower corner in v, `[N, D]`.
            high: Upper corner in v, `[N, D]`.

        Returns:
            The box with these corners.
        """
        return replace(self, low=low, high=high)

    def points(self, unit: Tensor) -> Tensor:
        """Map points of the unit cube into the box.

        Args:
            unit: Points, `[P, D]`.

        Returns:
            u, `[P, N, D]`.
        """
        v = self.low + (self.high - self.low) * unit[:, None]
        return self.center + (self.root @ v.unsqueeze(-1)).squeeze(-1)


def lattice(cells: int, like: Tensor) -> Tensor:
    """Return all integer points from 0 to `cells` in D dimensions.

    Args:
        cells: Cells per axis.
        like: A tensor `[..., D]`, for D and the device.

    Returns:
        The points, `[(cells + 1)^D, D]`, int64.

    >>> lattice(1, torch.zeros(2)).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    axis = torch.arange(cells + 1, device=like.device)
    return torch.cartesian_prod(*[axis] * like.shape[-1]).reshape(-1, like.shape[-1])
