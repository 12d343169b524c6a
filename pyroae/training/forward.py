"""The forward pass of training by autograd, alone or in several processes, and of validation."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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
    """The forward pass on one batch: the bound, or sums over validation data.

    Args:
        system: a module with a `model` and a `guide`.
        objective: estimates the bound.
        full_size: the full size of a subsampled data plate; None if the plate is the batch.

    Attributes:
        share: this process's share of a batch.
        size: the size of the full batch that the next call has a share of.
        plate: the name of the data plate, where it is known.
    """

    def __init__(self, system: nn.Module, objective: ELBO, full_size: int | None) -> None:
        super().__init__()
        self.system, self.objective, self.full_size = system, objective, full_size
        self.share, self.size = WHOLE, 0
        self.plate: str | None = None
        self._graphs: Compiled | None = None
        self._compiled_size = 0

    def compile_for(self, size: int, autocast: Callable[[], AbstractContextManager[None]]) -> None:
        """Compile the bound of batches of one size, at its first call.

        Args:
            size: the size of a full batch.
            autocast: returns a context of the training's precision.
        """

        @contextmanager
        def precision() -> Iterator[None]:
            with autocast(), self.drawing():
                yield

        self._graphs = Compiled(self.system, self.objective, precision=precision)
        self._compiled_size = size

    def forward(
        self, *args: Tensor, kl_weight: float | None = None, validate: bool = False
    ) -> Bound | Tensor:
        """Evaluate the bound, or the sums of a validation.

        Args:
            args: the arguments of the programs, each of shape [B, ...].
            kl_weight: the weight of the KL term; None is 1.
            validate: whether to return sums instead of the bound.

        Returns:
            The bound and its surrogate, summed over the batch, in nats; with `validate` the sums
            over the batch of negative bound, distortion and rate, in nats, shape [3], float64.
        """
        graphs = self._graphs if self.size == self._compiled_size else None
        if graphs is not None and torch.is_grad_enabled():
            return graphs.bound(*args, kl_weight=kl_weight)
        with self.drawing():
            if validate:
                return self._sums(args)
            return bound_of(self.system, self.objective, args, kl_weight)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Return a context in which draws are this process's share of those for the full batch."""
        with shared_draws(self.share, self.size, self.plate):
            yield

    def num_data(self, args: tuple[Tensor, ...]) -> int:
        """Return the number by which the bound of a batch is divided.

        Args:
            args: a batch, each argument of shape [B, ...].

        Returns:
            The full size of the data plate if it is subsampled, else B.
        """
        return self.full_size or len(args[0])

    def _sums(self, args: tuple[Tensor, ...]) -> Tensor:
        """Sums over a batch of validation data, shape [3]: negative bound, distortion, rate."""
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
