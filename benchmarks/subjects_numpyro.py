"""NumPyro as a subject: its SVI, one jitted step at a time, or a whole block in one loop of
compiled code.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.example_libraries import stax
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO

from benchmarks.problems import Index, Problem
from benchmarks.workers import Turns

LEARNING_RATE = 1e-3


def inference(problem: Problem) -> SVI:
    """The same VAE as NumPyro programs, with the ELBO or, for `iwae`, with RenyiELBO; particles are
    vectorized.
    """
    batch, latent = problem.batch, problem.latent

    def model(x: Any) -> None:
        decode = numpyro.module("decoder", _chain(problem.decoder_sizes), (batch, latent))
        with numpyro.plate("data", batch):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([latent]).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        encode = numpyro.module("encoder", _chain(problem.encoder_sizes), (batch, problem.features))
        loc, log_variance = jnp.split(encode(x), 2, -1)
        with numpyro.plate("data", batch):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(0.5 * log_variance)).to_event(1))

    k = problem.num_particles
    bounds = {"trace-elbo": Trace_ELBO, "iwae": partial(RenyiELBO, alpha=0)}
    loss = bounds[problem.objective](num_particles=k)
    return SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), loss)


def _chain(sizes: list[tuple[int, int]]) -> Any:
    layers = [layer for _, outputs in sizes for layer in (stax.Dense(outputs), stax.Tanh)]
    return stax.serial(*layers[:-1])


def step(problem: Problem, turns: Turns) -> None:
    """One call of compiled code a step, its batch gathered inside."""
    svi, x, index = inference(problem), jnp.asarray(problem.data()), Index(problem)
    state = svi.init(jax.random.PRNGKey(0), x[: problem.batch])

    @partial(jax.jit, donate_argnums=0)
    def update(state: Any, x: Any, rows: Any) -> Any:
        return svi.update(state, x[rows])

    def block(count: int) -> None:
        nonlocal state
        for rows in index.next(count):
            state, loss = update(state, x, rows)
        loss.block_until_ready()

    turns.serve(block)


def loop(problem: Problem, turns: Turns, products: str = "default") -> None:
    """A block of steps in `jax.lax.fori_loop`, their batches gathered inside: the fastest way that
    NumPyro has.

    products: precision of matrix products; the default is TF32 on a GPU that has it, "highest" is
    single precision.
    """
    jax.config.update("jax_default_matmul_precision", None if products == "default" else products)
    svi, x, index = inference(problem), jnp.asarray(problem.data()), Index(problem)
    state = svi.init(jax.random.PRNGKey(0), x[: problem.batch])

    @partial(jax.jit, donate_argnums=0)
    def updates(state: Any, x: Any, rows: Any) -> Any:
        def body(i: Any, carry: Any) -> Any:
            state, total = carry
            state, loss = svi.update(state, x[rows[i]])
            return state, total + loss

        return jax.lax.fori_loop(0, len(rows), body, (state, 0.0))

    def block(count: int) -> None:
        nonlocal state
        state, total = updates(state, x, index.next(count))
        total.block_until_ready()

    turns.serve(block)
