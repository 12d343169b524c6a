"""Samples from 2-, 5-, 10- and 20-dimensional latent spaces (Kingma & Welling 2014, figure 5).

python examples/latent_sizes.py                             the embedded digits, about a minute
python examples/latent_sizes.py --data mnist --epochs 30    MNIST, downloaded where it is not in
--data-root
"""

import argparse
from collections.abc import Sequence

import torch

from pyroae import plots, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.config import TrainConfig
from pyroae.data.loading import Splits, load
from pyroae.nn import MLP
from pyroae.training.fitting import fit

SIZES = (2, 5, 10, 20)
WIDTHS = {"digits": 200, "mnist": 500}


def train(data: Splits, latent: int, width: int, epochs: int) -> Autoencoder:
    """A VAE with one hidden layer of tanh units, trained with the ELBO; the weights of the best
    epoch are kept.
    """
    torch.manual_seed(0)  # of the initial weights
    vae = zoo.vae(data.train, latent, encoder=MLP((width,), "tanh"))
    result = fit(vae, data, config=TrainConfig(epochs=epochs, lr=3e-3, schedule="cosine"))
    best = result.history[result.best_epoch - 1]
    print(
        f"{latent:>2} latent dimensions: negative bound {best.valid_nelbo:.2f} nats per datum, "
        f"{result.seconds:.0f} s"
    )
    return vae


def main(argv: Sequence[str] | None = None) -> None:
    """Train a VAE for each size of the latent space and draw what they dream of side by side."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=sorted(WIDTHS), default="digits", help="default: digits")
    parser.add_argument(
        "--data-root", default="data", help="folder of the MNIST files; default: data"
    )
    parser.add_argument(
        "--epochs", type=int, default=250, help="passes over the training data; default: 250"
    )
    parser.add_argument(
        "--out", default="latent_sizes.png", help="the picture; default: latent_sizes.png"
    )
    options = parser.parse_args(argv)

    data = load(options.data, binarize="threshold", data_root=options.data_root)
    systems = {
        f"{m}-D latent space": train(data, m, WIDTHS[options.data], options.epochs) for m in SIZES
    }
    plots.sample_grids(systems, num=100).savefig(options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
