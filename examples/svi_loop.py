"""`pyroae.fit` and a plain `pyro.infer.SVI` loop take the same steps: same model, guide, objective,
seeds and losses.

`fit` follows the gradient of the bound in nats per datum, so that learning rates do not depend on
the batch size; in Pyro that is a scale of 1 / batch on model and guide.

    python examples/svi_loop.py
"""

import argparse
from collections.abc import Sequence

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI

import pyroae
from pyroae import TraceELBO, TrainConfig, zoo
from pyroae.data.batching import batches
from pyroae.nn import MLP


def main(argv: Sequence[str] | None = None) -> list[tuple[float, float]]:
    """Print, and return, the mean negative ELBO of each epoch from both."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--epochs", type=int, default=5)
    epochs = options.parse_args(argv).epochs

    digits = pyroae.load("digits", binarize="dynamic", valid=0, test=0).train.first(
        1700
    )  # 17 whole batches of 100
    torch.manual_seed(0)
    one, other = (zoo.vae(digits, latent=10, encoder=MLP((200,))) for _ in range(2))
    other.load_state_dict(one.state_dict())

    result = pyroae.fit(
        one, digits, TraceELBO(), TrainConfig(epochs=epochs, batch_size=100, seed=1)
    )

    pyro.set_rng_seed(1)
    per_datum = poutine.scale(scale=1 / 100)
    svi = SVI(
        per_datum(other.model), per_datum(other.guide), pyro.optim.Adam({"lr": 1e-3}), TraceELBO()
    )
    losses = []
    for epoch in range(1, epochs + 1):
        steps = [svi.step(x) for x in batches(digits, 100, seed=1, epoch=epoch)]
        losses.append(sum(steps) / len(steps))

    pairs = [(row.train_nelbo, loss) for row, loss in zip(result.history, losses, strict=True)]
    print("epoch   pyroae.fit   pyro.infer.SVI")
    for epoch, (ours, pyros) in enumerate(pairs, 1):
        print(f"{epoch:5} {ours:12.5f} {pyros:16.5f}")
    return pairs


if __name__ == "__main__":
    main()
