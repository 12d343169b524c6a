"""Any Pyro model and guide as one module, as `fit` trains it, and checks before the first step."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from types import MappingProxyType
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from pyroae.errors import ConfigError
from pyroae.programs.context import owner_of
from pyroae.programs.paired_traces import Traces
from pyroae.programs.sites import Program, Site, plates_of, samples
from pyroae.programs.traces import run
from pyroae.runtime.randomness import fork_random
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import parameters_of, text_of

NO_KWARGS: Mapping[str, Any] = MappingProxyType({})
"""No keyword arguments."""


@runtime_checkable
class System(Protocol):
    """A module with a `model` and a `guide` over the same arguments, such as an Autoencoder.

    Attributes:
        model: The generative program p(x, z).
        guide: The program q(z|x) over the same latent sites.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]


class Pair(Shown, nn.Module):
    """A user's model and guide as a module for `fit`.

    The parameters are those that `pyro.infer.SVI` would train: those of the programs' modules and
    every `pyro.param` of the programs, found in the first run, which `fit` makes. Parameters of
    Pyro's global store stay there: `pyro.param(name)` gives the trained value.

    Args:
        model: A Pyro program: a function, a PyroModule, or a method of a module.
        guide: A Pyro program over the same arguments and latent sites.

    Attributes:
        modules_of_model: The module of the model; an identity if it has none.
        modules_of_guide: The module of the guide; an identity if it has none.
        store: A module with the parameters of Pyro's store, "." in their names replaced by "/".

    Raises:
        ConfigError: If one of them is not callable.

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
                    f"the {what} must be a Pyro program, something that can be called, "
                    f"not {program!r}"
                )
        self._programs = (model, guide)
        modules = (owner_of(model), owner_of(guide))
        self.modules_of_model, self.modules_of_guide = (
            m if m is not None else nn.Identity() for m in modules
        )
        self.store = nn.Module()

    def _overview(self) -> Overview:
        rows = [
            (name, text_of(one))
            for name, one in zip(("model", "guide"), self._programs, strict=True)
        ]
        names = [name for name, _ in self.named_parameters()]
        rows.append(("parameters", ", ".join(names) or "none yet: they are found in the first run"))
        return Overview([f"{parameters_of(self):,} parameters"], rows)

    def model(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Args:
            *args: Positional arguments of the model.
            **kwargs: Keyword arguments of the model.

        Returns:
            What the model returns.
        """
        return self._programs[0](*args, **kwargs)

    def guide(self, *args: Any, **kwargs: Any) -> Any:
        """Run the guide.

        Args:
            *args: Positional arguments of the guide.
            **kwargs: Keyword arguments of the guide.

        Returns:
            What the guide returns.
        """
        return self._programs[1](*args, **kwargs)

    def find_parameters(self, *args: Any, **kwargs: Any) -> None:
        """Run both programs once and register every `pyro.param` that none of their modules holds.

        Args:
            *args: Positional arguments of both programs.
            **kwargs: Keyword arguments of both programs.
        """
        for name, leaf in announced_parameters(self, args, kwargs).items():
            leaf._is_param = True  # torch's mark of a parameter: the store keeps its tensor
            self.store.register_parameter(name.replace(".", "/"), cast(nn.Parameter, leaf))


def system_of(system: Any) -> nn.Module:
    """Make the module that `fit` trains.

    Args:
        system: A module with a model and a guide, or a pair (model, guide) of programs.

    Returns:
        The same module, or a Pair of the two programs.

    Raises:
        ConfigError: For anything else.
    """
    if isinstance(system, tuple) and len(system) == 2:
        return Pair(*system)
    if isinstance(system, nn.Module) and isinstance(system, System):
        return system
    raise ConfigError(
        "fit takes a module with a model and a guide, such as an Autoencoder, or a pair "
        f"(model, guide), not {type(system).__name__}"
    )


def flattened(system: nn.Module, data: Any) -> nn.Module:
    """Make the programs of a system take the tensors of its data one by one.

    Args:
        system: A module with a `model` and a `guide`.
        data: What it is trained on; `Arguments` may have a structure.

    Returns:
        The same system where there is no structure; else one that shares its parameters, buffers
        and submodules, under the same names.
    """
    if getattr(data, "structure", None) is None:
        return system
    flat = copy(system)
    for name in ("model", "guide"):
        flat.__dict__[name] = data.structure(getattr(flat, name))
    return flat


