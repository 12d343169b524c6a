"""A prior of one's own in ten lines: logistic variables, with tails between Normal and Laplace.

Registered, it has a name, `PRIORS.parse("logistic:scale=0.5")`, and the conformance tests run over
it like over any other.

    python examples/own_choice.py
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyroae
from pyroae import AnalyticKL, TrainConfig, zoo
from pyroae.priors import PRIORS, Prior


@PRIORS.register("logistic")
@dataclass(frozen=True)
class Logistic(Prior):
    """z_j ~ Logistic(0, s): heavier tails than a Normal.

    Without a KL in closed form, objectives take it by Monte Carlo.
    """

    scale: float = 0.5

    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        return dist.Logistic(zeros, zeros + self.scale).to_event(1)


def main(argv: Sequence[str] | None = None) -> float:
    """Train a VAE with that prior; returns its held-out negative log-likelihood."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--epochs", type=int, default=60)
    epochs = options.parse_args(argv).epochs

    digits = pyroae.load("digits", binarize="dynamic")
    assert digits.test is not None
    torch.manual_seed(0)
    vae = zoo.vae(digits.train, latent=10, prior=Logistic(scale=0.5))
    pyroae.fit(vae, digits, AnalyticKL(), TrainConfig(epochs=epochs, lr=2e-3))
    found = pyroae.log_likelihood(vae.model, vae.guide, digits.test.x, num_particles=1000, seed=0)
    print(f"Logistic prior: NLL {found.nll:.2f} ± {found.nll_se:.2f} nats per datum")
    return found.nll


if __name__ == "__main__":
    main()
