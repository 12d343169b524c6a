"""Compiled training and evaluation: the weights and figures of eager code, in `fit`, in SVI's
place, in likelihoods.
"""

import warnings
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from pyro.infer import SVI
from torch import Tensor, nn

import pyroae
from pyroae import TraceELBO, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.compilation.divided_steps import DividedStep
from pyroae.compilation.svi import Compiled
from pyroae.config import TrainConfig
from pyroae.errors import ConfigError, NonFiniteLossError
from pyroae.evaluation.importance import likelihood
from pyroae.nn import MLP
from pyroae.objectives import OBJECTIVES
from pyroae.objectives.apply import bound_of
from pyroae.training import fitting as training
from pyroae.training import plan
from pyroae.training.forward import Step
from pyroae.training.state import State

Make = Any


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs run as they are traced: what a step computes, without the minute that code takes."""
    for module in ("compilation.step_graphs", "evaluation.importance.compiled"):
        monkeypatch.setattr(
            f"pyroae.{module}.inductor",
            lambda graph, inputs, same_draws, **settings: graph,
        )


def small() -> Autoencoder:
    torch.manual_seed(0)
    return zoo.vae(6, latent=2, encoder=MLP((5,))).double()


def data() -> Tensor:
    return (torch.rand(50, 6, generator=torch.Generator().manual_seed(1)) < 0.4).double()


OPTIMIZERS: dict[str, Make] = {
    "Adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "Adam, decay": lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1, betas=(0.8, 0.99)),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.01),
    "SGD, Nesterov": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "Adam, amsgrad": lambda p: torch.optim.Adam(p, lr=0.02, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


@pytest.mark.usefixtures("float64", "traced")
@pytest.mark.parametrize(
    ("name", "clip"),
    [
        pytest.param(name, clip, marks=pytest.mark.slow if (i + j) % 2 else ())
        for i, name in enumerate(OPTIMIZERS)
        for j, clip in enumerate((None, 0.5))
    ],
)
def test_a_step_is_that_of_the_optimizer(name: str, clip: float | None) -> None:
    """In the graph or beside it, clipped or not: the weights of torch's own loop after twelve
    steps.
    """
    x = data()
    system, other = small(), small()
    compiled = Compiled(system, TraceELBO(), OPTIMIZERS[name], grad_clip=clip)
    optimizer = OPTIMIZERS[name](list(other.parameters()))
    for step in range(12):
        torch.manual_seed(step)
        loss = compiled.step(x, divisor=50)

        def closure() -> Tensor:
            optimizer.zero_grad()
            found = -bound_of(other, TraceELBO(), (x,)).surrogate / 50
            found.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(other.parameters(), clip)
            return found.detach()

        torch.manual_seed(step)
        expected = optimizer.step(closure)
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    assert compiled.is_compiled
    for (which, found), wanted in zip(system.named_parameters(), other.parameters(), strict=True):
        assert not torch.equal(found, dict(small().named_parameters())[which]), which
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-9, msg=which)
    states = compiled.optimizer.state_dict()["state"], optimizer.state_dict()["state"]  # type: ignore[union-attr]
    if "LBFGS" not in name:
        assert {k: s.get("step") for k, s in states[0].items()} == {
            k: s.get("step") for k, s in states[1].items()
        }


@pytest.mark.usefixtures("float64", "traced")
def test_parameters_that_no_gradient_reaches_do_not_move() -> None:
    """As in torch, whose optimizers pass over them: weight decay too."""
    system = small()
    system.register_parameter("idle", nn.Parameter(torch.ones(3)))
    compiled = Compiled(
        system, TraceELBO(), lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5)
    )
    for _ in range(3):
        compiled.step(data())
    assert compiled.is_compiled
    assert torch.equal(system.get_parameter("idle"), torch.ones(3))


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped, scheduled": {"grad_clip": 0.3, "schedule": "cosine"},
    "KL warm-up": {"kl_warmup": 2},
    "another optimizer": {"optimizer": "Adagrad"},
    "last batch smaller": {"batch_size": 12},
}


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    "name", [pytest.param("plain", marks=pytest.mark.slow), *list(CONFIGS)[1:]]
)
def test_fit_gives_the_weights_of_eager_training(name: str) -> None:
    config = TrainConfig(**{"epochs": 3, "batch_size": 10, "precision": "64-true", **CONFIGS[name]})
    systems, results = [small(), small()], []
    for system, compiled in zip(systems, (True, False), strict=True):
        results.append(
            training.fit(
                system, data(), OBJECTIVES["iwae"](3), config, compile=compiled, progress=False
            )
        )
    assert results[0].compile_seconds > 0 == results[1].compile_seconds
    assert [e.train_nelbo for e in results[0].history] == pytest.approx(
        [e.train_nelbo for e in results[1].history], rel=1e-9
    )
    for found, wanted in zip(systems[0].parameters(), systems[1].parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    "optimizer", ["Adam", "RMSprop", pytest.param("SGD", marks=pytest.mark.slow)]
)
def test_a_compiled_training_goes_on_bit_for_bit(optimizer: str) -> None:
    config = TrainConfig(epochs=4, batch_size=10, compile=True, optimizer=optimizer)
    x = data().float()
    states: list[State] = []
    whole, again = small().float(), small().float()
    training.fit(whole, x, config=config, on_epoch=states.append, progress=False)
    training.fit(again, x, config=config, state=states[1], progress=False)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True)
    )


@pytest.mark.usefixtures("traced")
def test_a_loss_that_is_not_finite_ends_a_compiled_training_too() -> None:
    config = TrainConfig(epochs=2, batch_size=10, lr=1e30, optimizer="SGD", compile=True)
    with pytest.raises(NonFiniteLossError, match="the initial weights were kept"):
        training.fit(small(), data(), config=config, progress=False)


def test_short_trainings_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` is a rule of the configuration alone."""
    made: list[Any] = []

    def recorded(graph: Any, inputs: Any, same_draws: bool, **settings: Any) -> Any:
        made.append(graph)
        return graph

    monkeypatch.setattr("pyroae.compilation.step_graphs.inductor", recorded)
    training.fit(small(), data(), config=TrainConfig(epochs=2, batch_size=10), progress=False)
    assert not made
    monkeypatch.setattr(plan, "COMPILE_FROM_STEPS", 10)
    training.fit(small(), data(), config=TrainConfig(epochs=2, batch_size=10), progress=False)
    assert made
    with pytest.raises(ConfigError, match="compile takes auto, true or false, not 'yes'"):
        TrainConfig(compile="yes")


