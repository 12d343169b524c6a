"""What is timed: a VAE of given sizes, its data, the layout of its networks.

Without torch: a worker loads what it needs.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

NUM_DATA = 12_800
"""N of the resident data: whole batches of 16 to 512."""


@dataclass(frozen=True)
class Problem:
    """A VAE, z ~ N(0, I), x|z ~ Bernoulli(logits), a diagonal Gaussian guide; float32, tanh, Adam
    with 1e-3.

    widths: hidden layers of the encoder, the decoder's in reverse; none: pyroae's convolutions.
    objective: a name of pyroae's. num_particles: K of a training step or of a log-likelihood.
    device: in torch's names.
    """

    widths: tuple[int, ...] = (400,)
    latent: int = 20
    batch: int = 128
    objective: str = "trace-elbo"
    num_particles: int = 1
    device: str = "cpu"
    features: int = 784

    @property
    def label(self) -> str:
        """Such as 784-200-200-50 B=20 K=8."""
        inner = "-".join(map(str, self.widths)) if self.widths else "conv"
        particles = f" K={self.num_particles}" if self.num_particles > 1 else ""
        return f"{self.features}-{inner}-{self.latent} B={self.batch}{particles}"

    @property
    def encoder_sizes(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the encoder's layers; the last puts out locations and
        log-variances.
        """
        return list(pairwise([self.features, *self.widths, 2 * self.latent]))

    @property
    def decoder_sizes(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the decoder's layers; the last puts out logits."""
        return list(pairwise([self.latent, *reversed(self.widths), self.features]))

    def data(self, count: int = NUM_DATA) -> np.ndarray:
        """Binary float32 `[N, d]`, the same for every subject."""
        return (
            np.random.default_rng(0).random((count, self.features), dtype=np.float32) < 0.3
        ).astype(np.float32)


class Index:
    """Rows of the batches of a block: `next(n)` is `[n, B]`, drawn at random."""

    def __init__(self, problem: Problem, count: int = NUM_DATA) -> None:
        self._rng, self._batch, self._count = np.random.default_rng(1), problem.batch, count

    def next(self, n: int) -> np.ndarray:
        """Of the next n steps."""
        return self._rng.integers(self._count, size=(n, self._batch))
