"""Values and gradients of the estimators against those of other libraries, on the same draws.

The other libraries are NumPyro and TensorFlow Probability (its JAX substrate).

The model is z ~ N(W₀, I), x|z ~ N(W z + b, 0.49 I) with q = N(V x + c, diag s²), written once for
Pyro (`pyroae.testing.Toy`) and once in JAX; the standardized draws are made here and handed to each
guide. float64. Exits with 1 where a relative difference exceeds 1e-5; a peer that is not installed
is skipped. TensorFlow Probability 0.25 does not import beside JAX 0.12; tfp-nightly 0.26 does.

Left out, for it is another quantity: the θ-gradient of TensorFlow Probability's DReG, which weighs
∂ log p by ŵ² too.
"""

import argparse
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyroae.objectives import (
    ELBO,
    IWAE,
    AnalyticKL,
    Objective,
    ObjectiveBase,
    Renyi,
    Score,
    StickingTheLanding,
    TraceELBO,
)
from pyroae.objectives.named import dreg, vimco
from pyroae.testing import Toy

TOLERANCE = 1e-5
"""Largest relative difference."""
NUM_PARTICLES, NUM_DATA, SIZE = 5, 6, 60
"""K, N, and the size of the plate of which the N data are a subsample, where they are one."""
THETA, PHI = ("prior", "weight", "bias"), ("encode", "shift", "log_scale")
Loss = tuple[float, dict[str, np.ndarray]]
"""A loss and its gradient, by parameter."""


@dataclass(frozen=True)
class Problem:
    """One set of numbers for every library: parameters by name, data `[N, 3]`, standardized draws
    `[K, N, 2]`.
    """

    toy: Toy
    parameters: dict[str, np.ndarray]
    x: np.ndarray
    noise: np.ndarray

    def ours(self, objective: ObjectiveBase, size: int | None = None) -> Loss:
        """Loss and gradient of an objective with the first of the draws."""
        self.toy.size = size
        self.toy.noise = torch.as_tensor(self.noise[: objective.num_particles])
        self.toy.zero_grad()
        loss = objective.loss_and_grads(self.toy.model, self.toy.guide, torch.as_tensor(self.x))
        grads = {name: p.grad for name, p in self.toy.named_parameters()}
        return loss, {
            name: np.zeros(p.shape) if (p := grads[name]) is None else p.numpy().copy()
            for name in grads
        }


@dataclass(frozen=True)
class Row:
    """One estimator: both losses, the parameters whose gradients are compared, and the largest
    relative differences.
    """

    estimator: str
    peer: str
    ours: Loss
    theirs: Loss
    compared: tuple[str, ...] = THETA + PHI

    @property
    def of_value(self) -> float:
        """Relative difference of the losses."""
        return abs(self.ours[0] - self.theirs[0]) / abs(self.ours[0])

    @property
    def of_gradient(self) -> float:
        """Largest difference of a gradient's entries, relative to the largest entry of the
        gradient.
        """
        ours, theirs = (
            np.concatenate([side[1][name].ravel() for name in self.compared])
            for side in (self.ours, self.theirs)
        )
        return float(np.abs(ours - theirs).max() / np.abs(ours).max())

    @property
    def agrees(self) -> bool:
        """Whether both are within the tolerance; not so for what is not a number."""
        return self.of_value <= TOLERANCE and self.of_gradient <= TOLERANCE


