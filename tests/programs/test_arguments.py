"""Arguments of any form: tuples, dicts and keywords give the numbers of tensors one by one,
everywhere.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyroae import (
    Local,
    Mixture,
    Scoring,
    TraceELBO,
    TrainConfig,
    compare_training,
    compile,
    diagnose,
    evaluate,
    fit_ensemble,
    log_likelihood,
    measure_gradients,
    plots,
    to_datatree,
    zoo,
)
from pyroae.comparison.budget import Budget
from pyroae.config.evaluation import EvaluationSettings
from pyroae.errors import ConfigError, DataError, ProgramError
from pyroae.objectives.named import iwae
from pyroae.plots.likelihood import extremes
from pyroae.programs.context import owner_of
from pyroae.programs.sites import Program

X, Y = torch.linspace(-1, 1, 6)[:, None] * torch.tensor([1.0, 0.5]), torch.linspace(0, 1, 6)
FORMS = ("dict", "keywords", "keyword", "nested", "list")


class Line(nn.Module):
    """z of two units, x observed around a line in y."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)

    def model(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + y[..., None], 0.5).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(torch.cat([x, y[:, None]], 1)), 0.6).to_event(1))


@pytest.fixture
def line() -> Line:
    pyro.clear_param_store()
    torch.manual_seed(0)
    return Line()


