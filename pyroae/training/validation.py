"""The negative bound, the distortion and the rate of the validation data."""

import math
import warnings
from typing import TYPE_CHECKING, cast

import pyro
import torch
from torch import Tensor, nn

from pyroae.autoencoder import Autoencoder, correct_classes
from pyroae.data.dataset import Dataset
from pyroae.objectives.apply import next_step
from pyroae.programs.arguments import Arguments
from pyroae.programs.context import evaluating
from pyroae.programs.pair import like_parameters
from pyroae.runtime.randomness import fork_random
from pyroae.training.forward import Step

if TYPE_CHECKING:
    from lightning_fabric import Fabric

VALIDATION_BATCH = 1000
"""Data that are evaluated at once."""


DEAD = (
    "every latent unit is dead: all codes are exactly 0, and no gradient revives them; lower the "
    "rate of the Laplace prior (sparsity) or the threshold of the posterior, and train again"
)
"""What is said where every unit is dead."""


class Validator:
    """Evaluate a system on validation data, with the same draws at every call.

    Args:
        step: the forward pass, with the system, the objective and this process's share.
        data: the validation data; None if there are none.
        fabric: the device, the precision and the processes.
        seed: where the draws start.
    """

    def __init__(
        self, step: Step, data: Dataset | Arguments | None, fabric: "Fabric", seed: int
    ) -> None:
        self.step, self.data, self.fabric, self.seed = step, data, fabric, seed

    def __call__(self) -> tuple[float, float, float, float]:
        """Return the mean negative bound, distortion and rate at full KL weight.

            distortion = −E log p(x|z),  rate = E[log q(z|x) − log p(z)]

        Collective: every process has to call it.

        Returns:
            Three means over the validation data, in nats per datum, and the share of labelled data
            whose class M2 finds; nan without data, and for other systems.
        """
        if self.data is None:
            return math.nan, math.nan, math.nan, math.nan
        system, share, device = self.step.system, self.step.share, self.fabric.device
        sums = torch.zeros(3, dtype=torch.float64)
        with (
            evaluating(system),
            fork_random(device, self.seed),
            pyro.validation_enabled(False),
            self.fabric.autocast(),
        ):
            for part in zip(*(t.split(VALIDATION_BATCH) for t in self.data.tensors), strict=True):
                next_step(self.step.objective)
                self.step.size = size = len(part[0])
                args = like_parameters(system, tuple(t[share.of(size)] for t in part))
                counts = share.weight(size) * size / share.world / len(args[0])
                sums += counts * cast(Tensor, self.step(*args, validate=True)).cpu()
        if share.world > 1:
            sums = cast(Tensor, self.fabric.all_reduce(sums.to(device), reduce_op="sum")).cpu()
        nelbo, distortion, rate = (sums / len(self.data)).tolist()
        return nelbo, distortion, rate, self._accuracy()

    def _accuracy(self) -> float:
        if not isinstance(self.data, Dataset):
            return math.nan
        (x,) = like_parameters(self.step.system, (self.data.x,))
        with evaluating(self.step.system), self.fabric.autocast():
            correct = correct_classes(
                self.step.system, x, self.data.labels, self.data.condition_names
            )
        return math.nan if correct is None else correct.mean().item()


def warn_if_dead(system: nn.Module, data: Dataset | Arguments) -> None:
    """Warn where every code of a point posterior is exactly 0, so that it says nothing of the data.

    Args:
        system: the trained system; nothing is done for what is no Autoencoder.
        data: data, of which the first ones in memory are encoded.
    """
    if not isinstance(system, Autoencoder) or not isinstance(data, Dataset):
        return
    args = like_parameters(system, tuple(t[:VALIDATION_BATCH] for t in data.tensors))
    found = system.sparsity(*args) if args[0].isfinite().all() else None
    if found is not None and not found.live_share:
        warnings.warn(DEAD, stacklevel=2)
