"""Optimizers of torch by name, and learning rates over the training."""

import math
from typing import Any

import torch
from torch import nn

from pyroae.config import TrainConfig
from pyroae.errors import ConfigError, unknown_name


def schedule(name: str, progress: float) -> float:
    """The learning rate's factor when a share `progress` in [0, 1) of the training is done.

    `burda`: 10^(−i/7) for 3^i of 3,280 parts, i = 0..7 (Burda 2016).

    >>> schedule("cosine", 0.0), schedule("linear", 0.25), schedule("burda", 0.0)
    (1.0, 0.75, 1.0)
    """
    if name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if name == "linear":
        return 1 - progress
    if name == "burda":
        stage = next(i for i in range(8) if progress * 3280 < (3 ** (i + 1) - 1) / 2)
        return 10 ** (-stage / 7)
    return 1.0


def optimizer_of(config: TrainConfig, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of torch.optim that a configuration names. Raises ConfigError for an unknown one or wrong arguments."""
    known: dict[str, Any] = {
        n: o
        for n, o in vars(torch.optim).items()
        if isinstance(o, type) and issubclass(o, torch.optim.Optimizer)
    }
    name = next((n for n in known if n.lower() == config.optimizer.lower()), None)
    if name is None or name == "Optimizer":
        raise unknown_name("optimizer", config.optimizer, sorted(set(known) - {"Optimizer"}))
    try:
        return known[name](module.parameters(), lr=config.lr, **config.optimizer_args)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the optimizer {name} does not accept {config.optimizer_args}: {error}"
        ) from None
