"""pyroae and `pyro.infer` as subjects: the same Pyro programs, those of `zoo.vae`.

`pyro.infer.SVI` takes the loss over the batch, pyroae's steps the loss a datum; with Adam that is
one multiplication.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.infer
import torch
from pyro import poutine
from torch import Tensor

import pyroae
from benchmarks.problems import Index, Problem
from benchmarks.workers import Turns
from pyroae import TrainConfig, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.compilation.ensemble import Ensemble, Stream
from pyroae.compilation.svi import Compiled
from pyroae.nn import MLP, Conv
from pyroae.objectives import OBJECTIVES, ObjectiveBase
from pyroae.runtime.threads import one_core_each

LEARNING_RATE = 1e-3
PARTICLES_AT_ONCE = 100
STEPS_A_LAUNCH = 32
PART = 8


def system_of(problem: Problem) -> Autoencoder:
    """The VAE, on its device."""
    torch.manual_seed(0)
    shape = problem.features if problem.widths else (math.isqrt(problem.features),) * 2
    encoder = MLP(problem.widths) if problem.widths else Conv()
    return zoo.vae(shape, latent=problem.latent, encoder=encoder).to(problem.device)


def objective_of(problem: Problem) -> ObjectiveBase:
    """The estimator with the problem's K."""
    return OBJECTIVES[problem.objective](num_particles=problem.num_particles)


def steps_of(step: Callable[[Tensor], Any], problem: Problem) -> Callable[[int], None]:
    """Blocks of steps, each on a batch gathered from the resident data."""
    x, index = torch.from_numpy(problem.data()).to(problem.device), Index(problem)

    def block(count: int) -> None:
        for rows in torch.from_numpy(index.next(count)).to(problem.device):
            step(x.index_select(0, rows))
        wait_for(problem)

    return block


def wait_for(problem: Problem) -> None:
    """Until the device has done what it was given."""
    if problem.device != "cpu":
        torch.cuda.synchronize()


# Training.


def eager(problem: Problem, turns: Turns) -> None:
    """pyroae's objective and torch's Adam, as `fit` has them without a graph."""
    system, objective = system_of(problem), objective_of(problem)
    adam = torch.optim.Adam(system.parameters(), lr=LEARNING_RATE)
    pyro.enable_validation(False)

    def step(x: Tensor) -> None:
        adam.zero_grad()
        loss = objective.differentiable_loss(system.model, system.guide, x) / len(x)
        loss.backward()
        adam.step()

    turns.serve(steps_of(step, problem))


def compiled(
    problem: Problem,
    turns: Turns,
    inductor: dict[str, Any] | None = None,
    tf32: bool = False,
    several: bool = True,
) -> None:
    """`pyroae.compile`, several steps a call.

    inductor: settings of torch's compiler. tf32: products with ten bits of mantissa. several: False
    for one step a call.
    """
    svi = compiled_step(problem, inductor, tf32)
    if not several:
        turns.serve(steps_of(lambda x: svi.step(x, divisor=problem.batch), problem))
    turns.serve(_several(svi, problem))


def _several(svi: Compiled, problem: Problem) -> Callable[[int], None]:
    """Blocks of steps, so many at a time."""
    x, index = torch.from_numpy(problem.data()).to(problem.device), Index(problem)

    def block(count: int) -> None:
        for rows in torch.from_numpy(index.next(count)).to(problem.device).split(STEPS_A_LAUNCH):
            if len(rows) == STEPS_A_LAUNCH:
                chosen = x.index_select(0, rows.flatten()).unflatten(0, rows.shape)
                svi.steps(chosen, divisor=problem.batch)
            else:  # the rest of a block, whose length differs
                for row in rows:
                    svi.step(x.index_select(0, row), divisor=problem.batch)
        wait_for(problem)

    return block


def compiled_step(
    problem: Problem, inductor: dict[str, Any] | None = None, tf32: bool = False
) -> Compiled:
    """Ready for its next step."""
    import torch._inductor.config as settings

    system = system_of(problem)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    svi = pyroae.compile(
        system.model,
        system.guide,
        objective_of(problem),
        lambda parameters: torch.optim.Adam(parameters, lr=LEARNING_RATE),
    )
    first = torch.from_numpy(problem.data(problem.batch)).to(problem.device)
    with settings.patch(**(inductor or {})):
        for _ in range(2):  # the second step makes the graph
            svi.step(first, divisor=problem.batch)
    if not svi.is_compiled:
        raise RuntimeError("the step is not compiled")
    return svi


