"""Activations of networks by name."""

from torch import nn

from pyroae.registry import Registry

ACTIVATIONS: Registry[nn.Module] = Registry("activation")
"""Activations by name, each a class of modules."""


for _name, _activation in (
    ("tanh", nn.Tanh),
    ("relu", nn.ReLU),
    ("elu", nn.ELU),
    ("gelu", nn.GELU),
    ("silu", nn.SiLU),
    ("softplus", nn.Softplus),
    ("sigmoid", nn.Sigmoid),
):
    ACTIVATIONS.register(_name)(_activation)