def refuse_batch_of_one(
    system: nn.Module, args: tuple[Tensor, ...], num_data: int, batch_size: int
) -> None:
    """Refuse batch normalization where the last batch of an epoch has one datum.

    One datum has no variance. The programs run once on the first datum, in training mode; modes,
    buffers and generators are afterwards unchanged.

    Args:
        system: A module with a model and a guide.
        args: A batch of the arguments, each `[B, ...]`.
        num_data: Number N of the training data.
        batch_size: Size of all batches of an epoch but the last.

    Raises:
        ConfigError: Names the first module of batch normalization.
    """
    norms = [
        name
        for name, module in system.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    if not norms or (num_data - 1) % batch_size:
        return
    programs = cast(System, system)
    modes = [(module, module.training) for module in system.modules()]
    first = like_parameters(system, tuple(t[:1] for t in args))
    try:
        system.train()
        with fork_random(args[0].device), torch.no_grad(), same_buffers(system):
            run(programs.model, programs.guide, first, {})
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            f"the last of the batches of {batch_size} of {num_data} data has one datum, and batch "
            f"normalization ('{norms[0]}') needs two: choose another batch_size, or leave out a "
            "datum"
        ) from None
    finally:
        for module, training in modes:
            module.training = training


def full_size(traces: Traces) -> int | None:
    """Find the full size of a subsampled data plate.

    Args:
        traces: One run of model and guide.

    Returns:
        The number of data that the data plate stands for; None if it is not subsampled. Without
        a data plate, the full size that all subsampled plates have in common, else None.
    """
    sites = samples(traces.model, traces.guide)
    plates = (
        {plate for site in sites for plate in plates_of(site)}
        if traces.plate is None
        else {traces.plate}
    )
    sizes = {plate.full_size for plate in plates if plate.full_size not in (None, plate.size)}
    return sizes.pop() if len(sizes) == 1 else None


def like_parameters(system: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Convert arguments to the device and the precision of a system's first parameter.

    Args:
        system: A module; without parameters the arguments are converted to the device of the
            first one and the default precision.
        args: Tensors `[B, ...]`.

    Returns:
        The tensors on that device, floating-point ones in that precision.
    """
    return like(
        next(system.parameters(), cast(nn.Parameter, torch.empty(0, device=args[0].device))), args
    )


def like(parameter: Tensor, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Convert arguments to the device and the precision of a parameter.

    Args:
        parameter: The tensor whose device and precision are used.
        args: Tensors `[B, ...]`.

    Returns:
        The tensors on that device, floating-point ones in that precision.
    """
    return tuple(
        t.to(parameter.device, parameter.dtype if t.is_floating_point() else None) for t in args
    )


@contextmanager
def same_buffers(system: nn.Module) -> Iterator[list[str]]:
    """Restore the buffers of a module on exit.

    Args:
        system: The module.

    Yields:
        A list, which on exit holds the names of the buffers that were changed.
    """
    buffers = dict(system.named_buffers())
    saved = {name: (b._version, b.clone()) for name, b in buffers.items()}
    changed: list[str] = []
    try:
        yield changed
    finally:
        for name, (version, value) in saved.items():
            if buffers[name]._version != version:
                changed.append(name)
                with torch.no_grad():
                    buffers[name].copy_(value)


def announced_parameters(
    system: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] = NO_KWARGS
) -> dict[str, Tensor]:
    """Find the parameters that model and guide announce and that are none of the system's.

    Args:
        system: A module with a model and a guide, which run once.
        args: Positional arguments of both.
        kwargs: Keyword arguments of both.

    Returns:
        Names of the `pyro.param`, and the unconstrained tensors that an optimizer changes.
    """
    model, guide = cast(System, system).model, cast(System, system).guide
    sites = parameter_sites(run(model, guide, args, dict(kwargs)))
    registered = {id(parameter) for parameter in system.parameters()}
    leaves: dict[str, Tensor] = {}
    for site in sites:
        leaf = trained_leaf(site, registered)
        if leaf is not None and leaf.requires_grad and id(leaf) not in registered:
            registered.add(id(leaf))
            leaves[site["name"]] = leaf
    return leaves


def parameter_sites(traces: Traces) -> list[Site]:
    """List the `pyro.param` sites of a run.

    Args:
        traces: One run of model and guide.

    Returns:
        The sites of the guide, then those of the model.
    """
    sites = [*traces.guide.nodes.values(), *traces.model.nodes.values()]
    return [site for site in sites if site["type"] == "param"]


def trained_leaf(site: Site, registered: set[int]) -> Tensor | None:
    """Find the tensor behind a `pyro.param` site that an optimizer changes.

    Args:
        site: A site of type "param".
        registered: Ids of the parameters of the system.

    Returns:
        The parameter that the program passed, if it is registered; else the unconstrained leaf
        in Pyro's store, None if the value is no leaf.
    """
    argument = site["args"][1] if len(site["args"]) > 1 else None
    return argument if id(argument) in registered else _leaf(site)


def _leaf(site: Site) -> Tensor | None:
    """The unconstrained leaf tensor of a param site."""
    value = site["value"]
    unconstrained = getattr(value, "unconstrained", None)
    leaf = unconstrained() if unconstrained is not None else value
    return leaf if isinstance(leaf, Tensor) and leaf.is_leaf else None
