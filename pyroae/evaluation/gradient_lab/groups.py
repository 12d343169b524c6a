"""Groups of parameters: which belong to the model, which to the guide, and to which module."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyroae.errors import ConfigError, ProgramError
from pyroae.evaluation.blocks import Data
from pyroae.programs.arguments import structure_of
from pyroae.programs.context import fork_random
from pyroae.programs.sites import Program
from pyroae.programs.traces import log_density, run


def parameter_groups(
    model: Program, guide: Program, x: Data, parameters: Mapping[str, Tensor]
) -> dict[str, tuple[str, ...]]:
    """Names of parameters by group: θ, φ and "shared", then one group a module.

        θ: log p(x, z) depends on them at fixed z;   φ: z or log q(z|x) does;   shared: both, such as tied weights

    Found from one run of both programs on x `[N, ...]`, or all arguments as of `log_likelihood`, whatever their names; groups without parameters are left out, and
    parameters that neither depends on. parameters: leaves by name, as of `dict(system.named_parameters())`. The module of
    `encoder.0.weight` is `encoder.0`; a name without a dot is a module of its own.
    Torch's generators stay as they were. Raises ConfigError for parameters that are no leaves with a gradient, ProgramError
    where neither program depends on any of the parameters.

    >>> from pyroae import zoo
    >>> from pyroae.nn import MLP
    >>> system = zoo.autoencoder(6, latent=2, encoder=MLP((3,)), tied=True)
    >>> groups = parameter_groups(system.model, system.guide, torch.zeros(4, 6), dict(system.named_parameters()))
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
    drawn = [
        part
        for name, site in traces.sites(traces.guide, observed=False)
        for part in (site["value"], log_density(name, site))
    ]
    theta, phi = _reached(of_model, parameters), _reached(drawn, parameters)
    if not theta | phi:
        raise ProgramError(
            f"model and guide depend on none of the parameters {', '.join(parameters) or '(there are none)'}"
        )
    groups = {"θ": theta - phi, "φ": phi - theta, "shared": theta & phi}
    found = {
        name: tuple(p for p in parameters if p in names) for name, names in groups.items() if names
    }
    modules: dict[str, list[str]] = {}
    for parameter in parameters:
        if parameter in theta | phi:
            modules.setdefault(_module_of(parameter, found), []).append(parameter)
    return found | {name: tuple(names) for name, names in modules.items()}


def check_leaves(parameters: Mapping[str, Tensor]) -> None:
    """Raises ConfigError for a parameter that is no leaf with a gradient."""
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


def _module_of(parameter: str, taken: Mapping[str, object]) -> str:
    module = parameter.rpartition(".")[0] or parameter
    return f"module {module}" if module in taken else module
