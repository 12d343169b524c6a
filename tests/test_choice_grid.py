"""Every choice under every objective: traced code has the numbers of eager code, a resumed training
is the uninterrupted one, two processes train as one.
"""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from pyroae import TrainConfig, fit
from pyroae.compilation.svi import Compiled
from pyroae.data.dataset import Dataset
from pyroae.errors import ProgramError
from pyroae.likelihoods import LIKELIHOODS
from pyroae.objectives import OBJECTIVES
from pyroae.objectives.apply import bound_of
from pyroae.posteriors import POSTERIORS
from pyroae.priors import PRIORS
from pyroae.registry import Registry
from tests.choice_grid import DISCRETE, ROWS, text
from tests.conftest import sample_of
from tests.distributed.test_processes import several

GRID = [(name, objective) for name in ROWS for objective in OBJECTIVES]
COVERING = {
    *(("prior vamp", "dreg"), ("prior flow", "stl"), ("posterior iaf", "rws")),
    *(("posterior full-rank", "iwae"), ("posterior mixture", "vimco"), ("m2", "trace-elbo")),
    *(("likelihood mixed", "tvo"), ("hierarchy top-down", "iwae-stl"), ("condition", "dreg")),
    *(("missing values", "rws-dreg"), ("posterior top-k", "trace-elbo")),
}
"""Pairs that every run of the tests checks; `make study` checks the grid."""


def numbers(name: str, objective: str, compiled: bool) -> list[torch.Tensor]:
    """Value and gradients in double precision, of eager code or of the traced graph."""
    make, data = ROWS[name]
    torch.manual_seed(0)
    system: Any = make().double()
    args = tuple(t.double() for t in data())
    estimator = OBJECTIVES[objective](num_particles=4)
    parameters = [p for p in system.parameters() if p.requires_grad]
    torch.manual_seed(5)
    if compiled:
        value, grads = Compiled(system, estimator, backend="eager").value_and_grads(*args)
        return [value, *grads]
    value, surrogate = bound_of(system, estimator, args)
    grads = torch.autograd.grad(-surrogate, parameters, allow_unused=True)
    return [
        value.detach(),
        *(torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)),
    ]


def outcome(name: str, objective: str, compiled: bool) -> list[torch.Tensor] | str:
    """The numbers, or the words of a refusal."""
    try:
        return numbers(name, objective, compiled)
    except ProgramError as error:
        return str(error)


@pytest.mark.parametrize(
    ("name", "objective"),
    [p if p in COVERING else pytest.param(*p, marks=pytest.mark.slow) for p in GRID],
)
def test_traced_code_has_the_numbers_of_eager_code(name: str, objective: str) -> None:
    """To 1e-5 of the largest element; what eager code refuses is refused in the same words."""
    with warnings.catch_warnings():
        if name == "m2":  # but for the ELBO the class is drawn, with a warning
            warnings.simplefilter("ignore", UserWarning)
        eager, traced = (outcome(name, objective, compiled) for compiled in (False, True))
    if isinstance(eager, str):
        assert traced == eager
        return
    assert not isinstance(traced, str)
    for one, other in zip(traced, eager, strict=True):
        assert one.isfinite().all()
        assert (one - other).abs().max() <= 1e-5 * other.abs().max() + 1e-12


@pytest.mark.parametrize("name", sample_of(ROWS, 6))
def test_a_resumed_training_is_the_uninterrupted_one(name: str) -> None:
    make, data = ROWS[name]
    states: list[Any] = []
    systems: list[Any] = []
    for state in (None, 0):
        torch.manual_seed(0)
        systems.append(make())
        x, *c = data()
        dataset = Dataset.from_array(x, missing=bool(x.isnan().any()))
        dataset = dataset.conditioned_on(c[0]) if c else dataset
        objective = "rws" if name.partition(" ")[2] in DISCRETE else "trace-elbo"
        fit(
            systems[-1],
            dataset,
            OBJECTIVES[objective](num_particles=3),
            TrainConfig(epochs=2, batch_size=5, keep="last"),
            state=None if state is None else states[state],
            on_epoch=states.append if state is None else None,
            progress=False,
        )
    for key, value in systems[0].state_dict().items():
        assert value.equal(systems[1].state_dict()[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("part", ["prior", "posterior", "likelihood"])
def test_two_processes_train_every_choice_as_one(part: str, tmp_path: Path) -> None:
    tables: dict[str, Registry[Any]] = {
        "prior": PRIORS,
        "posterior": POSTERIORS,
        "likelihood": LIKELIHOODS,
    }
    left_out = (*DISCRETE, "exact-linear", "flat", "mixed")  # they need another system
    words = [f"{part}={text(name)}" for name in tables[part] if name not in left_out]
    found = several(tmp_path / "out", "2", "ddp", "64-true", *words)
    assert [*found] == words
    assert max(found.values()) < 1e-9
