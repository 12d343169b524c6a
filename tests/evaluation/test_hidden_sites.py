"""A model whose observed site is hidden has no log p(x)."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyroae import log_likelihood


def model(x: torch.Tensor) -> None:
    """A Gaussian model whose observed site is hidden."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.poutine.block(hide=["x"]):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def guide(x: torch.Tensor) -> None:
    """The prior."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def test_a_hidden_observation_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="no observed site"):
        log_likelihood(model, guide, torch.randn(4, 1), num_particles=10, seed=0)
