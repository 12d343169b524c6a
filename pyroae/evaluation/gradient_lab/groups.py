"""Group parameters by what depends on them: model, guide or both, and by module."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyroae.errors import ConfigError, ProgramError
from pyroae.evaluation.blocks import Data
from pyroae.programs.arguments import structure_of
from pyroae.programs.paired_traces import log_density
from pyroae.programs.sites import Program
from pyroae.programs.traces import run
from pyroae.runtime.randomness import fork_random


def parameter_groups(
    model: Program, guide: Program, x: Data, parameters: Mapping[str, Tensor]
) -> dict[str, tuple[str, ...]]:
    """Group parameters into θ, φ and "shared", and by module.

        θ:       log p(x, z) depends on them at fixed z
        φ:       z or log q(z|x) depends on them
        shared:  both depend on them, such as tied weights

    The groups come from one run of both programs, whatever the names of the parameters. Groups
    without parameters are left out, and so are parameters that neither program depends on. The
    state of torch's generators is restored.

    Args:
        model: The Pyro program p(z) p(x|z), with parameters θ.
        guide: The Pyro program q(z|x), with parameters φ.
        x: Data `[N, ...]`, the argument of both programs.
        parameters: Leaf tensors by name, such as `dict(system.named_parameters())`.

    Returns:
        The names of the parameters of each group: θ, φ and "shared", then one group for each
        module. The module of `encoder.0.weight` is `encoder.0`; a name without a dot is a module.

    Raises:
        ConfigError: For a parameter that is not a leaf that requires a gradient.
        ProgramError: If neither program depends on any of the parameters.

    >>> from pyroae import zoo
    >>> from pyroae.nn import MLP
    >>> system = zoo.autoencoder(6, latent=2, encoder=MLP((3,)), tied=True)
    >>> parameters = dict(system.named_parameters())
    >>> groups = parameter_groups(system.model, system.guide, torch.zeros(4, 6), parameters)
    >>> groups["θ"], groups["shared"]
    (('decoder.biases.0', 'decoder.biases.1'), ('encoder.0.weight', 'encoder.2.weight'))
    >>> list(groups)
    ['θ', 'φ', 'shared', 'encoder.0', 'encoder.2', 'decoder.biases']
    """
    check_leaves(parameters)
    structure = structure_of(x, {}, model)
    model, guide, args = structure(model), structure(guide), structure.tensors
    with fork_random(args[0].device):
        traces = run(model, guide, args, {}, through=lambda site: site["value"].detach())
    of_model = [
        log_density(name, s)
        for observed in (True, False)
        for name, s in traces.sites(traces.model, observed=observed)
    ]
    of_guide = [
        part
        for name, site in traces.sites(traces.guide, observed=False)
        for part in (site["value"], log_density(name, site))
    ]
    theta, phi = _reached(of_model, parameters), _reached(of_guide, parameters)
    if not theta | phi:
        names = ", ".join(parameters) or "(there are none)"
        raise ProgramError(f"model and guide depend on none of the parameters {names}")
    sets = {"θ": theta - phi, "φ": phi - theta, "shared": theta & phi}
    groups = {
        name: tuple(p for p in parameters if p in names) for name, names in sets.items() if names
    }
    modules: dict[str, list[str]] = {}
    for parameter in parameters:
        if parameter in theta | phi:
            modules.setdefault(_module_of(parameter, groups), []).append(parameter)
    return groups | {name: tuple(names) for name, names in modules.items()}


def check_leaves(parameters: Mapping[str, Tensor]) -> None:
    """Check that parameters are leaves of the autograd graph that require a gradient.

    Args:
        parameters: Tensors by name.

    Raises:
        ConfigError: For a parameter that is not such a leaf, with its name.
    """
    for name, parameter in parameters.items():
        if not (parameter.is_leaf and parameter.requires_grad):
            raise ConfigError(f"the parameter '{name}' must be a leaf that requires a gradient")


def _reached(terms: Sequence[Tensor], parameters: Mapping[str, Tensor]) -> set[str]:
    """The parameters that any of the terms depends on."""
    sums = [term.sum() for term in terms if term.requires_grad]
    if not sums or not parameters:
        return set()
    gradients = torch.autograd.grad(sums, list(parameters.values()), allow_unused=True)
    return {
        name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None
    }


def _module_of(parameter: str, groups: Mapping[str, object]) -> str:
    """The module of a parameter, with a prefix if it has the name of another group."""
    module = parameter.rpartition(".")[0] or parameter
    return f"module {module}" if module in groups else module
