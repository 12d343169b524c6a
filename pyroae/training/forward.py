"""The one forward pass that eager, mixed-precision and distributed training share, and their validation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyroae.compilation.svi import Compiled
from pyroae.distributed.shared_draws import shared_draws
from pyroae.objectives import Bound
from pyroae.objectives.apply import bound_of
from pyroae.programs.pair import System, full_size
from pyroae.programs.traces import run
from pyroae.runtime.processes import WHOLE
from pyroae.weights import reduce_log_weights


class Step(nn.Module):
    """The one forward pass that eager, mixed-precision and distributed training share, and their validation.

    share: the part of a batch that this process has. size: of the whole batch that the next call
    has a share of. plate: name of the data plate, where it is known.
    """

    def __init__(self, system: nn.Module, objective: ELBO, full_size: int | None) -> None:
        super().__init__()
        self.system, self.objective, self.full_size = system, objective, full_size
        self.graphs: Compiled | None = None
        self.share, self.size = WHOLE, 0
        self.plate: str | None = None

    def forward(
        self, *args: Tensor, kl_weight: float | None = None, validate: bool = False
    ) -> Bound | Tensor:
        if self.graphs is not None and torch.is_grad_enabled():
            return self.graphs.bound(*args, kl_weight=kl_weight)
        with self.drawing():
            return (
                self._sums(args)
                if validate
                else bound_of(self.system, self.objective, args, kl_weight)
            )

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """A context in which draws are a share of those for the whole batch."""
        with shared_draws(self.share, self.size, self.plate):
            yield

    def num_data(self, args: tuple[Tensor, ...]) -> int:
        """What the bound of a batch is divided by: its size, or that of the plate which the batch stands for."""
        return self.full_size or len(args[0])

    def _sums(self, args: tuple[Tensor, ...]) -> Tensor:
        """Sums over a batch of validation data `[3]`: negative bound, distortion, rate."""
        model, guide = cast(System, self.system).model, cast(System, self.system).guide
        traces = run(model, guide, args, {})
        weights = reduce_log_weights(traces)
        rate = (
            weights.scale * (weights.log_post - weights.log_prior)
        ).sum() - weights.log_global.mean()
        values = (
            -bound_of(self.system, self.objective, args).value,
            -(weights.scale * weights.log_lik).sum(),
            rate,
        )
        share = len(args[0]) / (full_size(traces) or len(args[0]))
        return share * torch.stack([v.detach().double() for v in values])