def many(problem: Problem, turns: Turns, members: int, together: bool) -> None:
    """Members from so many seeds, each on batches of its own: a step of all, or of each in turn.

    Together, a GPU steps all by one graph, and a CPU one member with each core.
    """
    device = torch.device(problem.device)
    compiled, streams = [], []
    for seed in range(members):
        svi = Compiled(
            system_of(problem),
            objective_of(problem),
            lambda p: torch.optim.Adam(p, lr=LEARNING_RATE),
        )
        compiled.append(svi)
        torch.manual_seed(seed)
        streams.append(Stream(device))
    if together and device.type == "cpu":
        turns.serve(_side_by_side(problem, compiled, streams))
        return
    ensemble = Ensemble(compiled, streams)

    def step(batches: list[tuple[Tensor, ...]]) -> None:
        if together:
            ensemble.step(batches, divisor=problem.batch)
        else:
            for member, (x,) in zip(compiled, batches, strict=True):
                member.step(x, divisor=problem.batch)

    x, index = torch.from_numpy(problem.data()).to(device), Index(problem)

    def block(count: int) -> None:
        rows = torch.from_numpy(index.next(count * members)).to(device)
        chosen = x[rows].unflatten(0, (count, members))  # by one operation, as `fit_ensemble` does
        batches = [[(part,) for part in parts.unbind()] for parts in chosen.unbind()]
        whole = (
            len(batches) - len(batches) % STEPS_A_LAUNCH
            if together and device.type == "cuda"
            else 0
        )
        for first in range(0, whole, STEPS_A_LAUNCH):
            ensemble.steps(batches[first : first + STEPS_A_LAUNCH], lambda i: None, problem.batch)
        for left in batches[whole:]:
            step(left)
        wait_for(problem)

    block(2)  # the second step makes the graph
    if not (ensemble.is_batched if together else all(member.is_compiled for member in compiled)):
        raise RuntimeError("the step is not compiled")
    turns.serve(block)


def _side_by_side(
    problem: Problem, members: list[Compiled], streams: list[Stream]
) -> Callable[[int], None]:
    """Blocks of steps of every member, taken by one core each."""
    from pyroae.compilation.shared_code import SharedCode  # not in 0.4

    x, index, codes = torch.from_numpy(problem.data()), Index(problem), SharedCode()
    for member, stream in zip(members, streams, strict=True):
        member.shared = codes, stream.generators["cpu"]

    def part(member: Compiled, rows: Tensor) -> None:
        member.steps([x.index_select(0, row) for row in rows], divisor=problem.batch)

    def block(count: int) -> None:
        rows = torch.from_numpy(index.next(count * len(members))).unflatten(0, (count, -1))
        parts = [(m, rows[i : i + PART, k]) for i in range(0, count, PART) for k, m in each]
        with one_core_each() as threads:
            # fewer are in progress at once than there are members: no member is stepped twice
            for _ in threads.in_order(partial(part, *one) for one in parts):
                pass

    each = list(enumerate(members))
    for member in members:
        for _ in range(2):  # the second step makes the graph
            member.step(x[: problem.batch], divisor=problem.batch)
    if not all(member.is_compiled for member in members):
        raise RuntimeError("the step is not compiled")
    return block


def fit(problem: Problem, turns: Turns) -> None:
    """`pyroae.fit` with a compiled step; a block is an epoch of it, timed by its own history."""
    x = torch.from_numpy(problem.data())
    config = TrainConfig(
        epochs=10**6,
        batch_size=problem.batch,
        lr=LEARNING_RATE,
        compile=True,
        accelerator=problem.device,
    )
    steps = len(x) // problem.batch
    if steps * problem.batch != len(x):
        raise ValueError(f"{len(x)} data are no whole number of batches of {problem.batch}")

    def on_epoch(state: Any) -> None:
        seconds = [0.0, *(epoch.seconds for epoch in state.history[-2:])]
        turns.report((seconds[-1] - seconds[-2]) / steps)
        turns.wait()

    turns.wait()
    pyroae.fit(
        system_of(problem), x, objective_of(problem), config, on_epoch=on_epoch, progress=False
    )


