"""Programs compiled: parameters wherever they are; KL warm-up; training; what cannot be traced, and
the words for it.
"""

import warnings
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

from pyroae import TraceELBO, zoo
from pyroae.compilation.svi import Compiled
from pyroae.errors import ConfigError, ProgramError
from pyroae.evaluation.importance.compiled import CompiledDraws
from pyroae.nn import MLP
from pyroae.objectives import OBJECTIVES
from pyroae.programs.pair import system_of
from pyroae.programs.sites import Program
from tests.systems import system_and_data

pytestmark = pytest.mark.usefixtures("float64")


def assert_same(compiled: Compiled, *args: Tensor, kl_weight: float | None = None) -> None:
    """Value and gradients are those of the programs run as they are, from the same seed."""
    compiled.value_and_grads(*args, kl_weight=kl_weight)
    assert compiled.is_compiled
    torch.manual_seed(5)
    value, grads = compiled.value_and_grads(*args, kl_weight=kl_weight)
    torch.manual_seed(5)
    expected, derivatives = compiled.eager.value_and_grads(args, kl_weight)
    torch.testing.assert_close(value, expected)
    assert any(grad.abs().max() > 0 for grad in grads)
    for name, found, derivative in zip(compiled.parameters(), grads, derivatives, strict=True):
        assert torch.allclose(found, derivative, rtol=1e-9, atol=1e-9), name


def test_kl_warm_up_is_an_input_of_the_graph() -> None:
    system, x = system_and_data("vae")
    compiled = Compiled(system, TraceELBO(), backend="eager")
    for weight in (0.1, 0.7, 1.0):
        assert_same(compiled, x, kl_weight=weight)
    assert len(compiled._graphs) == 1


