"""The sweep of λ of sparse autoencoders on the digits, and their atoms: two figures and a table.

python -m benchmarks.sparsity
"""

from pathlib import Path

import torch

import pyroae
from pyroae import plots, zoo
from pyroae.config import EvaluationSettings, RunConfig
from pyroae.evaluation.summary import Evaluation, evaluate
from pyroae.plots.drawing import save

IMAGES = Path(__file__).parents[1] / "docs" / "images"
RATES = (0.03, 0.1, RunConfig.sparsity, 0.5, 1.0)


def trained(
    digits: pyroae.Splits, rate: float, latent: int
) -> tuple[pyroae.Autoencoder, Evaluation]:
    """A sparse autoencoder with the defaults of the command line, and its test results."""
    torch.manual_seed(0)
    system = zoo.sparse_autoencoder(digits.train, latent, rate=rate)
    pyroae.fit(system, digits, progress=False)
    assert digits.test is not None
    return system, evaluate(system, digits.test.x, EvaluationSettings())


def main() -> None:
    """Train at every rate, print a row for each, and write the figures."""
    digits = pyroae.load("digits")
    assert digits.test is not None
    mean_error = (digits.test.x - digits.train.mean).square().sum(1).mean().item()
    print(f"mean predictor: squared error {mean_error:.2f}")
    found = {}
    for latent, rate in [*((20, rate) for rate in RATES), (100, RunConfig.sparsity)]:
        system, evaluation = trained(digits, rate, latent)
        names = ("zero_share", "live_share", "squared_error")
        zeros, live, error = (evaluation.results[name].estimate for name in names)
        print(f"| {latent} | {rate} | {zeros:.2f} | {live:.2f} | {error:.2f} |", flush=True)
        if latent == 20:
            found[rate] = evaluation
        if rate == RunConfig.sparsity:
            figure = plots.filters(system, num=latent, x=digits.test.x)
            save(figure, IMAGES / f"sparse_atoms_{latent}.png")
    save(plots.sparsity_sweep(found, mean_error), IMAGES / "sparsity_sweep.png")


if __name__ == "__main__":
    main()