@pytest.mark.usefixtures("traced")
def test_mixed_precision_is_part_of_the_graph() -> None:
    config = TrainConfig(epochs=3, batch_size=10, precision="bf16-mixed")
    systems = [small().float(), small().float()]
    for system, compiled in zip(systems, (True, False), strict=True):
        training.fit(system, data().float(), config=config, compile=compiled, progress=False)
    for found, wanted in zip(systems[0].parameters(), systems[1].parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-3)


def branching(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z if z.mean() > 0 else -z, 1.0), obs=x)


def of_branching(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 1.0))


def test_svi_is_replaced_line_by_line() -> None:
    """As code of inductor: the losses of `pyro.infer.SVI` with the same seeds; a loss without a
    step.
    """
    x = data().float()
    system, other = small().float(), small().float()
    objective = OBJECTIVES["iwae"](num_particles=3)
    ours = pyroae.compile(system.model, system.guide, objective, pyro.optim.Adam({"lr": 0.01}))
    svi = SVI(other.model, other.guide, pyro.optim.Adam({"lr": 0.01}), objective)
    for step in range(10):
        torch.manual_seed(step)
        loss = ours.step(x)
        torch.manual_seed(step)
        assert loss.item() == pytest.approx(float(svi.step(x)), rel=1e-5)
    assert ours.is_compiled
    (graph,) = ours._graphs.values()
    assert isinstance(graph, DividedStep)
    assert graph._loop is not None
    assert not graph._loop._is_python
    torch.manual_seed(9)
    found = ours.evaluate_loss(x).item()
    torch.manual_seed(9)
    assert found == pytest.approx(float(svi.evaluate_loss(x)), rel=1e-4)


