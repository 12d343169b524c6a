"""Apply any objective to a system, optionally with a weight on the KL."""

from collections.abc import Callable, Hashable, Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyroae.errors import ConfigError
from pyroae.objectives.base import Bound, ObjectiveBase
from pyroae.programs.pair import NO_KWARGS, Pair, System, parameter_sites, trained_leaf
from pyroae.programs.paired_traces import Traces
from pyroae.programs.traces import run


class KLWeight(Messenger):
    """Scale log p and log q of every latent site, for KL warm-up.

        E_q log p(x|z) − β KL(q ‖ p)

    A weight that is a tensor is the same object at every site, from which the objectives recognize
    that the sites' scales are equal.

    Args:
        weight: β, a number or a tensor of shape `[]`.

    References:
        Bowman et al. 2016, Generating Sentences from a Continuous Space.
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
    """Return bound and surrogate of one run, under an objective of pyroae or of Pyro.

    Args:
        system: A module with the programs `model` and `guide`.
        objective: An objective of pyroae, or another `pyro.infer.ELBO`, whose differentiable loss
            is then the negative of both bound and surrogate.
        args: Positional arguments of both programs.
        kl_weight: The weight β of the KL; None for 1.
        kwargs: Keyword arguments of both programs.

    Returns:
        The bound over all data, in nats, and its surrogate, both of shape `[]`.
    """
    model, guide = cast(System, system).model, cast(System, system).guide
    with nullcontext() if kl_weight is None else KLWeight(kl_weight):
        if isinstance(objective, ObjectiveBase):
            return objective.bound(model, guide, *args, **kwargs)
        with torch.enable_grad():  # TraceEnum_ELBO raises an error without it
            bound = -cast(Any, objective).differentiable_loss(model, guide, *args, **kwargs)
        return Bound(bound.detach(), bound)


def controls_of(objective: ELBO) -> nn.Module | None:
    """Return what an objective learns.

    Args:
        objective: An objective of pyroae or of Pyro.

    Returns:
        Its `controls`; None for an objective that learns nothing.
    """
    return objective.controls if isinstance(objective, ObjectiveBase) else None


def forget_controls(objective: ELBO) -> None:
    """Drop what an objective has learned; nothing for an ELBO of Pyro.

    Args:
        objective: An objective of pyroae or of Pyro.
    """
    if isinstance(objective, ObjectiveBase):
        objective.forget_controls()


def next_step(objective: ELBO) -> None:
    """Draw what the next estimate of an objective depends on; nothing for an ELBO of Pyro.

    Args:
        objective: An objective of pyroae or of Pyro.
    """
    if isinstance(objective, ObjectiveBase):
        objective.next_step()


def variant_of(objective: ELBO) -> Hashable:
    """Return what the next estimate of an objective depends on beside its arguments.

    Args:
        objective: An objective of pyroae or of Pyro.

    Returns:
        Its `variant`; () for an objective that draws nothing on the host.

    >>> from pyroae import TraceELBO
    >>> variant_of(TraceELBO())
    ()
    """
    return objective.variant if isinstance(objective, ObjectiveBase) else ()


def refuse_untrained(
    system: nn.Module, objective: ELBO, args: tuple[Any, ...], kwargs: Mapping[str, Any] = NO_KWARGS
) -> Traces:
    """Run programs, objective and gradient without a step; refuse parameters without a gradient.

    A gradient of 0 is accepted.

    Args:
        system: A module with the programs `model` and `guide`.
        objective: The objective of the training.
        args: Positional arguments of both programs.
        kwargs: Keyword arguments of both programs.

    Returns:
        The traces of one run of the programs.

    Raises:
        ConfigError: No parameter of the system, or none of one of its modules, has a path to the
            loss in the autograd graph; or Pyro's parameter store holds the parameters of another
            module under the name given to `pyro.module`.
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
                    f"the weights of the module '{module}' would not be trained: Pyro's store has "
                    "those of another module under this name; call pyro.clear_param_store() "
                    "first, or give the module another name"
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
            f"the training would move no parameter of {next(iter(modules), 'model and guide')}: "
            "the loss has no gradient for any, as after .detach(), under torch.no_grad(), or where "
            "no site depends on them; requires_grad_(False) leaves a module out"
        )
    return traces


def _reached(parameters: list[nn.Parameter], bound: Callable[[], Bound]) -> set[int]:
    """The identities of the parameters that have a path to the loss."""
    try:
        surrogate = bound().surrogate
    except ValueError as error:
        if "cannot be differentiated" in str(error):  # the message of TraceEnum_ELBO
            return set()
        raise
    if not surrogate.requires_grad:
        return set()
    grads = torch.autograd.grad(surrogate, parameters, allow_unused=True)
    return {id(p) for p, grad in zip(parameters, grads, strict=True) if grad is not None}
