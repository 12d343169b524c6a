"""Pyro's example programs of amortized kind: `PYROAE_PYRO_EXAMPLES` names the folder `examples` of
Pyro's repository.

Objectives are compared with `pyro.infer.Trace_ELBO` and with the formulas below, which run one
particle at a time.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import ELBO, SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import Tensor

from pyroae import TrainConfig, fit
from pyroae.errors import ProgramError
from pyroae.objectives import OBJECTIVES, ObjectiveBase
from pyroae.programs.context import owner_of
from tests.pyro_examples import EXAMPLES, FOLDER, Example, folder

pytestmark = [
    pytest.mark.skipif(
        folder() is None,
        reason=f"set {FOLDER} to the folder 'examples' of a copy of Pyro's repository",
    ),
    pytest.mark.filterwarnings("ignore:the particles are run sequentially"),
    pytest.mark.filterwarnings(
        "ignore:the log-density of the site 'z2' of one datum depends on the other data"
    ),  # BatchNorm
    pytest.mark.filterwarnings(
        r"ignore:.* was not registered in the param store because requires_grad=False"
    ),
    pytest.mark.filterwarnings("ignore:Default grid_sample and affine_grid behavior"),
]
K = 8
LOOPED = {
    "ss_vae",
    "ss_vae, labelled",
    "cvae",
    "air",
    "air, subsampled",
    "air, no masking",
    "scanvi",
    "scanvi, labelled",
}
"""Those that do not take the particles as one more dimension."""
TERMS = {"cevae, with its predictors", "scanvi, labelled"}
"""Those whose guide has an observed site or a factor without a path gradient, which `Trace_ELBO`
does not differentiate.
"""
REFUSED = {
    ("sparse_gamma_def, auto", "vimco"): "its site 'z_top' is a Delta, .* use trace-elbo or iwae"
}
SAME = {
    ("sparse_gamma_def, auto", "iwae"): "outside the data plate and nothing inside it: .* the ELBO"
}
"""Pairs of which a warning says that all particles are the same."""
ENUMERATED = ("ss_vae, broadcast", "scanvi")


def parameters(example: Example) -> dict[str, Tensor]:
    """The unconstrained leaves that `pyro.infer.SVI` would train, by name."""
    with poutine.block(), poutine.trace(param_only=True) as found:
        drawn = poutine.trace(example.guide).get_trace(*example.args)
        poutine.replay(example.model, trace=drawn)(*example.args)
    values = {name: site["value"] for name, site in found.trace.nodes.items()}
    leaves = {
        name: value.unconstrained() if hasattr(value, "unconstrained") else value
        for name, value in values.items()
    }
    return {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}


def gradients(value: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, retain_graph=True)
    return {
        n: torch.zeros_like(p) if g is None else g
        for (n, p), g in zip(leaves.items(), found, strict=True)
    }


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """To 1e-9, where a gradient is not 0: that of a bias before a BatchNorm is."""
    largest = max(float(gradient.abs().max()) for gradient in other.values())
    assert largest > 1e-3
    for name, gradient in one.items():
        assert torch.allclose(gradient, other[name], rtol=1e-9, atol=1e-10 * largest), name


class Recorder:
    """A guide that keeps the traces of its runs."""

    def __init__(self, guide: Callable[..., Any]) -> None:
        self.guide = guide
        self.runs: list[poutine.Trace] = []

    def __call__(self, *args: Tensor) -> None:
        with poutine.trace() as found:
            self.guide(*args)
        self.runs.append(found.trace)


class Weighed(NamedTuple):
    """Of K runs, one after the other: log w and the log-density of scored draws `[K, N]`, the sites
    outside the plate `[K]`.
    """

    log_weight: Tensor
    scored: Tensor
    outside: Tensor
    scale: float


def draws_of(
    runs: list[poutine.Trace], single: poutine.Trace, count: int
) -> list[dict[str, Tensor]]:
    """The draws of each particle in the shapes of a single run, from one run of all particles or a
    run of each.
    """
    found: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for name, site in single.nodes.items():
        if site["type"] == "sample" and not site["is_observed"]:
            for k, draws in enumerate(found):
                value, shape = runs[k % len(runs)].nodes[name]["value"], site["value"].shape
                per_particle = (
                    len(runs) == 1 and value.numel() == count * shape.numel() and count > 1
                )
                draws[name] = (
                    value.reshape(count, *shape)[k] if per_particle else value.reshape(shape)
                )
    return found


def at(
    program: Callable[..., Any], draws: dict[str, Tensor], args: tuple[Tensor, ...]
) -> poutine.Trace:
    seen = poutine.Trace()
    for name, value in draws.items():
        seen.add_node(name, name=name, type="sample", is_observed=False, value=value, infer={})
    trace = poutine.trace(poutine.replay(program, trace=seen)).get_trace(*args)
    trace.compute_log_prob()
    return trace


def is_draw(site: dict[str, Any]) -> bool:
    return (
        site["type"] == "sample"
        and not site["is_observed"]
        and type(site["fn"]).__name__ not in ("_Subsample", "Delta")
    )


def weigh(example: Example, runs: list[poutine.Trace], count: int, *, by_score: bool) -> Weighed:
    """by_score: draws in the plate are stopped and scored where all carry a path gradient, as
    objectives by score do.
    """
    single = poutine.trace(example.guide).get_trace(*example.args)
    seen = poutine.trace(poutine.replay(example.model, trace=single)).get_trace(*example.args)
    observed = next(s for s in seen.nodes.values() if s["type"] == "sample" and s["is_observed"])
    plate, scale = observed["cond_indep_stack"][0], float(observed["scale"])
    local = {
        n
        for n, s in single.nodes.items()
        if s["type"] == "sample" and plate in s["cond_indep_stack"]
    }
    stopped = by_score and all(
        single.nodes[n]["fn"].has_rsample for n in local if is_draw(single.nodes[n])
    )
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for drawn in draws_of(runs, single, count):
        draws = {n: v.detach() if stopped and n in local else v for n, v in drawn.items()}
        size = plate.size if plate.size > 0 else len(example.args[0])  # of a plate without one
        weight, scored, outside = torch.zeros(size), torch.zeros(size), torch.zeros(())
        for sign, trace in (
            (1, at(example.model, draws, example.args)),
            (-1, at(example.guide, draws, example.args)),
        ):
            for name, site in trace.nodes.items():
                if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
                    continue
                if plate in site["cond_indep_stack"]:
                    weight = weight + sign * site["log_prob"] / scale
                    if (
                        sign < 0
                        and name in local
                        and is_draw(site)
                        and (stopped or not site["fn"].has_rsample)
                    ):
                        scored = scored + site["fn"].log_prob(site["value"])
                else:
                    outside = outside + sign * site["log_prob"].sum()
        rows.append((weight, scored, outside))
    weight, scored, outside = (torch.stack(row) for row in zip(*rows, strict=True))
    return Weighed(weight, scored, outside, scale)


def log_mean_exp(log_weight: Tensor) -> Tensor:
    return log_weight.logsumexp(0) - math.log(len(log_weight))


def signal(log_weight: Tensor, objective: str) -> Tensor:
    """F without a baseline, and for VIMCO F less F with log w_k replaced by the mean of the other
    log-weights.
    """
    if objective != "vimco":
        return log_mean_exp(log_weight).expand_as(log_weight)
    rows = []
    for k in range(len(log_weight)):
        others = torch.cat([log_weight[:k], log_weight[k + 1 :]])
        rows.append(
            log_mean_exp(log_weight)
            - log_mean_exp(torch.cat([others, others.mean(0, keepdim=True)]))
        )
    return torch.stack(rows)


def bound_of(weighed: Weighed, objective: str) -> tuple[Tensor, Tensor]:
    """The bound Σ_n F_n of log-mean-exp, with the sites outside the plate, and a number with the
    estimator as its gradient.
    """
    log_weight, scored, outside, scale = weighed
    value = scale * log_mean_exp(log_weight).sum() + outside.mean()
    return value, value + scale * (signal(log_weight.detach(), objective) * scored).sum()


def recorded(objective: ObjectiveBase, example: Example) -> tuple[Any, Recorder]:
    """The bound of one call, and the runs of the guide that it made, without trial runs."""
    guide = Recorder(example.guide)
    objective.bound(example.model, guide, *example.args)
    guide.runs.clear()
    pyro.set_rng_seed(1)
    return objective.bound(example.model, guide, *example.args), guide


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", list(EXAMPLES))
def test_trace_elbo_is_pyro_s_on_the_same_draws(name: str, count: int) -> None:
    """Value and gradient; with the particles in one run where the program takes them, else one
    after the other.
    """
    if count > 1 and name == "air, subsampled":
        pytest.skip("Trace_ELBO draws a subsample for each particle, TraceELBO one for all")
    example = EXAMPLES[name]()
    leaves = parameters(example)
    objective = OBJECTIVES["trace-elbo"](num_particles=count)
    objective.loss(example.model, example.guide, *example.args)  # the trial runs
    pyro.set_rng_seed(1)
    ours = objective.differentiable_loss(example.model, example.guide, *example.args)
    theirs_of = Trace_ELBO(
        num_particles=count,
        vectorize_particles=count > 1 and name not in LOOPED,
        max_plate_nesting=1,
    )
    pyro.set_rng_seed(1)
    theirs = theirs_of.differentiable_loss(example.model, example.guide, *example.args)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    if name not in TERMS:
        assert_same(gradients(ours, leaves), gradients(theirs, leaves))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("name", "objective", "count"), [
    *((name, "trace-elbo", 1) for name in sorted(TERMS)),
    *((name, objective, K) for name in EXAMPLES for objective in ("iwae", "vimco")
      if (name, objective) not in REFUSED),
])  # fmt: skip
def test_bounds_and_gradients_are_those_of_one_run_a_particle(
    name: str, objective: str, count: int
) -> None:
    example = EXAMPLES[name]()
    leaves = parameters(example)
    same = SAME.get((name, objective))
    with pytest.warns(UserWarning, match=same) if same else nullcontext():
        (value, surrogate), guide = recorded(OBJECTIVES[objective](num_particles=count), example)
    assert len(guide.runs) == (count if name in LOOPED else 1)
    weighed = weigh(example, guide.runs, count, by_score=objective == "vimco")
    expected, with_gradient = bound_of(weighed, objective)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert_same(gradients(surrogate, leaves), gradients(with_gradient, leaves))
    if count > 1 and name != "ss_vae, auxiliary":  # which has no latent site
        assert (weighed.log_weight.std(0) > 1e-3).all() == (same is None)


@pytest.mark.usefixtures("float64")
@pytest.mark.filterwarnings(
    "ignore:the guide draws .* outside the data plate and nothing inside it"
)
@pytest.mark.parametrize(("name", "objective"), list(REFUSED))
def test_what_is_refused(name: str, objective: str) -> None:
    example = EXAMPLES[name]()
    with pytest.raises(ProgramError, match=REFUSED[name, objective]):
        OBJECTIVES[objective](num_particles=K).loss(example.model, example.guide, *example.args)


def trained_by_svi(example: Example, objective: ELBO, steps: int) -> list[float]:
    svi = SVI(example.model, example.guide, pyro.optim.Adam({"lr": 0.01}), loss=objective)
    return [svi.step(*example.args) for _ in range(steps)]


def trained_by_fit(example: Example, objective: ELBO, steps: int) -> list[float]:
    config = TrainConfig(epochs=steps, batch_size=len(example.args[0]), lr=0.01, compile=False)
    result = fit((example.model, example.guide), example.args, objective, config, progress=False)
    return [epoch.train_nelbo for epoch in result.history]


@pytest.mark.parametrize("train", [trained_by_svi, trained_by_fit])
@pytest.mark.parametrize(("name", "objective"), [
    (name, objective) for name in EXAMPLES for objective in ("trace-elbo", "iwae", "vimco")
    if (name, objective) not in REFUSED
])  # fmt: skip
def test_every_program_trains(name: str, objective: str, train: Callable[..., list[float]]) -> None:
    example = EXAMPLES[name]()
    before = {n: leaf.detach().clone() for n, leaf in parameters(example).items()}
    same = SAME.get((name, objective))
    with pytest.warns(UserWarning, match=same) if same else nullcontext():
        losses = train(
            example, OBJECTIVES[objective](num_particles=1 if objective == "trace-elbo" else K), 12
        )
    assert all(map(math.isfinite, losses))
    after = parameters(example)
    assert sum(not torch.equal(before[n], leaf) for n, leaf in after.items()) >= 2
    if name.partition(",")[0] in ("vae", "ss_vae", "cvae", "cevae"):  # of little noise
        assert sum(losses[-3:]) < 0.95 * sum(losses[:3])


@pytest.mark.parametrize("train", [trained_by_svi, trained_by_fit])
@pytest.mark.parametrize("name", ENUMERATED)
def test_classes_that_are_summed_out_train_with_trace_enum_elbo(
    name: str, train: Callable[..., list[float]]
) -> None:
    example = enumerated(EXAMPLES[name]())
    losses = train(
        example, TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False), 12
    )
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])


def enumerated(example: Example) -> Example:
    return replace(example, guide=config_enumerate(example.guide, "parallel", expand=True))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ENUMERATED)
def test_classes_drawn_and_classes_summed_out_have_one_mean(name: str) -> None:
    """Of trace-elbo and of TraceEnum_ELBO, in evaluation mode: BatchNorm is to take no statistics
    of the classes.
    """
    example = EXAMPLES[name]()
    owner = owner_of(example.model)
    assert owner is not None
    owner.eval()
    summed_out = enumerated(example)
    drawn, exact = (
        OBJECTIVES["trace-elbo"](),
        TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
    )
    losses = torch.tensor([
        [drawn.loss(example.model, example.guide, *example.args),
         exact.loss(summed_out.model, summed_out.guide, *example.args)]
        for _ in range(150)
    ])  # fmt: skip
    error = (losses.var(0).sum() / len(losses)).sqrt()
    assert (losses.mean(0)[0] - losses.mean(0)[1]).abs() < 5 * error
    assert error < 0.03 * losses.mean()
