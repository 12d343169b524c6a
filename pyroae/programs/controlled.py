"""A system together with the parameters that its objective learns."""

from collections.abc import Mapping
from copy import copy

from torch import Tensor, nn

from pyroae.errors import ConfigError

CONTROLS = "objective"
"""The name of the submodule with the parameters that an objective learns."""


def with_controls(system: nn.Module, controls: nn.Module | None) -> nn.Module:
    """Add the module that an objective learns to a system, so that it is trained and saved with it.

    Args:
        system: A module with a `model` and a `guide`.
        controls: `ObjectiveBase.controls`; None for an objective that learns nothing.

    Returns:
        The same system where there is nothing to add; else one that shares its parameters, buffers
        and submodules, with one more submodule, `objective`.

    Raises:
        ConfigError: For a system that has another submodule of this name.

    >>> from pyroae import zoo
    >>> system = with_controls(zoo.ppca(2, latent=1), nn.Linear(2, 1))
    >>> [name for name, _ in system.named_parameters() if name.startswith("objective")]
    ['objective.weight', 'objective.bias']
    """
    present = system._modules.get(CONTROLS)
    if controls is None or present is controls:
        return system
    if present is not None:
        raise ConfigError(
            f"the system has a submodule '{CONTROLS}', the name under which the parameters of an "
            "objective that learns are saved: rename the submodule"
        )
    extended = copy(system)
    # The copy shares the dict of submodules with the system, which must not change.
    extended.__dict__["_modules"] = {**system._modules, CONTROLS: controls}
    return extended


def without_controls(weights: Mapping[str, Tensor], system: nn.Module) -> dict[str, Tensor]:
    """Leave out of saved weights what is the objective's and not the system's.

    Args:
        weights: The `state_dict` of a system that was trained, perhaps with an objective that
            learns.
        system: The system that the weights are for.

    Returns:
        The weights without the entries `objective.…`, where the system has no such submodule.

    >>> from pyroae import zoo
    >>> system = zoo.ppca(2, latent=1)
    >>> trained = with_controls(system, nn.Linear(2, 1)).state_dict()
    >>> list(without_controls(trained, system)) == list(system.state_dict())
    True
    """
    if CONTROLS in system._modules:
        return dict(weights)
    return {name: value for name, value in weights.items() if not name.startswith(f"{CONTROLS}.")}
