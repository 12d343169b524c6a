"""The parameters of a module as Pyro sees them."""

from collections.abc import Callable

from pyro import poutine
from torch import Tensor, nn
from torch.distributions import constraints

from pyroae.programs.context import announces_parameters


def announce_parameters(name: str, module: nn.Module) -> None:
    """Report a module's parameters to Pyro's handlers without using the global parameter store.

    `pyro.module` registers by name in the global store, so that a second module of the same name is
    silently not trained. Here `pyro.infer.SVI` and `poutine.trace` see the same param sites, but
    modules in one process do not share them.

    Args:
        name: The prefix of the param sites' names.
        module: The module whose parameters require a gradient.

    >>> import torch
    >>> from pyroae import zoo
    >>> model = zoo.vae(4, latent=2).model
    >>> trace = poutine.trace(model).get_trace(torch.zeros(3, 4))
    >>> "autoencoder.decoder.0.bias" in trace.nodes
    True
    """
    if not poutine.runtime.am_i_wrapped() or not announces_parameters():
        return
    for parameter_name, parameter in module.named_parameters():
        if parameter.requires_grad:
            full = f"{name}.{parameter_name}"
            poutine.runtime.effectful(_alias(parameter), type="param")(
                full, parameter, constraint=constraints.real, name=full
            )


def _alias(parameter: nn.Parameter) -> Callable[..., Tensor]:
    """A function that returns the parameter's value, from which SVI finds the parameter."""
    value = parameter.detach()
    value.unconstrained = lambda: parameter  # type: ignore[attr-defined]
    return lambda *_, **__: value
