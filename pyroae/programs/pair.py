"""Any Pyro model and guide as one module: what `fit` trains, and what it can know of it before the first step."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from pyroae.errors import ConfigError
from pyroae.programs.context import fork_random, owner_of
from pyroae.programs.sites import Program, plates_of, samples
from pyroae.programs.traces import Traces, run

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
                raise ConfigError(
                    f"the {what} must be a Pyro program, something that can be called, not {program!r}"
                )
        self._programs = (model, guide)
        modules = (owner_of(model), owner_of(guide))
        self.modules_of_model, self.modules_of_guide = (
            m if m is not None else nn.Identity() for m in modules
        )
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


def refuse_batch_of_one(
    system: nn.Module, args: tuple[Tensor, ...], num_data: int, batch_size: int
) -> None:
    """Raises ConfigError for batch normalization where the last batch of an epoch has one datum, which has no variance."""
    norms = [
        name
        for name, module in system.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    if not norms or (num_data - 1) % batch_size:
        return
    programs, modes = (
        cast(System, system),
        [(module, module.training) for module in system.modules()],
    )
    try:
        system.train()
        with fork_random(args[0].device), torch.no_grad(), same_buffers(system):
            run(
                programs.model,
                programs.guide,
                like_parameters(system, tuple(t[:1] for t in args)),
                {},
            )
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


def full_size(traces: Traces) -> int | None:
    """The full size of the data plate where it is subsampled; of the one plate that is, where no plate holds all sites."""
    sites = samples(traces.model, traces.guide)
    plates = (
        {plate for site in sites for plate in plates_of(site)}
        if traces.plate is None
        else {traces.plate}
    )
    sizes = {plate.full_size for plate in plates if plate.full_size not in (None, plate.size)}
    return sizes.pop() if len(sizes) == 1 else None


def like_parameters(system: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The arguments on the device of the first parameter, floating-point ones in its precision too."""
    return like(
        next(system.parameters(), cast(nn.Parameter, torch.empty(0, device=args[0].device))), args
    )


def like(parameter: Tensor, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The arguments on the device of a parameter, floating-point ones in its precision too."""
    return tuple(
        t.to(parameter.device, parameter.dtype if t.is_floating_point() else None) for t in args
    )


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


def _announced(
    system: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] = NONE
) -> dict[str, Tensor]:
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
