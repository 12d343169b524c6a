"""A small system of every prior, posterior, likelihood, hierarchy, condition and of missing values,
with data that suit it: for the grids of choices and objectives.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pyroae import zoo
from pyroae.autoencoder import Autoencoder
from pyroae.autoencoder.hierarchies import HIERARCHIES
from pyroae.likelihoods import LIKELIHOODS
from pyroae.nn import MLP
from pyroae.posteriors import POSTERIORS
from pyroae.priors import PRIORS

D, M = 6, 3
NET = MLP((5,))
SETTINGS = {
    "vamp": "components=4",
    "mixture": "components=3",
    "flow": "transforms=1,hidden=6",
    "iaf": "hidden=6,context=2",
    "nsf": "hidden=6,context=2,bins=4",
    "low-rank": "rank=2",
    "top-k": "k=2",
    "mixed": "columns=normal(feature)*2+categorical*2+bernoulli*2",
}
"""Settings that make a choice small, or that it needs."""
DISCRETE = ("bernoulli", "categorical")
FLAT = ("point", "soft-threshold", "top-k")


def text(name: str) -> str:
    """A choice as the command line writes it."""
    return f"{name}:{SETTINGS[name]}" if name in SETTINGS else name


def built(part: str, name: str) -> Autoencoder:
    """A system with one choice that is not the default."""
    if part == "hierarchy":
        hierarchy = HIERARCHIES.parse(f"{name}:widths=[4]")
        return zoo.hierarchical_vae(D, (M, 2), hierarchy, encoder=NET)
    if part == "prior":
        posterior = POSTERIORS.parse(name if name in DISCRETE else "diagonal")
        return zoo.vae(D, M, prior=PRIORS.parse(text(name)), posterior=posterior, encoder=NET)
    if part == "likelihood":
        return zoo.vae(D, M, likelihood=LIKELIHOODS.parse(text(name)), encoder=NET)
    if name == "exact-linear":
        return zoo.ppca(D, M, exact=True)
    prior = PRIORS.parse(name if name in DISCRETE else "laplace" if name in FLAT else "normal")
    return zoo.vae(D, M, prior=prior, posterior=POSTERIORS.parse(text(name)), encoder=NET)


def rows() -> dict[str, tuple[Callable[[], Autoencoder], Callable[[], tuple[Tensor, ...]]]]:
    """A system and its data by name, such as `prior vamp`."""
    x = (torch.rand(12, D, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    c = torch.eye(3)[torch.arange(12) % 3]
    found: dict[str, tuple[Callable[[], Autoencoder], Callable[[], tuple[Tensor, ...]]]] = {}
    for part, names in (
        ("prior", PRIORS),
        ("posterior", POSTERIORS),
        ("likelihood", LIKELIHOODS),
        ("hierarchy", HIERARCHIES),
    ):
        for name in names:
            found[f"{part} {name}"] = (
                lambda part=part, name=name: built(part, name),  # type: ignore[misc]
                lambda: (x,),
            )
    hole = x.clone()
    hole[:, 1:][torch.rand(12, D - 1, generator=torch.Generator().manual_seed(1)) < 0.3] = torch.nan
    found["missing values"] = (lambda: zoo.vae(D, M, encoder=NET, missing=True), lambda: (hole,))
    found["condition"] = (
        lambda: zoo.conditional_vae(D, M, encoder=NET, condition=3),
        lambda: (x, c),
    )
    partly = c * (torch.arange(12) < 6)[:, None]
    found["m2"] = (lambda: zoo.m2(D, M, encoder=NET, condition=3), lambda: (x, partly))
    return found


ROWS = rows()