def problem(seed: int) -> Problem:
    """Parameters of the toy, and random data and draws."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(seed)
    toy = Toy()
    parameters = {name: p.detach().numpy().copy() for name, p in toy.named_parameters()}
    noise = torch.randn(NUM_PARTICLES, NUM_DATA, 2).numpy()
    return Problem(toy, parameters, torch.randn(NUM_DATA, 3).numpy(), noise)


# NumPyro.


def numpyro_rows(given: Problem) -> Iterator[Row]:
    """Trace_ELBO, TraceMeanField_ELBO and RenyiELBO, without and with a subsampled plate."""
    from numpyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO

    k = NUM_PARTICLES
    cases = [
        ("ELBO, Monte-Carlo KL", TraceELBO(k), "Trace_ELBO", Trace_ELBO(num_particles=k)),
        (
            "ELBO, analytic KL",
            AnalyticKL(k),
            "TraceMeanField_ELBO",
            TraceMeanField_ELBO(num_particles=k),
        ),
        ("IWAE", Objective(IWAE(k)), "RenyiELBO(0)", RenyiELBO(alpha=0, num_particles=k)),
        *(
            (
                f"Rényi, α = {a}",
                Objective(Renyi(k, a)),
                f"RenyiELBO({a})",
                RenyiELBO(alpha=a, num_particles=k),
            )
            for a in (-1.0, 0.5, 2.0)
        ),
    ]
    for size in (None, SIZE):
        for name, objective, peer, theirs in cases:
            label = name if size is None else f"{name}, {NUM_DATA} of {SIZE} data"
            yield Row(
                label,
                f"NumPyro {peer}",
                given.ours(objective, size),
                _numpyro_loss(given, theirs, size),
            )


def _numpyro_loss(given: Problem, objective: Any, size: int | None) -> Loss:
    import jax

    model, guide = _numpyro_programs(given, size)

    def loss(parameters: dict[str, Any]) -> Any:
        return objective.loss(jax.random.key(0), parameters, model, guide, given.x)

    return _evaluate(loss, given)


def _numpyro_programs(
    given: Problem, size: int | None
) -> tuple[Callable[..., None], Callable[..., None]]:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    normal = _numpyro_given(given.noise)

    def parameters() -> dict[str, Any]:
        return {
            name: numpyro.param(name, jnp.asarray(value))
            for name, value in given.parameters.items()
        }

    def plate(x: Any) -> Any:
        return numpyro.plate("data", size or len(x), subsample_size=len(x))

    def model(x: Any) -> None:
        p = parameters()
        with plate(x):
            z = numpyro.sample("z", dist.Normal(p["prior"], 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z @ p["weight"].T + p["bias"], 0.7).to_event(1), obs=x)

    def guide(x: Any) -> None:
        p = parameters()
        loc = x @ p["encode"].T + p["shift"]
        with plate(x):
            numpyro.sample(
                "z", normal(loc, jnp.broadcast_to(jnp.exp(p["log_scale"]), loc.shape)).to_event(1)
            )

    return model, guide


def _numpyro_given(noise: np.ndarray) -> Any:
    """A Normal whose draws are given: NumPyro maps over the keys of its particles, the k-th of
    which takes noise[k].
    """
    import jax
    import jax.numpy as jnp
    import numpyro.distributions as dist

    def draws(keys: Any) -> np.ndarray:
        assert len(keys) == len(noise)  # all particles at once
        return noise

    class Given(dist.Normal):
        def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
            assert not sample_shape
            shape = jax.ShapeDtypeStruct(noise.shape[1:], jnp.float64)
            eps = jax.pure_callback(
                draws, shape, jax.random.key_data(key), vmap_method="broadcast_all"
            )
            return self.loc + self.scale * eps

        rsample = sample

    return Given


# TensorFlow Probability.


def tfp_rows(given: Problem) -> Iterator[Row]:
    """monte_carlo_variational_loss under each of its gradient estimators."""
    from tensorflow_probability.substrates.jax import vi

    k, by = NUM_PARTICLES, vi.GradientEstimators
    cases: list[tuple[str, ObjectiveBase, Any, tuple[int, int], tuple[str, ...]]] = [
        ("ELBO", TraceELBO(k), by.REPARAMETERIZATION, (k, 1), THETA + PHI),
        (
            "STL",
            Objective(ELBO(k), StickingTheLanding()),
            by.DOUBLY_REPARAMETERIZED,
            (k, 1),
            THETA + PHI,
        ),
        (
            "ELBO by score function, K = 1",
            Objective(ELBO(1), Score("none")),
            by.SCORE_FUNCTION,
            (1, 1),
            THETA + PHI,
        ),
        ("IWAE", Objective(IWAE(k)), by.REPARAMETERIZATION, (1, k), THETA + PHI),
        ("DReG", dreg(k), by.DOUBLY_REPARAMETERIZED, (1, k), PHI),
        ("VIMCO, geometric", vimco(k, "geometric"), by.VIMCO, (1, k), THETA + PHI),
    ]
    for name, objective, estimator, sizes, compared in cases:
        theirs = _tfp_loss(given, estimator, sizes)
        yield Row(name, f"TFP {estimator.name.lower()}", given.ours(objective), theirs, compared)


def _tfp_loss(given: Problem, estimator: Any, sizes: tuple[int, int]) -> Loss:
    """sizes: draws over which bounds are averaged, and draws within a bound."""
    import jax
    import jax.numpy as jnp
    from tensorflow_probability.substrates.jax import distributions as tfd
    from tensorflow_probability.substrates.jax import vi

    class Given(tfd.Normal):
        def _sample_n(self, n: int, seed: Any = None) -> Any:
            return self.loc + self.scale * given.noise[:n]

    def posterior(p: dict[str, Any], kind: Any) -> Any:
        loc = given.x @ p["encode"].T + p["shift"]
        return tfd.Independent(kind(loc, jnp.broadcast_to(jnp.exp(p["log_scale"]), loc.shape)), 1)

    def loss(p: dict[str, Any]) -> Any:
        def log_joint(z: Any) -> Any:
            log_prior = tfd.Independent(tfd.Normal(p["prior"], 1.0), 1).log_prob(z)
            return log_prior + tfd.Independent(
                tfd.Normal(z @ p["weight"].T + p["bias"], 0.7), 1
            ).log_prob(given.x)

        stopped = posterior(jax.lax.stop_gradient(p), tfd.Normal)
        return vi.monte_carlo_variational_loss(
            log_joint,
            posterior(p, Given),
            sample_size=sizes[0],
            importance_sample_size=sizes[1],
            gradient_estimator=estimator,
            stopped_surrogate_posterior=stopped
            if estimator == vi.GradientEstimators.DOUBLY_REPARAMETERIZED
            else None,
            seed=jax.random.key(0),
        ).sum()

    return _evaluate(loss, given)


def _evaluate(loss: Callable[[dict[str, Any]], Any], given: Problem) -> Loss:
    import jax
    import jax.numpy as jnp

    value, gradient = jax.value_and_grad(loss)(
        {name: jnp.asarray(p) for name, p in given.parameters.items()}
    )
    assert value.dtype == jnp.float64
    return float(value), {name: np.asarray(g) for name, g in gradient.items()}


# The table.

PEERS = {"numpyro": numpyro_rows, "tensorflow_probability": tfp_rows}


def compare(given: Problem) -> tuple[list[Row], list[str]]:
    """Rows of every peer that is installed, and a sentence for each that is not."""
    rows, skipped = [], []
    for package, of_peer in PEERS.items():
        try:
            import jax

            jax.config.update("jax_enable_x64", True)
            found = list(of_peer(given))
        except ImportError as error:
            skipped.append(
                f"{package} is skipped: {error.name or package} is not installed; "
                "it is in the extra `bench`."
            )
        else:
            rows += found
    return rows, skipped


def table(rows: Sequence[Row], skipped: Sequence[str]) -> str:
    """Markdown."""
    lines = [
        "# Agreement with other libraries on the same draws",
        "",
        f"float64, K = {NUM_PARTICLES}, N = {NUM_DATA}; losses in nats over all data. "
        "Differences are relative; the limit is "
        f"{TOLERANCE}.",
        "",
        "| estimator | peer | loss, ours | loss, peer's | of loss | gradient of | of gradient | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        of = "θ, φ" if set(THETA) <= set(row.compared) else "φ"
        lines.append(
            f"| {row.estimator} | {row.peer} | {row.ours[0]:.10f} | {row.theirs[0]:.10f} "
            f"| {row.of_value:.1e} "
            f"| {of} | {row.of_gradient:.1e} | {'agrees' if row.agrees else 'DIFFERS'} |"
        )
    return "\n".join([*lines, "", *skipped, f"Versions: {versions()}."]) + "\n"


def versions() -> str:
    """Of Python and whatever took part."""
    found = [f"Python {sys.version.split()[0]}"]
    for name in ("torch", "pyro-ppl", "numpyro", "tfp-nightly", "tensorflow-probability", "jax"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 where an estimator differs, or where no peer is installed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, help="write the table to this file, too")
    parser.add_argument("--seed", type=int, default=0, help="of data and draws")
    options = parser.parse_args(argv)
    rows, skipped = compare(problem(options.seed))
    text = table(rows, skipped)
    print(text, end="")
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    return 0 if rows and all(row.agrees for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
