"""Any Pyro model and guide as one module: what `fit` trains, and what it can know of it before the first step."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import MappingProxyType
from typing import Any, Protocol, cast, runtime_checkable

import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyroae.errors import ConfigError, ProgramError
from pyroae.mixing import mixed_site
from pyroae.objectives.base import Bound, ObjectiveBase
from pyroae.sites import plates_of, samples
from pyroae.weights import Program, Traces, evaluating, fork_random, owner_of, run

NONE: Mapping[str, Any] = MappingProxyType({})
"""No keyword arguments."""


@runtime_checkable
class System(Protocol):
    """A module with a `model` and a `guide` over the same arguments, such as an Autoencoder."""

    model: Callable[..., Any]
    guide: Callable[..., Any]


class Pair(nn.Module):
    """A model and a guide written elsewhere, ready for `fit`.

    model, guide: Pyro programs over the same arguments: functions, PyroModules, or methods of modules. What is trained is
    what `pyro.infer.SVI` would train: the parameters of those modules and every `pyro.param` of the programs, found in the
    first run, which `fit` makes. Parameters of Pyro's global store stay there: `pyro.param(name)` gives the trained value.

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> pyro.clear_param_store()
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)
    >>> def guide(x):
    ...     slope = pyro.param("slope", torch.tensor(0.0))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(slope * x, 0.7))
    >>> pair = Pair(model, guide)
    >>> pair.find_parameters(torch.ones(3))
    >>> [name for name, _ in pair.named_parameters()]
    ['store.slope']
    """

    def __init__(self, model: Program, guide: Program) -> None:
        super().__init__()
        for what, program in (("model", model), ("guide", guide)):
            if not callable(program):
                raise ConfigError(f"the {what} must be a Pyro program, something that can be called, not {program!r}")
        self._programs = (model, guide)
        modules = (owner_of(model), owner_of(guide))
        self.modules_of_model, self.modules_of_guide = (m if m is not None else nn.Identity() for m in modules)
        self.store = nn.Module()

    def model(self, *args: Any, **kwargs: Any) -> Any:
        """The model."""
        return self._programs[0](*args, **kwargs)

    def guide(self, *args: Any, **kwargs: Any) -> Any:
        """The guide."""
        return self._programs[1](*args, **kwargs)

    def find_parameters(self, *args: Any, **kwargs: Any) -> None:
        """Run both once, and take up every parameter that they announce and that no module of theirs holds."""
        for name, leaf in _announced(self, args, kwargs).items():
            leaf._is_param = True  # torch's mark of a parameter: the store keeps its tensor
            self.store.register_parameter(name.replace(".", "/"), cast(nn.Parameter, leaf))


def system_of(given: Any) -> nn.Module:
    """The module that `fit` trains: as it is given, or a Pair of (model, guide). Raises ConfigError for anything else."""
    if isinstance(given, tuple) and len(given) == 2:
        return Pair(*given)
    if isinstance(given, nn.Module) and isinstance(given, System):
        return given
    raise ConfigError(
        "fit takes a module with a model and a guide, such as an Autoencoder, or a pair (model, guide), "
        f"not {type(given).__name__}"
    )


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
            msg["scale"] = self.weight if not isinstance(scale, Tensor) and scale == 1 else scale * self.weight


def bound_of(
    system: nn.Module,
    objective: ELBO,
    args: tuple[Any, ...],
    kl_weight: Tensor | float | None = None,
    kwargs: Mapping[str, Any] = NONE,
) -> Bound:
    """Bound and surrogate of one run, whether the objective is one of pyroae's or of Pyro's own."""
    model, guide = cast(System, system).model, cast(System, system).guide
    with nullcontext() if kl_weight is None else KLWeight(kl_weight):
        if isinstance(objective, ObjectiveBase):
            return objective.bound(model, guide, *args, **kwargs)
        with torch.enable_grad():  # without, TraceEnum_ELBO refuses to give a value
            bound = -cast(Any, objective).differentiable_loss(model, guide, *args, **kwargs)
        return Bound(bound.detach(), bound)


def rehearse(system: nn.Module, objective: ELBO, args: tuple[Tensor, ...], seed: int, *, double: bool = False) -> int | None:
    """Run once, gradients included, to refuse what cannot be trained; the full size of a subsampled data plate.

    double: whether the training is in double precision; what is made double for it is afterwards as it was before.
    Parameters in Pyro's store start here, from `seed`. Raises ProgramError, naming the site, ConfigError for a training that
    moves no parameter, or none of a module, and what the program raises.
    """
    with fork_random(args[0].device, seed), evaluating(system):
        if isinstance(system, Pair):
            system.find_parameters(*like_parameters(system, args))
        for name in {} if isinstance(system, Pair) else _announced(system, like_parameters(system, args)):
            raise ConfigError(
                f"the parameter '{name}' is in Pyro's store and none of the module's: to train both, give fit the pair "
                "(system.model, system.guide)"
            )
        if not any(parameter.requires_grad for parameter in system.parameters()):
            raise ConfigError("model and guide have no parameters to train: announce them by pyro.param or pyro.module")
        with _doubled(system) if double else nullcontext():
            size = full_size(refuse_untrained(system, objective, like_parameters(system, args)))
    with fork_random(args[0].device), _doubled(system) if double else nullcontext():
        model, guide = cast(System, system).model, cast(System, system).guide
        site = mixed_site(model, guide, like_parameters(system, args), training=True)
    if site is not None:
        warnings.warn(
            f"the log-density of the site '{site}' of one datum depends on the other data of its batch, as with BatchNorm in "
            "training mode: the bound is none on the log p(x) of each datum",
            stacklevel=2,
        )
    return size


def refuse_untrained(system: nn.Module, objective: ELBO, args: tuple[Any, ...], kwargs: Mapping[str, Any] = NONE) -> Traces:
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
    for site in _parameter_sites(traces):
        module, inside, _ = site["name"].partition("$$$")  # as pyro.module names the parameters
        if inside:
            trained = _trained_leaf(site, {id(p) for p in parameters})
            if trained is not site["args"][1] and id(trained) not in reached:
                raise ConfigError(
                    f"the weights of the module '{module}' would not be trained: Pyro's store has those of another module "
                    "under this name; call pyro.clear_param_store() before, or give the module a name of its own"
                )
            modules.setdefault(f"the module '{module}'", set()).add(id(trained))
    if isinstance(system, Pair):
        for what, owner in (("model", system.modules_of_model), ("guide", system.modules_of_guide)):
            modules[f"the {what}'s module {type(owner).__name__}"] = {id(p) for p in owner.parameters() if p.requires_grad}
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


def refuse_batch_of_one(system: nn.Module, args: tuple[Tensor, ...], num_data: int, batch_size: int) -> None:
    """Raises ConfigError for batch normalization where the last batch of an epoch has one datum, which has no variance."""
    norms = [name for name, module in system.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms or (num_data - 1) % batch_size:
        return
    programs, modes = cast(System, system), [(module, module.training) for module in system.modules()]
    try:
        system.train()
        with fork_random(args[0].device), torch.no_grad(), same_buffers(system):
            run(programs.model, programs.guide, like_parameters(system, tuple(t[:1] for t in args)), {})
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            f"the last of the batches of {batch_size} of {num_data} data has one datum, and batch normalization ('{norms[0]}') "
            "needs two: choose another batch_size, or leave out a datum"
        ) from None
    finally:
        for module, training in modes:
            module.training = training


def refuse_global(system: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Raises ProgramError for a latent site outside the data plate, whose terms a share of a batch would count whole."""
    model, guide = cast(System, system).model, cast(System, system).guide
    with fork_random(args[0].device), evaluating(system):
        traces = run(model, guide, like_parameters(system, args), {})
    for name, site in traces.sites(traces.model, observed=False):
        if not traces.is_local(site):
            raise ProgramError(
                f"several processes share a batch, but the latent site '{name}' lies outside the data plate: give the plate "
                "its full size, as in pyro.plate('data', N, subsample=index), or use one process"
            )


