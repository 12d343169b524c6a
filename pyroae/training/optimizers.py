"""Optimizers of torch by name, and schedules of the learning rate."""

import math
from typing import Any

import torch
from torch import nn

from pyroae.config import TrainConfig
from pyroae.errors import ConfigError, unknown_name
from pyroae.likelihoods import OptimalScale


def schedule(name: str, progress: float) -> float:
    """Return the factor of the learning rate at a point of the training.

        cosine:  (1 + cos(π t)) / 2
        linear:  1 − t
        burda:   10^(−i/7)  for 3^i of 3,280 parts, i = 0..7

    Args:
        name: the schedule; any other name is a constant rate.
        progress: the share t of the training that is done, in [0, 1).

    Returns:
        The factor, in (0, 1].

    References:
        Burda, Grosse, Salakhutdinov 2016, Importance Weighted Autoencoders.

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
    """Return the optimizer of `torch.optim` that a configuration names.

    Args:
        config: the configuration: `optimizer`, in any case, `lr` and `optimizer_args`.
        module: the optimizer gets all its parameters. Those of an `OptimalScale` are groups of
            their own, for which the steps of a training use their closed form.

    Returns:
        The optimizer.

    Raises:
        ConfigError: for an unknown name, for arguments that the optimizer does not accept, and for
            an optimal scale with gradients that are scaled.

    >>> type(optimizer_of(TrainConfig(optimizer="adamw"), nn.Linear(2, 1)))
    <class 'torch.optim.adamw.AdamW'>
    """
    classes: dict[str, Any] = {
        n: o
        for n, o in vars(torch.optim).items()
        if isinstance(o, type) and issubclass(o, torch.optim.Optimizer)
    }
    name = next((n for n in classes if n.lower() == config.optimizer.lower()), None)
    if name is None or name == "Optimizer":
        raise unknown_name("optimizer", config.optimizer, sorted(set(classes) - {"Optimizer"}))
    scales = [m.group() for m in module.modules() if isinstance(m, OptimalScale)]
    if scales and config.precision == "16-mixed":
        raise ConfigError(
            "an optimal scale needs gradients that are not scaled: use the precision bf16-mixed in "
            "place of 16-mixed, or a learned scale"
        )
    apart = {id(parameter) for group in scales for parameter in group["params"]}
    others = [parameter for parameter in module.parameters() if id(parameter) not in apart]
    parameters = [{"params": others}, *scales] if scales else others
    try:
        return classes[name](parameters, lr=config.lr, **config.optimizer_args)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the optimizer {name} does not accept {config.optimizer_args}: {error}"
        ) from None
