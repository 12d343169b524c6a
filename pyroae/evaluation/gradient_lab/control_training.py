"""Train what an objective learns, at fixed parameters of model and guide."""

import torch
from torch import Tensor

from pyroae.objectives.base import ObjectiveBase
from pyroae.programs.sites import Program
from pyroae.runtime.randomness import start_random

CONTROL_RATE = 0.01
"""The learning rate of Adam."""


def train_controls(
    objective: ObjectiveBase,
    model: Program,
    guide: Program,
    args: tuple[Tensor, ...],
    *,
    steps: int,
    seed: int,
) -> None:
    """Train the controls of an objective, in place, by Adam with a rate of 0.01.

    The parameters of model and guide are fixed. An objective without controls is left as it is.

    Args:
        objective: The objective.
        model: The Pyro program p(z) p(x|z).
        guide: The Pyro program q(z|x).
        args: Positional arguments of both, tensors `[N, ...]`, which are one batch.
        steps: The number of steps.
        seed: The seed of the draws.

    >>> from pyroae import zoo
    >>> from pyroae.objectives.named import nvil
    >>> system, x, objective = zoo.discrete_vae(4, latent=2), torch.ones(3, 4), nvil()
    >>> train_controls(objective, system.model, system.guide, (x,), steps=10, seed=0)
    >>> objective.controls.constant.item() != 0
    True
    """
    objective.prepare(model, guide, args, {})
    if objective.controls is None:
        return
    leaves = [leaf for leaf in objective.controls.parameters() if leaf.requires_grad]
    optimizer = torch.optim.Adam(leaves, lr=CONTROL_RATE)
    start_random(args[0].device, seed)
    for _ in range(steps):
        objective.next_step()
        loss = -objective.bound(model, guide, *args).surrogate / len(args[0])
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        optimizer.step()
    optimizer.zero_grad()
