"""What an objective learns, as `pyro.infer.SVI` and `objective(model, guide)` see it."""

from collections.abc import Iterator
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary, ref

import pyro
from pyro.infer.elbo import ELBOModule
from pyro.params import param_with_module_name
from pyro.poutine.runtime import _PYRO_STACK, effectful
from pyro.poutine.trace_messenger import TraceMessenger
from torch import nn
from torch.distributions import constraints

from pyroae.errors import ConfigError

_COUNT = count(1)
_NAMES: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()


def announce(controls: nn.Module) -> None:
    """Announce the parameters of a module to the handlers of Pyro that record parameters.

    `pyro.infer.SVI` steps the parameters that it records so. Where nothing records, nothing is
    announced, and Pyro's parameter store stays as it is. Each module has a name of its own in the
    process, so that two objectives never share parameters. Under `module_local_params` the
    parameters are announced without being stored.

    Args:
        controls: What an objective learns.

    Raises:
        ConfigError: The store has other parameters under the name, as after `load`.
    """
    if not any(isinstance(handler, TraceMessenger) for handler in _PYRO_STACK):
        return
    if controls not in _NAMES:
        _NAMES[controls] = f"objective_{next(_COUNT)}"
    for name, parameter in controls.named_parameters():
        if parameter.requires_grad:
            _announce(param_with_module_name(_NAMES[controls], name), parameter)


def _announce(name: str, parameter: nn.Parameter) -> None:
    if pyro.settings.get("module_local_params"):
        value: Any = parameter.view_as(parameter)
        value.unconstrained = ref(parameter)
        effectful(type="param")(lambda *_, **__: value)(
            name, parameter, constraint=constraints.real, event_dim=None, name=name
        )
        return
    stored: Any = pyro.param(name, parameter)
    if stored.unconstrained() is not parameter:
        raise ConfigError(
            f"Pyro's parameter store has another parameter '{name}' than the objective learns: "
            "call pyro.clear_param_store() first, and restore what an objective has learned by "
            "objective.controls.load_state_dict"
        )


class ObjectiveModule(ELBOModule):
    """An objective of a model and a guide as a module, whose call is the differentiable loss.

    Its parameters are those of model and guide and, from the first call on, those that the
    objective learns, as the submodule `controls`.

    Args:
        model: The module of the model.
        guide: The module of the guide.
        elbo: The objective.

    >>> from pyroae import TraceELBO, zoo
    >>> system = zoo.ppca(4, latent=2)
    >>> len(list(TraceELBO()(system.encoder, system.decoder).parameters()))
    4
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the differentiable loss.

        Args:
            *args: Positional arguments of both programs.
            **kwargs: Keyword arguments of both programs.

        Returns:
            The negative bound over all data, in nats, shape `[]`.
        """
        loss = super().forward(*args, **kwargs)
        self._adopt()
        return loss

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Return names and parameters of model, guide and objective.

        Args:
            *args: As of `torch.nn.Module.named_parameters`.
            **kwargs: As of `torch.nn.Module.named_parameters`.

        Returns:
            The names and the parameters.

        Raises:
            ConfigError: The objective has not made its parameters yet.
        """
        if self.elbo.learns and self.elbo.controls is None:
            raise ConfigError(
                f"{type(self.elbo).__name__} has parameters of its own, which its first call "
                "makes: call the module once with the arguments of the programs before its "
                "parameters are given to an optimizer"
            )
        self._adopt()
        return super().named_parameters(*args, **kwargs)

    def _adopt(self) -> None:
        """Make what the objective learns a submodule."""
        if self.elbo.controls is not None:
            self.add_module("controls", self.elbo.controls)
