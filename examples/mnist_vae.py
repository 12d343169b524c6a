"""The reference VAE on MNIST under two ELBO estimators, scored by IS-5000: the figures in the
README.

Dynamic binarization, 784-200-200-50, tanh, batch 100, Adam at 1e-3, 50 epochs; held-out
log-likelihood of the first 1,000 test images with K = 5,000. Takes about a quarter of an hour on
two cores.

    python examples/mnist_vae.py --data-root data
"""

import argparse
import time
from collections.abc import Sequence

import torch

import pyroae
from pyroae import AnalyticKL, TraceELBO, TrainConfig, zoo
from pyroae.nn import MLP


def main(argv: Sequence[str] | None = None) -> dict[str, pyroae.LikelihoodEstimate]:
    """Train, score and print; returns the likelihood under each objective."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--data-root", default="data", help="folder in which torchvision keeps MNIST"
    )
    options.add_argument("--epochs", type=int, default=50)
    options.add_argument("--num-particles", type=int, default=5000, help="K of the log-likelihood")
    options.add_argument("--num-data", type=int, default=1000, help="test images")
    given = options.parse_args(argv)

    mnist = pyroae.load("mnist", binarize="dynamic", valid=0, data_root=given.data_root)
    assert mnist.test is not None
    x = mnist.test.x[: given.num_data]
    found = {}
    for name, objective in (("trace-elbo", TraceELBO()), ("analytic-kl", AnalyticKL())):
        torch.manual_seed(0)
        vae = zoo.vae(mnist.train, latent=50, encoder=MLP((200, 200), "tanh"))
        started = time.monotonic()
        pyroae.fit(vae, mnist, objective, TrainConfig(epochs=given.epochs, batch_size=100, lr=1e-3))
        trained = time.monotonic() - started
        found[name] = pyroae.log_likelihood(
            vae.model, vae.guide, x, num_particles=given.num_particles, seed=0, progress=True
        )
        parts = pyroae.diagnose(vae.model, vae.guide, x, seed=0)
        print(
            f"{name:12} NLL {found[name].nll:.2f} ± {found[name].nll_se:.2f} "
            f"(Monte Carlo {found[name].monte_carlo_se:.3f}), "
            f"negative ELBO {parts.nelbo.mean():.2f}, rate {parts.rate.mean():.2f}, "
            f"distortion {parts.distortion.mean():.2f}, active units {parts.active_units}, "
            f"training {trained:.0f} s, likelihood {found[name].seconds:.0f} s",
            flush=True,
        )
    return found


if __name__ == "__main__":
    main()
