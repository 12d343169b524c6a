"""Tensors that annealing computes for a block of data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor


@dataclass
class BlockResult:
    """The tensors of one block of N data; None, or no site, where a stage has not finished.

    Attributes:
        x: Simulated data by site, in the shape that the program gives them.
        z: The latent values that x was drawn with, by site, in the shape of the program.
        u: The same values as a vector, `[1, N, D]`; the reverse chains start there.
        step_sizes: Leapfrog step sizes, `[S, N]`.
        accept: Sum of Pr(accept) over the transitions of each segment, `[S, N]`.
        log_weights: Log-weights of the forward chains, `[C, N]`, in nats.
        curve: Rate and distortion along the path, `[B, N, 10]`; None on a path from the guide.
        reverse: Log-weights of the reverse chains, `[C, N]`, in nats.
        posterior: Draws of p(z|x) by site, `[C, S, N, *nested plates, *event]`.
        posterior_accept: Sum of Pr(accept) over their moves, `[1, N]`.
    """

    x: dict[str, Tensor] = field(default_factory=dict)
    z: dict[str, Tensor] = field(default_factory=dict)
    u: Tensor | None = None
    step_sizes: Tensor | None = None
    accept: Tensor | None = None
    log_weights: Tensor | None = None
    curve: Tensor | None = None
    reverse: Tensor | None = None
    posterior: dict[str, Tensor] = field(default_factory=dict)
    posterior_accept: Tensor | None = None

    @property
    def num_data(self) -> int:
        """N, the number of data of a block whose forward chains have finished."""
        assert self.log_weights is not None
        return self.log_weights.shape[1]

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply a function to every tensor.

        Args:
            change: A function from tensor to tensor, such as a transfer to a device.

        Returns:
            A new result with the changed tensors.
        """
        return self.from_tensors({n: change(v) for n, v in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, as checkpoint files have them.

        Returns:
            All tensors that are not None. The names of sites are `x/SITE`, `z/SITE` and
            `posterior/SITE`.

        >>> list(BlockResult(x={"pixels": torch.zeros(2)}, reverse=torch.zeros(1)).tensors())
        ['reverse', 'x/pixels']
        """
        named = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        for kind in ("x", "z", "posterior"):
            named |= {f"{kind}/{site}": v for site, v in getattr(self, kind).items()}
        return named

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the inverse of `tensors`.

        Args:
            tensors: Tensors by name.

        Returns:
            The result that holds them.
        """
        result = cls()
        for name, value in tensors.items():
            kind, _, site = name.partition("/")
            if site:
                getattr(result, kind)[site] = value
            else:
                setattr(result, kind, value)
        return result

    @classmethod
    def joined(cls, parts: Sequence[Self], data_dims: Mapping[str, int]) -> Self:
        """Concatenate the results of blocks along the data.

        Args:
            parts: Results of all blocks, in the order of the data.
            data_dims: The dimension of the data of each site, counted from the right.

        Returns:
            The result of all data.
        """
        if len(parts) == 1:
            return parts[0]
        named = [part.tensors() for part in parts]
        dims = {name: _data_dim(name, data_dims) for name in named[0]}
        return cls.from_tensors(
            {name: torch.cat([part[name] for part in named], dim) for name, dim in dims.items()}
        )


def _data_dim(name: str, data_dims: Mapping[str, int]) -> int:
    """The dimension of the data of a tensor, by its name in `BlockResult.tensors`."""
    kind, _, site = name.partition("/")
    if not site:
        return 1
    return 2 if kind == "posterior" else data_dims[site]
