"""Arrays that make no sense, to every public function that takes data: a result, or one
sentence.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pyroae import (
    AISSettings,
    Autoencoder,
    EvaluationSettings,
    Local,
    Mixture,
    TrainConfig,
    ais,
    bdmc,
    diagnose,
    evaluate,
    exact_log_likelihood,
    fit,
    gaps,
    information,
    log_likelihood,
    log_weights,
    measure_gradients,
    prior_of,
    quadrature,
    to_datatree,
    zoo,
)
from pyroae.errors import PyroaeError
from pyroae.objectives import OBJECTIVES

pytestmark = pytest.mark.usefixtures("few_pictures")

GOOD = (torch.arange(12).reshape(3, 4) % 3 == 0).float()
ODD: dict[str, Any] = {
    "no data": torch.zeros(0, 4),
    "no columns": torch.zeros(3, 0),
    "too wide": torch.zeros(3, 5),
    "too narrow": torch.zeros(3, 2),
    "one dimension": torch.zeros(4),
    "a number": torch.tensor(1.0),
    "four dimensions": torch.zeros(3, 2, 2, 1),
    "whole numbers": torch.zeros(3, 4, dtype=torch.long),
    "double precision": GOOD.double(),
    "half precision": GOOD.half(),
    "booleans": GOOD.bool(),
    "complex numbers": GOOD.to(torch.complex64),
    "all nan": torch.full((3, 4), torch.nan),
    "one nan": torch.where(torch.arange(12).reshape(3, 4) == 5, torch.nan, GOOD),
    "infinite": torch.full((3, 4), torch.inf),
    "huge": torch.full((3, 4), 1e30),
    "negative": torch.full((3, 4), -1.0),
    "sparse": GOOD.to_sparse(),
    "meta": torch.zeros(3, 4, device="meta"),
    "with a gradient": GOOD.clone().requires_grad_(),
    "objects": np.array([[None, 1], ["a", 2]], dtype=object),
    "strings": np.array([["a"] * 4] * 3),
    "a NumPy array": GOOD.numpy(),
    "a frame": pd.DataFrame(GOOD.numpy()),
    "a list": GOOD.tolist(),
    "ragged": [[1, 2], [3]],
    "nothing": None,
    "a word": "hello",
    "a float": 3.0,
    "a dict": {"y": GOOD},
    "two tensors": (GOOD, GOOD),
    "no argument": (),
}


def bound(name: str, system: Autoencoder, x: Any) -> Any:
    """Of an objective."""
    return OBJECTIVES[name](num_particles=2).bound(system.model, system.guide, x)


SHORT = AISSettings(num_chains=4, num_distributions=4, leapfrog_steps=2)
FUNCTIONS: dict[str, Callable[[Autoencoder, Any], Any]] = {
    "log_weights": lambda s, x: log_weights(s.model, s.guide, x, num_particles=2),
    "log_likelihood": lambda s, x: log_likelihood(s.model, s.guide, x, num_particles=5),
    "Local": lambda s, x: log_likelihood(s.model, Local(s.guide, steps=2), x, num_particles=5),
    "Mixture": lambda s, x: log_likelihood(
        s.model, Mixture((s.guide, prior_of(s.model))), x, num_particles=5
    ),
    "ais": lambda s, x: ais(s.model, None, x, settings=SHORT),
    "bdmc": lambda s, x: bdmc(s.model, None, x, settings=SHORT),
    "gaps": lambda s, x: gaps(s.model, s.guide, x, num_particles=5, steps=2),
    "quadrature": lambda s, x: quadrature(s.model, s.guide, x, max_points=256),
    "diagnose": lambda s, x: diagnose(s.model, s.guide, x),
    "information": lambda s, x: information(s.model, s.guide, x),
    "to_datatree": lambda s, x: to_datatree(s.model, s.guide, x, num_draws=3),
    "exact_log_likelihood": exact_log_likelihood,
    "evaluate": lambda s, x: evaluate(s, x, EvaluationSettings(num_particles=5)),
    "fit": lambda s, x: fit(s, x, config=TrainConfig(epochs=1, batch_size=2), progress=False),
    "measure_gradients": lambda s, x: measure_gradients(
        s.model,
        s.guide,
        x,
        {"iwae": OBJECTIVES["iwae"](num_particles=2)},
        parameters=dict(s.named_parameters()),
        replicates=3,
    ),
    "encode": lambda s, x: s.encode(x),
    "decode": lambda s, x: s.decode(x),
    "reconstruct": lambda s, x: s.reconstruct(x),
    **{
        f"{name}.bound": partial(bound, name)
        for name in ("trace-elbo", "iwae", "dreg", "vimco", "analytic-kl")
    },
}


OF_PPCA = ("exact_log_likelihood", "evaluate", "fit", "gaps", "to_datatree")
"""What may differ for a system with a closed form; `make study` has all functions."""


@pytest.mark.parametrize(
    ("name", "function"),
    [
        *(pytest.param("vae", f, marks=pytest.mark.slow if f == "bdmc" else ()) for f in FUNCTIONS),
        *(
            pytest.param("ppca", f, marks=() if f in OF_PPCA else pytest.mark.slow)
            for f in FUNCTIONS
        ),
    ],
)
def test_odd_arrays(name: str, function: str) -> None:
    system, refused = getattr(zoo, name)(4, latent=2), set()
    for odd, x in ODD.items():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the particles are run sequentially")
            try:
                FUNCTIONS[function](system, x)
            except PyroaeError as refusal:
                said = str(refusal)
                refused.add(odd)
            else:
                continue
        assert said.strip(), odd
        assert "\n" not in said, odd
    assert refused >= {
        "too wide",
        "objects",
        "ragged",
        "nothing",
        "a word",
        "complex numbers",
        "two tensors",
    }