def test_what_cannot_be_traced_is_stepped_as_it_is() -> None:
    pyro.clear_param_store()
    svi = pyroae.compile(
        branching, of_branching, TraceELBO(), lambda p: torch.optim.SGD(p, lr=0.01)
    )
    x = torch.randn(4)
    svi.step(x)
    with pytest.warns(
        UserWarning, match="run eagerly, not compiled: .*data-dependent control flow"
    ):
        svi.step(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svi.step(x)
    assert not svi.is_compiled


BAD: dict[str, tuple[Any, str]] = {
    "clip": (
        lambda: Compiled(small(), TraceELBO(), grad_clip=0.0),
        "grad_clip must be positive, not 0.0",
    ),
    "no optimizer": (
        lambda: Compiled(small().float(), TraceELBO()).step(data().float()),
        "a step needs an optimizer",
    ),
    "pyro's, a parameter": (
        lambda: pyroae.compile(
            branching, of_branching, TraceELBO(), pyro.optim.Adam(lambda name: {"lr": 0.1})
        ),
        "an optimizer of Pyro with settings for each parameter",
    ),
    "likelihood": (
        lambda: likelihood.log_likelihood(*_programs(), data(), compile="yes"),
        "compile takes auto, true or false",
    ),
}


def _programs() -> tuple[Any, Any]:
    system = small()
    return system.model, system.guide


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case: str) -> None:
    made, words = BAD[case]
    with pytest.raises(ConfigError, match=words):
        made()


# Likelihoods.


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("num_particles", [1, 37, 700])
def test_compiled_likelihoods_are_those_of_eager_code(
    monkeypatch: pytest.MonkeyPatch, num_particles: int
) -> None:
    """Blocks that are not full and chunks that are cut: every estimate within its error; one whole
    chunk to the last digit.
    """
    monkeypatch.setattr("pyroae.evaluation.blocks.CHUNK", 2**17)
    system, x = small(), data()
    both = [
        likelihood.log_likelihood(
            system.model, system.guide, x, num_particles=num_particles, seed=0, compile=c
        )
        for c in (True, False)
    ]
    assert (both[0].draws == num_particles).all()
    if num_particles == 700:
        gap = (both[0].log_px - both[1].log_px).abs()
        assert (gap < 5 * (both[0].se.square() + both[1].se.square()).sqrt()).all()
        return
    one = [
        likelihood.log_likelihood(
            system.model, system.guide, x[:3], num_particles=num_particles, seed=0, compile=c
        ).log_px
        for c in (True, False)
    ]
    torch.testing.assert_close(*one)


@pytest.mark.usefixtures("float64")
def test_a_likelihood_as_code_of_inductor() -> None:
    """Of a program with parameters in Pyro's store, in one block: the figures of eager code."""
    pyro.clear_param_store()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), pyro.param("scale", torch.tensor(0.5))), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.Normal(pyro.param("loc", torch.tensor([0.1, 0.2])), 1.0).to_event(1)
            )

    x = torch.randn(7, 2)[:, 0]  # not contiguous
    both = [
        likelihood.log_likelihood(model, guide, x, num_particles=200, seed=0, compile=c).log_px
        for c in (True, False)
    ]
    torch.testing.assert_close(*both, rtol=1e-9, atol=1e-9)


# Several processes.


def _train_shared(rank: int, folder: str) -> None:
    """One of two processes: half of each batch, gradients shared by DDP through the graph of the
    gradients.
    """
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    torch.set_default_dtype(torch.float64)
    system, x = small(), data()
    step = Step(system, TraceELBO(), None)
    step._graphs = Compiled(system, TraceELBO(), backend="eager")
    shared = nn.parallel.DistributedDataParallel(step)
    optimizer = torch.optim.Adam(system.parameters(), lr=0.02)
    noise = torch.Generator().manual_seed(3)
    for _ in range(6):
        torch.manual_seed(int(torch.randint(10**6, (1,), generator=noise)) + rank)
        optimizer.zero_grad()
        (-shared(x[rank::2]).surrogate / 25).backward()
        optimizer.step()
    if rank == 0:
        torch.save([p.detach() for p in system.parameters()], f"{folder}/weights.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("float64")
@pytest.mark.slow
def test_two_processes_train_as_one_on_the_whole_batch(tmp_path: Path) -> None:
    context = torch.multiprocessing.spawn(_train_shared, (str(tmp_path),), nprocs=2, join=False)
    while not context.join(timeout=120):
        pass
    system, x = small(), data()
    optimizer = torch.optim.Adam(system.parameters(), lr=0.02)
    noise = torch.Generator().manual_seed(3)
    for _ in range(6):
        seed = int(torch.randint(10**6, (1,), generator=noise))
        optimizer.zero_grad()
        for rank in range(2):
            torch.manual_seed(seed + rank)
            (-bound_of(system, TraceELBO(), (x[rank::2],)).surrogate / 50).backward()
        optimizer.step()
    for found, wanted in zip(torch.load(tmp_path / "weights.pt"), system.parameters(), strict=True):
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-6, atol=1e-8)