def full_size(traces: Traces) -> int | None:
    """The full size of the data plate where it is subsampled; of the one plate that is, where no plate holds all sites."""
    sites = samples(traces.model, traces.guide)
    plates = {plate for site in sites for plate in plates_of(site)} if traces.plate is None else {traces.plate}
    sizes = {plate.full_size for plate in plates if plate.full_size not in (None, plate.size)}
    return sizes.pop() if len(sizes) == 1 else None


def like_parameters(system: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The arguments on the device of the first parameter, floating-point ones in its precision too."""
    return like(next(system.parameters(), cast(nn.Parameter, torch.empty(0, device=args[0].device))), args)


def like(parameter: Tensor, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The arguments on the device of a parameter, floating-point ones in its precision too."""
    return tuple(t.to(parameter.device, parameter.dtype if t.is_floating_point() else None) for t in args)


@contextmanager
def same_buffers(system: nn.Module) -> Iterator[list[str]]:
    """A context after which the buffers are as they were; the names of those that were changed in it are then in the list."""
    buffers = dict(system.named_buffers())
    kept = {name: (b._version, b.clone()) for name, b in buffers.items()}
    changed: list[str] = []
    try:
        yield changed
    finally:
        for name, (version, value) in kept.items():
            if buffers[name]._version != version:
                changed.append(name)
                with torch.no_grad():
                    buffers[name].copy_(value)


@contextmanager
def _doubled(system: nn.Module) -> Iterator[None]:
    """Double precision of a system and of new tensors, as Lightning Fabric has it in training."""
    before, default = {t.dtype for t in system.state_dict().values() if t.is_floating_point()}, torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        system.double()
        yield
    finally:
        torch.set_default_dtype(default)
        if len(before) == 1:
            system.to(before.pop())


def _announced(system: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] = NONE) -> dict[str, Tensor]:
    """Parameters by name that model and guide announce in one run, and that are none of the system's."""
    model, guide = cast(System, system).model, cast(System, system).guide
    sites = _parameter_sites(run(model, guide, args, dict(kwargs)))
    known = {id(parameter) for parameter in system.parameters()}
    found: dict[str, Tensor] = {}
    for site in sites:
        leaf = _trained_leaf(site, known)
        if leaf is not None and leaf.requires_grad and id(leaf) not in known:
            known.add(id(leaf))
            found[site["name"]] = leaf
    return found


def _parameter_sites(traces: Traces) -> list[dict[str, Any]]:
    sites = [*traces.guide.nodes.values(), *traces.model.nodes.values()]
    return [site for site in sites if site["type"] == "param"]


def _trained_leaf(site: dict[str, Any], known: set[int]) -> Tensor | None:
    """What an optimizer moves of a param site: the parameter that the program gave, where it is known, else the store's."""
    given = site["args"][1] if len(site["args"]) > 1 else None
    return given if id(given) in known else _leaf(site)


def _leaf(site: dict[str, Any]) -> Tensor | None:
    """The unconstrained tensor behind the value of a param site: what an optimizer moves."""
    value = site["value"]
    unconstrained = getattr(value, "unconstrained", None)
    leaf = unconstrained() if unconstrained is not None else value
    return leaf if isinstance(leaf, Tensor) and leaf.is_leaf else None