class InForm(nn.Module):
    """The same programs over arguments in another form."""

    def __init__(self, line: Line, form: str) -> None:
        super().__init__()
        self.line, self.form = line, form

    def model(self, *args: Any, **kwargs: Any) -> None:
        self.line.model(*self.plain(*args, **kwargs))

    def guide(self, *args: Any, **kwargs: Any) -> None:
        self.line.guide(*self.plain(*args, **kwargs))

    def plain(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.form == "dict":
            (batch,) = args
            assert batch["name"] == "a constant"
            return batch["x"], batch["y"]
        if self.form == "keywords":
            return kwargs["x"], kwargs["y"]
        if self.form == "keyword":
            assert kwargs.get("nothing", 0) is None
            return args[0], kwargs["y"]
        return args[0][0], args[0][1]


def given(form: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of that form."""
    forms: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "dict": (({"x": X, "y": Y, "name": "a constant"},), {}),
        "keywords": ((), {"x": X, "y": Y}),
        "keyword": ((X,), {"y": Y, "nothing": None}),
        "nested": (((X, Y),), {}),
        "list": (([X, Y],), {}),
    }
    return forms[form]


def evaluated(function: Callable[..., Any], system: Any, form: str, **options: Any) -> Any:
    """A function of (model, guide, x, …); all positional arguments are one tuple, without any an
    empty one.
    """
    args, kwargs = given(form)
    if form == "keywords":
        args, kwargs = (kwargs["x"],), {"y": kwargs["y"]}
        system = InForm(system.line, "keyword")
        system.plain = lambda x, y: (x, y)
    return function(system.model, system.guide, args, **options, **kwargs)


@pytest.mark.parametrize(
    "form",
    [
        form if form in ("keywords", "nested") else pytest.param(form, marks=pytest.mark.slow)
        for form in FORMS
    ],
)
def test_compiled_steps(line: Line, form: str) -> None:
    """The first step is run as it is, the second one a graph's: the losses of the plain
    programs.
    """
    args, kwargs = given(form)
    other = InForm(Line(), form)
    other.line.load_state_dict(line.state_dict())
    steps = []
    for system, given_args, given_kwargs in ((line, (X, Y), {}), (other, args, kwargs)):
        make = partial(torch.optim.Adam, lr=0.1)
        svi = compile(system.model, system.guide, TraceELBO(), make)
        svi.backend = "eager"
        torch.manual_seed(1)
        steps.append([svi.step(*given_args, **given_kwargs).item() for _ in range(3)])
        assert svi.is_compiled
        torch.manual_seed(2)
        steps[-1] += [
            svi.loss_and_grads(*given_args, **given_kwargs).item(),
            svi.evaluate_loss(*given_args, **given_kwargs).item(),
        ]
    assert steps[0] == pytest.approx(steps[1], rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_log_likelihood(line: Line, form: str) -> None:
    options: dict[str, Any] = {"num_particles": 50, "seed": 0}
    expected = log_likelihood(line.model, line.guide, (X, Y), **options)
    found = evaluated(log_likelihood, InForm(line, form), form, **options)
    torch.testing.assert_close(found.log_px, expected.log_px)
    exact = dist.Normal(Y[:, None], 1.25**0.5).log_prob(X).sum(1).double()
    assert ((found.log_px - exact).abs() < 5 * found.se + 0.05).all()


@pytest.mark.parametrize(
    "make", [lambda guide: Mixture((guide, guide)), lambda guide: Local(guide, steps=20)]
)
def test_log_likelihood_by_another_proposal(line: Line, make: Callable[[Program], Any]) -> None:
    other, (args, _) = InForm(line, "dict"), given("dict")
    options: dict[str, Any] = {"num_particles": 20, "seed": 0}
    expected = log_likelihood(
        line.model, make(line.guide), (X, Y), retry=make(line.guide), **options
    )
    found = log_likelihood(other.model, make(other.guide), args, retry=make(other.guide), **options)
    torch.testing.assert_close(found.log_px, expected.log_px, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_diagnose(line: Line, form: str) -> None:
    expected = diagnose(line.model, line.guide, (X, Y), seed=0)
    found = evaluated(diagnose, InForm(line, form), form, seed=0)
    torch.testing.assert_close(found.nelbo, expected.nelbo)
    torch.testing.assert_close(found.kl_per_unit, expected.kl_per_unit)


@pytest.mark.parametrize("form", FORMS)
def test_measure_gradients(line: Line, form: str) -> None:
    options: dict[str, Any] = {"parameters": dict(line.named_parameters()), "replicates": 20}
    expected = measure_gradients(line.model, line.guide, (X, Y), {"iwae": iwae(3)}, **options)
    run = partial(_gradients, options)
    found = evaluated(run, InForm(line, form), form)
    torch.testing.assert_close(found["iwae"]["all"].mean, expected["iwae"]["all"].mean)


def _gradients(
    options: dict[str, Any], model: Program, guide: Program, x: Any, **kwargs: Any
) -> Any:
    return measure_gradients(model, guide, x, {"iwae": iwae(3)}, **options, **kwargs)


@pytest.mark.parametrize("form", FORMS)
def test_to_datatree(line: Line, form: str) -> None:
    expected = to_datatree(line.model, line.guide, (X, Y), num_draws=4, seed=0)
    tree = evaluated(to_datatree, InForm(line, form), form, num_draws=4, seed=0)
    np.testing.assert_array_equal(tree["guide"]["z"], expected["guide"]["z"])
    names = {"dict": ["x", "y"], "keywords": ["x", "y"], "keyword": ["x", "y"]}.get(
        form, ["x", "x_1"]
    )
    assert list(tree["observed_data"].data_vars) == names
    assert tree["observed_data"]["x"].dims == ("datum", "pixel")
    np.testing.assert_array_equal(tree["observed_data"][names[1]].squeeze(), Y)
    assert tree["sample_stats_guide"]["log_lik"].dims == ("sample", "datum")


def test_the_module_of_a_program_is_found_through_its_structure(line: Line) -> None:
    from pyroae.programs.arguments import structure_of

    structure = structure_of({"x": X, "y": Y}, {}, line.model)
    assert owner_of(structure(line.model)) is line


@pytest.mark.parametrize(
    ("x", "kwargs", "error", "words"),
    [
        (
            (X, Y),
            {"num_particle": 3},
            ConfigError,
            "'num_particle' is no option here, and no argument of the model",
        ),
        ({"x": X, "y": Y[1:]}, {}, DataError, "of one length N"),
        ((X, 3), {}, DataError, "are tensors, not int"),
        ({}, {}, DataError, "tensors of one length N"),
    ],
)
def test_bad_arguments(
    line: Line, x: Any, kwargs: dict[str, Any], error: type[Exception], words: str
) -> None:
    for function in (log_likelihood, diagnose, to_datatree):
        with pytest.raises(error, match=words):
            function(line.model, line.guide, x, **kwargs)


# Tuples where a system is given


def test_evaluate_takes_programs_and_tuples(line: Line) -> None:
    settings = EvaluationSettings(num_particles=100, methods=("is", "quadrature", "gaps"))
    by_pair = evaluate((line.model, line.guide), (X, Y), settings)
    exact = dist.Normal(Y[:, None], 1.25**0.5).log_prob(X).sum(1).mean().item()
    assert -by_pair.results["nll_quadrature"].estimate == pytest.approx(exact, abs=1e-4)
    assert -by_pair.results["nll"].estimate == pytest.approx(exact, abs=0.1)
    assert by_pair.results["nelbo"].num_data == len(X)
    assert "squared_error" not in by_pair.results
    by_module = evaluate(line, (X, Y), settings)
    assert by_module.results["nll"].estimate == by_pair.results["nll"].estimate
    in_a_dict = evaluate(InForm(line, "dict"), given("dict")[0], settings)
    assert in_a_dict.results["nll"].estimate == pytest.approx(by_pair.results["nll"].estimate)
    assert {*evaluate((line.model, line.guide), (X, Y)).results} >= {
        "nll",
        "nelbo",
        "rate",
        "active_units",
    }


def test_evaluate_refuses_in_words(line: Line) -> None:
    with pytest.raises(
        ConfigError,
        match=r"evaluate takes a system or a pair of programs, .* evaluate\(\(model, guide\), x\)",
    ):
        evaluate(line.model, line.guide, X)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"all arguments of the programs as one tuple"):
        evaluate(line, X, Y)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="this Autoencoder takes one tensor, not 2 in a tuple"):
        evaluate(zoo.ppca(2, latent=1), (X, Y))
    system = zoo.ppca(2, latent=1)
    settings = EvaluationSettings(num_particles=10)
    one, other = evaluate(system, X, settings), evaluate(system, (X,), settings)
    assert {n: r.estimate for n, r in one.results.items()} == {
        n: r.estimate for n, r in other.results.items()
    }


def test_comparisons_and_ensembles_take_tuples() -> None:
    found = compare_training(
        Line,
        objectives={"iwae": iwae},
        train=(X, Y),
        held_out=(X + 0.1, Y),
        ks=(2,),
        seeds=(0, 1),
        budget=Budget("epochs", 2),
        config=TrainConfig(batch_size=3, keep="last"),
        scoring=Scoring(num_particles=200),
        progress=False,
    )
    exact = dist.Normal(Y[:, None], 1.25**0.5).log_prob(X + 0.1).sum(1).mean().item()
    assert [-o.nll for o in found.outcomes] == pytest.approx([exact, exact], abs=0.1)
    results = fit_ensemble(
        [Line(), Line()],
        (X, Y),
        config=TrainConfig(epochs=2, batch_size=3),
        seeds=(0, 1),
        progress=False,
    )
    assert [len(result.history) for result in results] == [2, 2]
    assert all(np.isfinite(result.history[-1].train_nelbo) for result in results)


def test_a_comparison_of_autoencoders_takes_one_tensor() -> None:
    options: dict[str, Any] = {
        "ks": (1,),
        "seeds": (0,),
        "budget": Budget("epochs", 1),
        "progress": False,
        "objectives": {"iwae": iwae},
        "config": TrainConfig(batch_size=3, keep="last"),
        "scoring": Scoring(num_particles=10),
    }
    make = partial(zoo.ppca, 2, latent=1)
    found = [
        compare_training(make, train=x, held_out=x, **options).outcomes[0].nll for x in (X, (X,))
    ]
    assert found[0] == found[1]


def test_figures_of_tuples_and_of_programs(line: Line) -> None:
    system: Any = zoo.ppca(2, latent=2)
    programs: Any = (line.model, line.guide)
    module: Any = line
    for draw in (plots.reconstructions, plots.latent_scatter):
        assert draw(system, (X,)).axes
        with pytest.raises(DataError, match="a condition c is given, but this autoencoder"):
            draw(system, (X, Y))
        with pytest.raises(ProgramError, match=r"the guide fails: TypeError: .* argument: 'y'"):
            draw(programs, X)
    for given in (programs, module):
        assert plots.latent_scatter(given, (X, Y)).axes
        assert plots.reconstructions(given, (X, Y)).axes
        assert plots.samples(given, 4, x=(X, Y)).axes
    with pytest.raises(ConfigError, match="samples of a program are drawn at its arguments"):
        plots.samples(module)
    for alone in (plots.manifold, plots.filters):
        with pytest.raises(ConfigError, match="this figure is of an Autoencoder, not of a Line"):
            alone(module)
    assert extremes((X, Y), torch.arange(6.0), (2,), num=2).axes


# Nested plates


def repeated(x: Tensor, *, observed: bool) -> None:
    """Three effects a datum, in a plate to the right or to the left of the data's."""
    people, times = pyro.plate("people", len(x), dim=-2), pyro.plate("times", 3, dim=-1)
    with people:
        level = pyro.sample(
            "level", dist.Normal(x.mean(1, keepdim=True) if not observed else 0.0, 1.0)
        )
        with times:
            effect = pyro.sample("effect", dist.Normal(0.0, 1.0).expand([1, 1, 2]).to_event(1))
            if observed:
                pyro.sample("x", dist.Normal(level + effect.sum(-1), 1.0), obs=x)


def transposed(x: Tensor, *, observed: bool) -> None:
    with pyro.plate("people", len(x), dim=-1), pyro.plate("times", 3, dim=-2):
        scale = pyro.sample("scale", dist.Normal(x.T if not observed else 0.0, 1.0))
        if observed:
            pyro.sample("x", dist.Normal(scale, 1.0), obs=x.T)


@pytest.mark.parametrize("rows", [100, 2])
def test_nested_plates(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyroae.evaluation.tree_groups.CHUNK", 256 * 5 * rows)
    x = torch.arange(12.0).reshape(4, 3)
    model, guide = (partial(repeated, observed=observed) for observed in (True, False))
    tree: Any = to_datatree(model, guide, x, num_draws=5, seed=0)
    assert tree["guide"]["level"].dims == ("sample", "datum")
    assert tree["guide"]["effect"].dims == ("sample", "datum", "times", "effect_latent")
    assert tree["guide"]["effect"].shape == (5, 4, 3, 2)
    level, effect = (torch.tensor(tree["guide"][name].to_numpy()) for name in ("level", "effect"))
    expected = dist.Normal(level[..., None] + effect.sum(-1), 1.0).log_prob(x).sum(-1)
    np.testing.assert_allclose(tree["sample_stats_guide"]["log_lik"], expected, rtol=1e-5)


def test_a_nested_plate_to_the_left() -> None:
    x = torch.arange(12.0).reshape(4, 3)
    model, guide = (partial(transposed, observed=observed) for observed in (True, False))
    tree: Any = to_datatree(model, guide, x, num_draws=5, seed=0)
    assert tree["guide"]["scale"].dims == ("sample", "datum", "times")
    expected = dist.Normal(torch.tensor(tree["guide"]["scale"].to_numpy()), 1.0).log_prob(x).sum(-1)
    np.testing.assert_allclose(tree["sample_stats_guide"]["log_lik"], expected, rtol=1e-5)


def test_a_global_site_has_no_datum() -> None:
    def program(x: Tensor, observed: bool) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(level, 1.0))
            if observed:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    tree = to_datatree(
        partial(program, observed=True), partial(program, observed=False), torch.zeros(3)
    )
    assert [list(tree[name].data_vars) for name in ("guide", "prior")] == [["z"], ["z"]]
    assert tree["prior_predictive"]["x"].sizes["datum"] == 3