class Net(nn.Module):
    """Maps of a guide with a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)


def programs(net: Net) -> tuple[Program, Program]:
    """Two latent sites, nested plates, pyro.param with a constraint, pyro.module."""

    def model(x: Tensor, known: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.8), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-2):
            level = pyro.sample("level", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
            with pyro.plate("parts", 3, dim=-1), pyro.poutine.mask(mask=known):
                pyro.sample("x", dist.Normal(level.sum(-1) + slope, scale), obs=x)

    def guide(x: Tensor, known: Tensor) -> None:
        pyro.module("net", net)
        bias = pyro.param("bias", torch.zeros(1))
        with pyro.plate("data", len(x), dim=-2):
            loc = net.linear(x * known)[:, None]
            level = pyro.sample("level", dist.Normal(loc, 0.5).to_event(1))
            pyro.sample("slope", dist.Normal(level.mean(-1) + bias, 0.7))

    return model, guide


@pytest.mark.parametrize("objective", ["trace-elbo", "iwae", "dreg", "vimco"])
def test_parameters_of_modules_and_of_the_store(objective: str) -> None:
    net = Net()
    x, known = torch.randn(5, 3), torch.rand(5, 3) < 0.8
    compiled = Compiled(
        system_of(programs(net)), OBJECTIVES[objective](num_particles=3), backend="eager"
    )
    assert_same(compiled, x, known)
    assert len(compiled.parameters()) == 4


def test_it_trains_as_svi_does() -> None:
    """The same losses and parameters, step by step, with the same optimizer and seeds."""

    def trained(by_graph: bool) -> tuple[list[float], Tensor]:
        torch.manual_seed(0)
        system, x = system_and_data("ppca")
        objective = Compiled(system, TraceELBO(), backend="eager")
        optimizer, losses = torch.optim.Adam(system.parameters(), lr=0.01), []
        for step in range(20):
            torch.manual_seed(step)
            optimizer.zero_grad()
            loss = (
                objective.loss_and_grads(x)
                if by_graph
                else TraceELBO().loss_and_grads(system.model, system.guide, x)
            )
            optimizer.step()
            losses.append(float(loss))
        return losses, torch.cat([p.detach().flatten() for p in system.parameters()])

    (one, these), (other, those) = trained(True), trained(False)
    assert one[-1] < one[0]
    assert one == pytest.approx(other, rel=1e-10)
    torch.testing.assert_close(these, those, rtol=1e-9, atol=1e-9)


def test_pyros_own_elbo() -> None:
    """TraceMeanField_ELBO reads no value back where its KL is in closed form; Trace_ELBO does."""
    system, x = zoo.vae(6, latent=2, encoder=MLP((5,))), (torch.rand(4, 6) < 0.5).double()
    for elbo in (pyro.infer.Trace_ELBO(), TraceMeanField_ELBO()):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            compiled = Compiled(system, elbo, backend="eager")
            torch.manual_seed(0)
            value, _ = compiled.value_and_grads(x)
            torch.manual_seed(0)
            expected = -elbo.differentiable_loss(system.model, system.guide, x)
        assert compiled.is_compiled or any(
            "not compiled: after the last site, 'x' of the model" in str(w.message) for w in said
        )
        torch.testing.assert_close(value, expected.detach())


def branching(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        loc = z if z.mean() > 0 else -z
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def of_branching(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0))


def straight(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)


def with_first_a_branch(x: Tensor) -> None:
    scale = 1.0 if x.sum() > 0 else 2.0
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, scale)), 1.0), obs=x)


class Reading(dist.Normal):
    """Reads its scale, or its value, as a number."""

    def __init__(self, loc: Tensor, scale: float, of: str = "draws") -> None:
        super().__init__(loc, scale)
        self.of = of

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Reading":
        return Reading(self.loc.expand(batch_shape), self.scale, self.of)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        scale = float(self.loc.detach().mean()) if self.of == "draws" else self.scale
        return self.loc + scale * torch.randn(self.loc.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) * (1.0 if self.of == "draws" or value.mean() > -1e3 else 2.0)


def that_reads(of: str) -> Program:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", Reading(pyro.param("loc", torch.ones(4)), 0.5, of))

    return guide


def line(text: str) -> int:
    """Of this file, the first that holds the text."""
    return next(
        i for i, words in enumerate(Path(__file__).read_text().splitlines(), 1) if text in words
    )


READ = r"a number is read out of a tensor, as by \.item\(\) or data-dependent control flow"
UNTRACEABLE: dict[str, tuple[Program, Program, str]] = {
    "between sites": (
        branching,
        of_branching,
        rf"after the site 'z' of the model \(test_compiler\.py, "
        rf"line {line('loc = z if')}\): {READ}",
    ),
    "before all sites": (
        with_first_a_branch,
        of_branching,
        rf"before the first site of the model \(test_compiler\.py, "
        rf"line {line('scale = 1.0 if')}\): {READ}",
    ),
    "in a draw": (
        straight,
        that_reads("draws"),
        rf"at the site 'z' of the guide \(test_compiler\.py, "
        rf"line {line('scale = float')}\): {READ}",
    ),
    "in a density": (
        straight,
        that_reads("values"),
        rf"after the last site, 'x' of the model: the log-density of site 'z' failed: {READ}",
    ),
}


@pytest.mark.parametrize("case", list(UNTRACEABLE))
def test_control_flow_that_hangs_on_values_is_run_as_it_is(case: str) -> None:
    """After one warning, which says where and why."""
    model, guide, words = UNTRACEABLE[case]
    compiled = Compiled(system_of((model, guide)), TraceELBO(), backend="eager")
    x = torch.randn(4)
    with pytest.warns(UserWarning, match=f"^model and guide run eagerly, not compiled: {words}"):
        loss = compiled.loss_and_grads(x)
    assert not compiled.is_compiled
    assert torch.isfinite(loss)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled.loss_and_grads(x)  # warned once


def test_a_likelihood_that_cannot_be_compiled_says_where_too() -> None:
    x = torch.randn(4)
    with pytest.warns(UserWarning, match=rf"not compiled: {UNTRACEABLE['between sites'][2]}"):
        draws = CompiledDraws(branching, of_branching, (x,), 5, 1, backend="eager")
    assert draws.prepare((x,))(5, 0).shape == (5, 4)
    assert not draws.is_for_threads


def test_buffers_that_a_run_changes_are_left_to_eager_code() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1)

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.norm(x[:, None])[:, 0], 1.0))

    system = Normed()
    with pytest.warns(UserWarning, match=r"the buffer '.*norm\.\w+' is changed by a run"):
        Compiled(system, TraceELBO(), backend="eager").loss_and_grads(torch.randn(5))
    assert torch.equal(
        torch.as_tensor(system.norm.num_batches_tracked), torch.tensor(1)
    )  # the step itself


def test_what_a_run_refuses_is_refused_in_the_same_words() -> None:
    system, x = system_and_data("discrete-vae")
    with pytest.raises(ProgramError, match="site 'z'"):
        Compiled(system, OBJECTIVES["dreg"](num_particles=2)).loss_and_grads(x)


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "objective": (
        pyro.infer.RenyiELBO(),
        {},
        "RenyiELBO has no differentiable_loss: it cannot be compiled",
    ),
    "backend": (TraceELBO(), {"backend": "xla"}, "unknown backend 'xla': inductor or eager"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case: str) -> None:
    objective, options, words = BAD[case]
    with pytest.raises(ConfigError, match=words):
        Compiled(system_of((branching, of_branching)), objective, **options)


def without(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def test_programs_without_parameters() -> None:
    with pytest.raises(ConfigError, match="no parameters to train"):
        Compiled(system_of((branching, without)), TraceELBO()).loss_and_grads(torch.zeros(3))
