"""Weights of nearly nothing leave no subnormal numbers on their way back: processors multiply those
slowly.
"""

import pytest
import torch

from pyroae import zoo
from pyroae._names import NAMES
from pyroae.data.dataset import Dataset
from pyroae.objectives import parse_objective
from pyroae.posteriors import Diagonal, Mixture
from tests.systems import suited_to


def _watch(out: torch.Tensor, seen: list[torch.Tensor]) -> None:
    if out.requires_grad:
        out.register_hook(seen.append)


@pytest.mark.parametrize("name", NAMES["objective"])
def test_no_gradient_is_subnormal(name: str) -> None:
    """Of 16 particles most weigh less than e⁻¹⁰⁰ of the best; every gradient along the decoder is
    looked at.
    """
    torch.manual_seed(0)
    x = (torch.rand(8, 784) < 0.5).float()
    data, name_of_system = Dataset.from_array(x), suited_to(name)
    posterior = Mixture() if name_of_system == "vae-mixture" else Diagonal()
    discrete = name_of_system == "discrete-vae"
    system = zoo.discrete_vae(data, 5) if discrete else zoo.vae(data, 5, posterior=posterior)
    with torch.no_grad():
        for parameter in system.decoder.parameters():
            parameter.mul_(3.0)
    seen: list[torch.Tensor] = []
    for module in system.decoder.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, args, out: _watch(out, seen))
    objective = parse_objective(name, 16)
    objective.bound(system.model, system.guide, x).surrogate.backward()
    assert seen
    tiny = torch.finfo(torch.float32).tiny
    for grad in seen:
        assert not ((grad != 0) & (grad.abs() < tiny)).any()
