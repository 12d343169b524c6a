"""A step leaves nothing behind: graphs that hold themselves through C++ are never collected."""

import gc

import pytest
import torch
from torch import Tensor

from pyroae import zoo
from pyroae.objectives import OBJECTIVES


def tensors() -> int:
    gc.collect()
    return sum(isinstance(each, Tensor) for each in gc.get_objects())


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_steps_keep_no_tensor(name: str) -> None:
    x = torch.rand(6, 4).round()
    system, objective = zoo.vae(4, 2, hidden=(5,)), OBJECTIVES[name](4)

    def step() -> None:
        objective.differentiable_loss(system.model, system.guide, x).backward()

    for _ in range(3):
        step()
    before = tensors()
    for _ in range(4):
        step()
    assert tensors() <= before