def fit_many(problem: Problem, turns: Turns, members: int) -> None:
    """`pyroae.fit_ensemble`; a block is an epoch of all members, timed by their history."""
    x = torch.from_numpy(problem.data())
    config = TrainConfig(
        epochs=10**6,
        batch_size=problem.batch,
        lr=LEARNING_RATE,
        compile=True,
        accelerator=problem.device,
    )
    seconds = [0.0]

    def on_epoch(member: int, state: Any) -> None:
        if member == 0:
            seconds.append(members * state.history[-1].seconds)
            turns.report((seconds[-1] - seconds[-2]) / (len(x) // problem.batch))
            turns.wait()

    turns.wait()
    systems = [system_of(problem) for _ in range(members)]
    objective = objective_of(problem)
    pyroae.fit_ensemble(
        systems, x, objective, config, seeds=range(members), on_epoch=on_epoch, progress=False
    )


def svi(problem: Problem, turns: Turns, loss: str = "Trace_ELBO", validate: bool = True) -> None:
    """`pyro.infer.SVI`; validate: Pyro's checks, which are on unless they are turned off."""
    pyro.enable_validation(validate)
    system: Any = system_of(problem)
    many = problem.num_particles > 1
    settings: dict[str, Any] = {"num_particles": problem.num_particles, "vectorize_particles": many}
    if many:
        settings["max_plate_nesting"] = 1
    if loss.startswith("Jit"):
        settings["ignore_jit_warnings"] = True
        system = _Stored(system)
    objective = getattr(pyro.infer, loss)(**settings)
    inference = pyro.infer.SVI(
        system.model, system.guide, pyro.optim.Adam({"lr": LEARNING_RATE}), objective
    )
    turns.serve(steps_of(inference.step, problem))


class _Stored:
    """The same programs with their parameters in Pyro's store, without which its JIT does not find
    them.
    """

    def __init__(self, system: Autoencoder) -> None:
        self.system = system

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.system.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.system.p_z())
            pyro.sample("x", self.system.p_x(z), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.system.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.system.q_z(x))


# Log-likelihood: a step is one datum.


def likelihood(problem: Problem, turns: Turns, compile: bool | str = "auto") -> None:
    """`pyroae.log_likelihood`.

    compile: with True a graph of the draws, made once and kept between the blocks, as it is in an
    evaluation of many data.
    """
    from pyroae.evaluation.importance import tasks as module

    if compile is True:
        module.CompiledDraws = _once(module.CompiledDraws)  # type: ignore[misc,assignment]
    system = system_of(problem)

    def block(count: int) -> None:
        x = torch.from_numpy(problem.data(count)).to(problem.device)
        pyroae.log_likelihood(
            system.model, system.guide, x, num_particles=problem.num_particles, compile=compile
        )

    turns.serve(block)


def _once(make: Callable[..., Any]) -> Callable[..., Any]:
    """The first thing made, whenever one is asked for: blocks of one size have the same graph."""
    made: list[Any] = []

    def kept(*args: Any, **kwargs: Any) -> Any:
        if not made:
            made.append(make(*args, **kwargs))
            if made[0]._graphs is None:
                raise RuntimeError("the draws are not compiled")
        return made[0]

    return kept


def plain_likelihood(problem: Problem, turns: Turns) -> None:
    """Plain Pyro: traces of the guide and of the replayed model under a plate of 100 particles, all
    data of a block at once.
    """
    system = system_of(problem).eval()
    pyro.enable_validation(False)

    def log_weights(x: Tensor) -> Tensor:
        with pyro.plate("particles", PARTICLES_AT_ONCE, dim=-2):
            guide = poutine.trace(system.guide).get_trace(x)
            model = poutine.trace(poutine.replay(system.model, trace=guide)).get_trace(x)
        guide.compute_log_prob()
        model.compute_log_prob()
        return (
            model.nodes["x"]["log_prob"]
            + model.nodes["z"]["log_prob"]
            - guide.nodes["z"]["log_prob"]
        )

    @torch.no_grad()
    def block(count: int) -> None:
        x = torch.from_numpy(problem.data(count)).to(problem.device)
        for rows in x.split(100):
            parts = [log_weights(rows) for _ in range(problem.num_particles // PARTICLES_AT_ONCE)]
            torch.cat(parts).logsumexp(0) - math.log(problem.num_particles)
        wait_for(problem)

    turns.serve(block)


# Annealing: a step is one run of all data.


def annealing(
    problem: Problem, turns: Turns, num_distributions: int, compile: bool, double: bool = False
) -> None:
    """`pyroae.ais`, pilot included, 16 chains and ten leapfrog steps.

    compile: with True graphs that are made once and kept between the runs.
    """
    from pyroae.evaluation.annealing import driver as module

    if compile:
        module.PathGraphs = _kept_graphs(module.PathGraphs)  # type: ignore[misc]
    system, x = system_of(problem), torch.from_numpy(problem.data(problem.batch))
    settings = pyroae.AISSettings(16, num_distributions, double=double)

    def block(count: int) -> None:
        for _ in range(count):
            pyroae.ais(system.model, None, x, settings=settings, seed=0, compile=compile)

    turns.serve(block)


def _kept_graphs(make: Any) -> Any:
    """Graphs that are kept between runs, which give them new threads."""
    made: list[Any] = []

    def kept(plan: Any, num_data: int, announce: Any, *threads: Any) -> Any:
        if not made:
            made.append(make(plan, num_data, announce, *threads))
        elif threads:
            (made[0].threads,) = threads
        return made[0]

    return kept
