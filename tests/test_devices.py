"""No tensor of a bound is made on the CPU, and none is read there: every objective runs on a device
that has no numbers.
"""

from collections.abc import Iterable

import pyro
import pytest

from pyroae.errors import ProgramError
from pyroae.objectives import OBJECTIVES
from tests.covering import few
from tests.systems import ZOO, system_and_data

SOME = few()


def num_trained(name: str, objectives: Iterable[str]) -> int:
    """How many of the objectives train a system on torch's device "meta", which refuses tensors of
    another device beside its own, and has no values to read back.
    """
    trained = 0
    for objective in objectives:
        system, x = system_and_data(name)
        system, x = system.to("meta"), x.to("meta")
        try:
            with pyro.validation_enabled(False):  # Pyro's checks read values
                bound = OBJECTIVES[objective](num_particles=4).bound(system.model, system.guide, x)
        except ProgramError:  # a pair that is refused on every device
            continue
        if bound.surrogate.requires_grad:
            bound.surrogate.backward()
        assert bound.value.device.type == "meta"
        trained += any(
            p.grad is not None and p.grad.device.type == "meta" for p in system.parameters()
        )
    return trained


@pytest.mark.parametrize("name", list(ZOO))
def test_bounds_and_gradients_stay_on_the_device(name: str) -> None:
    objectives = [objective for system, objective in SOME if system == name]
    assert num_trained(name, objectives) == len(objectives) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ZOO))
def test_every_bound_and_gradient_stays_on_the_device(name: str) -> None:
    assert num_trained(name, OBJECTIVES) >= 4
