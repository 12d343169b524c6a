"""The bound of a system under any objective, with the weight of a KL warm-up."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyroae.errors import ConfigError
from pyroae.objectives.base import Bound, ObjectiveBase
from pyroae.programs.pair import NO_KWARGS, Pair, System, parameter_sites, trained_leaf
from pyroae.programs.traces import Traces, run


class KLWeight(Messenger):
    """Scales log p and log q of every latent site: E_q log p(x|z) − β KL(q ‖ p), for KL warm-up (Bowman et al. 2016).

    A weight that is a tensor is the same one at every site: that tells that their scales agree.
    """

    def __init__(self, weight: Tensor | float) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and type(msg["fn"]).__name__ != "_Subsample":
            scale = msg["scale"]
            msg["scale"] = (
                self.weight if not isinstance(scale, Tensor) and scale == 1 else scale * self.weight
            )


def bound_of(
    system: nn.Module,
    objective: ELBO,
    args: tuple[Any, ...],
    kl_weight: Tensor | float | None = None,
    kwargs: Mapping[str, Any] = NO_KWARGS,
) -> Bound:
    """Bound and surrogate of one run, whether the objective is one of pyroae's or of Pyro's own."""
    model, guide = cast(System, system).model, cast(System, system).guide
    with nullcontext() if kl_weight is None else KLWeight(kl_weight):
        if isinstance(objective, ObjectiveBase):
            return objective.bound(model, guide, *args, **kwargs)
        with torch.enable_grad():  # without, TraceEnum_ELBO refuses to give a value
            bound = -cast(Any, objective).differentiable_loss(model, guide, *args, **kwargs)
        return Bound(bound.detach(), bound)


def refuse_untrained(
    system: nn.Module, objective: ELBO, args: tuple[Any, ...], kwargs: Mapping[str, Any] = NO_KWARGS
) -> Traces:
    """Run the programs and the objective with its gradient, without a step; the traces of the former.

    Raises ConfigError where no parameter, or not a single one of a module, has a path to the loss in the autograd graph, and
    where `pyro.module` finds the parameters of another module under its name in Pyro's store. A gradient that is 0 is fine.
    """
    model, guide = cast(System, system).model, cast(System, system).guide
    with torch.no_grad():
        traces = run(model, guide, args, dict(kwargs))
    parameters = [p for p in system.parameters() if p.requires_grad]
    with torch.enable_grad():
        reached = _reached(parameters, lambda: bound_of(system, objective, args, kwargs=kwargs))
    modules: dict[str, set[int]] = {}
    for site in parameter_sites(traces):
        module, inside, _ = site["name"].partition("$$$")  # as pyro.module names the parameters
        if inside:
            trained = trained_leaf(site, {id(p) for p in parameters})
            if trained is not site["args"][1] and id(trained) not in reached:
                raise ConfigError(
                    f"the weights of the module '{module}' would not be trained: Pyro's store has those of another module "
                    "under this name; call pyro.clear_param_store() before, or give the module a name of its own"
                )
            modules.setdefault(f"the module '{module}'", set()).add(id(trained))
    if isinstance(system, Pair):
        for what, owner in (("model", system.modules_of_model), ("guide", system.modules_of_guide)):
            modules[f"the {what}'s module {type(owner).__name__}"] = {
                id(p) for p in owner.parameters() if p.requires_grad
            }
    modules = {what: ids for what, ids in modules.items() if ids and not ids & reached}
    if not reached or modules:
        raise ConfigError(
            f"the training would move no parameter of {next(iter(modules), 'model and guide')}: the loss has no gradient "
            "for any, as after .detach(), under torch.no_grad(), or where no site depends on them; requires_grad_(False) "
            "leaves a module out"
        )
    return traces


def _reached(parameters: list[nn.Parameter], bound: Callable[[], Bound]) -> set[int]:
    """The identities of the parameters that have a path to the loss."""
    try:
        surrogate = bound().surrogate
    except ValueError as error:
        if "cannot be differentiated" in str(error):  # so TraceEnum_ELBO says it
            return set()
        raise
    if not surrogate.requires_grad:
        return set()
    grads = torch.autograd.grad(surrogate, parameters, allow_unused=True)
    return {id(p) for p, grad in zip(parameters, grads, strict=True) if grad is not None}
