"""A step leaves nothing behind: graphs that hold themselves through C++ are never collected."""

import gc

import pytest
from torch import Tensor

from pyroae.objectives import OBJECTIVES
from tests.systems import suited_to, system_and_data


def tensors() -> int:
    gc.collect()
    return sum(isinstance(each, Tensor) for each in gc.get_objects())


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_steps_keep_no_tensor(name: str) -> None:
    system, x = system_and_data(suited_to(name))
    objective = OBJECTIVES[name](4)

    def step() -> None:
        objective.differentiable_loss(system.model, system.guide, x).backward()

    for _ in range(3):
        step()
    before = tensors()
    for _ in range(4):
        step()
    assert tensors() <= before
