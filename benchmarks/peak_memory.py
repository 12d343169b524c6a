"""Growth of a process's peak memory in MiB while a log-likelihood is estimated, by the public
functions of pyroae only: whichever checkout is on the path is measured.

    python -P benchmarks/peak_memory.py NUM_PARTICLES
"""

import resource
import sys

import torch

from pyroae import log_likelihood, zoo
from pyroae.nn import MLP


def main(num_particles: int) -> None:
    """Measure a VAE 784-200-200-50 on 4 data."""
    torch.manual_seed(0)
    system = zoo.vae(784, latent=50, encoder=MLP((200, 200)))
    x = (torch.rand(4, 784) < 0.3).float()
    log_likelihood(system.model, system.guide, x[:1], num_particles=10)  # loads what it needs
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    log_likelihood(system.model, system.guide, x, num_particles=num_particles)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


if __name__ == "__main__":
    main(int(sys.argv[1]))
