"""A training step in a fresh process, by the public functions of pyroae and of `pyro.infer` only:
whichever checkout of pyroae is on the path is timed.

    python -P benchmarks/first_step.py STARTED [pyroae|svi]

Prints the seconds from STARTED, of the monotonic clock, to the end of the first step; the seconds
that the second step, at which the graph is made, takes for imports; and the rest of the second.
"""

import importlib._bootstrap
import sys
import time
from collections.abc import Callable
from typing import Any


class Imports:
    """Time in which modules are found and loaded, counted once where they import others; clock:
    reads it, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds, self._clock = 0.0, clock
        self._depth, self._load = 0, importlib._bootstrap._find_and_load  # type: ignore[attr-defined]
        # Every import of a module that is not there yet ends in this function.
        importlib._bootstrap._find_and_load = self._timed  # type: ignore[attr-defined]

    def _timed(self, *args: Any) -> Any:
        begun = self._clock()
        self._depth += 1
        try:
            return self._load(*args)
        finally:
            self._depth -= 1
            if not self._depth:
                self.seconds += self._clock() - begun


def main(started: float, engine: str) -> None:
    """Take two steps of the reference VAE, 784-400-20, batch 128."""
    imports = Imports()
    import pyro
    import torch

    from pyroae import TraceELBO, compile, zoo
    from pyroae.nn import MLP

    torch.manual_seed(0)
    system = zoo.vae(784, latent=20, encoder=MLP((400,)))
    x = (torch.rand(128, 784) < 0.3).float()
    if engine == "pyroae":
        step: Any = compile(system.model, system.guide, TraceELBO()).step
    else:
        adam, loss = pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO()
        step = pyro.infer.SVI(system.model, system.guide, adam, loss).step
    step(x)
    first, before = time.monotonic(), imports.seconds
    step(x)
    second, of_imports = time.monotonic() - first, imports.seconds - before
    print(first - started, of_imports, second - of_imports)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2])
