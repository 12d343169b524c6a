"""One of each system of the zoo, small, with data that suit it: for tests that run over all of
them.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pyroae import corruptions, likelihoods, posteriors, priors, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.autoencoder.hierarchies import TopDown
from pyroae.nn import MLP, Conv, Linear
from pyroae.objectives import OBJECTIVES
from pyroae.priors import GaussianWeights, Laplace

D, M = 16, 3
MAPS = MLP((7,))
SYSTEMS = {
    "linear-ae": lambda: zoo.linear_autoencoder(D, M),
    "ae": lambda: zoo.autoencoder(D, M, encoder=MAPS),
    "tied-ae": lambda: zoo.autoencoder(D, M, encoder=MAPS, tied=True),
    "deep-ae": lambda: zoo.deep_autoencoder(D, M, widths=(8, 6, 5)),
    "bernoulli-ae": lambda: zoo.autoencoder(D, M, encoder=MAPS, likelihood=likelihoods.Bernoulli()),
    "sparse-ae": lambda: zoo.sparse_autoencoder(D, 20, rate=0.5, encoder=MAPS),
    "sparse-ae-top-k": lambda: zoo.sparse_autoencoder(
        D, 20, encoder=MAPS, posterior=posteriors.TopK(4)
    ),
    "sparse-ae-learned": lambda: zoo.sparse_autoencoder(
        D, 20, encoder=MAPS, posterior=posteriors.SoftThreshold(0.1, learn=True)
    ),
    "sparse-ae-map": lambda: zoo.sparse_autoencoder(
        D, M, encoder=MAPS, decoder=MAPS, weight_prior=GaussianWeights(1.0, num_data=50)
    ),
    "denoising-ae": lambda: zoo.denoising_autoencoder(
        D, M, corruptions.Gaussian(0.1), encoder=MAPS
    ),
    "denoising-vae": lambda: zoo.vae(D, M, encoder=MAPS, corruption=corruptions.SaltAndPepper(0.2)),
    "ppca": lambda: zoo.ppca(D, M),
    "ppca-exact": lambda: zoo.ppca(D, M, exact=True),
    "vae": lambda: zoo.vae(D, M, encoder=MAPS),
    "vae-conv": lambda: zoo.vae((4, 4), M, encoder=Conv((4, 5), width=6)),
    "vae-linear": lambda: zoo.vae(D, M, encoder=Linear()),
    "vae-laplace": lambda: zoo.vae(D, M, encoder=MAPS, prior=Laplace(1.5)),
    "vae-normal": lambda: zoo.vae(
        D, M, encoder=MAPS, likelihood=likelihoods.Normal(0.3, learn=True)
    ),
    "vae-continuous": lambda: zoo.vae(
        D, M, encoder=MAPS, likelihood=likelihoods.ContinuousBernoulli()
    ),
    "vae-ladder": lambda: zoo.hierarchical_vae(D, (M, 2), TopDown((4,)), encoder=MAPS),
}
DISCRETE = {
    "discrete-vae": lambda: zoo.discrete_vae(D, M, encoder=MAPS),
    "discrete-vae-learned": lambda: zoo.discrete_vae(
        D, M, encoder=MAPS, prior=priors.Bernoulli(learn=True)
    ),
    "discrete-vae-categorical": lambda: zoo.discrete_vae(D, 6, categories=3, encoder=MAPS),
}
"""Systems whose draws carry no gradient."""
MIXTURES = {
    "vae-mixture": lambda: zoo.vae(D, M, encoder=MAPS, posterior=posteriors.Mixture(components=2)),
}
"""Systems that the bounds of stratified draws train too."""
KINDS = {name: make(num_particles=4).kinds for name, make in OBJECTIVES.items()}
"""The kinds of latent sites that each named objective takes."""
FOR_DISCRETE = tuple(name for name, kinds in KINDS.items() if "categorical" in kinds)
"""Named objectives that train them."""
FOR_BINARY = tuple(name for name, kinds in KINDS.items() if kinds == {"binary"})
"""Named objectives that train those with Bernoulli latents, and no others."""
FOR_MIXTURES = tuple(name for name, kinds in KINDS.items() if kinds == {"mixture"})
"""Named objectives that need a mixture as guide."""
FOR_GAUSSIANS = tuple(name for name, kinds in KINDS.items() if "continuous" in kinds)
"""Named objectives that train a guide of Gaussians."""
CONFORMING = (
    *(
        "beta-elbo",
        "disarm",
        "dreg",
        "enumerate",
        "gdreg",
        "gumbel-softmax",
        "nvil",
    ),
    *("arm", "ovis", "relax", "rws", "rws-dreg", "selbo", "siwae", "tvo"),
)
"""Named objectives whose conformance every run of the tests checks: one for each way to estimate,
but for `dais` see tests/objectives/test_annealed.py; `make study` checks all.
"""
OF_CONDITIONS = ("conditional-vae", "m2")
"""Systems of (x, c), which tests/training/test_conditional.py and test_m2.py check."""
ZOO: dict[str, Callable[[], Autoencoder]] = {
    **{n: partial(build, D, M) for n, build in zoo.SYSTEMS.items() if n not in OF_CONDITIONS},
    **SYSTEMS,
    **DISCRETE,
    **MIXTURES,
}
"""All of them, and whatever else of x alone the zoo has a name for."""


def suited_to(objective: str) -> str:
    """A system that a named objective trains."""
    if objective in FOR_GAUSSIANS:
        return "vae"
    return "vae-mixture" if objective in FOR_MIXTURES else "discrete-vae"


PROPER = [name for name in SYSTEMS if name.startswith(("ppca", "vae"))]


def system_and_data(name: str, num_data: int = 6) -> tuple[Autoencoder, Tensor]:
    """The system, and binary data, which suit every likelihood."""
    return ZOO[name](), (torch.rand(num_data, D) < 0.4).to(torch.get_default_dtype())
